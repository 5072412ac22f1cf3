"""What the tests of data sets share."""

from pathlib import Path

import pytest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where raw files are to be written."""
    return tmp_path / "raw"


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of converted recordings."""
    return tmp_path_factory.mktemp("stores")
