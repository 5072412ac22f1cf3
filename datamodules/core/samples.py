"""From trials to samples, in this order: cleaning within a session, averaging of repetitions, normalisation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.progress import track

from contracts import DataError
from datamodules.core.atomic import build_once
from datamodules.core.cleaning import (
    CHUNK,
    CleaningOptions,
    Whiteners,
    ZScores,
    fit_cleaning,
    group_rows,
    mean_and_sd,
    resolution,
)
from datamodules.core.readers import load_npy, load_npz
from datamodules.core.splits import SPLIT_NAMES
from datamodules.core.store import BrainStore

Array = NDArray[Any]
Average = int | Literal["all"]
PublishedNormalisation = Literal["none", "training", "all"]
"""Where the one mean and SD of ``normalise: mindvis`` come from (``BrainDataModule.published_normalisation``)."""


@dataclass(frozen=True)
class SampleOptions(CleaningOptions):
    """How trials become samples: cleaned as ``CleaningOptions`` says, then averaged, then normalised.

    Attributes:
        average_train: Training trials of a stimulus to average into one sample, in order of acquisition;
            1 keeps single trials, ``all`` averages all there are.
        average_test: The same for validation and test.
        normalise: ``zscore``: each feature to mean 0 and SD 1 over the averaged training samples; ``none``;
            ``mindvis``: what the code of MinD-Vis and LEA does with this data set, one mean and SD for all numbers
            of a person, flaws included (``BrainDataModule.published_normalisation``).
        rois: fMRI: regions to keep, in this order; None for all.
        window: Times to keep, ``[from, to)`` in seconds relative to stimulus onset; None for all.
        bad_features: What to do with features that hold NaN or are constant: ``refuse``, or ``zero`` to make
            them 0 in every sample, so that they say nothing.
    """

    average_train: Average = 1
    average_test: Average = "all"
    normalise: Literal["none", "zscore", "mindvis"] = "zscore"
    rois: list[str] | None = None
    window: tuple[float, float] | None = None
    bad_features: Literal["refuse", "zero"] = "refuse"


@dataclass(frozen=True)
class Kept:
    """Part of a recording's features.

    Attributes:
        index: Features, counted over the flattened ``(V,)``, ``(V, T)`` or ``(C, T)``; None for all.
        shape: Shape of one sample.
        rois: Name -> number of voxels among them.
        start: Time of the first sample relative to stimulus onset, in seconds.
    """

    index: Array | None
    shape: tuple[int, ...]
    rois: dict[str, int]
    start: float


@dataclass(frozen=True)
class SubjectSamples:
    """One person's samples of all splits, on disk, with the statistics that normalise them.

    Attributes:
        signal: ``(M, *shape)`` memory map, cleaned and averaged but not yet normalised.
        rows: For each split, the rows of ``signal`` that are its samples.
        groups: For each split, the trials (rows of the person's signals) averaged into each sample.
        stimulus: For each split, the stimulus number of each sample.
        mean: For each split, what is subtracted from its samples, float32 of a shape that broadcasts.
        std: For each split, what they are then divided by.
        kept: Which part of the recording this is.
    """

    signal: Array
    rows: dict[str, Array]
    groups: dict[str, list[Array]]
    stimulus: dict[str, Array]
    mean: dict[str, Array]
    std: dict[str, Array]
    kept: Kept


def prepare_subject(
    store: BrainStore,
    subject: str,
    trials: pd.DataFrame,
    split: pd.Series[str],
    options: SampleOptions,
    cache: Path,
    *,
    published: PublishedNormalisation = "none",
) -> SubjectSamples:
    """Clean, average and fit the normalisation of one person; results are kept in ``cache``.

    Args:
        store: The data set.
        subject: The person.
        trials: The person's rows of the trial table.
        split: ``train``, ``validation`` or ``test`` of each of them, or empty for those to leave out.
        options: What to do.
        cache: Folder of prepared samples; each combination of options and split has its own subfolder.
        published: What ``normalise: mindvis`` means for this data set.

    Raises:
        DataError: NaN or constant features, a session without training trials, unknown regions, a normalisation
            without training samples or that this data set was not published with.
    """
    raw = store.signals(subject)
    groups = {name: _groups(trials[split == name], options, training=name == "train") for name in SPLIT_NAMES}
    kept = _kept(store, subject, options)
    bad = np.asarray(store.description["bad_features"][subject], np.int64)
    if kept.index is not None:
        bad = np.intersect1d(bad, kept.index)
    if len(bad) and options.bad_features == "refuse":
        raise DataError(
            f"sub-{subject}: {len(bad)} of {raw[0].size} features hold NaN or infinite values (the first is "
            f"{bad[0]}); mend the recording or set --data.init_args.samples.bad_features=zero"
        )
    single = all(len(trial) == 1 for group in groups.values() for trial in group)
    as_stored = options.cleaning == "none" and kept.index is None and not len(bad) and single
    facts = {
        "store": store.folder.name,
        "checksum": store.description["checksums"][f"sub-{subject}_signals.npy"],
        "subject": subject,
        "options": asdict(options),
        "trials": hashlib.sha256(
            repr([[t.tolist() for t in groups[name]] for name in SPLIT_NAMES]).encode()
        ).hexdigest(),
        "sessions": hashlib.sha256(trials[["session", "run"]].to_csv().encode()).hexdigest(),
        "rois": kept.rois,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def build(folder: Path) -> None:
        folder.mkdir()
        (folder / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
        flat = [trial for name in SPLIT_NAMES for trial in groups[name]]
        if as_stored:
            signal = raw
        else:
            clean = fit_cleaning(
                raw, trials, split, options, subject, bad=bad, kept=kept.index, modality=store.modality
            )
            _write_samples(folder / "signal.npy", raw, flat, clean, kept, bad, label=f"sub-{subject}")
            signal = load_npy(folder / "signal.npy", mmap=True)
        rows = _rows(groups, as_stored)["train"]
        if len(rows):
            mean, std = mean_and_sd(signal, rows)
            _check_features(subject, mean, std, options)
        elif options.normalise == "none" or (options.normalise == "mindvis" and published == "all"):
            # a person who is only tested
            mean, std = np.zeros(kept.shape, np.float32), np.ones(kept.shape, np.float32)
        else:
            raise DataError(
                f"sub-{subject}: no training samples to fit samples.normalise={options.normalise} on; set "
                "--data.init_args.samples.normalise=none, with cleaning=zscore_run and cleaning_fit=all if need be"
            )
        np.savez(folder / "statistics.npz", mean=mean, std=std)

    folder = build_once(cache / f"sub-{subject}-{digest}", build)
    statistics = load_npz(folder / "statistics.npz", ["mean", "std"])
    signal = raw if as_stored else load_npy(folder / "signal.npy", mmap=True)
    mean, std = statistics["mean"], statistics["std"]
    zero, one = np.zeros((), np.float32), np.ones((), np.float32)
    if options.normalise == "zscore":
        std = np.where(std > resolution(mean), std, np.float32(np.inf))  # constant: 0 in every sample
        normal = {name: (mean, std) for name in SPLIT_NAMES}
    elif options.normalise == "none":
        normal = dict.fromkeys(SPLIT_NAMES, (zero, one))
    elif published == "training" and options.cleaning == "none":
        # the published code takes the test set's statistics from the training set after normalising that one
        normal = dict.fromkeys(("train", "validation"), _scalar(mean, std)) | {"test": (zero, one)}
    elif published == "all" and options.cleaning == "none":
        used = trials["index"].to_numpy(np.int64)[(split != "").to_numpy()]
        mean, std = (v.reshape(-1) if kept.index is None else v.reshape(-1)[kept.index] for v in mean_and_sd(raw, used))
        normal = dict.fromkeys(SPLIT_NAMES, _scalar(mean, std))
    else:
        raise DataError(
            "samples.normalise=mindvis is how MinD-Vis and LEA normalise GOD, BOLD5000 and HCP, without cleaning; "
            f"here the data set's published normalisation is {published!r} and cleaning is {options.cleaning}"
        )
    numbers = trials.set_index("index")["number"]
    return SubjectSamples(
        signal=signal,
        rows=_rows(groups, as_stored),
        groups=groups,
        stimulus={name: numbers.loc[[t[0] for t in g]].to_numpy(np.int64) for name, g in groups.items()},
        mean={name: mean for name, (mean, _) in normal.items()},
        std={name: std for name, (_, std) in normal.items()},
        kept=kept,
    )


def _groups(trials: pd.DataFrame, options: SampleOptions, *, training: bool) -> list[Array]:
    """The trials averaged into each sample: groups of ``average`` repetitions in order of acquisition."""
    average = options.average_train if training else options.average_test
    if average != "all" and average < 1:
        raise DataError(
            f"samples.average_{'train' if training else 'test'} must be 'all' or at least 1, found {average}"
        )
    index = trials["index"].to_numpy(np.int64)
    groups: list[Array] = []
    for rows in group_rows(trials["number"]).values():
        size = len(rows) if average == "all" else average
        groups.extend(index[rows[start : start + size]] for start in range(0, len(rows), size))
    return groups


def _rows(groups: dict[str, list[Array]], as_stored: bool) -> dict[str, Array]:
    if as_stored:
        return {name: np.array([t[0] for t in group], np.int64) for name, group in groups.items()}
    ends = np.cumsum([len(groups[name]) for name in SPLIT_NAMES])
    return {name: np.arange(end - len(groups[name]), end) for name, end in zip(SPLIT_NAMES, ends, strict=True)}


def _kept(store: BrainStore, subject: str, options: SampleOptions) -> Kept:
    """The chosen regions or times."""
    axes, shape = store.axes(subject), store.signals(subject).shape[1:]
    if options.rois is not None and options.window is not None:
        raise DataError("samples.rois and samples.window cannot be combined: give one of them")
    if options.window is not None:
        if len(shape) != 2 or not axes.sampling_rate:
            raise DataError(f"sub-{subject}: samples.window needs signals with a time axis in seconds, found {shape}")
        times = axes.start + np.arange(shape[1]) / axes.sampling_rate
        tolerance = 0.5 / axes.sampling_rate  # -0.1 + 10 / 100 is not quite 0
        first, end = options.window
        inside = np.flatnonzero((times >= first - tolerance) & (times < end - tolerance))
        if not len(inside):
            raise DataError(
                f"sub-{subject}: no sample in {list(options.window)} s; the recording spans {times[0]:g} to "
                f"{times[-1]:g} s; change --data.init_args.samples.window"
            )
        index = np.arange(np.prod(shape)).reshape(shape)[:, inside].ravel()
        return Kept(index, (shape[0], len(inside)), axes.rois, float(times[inside[0]]))
    if options.rois is None:
        return Kept(None, shape, axes.rois, axes.start)
    unknown = sorted(set(options.rois) - set(axes.rois))
    if unknown or not options.rois:
        raise DataError(
            f"sub-{subject}: no region {', '.join(unknown) or '(empty list)'}; it has "
            f"{', '.join(axes.rois) or 'none'}; change --data.init_args.samples.rois"
        )
    region = np.repeat(list(axes.rois), list(axes.rois.values()))
    voxels = np.concatenate([np.flatnonzero(region == name) for name in options.rois])
    index = np.arange(np.prod(shape)).reshape(shape)[voxels].ravel()
    return Kept(index, (len(voxels), *shape[1:]), {name: axes.rois[name] for name in options.rois}, axes.start)


def _write_samples(
    path: Path,
    raw: Array,
    groups: Sequence[Array],
    clean: ZScores | Whiteners | None,
    kept: Kept,
    bad: Array,
    *,
    label: str,
) -> None:
    shape = kept.shape
    # cut so that a chunk holds about CHUNK trials, however many repetitions a sample averages
    ends = np.cumsum([len(trials) for trials in groups])
    parts = np.split(np.arange(len(groups)), np.flatnonzero(np.diff(ends // CHUNK)) + 1)
    with path.open("wb") as file:
        header = {"shape": (len(groups), *shape), "fortran_order": False, "descr": "<f4"}
        np.lib.format.write_array_header_1_0(file, header)
        for part in track(parts, description=f"averaging {label}", transient=True):
            chunk = [groups[i] for i in part]
            trials = np.concatenate(chunk)
            signal = raw[trials].astype(np.float32)
            signal.reshape(len(signal), -1)[:, bad] = 0
            signal = signal if clean is None else clean(signal, trials)
            if kept.index is not None:
                signal = signal.reshape(len(signal), -1)[:, kept.index].reshape(-1, *shape)
            lengths = np.array([len(t) for t in chunk])
            sums = np.add.reduceat(signal, np.cumsum(lengths) - lengths, axis=0, dtype=np.float64)
            mean = sums / lengths.reshape(-1, *[1] * len(shape))
            file.write(np.ascontiguousarray(mean, "<f4").data)


def _scalar(mean: Array, std: Array) -> tuple[Array, Array]:
    """Mean and SD over all numbers from those of each feature."""
    centre = mean.mean(dtype=np.float64)
    power = (std.astype(np.float64) ** 2 + (mean.astype(np.float64) - centre) ** 2).mean()
    return np.asarray(centre, np.float32), np.asarray(np.sqrt(power), np.float32)


def _check_features(subject: str, mean: Array, std: Array, options: SampleOptions) -> None:
    if not np.isfinite(std).all():
        count = int((~np.isfinite(std)).sum())
        raise DataError(f"sub-{subject}: {count} features of the training samples are NaN or infinite")
    constant = np.flatnonzero(std <= resolution(mean))
    if options.normalise == "zscore" and options.bad_features == "refuse" and len(constant):
        raise DataError(
            f"sub-{subject}: {len(constant)} of {std.size} features are constant over the training samples (the first "
            f"is {constant[0]}); mend the recording or set --data.init_args.samples.bad_features=zero"
        )
