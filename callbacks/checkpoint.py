"""RunCheckpoint: whole checkpoints only, under names that say whether the fit was finished."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from contracts import DataError


class RunCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` while training and renames it to ``final.ckpt`` when the fit is finished.

    A checkpoint is written to a temporary sibling, flushed, and put in place by one rename, so a file of
    either name is always whole.

    Args:
        every_epochs: Epochs between checkpoints.
        every_minutes: Minutes between checkpoints within an epoch.
    """

    def __init__(self, every_epochs: int = 1, every_minutes: float = 15.0) -> None:
        super().__init__()
        self.every_epochs = every_epochs
        self.every_minutes = every_minutes
        self._saved_at = time.monotonic()
        self._lock: FileLock | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Claim the run folder for this fit.

        Raises:
            DataError: Another process is training this run.
        """
        if stage != "fit" or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            self._lock = None
            raise DataError(f"{folder} is being trained by another process; choose another --run.name") from None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the run folder go."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let the run folder go when the fit fails, too: this process may try again."""
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when enough time has passed."""
        due = time.monotonic() - self._saved_at > 60 * self.every_minutes
        # all ranks must save together, and their clocks differ
        if trainer.strategy.broadcast(due) if trainer.world_size > 1 else due:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after the epoch, once callbacks and the stage are done with it."""
        if (trainer.current_epoch + 1) % self.every_epochs == 0:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the finished model and give it its final name; not reached when the fit fails or is killed."""
        self._save(trainer)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            folder = Path(trainer.default_root_dir)
            os.replace(folder / "last.ckpt", folder / "final.ckpt")
        trainer.strategy.barrier()

    def _save(self, trainer: Trainer) -> None:
        self._saved_at = time.monotonic()
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        last = Path(trainer.default_root_dir) / "last.ckpt"
        partial = last.with_name(".last.ckpt.partial")
        trainer.save_checkpoint(partial, weights_only=False)
        if trainer.is_global_zero:
            with partial.open("rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(partial, last)
        trainer.strategy.barrier()
