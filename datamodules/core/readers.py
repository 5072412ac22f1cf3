"""Readers of foreign files that never execute what they read and say clearly what is wrong.

``.npy``, ``.npz``, ``.pth`` and ``.mat`` can carry pickles or object arrays; these readers refuse them.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from contracts import DataError


def existing(path: Path) -> Path:
    """Return ``path`` if it is a file, else raise a ``DataError`` that names the nearest existing folder."""
    if path.is_file():
        return path
    parent = next(folder for folder in (path.parent, *path.parent.parents) if folder.exists())
    found = ", ".join(sorted(entry.name for entry in parent.iterdir())[:8]) or "nothing"
    raise DataError(f"no file {path}; the folder {parent} holds: {found}")


def load_npy(path: Path, *, mmap: bool = False) -> NDArray[Any]:
    """Read one array from a ``.npy`` file.

    Args:
        path: The file.
        mmap: Map the file instead of reading it.

    Raises:
        DataError: Missing or truncated file, pickle or object array, not a ``.npy`` file.
    """
    try:
        array = np.load(existing(path), mmap_mode="r" if mmap else None, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(_damaged(path, error)) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: expected one array (.npy), found an archive (.npz)")
    return array


def load_npz(path: Path, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read the named arrays from a ``.npz`` file.

    Raises:
        DataError: Missing or truncated file, missing key, pickle or object array.
    """
    try:
        # opened here: numpy leaves a damaged archive open
        with existing(path).open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DataError(f"{path}: expected an archive (.npz), found one array (.npy)")
            _require_keys(path, keys, list(archive.files))
            return {key: archive[key] for key in keys}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise DataError(_damaged(path, error)) from error


def load_mat(path: Path, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read the named numeric arrays from a ``.mat`` file, version 5 or 7.3 (HDF5).

    HDF5 stores MATLAB's column-major arrays transposed; they are turned back, so that both versions
    give the same shapes.

    Raises:
        DataError: Missing or truncated file, missing key, a cell, struct or object where numbers belong.
    """
    existing(path)
    try:
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                _require_keys(path, keys, [key for key in file if not key.startswith("#")])
                arrays = {key: np.asarray(file[key]).T for key in keys}
        else:
            content = scipy.io.loadmat(path)
            _require_keys(path, keys, [key for key in content if not key.startswith("__")])
            arrays = {key: np.asarray(content[key]) for key in keys}
    except DataError:
        raise
    # scipy reports damaged files with many types: ValueError, TypeError, zlib.error, KeyError ...
    except Exception as error:
        raise DataError(_damaged(path, error)) from error
    for key, array in arrays.items():
        if array.dtype.kind not in "biufc":
            raise DataError(f"{path}: {key!r} must hold numbers, found {array.dtype} (a cell, struct or object)")
    return arrays


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading; the caller closes it.

    Raises:
        DataError: Missing, truncated, or another format.
    """
    try:
        return h5py.File(existing(path), "r")
    except OSError as error:
        raise DataError(_damaged(path, error)) from error


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
    try:
        with torch.serialization.safe_globals(stand_ins):
            zipped = mmap and zipfile.is_zipfile(existing(path))
            return torch.load(existing(path), map_location="cpu", weights_only=True, mmap=zipped)
    except DataError:
        raise
    except pickle.UnpicklingError as error:
        # torch's own message recommends to run what the file holds
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise DataError(_damaged(path, error)) from error
        raise DataError(
            f"cannot read {path} ({path.stat().st_size} bytes): it holds code or objects of Python ({wanted[1]}), "
            "which are never executed; fetch the file again from its source, or export plain tensors, numbers and text"
        ) from None
    # torch reports refused pickles and damaged archives with many types: UnpicklingError, RuntimeError ...
    except Exception as error:
        raise DataError(_damaged(path, error)) from error


def load_image(path: Path) -> NDArray[Any]:
    """Read a picture as RGB uint8 ``(H, W, 3)``.

    Raises:
        DataError: Missing, truncated or unreadable file.
    """
    try:
        with Image.open(existing(path)) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(_damaged(path, error)) from error


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of a picture from the head of its file.

    Raises:
        DataError: Missing or unreadable file.
    """
    try:
        with Image.open(existing(path)) as image:
            return image.height, image.width
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(_damaged(path, error)) from error


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


def _damaged(path: Path, error: BaseException) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"cannot read {path} ({path.stat().st_size} bytes): {reason}. It is truncated, of another format, or holds "
        "pickled objects, which are never executed; fetch the file again or export plain arrays."
    )
