"""Readers of the Natural Scenes Dataset as it is published: experimental design, regions, single-trial betas.

Layout and units: the NSD data manual, pages "Experiments" (https://cvnlab.slite.page/p/NKalgWd__F/Experiments), "ROIs"
(https://cvnlab.slite.page/p/X_7BBMgghj/ROIs) and "Functional data (NSD)"
(https://cvnlab.slite.page/p/6CusMRYfk0/Functional-data-NSD). Everything is in the 1.8 mm preparation
(``func1pt8mm``), betas version 3 (``betas_fithrf_GLMdenoise_RR``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from contracts import DataError
from datamodules.core.cifti import load_nifti, open_nifti
from datamodules.core.coordinates import world_coordinates
from datamodules.core.raw import Space
from datamodules.core.readers import FETCH_AGAIN, load_mat, open_hdf5, reading

Array = NDArray[Any]
DESIGN = Path("nsddata/experiments/nsd/nsd_expdesign.mat")
PICTURES = Path("nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5")
PICTURE_TABLE = "imgBrick"
SUBJECTS = ("01", "02", "03", "04", "05", "06", "07", "08")
SESSIONS = dict(zip(SUBJECTS, (40, 40, 32, 30, 40, 32, 40, 30), strict=True))
"""Sessions that each person completed (data manual, "Technical notes")."""
TRIALS = 750
"""Trials of a session."""
RUN_TRIALS = (63, 62) * 6
"""Trials of each of the 12 runs of a session (Allen et al. 2022, Methods, "NSD experiment")."""
PUBLISHED_SESSIONS = 37
"""Sessions that were public at first; those who used them tested on the shared pictures shown in them, 982 of 1000."""
STIMULI = 73000
SHARED = 1000
SCALE = 300
"""Betas are stored as integers, percent signal change times this (data manual, "Functional data (NSD)")."""
REGIONS: Mapping[str, Mapping[int, str]] = {
    "prf-visualrois": {1: "V1v", 2: "V1d", 3: "V2v", 4: "V2d", 5: "V3v", 6: "V3d", 7: "hV4"},
    "streams": {
        **{1: "early", 2: "midventral", 3: "midlateral", 4: "midparietal"},
        **{5: "ventral", 6: "lateral", 7: "parietal"},
    },
}
"""Names of the labels of two atlases, as in their ``.ctab`` files; those of others are called after their number."""
REST = "rest"
BLOCK = 50
"""Volumes read at a time; 70 MB."""


def beta_folder(person: str) -> Path:
    """Folder of a person's betas below ``root``."""
    return Path(f"nsddata_betas/ppdata/subj{person}/func1pt8mm/betas_fithrf_GLMdenoise_RR")


def roi_folder(person: str) -> Path:
    """Folder of a person's masks and atlases below ``root``."""
    return Path(f"nsddata/ppdata/subj{person}/func1pt8mm/roi")


# ---- what was shown --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Design:
    """What each person was to see in 40 sessions; pictures are counted from 0 among the 73000.

    Attributes:
        shown: By person, the picture of each trial.
        shared: The pictures that all people see.
    """

    shown: Mapping[str, Int[np.ndarray, " trials"]]
    shared: Int[np.ndarray, " shared"]


def load_design(path: Path) -> Design:
    """Read ``nsd_expdesign.mat``.

    Raises:
        DataError: Missing or damaged file, arrays of other sizes, numbers out of range, shared pictures that differ
            between people.
    """
    content = load_mat(path, ["masterordering", "subjectim", "sharedix"])
    trials, pictures = max(SESSIONS.values()) * TRIALS, max(SESSIONS.values()) * TRIALS // 3
    for name, shape, most in (
        ("masterordering", (1, trials), pictures),
        ("subjectim", (len(SUBJECTS), pictures), STIMULI),
        ("sharedix", (1, SHARED), STIMULI),
    ):
        array = content[name]
        if array.shape != shape:
            raise DataError(f"{path}: {name} must be {shape}, found {array.shape}; fetch the file again")
        if not (
            np.isfinite(array).all() and (array == np.rint(array)).all() and 1 <= array.min() <= array.max() <= most
        ):
            raise DataError(f"{path}: {name} must be whole numbers in 1..{most}, found {array.min()}..{array.max()}")
        content[name] = array.astype(np.int64) - 1
    shared = content["sharedix"][0]
    for person, row in zip(SUBJECTS, content["subjectim"], strict=True):
        if set(row[:SHARED].tolist()) != set(shared.tolist()):
            raise DataError(f"{path}: the first {SHARED} pictures of person {person} are not those of sharedix")
    shown = content["subjectim"][:, content["masterordering"][0]]
    return Design(dict(zip(SUBJECTS, shown, strict=True)), shared)


