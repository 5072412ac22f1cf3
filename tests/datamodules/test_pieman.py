import pickle
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest
import scipy.io

from contracts import DataError
from datamodules import BrainDataModule, SampleOptions, SplitOptions
from datamodules.core.timeseries import TimeSeriesOptions
from datamodules.pieman import PieMan
from tests.datamodules.contract import everything, leftovers, real_root
from tests.datamodules.test_timeseries import ContractWithoutPictures
from tests.formats import pieman as format

FILE = "htfa_timeseries/weights.mat"
AS_RECORDED = SampleOptions(normalise="none")
SEGMENTS = TimeSeriesOptions(clean="zscore", segment=20, stride=5)


class TestPieMan(ContractWithoutPictures):
    split: ClassVar[SplitOptions] = SplitOptions(folds=3, fold=1, validation=0.25)

    @classmethod
    def write(cls, root: Path) -> None:
        format.write(root)

    def make(self, root: Path, **options: Any) -> BrainDataModule:
        segments = TimeSeriesOptions(clean="zscore", segment=5)
        return self.without_embeddings(PieMan(str(root), time_series=segments, **options))

    def real(self, stores: Path) -> BrainDataModule:
        return PieMan(str(real_root(FILE)), stores=str(stores))


def pieman(folder: Path, **options: Any) -> PieMan:
    data = PieMan(str(folder), stores=str(folder / "stores"), **{"time_series": SEGMENTS} | options)
    return ContractWithoutPictures.without_embeddings(data)  # type: ignore[return-value]


def test_segments_of_everyone_at_the_same_moments(tmp_path: Path) -> None:
    format.write(tmp_path)
    data = pieman(tmp_path)
    people = format.content()
    assert data.store.subjects == ["01", "02", "03", "04"]
    assert data.store.stimuli["id"].tolist() == [f"tr-{start:04d}" for start in range(0, 41, 5)]
    for name, run in zip(data.store.subjects, people, strict=True):
        cleaned = (run - run.mean(axis=0, dtype=float)) / run.std(axis=0, dtype=float)
        expected = [cleaned[start : start + 20].T for start in range(0, 41, 5)]
        np.testing.assert_allclose(data.store.signals(name), expected, atol=1e-5)
        axes = data.store.axes(name)
        assert axes.sampling_rate == pytest.approx(1 / 1.5)
        assert list(axes.rois.items())[-1] == ("factor-006", 1)
    assert set(data.store.trials.groupby("stimulus")["subject"].nunique()) == {4}


def test_patterns_have_no_time_axis(tmp_path: Path) -> None:
    format.write(tmp_path)
    data = pieman(tmp_path, time_series=TimeSeriesOptions(average=7))
    expected = [window.mean(axis=0) for window in np.array_split(format.content()[0], 60 // 7)]
    np.testing.assert_allclose(data.store.signals("01"), expected, rtol=1e-5)
    assert data.store.axes("01").sampling_rate == 0
    assert pieman(tmp_path).store.folder != data.store.folder, "each way of cutting has its own store"


def test_no_person_on_two_sides(tmp_path: Path) -> None:
    format.write(tmp_path, people=6)
    tested = []
    for fold in range(3):
        split = SplitOptions(protocol="by_subject", folds=3, fold=fold, validation=0.25)
        data = pieman(tmp_path, split=split, samples=AS_RECORDED)
        sides = data.trials.groupby("subject")["side"].unique()
        assert all(len(side) == 1 for side in sides)
        assert {str(side[0]) for side in sides} == {"train", "validation", "test"}
        tested += [name for name, side in sides.items() if side[0] == "test"]
        assert data.layout["protocol"] == "by_subject"
        for split_name in ("train", "test"):
            assert everything(data, split_name)[0]["signal"].shape[1:] == (6, 20)
    assert sorted(tested) == data.store.subjects


def test_segments_match_between_halves_of_the_people(tmp_path: Path) -> None:
    root = real_root(FILE)
    data = PieMan(str(root), stores=str(tmp_path), time_series=TimeSeriesOptions(clean="zscore", segment=10, stride=1))
    signals = np.stack([data.store.signals(name) for name in data.store.subjects])
    assert signals.shape == (36, 291, 100, 10)
    halves = [signals[start::2].mean(axis=0, dtype=np.float64).reshape(291, -1) for start in (0, 1)]
    similarity = np.corrcoef(*halves)[:291, 291:]
    start = np.arange(291)
    # segments that overlap with the right one are no distractors
    near = np.abs(start[:, None] - start) < 10
    similarity[near & (start[:, None] != start)] = -np.inf
    assert np.mean(similarity.argmax(axis=1) == start) > 0.8, "published figure .88, chance .004"
    assert data.store.trials["stimulus"].nunique() == 291


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"other": np.ones((3, 2))}, ["missing 'weights'", "'other'"]),
        ({"weights": np.ones((30, 2))}, ["must be a cell array", "float64 (30, 2)"]),
        ({"weights": format.cell([])}, ["must be a cell array"]),
        ({"weights": format.cell([np.ones((30, 2)), "a story"])}, ["cell 2", "<U"]),
        ({"weights": format.cell([np.ones((30, 2)), {"a": 1}])}, ["cell 2"]),
        ({"weights": format.cell([np.ones((30, 2)) * 1j])}, ["cell 1", "complex"]),
        ({"weights": format.cell([format.cell([np.ones((3, 2))])])}, ["cell 1", "object"]),
        ({"weights": format.cell([np.ones((30, 2, 2))])}, ["cell 1", "(30, 2, 2)"]),
        ({"weights": format.cell([np.ones((30, 2)), np.ones((29, 2))])}, ["cell 2", "(29, 2)", "(30, 2)"]),
        ({"weights": format.cell([np.ones((12, 2))])}, ["cell 1", "segment=20", "12"]),
    ],
)
def test_a_file_with_other_content_is_refused(tmp_path: Path, content: dict[str, Any], expected: list[str]) -> None:
    scipy.io.savemat(tmp_path / "weights.mat", content)
    with pytest.raises(DataError) as raised:
        pieman(tmp_path).store  # noqa: B018
    for part in ("weights.mat", *expected):
        assert part in str(raised.value)
    assert not leftovers(tmp_path / "stores")


def test_a_truncated_file(tmp_path: Path) -> None:
    path = format.write(tmp_path)
    whole = path.read_bytes()
    for share in (0.01, 0.5, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match=r"weights\.mat"):
            pieman(tmp_path).store  # noqa: B018
    assert not leftovers(tmp_path / "stores")
    path.write_bytes(whole)
    assert pieman(tmp_path).store.subjects


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_in_its_place_is_not_executed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "weights.mat").write_bytes(pickle.dumps({"weights": Canary(canary)}))
    with pytest.raises(DataError, match="cannot read"):
        pieman(tmp_path).store  # noqa: B018
    assert not canary.exists()


def test_matlab_7_3_is_said_to_be_another_format(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "weights.mat", "w") as file:
        file["weights"] = np.ones((3, 2))
    with pytest.raises(DataError, match="no MATLAB 5 file"):
        pieman(tmp_path).store  # noqa: B018
