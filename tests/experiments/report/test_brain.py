"""Correlations of voxels by region and by place, on recordings whose predictions get worse from voxel to voxel."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import pearsonr

from callbacks import load_part
from callbacks.metrics import encoding
from experiments.report import brain
from experiments.report.glass_brain import Places, draw_brain, has_outline, places_of
from experiments.report.page import Chart, Note, Picture
from experiments.report.runs import Run
from tests.experiments.report.recordings import (
    PIXELS,
    ROIS,
    VOXELS,
    InPlace,
    InWindow,
    data_config,
    of_kind,
    opened,
    places,
    recorded_run,
    run_folder,
)

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def as_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root whose stores all tests share."""
    return tmp_path_factory.mktemp("raw")


@pytest.fixture
def run(raw: Path, tmp_path: Path) -> Run:
    """Two people, no places, so that nothing is drawn."""
    return recorded_run(run_folder(tmp_path), data_config(InPlace, raw, people=["01", "02"], space=None), error=3.0)


def correlations(run: Run, person: str = "01") -> Array:
    """r of each voxel, by SciPy."""
    outputs = load_part(run.folder / "outputs.safetensors").outputs[person]
    predicted, signal = (outputs[name].numpy().astype(float) for name in ("predicted_signal", "signal"))
    return np.array([pearsonr(predicted[:, i], signal[:, i])[0] for i in range(signal.shape[1])])


def shown(runs: list[Run]) -> list[Any]:
    section = brain.section(runs)
    assert section is not None
    return list(section.parts)


# ---- charts ----------------------------------------------------------------------------------------


def test_regions_show_quartiles_means_intervals_and_ceilings(run: Run) -> None:
    chart = shown([run])[0]
    assert list(chart.figure.layout.xaxis.ticktext) == [*ROIS, "all voxels"]
    r = correlations(run)
    parts = [*np.split(r, np.cumsum(list(ROIS.values()))[:-1]), r]
    box = next(trace for trace in chart.figure.data if trace.type == "box" and trace.name == "sub-01")
    for name, share in (("lowerfence", 0.05), ("q1", 0.25), ("median", 0.5), ("q3", 0.75), ("upperfence", 0.95)):
        np.testing.assert_allclose(box[name], [np.quantile(part, share) for part in parts], rtol=2e-3)
    means, ceilings = [t for t in chart.figure.data if t.type == "scatter" and t.x[0] == box.x[0]]
    np.testing.assert_allclose(means.y, [part.mean() for part in parts], rtol=2e-3)
    part = load_part(run.folder / "outputs.safetensors")
    ceiling = part.context.encoding_ceiling["01"].numpy()
    np.testing.assert_allclose(ceilings.y[-1], ceiling.mean(), rtol=2e-3)
    np.testing.assert_allclose(ceilings.y[0], ceiling[: ROIS["V1"]].mean(), rtol=2e-3)
    # the interval of all voxels is that of the score
    outputs = part.outputs["01"]
    score = next(
        e
        for e in encoding(outputs["predicted_signal"], outputs["signal"], outputs["stimulus"], n_permutations=0)
        if e.name == "pearson_mean"
    )
    assert score.low is not None
    assert score.high is not None
    width = means.error_y.array[-1] + means.error_y.arrayminus[-1]
    np.testing.assert_allclose(width, score.high - score.low, rtol=0.25)
    assert means.customdata[1][0] == "V2"
    assert means.customdata[1][1] == ROIS["V2"]


def test_people_stand_side_by_side(run: Run) -> None:
    boxes = [trace for trace in shown([run])[0].figure.data if trace.type == "box"]
    assert [box.name for box in boxes] == ["sub-01", "sub-02"]
    assert (np.array(boxes[0].x) < np.array(boxes[1].x)).all()
    np.testing.assert_allclose((np.array(boxes[0].x) + np.array(boxes[1].x)) / 2, np.arange(4))