def parts_of(shown: Int[np.ndarray, " trials"], shared: Int[np.ndarray, " shared"]) -> list[str]:
    """Return the part of each trial of a person, from the first session on.

    ``train``: a picture that is not shared. ``test``: a shared picture that is shown in the first 37 sessions, 982
    in the published order. ``test_rest``: one of the 18 others.
    """
    is_shared = np.isin(shown, shared)
    early = np.isin(shown, shown[: PUBLISHED_SESSIONS * TRIALS])
    parts: list[str] = np.select([~is_shared, early], ["train", "test"], "test_rest").tolist()
    return parts


def names_of(pictures: Int[np.ndarray, " n"]) -> list[str]:
    """Names of pictures, with their numbers from 0 (``nsdId`` of ``nsd_stim_info_merged.csv``)."""
    return [f"nsd{picture:05d}" for picture in pictures.tolist()]


def runs_of(trials: int) -> list[str]:
    """Run of each of the first trials of a session."""
    return [str(run) for run in np.repeat(np.arange(1, 13), RUN_TRIALS)[:trials]]


# ---- where -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Voxels:
    """Which voxels of a volume are read, in which order.

    Attributes:
        shape: Of the volume, ``(x, y, z)``.
        place: ``(3, V)`` position of each voxel, region by region.
        rois: Name -> number of voxels, in the order of the voxels.
        coordinates: ``(V, 3)`` centre of each voxel, millimetres to the right, front and top; None where the header
            of the mask gives no place. Origin and axes are those of the person's functional volumes.
        space: What ``coordinates`` refer to.
    """

    shape: tuple[int, ...]
    place: Int[np.ndarray, "3 v"]
    rois: Mapping[str, int]
    coordinates: Float[np.ndarray, "v 3"] | None
    space: Space | None

    def of(self, volume: Array) -> Array:
        """Values of the voxels, ``(V, ...)``."""
        values: Array = volume[self.place[0], self.place[1], self.place[2]]
        return values


def load_voxels(folder: Path, mask: str, atlases: Sequence[str]) -> Voxels:
    """Read which voxels of a person are used: those that a mask has, in the order of the regions of atlases.

    A voxel belongs to the first atlas that labels it; those without label come last, as ``rest``. Within a region
    voxels stand in the order of x, then y, then z, which is that of ``volume[mask > 0]``.

    Args:
        folder: Holds ``<mask>.nii.gz`` and ``<atlas>.nii.gz``.
        mask: Voxels with a positive label are used.
        atlases: Labels above 0 are regions.

    Raises:
        DataError: Missing or damaged file, an empty mask, volumes of different shapes.
    """
    inside = load_labels(folder / f"{mask}.nii.gz") > 0
    if not inside.any():
        raise DataError(f"{folder / mask}.nii.gz: no voxel is in the mask; change --data.init_args.mask")
    left = inside.copy()
    places: list[Array] = []
    rois: dict[str, int] = {}
    for atlas in atlases:
        labels = load_labels(folder / f"{atlas}.nii.gz")
        if labels.shape != inside.shape:
            raise DataError(
                f"{folder / atlas}.nii.gz: volume of {labels.shape}, but {mask}.nii.gz has {inside.shape}; both must "
                "come from the same preparation (func1pt8mm)"
            )
        for label in np.unique(labels[left & (labels > 0)]).tolist():
            name = REGIONS.get(atlas, {}).get(label, f"{atlas}-{label}")
            _take(name, left & (labels == label), places, rois)
            left &= labels != label
    if left.any():
        _take(REST if rois else mask, left, places, rois)
    place = np.concatenate(places, axis=1)
    header = open_nifti(folder / f"{mask}.nii.gz").header
    return Voxels(inside.shape, place, rois, *world_coordinates(header, place.T))


def _take(name: str, region: Bool[np.ndarray, "x y z"], places: list[Array], rois: dict[str, int]) -> None:
    places.append(np.stack(np.nonzero(region)))
    rois[name] = int(region.sum())


