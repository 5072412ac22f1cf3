"""Encoders: from the signals of several people to vectors of the image space.

Each is a layer of every person's own, which takes up what differs between people, and a trunk that all share.
A new person needs a layer of their own and nothing else (``ContrastiveAlignment(adapt_subject=...)``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

from contracts import ContractError, Layout

_Shape = TypeVar("_Shape")
SensorLayer = Literal["none", "convolution"]


def shapes_of(layout: Layout) -> dict[str, list[int]]:
    """Shape of one sample of each person of a layout, ``[V]`` or ``[C, T]``, in the order of their numbers."""
    return {subject: list(layout["shape"][subject]) for subject in layout["subjects"]}


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


class NoSubjectLayers(SubjectLayers):
    """Nothing of a person's own: signals pass as they are.

    Args:
        shapes: Shape of one sample of each person; only their number counts.
    """

    def __init__(self, shapes: Mapping[str, list[int]]) -> None:
        super().__init__(shapes, lambda _: nn.Identity())

    def forward(self, signal: Float[Tensor, "b ..."], subject: Int64[Tensor, " b"]) -> Float[Tensor, "b ..."]:
        """Return the signal."""
        return signal


class Encoder(nn.Module):
    """Base of all encoders: ``subject_layers``, then ``trunk``.

    Args:
        subject_layers: What every person has for themselves.
        trunk: What all people share, every parameter of it.
    """

    def __init__(self, subject_layers: SubjectLayers, trunk: nn.Module) -> None:
        super().__init__()
        self.subject_layers = subject_layers
        self.trunk = trunk

    def freeze_subject_layers(self) -> None:
        """Leave the subject layers as they were drawn: random projections, saved but not trained."""
        self.subject_layers.requires_grad_(False)

    def forward(self, signal: Float[Tensor, "b ..."], subject: Int64[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Encode ``(B, V)`` or ``(B, C, T)`` signals of the given people to ``(B, D)``."""
        encoded: Tensor = self.trunk(self.subject_layers(signal, subject))
        return encoded


def sensors_by_times(layout: Layout, encoder: str) -> tuple[dict[str, list[int]], int]:
    """Return ``[C, T]`` of each person and the one T of all.

    Args:
        layout: One modality.
        encoder: Name for the error.

    Raises:
        ContractError: Signals without time axis, or people of different T.
    """
    shapes = shapes_of(layout)
    if any(len(shape) != 2 for shape in shapes.values()) or len({shape[-1] for shape in shapes.values()}) > 1:
        raise ContractError(
            f"{encoder} needs sensors x times of one length for all people, found {shapes}; choose another "
            "--model.init_args.encoder, such as ResidualMLP"
        )
    return shapes, next(iter(shapes.values()))[1]


def common_sensors(shapes: Mapping[str, list[int]], encoder: str) -> int:
    """Return the one C of all people.

    Args:
        shapes: ``[C, T]`` of each person.
        encoder: Name for the error.

    Raises:
        ContractError: People of different C.
    """
    channels = {subject: shape[0] for subject, shape in shapes.items()}
    if len(set(channels.values())) > 1:
        raise ContractError(
            f"{encoder} needs the same sensors for all people, found {channels}; where the encoder has the argument "
            "subject_layer, convolution brings people of different sensors together"
        )
    return next(iter(channels.values()))


def sensor_layers(
    shapes: Mapping[str, list[int]], subject_layer: SensorLayer, encoder: str
) -> tuple[SubjectLayers, int]:
    """Return subject layers for signals of sensors, and how many sensors they give.

    Args:
        shapes: ``[C, T]`` of each person.
        subject_layer: ``none``, or ``convolution``: every person mixes their sensors into the largest C of all people.
        encoder: Name for the error.

    Raises:
        ContractError: ``none`` where people differ in C, or a choice that does not exist.
    """
    if subject_layer not in get_args(SensorLayer):
        raise ContractError(f"{encoder}: subject_layer is {', '.join(get_args(SensorLayer))}, found {subject_layer!r}")
    if subject_layer == "none":
        return NoSubjectLayers(shapes), common_sensors(shapes, encoder)
    sensors = max(shape[0] for shape in shapes.values())
    return SubjectLayers(shapes, lambda shape: nn.Conv1d(shape[0], sensors, 1)), sensors


class LinearEncoder(Encoder):
    """One linear map, of each person or of all: the smallest encoder, of the same form as ridge regression.

    Args:
        layout: One modality; ``(C, T)`` is flattened.
        dropout: Share of voxels (or sensors x times) set to 0 while training.
        subject_layer: ``linear``: every person has a map of their own, and nothing is shared. ``none``: one map for
            all, also for people who were never trained on.

    Raises:
        ContractError: ``none`` where people differ in shape, or a choice that does not exist.
    """

    def __init__(
        self, layout: Layout, *, dropout: float = 0.0, subject_layer: Literal["linear", "none"] = "linear"
    ) -> None:
        width, shapes = layout["embedding_width"], shapes_of(layout)
        if subject_layer not in ("linear", "none"):
            raise ContractError(f"LinearEncoder: subject_layer is linear or none, found {subject_layer!r}")

        def linear(shape: list[int]) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(math.prod(shape), width))

        if subject_layer == "linear":
            super().__init__(SubjectLayers(shapes, linear), nn.Identity())
            return
        first, *others = shapes.values()
        if any(shape != first for shape in others):
            raise ContractError(
                f"LinearEncoder: one map for all needs people of one shape, found {shapes}; set subject_layer=linear"
            )
        super().__init__(NoSubjectLayers(shapes), linear(first))


