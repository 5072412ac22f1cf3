"""What was run: commands that can be copied, citations once, and only the entries that differ."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from experiments.report.page import Folded, Note, Table
from experiments.report.provenance import flatten, section
from experiments.report.runs import Run
from tests.experiments.report.tested_runs import invented_part, table_rows, write_folds, write_run

WORDS = ["neuroalign", "fit", "--data=my data.yaml", '--data.init_args.subjects=["01"]']
ABOUT = {
    "command": WORDS,
    "started": "2026-11-21T20:05:05+00:00",
    "seconds": 90.0,
    "versions": {"python": "3.11.7", "torch": "2.11.0"},
    "commit": "7714d003084a",
    "seed": 5,
    "precision": "bf16-mixed",
    "devices": "cuda: NVIDIA H200",
    "processes": 2,
    "data": [{"name": "invented", "licence": "CC0", "citation": "Nobody (2026)", "units": "z", "people": 1}],
}


def config(stage: str = "Ridge", **arguments: Any) -> dict[str, Any]:
    return {
        "seed_everything": 0,
        "trainer": {"max_epochs": 1, "default_root_dir": stage, "callbacks": [{"class_path": "callbacks.Encoding"}]},
        "model": {"class_path": f"lightning_modules.{stage}", "init_args": arguments},
        "data": {"class_path": "datamodules.Phantom", "init_args": {"split": {"fold": 0}, "subjects": ["01"]}},
        "run": {"name": stage},
    }


def parts(runs: list[Run], kind: type) -> list[Any]:
    found = section(runs)
    assert found is not None
    return [part for part in found.parts if isinstance(part, kind)]


def table_with(runs: list[Run], heading: str) -> list[dict[str, str]]:
    [table] = [table for table in parts(runs, Table) if heading in table.headings]
    return table_rows(table)


def test_commands_can_be_copied(tmp_path: Path) -> None:
    run = write_run(
        tmp_path, invented_part(), about={"fit": ABOUT, "test": {**ABOUT, "command": ["neuroalign", "test"]}}
    )
    [commands] = [part for part in parts([run], Folded) if part.summary.startswith("Commands")]
    lines = [line for line in commands.text.splitlines() if line.startswith("neuroalign")]
    assert [shlex.split(line) for line in lines] == [WORDS, ["neuroalign", "test"]]
    assert "# invented sub-01 ridge r, fit, 2026-11-21T20:05:05+00:00" in commands.text


def test_facts_of_runs_and_data_are_told(tmp_path: Path) -> None:
    lineage = ({"stage": "FmriMAE", "protocol": "by_stimulus", "transductive": True},)
    part = invented_part(transductive=True, fold=2, folds=5, lineage=lineage)
    runs = [write_run(tmp_path, part, about={"fit": ABOUT, "test": ABOUT}, name=name) for name in ("a", "b")]
    [row, _] = table_with(runs, "training samples")
    assert (row["protocol"], row["fold"], row["transductive"], row["seed"]) == ("by_stimulus", "2 of 5", "yes", "5")
    assert (row["minutes"], row["devices"], row["precision"]) == ("1.5", "2 x cuda: NVIDIA H200", "bf16-mixed")
    assert row["commit"] == "7714d003084a"
    # once, not once a run and command
    assert [(r["data set"], r["licence"], r["citation"]) for r in table_with(runs, "citation")] == [
        ("invented", "CC0", "Nobody (2026)")
    ]
    assert table_with(runs, "earlier stage")[0]["earlier stage"] == "FmriMAE"
    [shape] = table_with(runs, "image space")
    assert (shape["people"], shape["shape of a sample"], shape["classes"]) == ("1", "30", "3")
    assert table_with(runs, "version") == [
        {"package": "python", "version": "3.11.7"},
        {"package": "torch", "version": "2.11.0"},
    ]
    assert not parts(runs, Note)[1:]


def test_versions_that_differ_are_both_told(tmp_path: Path) -> None:
    newer = {**ABOUT, "versions": {"torch": "2.12.0"}}
    runs = [
        write_run(tmp_path, invented_part(), about={"fit": about}, name=name)
        for name, about in (("a", ABOUT), ("b", newer))
    ]
    assert {row["package"]: row["version"] for row in table_with(runs, "version")}["torch"] == "2.11.0, 2.12.0"


def test_older_runs_are_named_in_place_of_what_they_lack(tmp_path: Path) -> None:
    run = write_run(tmp_path, invented_part(), config=config())
    [note] = parts([run], Note)
    assert note.text.startswith("No commands, versions and citations were kept")
    assert note.text.endswith("invented sub-01 ridge r.")
    [row] = table_with([run], "protocol")
    assert row["seed"] == "0"
    assert "commit" not in row
    configurations = [part for part in parts([run], Folded) if part.summary.startswith("Configuration")]
    assert [part.text for part in configurations] == [run.configs["fit"], run.configs["test"]]


def test_runs_without_outputs_have_dashes(tmp_path: Path) -> None:
    [row] = table_with([write_run(tmp_path, config=config())], "protocol")
    assert (row["protocol"], row["training samples"]) == ("-", "-")


def test_only_what_differs_is_compared(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path, invented_part(), config=config(alpha=alpha, compile=False), name=f"alpha-{alpha}")
        for alpha in (1, 500)
    ]
    rows = table_with(runs, "entry")
    assert rows == [
        {
            "entry": "model.init_args.alpha",
            "invented ridge alpha-1": "1",
            "invented ridge alpha-500": "500",
        }
    ]


def test_arguments_of_one_class_alone_are_not_differences(tmp_path: Path) -> None:
    settings = [("Ridge", {"alpha": 1, "shared": 1}), ("Contrastive", {"lr": 0.1, "shared": 2})]
    runs = [
        write_run(tmp_path, invented_part(), config=config(stage, **arguments), stage=stage)
        for stage, arguments in settings
    ]
    assert [row["entry"] for row in table_with(runs, "entry")] == ["model.class_path", "model.init_args.shared"]
    # but they are where runs of that class differ in them
    runs.append(
        write_run(tmp_path, invented_part(), config=config("Ridge", alpha=7, shared=1), stage="Ridge", name="s")
    )
    alphas = {row["entry"]: row for row in table_with(runs, "entry")}["model.init_args.alpha"]
    assert list(alphas.values())[1:] == ["1", "-", "7"]


def test_people_and_folds_of_one_configuration_are_one_column(tmp_path: Path) -> None:
    runs = write_folds(tmp_path, [invented_part(stimuli=range(12)), invented_part(stimuli=range(12, 24))], grid=False)
    [note, *_] = parts(runs, Note)
    assert note.text.startswith("The configurations of these runs are the same")
    configurations = [part for part in parts(runs, Folded) if part.summary.startswith("Configuration")]
    assert [part.summary for part in configurations] == [
        "Configuration: invented ridge r, fit (sub-01, first of 2 runs)",
        "Configuration: invented ridge r, test (sub-01, first of 2 runs)",
    ]


@pytest.mark.parametrize("count", [5, 6])
def test_values_of_many_configurations_are_listed(tmp_path: Path, count: int) -> None:
    runs = [
        write_run(tmp_path, invented_part(), config=config(alpha=alpha // 2), name=f"run-{alpha}", scores=[])
        for alpha in range(count)
    ]
    rows = table_with(runs, "entry")
    if count == 5:
        assert len(rows) == 1
        assert len(rows[0]) == 6
    else:
        assert [(row["value"], row["runs"]) for row in rows] == [("0", "2"), ("1", "2"), ("2", "2")]
        assert rows[1]["which"] == "invented ridge run-2; invented ridge run-3"


def test_entries_have_dotted_keys() -> None:
    nested = {"a": {"b": [1, 2], "c": {}}, "d": [{"e": None}, {"e": "x"}]}
    assert flatten(nested) == {"a.b": "[1, 2]", "a.c": "{}", "d.0.e": "null", "d.1.e": '"x"'}
