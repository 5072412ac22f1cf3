"""SLURM: the real job script with real processes, on a cluster whose other commands are made up."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from wandb.cli import cli as wandb_cli

from experiments.cli import main
from experiments.devices import slurm_processes
from tests.experiments.fake_slurm import Cluster, make_cluster
from tests.experiments.launching import CONFIGS, call, write_callback
from tests.experiments.test_distributed import (
    PHANTOM,
    PRIMAL,
    STAGE,
    assert_same_scores,
    assert_same_weights,
    read_weights,
)
from tests.experiments.test_resume import assert_equal, state
from tests.shipped import ROOT, make

SCRIPTS = sorted((ROOT / "experiments" / "slurm").glob("*.sh"))
SLURM = f"--config={CONFIGS}/trainer/slurm.yaml"
TERMINATED, CANCELLED = 128 + 15, -15
# what happens to a job at a batch of its first process
EVENTS_SOURCE = """
import os
import signal
import time
from lightning import Callback


class Events(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, number):
        event, _, at = os.environ.get("EVENT", "").partition(":")
        if not event or trainer.current_epoch * 10 + number != int(at):
            return
        if event == "fails" and trainer.global_rank == 1:
            raise RuntimeError("the second process has had enough")
        if trainer.is_global_zero and event == "limit":
            os.kill(int(os.environ["JOB_SCRIPT"]), signal.SIGUSR1)
            time.sleep(1)
        if trainer.is_global_zero and event == "cancelled":
            # processes of a job may end before its script hears of it
            os.killpg(0, signal.SIGTERM)
            time.sleep(1)
