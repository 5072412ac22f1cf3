"""THINGS-EEG2: photographs of 1854 object concepts in rapid series (Gifford et al. 2022)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from contracts import DataError
from datamodules.core.base import BrainDataModule, Facts
from datamodules.core.mapped_pickle import load_mapped
from datamodules.core.montage import template_names, template_positions
from datamodules.core.raw import Record, SignalAxes, Stimuli, Trials
from datamodules.core.readers import existing, load_npy
from datamodules.core.splits import SplitOptions

Array = NDArray[Any]
Form = Literal["preprocessed", "whitened", "arrays", "osf"]
Part = Literal["train", "test"]
FOLDERS: dict[Form, tuple[str, ...]] = {
    "preprocessed": ("Preprocessed_data_250Hz", "Preprocessed_data"),
    "whitened": ("Preprocessed_data_250Hz_whiten",),
    "arrays": ("preprocessed_eeg",),
    "osf": ("preprocessed_data", "eeg_dataset/preprocessed_data"),
}
PICKLED: dict[Part, str] = {"train": "preprocessed_eeg_training.npy", "test": "preprocessed_eeg_test.npy"}
FILES: dict[Form, dict[Part, str]] = {
    "preprocessed": PICKLED,
    "whitened": {"train": "train.pt", "test": "test.pt"},
    "arrays": {"train": "train.npy", "test": "test.npy"},
    "osf": PICKLED,
}
TABLES = ("image_metadata.npy", "image_metadata.json", "things_eeg2_image_metadata.json")
PICTURE_FOLDERS: dict[Part, tuple[str, ...]] = {"train": ("training_images", "train_images"), "test": ("test_images",)}
PARTS: tuple[Part, ...] = ("train", "test")
RECORDINGS = "https://osf.io/anp5v/ (17 channels), https://huggingface.co/datasets/Haitao999/things-eeg (whitened)"
PICTURES = "https://osf.io/y63gw/"
OCCIPITAL = ("P7", "P5", "P3", "P1", "Pz", "P2", "P4", "P6", "P8", "PO7", "PO3", "POz", "PO4", "PO8", "O1", "Oz", "O2")
"""The channels of the authors' release, in the order in which later work takes them from the 63."""
PIECE = 256
"""Trials that are handed on together."""


