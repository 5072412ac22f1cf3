"""Every identification score as a closed form of one rank.

A query is compared with a gallery; the place of the right item among all items, counted from the most
similar one, decides every score. Nothing is drawn at random: a score that others estimate with 1,000 random
draws is the expectation over those draws, and a score of tied items is the average over the tied places.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import gammaln
from torch import Tensor


class Ranks(NamedTuple):
    """Where the right item stands, query by query.

    Attributes:
        better: ``(...)`` number of gallery items strictly more similar to the query than the right one.
        tied: ``(...)`` number of other items exactly as similar as the right one.
        size: Number N of gallery items, one for all or one per query.
        right: ``(...)`` number of right items at this very place; above 1 only for classes.
    """

    better: Tensor
    tied: Tensor
    size: Tensor | int
    right: Tensor | int = 1


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def top_k(ranks: Ranks, k: int) -> Float[Tensor, " ..."]:
    """Probability that a right item is among the k most similar ones, tied items in random order.

    With b better and t tied items, m right ones and j = k - b places left it is 1 - C(t, j) / C(t + m, j);
    without ties that is [b < k].

    Args:
        ranks: Ranks of the queries.
        k: Number of places that count, at least 1.

    Returns:
        Scores in 0..1, shaped like ``ranks.better``.

    Raises:
        ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"top-k needs k >= 1, not {k}")
    left = (k - ranks.better).double().clamp(min=0)
    if isinstance(ranks.right, int) and ranks.right == 1:
        return (left / (ranks.tied + 1.0)).clamp(max=1)
    tied = torch.as_tensor(ranks.tied).double()
    places = torch.minimum(left, tied)
    right = torch.as_tensor(ranks.right, dtype=torch.float64)
    miss = torch.exp(_log_choose(tied, places) - _log_choose(tied + right, places))
    return torch.where(left > tied, 1.0, 1 - torch.where(left == 0, 1.0, miss))


def two_way(ranks: Ranks) -> Float[Tensor, " ..."]:
    """Share of distractors less similar than the right item, a tie counting one half.

    1 - (b + t/2) / (N - 1): the exact all-pairs version of the two-way identification, equal to the area
    under the ROC curve of one query.

    Args:
        ranks: Ranks of the queries; galleries of at least 2.

    Returns:
        Scores in 0..1, shaped like ``ranks.better``.

    Raises:
        ValueError: A gallery holds the right item only.
    """
    _check_size(ranks.size)
    return 1 - (ranks.better.double() + 0.5 * ranks.tied.double()) / (ranks.size - 1)


def n_way(ranks: Ranks, n: int, k: int = 1) -> Float[Tensor, " ..."]:
    """Probability that at most k - 1 of n - 1 random distractors beat the right item.

    The distractors are drawn without replacement from the other N - 1 items, so that the number X of better
    ones is hypergeometric: P(X < k) = sum_{x<k} C(r, x) C(N-1-r, n-1-x) / C(N-1, n-1) for r better items.
    With ties this is averaged over r = b .. b + t. Published code (MinD-Vis, LEA) estimates the same number
    from about 1,000 draws.

    Args:
        ranks: Ranks of the queries.
        n: Number of candidates including the right one, 2..N.
        k: Number of places that count, 1..n-1.

    Returns:
        Scores in 0..1, shaped like ``ranks.better``.

    Raises:
        ValueError: n or k out of range, or a gallery holds the right item only.
    """
    _check_size(ranks.size)
    if not 1 <= k < n:
        raise ValueError(f"n-way top-k needs 1 <= k < n, not n={n}, k={k}")
    if isinstance(ranks.size, int):
        return _n_way_one_size(ranks.better, ranks.tied, ranks.size, n, k)
    sizes = torch.broadcast_to(ranks.size, ranks.better.shape)
    score = torch.empty(ranks.better.shape, dtype=torch.float64)
    for size in torch.unique(ranks.size).tolist():
        here = sizes == size
        score[here] = _n_way_one_size(ranks.better[here], ranks.tied[here], int(size), n, k)
    return score


