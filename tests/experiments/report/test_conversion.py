"""The conversion matrix: every score in its cell, what is not above chance in brackets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contracts import Score
from experiments.report.conversion import section
from experiments.report.page import Chart
from tests.experiments.report.tested_runs import invented_part, write_run


def two_way(task: str, value: float, p: float | None = 0.001, **changes: Any) -> Score:
    fields: dict[str, Any] = {"low": value - 0.1, "high": value + 0.1, "p_value": p, "chance": 0.5, "n": 7}
    return Score("two_way", value, gallery=task, **{**fields, **changes})


SCORES = [
    two_way("eeg to image (200)", 0.593),
    two_way("eeg to image by regression (200)", 0.566),
    two_way("image to eeg (600)", 0.62),
    two_way("eeg to fmri (600)", 0.553, p=0.05),
    Score("top_1", 0.02, gallery="eeg to image (200)"),
    Score("pearson_mean", 0.193, 0.1, 0.3, 0.001, 0.0, gallery="eeg to fmri by regression"),
    Score("chance_corrected_two_way", 0.2, -0.1, 0.4, None, 0.0, gallery="eeg to fmri (600)"),
    Score("chance_corrected_two_way", 0.3, 0.1, 0.4, None, 0.0, gallery="fmri to eeg (600)"),
]


def charts(tmp_path: Path, *groups: list[Score]) -> list[Chart]:
    runs = [
        write_run(tmp_path, invented_part(), stage=f"conversion-{number}", scores=scores)
        for number, scores in enumerate(groups)
    ]
    found = section(runs)
    return [] if found is None else [part for part in found.parts if isinstance(part, Chart)]


def cells(trace: Any) -> dict[tuple[str, str], tuple[float, str, str]]:
    return {
        (source, target): (trace.z[i][j], trace.text[i][j], trace.customdata[i][j])
        for i, source in enumerate(trace.y)
        for j, target in enumerate(trace.x)
        if trace.z[i][j] is not None
    }


def test_nothing_without_conversions(tmp_path: Path) -> None:
    assert charts(tmp_path, [Score("two_way", 0.9, gallery="test (80)")]) == []


def test_each_score_is_in_its_cell(tmp_path: Path) -> None:
    [chart] = charts(tmp_path, SCORES)
    titles = [annotation.text for annotation in chart.figure.layout.annotations]
    assert titles == [
        "two-way<br>retrieval",
        "two-way<br>regression",
        "Pearson of signals",
        "chance-corrected two-way<br>retrieval",
    ]
    matrices = dict(zip(titles, chart.figure.data, strict=True))
    retrieval = cells(matrices["two-way<br>retrieval"])
    assert set(retrieval) == {("eeg", "image"), ("image", "eeg"), ("eeg", "fmri")}
    value, text, hover = retrieval["eeg", "image"]
    assert (value, text) == (0.593, "0.593")
    assert "0.493 .. 0.693" in hover
    assert "chance 0.500, p 0.001, n 7" in hover
    assert cells(matrices["two-way<br>regression"])["eeg", "image"][0] == 0.566
    assert cells(matrices["Pearson of signals"]).keys() == {("eeg", "fmri")}
    # pictures come first
    assert list(matrices["two-way<br>retrieval"].y) == ["image", "eeg"]
    assert matrices["two-way<br>retrieval"].zmin == 0.5


def test_what_is_not_above_chance_is_in_brackets(tmp_path: Path) -> None:
    [chart] = charts(tmp_path, SCORES)
    retrieval, corrected = cells(chart.figure.data[0]), cells(chart.figure.data[3])
    assert retrieval["eeg", "fmri"][1] == "(0.553)"
    # without p the interval decides
    assert corrected["eeg", "fmri"][1] == "(0.200)"
    assert corrected["fmri", "eeg"][1] == "0.300"


def test_every_run_has_a_chart_of_its_own(tmp_path: Path) -> None:
    first, second = charts(tmp_path, SCORES, SCORES[:1])
    assert first.caption.startswith("invented sub-01 conversion-0 r: ")
    assert second.caption.startswith("invented sub-01 conversion-1 r: ")
    assert len(second.figure.data) == 1


@pytest.mark.parametrize("value", [0.4, 0.5])
def test_a_single_score_at_chance_or_below_has_a_scale(tmp_path: Path, value: float) -> None:
    [chart] = charts(tmp_path, [two_way("eeg to meg (20)", value, p=0.8)])
    [trace] = chart.figure.data
    assert trace.zmin < trace.zmax
    assert cells(trace)["eeg", "meg"][1] == f"({value:.3f})"
