"""Commands that ``make`` runs, as ``make -n`` prints them."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest

from tests.shipped import ROOT, files, make


def test_make_passes_on_data_trainer_and_arguments() -> None:
    printed = make("train-ridge-direct", "DATA=vangerven2010", "TRAINER=ddp", "ARGS=--model.init_args.alpha=500")
    words = printed.split()
    assert words == [
        *(".venv/bin/neuroalign", "fit", "-c", "configs/trainer/ddp.yaml", "-c", "configs/stage/ridge_direct.yaml"),
        *("--data", "configs/data/vangerven2010.yaml", "--model.init_args.alpha=500"),
    ]


def test_make_takes_a_class_in_a_file_for_data() -> None:
    assert "--data mine.py:Mine" in make("train-ridge-direct", "DATA=mine.py:Mine")
    assert "--data configs/data/phantom.yaml" in make("train-ridge-direct")


@pytest.mark.parametrize(("word", "flag"), [("RESUME=1", "--run.resume=true"), ("OVERWRITE=1", "--run.overwrite=true")])
def test_make_resumes_and_overwrites_only_when_asked(word: str, flag: str) -> None:
    assert flag in make("train-ridge-direct", word)
    assert flag not in make("train-ridge-direct")


@pytest.mark.parametrize("target", ["sweep", "sweep-local"])
def test_make_asks_for_the_stage_of_a_sweep(target: str) -> None:
    result = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert f"say which stage: make {target} STAGE=fmri-mae" in result.stderr


def test_make_scores_and_converts() -> None:
    assert make("score-ridge-direct").startswith(".venv/bin/neuroalign test -c configs/trainer/cpu.yaml")
    assert make("convert", "DATA=miyawaki2008").endswith("convert --data configs/data/miyawaki2008.yaml")


def test_make_reports_on_one_run_and_on_several() -> None:
    words = [".venv/bin/neuroalign", "report"]
    assert shlex.split(make("report", "RUN=runs/a/all/b/c")) == [*words, "--runs=[runs/a/all/b/c]"]
    several = make("report", "RUNS=runs/a/*/b/c runs/d", "TO=page.html")
    assert shlex.split(several) == [*words, "--runs=[runs/a/*/b/c,runs/d]", "--to=page.html"]


def test_make_report_asks_which_runs() -> None:
    done = subprocess.run(["make", "report"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "make report RUN=runs/" in done.stderr


@pytest.mark.parametrize("target", ["demo", "lea", "neural-alignment"])
def test_tables_end_with_a_report(target: str) -> None:
    assert "--report=runs/reports/phantom/" in make(target)
    assert "--report=runs/reports/vangerven2010/" in make(target, "DATA=vangerven2010")


def test_make_sweeps_a_stage_by_its_file() -> None:
    assert make("sweep", "STAGE=fmri-mae").split() == [
        *(".venv/bin/neuroalign", "sweep", "--file=configs/sweep/fmri_mae.yaml"),
    ]
    given = ("DATA=vangerven2010", "COUNT=3", "TRAINER=gpu", "ARGS=--subjects=01")
    assert make("sweep-local", "STAGE=ridge-lea", *given).split() == [
        *(".venv/bin/neuroalign", "sweep", "--local=true", "--file=configs/sweep/ridge_lea.yaml"),
        *("--data=configs/data/vangerven2010.yaml", "--count=3", "--trainer=configs/trainer/gpu.yaml", "--subjects=01"),
    ]


def test_make_sweeps_with_the_image_space_of_the_data_sets_that_are_named() -> None:
    asked = (
        ("sweep-local", "STAGE=fmri-mae"),
        ("sweep-local", "STAGE=fmri-mae", "DATA=god"),
        ("sweep", "STAGE=lea-heads"),
        ("sweep", "STAGE=lea-heads", "DATA=phantom_eeg"),
    )
    # where it has not been made
    needs = ["configs/stage/clip.yaml" in make(*words, "CLIP=nowhere/clip") for words in asked]
    assert needs == [True, False, False, True]


def test_make_alone_lists_every_target_with_a_line() -> None:
    printed = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = dict(re.findall(r"^(\S+)\s{2,}(\S.*)$", printed.stdout, re.MULTILINE))
    targets = set(re.findall(r"^\.PHONY: (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets <= set(listed)
    assert all(listed.values())
    for kind, label in (("stage", "stages"), ("data", "data")):
        found = re.search(rf"^{label}:\s*(.*)$", printed.stdout, re.MULTILINE)
        assert found is not None
        assert set(found[1].split()) == {path.stem for path in files(kind)}
