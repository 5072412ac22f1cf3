"""``THINGSMEG`` on generated files: opened, refused, and written again."""

import functools
from pathlib import Path
from typing import Any

from datamodules import THINGSMEG
from tests.datamodules import opening
from tests.datamodules.contract import SMALL_PIXELS
from tests.formats import things_meg as format


def opened(root: Path, **options: Any) -> THINGSMEG:
    usual: dict[str, Any] = {"embedding": SMALL_PIXELS}
    return THINGSMEG(str(root), stores=str(root.parent / "stores"), **(usual | options))


refused = functools.partial(opening.refused, opened)


def epochs_of(root: Path, number: int = 1) -> Path:
    return root / f"preprocessed_P{number}-epo.fif"


def rewritten(root: Path, content: format.Experiment, number: int = 1, **options: Any) -> None:
    format.save_epochs(epochs_of(root, number), content.people[number - 1], **options)
