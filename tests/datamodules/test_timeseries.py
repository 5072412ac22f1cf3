"""Cutting of runs, and what data sets without pictures promise in place of the promises about pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts import DataError
from datamodules import BrainDataModule
from datamodules.core.timeseries import TimeSeriesOptions, clean_run, cut_run
from tests.datamodules.contract import SPLITS, DataModuleContract, assert_recorded, batches, everything

Array = np.ndarray[Any, Any]


class ContractWithoutPictures(DataModuleContract):
    """The contract for self-supervised stages, which read neither pictures nor embeddings: ``make`` sees to that."""

    @staticmethod
    def without_embeddings(data: BrainDataModule) -> BrainDataModule:
        data.batch_keys = lambda: frozenset({"signal"})  # type: ignore[method-assign]
        return data

    @pytest.mark.parametrize("split", SPLITS)
    def test_batches_have_the_names_shapes_and_types_of_the_contract(self, root: Path, split: str) -> None:
        data = self.open(root)
        for batch in batches(data, split):
            assert_recorded(batch, data.layout)
            assert set(batch) == {"signal", "stimulus", "label", "subject", "row"}
        assert data.layout["embedding_width"] == 0
        assert data.layout["embedding_space"] == "none"

    def test_no_picture_on_two_sides(self, root: Path) -> None:
        data = self.open(root)
        assert not data.store.has_pictures
        seen = {split: data.stimuli(split) for split in SPLITS}
        assert all(seen.values())
        assert not seen["train"] & seen["validation"]
        assert not seen["train"] & seen["test"]
        assert not seen["validation"] & seen["test"]

    def test_embedding_belongs_to_the_picture_that_was_seen(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = self.open(root)
        monkeypatch.setattr(data, "batch_keys", lambda: frozenset({"signal", "embedding"}))
        with pytest.raises(DataError, match=r"needs embeddings, and \w+ has none"):
            data.dataset("train")

    def test_pictures_come_with_the_batch_where_a_stage_wants_them(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = self.open(root)
        monkeypatch.setattr(data, "batch_keys", lambda: frozenset({"signal", "image"}))
        with pytest.raises(DataError, match=r"needs pictures, and \w+ has none"):
            data.dataset("train")

    @pytest.mark.parametrize("stage", ["validate", "test"])
    def test_score_context_fits_the_samples(self, root: Path, stage: str) -> None:
        data = self.open(root)
        context = data.score_context(stage)  # type: ignore[arg-type]
        found = everything(data, {"validate": "validation"}.get(stage, stage))
        shown = {number for batch in found for number in batch["stimulus"].tolist()}
        assert set(context.galleries["test"].stimulus.tolist()) == shown
        assert all(gallery.embedding.shape == (len(gallery.stimulus), 0) for gallery in context.galleries.values())
        assert "class_centres" not in context.galleries


def run(volumes: int = 24, voxels: int = 3, *, offset: float = 100) -> Array:
    random = np.random.default_rng(0)
    drift = np.outer(np.arange(volumes), random.standard_normal(voxels))
    return offset + drift + random.standard_normal((volumes, voxels))


def test_zscore_is_over_the_time_of_each_voxel() -> None:
    x = run()
    expected = np.empty_like(x)
    for voxel in range(x.shape[1]):
        series = [float(value) for value in x[:, voxel]]
        mean = sum(series) / len(series)
        sd = (sum((value - mean) ** 2 for value in series) / len(series)) ** 0.5
        expected[:, voxel] = [(value - mean) / sd for value in series]
    np.testing.assert_allclose(clean_run(x, "zscore"), expected, atol=1e-5)


def test_detrend_takes_out_the_straight_line_of_least_squares() -> None:
    x = run()
    time = np.arange(len(x))
    rest = x - np.stack([np.polyval(np.polyfit(time, voxel, 1), time) for voxel in x.T], axis=1)
    np.testing.assert_allclose(clean_run(x, "detrend"), rest / rest.std(axis=0), atol=1e-4)


def test_none_changes_nothing_and_integers_are_taken() -> None:
    x = run().astype(np.int16)
    cleaned = clean_run(x, "none")
    assert cleaned.dtype == np.float32
    np.testing.assert_array_equal(cleaned, x)
    x[0] = 0
    assert (cleaned[0] != 0).any(), "a copy"


@pytest.mark.parametrize("how", ["zscore", "detrend"])
@pytest.mark.parametrize("offset", [0.0, 1e-3, 12345.678])
def test_constant_voxels_become_zero(how: Any, offset: float) -> None:
    x = run().astype(np.float32)
    x[:, 1] = offset
    cleaned = clean_run(x, how)
    np.testing.assert_array_equal(cleaned[:, 1], 0)
    np.testing.assert_allclose(cleaned[:, [0, 2]].std(axis=0), 1, atol=1e-5)


def test_a_straight_line_is_constant_without_its_trend() -> None:
    x = run()
    x[:, 1] = 7 - 3 * np.arange(len(x))
    np.testing.assert_array_equal(clean_run(x, "detrend")[:, 1], 0)


@pytest.mark.parametrize("how", ["zscore", "detrend"])
def test_a_voxel_with_nan_stays_for_bad_features_to_find(how: Any) -> None:
    x = run()
    x[3, 1] = np.nan
    cleaned = clean_run(x, how)
    assert np.isnan(cleaned[3, 1])
    np.testing.assert_array_equal(cleaned[:, [0, 2]], clean_run(run(), how)[:, [0, 2]])


@pytest.mark.parametrize(("volumes", "average"), [(24, 6), (25, 6), (29, 6), (1200, 10), (7, 7), (7, 4)])
def test_windows_are_those_of_array_split(volumes: int, average: int) -> None:
    x = run(volumes)
    samples, first = cut_run(x, TimeSeriesOptions(average=average), label="run")
    windows = np.array_split(x, volumes // average)
    np.testing.assert_allclose(samples, [window.mean(axis=0) for window in windows], rtol=1e-6)
    np.testing.assert_array_equal(first, np.cumsum([0, *map(len, windows)])[:-1])


def test_single_volumes() -> None:
    x = run()
    samples, first = cut_run(x, TimeSeriesOptions(), label="run")
    np.testing.assert_array_equal(samples, x.astype(np.float32))
    assert first.tolist() == list(range(24))


@pytest.mark.parametrize(
    ("segment", "stride", "starts"),
    [(8, 0, [0, 8, 16]), (8, 5, [0, 5, 10, 15]), (24, 0, [0]), (10, 24, [0]), (10, 0, [0, 10])],
)
def test_segments_are_consecutive_volumes(segment: int, stride: int, starts: list[int]) -> None:
    x = run()
    options = TimeSeriesOptions(clean="zscore", segment=segment, stride=stride)
    samples, first = cut_run(x, options, label="run")
    cleaned = clean_run(x, "zscore")
    assert first.tolist() == starts
    assert samples.shape == (len(starts), 3, segment)
    for sample, start in zip(samples, starts, strict=True):
        for volume in range(segment):
            np.testing.assert_array_equal(sample[:, volume], cleaned[start + volume])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment": 8, "average": 2}, "average=2 makes patterns and segment=8 makes time series"),
        ({"stride": 3}, "stride=3 has no meaning without segment"),
        ({"segment": 1}, "segment must be 0 or at least 2"),
        ({"segment": 8, "stride": -1}, "stride=-1"),
        ({"average": 0}, "at least 1 volume, found 0"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TimeSeriesOptions(**options)


@pytest.mark.parametrize("options", [{"average": 25}, {"segment": 30}, {"segment": 6, "stride": 40}])
def test_a_run_that_is_too_short(options: dict[str, int]) -> None:
    name, length = list(options.items())[-1]
    with pytest.raises(DataError, match=rf"sub-01: time_series\.{name}={length} volumes, but the run has 24"):
        cut_run(run(), TimeSeriesOptions(**options), label="sub-01")  # type: ignore[arg-type]
