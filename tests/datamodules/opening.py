"""Data sets on generated files: opened, and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from contracts import DataError
from datamodules import BrainDataModule, SplitOptions
from tests.datamodules.contract import SMALL_PIXELS, leftovers

D = TypeVar("D", bound=BrainDataModule)


def opened(kind: type[D], root: Path, **options: Any) -> D:
    """A data set without validation whose embeddings are small; its stores lie beside the raw files."""
    usual: dict[str, Any] = {
        "stores": str(root.parent / "stores"),
        "split": SplitOptions(validation=0.0),
        "embedding": SMALL_PIXELS,
    }
    return kind(str(root), **(usual | options))


def refused(open_it: Callable[..., BrainDataModule], root: Path, **options: Any) -> str:
    """What is said where raw files are refused, of which nothing stays behind."""
    with pytest.raises(DataError) as raised:
        open_it(root, **options).store  # noqa: B018
    message = str(raised.value)
    # a cycle of frames otherwise, with the files that a reader had opened
    del raised
    assert not leftovers(root.parent / "stores")
    return message


def refused_saying(data: BrainDataModule, *expected: str) -> None:
    """The same of a data set that is open, which is to say all of this."""
    with pytest.raises(DataError) as raised:
        data.store  # noqa: B018
    for part in expected:
        assert part in str(raised.value)
    assert not leftovers(Path(data.stores))
