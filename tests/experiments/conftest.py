"""What tests of several commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.experiments.launching import Neuroalign, call


@pytest.fixture
def neuroalign(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Neuroalign:
    """Run a command in ``folder``, a fixture of the test file; returns what it printed, errors if it is to fail."""
    monkeypatch.chdir(folder)

    def called(*words: str, status: int = 0) -> str:
        printed, errors = call(words, capfd, status=status)
        return printed if status == 0 else errors

    return called
