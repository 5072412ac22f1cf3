"""Small alignments and conversions of data sets whose signals are linear."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from lightning import Callback, seed_everything
from torch import Tensor

from callbacks import CrossModal, Score
from contracts import Batch
from datamodules import MultiModal
from lightning_modules import ContrastiveAlignment, CrossModalConversion, LinearEncoder
from tests.lightning_modules.fitting import trainer


def aligned(data: Any, path: Path) -> Path:
    """Train an alignment for a moment; its encoders are linear."""
    if path.exists():
        return path
    seed_everything(0, verbose=False)
    model = ContrastiveAlignment(data.layout, encoder=LinearEncoder, warmup=0.0)
    run = trainer(path.parent, max_epochs=1)
    run.fit(model, datamodule=data)
    run.save_checkpoint(path)
    return path


def fit(
    data: Any,
    alignment: Path,
    folder: Path,
    *callbacks: Callback,
    run: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> Any:
    """Fit, and write ``conversion.ckpt``."""
    model = CrossModalConversion(data.layout, alignment=str(alignment), **options)
    started = trainer(folder, *callbacks, **{"max_epochs": 1, **run})
    started.fit(model, datamodule=data)
    started.save_checkpoint(folder / "conversion.ckpt")
    return model


def scored(model: Any, data: Any, folder: Path) -> dict[tuple[str, str], Score]:
    callback = CrossModal(permutations=0, bootstraps=0)
    trainer(folder, callback).test(model, datamodule=data, verbose=False)
    return {(score.gallery.partition(" (")[0], score.name): score for score in callback.scores}


def whole(data: MultiModal, person: str, split: str) -> Batch:
    """All samples of a person."""
    samples = data.dataset(split)
    return samples[torch.nonzero(samples.subject == data.layout["subjects"].index(person)).flatten()]


def recordings(data: MultiModal, name: str, split: str) -> list[Batch]:
    """The samples of each person of a part."""
    return [whole(data, p, split) for p in data.layout["subjects"] if p.startswith(f"{name}-")]


def encoded(alignment: Path, data: MultiModal, name: str, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """Z, e and stimulus of all samples of a part, through the alignment itself."""
    model = ContrastiveAlignment.load_from_checkpoint(alignment, weights_only=True).eval()
    batches = recordings(data, name, split)
    with torch.no_grad():
        brain = torch.cat([model.encode(batch["signal"], batch["subject"]) for batch in batches])
    brain = brain / brain.norm(dim=1, keepdim=True)
    return brain, *(torch.cat([batch[key] for batch in batches]) for key in ("embedding", "stimulus"))


def outputs(model: CrossModalConversion, batch: Batch) -> dict[str, Tensor]:
    with torch.no_grad():
        return model.eval()(batch)  # type: ignore[no-any-return]
