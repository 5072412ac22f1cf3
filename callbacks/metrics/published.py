"""Identification scores as published code computes them, for comparing with papers."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from callbacks.metrics.similarity import unit_rows


def one_permutation_two_way(
    predicted: Float[Tensor, "n d"], target: Float[Tensor, "n d"], permutation: Int[Tensor, " n"]
) -> float:
    """Two-way score with one distractor per trial, drawn as one permutation of the predictions.

    A trial counts when cos(target_i, predicted_i) > cos(target_i, predicted_perm(i)); ties count as wrong,
    and so does a trial that meets itself: perfect predictions score 1 - 1/N on average. This is the score
    of the code for modality-agnostic neural alignment (arXiv 2411.09723).

    Args:
        predicted: ``(n, d)`` predicted embeddings.
        target: ``(n, d)`` embeddings of the pictures seen.
        permutation: ``(n,)`` which prediction is the distractor of each trial.

    Returns:
        Share of trials in 0..1.

    Raises:
        ValueError: Rows that are not finite or have zero norm.
    """
    p, t = unit_rows(predicted, "cosine", "predicted"), unit_rows(target, "cosine", "target")
    own = torch.linalg.vecdot(t, p)
    other = torch.linalg.vecdot(t, p[permutation])
    return float((own > other).double().mean())


def clip_correlation(predicted: Float[Tensor, "n d"], target: Float[Tensor, "n d"]) -> float:
    """CLIP correlation of LEA, equal to the two-way identification of MindEye.

    For each prediction the share of the other targets that correlate less with it than its own target.
    Equal to the exact two-way score with ``pearson``, but that ties count as wrong.

    Args:
        predicted: ``(n, d)`` predicted embeddings.
        target: ``(n, d)`` embeddings of the pictures seen.

    Returns:
        Score in 0..1.

    Raises:
        ValueError: Rows that are not finite or constant, or a single row.
    """
    if len(predicted) < 2:
        raise ValueError("the score needs at least 2 rows")
    r = unit_rows(predicted, "pearson", "predicted") @ unit_rows(target, "pearson", "target").T
    return float((r < r.diagonal()[:, None]).double().sum() / (len(r) * (len(r) - 1)))
