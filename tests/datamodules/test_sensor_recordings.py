"""Recordings in formats that MNE reads: epochs against MNE's own, in pieces, events, and real recordings."""

from pathlib import Path
from typing import Any, ClassVar

import mne
import numpy as np
import pytest
from scipy.signal import resample_poly
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from contracts import DataError
from datamodules import BrainDataModule, EEGRecordings, EmbeddingOptions, EpochOptions, MEGRecordings, SplitOptions
from datamodules.core import sensor_files
from tests.datamodules.contract import DataModuleContract, real_root
from tests.datamodules.sensor_recordings import one_file, recordings, refused
from tests.datamodules.test_timeseries import ContractWithoutPictures
from tests.formats import sensor_recordings as format

Array = np.ndarray[Any, Any]
EEGLAB = ("eeglab_sample/eeglab_data.set", "eeglab_sample/eeglab_data.fdt")
MEG = ("sample_audvis_trunc_raw_sss.fif", "testdata_ctf_short_discontinuous.ds_raw.fif")


class TestEvents(DataModuleContract):
    """Pictures by the names of events, which all people saw."""

    split: ClassVar[SplitOptions] = SplitOptions(folds=3, validation=0.34)

    @classmethod
    def write(cls, root: Path) -> None:
        names = tuple(f"{name}_{i}" for name in format.EVENTS for i in range(3))
        format.write_pictures(root / "pictures", names)
        for person in range(2):
            made = format.raw(seconds=48, seed=person)
            order = np.random.default_rng(person).permutation(np.repeat(names, 3))
            made.set_annotations(mne.Annotations(1 + 1.5 * np.arange(len(order)), 0, order))
            folder = root / f"sub-{person + 1:02d}"
            folder.mkdir()
            made.save(folder / f"{folder.name}_raw.fif", verbose="error")

    def make(self, root: Path, **options: Any) -> BrainDataModule:
        events = {f"{name}_{i}": name for name in format.EVENTS for i in range(3)}
        return EEGRecordings(
            str(root), events=events, pictures="pictures", epochs=EpochOptions(start=-0.1, end=0.2), **options
        )


class TestEqualSteps(ContractWithoutPictures):
    """MEG without events."""

    split: ClassVar[SplitOptions] = SplitOptions(folds=3, validation=0.25)

    @classmethod
    def write(cls, root: Path) -> None:
        format.write(root, runs=1, seconds=12, kind="mag", names=("M1", "M2", "M3"))

    def make(self, root: Path, **options: Any) -> BrainDataModule:
        cut = EpochOptions(start=0, end=0.2, every=0.6)
        return self.without_embeddings(MEGRecordings(str(root), epochs=cut, **options))


def epochs(raw: mne.io.BaseRaw, start: float, end: float, **options: Any) -> tuple[Array, list[str]]:
    """MNE's own epochs ``[start, end)`` and the names of their events."""
    found, names = mne.events_from_annotations(raw, verbose="error")
    last = end - 1 / raw.info["sfreq"]
    usual: dict[str, Any] = {"baseline": None, "preload": True, "verbose": "error"}
    made = mne.Epochs(raw, found, names, start, last, **usual | options)
    there = {code: name for name, code in names.items()}
    return made.get_data(), [there[code] for code in made.events[:, 2]]


# ---- epochs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 700])
def test_epochs_are_those_of_mne(tmp_path: Path, first: int) -> None:
    format.write(tmp_path, first=first)
    data = recordings(tmp_path, start=-0.2, end=0.5, baseline=(-0.2, 0.0))
    store = data.store
    assert store.subjects == ["01", "02"]
    for person, name in enumerate(store.subjects):
        mine = store.trials[store.trials["subject"] == name]
        assert mine["run"].unique().tolist() == ["1", "2"]
        for run in ("1", "2"):
            raw = format.raw(seed=10 * person + int(run) - 1, first=first)
            expected, names = epochs(raw, -0.2, 0.5, baseline=(-0.2, 0.0))
            rows = mine["run"] == run
            assert mine[rows]["stimulus"].tolist() == names
            # MNE's baseline includes its last sample, as ours
            np.testing.assert_allclose(store.signals(name)[mine[rows]["index"]], expected, rtol=1e-5, atol=1e-12)
    axes = store.axes("01")
    assert (axes.channels, axes.sampling_rate) == (list(format.EEG), 100)
    assert axes.start == pytest.approx(-0.2)
    np.testing.assert_allclose(axes.positions, [[0.01 * i, 0.05, 0.1] for i in range(4)], atol=1e-7)
    assert set(store.stimuli["class"]) == set(format.EVENTS)
    assert store.signals("01").dtype == np.float32


