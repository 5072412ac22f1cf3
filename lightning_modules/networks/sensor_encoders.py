"""Small convolutional networks of EEG and MEG: ShallowNet and EEGNet.

Their filters were published for one sampling rate; here they last as long, whatever the rate. Group instead of batch
normalisation: an embedding must not depend on what else is in the batch, nor on the number of processes. One group:
how filters and moments differ is kept, which is what ShallowNet reads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange
from jaxtyping import Float
from torch import Tensor, nn

from contracts import ContractError, Layout
from lightning_modules.networks.encoders import Encoder, SensorLayer, pooled, sensor_layers, sensors_by_times

SMALLEST_POWER = 1e-6
"""Powers below this one are raised to it before their logarithm is taken."""


class ShallowNet(Encoder):
    """Logarithm of the power in learned bands at learned places (Schirrmeister et al. 2017, ShallowNet).

    ``(B, C, T)`` -> filter in time -> filter over sensors -> square -> average -> logarithm -> D, as in filter bank
    common spatial patterns. Published at 250 Hz with filters of 25 samples, averages of 75 every 15. Group instead of
    batch normalisation (see the module).

    Args:
        layout: One modality with ``(C, T)`` and a sampling rate; T must be the same for all people.
        filters: Number of filters, temporal and spatial.
        filter_seconds: Length of the temporal filters.
        pool_seconds: Length of the average.
        stride_seconds: Step of the average.
        dropout: Dropout before the projection.
        subject_layer: ``none`` as published, all people alike; ``convolution``: every person mixes their own sensors
            into common ones.

    Raises:
        ContractError: Signals without time axis, people of different T, of different C without subject layer, or T too
            short.

    References: Schirrmeister et al. (2017), Deep learning with convolutional neural networks for EEG decoding and
    visualization, Human Brain Mapping 38, figure 2.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        filters: int = 40,
        filter_seconds: float = 0.1,
        pool_seconds: float = 0.3,
        stride_seconds: float = 0.06,
        dropout: float = 0.5,
        subject_layer: SensorLayer = "none",
    ) -> None:
        shapes, times = sensors_by_times(layout, "ShallowNet")
        layers, sensors = sensor_layers(shapes, subject_layer, "ShallowNet")
        durations = (filter_seconds, pool_seconds, stride_seconds)
        kernel, pool, stride, steps = averaged_filters(layout, durations, "ShallowNet", length=times)
        super().__init__(
            layers,
            nn.Sequential(
                _TemporalSpatialFilter(sensors, filters, kernel),
                nn.GroupNorm(1, filters),
                _LogPower(pool, stride),
                nn.Dropout(dropout),
                nn.Flatten(),
                nn.Linear(filters * steps, layout["embedding_width"]),
            ),
        )


