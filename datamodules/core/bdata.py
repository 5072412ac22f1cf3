"""Reader of BData, the format of the Kamitani laboratory (BrainDecoderToolbox2, bdpy).

A file holds one table, samples by columns, and metadata: for each key a number for each column, 1 where the column
belongs to the key (``VoxelData``, ``ROI_V1``, ``DataType``), NaN where the key says nothing about it.
HDF5 (``.h5``): ``dataset`` and ``metadata/{key,value}``. MATLAB version 5 (``.mat``): ``dataSet`` and a struct
``metaData`` with a cell of text ``key`` and a matrix ``value``. Older files spell ``dataSet`` and ``metaData`` in
either.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from contracts import DataError
from datamodules.core.readers import FETCH_AGAIN, reading, require_shape

DATASET = ("dataset", "dataSet")
METADATA = ("metadata", "metaData")
PLACES = ("voxel_x", "voxel_y", "voxel_z")
"""Keys of the coordinates of the voxels, in millimetres of the scanned person's own space (bdpy, ``create_bdata``)."""


@dataclass(frozen=True)
class BData:
    """One file.

    Attributes:
        path: Where it was read from.
        dataset: The table.
        metadata: For each key a number for each column.
    """

    path: Path
    dataset: Float[np.ndarray, "samples columns"]
    metadata: dict[str, Float[np.ndarray, " columns"]]

    def columns(self, key: str) -> Bool[np.ndarray, " columns"]:
        """Return the columns flagged with a key.

        Raises:
            DataError: No such key.
        """
        if key not in self.metadata:
            raise DataError(f"{self.path}: no metadata key {key!r}; found {', '.join(self.metadata)}")
        flagged: NDArray[Any] = self.metadata[key] == 1
        return flagged

    def values(self, key: str) -> Float[np.ndarray, " samples"]:
        """Return the one column flagged with a key.

        Raises:
            DataError: No such key, several columns or none, a value that is not finite.
        """
        flagged = np.flatnonzero(self.columns(key))
        if len(flagged) != 1:
            raise DataError(f"{self.path}: expected one column with metadata {key!r}, found {len(flagged)}")
        values: NDArray[Any] = self.dataset[:, flagged[0]]
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise DataError(f"{self.path}: {key} of sample {wrong[0]} is {values[wrong[0]]} ({len(wrong)} in all)")
        return values

    def coordinates(self, columns: Int[np.ndarray, " v"]) -> Float[np.ndarray, "v 3"] | None:
        """Return the places of the voxels in some columns, in millimetres; None where the file does not tell all."""
        if any(key not in self.metadata for key in PLACES):
            return None
        places: NDArray[Any] = np.stack([self.metadata[key][columns] for key in PLACES], axis=1)
        return places if np.isfinite(places).all() else None


def load_bdata(path: Path) -> BData:
    """Read a BData file, HDF5 or MATLAB version 5.

    Raises:
        DataError: Missing or truncated file, another content, another type than float64 (in which names of
            stimuli, coded as numbers, would lose digits).
    """
    with reading(path, FETCH_AGAIN):
        dataset, keys, value = _read_h5(path) if h5py.is_hdf5(path) else _read_mat(path)
    for name, array in (("dataset", dataset), ("metadata value", value)):
        if array.dtype != np.float64 or array.ndim != 2:
            raise DataError(f"{path}: {name} must be a float64 matrix, found {array.dtype} {array.shape}")
    require_shape(f"{path}: metadata value", value, (len(keys), dataset.shape[1]))
    repeated = sorted({key for key in keys if keys.count(key) > 1})
    if repeated:
        raise DataError(f"{path}: metadata keys stand twice: {', '.join(repeated)}")
    return BData(path, dataset, dict(zip(keys, value, strict=True)))


def _read_h5(path: Path) -> tuple[NDArray[Any], list[str], NDArray[Any]]:
    with h5py.File(path, "r") as file:
        dataset = _h5_array(path, file, _spelled(path, DATASET, list(file)))
        metadata = _spelled(path, METADATA, list(file))
        key = _h5_array(path, file, f"{metadata}/key")
        value = _h5_array(path, file, f"{metadata}/value")
    names = key.reshape(-1).tolist()
    if key.dtype.kind not in "SOU" or not all(isinstance(name, bytes | str) for name in names):
        raise DataError(f"{path}: {metadata}/key must hold text, found {key.dtype}")
    return dataset, [name.decode() if isinstance(name, bytes) else name for name in names], value


def _h5_array(path: Path, file: Any, name: str) -> NDArray[Any]:
    item = file.get(name)
    if not isinstance(item, h5py.Dataset):
        raise DataError(f"{path}: {name} must be an array; found {'nothing' if item is None else 'a group'}")
    return np.asarray(item[()])


def _read_mat(path: Path) -> tuple[NDArray[Any], list[str], NDArray[Any]]:
    # mat_dtype: MATLAB stores doubles that happen to be whole numbers as integers
    content = scipy.io.loadmat(path, mat_dtype=True)
    found = [key for key in content if not key.startswith("__")]
    dataset = content[_spelled(path, DATASET, found)]
    name = _spelled(path, METADATA, found)
    struct = content[name]
    fields = struct.dtype.names if type(struct) is np.ndarray else None
    if fields is None or not {"key", "value"} <= set(fields) or struct.size != 1:
        raise DataError(
            f"{path}: {name} must be one struct with fields key and value, found a {type(struct).__name__} of "
            f"shape {np.shape(struct)} with fields {', '.join(fields or ()) or 'none'}"
        )
    key, value = (struct.reshape(-1)[0][field] for field in ("key", "value"))
    if type(key) is not np.ndarray or key.dtype != object:
        raise DataError(f"{path}: {name}.key must be a cell of text, found {getattr(key, 'dtype', type(key))}")
    keys = []
    for entry in key.reshape(-1):
        if type(entry) is not np.ndarray or entry.dtype.kind != "U" or entry.size != 1:
            raise DataError(f"{path}: {name}.key must be a cell of text, found a {type(entry).__name__} in it")
        keys.append(str(entry.item()).strip())
    return np.asarray(dataset), keys, np.asarray(value)


def _spelled(path: Path, spellings: tuple[str, ...], found: list[str]) -> str:
    there = [name for name in spellings if name in found]
    if not there:
        raise DataError(f"{path}: no {' or '.join(spellings)}; found {', '.join(found) or 'nothing'}")
    return there[0]
