"""How fast do batches come? Time to the first batch, throughput against a bare loop, and peak memory.

``python -m experiments.benchmarks.data_path`` makes a set of the size of THINGS-EEG2 and measures in a fresh process.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from torch import Tensor

from datamodules import BrainDataModule, EmbeddingOptions, Facts, LoaderOptions, SplitOptions, Stimuli, Trials
from datamodules.core.loading import Residence
from datamodules.core.raw import Record
from experiments.benchmarks.in_turns import Device, On, command, peak_memory, seconds_of, spread
from experiments.benchmarks.layouts import THINGS_EEG2 as SHAPE

CHUNK = 512
TEST = 16


class Generated(BrainDataModule):
    """Noise, by default of the shape of THINGS-EEG2: one trial of each picture for each person, and tiny pictures.

    Args:
        root: Not read; there are no raw files.
        trials: Number of training samples of each person.
        people: Number of people.
        shape: Of a sample.
        **kwargs: As for every data set.
    """

    name = "generated"
    facts = Facts(modality="eeg", units="arbitrary", licence="none: noise", citation="none: noise", subjects=())

    def __init__(
        self, root: str = "", trials: int = 16540, people: int = 1, shape: tuple[int, ...] = SHAPE, **kwargs: Any
    ) -> None:
        super().__init__(root, **kwargs)
        self.trials_for_training = trials
        self.people = people
        self.trial_shape = shape

    def conversion_options(self) -> dict[str, Any]:
        """The size decides what is written."""
        return {"trials": self.trials_for_training, "people": self.people, "shape": self.trial_shape}

    def read(self, root: Path) -> Iterator[Record]:
        """Make the pictures, then the trials in pieces."""
        generator = np.random.default_rng(0)
        total = self.trials_for_training + TEST
        names = [f"picture-{number:05d}" for number in range(total)]
        yield Stimuli(id=names, image=generator.integers(0, 256, (total, 4, 4, 3), dtype=np.uint8))
        split = ["train"] * self.trials_for_training + ["test"] * TEST
        for person in range(self.people):
            for start in range(0, total, CHUNK):
                part = slice(start, min(start + CHUNK, total))
                signal = generator.standard_normal((part.stop - start, *self.trial_shape), dtype=np.float32) + 1
                yield Trials(subject=f"{person + 1:04d}", signal=signal, stimulus=names[part], split=split[part])


class GeneratedPatterns(Generated):
    """The same as patterns of voxels."""

    name = "generated_patterns"
    facts = replace(Generated.facts, modality="fmri")


def data_path(
    folder: Path | None = None,
    samples: int = 16540,
    batch_size: int = 64,
    rounds: int = 5,
    device: Device = "cpu",
    residences: tuple[Residence, ...] = ("ram", "mmap"),
) -> None:
    """Make the set once, then measure in a fresh process and print a table.

    Args:
        folder: Where the set is kept for the next time; None for a temporary folder.
        samples: Number of training samples of 63 channels x 250 time points.
        batch_size: Samples of a batch.
        rounds: How often the loader and the bare loop take turns.
        device: Where batches must arrive; with ``cuda`` signals of the other residences are copied there.
        residences: Where signals live: ``mmap``, ``ram`` or ``device``.
    """
    On(device)  # refuses a GPU that is not there
    place = Path(tempfile.mkdtemp(prefix="neuroalign-data-path-")) if folder is None else folder
    try:
        module = open_generated(place, samples, batch_size, "mmap")
        converted = seconds_of(lambda: module.store)
        print(f"converted in {converted:.1f} s (0 where it was there): {module.store.folder}")
        shutil.rmtree(place / "prepared", ignore_errors=True)
        shutil.rmtree(place / "features", ignore_errors=True)
        arguments = json.dumps(
            {
                **{"folder": str(place), "samples": samples, "batch_size": batch_size, "rounds": rounds},
                **{"device": device, "residences": residences},
            }
        )
        code = f"from experiments.benchmarks import data_path; data_path.measure(**data_path.json.loads({arguments!r}))"
        subprocess.run([sys.executable, "-c", code], check=True)
    finally:
        if folder is None:
            shutil.rmtree(place)


def open_generated(
    folder: str | Path,
    samples: int,
    batch_size: int,
    residence: Residence,
    *,
    device: Device = "cpu",
    kind: type[Generated] = Generated,
    **size: Any,
) -> BrainDataModule:
    """The generated set, opened anew.

    Args:
        folder: Of the stores.
        samples: Training samples of each person.
        batch_size: Samples of a batch.
        residence: Where signals live.
        device: Where ``device`` is.
        kind: Of noise.
        **size: ``people`` and ``shape``.
    """
    module = kind(
        trials=samples,
        stores=str(folder),
        embedding=EmbeddingOptions(model="pixels", image_size=4),
        split=SplitOptions(validation=0.0),
        loader=LoaderOptions(batch_size=batch_size, residence=residence),
        **size,
    )
    if residence == "device":
        # a data set asks its trainer where the device is
        module.trainer = Trainer(accelerator=device, devices=1, logger=False, enable_checkpointing=False)
    return module


def measure(
    folder: str, samples: int, batch_size: int, rounds: int, device: Device, residences: Sequence[Residence]
) -> None:
    """Measure in this process, which should be fresh, and print."""
    print(
        f"{samples} samples of {SHAPE[0]} x {SHAPE[1]}, {batch_size} a batch, to {device}, "
        f"{torch.get_num_threads()} threads"
    )
    print("| residence | prepared | opening to first batch |\n|---|---|---|")
    # the first one prepares
    first: list[Residence] = ["mmap", "mmap", *(residence for residence in residences if residence != "mmap")]
    for number, residence in enumerate(first):
        seconds = seconds_of(partial(first_batch, folder, samples, batch_size, residence, device=device), device)
        print(f"| {residence} | {'yes' if number else 'no'} | {seconds:.2f} s |", flush=True)
    print("| residence | loader, GB/s | bare loop, GB/s | ratio: median (lowest .. highest) |\n|---|---|---|---|")
    for residence in residences:
        module = open_generated(folder, samples, batch_size, residence, device=device)
        ours, bare = throughput(module, rounds, device=device)
        gigabytes = samples // batch_size * batch_size * 4e-9 * SHAPE[0] * SHAPE[1]
        ratios = [slow / fast for fast, slow in zip(ours, bare, strict=True)]
        print(
            f"| {residence} | {gigabytes / statistics.median(ours):.2f} | {gigabytes / statistics.median(bare):.2f} "
            f"| {spread(ratios)} |",
            flush=True,
        )
    print(f"peak memory: {peak_memory():.2f} GB, mapped pages of the file included")
    if device == "cuda":
        print(f"peak memory of the GPU: {peak_memory(device):.2f} GB")


def first_batch(*opened: Any, device: Device) -> Tensor:
    """Open the data set (``open_generated``) and return the signal of the first batch for training."""
    module = open_generated(*opened, device=device)
    return _arrived(next(iter(module.train_dataloader())), device)


def throughput(module: BrainDataModule, rounds: int, *, device: Device = "cpu") -> tuple[list[float], list[float]]:
    """Seconds of an epoch with our loader and with a bare loop, in turns, from the same storage and in one order.

    The bare loop copies the rows of each batch into a fresh tensor, subtracts the mean and multiplies by 1/SD. Of
    several people it knows the first alone.

    Args:
        module: Generated data of one person.
        rounds: How often they take turns.
        device: Where batches must arrive.
    """
    loader = module.train_dataloader()
    dataset: Any = loader.dataset
    sampler: Any = loader.sampler
    stored, mean, scale = dataset.signals[0][0], dataset.mean[0], dataset.scale[0]

    def serve() -> None:
        for batch in loader:
            _arrived(batch, device)

    def bare() -> None:
        for numbers in order:
            # held until the next one is there, as a batch in a training loop is
            signal = torch.index_select(stored, 0, numbers).sub_(mean).mul_(scale)
            _arrived({"signal": signal}, device)

    def rows() -> list[Tensor]:
        return [dataset.source[numbers].to(stored.device) for numbers in sampler]

    order = rows()
    # a first round of each brings the file into memory
    serve()
    bare()
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(rounds):
        sampler.set_epoch(number + 1)
        order = rows()
        # who goes first changes with every round
        for run, seconds in ((serve, ours), (bare, theirs)) if number % 2 else ((bare, theirs), (serve, ours)):
            seconds.append(seconds_of(run, device))
    return ours, theirs


def _arrived(batch: Mapping[str, Any], device: Device) -> Tensor:
    """The signal of a batch, on the device."""
    signal: Tensor = batch["signal"]
    return signal if signal.device.type == device else signal.to(device)


if __name__ == "__main__":
    command(data_path)
