"""The pictures of a store: where each one is, its hash, and how it is read.

The column ``image`` of ``stimuli.tsv`` names the place of a picture:

================================ =======================================================================
``stimuli-00.npy#7``             row 7 of a file of the store, for pictures that came as arrays
``nsd_stimuli.hdf5#imgBrick#7``  row 7 of a table in an HDF5 file that stays where it is under ``root``
``images/test/cat.jpg``          a picture file that stays where it is under ``root``
================================ =======================================================================
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from jaxtyping import UInt8
from numpy.typing import NDArray

from contracts import DataError
from datamodules.core.raw import HDF5Pictures, Stimuli
from datamodules.core.readers import existing, image_size, load_image, load_npy, open_hdf5

Array = NDArray[Any]
PACK = re.compile(r"(stimuli-\d+\.npy)#(\d+)")
TABLE = re.compile(r"(.+\.(?:hdf5|h5))#(.+)#(\d+)")


class StimulusPictures:
    """Reads pictures by their place; files are mapped or opened on first use, anew in each process.

    Args:
        folder: The store.
        root: Where pictures that stayed in their raw folder are found.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        self.root = root
        self._forget()

    def image(self, place: str) -> UInt8[np.ndarray, "h w 3"]:
        """Return a picture as RGB.

        Raises:
            DataError: The file is missing, damaged, or not the one that the store was made from.
        """
        table, row = self._table(place)
        if table is None:
            return load_image(self.root / place)
        image = _picture(table, row) if isinstance(table, h5py.Dataset) else table[row]
        return np.ascontiguousarray(image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1))

    def size(self, place: str) -> tuple[int, int]:
        """Return height and width of a picture; pixels are not read.

        Raises:
            DataError: As ``image``.
        """
        table, _ = self._table(place)
        if table is None:
            return image_size(self.root / place)
        height, width = table.shape[2:] if _channels_first(table.shape) else table.shape[1:3]
        return int(height), int(width)

    def _table(self, place: str) -> tuple[Array | h5py.Dataset | None, int]:
        """What holds the picture and its row there; None for a picture file."""
        if os.getpid() != self._process:
            self._forget()  # HDF5 files that were opened before a fork are not shared
        if match := PACK.fullmatch(place):
            name, row = match[1], int(match[2])
            if name not in self._open:
                self._open[name] = load_npy(self.folder / name, mmap=True)
            return self._open[name], row
        if match := TABLE.fullmatch(place):
            key, row = f"{match[1]}#{match[2]}", int(match[3])
            if key not in self._open:
                self._open[key] = open_pictures(self.root / match[1], match[2])
            check_rows(self._open[key], [row])
            return self._open[key], row
        return None, 0

    def _forget(self) -> None:
        self._process = os.getpid()
        self._open: dict[str, Array | h5py.Dataset] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: open files are not sent to it."""
        return {"folder": self.folder, "root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start without open files."""
        self.__dict__ |= state
        self._forget()


def write_stimuli(folder: Path, root: Path, stimuli: Stimuli, *, pack: int) -> pd.DataFrame:
    """Return rows of ``stimuli.tsv``; pictures that came as arrays are written into the store.

    Args:
        folder: The store.
        root: The raw folder; files are recorded relative to it.
        stimuli: Pictures, or whatever else was perceived.
        pack: Number of the file that arrays are written to.

    Raises:
        DataError: Fields of different lengths, pictures that are missing or of another type.
    """
    for name, column in (("image", stimuli.image), ("label", stimuli.label), ("caption", stimuli.caption)):
        if column is not None and len(column) not in ((0, len(stimuli.id)) if name != "image" else (len(stimuli.id),)):
            raise DataError(f"stimuli: {len(stimuli.id)} ids, but {len(column)} entries in {name!r}")
    if stimuli.image is None:
        places = [""] * len(stimuli.id)
        hashes = [hashlib.sha256(name.encode()).hexdigest() for name in stimuli.id]
    elif isinstance(stimuli.image, np.ndarray):
        images = stimuli.image
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] != 3):
            raise DataError(
                f"stimuli: pictures must be uint8 (N, H, W, 3) or (N, H, W), found {images.dtype} {images.shape}"
            )
        file = f"stimuli-{pack:02d}.npy"
        np.save(folder / file, images, allow_pickle=False)
        places = [f"{file}#{i}" for i in range(len(images))]
        hashes = [_hash(image) for image in images]
    elif isinstance(stimuli.image, HDF5Pictures):
        pictures = stimuli.image
        file = _relative(pictures.path, root)
        places = [f"{file}#{pictures.dataset}#{row}" for row in pictures.rows]
        hashes = [_hash(image) for image in _pictures(pictures)]
    else:
        _check_files(stimuli.image)
        places = [_relative(path, root) for path in stimuli.image]
        hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in stimuli.image]
    blank = [""] * len(stimuli.id)
    return pd.DataFrame(
        {
            "id": list(stimuli.id),
            "image": places,
            "sha256": hashes,
            "class": list(stimuli.label) or blank,
            "caption": list(stimuli.caption) or blank,
        }
    )


