"""What the tests of stages share."""

from pathlib import Path

import pytest

from datamodules import MultiModal
from tests.formats.linear_world import linear_world
from tests.lightning_modules.converting import aligned


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of converted recordings."""
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def data(stores: Path) -> MultiModal:
    """EEG, MEG and fMRI side by side whose signals are linear."""
    return linear_world(stores)


@pytest.fixture(scope="module")
def alignment(stores: Path, data: MultiModal) -> Path:
    """Checkpoint of an alignment of these."""
    return aligned(data, stores / "alignment.ckpt")
