"""Representational dissimilarity of brain and image embeddings, and how far the two agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata
from torch import Tensor

from callbacks.metrics import Block
from callbacks.metrics.conversion import columns_of
from callbacks.metrics.resampling import bootstrap_weights, centred_interval, permutation_p
from callbacks.metrics.similarity import similarities, unit_rows

BOOTSTRAPS = 1000
_WORK = 2e8
"""Entries of permuted matrices to look at: 999 permutations of up to 450 stimuli, fewer of more."""


@dataclass(frozen=True)
class Geometry:
    """Embeddings of the stimuli of one person, in class order.

    Attributes:
        stimuli: ``(U,)`` numbers of the stimuli, or of the classes where these are what is retrieved.
        labels: ``(U,)`` class numbers.
        brain: ``(U, D)`` brain embeddings, mean over trials.
        image: ``(U, D)`` image embeddings.
    """

    stimuli: Int[Tensor, " u"]
    labels: Int[Tensor, " u"]
    brain: Float[Tensor, "u d"]
    image: Float[Tensor, "u d"]

    @property
    def cosines(self) -> Float[Tensor, "u u"]:
        """Cosine of each brain embedding (rows) with each image embedding (columns)."""
        return similarities(unit_rows(self.brain, "cosine", "brain"), unit_rows(self.image, "cosine", "image"))


@dataclass(frozen=True)
class Agreement:
    """Spearman correlation of two dissimilarity matrices over all pairs of stimuli.

    Attributes:
        value: The correlation.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p_value: One-sided, stimuli of one matrix permuted (Mantel 1967).
        permutations: How many.
    """

    value: float
    low: float
    high: float
    p_value: float
    permutations: int


def geometry(blocks: list[Block]) -> Geometry:
    """Average the trials of each stimulus, brain embeddings as well as what is to be found in their folds.

    Args:
        blocks: Queries with their gallery, one block a fold.

    Raises:
        ValueError: A stimulus is not in the gallery.
    """
    found = []
    for block in blocks:
        assert block.queries is not None
        assert block.gallery is not None
        missing = int((~torch.isin(block.stimulus, block.gallery_stimulus)).sum())
        if missing:
            raise ValueError(f"{missing} of {len(block.stimulus)} queries are about what is not in the gallery")
        own = columns_of(block.stimulus, block.gallery_stimulus)
        found.append((block.stimulus, block.label, block.queries.double(), block.gallery[own].double()))
    stimulus, label, brain, image = (torch.cat(parts) for parts in zip(*found, strict=True))
    stimuli, which, counts = stimulus.unique(return_inverse=True, return_counts=True)
    labels = torch.zeros(len(stimuli), dtype=torch.int64).index_put_((which,), label)
    means = [
        torch.zeros(len(stimuli), side.shape[1], dtype=torch.float64).index_add_(0, which, side) / counts[:, None]
        for side in (brain, image)
    ]
    order = torch.from_numpy(np.lexsort((stimuli.numpy(), labels.numpy())))
    return Geometry(stimuli[order], labels[order], means[0][order], means[1][order])


def dissimilarity(embeddings: Float[Tensor, "u d"], name: str) -> Float[Tensor, "u u"]:
    """1 - Pearson correlation of each pair of embeddings (Kriegeskorte, Mur & Bandettini 2008)."""
    unit = unit_rows(embeddings, "pearson", name)
    return (1 - similarities(unit, unit)).fill_diagonal_(0.0)


def agreement(left: Float[Tensor, "u u"], right: Float[Tensor, "u u"], *, seed: int = 0) -> Agreement:
    """Spearman correlation of the upper triangles of two dissimilarity matrices.

    The interval resamples stimuli: a pair counts as often as the product of how often its stimuli were drawn, a
    stimulus is never paired with itself, and ranks stay those of all stimuli. For the p-value the stimuli of one matrix
    are permuted.

    Args:
        left: ``(U, U)`` symmetric, U at least 3.
        right: The same shape.
        seed: Seed of permutations and bootstrap.

    Raises:
        ValueError: Fewer than 3 stimuli, or a matrix whose entries are all the same.
    """
    u = len(left)
    if u < 3:
        raise ValueError(f"matrices of {u} stimuli cannot be correlated: it takes at least 3")
    x, y = (_standard_ranks(matrix) for matrix in (left, right))
    pairs, flat = u * (u - 1), y.flatten()
    value = float(torch.dot(x.flatten(), flat) / pairs)
    rngs = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2)]
    count = int(min(999, max(199, _WORK // u**2)))
    null = []
    for _ in range(count):
        order = torch.from_numpy(rngs[0].permutation(u))
        null.append(float(torch.dot(x.index_select(0, order).index_select(1, order).flatten(), flat) / pairs))
    low, high = centred_interval(value, _resampled(x, y, bootstrap_weights(u, BOOTSTRAPS, rngs[1]).double()), 0.95)
    p = permutation_p(value, torch.tensor(null, dtype=torch.float64))
    return Agreement(value, max(low, -1.0), min(high, 1.0), p, count)


def _standard_ranks(matrix: Tensor) -> Float[Tensor, "u u"]:
    """Ranks of the entries off the diagonal with zero mean and unit variance; the diagonal is 0."""
    u = len(matrix)
    upper = torch.triu_indices(u, u, offset=1)
    ranks = rankdata(matrix[upper[0], upper[1]].numpy())
    if np.ptp(ranks) == 0:
        raise ValueError(f"all {len(ranks)} dissimilarities are the same, which have no correlation")
    square = torch.zeros(u, u, dtype=torch.float64)
    square[upper[0], upper[1]] = torch.from_numpy((ranks - ranks.mean()) / ranks.std())
    return square + square.T


def _resampled(x: Tensor, y: Tensor, weights: Float[Tensor, "b u"]) -> Float[Tensor, " b"]:
    """Correlation of the ranks in each bootstrap sample of the stimuli."""

    def total(entries: Tensor) -> Tensor:
        # the sum over pairs of w_i w_j entries_ij; the diagonal is 0
        return ((weights @ entries) * weights).sum(1)

    pairs = total(1 - torch.eye(len(x), dtype=torch.float64))
    mean_x, mean_y = total(x) / pairs, total(y) / pairs
    covariance = total(x * y) / pairs - mean_x * mean_y
    variance = (total(x * x) / pairs - mean_x**2) * (total(y * y) / pairs - mean_y**2)
    # a sample of two stimuli has a single pair, and no correlation
    return (covariance / variance.clamp(min=1e-12).sqrt()).clamp(-1, 1)
