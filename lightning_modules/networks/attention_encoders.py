"""Encoders of EEG and MEG that attend to sensors: by where they are (SensorAttention), by what they record (ATM)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

from contracts import ContractError, Layout
from lightning_modules.networks.encoders import (
    Encoder,
    SensorLayer,
    SubjectLayers,
    common_sensors,
    sensor_layers,
    sensors_by_times,
    temporal_spatial,
)
from lightning_modules.networks.sensor_encoders import averaged_filters

PersonLayer = Literal["token", "convolution", "none"]
MARGIN = 0.1
"""Distance of the outermost sensors from the edge of the unit square: functions of the place are periodic in it."""


class SensorAttention(Encoder):
    """Spatial attention by sensor position, a layer for each person, dilated convolutions (Défossez et al. 2023).

    ``(B, C, T)`` -> weighted means of all sensors, weights learned as functions of the place ``(B, 270, T)`` -> linear
    -> linear for each person -> residual blocks of dilated convolutions ``(B, 320, T)`` -> linear, GELU, linear
    ``(B, 2048, T)`` -> one weight a moment ``(B, 2048)`` -> GELU, linear -> D. Sizes as Benchetrit et al. (2024) use
    them for images; Défossez et al. (2023), for speech, have five blocks and keep time. Group instead of batch
    normalisation: an embedding must not depend on what else is in the batch, nor on the number of processes.

    Args:
        layout: One modality with ``(C, T)`` and sensor positions; C and T must be the same for all people.
        sensors: Number of weighted means.
        harmonics: Number of spatial frequencies in each direction.
        hidden: Channels of the blocks.
        blocks: Number of blocks.
        features: Channels before time is summed up.
        spatial_dropout: While training, sensors nearer than this to a random place are left out of the means, for each
            sample; the whole head is 1 - 2 * ``MARGIN`` wide. .2 as published, 0 for none.

    Raises:
        ContractError: Signals without time axis, people of different T or C, or a layout without sensor positions.

    References: Défossez et al. (2023), Decoding speech perception from non-invasive brain recordings, Nature Machine
    Intelligence 5, methods; Benchetrit, Banville & King (2024), Brain decoding: toward real-time reconstruction of
    visual perception (arXiv 2310.19812).
    """

    trunk: _Around

    def __init__(
        self,
        layout: Layout,
        *,
        sensors: int = 270,
        harmonics: int = 32,
        hidden: int = 320,
        blocks: int = 2,
        features: int = 2048,
        spatial_dropout: float = 0.2,
    ) -> None:
        shapes, times = sensors_by_times(layout, "SensorAttention")
        channels = common_sensors(shapes, "SensorAttention")
        places = _places(layout, channels)
        before = nn.Sequential(
            PositionMerger(places, sensors=sensors, harmonics=harmonics, dropout=spatial_dropout),
            nn.Conv1d(sensors, sensors, 1),
        )
        after = nn.Sequential(
            *(_DilatedBlock(sensors if k == 0 else hidden, hidden, number=k) for k in range(blocks)),
            nn.Conv1d(hidden if blocks else sensors, 2 * hidden, 1),
            nn.GELU(),
            nn.Conv1d(2 * hidden, features, 1),
            nn.Linear(times, 1),
            nn.Flatten(),
            nn.GELU(),
            nn.Linear(features, layout["embedding_width"]),
        )
        super().__init__(
            SubjectLayers(shapes, lambda _: nn.Conv1d(sensors, sensors, 1, bias=False)),
            _Around(before, after),
        )

    def forward(self, signal: Float[Tensor, "b c t"], subject: Int64[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Encode ``(B, C, T)`` signals of the given people to ``(B, D)``."""
        encoded: Tensor = self.trunk(self.subject_layers(self.trunk.before(signal), subject))
        return encoded


