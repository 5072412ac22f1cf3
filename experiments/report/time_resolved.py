"""When does a recording tell what was seen? Linear decoding from all sensors at one time after the other.

References:
    King & Dehaene (2014), Characterizing the dynamics of mental representations: the temporal generalization method,
    Trends in Cognitive Sciences 18, 203-210.
    Haufe et al. (2014), On the interpretation of weight vectors of linear models in multivariate neuroimaging,
    NeuroImage 87, 96-110: the pattern of a linear decoder is the covariance of the inputs times its weights.
    Nichols & Holmes (2002), Nonparametric permutation tests for functional neuroimaging, Human Brain Mapping 15, 1-25:
    the largest score over all times of each permutation corrects for the number of times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from callbacks.metrics.resampling import permutation_p, permutations
from datamodules.core.loading import Samples
from lightning_modules.networks.ridge import CoMoments, fold_of, solve_ridge

Array = NDArray[Any]
WIDTH = 0.03
"""Seconds over which the signal of a sensor is averaged: fine enough for evoked responses, and less noise."""
WINDOWS = 60
"""At most so many times; they lie further apart where a recording is long."""
PERMUTATIONS = 500
FOLDS = 5
"""Of the cross-validation that chooses the penalty, at each time anew."""
MEMORY = 2**29
"""Bytes of statistics that are held at a time; more times are taken in several passes over the recording."""
BATCH = 256
FEW = 10
"""With fewer stimuli than this, samples are permuted."""


@dataclass(frozen=True)
class Curve:
    """Decoding of one person over time.

    Attributes:
        times: ``(W,)`` centres of the windows in seconds from onset.
        score: ``(W,)`` two-way scores.
        permuted: ``(P, W)`` scores of permuted stimuli; one permutation is the same at all times.
        pattern: ``(W, C)`` activation pattern of each sensor, root mean square over the dimensions of the embedding.
        samples: Number of training samples.
        tested: Number of test samples.
        candidates: Number of stimuli, or classes, among which a sample is identified.
    """

    times: Array
    score: Array
    permuted: Array
    pattern: Array
    samples: int
    tested: int
    candidates: int


def windows(samples: int, rate: float) -> list[slice]:
    """Return where windows of ``WIDTH`` seconds lie among so many samples a second, at most ``WINDOWS``."""
    width = min(max(round(WIDTH * rate), 1), samples)
    step = -(-(samples - width + 1) // WINDOWS)
    return [slice(start, start + width) for start in range(0, samples - width + 1, step)]


def decode(
    train: Samples, test: Samples, subject: int, *, rate: float, start: float, classes: bool, seed: int = 0
) -> Curve:
    """Decode the embedding of what was seen from all sensors, at one time after the other.

    At each time, ridge regression (in closed form, float64, penalty by cross-validation over stimuli) leads from the
    mean signal of each sensor in the window to the embedding. It is fitted on the person's training samples, or on
    those of all people where the person is only tested.

    Args:
        train: Training samples, with ``embedding``.
        test: Test samples.
        subject: Number of the person.
        rate: Samples per second.
        start: Time of the first sample in seconds.
        classes: Whether embeddings stand for classes, which are then identified in place of stimuli.
        seed: Seed of the permutations.
    """
    rows, tested = ((samples.subject == subject).nonzero()[:, 0] for samples in (train, test))
    if not len(rows):
        rows = torch.arange(len(train))
    first = test[tested[:1]]
    channels, length = first["signal"].shape[1:]
    every = windows(length, rate)
    target = _Target.of(test, tested, classes, seed)
    held = 8 * FOLDS * (channels + 1) * (channels + first["embedding"].shape[1])
    size = max(MEMORY // held, 1)
    score, permuted, pattern = [], [], []
    for begin in range(0, len(every), size):
        group = every[begin : begin + size]
        moments, spread = _collect(train, rows, group)
        inputs = torch.cat([_means(batch["signal"], group) for batch in _batches(test, tested)], dim=1)
        for folds, x in zip(moments, inputs, strict=True):
            total = reduce(CoMoments.merge, folds)
            weight, bias = torch.zeros_like(total.sxy), total.mean_y
            # sensors that are silent throughout tell nothing
            if total.sxx.diagonal().amax() > 0 and total.variation_y.amax() > 0:
                solution = solve_ridge(folds)
                weight, bias = solution.weight, solution.bias
            real, chance = target.score(x.double() @ weight + bias)
            score.append(real)
            permuted.append(chance)
            # covariance of each sensor with each decoded dimension, in units of the spread of the embedding
            pattern.append((total.sxx @ weight / total.count).square().mean(dim=1).sqrt() / spread)
    centre = [start + (window.start + window.stop - 1) / 2 / rate for window in every]
    return Curve(
        times=np.array(centre),
        score=np.array(score),
        permuted=np.stack(permuted, axis=1),
        pattern=torch.stack(pattern).numpy(),
        samples=len(rows),
        tested=len(tested),
        candidates=len(target.gallery),
    )


def corrected_p(score: Array, permuted: Array) -> Array:
    """p-value of each time ``(W,)``, corrected for their number by the largest permuted score of all times."""
    largest = torch.from_numpy(permuted.max(axis=1))
    return np.array([permutation_p(float(value), largest) for value in score])


@dataclass(frozen=True)
class _Target:
    """What is to be identified: the candidate of each sample, and candidates of permuted stimuli.

    Attributes:
        gallery: ``(G, D)`` embeddings of the candidates.
        unit: ``(n,)`` which stimulus (or sample) each query is.
        right: ``(u,)`` candidate of each stimulus.
        shuffles: ``(P, u)`` permutations of the stimuli.
    """

    gallery: Tensor
    unit: Array
    right: Array
    shuffles: Array

    @classmethod
    def of(cls, test: Samples, rows: Tensor, classes: bool, seed: int) -> _Target:
        batches = [(batch["stimulus"], batch["label"], batch["embedding"]) for batch in _batches(test, rows)]
        stimulus, label, embedding = (torch.cat(column) for column in zip(*batches, strict=True))
        _, row, candidate = np.unique((label if classes else stimulus).numpy(), return_index=True, return_inverse=True)
        names, unit = np.unique(stimulus.numpy(), return_inverse=True)
        if len(names) < FEW:
            unit = np.arange(len(stimulus))
        _, first = np.unique(unit, return_index=True)
        shuffles = permutations(len(first), PERMUTATIONS, np.random.default_rng(seed)).long().numpy()
        return cls(embedding[torch.from_numpy(row)], unit, candidate[first], shuffles)

    def score(self, decoded: Tensor) -> tuple[float, Array]:
        """Two-way score of decoded embeddings ``(n, D)``, and those ``(P,)`` of permuted stimuli.

        The share of the other candidates that are less similar than the right one, ties by half: (rank from below - 1)
        / (G - 1).
        """
        ranks = rankdata(_cosines(decoded, self.gallery).numpy(), axis=1)
        of_each = (ranks - 1) / (ranks.shape[1] - 1)
        # summed over the samples of a stimulus, for every candidate that it might be
        summed = np.zeros((len(self.right), of_each.shape[1]))
        np.add.at(summed, self.unit, of_each)
        everyone = np.arange(len(self.right))
        permuted: Array = summed[everyone, self.right[self.shuffles]].sum(axis=1) / len(of_each)
        return float(summed[everyone, self.right].sum() / len(of_each)), permuted


def _collect(
    train: Samples, rows: Tensor, group: Sequence[slice], divided: Literal["stimulus", "row"] = "stimulus"
) -> tuple[list[list[CoMoments]], Tensor]:
    """Statistics of each window and fold in one pass, and the root mean square SD of the embedding's dimensions."""
    moments: list[list[CoMoments]] = []
    for batch in _batches(train, rows):
        inputs, targets = _means(batch["signal"], group), batch["embedding"]
        fold = fold_of(batch[divided], FOLDS)
        if not moments:
            sizes = inputs.shape[2], targets.shape[1]
            moments = [[CoMoments.empty(*sizes) for _ in range(FOLDS)] for _ in group]
        for own, x in zip(moments, inputs, strict=True):
            for number in fold.unique().tolist():
                own[number].update(x[fold == number], targets[fold == number])
    if divided == "stimulus" and sum(fold.count > 0 for fold in moments[0]) < 2:
        # so few stimuli that one fold has them all
        return _collect(train, rows, group, "row")
    total = reduce(CoMoments.merge, moments[0])
    return moments, (total.variation_y / total.count).mean().sqrt()


def _cosines(left: Tensor, right: Tensor) -> Tensor:
    """Cosine of all pairs of rows, ``(n, D)`` and ``(m, D)`` -> ``(n, m)``, float64; 0 for a row of zeros."""
    unit = [torch.nn.functional.normalize(rows.double(), dim=1) for rows in (left, right)]
    return unit[0] @ unit[1].T


def _means(signal: Tensor, group: Sequence[slice]) -> Tensor:
    """Mean signal of each sensor in each window: ``(n, C, T)`` -> ``(W, n, C)``."""
    return torch.stack([signal[:, :, window].mean(dim=2) for window in group])


def _batches(samples: Samples, rows: Tensor) -> Iterator[Any]:
    for part in rows.split(BATCH):
        yield samples[part]
