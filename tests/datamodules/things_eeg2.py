"""``THINGSEEG2`` on generated files: opened and refused."""

import functools
from pathlib import Path
from typing import Any

from datamodules import SplitOptions
from datamodules.things_eeg2 import THINGSEEG2
from tests.datamodules import opening
from tests.datamodules.contract import SMALL_PIXELS
from tests.formats import things_eeg2 as format

LAYOUTS = tuple(format.FOLDERS)


def opened(root: Path, **options: Any) -> THINGSEEG2:
    usual: dict[str, Any] = {"embedding": SMALL_PIXELS, "split": SplitOptions(protocol="by_class", validation=0.0)}
    return THINGSEEG2(str(root), stores=str(root.parent / "stores"), **(usual | options))


refused = functools.partial(opening.refused, opened)