def load_labels(path: Path) -> Int[np.ndarray, "x y z"]:
    """Read a volume of labels: whole numbers, -1 and 0 where there is none.

    Raises:
        DataError: Missing or damaged file, or something else in it.
    """
    volume, _ = load_nifti(path)
    if volume.ndim != 3 or not np.array_equal(volume, np.rint(volume)):
        raise DataError(f"{path}: expected a volume of whole numbers (x, y, z), found {volume.dtype} {volume.shape}")
    labels: Array = volume.astype(np.int64)
    return labels


def load_ncsnr(path: Path, voxels: Voxels) -> Float[np.ndarray, " v"] | None:
    """Read the noise ceiling signal-to-noise ratio of each voxel; None where there is no file.

    It is the SD of the signal in units of that of the noise of one trial, betas z-scored within sessions (data manual,
    "Functional data (NSD)"; Allen et al. 2022, Methods, "Noise ceiling").

    Raises:
        DataError: Damaged file, or one of another shape.
    """
    if not path.exists():
        return None
    volume, _ = load_nifti(path)
    _check_shape(path, volume.shape, voxels)
    # not a number where it cannot be estimated: nothing there is explained
    return np.nan_to_num(voxels.of(volume).astype(np.float32), nan=0.0)


# ---- betas -----------------------------------------------------------------------------------------


def find_sessions(folder: Path) -> dict[int, Path]:
    """Return the files of betas by session; where both are there, HDF5, which is read voxel by voxel."""
    found = {}
    for suffix in ("nii.gz", "hdf5"):
        for path in sorted(folder.glob(f"betas_session[0-9][0-9].{suffix}")):
            found[int(path.name.partition(".")[0][-2:])] = path
    return dict(sorted(found.items()))


def load_betas(path: Path, voxels: Voxels) -> Float[np.ndarray, "trials v"]:
    """Read one session in percent signal change, float32.

    NIfTI: ``(x, y, z, 750)``; HDF5: ``betas``, written by MATLAB as ``(x, y, z, 750)``, so ``(750, z, y, x)`` here.
    Both hold int16, 300 times the percentage.

    Raises:
        DataError: Damaged file, or one of another shape or type.
    """
    return _load_hdf5(path, voxels) if path.suffix == ".hdf5" else _load_nifti(path, voxels)


def _load_nifti(path: Path, voxels: Voxels) -> Array:
    image = open_nifti(path)
    _check_shape(path, image.shape, voxels, trials=True)
    if image.get_data_dtype() != np.int16 or (image.dataobj.slope, image.dataobj.inter) != (1, 0):
        raise DataError(
            f"{path}: betas must be int16, {SCALE} times percent signal change, found {image.get_data_dtype()} scaled "
            f"by {image.dataobj.slope}; fetch the published file"
        )
    signal = np.empty((TRIALS, voxels.place.shape[1]), np.float32)
    for start in range(0, TRIALS, BLOCK):
        with reading(path, FETCH_AGAIN):
            volumes = np.asarray(image.dataobj[..., start : start + BLOCK])
        signal[start : start + BLOCK] = voxels.of(volumes).T
    return np.divide(signal, SCALE, out=signal)


def _load_hdf5(path: Path, voxels: Voxels) -> Array:
    with open_hdf5(path) as file:
        betas = file.get("betas")
        if betas is None:
            raise DataError(f"{path}: no table 'betas'; found {', '.join(map(repr, file)) or 'nothing'}")
        _check_shape(path, betas.shape[::-1], voxels, trials=True)
        if betas.dtype != np.int16:
            raise DataError(f"{path}: betas must be int16, {SCALE} times percent signal change, found {betas.dtype}")
        signal = np.empty((TRIALS, voxels.place.shape[1]), np.float32)
        x, y, z = voxels.place
        for plane in np.unique(z):
            inside = np.flatnonzero(z == plane)
            rows, columns = y[inside], x[inside]
            low, left = rows.min(), columns.min()
            with reading(path, FETCH_AGAIN):
                block = betas[:, plane, low : rows.max() + 1, left : columns.max() + 1]
            signal[:, inside] = block[:, rows - low, columns - left]
    return np.divide(signal, SCALE, out=signal)


def _check_shape(path: Path, shape: Sequence[int], voxels: Voxels, *, trials: bool = False) -> None:
    expected = (*voxels.shape, TRIALS) if trials else voxels.shape
    if tuple(shape) != expected:
        raise DataError(
            f"{path}: volume of {tuple(shape)}, expected {expected} ((x, y, z) of the mask{', trials' * trials}); mask "
            "and betas must be of one person and come from the same preparation (func1pt8mm)"
        )
