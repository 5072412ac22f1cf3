"""Scores stimulus by stimulus, and paired differences of two runs that were tested on the same stimuli."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from callbacks.metrics import Block, pearson, top_k, two_way
from callbacks.metrics.galleries import Chunk, Targets, select
from callbacks.metrics.ranks import Ranks
from callbacks.metrics.resampling import bootstrap_weights, centred_interval, permutation_p
from callbacks.metrics.similarity import Similarity

BOOTSTRAPS = 1000
FLIPS = 9999
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Values:
    """A score of one person, stimulus by stimulus; several trials of a stimulus are averaged.

    Attributes:
        stimuli: ``(U,)`` their numbers, ascending.
        values: ``(U,)`` float64.
        resampled: ``(B,)`` float64, the mean in each bootstrap sample of the stimuli. Samples are drawn alike for all
            runs with as many stimuli, so that differences of two runs are those of the same sample.
        among: Number of gallery items; 0 where nothing is identified.
    """

    stimuli: Int[Tensor, " u"]
    values: Float[Tensor, " u"]
    resampled: Float[Tensor, " b"]
    among: int = 0

    def same_test(self, other: Values) -> bool:
        """Whether both are about the same stimuli among as many."""
        return self.among == other.among and torch.equal(self.stimuli, other.stimuli)


@dataclass(frozen=True)
class Difference:
    """The mean over stimuli of left minus right.

    Attributes:
        value: The mean.
        low: Lower end of the interval.
        high: Upper end of the interval.
        p_value: Two-sided, of flipped signs.
        stimuli: Number of stimuli.
    """

    value: float
    low: float
    high: float
    p_value: float
    stimuli: int


def mean_values(values: Float[Tensor, " n"], stimulus: Int[Tensor, " n"]) -> Values:
    """Average the trials of each stimulus; bootstrap samples are of the stimuli alone."""
    stimuli, which = stimulus.unique(return_inverse=True)
    means = _mean_of_trials(values.double()[:, None], which)[:, 0]
    return Values(stimuli, means, _draw(len(stimuli)).double() @ means / len(stimuli))


def signal_values(
    predicted: Float[Tensor, "n ..."], measured: Float[Tensor, "n ..."], stimulus: Int[Tensor, " n"]
) -> Values:
    """Pearson correlation over voxels (or channels and times) of each predicted pattern with the measured one."""
    patterns = pearson(predicted.flatten(1).T, measured.flatten(1).T)
    return mean_values(patterns.nan_to_num(0.0), stimulus)


def identified_values(blocks: Sequence[Block], similarity: Similarity = "cosine") -> dict[str, Values]:
    """Two-way and top-1 score of each stimulus, from the exact rank of the right item.

    A stimulus of a bootstrap sample counts as query and as distractor, as often as it was drawn; items that no query
    is about stay, and a query never meets its own stimulus as distractor (as in ``identification``).

    Args:
        blocks: Queries with their gallery, one block a fold.
        similarity: ``cosine`` or ``pearson``.

    Returns:
        Scores by name: ``two_way``, ``top_1``.
    """
    blocks = list(blocks)
    targets = Targets(blocks, "image")
    weights = _draw(len(targets.stimuli))
    exact: dict[str, list[Tensor]] = {"two_way": [], "top_1": []}
    again: dict[str, list[Tensor]] = {"two_way": [], "top_1": []}
    for chunk in targets.chunks(blocks, similarity, None):
        ranks = select(chunk.among_all, chunk.which)
        better, tied, total = _resampled_ranks(targets, chunk, weights)
        exact["two_way"].append(two_way(ranks))
        again["two_way"].append(1 - (better + tied / 2) / total)
        exact["top_1"].append(top_k(ranks, 1))
        # absent distractors leave fractions of a place only where items tie
        again["top_1"].append(top_k(Ranks(better, tied, targets.size), 1))
    which, stimuli = torch.from_numpy(targets.which), torch.from_numpy(targets.stimuli)
    found = {}
    for name, values in exact.items():
        by_stimulus = _mean_of_trials(torch.cat(again[name]), which)
        resampled = (by_stimulus * weights.T).sum(0) / len(stimuli)
        means = _mean_of_trials(torch.cat(values)[:, None], which)[:, 0]
        found[name] = Values(stimuli, means, resampled, targets.size)
    return found


def average_values(people: Sequence[Values]) -> Values:
    """Mean over people of each stimulus.

    Raises:
        ValueError: People were tested on different stimuli.
    """
    first = people[0]
    if not all(first.same_test(other) for other in people):
        raise ValueError("people were tested on different stimuli")
    return Values(
        first.stimuli,
        torch.stack([person.values for person in people]).mean(0),
        torch.stack([person.resampled for person in people]).mean(0),
        first.among,
    )


def difference(left: Values, right: Values, *, flips: int = FLIPS, seed: int = 0) -> Difference:
    """Mean difference with a bootstrap interval over stimuli and a p-value of flipped signs.

    The interval is of centred percentiles; for the p-value the two runs change places at random, stimulus by stimulus:
    p = (1 + #{abs(permuted) >= abs(value)}) / (P + 1).

    Args:
        left: Minuend.
        right: Subtrahend, about the same stimuli.
        flips: P.
        seed: Seed of the flips.

    Raises:
        ValueError: Other stimuli.
    """
    if not left.same_test(right):
        raise ValueError(f"{len(left.stimuli)} and {len(right.stimuli)} stimuli, which are not the same")
    apart = left.values - right.values
    value = float(apart.mean())
    low, high = centred_interval(value, left.resampled - right.resampled, CONFIDENCE)
    signs = torch.from_numpy(np.random.default_rng(seed).integers(2, size=(flips, len(apart)), dtype=np.int8))
    permuted = (2 * signs - 1).double() @ apart / len(apart)
    return Difference(value, low, high, permutation_p(abs(value), permuted.abs()), len(apart))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (S. Holm, Scand. J. Stat. 6, 1979).

    The i-th smallest of m is multiplied by m - i + 1, is at least the one before it, and at most 1.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def _draw(stimuli: int) -> Float[Tensor, "b u"]:
    return bootstrap_weights(stimuli, BOOTSTRAPS, np.random.default_rng(0))


def _mean_of_trials(values: Float[Tensor, "n b"], which: Int[Tensor, " n"]) -> Float[Tensor, "u b"]:
    counts = torch.bincount(which)
    total = torch.zeros(len(counts), values.shape[1], dtype=torch.float64).index_add_(0, which, values)
    return total / counts[:, None]


def _resampled_ranks(targets: Targets, chunk: Chunk, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Better, tied and all distractors of each query in each bootstrap sample, ``(c, B)`` each."""
    item_which = torch.from_numpy(targets.item_which)
    of_items = torch.where(item_which >= 0, weights[:, item_which.clamp(min=0)], 1.0)
    own = chunk.value.gather(1, chunk.which[:, None])
    others = item_which[None] != chunk.which[:, None]
    better, tied = ((mask & others).to(of_items.dtype) @ of_items.T for mask in (chunk.sims > own, chunk.sims == own))
    # a sample of one stimulus alone has no distractor, and no better one either
    total = (of_items.sum(1) - weights[:, chunk.which].T).clamp(min=1)
    return better.double(), tied.double(), total.double()
