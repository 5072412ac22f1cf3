"""How fast do batches come? Time to the first batch, throughput against a bare loop, and peak memory.

``python -m experiments.benchmarks.data_path`` makes a set of the size of THINGS-EEG2 and measures in a fresh process.
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import auto_cli

from contracts import UserError
from datamodules import BrainDataModule, EmbeddingOptions, Facts, LoaderOptions, SplitOptions, Stimuli, Trials
from datamodules.core.raw import Record

SHAPE = (63, 250)
CHUNK = 512
TEST = 16


class Generated(BrainDataModule):
    """Noise of the shape of THINGS-EEG2: one person, one trial of each picture, and tiny pictures.

    Args:
        root: Not read; there are no raw files.
        trials: Number of training samples.
        **kwargs: As for every data set.
    """

    name = "generated"
    facts = Facts(modality="eeg", units="arbitrary", licence="none: noise", citation="none: noise", subjects=("01",))

    def __init__(self, root: str = "", trials: int = 16540, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.trials_for_training = trials

    def conversion_options(self) -> dict[str, Any]:
        """The size decides what is written."""
        return {"trials": self.trials_for_training}

    def read(self, root: Path) -> Iterator[Record]:
        """Make the pictures, then the trials in pieces."""
        generator = np.random.default_rng(0)
        total = self.trials_for_training + TEST
        names = [f"picture-{number:05d}" for number in range(total)]
        yield Stimuli(id=names, image=generator.integers(0, 256, (total, 4, 4, 3), dtype=np.uint8))
        split = ["train"] * self.trials_for_training + ["test"] * TEST
        for start in range(0, total, CHUNK):
            part = slice(start, min(start + CHUNK, total))
            signal = generator.standard_normal((part.stop - start, *SHAPE), dtype=np.float32) + 1
            yield Trials(subject="01", signal=signal, stimulus=names[part], split=split[part])


def data_path(folder: Path | None = None, samples: int = 16540, batch_size: int = 64, rounds: int = 5) -> None:
    """Make the set once, then measure in a fresh process and print a table.

    Args:
        folder: Where the set is kept for the next time; None for a temporary folder.
        samples: Number of training samples of 63 channels x 250 time points.
        batch_size: Samples of a batch.
        rounds: How often the loader and the bare loop take turns.
    """
    place = Path(tempfile.mkdtemp(prefix="neuroalign-data-path-")) if folder is None else folder
    try:
        started = time.perf_counter()
        module = open_generated(place, samples, batch_size, "mmap")
        module.store  # noqa: B018  (the property converts)
        print(f"converted in {time.perf_counter() - started:.1f} s (0 where it was there): {module.store.folder}")
        shutil.rmtree(place / "prepared", ignore_errors=True)
        shutil.rmtree(place / "features", ignore_errors=True)
        arguments = json.dumps({"folder": str(place), "samples": samples, "batch_size": batch_size, "rounds": rounds})
        code = f"from experiments.benchmarks import data_path; data_path.measure(**data_path.json.loads({arguments!r}))"
        subprocess.run([sys.executable, "-c", code], check=True)
    finally:
        if folder is None:
            shutil.rmtree(place)


def open_generated(
    folder: str | Path, samples: int, batch_size: int, residence: Literal["mmap", "ram"]
) -> BrainDataModule:
    """The generated set, opened anew."""
    return Generated(
        trials=samples,
        stores=str(folder),
        embedding=EmbeddingOptions(model="pixels", image_size=4),
        split=SplitOptions(validation=0.0),
        loader=LoaderOptions(batch_size=batch_size, residence=residence),
    )


def measure(folder: str, samples: int, batch_size: int, rounds: int) -> None:
    """Measure in this process, which should be fresh, and print."""
    print(f"{samples} samples of {SHAPE[0]} x {SHAPE[1]}, {batch_size} a batch, {torch.get_num_threads()} threads")
    print("| residence | prepared | opening to first batch |\n|---|---|---|")
    for residence, prepared in (("mmap", "no"), ("mmap", "yes"), ("ram", "yes")):
        seconds = time_to_first_batch(folder, samples, batch_size, residence)  # type: ignore[arg-type]
        print(f"| {residence} | {prepared} | {seconds:.2f} s |", flush=True)
    print("| residence | loader, GB/s | bare loop, GB/s | ratio: median (lowest .. highest) |\n|---|---|---|---|")
    for residence in ("ram", "mmap"):
        ours, bare = throughput(folder, samples, batch_size, residence, rounds)  # type: ignore[arg-type]
        gigabytes = samples // batch_size * batch_size * 4e-9 * SHAPE[0] * SHAPE[1]
        ratios = [slow / fast for fast, slow in zip(ours, bare, strict=True)]
        print(
            f"| {residence} | {gigabytes / statistics.median(ours):.2f} | {gigabytes / statistics.median(bare):.2f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f}) |",
            flush=True,
        )
    # kilobytes on Linux, bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(f"peak memory: {peak / 1e9:.2f} GB, mapped pages of the file included")


def time_to_first_batch(folder: str, samples: int, batch_size: int, residence: Literal["mmap", "ram"]) -> float:
    """Seconds from opening the data set to the first batch for training."""
    started = time.perf_counter()
    next(iter(open_generated(folder, samples, batch_size, residence).train_dataloader()))
    return time.perf_counter() - started


def throughput(
    folder: str, samples: int, batch_size: int, residence: Literal["mmap", "ram"], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of an epoch with our loader and with a bare loop, in turns, from the same storage and in one order.

    The bare loop copies the rows of each batch into a fresh tensor, subtracts the mean and multiplies by 1/SD.
    """
    loader = open_generated(folder, samples, batch_size, residence).train_dataloader()
    dataset: Any = loader.dataset
    sampler: Any = loader.sampler
    stored, mean, scale = dataset.signals[0][0], dataset.mean[0], dataset.scale[0]

    def serve() -> None:
        for batch in loader:
            assert batch["signal"].shape[1:] == SHAPE

    def bare() -> None:
        for numbers in order:
            # held until the next one is there, as a batch in a training loop is
            signal = torch.index_select(stored, 0, numbers).sub_(mean).mul_(scale)
            assert signal.shape[1:] == SHAPE

    order = [dataset.source[numbers] for numbers in sampler]
    # a first round of each brings the file into memory
    serve()
    bare()
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(rounds):
        sampler.set_epoch(number + 1)
        order = [dataset.source[numbers] for numbers in sampler]
        # who goes first changes with every round
        for run, seconds in ((serve, ours), (bare, theirs)) if number % 2 else ((bare, theirs), (serve, ours)):
            seconds.append(_seconds(run))
    return ours, theirs


def _seconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    try:
        auto_cli(data_path)
    except UserError as error:
        raise SystemExit(f"data_path: {error}") from None
