"""What a run leaves about itself: the command, the versions, the data."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from callbacks import load_pictures
from tests.experiments.launching import CONFIGS, call
from tests.tiny import TINY


def about(folder: Path, command: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / f"about_{command}.json").read_text())
    return facts


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return [f"--config={CONFIGS}/trainer/cpu.yaml", f"--config={CONFIGS}/stage/ridge_direct.yaml", "--run.table=false"]


def test_of_one_data_set(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    words = [*words, f"--data={CONFIGS}/data/phantom.yaml", *TINY["phantom"], "--seed_everything=3"]
    call(["fit", *words], capfd)
    call(["test", *words], capfd)
    folder = Path("runs/phantom/all/ridge_direct/default")
    for command in ("fit", "test"):
        facts = about(folder, command)
        assert facts["command"] == ["neuroalign", command, *words]
        assert facts["versions"]["lightning"] == version("lightning")
        assert (facts["seed"], facts["processes"], facts["precision"]) == (3, 1, "32-true")
        assert facts["devices"].startswith("cpu")
        assert facts["seconds"] > 0
        [data] = facts["data"]
        assert (data["name"], data["modality"]) == ("phantom", "fmri")
        assert data["citation"]
        assert data["licence"]
    pictures = load_pictures(folder / "pictures.safetensors")
    assert set(pictures.seen) == set(pictures.names)
    assert len(pictures.names) == 40


def test_of_data_sets_side_by_side(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    words = [*words, f"--data={CONFIGS}/data/phantom_multimodal.yaml", *TINY["phantom_multimodal"]]
    call(["fit", *words], capfd)
    facts = about(Path("runs/phantom_multimodal/all/ridge_direct/default"), "fit")
    assert [(data["part"], data["modality"]) for data in facts["data"]] == [
        ("eeg", "eeg"),
        ("meg", "meg"),
        ("fmri", "fmri"),
    ]


def test_nothing_is_written_by_a_trial_run(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    words = [*words, f"--data={CONFIGS}/data/phantom.yaml", *TINY["phantom"], "--trainer.fast_dev_run=true"]
    call(["fit", *words], capfd)
    assert not list(Path("runs").rglob("about_*.json"))
