"""Line drawings compared in pairs, EEG of alcoholics and controls (Begleiter, UCI EEG database)."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from contracts import DataError
from datamodules.core.base import BrainDataModule, Facts
from datamodules.core.epochs import new_rate, resampled
from datamodules.core.montage import template_names, template_positions
from datamodules.core.raw import Record, SignalAxes, Stimuli, Trials
from datamodules.core.readers import existing, load_npz, require_shape

Array = NDArray[Any]
Condition = Literal["first", "matching", "non-matching"]
CONDITIONS: dict[str, Condition] = {"S1 obj": "first", "S2 match": "matching", "S2 nomatch": "non-matching"}
"""What the files call the conditions -> class."""
NO_SITES = ("X", "Y", "nd")
"""Channels beside the 61 of the cap: the two of the eyes (horizontal, vertical), and one that is not described."""
OTHER_NAMES = {"AF1": "AF3", "AF2": "AF4", "PO1": "PO3", "PO2": "PO4"}
"""Sites by names that are not in the nomenclature of 1991, which the cap follows (Pandey et al. 2012, Methods): the row
of 5 electrodes AF7, AF1, AFZ, AF2, AF8 can only be its AF7, AF3, AFz, AF4, AF8; likewise over PO."""
RATE = 256.0
SHAPE = (64, 256)
PUBLIC = "https://archive.ics.uci.edu/dataset/121/eeg+database"
_HEADER = re.compile(r"# (?P<condition>.+?) *(?P<wrong> err)? *, trial (?P<trial>\d+)")


class UCIEEG(BrainDataModule):
    """Single trials of 1 s at 256 Hz, 64 channels, from the onset of a line drawing; 10 people of each group.

    Two drawings of objects (Snodgrass & Vanderwart 1980) were shown one after the other, and compared: a trial is about
    the ``first`` of them, or about the second, ``matching`` it (the same drawing) or ``non-matching``. Which drawing it
    was is not published: a trial stands for a stimulus, and its condition is its class (``embedding.model=classes``).
    Leave people out with ``split.protocol=by_subject``, or trials with ``by_stimulus``.

    The fourth letter of a person's name is their group: ``co2a...`` alcoholic, ``co2c...`` control. ``source`` is
    an archive of arrays, or a folder of the published text files, of whatever part of the data base: one file a trial,
    ``co2a0000364.rd.000`` or the same with ``.gz``, with numbers of three decimals. The archive holds the training part
    of the set of 20 people (SMNI_CMI_TRAIN: 10 trials of each condition) in half precision, off by up to 0.1 uV.

    Licence: Creative Commons Attribution 4.0, as the repository states.

    Reference: Zhang, Begleiter, Porjesz, Wang & Litke (1995), Event related potentials during object recognition
    tasks, Brain Research Bulletin 38, 531-538 (stimuli, amplifiers, reference); public files:
    https://archive.ics.uci.edu/dataset/121/eeg+database (doi 10.24432/C5TS3D). Numbers: the files themselves. Sites:
    61 of the 10-10 system on the template head of MNE; Pandey et al. (2012), Biological
    Psychology 89, 170-182 (the cap of the same laboratory).

    Args:
        root: Folder of the raw files.
        source: The archive (``.npz``: ``X`` (N, 64, 256), ``condition``, ``subject``, ``trial``, ``channels``,
            ``sfreq``), or the folder of text files with all below it; under ``root``.
        conditions: Which of ``first``, ``matching`` and ``non-matching`` to read; None for all.
        stimulus: What counts as one stimulus: a ``trial`` of a person, or a ``condition``, whose trials may then be
            averaged (``samples.average_train``, ``average_test``).
        sites: ``scalp``: the 61 channels of the cap, with positions; ``all``: X, Y and nd with them, which have none,
            so that no positions are given.
        sampling_rate: Samples per second to resample to; the potentials evoked here lie below 20 Hz, so that 64 do.
        wrong_answers: Whether to read trials that the person judged wrongly (``err`` in the text files).
        **kwargs: As for every data set.
    """

    name = "uci_eeg"
    facts = Facts(
        modality="eeg",
        units="uV",
        licence="CC BY 4.0",
        citation="Zhang et al. (1995), Brain Research Bulletin 38, 531-538; Begleiter, UCI EEG Database",
        subjects=(
            *(f"co2a0000{number}" for number in (364, 365, 368, 369, 370, 371, 372, 375, 377, 378)),
            *(f"co2c0000{number}" for number in (337, 338, 339, 340, 341, 342, 344, 345, 346, 347)),
        ),
        stimuli=600,
    )
    facts.trials.update(dict.fromkeys(facts.subjects, 30))  # type: ignore[attr-defined]

    def __init__(
        self,
        root: str,
        *,
        source: str = "uci_smni_cmi_train_600trials.npz",
        conditions: list[Condition] | None = None,
        stimulus: Literal["trial", "condition"] = "trial",
        sites: Literal["scalp", "all"] = "scalp",
        sampling_rate: float = RATE,
        wrong_answers: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.source = source
        self.conditions = list(CONDITIONS.values()) if conditions is None else conditions
        self.stimulus = stimulus
        self.sites = sites
        self.ratio = new_rate(RATE, sampling_rate)
        self.wrong_answers = wrong_answers
        unknown = [name for name in self.conditions if name not in CONDITIONS.values()]
        if unknown or not self.conditions:
            raise DataError(
                f"conditions are some of {', '.join(CONDITIONS.values())}, found {self.conditions}; change "
                "--data.init_args.conditions"
            )

    def conversion_options(self) -> dict[str, Any]:
        """Everything that decides which numbers a trial holds."""
        options = ("source", "stimulus", "sites", "wrong_answers")
        return {name: getattr(self, name) for name in options} | {
            "conditions": sorted(self.conditions),
            "sampling_rate": RATE * float(self.ratio),
        }

    def read(self, root: Path) -> Iterator[Record]:
        """Yield the trials of one person after another."""
        path = root / self.source
        known: set[str] = set()
        people: set[str] = set()
        channels: tuple[str, ...] = ()
        for person in _archive(path) if path.suffix == ".npz" else _folder(path):
            channels = channels or person.channels
            if person.channels != channels or person.name in people:
                raise DataError(
                    f"{path}: sub-{person.name} comes twice, or with other channels ({' '.join(person.channels)}) than "
                    f"the people before ({' '.join(channels)})"
                )
            people.add(person.name)
            rows = [i for i, trial in enumerate(person.trials) if self._wanted(trial)]
            if not rows:
                raise DataError(
                    f"{path}: sub-{person.name} has no trial of {', '.join(self.conditions)}; change "
                    "--data.init_args.conditions, or --data.init_args.subjects after the conversion"
                )
            trials = [person.trials[row] for row in rows]
            names = [_stimulus(person.name, trial, self.stimulus) for trial in trials]
            label = dict(zip(names, (trial.condition for trial in trials), strict=True))
            if self.stimulus == "trial" and len(label) < len(names):
                raise DataError(f"{path}: sub-{person.name} has two trials of one number: {sorted(names)}")
            new = [name for name in label if name not in known]
            known.update(new)
            if new:
                yield Stimuli(id=new, image=None, label=[label[name] for name in new])
            kept = self._kept(channels)
            signal = resampled(person.signal[rows][:, kept], self.ratio)
            yield Trials(subject=person.name, signal=signal, stimulus=names)
        kept = self._kept(channels)
        names = [channels[place] for place in kept]
        yield SignalAxes(
            channels=[template_names(names).get(name, name) for name in names],
            positions=template_positions([OTHER_NAMES.get(n, n) for n in names]) if self.sites == "scalp" else None,
            sampling_rate=RATE * float(self.ratio),
        )

    def _wanted(self, trial: _Trial) -> bool:
        return trial.condition in self.conditions and (self.wrong_answers or not trial.wrong)

    def _kept(self, channels: Sequence[str]) -> list[int]:
        return [place for place, name in enumerate(channels) if self.sites == "all" or name not in NO_SITES]


@dataclass(frozen=True)
class _Trial:
    number: int
    condition: Condition
    wrong: bool = False


@dataclass(frozen=True)
class _Person:
    """Trials of one person by their number, and their signals ``(n, 64, 256)`` in microvolts."""

    name: str
    channels: tuple[str, ...]
    trials: list[_Trial]
    signal: Array


def _stimulus(person: str, trial: _Trial, what: str) -> str:
    return trial.condition if what == "condition" else f"{person}_trial-{trial.number:03d}"


def _archive(path: Path) -> Iterator[_Person]:
    """People of an archive of arrays."""
    if not path.is_file():
        raise DataError(_missing(path, "no such file"))
    columns = ("condition", "subject", "trial")
    content = load_npz(path, ["X", "channels", "sfreq", *columns])
    signal = content["X"]
    require_shape(f"{path}: X", signal, (None, *SHAPE))
    if signal.dtype.kind != "f" or content["trial"].dtype.kind not in "iu":
        raise DataError(
            f"{path}: X must be floating-point and trial whole numbers, found {signal.dtype} and "
            f"{content['trial'].dtype}"
        )
    for name in columns:
        require_shape(f"{path}: {name}", content[name], (len(signal),))
    require_shape(f"{path}: channels", content["channels"], SHAPE[:1])
    if content["sfreq"].size != 1 or content["sfreq"].item() != RATE:
        raise DataError(f"{path}: sfreq must be {RATE:g} Hz, found {content['sfreq']}")
    unknown = sorted(set(content["condition"].tolist()) - set(CONDITIONS))
    if unknown:
        raise DataError(f"{path}: conditions are {', '.join(CONDITIONS)}, found {', '.join(map(repr, unknown))}")
    channels = tuple(str(name) for name in content["channels"])
    for person in dict.fromkeys(content["subject"].tolist()):
        rows = np.flatnonzero(content["subject"] == person)
        rows = rows[np.argsort(content["trial"][rows], kind="stable")]
        trials = [_Trial(int(content["trial"][row]), CONDITIONS[content["condition"][row]]) for row in rows]
        yield _Person(str(person), channels, trials, signal[rows])


def _folder(path: Path) -> Iterator[_Person]:
    """People of a folder of text files."""
    files = sorted(file for file in path.rglob("*.rd.*") if re.fullmatch(r".+\.rd\.\d+(\.gz)?", file.name))
    if not files:
        raise DataError(_missing(path, "no file like co2a0000364.rd.000 or co2a0000364.rd.000.gz in it"))
    for person, mine in groupby(sorted(files, key=lambda file: file.name), key=lambda file: file.name.split(".rd.")[0]):
        read = [(file, *trial) for file in mine if (trial := _text_file(file, person)) is not None]
        if not read:
            continue
        channels = read[0][2]
        other = next((file for file, _, names, _ in read if names != channels), None)
        if other is not None:
            raise DataError(f"{other}: other channels, or in another order, than in {read[0][0]}")
        read.sort(key=lambda entry: entry[1].number)
        yield _Person(person, channels, [trial for _, trial, *_ in read], np.stack([signal for *_, signal in read]))


def _text_file(path: Path, person: str) -> tuple[_Trial, tuple[str, ...], Array] | None:
    """One trial: what it is, its channels, and its signal ``(64, 256)``; None for an empty file (17 are published)."""
    try:
        content = existing(path).read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("ascii")
        head = [line.strip() for line in text[:400].splitlines() if line.startswith("#")]
        if not text.strip():
            return None
        table = pd.read_csv(
            io.StringIO(text),
            sep=r"\s+",
            comment="#",
            names=["trial", "channel", "sample", "value"],
            dtype={"trial": np.int64, "channel": str, "sample": np.int64, "value": np.float32},
            keep_default_na=False,
        )
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"cannot read {path}: {str(error).splitlines()[0]}; it is truncated or damaged") from error
    found = next((match for line in head if (match := _HEADER.fullmatch(line))), None)
    if found is None or found["condition"] not in CONDITIONS or head[0] != f"# {person}.rd":
        raise DataError(
            f"{path}: expected a head of '# {person}.rd' and '# <condition>, trial <number>' with a condition of "
            f"{', '.join(CONDITIONS)}, found {head[:4]}"
        )
    names = tuple(dict.fromkeys(table["channel"]))
    grid = pd.MultiIndex.from_product([names, range(SHAPE[1])])
    same = len(names) == SHAPE[0] and pd.MultiIndex.from_frame(table[["channel", "sample"]]).equals(grid)
    if not same or (table["trial"] != int(found["trial"])).any():
        raise DataError(
            f"{path}: expected samples 0 to {SHAPE[1] - 1} of each of {SHAPE[0]} channels, all of trial "
            f"{found['trial']}, found {len(table)} lines of {len(names)} channels"
        )
    trial = _Trial(int(found["trial"]), CONDITIONS[found["condition"]], found["wrong"] is not None)
    return trial, names, table["value"].to_numpy(np.float32).reshape(SHAPE)


def _missing(path: Path, what: str) -> str:
    return f"{path.absolute()}: {what}; get the files from {PUBLIC}, or change --data.init_args.source"