def _n_way_one_size(better: Tensor, tied: Tensor, size: int, n: int, k: int) -> Tensor:
    cumulative = n_way_cumulative(size, n, k)
    better, tied = better.long(), tied.long()
    return ((cumulative[better + tied + 1] - cumulative[better]) / (tied + 1)).clamp(0, 1)


@lru_cache(maxsize=64)
def n_way_cumulative(size: int, n: int, k: int) -> Float[Tensor, " places"]:
    """Running sum over r of the n-way score with r better items: entry i sums over r = 0 .. i - 1.

    Args:
        size: Gallery size N.
        n: Number of candidates including the right one.
        k: Number of places that count.

    Returns:
        ``(N + 1,)`` float64, starting with 0; shared between calls, not to be changed in place.

    Raises:
        ValueError: n exceeds the gallery.
    """
    if n > size:
        raise ValueError(f"{n}-way identification needs at least {n} gallery items, there are {size}")

    def log_choose(top: np.ndarray, bottom: int) -> np.ndarray:
        # Out of range the number of ways is 0; the clamp only keeps gammaln away from its poles.
        inside = (top >= bottom) & (bottom >= 0)
        safe = np.where(inside, top, max(bottom, 0))
        ways = gammaln(safe + 1.0) - gammaln(max(bottom, 0) + 1.0) - gammaln(safe - max(bottom, 0) + 1.0)
        return np.where(inside, ways, -np.inf)

    r = np.arange(size)
    total = log_choose(np.array([size - 1]), n - 1)
    score = sum(np.exp(log_choose(r, x) + log_choose(size - 1 - r, n - 1 - x) - total) for x in range(k))
    return torch.from_numpy(np.concatenate([[0.0], np.cumsum(np.clip(score, 0, 1))]))


def _check_size(size: Tensor | int) -> None:
    smallest = size if isinstance(size, int) else int(size.min())
    if smallest < 2:
        raise ValueError("a gallery that holds the right item only cannot be scored: add other stimuli")


def chance_top_k(size: int, k: int, members: int = 1) -> float:
    """Expected top-k score of a random order: 1 - C(N - m, k) / C(N, k), that is k / N for m = 1.

    Args:
        size: Gallery size N.
        k: Number of places that count.
        members: Number m of right items, those of the class.

    Returns:
        Chance in 0..1.
    """
    miss = 1.0
    for place in range(min(k, size)):
        miss *= max(size - members - place, 0) / (size - place)
    return 1 - miss


def chance_n_way(n: int, k: int = 1) -> float:
    """Expected n-way top-k score of a random order: k / n."""
    return k / n


CHANCE_TWO_WAY = 0.5
"""Expected two-way score of a random order."""


def classifier_n_way(
    logits: Float[Tensor, "n classes"], true_class: Int[Tensor, " n"], n: int, k: int = 1
) -> Float[Tensor, " n"]:
    """n-way top-k accuracy of a classifier, in closed form instead of random draws of distractor classes.

    The score of MinD-Vis and LEA: a classifier looks at a generated image, the true class is what it sees in
    the real one, and the n - 1 distractors come from all other classes.

    Args:
        logits: ``(n, classes)`` logits or probabilities of the generated images.
        true_class: ``(n,)`` class of the real images.
        n: Number of candidate classes including the true one.
        k: Number of places that count.

    Returns:
        ``(n,)`` accuracies in 0..1, one per image.

    Raises:
        ValueError: A logit is not a number, or n or k is out of range.
    """
    if bool(torch.isnan(logits).any()):
        raise ValueError(f"logits hold NaN in {int(torch.isnan(logits).any(1).sum())} of {len(logits)} rows")
    right = logits.gather(1, true_class[:, None])
    better = (logits > right).sum(1)
    tied = (logits == right).sum(1) - 1
    return n_way(Ranks(better, tied, logits.shape[1]), n, k)
