"""The section of sensors: signals in a known window of known sensors, as runs of a report."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.report import curves as curves_module
from experiments.report import sensors, time_resolved
from experiments.report.page import Chart, Note, Picture, Table
from experiments.report.runs import Run
from tests.experiments.report.recordings import (
    PIXELS,
    TEST,
    TRAIN,
    InPlace,
    InWindow,
    data_config,
    decoded,
    of_kind,
    opened,
    recorded_run,
    run_folder,
)

Array = np.ndarray[Any, Any]
STEP = 3
"""Samples from one window to the next: fewer windows than usual, so that tests are quick."""


@pytest.fixture(autouse=True)
def as_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.setattr(time_resolved, "WINDOWS", 13)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root whose stores all tests share."""
    return tmp_path_factory.mktemp("raw")


@pytest.fixture
def two_people(raw: Path, tmp_path: Path) -> Run:
    return recorded_run(run_folder(tmp_path), data_config(InWindow, raw, people=["01", "02"]))


def test_a_chart_a_table_and_heads(two_people: Run) -> None:
    section = sensors.section([two_people])
    assert section is not None
    chart, table, picture = section.parts
    assert isinstance(chart, Chart)
    assert isinstance(table, Table)
    assert isinstance(picture, Picture)
    lines = {line.name: line for line in chart.figure.data if line.mode == "lines"}
    assert {"sub-01", "sub-02", "mean"} <= lines.keys()
    expected = np.mean([lines["sub-01"].y, lines["sub-02"].y], axis=0)
    np.testing.assert_allclose(lines["mean"].y, expected, atol=1e-9)
    np.testing.assert_allclose(lines["mean"].x, 10 * np.arange(-9, 29, STEP))
    marks = next(m for m in chart.figure.data if m.mode == "markers" and m.legendgroup == "mean")
    # windows of 30 ms about these times that hold some of the signal, from 120 to 170 ms
    assert set(np.round(marks.x)) == {120, 150, 180}
    assert [row[0] for row in table.rows] == ["sub-01", "sub-02", "mean"]
    best, first = table.rows[2][2], table.rows[2][4]
    assert int(best) == 150
    assert int(first) == 120
    for word in ("King & Dehaene 2014", "among 30", "chance is .5"):
        assert word in chart.caption
    assert "Haufe et al. 2014" in picture.caption
    assert Image.open(io.BytesIO(picture.png)).width > 600


