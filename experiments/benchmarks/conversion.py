"""What does it take to use recordings? Converting and serving them, against reading whole files into memory.

Memory, seconds and passes over the training trials of one person, each way in a process of its own.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, TensorDataset

from contracts import UserError
from datamodules import BrainDataModule
from experiments.benchmarks.in_turns import in_turns, kilobytes, peak_memory, seconds_of, spread

SECONDS = 3.0
"""For which passes are made, and at least three of them."""
Residence = Literal["mmap", "ram"]
Way = Literal["all", "write", "convert", "mmap", "ram", "whole"]
"""``all`` compares; any other does one thing in this process: ``write`` the files, ``convert`` them, serve the finished
store from ``mmap`` or ``ram``, or read the ``whole`` files."""


@dataclass(frozen=True)
class Recordings:
    """Generated recordings of one person, and two ways to use them.

    Attributes:
        text: What they are, printed above the table.
        needed: Memory that reading the whole files takes, in GB.
        write: Writes the files into a folder.
        read_whole: Reads them from there: training trials ``(n, ...)`` and what was seen in each ``(n,)``.
        opened: The data set from a folder of files, a folder of stores, and a residence.
    """

    text: str
    needed: float
    write: Callable[[Path], None]
    read_whole: Callable[[Path], tuple[torch.Tensor, torch.Tensor]]
    opened: Callable[[Path, Path, Residence], BrainDataModule]


def compare(
    module: str,
    way: Way,
    recordings: Recordings,
    *,
    folder: Path | None,
    batch_size: int,
    rounds: int,
    written: Mapping[str, Any],
) -> None:
    """Write the files, measure each way of using them in a process of its own, and print a table.

    Args:
        module: The benchmark, to be started with ``--implementation=<way>``.
        way: What is asked of this process; anything but ``all`` prints what it took as JSON.
        recordings: The recordings.
        folder: Where files are kept for the next time; None for a temporary folder.
        batch_size: Samples of a batch.
        rounds: How often each way is measured.
        written: Options of the benchmark that decide what is written.

    Raises:
        UserError: One way without a folder, or a folder that holds other files.
    """
    if way != "all":
        if folder is None:
            raise UserError(f"--implementation={way} needs the folder of the files: give --folder")
        print(json.dumps(measure(way, recordings, folder, batch_size)))
        return
    prefix = f"neuroalign-{module.rpartition('.')[2]}-"
    with tempfile.TemporaryDirectory(prefix=prefix) if folder is None else nullcontext(folder) as place:
        options = {"folder": place, "batch_size": batch_size, **written}
        _write_once(module, Path(place), options, written)
        files = [path for path in (Path(place) / "raw").rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files) / 1e9
        print(f"{recordings.text} in {len(files)} files, {size:.2f} GB; {batch_size} a batch")
        ways = ["convert", "mmap", "ram", "whole"]
        free = kilobytes("/proc/meminfo", "MemAvailable") * 1024e-9
        if recordings.needed >= free:
            ways.remove("whole")
            print(f"whole files in memory would take about {recordings.needed:.1f} GB, {free:.1f} are free: left out")
        print_table(in_turns(module, ways, rounds=rounds, **options))


def _write_once(module: str, folder: Path, options: Mapping[str, Any], written: Mapping[str, Any]) -> None:
    note = folder / "written.json"
    if not note.is_file():
        in_turns(module, ["write"], rounds=1, **options)
        note.write_text(json.dumps(written))
    there = json.loads(note.read_text())
    if there != dict(written):
        raise UserError(f"{folder} holds files written with {there}, asked for {dict(written)}; give another --folder")


def print_table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Print the median of each measurement, and the median and the extremes of its ratio to that of whole files.

    Args:
        found: By way, what ``measure`` gave in each round.
    """
    rows = [
        ("peak memory while converting, or reading the files, GB", "convert", "memory"),
        ("seconds of converting once, or of reading the files", "convert", "seconds"),
    ]
    for residence in ("mmap", "ram"):
        rows += [
            (f"{residence}: seconds from opening to the first batch, statistics to be made", residence, "first_ever"),
            (f"{residence}: seconds from opening to the first batch, any later time", residence, "first_batch"),
            (f"{residence}: peak memory while serving, mapped pages included, GB", residence, "memory"),
            (f"{residence}: passes over all training trials a minute", residence, "passes"),
        ]
    print("| | ours | whole files in memory | ratio: median (lowest .. highest) |\n|---|---|---|---|")
    for text, way, key in rows:
        ours = [result[key] for result in found[way]]
        theirs = [result[key] for result in found.get("whole", ())]
        line = f"| {text} | {statistics.median(ours):.2f} |"
        if theirs:
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            print(f"{line} {statistics.median(theirs):.2f} | {spread(ratios, 3)} |")
        else:
            print(f"{line} - | - |")


def measure(way: Way, recordings: Recordings, folder: Path, batch_size: int) -> dict[str, float]:
    """Do one thing in this process, and tell what it took: seconds, peak memory in GB, and passes a minute.

    Args:
        way: What to do; not ``all``.
        recordings: The recordings.
        folder: Holds, or will hold, the files in ``raw`` and the store in ``stores``.
        batch_size: Samples of a batch.
    """
    raw, stores = folder / "raw", folder / "stores"
    if way == "write":
        raw.mkdir(parents=True, exist_ok=True)
        return {"seconds": seconds_of(lambda: recordings.write(raw))}
    if way == "convert":
        shutil.rmtree(stores, ignore_errors=True)
        return {"seconds": seconds_of(lambda: recordings.opened(raw, stores, "mmap").store), "memory": peak_memory()}
    if way == "whole":
        times, loader = _whole(recordings, raw, batch_size)
    else:
        assert way != "all"
        times, loader = _served(way, recordings, raw, stores)
    passes: list[float] = []
    while sum(passes) < SECONDS or len(passes) < 3:
        passes.append(seconds_of(lambda: _serve(loader)))
    return {**times, "passes": 60 / statistics.median(passes), "memory": peak_memory()}


def _served(residence: Residence, recordings: Recordings, raw: Path, stores: Path) -> tuple[dict[str, float], Any]:
    def first_batch() -> Any:
        loader = recordings.opened(raw, stores, residence).train_dataloader()
        next(iter(loader))
        return loader

    shutil.rmtree(stores / "prepared", ignore_errors=True)
    first_ever = seconds_of(first_batch)
    started = time.perf_counter()
    loader = first_batch()
    return {"first_ever": first_ever, "first_batch": time.perf_counter() - started}, loader


def _whole(recordings: Recordings, raw: Path, batch_size: int) -> tuple[dict[str, float], Any]:
    started = time.perf_counter()
    dataset = TensorDataset(*recordings.read_whole(raw))
    read = time.perf_counter() - started
    loader = DataLoader(dataset, batch_size, shuffle=True, drop_last=True)
    next(iter(loader))
    first = time.perf_counter() - started
    return {"seconds": read, "first_ever": first, "first_batch": first}, loader


def _serve(batches: Iterable[Any]) -> None:
    for _ in batches:
        pass
