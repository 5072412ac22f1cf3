"""Training curves: those of the logs, thinned without losing extremes, with the checkpoint that was kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from experiments.report import training
from experiments.report.page import Chart, Note
from experiments.report.runs import Run
from experiments.report.training import section, thinned, with_earlier
from tests.experiments.report.tested_runs import invented_part, write_run

LOGS = [
    [
        {"epoch": 0, "step": 0, "train/loss_step": 5.0},
        {"epoch": 0, "step": 9, "train/loss_step": 4.0},
        {"epoch": 0, "step": 9, "validation/loss": 4.5, "validation/test/top_1": 0.1},
        {"epoch": 0, "step": 9, "train/loss_epoch": 4.4},
        {"epoch": 1, "step": 19, "train/loss_epoch": 0.1, "validation/loss": 3.5, "validation/test/top_1": 0.3},
        {"epoch": 2, "step": 29, "train/loss_epoch": 0.05, "validation/loss": 3.9, "validation/test/top_1": 0.2},
    ]
]


def chart_of(runs: list[Run]) -> Chart:
    found = section(runs)
    assert found is not None
    [chart] = [part for part in found.parts if isinstance(part, Chart)]
    return chart


def curves(chart: Chart) -> dict[str, list[tuple[Any, ...]]]:
    """Points by what the box at a curve says."""
    return {
        trace.hovertemplate.partition("<br>")[2].partition(",")[0]: list(zip(trace.x, trace.y, strict=True))
        for trace in chart.figure.data
        if trace.hovertemplate
    }


def titles(chart: Chart) -> list[str]:
    return [annotation.text for annotation in chart.figure.layout.annotations]


def test_curves_are_those_of_the_logs(tmp_path: Path) -> None:
    chart = chart_of([write_run(tmp_path, invented_part(), logs=LOGS, stage="contrastive")])
    assert titles(chart) == ["loss", "validation/test/top_1"]
    loss = [trace for trace in chart.figure.data if trace.hovertemplate and trace.xaxis == "x"]
    found = {trace.hovertemplate.partition("<br>")[2].partition(", step")[0]: trace for trace in loss}
    assert list(zip(found["train"].x, found["train"].y, strict=True)) == [(9, 4.4), (19, 0.1), (29, 0.05)]
    assert list(found["train, each step"].y) == [5.0, 4.0]
    assert list(found["validation"].y) == [4.5, 3.5, 3.9]
    assert found["validation"].line.dash == "dash"
    assert "The last state was kept" in chart.caption


def test_wide_ranges_have_a_logarithmic_axis(tmp_path: Path) -> None:
    chart = chart_of([write_run(tmp_path, invented_part(), logs=LOGS)])
    assert chart.figure.layout.yaxis.type == "log"
    assert list(chart.figure.layout.yaxis.tickvals) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1, 2, 5])
    assert chart.figure.layout.yaxis2.type is None


def test_a_resumed_fit_is_one_curve(tmp_path: Path) -> None:
    first = [{"step": step, "validation/loss": 10.0 - step} for step in (1, 2, 3)]
    second = [{"step": step, "validation/loss": 20.0 - step} for step in (3, 4)]
    chart = chart_of([write_run(tmp_path, invented_part(), logs=[first, second])])
    assert curves(chart)["validation"] == [(1, 9.0), (2, 8.0), (3, 17.0), (4, 16.0)]


@pytest.mark.parametrize(
    ("mode", "monitor", "kept"), [("min", "validation/loss", (19, 3.5)), ("max", "validation/test/top_1", (19, 0.3))]
)
def test_the_kept_checkpoint_is_marked(tmp_path: Path, mode: str, monitor: str, kept: tuple[int, float]) -> None:
    config = {"model": {"init_args": {}}, "run": {"monitor": monitor, "mode": mode}}
    chart = chart_of([write_run(tmp_path, invented_part(), logs=LOGS, config=config)])
    [star] = [trace for trace in chart.figure.data if trace.marker.symbol == "star"]
    assert (star.x[0], star.y[0]) == kept
    assert "Stars mark" in chart.caption


def test_closed_form_has_no_curves(tmp_path: Path) -> None:
    solved = [[{"step": 42, "alpha/to_image": 3.0}]]
    run = write_run(tmp_path, invented_part(), logs=solved, stage="ridge_direct")
    found = section([run])
    assert found is not None
    [note] = found.parts
    assert isinstance(note, Note)
    assert note.text.startswith("Without curves: ridge_direct.")
    assert section([write_run(tmp_path, invented_part(), name="no-logs")]) is None


def test_curves_of_earlier_stages_are_found(tmp_path: Path) -> None:
    earlier = write_run(tmp_path, logs=LOGS, stage="fmri_mae")
    config = {"model": {"init_args": {"fmri_mae": "elsewhere/runs/invented/sub-01/fmri_mae/r/final.ckpt", "alpha": 3}}}
    run = write_run(tmp_path, invented_part(), stage="ridge_lea", config=config)
    assert [each.stage for each in with_earlier([run])] == ["fmri_mae", "ridge_lea"]
    # once, also where it is asked for itself
    assert len(with_earlier([earlier, run])) == 2
    assert "invented sub-01 fmri_mae r" in {trace.name for trace in chart_of([run]).figure.data}


def test_runs_share_colours_of_their_stage_where_they_are_many(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path, invented_part(), logs=LOGS, people=f"sub-{person:02d}", stage=stage, scores=[])
        for person in range(6)
        for stage in ("a", "b")
    ]
    chart = chart_of(runs)
    assert [trace.name for trace in chart.figure.data if trace.showlegend is None] == ["a", "b"]
    few = chart_of(runs[:3])
    assert len([trace for trace in few.figure.data if trace.showlegend is None]) == 3


def test_long_logs_keep_their_extremes() -> None:
    values = [(step, math.sin(step / 5000)) for step in range(50_000)]
    values[31_234] = (31_234, 9.0)
    values[123] = (123, -9.0)
    found = thinned(values)
    assert len(found) <= training.POINTS
    assert {(31_234, 9.0), (123, -9.0), values[0], values[-1]} <= set(found)
    assert [step for step, _ in found] == sorted(step for step, _ in found)
    assert thinned(values[:100]) == values[:100]


def test_values_that_are_not_numbers_are_gaps(tmp_path: Path) -> None:
    rows = [{"step": step, "validation/loss": value} for step, value in enumerate((1.0, float("nan"), 2.0))]
    chart = chart_of([write_run(tmp_path, invented_part(), logs=[rows])])
    assert curves(chart)["validation"] == [(0, 1.0), (1, None), (2, 2.0)]
    long = [(step, float("nan") if step < 3000 else 1.0) for step in range(6000)]
    assert len(thinned(long)) <= training.POINTS
