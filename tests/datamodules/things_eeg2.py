"""``THINGSEEG2`` on generated files: opened and refused."""

from pathlib import Path
from typing import Any

import pytest

from contracts import DataError
from datamodules import SplitOptions
from datamodules.things_eeg2 import THINGSEEG2
from tests.datamodules.contract import SMALL_PIXELS, leftovers
from tests.formats import things_eeg2 as format

LAYOUTS = tuple(format.FOLDERS)


def opened(root: Path, **options: Any) -> THINGSEEG2:
    usual: dict[str, Any] = {"embedding": SMALL_PIXELS, "split": SplitOptions(protocol="by_class", validation=0.0)}
    return THINGSEEG2(str(root), stores=str(root.parent / "stores"), **(usual | options))


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(DataError) as raised:
        opened(root, **options).store  # noqa: B018
    assert not leftovers(root.parent / "stores")
    return str(raised.value)
