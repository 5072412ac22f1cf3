"""From a run of consecutive fMRI volumes to samples: patterns of voxels, or segments of time series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.signal
from jaxtyping import Float, Int
from numpy.typing import NDArray

from contracts import DataError

Array = NDArray[Any]
Cleaning = Literal["none", "zscore", "detrend"]
CONSTANT = 1e-6
"""SD, relative to the largest value of a voxel, below which it is constant but for rounding (float32)."""


@dataclass(frozen=True)
class TimeSeriesOptions:
    """How a run becomes samples; without ``segment`` a sample is a pattern ``(V,)``, with it ``(V, segment)``.

    Attributes:
        clean: ``zscore``: each voxel to mean 0 and SD 1 over the volumes of its run; ``detrend``: without its linear
            trend, then the same. A voxel that is constant over the run (or a straight line) becomes 0; one that
            holds NaN stays NaN, for ``samples.bad_features`` to judge. ``none``: as recorded.
        average: Consecutive volumes to average into one pattern; 1 keeps single volumes. Every volume is used: where
            the run is no multiple, the first windows are a volume longer (``numpy.array_split``).
        segment: Consecutive volumes of a sample; 0 for patterns.
        stride: Volumes from the start of a segment to that of the next; 0 for ``segment`` (no overlap). Volumes that
            fill no whole segment are left out.

    Raises:
        DataError: Numbers out of range, or options that exclude each other.
    """

    clean: Cleaning = "none"
    average: int = 1
    segment: int = 0
    stride: int = 0

    def __post_init__(self) -> None:
        where = "change --data.init_args.time_series"
        if self.average < 1:
            raise DataError(f"time_series.average must be at least 1 volume, found {self.average}; {where}")
        if self.segment < 0 or self.segment == 1 or self.stride < 0:
            raise DataError(
                f"time_series.segment must be 0 or at least 2 volumes and stride at least 0, found segment="
                f"{self.segment}, stride={self.stride}; {where}"
            )
        if self.segment and self.average > 1:
            raise DataError(
                f"time_series.average={self.average} makes patterns and segment={self.segment} makes time series: "
                f"give one of them; {where}"
            )
        if self.stride and not self.segment:
            raise DataError(f"time_series.stride={self.stride} has no meaning without segment; {where}")


SINGLE_VOLUMES = TimeSeriesOptions()
"""The default of every data set: on the command line, options are added to the default, so it must exclude nothing."""


def clean_run(run: Float[np.ndarray, "t v"] | Int[np.ndarray, "t v"], how: Cleaning) -> Float[np.ndarray, "t v"]:
    """Clean each voxel over the volumes of its own run.

    Args:
        run: ``(T, V)``, in order of acquisition.
        how: See ``TimeSeriesOptions.clean``.

    Returns:
        ``(T, V)`` float32.
    """
    if how == "none":
        return run.astype(np.float32)
    signal = run.astype(np.float64)
    largest = np.abs(signal).max(axis=0)
    finite = np.isfinite(largest)
    if how == "detrend" and len(signal) > 1:
        signal[:, finite] = scipy.signal.detrend(signal[:, finite], axis=0, type="linear")
    signal[:, finite] -= signal[:, finite].mean(axis=0)
    std = signal[:, finite].std(axis=0)
    signal[:, finite] /= np.where(std > CONSTANT * largest[finite], std, np.inf)
    return signal.astype(np.float32)


def cut_run(
    run: Float[np.ndarray, "t v"] | Int[np.ndarray, "t v"], options: TimeSeriesOptions, *, label: str
) -> tuple[Float[np.ndarray, "n v"] | Float[np.ndarray, "n v s"], Int[np.ndarray, " n"]]:
    """Clean a run and cut it into samples.

    Args:
        run: ``(T, V)``, in order of acquisition.
        options: How.
        label: What the run is called in errors.

    Returns:
        The samples, ``(n, V)`` or ``(n, V, segment)`` float32, and the first volume of each, counted from 0.

    Raises:
        DataError: The run is shorter than a window, a segment or a stride.
    """
    volumes = len(run)
    for name, needed in (("average", options.average), ("segment", options.segment), ("stride", options.stride)):
        if needed > volumes:
            raise DataError(
                f"{label}: time_series.{name}={needed} volumes, but the run has {volumes}; "
                f"change --data.init_args.time_series.{name}"
            )
    signal = clean_run(run, options.clean)
    if options.segment:
        first = np.arange(0, volumes - options.segment + 1, options.stride or options.segment)
        return np.lib.stride_tricks.sliding_window_view(signal, options.segment, axis=0)[first], first
    if options.average == 1:
        return signal, np.arange(volumes)
    windows = np.array_split(np.arange(volumes), volumes // options.average)
    first = np.array([window[0] for window in windows])
    length = np.array([[len(window)] for window in windows])
    sums = np.add.reduceat(signal, first, axis=0, dtype=np.float64)
    return (sums / length).astype(np.float32), first