def test_the_histogram_compares_with_permuted_stimuli(run: Run) -> None:
    chart = shown([run])[1]
    chance, *people = chart.figure.data
    for line in (chance, *people):
        np.testing.assert_allclose(sum(line.y), 1, atol=1e-3)
    assert abs(np.average(chance.x, weights=chance.y)) < 0.05
    np.testing.assert_allclose(np.average(people[0].x, weights=people[0].y), correlations(run).mean(), atol=0.02)
    # 30 samples: r by chance has an SD of 1 / sqrt(29), so 95 % do not exceed about .31
    share = float(chart.caption.split("sub-01 ")[1][:5])
    assert abs(share - (correlations(run) > 1.645 / np.sqrt(29)).mean()) < 0.1


def test_folds_are_joined_before_the_correlation(raw: Path, tmp_path: Path) -> None:
    runs = [
        recorded_run(
            run_folder(tmp_path, f"r_fold-{fold:02d}"),
            data_config(InPlace, raw, space=None, split={"folds": 2, "fold": fold, "validation": 0.0}),
            error=3.0,
        )
        for fold in (0, 1)
    ]
    parts = shown(runs)
    assert len(of_kind(parts, Chart)) == 2
    outputs = [load_part(run.folder / "outputs.safetensors").outputs["01"] for run in runs]
    predicted, signal = (
        np.concatenate([part[name].numpy() for part in outputs]).astype(float)
        for name in ("predicted_signal", "signal")
    )
    r = [pearsonr(predicted[:, i], signal[:, i])[0] for i in range(VOXELS)]
    means = next(t for t in parts[0].figure.data if t.type == "scatter")
    np.testing.assert_allclose(means.y[-1], np.mean(r), rtol=2e-3)
    assert "ceiling" not in parts[0].caption, "that of a fold is not that of all folds"


@pytest.mark.full
def test_constant_voxels_are_left_out(raw: Path, tmp_path: Path) -> None:
    run = recorded_run(run_folder(tmp_path), data_config(InPlace, raw), error=3.0)
    assert run.part is not None
    outputs: Any = run.part.outputs["01"]
    outputs["signal"][:, 3] = 1.0
    r = np.delete(correlations(run), 3)
    parts = shown([run])
    means = next(t for t in parts[0].figure.data if t.type == "scatter")
    np.testing.assert_allclose(means.y[-1], r.mean(), rtol=2e-3)
    assert len(of_kind(parts, Picture)) == 1


# ---- brains ----------------------------------------------------------------------------------------


def test_a_brain_for_each_person_where_places_are_known(raw: Path, tmp_path: Path) -> None:
    config = data_config(InPlace, raw, people=["01", "02"])
    pictures = of_kind(shown([recorded_run(run_folder(tmp_path), config, error=3.0)]), Picture)
    assert len(pictures) == 2
    assert "sub-01" in pictures[0].caption
    assert "MNI152 template" in pictures[0].caption
    assert Image.open(io.BytesIO(pictures[0].png)).width > 1000
    assert pictures[0].png != pictures[1].png


def test_more_people_than_eight_are_said(raw: Path, tmp_path: Path) -> None:
    people = [f"{number:02d}" for number in range(1, 11)]
    config = data_config(InPlace, raw, people=people, space=None)
    parts = shown([recorded_run(run_folder(tmp_path), config, error=3.0)])
    assert "the first 8 of 10 people" in parts[0].text
    assert len([trace for trace in of_kind(parts, Chart)[0].figure.data if trace.type == "box"]) == 8


@pytest.mark.parametrize(
    ("space", "shift", "words"),
    [
        ("native", 0.0, "outline is that of the MNI152 template, so the place is only rough"),
        ("native", 200.0, "without an outline"),
    ],
)
def test_the_caption_says_what_the_outline_is(raw: Path, tmp_path: Path, space: str, shift: float, words: str) -> None:
    config = data_config(InPlace, raw, space=space, shift=shift)
    (picture,) = of_kind(shown([recorded_run(run_folder(tmp_path), config, error=3.0)]), Picture)
    assert words in picture.caption


