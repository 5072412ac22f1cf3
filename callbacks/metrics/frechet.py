"""Frechet distance between two clouds of features."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from contracts import DataError


def frechet_distance(generated: Float[Tensor, "n d"], seen: Float[Tensor, "m d"]) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of features (Heusel et al. 2017; FID).

    d^2 = |m_1 - m_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1 C_2)^(1/2) in float64, covariances divided by n - 1. With the
    centred features A and B (rows over sqrt(n - 1)) the last trace is the sum of the singular values of A B^T: no
    root of a matrix is taken, so covariances without full rank (fewer pictures than features) are no trouble. The
    distance itself is biased upwards by few pictures, and numbers of pictures or features are not to be mixed.

    Args:
        generated: ``(n, d)`` features of the generated pictures.
        seen: ``(m, d)`` features of the seen ones.

    Returns:
        The distance, at least 0.

    Raises:
        DataError: Fewer than 2 pictures on a side, other widths, or features that are not finite.
    """
    if generated.shape[1] != seen.shape[1]:
        raise DataError(f"features of generated pictures are {generated.shape[1]} wide, of seen ones {seen.shape[1]}")
    factors, means = [], []
    for name, features in (("generated", generated), ("seen", seen)):
        if len(features) < 2:
            raise DataError(f"a covariance needs at least 2 {name} pictures, there are {len(features)}; test more")
        x = features.detach().double().cpu()
        bad = int((~torch.isfinite(x).all(1)).sum())
        if bad:
            raise DataError(f"features of {bad} of {len(x)} {name} pictures are not finite; check the network")
        mean = x.mean(0)
        factor = (x - mean) / (len(x) - 1) ** 0.5
        # the triangle of A = QR has the same covariance and at most d rows
        factors.append(torch.linalg.qr(factor, mode="r").R if len(x) > x.shape[1] else factor)
        means.append(mean)
    a, b = factors
    shared = torch.linalg.svdvals(a @ b.T).sum()
    distance = (means[0] - means[1]).square().sum() + a.square().sum() + b.square().sum() - 2 * shared
    return max(float(distance), 0.0)
