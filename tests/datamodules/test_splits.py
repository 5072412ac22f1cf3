from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from contracts import DataError
from datamodules import SplitOptions
from datamodules.core.splits import number_of_folds, split_trials

CLASSES = pd.Series([f"class {number // 4}" for number in range(24)])


def table(stimuli: int = 24, repetitions: int = 3, test: int = 4) -> pd.DataFrame:
    """Trials in mixed order, index not from 0; the last ``test`` stimuli are the data set's own test set."""
    number = np.random.default_rng(0).permutation(np.repeat(np.arange(stimuli), repetitions))
    trials = pd.DataFrame({"subject": "01", "number": number}, index=np.arange(len(number)) + 100)
    trials["repetition"] = trials.groupby("number").cumcount()
    trials["split"] = np.where(number >= stimuli - test, "test", "train")
    return trials


def sides(trials: pd.DataFrame, options: SplitOptions, column: str = "number") -> dict[str, set[object]]:
    side = split_trials(trials, CLASSES, options)
    assert side.index.equals(trials.index)
    unit = trials["number"].map(CLASSES) if column == "class" else trials[column]
    return {name: set(unit[side == name]) for name in ("train", "validation", "test")}


def test_own_division_is_kept_and_validation_comes_from_training() -> None:
    found = sides(table(), SplitOptions(validation=0.2))
    assert found["test"] == set(range(20, 24))
    assert found["train"] | found["validation"] == set(range(20))
    assert len(found["validation"]) == 4
    assert not found["train"] & found["validation"]


def test_no_validation_share_no_validation_side() -> None:
    assert sides(table(), SplitOptions(validation=0.0))["validation"] == set()


@pytest.mark.parametrize("folds", [2, 5, 24])
def test_folds_by_stimulus_test_each_stimulus_once(folds: int) -> None:
    tested: list[object] = []
    for fold in range(folds):
        found = sides(table(), SplitOptions(folds=folds, fold=fold, validation=0.1))
        assert sum(map(len, found.values())) == 24, "a stimulus stands on two sides"
        assert 24 // folds <= len(found["test"]) <= -(-24 // folds)
        tested += found["test"]
    assert sorted(tested) == list(range(24))  # type: ignore[type-var]


def test_all_repetitions_of_a_stimulus_are_on_its_side() -> None:
    trials = table()
    for options in (SplitOptions(), SplitOptions(folds=4), SplitOptions(protocol="by_class", folds=3, validation=0.3)):
        side = split_trials(trials, CLASSES, options)
        assert (side.groupby(trials["number"]).nunique() == 1).all()


@pytest.mark.parametrize("folds", [2, 3, 6])
def test_folds_by_class_put_no_class_on_two_sides(folds: int) -> None:
    tested: list[object] = []
    for fold in range(folds):
        options = SplitOptions(protocol="by_class", folds=folds, fold=fold, validation=0.34)
        found = sides(table(), options, "class")
        assert sum(map(len, found.values())) == 6
        assert all(found.values())
        tested += found["test"]
    assert sorted(map(str, tested)) == sorted(set(CLASSES))


def test_own_division_by_class_is_zero_shot() -> None:
    found = sides(table(), SplitOptions(protocol="by_class", validation=0.2), "class")
    assert found["test"] == {"class 5"}
    with pytest.raises(DataError, match=r"train/test overlap: 1 class entries.*'class 5'"):
        split_trials(table(test=3), CLASSES, SplitOptions(protocol="by_class", validation=0.2))


def test_leave_one_repetition_out_tests_one_repetition_of_every_picture() -> None:
    trials = table()
    assert number_of_folds(trials, SplitOptions(protocol="leave_one_repetition_out")) == 3
    for fold in range(3):
        options = SplitOptions(protocol="leave_one_repetition_out", fold=fold, validation=0.125)
        side = split_trials(trials, CLASSES, options)
        assert set(trials["repetition"][side == "test"]) == {fold}
        assert set(trials["repetition"][side != "test"]) == {0, 1, 2} - {fold}
        assert (side == "test").sum() == 24
        training, validation = set(trials["number"][side == "train"]), set(trials["number"][side == "validation"])
        assert not training & validation
        assert len(validation) == 3


