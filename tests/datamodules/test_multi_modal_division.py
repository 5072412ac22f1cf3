"""MultiModal: one division of data sets that share some of their pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts import DataError
from datamodules import MultiModal
from tests.datamodules.side_by_side import plain, shown, sides
from tests.formats.side_by_side import PARTS, part, sha256, side_by_side
from tests.lightning_modules.advice import NO_LOSS

pytestmark = NO_LOSS


@pytest.fixture(scope="module")
def data(stores: Path) -> MultiModal:
    return plain(stores)


# ---- the division ----------------------------------------------------------------------------------


def test_what_one_part_tests_is_trained_on_in_none(data: MultiModal) -> None:
    fmri, eeg = sides(data, "fmri"), sides(data, "eeg")
    tested = shown("fmri", "test") | shown("eeg", "test")
    assert fmri["test"] == shown("fmri", "test")
    assert eeg["test"] == shown("eeg", "test")
    for mine in (fmri, eeg):
        assert not tested & (mine["train"] | mine["validation"])
    # by hand: picture 1 of the classes that the EEG shows, picture 5 of those that the fMRI shows
    assert fmri[""] == {sha256(kind, 1) for kind in (1, 2, 3)}
    assert eeg[""] == {sha256(kind, 5) for kind in (1, 2, 3)}
    # two repetitions, two people
    assert [(one.trials["side"] == "").sum() for one in data.parts.values()] == [12, 12]


def test_validation_stimuli_are_the_same_in_all_parts(data: MultiModal) -> None:
    fmri, eeg = sides(data, "fmri"), sides(data, "eeg")
    validated = fmri["validation"] | eeg["validation"]
    left = (shown("fmri", "train") - fmri[""]) | (shown("eeg", "train") - eeg[""])
    assert len(left) == 32
    assert len(validated) == 8
    for name, mine in (("fmri", fmri), ("eeg", eeg)):
        assert mine["validation"] == validated & shown(name, "train")
        assert mine["train"] == shown(name, "train") - mine[""] - validated
    assert fmri["validation"] & eeg["validation"], "nothing to compare"
    assert data.stimuli("validation") == validated
    assert data.stimuli("train") == left - validated
    assert data.stimuli("test") == shown("fmri", "test") | shown("eeg", "test")


def test_the_choice_of_validation_stimuli_is_that_of_the_seed(stores: Path) -> None:
    chosen = [side_by_side(stores, seed=seed).stimuli("validation") for seed in (0, 0, 1, 2)]
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) == 3
    reverse = {name: part(stores, name) for name in reversed(PARTS)}
    assert side_by_side(stores, reverse).stimuli("validation") == chosen[0], "the order of parts must not matter"


def test_without_validation_everything_left_is_trained_on(stores: Path) -> None:
    data = side_by_side(stores, validation=0.0)
    assert not data.has_validation()
    assert not data.stimuli("validation")
    assert data.val_dataloader() == []
    with pytest.raises(DataError, match=r"no samples in split 'validation'; change --data\.init_args\.validation"):
        data.dataset("validation")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_classes_tested_by_class_are_trained_on_in_none(stores: Path, seed: int) -> None:
    fmri = part(stores, "fmri", split={"protocol": "by_class", "folds": 4, "fold": 2})
    data = side_by_side(stores, {"fmri": fmri, "eeg": part(stores, "eeg")}, validation=0.34, seed=seed)
    kinds = {
        name: {
            side: {kind for kind in range(5) if {sha256(kind, i) for i in range(12)} & keys}
            for side, keys in found.items()
        }
        for name, found in ((name, sides(data, name)) for name in PARTS)
    }
    (tested,) = kinds["fmri"]["test"]
    assert tested in PARTS["eeg"]["classes"], "nothing to compare"
    for mine in kinds.values():
        assert tested not in mine["train"] | mine["validation"]
        assert not mine["train"] & mine["validation"], "validation is by class, too"
    assert tested in kinds["eeg"][""]
    # what the EEG tests is excluded picture by picture: its classes are trained on by others
    assert kinds["eeg"]["test"] & kinds["fmri"]["train"]
    assert not sides(data, "eeg")["test"] & sides(data, "fmri")["train"]
    validated = kinds["fmri"]["validation"] | kinds["eeg"]["validation"]
    # 4 classes are left, and a third of them is one
    assert len(validated) == 1
    assert sides(data, "eeg")["test"] == shown("eeg", "test"), "a test picture of a validated class stays where it is"
    assert data.layout["protocol"] == "by_class (fold 2 of 4) / by_stimulus"


def test_a_tested_class_is_excluded_under_the_name_that_its_part_gives_it(stores: Path) -> None:
    """All that it shows has another name in the first part, which is the one that holds."""
    few = {"train": (3, 4), "test": (6,), "classes": (1, 2, 3)}
    parts = {
        "first": part(stores, "eeg", labels={kind: f"other {kind}" for kind in (1, 2, 3)}),
        "tested": part(stores, "fmri", **few, split={"protocol": "by_class", "folds": 3}),
        "more": part(stores, "fmri", classes=(1, 2, 3), train=(0, 7), test=(11,)),
    }
    data = side_by_side(stores, parts, validation=0.0)
    (tested,) = {kind for kind in (1, 2, 3) if sha256(kind, 6) in sides(data, "tested")["test"]}
    assert sides(data, "more")[""] == {sha256(tested, 0), sha256(tested, 7)}
    assert {sha256(tested, number) for number in (3, 4, 8)} <= sides(data, "first")[""]


def test_what_is_left_out_is_counted(stores: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        side_by_side(stores).layout  # noqa: B018
    assert "fmri: 12 of 80 training trials are left out" in caplog.text
    assert "eeg: 12 of 96 training trials are left out" in caplog.text


def test_own_validation_of_a_part_is_not_regarded(stores: Path) -> None:
    own = {name: part(stores, name, split={"validation": 0.5, "seed": 4}) for name in PARTS}
    assert side_by_side(stores, own).stimuli("validation") == side_by_side(stores).stimuli("validation")


@pytest.mark.parametrize("used", ["trials", "layout"])
def test_a_part_that_was_used_alone_is_refused(stores: Path, used: str) -> None:
    """Its samples, or its own validation stimuli, would be those of its own division."""
    parts = {name: part(stores, name, split={"validation": 0.25}) for name in PARTS}
    getattr(parts["eeg"], used)
    with pytest.raises(DataError, match="part eeg has been used already"):
        side_by_side(stores, parts).layout  # noqa: B018


@pytest.mark.parametrize("validation", [-0.1, 1.0, 1.5])
def test_a_share_outside_0_to_1_is_refused(stores: Path, validation: float) -> None:
    with pytest.raises(DataError, match=rf"validation.*found {validation}"):
        side_by_side(stores, validation=validation).layout  # noqa: B018


def test_a_share_that_leaves_no_side_anything_is_refused(stores: Path) -> None:
    with pytest.raises(DataError, match="of 32 training stimuli is 0"):
        side_by_side(stores, validation=0.001).layout  # noqa: B018
    parts = {"fmri": part(stores, "fmri", train=(2,)), "eeg": part(stores, "eeg")}
    with pytest.raises(DataError, match=r"part 'fmri': all of its training stimuli would be validated on; lower"):
        side_by_side(stores, parts, validation=0.96).layout  # noqa: B018


def test_a_part_with_nothing_left_to_train_on_is_refused(stores: Path) -> None:
    parts = {"fmri": part(stores, "fmri", train=(6, 1), test=(5,), classes=(1, 2)), "eeg": part(stores, "eeg")}
    with pytest.raises(DataError, match=r"part 'fmri' has no training trial left: all 16 show what another part"):
        side_by_side(stores, parts).layout  # noqa: B018


@pytest.mark.parametrize("protocol", ["by_run", "by_subject", "leave_one_repetition_out"])
def test_other_protocols_are_refused(stores: Path, protocol: str) -> None:
    parts = {"fmri": part(stores, "fmri", split={"protocol": protocol, "folds": 2}), "eeg": part(stores, "eeg")}
    with pytest.raises(DataError, match=rf"by_stimulus or by_class, found {{'fmri': '{protocol}'}}"):
        side_by_side(stores, parts).layout  # noqa: B018


@pytest.mark.parametrize("name", ["eeg.1", "e-e-g", "", "1eeg", "a/b"])
def test_names_that_cannot_stand_in_a_score_are_refused(stores: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"parts needs data sets by names such as eeg or fmri"):
        side_by_side(stores, {name: part(stores, "eeg")})
    with pytest.raises(DataError, match="parts needs data sets"):
        side_by_side(stores, {})
