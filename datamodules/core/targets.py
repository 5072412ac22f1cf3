"""Target transforms: what is done to embeddings before a stage sees them, fitted on training stimuli."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from contracts import DataError

Array = NDArray[Any]
_PCA = re.compile(r"pca\((\d+)(?:,\s*(whiten))?\)")


@dataclass(frozen=True)
class TargetTransform:
    """A fitted transform: an optional normalisation to length 1 and affine steps, in order.

    Attributes:
        steps: ``("unit",)`` or ``("affine", offset (D,), matrix (D, K) or scale (D,))``.
    """

    steps: tuple[tuple[Any, ...], ...] = ()

    def for_texts(self, texts: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """Transform embeddings of texts, about their own mean where pictures are transformed about theirs.

        Texts and pictures lie on two sides of a gap (Liang et al. 2022, Mind the gap), so that about the mean of the
        pictures all texts would look alike.
        """
        x = texts.astype(np.float64)
        steps: list[tuple[Any, ...]] = []
        for kind, *values in self.steps:
            step = (kind, x.mean(axis=0), values[1]) if kind == "affine" else (kind,)
            x = TargetTransform((step,))(x).astype(np.float64)
            steps.append(step)
        return x.astype(np.float32)

    def __call__(self, embedding: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """Transform embeddings ``(N, D)`` to targets ``(N, K)``, float32."""
        x = embedding.astype(np.float64)
        for kind, *values in self.steps:
            if kind == "unit":
                length = np.linalg.norm(x, axis=1, keepdims=True)
                if not length.all():
                    raise DataError(
                        f"target 'unit': {int((length == 0).sum())} of {len(x)} embeddings have length 0 and so no "
                        "direction; put center| before it in --data.init_args.embedding.target"
                    )
                x = x / length
            else:
                offset, factor = values
                x = (x - offset) @ factor if factor.ndim == 2 else (x - offset) * factor
        return x.astype(np.float32)


def fit_target(spec: str, embedding: Float[np.ndarray, "n d"]) -> TargetTransform:
    """Fit a target transform on the embeddings of the training stimuli ``(N, D)``, each stimulus once.

    Args:
        spec: ``none``, ``unit`` (length 1), ``center``, ``zscore`` (constant dimensions become 0),
            ``pca(k)`` (the first k principal components), ``pca(k, whiten)`` (scaled to variance 1), or
            several joined by ``|``.
        embedding: Embeddings to fit on.

    Raises:
        DataError: An unknown name, or more components than the training stimuli allow.
    """
    transform = TargetTransform()
    for name in (part.strip() for part in spec.split("|")):
        x = transform(embedding).astype(np.float64)
        transform = TargetTransform((*transform.steps, *_fit_step(name, x)))
    return transform


def _fit_step(name: str, x: Array) -> tuple[tuple[Any, ...], ...]:
    if name == "none":
        return ()
    if name == "unit":
        return (("unit",),)
    mean = x.mean(axis=0)
    if name == "center":
        return (("affine", mean, np.ones_like(mean)),)
    if name == "zscore":
        std = x.std(axis=0)
        varies = std > 1e-6 * np.abs(x).max()
        return (("affine", mean, np.where(varies, 1 / np.where(varies, std, 1), 0)),)
    match = _PCA.fullmatch(name)
    if match is None:
        raise DataError(
            f"target transform {name!r} is not one of none, unit, center, zscore, pca(k), pca(k, whiten); "
            "change --data.init_args.embedding.target"
        )
    components = int(match[1])
    rank = min(x.shape[0] - 1, x.shape[1])
    if 0 < components <= rank:
        pca = PCA(components, svd_solver="full").fit(x)
        # rounding leaves some variance where there is none
        rank = int((pca.singular_values_ > 1e-6 * pca.singular_values_[0]).sum())
    if not 0 < components <= rank:
        raise DataError(
            f"target {name!r}: {x.shape[0]} training stimuli of {x.shape[1]} numbers allow {rank} components, "
            f"asked for {components}; change --data.init_args.embedding.target"
        )
    scale = 1 / np.sqrt(pca.explained_variance_) if match[2] else np.ones(components)
    return (("affine", mean, pca.components_.T * scale),)
