"""Epochs: which samples around an event they hold, at which rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.signal import resample_poly

from contracts import DataError

Array = NDArray[Any]
LARGEST_FACTOR = 1000
"""Largest factor by which samples are multiplied or divided for another sampling rate."""
SAME_RATE = 1e-4
"""Relative difference of sampling rates that are taken for the same."""
POLYPHASE = 10
"""Half length of scipy's filter for that, in samples of the lower rate."""


@dataclass(frozen=True)
class EpochOptions:
    """How recordings become epochs.

    Attributes:
        start: First time of an epoch relative to its event, in seconds.
        end: Time before which it ends.
        every: Seconds from one epoch without event to the next. Without ``events`` the whole recording is cut;
            with them, what lies away from all of their epochs, as class ``none``. None for no such epochs.
        band_pass: Lowest and highest frequency to keep, in Hz (null: no limit): MNE's default filter of zero phase,
            applied before cutting. None for no filter.
        sampling_rate: Samples per second to resample to, through a polyphase filter with a sample at the very time of
            the event; None for the recording's own.
        baseline: First and last time (seconds) whose mean is taken off each channel of an epoch; None for none.
        border: What to do with epochs that reach beyond the recording or into a segment marked as bad (``BAD...``):
            ``leave_out``, with a warning of how many, or ``refuse``.
    """

    start: float = -0.2
    end: float = 0.8
    every: float | None = None
    band_pass: tuple[float | None, float | None] | None = None
    sampling_rate: float | None = None
    baseline: tuple[float, float] | None = None
    border: Literal["leave_out", "refuse"] = "leave_out"

    def __post_init__(self) -> None:
        if not self.start < self.end:
            raise DataError(f"epochs.start must lie before epochs.end, found {self.start} and {self.end}")
        if self.baseline is not None and not self.start <= self.baseline[0] <= self.baseline[1] <= self.end:
            raise DataError(
                f"epochs.baseline must lie within the epoch, {self.start:g} to {self.end:g} s, found "
                f"{list(self.baseline)}"
            )
        for name in ("every", "sampling_rate"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise DataError(f"epochs.{name} must be positive, found {getattr(self, name)}")


@dataclass(frozen=True)
class Grid:
    """Sample positions of an epoch relative to its mark.

    Attributes:
        ratio: New sampling rate by the recording's.
        first: First sample of an epoch, at the new rate.
        length: Number of samples of an epoch, at the new rate.
        before: Samples of the recording that an epoch needs before its mark.
        after: The same after it.
        margin: Further samples at both ends that the resampling reads where there are some.
        new_rate: Samples per second of an epoch.
    """

    ratio: Fraction
    first: int
    length: int
    before: int
    after: int
    margin: int
    new_rate: float

    @classmethod
    def of(cls, rate: float, options: EpochOptions) -> Grid:
        """Lay out epochs of a recording of ``rate`` samples per second.

        Raises:
            DataError: Epochs without a sample, or a rate that cannot be had.
        """
        ratio = new_rate(rate, options.sampling_rate)
        new = rate * float(ratio)
        first, length = round(options.start * new), round((options.end - options.start) * new)
        if length < 1:
            raise DataError(f"epochs of {options.end - options.start:g} s hold no sample at {new:g} Hz")
        before = math.ceil(-first / ratio)
        after = math.ceil((first + length - 1) / ratio)
        reach = POLYPHASE * max(ratio.numerator, ratio.denominator) // ratio.numerator + 2
        margin = 0 if ratio == 1 else reach + ratio.denominator
        return cls(ratio, first, length, before, after, margin, new)

    @property
    def start(self) -> float:
        """Time of the first sample of an epoch, in seconds."""
        return self.first / self.new_rate

    def cut(self, piece: Float[Array, "c n"], mark: int, baseline: tuple[float, float] | None) -> Float[Array, "c t"]:
        """One epoch ``(C, T)`` float32 from a piece ``(C, n)`` with the mark at a sample of it."""
        if self.ratio == 1:
            epoch = piece[:, mark + self.first : mark + self.first + self.length]
        else:
            up, down = self.ratio.numerator, self.ratio.denominator
            # a whole number of new samples before the mark, so that one of them falls on it
            lead = -(-(self.before + self.margin - down) // down) * down
            begin, end = mark - lead, mark + self.after + self.margin
            there = piece[:, max(begin, 0) : max(end, 0)]
            left = max(-begin, 0)
            block = np.pad(there, ((0, 0), (left, end - begin - left - there.shape[1])), mode="edge")
            at = lead * up // down + self.first
            epoch = resample_poly(block, up, down, axis=1)[:, at : at + self.length]
        if baseline is not None:
            first, last = (round(time * self.new_rate) - self.first for time in baseline)
            epoch = epoch - epoch[:, first : last + 1].mean(axis=1, keepdims=True)
        cut: Array = epoch.astype(np.float32)
        return cut


def resampled(signal: Float[Array, "... t"], ratio: Fraction) -> Float[Array, "... u"]:
    """Return signals at another sampling rate, float32, through scipy's polyphase filter; as they are for a ratio of 1.

    Before the first sample and after the last one they are taken to be constant.
    """
    if ratio == 1:
        return signal
    changed: Array = resample_poly(
        signal.astype(np.float32), ratio.numerator, ratio.denominator, axis=-1, padtype="edge"
    )
    return changed


def new_rate(rate: float, wanted: float | None) -> Fraction:
    """Return the factor on the sampling rate, a ratio of numbers up to ``LARGEST_FACTOR``.

    Raises:
        DataError: No such ratio comes close.
    """
    if wanted is None:
        return Fraction(1)
    ratio = Fraction(wanted / rate).limit_denominator(LARGEST_FACTOR)
    if ratio.numerator > LARGEST_FACTOR or abs(float(ratio) * rate / wanted - 1) > SAME_RATE:
        raise DataError(
            f"{rate:g} Hz cannot be resampled to {wanted:g} Hz; choose a simpler fraction of it with "
            "--data.init_args.epochs.sampling_rate"
        )
    return ratio
