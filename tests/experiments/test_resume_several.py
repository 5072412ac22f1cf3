"""A fit on several data sets side by side, on two processes, goes on where it was killed or told to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.experiments.launching import CONFIGS, launch, several
from tests.experiments.test_resume import KILL_CONFIG, KILL_SOURCE, assert_equal, state
from tests.tiny import TINY

WORDS = (
    "-m",
    "experiments",
    "fit",
    *several(2),
    f"--config={CONFIGS}/recipe/neural_alignment.yaml",
    f"--data={CONFIGS}/data/phantom_multimodal.yaml",
    *TINY["phantom_multimodal"],
    "--data.init_args.loader.batch_size=6",
    "--trainer.max_epochs=3",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--config=kill.yaml",
)


def run_folder(place: Path, name: str) -> Path:
    return place / "runs" / "phantom_multimodal" / "all" / "neural_alignment" / name


@pytest.mark.full
def test_several_data_sets_go_on_exactly_on_two_processes(tmp_path: Path) -> None:
    (tmp_path / "kill.py").write_text(KILL_SOURCE)
    (tmp_path / "kill.yaml").write_text(KILL_CONFIG)
    launch(tmp_path, [*WORDS, "--run.name=unbroken"], timeout=300)
    expected = state(run_folder(tmp_path, "unbroken") / "final.ckpt")
    at = int((tmp_path / "passed.txt").read_text()) * 3 // 5
    broken = {
        "killed": (-9, {"KILL_AT": str(at)}, "--run.checkpoint_minutes=0"),
        "told": (143, {"KILL_AT": str(at), "TELL_RANK": "1", "TELL": "SIGTERM"}, "--run.checkpoint_minutes=60"),
    }
    for name, (status, variables, often) in broken.items():
        words = [*WORDS, f"--run.name={name}", often]
        launch(tmp_path, words, status=status, variables=variables, timeout=300)
        last = state(run_folder(tmp_path, name) / "last.ckpt")
        assert 0 < last["global_step"] < expected["global_step"], "broken off in the middle"
        assert not (run_folder(tmp_path, name) / "final.ckpt").exists()
        launch(tmp_path, [*words, "--run.resume=auto"], timeout=300)
        assert_equal(state(run_folder(tmp_path, name) / "final.ckpt"), expected, name)
