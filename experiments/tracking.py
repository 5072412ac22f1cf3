"""What a run tells Weights & Biases about itself, from its run folder and its checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from lightning.pytorch.loggers import Logger, WandbLogger

from callbacks import WandbRecord, WandbRun
from callbacks.wandb_record import RUN_ID
from contracts import DataError


def track(
    loggers: Sequence[Logger], folder: Path, *, command: str, config: Mapping[str, Any], checkpoint: str | None
) -> list[Callback]:
    """Tell each W&B logger which run it is about.

    Args:
        loggers: All loggers of a command.
        folder: Run folder, ``<root>/<data>/<people>/<stage>/<name>``.
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        config: Resolved configuration of the command.
        checkpoint: What the command starts from.

    Returns:
        The callbacks that keep W&B up to date.

    Raises:
        DataError: A logger of W&B that knows no run folders, or a folder of W&B that cannot be written.
    """
    callbacks: list[Callback] = []
    data, people, stage, name = folder.absolute().parts[-4:]
    for logger in loggers:
        if isinstance(logger, WandbRun):
            run_id, step = wandb_run_of(checkpoint, folder)
            if "WANDB_RUN_ID" in os.environ:
                # an agent has chosen one
                run_id = None
            logger.belong_to(
                folder.absolute().parents[3],
                # a W&B run is described by its training, not by what is tested later
                config=config if command == "fit" or run_id is None else {},
                run_id=run_id,
                step=None if command == "fit" else step,
                name=f"{stage} {data} {people} {name}",
                # the people and folds of a grid
                group=f"{stage} {data} {name.partition('_fold-')[0]}",
                tags=(data, people, stage, name),
            )
            callbacks.append(WandbRecord(logger))
        elif isinstance(logger, WandbLogger):
            raise DataError(
                "Lightning's WandbLogger starts a W&B run for every command; name callbacks.WandbRun instead "
                "(-c configs/logger/wandb.yaml)"
            )
    return callbacks


def wandb_run_of(checkpoint: str | None, folder: Path) -> tuple[str | None, int]:
    """Return the W&B run and the step of the training that a checkpoint of this run folder comes from.

    Returns:
        The id, None where there is none or the checkpoint is another run's; the step on the axis of what is logged.
    """
    if checkpoint is None or not Path(checkpoint).is_file():
        return None, 0
    # memory mapped: the weights are not read
    content = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
    loop = content.get("loops", {}).get("fit_loop", {}).get("epoch_loop.state_dict", {})
    own = Path(checkpoint).absolute().parent == folder.absolute()
    return content.get(RUN_ID) if own else None, loop.get("_batches_that_stepped", 0)
