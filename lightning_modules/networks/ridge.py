"""Ridge regression from sufficient statistics: one pass over the data, every alpha from one eigendecomposition.

The penalised sum of squares is that of scikit-learn's ``Ridge``: sum_i |y_i - W^T x_i - b|^2 + alpha |W|^2, with
the intercept b free of penalty, or fixed at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

Form = Literal["primal", "kernel"]


@dataclass(frozen=True)
class CoMoments:
    """Sufficient statistics of paired samples x (n, P) and y (n, Q), float64, centred on their own means.

    Attributes:
        count: n, a scalar.
        mean_x: ``(P,)``.
        mean_y: ``(Q,)``.
        sxx: ``(P, P)``, sum of (x - mean)(x - mean)^T.
        sxy: ``(P, Q)``, the same across.
        syy: ``(Q,)``, the diagonal of the same for y.
    """

    count: Float64[Tensor, ""]
    mean_x: Float64[Tensor, " p"]
    mean_y: Float64[Tensor, " q"]
    sxx: Float64[Tensor, "p p"]
    sxy: Float64[Tensor, "p q"]
    syy: Float64[Tensor, " q"]

    @classmethod
    def empty(cls, p: int, q: int, device: torch.device | str = "cpu") -> CoMoments:
        """Return the statistics of no samples."""
        shapes: tuple[tuple[int, ...], ...] = ((), (p,), (q,), (p, p), (p, q), (q,))
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    @classmethod
    def of(cls, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> CoMoments:
        """Return the statistics of some samples (at least one).

        Raises:
            ValueError: Values that are not finite.
        """
        for name, values in (("x", x), ("y", y)):
            wrong = int((~torch.isfinite(values)).sum())
            if wrong:
                raise ValueError(f"ridge input {name} holds {wrong} NaN or infinite values of {values.numel()}")
        x, y = x.double(), y.double()
        mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
        dx, dy = x - mean_x, y - mean_y
        return cls(x.new_tensor(float(len(x))), mean_x, mean_y, dx.T @ dx, dx.T @ dy, (dy * dy).sum(dim=0))

    def merge(self, other: CoMoments) -> CoMoments:
        """Return the statistics of both sets of samples (Chan, Golub & LeVeque 1983, eq. 2.1)."""
        count = self.count + other.count
        if count == 0:
            return self
        share = other.count / count
        dx, dy = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        weight = self.count * share
        return CoMoments(
            count,
            self.mean_x + dx * share,
            self.mean_y + dy * share,
            (self.sxx + other.sxx).addr_(dx, dx, alpha=float(weight)),
            (self.sxy + other.sxy).addr_(dx, dy, alpha=float(weight)),
            self.syy + other.syy + weight * dy * dy,
        )

    def about(self, origin_x: Tensor, origin_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return sxx, sxy and syy about other origins than the means."""
        dx, dy = self.mean_x - origin_x, self.mean_y - origin_y
        return (
            torch.addr(self.sxx, dx, dx, alpha=float(self.count)),
            torch.addr(self.sxy, dx, dy, alpha=float(self.count)),
            self.syy + self.count * dy * dy,
        )

    def tensors(self) -> list[Tensor]:
        """Return the statistics as a list, for exchange between processes."""
        return [self.count, self.mean_x, self.mean_y, self.sxx, self.sxy, self.syy]


@dataclass(frozen=True)
class RidgeSolution:
    """A fitted ridge regression.

    Attributes:
        weight: ``(P, Q)`` float64.
        bias: ``(Q,)`` float64; 0 without intercept.
        alpha: Penalty, a scalar or ``(Q,)``.
        alphas: ``(A,)`` penalties that were compared; empty where alpha was given.
        r2: ``(A, Q)`` cross-validated share of explained variance; NaN where a target is constant.
    """

    weight: Float64[Tensor, "p q"]
    bias: Float64[Tensor, " q"]
    alpha: Float64[Tensor, "..."]
    alphas: Float64[Tensor, " a"]
    r2: Float64[Tensor, "a q"]


