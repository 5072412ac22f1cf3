"""What a process of a run leaves beside it when it fails, and that none outlives the one that started it."""

from __future__ import annotations

import faulthandler
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TextIO

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks.termination import STATUS
from callbacks.whole_file import whole_file
from contracts import UserError

PARENT = "NEUROALIGN_STARTED_BY"
"""Environment variable: host and number of the process that started this one, where that is a ``neuroalign``, too."""


class RecordFailure(Callback):
    """Leaves ``error_rank-<N>.txt`` in the run folder where process N of the run fails.

    It holds time, host, process, command and traceback, also of errors that are one line on the terminal, and is
    written as soon as Lightning hears of the error: the other processes, which then fail for want of this one, may
    end it before it has cleaned up. A crash of Python itself (a segmentation fault in a library) leaves where it
    happened in ``crash_rank-<N>.txt``. The next command of the run removes what this one left.

    As a context it covers what happens before and after Lightning's part.

    Args:
        words: The command line, without ``neuroalign``.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.rank = _rank()
        self.folder: Path | None = None
        self._written: BaseException | None = None
        self._crash: TextIO | None = None
        self._processes = 1

    def begin(self, folder: Path) -> None:
        """Say where the run is kept; removes what this process left there the last time."""
        self.folder = folder
        self._forget()

    def _forget(self) -> None:
        assert self.folder is not None
        if not self.folder.is_dir():
            return
        for kind in ("error", "crash"):
            self._file(kind).unlink(missing_ok=True)

    def __enter__(self) -> RecordFailure:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self._write(error)
        if self._crash is not None:
            faulthandler.disable()
            self._crash.close()
            file = Path(self._crash.name)
            if not file.stat().st_size:
                file.unlink()
        if error is None and self.rank == 0 and self.folder is not None:
            # an earlier attempt may have had more processes than this one; those that live look after their own
            for file in [*self.folder.glob("error_rank-*.txt"), *self.folder.glob("crash_rank-*.txt")]:
                if int(file.stem.rpartition("-")[2]) >= self._processes:
                    file.unlink(missing_ok=True)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the number of the process from the trainer; from here on crashes are written down."""
        if self.folder is None:
            return
        self.rank, self._processes = trainer.global_rank, trainer.world_size
        if self._crash is None:
            self._forget()
            self.folder.mkdir(parents=True, exist_ok=True)
            # open all the time: no file can be opened in the middle of a crash
            self._crash = self._file("crash").open("w")
            faulthandler.enable(self._crash)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the error down at once."""
        if isinstance(exception, Exception):
            self._write(exception)

    def _file(self, kind: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{kind}_rank-{self.rank}.txt"

    def _write(self, error: Exception) -> None:
        if self.folder is None or error is self._written:
            return
        self._written = error
        text = (
            f"time: {datetime.now(UTC).isoformat(timespec='seconds')}\n"
            f"host: {socket.gethostname()}\n"
            f"process: {self.rank} (number {os.getpid()} on the host)\n"
            f"command: {shlex.join(['neuroalign', *self.words])}\n\n"
            f"{''.join(traceback.format_exception(error))}"
        )
        try:
            with whole_file(self._file("error"), "the error itself is printed") as partial:
                partial.write_text(text)
        except UserError as unwritten:
            print(f"neuroalign: {unwritten}", file=sys.stderr)


def _rank() -> int:
    """Number of this process in its run, as far as the environment tells before there is a trainer."""
    names = [name for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ]
    return int(os.environ[names[0]]) if names else 0


def end_with_parent() -> None:
    """Watch the process that started this one, where the two belong together, and end when it is gone.

    The processes of a run wait for each other; one whose first process was killed would wait for ever, and hold GPUs.
    They belong together where Lightning or ``neuroalign grid`` started this one, or torchrun.
    """
    parent, here = os.getppid(), socket.gethostname()
    host, _, number = os.environ.get(PARENT, "").rpartition(" ")
    os.environ[PARENT] = f"{here} {os.getpid()}"
    if host == here and _is_gone(int(number)):
        # while this one was loading Python
        _end(int(number))
    if (host, number) == (here, str(parent)) or "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_watch, args=(parent,), name="parent-watch", daemon=True).start()


def run_process(words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command that may save what it has done when this process is told to end; returns its status.

    Raises:
        SIGTERMException: This process or the command was told to end, and the command has.
    """
    with subprocess.Popen(words, env=environment) as process:
        try:
            status = process.wait()
        except SIGTERMException:
            process.terminate()
            raise
    if status == STATUS:
        raise SIGTERMException
    return status


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    _end(parent)


def _is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        # another user's
        return False
    return False


def _end(parent: int) -> None:
    print(f"neuroalign: process {parent}, which started this one, is gone; ending", file=sys.stderr, flush=True)
    # not an exception: the main thread may be waiting inside a library
    os.kill(os.getpid(), signal.SIGKILL)
