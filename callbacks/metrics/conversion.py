"""Scores of a retrieval by what was retrieved: the published two-way, and one modality relative to another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from callbacks.metrics.ranks import CHANCE_TWO_WAY
from callbacks.metrics.resampling import Estimate, bootstrap_weights, few_stimuli, permutation_p, wilson
from callbacks.metrics.resampling import permutations as draw_permutations
from callbacks.metrics.similarity import similarities, unit_rows


@dataclass(frozen=True)
class Retrieved:
    """What was retrieved for each query, and what should have been.

    Attributes:
        embedding: ``(n, d)`` image embedding of what was retrieved.
        stimulus: ``(n,)`` the picture that each query is about.
        gallery: ``(G, d)`` image embeddings of the pictures of the queries, each once, and of any distractors.
        gallery_stimulus: ``(G,)``.
    """

    embedding: Float[Tensor, "n d"]
    stimulus: Int64[Tensor, " n"]
    gallery: Float[Tensor, "g d"]
    gallery_stimulus: Int64[Tensor, " g"]

    @property
    def target(self) -> Float[Tensor, "n d"]:
        """Image embedding of the picture of each query."""
        return self.gallery[self.columns]

    @property
    def columns(self) -> Int64[Tensor, " n"]:
        """Where in the gallery the picture of each query is."""
        return columns_of(self.stimulus, self.gallery_stimulus)


def columns_of(stimulus: Int64[Tensor, " n"], gallery: Int64[Tensor, " g"]) -> Int64[Tensor, " n"]:
    """Return where each stimulus is among those of a gallery, each of which is there once."""
    order = gallery.argsort()
    return order[torch.searchsorted(gallery[order], stimulus)]


def nearest(queries: Float[Tensor, "n d"], gallery: Float[Tensor, "g d"]) -> Int64[Tensor, " n"]:
    """Return the position of the most similar item (cosine) for each query; the first of those that tie."""
    items = unit_rows(gallery, "cosine", "gallery")
    parts = unit_rows(queries, "cosine", "queries").split(1024)
    return torch.cat([similarities(part, items).argmax(dim=1) for part in parts])


def published_two_way(
    retrieved: Retrieved, *, permutations: int = 999, bootstraps: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Two-way score with one permuted distractor per trial, as published (``one_permutation_two_way``).

    Chance is that of predictions that know nothing of their targets but are the same pictures equally often: a tie
    counts as wrong, so it is (1 - sum_k (c_k / n)^2) / 2, where picture k was retrieved c_k times.

    For the p-value stimuli are permuted (all trials of stimulus s are about pi(s)), for the interval stimuli are
    resampled, so that trials of a stimulus stay together; the published permutation stays as it was drawn.

    Args:
        retrieved: Predictions and targets.
        permutations: Permutations of the stimuli for the p-value; 0 for none.
        bootstraps: Bootstrap samples of the stimuli for the interval; 0 for none.
        confidence: Coverage of the interval.
        seed: Seed of all draws, the published permutation among them.
    """
    rngs = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)]
    n = len(retrieved.stimulus)
    permutation = torch.from_numpy(rngs[0].permutation(n))
    stimuli, which = retrieved.stimulus.unique(return_inverse=True)
    u = len(stimuli)
    # each pair of pictures once: trials only look it up
    found, predicted, counts = retrieved.embedding.unique(dim=0, return_inverse=True, return_counts=True)
    targets = unit_rows(retrieved.gallery[columns_of(stimuli, retrieved.gallery_stimulus)], "cosine", "targets")
    sims = similarities(targets, unit_rows(found, "cosine", "retrieved"))

    def won(about: Tensor) -> Tensor:
        """Whether each trial counts, where it is about these stimuli."""
        return sims[about, predicted] > sims[about, predicted[permutation]]

    trials = won(which).double()
    value = float(trials.mean())
    low = high = p = None
    if bootstraps:
        weights = bootstrap_weights(u, bootstraps, rngs[1])[:, which].double()
        error = float(((weights @ trials) / weights.sum(dim=1)).var())
        size = value * (1 - value) / error if error > 0 and 0 < value < 1 else float(u)
        low, high = wilson(value * size, size, confidence)
    if permutations:
        shuffles = draw_permutations(u, permutations, rngs[2])
        null = [float(won(shuffle.long()[which]).double().mean()) for shuffle in shuffles]
        p = permutation_p(value, torch.tensor(null, dtype=torch.float64))
    chance = float((1 - (counts.double() / n).square().sum()) / 2)
    return Estimate("published_two_way", value, low, high, p, chance, n, u, few_stimuli(u))


