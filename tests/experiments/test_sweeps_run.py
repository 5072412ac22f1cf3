"""Sweeps that are run: here and by agents, their table, what trials share, and what they never see."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb

from experiments.cli import main
from experiments.trial_table import read_trials
from tests.experiments import launching
from tests.experiments.launching import CONFIGS
from tests.experiments.test_selection import SPOILT, SPOILT_SOURCE

# nothing of it may be read when the file says that it is for testing
SOURCE = f"""{SPOILT_SOURCE}

class Made(Spoilt):
    name = "made"

    def dataset(self, split):
        assert split != "test", "a trial has looked at the test set"
        return super().dataset(split)
"""
COMMON = (
    "--data=made.py:Made",
    *SPOILT[1:],
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
)
SMALL = tuple(
    f"--fmri_mae.model.init_args.{size}"
    for size in ("width=16", "depth=1", "decoder_width=16", "decoder_num_heads=2", "tokens=patch", "patch_size=5")
)
Sweep = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all sweeps are run; data are converted once."""
    folder = tmp_path_factory.mktemp("sweeps")
    (folder / "raw").mkdir()
    (folder / "made.py").write_text(SOURCE)
    return folder


@pytest.fixture
def sweep(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Sweep:
    """Write a sweep file and run it in a folder without runs; returns what it printed, on both streams."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    shutil.rmtree("runs", ignore_errors=True)

    def call(stage: str, parameters: dict[str, Any], *words: str, status: int = 0, **more: Any) -> tuple[str, str]:
        write(stage, parameters, **more)
        local = () if "--local=false" in words else ("--local=true", "--inline=true")
        return launching.call(["sweep", "--file=s.yaml", *local, *words], capfd, status=status)

    return call


def write(
    stage: str, parameters: dict[str, Any], *, method: str = "grid", metric: str = "validation/test/two_way"
) -> None:
    command = ["${program}", "grid", "--trial=true", "--name=s", f"--stage={CONFIGS}/stage/{stage}.yaml", *COMMON]
    content = {
        "program": "neuroalign",
        "method": method,
        "metric": {"name": metric, "goal": "maximize" if metric.endswith("two_way") else "minimize"},
        "command": [*command, *(SMALL if stage == "ridge_lea" else ()), "${args}"],
        "parameters": parameters,
    }
    Path("s.yaml").write_text(json.dumps(content))


def validated(run: str) -> dict[str, float]:
    """What the validation of a run has logged."""
    header, values = Path(run, "csv", "validate", "metrics.csv").read_text().splitlines()
    return {name: float(value) for name, value in zip(header.split(","), values.split(","), strict=True)}


def table() -> list[dict[str, str]]:
    return list(csv.DictReader(Path("runs/sweeps/s.csv").read_text().splitlines()))


def fits(printed: str) -> list[str]:
    """People and stage of each run that was trained, in order."""
    return ["/".join(Path(line).parts[-3:-1]) for line in re.findall(r"^--- (\S+)$", printed, re.MULTILINE)]


def finals() -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in Path("runs").rglob("final.ckpt")}


def nothing_was_tested() -> bool:
    names = ("scores.json", "outputs.safetensors", "config_test.yaml", "grid.json")
    return not any(list(Path("runs").rglob(name)) for name in names)


ALPHAS = {"model.init_args.alpha": {"values": [1, 1000000]}}


def test_a_grid_is_trained_validated_and_tabled(sweep: Sweep) -> None:
    printed, _ = sweep("ridge_direct", ALPHAS)
    assert fits(printed) == ["sub-a/ridge_direct", "sub-b/ridge_direct"] * 2
    rows = {row["model.init_args.alpha"]: row for row in table()}
    assert rows.keys() == {"1", "1000000"}
    for row in rows.values():
        assert row["status"] == "finished"
        runs = row["runs"].split()
        assert [Path(run).parts[2] for run in runs] == ["sub-a", "sub-b"]
        for name in ("test/two_way", "pearson_mean"):
            mean = sum(validated(run)[f"validation/{name}"] for run in runs) / 2
            assert float(row[f"validation/{name}"]) == pytest.approx(mean)
        assert not [name for name in row if "/sub-" in name or name in ("epoch", "step")]
    # the best stands first, and only what differs has a column
    shown = re.findall(r"^│ (\w{10}) │ (\d+)\s*│\s+([\d.]+)", printed, re.MULTILINE)
    assert len(shown) == 2, printed
    assert float(shown[0][2]) >= float(shown[1][2])
    assert [entry[0] for entry in shown] == [rows[alpha]["trial"] for _, alpha, _ in shown]
    assert "runs/sweeps/s.csv" in printed
    assert nothing_was_tested()


def test_what_is_finished_is_not_run_again(sweep: Sweep) -> None:
    sweep("ridge_direct", ALPHAS, "--count=1", "--subjects=a")
    assert len(table()) == 1
    before = finals()
    printed, _ = sweep("ridge_direct", ALPHAS, "--subjects=a")
    assert printed.count("finished already") == 1
    assert len(fits(printed)) == 1
    assert len(table()) == 2
    assert before.items() <= finals().items()
    # a run that is gone is trained again, the other trial's is not
    shutil.rmtree(min(before).parent)
    printed, _ = sweep("ridge_direct", ALPHAS, "--subjects=a")
    assert len(fits(printed)) == 1
    # so is one that is trained with something else now
    rows = table()
    Path("made.py").write_text(SOURCE + "\n# changed\n")
    printed, _ = sweep("ridge_direct", ALPHAS, "--count=1", "--subjects=a")
    Path("made.py").write_text(SOURCE)
    assert len(fits(printed)) == 1
    assert table() != rows
    # and a row is about the runs of now
    printed, _ = sweep("ridge_direct", ALPHAS, "--count=1", "--subjects=a")
    assert not fits(printed)
    assert table() == rows


def test_random_trials_are_the_same_again(sweep: Sweep) -> None:
    alpha = {"model.init_args.alpha": {"distribution": "log_uniform_values", "min": 1.0, "max": 1e6}}
    words = ("--count=2", "--seed=3", "--subjects=a")
    sweep("ridge_direct", alpha, *words, method="random")
    first = {row["trial"]: float(row["model.init_args.alpha"]) for row in table()}
    assert len(set(first.values())) == 2
    printed, _ = sweep("ridge_direct", alpha, *words, method="random")
    assert fits(printed) == []
    sweep("ridge_direct", alpha, "--count=1", "--seed=4", "--subjects=a", method="random")
    assert len(table()) == 3


def test_a_stage_that_trials_are_made_from_is_trained_once(sweep: Sweep) -> None:
    heads = {"fmri_mae.model.init_args.mask_ratio": {"values": [0.25, 0.5]}, **ALPHAS}
    printed, _ = sweep("ridge_lea", heads, "--subjects=a")
    assert sorted(fits(printed)) == ["sub-a/fmri_mae"] * 2 + ["sub-a/ridge_lea"] * 4
    assert len(table()) == 4
    for trial in read_trials("runs", "s"):
        state = torch.load(Path(trial.runs[0], "final.ckpt"), weights_only=True)
        earlier = state["hyper_parameters"]["fmri_mae"]
        assert earlier["mask_ratio"] == float(trial.parameters["fmri_mae.model.init_args.mask_ratio"])
        assert float(state["hyper_parameters"]["alpha"]) == float(trial.parameters["model.init_args.alpha"])
    assert nothing_was_tested()


def test_a_trial_that_fails_is_a_row_and_ends_nothing(sweep: Sweep) -> None:
    rates = {"model.init_args.lr": {"values": [1e30, 1e-3]}}
    small = ("--model.init_args.encoder=LinearEncoder", "--subjects=a", "--trainer.max_epochs=3")
    printed, error = sweep("contrastive", rates, *small)
    failed, finished = sorted(table(), key=lambda row: row["status"])
    assert failed["status"] == "failed"
    assert "NaN or infinite" in failed["error"]
    assert failed["model.init_args.lr"] == "1e+30"
    assert "validation/loss" in finished
    assert finished["status"] == "finished"
    assert f"failed: trial {failed['trial']} model.init_args.lr=1e+30: the" in printed
    assert "NaN or infinite" in error
    # what has no value stands last
    assert printed.index(f"│ {finished['trial']} ") < printed.index(f"│ {failed['trial']} ")
    # nothing but failures is a failure
    only = {"model.init_args.lr": {"values": [1e30]}, "model.init_args.weihgt_decay": {"values": [1]}}
    _, error = sweep("contrastive", only, *small, status=1)
    assert "weihgt_decay" in error


def test_a_metric_that_is_not_logged_is_named(sweep: Sweep) -> None:
    _, error = sweep("ridge_direct", ALPHAS, "--subjects=a", status=2, metric="validation/los")
    assert "validation/los was not logged; validation logs" in error
    assert "validation/test/two_way" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data.init_args.split.validation=0",), "nothing of made is set aside for validation"),
        (("--overwrite=true",), "a trial neither overwrites nor"),
        (("--stage=ridge.yaml",), "no stage file ridge.yaml; . has s"),
        ((f"--stage=[{CONFIGS}/stage/ridge_direct.yaml,{CONFIGS}/stage/ridge_pixels.yaml]",), "about one stage and"),
    ],
)
def test_what_is_no_trial_is_refused(sweep: Sweep, words: tuple[str, ...], said: str) -> None:
    _, error = sweep("ridge_direct", ALPHAS, *words, "--count=1", status=1)
    assert said in error
    assert not finals()


def test_a_dry_run_prints_the_command_lines(sweep: Sweep) -> None:
    printed, _ = sweep("ridge_direct", ALPHAS, "--dry_run=true", "--subjects=a")
    first, second = printed.splitlines()
    assert first.startswith("neuroalign grid --trial=true --name=s")
    assert first.endswith("--subjects=a --model.init_args.alpha=1")
    assert second.endswith("--model.init_args.alpha=1000000")
    assert not Path("runs").exists()


# ---- several processes ---------------------------------------------------------------------------------


@pytest.mark.full
def test_of_two_agents_one_trains_what_both_need(sweep: Sweep, folder: Path) -> None:
    write("ridge_lea", ALPHAS)
    common = [sys.executable, "-m", "experiments", "grid", "--trial=true", "--name=s", "--subjects=a"]
    common += [f"--stage={CONFIGS}/stage/ridge_lea.yaml", *COMMON, *SMALL]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CONFIGS.parent)}
    agents = [
        subprocess.Popen(
            [*common, f"--model.init_args.alpha={alpha}"],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for alpha in (1, 1000)
    ]
    printed = [agent.communicate(timeout=240)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(printed)
    assert sorted(stage for text in printed for stage in fits(text)) == [
        "sub-a/fmri_mae",
        *["sub-a/ridge_lea"] * 2,
    ]
    assert {row["model.init_args.alpha"]: row["status"] for row in table()} == {"1": "finished", "1000": "finished"}


@pytest.mark.full
def test_a_local_sweep_starts_a_process_for_each_trial(sweep: Sweep, folder: Path) -> None:
    write("ridge_direct", {"model.init_args.alpha": {"values": [1, -1]}})
    words = ["-m", "experiments", "sweep", "--file=s.yaml", "--local=true", "--subjects=a"]
    printed = launching.launch(folder, words, variables={"PYTHONPATH": str(CONFIGS.parent)}, timeout=240)
    assert sorted(row["status"] for row in table()) == ["failed", "finished"]
    assert "failed: trial" in printed


@pytest.mark.parametrize(
    "does",
    ["trap 'sleep 0.3; touch saved; exit 143' TERM\nsleep 0.3\nkill -TERM $PPID", "touch saved\nexit 143"],
    ids=["the sweep", "the trial"],
)
def test_a_sweep_that_is_told_to_end_waits_for_its_trial_and_starts_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], does: str
) -> None:
    monkeypatch.chdir(folder)
    shutil.rmtree("runs", ignore_errors=True)
    write("ridge_direct", ALPHAS)
    Path("s.yaml").write_text(Path("s.yaml").read_text().replace('"program": "neuroalign"', '"program": "./trial.sh"'))
    Path("trial.sh").write_text(f"#!/bin/sh\n{does}\nwhile true; do sleep 0.05; done\n")
    Path("trial.sh").chmod(0o755)
    printed, _ = launching.call(["sweep", "--file=s.yaml", "--local=true"], capfd, status=143)
    assert printed.count("=== trial") == 1
    # it has not failed: run again it goes on where it was
    assert not Path("runs/sweeps").exists()
    Path("saved").unlink()


def test_a_trial_that_is_told_to_end_is_no_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    shutil.rmtree("runs", ignore_errors=True)

    def told(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("experiments.trial.command", told)
    launching.call(
        ["grid", "--trial=true", "--name=s", f"--stage={CONFIGS}/stage/ridge_direct.yaml", *COMMON], capfd, status=143
    )
    assert not Path("runs/sweeps").exists()


# ---- Weights & Biases ----------------------------------------------------------------------------------


def test_without_a_login_the_local_way_is_named(sweep: Sweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(wandb, "login", lambda **options: False)
    _, error = sweep("ridge_direct", ALPHAS, "--local=false", status=2)
    assert "there is no login" in error
    assert "make sweep-local" in error
    monkeypatch.setenv("WANDB_MODE", "offline")
    _, error = sweep("ridge_direct", ALPHAS, "--local=false", status=2)
    assert "WANDB_MODE is offline" in error


def test_an_agent_runs_the_command_of_the_file(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    """All but the server is real: what it would answer is put into the hands of W&B's own agent."""
    sent: dict[str, Any] = {}
    monkeypatch.setattr(wandb, "login", lambda **options: True)
    monkeypatch.setattr(wandb, "sweep", lambda content, **options: sent.update(content, **options) or "abc")

    def agent(sweep_id: str, **options: Any) -> None:
        from wandb import wandb_agent

        assert (sweep_id, options["count"], options["project"]) == ("abc", 1, "mine")
        for name, value in (("SWEEP_ID", "abc"), ("RUN_ID", "r1"), ("SWEEP_PARAM_PATH", ""), ("MODE", "offline")):
            monkeypatch.setenv(f"WANDB_{name}", value)
        monkeypatch.setenv("WANDB_DIR", str(tmp_path))
        worker = wandb_agent.Agent(None, None)
        worker._sweep_command = sent["command"]
        worker._command_run(
            {"run_id": "r1", "program": sent["program"], "args": {"model.init_args.alpha": {"value": 1}}}
        )
        assert worker._run_processes["r1"].wait(timeout=240) == 0

    monkeypatch.setattr(wandb, "agent", agent)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setenv("PYTHONPATH", str(CONFIGS.parent))
    printed, _ = sweep("ridge_direct", ALPHAS, "--local=false", "--count=1", "--subjects=a")
    assert "wandb agent mine/abc" in printed
    assert sent["metric"] == {"name": "validation/test/two_way", "goal": "maximize"}
    [row] = table()
    assert row["status"] == "finished"
    assert row["trial"] in printed
    [run] = Path(tmp_path, "wandb").glob("offline-run-*-r1")
    assert b"validation/test/two_way" in next(run.glob("*.wandb")).read_bytes()
    # the same trial without a server is the same row
    for name in ("SWEEP_ID", "RUN_ID", "SWEEP_PARAM_PATH", "MODE"):
        monkeypatch.delenv(f"WANDB_{name}")
    printed, _ = sweep("ridge_direct", ALPHAS, "--count=1", "--subjects=a")
    assert "finished already" in printed
    assert table() == [row]


def test_a_trial_is_a_command_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    shutil.rmtree("runs", ignore_errors=True)
    words = ["grid", "--trial=true", "--name=one", f"--stage={CONFIGS}/stage/ridge_direct.yaml", *COMMON]
    main([*words, "--seeds=[0,1]", "--subjects=a", "--", "--model.init_args.alpha=5"])
    [trial] = read_trials("runs", "one")
    assert len(trial.runs) == 2
    assert all(re.fullmatch(r"one_seed-[01]-[0-9a-f]{10}", Path(run).name) for run in trial.runs)
    # arguments in another order are the same trial
    main([*words[:4], *reversed(COMMON), "--model.init_args.alpha=5", "--seeds=[0,1]", "--subjects=a"])
    assert [each.key for each in read_trials("runs", "one")] == [trial.key]
