"""BrainStore: the one format under every data set.

A folder in the spirit of BIDS::

    dataset_description.json   name, licence, citation, modality, axes of the signals, format version, checksums
    participants.tsv           participant_id, trials, features
    stimuli.tsv                id, image, sha256 (of the picture, or of the id where there is none), class, caption
    trials.tsv                 subject, session, run, stimulus, repetition, split
    stimuli-00.npy             pictures that came as arrays; others stay where they are under ``root``
    sub-01_signals.npy         (trials, V), (trials, V, T) or (trials, C, T), float32 or float16, memory mapped
    sub-01_ncsnr.npy           (V,), where the data set gives one
    sub-01_coordinates.npy     (V, 3), where the data set knows the places of its voxels
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.progress import track

from contracts import DataError, Modality
from datamodules.core.raw import Record, SignalAxes, Space, Stimuli, Trials
from datamodules.core.readers import existing, load_npy
from datamodules.core.stimulus_pictures import StimulusPictures, write_stimuli

FORMAT_VERSION = 1
Array = NDArray[Any]


class BrainStore:
    """A converted data set; opening it maps files and reads tables, never the signals.

    Args:
        folder: The store.
        root: Where pictures that stayed in their raw folder are found.

    Raises:
        DataError: Not a store, another format version, or a file with another size than recorded.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        self.root = root
        self._pictures = StimulusPictures(folder, root)
        description = existing(folder / "dataset_description.json")
        try:
            self.description: dict[str, Any] = json.loads(description.read_text())
        except json.JSONDecodeError as error:
            raise DataError(
                f"{description} is damaged ({error}); delete the folder {folder} to convert again"
            ) from None
        version = self.description.get("format_version")
        if version != FORMAT_VERSION:
            raise DataError(
                f"{folder} has format version {version}, this program reads {FORMAT_VERSION}; "
                "delete the folder to convert again"
            )
        for name, size in self.description["sizes"].items():
            found = (folder / name).stat().st_size if (folder / name).exists() else None
            if found != size:
                raise DataError(
                    f"{folder / name}: expected {size} bytes, found {found}; delete the folder {folder} "
                    "to convert again"
                )

    @property
    def subjects(self) -> list[str]:
        """Names of the people, in the order of the raw data."""
        return list(self.description["subjects"])

    @property
    def modality(self) -> Modality:
        """``fmri``, ``eeg`` or ``meg``."""
        modality: Modality = self.description["modality"]
        return modality

    @cached_property
    def stimuli(self) -> pd.DataFrame:
        """The stimulus table, all columns text; empty text where a field is absent."""
        return _read_table(self.folder / "stimuli.tsv")

    @cached_property
    def trials(self) -> pd.DataFrame:
        """The trial table; ``number`` is the stimulus number, ``index`` the row in the subject's signals."""
        trials = _read_table(self.folder / "trials.tsv")
        numbers = dict(zip(self.stimuli["id"], self.stimulus_numbers, strict=True))
        trials["number"] = trials["stimulus"].map(numbers).astype(np.int64)
        trials["repetition"] = trials["repetition"].astype(np.int64)
        trials["index"] = trials.groupby("subject").cumcount()
        return trials

    @cached_property
    def stimulus_numbers(self) -> Array:
        """Number of each stimulus: the first row of the table with the same SHA-256, so equal pictures agree."""
        first = self.stimuli.drop_duplicates("sha256").set_index("sha256").index
        rows = pd.Series(np.flatnonzero(~self.stimuli["sha256"].duplicated()), index=first)
        return rows.loc[self.stimuli["sha256"]].to_numpy(np.int64)

    def axes(self, subject: str) -> SignalAxes:
        """What the columns of a person's signals are."""
        stored = self.description["axes"][subject]
        ncsnr, coordinates = (self.folder / f"sub-{subject}_{name}.npy" for name in ("ncsnr", "coordinates"))
        return SignalAxes(
            subject=subject,
            rois=stored["rois"],
            channels=stored["channels"],
            positions=np.asarray(stored["positions"]) if stored["positions"] else None,
            sampling_rate=stored["sampling_rate"],
            start=stored["start"],
            ncsnr=load_npy(ncsnr) if ncsnr.exists() else None,
            # stores made before places were kept have neither
            coordinates=load_npy(coordinates) if coordinates.exists() else None,
            space=stored.get("space"),
        )

    def signals(self, subject: str) -> Array:
        """Memory map of one person's signals, ``(trials, V)``, ``(trials, V, T)`` or ``(trials, C, T)``."""
        return load_npy(self.folder / f"sub-{subject}_signals.npy", mmap=True)

    @cached_property
    def has_pictures(self) -> bool:
        """Whether the stimuli are pictures."""
        return bool((self.stimuli["image"] != "").all())

    def image(self, number: int) -> Array:
        """The picture with a stimulus number, RGB uint8 ``(H, W, 3)``."""
        return self._pictures.image(self.stimuli["image"].iloc[number])

    def image_size(self, number: int) -> tuple[int, int]:
        """Height and width of the picture with a stimulus number; pixels are not read."""
        return self._pictures.size(self.stimuli["image"].iloc[number])


