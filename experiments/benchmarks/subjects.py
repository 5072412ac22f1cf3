"""How do memory and time grow with the number of people?

``python -m experiments.benchmarks.subjects --of=training`` trains stages whose layers of people grow with them;
``--of=data`` opens and serves stores of more and more people. Each number of people has a process of its own.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from experiments.benchmarks.data_path import GeneratedPatterns, open_generated
from experiments.benchmarks.in_turns import command, in_turns, kilobytes, seconds_of
from experiments.benchmarks.layouts import HCP_AREAS

THIS = "experiments.benchmarks.subjects"


def subjects(
    of: Literal["training", "data"] = "training",
    people: tuple[int, ...] = (1, 2, 4, 8, 16),
    which: str = "contrastive_fmri,neural_alignment,fmri_mae_full",
    samples: int = 120,
    voxels: int = sum(HCP_AREAS.values()),
    batch_size: int | None = None,
    folder: Path | None = None,
    implementation: Literal["serve"] | None = None,
) -> None:
    """Print a table of memory and time by number of people.

    Args:
        of: ``training`` of stages, or ``data``: opening a store and serving an epoch.
        people: Numbers of people.
        which: ``training``: names of ``stages``, separated by commas.
        samples: ``data``: training samples of each person.
        voxels: ``data``: numbers of a sample.
        batch_size: Samples of a step; None for the usual.
        folder: Holds the store that ``implementation`` serves.
        implementation: Serve the store of one number of people, in this process, and print plain numbers.
    """
    if implementation is not None:
        assert folder is not None
        print(json.dumps(serve(folder, people[0], samples=samples, voxels=voxels, batch_size=batch_size or 64)))
    elif of == "training":
        print("| stage | people | weights, millions | peak memory, GB | GB each further person | seconds a step |")
        print("|---|---|---|---|---|---|")
        for name in which.split(","):
            _print_training(name, people, batch_size)
    else:
        print(f"{samples} samples of {voxels} numbers a person")
        print(
            "| people | store, GB | first batch ever, s | first batch later, s | an epoch, s | memory of its own, GB "
            "| MB of it each further person | mapped pages, GB |\n|---|---|---|---|---|---|---|---|"
        )
        _print_data(people, samples=samples, voxels=voxels, batch_size=batch_size or 64)


def each_further(people: Sequence[int], amounts: Sequence[float]) -> list[float | None]:
    """What each further person adds, between one number of people and the next; None for the first."""
    pairs = zip(people, people[1:], amounts, amounts[1:], strict=False)
    return [None, *((more - less) / (after - before) for before, after, less, more in pairs)]


def number_of(amount: float | None, digits: int) -> str:
    """An amount as it is printed, or a dash where there is none."""
    return "-" if amount is None else f"{amount:.{digits}f}"


def _print_training(name: str, people: Sequence[int], batch_size: int | None) -> None:
    options = {"steps": 1, "batch_size": batch_size}
    found: list[Mapping[str, Any]] = [
        in_turns("experiments.benchmarks.stages", [name], rounds=1, people=number, **options)[name][0]
        for number in people
    ]
    more = each_further(people, [result["memory"] for result in found])
    for number, result, further in zip(people, found, more, strict=True):
        seconds = result["seconds"] * result["samples"]
        print(
            f"| {name} | {number} | {result['weights'] / 1e6:.2f} | {result['memory']:.2f} | {number_of(further, 3)} "
            f"| {seconds:.2f} |",
            flush=True,
        )


def _print_data(people: Sequence[int], *, samples: int, voxels: int, batch_size: int) -> None:
    found = []
    for number in people:
        with tempfile.TemporaryDirectory(prefix="neuroalign-subjects-") as folder:
            open_people(Path(folder), number, samples, voxels, batch_size).store  # noqa: B018  (the property converts)
            options = {"samples": samples, "voxels": voxels, "batch_size": batch_size, "folder": folder}
            [result] = in_turns(THIS, ["serve"], rounds=1, people=[number], **options)["serve"]
            found.append(result)
    more = each_further(people, [result["own"] for result in found])
    for number, result, further in zip(people, found, more, strict=True):
        times = " | ".join(f"{result[name]:.2f}" for name in ("first_ever", "first_batch", "epoch"))
        size = number * samples * voxels * 4e-9
        megabytes = number_of(None if further is None else further * 1e3, 2)
        print(
            f"| {number} | {size:.3f} | {times} | {result['own']:.3f} | {megabytes} | {result['mapped']:.3f} |",
            flush=True,
        )


def open_people(folder: Path, people: int, samples: int, voxels: int, batch_size: int) -> Any:
    """Generated patterns of some people, mapped from disk."""
    size: dict[str, Any] = {"people": people, "shape": (voxels,)}
    return open_generated(folder, samples, batch_size, "mmap", kind=GeneratedPatterns, **size)


def serve(folder: Path, people: int, *, samples: int, voxels: int, batch_size: int) -> dict[str, float]:
    """Open a store and serve an epoch of it; seconds, and memory in GB: of its own, and mapped pages of files."""
    before = _resident()

    def first_batch() -> Any:
        loader = open_people(folder, people, samples, voxels, batch_size).train_dataloader()
        next(iter(loader))
        return loader

    first_ever = seconds_of(first_batch)
    loaders = []
    later = seconds_of(lambda: loaders.append(first_batch()))
    epoch = seconds_of(lambda: sum(1 for _ in loaders[0]))
    own, mapped = (after - then for after, then in zip(_resident(), before, strict=True))
    return {"first_ever": first_ever, "first_batch": later, "epoch": epoch, "own": own, "mapped": mapped}


def _resident() -> tuple[float, float]:
    own, mapped = (kilobytes("/proc/self/status", name) * 1024e-9 for name in ("RssAnon", "RssFile"))
    return own, mapped


if __name__ == "__main__":
    command(subjects)