class ATM(Encoder):
    """Attention between sensors, then temporal and spatial convolution (Li et al. 2024, ATM-S).

    ``(B, C, T)`` -> every sensor's course is one token, and every person has a token of their own -> a transformer
    -> the tokens of the sensors, without the person's -> TSConv (``TemporalSpatialConv``) -> linear, residual
    block -> D. Published at 250 Hz, T = 250, with filters of 25 samples and averages of 51 every 5. Tokens are T wide,
    made a multiple of the heads (the published 250 are 252 here). Group instead of batch normalisation: an embedding
    must not depend on what else is in the batch, nor on the number of processes. The published code appends the
    sensors to the person's token, then keeps the first C tokens, and so loses the last sensor; here none is lost.

    Args:
        layout: One modality with ``(C, T)`` and a sampling rate; T must be the same for all people.
        heads: Heads of the attention.
        depth: Number of transformer blocks.
        feedforward: Hidden width of the transformer blocks.
        attention_dropout: Dropout of tokens and within the transformer blocks.
        filters: Number of filters of the convolutions.
        filter_seconds: Length of the temporal filters.
        pool_seconds: Length of the average.
        stride_seconds: Step of the average.
        dropout: Dropout before and within the projection.
        subject_layer: ``token`` as published, for people of the same sensors; ``convolution``: instead, every person
            mixes their own sensors into common ones; ``none``: all people alike.

    Raises:
        ContractError: Signals without time axis, people of different T, of different C without convolution, or T too
            short.

    References: Li et al. (2024), Visual decoding and reconstruction via EEG embeddings with guided diffusion (arXiv
    2403.07721), section 2.2; Liu et al. (2024), iTransformer (arXiv 2310.06625).
    """

    def __init__(
        self,
        layout: Layout,
        *,
        heads: int = 4,
        depth: int = 1,
        feedforward: int = 256,
        attention_dropout: float = 0.25,
        filters: int = 40,
        filter_seconds: float = 0.1,
        pool_seconds: float = 0.204,
        stride_seconds: float = 0.02,
        dropout: float = 0.5,
        subject_layer: PersonLayer = "token",
    ) -> None:
        shapes, times = sensors_by_times(layout, "ATM")
        tokens = heads * math.ceil(times / heads)
        durations = (filter_seconds, pool_seconds, stride_seconds)
        kernel, pool, stride, steps = averaged_filters(layout, durations, "ATM", length=tokens)
        layers, sensors = _person_layers(shapes, subject_layer, times)
        attention = nn.TransformerEncoderLayer(
            tokens, heads, feedforward, attention_dropout, activation="gelu", batch_first=True
        )
        width = layout["embedding_width"]
        super().__init__(
            layers,
            nn.Sequential(
                nn.Linear(times, tokens),
                nn.Dropout(attention_dropout),
                nn.TransformerEncoder(attention, depth, nn.LayerNorm(tokens), enable_nested_tensor=False),
                _First(sensors),
                *temporal_spatial(sensors, filters=filters, kernel=kernel, pool=pool, stride=stride),
                nn.Dropout(dropout),
                nn.Conv2d(filters, filters, 1),
                nn.Flatten(),
                nn.Linear(filters * steps, width),
                _ProjectedResidual(width, dropout),
                nn.LayerNorm(width),
            ),
        )


