"""Intervals and p-values: stimuli are permuted, stimuli are resampled; trials of a stimulus stay together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import norm
from torch import Tensor

FEW_STIMULI = 20
"""Below this number of stimuli an estimate says so in its note."""

EXACT = 1e-12
"""Scores closer than this are equal: sums over other chunks differ in the last bits."""


@dataclass
class Estimate:
    """One score with its uncertainty.

    Attributes:
        name: ``two_way``, ``top_1``, ``pearson_mean`` ...
        value: The score.
        low: Lower end of the interval, None where not asked for.
        high: Upper end of the interval.
        p_value: One-sided permutation p-value, None where not asked for.
        chance: Expected value without any information.
        n: Number of scored queries or samples.
        stimuli: Number of distinct stimuli among them.
        note: What a reader must know.
        ceiling: The best value that the noise allows, where defined.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    p_value: float | None
    chance: float | None
    n: int
    stimuli: int
    note: str = ""
    ceiling: float | None = None


def wilson(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share.

    (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n), E. B. Wilson, JASA 22 (1927). Unlike the
    normal interval it has a width at 0 and 1. Both numbers may be fractional (an effective sample size).

    Args:
        successes: Number of successes, 0..n.
        n: Number of trials, above 0.
        confidence: Coverage, 0..1.

    Returns:
        Lower and upper end, in 0..1.

    Raises:
        ValueError: n is not positive or successes are out of range.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n and n > 0, not successes={successes}, n={n}")
    z2 = float(norm.ppf(0.5 + confidence / 2)) ** 2
    p = successes / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # At 0 and 1 the end coincides with the value; subtraction would leave it off by a last bit.
    return (0.0 if successes == 0 else max(centre - half, 0.0)), (1.0 if successes == n else min(centre + half, 1.0))


def share_interval(
    value: float, bootstrap: Float[Tensor, " b"], stimuli: int, confidence: float
) -> tuple[float, float]:
    """Interval of a score in 0..1: Wilson's, with the effective size that the bootstrap error implies.

    The bootstrap gives the standard error s; value (1 - value) / s^2 is the number of independent trials
    with that error. A perfect score, or one without spread, takes the number of distinct stimuli.

    Args:
        value: The score.
        bootstrap: Scores of the bootstrap samples.
        stimuli: Number of distinct stimuli.
        confidence: Coverage.

    Returns:
        Lower and upper end, in 0..1.
    """
    value = min(max(value, 0.0), 1.0)
    if value > 1 - EXACT or value < EXACT:
        return wilson(stimuli * round(value), stimuli, confidence)
    variance = float(bootstrap.double().var(correction=1)) if len(bootstrap) > 1 else 0.0
    n = float(stimuli) if variance < EXACT**2 else value * (1 - value) / variance
    return wilson(value * n, n, confidence)


def centred_interval(value: float, bootstrap: Float[Tensor, " b"], confidence: float) -> tuple[float, float]:
    """Percentile interval with the bias of the bootstrap removed: value + quantile - mean.

    Args:
        value: The score.
        bootstrap: Scores of the bootstrap samples.
        confidence: Coverage.

    Returns:
        Lower and upper end.
    """
    tail = (1 - confidence) / 2
    low, high = np.quantile(bootstrap.double().numpy(), [tail, 1 - tail]) - float(bootstrap.double().mean())
    return value + float(low), value + float(high)


def permutation_p(value: float, permuted: Float[Tensor, " p"]) -> float:
    """Return p = (1 + #{permuted >= value}) / (P + 1), never zero (Phipson & Smyth 2010)."""
    return (1 + int((permuted >= value - EXACT).sum())) / (len(permuted) + 1)


def permutations(stimuli: int, count: int, generator: np.random.Generator) -> Int[Tensor, "count stimuli"]:
    """Draw ``count`` permutations of the stimuli as int32 rows."""
    rows = np.tile(np.arange(stimuli, dtype=np.int32), (count, 1))
    return torch.from_numpy(generator.permuted(rows, axis=1, out=rows))


def bootstrap_weights(stimuli: int, count: int, generator: np.random.Generator) -> Float[Tensor, "count stimuli"]:
    """Draw how often each stimulus occurs in each of ``count`` bootstrap samples, float32 rows."""
    weights = np.empty((count, stimuli), dtype=np.float32)
    for row in weights:
        row[:] = np.bincount(generator.integers(stimuli, size=stimuli), minlength=stimuli)
    return torch.from_numpy(weights)


def few_stimuli(stimuli: int) -> str:
    """Return the note on a small number of stimuli, or nothing."""
    return f"fewer than {FEW_STIMULI} stimuli" if stimuli < FEW_STIMULI else ""
