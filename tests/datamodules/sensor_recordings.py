"""Recordings in formats that MNE reads, opened with few words, and refused."""

from pathlib import Path
from typing import Any

import pytest

from contracts import DataError
from datamodules import BrainDataModule, EEGRecordings, EmbeddingOptions, EpochOptions
from tests.datamodules.contract import leftovers


def recordings(folder: Path, **options: Any) -> EEGRecordings:
    usual: dict[str, Any] = {"stores": str(folder / "stores"), "embedding": EmbeddingOptions(model="classes")}
    cut = {name: options.pop(name) for name in list(options) if name in EpochOptions.__dataclass_fields__}
    return EEGRecordings(str(folder), epochs=EpochOptions(**cut), **usual | options)


def one_file(folder: Path, name: str, **options: Any) -> EEGRecordings:
    return recordings(folder, files={"01": [name]}, **options)


def refused(data: BrainDataModule, *expected: str) -> None:
    before = set(leftovers(data.stores))
    with pytest.raises(DataError) as raised:
        data.store  # noqa: B018
    for part in expected:
        assert part in str(raised.value)
    assert set(leftovers(data.stores)) == before