def relative_two_way(
    conversion: Retrieved, decoding: Retrieved, *, bootstraps: int = 1000, confidence: float = 0.95, seed: int = 0
) -> list[Estimate]:
    """A conversion's exact two-way score relative to that of decoding the target modality itself.

    ``normalised_two_way``: the conversion's score divided by the decoding's (Ferrante et al. 2024); its chance is
    .5 divided by the decoding's, so a weak target makes it look good. ``chance_corrected_two_way``: (conversion - .5) /
    (decoding - .5), 0 at chance, 1 where nothing is lost; left out where the decoding is not above chance. Neither is
    defined where the decoding scores 0.

    Intervals: stimuli are resampled jointly for both scores, as queries and as distractors together, and the middle
    ``confidence`` of the ratios is taken; samples without a query or with a decoding of 0 have none.

    Args:
        conversion: What was retrieved of the target modality for recordings of the source.
        decoding: What was retrieved for recordings of the target modality themselves.
        bootstraps: Bootstrap samples; 0 gives no intervals.
        confidence: Coverage of the intervals.
        seed: Seed of the bootstrap.
    """
    everything = torch.cat([conversion.gallery_stimulus, decoding.gallery_stimulus]).unique()
    weights = bootstrap_weights(len(everything), bootstraps, np.random.default_rng(seed)) if bootstraps else None
    (value, again), (base, base_again) = (_two_way(side, everything, weights) for side in (conversion, decoding))
    if base == 0:
        return []
    n, u = len(conversion.stimulus), len(conversion.stimulus.unique())
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]

    def estimate(name: str, found: float, chance: float, replicates: Tensor) -> Estimate:
        defined = replicates[replicates.isfinite()].numpy()
        low, high = np.quantile(defined, tails).tolist() if len(defined) else (None, None)
        return Estimate(name, found, low, high, None, chance, n, u, few_stimuli(u))

    half = CHANCE_TWO_WAY
    scores = [estimate("normalised_two_way", value / base, half / base, again / base_again)]
    least = float(np.nanquantile(base_again.numpy(), tails[0])) if bootstraps else base
    if least > half:
        replicates = (again - half) / (base_again - half)
        scores.append(estimate("chance_corrected_two_way", (value - half) / (base - half), 0.0, replicates))
    return scores


def _two_way(side: Retrieved, everything: Tensor, weights: Tensor | None) -> tuple[float, Tensor]:
    """The exact two-way score and, for each bootstrap sample of the stimuli, the score of that sample.

    The score of a sample without a query is NaN.
    """
    sims = similarities(unit_rows(side.embedding, "cosine", "retrieved"), unit_rows(side.gallery, "cosine", "gallery"))
    columns = side.columns[:, None]
    own = sims.gather(1, columns)
    lost = ((sims > own).float() + 0.5 * (sims == own).float()).scatter_(1, columns, 0.0)
    value = float(1 - lost.double().sum(dim=1).mean() / (sims.shape[1] - 1))
    if weights is None:
        return value, torch.zeros(0, dtype=torch.float64)
    of_items = weights[:, torch.searchsorted(everything, side.gallery_stimulus)]
    of_queries = weights[:, torch.searchsorted(everything, side.stimulus)]
    again, total = torch.zeros(len(weights), dtype=torch.float64), of_queries.double().sum(dim=1)
    for rows in torch.arange(len(lost)).split(1024):
        others = (of_items.sum(dim=1, keepdim=True) - of_items[:, side.columns[rows]]).clamp(min=1)
        score = 1 - (of_items @ lost[rows].T) / others
        again += (of_queries[:, rows] * score).double().sum(dim=1)
    return value, again / total
