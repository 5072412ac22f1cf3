"""Multivariate noise normalisation; z-scores are tested with the rest of the chain in ``test_samples``."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.linalg import fractional_matrix_power
from sklearn.covariance import ledoit_wolf

from contracts import DataError
from datamodules import EmbeddingOptions, LoaderOptions, SampleOptions, SignalAxes, SplitOptions, Stimuli, Trials
from datamodules.core import cleaning
from tests.datamodules.contract import everything, leftovers
from tests.formats.recording import Recording, SensorRecording

Array = np.ndarray[Any, Any]
CHANNELS, TIMES, PICTURES = 5, 12, 8


def sensors(signal: Array, stimulus: list[int], split: list[str], **place: list[str]) -> list[Any]:
    """One person whose sensors were recorded at 100 Hz from -0.02 s while eight pictures were shown."""
    image = np.arange(PICTURES * 4 * 4 * 3, dtype=np.uint8).reshape(PICTURES, 4, 4, 3)
    names = [str(number) for number in range(PICTURES)]
    axes = SignalAxes("01", channels=[f"E{i}" for i in range(signal.shape[1])], sampling_rate=100.0, start=-0.02)
    trials = Trials("01", signal, stimulus=[names[number] for number in stimulus], split=split, **place)
    return [Stimuli(names, image), axes, trials]


def experiment(seed: int = 0, *, single: bool = False) -> list[Any]:
    """Two sessions of two runs with noise of their own; the last two pictures are for testing.

    Picture 0 is shown three times in a run, the others twice, or once where ``single`` (4 and 5 never twice).
    """
    random = np.random.default_rng(seed)
    stimulus, session, run = list[int](), list[str](), list[str]()
    parts = []
    for place in range(4):
        shown = [0, 0, 0, *(i for i in range(1, PICTURES) for _ in range(1 if single and i > 3 else 2))]
        shown = random.permutation(shown).tolist()
        mixing = random.standard_normal((CHANNELS, CHANNELS)) * 10.0 ** random.uniform(-1, 1, CHANNELS)[:, None]
        noise = mixing @ random.standard_normal((len(shown), CHANNELS, TIMES))
        evoked = random.standard_normal((PICTURES, CHANNELS, TIMES))
        parts.append(3 + evoked[shown] + noise)
        stimulus += shown
        session += [f"s{place // 2}"] * len(shown)
        run += [str(place % 2)] * len(shown)
    split = ["test" if number > 5 else "train" for number in stimulus]
    return sensors(np.concatenate(parts).astype(np.float32), stimulus, split, session=session, run=run)


def opened(folder: Path, records: list[Any], samples: SampleOptions, **options: Any) -> Recording:
    usual: dict[str, Any] = {
        "stores": str(folder / "stores"),
        "loader": LoaderOptions(batch_size=4),
        "split": SplitOptions(validation=0.0),
        "embedding": EmbeddingOptions(image_size=4),
        "kind": SensorRecording,
    }
    usual |= options
    return usual.pop("kind")(str(folder / "raw"), records, samples=samples, **usual)  # type: ignore[no-any-return]


def single_trials(data: Recording, split: str = "train") -> tuple[Array, Array]:
    """Samples of single trials, and the trial of each."""
    signal = np.concatenate([batch["signal"].numpy() for batch in everything(data, split)])
    return signal, np.concatenate(data.prepared["01"].groups[split])


def whitening(cleaning: Any = "whiten_session", **options: Any) -> SampleOptions:
    return SampleOptions(**({"cleaning": cleaning, "average_test": 1, "normalise": "none"} | options))


def shrunk(samples: Array) -> Array:
    """Covariance over the rows of ``(n, C)``: sklearn's Ledoit-Wolf of the standardised columns, scaled back."""
    scale = samples.std(axis=0)
    covariance: Array = ledoit_wolf((samples - samples.mean(axis=0)) / scale)[0]
    return covariance * np.outer(scale, scale)


def reference(trials: Trials, place: list[str], how: str, fit: str = "train", times: slice = slice(None)) -> Array:
    """The published recipe, one covariance after the other."""
    signal = np.asarray(trials.signal, np.float64)[..., times]
    result = np.full_like(signal, np.nan)
    names, sides, stimulus = np.array(place), np.array(trials.split), np.array(trials.stimulus)
    for name in set(place):
        used = (names == name) & ((sides == "train") | (fit == "all"))
        conditions = []
        for picture in set(stimulus[used]):
            epochs = signal[used & (stimulus == picture)]
            if how == "time" and len(epochs) > 1:
                conditions.append(np.mean([shrunk(epochs[:, :, t]) for t in range(epochs.shape[2])], axis=0))
            else:
                conditions.append(np.mean([shrunk(epoch.T) for epoch in epochs], axis=0))
        inverse = fractional_matrix_power(np.mean(conditions, axis=0), -0.5)
        for trial in np.flatnonzero(names == name):
            result[trial] = inverse @ signal[trial]
    return result