def test_without_places_a_note_says_so(raw: Path, tmp_path: Path) -> None:
    parts = shown([recorded_run(run_folder(tmp_path), data_config(InPlace, raw, space=None), error=3.0)])
    assert not of_kind(parts, Picture)
    (note,) = of_kind(parts, Note)
    assert "no coordinates" in note.text
    assert len(of_kind(parts, Chart)) == 2


def test_without_the_data_set_the_charts_are_there(tmp_path: Path) -> None:
    away = tmp_path / "away"
    run = recorded_run(run_folder(tmp_path), data_config(InPlace, away), error=3.0)
    shutil.rmtree(away / "stores")
    parts = shown([run])
    assert len(of_kind(parts, Chart)) == 2
    assert "not on this machine" in of_kind(parts, Note)[0].text


def test_samples_that_keep_some_regions_have_their_places(raw: Path) -> None:
    found = places_of(opened(data_config(InPlace, raw, samples={"rois": ["PPA", "V1"]})), "01")
    assert isinstance(found, Places)
    expected = np.concatenate([places()[45:], places()[:20]])
    np.testing.assert_allclose(found.coordinates, expected, atol=1e-4)


@pytest.mark.full
def test_parts_of_several_data_sets(raw: Path, tmp_path: Path) -> None:
    parts = {"eeg": data_config(InWindow, raw), "fmri": data_config(InPlace, raw)}
    config = {
        "class_path": "datamodules.MultiModal",
        "init_args": {"parts": parts, "stores": str(raw / "stores"), "embedding": PIXELS, "validation": 0.0},
    }
    found = shown([recorded_run(run_folder(tmp_path), config, error=3.0)])
    boxes = [trace.name for trace in of_kind(found, Chart)[0].figure.data if trace.type == "box"]
    assert boxes == ["sub-fmri-01"]
    assert len(of_kind(found, Picture)) == 1


def test_the_best_voxels_are_dark_and_those_at_chance_grey() -> None:
    # from the left of the brain, well predicted, to the right, by chance
    coordinates = np.column_stack([np.linspace(-60, 60, 200), np.full(200, -60.0), np.zeros(200)])
    values = np.where(coordinates[:, 0] < -20, 0.5, np.where(coordinates[:, 0] > 20, 0.05, 0.2))
    png = draw_brain(values, Places(coordinates + 200, "native"), chance=0.1)
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    grey = (np.ptp(pixels, axis=2) < 4) & (abs(pixels[..., 0] - 219) < 6)
    dark = (pixels[..., 2] > 60) & (pixels[..., 0] < 80) & (pixels[..., 1] < 20)
    third = slice(int(0.68 * pixels.shape[1] * 0.9), int(0.9 * pixels.shape[1]))
    (_, of_grey), (_, of_dark) = np.nonzero(grey[:, third]), np.nonzero(dark[:, third])
    assert len(of_grey) > 50
    assert len(of_dark) > 50
    assert of_dark.mean() < of_grey.mean()


def test_an_origin_amid_the_voxels_tells_no_place() -> None:
    around = np.random.default_rng(0).uniform(-30, 30, (100, 3))
    assert not has_outline(Places(around, "native"))
    assert has_outline(Places(around - [0, 40, 0], "native"))
    assert has_outline(Places(around, "MNI152"))


# ---- runs of other kinds ---------------------------------------------------------------------------


def test_runs_that_only_decode_get_a_note(raw: Path, tmp_path: Path) -> None:
    run = recorded_run(run_folder(tmp_path), data_config(InPlace, raw))
    (note,) = shown([run])
    assert "No predicted signals were kept by" in note.text
    assert "made_up" in note.text


def test_runs_without_fmri_have_no_section(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    runs = [recorded_run(run_folder(tmp_path), data_config(InWindow, raw)), Run(tmp_path / "empty")]
    assert brain.section(runs) is None
