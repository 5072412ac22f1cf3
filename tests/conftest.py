"""Settings of all tests: shapes and types of our functions are checked while testing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

from tests import typecheck

# before our packages are imported: every annotated function and dataclass then checks its arguments
install_import_hook(
    ["callbacks", "datamodules.core", "lightning_modules.networks", "lightning_modules.ridge_lea"],
    f"{typecheck.__name__}.checked",
)

# threads of tiny operations wait for each other longer than they work where cores are shared
torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("NEUROALIGN_SHARED", ROOT / ".." / "shared" / "data")).absolute()
os.environ["NEUROALIGN_SHARED"] = str(SHARED)


@pytest.fixture
def shared() -> Path:
    """Folder of real recordings and golden values; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED}; set NEUROALIGN_SHARED")
    return SHARED
