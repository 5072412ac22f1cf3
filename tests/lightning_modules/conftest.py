"""What the tests of stages share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of converted recordings."""
    return tmp_path_factory.mktemp("stores")
