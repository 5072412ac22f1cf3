"""Correlation of predicted with measured signals, feature by feature, over samples."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from callbacks.metrics.resampling import (
    Estimate,
    bootstrap_weights,
    centred_interval,
    few_stimuli,
    permutation_p,
    permutations,
)

MINIMAL_CEILING = 0.1
"""Features whose ceiling is not above this are left out of ``pearson_of_ceiling``."""

_FEATURES = 256
"""Features at a time: two (1000, 256) matrices of doubles fit the cache, and a permutation reads both."""


def pearson(predicted: Float[Tensor, "n ..."], target: Float[Tensor, "n ..."]) -> Float[Tensor, " v"]:
    """Pearson correlation of each feature over the samples, in float64.

    r = sum (x - mean x)(y - mean y) / sqrt(sum (x - mean x)^2 sum (y - mean y)^2), centred before any
    product, so that offsets do not matter.

    Args:
        predicted: ``(n, V)`` or ``(n, C, T)``; flattened to V features.
        target: The same shape.

    Returns:
        ``(V,)`` float64 in -1..1; NaN where either side is constant.

    Raises:
        ValueError: Shapes differ, fewer than 2 samples, or values that are not finite.
    """
    x, y = _matrix(predicted, target)
    parts = [_pearson(x[:, i : i + 4096], y[:, i : i + 4096]) for i in range(0, x.shape[1], 4096)]
    return torch.cat(parts)


def _matrix(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if predicted.shape != target.shape or predicted.ndim < 2:
        raise ValueError(f"predicted is {tuple(predicted.shape)}, target {tuple(target.shape)}")
    if len(predicted) < 2:
        raise ValueError(f"a correlation needs at least 2 samples, there are {len(predicted)}")
    for name, x in (("predicted", predicted), ("target", target)):
        bad = int((~torch.isfinite(x.flatten(1)).all(1)).sum())
        if bad:
            raise ValueError(f"{name}: {bad} of {len(x)} rows are not finite")
    return predicted.detach().cpu().flatten(1), target.detach().cpu().flatten(1)


def _standard(x: Tensor) -> Tensor:
    """Columns with zero mean and unit norm in float64; constant ones are NaN."""
    constant = x.amax(0) == x.amin(0)
    centred = x.double() - x.double().mean(0)
    unit: Tensor = (centred / torch.linalg.vector_norm(centred, dim=0)).masked_fill(constant, torch.nan)
    return unit


def _pearson(x: Tensor, y: Tensor) -> Tensor:
    r: Tensor = (_standard(x) * _standard(y)).sum(0).clamp(-1, 1)
    return r


def encoding(
    predicted: Float[Tensor, "n ..."],
    target: Float[Tensor, "n ..."],
    stimulus: Int[Tensor, " n"],
    *,
    ceiling: Float[Tensor, " v"] | None = None,
    threshold: float = 0.3,
    n_permutations: int = 999,
    n_bootstraps: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Estimate]:
    """Score predicted signals by their correlation with the measured ones.

    Features whose target is constant are left out and counted in the note; a constant prediction of a
    varying target counts as r = 0. ``pearson_of_ceiling`` is the mean of r / ceiling over the features
    with a ceiling above .1. The ceiling itself is sqrt(s^2 / (s^2 + 1/n)) with s = ncsnr and n averaged
    repetitions (Allen et al. 2022, as a correlation).

    p-values permute stimuli: all samples of stimulus s get the prediction (its first row) of stimulus
    pi(s). Intervals resample stimuli: centred percentiles of the weighted correlations.

    Args:
        predicted: ``(n, V)`` or ``(n, C, T)``.
        target: The same shape.
        stimulus: ``(n,)`` int64; samples may share one.
        ceiling: ``(V,)`` largest expected correlation of each feature, 0..1.
        threshold: Features above this correlation are counted in ``pearson_share_above_...``.
        n_permutations: P; 0 gives no p-values.
        n_bootstraps: Bootstrap samples; 0 gives no intervals.
        confidence: Coverage.
        seed: Seed of permutations and bootstrap.

    Returns:
        ``pearson_mean``, ``pearson_median``, ``pearson_share_above_0.3``, and ``pearson_of_ceiling`` where
        a ceiling is given.

    Raises:
        ValueError: Shapes that do not fit, values that are not finite, or no varying feature at all.
    """
    x, y = _matrix(predicted, target)
    if ceiling is not None and tuple(ceiling.shape) != (x.shape[1],):
        raise ValueError(f"ceiling is {tuple(ceiling.shape)}, there are {x.shape[1]} features")
    keep = y.amax(0) != y.amin(0)
    if not bool(keep.any()):
        raise ValueError(f"all {len(keep)} features of target are constant")
    if not bool(keep.all()):
        x, y = x[:, keep], y[:, keep]
    limit = None if ceiling is None else ceiling.detach().cpu().double()[keep]
    real, permuted, resampled = resampled_pearson(
        x, y, stimulus, n_permutations=n_permutations, n_bootstraps=n_bootstraps, seed=seed
    )
    u, v = len(stimulus.unique()), x.shape[1]
    scores = _summaries(real[None], limit, threshold)[0]
    of_real = {name: float(value[0]) for name, value in scores.items()}
    of_permuted, ceilings = _summaries(permuted, limit, threshold)
    of_resampled, _ = _summaries(resampled, limit, threshold)
    notes = [few_stimuli(u)]
    if v < len(keep):
        notes.append(f"{len(keep) - v} constant features left out")
    still = int((x.amax(0) == x.amin(0)).sum())
    if still:
        notes.append(f"{still} constant predictions count as 0")
    result = []
    for name, value in of_real.items():
        share = name.startswith("pearson_share")
        low, high, p = None, None, None
        if n_bootstraps:
            low, high = centred_interval(value, of_resampled[name], confidence)
            if name != "pearson_of_ceiling":
                low, high = max(low, 0.0 if share else -1.0), min(high, 1.0)
        if n_permutations:
            p = permutation_p(value, of_permuted[name])
        chance = (float(of_permuted[name].mean()) if n_permutations else None) if share else 0.0
        note = "; ".join(filter(None, notes))
        result.append(Estimate(name, value, low, high, p, chance, len(x), u, note, ceilings.get(name)))
    return result


def resampled_pearson(
    predicted: Float[Tensor, "n ..."],
    target: Float[Tensor, "n ..."],
    stimulus: Int[Tensor, " n"],
    *,
    n_permutations: int,
    n_bootstraps: int,
    seed: int = 0,
) -> tuple[Float[Tensor, " v"], Float[Tensor, "p v"], Float[Tensor, "b v"]]:
    """Correlations of each feature: the real ones, with stimuli permuted, and with stimuli resampled (``encoding``).

    Args:
        predicted: ``(n, V)`` or ``(n, C, T)``; flattened to V features.
        target: The same shape.
        stimulus: ``(n,)``; samples may share one.
        n_permutations: P.
        n_bootstraps: B.
        seed: Seed of permutations and bootstrap.

    Returns:
        ``(V,)`` float64, ``(P, V)`` and ``(B, V)`` float32. A constant prediction gives 0, a constant target NaN.

    Raises:
        ValueError: Shapes that do not fit, or values that are not finite.
    """
    x, y = _matrix(predicted, target)
    if len(stimulus) != len(x):
        raise ValueError(f"stimulus has {len(stimulus)} rows, the signals {len(x)}")
    stimuli, first, which = np.unique(stimulus.cpu().numpy(), return_index=True, return_inverse=True)
    rng_permute, rng_boot = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    shuffles = permutations(len(stimuli), n_permutations, rng_permute)
    weights = bootstrap_weights(len(stimuli), n_bootstraps, rng_boot)
    rows, columns = torch.from_numpy(which), torch.from_numpy(first)
    v = x.shape[1]
    real = torch.empty(v, dtype=torch.float64)
    permuted, resampled = torch.empty(n_permutations, v), torch.empty(n_bootstraps, v)
    for start in range(0, v, _FEATURES):
        part = slice(start, start + _FEATURES)
        xs, ys = _standard(x[:, part]).nan_to_num(0.0), _standard(y[:, part])
        real[part] = (xs * ys).sum(0).clamp(-1, 1)
        permuted[:, part] = _permuted(xs, ys, shuffles, rows, columns)
        resampled[:, part] = _resampled(xs, ys, weights[:, rows].double())
    return real, permuted, resampled


def _permuted(xs: Tensor, ys: Tensor, shuffles: Tensor, rows: Tensor, first: Tensor) -> Tensor:
    """Correlations ``(P, v)`` when every stimulus gets the prediction of another one."""
    u = len(first)
    counts = torch.bincount(rows, minlength=u).double()
    summed = torch.zeros(u, ys.shape[1], dtype=torch.float64).index_add_(0, rows, ys)
    one = xs[first]
    result = torch.empty(len(shuffles), ys.shape[1], dtype=torch.float64)
    buffer = torch.empty_like(one)
    for i, shuffle in enumerate(shuffles):
        torch.index_select(one, 0, shuffle.long(), out=buffer)
        result[i] = buffer.mul_(summed).sum(0)
    # How often each prediction is used changes with the permutation where repetitions are unequal.
    used = torch.zeros(len(shuffles), u, dtype=torch.float64)
    used.scatter_(1, shuffles.long(), counts.expand(len(shuffles), -1))
    variance = used @ one.square() - (used @ one).square() / len(rows)
    return _divide(result, variance)


def _resampled(xs: Tensor, ys: Tensor, weights: Tensor) -> Tensor:
    """Weighted correlations ``(B, v)``; ``weights`` is ``(B, n)``."""
    total = weights.sum(1, keepdim=True)
    mean_x, mean_y = weights @ xs / total, weights @ ys / total
    variance_x = weights @ xs.square() - total * mean_x.square()
    variance_y = weights @ ys.square() - total * mean_y.square()
    return _divide(weights @ (xs * ys) - total * mean_x * mean_y, variance_x.clamp(min=0) * variance_y)


def _divide(covariance: Tensor, variance: Tensor) -> Tensor:
    # Columns have unit norm: what rounding leaves of a zero variance is far below 1e-12.
    empty = variance <= 1e-12
    return (covariance / variance.masked_fill(empty, 1.0).sqrt()).masked_fill(empty, 0.0).clamp(-1, 1)


def _summaries(r: Tensor, ceiling: Tensor | None, threshold: float) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Reduce correlations ``(rows, V)`` to scores ``(rows,)``, with the ceiling of each score."""
    share = f"pearson_share_above_{threshold:g}"
    scores = {
        "pearson_mean": r.mean(1, dtype=torch.float64),
        "pearson_median": torch.from_numpy(np.median(r.numpy(), axis=1)).double(),
        share: (r > threshold).double().mean(1),
    }
    if ceiling is None:
        return scores, {}
    ceilings = {
        "pearson_mean": float(ceiling.mean()),
        "pearson_median": float(np.median(ceiling.numpy())),
        share: float((ceiling > threshold).double().mean()),
    }
    reliable = ceiling > MINIMAL_CEILING
    if bool(reliable.any()):
        scores["pearson_of_ceiling"] = (r[:, reliable] / ceiling[reliable]).mean(1, dtype=torch.float64)
        ceilings["pearson_of_ceiling"] = 1.0
    return scores, ceilings
