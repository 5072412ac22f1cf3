"""SegmentMatching: do frozen features tell the moments of a story apart in other people?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from callbacks.metrics import Estimate
from callbacks.metrics.segment_matching import chance_of_matching, match_segments
from callbacks.score import Part, ScoreCallback, subjects_of, to_score
from contracts import Score


class SegmentMatching(ScoreCallback):
    """Time segment matching between halves of the tested people (``callbacks.metrics.segment_matching``).

    For data in which everyone perceived the same moments (stimuli) in the same order. Folds of people are joined, so
    that each person's features come from a model that never saw this person; where folds are joined, features must
    lie in one space, such as ``predicted_signal``.

    Args:
        query: Output to compare: ``latent``, ``predicted_signal``, or ``signal`` for the recordings themselves.
        neighbours: Moments before and after one that overlap it.
        halves: Random divisions of the people in two; the interval spans the middle 95 % of them.
        seed: Seed of the divisions.
    """

    def __init__(
        self,
        query: Literal["latent", "predicted_signal", "signal"] = "predicted_signal",
        neighbours: int = 0,
        halves: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.needs = frozenset({query})
        self.query = query
        self.neighbours = neighbours
        self.halves = halves
        self.seed = seed

    def evaluate(self, parts: Sequence[Part], *, resample: bool = True) -> list[Score]:
        """Match moments between halves of all people of all parts."""
        people = subjects_of(parts)
        features, moments = [], []
        for part in parts:
            for outputs in part.outputs.values():
                order = outputs["stimulus"].argsort()
                moments.append(outputs["stimulus"][order])
                features.append(outputs[self.query][order].flatten(1).numpy())
        common = all(len(own) == len(moments[0]) and bool((own == moments[0]).all()) for own in moments)
        if len(people) < 2 or not common or len(moments[0]) < self.neighbours + 2:
            rank_zero_info(
                f"SegmentMatching needs 2 people and the same {self.neighbours + 2} moments in all, found "
                f"{len(people)} people and {sorted({len(own) for own in moments})} moments; no score"
            )
            return []
        found = match_segments(
            np.stack(features),
            neighbours=self.neighbours,
            halves=self.halves if resample else 1,
            seed=self.seed,
        )
        low, high = np.quantile(found, [0.025, 0.975])
        number = len(moments[0])
        estimate = Estimate(
            name=f"segments_of_{self.query}",
            value=float(found.mean()),
            low=float(low) if resample else None,
            high=float(high) if resample else None,
            p_value=None,
            chance=chance_of_matching(number, self.neighbours),
            n=len(people) * number,
            stimuli=number,
            note=f"{len(found)} random halves of {len(people)} people",
        )
        return [to_score(estimate, parts, subject="halves", ceiling=None, reason="")]
