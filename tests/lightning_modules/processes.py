"""Tests on several processes: how these meet, and what another Python is to call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

ROOT = Path(__file__).parents[2]


@contextmanager
def group(folder: str | Path, rank: int, processes: int) -> Iterator[None]:
    """This process as one of several, which meet in a file of the folder that no group has met in."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting-{processes}",
        rank=rank,
        world_size=processes,
        timeout=timedelta(seconds=60),
    )
    yield
    distributed.destroy_process_group()


def call_anew(
    function: Callable[..., object], *arguments: object, folder: Path, timeout: float = 180, **options: Any
) -> None:
    """Call a function of a test module in a Python of its own, which Lightning may start again as other processes.

    Args:
        function: Known by its name in its module.
        *arguments: Paths, and values that their ``repr`` writes.
        folder: A folder that is there: the working folder of the call.
        timeout: Seconds.
        **options: As ``arguments``.
    """
    from tests.experiments.launching import launch  # here, so that processes that only meet start fast

    def written(value: object) -> str:
        return f"Path({str(value)!r})" if isinstance(value, Path) else repr(value)

    given = [written(value) for value in arguments]
    given += [f"{name}={written(value)}" for name, value in options.items()]
    script = folder / "driver.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        f"from {function.__module__} import {function.__name__}\n"
        "if __name__ == '__main__':\n"
        f"    {function.__name__}({', '.join(given)})\n"
    )
    launch(folder, [str(script)], timeout=timeout)


def both_ways(scored: Callable[[Path, int], object], folder: Path, processes: int = 2) -> tuple[Path, Path]:
    """Call ``scored(folder, processes)`` here with one process and anew with several; returns the folders it got."""
    one, several = folder / "one", folder / "several"
    scored(one, 1)
    several.mkdir()
    call_anew(scored, several, processes, folder=several)
    return one, several
