"""Runs logged to Weights & Biases offline, and what it has written down, read back from its ``.wandb`` file.

The file is a log of LevelDB (https://github.com/google/leveldb/blob/main/doc/log_format.md) after a header of its own;
its records are protocol buffers of the package.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from tests.experiments.launching import CONFIGS

CPU = f"--config={CONFIGS}/trainer/cpu.yaml"
WANDB = f"--config={CONFIGS}/logger/wandb.yaml"
LOGGER = "--trainer.logger.init_args"
PHANTOM = (
    f"--data={CONFIGS}/data/phantom.yaml",
    '--data.init_args.phantom={"people": 2, "train_images": 1, "test_images": 1, "train_repetitions": 1, '
    '"test_repetitions": 1, "sessions": 1}',
    "--data.init_args.embedding={model: pixels, image_size: 8, target: pca(8)}",
)
CONTRASTIVE = (
    f"--config={CONFIGS}/stage/contrastive.yaml",
    *PHANTOM,
    "--data.init_args.loader.batch_size=14",
    "--model.init_args.encoder=ResidualMLP",
    "--model.init_args.encoder.init_args.hidden=16",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--run.table=false",
)
RIDGE = (f"--config={CONFIGS}/stage/ridge_direct.yaml", *PHANTOM, "--run.table=false")
# batches of 14 among 36 samples of two people
STEPS = 4
_HEADER, _BLOCK = 7, 32768
_FULL, _LAST = 1, 4


def set_variables(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Only ours: what is set where tests run would change names and ids."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        patch.delenv(name)
    patch.setenv("WANDB_MODE", "offline")
    patch.setenv("WANDB_DATA_DIR", str(folder / "staged"))
    patch.setenv("WANDB_SILENT", "true")


@dataclass
class Logged:
    """One ``.wandb`` file: a W&B run, or the part of it that one command has logged."""

    folder: Path
    id: str = ""
    name: str = ""
    group: str = ""
    tags: tuple[str, ...] = ()
    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    def values(self, name: str) -> list[Any]:
        return [row[name] for row in self.history if name in row]


def logged(folder: Path) -> list[Logged]:
    """All of a folder, in the order of time; the service of W&B writes the last of it when it ends."""
    wandb.teardown()
    return [_read(file) for file in sorted(folder.glob("wandb/*run-*/*.wandb"))]


def _read(file: Path) -> Logged:
    found = Logged(file.parent)
    for record in _records(file.read_bytes()):
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                found.id, found.name, found.group = run.run_id, run.display_name, run.run_group
                found.tags, found.project = tuple(run.tags), run.project
                found.config |= _items(run.config.update)
            case "config":
                found.config |= _items(record.config.update)
            case "history":
                found.history.append(_items(record.history.item))
            case "summary":
                found.summary |= _items(record.summary.update)
            case "artifact":
                found.artifacts[record.artifact.name] = record.artifact
            case "exit":
                found.exit_code = record.exit.exit_code
    return found


def _records(content: bytes) -> Iterator[Record]:
    assert content.startswith(b":W&B")
    place, whole = _HEADER, b""
    while place + _HEADER <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + _HEADER])
        place += _HEADER
        whole += content[place : place + length]
        place += length
        if kind in (_FULL, _LAST):
            yield Record.FromString(whole)
            whole = b""


def _items(items: Iterable[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = list(item.nested_key) or [item.key]
        inner = found
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)
    return found