def test_choice_depends_on_the_seed_and_not_on_the_order_of_trials() -> None:
    trials = table()
    for base in (SplitOptions(validation=0.3), SplitOptions(folds=4, validation=0.3)):
        first = split_trials(trials, CLASSES, base)
        again = split_trials(trials.sample(frac=1, random_state=1), CLASSES, base)
        assert again.loc[first.index].equals(first)
        other = SplitOptions(folds=base.folds, validation=0.3, seed=1)
        assert not split_trials(trials, CLASSES, other).equals(first)


def test_the_fold_does_not_follow_the_order_of_stimuli() -> None:
    test = sides(table(), SplitOptions(folds=4, validation=0.1))["test"]
    assert test not in [set(range(start, start + 6)) for start in range(0, 24, 6)]


def test_overlap_of_training_and_test_is_refused() -> None:
    trials = table()
    trials.loc[trials.index[trials["number"] == 21][0], "split"] = "train"
    with pytest.raises(DataError, match=r"train/test overlap: 1 stimulus entries.*stimulus 21.*split\.folds"):
        split_trials(trials, CLASSES, SplitOptions())
    assert sides(trials, SplitOptions(folds=4))["test"], "dividing anew is the way out"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SplitOptions(folds=4, fold=4), r"split\.fold must be 0\.\.3 .*found 4"),
        (SplitOptions(fold=1), r"split\.fold must be 0\.\.0 .*found 1"),
        (SplitOptions(fold=-1), r"found -1"),
        (SplitOptions(protocol="leave_one_repetition_out", fold=3), r"split\.fold must be 0\.\.2 .*found 3"),
        (SplitOptions(folds=25), r"split\.folds=25, but there are only 24"),
        (SplitOptions(protocol="by_class", folds=7), r"split\.folds=7, but there are only 6"),
        (SplitOptions(validation=1.0), r"split\.validation.*found 1\.0"),
        (SplitOptions(validation=-0.1), r"split\.validation.*found -0\.1"),
        (SplitOptions(validation=0.01), r"split\.validation=0\.01 of 20 training stimuli is 0"),
        (SplitOptions(validation=0.99), r"split\.validation=0\.99 of 20 training stimuli is 20"),
    ],
)
def test_impossible_options_are_refused(options: SplitOptions, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_trials(table(), CLASSES, options)


def test_sides_without_trials_are_refused() -> None:
    with pytest.raises(DataError, match=r"no test trials under by_stimulus.*--data\.init_args\.split"):
        split_trials(table(test=0), CLASSES, SplitOptions())
    with pytest.raises(DataError, match="no train trials under by_stimulus"):
        split_trials(table(test=24), CLASSES, SplitOptions(validation=0.0))


def test_by_class_needs_classes() -> None:
    with pytest.raises(DataError, match="by_class needs a class name for every stimulus"):
        split_trials(table(), CLASSES.replace("class 2", ""), SplitOptions(protocol="by_class", folds=2))
    with pytest.raises(DataError, match="there are only 1 different"):
        split_trials(table(), CLASSES.map(lambda _: "one"), SplitOptions(protocol="by_class", folds=2))


# ---- runs, people and parts --------------------------------------------------------------------------


def story(people: int = 6, runs: int = 4, stimuli: int = 8) -> pd.DataFrame:
    """People who all meet the same stimuli in every run of two sessions, whose runs have the same names."""
    each = [(f"{p:02d}", str(s), str(r), n) for p in range(people) for s in (1, 2) for r in range(runs)
            for n in range(stimuli)]  # fmt: skip
    trials = pd.DataFrame(each, columns=["subject", "session", "run", "number"])
    trials["repetition"] = trials.groupby(["subject", "number"]).cumcount()
    return trials.assign(split="train")


def places(trials: pd.DataFrame, side: pd.Series[str], columns: list[str]) -> dict[str, set[object]]:
    names = trials[columns].agg("/".join, axis=1)
    return {name: set(names[side == name]) for name in ("train", "validation", "test")}


@pytest.mark.parametrize(
    ("protocol", "columns", "number"), [("by_run", ["subject", "session", "run"], 48), ("by_subject", ["subject"], 6)]
)
@pytest.mark.parametrize("folds", [2, 6])
def test_folds_of_runs_and_of_people(protocol: str, columns: list[str], number: int, folds: int) -> None:
    trials = story()
    tested: list[object] = []
    for fold in range(folds):
        options = SplitOptions(protocol=protocol, folds=folds, fold=fold, validation=0.34)  # type: ignore[arg-type]
        side = split_trials(trials, CLASSES, options)
        found = places(trials, side, columns)
        assert sum(map(len, found.values())) == number, f"{protocol}: one stands on two sides"
        training = number - len(found["test"])
        assert len(found["validation"]) == round(0.34 * training) > 0
        assert set(trials["number"][side == "train"]) == set(trials["number"][side == "test"]), "stimuli are met again"
        tested += found["test"]
    assert len(tested) == len(set(tested)) == number
    assert number_of_folds(trials, SplitOptions(protocol=protocol, folds=folds)) == folds  # type: ignore[arg-type]
    with pytest.raises(DataError, match=rf"split\.folds={number + 1}, but there are only {number}"):
        split_trials(trials, CLASSES, SplitOptions(protocol=protocol, folds=number + 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("column", ["run", "subject"])
def test_own_division_of_runs_and_of_people(column: str) -> None:
    trials = story()
    last = trials[column].max()
    trials["split"] = np.where(trials[column] == last, "test", "train")
    protocol = "by_run" if column == "run" else "by_subject"
    side = split_trials(trials, CLASSES, SplitOptions(protocol=protocol, validation=0.2))  # type: ignore[arg-type]
    assert set(trials[column][side == "test"]) == {last}
    assert last not in set(trials[column][side != "test"])
    assert (side == "validation").any()
    # the same stimuli on both sides are no stimuli of other pictures
    with pytest.raises(DataError, match="train/test overlap: 8 stimulus entries"):
        split_trials(trials, CLASSES, SplitOptions(validation=0.2))
    trials.loc[trials.index[-1], "split"] = "train"
    with pytest.raises(DataError, match=f"train/test overlap: 1 {column} entries"):
        split_trials(trials, CLASSES, SplitOptions(protocol=protocol, validation=0.2))  # type: ignore[arg-type]


def imagery() -> pd.DataFrame:
    """What was imagined are the pictures of the test, four of which were seen, too."""
    trials = table(stimuli=24, test=8)
    trials.loc[trials["number"] >= 20, "split"] = "imagery"
    return trials


@pytest.mark.parametrize(("tested", "numbers"), [("test", range(16, 20)), ("imagery", range(20, 24))])
@pytest.mark.parametrize("folds", [0, 4])
def test_trials_of_another_part_are_on_no_side(tested: str, numbers: range, folds: int) -> None:
    trials = imagery()
    side = split_trials(trials, CLASSES, SplitOptions(tested=tested, folds=folds, validation=0.25))
    left_out = trials["split"].isin({"test", "imagery"} - {tested})
    assert ((side == "") == left_out).all()
    assert side.index.equals(trials.index)
    if not folds:
        assert set(trials["number"][side == "test"]) == set(numbers)
        assert set(trials["number"][side.isin(["train", "validation"])]) == set(range(16))
        # left-out trials do not decide which stimuli are set aside
        alone = split_trials(trials[~left_out], CLASSES, SplitOptions(tested=tested, validation=0.25))
        assert alone.equals(side[~left_out])


@pytest.mark.parametrize("folds", [0, 4])
def test_an_unknown_part_names_those_there_are(folds: int) -> None:
    trials = imagery()
    counts = trials["split"].value_counts()
    with pytest.raises(DataError, match=r"no test trials .*\(trained: train, tested: dreams\)") as raised:
        split_trials(trials, CLASSES, SplitOptions(tested="dreams", folds=folds))
    for name in ("train", "test", "imagery"):
        assert f"{counts[name]} {name}" in str(raised.value)


def test_parts_are_joined_by_plus_on_both_sides() -> None:
    trials = imagery()
    options = SplitOptions(trained="train+imagery", validation=0.0)
    found = sides(trials, options)
    assert found["test"] == set(range(16, 20))
    assert found["train"] == {*range(16), *range(20, 24)}
    assert options.name == "by_stimulus, trained on train+imagery"
    both = sides(trials, SplitOptions(tested="test+imagery", validation=0.0))
    assert both == {"train": set(range(16)), "validation": set(), "test": set(range(16, 24))}
    with pytest.raises(DataError, match=r"no train trials .*split\.trained"):
        split_trials(trials, CLASSES, SplitOptions(trained="train+dreams"))
    with pytest.raises(DataError, match="trained: train, tested: train"):
        split_trials(trials, CLASSES, SplitOptions(tested="train"))
