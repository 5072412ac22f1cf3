"""Reliability: do recordings, and nothing else, give pictures with meaning?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from einops import rearrange
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from callbacks.metrics.picture_pairs import Resampling, mean_of_pairs, two_way_of_pairs, unit_or_zero
from callbacks.metrics.ranks import CHANCE_TWO_WAY
from callbacks.metrics.resampling import Estimate
from callbacks.picture_reduction import GENERATED, SEEN, embed_once, embedded_pairs, has, joined, pixels_key
from callbacks.pictures import noted, pixel_pairs, reduce_pixels
from callbacks.score import Part, ScoreCallback, subjects_of, to_score
from contracts import Output, Score

CONDITIONS = {
    "real": "",
    "encoded": "encoded.",
    "shuffled": "shuffled.",
    "noise": "noise.",
}
"""Beginning of the names in the output by condition: measured recordings, recordings predicted from the picture,
shuffled recordings, noise in place of recordings."""

CONTROLS = ("shuffled", "noise")
"""Conditions that know nothing of the picture."""


def diversity(generated: Float[Tensor, "n s d"]) -> Float[Tensor, " n"]:
    """Mean distance, 1 - Pearson correlation, between the S pictures generated for one sample.

    Args:
        generated: ``(n, S, D)`` pixels or features; two without contrast count as uncorrelated.

    Returns:
        ``(n,)`` float64 in 0..2.

    Raises:
        ValueError: A single picture a sample.
    """
    samples = generated.shape[1]
    if samples < 2:
        raise ValueError("the diversity of a single picture is not defined: generate at least 2 for each sample")
    unit = rearrange(unit_or_zero(generated.flatten(0, 1), "pearson", "generated"), "(n s) d -> n s d", s=samples)
    # the square of the sum of unit rows holds each pair twice, and each row with itself
    pairs = unit.sum(1).square().sum(1) - unit.square().sum((1, 2))
    value: Tensor = 1 - pairs / (samples * (samples - 1))
    return value


class Reliability(ScoreCallback):
    """Pictures generated from recordings beside those of control conditions (LEA, reliability of generation).

    A decoder that draws convincing pictures from noise shows what it learned of pictures, not of brains. For ``real``
    and each of ``encoded``, ``shuffled`` and ``noise`` that the output has: ``<condition>_two_way``, identification of
    the seen picture in the data set's image space, or by pixels where it embeds no pictures;
    ``<condition>_diversity``, mean of 1 - Pearson correlation between the S pictures of a sample, by pixels and in that
    space; and ``<condition>_confidence``, the mean confidence, where the output has it.

    Shuffled recordings and noise are at chance where nothing leaks; an interval above chance is warned of and noted.
    So is noise that looks as confident as recordings: the interval over stimuli of the difference reaches 0.

    Args:
        pixels: Largest side at which pictures are kept, in pixels.
        permutations: Permutations of the stimuli for the p-value.
        bootstraps: Bootstrap samples of stimuli for the interval.
        seed: Seed of both.
    """

    needs = frozenset({SEEN, GENERATED})
    optional = frozenset(f"{begin}{name}" for begin in CONDITIONS.values() for name in (GENERATED, "confidence")) - {
        GENERATED
    }
    table = "pictures"
    test_is_enough = True

    def __init__(self, pixels: int = 64, permutations: int = 999, bootstraps: int = 1000, seed: int = 0) -> None:
        super().__init__()
        self.pixels = pixels
        self.permutations = permutations
        self.bootstraps = bootstraps
        self.seed = seed

    def reduce(self, outputs: Output) -> Output:
        """Keep small pixels, embeddings and confidence of each condition that is there."""
        kept: Output = {}
        embed = self._context.embed if self._context is not None else None
        if embed is not None:
            kept["embedding.seen"] = embed_once(outputs, SEEN, embed)
        for begin in CONDITIONS.values():
            generated, confidence = f"{begin}{GENERATED}", f"{begin}confidence"
            if generated not in outputs:
                continue
            kept |= reduce_pixels(outputs, size=None, pixels=self.pixels, generated=generated)
            if embed is not None:
                kept[f"embedding.{generated}"] = embed_once(outputs, generated, embed)
            if confidence in outputs:
                kept[confidence] = outputs[confidence]
        return kept

    def evaluate(self, parts: Sequence[Part], *, resample: bool = True) -> list[Score]:
        """Score each condition of each person."""
        resampling = Resampling(
            permutations=self.permutations if resample else 0,
            bootstraps=self.bootstraps if resample else 0,
            seed=self.seed,
        )
        scores: list[Score] = []
        key = pixels_key(size=None, pixels=self.pixels)
        for subject in subjects_of(parts):
            for condition, begin in CONDITIONS.items():
                if has(parts, subject, f"{key}.{begin}{GENERATED}"):
                    found = [
                        *self._two_way(parts, subject, condition, resampling),
                        *self._diversity(parts, subject, condition, resampling),
                        *self._confidence(parts, subject, condition, resampling),
                    ]
                    scores += [
                        to_score(e, parts, subject=subject, ceiling=None, reason="", gallery=gallery)
                        if not e.name.endswith("two_way")
                        else to_score(
                            e, parts, subject=subject, ceiling=None, reason="", gallery=gallery, similarity="pearson"
                        )
                        for e, gallery in found
                    ]
        return scores

    def _two_way(
        self, parts: Sequence[Part], subject: str, condition: str, resampling: Resampling
    ) -> list[tuple[Estimate, str]]:
        generated = f"{CONDITIONS[condition]}{GENERATED}"
        note = ""
        if has(parts, subject, f"embedding.{generated}"):
            space, pairs = "embedding", embedded_pairs(parts, subject, f"embedding.{generated}")
        else:
            space = "pixels"
            pairs, note = pixel_pairs(parts, subject, size=None, pixels=self.pixels, generated=generated)
        if len(pairs.items) < 2:
            rank_zero_warn(f"sub-{subject} saw a single picture in this run, so there is nothing to identify it among")
            return []
        estimate = noted(two_way_of_pairs(pairs, resampling, name=f"{condition}_two_way"), note)
        if pairs.similarity.shape[1] == 1:
            estimate = noted(estimate, "a single picture a sample: no diversity")
        if condition in CONTROLS and estimate.low is not None and estimate.low > CHANCE_TWO_WAY:
            leak = f"LEAK: pictures from {condition} recordings are identified above chance"
            rank_zero_warn(f"sub-{subject}: {leak} ({estimate.low:.3f} .. {estimate.high:.3f})")
            estimate = noted(estimate, leak)
        return [(estimate, f"{space} ({len(pairs.items)})")]

    def _diversity(
        self, parts: Sequence[Part], subject: str, condition: str, resampling: Resampling
    ) -> list[tuple[Estimate, str]]:
        generated = f"{CONDITIONS[condition]}{GENERATED}"
        stimulus = joined(parts, subject, "stimulus")
        spaces = {"pixels": f"{pixels_key(size=None, pixels=self.pixels)}.{generated}"}
        if has(parts, subject, f"embedding.{generated}"):
            spaces["embedding"] = f"embedding.{generated}"
        found: list[tuple[Estimate, str]] = []
        no_p = replace(resampling, permutations=0)
        for space, name in spaces.items():
            features = joined(parts, subject, name).flatten(2)
            if features.shape[1] > 1:
                values = diversity(features.float())[:, None]
                estimate = mean_of_pairs(f"{condition}_diversity", values, stimulus, no_p, bounds=(0.0, 2.0))
                found.append((noted(estimate, f"{features.shape[1]} samples"), space))
        return found

    def _confidence(
        self, parts: Sequence[Part], subject: str, condition: str, resampling: Resampling
    ) -> list[tuple[Estimate, str]]:
        name = f"{CONDITIONS[condition]}confidence"
        if not has(parts, subject, name):
            return []
        stimulus = joined(parts, subject, "stimulus")
        unbounded = (-math.inf, math.inf)
        values = joined(parts, subject, name)
        estimate = mean_of_pairs(f"{condition}_confidence", values, stimulus, resampling, bounds=unbounded)
        if condition == "noise" and has(parts, subject, "confidence"):
            ahead = joined(parts, subject, "confidence").mean(1) - values.mean(1)
            gap = mean_of_pairs("gap", ahead[:, None], stimulus, resampling, bounds=unbounded)
            if gap.low is not None and gap.low <= 0:
                alike = "WARNING: noise gives pictures as confident as those of recordings"
                between = f"(real - noise {gap.value:.3f}, {gap.low:.3f} .. {gap.high:.3f})"
                rank_zero_warn(f"sub-{subject}: {alike} {between}")
                estimate = noted(estimate, f"{alike} {between}")
        return [(estimate, "")]