def test_pieces_change_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    format.write(tmp_path, people=1)
    options: dict[str, Any] = {"start": -0.1, "end": 0.4, "band_pass": (2.0, 20.0), "sampling_rate": 50.0}
    whole = np.array(recordings(tmp_path, **options).store.signals("01"))
    read = []
    get = sensor_files.SensorFile._get

    def spy(self: Any, which: Any) -> Array:
        read.append(which.stop - which.start)
        return get(self, which)

    monkeypatch.setattr(sensor_files.SensorFile, "_get", spy)
    monkeypatch.setattr(sensor_files, "PIECE", 4 * 300)
    found = recordings(tmp_path, stores=str(tmp_path / "others"), **options).store.signals("01")
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-12)
    assert len(read) > 10
    assert max(read) < 1500, "3 s, the length of the filter and what the resampling reads"


@pytest.mark.parametrize("band", [(1.0, 30.0), (None, 20.0), (4.0, None)])
def test_a_filter_sees_the_whole_recording(
    tmp_path: Path, band: tuple[float | None, float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensor_files, "PIECE", 1)
    format.write(tmp_path, people=1, runs=1)
    # the first and the last epoch lie near the ends
    data = recordings(tmp_path, start=-0.9, end=0.5, band_pass=band)
    raw = format.raw()
    raw.filter(*band, verbose="error")
    expected, _ = epochs(raw, -0.9, 0.5)
    np.testing.assert_allclose(data.store.signals("01"), expected, rtol=1e-5, atol=1e-11)


@pytest.mark.parametrize(("rate", "ratio"), [(50.0, (1, 2)), (20.0, (1, 5)), (150.0, (3, 2)), (64.0, (16, 25))])
def test_resampling_keeps_a_sample_on_the_event(tmp_path: Path, rate: float, ratio: tuple[int, int]) -> None:
    format.write(tmp_path, people=1, runs=1)
    data = recordings(tmp_path, start=-0.5, end=0.5, sampling_rate=rate)
    up, down = ratio
    found = data.store.signals("01")
    axes = data.store.axes("01")
    assert (axes.sampling_rate, axes.start, found.shape[2]) == (rate, -0.5, rate)
    content = format.raw().get_data()
    for (sample, _), signal in zip(format.marks(), found, strict=True):
        # the whole recording with its beginning cut so that the event falls on a new sample
        skip = sample % down
        new = resample_poly(content[:, skip:], up, down, axis=1)
        at = (sample - skip) * up // down + round(-0.5 * rate)
        # the first and last of the recording are near an end
        np.testing.assert_allclose(signal[:, 5:-5], new[:, at + 5 : at + int(rate) - 5], rtol=1e-4, atol=2e-8)


def test_what_cannot_be_resampled(tmp_path: Path) -> None:
    format.write(tmp_path, people=1, runs=1)
    with pytest.raises(DataError, match=r"100 Hz cannot be resampled to 3e-05 Hz"):
        recordings(tmp_path, sampling_rate=3e-5).store  # noqa: B018


def test_epochs_at_the_border_are_left_out_or_refused(tmp_path: Path) -> None:
    made = format.raw(seconds=10, first=300)
    made.set_annotations(
        mne.Annotations([0.05, 2.0, 4.0, 6.0, 9.7, 6.2], [0, 0, 0, 0, 0, 0.5], ["a", "b", "a", "b", "a", "BAD_blink"])
    )
    made.save(tmp_path / "x_raw.fif", verbose="error")
    with pytest.warns(UserWarning, match="3 of 5 epochs reach beyond the recording of 10 s or into a segment"):
        store = one_file(tmp_path, "x_raw.fif", start=-0.2, end=0.5).store
    assert store.trials["stimulus"].tolist() == ["b", "a"]
    expected, _ = epochs(made, -0.2, 0.5)
    np.testing.assert_allclose(store.signals("01"), expected, rtol=1e-6)
    refused(one_file(tmp_path, "x_raw.fif", start=-0.2, end=0.5, border="refuse"), "3 of 5 epochs", "epochs.start")
    refused(one_file(tmp_path, "x_raw.fif", start=-5.0, end=5.0), "5 of 5 epochs", "epochs.start")
    # an epoch may end with the last sample
    made.set_annotations(mne.Annotations([9.5], [0], ["a"]))
    made.save(tmp_path / "y_raw.fif", verbose="error")
    assert len(one_file(tmp_path, "y_raw.fif", start=0, end=0.5).store.trials) == 1


# ---- events --------------------------------------------------------------------------------------


def test_events_may_share_a_class(tmp_path: Path) -> None:
    format.write(tmp_path, people=1, runs=1)
    data = recordings(tmp_path, events={"face": "alive", "cat": "alive", "house": "dead"})
    assert data.classes == ["alive", "dead"]
    assert dict(zip(data.store.stimuli["id"], data.store.stimuli["class"], strict=True)) == {
        "face": "alive",
        "cat": "alive",
        "house": "dead",
    }
    some = recordings(tmp_path, events={"cat": "cat"}).store
    assert some.trials["stimulus"].unique().tolist() == ["cat"]
    _, names = epochs(format.raw(), -0.2, 0.8)
    assert len(some.trials) == names.count("cat")


@pytest.mark.parametrize("first", [0, 300])
def test_events_of_a_stim_channel(tmp_path: Path, first: int) -> None:
    format.write(tmp_path / "a", people=1, runs=1)
    format.write(tmp_path / "b", people=1, runs=1, stim=True, first=first)
    expected = recordings(tmp_path / "a").store
    codes = {"1": "face", "2": "house", "3": "cat"}
    found = recordings(tmp_path / "b", stim_channel="STI 014", events=codes).store
    assert [codes[code] for code in found.trials["stimulus"]] == expected.trials["stimulus"].tolist()
    np.testing.assert_array_equal(found.signals("01"), expected.signals("01"))
    assert found.axes("01").channels == list(format.EEG)


def test_trials_may_be_stimuli_of_their_own(tmp_path: Path) -> None:
    format.write(tmp_path)
    store = recordings(tmp_path, stimulus="trial").store
    assert len(store.stimuli) == len(store.trials)
    assert store.stimuli["id"].iloc[0] == "sub-01_ses-1_run-1_1.000s"
    events = recordings(tmp_path).store
    assert store.stimuli["class"].tolist() == events.trials["stimulus"].tolist()


def test_equal_steps_through_the_whole_recording(tmp_path: Path) -> None:
    format.write(tmp_path, people=1, runs=1, seconds=10)
    store = recordings(tmp_path, start=-0.5, end=1.0, every=2.0, embedding=EmbeddingOptions(model="none")).store
    content = np.float32(format.raw(seconds=10).get_data())
    expected = [content[:, begin : begin + 150] for begin in range(0, 851, 200)]
    np.testing.assert_array_equal(store.signals("01"), expected)
    assert store.stimuli["id"].tolist() == [f"sub-01_ses-1_run-1_{time:.3f}s" for time in (0.5, 2.5, 4.5, 6.5, 8.5)]
    assert set(store.stimuli["class"]) == {""}


def test_none_is_away_from_every_event(tmp_path: Path) -> None:
    format.write(tmp_path, people=1, runs=1)
    data = recordings(tmp_path, events={"face": "face"}, start=-0.1, end=0.3, every=0.25, stimulus="trial")
    store = data.store
    assert data.classes == ["face", "none"]
    label = store.stimuli["class"].iloc[store.trials["number"]].to_numpy()
    time = np.array([float(name.rpartition("_")[2][:-1]) for name in store.trials["stimulus"]])
    assert (np.diff(time) > 0).all()
    event = np.array([sample / 100 for sample, _ in format.marks()])
    distance = np.abs(time[:, None] - event).min(axis=1)
    assert (distance[label == "none"] > 0.4 - 1e-6).all()
    assert (distance[label == "face"] == 0).all()
    # 1.5 s apart: at .4 to 1.1 s after an event there is room
    assert (label == "none").sum() > 2 * len(event)
    assert (label == "face").sum() == [name for _, name in format.marks()].count("face")


# ---- real recordings -------------------------------------------------------------------------------


def test_visual_targets_are_told_from_none(tmp_path: Path) -> None:
    root = real_root(*EEGLAB)
    cut: dict[str, Any] = {"start": 0.0, "end": 0.75, "every": 0.75, "band_pass": (0.5, 30.0)}
    data = EEGRecordings(
        str(root),
        stores=str(tmp_path),
        files={"01": ["eeglab_data.set"]},
        events={"square": "target"},
        stimulus="trial",
        epochs=EpochOptions(**cut),
    )
    store = data.store
    label = store.stimuli["class"].to_numpy() == "target"
    assert label.sum() == 80
    assert store.signals("01").shape[1:] == (32, 96)
    assert store.axes("01").channels[:2] == ["FPz", "EOG1"]
    # means of 8 samples (62 ms)
    features = np.asarray(store.signals("01")).reshape(len(label), 32, 12, 8).mean(axis=3).reshape(len(label), -1)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    evidence = cross_val_predict(model, features, label, cv=folds, method="decision_function")
    assert roc_auc_score(label, evidence) > 0.94


@pytest.mark.parametrize(
    ("name", "sensors", "channels", "number"),
    [(MEG[0], "mag", 102, 5), (MEG[0], "grad", 204, 5), (MEG[1], "mag", 273, 10)],
)
def test_real_meg_is_cut_at_equal_steps(tmp_path: Path, name: str, sensors: Any, channels: int, number: int) -> None:
    root = real_root(f"formats/meg_fif/{name}")
    data = MEGRecordings(
        str(root),
        sensors=sensors,
        files={"01": [name]},
        stores=str(tmp_path),
        epochs=EpochOptions(start=0.0, end=0.2, every=0.2),
        embedding=EmbeddingOptions(model="none"),
    )
    store, axes = data.store, data.store.axes("01")
    raw = mne.io.read_raw(root / name, verbose="error")
    length = round(0.2 * raw.info["sfreq"])
    assert store.signals("01").shape == (number, channels, length)
    np.testing.assert_array_equal(store.signals("01")[0], np.float32(raw.get_data(axes.channels, 0, length)))
    assert np.linalg.norm(np.asarray(axes.positions), axis=1).max() < 0.35