class ResidualMLP(Encoder):
    """A linear layer for each person, then residual blocks (Scotti et al. 2023, MindEye, section 3.1, smaller).

    Args:
        layout: One modality; ``(C, T)`` is flattened.
        hidden: Width of the blocks.
        blocks: Number of residual blocks.
        input_dropout: Share of voxels (or sensors x times) set to 0 while training.
        dropout: Dropout within the blocks.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        hidden: int = 512,
        blocks: int = 1,
        input_dropout: float = 0.3,
        dropout: float = 0.3,
    ) -> None:
        width = layout["embedding_width"]
        super().__init__(
            SubjectLayers(
                shapes_of(layout),
                lambda shape: nn.Sequential(
                    nn.Flatten(), nn.Dropout(input_dropout), nn.Linear(math.prod(shape), hidden)
                ),
            ),
            nn.Sequential(
                *(Residual(hidden, dropout) for _ in range(blocks)),
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
        layout: One modality with ``(C, T)``; T must be the same for all people.
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
        layout: Layout,
        *,
        sensors: int = 32,
        filters: int = 32,
        kernel: int = 5,
        pool: int = 9,
        stride: int = 3,
        dropout: float = 0.5,
    ) -> None:
        shapes, times = sensors_by_times(layout, "TemporalSpatialConv")
        if (steps := pooled(times - kernel + 1, pool, stride)) < 1:
            raise ContractError(
                f"TemporalSpatialConv: {times} time points are too few for kernel={kernel} and pool={pool}"
            )
        width = layout["embedding_width"]
        super().__init__(
            SubjectLayers(shapes, lambda shape: nn.Conv1d(shape[0], sensors, 1)),
            nn.Sequential(
                *temporal_spatial(sensors, filters=filters, kernel=kernel, pool=pool, stride=stride),
                nn.Dropout(dropout),
                nn.Flatten(),
                nn.Linear(filters * steps, width),
                Residual(width, dropout),
                nn.LayerNorm(width),
            ),
        )


def pooled(length: int, pool: int, stride: int) -> int:
    """How many averages of ``pool`` samples fit into a length, ``stride`` samples apart; below 1 where none does."""
    return (length - pool) // stride + 1


def temporal_spatial(sensors: int, *, filters: int, kernel: int, pool: int, stride: int) -> list[nn.Module]:
    """Return the layers of TSConv, ``(B, C, T) -> (B, filters, 1, steps)``: filter in time, average, mix all sensors.

    Args:
        sensors: C.
        filters: Number of filters, temporal and spatial.
        kernel: Length of the temporal filters, in samples.
        pool: Length of the temporal average, in samples.
        stride: Step of the temporal average, in samples.
    """
    return [
        Rearrange("b c t -> b 1 c t"),
        _AveragedConv(filters, kernel=kernel, pool=pool, stride=stride),
        nn.GroupNorm(1, filters),
        nn.ELU(),
        nn.Conv2d(filters, filters, (sensors, 1)),
        nn.GroupNorm(1, filters),
        nn.ELU(),
    ]


class _AveragedConv(nn.Conv2d):
    """A convolution in time and the average over time after it, in one pass.

    Nothing stands between them: filters that are averaged first give the same, and no map of full length is made.
    """

    def __init__(self, filters: int, *, kernel: int, pool: int, stride: int) -> None:
        super().__init__(1, filters, (1, kernel))
        self.pool = pool
        self.step = stride

    def forward(self, x: Float[Tensor, "b 1 c t"]) -> Float[Tensor, "b f c s"]:
        average = self.weight.new_full((1, 1, 1, self.pool), 1 / self.pool)
        weight = F.conv2d(self.weight, average, padding=(0, self.pool - 1))
        return F.conv2d(x, weight, self.bias, stride=(1, self.step))


class Residual(nn.Module):
    """``x + linear(GELU(linear(norm(x))))``.

    Args:
        width: Width of x.
        dropout: Dropout between the linear layers.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width)
        )

    def forward(self, x: Float[Tensor, "b h"]) -> Float[Tensor, "b h"]:
        """Return ``(B, H)`` of ``(B, H)``."""
        residual: Tensor = x + self.block(x)
        return residual


EncoderFactory = Callable[[Layout], Encoder]
"""Makes an encoder for a layout of one modality; in a configuration: ``class_path`` and ``init_args``."""