def write_store(
    folder: Path,
    records: Iterable[Record],
    *,
    root: Path,
    name: str,
    modality: Modality,
    about: Mapping[str, Any],
    parts: Sequence[str] = ("train", "test"),
) -> None:
    """Write a new store from the records of a raw data set, streaming the signals.

    Args:
        folder: The folder to make; must not exist (see ``atomic.build_once``).
        records: What the data set's reader yields.
        root: The raw folder; pictures given as files are recorded relative to it.
        name: Name of the data set.
        modality: ``fmri`` (trials of V or V x T numbers), ``eeg`` or ``meg`` (trials of C x T numbers).
        about: Further entries of ``dataset_description.json`` (licence, citation, options).
        parts: What the ``split`` of a trial may be.

    Raises:
        DataError: Records that do not fit together; the message names the subject and the field.
    """
    folder.mkdir(parents=True)
    stimuli: list[pd.DataFrame] = []
    trials: list[pd.DataFrame] = []
    axes: dict[str | None, SignalAxes] = {}
    signals: dict[str, _SignalWriter] = {}
    packs = 0
    try:
        for record in track(records, description=f"converting {name}", transient=True):
            if isinstance(record, Stimuli):
                stimuli.append(write_stimuli(folder, root, record, pack=packs))
                packs += 1
            elif isinstance(record, SignalAxes):
                axes[record.subject] = record
            else:
                if record.subject not in signals:
                    signals[record.subject] = _SignalWriter(folder, record.subject)
                shape = "(trials, V) or (trials, V, T)" if modality == "fmri" else "(trials, C, T)"
                if record.signal.ndim not in ((2, 3) if modality == "fmri" else (3,)):
                    raise DataError(
                        f"sub-{record.subject}: {modality} signals are {shape}, found {record.signal.shape}"
                    )
                signals[record.subject].append(record.signal)
                trials.append(_trial_table(record))
            del record  # one person at a time: nothing of this one while the next is read
    finally:
        for writer in signals.values():
            writer.close()
    if not signals or not stimuli:
        raise DataError(
            f"{name}: the reader gave {len(signals)} subjects and {len(stimuli)} stimulus tables; see {root}"
        )
    stimulus_table = pd.concat(stimuli, ignore_index=True)
    pictures = stimulus_table["image"] != ""
    if pictures.any() and not pictures.all():
        raise DataError(f"stimuli: {pictures.sum()} of {len(pictures)} have a picture; give one for all, or for none")
    trial_table = _join_trials(trials, stimulus_table, parts)
    description = {
        "name": name,
        "format_version": FORMAT_VERSION,
        "modality": modality,
        **about,
        "subjects": list(signals),
        "axes": {s: _write_axes(folder, s, writer, axes.get(s, axes.get(None))) for s, writer in signals.items()},
        "bad_features": {s: np.flatnonzero(~writer.finite).tolist() for s, writer in signals.items()},
        "checksums": {f"sub-{s}_signals.npy": writer.sha256 for s, writer in signals.items()},
    }
    participants = pd.DataFrame(
        {
            "participant_id": [f"sub-{s}" for s in signals],
            "trials": [writer.length for writer in signals.values()],
            "features": ["x".join(map(str, writer.shape)) for writer in signals.values()],
        }
    )
    for table, file in ((participants, "participants"), (stimulus_table, "stimuli"), (trial_table, "trials")):
        table.to_csv(folder / f"{file}.tsv", sep="\t", index=False)
    description["sizes"] = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    (folder / "dataset_description.json").write_text(json.dumps(description, indent=2) + "\n")


