"""Run folders that are damaged, of another version, or hold numbers that are none: one line, or a page that says so."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks import Part, save_part
from contracts import DataError, Score
from experiments.report import brain, provenance, scores, similarity, stimuli, training
from experiments.report.command import write_report
from experiments.report.comparison import comparison
from experiments.report.folds import gather_folds
from experiments.report.page import Chart, Note, Table
from experiments.report.runs import Run, find_runs
from tests.experiments.report.tested_runs import invented_part, table_rows, write_run

Change = Callable[[torch.Tensor], torch.Tensor]


def _same(values: torch.Tensor) -> torch.Tensor:
    return values


def with_outputs(part: Part, **changes: Change | None) -> Part:
    """Change entries of the outputs, or remove them."""
    outputs = {}
    for subject, output in part.outputs.items():
        kept = {name: values for name, values in output.items() if changes.get(name, _same) is not None}
        outputs[subject] = {name: (changes.get(name) or _same)(values) for name, values in kept.items()}
    return replace(part, outputs=outputs)


def notes(parts: Any) -> str:
    return " ".join(part.text for part in parts if isinstance(part, Note))


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"3", b"\xff\xfe{", b"a: [1"])
@pytest.mark.parametrize("name", ["config_fit.yaml", "config_test.yaml", "about_fit.json"])
def test_configurations_and_facts_that_are_none_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    run = write_run(tmp_path, invented_part(), about={"fit": {}})
    (run.folder / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"^cannot read \S*{name}: [^\n]+; test the run again$"):
        provenance.section([run])
    if name.startswith("config"):
        with pytest.raises(DataError, match=f"cannot read .*{name}"):
            training.section([Run(run.folder)])


def test_empty_entries_of_a_configuration_are_none(tmp_path: Path) -> None:
    run = write_run(tmp_path, invented_part(), config={"model": None, "run": None})
    assert training.section([run]) is None
    assert provenance.section([run]) is not None
    assert run.data_set == "its configuration names no data set"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": "abc"}, "value of the score two_way is 'abc', not a number"),
        ({"value": None}, "value of the score two_way is None, not a number"),
        ({"high": []}, r"high of the score two_way is \[\], not a number"),
    ],
)
def test_scores_that_are_no_numbers_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    run = write_run(tmp_path, invented_part())
    (run.folder / "scores.json").write_text(json.dumps([{"name": "two_way", "value": 0.5} | change]))
    with pytest.raises(DataError, match=message):
        _ = run.scores


@pytest.mark.parametrize("name", ["modality", "folds", "preparation"])
def test_outputs_of_another_version_are_refused(tmp_path: Path, name: str) -> None:
    part = invented_part()
    layout = {key: value for key, value in part.context.layout.items() if key != name}
    run = write_run(tmp_path, part, scores=[])
    save_part(
        run.folder / "outputs.safetensors",
        replace(part, context=replace(part.context, layout=layout)),  # type: ignore[arg-type]
    )
    with pytest.raises(DataError, match=rf"outputs\.safetensors: .*its layout has no {name}, .*; test the run again"):
        _ = run.part


def test_outputs_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    short = write_run(tmp_path, with_outputs(invented_part(), label=lambda values: values[:-1]), scores=[])
    with pytest.raises(DataError, match=r"outputs of person 01 differ in length: .*'label': 23"):
        _ = short.part
    without = write_run(tmp_path, with_outputs(invented_part(), row=None), scores=[], name="without")
    with pytest.raises(DataError, match=r"outputs\.safetensors: it has no 'row'"):
        _ = without.part


def test_numbers_that_are_none_are_dashes_and_their_points_open(tmp_path: Path) -> None:
    nan = math.nan
    found = [
        Score("two_way", nan, nan, nan, p_value=nan, chance=0.5, subject="01"),
        Score("two_way", 0.7, 0.6, 0.8, p_value=None, chance=0.5, subject="02"),
        Score("top_1", nan, p_value=0.01, subject="01"),
    ]
    section = scores.section([write_run(tmp_path, scores=found, part=invented_part(["01", "02"]), people="all")])
    assert section is not None
    [table] = [part for part in section.parts if isinstance(part, Table)]
    row = table_rows(table)[0]
    assert (row["value"], row["95 % interval"], row["p"]) == ("-", "-", "-")
    assert "protocol" not in table.caption.partition("Intervals")[0]
    [chart] = [part for part in section.parts if isinstance(part, Chart)]
    [points, *_] = [trace for trace in chart.figure.data if trace.mode == "markers" and trace.x[0] is not None]
    assert list(points.marker.symbol) == ["circle-open", "circle-open", "diamond"]
    for axis in (chart.figure.layout.yaxis, chart.figure.layout.yaxis2):
        assert all(math.isfinite(end) for end in axis.range)
    assert chart.figure.layout.yaxis.range[0] < 0.5 < 0.8 < chart.figure.layout.yaxis.range[1]


@pytest.mark.parametrize("value", [math.nan, 0.0])
def test_embeddings_that_point_nowhere_are_told_of(tmp_path: Path, value: float) -> None:
    bad = with_outputs(invented_part(), brain_embedding=lambda values: values * value)
    runs = [write_run(tmp_path, bad, stage="bad", scores=[]), write_run(tmp_path, invented_part(), stage="good")]
    why = "rows are not finite" if math.isnan(value) else "rows"
    assert why in notes(comparison(gather_folds(runs)))
    for module in (stimuli, similarity):
        section = module.section(runs)
        assert section is not None
        assert "bad" in notes(section.parts)
        assert why in notes(section.parts)


def test_queries_about_what_is_not_in_the_gallery_are_told_of(tmp_path: Path) -> None:
    part = with_outputs(invented_part(), stimulus=lambda values: values + 1)
    section = similarity.section([write_run(tmp_path, part, scores=[])])
    assert section is not None
    assert "1 of 24 queries are about what is not in the gallery" in notes(section.parts)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("predicted_signal", lambda values: values * math.nan, "24 of 24 rows are not finite"),
        ("predicted_signal", lambda values: values[:, 1:], r"predicted is \(24, 29\)"),
        ("signal", lambda values: values * 0, "no voxel varies"),
        ("signal", None, "nothing to show voxel by voxel"),
    ],
)
def test_signals_that_cannot_be_correlated_are_told_of(
    tmp_path: Path, name: str, change: Change | None, message: str
) -> None:
    part = with_outputs(invented_part(signals=True), **{name: change})
    section = brain.section([write_run(tmp_path, part, scores=[])])
    assert section is not None
    assert not [part for part in section.parts if isinstance(part, Chart)]
    assert re.search(message, notes(section.parts))


def test_regions_without_a_voxel_that_varies_are_left_out(tmp_path: Path) -> None:
    def silent(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values[:, :20], torch.zeros(len(values), 10)], dim=1)

    part = with_outputs(invented_part(signals=True, rois={"01": {"V1": 20, "V2": 10, "V3": 0}}), signal=silent)
    section = brain.section([write_run(tmp_path, part, scores=[])])
    assert section is not None
    [regions, *_] = [part for part in section.parts if isinstance(part, Chart)]
    assert list(regions.figure.layout.xaxis.ticktext) == ["V1"]


def test_a_run_named_twice_is_one_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", invented_part()).folder
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    names = [str(folder), f"{folder}/../r", str(tmp_path / "link"), f"{tmp_path}/ru*/*"]
    assert [run.folder for run in find_runs(names)] == [folder]


def test_names_with_brackets_are_found_as_they_are(tmp_path: Path) -> None:
    folder = write_run(tmp_path, invented_part(), name="alpha[1] é").folder
    assert [run.name for run in find_runs([str(folder)])] == ["alpha[1] é"]


def test_a_run_that_lies_too_high_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = write_run(tmp_path, invented_part()).folder
    monkeypatch.setattr("experiments.report.runs.LEVELS", ("<a>",) * len(folder.parts))
    with pytest.raises(DataError, match=rf"the run {folder} lies too high: .* copy it with the folders above it"):
        find_runs([str(folder)])


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path, invented_part()).folder
    with pytest.raises(DataError, match=r"^cannot write \S+: File name too long; name another file with --to$"):
        write_report([str(folder)], to=f"{tmp_path}/{'a' * 300}.html")
