"""A folder of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write(folder: Path, *, number: int, side: int = 24) -> None:
    """Write random pictures, each of another colour, as JPEG and PNG in turns."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(number):
        picture = random.integers(0, 60, (side, side, 3)) + random.integers(0, 190, 3)
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{i:03d}.{('jpg', 'png')[i % 2]}")
