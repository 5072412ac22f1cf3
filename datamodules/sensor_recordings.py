"""Recordings of one's own: EEG or MEG in any format that MNE reads, cut around events."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from contracts import DataError
from datamodules.core.base import BrainDataModule, Facts
from datamodules.core.epochs import SAME_RATE, EpochOptions
from datamodules.core.raw import Record, SignalAxes, Stimuli, Trials
from datamodules.core.sensor_files import NONE, SensorFile, SensorKind

WHOLE_EPOCHS = EpochOptions()
_ENTITY = re.compile(r"(?:^|[/_])(sub|ses|run)-([A-Za-z0-9]+)(?=[/_.]|$)")


class SensorRecordings(BrainDataModule):
    """Base of ``EEGRecordings`` and ``MEGRecordings``, which say what the sensors are.

    Files are found by a pattern in the manner of BIDS, ``sub-01/ses-1/eeg/sub-01_ses-1_run-1_eeg.set``, or named for
    each person. Every description of an event that is chosen is a stimulus, with the class that ``events`` gives it and
    the picture of its name in ``pictures``. All trials are for training: divide by ``split.folds`` and a protocol.
    Signals are in volts, teslas or teslas per metre; cleaning or normalisation brings them to the size of 1.

    Reference of the readers: Gramfort et al. (2013), MEG and EEG data analysis with MNE-Python, Frontiers in
    Neuroscience 7, 267.

    Args:
        root: Folder of the files.
        sensors: Type of the channels.
        files: Pattern below ``root`` with the person in it (``sub-01``; session ``ses-1`` and ``run-1`` if any), or
            the files of each person, in the order of their runs.
        events: Description of an event (of an annotation, or a code as text) -> its class; several may share one. None:
            every description by its own name, or none at all where ``epochs.every`` cuts at equal steps.
        stim_channel: Channel that holds the events as codes; None for annotations.
        channels: Names of the channels, in this order; None for all of the type that no file marks as bad.
        stimulus: What counts as one stimulus: an ``event`` description, met again in every trial and person, or each
            ``trial`` by itself, where it is not the same thing that is perceived again.
        pictures: Folder below ``root`` with one picture for each description (``house_1.png``); None for no pictures.
        epochs: How the recordings are cut.
        **kwargs: As for every data set.
    """

    def __init__(
        self,
        root: str,
        *,
        sensors: SensorKind,
        files: str | dict[str, list[str]] = "sub-*/**/*.fif",
        events: dict[str, str] | None = None,
        stim_channel: str | None = None,
        channels: list[str] | None = None,
        stimulus: Literal["event", "trial"] = "event",
        pictures: str | None = None,
        epochs: EpochOptions = WHOLE_EPOCHS,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.sensors: SensorKind = sensors
        self.pattern = files
        self.events = events
        self.stim_channel = stim_channel
        self.channels = channels
        self.stimulus_is = stimulus
        self.pictures = pictures
        self.epochs = epochs
        if pictures is not None and (stimulus != "event" or epochs.every is not None):
            raise DataError(
                "pictures belong to events: they need --data.init_args.stimulus=event, and no epochs without an event "
                "(epochs.every)"
            )

    def conversion_options(self) -> dict[str, Any]:
        """Everything that decides which numbers a trial holds."""
        names = ("sensors", "events", "stim_channel", "channels", "pictures")
        return {name: getattr(self, name) for name in names} | {
            "files": self.pattern,
            "stimulus": self.stimulus_is,
            "epochs": asdict(self.epochs),
        }

    def read(self, root: Path) -> Iterator[Record]:
        """Yield the epochs of one file after another."""
        known: set[str] = set()
        found: set[str] = set()
        axes: SignalAxes | None = None
        for person, runs in self._files(root).items():
            for number, path in enumerate(runs):
                file = SensorFile(path, self.sensors, self.channels)
                mine = self._axes(file)
                if axes is None:
                    axes = mine
                    yield axes
                _refuse_other_axes(axes, mine, path)
                entities = dict(_ENTITY.findall(path.relative_to(root).as_posix()))
                session, run = entities.get("ses", "1"), entities.get("run", str(number + 1))
                for piece in file.epochs(
                    self.epochs, None if self.events is None else [*self.events], self.stim_channel
                ):
                    found.update(piece.event)
                    place = f"sub-{person}_ses-{session}_run-{run}"
                    by_event = self.stimulus_is == "event" and all(piece.event)
                    names = piece.event if by_event else [f"{place}_{time:.3f}s" for time in piece.time]
                    label = dict(zip(names, map(self._class, piece.event), strict=True))
                    new = [name for name in label if name not in known]
                    known.update(new)
                    if new:
                        yield Stimuli(new, self._pictures(root, new), [label[name] for name in new])
                    yield Trials(person, piece.signal, names, session=session, run=run)
        missing = [name for name in self.events or () if name not in found]
        if missing:
            raise DataError(
                f"{root.absolute()}: no file has an event {', '.join(missing)}; found {', '.join(sorted(found))}; "
                "change --data.init_args.events"
            )

    def _files(self, root: Path) -> dict[str, list[Path]]:
        """Files of each person, in the order of their runs."""
        if isinstance(self.pattern, Mapping):
            if not self.pattern or not all(self.pattern.values()):
                raise DataError("no files are named for some person; change --data.init_args.files")
            return {person: [root / name for name in names] for person, names in self.pattern.items()}
        people: dict[str, list[Path]] = {}
        for path in sorted(root.glob(self.pattern)):
            entities = dict(_ENTITY.findall(path.relative_to(root).as_posix()))
            if "sub" not in entities:
                raise DataError(
                    f"{path}: no sub-... in its name tells whose it is; name the files of each person instead: "
                    "--data.init_args.files='{\"01\": [...]}'"
                )
            people.setdefault(entities["sub"], []).append(path)
        if not people:
            raise DataError(f"no {self.pattern} in {root.absolute()}; change --data.init_args.files")
        return people

    def _axes(self, file: SensorFile) -> SignalAxes:
        return SignalAxes(
            channels=file.channels,
            positions=file.positions,
            sampling_rate=file.grid(self.epochs).new_rate,
            start=file.grid(self.epochs).start,
        )

    def _class(self, event: str) -> str:
        if event in ("", NONE) or self.events is None:
            return event
        return self.events[event]

    def _pictures(self, root: Path, names: Sequence[str]) -> list[Path] | None:
        """The picture of each event."""
        if self.pictures is None:
            return None
        folder = root / self.pictures
        there = {path.stem: path for path in sorted(folder.glob("*")) if path.is_file()}
        missing = [name for name in names if name not in there]
        if missing:
            raise DataError(
                f"{folder.absolute()} has no picture of {', '.join(missing[:5])}: one file for each event is needed, "
                f"found {', '.join(list(there)[:5]) or 'nothing'}; change --data.init_args.pictures"
            )
        return [there[name] for name in names]


class EEGRecordings(SensorRecordings):
    """EEG recordings; see ``SensorRecordings``.

    Args:
        root: Folder of the files.
        sensors: ``eeg``.
        **kwargs: As for ``SensorRecordings``.
    """

    name = "eeg_recordings"
    facts = Facts(modality="eeg", units="V", licence="of the recordings", citation="of the recordings", subjects=())

    def __init__(self, root: str, *, sensors: Literal["eeg"] = "eeg", **kwargs: Any) -> None:
        super().__init__(root, sensors=sensors, **kwargs)


class MEGRecordings(SensorRecordings):
    """MEG recordings of magnetometers (CTF's axial gradiometers among them) or gradiometers; see ``SensorRecordings``.

    Args:
        root: Folder of the files.
        sensors: ``mag`` or ``grad``: one type, as they differ in their units.
        **kwargs: As for ``SensorRecordings``.
    """

    name = "meg_recordings"
    facts = Facts(
        modality="meg", units="T or T/m", licence="of the recordings", citation="of the recordings", subjects=()
    )

    def __init__(self, root: str, *, sensors: Literal["mag", "grad"] = "mag", **kwargs: Any) -> None:
        super().__init__(root, sensors=sensors, **kwargs)


def _refuse_other_axes(axes: SignalAxes, mine: SignalAxes, path: Path) -> None:
    """Refuse a file of other channels or another sampling rate than the first one."""
    if list(mine.channels) != list(axes.channels):
        more, less = (
            sorted(set(a) - set(b)) for a, b in ((mine.channels, axes.channels), (axes.channels, mine.channels))
        )
        raise DataError(
            f"{path}: other channels than in the first file: {', '.join(more) or 'none'} more, "
            f"{', '.join(less) or 'none'} less{'' if more or less else ', but in another order'}; name those that all "
            "have with --data.init_args.channels"
        )
    if not np.isclose(mine.sampling_rate, axes.sampling_rate, rtol=2 * SAME_RATE, atol=0):
        raise DataError(
            f"{path}: {mine.sampling_rate:g} Hz, the first file has {axes.sampling_rate:g} Hz; bring all to one with "
            "--data.init_args.epochs.sampling_rate"
        )