class THINGSEEG2(BrainDataModule):
    """Ten people; 1654 concepts x 10 photographs x 4 repetitions, and 200 other concepts x 1 photograph x 80.

    Four layouts are read, each with a folder ``sub-01`` ... for a person; people whose folders are absent are left out:

    - ``preprocessed``: ``Preprocessed_data_250Hz`` (or ``Preprocessed_data``) of NICE and ATM, 63 channels at 250 Hz:
      pickled dicts ``preprocessed_eeg_training.npy`` and ``preprocessed_eeg_test.npy``;
    - ``whitened``: ``Preprocessed_data_250Hz_whiten`` of UBP, the same in float16: ``train.pt`` and ``test.pt``;
    - ``arrays``: ``preprocessed_eeg`` of NeuroBridge, the same in float32: ``train.npy`` and ``test.npy``, and one
      ``info.json`` for all people;
    - ``osf``: ``preprocessed_data`` (or ``eeg_dataset/preprocessed_data``) of the authors, 17 channels at 100 Hz from
      -0.2 s, in files as in ``preprocessed``.

    Channels and times are those the files name. Where they name more times than there are samples, the samples are the
    last of them: the files of 250 samples keep the names of the 50 before the picture, which they leave out. Large
    arrays are mapped, whatever the file, so that reading takes some tens of megabytes; nothing in a file is executed.

    All of these are the authors' epochs after multivariate noise normalisation within each session, so signals are in
    SDs of the noise. Its covariance was fitted on training trials (``whitened``, ``arrays``), or on training and test
    trials alike (``preprocessed``, ``osf``), which this program cannot undo. Only ``whitened`` tells the sessions; in
    ``preprocessed`` and ``osf`` the repetitions of a picture stand in random order, all the others follow the sessions.

    The stimulus table is ``image_metadata.npy`` of the authors, or the same as JSON (``image_metadata.json``), in
    ``root`` or the folder of the pictures; ``whitened`` files name the pictures themselves and need none. A class is a
    concept, under its name in THINGS (``bat1``).

    Licence: CC BY 4.0 (recordings, https://osf.io/3jk45/); the pictures keep those of THINGS.

    Reference: Gifford, Dwivedi, Roig & Cichy (2022), A large and rich EEG dataset for modeling human visual object
    recognition, NeuroImage 264, 119754: numbers of people, pictures and trials.

    Args:
        root: Folder that holds the one of the layout.
        layout: Which layout to read; ``auto`` for the one that is there.
        channels: Channels to keep, in this order; None for all.
        images: Folder of the pictures below ``root``, which holds ``training_images/00001_aardvark/aardvark_01b.jpg``
            (or ``train_images/...``) and ``test_images/...``; empty to do without pictures.
        split: As for every data set; by default no concept is on two sides.
        **kwargs: Options of every data set (``BrainDataModule``).
    """

    name = "things_eeg2"
    facts = Facts(
        modality="eeg",
        units="SD of the noise of a channel (whitened)",
        licence="CC BY 4.0",
        citation="Gifford, Dwivedi, Roig & Cichy (2022), NeuroImage 264, 119754",
        subjects=tuple(f"{number:02d}" for number in range(1, 11)),
        trials={f"{number:02d}": 16540 * 4 + 200 * 80 for number in range(1, 11)},
        stimuli=16540 + 200,
    )

    def __init__(
        self,
        root: str,
        *,
        layout: Literal["auto", "preprocessed", "whitened", "arrays", "osf"] = "auto",
        channels: list[str] | None = None,
        images: str = "image_set",
        split: SplitOptions = SplitOptions(protocol="by_class"),
        **kwargs: Any,
    ) -> None:
        super().__init__(root, split=split, **kwargs)
        self.file_layout = layout
        self.channels = channels
        self.images = images
        if channels is not None and (not channels or len(set(channels)) < len(channels)):
            raise DataError(f"channels must be named once each, found {channels}; change --data.init_args.channels")

    def conversion_options(self) -> dict[str, Any]:
        """Everything that decides which numbers and pictures are read."""
        return {"layout": self.file_layout, "channels": self.channels, "images": self.images}

    def read(self, root: Path) -> Iterator[Record]:
        """Yield the pictures, then the people in the order of their numbers, training before test."""
        folder, form = find_layout(root, self.file_layout)
        people = find_people(folder, FILES[form])
        table = _find_table(root, self.images)
        for subject, files in people.items():
            recordings = {part: _open(form, files[part]) for part in PARTS}
            if table is None:
                table = {part: _own_table(recordings[part]) for part in PARTS}
            for part in PARTS:
                _check(recordings[part], part, table[part])
            if subject == next(iter(people)):
                yield from (_stimuli(root, self.images, part, table[part]) for part in PARTS)
            yield _axes(subject, recordings, self.channels)
            for part in PARTS:
                yield from _trials(subject, part, recordings[part], table[part], self.channels)


# ---- files -----------------------------------------------------------------------------------------


def find_layout(root: Path, layout: Literal["auto", "preprocessed", "whitened", "arrays", "osf"]) -> tuple[Path, Form]:
    """Return the folder of the people, and its layout.

    Raises:
        DataError: None, or several.
    """
    wanted: list[Form] = list(FOLDERS) if layout == "auto" else [layout]
    found = [(root / name, form) for form in wanted for name in FOLDERS[form] if _holds(root, name)]
    if len(found) > 1:
        places = ", ".join(f"{folder} ({form})" for folder, form in found)
        advice = "choose one with --data.init_args.layout" if layout == "auto" else "remove all but one"
        raise DataError(f"several folders of THINGS-EEG2 recordings: {places}; {advice}")
    if not found:
        names = ", ".join(name for form in wanted for name in FOLDERS[form])
        there = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) if root.is_dir() else "no such folder"
        raise DataError(
            f"no recordings of THINGS-EEG2 in {root}: expected a folder {names}; found {there or 'nothing'}. Put it "
            f"there ({RECORDINGS}), or change --data.init_args.root" + ("" if layout == "auto" else " or layout")
        )
    return found[0]


def _holds(root: Path, name: str) -> bool:
    """Whether a folder is there under this very name; some file systems do not tell upper from lower case."""
    for part in Path(name).parts:
        if not root.is_dir() or part not in os.listdir(root):
            return False
        root = root / part
    return root.is_dir()


def find_people(folder: Path, names: Mapping[Part, str]) -> dict[str, dict[Part, Path]]:
    """Return each person's files, by number.

    Raises:
        DataError: Nobody, or a person without one of the files.
    """
    matches = [re.fullmatch(r"sub-(\d+)", entry.name) for entry in sorted(folder.iterdir()) if entry.is_dir()]
    people = {
        f"{int(match[1]):02d}": {part: existing(folder / match[0] / name) for part, name in names.items()}
        for match in matches
        if match is not None
    }
    if not people:
        raise DataError(f"nobody in {folder}: expected folders sub-01 ...; put them there ({RECORDINGS})")
    return dict(sorted(people.items()))


