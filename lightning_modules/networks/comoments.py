"""Sufficient statistics of paired data: one pass over the samples is all a ridge regression needs.

Statistics of disjoint sets of samples merge exactly, so batches, cross-validation folds and processes may
come in any size and order. Folds are a hash of the stimulus, which no order can change either. What the
statistics cost, and when it is better to hold the samples, is said here too.

References:
    Chan, Golub & LeVeque (1979), Updating formulae and a pairwise algorithm for computing sample variances.
    Chan, Golub & LeVeque (1983), Algorithms for computing the sample variance: analysis and recommendations.
    Steele, Lea & Flood (2014), Fast splittable pseudorandom number generators (splitmix64).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

Form = Literal["primal", "kernel"]
"""Ridge regression from statistics, or from held samples through their Gram matrix."""


@dataclass(frozen=True)
class CoMoments:
    """Counts, means and centred co-moments of paired samples x (n, P) and y (n, Q), all float64.

    ``sxx`` and ``syy`` are either full matrices or diagonals. Regression x -> y needs the full ``sxx``,
    ``sxy`` and the diagonal of ``syy``; with both in full, one pass serves x -> y and, by ``swap``, y -> x.

    Attributes:
        count: n, a scalar.
        mean_x: ``(P,)``.
        mean_y: ``(Q,)``.
        sxx: ``(P, P)`` sum of (x - mean_x)(x - mean_x)^T, or ``(P,)``, its diagonal.
        sxy: ``(P, Q)`` sum of (x - mean_x)(y - mean_y)^T.
        syy: ``(Q, Q)`` sum of (y - mean_y)(y - mean_y)^T, or ``(Q,)``, its diagonal.
    """

    count: Float64[Tensor, ""]
    mean_x: Float64[Tensor, " p"]
    mean_y: Float64[Tensor, " q"]
    sxx: Float64[Tensor, "p p"] | Float64[Tensor, " p"]
    sxy: Float64[Tensor, "p q"]
    syy: Float64[Tensor, "q q"] | Float64[Tensor, " q"]

    @classmethod
    def empty(
        cls,
        p: int,
        q: int,
        device: torch.device | str = "cpu",
        *,
        full_x: bool = True,
        full_y: bool = False,
    ) -> CoMoments:
        """Return the statistics of no samples.

        Args:
            p: P, width of x.
            q: Q, width of y.
            device: Where the sums live; batches must be on the same device.
            full_x: Whether ``sxx`` is a matrix (needed for x -> y), else its diagonal.
            full_y: Whether ``syy`` is a matrix (needed for y -> x), else its diagonal.
        """
        sxx = (p, p) if full_x else (p,)
        syy = (q, q) if full_y else (q,)
        shapes: tuple[tuple[int, ...], ...] = ((), (p,), (q,), sxx, (p, q), syy)
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    @classmethod
    def of(
        cls, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"], *, full_x: bool = True, full_y: bool = False
    ) -> CoMoments:
        """Return the statistics of some samples; arguments and errors as in ``empty`` and ``update``."""
        moments = cls.empty(x.shape[1], y.shape[1], x.device, full_x=full_x, full_y=full_y)
        moments.update(x, y)
        return moments

    @torch.no_grad()
    def update(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> None:
        """Add a batch of any size in place: its own centred moments, merged by Chan's formula.

        sxy += sum (x - m_x)(y - m_y)^T + n N / (n + N) (m_x - mean_x)(m_y - mean_y)^T, with n and m of the
        batch and N and mean of what came before. The second term is one more row of the batch, so that the
        large matrices are read and written once.

        Raises:
            ValueError: Shapes that do not fit, or values that are not finite.
        """
        expected = (len(x), len(self.mean_x)), (len(x), len(self.mean_y))
        if (tuple(x.shape), tuple(y.shape)) != expected:
            raise ValueError(f"x, y are {tuple(x.shape)}, {tuple(y.shape)}, expected {expected[0]}, {expected[1]}")
        check_finite(x=x, y=y)
        if len(x) == 0:
            return
        # Offsets of single precision data must go before any product, and in double precision.
        x, y = x.double(), y.double()
        mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
        total = self.count + len(x)
        root = (self.count * len(x) / total).sqrt()
        dx = torch.cat([x - mean_x, (root * (mean_x - self.mean_x))[None]])
        dy = torch.cat([y - mean_y, (root * (mean_y - self.mean_y))[None]])
        self.mean_x.add_((mean_x - self.mean_x) * (len(x) / total))
        self.mean_y.add_((mean_y - self.mean_y) * (len(x) / total))
        self.count.copy_(total)
        self.sxy.addmm_(dx.T, dy)
        for moments, d in ((self.sxx, dx), (self.syy, dy)):
            if moments.ndim == 2:
                moments.addmm_(d.T, d)
            else:
                moments.add_(d.square().sum(dim=0))

    @torch.no_grad()
    def merge(self, other: CoMoments) -> CoMoments:
        """Return the statistics of both sets of samples as new tensors; neither side changes.

        Raises:
            ValueError: The two differ in width or in which matrices are full.
        """
        ours, theirs = ([tuple(t.shape) for t in m.tensors()] for m in (self, other))
        if ours != theirs:
            raise ValueError(f"statistics of shapes {ours} and {theirs} cannot be merged")
        count = self.count + other.count
        share = other.count / count.clamp_min(1)  # 0 / 1 where both are empty
        dx, dy = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        weight = self.count * share
        return CoMoments(
            count,
            self.mean_x + dx * share,
            self.mean_y + dy * share,
            _merged(self.sxx, other.sxx, weight * dx, dx),
            _merged(self.sxy, other.sxy, weight * dx, dy),
            _merged(self.syy, other.syy, weight * dy, dy),
        )

    def least_squares_factor(self) -> Float64[Tensor, ""]:
        """Return the s that minimises the sum of squares of y - s x, without intercept; 0 where x is 0."""
        xy = self.sxy.diagonal().sum() + self.count * (self.mean_x @ self.mean_y)
        xx = self.sxx.diagonal().sum() + self.count * self.mean_x.square().sum()
        return torch.where(xx > 0, xy / xx, 0.0)

    def less(self, scale: Float64[Tensor, ""]) -> CoMoments:
        """Return the statistics of x and y - ``scale`` x, for x and y of one width and full ``sxx``."""
        syy = self.variation_y - 2 * scale * self.sxy.diagonal() + scale**2 * self.sxx.diagonal()
        mean_y = self.mean_y - scale * self.mean_x
        return CoMoments(self.count, self.mean_x, mean_y, self.sxx, self.sxy - scale * self.sxx, syy.clamp(min=0))

    def swap(self) -> CoMoments:
        """Return the statistics of (y, x): a view, which follows when this one is updated."""
        return CoMoments(self.count, self.mean_y, self.mean_x, self.syy, self.sxy.T, self.sxx)

    @property
    def variation_y(self) -> Float64[Tensor, " q"]:
        """``(Q,)`` total sum of squares of y about its mean: the diagonal of ``syy``, a view."""
        return self.syy.diagonal() if self.syy.ndim == 2 else self.syy

    def tensors(self) -> list[Tensor]:
        """Return count, mean_x, mean_y, sxx, sxy, syy: what processes exchange."""
        return [getattr(self, field.name) for field in fields(self)]

    @classmethod
    def from_tensors(cls, tensors: Sequence[Tensor]) -> CoMoments:
        """Return the statistics that ``tensors`` listed; shares their memory.

        Raises:
            ValueError: Other than six tensors, or shapes that do not belong together.
        """
        if len(tensors) != 6:
            raise ValueError(f"statistics are 6 tensors, found {len(tensors)}")
        moments = cls(*tensors)
        p, q = moments.mean_x.numel(), moments.mean_y.numel()
        found = [tuple(t.shape) for t in tensors]
        sxx, syy = ((n, n) if t.ndim == 2 else (n,) for t, n in ((moments.sxx, p), (moments.syy, q)))
        if found != [(), (p,), (q,), sxx, (p, q), syy]:
            raise ValueError(f"tensors of shapes {found} are not statistics of one pair of x and y")
        return moments


def fold_of(stimulus: Int64[Tensor, " n"], n_folds: int) -> Int64[Tensor, " n"]:
    """Fold of each sample: splitmix64 of its stimulus, modulo the number of folds.

    Repetitions of a stimulus share a fold, and the assignment depends neither on the other samples, nor on
    their order, nor on the number of processes or the device.

    Args:
        stimulus: ``(n,)`` int64 stimulus numbers.
        n_folds: K.

    Returns:
        ``(n,)`` int64 in 0..K-1.

    Raises:
        ValueError: ``n_folds`` below 1, or ``stimulus`` of another type.
    """
    if n_folds < 1:
        raise ValueError(f"n_folds must be at least 1, found {n_folds}")
    if stimulus.dtype != torch.int64:
        raise ValueError(f"stimulus must be int64, found {stimulus.dtype}")
    z = stimulus + _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    z = z ^ _shift(z, 31)
    return _shift(z, 1) % n_folds  # without the sign bit, so that the remainder is that of unsigned numbers


def choose_form(p: int, n: int) -> Form:
    """Return ``kernel`` where the input (P) is wider than the samples (n) are many, else ``primal``."""
    return "kernel" if p > n else "primal"


def predicted_memory(p: int, q: int, n: int, form: Form, n_folds: int, *, full_y: bool = False) -> int:
    """Return the bytes that statistics or samples and the fit need at its peak, rounded up.

    Primal: statistics of every fold and five more (all samples, training folds while they merge), six P x P
    matrices (decomposition with its workspace, held-out fold in its basis), eight P x Q. Kernel: the samples in
    float32 and three times in float64, eight n x n and five n x Q matrices, and the weights twice.

    Args:
        p: P, inputs.
        q: Q, targets.
        n: Training samples.
        form: ``primal`` or ``kernel``.
        n_folds: Folds of the cross-validation.
        full_y: Primal only: whether ``syy`` is collected in full, for the other direction.
    """
    if form == "kernel":
        return 28 * n * (p + q) + 8 * (8 * n * n + 5 * n * q + 2 * p * q)
    statistics = p * p + p * q + (q * q if full_y else q)
    return 8 * ((n_folds + 5) * statistics + 6 * p * p + 8 * p * q)


def check_finite(**values: Tensor) -> None:
    """Refuse NaN and infinity.

    Raises:
        ValueError: Names the argument and how many of its values are not finite.
    """
    for name, tensor in values.items():
        wrong = int(tensor.numel() - torch.isfinite(tensor).sum())
        if wrong:
            raise ValueError(f"{name}: {wrong} of {tensor.numel()} values are NaN or infinite; clean the data first")


def _merged(a: Tensor, b: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Sum a + b + u v^T, or its diagonal where a and b are diagonals."""
    return (a + b).addr_(u, v) if a.ndim == 2 else a + b + u * v


def _signed(value: int) -> int:
    """The int64 with the bits of a uint64: products wrap to the same bits in either."""
    return value - 2**64 if value >= 2**63 else value


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own repeats the sign bit."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