# ---- the recipe ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["epochs", "time"])
@pytest.mark.parametrize(("unit", "fit"), [("session", "train"), ("run", "all")])
@pytest.mark.parametrize("single", [False, True])
def test_samples_are_those_of_the_published_recipe(tmp_path: Path, how: Any, unit: str, fit: Any, single: bool) -> None:
    records = experiment(single=single)
    trials = records[-1]
    place = (
        trials.session if unit == "session" else [f"{s}/{r}" for s, r in zip(trials.session, trials.run, strict=True)]
    )
    expected = reference(trials, place, how, fit)
    data = opened(tmp_path, records, whitening(f"whiten_{unit}", whitening=how, cleaning_fit=fit))
    for split in ("train", "test"):
        found, rows = single_trials(data, split)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[rows], rtol=1e-5, atol=1e-5)
    assert data.layout["transductive"] == (fit == "all")


def test_one_covariance_is_sklearns() -> None:
    random = np.random.default_rng(0)
    for n, width in ((2, 5), (3, 4), (12, 5), (40, 3), (7, 1)):
        batch = random.standard_normal((6, n, width)) @ random.standard_normal((width, width)) + 100
        expected = np.sum([shrunk(samples) for samples in batch], axis=0)
        np.testing.assert_allclose(cleaning.shrunk_covariances(batch), expected, rtol=1e-9)


def test_averages_are_of_whitened_trials(tmp_path: Path) -> None:
    records = experiment()
    expected = reference(records[-1], records[-1].session, "epochs")
    data = opened(tmp_path, records, whitening(average_train=3, average_test="all"))
    for split in ("train", "test"):
        groups = data.prepared["01"].groups[split]
        assert max(map(len, groups)) > 1
        found = np.concatenate([batch["signal"].numpy() for batch in everything(data, split)])
        np.testing.assert_allclose(found, [expected[rows].mean(axis=0) for rows in groups], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["epochs", "time"])