@dataclass(frozen=True)
class _Recording:
    """One part of a person's trials, ``(images, repetitions, C, T)``, mapped; ``session`` and ``image`` where told."""

    path: Path
    signal: Array
    channels: list[str]
    times: Float[np.ndarray, " t"]
    session: Array | None = None
    image: list[str] | None = None


def _open(form: Form, path: Path) -> _Recording:
    session = image = None
    if form == "arrays":
        about = path.parents[1] / "info.json"
        content = _read_json(about, ["ch_names", "times"])
        signal: Any = load_npy(path, mmap=True)
    else:
        about = path
        key = "eeg" if form == "whitened" else "preprocessed_eeg_data"
        content = load_mapped(path, [key, "ch_names", "times"])
        signal = content[key]
        if form == "whitened":
            session, image = content.get("session"), _column(path, content.get("img"))
    axes = 5 if form == "arrays" else 4
    if not isinstance(signal, np.ndarray) or signal.dtype.kind != "f" or signal.ndim != axes:
        found = f"{signal.dtype} {signal.shape}" if isinstance(signal, np.ndarray) else f"a {type(signal).__name__}"
        order = f"({'concepts, ' if axes == 5 else ''}images, repetitions, channels, times)"
        raise DataError(f"{path}: expected signals {order} in floating point, found {found}")
    signal = signal.reshape(-1, *signal.shape[-3:])  # concept by concept, as the stimulus table
    channels, times = _texts(content["ch_names"]), np.asarray(content["times"])
    if channels is None or len(channels) != signal.shape[2]:
        raise DataError(f"{about}: ch_names must name {signal.shape[2]} channels of {path}, found {channels}")
    return _Recording(path, signal, channels, _times(about, times, signal.shape[3]), _sessions(path, session), image)


def _times(path: Path, times: Array, samples: int) -> Float[np.ndarray, " t"]:
    if times.ndim != 1 or times.dtype.kind != "f" or not 2 <= samples <= len(times):
        raise DataError(
            f"{path}: times must be seconds of at least {max(samples, 2)} samples, found {times.dtype} {times.shape}"
        )
    kept = times[len(times) - samples :].astype(np.float64)  # what is before the picture may have been left out
    steps = np.diff(kept)
    if not (steps > 0).all() or not np.allclose(steps, steps[0], rtol=1e-3):
        raise DataError(f"{path}: times must be equally far apart, found steps of {steps.min():g} to {steps.max():g} s")
    return kept


def _sessions(path: Path, session: Any) -> Array | None:
    if session is None:
        return None
    numbers = np.asarray(session)
    if numbers.ndim != 2 or numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all():
        raise DataError(f"{path}: session must be a number for each repetition, found {numbers.dtype} {numbers.shape}")
    return numbers.astype(np.int64)


def _column(path: Path, image: Any) -> list[str] | None:
    """The picture of each row of ``img`` ``(images, repetitions)``."""
    if image is None:
        return None
    if not isinstance(image, np.ndarray) or image.ndim != 2 or image.dtype.kind != "U" or not image.shape[1]:
        raise DataError(f"{path}: img must be the file of each repetition, as text, found a {type(image).__name__}")
    return [str(file) for file in image[:, 0]]


def _texts(value: Any) -> list[str] | None:
    """A list (or array) of text as a list; None for anything else."""
    values = value.tolist() if isinstance(value, np.ndarray) else value
    return values if isinstance(values, list) and all(type(text) is str for text in values) else None


