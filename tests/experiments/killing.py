"""Starting commands in sessions of their own, and finding what is left of them."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

# what an earlier run in this process may have left, and a scheduler around the tests
FOREIGN = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")


def start(
    folder: Path, words: Sequence[str], variables: Mapping[str, str] = {}, *, output: Path
) -> subprocess.Popen[str]:
    """Start Python in a session of its own; what its processes print goes to a file."""
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    with output.open("w") as stream:
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env=environment | {"OMP_NUM_THREADS": "1", **variables},
            stdout=stream,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def living(sessions: Sequence[int]) -> list[int]:
    """Processes of these sessions that have not ended; one that has and that no one asked about does not count."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            # ended meanwhile
            continue
        if int(session) in sessions and state != "Z":
            found.append(int(entry.name))
    return sorted(found)


class Command:
    """A ``neuroalign`` command in a session of its own.

    Args:
        folder: Where it runs.
        words: Its command line.
        log: File for what it prints.
        forked: Whether it is made from a process that has loaded Python and everything imported before, which saves
            some seconds; such a one cannot start further processes of its run.
    """

    def __init__(self, folder: Path, words: Sequence[str], log: Path, *, forked: bool) -> None:
        self._log = log
        self._forked: BaseProcess | None = None
        self._started: subprocess.Popen[str] | None = None
        if not forked:
            self._started = start(folder, ["-m", "experiments", *words], output=log)
            self.pid = self._started.pid
            return
        self._forked = FORKS.Process(target=_run_command, args=(str(folder), list(words), str(log)))
        self._forked.start()
        assert self._forked.pid is not None
        self.pid = self._forked.pid
        while self.poll() is None and os.getsid(self.pid) != self.pid:
            time.sleep(0.001)

    def poll(self) -> int | None:
        """Its status, once it has ended."""
        if self._forked is not None:
            return self._forked.exitcode
        assert self._started is not None
        return self._started.poll()

    def wait(self, seconds: float) -> int:
        """Wait for its end, and return its status."""
        if self._forked is not None:
            self._forked.join(seconds)
        else:
            assert self._started is not None
            self._started.wait(seconds)
        status = self.poll()
        assert status is not None, f"still there after {seconds} s"
        return status

    def printed(self) -> str:
        return self._log.read_text(errors="replace")


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["experiments.cli"])


def _run_command(folder: str, words: list[str], log: str) -> None:
    os.setsid()
    os.chdir(folder)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.argv = ["neuroalign", *words]
    from experiments.cli import main

    main(words)
