"""Encoding: how well are the signals predicted?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.metrics import encoding
from callbacks.score import Part, ScoreCallback, subjects_of, to_score
from contracts import Score


class Encoding(ScoreCallback):
    """Pearson correlation of predicted and measured signal over test samples, per voxel.

    Mean, median and share above a threshold over voxels, and relative to the noise ceiling where the data set
    gives one; formulas in ``callbacks.metrics.pearson``.

    Args:
        threshold: Correlation above which a voxel counts as predicted.
        permutations: Permutations of the stimuli for the p-value.
        bootstraps: Bootstrap samples of stimuli for the interval.
        seed: Seed of both.
    """

    needs = frozenset({"signal", "predicted_signal"})

    def __init__(self, threshold: float = 0.3, permutations: int = 999, bootstraps: int = 1000, seed: int = 0) -> None:
        super().__init__()
        self.threshold = threshold
        self.permutations = permutations
        self.bootstraps = bootstraps
        self.seed = seed

    def evaluate(self, parts: Sequence[Part], *, resample: bool = True) -> list[Score]:
        """Correlate each person's signals over all test samples."""
        scores: list[Score] = []
        for subject in subjects_of(parts):
            outputs = [part.outputs[subject] for part in parts if subject in part.outputs]
            if sum(len(output["row"]) for output in outputs) < 2:
                rank_zero_warn(f"sub-{subject} has a single sample in this run, so there is nothing to correlate")
                continue
            ceiling = parts[0].context.encoding_ceiling.get(subject) if len(parts) == 1 else None
            estimates = encoding(
                *(torch.cat([part[name] for part in outputs]) for name in ("predicted_signal", "signal", "stimulus")),
                ceiling=ceiling,
                threshold=self.threshold,
                n_permutations=self.permutations if resample else 0,
                n_bootstraps=self.bootstraps if resample else 0,
                seed=self.seed,
            )
            reason = f"no encoding ceiling: {_reason(parts)}"
            scores += [to_score(e, parts, subject=subject, ceiling=e.ceiling, reason=reason) for e in estimates]
        return scores


def _reason(parts: Sequence[Part]) -> str:
    if parts[0].context.encoding_ceiling:
        return "it is not joined over folds"
    return "the data set gives no noise ceiling"