class EEGNet(Encoder):
    """A few filters in time, a few places for each, and few weights (Lawhern et al. 2018, EEGNet-8,2).

    ``(B, C, T)`` -> filters in time ``(B, 8, C, T)`` -> two spatial filters for each of them ``(B, 16, 1, T)`` ->
    average -> separable convolution in time -> average -> D. As published, the norm of each spatial filter is at most
    1, and of each row of the projection at most .25. Published at 128 Hz with filters of 64 samples, averages of 4,
    filters of 16 and averages of 8. Group instead of batch normalisation (see the module).

    Args:
        layout: One modality with ``(C, T)`` and a sampling rate; T must be the same for all people.
        filters: Number of temporal filters (F1).
        spatial_filters: Number of spatial filters for each temporal one (D).
        separable_filters: Number of filters of the separable convolution (F2).
        filter_seconds: Length of the temporal filters, before and after the first average; half a second holds one
            period of 2 Hz.
        pool_seconds: Length of the first average.
        second_pool_seconds: Length of the second average.
        dropout: Dropout after each average; published: .5 within a person, .25 between people.
        subject_layer: ``none`` as published, all people alike; ``convolution``: every person mixes their own sensors
            into common ones.

    Raises:
        ContractError: Signals without time axis, people of different T, of different C without subject layer, or T too
            short.

    References: Lawhern et al. (2018), EEGNet: a compact convolutional neural network for EEG-based brain-computer
    interfaces, Journal of Neural Engineering 15, table 2.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        filters: int = 8,
        spatial_filters: int = 2,
        separable_filters: int = 16,
        filter_seconds: float = 0.5,
        pool_seconds: float = 0.03125,
        second_pool_seconds: float = 0.25,
        dropout: float = 0.5,
        subject_layer: SensorLayer = "none",
    ) -> None:
        shapes, times = sensors_by_times(layout, "EEGNet")
        layers, sensors = sensor_layers(shapes, subject_layer, "EEGNet")
        kernel = samples(layout, filter_seconds, "EEGNet")
        pool = samples(layout, pool_seconds, "EEGNet")
        second_kernel = samples(layout, filter_seconds, "EEGNet", step=pool)
        second_pool = samples(layout, second_pool_seconds, "EEGNet", step=pool)
        if (steps := times // pool // second_pool) < 1:
            raise ContractError(
                f"EEGNet: {times} time points are too few for averages of {pool} x {second_pool}; change pool_seconds "
                "and second_pool_seconds"
            )
        both = filters * spatial_filters
        super().__init__(
            layers,
            nn.Sequential(
                Rearrange("b c t -> b 1 c t"),
                _same(kernel),
                nn.Conv2d(1, filters, (1, kernel), bias=False),
                nn.GroupNorm(1, filters),
                MaxNormConv2d(filters, both, (sensors, 1), groups=filters, bias=False, max_norm=1.0),
                nn.GroupNorm(1, both),
                nn.ELU(),
                nn.AvgPool2d((1, pool)),
                nn.Dropout(dropout),
                _same(second_kernel),
                nn.Conv2d(both, both, (1, second_kernel), groups=both, bias=False),
                nn.Conv2d(both, separable_filters, 1, bias=False),
                nn.GroupNorm(1, separable_filters),
                nn.ELU(),
                nn.AvgPool2d((1, second_pool)),
                nn.Dropout(dropout),
                nn.Flatten(),
                MaxNormLinear(separable_filters * steps, layout["embedding_width"], max_norm=0.25),
            ),
        )


def samples(layout: Layout, seconds: float, encoder: str, *, step: int = 1) -> int:
    """Return how many samples come nearest to a duration, at least one.

    Args:
        layout: One modality.
        seconds: The duration.
        encoder: Name for the error.
        step: How many samples of the signal one sample stands for.

    Raises:
        ContractError: A layout without sampling rate, or a duration that is not positive.
    """
    if not layout["sampling_rate"] > 0:
        raise ContractError(f"{encoder} needs a sampling rate, found {layout['sampling_rate']}")
    if not 0 < seconds < math.inf:
        raise ContractError(f"{encoder}: durations must be positive, found {seconds} s")
    return max(1, round(seconds * layout["sampling_rate"] / step))


def averaged_filters(
    layout: Layout, durations: tuple[float, float, float], encoder: str, *, length: int
) -> tuple[int, int, int, int]:
    """Return the sizes of filters in time and of an average after them, in samples.

    Args:
        layout: One modality.
        durations: Seconds of the filters, of the average, and of its step.
        encoder: Name for the error.
        length: Samples of what is filtered.

    Returns:
        Samples of the filters, of the average and of its step, and how many averages fit.

    Raises:
        ContractError: None fits; a layout without sampling rate, or a duration that is not positive.
    """
    kernel, pool, stride = (samples(layout, seconds, encoder) for seconds in durations)
    steps = pooled(length - kernel + 1, pool, stride)
    if steps < 1:
        raise ContractError(
            f"{encoder}: {length} time points are too few for filters of {kernel} and averages of {pool}; change "
            "filter_seconds and pool_seconds"
        )
    return kernel, pool, stride, steps


class MaxNormConv2d(nn.Conv2d):
    """A convolution whose filters have at most a given norm.

    Longer ones are shortened before they are used, that is after every step of an optimiser (projected gradient
    descent, as in the published code).

    Args:
        args: As of ``torch.nn.Conv2d``.
        max_norm: Largest Euclidean norm of a filter.
        options: As of ``torch.nn.Conv2d``.
    """

    def __init__(self, *args: int | tuple[int, int], max_norm: float, **options: int | bool) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.max_norm = max_norm
        _shorten(self.weight, max_norm)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Convolve."""
        _shorten(self.weight, self.max_norm)
        return super().forward(x)


class MaxNormLinear(nn.Linear):
    """A linear map whose rows have at most a given norm (see ``MaxNormConv2d``).

    Args:
        in_features: Width of what comes in.
        out_features: Width of what comes out.
        max_norm: Largest Euclidean norm of a row.
    """

    def __init__(self, in_features: int, out_features: int, *, max_norm: float) -> None:
        super().__init__(in_features, out_features)
        self.max_norm = max_norm
        _shorten(self.weight, max_norm)

    def forward(self, x: Float[Tensor, "b c"]) -> Float[Tensor, "b d"]:
        """Map."""
        _shorten(self.weight, self.max_norm)
        return super().forward(x)


def _shorten(weight: Tensor, max_norm: float) -> None:
    """Project rows onto the ball; those inside stay as they are to the bit."""
    # the data itself: a second pass before the gradient of the first changes nothing, but would count as a change
    weight.data.renorm_(2, 0, max_norm)


class _TemporalSpatialFilter(nn.Module):
    """Temporal, then spatial filters, in one pass.

    Nothing stands between them: their product is one convolution, whose maps have no axis of sensors.
    """

    def __init__(self, sensors: int, filters: int, kernel: int) -> None:
        super().__init__()
        self.temporal = nn.Conv2d(1, filters, (1, kernel))
        self.spatial = nn.Conv2d(filters, filters, (sensors, 1), bias=False)

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b f s"]:
        weight = torch.einsum("gxyk,fgcx->fck", self.temporal.weight, self.spatial.weight)
        bias = torch.einsum("g,fgcx->f", self.temporal.bias, self.spatial.weight)
        # not as an argument of the convolution: the compiler fails on one that is computed
        return F.conv1d(x, weight) + bias[:, None]


class _LogPower(nn.Module):
    """Logarithm of the mean square, over time."""

    def __init__(self, pool: int, stride: int) -> None:
        super().__init__()
        self.average = nn.AvgPool1d(pool, stride)

    def forward(self, x: Float[Tensor, "b f t"]) -> Float[Tensor, "b f s"]:
        power: Tensor = self.average(x.square())
        return torch.log(power.clamp(min=SMALLEST_POWER))


def _same(kernel: int) -> nn.ZeroPad2d:
    """Zeros around the time axis, so that a convolution keeps its length."""
    return nn.ZeroPad2d(((kernel - 1) // 2, kernel // 2, 0, 0))
