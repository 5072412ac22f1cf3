"""Small fMRI of several people, responses or time series, and small FmriMAEs that are trained on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, Trainer, seed_everything
from torch import Tensor

from contracts import Batch
from datamodules import Record, SignalAxes, Stimuli, Trials
from datamodules.core.loading import LoaderOptions
from datamodules.core.splits import SplitOptions
from lightning_modules import FmriMAE
from tests.formats.recording import Recording
from tests.lightning_modules.fitting import trainer, whole

Rois = Mapping[str, Mapping[str, int]]
PEOPLE: Rois = {"01": {"V1": 5, "V2": 7}, "02": {"V1": 3, "V2": 6}}
SAME: Rois = {"01": {"V1": 5, "V2": 7}, "02": {"V1": 5, "V2": 7}}
VOLUMES = 8
TINY: dict[str, Any] = {
    "heads": 4,
    "patch_size": 2,
    "width": 32,
    "depth": 1,
    "num_heads": 4,
    "decoder_width": 32,
    "decoder_depth": 1,
    "decoder_num_heads": 4,
    "lr": 3e-3,
    "warmup": 0.1,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "code": {"tokens": "roi", "variant": "code"},
    "paper": {"tokens": "roi", "variant": "paper"},
    "patch": {"tokens": "patch"},
    "patch all": {"tokens": "patch", "loss": "all"},
    "segments": {"tokens": "region_time"},
    "random": {"tokens": "region_time", "masking": "random"},
    "random all": {"tokens": "region_time", "masking": "random", "loss": "all"},
}


def volumes_of(name: str) -> int:
    return VOLUMES if VARIANTS[name]["tokens"] == "region_time" else 0


def records(rois: Rois, volumes: int, number: int = 48) -> list[Record]:
    """Every voxel is one source or its opposite; a third of the moments is for testing."""
    random = np.random.default_rng(0)
    names = [f"moment-{i:02d}" for i in range(number)]
    split = ["test" if i % 3 == 2 else "train" for i in range(number)]
    sources = random.standard_normal((number, 1, max(volumes, 1)))
    if volumes:
        time, phase = np.arange(volumes), random.uniform(0, 2 * np.pi, (number, 1, 1))
        sources = np.sqrt(2) * np.sin(2 * np.pi * time / volumes + phase)
    result: list[Record] = [Stimuli(names, None)]
    for person, own in rois.items():
        weights = random.choice([-1.0, 1.0], (sum(own.values()), 1))
        signal = np.einsum("vk,nkt->nvt", weights, sources)
        signal = signal + 0.1 * random.standard_normal(signal.shape)
        result.append(SignalAxes(person, rois=dict(own)))
        result.append(
            Trials(person, (signal if volumes else signal[:, :, 0]).astype(np.float32), stimulus=names, split=split)
        )
    return result


def brains(stores: Path, rois: Rois = PEOPLE, *, volumes: int = 0, batch_size: int = 8, **options: Any) -> Recording:
    name = "_".join(f"{person}-{'-'.join(f'{r}{n}' for r, n in own.items())}" for person, own in rois.items())
    folder = stores / f"{name}_{volumes}"
    return Recording(
        str(folder / "raw"),
        records(rois, volumes),
        stores=str(folder),
        split=SplitOptions(validation=0.25),
        loader=LoaderOptions(batch_size=batch_size),
        **options,
    )


def autoencoder(data: Recording, seed: int = 0, **options: Any) -> FmriMAE:
    seed_everything(seed, verbose=False)
    return FmriMAE(data.layout, **{**TINY, **options})


def samples(data: Recording, person: int = 0, split: str = "test") -> Batch:
    """All samples of one person as one batch, as an FmriMAE gets it."""
    data.batch_keys = lambda: FmriMAE.batch_keys  # type: ignore[method-assign]
    return whole(data, person, split)


def fitted(
    data: Recording, path: Path, *callbacks: Callback, run: Mapping[str, Any] = {}, **options: Any
) -> tuple[FmriMAE, Trainer]:
    """Train a small model and write its checkpoint."""
    model = autoencoder(data, **options)
    started = trainer(path.parent, *callbacks, **run)
    started.fit(model, datamodule=data)
    started.save_checkpoint(path)
    return model, started


def without_key_bias(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights but for the biases of keys: attention does not depend on them, their gradient is rounding, and Adam
    makes steps of it."""
    kept = {name: value for name, value in state.items() if not name.endswith("qkv.bias")}
    for name in state.keys() - kept.keys():
        query, _, value = state[name].chunk(3)
        kept[name] = torch.cat([query, value])
    return kept
