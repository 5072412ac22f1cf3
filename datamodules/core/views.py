"""Views of pictures: mirrored and cropped ones, enumerated, so that each has an embedding of its own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

from contracts import DataError

Array = NDArray[Any]
RGB = UInt8[np.ndarray, "_ _ 3"]


@dataclass(frozen=True)
class ViewOptions:
    """Which views of a picture are training samples, and how large pictures in a batch are.

    Views are enumerated, not drawn: N pictures with V views are N x V samples, in an order that depends on the
    sampler alone. View 0 is the picture itself; only training pictures have others.

    Attributes:
        size: Side in pixels of the pictures in a batch: the shorter side is resized to it (smaller pictures are
            enlarged), then the middle square is kept; None keeps pictures as they are. Embeddings are made from
            views that are not resized.
        flip: Each picture and each crop also mirrored left-right.
        crops: Number of square crops beside the whole picture; their places follow from the picture's SHA-256
            and the number of the crop. They need a ``size``.
        crop: Side of a crop as a share of the picture's shorter side.

    Raises:
        DataError: ``size`` below 1, ``crops`` below 0 or without ``size``, ``crop`` outside (0, 1].
    """

    size: int | None = None
    flip: bool = False
    crops: int = 0
    crop: float = 0.875

    def __post_init__(self) -> None:
        """Refuse what cannot be made."""
        if self.size is not None and self.size < 1:
            raise DataError(f"a picture has a side of at least 1 pixel; --data.init_args.views.size is {self.size}")
        if self.crops < 0:
            raise DataError(f"--data.init_args.views.crops is a number of crops, 0 or more; found {self.crops}")
        if not 0 < self.crop <= 1:
            raise DataError(
                f"a crop is a share of the shorter side, 0 < crop <= 1; --data.init_args.views.crop is {self.crop}"
            )
        if self.crops and self.size is None:
            raise DataError(
                f"{self.crops} crops are smaller than the whole pictures, so they cannot share a batch; set "
                "--data.init_args.views.size"
            )

    @property
    def count(self) -> int:
        """V, the number of views of a training picture."""
        return (1 + self.crops) * (1 + self.flip)


ORIGINAL = ViewOptions()
"""Pictures as they are, once each."""


def view(image: RGB, sha256: str, number: int, options: ViewOptions) -> RGB:
    """Return one view of a picture, not resized; a pure function of its arguments.

    Args:
        image: The whole picture, uint8 ``(H, W, 3)``.
        sha256: Its hash.
        number: Which view, 0 to ``options.count - 1``; 0 is the picture itself.
        options: What views there are.

    Returns:
        uint8 ``(h, w, 3)``; crops are square.

    Raises:
        DataError: No view of this number.
    """
    crop, mirrored = _meaning(number, options)
    result = image
    if crop:
        top, left, side = crop_place(image.shape[0], image.shape[1], sha256=sha256, number=crop, share=options.crop)
        result = result[top : top + side, left : left + side]
    if mirrored:
        result = result[:, ::-1]
    return np.ascontiguousarray(result)


def view_key(sha256: str, number: int, options: ViewOptions) -> str:
    """Return the hash under which the embedding of a view is kept; that of view 0 is the picture's own.

    Equal views have equal keys, whatever other views the options ask for.

    Raises:
        DataError: No view of this number.
    """
    crop, mirrored = _meaning(number, options)
    if not crop and not mirrored:
        return sha256
    part = f"crop {crop} of {options.crop!r}" if crop else "whole"
    return hashlib.sha256(f"{sha256} {part}{' mirrored' * mirrored}".encode()).hexdigest()


def crop_place(height: int, width: int, *, sha256: str, number: int, share: float) -> tuple[int, int, int]:
    """Return ``(top, left, side)`` of a crop in pixels, uniform over all places inside the picture.

    Args:
        height: H of the picture.
        width: W of the picture.
        sha256: Hash of the picture.
        number: Which crop, from 1.
        share: Side of the crop as a share of the shorter side.
    """
    side = max(1, round(share * min(height, width)))
    # 64 bits for each axis: the remainder prefers no place by more than one in 10^15
    draw = hashlib.sha256(f"{sha256} crop {number}".encode()).digest()
    top, left = (int.from_bytes(draw[start : start + 8], "big") for start in (0, 8))
    return top % (height - side + 1), left % (width - side + 1), side


def fit_size(image: RGB, size: int | None) -> RGB:
    """Resize the shorter side to ``size`` pixels, antialiased, and keep the middle square; None keeps the picture.

    Args:
        image: uint8 ``(H, W, 3)``.
        size: Side in pixels.

    Returns:
        uint8 ``(size, size, 3)``.
    """
    height, width = image.shape[:2]
    if size is None or (height, width) == (size, size):
        return image
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    square = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=square))


def _meaning(number: int, options: ViewOptions) -> tuple[int, bool]:
    """Which crop (0: the whole picture) a view is, and whether it is mirrored."""
    if not 0 <= number < options.count:
        raise DataError(f"no view {number}: --data.init_args.views gives {options.count} ({options})")
    crop, mirrored = divmod(number, 1 + options.flip)
    return crop, bool(mirrored)
