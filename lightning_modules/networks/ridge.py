"""Ridge regression in closed form: one eigendecomposition gives every penalty and every target.

The objective is that of ``sklearn.linear_model.Ridge``: sum_i |y_i - W^T x_i - b|^2 + alpha |W|^2, with the
intercept b free of penalty, or fixed at 0 (second moments about 0 instead of about the means). Two forms give
the same solution: ``primal`` from statistics (``CoMoments``), any number of samples; ``kernel`` from the
samples themselves, through their n x n Gram matrix, where the input is wider than long.

Computed in float64 and valid to 1e-5 for alpha of at least 1e-8 of the largest eigenvalue of X^T X. Alpha = 0
is the least squares solution of minimum norm; there, eigenvalues below the rounding error of the largest
(relative P eps, so singular values of X below about 1e-6 of the largest) count as 0.

References:
    Hoerl & Kennard (1970), Ridge regression: biased estimation for nonorthogonal problems.
    Saunders, Gammerman & Vovk (1998), Ridge regression learning algorithm in dual variables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from lightning_modules.networks.comoments import CoMoments, Form, check_finite, choose_form, fold_of, predicted_memory

__all__ = [
    "AlphaChoice",
    "CoMoments",
    "Form",
    "RidgeSolution",
    "choose_form",
    "default_alphas",
    "fit_kernel",
    "fit_primal",
    "fold_of",
    "predicted_memory",
    "select_alpha_kernel",
    "select_alpha_primal",
    "solve_ridge",
    "solve_ridge_kernel",
]

_TIE = 1e-10
"""Cross-validated R^2 this close to the best are ties: sums of squares are not exact beyond it."""

_TOO_FEW_FOLDS = "choosing alpha needs at least 2 folds with samples, found {}; give a fixed alpha or more stimuli"


@dataclass(frozen=True)
class AlphaChoice:
    """Result of a cross-validation.

    Attributes:
        alpha: The chosen penalty, a scalar or ``(Q,)``.
        alphas: ``(A,)`` penalties that were compared, in the order given.
        r2: ``(A, Q)`` 1 - (sum over folds of squared errors) / (sum of squares about the mean of all); NaN
            for targets that are constant.
    """

    alpha: Float64[Tensor, ...]
    alphas: Float64[Tensor, " a"]
    r2: Float64[Tensor, "a q"]


@dataclass(frozen=True)
class RidgeSolution(AlphaChoice):
    """A fitted ridge regression and the choice behind it, with no ``alphas`` where alpha was given.

    Attributes:
        weight: ``(P, Q)`` float64.
        bias: ``(Q,)`` float64; 0 without intercept.
    """

    weight: Float64[Tensor, "p q"]
    bias: Float64[Tensor, " q"]


# ---- fits ------------------------------------------------------------------------------------------


def fit_primal(
    moments: CoMoments, alpha: float | Float64[Tensor, ...], *, intercept: bool = True
) -> tuple[Float64[Tensor, "p q"], Float64[Tensor, " q"]]:
    """Solve W = (Sxx + alpha I)^-1 Sxy from statistics.

    Args:
        moments: Statistics with a full ``sxx``.
        alpha: One penalty, or ``(Q,)``, one for each target.
        intercept: Whether the model has an intercept.

    Returns:
        Weight ``(P, Q)`` and bias ``(Q,)``, float64.

    Raises:
        ValueError: No samples, only the diagonal of ``sxx``, or an alpha that is negative, not finite or of
            another shape.
    """
    penalty = _penalties(alpha, moments.mean_y)
    return _primal_solution(moments, _primal_spectrum(moments, intercept), penalty, intercept)


def fit_kernel(
    x: Float[Tensor, "n p"], y: Float[Tensor, "n q"], alpha: float | Float64[Tensor, ...], *, intercept: bool = True
) -> tuple[Float64[Tensor, "p q"], Float64[Tensor, " q"]]:
    """Solve W = X^T (X X^T + alpha I)^-1 Y from the samples: the solution of ``fit_primal``, see there.

    Raises:
        ValueError: As ``fit_primal``; shapes that do not fit; values that are not finite.
    """
    held = _Held.of(x, y, intercept)
    return held.solution(held.spectrum(slice(None)), _penalties(alpha, held.mean_y))


def solve_ridge(
    folds: Sequence[CoMoments],
    *,
    alpha: float | None = None,
    alphas: Sequence[float] | None = None,
    intercept: bool = True,
    per_target: bool = False,
) -> RidgeSolution:
    """Fit on all samples, with a fixed alpha or the one that cross-validation over the folds prefers.

    Args:
        folds: Statistics of each fold.
        alpha: Fixed penalty; None to choose.
        alphas: Penalties to choose from; None for ``default_alphas`` of all samples.
        intercept: Whether the model has an intercept.
        per_target: As in ``select_alpha_primal``.

    Raises:
        ValueError: As ``fit_primal`` and ``select_alpha_primal``.
    """
    if not folds:
        raise ValueError("ridge regression got no samples")
    total = reduce(CoMoments.merge, folds)
    spectrum = _primal_spectrum(total, intercept)
    if alpha is None:
        grid = default_alphas(float(spectrum.values.max())) if alphas is None else alphas
        choice = select_alpha_primal(folds, grid, intercept=intercept, per_target=per_target)
    else:
        choice = _fixed(alpha, total.mean_y)
    weight, bias = _primal_solution(total, spectrum, choice.alpha, intercept)
    return RidgeSolution(**vars(choice), weight=weight, bias=bias)


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
    """The same fit as ``solve_ridge`` in the kernel form, from held samples ``x``, ``y`` and their ``fold``.

    Raises:
        ValueError: As ``fit_kernel`` and ``select_alpha_kernel``.
    """
    held = _Held.of(x, y, intercept)
    spectrum = held.spectrum(slice(None))
    if alpha is None:
        grid = default_alphas(float(spectrum.values.max())) if alphas is None else alphas
        choice = _select_held(held, fold, grid, per_target)
    else:
        choice = _fixed(alpha, held.mean_y)
    weight, bias = held.solution(spectrum, choice.alpha)
    return RidgeSolution(**vars(choice), weight=weight, bias=bias)


# ---- cross-validation ------------------------------------------------------------------------------


def select_alpha_primal(
    folds: Sequence[CoMoments],
    alphas: Sequence[float] | Float64[Tensor, " a"],
    *,
    intercept: bool = True,
    per_target: bool = False,
) -> AlphaChoice:
    """Choose alpha by cross-validation from statistics alone, with one eigendecomposition a fold.

    The squared error of fold h with mean residual r = (m_y - b) - W^T m_x is, for each target,
    syy_h - 2 w^T sxy_h + w^T sxx_h w + n_h r^2, evaluated in the eigenbasis of the training statistics.

    Args:
        folds: Statistics of each fold; empty folds are skipped.
        alphas: Penalties to compare.
        intercept: Whether the model has an intercept.
        per_target: One alpha for each target, by its own squared error over all folds (constant targets get
            the largest); else one for all, by the squared error of all targets together, which does not
            depend on how an embedding's axes are turned (a mean of R^2 over its axes does, and lets many
            small axes of noise ask for too large an alpha). Ties go to the larger alpha.

    Raises:
        ValueError: Fewer than two folds with samples, no alphas or impossible ones, a shared alpha for
            targets that are all constant, or only the diagonal of ``sxx``.
    """
    used = [fold for fold in folds if fold.count > 0]
    if len(used) < 2:
        raise ValueError(_TOO_FEW_FOLDS.format(len(used)))
    total = reduce(CoMoments.merge, used)
    grid = _penalties(alphas, total.mean_y, grid=True)
    errors = grid.new_zeros(len(grid), len(total.mean_y))
    for index, held in enumerate(used):
        # Merged anew: subtracting the held-out fold from the total would cancel digits.
        training = reduce(CoMoments.merge, used[:index] + used[index + 1 :])
        spectrum = _primal_spectrum(training, intercept)
        vectors = spectrum.vectors
        shift_x = held.mean_x - training.mean_x if intercept else held.mean_x
        shift_y = held.mean_y - training.mean_y if intercept else held.mean_y
        sxx, sxy = vectors.T @ held.sxx @ vectors, vectors.T @ held.sxy
        for row, alpha in enumerate(grid):
            weight = spectrum.coefficients(alpha)
            residual = shift_y - (shift_x @ vectors) @ weight
            squares = (torch.addmm(sxy, sxx, weight, beta=-2) * weight).sum(dim=0)
            errors[row] += held.variation_y + squares + held.count * residual.square()
    return _choose(grid, errors, total.variation_y, total.count * total.mean_y.square(), per_target)


def select_alpha_kernel(
    x: Float[Tensor, "n p"],
    y: Float[Tensor, "n q"],
    fold: Int64[Tensor, " n"],
    alphas: Sequence[float] | Float64[Tensor, " a"],
    *,
    intercept: bool = True,
    per_target: bool = False,
) -> AlphaChoice:
    """Choose alpha as ``select_alpha_primal`` does, see there, by predicting each held-out fold from the others.

    Args:
        x: ``(n, P)`` inputs.
        y: ``(n, Q)`` targets.
        fold: ``(n,)`` fold of each sample, any numbers.
        alphas: Penalties to compare.
        intercept: Whether the model has an intercept.
        per_target: One alpha for each target, else one for all.

    Raises:
        ValueError: As ``select_alpha_primal``; shapes that do not fit; values that are not finite.
    """
    return _select_held(_Held.of(x, y, intercept), fold, alphas, per_target)


def default_alphas(largest_eigenvalue: float, n: int = 15) -> Float64[Tensor, " a"]:
    """Penalties worth comparing: n values, evenly in the logarithm, from 1e-6 to 10 times that eigenvalue.

    Predictions along an eigenvector of eigenvalue l shrink by l / (l + alpha). At 10 times the largest, every
    direction keeps less than a tenth; directions below 1e-6 of it (1e-3 in amplitude) are noise in any
    recording. The default 15 values are a factor of sqrt(10) apart.

    Args:
        largest_eigenvalue: Of the training inputs' second moments X^T X (about the means with an intercept).
        n: Number of values, at least 1.

    Raises:
        ValueError: ``n`` below 1, or an eigenvalue that is not positive and finite (constant inputs).
    """
    if not 0 < largest_eigenvalue < float("inf") or n < 1:
        raise ValueError(
            f"no penalties follow from a largest eigenvalue of {largest_eigenvalue} and n = {n}; is the input constant?"
        )
    return torch.logspace(-6, 1, n, dtype=torch.float64) * largest_eigenvalue


# ---- mechanism -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Spectrum:
    """Eigendecomposition of a second moment or Gram matrix, and the right-hand side in its basis."""

    values: Tensor
    vectors: Tensor
    targets: Tensor

    @classmethod
    def of(cls, matrix: Tensor, targets: Tensor) -> _Spectrum:
        values, vectors = torch.linalg.eigh(matrix)
        return cls(values.clamp_min(0), vectors, vectors.T @ targets)

    def coefficients(self, alpha: Tensor) -> Tensor:
        """Solution in the eigenbasis, (P or n, Q), for one alpha or one for each target."""
        denominator = self.values[:, None] + alpha
        floor = self.values.max() * len(self.values) * torch.finfo(torch.float64).eps
        return self.targets * torch.where(denominator > floor, denominator.reciprocal(), 0.0)


def _primal_spectrum(moments: CoMoments, intercept: bool) -> _Spectrum:
    if moments.count == 0:
        raise ValueError("ridge regression got no samples")
    if moments.sxx.ndim != 2:
        raise ValueError("the primal form needs the full sxx: collect with full_x=True (full_y=True before swap)")
    if intercept:
        return _Spectrum.of(moments.sxx, moments.sxy)
    scaled = moments.count * moments.mean_x
    return _Spectrum.of(moments.sxx.addr(scaled, moments.mean_x), moments.sxy.addr(scaled, moments.mean_y))


def _primal_solution(moments: CoMoments, spectrum: _Spectrum, alpha: Tensor, intercept: bool) -> tuple[Tensor, Tensor]:
    weight = spectrum.vectors @ spectrum.coefficients(alpha)
    bias = moments.mean_y - moments.mean_x @ weight if intercept else torch.zeros_like(moments.mean_y)
    return weight, bias


@dataclass(frozen=True)
class _Held:
    """Samples about their mean (about 0 without intercept) in float64, and the Gram matrix of the inputs."""

    x: Tensor
    y: Tensor
    mean_x: Tensor
    mean_y: Tensor
    gram: Tensor
    intercept: bool

    @classmethod
    def of(cls, x: Tensor, y: Tensor, intercept: bool) -> _Held:
        if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) == 0:
            raise ValueError(f"x and y must be (n, P) and (n, Q) with n > 0, found {tuple(x.shape)}, {tuple(y.shape)}")
        check_finite(x=x, y=y)
        x, y = x.detach().double(), y.detach().double()
        mean_x, mean_y = (v.mean(dim=0) if intercept else torch.zeros_like(v[0]) for v in (x, y))
        x, y = x - mean_x, y - mean_y
        return cls(x, y, mean_x, mean_y, x @ x.T, intercept)

    def products(self, rows: Tensor | slice, training: Tensor | slice) -> Tensor:
        """Scalar products of some samples with training samples, about the mean of the training samples."""
        block = self.gram[rows][:, training]
        if not self.intercept:
            return block
        inner = self.gram[training][:, training]
        return block - block.mean(dim=1, keepdim=True) - inner.mean(dim=0) + inner.mean()

    def targets(self, rows: Tensor | slice, training: Tensor | slice) -> Tensor:
        """Targets of some samples, about the mean of the training samples."""
        return self.y[rows] - self.y[training].mean(dim=0) if self.intercept else self.y[rows]

    def spectrum(self, training: Tensor | slice) -> _Spectrum:
        return _Spectrum.of(self.products(training, training), self.targets(training, training))

    def solution(self, spectrum: _Spectrum, alpha: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.x.T @ (spectrum.vectors @ spectrum.coefficients(alpha))
        return weight, self.mean_y - self.mean_x @ weight


def _select_held(held: _Held, fold: Tensor, alphas: Sequence[float] | Tensor, per_target: bool) -> AlphaChoice:
    if fold.shape != (len(held.x),):
        raise ValueError(f"fold must be ({len(held.x)},), one number a sample, found {tuple(fold.shape)}")
    used = torch.unique(fold)
    if len(used) < 2:
        raise ValueError(_TOO_FEW_FOLDS.format(len(used)))
    grid = _penalties(alphas, held.mean_y, grid=True)
    errors = grid.new_zeros(len(grid), len(held.mean_y))
    for number in used:
        rows, training = (fold == number).nonzero()[:, 0], (fold != number).nonzero()[:, 0]
        spectrum = held.spectrum(training)
        inputs = held.products(rows, training) @ spectrum.vectors
        targets = held.targets(rows, training)
        for row, alpha in enumerate(grid):
            errors[row] += (targets - inputs @ spectrum.coefficients(alpha)).square().sum(dim=0)
    variance, mean_y = torch.var_mean(held.y, dim=0, correction=0)
    return _choose(grid, errors, len(held.y) * variance, len(held.y) * (held.mean_y + mean_y).square(), per_target)


def _choose(grid: Tensor, errors: Tensor, variation: Tensor, offset: Tensor, per_target: bool) -> AlphaChoice:
    """Pick from the squared errors (A, Q), the sums of squares about the mean and n mean^2, both (Q,)."""
    # The mean of a constant is exact to about 1e-15: its variation is below 1e-24 of the offset, while one
    # changed bit of a float32 gives at least 1e-15.
    varies = variation > 1e-24 * offset
    r2 = torch.where(varies, 1 - errors / torch.where(varies, variation, 1.0), torch.nan)
    if not per_target and not varies.any():
        raise ValueError("every target is constant: there is nothing to choose one alpha by; check the targets")
    pooled = 1 - errors[:, varies].sum(dim=1, keepdim=True) / variation[varies].sum()
    score = r2.nan_to_num(nan=0.0) if per_target else pooled
    best = score >= score.amax(dim=0) - _TIE
    alpha = torch.where(best, grid[:, None], -1.0).amax(dim=0)
    return AlphaChoice(alpha if per_target else alpha[0], grid, r2)


def _fixed(alpha: float, like: Tensor) -> AlphaChoice:
    return AlphaChoice(_penalties(alpha, like), like.new_zeros(0), like.new_zeros(0, len(like)))


def _penalties(alpha: float | Sequence[float] | Tensor, like: Tensor, *, grid: bool = False) -> Tensor:
    """One penalty or one for each target; or a grid of any length."""
    values = torch.as_tensor(alpha, dtype=torch.float64, device=like.device)
    if not (values.ndim == 1 and len(values) > 0 if grid else values.shape in ((), like.shape)):
        expected = "a list of at least one" if grid else f"one or {len(like)}"
        raise ValueError(f"penalties must be {expected}, found shape {tuple(values.shape)}")
    wrong = ~(torch.isfinite(values) & (values >= 0))
    if wrong.any():
        raise ValueError(f"alpha must be finite and at least 0, found {values[wrong].tolist()}")
    return values
