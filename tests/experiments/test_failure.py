"""A process that fails leaves its own error beside the run, and all others end soon after."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from experiments.failure import end_with_parent
from tests.experiments.killing import living, start
from tests.experiments.launching import CONFIGS, call, launch, several, write_callback

SOURCE = """
import faulthandler
import os
import signal
import time
from lightning import Callback
from contracts import DataError


class Fails(Callback):
    '''Does in one process what the environment says, before its second batch.'''

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        action = os.environ.get("ACTION")
        if action is None or batch_idx == 0 or trainer.global_rank != int(os.environ["WHO"]):
            return
        if action == "raises":
            raise RuntimeError(f"process {trainer.global_rank} has had enough")
        if action == "data":
            raise DataError("these recordings are nothing to learn from")
        if action == "crashes":
            faulthandler._sigsegv()
        os.kill(os.getpid(), getattr(signal, action))
"""
TINY = (
    '--data.init_args.phantom={"people": 2, "train_images": 1, "test_images": 1, "train_repetitions": 1, '
    '"test_repetitions": 1, "sessions": 1}',
    "--data.init_args.embedding={model: pixels, image_size: 8, target: pca(8)}",
    "--data.init_args.loader.batch_size=8",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
    "--config=fails.yaml",
)
WORDS = ("fit", f"--config={CONFIGS}/stage/contrastive.yaml", f"--data={CONFIGS}/data/phantom.yaml", *TINY)
CPU = f"--config={CONFIGS}/trainer/cpu.yaml"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
SECONDS = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("failure")
    write_callback(folder, SOURCE, "Fails")
    return folder


def run_folder(place: Path, name: str) -> Path:
    return place / "runs" / "phantom" / "all" / "contrastive" / name


def left(place: Path, name: str) -> dict[str, str]:
    return {file.name: file.read_text() for file in run_folder(place, name).glob("*_rank-*.txt")}


def started(place: Path, launcher: str, name: str, variables: Mapping[str, str]) -> list[subprocess.Popen[str]]:
    """Start a fit on two processes: by Lightning, torchrun, or as ``srun`` would."""
    words = ["-m", "experiments", *WORDS, *several(2), f"--run.name={name}"]
    if launcher != "slurm":
        output = place / f"{name}-0.log"
        return [start(place, [*(TORCHRUN if launcher == "torchrun" else ()), *words], variables, output=output)]
    job = {
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_JOB_ID": str(10000 + os.getpid() % 9000),
        "SLURM_JOB_NAME": "train",
        "SLURM_NODELIST": "localhost",
        "MASTER_ADDR": "127.0.0.1",
    }
    ranks = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
    return [
        start(place, words, {**variables, **job, **rank}, output=place / f"{name}-{number}.log")
        for number, rank in enumerate(ranks)
    ]


def printed(place: Path, name: str) -> str:
    return "".join(file.read_text() for file in sorted(place.glob(f"{name}-?.log")))


def fail(place: Path, launcher: str, who: int, action: str) -> str:
    """Let one of two processes fail; returns the name of the run, and all have ended in time when it does."""
    name = f"{launcher}-{who}-{action}"
    processes = started(place, launcher, name, {"ACTION": action, "WHO": str(who)})
    sessions = [process.pid for process in processes]
    csv = run_folder(place, name) / "csv"
    try:
        until = time.monotonic() + 120
        # until the fit has begun, so that starting up is not counted
        while not csv.exists() and time.monotonic() < until and any(process.poll() is None for process in processes):
            time.sleep(0.1)
        assert csv.exists(), printed(place, name)
        began = time.monotonic()
        while living(sessions) and time.monotonic() - began < SECONDS:
            time.sleep(0.1)
        seconds = time.monotonic() - began
        assert not living(sessions), f"still there {SECONDS} s after process {who} of {launcher} met {action}"
    finally:
        for pid in living(sessions):
            os.kill(pid, signal.SIGKILL)
    print(f"{name}: all ended {seconds:.1f} s after the run began")
    assert all(process.wait(1) != 0 for process in processes), printed(place, name)
    assert not (run_folder(place, name) / "final.ckpt").exists()
    return name


full = pytest.mark.full


@full
@pytest.mark.parametrize("launcher", ["lightning", "torchrun", "slurm"])
@pytest.mark.parametrize("who", [0, 1])
def test_a_process_that_raises_leaves_its_error_and_ends_all(place: Path, launcher: str, who: int) -> None:
    name = fail(place, launcher, who, "raises")
    text = left(place, name)[f"error_rank-{who}.txt"]
    assert f"RuntimeError: process {who} has had enough" in text
    assert "Traceback" in text
    assert "on_train_batch_start" in text
    assert f"command: neuroalign {WORDS[0]}" in text
    assert f"process: {who} " in text
    assert "host: " in text


@pytest.mark.parametrize("who", [0, pytest.param(1, marks=full)])
@pytest.mark.parametrize(
    "launcher", ["lightning", pytest.param("torchrun", marks=full), pytest.param("slurm", marks=full)]
)
def test_a_process_that_is_killed_ends_all(place: Path, launcher: str, who: int) -> None:
    fail(place, launcher, who, "SIGKILL")


def test_a_process_whose_first_one_was_killed_before_it_began_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # which takes seconds, until everything is imported
    with subprocess.Popen(["true"]) as gone:
        pass
    words = ["-c", "from experiments.failure import end_with_parent; end_with_parent()"]
    variables = {"NEUROALIGN_STARTED_BY": f"{socket.gethostname()} {gone.pid}"}
    told = launch(tmp_path, words, status=-signal.SIGKILL, variables=variables)
    assert f"process {gone.pid}, which started this one, is gone" in told
    # one of another machine cannot be asked for
    monkeypatch.setenv("NEUROALIGN_STARTED_BY", f"not-{socket.gethostname()} {gone.pid}")
    end_with_parent()


@pytest.mark.full
def test_a_crash_of_python_says_where_and_a_later_fit_clears_it_away(place: Path) -> None:
    words = ["-m", "experiments", *WORDS, CPU, "--run.name=crash"]
    launch(place, words, status=-signal.SIGSEGV, variables={"ACTION": "crashes", "WHO": "0"})
    [(name, text)] = left(place, "crash").items()
    assert name == "crash_rank-0.txt"
    assert "Segmentation fault" in text
    assert "on_train_batch_start" in text
    (run_folder(place, "crash") / "error_rank-5.txt").write_text("of a process that this fit has not")
    launch(place, [*words, "--run.resume=auto"])
    assert not left(place, "crash")


def test_an_error_of_one_line_is_left_with_its_traceback(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("ACTION", "data")
    monkeypatch.setenv("WHO", "0")
    _, told = call([*WORDS, CPU, "--run.name=data"], capfd, status=2)
    assert "neuroalign: these recordings are nothing to learn from" in told
    [(name, text)] = left(place, "data").items()
    assert name == "error_rank-0.txt"
    assert "Traceback" in text
    assert "DataError: these recordings" in text


def test_what_fails_before_the_fit_is_left_too_and_a_refusal_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    call([*WORDS, CPU, "--run.name=early", '--data.init_args.subjects=["09"]'], capfd, status=2)
    folder = place / "runs" / "phantom" / "sub-09" / "contrastive" / "early"
    assert "phantom has 01, 02" in (folder / "error_rank-0.txt").read_text()
    (run_folder(place, "done")).mkdir(parents=True)
    (run_folder(place, "done") / "final.ckpt").touch()
    assert "this run is finished" in call([*WORDS, CPU, "--run.name=done"], capfd, status=2)[1]
    assert not left(place, "done")