class _SignalWriter:
    """Appends trials to a ``.npy`` file whose length is known only at the end."""

    def __init__(self, folder: Path, subject: str) -> None:
        self.subject = subject
        self.length = 0
        self.shape: tuple[int, ...] = ()
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        self.finite: Array = np.ones(0, bool)
        self._hash = hashlib.sha256()
        self._file = (folder / f"sub-{subject}_signals.npy").open("wb")

    def append(self, signal: Array) -> None:
        if signal.dtype.kind not in "fiu" or signal.ndim not in (2, 3) or 0 in signal.shape[1:]:
            raise DataError(
                f"sub-{self.subject}: signals must be numbers of shape (trials, V), (trials, V, T) or (trials, C, T), "
                f"found {signal.dtype} {signal.shape}"
            )
        if not self.shape:
            self.shape = signal.shape[1:]
            self.dtype = np.dtype(np.float16 if signal.dtype == np.float16 else np.float32)
            self.finite = np.ones(self.shape, bool)
            self._write_header()
        if signal.shape[1:] != self.shape:
            raise DataError(
                f"sub-{self.subject}: trials of shape {signal.shape[1:]} follow trials of shape {self.shape}; "
                "all trials of a person must have one shape"
            )
        if self.dtype == np.float16 and signal.dtype != np.float16:
            raise DataError(
                f"sub-{self.subject}: {signal.dtype} trials follow float16 trials and would lose precision; "
                "give all trials of a person one type"
            )
        block = np.ascontiguousarray(signal, self.dtype)
        self.finite &= np.isfinite(block).all(axis=0)
        self._file.write(block.data)
        self._hash.update(block.data)
        self.length += len(block)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def close(self) -> None:
        if self.shape:
            self._file.seek(0)
            self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        # numpy pads the header so that the first axis can grow to any length in place
        header = {
            "shape": (self.length, *self.shape),
            "fortran_order": False,
            "descr": np.lib.format.dtype_to_descr(self.dtype),
        }
        np.lib.format.write_array_header_1_0(self._file, header)


def _trial_table(trials: Trials) -> pd.DataFrame:
    columns: dict[str, Any] = {"subject": trials.subject, "stimulus": list(trials.stimulus)}
    for name in ("split", "session", "run"):
        value = getattr(trials, name)
        columns[name] = value if isinstance(value, str) else [str(entry) for entry in value]
    for name, column in columns.items():
        if not isinstance(column, str) and len(column) != len(trials.signal):
            raise DataError(
                f"sub-{trials.subject}: {len(trials.signal)} trials in 'signal', but {len(column)} entries in {name!r}"
            )
    return pd.DataFrame(columns)


