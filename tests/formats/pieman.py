"""Writes ``weights.mat`` as HyperTools carries it, only smaller: a row of cells, one matrix for each person."""

from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

Array = np.ndarray[Any, Any]


def content(*, people: int = 4, volumes: int = 60, factors: int = 6, noise: float = 1.0, seed: int = 0) -> list[Array]:
    """Time series ``(T, factors)`` of each person: what all share, at other gains, and noise."""
    random = np.random.default_rng(seed)
    story = random.standard_normal((volumes, factors)).cumsum(axis=0)
    return [
        (5 + random.uniform(0.5, 2) * (story + noise * random.standard_normal(story.shape))).astype(np.float32)
        for _ in range(people)
    ]


def cell(matrices: list[Any]) -> Array:
    """A row of cells."""
    cells = np.empty((1, len(matrices)), object)
    for i, matrix in enumerate(matrices):
        cells[0, i] = matrix
    return cells


def write(root: Path, **options: Any) -> Path:
    """Write the file below ``root`` with ``content(**options)``."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / "weights.mat"
    scipy.io.savemat(path, {"weights": cell(content(**options))}, do_compression=True)
    return path
