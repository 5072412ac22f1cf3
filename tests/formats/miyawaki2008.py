"""Writes ``V1_mean_figure.mat`` of Miyawaki et al. (2008), only smaller."""

from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

Array = np.ndarray[Any, Any]


def figures(number: int, seed: int = 0) -> Array:
    """Different binary pictures ``(n, 10, 10)``, none of them symmetric under transposition."""
    random = np.random.default_rng(seed)
    pictures = np.zeros((number, 10, 10), np.uint8)
    for index, picture in enumerate(pictures):
        picture[1 + index % 8, 2:9] = 1
        picture[2:8, 1 + (index // 2) % 8] = 1
        picture[random.integers(10, size=6), random.integers(10, size=6)] = 1
    return pictures


def content(
    *, number: int = 10, repetitions: int = 4, voxels: int = 20, noise: float = 0.3, seed: int = 0
) -> dict[str, Array]:
    """The arrays of the file, trials as columns: each figure once in every round, in another order."""
    random = np.random.default_rng([seed, 1])
    pictures = figures(number, seed)
    order = np.concatenate([random.permutation(number) for _ in range(repetitions)])
    # as in MATLAB, column by column
    pixels = pictures.transpose(0, 2, 1).reshape(number, 100)
    response = (pixels - pixels.mean(axis=0)) @ random.standard_normal((100, voxels)) / 3
    signal = response[order] + noise * random.standard_normal((len(order), voxels))
    return {"R2": signal.T.copy(), "I2": pixels[order].T.copy()}


def write(root: Path, **options: Any) -> Path:
    """Write the file below ``root`` with ``content(**options)``."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / "V1_mean_figure.mat"
    scipy.io.savemat(path, content(**options), do_compression=True)
    return path