"""
FIT = (
    "fit",
    SLURM,
    f"--config={CONFIGS}/stage/contrastive.yaml",
    *PHANTOM[:3],
    "--data.init_args.loader.batch_size=7",
    "--trainer.max_epochs=3",
    "--config=events.yaml",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    cluster = make_cluster(tmp_path_factory.mktemp("cluster"))
    write_callback(cluster.folder, EVENTS_SOURCE, "Events")
    return cluster


def contrastive(cluster: Cluster, name: str) -> Path:
    return cluster.folder / "runs" / "phantom" / "all" / "contrastive" / name


# ---- the scripts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_whole_and_may_be_run(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert script.stat().st_mode & 0o111
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    # sbatch stops looking for options at the first command
    assert all(number < lines.index("set -euo pipefail") for number in options)
    assert not [line for line in lines if "make " in line and not line.startswith("#")]


def test_there_are_scripts() -> None:
    assert [script.stem for script in SCRIPTS] == ["submit", "sweep", "train"]


# ---- processes -----------------------------------------------------------------------------------


def test_two_processes_of_slurm_score_like_one(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cluster.folder)
    words = [STAGE, *PHANTOM, *PRIMAL, "--run.table=false"]
    for command in ("fit", "test"):
        main([command, f"--config={CONFIGS}/trainer/cpu.yaml", *words, "--run.name=one"])
    # as two nodes with one process each, and one node with two
    fitted = cluster.job(["fit", SLURM, *words, "--run.name=two"], nodes=2, per_node=1)
    tested = cluster.job(["test", SLURM, *words, "--run.name=two"], nodes=1, per_node=2)
    runs = cluster.folder / "runs" / "phantom" / "all" / "ridge_direct"
    assert_same_weights(read_weights(runs / "two" / "final.ckpt"), read_weights(runs / "one" / "final.ckpt"), 1e-5)
    assert_same_scores(runs / "two" / "scores.json", runs / "one" / "scores.json")
    for printed in (fitted, tested):
        assert "Starting with 2 processes" in printed
    # said by one process
    assert fitted.count("precision: float32 (a closed-form stage)") == 1
    assert tested.count("precision: float32 (scores must not depend on the GPU)") == 1
    assert not cluster.called("scontrol")


@pytest.mark.full
@pytest.mark.parametrize(("nodes", "per_node"), [(1, 2), (2, 1)])
def test_a_job_goes_on_after_each_time_limit_as_if_there_were_none(cluster: Cluster, nodes: int, per_node: int) -> None:
    shape = {"nodes": nodes, "per_node": per_node}
    names = [f"{name}-{nodes}-{per_node}" for name in ("unbroken", "broken")]
    cluster.job([*FIT, f"--run.name={names[0]}"], **shape)
    before = len(cluster.called("scontrol"))
    for restarts, at in enumerate(("1", "11", "")):
        assert not (contrastive(cluster, names[1]) / "final.ckpt").exists()
        event = {"EVENT": f"limit:{at}", "RUN_FOLDER": str(contrastive(cluster, names[1]))} if at else {}
        printed = cluster.job([*FIT, f"--run.name={names[1]}"], **shape, restarts=restarts, variables=event)
        assert f"job 40001, start {restarts + 1}, on localhost:\nneuroalign fit" in printed
        assert ("requeued, and goes on" in printed) == bool(at)
        requeued = cluster.called("scontrol")[before:]
        assert requeued == [["requeue", "40001"]] * min(restarts + 1, 2)
    assert_equal(*(state(contrastive(cluster, name) / "final.ckpt") for name in names))


def write_program(cluster: Cluster, does: str) -> None:
    """In place of neuroalign: does something, and then waits to be told to end."""
    (cluster.folder / ".venv" / "bin" / "neuroalign").write_text(
        "#!/bin/sh\n"
        "trap 'if [ -n \"$WRITES\" ]; then touch last.ckpt; fi; exit 143' TERM\n"
        f"{does}\n"
        "while true; do sleep 0.1; done\n"
    )


@pytest.mark.parametrize(
    ("command", "restarts", "variables", "refusal"),
    [
        ("fit", 1, {}, ""),
        ("fit", 2, {}, "it was restarted 2 times (MAX_RESTARTS=2)"),
        ("fit", 0, {"WRITES": ""}, "no checkpoint was written in all this time"),
        ("test", 0, {}, "a test cannot go on from where it was"),
        # whoever submits by hand does not say where the run is
        ("fit", 0, {"WRITES": "", "RUN_FOLDER": ""}, ""),
    ],
    ids=["progress", "restarts", "no progress", "test", "no folder"],
)
def test_only_what_gets_somewhere_is_requeued(
    command: str, restarts: int, variables: dict[str, str], refusal: str, tmp_path: Path
) -> None:
    cluster = make_cluster(tmp_path)
    (tmp_path / "last.ckpt").touch()
    os.utime(tmp_path / "last.ckpt", (0, 0))
    write_program(cluster, "if [ $SLURM_PROCID = 0 ]; then kill -USR1 $JOB_SCRIPT; fi")
    given = {"MAX_RESTARTS": "2", "WRITES": "yes", "RUN_FOLDER": str(tmp_path), **variables}
    status = TERMINATED if refusal else 0
    printed = cluster.job([command], restarts=restarts, variables=given, status=status)
    assert f"not requeued: {refusal}" in printed if refusal else "requeued, and goes on" in printed
    assert cluster.called("scontrol") == [["requeue", "40001"]] * (not refusal)
    [started] = cluster.called("srun")
    assert started[started.index(command) :] == [command, *["--run.resume=auto"] * (command == "fit")]


@pytest.mark.parametrize(
    ("does", "status"),
    [
        # SLURM ends the other one by SIGTERM, as at a time limit
        ("if [ $SLURM_PROCID = 1 ]; then exit 1; fi", TERMINATED),
        # scancel tells all of them, and the script
        ("if [ $SLURM_PROCID = 1 ]; then kill -TERM 0; fi", CANCELLED),
        ("exit 0", 0),
        ("exit 7", 7),
        # before Python listens; the status is that of a wait which a signal to the script has ended
        ("kill -USR1 $$", 128 + 10),
    ],
    ids=["a failure", "cancelled", "finished", "both fail", "a signal"],
)
def test_a_job_that_is_not_at_its_limit_is_not_requeued(does: str, status: int, tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    write_program(cluster, does)
    printed = cluster.job(["fit"], status=status)
    assert "requeued" not in printed
    assert not cluster.called("scontrol")


@pytest.mark.full
def test_a_process_that_fails_ends_the_job_for_good(cluster: Cluster) -> None:
    # SLURM ends the others by SIGTERM, as at a time limit
    before = len(cluster.called("scontrol"))
    variables = {"EVENT": "fails:1"}
    printed = cluster.job([*FIT, "--run.name=fails"], variables=variables, status=TERMINATED)
    assert "RuntimeError: the second process has had enough" in printed
    assert len(cluster.called("scontrol")) == before
    assert not (contrastive(cluster, "fails") / "final.ckpt").exists()


@pytest.mark.full
def test_a_cancelled_job_is_not_requeued(cluster: Cluster) -> None:
    before = len(cluster.called("scontrol"))
    cluster.job([*FIT, "--run.name=cancelled"], variables={"EVENT": "cancelled:1"}, status=CANCELLED)
    assert len(cluster.called("scontrol")) == before
    assert not (contrastive(cluster, "cancelled") / "final.ckpt").exists()


# ---- the trainer file ----------------------------------------------------------------------------

TASK = {"STEP_ID": "0", "JOB_ID": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "NODELIST": "localhost"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "for processes that srun starts within a SLURM job"),
        ({"NTASKS": "1", "NNODES": "1", "JOB_ID": "1", "PROCID": "0"}, "for processes that srun starts"),
        (TASK | {"NTASKS": "4", "NNODES": "2"}, "SLURM started 4 processes on 2 nodes, but --ntasks-per-node is 1"),
    ],
    ids=["no job", "no srun", "ntasks"],
)
def test_other_processes_than_expected_are_refused_in_one_line(
    given: dict[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    for name, value in given.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    _, printed = call(["fit", SLURM, STAGE, *PHANTOM], capfd, status=2)
    [line] = [line for line in printed.splitlines() if line.startswith("neuroalign: ")]
    assert message in line
    assert "Traceback" not in printed


def test_lightning_does_not_requeue_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**TASK, "NTASKS": "6", "NNODES": "3", "NTASKS_PER_NODE": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    arguments = slurm_processes()
    assert (arguments["num_nodes"], arguments["devices"]) == (3, 2)
    assert [plugin.auto_requeue for plugin in arguments["plugins"]] == [False]


def test_a_process_that_does_not_see_the_gpus_of_its_node_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {**TASK, "NTASKS": "2", "NNODES": "1", "NTASKS_PER_NODE": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    _, printed = call(["fit", SLURM, STAGE, *PHANTOM, "--trainer.accelerator=cpu"], capfd, status=2)
    assert "ask for them with --gpus-per-node=2 and not with --gpus-per-task" in printed


# ---- make ----------------------------------------------------------------------------------------


def submitted(cluster: Cluster, *words: str, status: int = 0) -> str:
    """What ``make`` prints; run folders are those of the cluster's folder."""
    runs = f"DATA_RUNS={cluster.folder / 'runs' / 'digits'}"
    ready = ["-o", ".venv/.done"]
    result = subprocess.run(
        ["make", "--no-print-directory", *ready, *words, "DATA=vangerven2010", "CLUSTER=slurm", runs],
        cwd=ROOT,
        env={"PATH": cluster.path, "HOME": str(cluster.folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout + result.stderr


def options(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)


def test_make_submits_stages_after_each_other(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    runs = tmp_path / "runs" / "digits" / "all"
    submitted(cluster, "train-ridge-lea", "SBATCH=--nodes=4 --time=1:00:00", "ARGS=--model.init_args.alpha=3")
    earlier, later = cluster.called("sbatch")
    stages = ("fmri_mae", "ridge_lea")
    first, second = ((runs / stage / "default" / "slurm-fit.job").read_text().strip() for stage in stages)
    assert first != second
    assert "--dependency" not in options(earlier)
    assert options(later)["--dependency"] == f"afterok:{first}"
    assert "--kill-on-invalid-dep=yes" in later
    for words, stage in zip((earlier, later), stages, strict=True):
        assert "--parsable" in words
        assert words.index("--nodes=4") > words.index("--parsable")
        assert options(words)["--time"] == "1:00:00"
        assert options(words)["--output"] == f"{runs}/{stage}/default/slurm-%j.out"
        script = words.index("experiments/slurm/train.sh")
        assert words[script + 1 : script + 8] == [
            *("fit", "-c", "configs/trainer/slurm.yaml", "-c", f"configs/stage/{stage}.yaml"),
            *("--data", "configs/data/vangerven2010.yaml"),
        ]
        assert not [word for word in words[script:] if word.startswith("make")]
    assert "--model.init_args.alpha=3" in later
    assert "--model.init_args.alpha=3" not in earlier
    # what waits is not submitted again, and a test waits for it
    printed = submitted(cluster, "train-ridge-lea")
    assert f"ridge_lea/default: job {second} is in the queue already" in printed
    submitted(cluster, "score-ridge-lea")
    [*before, test] = cluster.called("sbatch")
    assert len(before) == 2
    assert test[test.index("experiments/slurm/train.sh") + 1] == "test"
    assert options(test)["--dependency"] == f"afterok:{second}"
    # what is finished is not submitted, and nothing waits for it
    for job in (first, second):
        cluster.ended(job)
    (runs / "fmri_mae" / "default" / "final.ckpt").touch()
    submitted(cluster, "train-ridge-lea", "OVERWRITE=1")
    again = cluster.called("sbatch")[-1]
    assert len(cluster.called("sbatch")) == 4
    assert "--dependency" not in options(again)
    assert "--run.overwrite=true" in again


def test_a_stage_waits_for_all_that_it_is_made_from(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    submitted(cluster, "train-lea")
    made = {words[words.index("-c", words.index("-c") + 1) + 1]: words for words in cluster.called("sbatch")}
    jobs = [
        (tmp_path / "runs" / "digits" / "all" / stage / "default" / "slurm-fit.job").read_text().strip()
        for stage in ("fmri_mae", "maskgit")
    ]
    assert options(made["configs/stage/lea.yaml"])["--dependency"] == f"afterok:{':'.join(jobs)}"


def test_options_with_spaces_are_quoted(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    submitted(cluster, "train-ridge-direct", "SBATCH=--comment='two  words' --account=\"it's\" -p gpu")
    [words] = cluster.called("sbatch")
    given = words[: words.index("experiments/slurm/train.sh")]
    assert given[-4:] == ["--comment=two  words", "--account=it's", "-p", "gpu"]
    printed = submitted(cluster, "score-ridge-direct", "SBATCH=--comment='two words", status=2)
    assert "SBATCH=--comment='two words: a quote is not closed" in printed
    assert len(cluster.called("sbatch")) == 1


def test_a_test_of_what_nothing_trains_is_not_submitted(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    printed = submitted(cluster, "score-ridge-direct", status=2)
    assert "there is neither" in printed
    assert "final.ckpt nor a job in the queue that makes it" in printed
    assert not cluster.called("sbatch")


def test_a_machine_without_slurm_says_so(tmp_path: Path) -> None:
    cluster = make_cluster(tmp_path)
    (tmp_path / "slurm" / "sbatch").unlink()
    assert "CLUSTER=slurm needs sbatch" in submitted(cluster, "train-ridge-direct", status=2)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("words", "message"), [(["lea"], "no grids"), (["train-ridge-direct", "CLUSTER=pbs"], "pbs")])
def test_make_refuses_what_it_cannot_submit(words: list[str], message: str) -> None:
    result = subprocess.run(
        ["make", "-n", "CLUSTER=slurm", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert message in result.stderr


def test_make_takes_another_trainer_to_the_cluster() -> None:
    assert "-c configs/trainer/mine.yaml" in make("train-ridge-direct", "CLUSTER=slurm", "TRAINER=mine")
    assert "-c configs/trainer/slurm.yaml" in make("train-ridge-direct", "CLUSTER=slurm")
    assert "slurm" not in make("train-ridge-direct", "CLUSTER=")


# ---- sweeps --------------------------------------------------------------------------------------


def test_an_agent_of_a_sweep_is_started_without_the_variables_of_tasks(tmp_path: Path) -> None:
    agent = tmp_path / ".venv" / "bin" / "wandb"
    agent.parent.mkdir(parents=True)
    agent.write_text('#!/bin/sh\necho "agent: $* threads $OMP_NUM_THREADS tasks [$SLURM_NTASKS]"\n')
    agent.chmod(0o755)
    words = ["bash", str(ROOT / "experiments" / "slurm" / "sweep.sh")]
    environment = {"PATH": "/usr/bin:/bin", "SLURM_NTASKS": "1", "SLURM_CPUS_PER_TASK": "3"}
    run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": False}
    found = subprocess.run([*words, "me/neuroalign/abc", "--count", "4"], **run)
    flags = ["--forward-signals", "--term-timeout=100", "--count"]
    assert found.stdout == f"agent: agent {' '.join(flags)} 4 me/neuroalign/abc threads 3 tasks []\n"
    known = {flag for option in wandb_cli.agent.params for flag in option.opts}
    assert {flag.partition("=")[0] for flag in flags} <= known
    assert "sbatch --array=0-7" in subprocess.run(words, **run).stderr
