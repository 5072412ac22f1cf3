"""Identification scores with intervals and p-values, in one pass over chunks of queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from callbacks.metrics import ranks as closed
from callbacks.metrics.galleries import Block, Chunk, Level, Targets, select
from callbacks.metrics.ranks import Ranks
from callbacks.metrics.resampling import (
    Estimate,
    bootstrap_weights,
    few_stimuli,
    permutation_p,
    permutations,
    share_interval,
)
from callbacks.metrics.similarity import Similarity


@dataclass
class _Scorer:
    name: str
    chance: float
    of_all: bool
    exact: Callable[[Ranks], Tensor]
    resampled: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    total: float = 0.0


def identification(
    blocks: Sequence[Block],
    *,
    similarity: Similarity = "cosine",
    level: Level = "image",
    top_k: Sequence[int] = (1, 5),
    n_way: Sequence[tuple[int, int]] = ((50, 1),),
    n_permutations: int = 999,
    n_bootstraps: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    chunk: int | None = None,
) -> list[Estimate]:
    """Score how well queries identify their stimuli.

    p-values: the stimuli are permuted among the queries (all queries of stimulus s look for stimulus pi(s))
    and the same rows of similarities are ranked again; p = (1 + #{permuted >= value}) / (P + 1).

    Intervals: stimuli are resampled with replacement, each as query and as distractor together; gallery
    items that no query saw keep weight 1, a query never meets its own stimulus as distractor. Absent
    distractors bias top-k upwards, so only the standard error s of the bootstrap is used: Wilson's interval
    with the effective size value (1 - value) / s^2. A perfect or zero score takes the number of stimuli.
    At class level the items of the class stay as they are and only the distractors are resampled.

    In simulations (Gaussian embeddings, N = 50 and 200, top-1 between .03 and .999) nominal 95 % covered
    .91-.98 for two-way, .95-.98 for top-1 and top-5; the exception is top-1 at a true value of .9994 with
    200 stimuli (.86), where one miss already puts Wilson's upper end at .9991. On the same samples centred
    percentiles covered .87-1.0, queries resampled alone .85-1.0, and the jackknife over stimuli
    overestimates the error of top-k by about a quarter.

    Args:
        blocks: Queries with their gallery; several for the folds of a cross-validation.
        similarity: ``cosine`` or ``pearson``; not used by blocks of precomputed similarities.
        level: ``image`` or ``class``, see :class:`callbacks.metrics.galleries.Targets`.
        top_k: Values of k; those not below the gallery size are skipped.
        n_way: Pairs (n, k); those with n above the gallery size are skipped.
        n_permutations: P; 0 gives no p-values.
        n_bootstraps: Bootstrap samples; 0 gives no intervals.
        confidence: Coverage of the intervals.
        seed: Seed of permutations and bootstrap; the result does not depend on ``chunk``.
        chunk: Queries at a time; None chooses it by memory.

    Returns:
        One estimate per score: ``two_way``, ``top_1``, ``50_way_top_1`` ..., prefixed ``class_`` at class
        level.

    Raises:
        ValueError: Rows that cannot be ranked, targets that the gallery lacks, galleries that differ.
    """
    blocks = list(blocks)
    targets = Targets(blocks, level)
    scorers = _scorers(targets, top_k, n_way)
    u = len(targets.stimuli)
    rng_permute, rng_boot = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    shuffles = permutations(u, n_permutations, rng_permute)
    weights = bootstrap_weights(u, n_bootstraps, rng_boot)
    permuted = torch.zeros(len(scorers), n_permutations, dtype=torch.float64)
    resampled = torch.zeros(len(scorers), n_bootstraps, dtype=torch.float64)
    distractors = _Distractors(targets, weights)
    for piece in targets.chunks(blocks, similarity, chunk):
        looked_for = shuffles[:, piece.which].T.long()
        counted = distractors.count(piece) if n_bootstraps else {}
        for i, scorer in enumerate(scorers):
            everyone = scorer.exact(piece.among_all if scorer.of_all else piece.among_others)
            scorer.total += float(everyone.gather(1, piece.which[:, None]).sum())
            permuted[i] += everyone.gather(1, looked_for).sum(0)
            if n_bootstraps:
                score = scorer.resampled(*counted[scorer.of_all])
                resampled[i] += (score * weights[:, piece.which].T).sum(0)
    n = len(targets.which)
    in_sample = weights @ torch.from_numpy(np.bincount(targets.which, minlength=u)).float()
    result = []
    for i, scorer in enumerate(scorers):
        value = scorer.total / n
        low, high = share_interval(value, resampled[i] / in_sample, u, confidence) if n_bootstraps else (None, None)
        p = permutation_p(value, permuted[i] / n) if n_permutations else None
        result.append(Estimate(scorer.name, value, low, high, p, scorer.chance, n, u, few_stimuli(u)))
    return result


def _scorers(targets: Targets, top_k: Sequence[int], n_way: Sequence[tuple[int, int]]) -> list[_Scorer]:
    prefix = "class_" if targets.level == "class" else ""
    smallest = int(torch.as_tensor(targets.sizes).min())

    def two_way_again(better: Tensor, tied: Tensor, total: Tensor, size: Tensor, right: Tensor) -> Tensor:
        return 1 - (better + tied / 2) / total

    scorers = [_Scorer(f"{prefix}two_way", closed.CHANCE_TWO_WAY, False, closed.two_way, two_way_again)]
    for k in top_k:
        if k >= targets.size:
            continue

        def top_again(better: Tensor, tied: Tensor, total: Tensor, size: Tensor, right: Tensor, k: int = k) -> Tensor:
            return ((k - better).clamp(min=0) * right / (tied + right)).clamp(max=1)

        members = targets.members[targets.which]
        chance = float(np.mean([closed.chance_top_k(targets.size, k, int(m)) for m in members]))
        exact = _bind(closed.top_k, k)
        scorers.append(_Scorer(f"{prefix}top_{k}", chance, True, exact, top_again))
    for n, k in n_way:
        if n > smallest:
            continue

        def n_way_again(
            better: Tensor, tied: Tensor, total: Tensor, size: Tensor, right: Tensor, n: int = n, k: int = k
        ) -> Tensor:
            # The rank is stretched to the real gallery size, where the score between places is linear.
            stretch = (size - 1) / total
            better, tied = better * stretch, tied * stretch
            score = torch.empty_like(better)
            for one in torch.unique(size).tolist():
                here = (size == one)[:, 0]
                running = closed.n_way_cumulative(int(one), n, k)
                b, t = better[here], tied[here]
                score[here] = (_between(running, b + t + 1) - _between(running, b)) / (t + 1)
            return score

        name = f"{prefix}{n}_way_top_{k}"
        scorers.append(_Scorer(name, closed.chance_n_way(n, k), False, _bind(closed.n_way, n, k), n_way_again))
    return scorers


def _bind(score: Callable[..., Tensor], *arguments: int) -> Callable[[Ranks], Tensor]:
    return lambda ranks: score(ranks, *arguments)


def _between(running: Tensor, place: Tensor) -> Tensor:
    """Linear interpolation in a table at fractional places."""
    place = place.clamp(0, len(running) - 1)
    below = place.long().clamp(max=len(running) - 2)
    return running[below] + (place - below) * (running[below + 1] - running[below])


class _Distractors:
    """Weighted numbers of better, tied and all distractors in every bootstrap sample."""

    def __init__(self, targets: Targets, weights: Tensor) -> None:
        self.targets = targets
        self.columns = np.flatnonzero(targets.item_which >= 0)
        self.weights = weights[:, targets.item_which[self.columns]]
        u = len(targets.stimuli)
        if targets.level == "image":
            # All G - u other items, and u draws less those of the query's own stimulus.
            self.total = targets.size - weights.T
        else:
            self.total = torch.empty(u, len(weights))
            outside = targets.item_which < 0
            for label in np.unique(targets.label):
                mask = targets.item_label != label
                inside = self.weights[:, torch.from_numpy(mask[self.columns])].sum(1)
                self.total[torch.from_numpy(targets.label == label)] = inside + int((mask & outside).sum())

    def count(self, piece: Chunk) -> dict[bool, tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        """Return (better, tied, total, size, right) for two-way and n-way (False) and for top-k (True)."""
        targets = self.targets
        # A draw without any distractor has no better one either; 1 only avoids 0 / 0.
        total = self.total[piece.which].clamp(min=1).double()
        sims = piece.sims[:, torch.from_numpy(self.columns)]
        if targets.level == "image":
            own = torch.from_numpy(targets.item_which[self.columns])[None] == piece.which[:, None]
        else:
            label = torch.from_numpy(targets.label)[piece.which]
            own = torch.from_numpy(targets.item_label[self.columns])[None] == label[:, None]
        result: dict[bool, tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = {}
        kinds = [(False, piece.value, piece.among_others), (True, piece.best, piece.among_all)]
        for of_all, value, everyone in kinds:
            if of_all and targets.level == "image":
                result[True] = result[False]
                continue
            target = value.gather(1, piece.which[:, None])
            ranks = select(everyone, piece.which)
            weighted = []
            for mask, exact in ((sims > target, ranks.better), (sims == target, ranks.tied)):
                mask &= ~own
                fixed = exact - mask.sum(1)
                counted = fixed[:, None].double().expand(-1, len(self.weights))
                if bool(mask.any()):
                    counted = counted + (mask.float() @ self.weights.T).double()
                weighted.append(counted)
            size, right = (torch.as_tensor(x).expand(len(sims))[:, None] for x in (ranks.size, ranks.right))
            result[of_all] = (weighted[0], weighted[1], total, size, right)
        return result
