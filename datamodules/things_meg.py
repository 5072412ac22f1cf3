"""THINGS-MEG: magnetoencephalography of four people who saw 22,448 photographs of objects (Hebart et al. 2023)."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from contracts import DataError
from datamodules.core.base import BrainDataModule, Facts
from datamodules.core.raw import Record, SignalAxes, Stimuli, Trials
from datamodules.core.splits import SplitOptions

PIECE = 128
"""Epochs that are read at a time; MNE gives them as float64, 78 MB of the published size."""
TRIAL_TYPES = ("exp", "test", "catch")
"""What ``trial_type`` may be: seen once, seen in every session, and the task that keeps people awake."""
COLUMNS = ("trial_type", "image_path", "session_nr", "run_nr")
"""Columns of the trial table that are read."""
END_OF_FILE = struct.pack(">4i", 108, 0, 0, -1)
"""What a whole fif file ends with as MNE writes it: an empty tag (FIFF_NOP) that says that none follows."""
RECORDINGS = "https://openneuro.org/datasets/ds004212 (derivatives/preprocessed)"
TABLES = "https://openneuro.org/datasets/ds004212 (sourcedata)"
PICTURES = "https://osf.io/jum2f"
PEOPLE = ("01", "02", "03", "04")


class THINGSMEG(BrainDataModule):
    """Four people; 22,248 photographs of 1,854 concepts seen once, 200 test photographs seen 12 times, in 12 sessions.

    The epochs are those that the authors preprocessed: 271 CTF sensors (MRO11-1609 was broken), -0.1 to 1.3 s at
    200 Hz, 0.1 to 40 Hz, each sensor of an epoch z-scored by its samples up to the onset. They are looked for in
    ``root``, ``root/preprocessed`` and ``root/derivatives/preprocessed``; the first of these folders that holds any
    counts:

    - ``preprocessed_P1-epo.fif`` and its further parts ``preprocessed_P1-epo-1.fif``, ..., of any of the people;
    - ``sample_attributes_P1.csv`` beside them, in ``root`` or in ``root/sourcedata``: not needed where the epochs carry
      the same table, as the published ones do; where it is there, it must be as long as they are.

    Epochs are read in pieces of 128, and stored as float32: 8 GB a person. Catch trials are left out. A stimulus is a
    photograph, its class is its concept: its file name up to the last ``_``, which ``things_category_nr`` numbers.

    Zero-shot by default: training trials of a concept that is tested, by anyone, are the part ``test_concepts``, which
    is left out. The published split trains on them, too: ``split.trained=train+test_concepts`` with
    ``split.protocol=by_stimulus`` (``configs/data/things_meg_published.yaml``).

    Licence: CC0 (``dataset_description.json`` of OpenNeuro ds004212); the photographs have licences of their own.

    Reference: Hebart et al. (2023), THINGS-data, a multimodal collection of large-scale datasets for investigating
    object representations in human brain and behavior, eLife 12, e82580: numbers of people, photographs, repetitions
    and sessions, preprocessing. Public addresses: https://openneuro.org/datasets/ds004212 and
    https://plus.figshare.com/articles/dataset/THINGS-data_MEG_preprocessed_dataset/21215246 (epochs),
    https://osf.io/jum2f (photographs).

    Args:
        root: Folder of the raw files, or one that holds them as above.
        images: Folder of the photographs, ``<concept>/<file>``, below ``root`` or anywhere; empty for no pictures.
        split: As for every data set; ``by_class`` unless told otherwise.
        **kwargs: Options of every data set (``BrainDataModule``).
    """

    name = "things_meg"
    parts: ClassVar[tuple[str, ...]] = ("train", "test_concepts", "test")
    facts = Facts(
        modality="meg",
        units="SD of the baseline",
        licence="CC0 (recordings)",
        citation="Hebart et al. (2023), eLife 12, e82580",
        subjects=PEOPLE,
        trials=dict.fromkeys(PEOPLE, 22248 + 2400),
        stimuli=22248 + 200,
        shape=dict.fromkeys(PEOPLE, (271, 281)),
    )

    def __init__(
        self,
        root: str,
        *,
        images: str = "Images",
        split: SplitOptions = SplitOptions(protocol="by_class"),
        **kwargs: Any,
    ) -> None:
        super().__init__(root, split=split, **kwargs)
        self.images = images

    def conversion_options(self) -> dict[str, Any]:
        """Where the pictures are, or that there are none."""
        return {"images": self.images}

    def read(self, root: Path) -> Iterator[Record]:
        """Open all people, so that what is wrong is told first; then yield the pictures, and person after person."""
        people = [_open(subject, path, root) for subject, path in find_people(root).items()]
        for person in people[1:]:
            _require_same_axes(people[0], person)
        shown = pd.concat([person.trials for person in people])
        tested = frozenset(shown["concept"][shown["trial_type"] == "test"])
        yield _stimuli(shown.drop_duplicates("stimulus"), root / self.images if self.images else None)
        for person in people:
            yield person.axes
            yield from _read(person, tested)


def find_people(root: Path) -> dict[str, Path]:
    """Return the first part of each person's epochs, by number.

    Raises:
        DataError: No epochs, or further parts without the first.
    """
    folders = [root, root / "preprocessed", root / "derivatives" / "preprocessed"]
    for folder in filter(Path.is_dir, folders):
        people: dict[int, Path] = {}
        for path in sorted(folder.iterdir()):
            match = re.fullmatch(r"preprocessed_P([1-9]\d*)-epo(?:-\d+)?\.fif", path.name)
            if match is not None:
                first = folder / f"preprocessed_P{match[1]}-epo.fif"
                if not first.is_file():
                    raise DataError(
                        f"{path} is a further part of {first.name}, which is missing; fetch it from {RECORDINGS}"
                    )
                people[int(match[1])] = first
        if people:
            return {f"{number:02d}": path for number, path in sorted(people.items())}
    there = [folder for folder in folders if folder.is_dir()]
    found = sorted(entry.name for folder in there for entry in folder.iterdir())
    raise DataError(
        f"no epochs of THINGS-MEG (preprocessed_P1-epo.fif, ...) in {root} or its folders preprocessed, "
        f"derivatives/preprocessed; found {', '.join(found[:8]) or 'nothing'}. Put the files there ({RECORDINGS}), or "
        "change --data.init_args.root"
    )


@dataclass(frozen=True)
class _Person:
    """One person's epochs, of which nothing but the tables is in memory.

    Attributes:
        path: First part of the epochs.
        epochs: ``mne.epochs.EpochsFIF``.
        channels: Which of its channels are sensors.
        trials: Trials that are no catch trials: ``epoch`` (row of ``epochs``), ``trial_type``, ``file``, ``stimulus``,
            ``concept``, ``session``, ``run``.
        axes: Sensors and times.
    """

    path: Path
    epochs: Any
    channels: NDArray[np.int64]
    trials: pd.DataFrame
    axes: SignalAxes


def _open(subject: str, path: Path, root: Path) -> _Person:
    import mne

    epochs = _open_epochs(path)
    channels = mne.pick_types(epochs.info, meg="mag", ref_meg=False, exclude=())
    if not len(channels):
        raise DataError(f"{path}: no magnetometers among {len(epochs.ch_names)} channels; fetch it from {RECORDINGS}")
    axes = SignalAxes(
        subject=subject,
        channels=[epochs.ch_names[i] for i in channels],
        positions=_positions(epochs.info, channels),
        sampling_rate=float(epochs.info["sfreq"]),
        start=float(epochs.tmin),
    )
    attributes = _attributes(path, epochs, [path.parent, root, root / "sourcedata"])
    return _Person(path, epochs, np.asarray(channels, np.int64), _trials(path, attributes), axes)


def _open_epochs(path: Path) -> Any:
    """Open a person's epochs; the samples stay on disk.

    MNE follows the name of the next part, which stands at the end of each: from a part that was cut off behind its
    samples it would read on without a word, as if there were no further ones.
    """
    import mne

    for part in (path, *sorted(path.parent.glob(f"{path.stem}-*.fif"))):
        with part.open("rb") as stream:
            stream.seek(max(part.stat().st_size - len(END_OF_FILE), 0))
            if stream.read() != END_OF_FILE:
                raise DataError(
                    f"cannot read {part} ({part.stat().st_size} bytes): it does not end as fif files do. It is "
                    f"truncated or of another format; fetch it again from {RECORDINGS}"
                )
    try:
        return mne.read_epochs(path, preload=False, verbose="ERROR")
    except FileNotFoundError as error:
        raise DataError(
            f"the epochs of {path} go on in {error.filename}, which is missing; fetch it from {RECORDINGS}"
        ) from error
    # MNE reports damaged files with many types: ValueError, AttributeError, IndexError, RuntimeError ...
    except Exception as error:
        raise DataError(
            f"cannot read {path}, or one of its further parts: {type(error).__name__}: {error}. One is damaged, or not "
            f"of this person; fetch them again from {RECORDINGS}"
        ) from error


def _positions(info: Any, channels: NDArray[Any]) -> NDArray[np.float64] | None:
    """Head coordinates; files give sensors in those of the device."""
    import mne

    places = np.array([info["chs"][i]["loc"][:3] for i in channels], np.float64)
    if info["dev_head_t"] is None or not np.isfinite(places).all():
        return None
    return np.asarray(mne.transforms.apply_trans(info["dev_head_t"], places), np.float64)


def _attributes(path: Path, epochs: Any, folders: Sequence[Path]) -> pd.DataFrame:
    """The table of all trials, which stands in the epochs, in a file beside them, or in both."""
    carried: pd.DataFrame | None = epochs.metadata
    name = path.name.replace("preprocessed", "sample_attributes").replace("-epo.fif", ".csv")
    file = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if file is None:
        if carried is None:
            raise DataError(
                f"{path} says nothing about its trials (no metadata), and there is no {name} in "
                f"{', '.join(map(str, dict.fromkeys(folders)))}; fetch it from {TABLES}"
            )
        return carried
    try:
        table = pd.read_csv(file)
    except (ValueError, OSError) as error:
        raise DataError(f"cannot read {file}: {error}; it must be a table with commas, or absent") from error
    if len(table) != len(epochs):
        raise DataError(
            f"{path} and its further parts hold {len(epochs)} epochs, {file} describes {len(table)} trials; fetch them "
            f"again from {RECORDINGS} and {TABLES}"
        )
    return table if carried is None else carried


def _trials(path: Path, attributes: pd.DataFrame) -> pd.DataFrame:
    absent = [name for name in COLUMNS if name not in attributes]
    if absent:
        raise DataError(
            f"{path}: the table of trials lacks {', '.join(absent)}; it has {', '.join(map(str, attributes.columns))}"
        )
    table = attributes[list(COLUMNS)].reset_index(drop=True)
    unknown = ~table["trial_type"].isin(TRIAL_TYPES)
    if unknown.any():
        row = table[unknown].iloc[0]
        raise DataError(
            f"{path}: {unknown.sum()} of {len(table)} trials are of no known trial_type ({', '.join(TRIAL_TYPES)}); "
            f"trial {row.name} is {row['trial_type']!r}"
        )
    table = table[table["trial_type"] != "catch"].rename_axis("epoch").reset_index()
    for name in ("session", "run"):
        numbers = pd.to_numeric(table[f"{name}_nr"], errors="coerce")
        wrong = numbers.isna() | (numbers % 1 != 0)
        if wrong.any():
            row = table[wrong].iloc[0]
            raise DataError(f"{path}: {name}_nr of trial {row['epoch']} is {row[f'{name}_nr']}, not a whole number")
        table[name] = numbers.astype(int).astype(str)
    table["file"] = [PurePosixPath(str(place)).name for place in table["image_path"]]
    table["stimulus"] = [PurePosixPath(file).stem for file in table["file"]]
    table["concept"] = [stimulus.rpartition("_")[0] for stimulus in table["stimulus"]]
    nameless = table["concept"] == ""
    if nameless.any():
        row = table[nameless].iloc[0]
        raise DataError(
            f"{path}: image_path of trial {row['epoch']} is {row['image_path']!r}; expected "
            "images_meg/<concept>/<concept>_01b.jpg or images_test_meg/<concept>_13s.jpg"
        )
    return table


def _require_same_axes(first: _Person, other: _Person) -> None:
    """Every sample has the sensors and times of the layout, which are those of the first person."""
    for what, one, two in (
        ("channels", list(first.axes.channels), list(other.axes.channels)),
        ("samples", len(first.epochs.times), len(other.epochs.times)),
        ("samples per second", first.axes.sampling_rate, other.axes.sampling_rate),
        ("time of the first sample", first.axes.start, other.axes.start),
    ):
        if one != two:
            raise DataError(
                f"people differ in {what}: {first.path} has {_brief(one, two)}, {other.path} has {_brief(two, one)}; "
                "give each a folder of its own (--data.init_args.root)"
            )


def _brief(value: Any, other: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    only = [name for name in value if name not in other]
    return f"{len(value)}" + (f" (alone in having {', '.join(only[:4])})" if only else "")


def _stimuli(shown: pd.DataFrame, folder: Path | None) -> Stimuli:
    if folder is not None and not folder.is_dir():
        raise DataError(
            f"no folder {folder} of photographs, <concept>/<file>; put them there ({PICTURES}), name another one with "
            '--data.init_args.images, or do without pictures (--data.init_args.images="")'
        )
    pairs = zip(shown["concept"], shown["file"], strict=True)
    return Stimuli(
        id=shown["stimulus"].tolist(),
        image=None if folder is None else [folder / concept / file for concept, file in pairs],
        label=shown["concept"].tolist(),
    )


def _read(person: _Person, tested: frozenset[str]) -> Iterator[Trials]:
    """Read a person's samples piece by piece, which MNE keeps nothing of."""
    trials = person.trials
    split = np.where(trials["concept"].isin(tested), "test_concepts", "train")
    split[trials["trial_type"] == "test"] = "test"
    for start in range(0, len(trials), PIECE):
        part = slice(start, start + PIECE)
        rows = trials.iloc[part]
        try:
            samples = person.epochs.get_data(
                picks=person.channels, item=rows["epoch"].to_numpy(), copy=False, verbose="ERROR"
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise DataError(
                f"cannot read epochs {rows['epoch'].iloc[0]} to {rows['epoch'].iloc[-1]} of {person.path}: {error}; "
                f"fetch it and its further parts again from {RECORDINGS}"
            ) from error
        yield Trials(
            subject=str(person.axes.subject),
            signal=samples.astype(np.float32),
            stimulus=rows["stimulus"].tolist(),
            split=split[part].tolist(),
            session=rows["session"].tolist(),
            run=rows["run"].tolist(),
        )
