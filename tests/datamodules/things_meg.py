"""``THINGSMEG`` on generated files: opened, refused, and written again."""

from pathlib import Path
from typing import Any

import pytest

from contracts import DataError
from datamodules import THINGSMEG
from tests.datamodules.contract import SMALL_PIXELS, leftovers
from tests.formats import things_meg as format


def opened(root: Path, **options: Any) -> THINGSMEG:
    usual: dict[str, Any] = {"embedding": SMALL_PIXELS}
    return THINGSMEG(str(root), stores=str(root.parent / "stores"), **(usual | options))


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(DataError) as raised:
        opened(root, **options).store  # noqa: B018
    message = str(raised.value)
    # a cycle of frames otherwise, with the files that MNE had opened
    del raised
    assert not leftovers(root.parent / "stores")
    return message


def epochs_of(root: Path, number: int = 1) -> Path:
    return root / f"preprocessed_P{number}-epo.fif"


def rewritten(root: Path, content: format.Experiment, number: int = 1, **options: Any) -> None:
    format.save_epochs(epochs_of(root, number), content.people[number - 1], **options)
