"""RunFacts: what was run, with what and on what, kept beside the results."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.whole_file import whole_file

PACKAGES = (
    "neuroalign",
    "torch",
    "lightning",
    "torchmetrics",
    "open_clip_torch",
    "timm",
    "numpy",
    "scipy",
    "scikit-learn",
    "mne",
    "nibabel",
)


class RunFacts(Callback):
    """Writes ``<run>/about_<command>.json``: command line, versions, time, devices and facts of the data.

    It is written when the command starts, without ``seconds``, and again when it has ended well.

    Args:
        words: The command line, without ``neuroalign``.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._facts: dict[str, Any] = {}
        self._began = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write what is known from the start."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit/test
        self._began = time.monotonic()
        self._facts = {
            "command": ["neuroalign", *self.words],
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "commit": _commit(),
            "seed": int(os.environ.get("PL_GLOBAL_SEED", "0")),
            "precision": str(trainer.precision),
            "devices": _devices(trainer),
            "processes": trainer.world_size,
            "data": data.about(),
        }
        self._write(trainer, stage)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add how long it took."""
        if self._facts:
            self._facts["seconds"] = round(time.monotonic() - self._began, 1)
            self._write(trainer, stage)

    def _write(self, trainer: Trainer, stage: str) -> None:
        path = Path(trainer.default_root_dir) / f"about_{TrainerFn(stage).value}.json"
        with whole_file(path, "free some space and run the command again") as partial:
            partial.write_text(json.dumps(self._facts, indent=2) + "\n")


def _devices(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return f"{device.type}: {kind}"


def _commit() -> str | None:
    """Commit of this code, marked where it was changed since; None where it is no git checkout."""
    found = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"],
        check=False,
        capture_output=True,
        text=True,
    )
    return found.stdout.strip() or None if found.returncode == 0 else None
