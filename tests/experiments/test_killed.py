"""Twenty kills at random points of real commands: nothing is lost, and nothing half-written is taken for whole.

A job, as a scheduler would start it again and again, converts its data, trains with ``--run.resume=auto`` and tests.
It is killed (SIGKILL, or told to end by SIGTERM; all its processes, or one of them) at a random moment, and started
again, until it has been killed so many times. Where it comes to its end it must have left the very weights and scores
of a job that nobody touched, and it then begins again from nothing. Every other time that it was killed with its
training done it may come to its end, or most kills would meet nothing that is left to train.

Every kill is written to the file that ``NEUROALIGN_KILL_LOG`` names, and printed (``pytest -s``);
``NEUROALIGN_KILL_SEED`` repeats the moments of an earlier run.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from callbacks import load_part, read_scores
from callbacks.checkpoint import refuse_damaged
from tests.experiments.killing import Command, living
from tests.experiments.launching import CONFIGS, several
from tests.experiments.test_resume import assert_equal

SEED = int(os.environ.get("NEUROALIGN_KILL_SEED", "0")) or random.randrange(10**6)
SECONDS = 60
"""How long a job may take to end once it is told to, or once one of its processes is dead."""
CPU = f"--config={CONFIGS}/trainer/cpu.yaml"
DATA = f"--data={CONFIGS}/data/phantom.yaml"
TINY = (
    '--data.init_args.phantom={"people": 2, "train_images": 1, "test_images": 1, "train_repetitions": 1, '
    '"test_repetitions": 1, "sessions": 1}',
    "--data.init_args.embedding={model: pixels, image_size: 8, target: pca(8)}",
    "--trainer.enable_progress_bar=false",
    "--run.table=false",
)
RESUME = ("--run.resume=auto", "--run.checkpoint_minutes=0")


def trained(stage: str, *words: str, trainer: Sequence[str] = (CPU,)) -> tuple[tuple[str, ...], ...]:
    """A job: fit, and test."""
    common = (*trainer, f"--config={CONFIGS}/stage/{stage}.yaml", DATA, *TINY, *words)
    return (("fit", *common, *RESUME), ("test", *common))


GRADIENTS = (
    "--model.init_args.encoder=ResidualMLP",
    "--model.init_args.encoder.init_args.hidden=32",
    "--trainer.max_epochs=12",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.log_every_n_steps=1",
)
LONGER = ("--trainer.max_epochs=80",)
MONITORED = ("--run.monitor=validation/test/two_way", "--run.mode=max")
GRID = (
    "grid",
    f"--stage=[{CONFIGS}/stage/ridge_lea.yaml]",
    f"--data=[{CONFIGS}/data/phantom.yaml]",
    f"--trainer={CONFIGS}/trainer/cpu.yaml",
    '--subjects=["01"]',
    "--",
    *(word for word in TINY if not word.startswith("--run.table")),
    "--run.checkpoint_minutes=0",
    "--data.init_args.loader.batch_size=9",
    "--fmri_mae.trainer.max_epochs=6",
    "--fmri_mae.trainer.log_every_n_steps=1",
)


@dataclass(frozen=True)
class Job:
    """Commands that are run one after another, how often they are killed, and the folder of each run.

    Those of one process are forked from one that has loaded everything: a start takes longer than all the rest. Those
    of two start from nothing.
    """

    commands: tuple[tuple[str, ...], ...]
    kills: int
    runs: tuple[str, ...]
    forked: bool = True


JOBS = {
    "gradients": Job(
        trained("contrastive", *GRADIENTS, *MONITORED, "--data.init_args.loader.batch_size=14"),
        6,
        ("all/contrastive/default",),
    ),
    "closed_form": Job(
        trained("ridge_direct", "--data.init_args.loader.batch_size=2"), 4, ("all/ridge_direct/default",)
    ),
    "earlier_stage": Job((GRID,), 5, ("sub-01/fmri_mae/default", "sub-01/ridge_lea/default")),
    "two_processes": Job(
        # many epochs: most of the time from the first sign of life on goes into meeting each other
        trained("contrastive", *GRADIENTS, *LONGER, "--data.init_args.loader.batch_size=7", trainer=several(2)),
        5,
        ("all/contrastive/default",),
        forked=False,
    ),
}
assert sum(job.kills for job in JOBS.values()) == 20


@dataclass(frozen=True)
class Moment:
    """When to kill: so long after a command of the job was started, or after its run shows a first sign of life.

    Attributes:
        command: Which command.
        alive: Whether the seconds count from the first sign of life.
        seconds: After that.
        writing: Whether to wait on, for a short while, until a file is being written.
    """

    command: int
    alive: bool
    seconds: float
    writing: bool


def folders(place: Path, job: Job) -> list[Path]:
    return [place / "runs" / "phantom" / name for name in job.runs]


def signs(place: Path, job: Job, command: int, since: float) -> bool:
    """Whether a command has begun with its run since a time (and not only with starting Python)."""
    step = "test" if job.commands[command][0] == "test" else "fit"
    files = [folder / f"config_{step}.yaml" for folder in folders(place, job)]
    return any(file.exists() and file.stat().st_mtime > since for file in files)


def being_written(place: Path) -> bool:
    return any(".partial" in file for _, _, files in os.walk(place) for file in files)


def play(place: Path, job: Job, rng: random.Random, moment: Moment | None) -> tuple[str, list[tuple[float, float]]]:
    """Run a job, and kill it at a moment.

    Returns:
        What was done to it (empty: it came to its end), and of each command the seconds to the first sign of life and
        to the end.
    """
    times = []
    for number, command in enumerate(job.commands):
        began, clock = time.monotonic(), time.time()
        process = Command(place, command, place.with_suffix(".log"), forked=job.forked)
        alive = None
        done = ""
        while process.poll() is None:
            now = time.monotonic() - began
            if alive is None and signs(place, job, number, clock):
                alive = now
            since = now if moment is None or not moment.alive else None if alive is None else now - alive
            if moment is not None and number == moment.command and since is not None and since >= moment.seconds:
                until = time.monotonic() + 2
                while moment.writing and process.poll() is None and time.monotonic() < until:
                    if being_written(place):
                        break
                done = strike(process, rng)
                break
            time.sleep(0.002)
        if done:
            return f"{done}; {command[0]} after {now:.2f} s{'' if alive is None else ', its run begun'}", times
        assert process.wait(SECONDS) == 0, process.printed()
        times.append((alive or 0.0, time.monotonic() - began))
    return "", times


def strike(process: Command, rng: random.Random) -> str:
    """Kill a job or tell it to end, as a whole or one process of it; it is gone soon after.

    Returns:
        What was done; nothing where it had done its work before it could be.
    """
    how = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    members = living([process.pid])
    whom = rng.choice(members) if len(members) > 1 and rng.random() < 0.5 else None
    try:
        if whom is None:
            os.killpg(process.pid, how)
        else:
            os.kill(whom, how)
    except ProcessLookupError:
        # ended by itself in this moment
        pass
    began = time.monotonic()
    while living([process.pid]):
        assert time.monotonic() - began < SECONDS, f"{living([process.pid])} still there {SECONDS} s after {how.name}"
        process.poll()
        time.sleep(0.01)
    seconds = time.monotonic() - began
    if process.wait(SECONDS) == 0:
        return ""
    whom_name = "all" if whom is None else f"one of {len(members)}" + (" (the first)" if whom == process.pid else "")
    return f"{how.name} to {whom_name}, status {process.poll()}, gone in {seconds:.1f} s"


def check_whole(place: Path) -> str:
    """Read every file under a name that counts; returns what the next attempt will find."""
    found = []
    for path in sorted(place.rglob("*")):
        if not path.is_file() or path.name.startswith("."):
            continue
        if path.suffix == ".ckpt":
            refuse_damaged(path, "")
            state = torch.load(path, weights_only=True)
            found.append(f"{path.parent.parent.name}/{path.name} (epoch {state['epoch']}, step {state['global_step']})")
        elif path.name in ("scores.json", "grid.json"):
            read_scores(path)
            found.append(path.name)
        elif path.name == "outputs.safetensors":
            load_part(path)
            found.append(path.name)
        elif path.name in ("grid_recipe.json", "dataset_description.json"):
            json.loads(path.read_text())
        elif path.name == "metrics.csv":
            text = path.read_text()
            widths = {line.count(",") for line in text.splitlines()}
            assert text.endswith("\n"), path
            assert len(widths) == 1, path
    partial = [path.name for path in place.rglob(".*.partial*")]
    return ", ".join(found or ["nothing yet"]) + (f"; half-written: {', '.join(partial)}" if partial else "")


def assert_same(found: Path, unbroken: Path, job: Job) -> None:
    """Weights bit by bit, scores and outputs."""
    for mine, theirs in zip(folders(found, job), folders(unbroken, job), strict=True):
        weights = [torch.load(folder / "final.ckpt", weights_only=True)["state_dict"] for folder in (mine, theirs)]
        assert_equal(dict(weights[0]), dict(weights[1]), str(mine))
        if (theirs / "scores.json").exists():
            assert (mine / "scores.json").read_bytes() == (theirs / "scores.json").read_bytes()
            assert_equal(load_file(mine / "outputs.safetensors"), load_file(theirs / "outputs.safetensors"))


@pytest.fixture(scope="module")
def log() -> list[str]:
    lines = [f"seed {SEED}"]
    print(f"\nkills: seed {SEED}")
    return lines


def note(log: list[str], line: str) -> None:
    log.append(line)
    print(line, flush=True)
    if "NEUROALIGN_KILL_LOG" in os.environ:
        Path(os.environ["NEUROALIGN_KILL_LOG"]).write_text("\n".join(log) + "\n")


def draw(rng: random.Random, times: Sequence[tuple[float, float]]) -> Moment:
    """One kill of five while Python starts, the others once the run has begun; every other one into a writing."""
    command = rng.choices(range(len(times)), [end for _, end in times])[0]
    alive, end = times[command]
    late = rng.random() < 0.8
    return Moment(command, late, rng.uniform(0, end - alive if late else alive), late and rng.random() < 0.5)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", JOBS)
def test_a_job_that_is_killed_again_and_again_loses_nothing(name: str, tmp_path: Path, log: list[str]) -> None:
    job, rng = JOBS[name], random.Random(f"{SEED} {name}")
    unbroken, place = tmp_path / "unbroken", tmp_path / "killed"
    unbroken.mkdir()
    place.mkdir()
    _, times = play(unbroken, job, rng, None)
    note(log, f"{name}: unbroken in {sum(end for _, end in times):.1f} s")
    kills = 0
    while True:
        trained_before = all((folder / "final.ckpt").exists() for folder in folders(place, job))
        spared = kills == job.kills or (trained_before and rng.random() < 0.5)
        done, _ = play(place, job, rng, None if spared else draw(rng, times))
        if done:
            kills += 1
            note(log, f"  {name} kill {kills}/{job.kills}: {done}; there: {check_whole(place)}")
            continue
        assert_same(place, unbroken, job)
        note(log, f"  {name}: came to its end, the same weights and scores as unbroken")
        if kills == job.kills:
            return
        shutil.rmtree(place)
        place.mkdir()
