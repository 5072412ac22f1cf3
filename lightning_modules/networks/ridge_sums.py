"""What a pass over the data collects for ridge regression, merged over processes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor, distributed, nn

from contracts import ContractError
from lightning_modules.networks.ridge import CoMoments, RidgeSolution, solve_ridge, solve_ridge_kernel


def checked_penalty(alpha: float | Literal["cv"], folds: int) -> float | None:
    """Return the penalty, or None where cross-validation is to choose it.

    Raises:
        ContractError: An alpha that is not ``cv`` or a number of at least 0, fewer than 2 folds.
    """
    if alpha != "cv" and not (isinstance(alpha, float | int) and 0 <= alpha < math.inf):
        raise ContractError(f"alpha must be 'cv' or a number of at least 0, found {alpha!r}")
    if folds < 2:
        raise ContractError(f"folds must be at least 2, found {folds}")
    return None if alpha == "cv" else float(alpha)


def zero_linear(p: int, q: int) -> nn.Linear:
    """Return a linear layer of zeros: weights come from a fit, never from chance."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, p, q, device=torch.get_default_device())
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


@dataclass(frozen=True)
class Moments:
    """Mean and SD (over n) of predictions and of what they predict.

    Attributes:
        predicted_mean: ``(Q,)``.
        predicted_std: ``(Q,)``.
        target_mean: ``(Q,)``.
        target_std: ``(Q,)``.
    """

    predicted_mean: Float64[Tensor, " q"]
    predicted_std: Float64[Tensor, " q"]
    target_mean: Float64[Tensor, " q"]
    target_std: Float64[Tensor, " q"]


class MatchedMoments(nn.Module):
    """Gives predictions the mean and SD of their targets, dimension by dimension.

    Ozcelik & VanRullen (2023), Brain-Diffuser, code; taken over by LEA's.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        for name in ("predicted_mean", "target_mean"):
            self.register_buffer(name, torch.zeros(size))
        for name in ("predicted_std", "target_std"):
            self.register_buffer(name, torch.ones(size))
        # those of a split take part while it is predicted, and in no checkpoint
        self.of_split: tuple[Tensor, Tensor] | None = None

    def copy_(self, moments: Moments) -> None:
        """Take over the moments of a fit."""
        for name, value in vars(moments).items():
            self.get_buffer(name).copy_(value)

    def take_split(self, predicted: Tensor) -> None:
        """Use the moments of all predictions ``(n, Q)`` of a split from now on."""
        mean, std = _mean_and_std(predicted)
        self.of_split = mean.to(self.get_buffer("target_mean")), std.to(self.get_buffer("target_std"))

    def forward(self, predicted: Tensor) -> Tensor:
        """Match predictions ``(n, Q)``; what does not vary becomes the mean of its target."""
        fitted = self.get_buffer("predicted_mean"), self.get_buffer("predicted_std")
        mean, std = fitted if self.of_split is None else self.of_split
        factor = torch.where(std > 0, self.get_buffer("target_std") / std, 0)
        return (predicted - mean) * factor + self.get_buffer("target_mean")


class StreamedSums:
    """Co-moments of each fold; needs P x P numbers a fold, however long the data."""

    def __init__(self, p: int, q: int, n_folds: int, device: torch.device) -> None:
        self.folds = [CoMoments.empty(p, q, device) for _ in range(n_folds)]

    def add(self, x: Tensor, y: Tensor, fold: Tensor, row: Tensor) -> None:
        """Add samples ``x (n, P)``, ``y (n, Q)`` with their ``fold`` and ``row``, ``(n,)`` each."""
        for k in fold.unique().tolist():
            self.folds[k].update(x[fold == k], y[fold == k])

    def solve(self, *, towards_identity: bool = False, **options: Any) -> tuple[RidgeSolution, Moments] | None:
        """Return the solution with its moments, the same on all ranks; None if no rank has seen a sample.

        Args:
            towards_identity: Shrink the weights towards s I instead of 0, with s the least squares factor of
                y = s x: ridge regression of y - s x on x, for x and y of one width.
            **options: As for ``solve_ridge``.
        """
        folds = [_over_ranks(fold) for fold in self.folds]
        if not any(fold.count > 0 for fold in folds):
            return None
        total = reduce(CoMoments.merge, folds)
        scale = total.least_squares_factor() if towards_identity else None
        solution = solve_ridge(folds if scale is None else [fold.less(scale) for fold in folds], **options)
        if scale is not None:
            identity = torch.eye(len(total.mean_x), dtype=torch.float64, device=total.mean_x.device)
            solution = replace(solution, weight=solution.weight + scale * identity)
        weight = solution.weight
        variance = ((total.sxx @ weight) * weight).sum(dim=0) / total.count
        moments = Moments(
            total.mean_x @ weight + solution.bias,
            variance.clamp_min(0).sqrt(),
            total.mean_y,
            (total.variation_y / total.count).sqrt(),
        )
        return solution, moments


class HeldSamples:
    """The samples themselves, for inputs wider than long."""

    def __init__(self, p: int, q: int, n_folds: int, device: torch.device) -> None:
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        self.parts = [(torch.zeros(0, p, device=device), torch.zeros(0, q, device=device), empty, empty)]

    def add(self, x: Tensor, y: Tensor, fold: Tensor, row: Tensor) -> None:
        """Keep samples ``x (n, P)``, ``y (n, Q)`` with their ``fold`` and ``row``, ``(n,)`` each."""
        self.parts.append((x, y, fold, row))

    def solve(self, **options: Any) -> tuple[RidgeSolution, Moments] | None:
        """Return the solution with its moments, the same on all ranks; None if no rank has seen a sample."""
        x, y, fold, row = (rows_of_ranks(torch.cat(column)) for column in zip(*self.parts, strict=True))
        if not len(row):
            return None
        order = row.argsort()
        solution = solve_ridge_kernel(x[order], y[order], fold[order], **options)
        predicted = x.double() @ solution.weight + solution.bias
        return solution, Moments(*_mean_and_std(predicted), *_mean_and_std(y.double()))


def _mean_and_std(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(dim=0), values.std(dim=0, correction=0)


def _world_size() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _over_ranks(moments: CoMoments) -> CoMoments:
    """Merge the statistics of all processes, in the order of ranks, so that all get the same bits."""
    if _world_size() == 1:
        return moments
    total = CoMoments.empty(len(moments.mean_x), len(moments.mean_y), moments.sxx.device)
    for rank in range(_world_size()):
        mine = rank == distributed.get_rank()
        tensors = [value.clone() if mine else torch.empty_like(value) for value in moments.tensors()]
        for value in tensors:
            distributed.broadcast(value, src=rank)
        total = total.merge(CoMoments(*tensors))
    return total


def rows_of_ranks(values: Tensor) -> Tensor:
    """Join the rows ``(n, ...)`` of all processes, in the order of ranks."""
    if _world_size() == 1:
        return values
    parts = []
    for rank in range(_world_size()):
        length = torch.tensor(len(values), device=values.device)
        distributed.broadcast(length, src=rank)
        mine = rank == distributed.get_rank()
        part = values.contiguous() if mine else values.new_empty(int(length), *values.shape[1:])
        distributed.broadcast(part, src=rank)
        parts.append(part)
    return torch.cat(parts)