def solve_ridge(
    folds: Sequence[CoMoments],
    *,
    alpha: float | None = None,
    alphas: Sequence[float] | None = None,
    intercept: bool = True,
    per_target: bool = False,
) -> RidgeSolution:
    """Fit ridge regression on all samples, choosing alpha by cross-validation over the folds.

    Valid to 1e-5 for alpha of at least 1e-8 of the largest eigenvalue of the input's second moments.

    Args:
        folds: Statistics of each fold; empty folds are skipped.
        alpha: Fixed penalty; None to choose.
        alphas: Penalties to choose from; None for 15 values from 1e-6 to 10 times the largest eigenvalue.
        intercept: Whether the model has one; without, second moments are about 0.
        per_target: Choose alpha for each target by its own squared error, else one for all, by the mean over
            targets of squared error / total sum of squares. Ties go to the larger alpha.

    Raises:
        ValueError: No samples, an alpha that is negative or NaN, fewer than two folds to choose by.
    """
    used = [fold for fold in folds if fold.count > 0]
    if not used:
        raise ValueError("ridge regression got no samples")
    for value in [alpha] if alpha is not None else alphas or []:
        if not value >= 0 or value == float("inf"):
            raise ValueError(f"alpha must be a number of at least 0, found {value}")
    total = _merge(used)
    eigen = _Eigen.of(total, intercept)
    empty = eigen.values.new_zeros(0)
    if alpha is not None:
        chosen, grid, r2 = eigen.values.new_tensor(float(alpha)), empty, empty.reshape(0, len(total.mean_y))
    else:
        relative = torch.logspace(-6, 1, 15, dtype=torch.float64, device=eigen.values.device)
        grid = relative * eigen.values.max() if alphas is None else eigen.values.new_tensor(list(alphas))
        grid = grid.sort(descending=True).values
        r2 = _cross_validate(used, grid, intercept)
        # argmax takes the first of equal entries, and the grid descends
        if per_target:
            chosen = grid[r2.nan_to_num(nan=-torch.inf).argmax(dim=0)]
        else:
            chosen = grid[r2.nanmean(dim=1).nan_to_num(nan=-torch.inf).argmax()]
    weight = eigen.weight(chosen)
    bias = total.mean_y - total.mean_x @ weight if intercept else torch.zeros_like(total.mean_y)
    return RidgeSolution(weight, bias, chosen, grid, r2)


def solve_ridge_kernel(
    x: Float[Tensor, "n p"],
    y: Float[Tensor, "n q"],
    fold: Int64[Tensor, " n"],
    *,
    alpha: float | None = None,
    alphas: Sequence[float] | None = None,
    intercept: bool = True,
    per_target: bool = False,
) -> RidgeSolution:
    """The same fit where the input is wider than long: through the n x n Gram matrix, from held data.

    The samples span at most n directions; ridge regression is the same in the coordinates of these
    directions, which the eigenvectors of the Gram matrix give (Saunders, Gammerman & Vovk 1998).

    Args:
        x: Inputs.
        y: Targets.
        fold: Fold of each sample.
        alpha: As in ``solve_ridge``.
        alphas: As in ``solve_ridge``.
        intercept: As in ``solve_ridge``.
        per_target: As in ``solve_ridge``.

    Raises:
        ValueError: As in ``solve_ridge``; values that are not finite.
    """
    origin = x.double().mean(dim=0) if intercept else x.new_zeros(x.shape[1], dtype=torch.float64)
    centred = x.double() - origin
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    kept = values > values.max() * len(x) * torch.finfo(torch.float64).eps
    scale = values[kept].sqrt()
    coordinates = vectors[:, kept] * scale
    moments = [CoMoments.of(coordinates[fold == k], y[fold == k]) for k in fold.unique().tolist()]
    reduced = solve_ridge(moments, alpha=alpha, alphas=alphas, intercept=intercept, per_target=per_target)
    weight = centred.T @ (vectors[:, kept] / scale @ reduced.weight)
    bias = reduced.bias - origin @ weight if intercept else reduced.bias
    return RidgeSolution(weight, bias, reduced.alpha, reduced.alphas, reduced.r2)


