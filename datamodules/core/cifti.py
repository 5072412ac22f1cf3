"""Readers of NIfTI and CIFTI images: the columns of cortical areas, never more of a recording than asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from contracts import DataError
from datamodules.core.readers import FETCH_AGAIN, damaged, reading

Array = NDArray[Any]
BLOCK = 2048
"""Grayordinates read at a time; CIFTI files hold the time series of one grayordinate after another."""


@dataclass(frozen=True)
class Parcellation:
    """Areas of the cortical surface.

    Attributes:
        path: The file, for errors.
        names: Key -> name of the area without ``_ROI`` (``L_V1``), in the order of the keys.
        keys: CIFTI structure -> key of the area of each vertex of the whole surface, 0 for none.
    """

    path: Path
    names: Mapping[int, str]
    keys: Mapping[str, Int[np.ndarray, " vertices"]]

    def key(self, name: str) -> int:
        """Key of an area.

        Raises:
            DataError: No such area.
        """
        for key, known in self.names.items():
            if known == name:
                return key
        raise DataError(f"{self.path}: no area {name!r}; it has {', '.join(list(self.names.values())[:8])} ...")


def load_nifti(path: Path) -> tuple[Array, Any]:
    """Read a NIfTI image.

    Returns:
        The whole array, and its header.

    Raises:
        DataError: Missing or truncated file, or not an image.
    """
    image = _open(path)
    with reading(path, FETCH_AGAIN):
        return np.asarray(image.dataobj), image.header


def open_nifti(path: Path) -> Any:
    """Open a NIfTI image, whose numbers are read only when its ``dataobj`` is indexed (within ``reading``).

    A compressed file stays open in between, so that volumes are read one after another without starting anew.

    Raises:
        DataError: Missing file, or not an image.
    """
    return _open(path, keep_file_open=True)


def open_cifti(path: Path, rows: Literal["SeriesAxis", "LabelAxis"]) -> Any:
    """Open a CIFTI image, whose numbers are read only when its ``dataobj`` is indexed.

    Args:
        path: The file.
        rows: What its rows must be: a series (``.dtseries.nii``) or labels (``.dlabel.nii``).

    Raises:
        DataError: Missing or truncated file, not a CIFTI image, or one with other axes.
    """
    from nibabel.cifti2 import cifti2

    image = _open(path)
    axes = []
    if isinstance(image, cifti2.Cifti2Image):
        with reading(path, FETCH_AGAIN):
            header: Any = image.header
            axes = [type(header.get_axis(i)).__name__ for i in range(image.ndim)]
    if axes != [rows, "BrainModelAxis"]:
        raise DataError(
            f"{path}: expected a CIFTI image of {rows} x BrainModelAxis, found {' x '.join(axes) or 'another image'}"
        )
    # where only areas are read, a missing end would not be noticed
    whole = image.dataobj.offset + image.dataobj.dtype.itemsize * int(np.prod(image.shape))
    if path.stat().st_size < whole:
        raise damaged(path, f"expected at least {whole} bytes", FETCH_AGAIN)
    return image


def read_parcellation(path: Path) -> Parcellation:
    """Read the first map of a ``.dlabel.nii``, on the whole surface or on parts of it.

    Raises:
        DataError: Missing or truncated file, or no label image.
    """
    image = open_cifti(path, "LabelAxis")
    with reading(path, FETCH_AGAIN):
        labels = np.asarray(image.dataobj[0]).astype(np.int64)
    table = image.header.get_axis(0).label[0]
    names = {int(key): name.removesuffix("_ROI") for key, (name, _) in sorted(table.items()) if key}
    keys = {}
    for structure, columns, model in image.header.get_axis(1).iter_structures():
        if structure in model.nvertices:
            keys[structure] = np.zeros(model.nvertices[structure], np.int64)
            keys[structure][model.vertex] = labels[columns]
    return Parcellation(path, names, keys)


def area_keys(grayordinates: Any, areas: Parcellation, *, path: Path) -> Int[np.ndarray, " g"]:
    """Key of the area of each grayordinate, matched vertex by vertex; 0 outside of all areas.

    Args:
        grayordinates: The columns of a recording (``BrainModelAxis``): cortex with or without the medial wall, with
            or without volumes.
        areas: The parcellation.
        path: The recording, for errors.

    Raises:
        DataError: Another surface mesh than that of the parcellation.
    """
    result = np.zeros(len(grayordinates), np.int64)
    for structure, columns, model in grayordinates.iter_structures():
        if structure not in areas.keys:
            continue
        have, want = model.nvertices.get(structure), len(areas.keys[structure])
        if have != want:
            raise DataError(
                f"{path}: {structure} has {have} vertices, {areas.path} has {want}; resample one to the other's mesh"
            )
        result[columns] = areas.keys[structure][model.vertex]
    return result


def read_columns(image: Any, columns: Sequence[Int[np.ndarray, " _"]], *, path: Path) -> Float[np.ndarray, "t v"]:
    """Read some grayordinates of a recording.

    Args:
        image: What ``open_cifti`` gave.
        columns: Groups of grayordinates, joined in this order.
        path: The file, for errors.

    Returns:
        ``(T, V)`` float32.

    Raises:
        DataError: A truncated file.
    """
    wanted = np.concatenate(columns)
    place = np.full(image.shape[1], -1)
    place[wanted] = np.arange(len(wanted))
    result = np.empty((image.shape[0], len(wanted)), np.float32)
    for block, inside in _blocks(image, place >= 0, path):
        result[:, place[inside]] = block
    return result


def read_means(image: Any, columns: Sequence[Int[np.ndarray, " _"]], *, path: Path) -> Float[np.ndarray, "t groups"]:
    """Read the mean time series of groups of grayordinates; arguments and errors as in ``read_columns``.

    Returns:
        ``(T, groups)`` float32.
    """
    group = np.full(image.shape[1], -1)
    for number, members in enumerate(columns):
        group[members] = number
    sums = np.zeros((image.shape[0], len(columns)))
    for block, inside in _blocks(image, group >= 0, path):
        for number in np.unique(group[inside]):
            sums[:, number] += block[:, group[inside] == number].sum(axis=1, dtype=np.float64)
    return (sums / [len(members) for members in columns]).astype(np.float32)


def _blocks(image: Any, wanted: Bool[np.ndarray, " g"], path: Path) -> Iterator[tuple[Array, Array]]:
    """Wanted columns ``(T, n)`` block by block, with their numbers ``(n,)``."""
    for start in range(0, len(wanted), BLOCK):
        inside = start + np.flatnonzero(wanted[start : start + BLOCK])
        if len(inside):
            with reading(path, FETCH_AGAIN):
                block = np.asarray(image.dataobj[:, inside[0] : inside[-1] + 1])
            yield block[:, inside - inside[0]], inside


def _open(path: Path, **options: Any) -> Any:
    import nibabel

    with reading(path, FETCH_AGAIN):
        return nibabel.load(path, **options)
