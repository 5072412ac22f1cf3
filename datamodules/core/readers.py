"""Readers of foreign files that never execute what they read and say clearly what is wrong.

``.npy``, ``.npz``, ``.pth`` and ``.mat`` can carry pickles or object arrays; these readers refuse them.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
import torch
from numpy.typing import NDArray
from PIL import Image

from contracts import DataError, reason_of

NO_PICKLES = (
    "It is truncated, of another format, or holds pickled objects, which are never executed; fetch the file again or "
    "export plain arrays."
)
FETCH_AGAIN = "It is truncated or of another format; fetch the file again"
"""What to do about a file that cannot be read."""


def existing(path: Path) -> Path:
    """Return ``path`` if it is a file, else raise a ``DataError`` that names the nearest existing folder."""
    if path.is_file():
        return path
    parent = next(folder for folder in (path.parent, *path.parent.parents) if folder.exists())
    found = ", ".join(sorted(entry.name for entry in parent.iterdir())[:8]) or "nothing"
    raise DataError(f"no file {path}; the folder {parent} holds: {found}")


def damaged(path: Path, reason: str, advice: str) -> DataError:
    """Return the error for a file that is there and cannot be read.

    Args:
        path: The file.
        reason: What was found wrong.
        advice: What that may mean, and what to do; a sentence.
    """
    return DataError(f"cannot read {path} ({path.stat().st_size} bytes): {reason}. {advice}")


@contextmanager
def reading(path: Path, advice: str = NO_PICKLES) -> Iterator[None]:
    """Refuse a file that is missing, and turn whatever is raised while it is read into a ``DataError``.

    Libraries report damaged files with many types: OSError, ValueError, TypeError, KeyError, EOFError, zlib.error,
    UnpicklingError ...; a hostile pickle fails in any way.

    Args:
        path: The file.
        advice: What a failure may mean, and what to do; a sentence.

    Raises:
        DataError: Missing or damaged file; those that are raised within pass as they are.
    """
    existing(path)
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise damaged(path, reason_of(error), advice) from error


def load_npy(path: Path, *, mmap: bool = False) -> NDArray[Any]:
    """Read one array from a ``.npy`` file.

    Args:
        path: The file.
        mmap: Map the file instead of reading it.

    Raises:
        DataError: Missing or truncated file, pickle or object array, not a ``.npy`` file.
    """
    with reading(path):
        array = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: expected one array (.npy), found an archive (.npz)")
    return array


def load_npz(path: Path, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read the named arrays from a ``.npz`` file.

    Raises:
        DataError: Missing or truncated file, missing key, pickle or object array.
    """
    # opened here: numpy leaves a damaged archive open
    with reading(path), path.open("rb") as stream:
        archive = np.load(stream, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise DataError(f"{path}: expected an archive (.npz), found one array (.npy)")
        _require_keys(path, keys, list(archive.files))
        return {key: archive[key] for key in keys}


def load_mat(path: Path, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read the named numeric arrays from a ``.mat`` file, version 5 or 7.3 (HDF5).

    HDF5 stores MATLAB's column-major arrays transposed; they are turned back, so that both versions
    give the same shapes.

    Raises:
        DataError: Missing or truncated file, missing key, a cell, struct or object where numbers belong.
    """
    with reading(path):
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                _require_keys(path, keys, [key for key in file if not key.startswith("#")])
                arrays = {key: np.asarray(file[key]).T for key in keys}
        else:
            content = scipy.io.loadmat(path)
            _require_keys(path, keys, [key for key in content if not key.startswith("__")])
            arrays = {key: np.asarray(content[key]) for key in keys}
    for key, array in arrays.items():
        if array.dtype.kind not in "biufc":
            raise DataError(f"{path}: {key!r} must hold numbers, found {array.dtype} (a cell, struct or object)")
    return arrays


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading; the caller closes it.

    Raises:
        DataError: Missing, truncated, or another format.
    """
    with reading(path):
        return h5py.File(path, "r")


def load_torch(path: Path, *, plain_classes: Sequence[str] = (), mmap: bool = False) -> Any:
    """Read a ``torch.save`` file that holds tensors and plain containers only.

    Args:
        path: The file.
        plain_classes: Qualified names of classes whose instances are read as empty objects with their attributes;
            nothing of the real classes is imported or run.
        mmap: Map the tensors instead of reading them, where the file allows it (a zip archive: torch 1.6 and later).

    Raises:
        DataError: Missing or truncated file, or a pickle that wants to call anything.
    """
    stand_ins: list[Any] = [(type(name.rpartition(".")[2], (), {}), name) for name in plain_classes]
    with reading(path), torch.serialization.safe_globals(stand_ins):
        zipped = mmap and zipfile.is_zipfile(path)
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except pickle.UnpicklingError as error:
            # torch's own message recommends to run what the file holds
            wanted = re.search(r"GLOBAL (\S+)", str(error))
            if wanted is None:
                raise
            raise damaged(
                path,
                f"it holds code or objects of Python ({wanted[1]})",
                "These are never executed; fetch the file again from its source, or export plain tensors, numbers and "
                "text",
            ) from None


def load_image(path: Path) -> NDArray[Any]:
    """Read a picture as RGB uint8 ``(H, W, 3)``.

    Raises:
        DataError: Missing, truncated or unreadable file.
    """
    with reading(path), Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of a picture from the head of its file.

    Raises:
        DataError: Missing or unreadable file.
    """
    with reading(path), Image.open(path) as image:
        return image.height, image.width


def require_shape(name: str, array: NDArray[Any], expected: Sequence[int | None]) -> None:
    """Raise a ``DataError`` unless ``array`` has the expected shape (None: any length)."""
    if array.ndim != len(expected) or any(
        want is not None and have != want for have, want in zip(array.shape, expected, strict=True)
    ):
        wanted = ", ".join("any" if want is None else str(want) for want in expected)
        raise DataError(f"{name}: expected shape ({wanted}), found {tuple(array.shape)}")


def _require_keys(path: Path, keys: Sequence[str], found: Sequence[str]) -> None:
    missing = [key for key in keys if key not in found]
    if missing:
        raise DataError(f"{path}: missing {', '.join(map(repr, missing))}; found {', '.join(map(repr, found))}")
