"""Similarities of queries and gallery items, in float64 and chunk by chunk."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Similarity = Literal["cosine", "pearson"]

# Adding and subtracting 1.5 * 2^12 rounds a double in -1..1 to a multiple of 2^-40 (about 1e-12).
_ROUNDING = 1.5 * 2.0**12


def unit_rows(x: Float[Tensor, "n d"], similarity: Similarity, name: str) -> Float[Tensor, "n d"]:
    """Return the rows in float64 with unit length (and zero mean, for ``pearson``).

    Args:
        x: ``(n, d)`` embeddings.
        similarity: ``cosine`` or ``pearson``.
        name: What they are; used in messages.

    Returns:
        ``(n, d)`` float64, a new tensor on the CPU: the product of two such tensors is the similarity.

    Raises:
        ValueError: Unknown similarity, not a matrix, or rows that are not finite or have no direction.
    """
    if similarity not in ("cosine", "pearson"):
        raise ValueError(f"similarity is 'cosine' or 'pearson', not {similarity!r}")
    if x.ndim != 2:
        raise ValueError(f"{name} must be a matrix (items, width), not of shape {tuple(x.shape)}")
    y = x.detach().to("cpu", torch.float64, copy=True)
    norm = torch.linalg.vector_norm(y, dim=1, keepdim=True)
    _refuse(~torch.isfinite(norm), name, "are not finite", "NaN or infinity cannot be ranked")
    empty = norm == 0
    _refuse(empty, name, "have zero norm", "a vector without direction cannot be ranked")
    if similarity == "pearson":
        y -= y.mean(1, keepdim=True)
        centred = torch.linalg.vector_norm(y, dim=1, keepdim=True)
        # A constant row leaves only what rounding of its mean leaves.
        _refuse(centred <= 1e-13 * norm, name, "are constant", "a constant has no correlation")
        norm = centred
    y /= norm
    return y


def _refuse(bad: Tensor, name: str, what: str, why: str) -> None:
    count = int(bad.sum())
    if count:
        raise ValueError(f"{name}: {count} of {bad.numel()} rows {what}; {why}")


def similarities(queries: Float[Tensor, "c d"], gallery: Float[Tensor, "g d"]) -> Float[Tensor, "c g"]:
    """Products of unit rows, rounded to 2^-40.

    The rounding makes items tie that are equal but for the order of a sum: the same embedding twice in a
    gallery, or the same pair in a chunk of another size.
    """
    product = queries @ gallery.T
    product += _ROUNDING
    product -= _ROUNDING
    return product
