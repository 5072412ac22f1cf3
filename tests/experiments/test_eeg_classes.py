"""EEG of people never seen in training is told apart by condition, through the grid and the shipped files."""

from pathlib import Path

import pytest

from callbacks import read_scores
from experiments.cli import main
from tests.datamodules.contract import SHARED, real_root
from tests.formats.uci_eeg import ARCHIVE

CONFIGS = Path(__file__).parents[2] / "configs"
FIRST_AGAINST_MATCHING, MATCHING_AGAINST_OTHERS = 0.845, 0.736
"""Areas under the curve to expect across people, from the notes on the recordings."""


@pytest.mark.full
def test_conditions_are_told_apart_in_people_who_were_left_out(tmp_path: Path) -> None:
    real_root(f"uci_eeg/{ARCHIVE}")
    main(
        [
            "grid",
            f"--stage=[{CONFIGS}/stage/contrastive_eeg_classes.yaml]",
            f"--data=[{CONFIGS}/data/uci_eeg.yaml]",
            f"--root={tmp_path / 'runs'}",
            "--",
            f"--data.init_args.root={SHARED / 'uci_eeg'}",
            f"--data.init_args.stores={tmp_path / 'stores'}",
            "--trainer.enable_progress_bar=false",
        ]
    )
    scores = read_scores(tmp_path / "runs" / "uci_eeg" / "all" / "contrastive_eeg_classes" / "default" / "grid.json")
    pooled = {score.name: score for score in scores if score.subject == "all"}
    first, second = (pooled[f"auc_{pair}_pooled"] for pair in ("first_vs_matching", "matching_vs_non-matching"))
    assert first.n == second.n == 400
    assert first.protocol == "by_subject (10 folds of 10)"
    assert first.transductive
    assert first.value > FIRST_AGAINST_MATCHING
    assert first.p_value == second.p_value == 0.001
    assert second.value > MATCHING_AGAINST_OTHERS