def _read_json(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    try:
        content = json.loads(existing(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"cannot read {path}: {error}; it must be JSON") from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise DataError(f"{path}: missing {', '.join(missing)}")
    return dict(content)


# ---- stimuli ---------------------------------------------------------------------------------------


Table = list[tuple[str, str]]
"""Folder (``00001_aardvark``) and file (``aardvark_01b.jpg``) of each picture, in the order of the signals."""


def _find_table(root: Path, images: str) -> dict[Part, Table] | None:
    """Pictures of both parts by the authors' table; None where it is absent."""
    folders = [root, *([root / images] if images else [])]
    path = next((folder / name for folder in folders for name in TABLES if (folder / name).is_file()), None)
    if path is None:
        return None
    keys = {part: (f"{part}_img_concepts", f"{part}_img_files") for part in PARTS}
    names = [key for pair in keys.values() for key in pair]
    content = load_mapped(path, names) if path.suffix == ".npy" else _read_json(path, names)
    tables: dict[Part, Table] = {}
    for part, pair in keys.items():
        concepts, files = (_texts(content[key]) for key in pair)
        if not concepts or not files or len(concepts) != len(files):
            raise DataError(f"{path}: {' and '.join(pair)} must be lists of text of one length")
        tables[part] = list(zip(concepts, files, strict=True))
        outside = [name for entry in tables[part] for name in entry if Path(name).name != name]
        if outside:
            raise DataError(f"{path}: {outside[0]!r} is no name of a folder or file; correct the table")
    return tables


def _own_table(recording: _Recording) -> Table:
    if recording.image is None:
        raise DataError(
            f"no stimulus table for {recording.path}: put {TABLES[0]} ({PICTURES}) into the folder of "
            "--data.init_args.root"
        )
    places = [Path(file) for file in recording.image]
    return [(place.parent.name, place.name) for place in places]


def _stimuli(root: Path, images: str, part: Part, table: Table) -> Stimuli:
    """Pictures by the name of their file; the class is the concept without its number, which parts count anew."""
    names = [Path(file).stem for _, file in table]
    label = [re.sub(r"^\d+_", "", concept) for concept, _ in table]
    if not images:
        return Stimuli(id=names, image=None, label=label)
    folders = [root / images / name for name in PICTURE_FOLDERS[part]]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise DataError(
            f"no pictures: expected a folder {' or '.join(map(str, folders))}; put it there ({PICTURES}), or change "
            "--data.init_args.images (empty: do without pictures)"
        )
    return Stimuli(id=names, image=[folder / concept / file for concept, file in table], label=label)


# ---- signals ---------------------------------------------------------------------------------------


def _axes(subject: str, recordings: Mapping[Part, _Recording], chosen: list[str] | None) -> SignalAxes:
    train, test = recordings["train"], recordings["test"]
    if train.channels != test.channels or not np.array_equal(train.times, test.times):
        raise DataError(f"{train.path} and {test.path} differ in their channels or times; they must be of one kind")
    unknown = [name for name in chosen or [] if name not in train.channels]
    if unknown:
        raise DataError(
            f"{train.path} has no channel {', '.join(unknown)}; it has {', '.join(train.channels)}; change "
            "--data.init_args.channels"
        )
    channels = chosen or train.channels
    times = train.times
    return SignalAxes(
        subject=subject,
        channels=channels,
        positions=template_positions(channels) if len(template_names(channels)) == len(channels) else None,
        sampling_rate=round((len(times) - 1) / float(times[-1] - times[0]), 3),
        start=round(float(times[0]), 6),
    )


def _check(recording: _Recording, part: Part, table: Table) -> None:
    """Raise a ``DataError`` unless the trials are those of the table's pictures."""
    images, repetitions = recording.signal.shape[:2]
    release = "both must be of the same release"
    if images != len(table):
        raise DataError(
            f"{recording.path} holds {images} pictures, the stimulus table names {len(table)} for {part}; {release}"
        )
    if recording.image is not None:
        found, expected = ([Path(file).stem for file in files] for files in (recording.image, (f for _, f in table)))
        if found != expected:
            other = next((name for name in found if name not in expected), "others in their order")
            raise DataError(f"{recording.path}: img names {other}, which the stimulus table lacks; {release}")
    if recording.session is not None and recording.session.shape != (images, repetitions):
        raise DataError(f"{recording.path}: session must be {(images, repetitions)}, found {recording.session.shape}")


def _trials(
    subject: str, part: Part, recording: _Recording, table: Table, chosen: list[str] | None
) -> Iterator[Trials]:
    """Pictures in the order of the table, the repetitions of each together, some hundred trials at a time."""
    images, repetitions = recording.signal.shape[:2]
    names = [Path(file).stem for _, file in table]
    order = [recording.channels.index(name) for name in chosen or recording.channels]
    dtype = np.float16 if recording.signal.dtype == np.float16 else np.float32
    step = max(1, PIECE // repetitions)
    for first in range(0, images, step):
        block = recording.signal[first : first + step]
        session = None if recording.session is None else recording.session[first : first + step].ravel()
        yield Trials(
            subject=subject,
            signal=block[:, :, order].astype(dtype).reshape(-1, len(order), block.shape[-1]),
            stimulus=[name for name in names[first : first + step] for _ in range(repetitions)],
            split=part,
            session="1" if session is None else [str(number + 1) for number in session],
        )