def _hash(image: Array) -> str:
    """The same for equal pixels, from an array or an HDF5 file."""
    return hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()


def _check_files(paths: Sequence[Path]) -> None:
    missing = [path for path in paths if not path.is_file()]
    if not missing:
        return
    try:
        existing(missing[0])
    except DataError as error:
        raise DataError(
            f"stimulus without image: {len(missing)} of {len(paths)} picture files are missing, the first: {error}"
        ) from None


def _relative(path: Path, root: Path) -> str:
    try:
        return path.absolute().relative_to(root.absolute()).as_posix()
    except ValueError:
        return path.absolute().as_posix()


# ---- tables of pictures in HDF5 files --------------------------------------------------------------


def open_pictures(path: Path, dataset: str) -> h5py.Dataset:
    """Open a table of pictures; its file stays open as long as the table is in use.

    Raises:
        DataError: Missing or damaged file, no such table, or no table of pictures.
    """
    if not TABLE.fullmatch(f"{path.name}#{dataset}#0"):
        raise DataError(f"{path}: a file of pictures is named .hdf5 or .h5; rename it")
    file = open_hdf5(path)
    table = file.get(dataset)
    if not isinstance(table, h5py.Dataset):
        raise DataError(f"{path}: no table {dataset!r}; found {', '.join(map(repr, file)) or 'nothing'}")
    shape, dtype = table.shape, table.dtype
    colour = len(shape) == 4 and (shape[-1] == 3 or _channels_first(shape))
    if not (colour or len(shape) == 3) or not (dtype == np.uint8 or dtype.kind == "f"):
        raise DataError(
            f"{path}: {dataset!r} must hold pictures (N, H, W, 3), (N, 3, H, W) or (N, H, W), uint8 or floating point "
            f"in 0..1, found {dtype} {shape}"
        )
    return table


def check_rows(table: h5py.Dataset, rows: Sequence[int]) -> None:
    """Raise a ``DataError`` unless the table has all of these rows."""
    outside = [row for row in rows if not 0 <= row < len(table)]
    if outside:
        raise DataError(
            f"{table.file.filename}: {len(outside)} of {len(rows)} pictures are missing, the first is number "
            f"{outside[0]} (from 0), but {table.name.lstrip('/')!r} holds {len(table)}; fetch the whole file"
        )


def _pictures(pictures: HDF5Pictures) -> Iterator[Array]:
    table = open_pictures(pictures.path, pictures.dataset)
    with table.file:
        check_rows(table, pictures.rows)
        for row in pictures.rows:
            yield _picture(table, row)


def _picture(table: h5py.Dataset, row: int) -> Array:
    """One picture, uint8 ``(H, W, 3)`` or ``(H, W)``."""
    try:
        image: Array = table[row]
    except OSError as error:
        raise DataError(
            f"cannot read picture {row} of {table.file.filename}: {error}; the file is truncated or damaged, fetch it "
            "again"
        ) from error
    if image.dtype.kind == "f":
        # not (...): NaN is refused, too
        if not (image.min() >= 0 and image.max() <= 1):
            raise DataError(f"{table.file.filename}: picture {row} must be in 0..1, found {image.min()}..{image.max()}")
        image = np.rint(image.astype(np.float32) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(image, 0, -1) if _channels_first(table.shape) else image)


def _channels_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[1] == 3 != shape[-1]
