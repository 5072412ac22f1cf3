"""A cluster of one machine: the commands of SLURM that our scripts call, as far as they call them.

``srun`` starts real processes with the variables that SLURM sets; ``sbatch``, ``squeue`` and ``scontrol`` write down
what they were asked and know which jobs are in the queue.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.experiments.launching import output_of
from tests.shipped import ROOT

COMMANDS = ("sbatch", "scancel", "scontrol", "squeue", "srun")
SOURCE = (
    f"#!{sys.executable}"
    + r"""
import json, os, signal, subprocess, sys, time
from pathlib import Path

name, words, folder = Path(sys.argv[0]).name, sys.argv[1:], Path(__file__).parent
with (folder / "called.jsonl").open("a") as file:
    file.write(json.dumps([name, *words]) + "\n")


def sbatch():
    assert f"--output={os.environ['RUN_FOLDER']}/slurm-%j.out" in words
    queue = folder / "queue.txt"
    job = 40001 + len((folder / "called.jsonl").read_text().splitlines())
    with queue.open("a") as file:
        file.write(f"{job}\n")
    print(f"{job};here")


def squeue():
    [asked] = [word.removeprefix("--jobs=") for word in words if word.startswith("--jobs=")]
    queue = folder / "queue.txt"
    if not queue.exists() or asked not in queue.read_text().split():
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    print(f"{asked} gpu neuroalign me R 0:01 1 node")


def scontrol():
    pass


def scancel():
    # a signal to the job goes to its steps
    assert words[0] == "--signal=TERM", words
    tasks = folder / "tasks.txt"
    while not tasks.exists():
        time.sleep(0.05)
    for process in tasks.read_text().split():
        os.kill(int(process), signal.SIGTERM)


def srun():
    nodes, per_node = (int(os.environ[f"SLURM_{each}"]) for each in ("NNODES", "NTASKS_PER_NODE"))
    options = [word for word in words if word.startswith("--")][:2]
    assert options == ["--kill-on-bad-exit=1", f"--cpus-per-task={os.environ['SLURM_CPUS_PER_TASK']}"], words
    tasks = []
    (folder / "tasks.txt").unlink(missing_ok=True)
    for rank in range(nodes * per_node):
        own = {
            "SLURM_STEP_ID": "0",
            "SLURM_NTASKS": str(nodes * per_node),
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank % per_node),
            "SLURM_NODEID": str(rank // per_node),
            "SLURM_NODELIST": "localhost",
            "SLURM_STEP_NODELIST": "localhost",
            "JOB_SCRIPT": str(os.getppid()),
        }
        tasks.append(subprocess.Popen(words[2:], env=os.environ | own))
    (folder / ".tasks.txt").write_text("\n".join(str(task.pid) for task in tasks))
    (folder / ".tasks.txt").rename(folder / "tasks.txt")
    worst = 0
    running = list(tasks)
    while running:
        time.sleep(0.05)
        for task in [task for task in running if task.poll() is not None]:
            running.remove(task)
            status = task.returncode if task.returncode >= 0 else 128 - task.returncode
            worst = max(worst, status)
            if status:
                for other in running:
                    other.terminate()
    sys.exit(worst)


globals()[name]()
"""
)


@dataclass(frozen=True)
class Cluster:
    """A folder from which jobs are submitted, with ``.venv/bin/neuroalign`` and SLURM's commands."""

    folder: Path

    @property
    def path(self) -> str:
        return f"{self.folder / 'slurm'}{os.pathsep}{os.environ['PATH']}"

    def called(self, name: str) -> list[list[str]]:
        """The arguments of every call of a command so far."""
        file = self.folder / "slurm" / "called.jsonl"
        calls = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [words for command, *words in calls if command == name]

    def ended(self, job: str) -> None:
        """A job leaves the queue."""
        queue = self.folder / "slurm" / "queue.txt"
        queue.write_text("".join(f"{each}\n" for each in queue.read_text().split() if each != job))

    def job(
        self,
        words: Sequence[str],
        *,
        nodes: int = 1,
        per_node: int = 2,
        restarts: int = 0,
        status: int = 0,
        variables: Mapping[str, str] = {},
    ) -> str:
        """Run ``train.sh`` as SLURM would start it; returns what all of its processes printed."""
        given = {
            "SLURM_JOB_ID": "40001",
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_NNODES": str(nodes),
            "SLURM_NTASKS_PER_NODE": str(per_node),
            "SLURM_CPUS_PER_TASK": "1",
            **({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}),
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        with subprocess.Popen(
            ["bash", ROOT / "experiments" / "slurm" / "train.sh", *words],
            cwd=self.folder,
            env=environment | given | {"PATH": self.path} | dict(variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            printed = output_of(process, timeout=400)
        assert process.returncode == status, printed
        return printed


def make_cluster(folder: Path) -> Cluster:
    commands = folder / "slurm"
    commands.mkdir(parents=True)
    for name in COMMANDS:
        (commands / name).write_text(SOURCE)
        (commands / name).chmod(0o755)
    program = folder / ".venv" / "bin" / "neuroalign"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m experiments "$@"\n')
    program.chmod(0o755)
    return Cluster(folder)
