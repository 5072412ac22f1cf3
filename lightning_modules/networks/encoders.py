"""Encoders: from the signals of several people to vectors of the image space.

Each is a layer of every person's own, which takes up what differs between people, and a trunk that all share.
A new person needs a layer of their own and nothing else (``ContrastiveAlignment(adapt=...)``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from einops.layers.torch import Rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

from contracts import ContractError

_Shape = TypeVar("_Shape")
Shapes = Mapping[str, Sequence[int]]
"""Shape of one sample of each person: ``[V]`` or ``[C, T]``."""


class SubjectLayers(nn.Module):
    """One layer for each person, registered, so that it is trained, saved and shared over processes.

    A batch that lacks a person gives the layer a gradient of zero, on one process as on many: DDP waits for
    every gradient, and an optimiser then treats all layers alike.

    Args:
        shapes: Shape of one sample of each person, or whatever else ``make`` reads.
        make: Makes the layer for a shape.
    """

    def __init__(self, shapes: Mapping[str, _Shape], make: Callable[[_Shape], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(make(shape) for shape in shapes.values())

    def forward(self, signal: Float[Tensor, "b ..."], subject: Int64[Tensor, " b"]) -> Float[Tensor, "b ..."]:
        """Pass each sample through the layer of its person.

        Args:
            signal: Samples of people of one layout.
            subject: Person of each sample.
        """
        if len(self.layers) == 1:
            own: Tensor = self.layers[0](signal)
            return own
        people = subject.unique().tolist()
        parts = {person: torch.nonzero(subject == person).flatten() for person in people}
        outputs = torch.cat([self.layers[person](signal[rows]) for person, rows in parts.items()])
        result = outputs[torch.cat(list(parts.values())).argsort()]
        if torch.is_grad_enabled():
            absent = [layer for person, layer in enumerate(self.layers) if person not in parts]
            touched = [p.flatten()[0] for layer in absent for p in layer.parameters() if p.requires_grad]
            if touched:
                result = result + 0 * torch.stack(touched).sum()
        return result


class Encoder(nn.Module):
    """Base of all encoders: ``subject_layers``, then ``trunk``.

    Args:
        subject_layers: What every person has for themselves.
        trunk: What all people share.
    """

    def __init__(self, subject_layers: SubjectLayers, trunk: nn.Module) -> None:
        super().__init__()
        self.subject_layers = subject_layers
        self.trunk = trunk

    def forward(self, signal: Float[Tensor, "b ..."], subject: Int64[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Encode ``(B, V)`` or ``(B, C, T)`` signals of the given people to ``(B, D)``."""
        encoded: Tensor = self.trunk(self.subject_layers(signal, subject))
        return encoded


class LinearEncoder(Encoder):
    """One linear map for each person: the smallest encoder, of the same form as ridge regression.

    Args:
        shapes: Shape of one sample of each person; ``(C, T)`` is flattened.
        width: D of the image space.
        dropout: Share of voxels (or sensors x times) set to 0 while training.
    """

    def __init__(self, shapes: Shapes, width: int, *, dropout: float = 0.0) -> None:
        super().__init__(
            SubjectLayers(
                shapes,
                lambda shape: nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(math.prod(shape), width)),
            ),
            nn.Identity(),
        )


class ResidualMLP(Encoder):
    """A linear layer for each person, then residual blocks (Scotti et al. 2023, MindEye, section 3.1, smaller).

    Args:
        shapes: Shape of one sample of each person; ``(C, T)`` is flattened.
        width: D of the image space.
        hidden: Width of the blocks.
        blocks: Number of residual blocks.
        input_dropout: Share of voxels (or sensors x times) set to 0 while training.
        dropout: Dropout within the blocks.
    """

    def __init__(
        self,
        shapes: Shapes,
        width: int,
        *,
        hidden: int = 512,
        blocks: int = 1,
        input_dropout: float = 0.3,
        dropout: float = 0.3,
    ) -> None:
        super().__init__(
            SubjectLayers(
                shapes,
                lambda shape: nn.Sequential(
                    nn.Flatten(), nn.Dropout(input_dropout), nn.Linear(math.prod(shape), hidden)
                ),
            ),
            nn.Sequential(
                *(_Residual(hidden, dropout) for _ in range(blocks)),
                nn.LayerNorm(hidden),
                nn.Linear(hidden, width),
            ),
        )


class TemporalSpatialConv(Encoder):
    """Temporal then spatial convolution (Song et al. 2024, NICE, TSConv; after Schirrmeister et al. 2017).

    Every person mixes their own sensors into as many common ones (Défossez et al. 2023, "subject layer"); the
    trunk filters in time, averages, mixes all sensors, and projects. Group instead of batch normalisation: an
    embedding must not depend on what else is in the batch, nor on the number of processes.

    Args:
        shapes: ``(C, T)`` of each person; T must be the same for all.
        width: D of the image space.
        sensors: Number of common sensors.
        filters: Number of filters, temporal and spatial.
        kernel: Length of the temporal filters, in samples.
        pool: Length of the temporal average, in samples.
        stride: Step of the temporal average, in samples.
        dropout: Dropout before and within the projection.

    Raises:
        ContractError: Signals without time axis, people of different T, or T too short.
    """

    def __init__(
        self,
        shapes: Shapes,
        width: int,
        *,
        sensors: int = 32,
        filters: int = 32,
        kernel: int = 5,
        pool: int = 9,
        stride: int = 3,
        dropout: float = 0.5,
    ) -> None:
        if any(len(shape) != 2 for shape in shapes.values()) or len({shape[-1] for shape in shapes.values()}) > 1:
            raise ContractError(
                f"TemporalSpatialConv needs sensors x times of one length for all people, found {dict(shapes)}; choose "
                "another --model.init_args.encoder, such as ResidualMLP"
            )
        times = next(iter(shapes.values()))[1]
        steps = (times - kernel + 1 - pool) // stride + 1
        if steps < 1:
            raise ContractError(
                f"TemporalSpatialConv: {times} time points are too few for kernel={kernel} and pool={pool}"
            )
        super().__init__(
            SubjectLayers(shapes, lambda shape: nn.Conv1d(shape[0], sensors, 1)),
            nn.Sequential(
                Rearrange("b c t -> b 1 c t"),
                nn.Conv2d(1, filters, (1, kernel)),
                nn.AvgPool2d((1, pool), (1, stride)),
                nn.GroupNorm(1, filters),
                nn.ELU(),
                nn.Conv2d(filters, filters, (sensors, 1)),
                nn.GroupNorm(1, filters),
                nn.ELU(),
                nn.Dropout(dropout),
                nn.Flatten(),
                nn.Linear(filters * steps, width),
                _Residual(width, dropout),
                nn.LayerNorm(width),
            ),
        )


class _Residual(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width)
        )

    def forward(self, x: Float[Tensor, "b h"]) -> Float[Tensor, "b h"]:
        residual: Tensor = x + self.block(x)
        return residual


EncoderFactory = Callable[[Shapes, int], Encoder]
"""Makes an encoder from the people's shapes and D; in a configuration: ``class_path`` and ``init_args``."""
