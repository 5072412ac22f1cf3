"""RunCheckpoint: whole checkpoints only, under names that say whether the fit was finished."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from contracts import ContractError, DataError


class RunCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` while training; a finished fit leaves ``final.ckpt``.

    ``final.ckpt`` is the last state, or with ``monitor`` the best one by a validation score or loss (``best.ckpt``
    until then; ``last.ckpt`` stays, to go on from). A checkpoint is written to a temporary sibling, flushed, and put
    in place by one rename, so a file of any of these names is always whole.

    Args:
        every_epochs: Epochs between checkpoints.
        every_minutes: Minutes between checkpoints within an epoch, looked at every ``log_every_n_steps`` batches.
        monitor: Logged value by which the kept checkpoint is chosen; its name begins with ``validation/``.
        mode: Whether the least (``min``) or the greatest (``max``) value is best.

    Raises:
        ContractError: A ``monitor`` that is not about validation.
    """

    def __init__(
        self,
        every_epochs: int = 1,
        every_minutes: float = 15.0,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        super().__init__()
        if monitor is not None and not monitor.startswith("validation/"):
            raise ContractError(
                f"only validation may choose a checkpoint: monitor must begin with 'validation/', found {monitor!r}"
            )
        self.every_epochs = every_epochs
        self.every_minutes = every_minutes
        self.monitor = monitor
        self.mode = mode
        self.best = math.inf if mode == "min" else -math.inf
        self._saved_at = time.monotonic()
        self._trained = False
        self._saved_step: int | None = None
        self._lock: FileLock | None = None

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"monitor": self.monitor, "mode": self.mode, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best value so far, if it is the same quantity."""
        if (state_dict["monitor"], state_dict["mode"]) == (self.monitor, self.mode):
            self.best = state_dict["best"]

    # ---- the run folder ----------------------------------------------------------------------------

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

    # ---- when --------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; remove what an earlier fit of this run left unfinished, unless this one goes on from it.

        Raises:
            ContractError: A ``monitor`` without any validation.
        """
        self._saved_at = time.monotonic()
        self._trained = True
        if self.monitor is not None and trainer.val_dataloaders is not None and not sum(trainer.num_val_batches):
            raise ContractError(
                f"monitor={self.monitor!r} has no validation to look at: set --data.init_args.split.validation, or "
                "leave --run.monitor out to keep the last state"
            )
        if any(stop.stopped_epoch for stop in trainer.early_stopping_callbacks):
            # killed after the decision to stop, before the end
            trainer.should_stop = True
        folder = Path(trainer.default_root_dir)
        start = trainer.ckpt_path
        goes_on = start is not None and Path(start).absolute().parent == folder.absolute()
        self._saved_step = trainer.global_step if goes_on and (folder / "last.ckpt").exists() else None
        if trainer.is_global_zero and not goes_on:
            for name in ("last.ckpt", "best.ckpt"):
                (folder / name).unlink(missing_ok=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when enough time has passed."""
        if (batch_idx + 1) % trainer.log_every_n_steps or not self._between_steps(trainer, batch_idx):  # type: ignore[attr-defined]
            return
        if getattr(pl_module, "every_sample_once", False):
            # what a closed-form stage has collected of the epoch is in no checkpoint
            return
        due = time.monotonic() - self._saved_at >= 60 * self.every_minutes
        # all ranks must save together, and their clocks differ
        if trainer.strategy.broadcast(due) if trainer.world_size > 1 else due:
            self._save(trainer, "last.ckpt")

    @staticmethod
    def _between_steps(trainer: Trainer, batch_idx: int) -> bool:
        """Whether a fit resumed here is the same as an unbroken one.

        Not while gradients are being accumulated, which no checkpoint holds, nor before a validation or the end
        of an epoch, whose outcome a resumed fit would lack.
        """
        loop: Any = trainer.fit_loop
        every_epoch = trainer.check_val_every_n_epoch is not None
        done = batch_idx + 1 if every_epoch else loop.total_batch_idx + 1
        validates = done % trainer.val_check_batch == 0 if trainer.val_check_batch else False
        return not (loop._should_accumulate() or trainer.is_last_batch or validates)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the best state.

        Raises:
            ContractError: Nothing of the name ``monitor`` was logged.
        """
        if self.monitor is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            names = ", ".join(sorted(name for name in metrics if name.startswith("validation/"))) or "nothing"
            raise ContractError(f"monitor={self.monitor!r} was not logged; validation logs {names}")
        value = float(metrics[self.monitor])
        if value < self.best if self.mode == "min" else value > self.best:
            self.best = value
            self._save(trainer, "best.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after the epoch, once callbacks and the stage are done with it."""
        # the progress bar of the first process has just averaged the epoch's values over processes; all must take part
        # before they meet anywhere else, such as in a checkpoint
        trainer.callback_metrics  # noqa: B018  (the property does the work)
        if (trainer.current_epoch + 1) % self.every_epochs == 0:
            self._save(trainer, "last.ckpt")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the finished model where its last step is not in ``last.ckpt`` yet; not reached when a fit is killed.

        Not once more otherwise: a fit that is killed right here must not differ from one that is not.
        """
        if self._saved_step != trainer.global_step:
            self._save(trainer, "last.ckpt")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the checkpoint its final name; also where a resumed fit had nothing left to do.

        Raises:
            ContractError: The monitored value was NaN throughout.
        """
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            folder = Path(trainer.default_root_dir)
            chosen, final = folder / ("last.ckpt" if self.monitor is None else "best.ckpt"), folder / "final.ckpt"
            if chosen.exists():
                os.replace(chosen, final)
            elif self._trained:
                raise ContractError(f"monitor={self.monitor!r} was never a number, so no checkpoint is the best")
        trainer.strategy.barrier()

    def _save(self, trainer: Trainer, name: str) -> None:
        self._saved_at = time.monotonic()
        if name == "last.ckpt":
            self._saved_step = trainer.global_step
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = Path(trainer.default_root_dir) / name
        partial = path.with_name(f".{name}.partial")
        trainer.save_checkpoint(partial, weights_only=False)
        if trainer.is_global_zero:
            with partial.open("rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(partial, path)
        trainer.strategy.barrier()
