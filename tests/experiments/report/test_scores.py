"""Scores on the page: the numbers of scores.json, of all folds together where a grid has joined them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from contracts import Score
from experiments.report.page import Chart, Note, Table
from experiments.report.runs import Run
from experiments.report.scores import section
from tests.experiments.report.tested_runs import invented_part, scores_of, table_rows, write_folds, write_run


def parts_of(runs: list[Run], kind: type) -> list[object]:
    found = section(runs)
    assert found is not None
    return [part for part in found.parts if isinstance(part, kind)]


def markers(chart: Chart) -> list[object]:
    return [trace for trace in chart.figure.data if trace.mode == "markers" and trace.x[0] is not None]


def test_a_run_without_scores_has_no_section(tmp_path: Path) -> None:
    assert section([write_run(tmp_path)]) is None


def test_chart_and_table_show_the_scores_of_the_file(tmp_path: Path) -> None:
    run = write_run(tmp_path, invented_part(signals=True))
    [chart], [table, *_] = parts_of([run], Chart), parts_of([run], Table)
    assert isinstance(chart, Chart)
    drawn = {round(float(y), 3): trace for trace in markers(chart) for y in trace.y}
    rows = table_rows(table)
    assert len(rows) == len(run.scores) > 5
    for score, row in zip(run.scores, rows, strict=True):
        assert score.low is not None
        assert score.high is not None
        assert (row["score"], row["value"]) == (score.name, f"{score.value:.3f}")
        assert row["95 % interval"] == f"{score.low:.3f} .. {score.high:.3f}"
        assert (row["n"], row["stimuli"]) == ("24", "24")
        trace = drawn[round(score.value, 3)]
        assert score.value + trace.error_y.array[0] == pytest.approx(score.high, abs=1e-3)
        assert score.value - trace.error_y.arrayminus[0] == pytest.approx(score.low, abs=1e-3)
    assert "protocol: by_stimulus" in table.caption
    assert "no decoding ceiling" in table.caption


def test_people_have_a_mean_without_interval(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path, invented_part([person], seed=seed), people=f"sub-{person}")
        for seed, person in enumerate(("01", "02"))
    ]
    [table, *_] = parts_of(runs, Table)
    rows = [row for row in table_rows(table) if row["score"] == "two_way"]
    values = {row["subject"]: row["value"] for row in rows}
    first, second = (run.scores[0].value for run in runs)
    assert values["mean"] == f"{(first + second) / 2:.3f}"
    [mean] = [row for row in rows if row["subject"] == "mean"]
    assert (mean["95 % interval"], mean["p"]) == ("-", "-")


def test_means_stand_last_in_each_data_set(tmp_path: Path) -> None:
    scores = [Score("top_1", 0.1 * person, subject=f"0{person}") for person in (1, 2)]
    runs = [
        write_run(tmp_path, invented_part(["01", "02"]), data=data, people="all", scores=scores) for data in ("a", "b")
    ]
    [chart] = parts_of(runs, Chart)
    assert isinstance(chart, Chart)
    assert chart.figure.layout.xaxis.ticktext == ("01", "02", "mean") * 2
    assert list(chart.figure.layout.xaxis.tickvals) == sorted(chart.figure.layout.xaxis.tickvals)


def test_points_are_open_where_p_is_not_small_and_levels_are_drawn(tmp_path: Path) -> None:
    scores = [
        Score("two_way", 0.9, 0.8, 0.95, p_value=0.05, chance=0.5, ceiling=0.97, subject="01", gallery="test (24)"),
        Score("top_1", 0.3, 0.2, 0.4, p_value=0.049, chance=0.04, subject="01", gallery="test (24)"),
    ]
    run = write_run(tmp_path, invented_part(), scores=scores)
    [chart] = parts_of([run], Chart)
    [table, *_] = parts_of([run], Table)
    rows = table_rows(table)
    assert [(row["chance"], row["ceiling"]) for row in rows] == [("0.500", "0.970"), ("0.040", "-")]
    symbols = {float(trace.y[0]): trace.marker.symbol[0] for trace in markers(chart)}
    assert symbols == {0.9: "circle-open", 0.3: "circle"}
    lines = [tuple(trace.y) for trace in chart.figure.data if trace.mode == "lines" and trace.x[0] is not None]
    assert sorted(lines) == [(0.04, 0.04, None), (0.5, 0.5, None), (0.97, 0.97, None)]


def test_levels_that_differ_between_stages_are_drawn_for_each(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path, invented_part(), stage=stage, scores=[Score("pixcorr", 0.5, chance=chance, subject="01")])
        for stage, chance in (("a", 0.1), ("b", 0.2))
    ]
    [chart, *_] = parts_of(runs, Chart)
    [levels] = [trace for trace in chart.figure.data if trace.mode == "lines" and trace.x[0] is not None]
    x, y = list(levels.x), list(levels.y)
    assert y == [0.1, 0.1, None, 0.2, 0.2, None]
    assert x[1] <= x[3] + 1e-9


def test_transductive_scores_are_marked(tmp_path: Path) -> None:
    run = write_run(tmp_path, invented_part(transductive=True))
    [table, *_] = parts_of([run], Table)
    assert "protocol: by_stimulus (transductive)" in table.caption
    assert "Transductive: test recordings took part" in table.caption


def test_folds_are_joined_where_a_grid_has_joined_them(tmp_path: Path) -> None:
    parts = [invented_part(stimuli=range(12)), invented_part(stimuli=range(12, 24), seed=1)]
    runs = write_folds(tmp_path, parts)
    [table, *_] = parts_of(runs, Table)
    [note, *_] = parts_of(runs, Note)
    assert note.text == "Folds joined by neuroalign grid: invented sub-01 ridge r."
    rows = table_rows(table)
    assert {row["n"] for row in rows} == {"24"}
    assert {row["gallery"] for row in rows} == {"test (24) cosine"}
    assert rows[0]["value"] == f"{scores_of(parts)[0].value:.3f}"


def test_folds_are_listed_one_by_one_without_a_grid_or_where_some_are_missing(tmp_path: Path) -> None:
    parts = [invented_part(stimuli=range(8 * fold, 8 * fold + 8), seed=fold) for fold in range(3)]
    alone = write_folds(tmp_path / "alone", parts, grid=False)
    some = write_folds(tmp_path / "some", parts)[:2]
    for runs in (alone, some):
        [table, *_] = parts_of(runs, Table)
        [note, *_] = parts_of(runs, Note)
        assert note.text.startswith("Folds listed one by one")
        rows = table_rows(table)
        assert {row["run"] for row in rows} == {run.name for run in runs}
        assert {row["n"] for row in rows} == {"8"}


def test_runs_of_one_stage_are_told_apart_by_name(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, invented_part(seed=seed), name=f"seed-{seed}") for seed in range(3)]
    [chart, *_] = parts_of(runs, Chart)
    assert set(chart.figure.layout.xaxis.ticktext) == {f"01 seed-{seed}" for seed in range(3)}


def test_data_sets_have_charts_of_their_own_where_there_are_many_points(tmp_path: Path) -> None:
    scores = scores_of([invented_part()])
    few = [write_run(tmp_path, invented_part(), data=data, scores=scores) for data in ("a", "b")]
    charts = parts_of(few, Chart)
    assert len(charts) == 1
    assert {"a", "b"} <= {annotation.text for annotation in charts[0].figure.layout.annotations}
    many = [
        write_run(
            tmp_path / "many",
            invented_part(),
            data=data,
            people=f"sub-{person:02d}",
            scores=[replace(score, subject=f"{person:02d}") for score in scores],
        )
        for data in ("a", "b")
        for person in range(13)
    ]
    charts = [chart for chart in parts_of(many, Chart) if chart.caption.startswith("Scores of")]
    assert [chart.caption.partition(", each")[0] for chart in charts] == [
        "Scores of recordings, a",
        "Scores of recordings, b",
    ]
    assert len(charts[0].figure.layout.xaxis.tickvals) == 14
    # turned labels get the room they need
    assert charts[0].figure.layout.xaxis.tickangle == -90
