"""The order of a scheduler to end: heard at once, but between two batches of a fit.

SLURM sends SIGTERM before it kills a job whose time is up (``--signal=TERM@120`` sets how long before); SIGUSR1 means
the same here. Where nothing is being trained the order ends the process at once, as an exception, so that half-written
files are removed. In the middle of a fit it is only taken down: ``RunCheckpoint`` asks all processes of the run
together after each batch, saves, and ends them all after the same batch.

Lightning's own handling is not used: it talks to other processes from within the handler, in the middle of whatever
they were talking about; it listens to the first process only; and on SLURM it writes checkpoints at inexact points,
not in one rename.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lightning.pytorch.utilities.exceptions import SIGTERMException

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STATUS = 128 + signal.SIGTERM
"""Exit status of a command that was told to end, as shells report it."""


class _Termination:
    """Whether this process was told to end, and whether that has to wait; there is one a process.

    Attributes:
        asked: A signal has come since ``heard`` began.
    """

    def __init__(self) -> None:
        self.asked = False
        self._waits = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen to the signals; other threads than the main one cannot, and do nothing.

        Raises:
            SIGTERMException: One has come, and nothing was being trained.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.asked = self._waits = False
        before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        try:
            yield
        finally:
            self._waits = True
            for number, handler in before.items():
                # what was set from outside Python cannot be set again
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self.check()

    def check(self) -> None:
        """End, if that was asked for and nothing is being trained.

        Raises:
            SIGTERMException: So it is.
        """
        if self.asked and not self._waits:
            raise SIGTERMException

    def wait_for_batches(self, waits: bool) -> None:
        """Let orders wait for the end of a batch, or no longer."""
        self._waits = waits


termination = _Termination()
