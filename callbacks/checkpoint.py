"""RunCheckpoint: whole checkpoints only, under names that say whether the fit was finished."""

from __future__ import annotations

import io
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile, ZipFile

import torch
from filelock import FileLock, Timeout
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks.termination import termination
from callbacks.whole_file import whole_file
from contracts import ContractError, DataError

BEGUN_ANEW = ".begun_anew"
"""In a run folder: ``final.ckpt`` is of an earlier fit, which an unfinished one will replace."""


class RunCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` while training; a finished fit leaves ``final.ckpt``.

    ``final.ckpt`` is the last state, or with ``monitor`` the best one by a validation score or loss (``best.ckpt``
    until then; ``last.ckpt`` stays, to go on from). A checkpoint is written to a temporary sibling, flushed, and put
    in place by one rename, so a file of any of these names is always whole. A full disk ends the fit of all processes
    with one error; the checkpoint before stays.

    A process that is told to end (``callbacks.termination``) ends after the batch at hand, together with all others
    of the run, and ``last.ckpt`` then holds that batch. Where no exact checkpoint can be written (gradients are being
    accumulated, a validation or the end of the epoch comes next) the fit first goes on to where one can; in the
    epoch of a closed-form stage, of which there are none, it ends without.

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
        self._ends = False
        self._files = _WholeCheckpoints()

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
        trainer.strategy.checkpoint_io = self._files
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
        termination.wait_for_batches(False)
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let the run folder go when the fit fails, too: this process may try again."""
        termination.wait_for_batches(False)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # ---- when --------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on all processes end together."""
        termination.wait_for_batches(True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; remove what an earlier fit of this run left unfinished, unless this one goes on from it.

        Raises:
            ContractError: A ``monitor`` without any validation.
        """
        self._saved_at = time.monotonic()
        self._trained = True
        self._ends = False
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
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            _clear(folder, goes_on=goes_on)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """End before the next batch, if all processes have agreed to.

        Raises:
            SIGTERMException: They have.
        """
        if self._ends:
            if trainer.is_global_zero:
                kept = Path(trainer.default_root_dir) / "last.ckpt"
                print(
                    f"neuroalign: told to end, before batch {batch_idx} of epoch {trainer.current_epoch}; "
                    f"{f'{kept} holds what was done' if kept.exists() else 'nothing to go on from yet'}; "
                    "go on with --run.resume=auto (RESUME=auto)",
                    file=sys.stderr,
                )
            raise SIGTERMException

    def _told_to_end(self, trainer: Trainer) -> bool:
        """Whether any process was told to end; asked by all together."""
        return trainer.strategy.reduce_boolean_decision(termination.asked, all=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when enough time has passed, or when the fit is to end here."""
        told = self._told_to_end(trainer)
        if not self._between_steps(trainer, batch_idx):
            return
        self._ends = told
        if getattr(pl_module, "every_sample_once", False):
            # what a closed-form stage has collected of the epoch is in no checkpoint
            return
        due = told
        if not told and (batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            due = time.monotonic() - self._saved_at >= 60 * self.every_minutes
            # all ranks must save together, and their clocks differ
            due = trainer.strategy.broadcast(due) if trainer.world_size > 1 else due
        if due:
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
        self._ends = self._told_to_end(trainer)
        if self._ends or (trainer.current_epoch + 1) % self.every_epochs == 0:
            self._save(trainer, "last.ckpt")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the finished model where its last step is not in ``last.ckpt`` yet; not reached when a fit is killed.

        Not once more otherwise: a fit that is killed right here must not differ from one that is not.
        """
        if self._saved_step != trainer.global_step:
            self._save(trainer, "last.ckpt")
        termination.wait_for_batches(False)

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
                (folder / BEGUN_ANEW).unlink(missing_ok=True)
            elif self._trained:
                raise ContractError(f"monitor={self.monitor!r} was never a number, so no checkpoint is the best")
        trainer.strategy.barrier()

    def _save(self, trainer: Trainer, name: str) -> None:
        self._saved_at = time.monotonic()
        if name == "last.ckpt":
            self._saved_step = trainer.global_step
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trainer.save_checkpoint(Path(trainer.default_root_dir) / name, weights_only=False)
        # one process writes, and all end where it could not
        failure = trainer.strategy.broadcast(self._files.failure)
        if failure is not None:
            raise DataError(failure)
        for logger in trainer.loggers:
            # curves without a gap where a killed fit goes on from here
            logger.save()


class _WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints in one rename, and tells what went wrong instead of raising it in one process alone.

    Attributes:
        failure: Why the latest checkpoint could not be written.
    """

    def __init__(self) -> None:
        self.failure: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        self.failure = None
        target = Path(path)
        last = target.with_name("last.ckpt")
        found = f"the last whole checkpoint is {last}" if last.exists() else "there is no checkpoint yet"
        # made in memory first: torch reports a full disk as a RuntimeError without a reason
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            advice = f"{found}: free some space, and go on from there with --run.resume=auto (RESUME=auto)"
            with whole_file(target, advice) as partial:
                partial.write_bytes(content.getbuffer())
        except DataError as error:
            self.failure = str(error)


def refuse_damaged(path: Path, advice: str) -> None:
    """Read a checkpoint through once and compare its checksums, which torch does not look at.

    Args:
        path: The checkpoint.
        advice: What to do about a damaged one.

    Raises:
        DataError: A file that was cut off, or whose content is another than was written.
    """
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()
    # besides, zipfile asks for compression methods and versions that damage has made up
    except (BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise DataError(f"{path} is damaged or no checkpoint ({error}); {advice}") from error
    if damaged is not None:
        raise DataError(f"{path} is damaged (in {damaged}); {advice}")


def _clear(folder: Path, *, goes_on: bool) -> None:
    """Remove what earlier fits left in a run folder and this one does not go on from."""
    names = [".last.ckpt.partial", ".best.ckpt.partial", *([] if goes_on else ["last.ckpt", "best.ckpt"])]
    if not goes_on and (folder / "final.ckpt").exists():
        (folder / BEGUN_ANEW).touch()
    for name in names:
        (folder / name).unlink(missing_ok=True)
    if not goes_on:
        # logs of the parts of an earlier fit
        for logs in (folder / "csv").glob("fit-*"):
            shutil.rmtree(logs)