class PositionMerger(nn.Module):
    r"""Weighted means of sensors, with weights that are learned as functions of the place (Défossez et al. 2023).

    Output j at a moment is :math:`\sum_i \mathrm{softmax}_i(a_j(x_i, y_i))\, X_i` with

    .. math:: a_j(x, y) = \sum_{k,l=0}^{K-1} p_j^{kl} \cos 2\pi(kx + ly) + q_j^{kl} \sin 2\pi(kx + ly)

    Frequencies begin at 0, as in the published code (in the paper, at 1).

    Args:
        places: ``(C, 2)`` in 0..1.
        sensors: Number of outputs.
        harmonics: K.
        dropout: While training, sensors nearer than this to a random place in 0..1 are left out, for each sample; where
            that would be all, none is.
    """

    places: Tensor
    basis: Tensor

    def __init__(self, places: Float[Tensor, "c 2"], *, sensors: int, harmonics: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.heads = nn.Parameter(torch.randn(sensors, 2 * harmonics**2) / math.sqrt(2 * harmonics**2))
        # both follow from the layout: other people of the same trunk may wear their sensors elsewhere
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("basis", _fourier(places, harmonics), persistent=False)

    def forward(self, signal: Float[Tensor, "b c t"]) -> Float[Tensor, "b o t"]:
        """Return ``(B, O, T)`` means of ``(B, C, T)``."""
        scores = self.heads @ self.basis.T
        if not self.training or self.dropout == 0:
            return scores.softmax(dim=1) @ signal
        centre = torch.rand(len(signal), 1, 2, device=signal.device)
        near = (self.places - centre).norm(dim=2) < self.dropout
        near = near & ~near.all(dim=1, keepdim=True)
        return scores.masked_fill(near[:, None], -math.inf).softmax(dim=2) @ signal


def azimuthal_equidistant(positions: Float[np.ndarray, "c 3"]) -> Float[np.ndarray, "c 2"]:
    """Lay positions on a head out on a plane: the angle to the vertex is the distance from the origin, in radians.

    Args:
        positions: Head coordinates (to the right, to the front, up), in any unit.
    """
    distance = np.linalg.norm(positions, axis=1)
    angle = np.arccos(np.clip(positions[:, 2] / np.where(distance > 0, distance, 1), -1, 1))
    sideways = np.linalg.norm(positions[:, :2], axis=1)
    flat: np.ndarray = (angle / np.where(sideways > 0, sideways, 1))[:, None] * positions[:, :2]
    return flat


def _places(layout: Layout, channels: int) -> Float[Tensor, "c 2"]:
    """Places of the sensors in the unit square, ``MARGIN`` from its edges; both directions in one scale."""
    positions = np.array(layout["positions"], dtype=np.float64)
    if positions.shape != (channels, 3) or not np.isfinite(positions).all():
        raise ContractError(
            f"SensorAttention needs the position of each of {channels} sensors, found {positions.shape} with "
            f"{positions.size - np.isfinite(positions).sum()} missing numbers; choose another "
            "--model.init_args.encoder, such as ATM"
        )
    flat = azimuthal_equidistant(positions)
    low, high = flat.min(axis=0), flat.max(axis=0)
    extent = (high - low).max()
    centred = (flat - (low + high) / 2) / (extent if extent > 0 else 1)
    return torch.from_numpy(0.5 + (1 - 2 * MARGIN) * centred).float()


def _fourier(places: Float[Tensor, "c 2"], harmonics: int) -> Float[Tensor, "c f"]:
    """Cosines and sines of all pairs of spatial frequencies at each place."""
    frequency = torch.arange(harmonics, dtype=torch.float64)
    x, y = (2 * math.pi * places.double()).unbind(1)
    phase = rearrange(x[:, None, None] * frequency[:, None] + y[:, None, None] * frequency, "c k l -> c (k l)")
    return torch.cat([phase.cos(), phase.sin()], dim=1).float()


class _Around(nn.Module):
    """A trunk with a part ``before`` the subject layers; called, it is the part after them."""

    def __init__(self, before: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.before = before
        self.after = after

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b d"]:
        encoded: Tensor = self.after(x)
        return encoded


class _DilatedBlock(nn.Module):
    """Two residual convolutions of growing dilation, and a gated one."""

    def __init__(self, channels: int, hidden: int, *, number: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for place in (2 * number, 2 * number + 1):
            dilation = 2 ** (place % 5)
            self.layers.append(
                nn.Sequential(
                    nn.Conv1d(channels, hidden, 3, padding=dilation, dilation=dilation),
                    nn.GroupNorm(1, hidden),
                    nn.GELU(),
                )
            )
            channels = hidden
        self.gate = nn.Sequential(nn.Conv1d(hidden, 2 * hidden, 3, padding=1), nn.GLU(dim=1))

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b h t"]:
        for layer in self.layers:
            y = layer(x)
            # the first convolution may change the number of channels
            x = x + y if x.shape == y.shape else y
        gated: Tensor = self.gate(x)
        return gated


def _person_layers(shapes: dict[str, list[int]], subject_layer: PersonLayer, times: int) -> tuple[SubjectLayers, int]:
    if subject_layer not in get_args(PersonLayer):
        raise ContractError(f"ATM: subject_layer is {', '.join(get_args(PersonLayer))}, found {subject_layer!r}")
    if subject_layer == "token":
        return SubjectLayers(shapes, lambda _: _PersonToken(times)), common_sensors(shapes, "ATM")
    own: SensorLayer = subject_layer
    return sensor_layers(shapes, own, "ATM")


class _PersonToken(nn.Module):
    """The course of one sensor more, learned."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, times))

    def forward(self, signal: Float[Tensor, "b c t"]) -> Float[Tensor, "b k t"]:
        return torch.cat([signal, self.token.expand(len(signal), 1, -1)], dim=1)


class _First(nn.Module):
    """The tokens of the sensors, without the person's."""

    def __init__(self, sensors: int) -> None:
        super().__init__()
        self.sensors = sensors

    def forward(self, tokens: Float[Tensor, "b k d"]) -> Float[Tensor, "b c d"]:
        return tokens[:, : self.sensors]


class _ProjectedResidual(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.Dropout(dropout))

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        residual: Tensor = x + self.block(x)
        return residual
