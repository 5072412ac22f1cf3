"""Writes ``digit69_28x28.mat`` as van Gerven et al. (2010) are publicly copied, only smaller."""

from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

Array = np.ndarray[Any, Any]


def digits(number: int, seed: int = 0) -> tuple[Array, Array]:
    """Sixes (a ring below a stroke) and nines (a ring above it), ``(n, 28, 28)`` uint8, and their codes 1 and 2."""
    random = np.random.default_rng(seed)
    code = np.arange(number) % 2 + 1
    y, x = np.mgrid[:28, :28]
    pictures = np.zeros((number, 28, 28))
    for picture, kind in zip(pictures, code, strict=True):
        row, column, radius = (18 if kind == 1 else 9) + random.normal(0, 1), 13 + random.normal(0, 2), 5
        distance = np.hypot(y - row, x - column)
        picture += np.exp(-((distance - radius) ** 2) / random.uniform(1, 4))
        side = column + (-radius if kind == 1 else radius)
        stroke = (y < row) if kind == 1 else (y > row)
        picture += np.exp(-((x - side) ** 2) / 3) * stroke * (np.abs(y - row) < 13)
    return (255 * np.clip(pictures, 0, 1)).astype(np.uint8), code


def content(*, train: int = 12, test: int = 4, voxels: int = 20, noise: float = 0.3, seed: int = 0) -> dict[str, Array]:
    """The arrays of the file: every voxel weighs the pixels of the picture that was seen."""
    random = np.random.default_rng([seed, 1])
    pictures, code = digits(train + test, seed)
    # as in MATLAB, column by column
    stimulus = pictures.transpose(0, 2, 1).reshape(len(pictures), 784)
    pixels = (stimulus - stimulus.mean(axis=0)) / 255
    response = pixels @ random.standard_normal((784, voxels)) / 5
    signal = response + noise * random.standard_normal(response.shape)
    arrays = {"fmri": signal, "stim": stimulus, "label": code[:, None].astype(np.uint8)}
    return {
        f"{key}{part}": array[rows]
        for part, rows in (("Trn", slice(train)), ("Test", slice(train, None)))
        for key, array in arrays.items()
    }


def write(root: Path, **options: Any) -> Path:
    """Write the file below ``root`` with ``content(**options)``."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / "digit69_28x28.mat"
    scipy.io.savemat(path, content(**options), do_compression=True)
    return path
