"""Data sets side by side as their tests look at them: sides of the division, samples, pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from contracts import Batch
from datamodules import MultiModal
from tests.formats.side_by_side import PARTS, PLAIN, POOL, part, sha256, side_by_side

SPLITS = ("train", "validation", "test")


def plain(stores: Path) -> MultiModal:
    """FMRI and EEG, as samples that do not depend on the division."""
    return side_by_side(stores, {name: part(stores, name, samples=PLAIN) for name in PARTS})


def shown(name: str, kind: str) -> set[str]:
    """SHA-256 of what a part marks for training or testing."""
    return {sha256(label, number) for label in PARTS[name]["classes"] for number in PARTS[name][kind]}


def sides(data: MultiModal, name: str) -> dict[str, set[str]]:
    """SHA-256 of the pictures on each side of a part after the division; empty text for what is left out."""
    table = data.divided[name].trials
    keys = data.parts[name].store.stimuli["sha256"]
    return {side: set(keys.iloc[table["number"][table["side"] == side]]) for side in (*SPLITS, "")}


def whole(data: MultiModal, split: str) -> list[Batch]:
    """All samples, in batches of people of one layout."""
    samples = data.dataset(split)
    return [samples[torch.nonzero(samples.group == group).flatten()] for group in samples.group.unique()]


def table_of(data: MultiModal) -> list[tuple[int, int]]:
    """Class and number in ``POOL`` of each joint stimulus number, found by its hash."""
    known = {sha256(*place): place for place in np.ndindex(*POOL.shape[:2])}
    return [known[key] for key in data.tables.stimuli["sha256"]]


def embedded(data: MultiModal) -> dict[str, Tensor]:
    """Embedding of each picture by its hash, as each part alone has it."""
    found: dict[str, Tensor] = {}
    for name in data.parts:
        alone = part(Path(data.stores).parent, name)
        for key, target in zip(alone.store.stimuli["sha256"], alone.targets, strict=True):
            assert torch.equal(found.setdefault(key, target), target)
    return found
