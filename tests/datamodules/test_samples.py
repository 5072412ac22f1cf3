"""Trials to samples: averaged, cleaned, normalised, left out; what of it is kept, and the noise ceiling."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from contracts import DataError
from datamodules import SampleOptions, SplitOptions, Stimuli, Trials
from tests.datamodules.contract import leftovers
from tests.datamodules.samples import recording, signals
from tests.formats.recording import Recording, change, experiment

Array = np.ndarray[Any, Any]


def few(signal: Array, stimulus: list[int], split: list[str], **place: list[str]) -> list[Any]:
    """One person who sees some of six pictures."""
    image = np.arange(6 * 4 * 4 * 3, dtype=np.uint8).reshape(6, 4, 4, 3)
    trials = Trials("01", signal, stimulus=[str(number) for number in stimulus], split=split, **place)
    return [Stimuli([str(number) for number in range(6)], image), trials]


def test_groups_are_filled_in_order_of_acquisition(tmp_path: Path) -> None:
    # picture 0 five times and 1 three times in training, 2 three times in the test; the signal is the trial's number
    stimulus = [0, 1, 2, 0, 0, 2, 1, 0, 1, 2, 0]
    split = ["test" if number == 2 else "train" for number in stimulus]
    signal = np.arange(11.0)[:, None] * [[1.0, 10.0]]
    options = SampleOptions(average_train=2, average_test="all", normalise="none")
    data = recording(tmp_path, few(signal, stimulus, split), options, split=SplitOptions(validation=0.0))
    expected = [(0 + 3) / 2, (4 + 7) / 2, 10, (1 + 6) / 2, 8]
    np.testing.assert_allclose(signals(data, "train")[:, 0], expected)
    np.testing.assert_allclose(signals(data, "test")[:, 1], [10 * (2 + 5 + 9) / 3])
    assert [group.tolist() for group in data.prepared["01"].groups["train"]] == [[0, 3], [4, 7], [10], [1, 6], [8]]
    assert data.layout["train_samples"] == {"01": 5}


@pytest.mark.parametrize(("average", "count"), [(1, 11), (2, 7), (3, 4), ("all", 3)])
def test_number_of_samples(tmp_path: Path, average: Any, count: int) -> None:
    stimulus = [0, 1, 2, 0, 0, 2, 1, 0, 1, 2, 0, 5]
    split = ["train"] * 11 + ["test"]
    signal = np.random.default_rng(0).standard_normal((12, 3))
    data = recording(
        tmp_path,
        few(signal, stimulus, split),
        SampleOptions(average_train=average),
        split=SplitOptions(validation=0.0),
    )
    assert len(data.dataset("train")) == count


@pytest.mark.parametrize("average", [0, -1])
def test_averages_below_one_are_refused(tmp_path: Path, average: int) -> None:
    with pytest.raises(DataError, match=f"average_test must be 'all' or at least 1, found {average}"):
        recording(tmp_path, samples=SampleOptions(average_test=average)).prepared  # noqa: B018


def test_cleaning_removes_gain_and_baseline_of_sessions(tmp_path: Path) -> None:
    records = experiment({"01": (12,)}, sessions=3, noise=0.0, train_repetitions=3)
    cleaned = recording(tmp_path, records, SampleOptions(cleaning="zscore_session", normalise="none"))
    raw = recording(tmp_path, records, SampleOptions(normalise="none"))

    def spread(data: Recording) -> float:
        """Share of the variance that is between repetitions of one picture."""
        stimulus = data.prepared["01"].stimulus["train"]
        signal = signals(data, "train")
        within = [signal[stimulus == number].var(axis=0) for number in set(stimulus.tolist())]
        return float(np.mean(within) / signal.var())

    assert spread(cleaned) < 0.3 * spread(raw)


def test_cleaning_of_runs_differs_from_cleaning_of_sessions(tmp_path: Path) -> None:
    records = experiment({"01": (12,)}, sessions=2, runs=2, train_repetitions=4)
    by_run, by_session = (
        signals(recording(tmp_path, records, SampleOptions(cleaning=cleaning, normalise="none")), "train")
        for cleaning in ("zscore_run", "zscore_session")
    )
    assert np.abs(by_run - by_session).max() > 0.1


def test_runs_of_the_same_name_in_two_sessions_are_two_runs(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    signal = np.concatenate([random.standard_normal((20, 3)), 100 + 50 * random.standard_normal((20, 3))])
    stimulus = [*range(5)] * 8
    place = {"session": ["1"] * 20 + ["2"] * 20, "run": ["1"] * 40}
    split = ["test" if number == 4 else "train" for number in stimulus]
    data = recording(
        tmp_path,
        few(signal, stimulus, split, **place),
        SampleOptions(cleaning="zscore_run", normalise="none"),
        split=SplitOptions(validation=0.0),
    )
    first = np.array([trials[0] < 20 for trials in data.prepared["01"].groups["train"]])
    found = signals(data, "train")
    for part in (found[first], found[~first]):
        np.testing.assert_allclose(part.mean(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(part.std(axis=0), 1, rtol=1e-4)


def test_only_cleaning_with_test_trials_is_transductive(tmp_path: Path) -> None:
    marks = {
        (cleaning, fit): recording(tmp_path, samples=SampleOptions(cleaning=cleaning, cleaning_fit=fit)).layout[
            "transductive"
        ]
        for cleaning in ("none", "zscore_session", "zscore_run")
        for fit in ("train", "all")
    }
    assert {key for key, marked in marks.items() if marked} == {("zscore_session", "all"), ("zscore_run", "all")}


@pytest.mark.parametrize("fit", ["train", "all"])
def test_test_trials_enter_cleaning_only_if_it_is_fitted_on_all(tmp_path: Path, fit: Any) -> None:
    records = experiment({"01": (12,)})
    place = next(i for i, record in enumerate(records) if isinstance(record, Trials))
    trials = records[place]
    assert isinstance(trials, Trials)
    other = trials.signal.copy()
    other[np.array(trials.split) == "test"] += 100
    options = SampleOptions(cleaning="zscore_session", cleaning_fit=fit)
    before = signals(recording(tmp_path / "a", records, options), "train")
    after = signals(recording(tmp_path / "b", change(records, Trials, signal=other), options), "train")
    assert np.array_equal(before, after) == (fit == "train")


def test_session_without_training_trials_is_refused_or_cleaned_with_all(tmp_path: Path) -> None:
    signal = np.random.default_rng(0).standard_normal((18, 3))
    stimulus = [0, 1, 2, 0, 1, 2] * 2 + [3, 4, 5] * 2
    split = ["train"] * 12 + ["test"] * 6
    records = few(signal, stimulus, split, session=["1"] * 12 + ["late"] * 6)
    once = SplitOptions(validation=0.0)
    with pytest.raises(DataError, match=r"sub-01: session late has 0 training trials.*cleaning_fit=all") as raised:
        recording(tmp_path, records, SampleOptions(cleaning="zscore_session"), split=once).prepared  # noqa: B018
    assert "transductive" in str(raised.value)
    assert not leftovers(tmp_path / "stores" / "prepared")
    options = SampleOptions(cleaning="zscore_session", cleaning_fit="all")
    assert len(recording(tmp_path, records, options, split=once).dataset("test")) == 3


@pytest.mark.parametrize("cleaning", ["none", "zscore_session"])
def test_statistics_are_accurate_on_a_large_offset(tmp_path: Path, cleaning: Any) -> None:
    random = np.random.default_rng(0)
    # more trials than are read at a time; two sessions, so that both statistics are merged from parts
    number = 1500
    signal = (1e4 + random.standard_normal((number, 5)) * [0.5, 1, 2, 4, 8]).astype(np.float32)
    stimulus = [i % 6 for i in range(number)]
    split = ["test" if i % 6 == 5 else "train" for i in range(number)]
    records = few(signal, stimulus, split)
    samples = SampleOptions(cleaning=cleaning, average_train=1)
    data = recording(tmp_path, records, samples, split=SplitOptions(validation=0.0))
    found = signals(data, "train").astype(np.float64)
    exact = signal.astype(np.float64)[np.array(split) == "train"]
    exact = (exact - exact.mean(axis=0)) / exact.std(axis=0)
    order = np.argsort([i % 6 for i in range(number) if i % 6 != 5], kind="stable")
    # half a unit in the last place of 1e4 is 0.0005, in units of the smallest SD 0.001
    np.testing.assert_allclose(found, exact[order], atol=1.5e-3)
    np.testing.assert_allclose(found.std(axis=0), 1, rtol=1e-5)


@pytest.mark.parametrize("average", [1, 2, "all"])
def test_noise_ceiling_counts_the_repetitions_in_a_sample(tmp_path: Path, average: Any) -> None:
    records = experiment({"01": (12,)}, test_repetitions=5)
    data = recording(tmp_path, records, SampleOptions(average_test=average))
    context = data.score_context("test")
    # groups of 5, or of 2 + 2 + 1, or of one each
    noise = {1: 1.0, 2: (0.5 + 0.5 + 1) / 3, "all": 0.2}[average]
    power = np.linspace(0.2, 2, 12) ** 2
    np.testing.assert_allclose(context.encoding_ceiling["01"], np.sqrt(power / (power + noise)), rtol=1e-6)


def test_without_ncsnr_the_reason_is_given_in_place_of_a_ceiling(tmp_path: Path) -> None:
    context = recording(tmp_path, experiment({"01": (12,)}, ncsnr=False)).score_context("test")
    assert not context.encoding_ceiling
    assert not context.oracle
    assert "no noise ceiling" in context.ceiling_reason


# ---- prepared samples are kept ----------------------------------------------------------------------


def test_prepared_samples_are_made_once_for_each_combination(tmp_path: Path) -> None:
    options = SampleOptions(average_train=2)
    recording(tmp_path, samples=options).layout  # noqa: B018
    cache = tmp_path / "stores" / "prepared"
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.suffix != ".lock"}
    recording(tmp_path, samples=options).layout  # noqa: B018
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.suffix != ".lock"} == before
    recording(tmp_path, samples=SampleOptions(average_train=3)).layout  # noqa: B018
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2


def test_a_store_converted_anew_with_other_sessions_is_prepared_anew(tmp_path: Path) -> None:
    records = experiment({"01": (12,)}, sessions=2, train_repetitions=4)
    options = SampleOptions(cleaning="zscore_session", normalise="none")
    first = recording(tmp_path, records, options)
    one = signals(first, "train")
    # the same signals, but the reader has learnt that all trials were one session
    merged = change(change(records, Trials, 0, session="1"), Trials, 1, session="1")
    for path in first.store.folder.iterdir():
        path.unlink()
    first.store.folder.rmdir()
    two = signals(recording(tmp_path, merged, options), "train")
    expected = signals(recording(tmp_path / "fresh", merged, options), "train")
    np.testing.assert_array_equal(two, expected)
    assert np.abs(one - two).max() > 0.1


# ---- trials that are left out, and published normalisation -------------------------------------------


class Imagining(Recording):
    """Some of the test trials were imagined."""

    name = "imagining"
    parts: ClassVar[tuple[str, ...]] = ("train", "test", "imagery")


def imagined(records: list[Any], added: float = 0.0) -> list[Any]:
    """Test trials of the first half of the pictures become imagery, and are moved."""
    for position in range(sum(isinstance(record, Trials) for record in records)):
        trials = [record for record in records if isinstance(record, Trials)][position]
        other = [s == "test" and int(n[-3:]) < 14 for s, n in zip(trials.split, trials.stimulus, strict=True)]
        split = ["imagery" if moved else part for moved, part in zip(other, trials.split, strict=True)]
        signal = trials.signal + np.float32(added) * np.array(other, np.float32)[:, None]
        records = change(records, Trials, position, split=split, signal=signal)
    return records


@pytest.mark.parametrize("fit", ["train", "all"])
@pytest.mark.parametrize("cleaning", ["zscore_session", "zscore_run"])
def test_trials_that_are_left_out_say_nothing(tmp_path: Path, cleaning: Any, fit: Any) -> None:
    records = experiment({"01": (12,)}, train_repetitions=4)
    options = SampleOptions(cleaning=cleaning, cleaning_fit=fit)
    data = recording(tmp_path / "a", imagined(records), options, kind=Imagining)
    moved = recording(tmp_path / "b", imagined(records, added=100), options, kind=Imagining)
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(signals(data, split), signals(moved, split))
    assert data.prepared["01"].stimulus["test"].min() >= 14
    assert data.stimuli("test").isdisjoint(data.stimuli("train") | data.stimuli("validation"))
    assert len(data.stimuli("test")) == 4
    tested = SplitOptions(tested="imagery")
    other = recording(tmp_path / "a", imagined(records), options, kind=Imagining, split=tested)
    assert other.layout["protocol"] == "by_stimulus, tested on imagery"
    assert other.stimuli("test").isdisjoint(data.stimuli("test"))
    context = other.score_context("test")
    assert context.galleries["test"].stimulus.max() < 14


class Training(Recording):
    name = "training"
    published_normalisation = "training"


class All(Recording):
    name = "everything"
    published_normalisation = "all"


def published_reference(data: Recording, *, everything: bool) -> dict[str, tuple[float, float]]:
    """Mean and SD of all numbers, by split."""
    raw = np.asarray(data.store.signals("01"), np.float64)
    kept = data.prepared["01"].kept.index
    raw = raw if kept is None else raw[:, kept]
    trials = data.trials[data.trials["subject"] == "01"]
    if everything:
        used = raw[trials["index"]]
        return dict.fromkeys(("train", "validation", "test"), (used.mean(), used.std()))
    samples = np.stack([raw[rows].mean(axis=0) for rows in data.prepared["01"].groups["train"]])
    moments = samples.mean(), samples.std()
    # the code normalises the test set by the moments of what is normalised already
    return {"train": moments, "validation": moments, "test": (0.0, 1.0)}


@pytest.mark.parametrize("kind", [Training, All])
@pytest.mark.parametrize("rois", [None, ["V2"]])
@pytest.mark.parametrize("average", [1, 2])
def test_normalisation_as_published(tmp_path: Path, kind: type[Recording], rois: Any, average: int) -> None:
    records = experiment({"01": (12,)}, offset=3, train_repetitions=3)
    options = SampleOptions(normalise="mindvis", rois=rois, average_train=average, average_test=2)
    data = recording(tmp_path, records, options, kind=kind)
    plain = recording(tmp_path, records, replace(options, normalise="none"), kind=kind)
    for split, (mean, std) in published_reference(data, everything=kind is All).items():
        np.testing.assert_allclose(signals(data, split), (signals(plain, split) - mean) / std, rtol=1e-4, atol=1e-5)
    assert data.layout["transductive"] == (kind is All)
    assert not plain.layout["transductive"]


def test_normalisation_over_all_trials_leaves_out_what_is_not_used(tmp_path: Path) -> None:
    kind = type("AllImagining", (Imagining,), {"published_normalisation": "all", "read": Imagining.read})
    records = experiment({"01": (12,)})
    options = SampleOptions(normalise="mindvis")
    one, other = (
        recording(tmp_path / str(added), imagined(records, added), options, kind=kind) for added in (0.0, 50.0)
    )
    np.testing.assert_array_equal(signals(one, "test"), signals(other, "test"))


@pytest.mark.parametrize(
    ("kind", "cleaning", "message"),
    [
        (Recording, "none", "published normalisation is 'none' and cleaning is none"),
        (All, "zscore_session", "is 'all' and cleaning is zscore_session"),
        (Training, "zscore_session", "is 'training' and cleaning is zscore_session"),
    ],
)
def test_published_normalisation_is_refused_where_nobody_used_it(
    tmp_path: Path, kind: type[Recording], cleaning: Any, message: str
) -> None:
    options = SampleOptions(normalise="mindvis", cleaning=cleaning)
    with pytest.raises(DataError, match=f"mindvis is how MinD-Vis and LEA normalise.*{message}"):
        recording(tmp_path, samples=options, kind=kind).prepared  # noqa: B018
