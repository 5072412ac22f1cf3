"""What does it take to use THINGS-MEG? Memory and seconds of reading it, and passes over all training trials.

``python -m experiments.benchmarks.things_meg_conversion`` writes epochs of the published shape, a tenth of a person's,
and compares our conversion and loader with reading the whole file into memory, as published code does.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jsonargparse import auto_cli
from torch.utils.data import DataLoader, TensorDataset

from contracts import UserError
from datamodules import THINGSMEG, EmbeddingOptions, LoaderOptions, SampleOptions, SplitOptions
from experiments.benchmarks.in_turns import in_turns

CHANNELS, TIMES, SAMPLING_RATE, START = 271, 281, 200.0, -0.1
EPOCHS = 27048
"""Of one person; 2400 of them test trials, 2400 catch trials."""
PASSES = 3
NAME = "preprocessed_P1-epo.fif"


def things_meg_conversion(
    folder: Path | None = None,
    epochs: int = EPOCHS // 10,
    batch_size: int = 256,
    rounds: int = 1,
    split_size: str = "2GB",
    implementation: Literal["all", "write", "convert", "serve", "whole"] = "all",
) -> None:
    """Write the epochs, measure each way of using them in a process of its own, and print a table.

    Args:
        folder: Where files are kept for the next time; None for a temporary folder. A thousand epochs take 0.6 GB.
        epochs: How many, catch trials included; 27048 for a whole person.
        batch_size: Samples of a batch.
        rounds: How often each way is measured.
        split_size: Largest size of a part of the file; MNE holds three times as much while writing it.
        implementation: ``all`` compares; any other does one thing in this process and prints what it took as JSON:
            ``write`` the epochs, ``convert`` them, ``serve`` the finished store, or read the ``whole`` file.
    """
    if implementation != "all":
        assert folder is not None
        print(json.dumps(_measured(implementation, folder, epochs, batch_size, split_size)))
        return
    place = Path(tempfile.mkdtemp(prefix="neuroalign-things-meg-")) if folder is None else folder
    options = {"folder": place, "epochs": epochs, "batch_size": batch_size, "split_size": split_size}
    module = "experiments.benchmarks.things_meg_conversion"
    try:
        if not (place / NAME).is_file():
            in_turns(module, ["write"], rounds=1, **options)
        parts = sorted(place.glob("*.fif"))
        size = sum(path.stat().st_size for path in parts) / 1e9
        print(f"{epochs} epochs of {CHANNELS} x {TIMES} in {len(parts)} files, {size:.2f} GB; {batch_size} a batch")
        needed, there = 16e-9 * epochs * CHANNELS * TIMES, _kilobytes("/proc/meminfo", "MemAvailable") * 1e-6
        ways = ["convert", "serve", "whole"] if needed < there else ["convert", "serve"]
        if needed >= there:
            print(f"the whole file in memory would take about {needed:.1f} GB, {there:.1f} are free: left out")
        _print(in_turns(module, ways, rounds=rounds, **options))
    finally:
        if folder is None:
            shutil.rmtree(place)


def _print(found: Mapping[str, list[dict[str, float]]]) -> None:
    middle = {
        way: {key: statistics.median(result[key] for result in results) for key in results[0]}
        for way, results in found.items()
    }
    rows = [
        ("peak memory while converting, or reading the file, GB", "convert", "memory"),
        ("seconds of converting once, or of reading the file", "convert", "seconds"),
        ("seconds from opening to the first batch, statistics still to be made", "serve", "first_opening"),
        ("seconds from opening to the first batch, any later time", "serve", "first_batch"),
        ("peak memory while serving, mapped pages included, GB", "serve", "memory"),
        ("passes over all training trials a minute", "serve", "passes"),
    ]
    print("| | ours | whole file in memory | ratio |\n|---|---|---|---|")
    for text, way, key in rows:
        ours = middle[way][key]
        if "whole" in middle:
            theirs = middle["whole"][key]
            print(f"| {text} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.3f} |")
        else:
            print(f"| {text} | {ours:.2f} | - | - |")


def _measured(way: str, folder: Path, epochs: int, batch_size: int, split_size: str) -> dict[str, float]:
    """Do one thing, and tell what it took: seconds, peak memory in GB, and passes a minute."""
    started = time.perf_counter()
    if way == "write":
        write_epochs(folder, epochs, split_size)
        return {"seconds": time.perf_counter() - started}
    if way == "convert":
        shutil.rmtree(folder / "stores", ignore_errors=True)
        started = time.perf_counter()
        open_store(folder, batch_size).store  # noqa: B018  (the property converts)
        return {"seconds": time.perf_counter() - started, "memory": peak_memory()}
    times = {}
    if way == "serve":
        shutil.rmtree(folder / "stores" / "prepared", ignore_errors=True)
        next(iter(open_store(folder, batch_size).train_dataloader()))
        times["first_opening"] = time.perf_counter() - started
        started = time.perf_counter()
        loader: Any = open_store(folder, batch_size).train_dataloader()
    else:
        signal, label = read_whole(folder)
        times["seconds"] = time.perf_counter() - started
        loader = DataLoader(TensorDataset(signal, label), batch_size, shuffle=True, drop_last=True)
    next(iter(loader))
    times["first_batch"] = time.perf_counter() - started
    passes = 60 / statistics.median(_seconds_of_a_pass(lambda: iter(loader)) for _ in range(PASSES))
    return {"first_opening": times["first_batch"], **times, "passes": passes, "memory": peak_memory()}


def _seconds_of_a_pass(batches: Callable[[], Iterator[Any]]) -> float:
    started = time.perf_counter()
    for _ in batches():
        pass
    return time.perf_counter() - started


def open_store(folder: Path, batch_size: int) -> THINGSMEG:
    """The data set with the published split: single trials as they are."""
    return THINGSMEG(
        str(folder),
        images="",
        stores=str(folder / "stores"),
        embedding=EmbeddingOptions(model="none"),
        samples=SampleOptions(average_test=1, normalise="none"),
        split=SplitOptions(trained="train+test_concepts", validation=0.0),
        loader=LoaderOptions(batch_size=batch_size),
    )


def read_whole(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Training trials ``(n, C, T)`` and their concepts ``(n,)`` by way of everything in memory in double precision."""
    import mne

    epochs = mne.read_epochs(folder / NAME, preload=True, verbose="ERROR")
    rows = np.flatnonzero(epochs.metadata["trial_type"] == "exp")
    concept = epochs.metadata["things_category_nr"].to_numpy()[rows].astype(np.int64)
    signal = torch.from_numpy(epochs.get_data(verbose="ERROR")).float()
    return signal[torch.from_numpy(rows)], torch.from_numpy(concept)


def write_epochs(folder: Path, number: int, split_size: str) -> None:
    """Write epochs of noise in the published form; each begins a sample after the one before."""
    import mne

    folder.mkdir(parents=True, exist_ok=True)
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
    epochs.save(folder / NAME, split_size=split_size, overwrite=True, verbose="ERROR")


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


def peak_memory() -> float:
    """Most memory that this process ever held, in GB; that of the process it was started from does not count."""
    return _kilobytes("/proc/self/status", "VmHWM") * 1024e-9


def _kilobytes(file: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path(file).read_text(), re.MULTILINE)
    if found is None:
        raise UserError(f"no {name} in {file}: this benchmark needs Linux")
    return int(found[1])


if __name__ == "__main__":
    try:
        auto_cli(things_meg_conversion)
    except UserError as error:
        raise SystemExit(f"things_meg_conversion: {error}") from None
