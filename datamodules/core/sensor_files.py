"""Files of EEG and MEG in any format that MNE reads, and epochs cut from them a piece at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from contracts import DataError, reason_of
from datamodules.core.epochs import EpochOptions, Grid
from datamodules.core.readers import existing

Array = NDArray[Any]
SensorKind = Literal["eeg", "mag", "grad"]
NONE = "none"
"""Class of epochs away from every event."""
PIECE = 4_000_000
"""Numbers of a recording that are read and filtered at a time (32 MB, and some copies)."""


@dataclass(frozen=True)
class Epochs:
    """Some epochs of one recording in order of time: signals ``(n, C, T)`` float32 and what each is about.

    Attributes:
        signal: In the file's units, volts or teslas (per metre).
        event: Description of the event of each epoch; ``none`` away from all, empty where no events were asked for.
        time: Seconds from the beginning of the recording to the event of each.
    """

    signal: Float[Array, "n c t"]
    event: list[str]
    time: list[float]


class SensorFile:
    """One recording: continuous, opened but not read, or already cut into epochs, which are read whole.

    Args:
        path: The file.
        kind: Sensors to take.
        channels: Their names, in this order; None for all of the kind that the file does not mark as bad.

    Raises:
        DataError: A file that MNE does not read, or without such sensors.
    """

    def __init__(self, path: Path, kind: SensorKind, channels: Sequence[str] | None = None) -> None:
        import mne

        self.path = path
        self.content, self.continuous = _open(path)
        info = self.content.info
        wanted: dict[str, Any] = {"eeg": True} if kind == "eeg" else {"meg": kind, "ref_meg": False}
        found = mne.pick_types(info, **wanted, exclude="bads" if channels is None else ())
        names = [info["ch_names"][place] for place in found]
        missing = sorted(set(channels or ()) - set(names))
        if missing or not names:
            kinds = ", ".join(f"{len(v)} {k}" for k, v in mne.channel_indices_by_type(info).items() if len(v))
            raise DataError(
                f"{path}: no {kind} channel {', '.join(missing)}".rstrip()
                + f"; it holds {kinds or 'nothing'}; change --data.init_args.sensors or channels"
            )
        self.channels = names if channels is None else list(channels)
        self.picks = [info["ch_names"].index(name) for name in self.channels]
        self.rate = float(info["sfreq"])

    @cached_property
    def positions(self) -> Float[Array, "c 3"] | None:
        """Positions of the sensors ``(C, 3)`` in metres, head coordinates; None where the file does not tell."""
        import mne

        info = self.content.info
        places = np.stack([info["chs"][pick]["loc"][:3] for pick in self.picks]).astype(np.float64)
        if not np.isfinite(places).all() or not places.any(axis=1).all():
            return None
        if info["chs"][self.picks[0]]["coord_frame"] == mne.io.constants.FIFF.FIFFV_COORD_DEVICE:
            if info["dev_head_t"] is None:
                return None
            places = mne.transforms.apply_trans(info["dev_head_t"], places)
        return places

    def grid(self, options: EpochOptions) -> Grid:
        """Where the samples of an epoch of this file lie."""
        return Grid.of(self.rate, options)

    def events(self, stim_channel: str | None) -> list[tuple[int, str]]:
        """Sample and description of each event, in order of time; ``BAD...`` and ``EDGE...`` are none.

        Args:
            stim_channel: Channel of codes, which are then the descriptions; None for annotations. Recordings that
                are already cut have their own.

        Raises:
            DataError: No such channel.
        """
        import mne

        raw = self.content
        if not self.continuous:
            names = {code: name for name, code in raw.event_id.items()}
            return [(i, names[code]) for i, code in enumerate(raw.events[:, 2])]
        if stim_channel is None:
            kinds = [str(d) for d in dict.fromkeys(raw.annotations.description) if not _is_bad(d)]
            if not kinds:
                return []
            found, _ = mne.events_from_annotations(raw, {d: i for i, d in enumerate(kinds)}, verbose="error")
            return sorted((int(sample) - raw.first_samp, kinds[code]) for sample, _, code in found)
        if stim_channel not in raw.ch_names:
            kinds = [n for n, kind in zip(raw.ch_names, raw.get_channel_types(), strict=True) if kind == "stim"]
            raise DataError(
                f"{self.path}: no channel {stim_channel!r}; its stim channels are {', '.join(kinds) or 'none'}; change "
                "--data.init_args.stim_channel"
            )
        found = mne.find_events(raw, stim_channel, shortest_event=1, initial_event=True, verbose="error")
        return [(int(sample) - raw.first_samp, str(code)) for sample, _, code in found]

    def epochs(self, options: EpochOptions, wanted: Sequence[str] | None, stim_channel: str | None) -> Iterator[Epochs]:
        """Cut epochs, in pieces of bounded memory.

        Args:
            options: How.
            wanted: Descriptions of the events; None for all, or for none where ``options.every`` is given.
            stim_channel: See ``events``.

        Raises:
            DataError: No such events, a filter longer than the recording, epochs beyond the border or none at all.
        """
        grid = self.grid(options)
        everywhere = self.events(stim_channel)
        if wanted is None:
            wanted = [] if options.every else list(dict.fromkeys(name for _, name in everywhere))
        marks = [mark for mark in everywhere if mark[1] in wanted]
        if not marks and not (options.every and not wanted):
            there = ", ".join(dict.fromkeys(name for _, name in everywhere))
            raise DataError(
                f"{self.path}: no event {', '.join(wanted) or 'at all'}; its events are {there or 'none'}; change "
                "--data.init_args.events or stim_channel, or cut at equal steps with epochs.every"
            )
        if not self.continuous:
            yield from self._recut(options, grid, marks)
            return
        if options.every:
            marks += self._away(options.every, options.start, grid, everywhere, NONE if wanted else "")
        good = self._inside(sorted(marks), grid, options)
        span = max(PIECE // len(self.channels), 1)
        while good:
            end = next((i for i, mark in enumerate(good) if mark[0] - good[0][0] > span), len(good))
            piece, good = good[:end], good[end:]
            yield self._read(piece, grid, options)

    def _away(
        self, every: float, start: float, grid: Grid, marks: Sequence[tuple[int, str]], name: str
    ) -> list[tuple[int, str]]:
        """Marks at equal steps whose epochs meet none of any other mark."""
        steps = np.arange(-start, self.content.n_times / self.rate, every)
        places = np.round(steps * self.rate).astype(np.int64)
        if name:
            taken = np.array([place for place, _ in marks])
            places = places[(np.abs(places[:, None] - taken[None]) > grid.after + grid.before).all(axis=1)]
        places = places[places + grid.after < self.content.n_times]
        return [(int(place), name) for place in places]

    def _inside(self, marks: list[tuple[int, str]], grid: Grid, options: EpochOptions) -> list[tuple[int, str]]:
        """Marks whose epochs lie within the recording and in no bad segment."""
        raw = self.content
        marked = raw.annotations
        # onsets count from the beginning of the acquisition, which may lie before that of the file
        bad = [
            (round((onset - raw.first_time) * self.rate), round((onset - raw.first_time + duration) * self.rate))
            for onset, duration, name in zip(marked.onset, marked.duration, marked.description, strict=True)
            if _is_bad(name)
        ]
        good = [
            (place, name)
            for place, name in marks
            if place - grid.before >= 0
            and place + grid.after < raw.n_times
            and not any(place - grid.before <= last and first <= place + grid.after for first, last in bad)
        ]
        if len(good) < len(marks):
            told = (
                f"{self.path}: {len(marks) - len(good)} of {len(marks)} epochs reach beyond the recording of "
                f"{raw.n_times / self.rate:g} s or into a segment that is marked as bad"
            )
            if options.border == "refuse" or not good:
                raise DataError(f"{told}; change --data.init_args.epochs.start, end or border")
            warnings.warn(f"{told}; they are left out", stacklevel=2)
        return good

    def _read(self, marks: Sequence[tuple[int, str]], grid: Grid, options: EpochOptions) -> Epochs:
        """Epochs around marks that lie close together, from one filtered piece of the recording."""
        first = max(marks[0][0] - grid.before - grid.margin, 0)
        last = min(marks[-1][0] + grid.after + grid.margin + 1, self.content.n_times)
        if options.band_pass is None:
            piece = self._get(slice(first, last))
        else:
            piece, first = self._filtered(first, last, options.band_pass)
        return Epochs(
            signal=np.stack([grid.cut(piece, place - first, options.baseline) for place, _ in marks]),
            event=[name for _, name in marks],
            time=[place / self.rate for place, _ in marks],
        )

    def _filtered(self, first: int, last: int, band: tuple[float | None, float | None]) -> tuple[Array, int]:
        """A piece of the filtered recording and its first sample, the same as if all of it were filtered."""
        import mne

        try:
            length = len(mne.filter.create_filter(None, self.rate, *band, verbose="error"))
        except ValueError as error:
            raise DataError(f"{self.path}: epochs.band_pass={list(band)} at {self.rate:g} Hz: {error}") from error
        size = self.content.n_times
        if length > size:
            raise DataError(
                f"{self.path}: a filter of epochs.band_pass={list(band)} is {length / self.rate:.3g} s long, the "
                f"recording {size / self.rate:.3g} s"
            )
        first, last = max(first - length // 2, 0), min(last + length // 2, size)
        # at an end of the recording the filter sees its mirror image, which must be that of the whole
        first = max(size - 2 * length, 0) if last == size and first > size - 2 * length else first
        last = min(2 * length, size) if first == 0 and last < 2 * length else last
        piece = self._get(slice(first, last))
        return mne.filter.filter_data(piece, self.rate, *band, copy=False, verbose="error"), first

    def _recut(self, options: EpochOptions, grid: Grid, marks: Sequence[tuple[int, str]]) -> Iterator[Epochs]:
        """Epochs of a file that is already cut."""
        times = self.content.times
        zero = round(-float(times[0]) * self.rate)
        if options.band_pass is not None or options.every:
            raise DataError(
                f"{self.path} is already cut into epochs: it can neither be filtered nor cut at equal steps; remove "
                "--data.init_args.epochs.band_pass and every"
            )
        if zero < grid.before or zero + grid.after >= len(times):
            raise DataError(
                f"{self.path}: its epochs span {times[0]:g} to {times[-1]:g} s, asked for {options.start:g} to "
                f"{options.end:g} s; change --data.init_args.epochs.start and end"
            )
        step = max(PIECE // (len(self.channels) * len(times)), 1)
        for begin in range(0, len(marks), step):
            mine = marks[begin : begin + step]
            pieces = self._get([place for place, _ in mine])
            yield Epochs(
                signal=np.stack([grid.cut(piece, zero, options.baseline) for piece in pieces]),
                event=[name for _, name in mine],
                time=[float(self.content.events[place, 0] / self.rate) for place, _ in mine],
            )

    def _get(self, which: slice | list[int]) -> Array:
        """Signals of some samples ``(C, n)``, or of some epochs ``(n, C, T)``, float64."""
        try:
            if isinstance(which, slice):
                piece: Array = self.content.get_data(self.picks, which.start, which.stop, verbose="error")
            else:
                piece = self.content.get_data(picks=self.picks, item=which, units=None, copy=True, verbose="error")
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"cannot read {self.path}: {error}; it is truncated or damaged") from error
        return piece


def _is_bad(description: object) -> bool:
    return str(description).upper().startswith(("BAD", "EDGE"))


def _open(path: Path) -> tuple[Any, bool]:
    """MNE's view of a file, and whether it is continuous."""
    import mne

    if not path.is_dir():  # CTF recordings are folders
        existing(path)
    readers: list[Callable[..., Any]] = [partial(mne.io.read_raw, preload=False)]
    if path.suffix == ".set":
        readers.append(mne.read_epochs_eeglab)
    elif path.name.endswith((".fif", ".fif.gz")):
        readers.append(partial(mne.read_epochs, proj=False))
    problems = []
    for number, read in enumerate(readers):
        try:
            return read(path, verbose="error"), number == 0
        # readers of foreign formats fail in as many ways as there are damages
        except Exception as error:
            problems.append(reason_of(error))
    raise DataError(
        f"cannot read {path} ({'; '.join(problems)}): it is damaged, lacks a file beside it (.fdt, .eeg, .vmrk), or is "
        "of a format that MNE does not read"
    )