def test_parts_that_are_read_at_a_time_change_nothing(tmp_path: Path, how: Any, monkeypatch: Any) -> None:
    records = experiment()
    whole, _ = single_trials(opened(tmp_path / "a", records, whitening(whitening=how)))
    sizes: list[int] = []
    inner = cleaning.shrunk_covariances
    monkeypatch.setattr(cleaning, "ENTRIES", 2 * CHANNELS**2)

    def counted(batch: Array) -> Array:
        sizes.append(len(batch))
        return inner(batch)

    monkeypatch.setattr(cleaning, "shrunk_covariances", counted)
    parts, _ = single_trials(opened(tmp_path / "b", records, whitening(whitening=how)))
    assert max(sizes) == 2, "not bounded by the number of entries"
    np.testing.assert_allclose(parts, whole, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("how", ["epochs", "time"])
def test_units_of_the_recording_do_not_matter(tmp_path: Path, how: Any) -> None:
    records = experiment()
    in_volts = [*records[:2], replace(records[2], signal=records[2].signal * np.float32(1e-6))]
    one, _ = single_trials(opened(tmp_path / "a", records, whitening(whitening=how)))
    two, _ = single_trials(opened(tmp_path / "b", in_volts, whitening(whitening=how)))
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


def test_recordings_in_float16_are_whitened_in_float64(tmp_path: Path) -> None:
    records = experiment()
    half = replace(records[2], signal=(1000 * records[2].signal).astype(np.float16))
    found, rows = single_trials(opened(tmp_path, [*records[:2], half], whitening()))
    np.testing.assert_allclose(found, reference(half, list(half.session), "epochs")[rows], rtol=1e-5, atol=1e-5)


# ---- what it does to noise -------------------------------------------------------------------------


def noise(
    random: np.random.Generator, *, evoked: float = 0.0, repetitions: int = 40, times: int = TIMES
) -> tuple[list[Any], Array]:
    """Two sessions with noise of known covariance each, white in time, and a response to each picture."""
    stimulus = [i for _ in range(2) for i in range(PICTURES) for _ in range(repetitions)]
    # no direction without much noise: shrinkage is all that would be seen of it
    mixing = np.linalg.qr(random.standard_normal((2, CHANNELS, CHANNELS)))[0] * np.linspace(1, 2.5, CHANNELS)
    response = evoked * random.standard_normal((PICTURES, CHANNELS, times))
    session = np.repeat([0, 1], PICTURES * repetitions)
    signal = mixing[session] @ random.standard_normal((len(stimulus), CHANNELS, times)) + response[stimulus]
    split = ["test" if number > 5 else "train" for number in stimulus]
    return sensors(signal.astype(np.float32), stimulus, split, session=[str(s) for s in session]), session


# many samples of each covariance, which leaves little to shrink
PLENTY: dict[str, dict[str, int]] = {
    "epochs": {"repetitions": 3, "times": 800},
    "time": {"repetitions": 400, "times": 3},
}


def covariance_of(signal: Array) -> Array:
    covariance: Array = np.cov(signal.astype(np.float64).transpose(1, 0, 2).reshape(signal.shape[1], -1))
    return covariance


@pytest.mark.parametrize("how", ["epochs", "time"])
def test_noise_becomes_white_in_every_session(tmp_path: Path, how: Any) -> None:
    records, session = noise(np.random.default_rng(1), **PLENTY[how])
    data = opened(tmp_path, records, whitening(whitening=how))
    for split in ("train", "test"):
        found, rows = single_trials(data, split)
        for name in (0, 1):
            before = covariance_of(records[-1].signal[rows][session[rows] == name])
            assert np.linalg.cond(before) > 5
            # at least 2400 samples, so the error of a correlation is .02
            covariance = covariance_of(found[session[rows] == name])
            np.testing.assert_allclose(covariance, np.eye(CHANNELS), atol=0.08)


def test_only_the_variant_over_repetitions_leaves_the_response_out(tmp_path: Path) -> None:
    records, session = noise(np.random.default_rng(2), evoked=5.0, repetitions=100)
    residual = {}
    for how in ("epochs", "time"):
        data = opened(tmp_path, records, whitening(whitening=how))
        found, rows = single_trials(data)
        number, mine = np.array(records[-1].stimulus)[rows], session[rows] == 0
        for picture in set(number):
            found[mine & (number == picture)] -= found[mine & (number == picture)].mean(axis=0)
        residual[how] = np.trace(covariance_of(found[mine])) / CHANNELS
    assert residual["time"] == pytest.approx(1, abs=0.1)
    assert residual["epochs"] < 0.5


@pytest.mark.parametrize("how", ["epochs", "time"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_directions_without_variance_are_left_out(tmp_path: Path, how: Any, dtype: str) -> None:
    records, session = noise(np.random.default_rng(3), **PLENTY[how])
    signal = records[-1].signal.astype(np.float64)
    signal -= signal.mean(axis=1, keepdims=True)  # the average reference
    records[-1] = replace(records[-1], signal=signal.astype(dtype))
    found, rows = single_trials(opened(tmp_path, records, whitening(whitening=how)))
    values = np.linalg.eigvalsh(covariance_of(found[session[rows] == 0]))
    assert values[0] < 1e-3
    np.testing.assert_allclose(values[1:], 1, atol=0.2)


@pytest.mark.parametrize("how", ["epochs", "time"])
def test_two_trials_a_condition_leave_no_infinite_direction(tmp_path: Path, how: Any) -> None:
    # covariances of two trials are not shrunk, so nothing fills the direction that is missing
    records, session = noise(np.random.default_rng(4), repetitions=2)
    signal = records[-1].signal - records[-1].signal.mean(axis=1, keepdims=True)
    records[-1] = replace(records[-1], signal=signal)
    found, rows = single_trials(opened(tmp_path, records, whitening(whitening=how)))
    assert np.abs(found).max() < 20
    # rounding errors are no noise that is to be whitened
    assert np.linalg.eigvalsh(covariance_of(found[session[rows] == 0]))[0] < 1e-3


# ---- who may be looked at --------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["train", "all"])
@pytest.mark.parametrize("how", ["epochs", "time"])
def test_test_trials_enter_only_if_it_is_fitted_on_all(tmp_path: Path, fit: Any, how: Any) -> None:
    records = experiment()
    trials = records[-1]
    other = trials.signal.copy()
    other[np.array(trials.split) == "test"] *= 100
    options = whitening(cleaning_fit=fit, whitening=how)
    before, _ = single_trials(opened(tmp_path / "a", records, options))
    after, _ = single_trials(opened(tmp_path / "b", [*records[:-1], replace(trials, signal=other)], options))
    assert np.array_equal(before, after) == (fit == "train")


def test_validation_trials_do_not_enter_either(tmp_path: Path) -> None:
    records = experiment()
    trials, split = records[-1], SplitOptions(validation=0.3)
    data = opened(tmp_path / "a", records, whitening(), split=split)
    before, _ = single_trials(data)
    _, validation = single_trials(data, "validation")
    assert len(validation)
    other = trials.signal.copy()
    other[validation] *= 100
    records[-1] = replace(trials, signal=other)
    after, _ = single_trials(opened(tmp_path / "b", records, whitening(), split=split))
    np.testing.assert_array_equal(before, after)


def test_a_session_without_training_trials_is_refused_or_fitted_on_all(tmp_path: Path) -> None:
    records = experiment()
    split = ["test" if s == "s1" else "train" for s in records[-1].session]
    shown = zip(records[-1].stimulus, records[-1].session, strict=True)
    stimulus = [str(int(n) % 4 + 4 * (s == "s1")) for n, s in shown]
    records[-1] = replace(records[-1], split=split, stimulus=stimulus)
    with pytest.raises(DataError, match=r"session s1 has 0 training trials.*cleaning_fit=all"):
        opened(tmp_path, records, whitening()).prepared  # noqa: B018
    assert not leftovers(tmp_path / "stores" / "prepared")
    assert len(opened(tmp_path, records, whitening(cleaning_fit="all")).dataset("test"))


@pytest.mark.parametrize("unit", ["session", "run"])
@pytest.mark.parametrize("shape", [(4,), (4, 6)])
def test_voxels_are_refused(tmp_path: Path, unit: str, shape: tuple[int, ...]) -> None:
    records = experiment()
    signal = np.random.default_rng(0).standard_normal((len(records[-1].signal), *shape))
    records = [records[0], replace(records[-1], signal=signal)]
    with pytest.raises(DataError, match=rf"sub-01: samples\.cleaning=whiten_{unit} is for .* fmri .*zscore_{unit}"):
        opened(tmp_path, records, whitening(f"whiten_{unit}"), kind=Recording).prepared  # noqa: B018
    assert not leftovers(tmp_path / "stores" / "prepared")


# ---- windows and channels that say nothing -----------------------------------------------------------


@pytest.mark.parametrize("how", ["epochs", "time"])
def test_the_noise_is_that_of_the_window(tmp_path: Path, how: Any) -> None:
    records = experiment()
    broken = records[-1].signal.copy()
    broken[..., 8:] = np.nan
    records[-1] = replace(records[-1], signal=broken)
    found, rows = single_trials(opened(tmp_path, records, whitening(whitening=how, window=(0.0, 0.06))))
    expected = reference(records[-1], list(records[-1].session), how, times=slice(2, 8))
    np.testing.assert_allclose(found, expected[rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["epochs", "time"])
def test_a_channel_with_a_hole_is_refused_or_zero_throughout(tmp_path: Path, how: Any) -> None:
    records = experiment()
    signal = records[-1].signal.copy()
    signal[7, 2, 5] = np.nan
    broken = [*records[:2], replace(records[-1], signal=signal)]
    with pytest.raises(DataError, match=r"1 of 60 features hold NaN"):
        opened(tmp_path, broken, whitening(whitening=how)).prepared  # noqa: B018
    found, rows = single_trials(opened(tmp_path, broken, whitening(whitening=how, bad_features="zero")))
    assert (found[:, 2] == 0).all()
    others = [0, 1, 3, 4]
    whole = replace(records[-1], signal=records[-1].signal[:, others])
    expected = reference(whole, list(whole.session), how)[rows]
    np.testing.assert_allclose(found[:, others], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["epochs", "time"])
@pytest.mark.parametrize("value", [0.0, 1e3])
def test_a_channel_that_is_constant_disturbs_no_other(tmp_path: Path, how: Any, value: float) -> None:
    records, session = noise(np.random.default_rng(5), **PLENTY[how])
    signal = records[-1].signal.copy()
    signal[:, 1] = value
    records[-1] = replace(records[-1], signal=signal)
    found, rows = single_trials(opened(tmp_path, records, whitening(whitening=how)))
    np.testing.assert_allclose(found[:, 1], 0, atol=1e-3)
    others = found[session[rows] == 0][:, [0, 2, 3, 4]]
    np.testing.assert_allclose(covariance_of(others), np.eye(4), atol=0.1)


def test_a_window_of_one_sample_has_no_covariance_over_times(tmp_path: Path) -> None:
    one = whitening(window=(0.0, 0.01))
    with pytest.raises(DataError, match=r"session s0: nothing varies .*samples\.window"):
        opened(tmp_path, experiment(), one).prepared  # noqa: B018
    assert not leftovers(tmp_path / "stores" / "prepared")
    found, _ = single_trials(opened(tmp_path, experiment(), replace(one, whitening="time")))
    assert np.isfinite(found).all()


def test_variants_are_prepared_apart_and_named_in_the_layout(tmp_path: Path) -> None:
    layouts = [opened(tmp_path, experiment(), whitening(whitening=how)).layout for how in ("epochs", "time")]
    assert [layout["preparation"]["whitening"] for layout in layouts] == ["epochs", "time"]
    assert len([path for path in (tmp_path / "stores" / "prepared").iterdir() if path.is_dir()]) == 2
