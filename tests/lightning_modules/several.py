"""Alignments of the small data sets of ``tests.formats.side_by_side``, trained together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, seed_everything

from contracts import Batch, Layout
from datamodules import MultiModal
from lightning_modules import ContrastiveAlignment
from tests.lightning_modules.fitting import small, tiny, trainer

ENCODERS: dict[str, Any] = {"fmri": small, "eeg": tiny}


def together(layout: Layout, **options: Any) -> ContrastiveAlignment:
    return ContrastiveAlignment(layout, **{"encoders": ENCODERS, **options})


def fitted(data: MultiModal, folder: Path, *callbacks: Callback, epochs: int = 1, **options: Any) -> Any:
    """Train, and write ``several.ckpt``."""
    seed_everything(0, verbose=False)
    model = together(data.layout, **options)
    run = trainer(folder, *callbacks, max_epochs=epochs)
    run.fit(model, datamodule=data)
    run.save_checkpoint(folder / "several.ckpt")
    return model


def step_of(data: MultiModal, rows: int = 6) -> dict[str, Batch]:
    """A training batch of each part, of people of one layout."""
    samples = data.dataset("train")
    firsts = [*samples.first_row.values()]
    return {
        name: samples[torch.arange(first, first + 2 * rows, 2)]
        for name, first in zip(samples.parts, firsts, strict=True)
    }