def fold_of(stimulus: Int64[Tensor, " n"], n_folds: int) -> Int64[Tensor, " n"]:
    """Fold of each sample: a hash of its stimulus modulo the number of folds.

    Repetitions of a stimulus never straddle folds, and the assignment depends neither on the order of the
    samples nor on the number of processes. The hash is splitmix64 (Steele, Lea & Flood 2014).
    """
    z = stimulus + _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return _shift(z ^ _shift(z, 31), 1) % n_folds


def choose_form(p: int, n: int) -> Form:
    """Return ``kernel`` where the input (P) is wider than the samples (n) are many, else ``primal``."""
    return "kernel" if p > n else "primal"


def predicted_memory(p: int, q: int, n: int, form: Form, n_folds: int) -> int:
    """Return the bytes that a fit of P inputs and Q targets on n samples needs at its peak.

    Primal: statistics of every fold, of the training folds, and four matrices of the decomposition. Kernel: the
    held samples in float32 and once in float64, and the same in n instead of P dimensions.
    """
    width = p if form == "primal" else min(n, p)
    statistics = 8 * (n_folds + 2) * (width * width + width * q) + 8 * 4 * width * width + 8 * 2 * p * q
    return statistics if form == "primal" else statistics + 12 * n * p + 12 * n * q + 8 * 2 * n * n


@dataclass(frozen=True)
class _Eigen:
    """Eigendecomposition of the input's second moments, and the targets in its basis."""

    values: Tensor
    vectors: Tensor
    targets: Tensor

    @classmethod
    def of(cls, moments: CoMoments, intercept: bool) -> _Eigen:
        sxx, sxy = (moments.sxx, moments.sxy) if intercept else moments.about(*_zeros(moments))[:2]
        values, vectors = torch.linalg.eigh(sxx)
        return cls(values.clamp_min(0), vectors, vectors.T @ sxy)

    def coefficients(self, alpha: Tensor) -> Tensor:
        """Weights in the eigenbasis, ``(P, Q)``; alpha = 0 gives the solution of minimum norm."""
        denominator = self.values[:, None] + alpha
        floor = self.values.max() * len(self.values) * torch.finfo(torch.float64).eps
        return torch.where(denominator > floor, self.targets / denominator.clamp_min(1e-300), 0.0)

    def weight(self, alpha: Tensor) -> Tensor:
        return self.vectors @ self.coefficients(alpha)


def _cross_validate(folds: Sequence[CoMoments], alphas: Tensor, intercept: bool) -> Tensor:
    """Share of explained variance ``(A, Q)``, pooled over held-out folds, from their statistics alone."""
    if len(folds) < 2:
        raise ValueError(
            "choosing alpha needs at least two folds with samples, found one; give a fixed alpha or more stimuli"
        )
    errors = alphas.new_zeros(len(alphas), len(folds[0].mean_y))
    totals = alphas.new_zeros(len(folds[0].mean_y))
    for held in range(len(folds)):
        training = _merge([fold for k, fold in enumerate(folds) if k != held])
        eigen = _Eigen.of(training, intercept)
        origin = (training.mean_x, training.mean_y) if intercept else _zeros(training)
        hxx, hxy, hyy = folds[held].about(*origin)
        hxx = eigen.vectors.T @ hxx @ eigen.vectors
        hxy = eigen.vectors.T @ hxy
        totals += hyy
        for row, alpha in enumerate(alphas):
            weight = eigen.coefficients(alpha)
            errors[row] += hyy + (weight * (hxx @ weight - 2 * hxy)).sum(dim=0)
    varies = totals > 1e-12 * totals.max()
    return torch.where(varies, 1 - errors / torch.where(varies, totals, 1), torch.nan)


def _merge(parts: Sequence[CoMoments]) -> CoMoments:
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    return total


def _zeros(moments: CoMoments) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(moments.mean_x), torch.zeros_like(moments.mean_y)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
