"""InfoNCE in numpy, row by row, and embeddings of pictures that come more than once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contracts import NO_LABEL

Array = np.ndarray[Any, Any]
NORMALISE = ("none", "image", "brain", "both")
DIRECTION = ("brain_to_image", "image_to_brain", "symmetric")
POSITIVES = ("none", "stimulus", "label")
DUPLICATES = ("removed", "negatives")
FORMS = ("fixed", "exp", "softplus", "raw")

# stimulus 3 three times, 5 twice; classes: 3 and 8 share class 0, 1 and 5 share class 1, the others have none
STIMULUS = torch.tensor([3, 5, 3, 8, 1, 2, 5, 3, 9])
LABEL = torch.tensor([0, 1, 0, 0, 1, NO_LABEL, 1, 0, NO_LABEL])


def embeddings(rows: int = len(STIMULUS), width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    brain, image = (torch.randn(rows, width, generator=generator) for _ in range(2))
    return 1.3 * brain, 0.7 * image + 0.5


def different_pictures(rows: int) -> dict[str, Tensor]:
    return {"stimulus": torch.arange(rows), "label": torch.full((rows,), NO_LABEL)}


def one_way(
    asking: Array, asked: Array, stimulus: Array, label: Array, *, scale: float, positives: str, duplicates: str
) -> float:
    """The formula of the class docstring, row by row in float64."""
    total = 0.0
    for i in range(len(asking)):
        candidates, belonging = [], []
        for j in range(len(asked)):
            logit = scale * float(np.dot(asking[i], asked[j]))
            same_picture = stimulus[i] == stimulus[j]
            same_class = label[i] == label[j] and label[i] != -1
            positive = {"none": i == j, "stimulus": same_picture, "label": same_picture or same_class}[positives]
            if positive:
                belonging.append(logit)
            if positive or not (same_picture and duplicates == "removed"):
                candidates.append(logit)
        largest = max(candidates)
        total += largest + math.log(sum(math.exp(c - largest) for c in candidates)) - sum(belonging) / len(belonging)
    return total / len(asking)


def reference(brain: Tensor, image: Tensor, *, normalise: str, direction: str, **options: Any) -> float:
    b, v = brain.double().numpy(), image.double().numpy()
    if normalise in ("brain", "both"):
        b = b / np.sqrt((b**2).sum(axis=1, keepdims=True))
    if normalise in ("image", "both"):
        v = v / np.sqrt((v**2).sum(axis=1, keepdims=True))
    pairs = STIMULUS.numpy(), LABEL.numpy()
    ways = {"brain_to_image": one_way(b, v, *pairs, **options), "image_to_brain": one_way(v, b, *pairs, **options)}
    return sum(ways.values()) / 2 if direction == "symmetric" else ways[direction]
