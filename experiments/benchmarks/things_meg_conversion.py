"""What does it take to use THINGS-MEG? Memory and seconds of reading it, and passes over all training trials.

``python -m experiments.benchmarks.things_meg_conversion`` writes epochs of the published shape, a tenth of a person's,
and compares our conversion and loader with reading the whole file into memory, as published code does.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from datamodules import THINGSMEG, EmbeddingOptions, LoaderOptions, SampleOptions, SplitOptions
from experiments.benchmarks.conversion import Recordings, Residence, Way, compare
from experiments.benchmarks.in_turns import command

CHANNELS, TIMES, SAMPLING_RATE, START = 271, 281, 200.0, -0.1
EPOCHS = 27048
"""Of one person; 2400 of them test trials, 2400 catch trials."""
NAME = "preprocessed_P1-epo.fif"


def things_meg_conversion(
    folder: Path | None = None,
    epochs: int = EPOCHS // 10,
    batch_size: int = 256,
    rounds: int = 1,
    split_size: str = "2GB",
    implementation: Way = "all",
) -> None:
    """Write the epochs, measure each way of using them in a process of its own, and print a table.

    Args:
        folder: Where files are kept for the next time; None for a temporary folder. A thousand epochs take 0.6 GB.
        epochs: How many, catch trials included; 27048 for a whole person.
        batch_size: Samples of a batch.
        rounds: How often each way is measured.
        split_size: Largest size of a part of the file; MNE holds three times as much while writing it.
        implementation: ``all`` compares; any other does one thing in this process and prints what it took as JSON.
    """
    recordings = Recordings(
        text=f"{epochs} epochs of {CHANNELS} x {TIMES}",
        needed=20e-9 * epochs * CHANNELS * TIMES,
        write=partial(write_epochs, number=epochs, split_size=split_size),
        read_whole=read_whole,
        opened=partial(open_store, batch_size=batch_size),
    )
    compare(
        "experiments.benchmarks.things_meg_conversion",
        implementation,
        recordings,
        folder=folder,
        batch_size=batch_size,
        rounds=rounds,
        written={"epochs": epochs, "split_size": split_size},
    )


def open_store(raw: Path, stores: Path, residence: Residence, *, batch_size: int) -> THINGSMEG:
    """The data set with the published split: single trials as they are."""
    return THINGSMEG(
        str(raw),
        images="",
        stores=str(stores),
        embedding=EmbeddingOptions(model="none"),
        samples=SampleOptions(average_test=1, normalise="none"),
        split=SplitOptions(trained="train+test_concepts", validation=0.0),
        loader=LoaderOptions(batch_size=batch_size, residence=residence),
    )


def read_whole(raw: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Training trials ``(n, C, T)`` and their concepts ``(n,)`` by way of everything in memory in double precision."""
    import mne

    epochs = mne.read_epochs(raw / NAME, preload=True, verbose="ERROR")
    rows = np.flatnonzero(epochs.metadata["trial_type"] == "exp")
    concept = epochs.metadata["things_category_nr"].to_numpy()[rows].astype(np.int64)
    signal = torch.from_numpy(epochs.get_data(verbose="ERROR")).float()
    return signal[torch.from_numpy(rows)], torch.from_numpy(concept)


def write_epochs(raw: Path, *, number: int, split_size: str) -> None:
    """Write epochs of noise in the published form; each begins a sample after the one before."""
    import mne

    info = mne.create_info([f"M{i:03d}-1609" for i in range(CHANNELS)], SAMPLING_RATE, "mag")
    noise = np.random.default_rng(0).standard_normal((CHANNELS, number + TIMES))
    onset = np.arange(number) - round(START * SAMPLING_RATE)
    events = np.stack([onset, np.zeros(number), np.ones(number)], axis=1).astype(np.int64)
    epochs = mne.Epochs(
        mne.io.RawArray(noise, info, verbose="ERROR"),
        events,
        tmin=START,
        tmax=START + (TIMES - 1) / SAMPLING_RATE,
        baseline=None,
        metadata=attributes(number),
        verbose="ERROR",
    )
    epochs.save(raw / NAME, split_size=split_size, overwrite=True, verbose="ERROR")


def attributes(number: int) -> pd.DataFrame:
    """The table of trials, 18 columns as published: 12 photographs of each concept, a test photograph of some."""
    tested = number * 2400 // EPOCHS // 12
    kinds = np.array(["exp"] * (number - 24 * tested) + ["test"] * 12 * tested + ["catch"] * 12 * tested)
    row = np.arange(number)
    first = {kind: int(np.argmax(kinds == kind)) for kind in ("exp", "test", "catch")}
    place = row - np.array([first[kind] for kind in kinds])
    concept = np.where(kinds == "exp", place // 12, place % max(tested, 1))
    picture = np.where(kinds == "exp", place % 12 + 1, 13)
    path = [f"images_meg/concept{a}/concept{a}_{b:02d}s.jpg" for a, b in zip(concept, picture, strict=True)]
    table = pd.DataFrame({"trial_type": kinds, "image_path": path, "things_category_nr": concept + 1.0})
    table["session_nr"] = row * 12 // number + 1
    table["run_nr"] = row * 120 // number % 10 + 1
    others = {f"measure_{i}": np.random.default_rng(i).standard_normal(number) for i in range(13)}
    return table.assign(**others).sample(frac=1, random_state=0).sort_values("session_nr", ignore_index=True)


if __name__ == "__main__":
    command(things_meg_conversion)
