"""WandbRecord: what Weights & Biases is told beside the numbers that are logged anyway."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from callbacks.record import read_scores
from callbacks.score import ScoreCallback
from callbacks.wandb_run import WandbRun
from contracts import Score

RUN_ID = "wandb_run"
"""Entry of a checkpoint with the id of the W&B run that its training is logged to."""
_BINS = 64
_SCORES = {"test": "scores.json", "validate": "scores_validation.json"}
_TABLES = {"test": "scores/test", "validate": "scores/validation"}


class WandbRecord(Callback):
    """Sends tables of scores, gradients and checkpoints to the W&B run of ``logger``, the latter two where it asks.

    * ``test`` and ``validate``: the whole of ``scores.json`` as a table, ``scores/test`` and ``scores/validation``;
    * gradients: histograms ``gradients/<parameter>``, as an optimiser is about to use them: gathered over batches,
      averaged over processes, not clipped yet. A stage in closed form has none;
    * checkpoints: ``final.ckpt`` as an artifact named by its run folder, with what tells it from others as metadata.

    Every checkpoint carries the id of the W&B run, with which later commands on it go on.

    Args:
        logger: The logger of this run.
    """

    def __init__(self, logger: WandbRun) -> None:
        self.logger = logger
        self._steps: Counter[int] = Counter()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the id."""
        if self.logger.kept_id is not None:
            checkpoint[RUN_ID] = self.logger.kept_id

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Log gradients at the first step of an optimiser and every ``log_freq`` steps."""
        if not self.logger.gradients or not trainer.is_global_zero:
            return
        number = trainer.optimizers.index(optimizer)
        due = self._steps[number] % self.logger.log_freq == 0
        self._steps[number] += 1
        if not due:
            return
        stepped = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        histograms = {
            f"gradients/{name}": _histogram(parameter.grad)
            for name, parameter in pl_module.named_parameters()
            if parameter in stepped and parameter.grad is not None and parameter.grad.isfinite().any()
        }
        # as Lightning counts what it logs: several optimisers make one step of a batch
        self.logger.log_metrics(histograms, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log the scores or the checkpoint that the command has left; it is over, and its files are whole."""
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        if stage in _SCORES and any(isinstance(callback, ScoreCallback) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            scores = read_scores(folder / _SCORES[stage])
            columns = [field.name for field in fields(Score)]
            rows = [[score.as_dict()[column] for column in columns] for score in scores]
            self.logger.log_table(_TABLES[stage], columns=columns, data=rows)
        elif stage == "fit" and self.logger.checkpoints:
            self.logger.attempt(lambda run: _log_checkpoint(run, folder, pl_module, trainer))


def _histogram(gradient: Tensor) -> Any:
    """Histogram of what is finite; W&B's own hook takes all values to the CPU, of one process and one batch."""
    import wandb

    finite = gradient.detach()[gradient.isfinite()].float()
    counts = torch.histc(finite, bins=_BINS).cpu().numpy()
    low, high = finite.min().item(), finite.max().item()
    if low == high:
        # the range that histc takes then
        low, high = low - 1, high + 1
    return wandb.Histogram(np_histogram=(counts, np.linspace(low, high, _BINS + 1)))


def _log_checkpoint(run: Any, folder: Path, stage: Any, trainer: Trainer) -> None:
    import wandb

    data, people, kind, name = folder.absolute().parts[-4:]
    layout = stage.layout
    artifact = wandb.Artifact(
        # what W&B allows in a name, and its length
        re.sub(r"[^\w.-]+", "-", f"{data}-{people}-{kind}-{name}")[:128],
        type="model",
        metadata={
            "data": data,
            "people": people,
            "stage": kind,
            "name": name,
            "class": type(stage).__name__,
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            **{entry: layout[entry] for entry in ("protocol", "fold", "embedding_space", "training_set")},
        },
    )
    artifact.add_file(str(folder / "final.ckpt"), name="final.ckpt")
    run.log_artifact(artifact, aliases=["final"])
