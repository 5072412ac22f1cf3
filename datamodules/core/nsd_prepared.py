"""Copies of the Natural Scenes Dataset that other projects have prepared: Brain-Diffuser and MindEye2."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Int, UInt8
from numpy.typing import NDArray

from contracts import DataError
from datamodules.core.nsd_files import STIMULI, TRIALS, names_of, parts_of, runs_of
from datamodules.core.raw import HDF5Pictures, Record, SignalAxes, Stimuli, Trials
from datamodules.core.readers import FETCH_AGAIN, load_npy, open_hdf5, reading, require_shape

Array = NDArray[Any]
MASK = "nsdgeneral"
PACK = 256
"""Pictures that are kept in one file."""
PIECE = 32
"""Pictures that are converted at a time; 139 MB."""
ROWS = 1000
"""Averages that are handed on together."""
SMALL = 4096
"""Size in bytes that an entry of (1, 17) numbers cannot exceed."""
BEHAVIOUR = {"picture": 0, "subject": 1, "session": 2, "trial": 5}
"""Columns of ``behav.npy`` (README of https://huggingface.co/datasets/pscotti/mindeyev2, folder wds)."""


# ---- Brain-Diffuser --------------------------------------------------------------------------------


def find_averages(root: Path) -> dict[str, Path]:
    """Return the folder of each person in the layout of Brain-Diffuser."""
    people: dict[str, Path] = {}
    for place in (root / "processed_data", root):
        for folder in sorted(place.glob("subj[0-9][0-9]")):
            if (folder / _average_file("train", "fmriavg_nsdgeneral", folder.name[-2:])).is_file():
                people.setdefault(folder.name[-2:], folder)
    return people


def _average_file(part: str, kind: str, person: str) -> str:
    return f"nsd_{part}_{kind}_sub{int(person)}.npy"


def read_averages(person: str, folder: Path, known: set[str]) -> Iterator[Record]:
    """Read the averages of one person, training before test pictures.

    Args:
        person: The person.
        folder: Holds the person's files.
        known: Names of the pictures that were given for other people; those of this one are added.

    Raises:
        DataError: Missing or damaged files, or such that do not fit together.
    """
    voxels = None
    for part in ("train", "test"):
        path = folder / _average_file(part, "fmriavg_nsdgeneral", person)
        signal = load_npy(path, mmap=True)
        require_shape(str(path), signal, (None, voxels))
        voxels = signal.shape[1]
        if part == "train":
            yield SignalAxes(subject=person, rois={MASK: voxels})
        names: list[str] = []
        for pack in _picture_packs(folder, part, person, len(signal)):
            names += pack.id
            new = [i for i, name in enumerate(pack.id) if name not in known]
            known.update(pack.id)
            if new:
                assert isinstance(pack.image, np.ndarray)
                caption = [pack.caption[i] for i in new] if pack.caption else ()
                yield Stimuli(id=[pack.id[i] for i in new], image=pack.image[new], caption=caption)
        for start in range(0, len(signal), ROWS):
            rows = slice(start, start + ROWS)
            yield Trials(subject=person, signal=np.asarray(signal[rows]), stimulus=names[rows], split=part)


def _picture_packs(folder: Path, part: str, person: str, number: int) -> Iterator[Stimuli]:
    path = folder / _average_file(part, "stim", person)
    pictures = load_npy(path, mmap=True)
    require_shape(f"{path} (one picture for each average)", pictures, (number, None, None, 3))
    captions = _captions(folder / _average_file(part, "cap", person), number)
    for start in range(0, number, PACK):
        pieces = [
            _as_uint8(path, pictures[first : min(first + PIECE, start + PACK)], first)
            for first in range(start, min(start + PACK, number), PIECE)
        ]
        image = np.concatenate(pieces)
        # the files do not name the pictures: people share the test pictures, which are known by their pixels
        names = [hashlib.sha256(picture.tobytes()).hexdigest()[:16] for picture in image]
        yield Stimuli(id=names, image=image, caption=captions[start : start + PACK])


def _as_uint8(path: Path, pictures: Array, first: int) -> UInt8[np.ndarray, "n h w 3"]:
    with np.errstate(invalid="ignore"):
        pixels: Array = pictures.astype(np.uint8)
    wrong = np.flatnonzero((pixels != pictures).any(axis=(1, 2, 3)))
    if len(wrong):
        picture = pictures[wrong[0]]
        raise DataError(
            f"{path}: pixels must be whole numbers in 0..255, found {picture.min():g}..{picture.max():g} in picture "
            f"{first + wrong[0]}; save the pictures as they are in nsd_stimuli.hdf5"
        )
    return pixels


def _captions(path: Path, number: int) -> list[str]:
    """The first sentence for each picture; none where there is no file."""
    if not path.exists():
        return []
    captions = load_npy(path)
    require_shape(str(path), captions, (number, None))
    if captions.dtype.kind != "U":
        raise DataError(f"{path}: captions must be text (dtype U), found {captions.dtype}")
    return [next((text for text in row.tolist() if text), "") for row in captions]


# ---- MindEye2 --------------------------------------------------------------------------------------


def find_beta_tables(root: Path) -> dict[str, Path]:
    """Return the file of each person in the layout of MindEye2, in single precision where both are there."""
    people = {}
    for path in sorted(root.glob("betas_all_subj[0-9][0-9]_fp*_renorm.hdf5")):
        match = re.fullmatch(r"betas_all_subj(\d\d)_fp(?:16|32)_renorm\.hdf5", path.name)
        if match is not None:
            people[match[1]] = path
    return people


def read_beta_tables(root: Path, people: dict[str, Path], sessions: int | None) -> Iterator[Record]:
    """Read single trials, z-scored within sessions by MindEye2, people one after another.

    Args:
        root: Also holds ``shared1000.npy``, ``coco_images_224_float16.hdf5`` and what was shown.
        people: File of betas by person.
        sessions: Take the first so many; None for all.

    Raises:
        DataError: Missing or damaged files, or such that do not fit together.
    """
    path = root / "shared1000.npy"
    shared = load_npy(path)
    require_shape(str(path), shared, (STIMULI,))
    if shared.dtype != bool or not shared.any():
        raise DataError(f"{path}: expected which pictures are shared (bool, some of them True), found {shared.dtype}")
    shown = {}
    for person, file in people.items():
        with open_hdf5(file) as table:
            shown[person] = pictures_of_trials(root, person, len(_betas(file, table)))
        if sessions is not None:
            shown[person] = shown[person][: sessions * TRIALS]
    rows = np.unique(np.concatenate(list(shown.values())))
    pictures = HDF5Pictures(root / "coco_images_224_float16.hdf5", "images", rows.tolist())
    yield Stimuli(id=names_of(rows), image=pictures)
    for person, file in people.items():
        parts = parts_of(shown[person], np.flatnonzero(shared))
        with open_hdf5(file) as table:
            betas = _betas(file, table)
            yield SignalAxes(subject=person, rois={MASK: betas.shape[1]})
            for session, start in enumerate(range(0, len(parts), TRIALS), start=1):
                trials = slice(start, min(start + TRIALS, len(parts)))
                yield Trials(
                    subject=person,
                    signal=_rows(file, betas, trials),
                    stimulus=names_of(shown[person][trials]),
                    split=parts[trials],
                    session=str(session),
                    run=runs_of(trials.stop - trials.start),
                )


def _betas(path: Path, file: h5py.File) -> h5py.Dataset:
    betas = file.get("betas")
    if not isinstance(betas, h5py.Dataset) or betas.ndim != 2 or betas.dtype.kind != "f" or not len(betas):
        found = ", ".join(f"{name} {getattr(entry, 'shape', '')}" for name, entry in file.items()) or "nothing"
        raise DataError(f"{path}: expected a table 'betas' (trials, voxels) of floating point numbers, found {found}")
    return betas


def _rows(path: Path, betas: h5py.Dataset, rows: slice) -> Array:
    try:
        return np.asarray(betas[rows])
    except OSError as error:
        raise DataError(
            f"cannot read trials {rows.start}..{rows.stop - 1} of {path}: {error}; fetch it again"
        ) from error


def pictures_of_trials(root: Path, person: str, trials: int) -> Int[np.ndarray, " trials"]:
    """Return which picture each trial showed, from 0 among the 73000.

    From ``COCO_73k_subj_indices.hdf5`` where it is there, else from ``wds/subjXX/{train,new_test,test}/*.tar``.

    Raises:
        DataError: Neither is there, or they do not tell it of every trial.
    """
    path = root / "COCO_73k_subj_indices.hdf5"
    if path.is_file():
        with open_hdf5(path) as file:
            if f"subj{person}" not in file:
                raise DataError(f"{path}: no table 'subj{person}'; found {', '.join(map(repr, file)) or 'nothing'}")
            found = np.asarray(file[f"subj{person}"])
        if found.ndim != 1 or found.dtype.kind not in "iu" or len(found) < trials:
            raise DataError(
                f"{path}: 'subj{person}' must number the picture of each of {trials} trials, found {found.dtype} "
                f"{found.shape}"
            )
        shown: Array = found[:trials].astype(np.int64)
        if not 0 <= shown.min() <= shown.max() < STIMULI:
            raise DataError(f"{path}: pictures are 0..{STIMULI - 1}, found {shown.min()}..{shown.max()}")
        return shown
    folder = root / "wds" / f"subj{person}"
    tars = [tar for part in ("train", "new_test", "test") for tar in sorted((folder / part).glob("*.tar"))]
    if not tars:
        raise DataError(
            f"person {person}: what was shown is told neither by {path} nor by {folder}/train/*.tar and "
            f"{folder}/new_test/*.tar; put one of them there (https://huggingface.co/datasets/pscotti/mindeyev2)"
        )
    shown = np.full(trials, -1)
    for tar in tars:
        _read_tar(tar, person, shown)
    missing = np.flatnonzero(shown < 0)
    if len(missing):
        raise DataError(
            f"person {person}: {len(missing)} of {trials} trials are in none of {len(tars)} files below {folder}, the "
            f"first is {missing[0]} (from 0); fetch all of train and new_test (test has those of 37 sessions alone)"
        )
    return shown


def _read_tar(path: Path, person: str, shown: Int[np.ndarray, " trials"]) -> None:
    """Enter the pictures of the trials of one archive, of which nothing is unpacked."""
    with reading(path, FETCH_AGAIN), tarfile.open(path, "r:") as archive:
        entries = [_entry(archive, member) for member in archive if member.name.endswith(".behav.npy")]
    for name, row in entries:
        value = {key: row[column] for key, column in BEHAVIOUR.items()}
        picture, trial, session = (int(value[key]) for key in ("picture", "trial", "session"))
        if [picture, trial, session] != [value[key] for key in ("picture", "trial", "session")]:
            raise DataError(f"{path}: {name} holds fractions where numbers of pictures and trials belong")
        if value["subject"] != int(person) or not (0 <= picture < STIMULI and 0 <= trial < len(shown)):
            raise DataError(
                f"{path}: {name} is of person {value['subject']:g}, picture {picture}, trial {trial}; expected person "
                f"{int(person)}, pictures 0..{STIMULI - 1}, trials 0..{len(shown) - 1} (those of the betas)"
            )
        if trial // TRIALS != session - 1:
            raise DataError(
                f"{path}: {name} puts trial {trial} (from 0) into session {session} of {TRIALS} trials each"
            )
        if shown[trial] not in (-1, picture):
            raise DataError(f"{path}: {name} says trial {trial} showed picture {picture}, before it was {shown[trial]}")
        shown[trial] = picture


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[str, Array]:
    stream = archive.extractfile(member)
    if stream is None or member.size > SMALL:
        raise ValueError(f"{member.name} is no file of (1, 17) numbers")
    row: Array = np.load(io.BytesIO(stream.read()), allow_pickle=False)
    if row.shape != (1, 17) or row.dtype.kind not in "fiu" or not np.isfinite(row).all():
        raise ValueError(f"{member.name} must hold (1, 17) numbers, found {row.dtype} {row.shape}")
    return member.name, row[0]


def choose(people: dict[str, Path], chosen: Sequence[str] | None, where: Path) -> dict[str, Path]:
    """Return the files of the chosen people, of all where none are chosen.

    Raises:
        DataError: Files of a chosen person are missing.
    """
    if chosen is None:
        return people
    missing: Collection[str] = [person for person in chosen if person not in people]
    if missing:
        raise DataError(
            f"no files of person {', '.join(missing)} in {where}; there are {', '.join(people) or 'none'}; change "
            "--data.init_args.subjects, or put the files there"
        )
    return {person: people[person] for person in chosen}