def _join_trials(tables: list[pd.DataFrame], stimuli: pd.DataFrame, parts: Sequence[str]) -> pd.DataFrame:
    trials = pd.concat(tables, ignore_index=True)
    repeated = stimuli["id"][stimuli["id"].duplicated()]
    if len(repeated):
        raise DataError(
            f"stimuli: {len(repeated)} ids stand twice, the first is {repeated.iloc[0]!r}; ids must be unique"
        )
    unknown = trials[~trials["stimulus"].isin(stimuli["id"])]
    if len(unknown):
        raise DataError(
            f"sub-{unknown['subject'].iloc[0]}: stimulus without image: {unknown['stimulus'].iloc[0]!r} "
            f"({len(unknown)} trials in all) is not among the {len(stimuli)} stimuli"
        )
    wrong = sorted(set(trials["split"]) - set(parts))
    if wrong:
        raise DataError(f"trials: split must be one of {', '.join(parts)}; found {', '.join(map(repr, wrong))}")
    trials["repetition"] = trials.groupby(["subject", "stimulus"]).cumcount()
    # the signals of a person stand in the order of the trials, so the table may be sorted by person only
    order = pd.Categorical(trials["subject"], categories=list(dict.fromkeys(trials["subject"])))
    trials = trials.iloc[np.argsort(order.codes, kind="stable")]
    return trials[["subject", "session", "run", "stimulus", "repetition", "split"]]


def _write_axes(folder: Path, subject: str, writer: _SignalWriter, axes: SignalAxes | None) -> dict[str, Any]:
    axes = SignalAxes() if axes is None else axes
    rois = {str(name): int(size) for name, size in axes.rois.items()}
    features = int(np.prod(writer.shape))
    if rois and sum(rois.values()) != writer.shape[0]:
        raise DataError(
            f"sub-{subject}: ROI sizes {rois} add up to {sum(rois.values())}, signals have {writer.shape[0]}"
        )
    if len(axes.channels) not in (0, writer.shape[0]):
        raise DataError(f"sub-{subject}: {len(axes.channels)} channel names, signals have {writer.shape[0]} channels")
    if axes.positions is not None and axes.positions.shape != (writer.shape[0], 3):
        raise DataError(f"sub-{subject}: positions must be ({writer.shape[0]}, 3), found {axes.positions.shape}")
    if axes.ncsnr is not None:
        if axes.ncsnr.shape != (features,):
            raise DataError(f"sub-{subject}: ncsnr must be ({features},), found {axes.ncsnr.shape}")
        np.save(folder / f"sub-{subject}_ncsnr.npy", axes.ncsnr.astype(np.float32), allow_pickle=False)
    if axes.coordinates is not None or axes.space is not None:
        _write_coordinates(folder, subject, axes, voxels=writer.shape[0])
    return {
        "rois": rois,
        "channels": list(axes.channels),
        "positions": [] if axes.positions is None else axes.positions.tolist(),
        "sampling_rate": float(axes.sampling_rate),
        "start": float(axes.start),
        "space": axes.space,
    }


def _write_coordinates(folder: Path, subject: str, axes: SignalAxes, *, voxels: int) -> None:
    coordinates = axes.coordinates
    if coordinates is None or axes.space not in get_args(Space):
        given = "no coordinates" if coordinates is None else "coordinates"
        raise DataError(
            f"sub-{subject}: {given} in space {axes.space!r}; coordinates come with one of {', '.join(get_args(Space))}"
        )
    if coordinates.shape != (voxels, 3):
        raise DataError(f"sub-{subject}: coordinates must be ({voxels}, 3), found {coordinates.shape}")
    wrong = np.flatnonzero(~np.isfinite(coordinates).all(axis=1))
    if len(wrong):
        raise DataError(
            f"sub-{subject}: {len(wrong)} of {voxels} voxels have coordinates that are not finite, the first is voxel "
            f"{wrong[0]}: {coordinates[wrong[0]].tolist()}"
        )
    np.save(folder / f"sub-{subject}_coordinates.npy", coordinates.astype(np.float32), allow_pickle=False)


def _read_table(path: Path) -> pd.DataFrame:
    # everything as text: a class "nan", a session "01" or an id "1e3" must survive
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