def test_what_was_computed_is_kept_beside_the_run(two_people: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sensors.section([two_people])
    kept = json.loads((two_people.folder / "time_resolved.json").read_text())
    assert list(kept["people"]) == ["01", "02"]
    assert sorted(file.name for file in two_people.folder.iterdir()) == [
        "config_test.yaml",
        "outputs.safetensors",
        "time_resolved.json",
    ]

    def never(*args: Any, **kwargs: Any) -> None:
        pytest.fail("computed again")

    monkeypatch.setattr(curves_module, "_decode_people", never)
    again = sensors.section([Run(two_people.folder)])
    assert first is not None
    assert again is not None
    assert again.parts[1:] == first.parts[1:]
    for one, other in zip(first.parts[0].figure.data, again.parts[0].figure.data, strict=True):
        assert one == other


@pytest.fixture
def one_person(raw: Path, tmp_path: Path) -> Run:
    return recorded_run(run_folder(tmp_path), data_config(InWindow, raw))


@pytest.mark.parametrize(
    "change",
    ["damaged", *(pytest.param(name, marks=pytest.mark.full) for name in ("other data", "other shape", "not a dict"))],
)
def test_what_does_not_fit_is_computed_anew(one_person: Run, change: str) -> None:
    file = one_person.folder / "time_resolved.json"
    assert sensors.section([one_person]) is not None
    whole = file.read_text()
    content = json.loads(whole)
    if change == "damaged":
        file.write_text(whole[: len(whole) // 2])
    elif change == "other data":
        content["people"]["01"]["score"][0] = 0.123
        file.write_text(json.dumps(content | {"key": "another"}))
    elif change == "other shape":
        del content["people"]["01"]["pattern"]
        file.write_text(json.dumps(content))
    else:
        file.write_text("[]")
    assert sensors.section([Run(one_person.folder)]) is not None
    assert file.read_text() == whole


def test_a_folder_that_cannot_be_written_to_is_no_error(one_person: Run) -> None:
    # nothing replaces a folder, whoever asks
    (one_person.folder / "time_resolved.json" / "in the way").mkdir(parents=True)
    section = sensors.section([one_person])
    assert section is not None
    assert of_kind(section.parts, Chart)
    assert not list(one_person.folder.glob(".*"))


@pytest.mark.full
def test_stages_of_the_same_data_are_analysed_once(raw: Path, tmp_path: Path) -> None:
    config = data_config(InWindow, raw)
    runs = [recorded_run(run_folder(tmp_path, stage=stage), config) for stage in ("ridge", "contrastive")]
    section = sensors.section(runs)
    assert section is not None
    assert len(of_kind(section.parts, Chart)) == 1
    assert not (runs[1].folder / "time_resolved.json").exists()


@pytest.mark.full
def test_people_of_several_runs_stand_in_one_chart(raw: Path, tmp_path: Path) -> None:
    runs = [
        recorded_run(
            run_folder(tmp_path, people=f"sub-{person}"),
            data_config(InWindow, raw, people=["01", "02"], subjects=[person]),
        )
        for person in ("01", "02")
    ]
    section = sensors.section(runs)
    assert section is not None
    (chart,) = of_kind(section.parts, Chart)
    assert {"sub-01", "sub-02", "mean"} <= {line.name for line in chart.figure.data}


def test_folds_are_averaged_by_their_test_samples(raw: Path, tmp_path: Path) -> None:
    runs = [
        recorded_run(
            run_folder(tmp_path, f"r_fold-{fold:02d}"),
            data_config(InWindow, raw, split={"folds": 2, "fold": fold, "validation": 0.0}),
        )
        for fold in (0, 1)
    ]
    section = sensors.section(runs)
    assert section is not None
    (chart,) = of_kind(section.parts, Chart)
    curves = [json.loads((run.folder / "time_resolved.json").read_text())["people"]["01"] for run in runs]
    sizes = [curve["tested"] for curve in curves]
    assert sum(sizes) == TRAIN + TEST
    expected = np.average([curve["score"] for curve in curves], axis=0, weights=sizes)
    line = next(line for line in chart.figure.data if line.name == "sub-01")
    np.testing.assert_allclose(line.y, expected)


def test_data_that_is_not_here_is_a_note(raw: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    run = recorded_run(run_folder(tmp_path), data_config(InWindow, away))
    shutil.rmtree(away / "stores")
    section = sensors.section([run])
    assert section is not None
    (note,) = section.parts
    assert isinstance(note, Note)
    assert "not on this machine" in note.text
    assert str(away) in note.text


def test_data_that_changed_since_is_a_note(raw: Path, tmp_path: Path) -> None:
    run = recorded_run(run_folder(tmp_path), data_config(InWindow, raw))
    assert run.part is not None
    run.part.context.layout["preparation"]["recordings"] = "another"
    section = sensors.section([run])
    assert section is not None
    assert "its preparation differs" in section.parts[0].text  # type: ignore[union-attr]


@pytest.mark.full
def test_sensors_without_positions_have_no_heads(raw: Path, tmp_path: Path) -> None:
    run = recorded_run(run_folder(tmp_path), data_config(InWindow, raw, with_positions=False))
    section = sensors.section([run])
    assert section is not None
    assert not of_kind(section.parts, Picture)
    assert "no positions" in of_kind(section.parts, Note)[0].text


def test_too_few_times_are_a_note(raw: Path, tmp_path: Path) -> None:
    run = recorded_run(run_folder(tmp_path), data_config(InWindow, raw, samples={"window": [0.1, 0.13]}))
    section = sensors.section([run])
    assert section is not None
    assert "too few times" in section.parts[0].text  # type: ignore[union-attr]


def test_runs_without_sensors_have_no_section(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    runs = [recorded_run(run_folder(tmp_path), data_config(InPlace, raw)), Run(tmp_path / "empty")]
    assert sensors.section(runs) is None


def test_parts_of_several_data_sets(raw: Path, tmp_path: Path) -> None:
    parts = {"eeg": data_config(InWindow, raw, people=["01", "02"]), "fmri": data_config(InPlace, raw)}
    config = {
        "class_path": "datamodules.MultiModal",
        "init_args": {"parts": parts, "stores": str(raw / "stores"), "embedding": PIXELS, "validation": 0.0},
    }
    section = sensors.section([recorded_run(run_folder(tmp_path), config)])
    assert section is not None
    (chart,) = of_kind(section.parts, Chart)
    lines = {line.name: line for line in chart.figure.data}
    assert {"sub-eeg-01", "sub-eeg-02", "mean"} <= lines.keys()
    assert not any("fmri" in str(name) for name in lines)
    # the same as that data set alone
    alone = decoded(opened(parts["eeg"]))
    np.testing.assert_allclose(lines["sub-eeg-01"].y, alone.score, atol=1e-5)


@pytest.mark.full
def test_many_people_share_one_entry_of_the_legend(raw: Path) -> None:
    curve = decoded(opened(data_config(InWindow, raw)))
    curves = {f"{number:02d}": curve for number in range(12)}
    figure = sensors._chart("data", curves, sensors._mean(list(curves.values()))).figure
    shown = [line.name for line in figure.data if line.showlegend is not False]
    assert shown.count("people") == 1
    assert "mean" in shown


def test_one_person_is_no_mean(one_person: Run) -> None:
    section = sensors.section([one_person])
    assert section is not None
    names = {line.name for line in section.parts[0].figure.data}  # type: ignore[union-attr]
    assert "sub-01" in names
    assert "mean" not in names
