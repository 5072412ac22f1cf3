"""Features of samples: regions and times that are asked for, and voxels that say nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts import DataError
from datamodules import SampleOptions, Trials
from tests.datamodules.contract import everything, leftovers
from tests.datamodules.samples import recording, signals
from tests.formats.recording import Recording, SensorRecording, change, experiment

Array = np.ndarray[Any, Any]


# ---- regions --------------------------------------------------------------------------------------


def test_regions_keep_their_voxels_in_the_order_asked_for(tmp_path: Path) -> None:
    records = experiment({"01": (12,), "02": (9,)})
    whole = recording(tmp_path, records, SampleOptions(normalise="none"))
    data = recording(tmp_path, records, SampleOptions(normalise="none", rois=["V2", "V1"]))
    assert data.layout["rois"]["01"] == {"V2": 8, "V1": 4}
    assert list(data.layout["rois"]["01"]) == ["V2", "V1"]
    assert data.layout["shape"] == {"01": [12], "02": [9]}
    first, all_voxels = everything(data, "test")[0]["signal"], everything(whole, "test")[0]["signal"]
    np.testing.assert_array_equal(first[:, :8], all_voxels[:, 4:])
    np.testing.assert_array_equal(first[:, 8:], all_voxels[:, :4])
    only = recording(tmp_path, records, SampleOptions(rois=["V1"]))
    assert only.layout["shape"] == {"01": [4], "02": [3]}
    assert only.score_context("test").encoding_ceiling["01"].shape == (4,)


@pytest.mark.parametrize(("rois", "message"), [(["V1", "V9"], "no region V9; it has V1, V2"), ([], "empty list")])
def test_unknown_regions_are_refused(tmp_path: Path, rois: list[str], message: str) -> None:
    with pytest.raises(DataError, match=rf"sub-01: .*{message}.*samples\.rois") as raised:
        recording(tmp_path, samples=SampleOptions(rois=rois)).layout  # noqa: B018
    assert "V1, V2" in str(raised.value)


def test_regions_where_the_data_set_has_none(tmp_path: Path) -> None:
    records = experiment({"01": (4, 5)})
    with pytest.raises(DataError, match="it has none"):
        recording(tmp_path, records, SampleOptions(rois=["V1"]), kind=SensorRecording).layout  # noqa: B018


# ---- voxels that say nothing ------------------------------------------------------------------------


def spoil(records: list[Any], column: int, value: float, rows: slice = slice(None)) -> list[Any]:
    """Set a voxel to a value in some trials of the first session."""
    trials = next(record for record in records if isinstance(record, Trials))
    signal = trials.signal.copy()
    signal[rows, column] = value
    return change(records, Trials, signal=signal)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("rows", [slice(None), slice(3, 4)], ids=["all trials", "one trial"])
@pytest.mark.parametrize("cleaning", ["none", "zscore_session"])
@pytest.mark.parametrize("normalise", ["none", "zscore"])
def test_voxels_with_nan_are_refused_or_zero_in_every_sample(
    tmp_path: Path, value: float, rows: slice, cleaning: Any, normalise: Any
) -> None:
    clean = experiment({"01": (12,)}, offset=50)
    records = spoil(clean, 4, value, rows)
    options = SampleOptions(cleaning=cleaning, normalise=normalise)
    with pytest.raises(DataError, match=r"sub-01: 1 of 12 features hold NaN .*first is 4\).*bad_features=zero"):
        recording(tmp_path, records, options).prepared  # noqa: B018
    assert not leftovers(tmp_path / "stores" / "prepared")
    data = recording(tmp_path, records, replace(options, bad_features="zero"))
    sound = recording(tmp_path / "sound", clean, options)
    for split in ("train", "validation", "test"):
        found = signals(data, split)
        assert (found[:, 4] == 0).all()
        others = [column for column in range(12) if column != 4]
        np.testing.assert_allclose(found[:, others], signals(sound, split)[:, others], rtol=1e-5, atol=1e-5)


def test_constant_voxels_are_refused_or_zero(tmp_path: Path) -> None:
    records = experiment({"01": (12,)}, sessions=1)
    trials = next(record for record in records if isinstance(record, Trials))
    signal = trials.signal.copy()
    signal[np.array(trials.split) == "train", 7] = 1234.567
    records = change(records, Trials, signal=signal)
    with pytest.raises(DataError, match=r"sub-01: 1 of 12 features are constant .*first is 7\).*bad_features=zero"):
        recording(tmp_path, records).prepared  # noqa: B018
    assert not leftovers(tmp_path / "stores" / "prepared")
    data = recording(tmp_path, records, SampleOptions(bad_features="zero"))
    for split in ("train", "validation", "test"):
        found = signals(data, split)
        assert np.isfinite(found).all()
        assert (found[:, 7] == 0).all()


def test_constant_voxels_may_stay_where_nothing_is_divided(tmp_path: Path) -> None:
    records = spoil(experiment({"01": (12,)}, sessions=1), 7, 3.0)
    found = signals(recording(tmp_path, records, SampleOptions(normalise="none")), "train")
    assert (found[:, 7] == 3).all()


# ---- times ----------------------------------------------------------------------------------------


def test_a_window_keeps_its_times(tmp_path: Path) -> None:
    records = experiment({"01": (3, 30), "02": (2, 30)})  # 100 Hz from -0.1 s
    whole = recording(tmp_path, records, SampleOptions(normalise="none"), kind=SensorRecording)
    cut = recording(tmp_path, records, SampleOptions(normalise="none", window=(0.0, 0.05)), kind=SensorRecording)
    for split in ("train", "validation", "test"):
        for all_times, few_times in zip(everything(whole, split), everything(cut, split), strict=True):
            np.testing.assert_array_equal(few_times["signal"].numpy(), all_times["signal"].numpy()[:, :, 10:15])
            assert few_times["row"].equal(all_times["row"])
    assert whole.layout["start"] == pytest.approx(-0.1)
    assert cut.layout["start"] == pytest.approx(0.0)
    assert cut.layout["shape"] == {"01": [3, 5], "02": [2, 5]}
    assert cut.layout["preparation"] != whole.layout["preparation"]


def test_what_lies_outside_of_the_window_does_not_matter(tmp_path: Path) -> None:
    records = experiment({"01": (3, 30)})
    broken = [
        replace(
            record, signal=np.concatenate([record.signal[..., :20], np.full_like(record.signal[..., 20:], np.nan)], -1)
        )
        if isinstance(record, Trials)
        else record
        for record in records
    ]
    early = SampleOptions(window=(-0.1, 0.1))
    assert np.isfinite(signals(recording(tmp_path, broken, early, kind=SensorRecording), "train")).all()
    with pytest.raises(DataError, match="NaN"):
        recording(tmp_path, broken, SampleOptions(window=(-0.1, 0.11)), kind=SensorRecording).layout  # noqa: B018


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (SampleOptions(window=(0.5, 0.6)), SensorRecording, r"no sample in \[0.5, 0.6\] s; .* -0.1 to 0.19 s"),
        (SampleOptions(window=(0.0, 0.1)), Recording, "needs signals with a time axis"),
        (SampleOptions(window=(0.0, 0.1), rois=["V1"]), SensorRecording, "give one of them"),
    ],
)
def test_impossible_windows_are_refused(
    tmp_path: Path, options: SampleOptions, kind: type[Recording], message: str
) -> None:
    records = experiment({"01": (3, 30)} if kind is SensorRecording else {"01": (12,)})
    with pytest.raises(DataError, match=message):
        recording(tmp_path, records, options, kind=kind).layout  # noqa: B018
