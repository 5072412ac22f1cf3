"""Starting the command line in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from experiments.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
Neuroalign = Callable[..., str]


def launch(
    folder: Path,
    words: Sequence[str],
    *,
    status: int | None = 0,
    timeout: float = 120,
    variables: Mapping[str, str] = {},
) -> str:
    """Run Python in a process group of its own; returns what all of its processes printed.

    A group that does not end in time is killed as a whole, and the test fails. ``status`` None is any failure.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", **variables}
    with subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        printed = output_of(process, timeout)
    assert process.returncode == status if status is not None else process.returncode != 0, printed
    return printed


def output_of(process: subprocess.Popen[str], timeout: float) -> str:
    """What a process group has printed when it ends; one that does not in time is killed, and the test fails."""
    try:
        printed, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        pytest.fail(f"still running after {timeout} s:\n{printed}")
    return printed


def call(words: Sequence[str], capfd: pytest.CaptureFixture[str], *, status: int = 0) -> tuple[str, str]:
    """Run a command in this process; returns what it printed, on both streams, whatever its status."""
    try:
        main(words)
        found = 0
    except SystemExit as error:
        found = int(error.code or 0)
    captured = capfd.readouterr()
    assert found == status, captured.out + captured.err
    return captured.out, captured.err


def write_callback(folder: Path, source: str, kind: str) -> str:
    """Write a module with the callback ``kind``; returns the word by which a command takes it."""
    name = kind.lower()
    (folder / f"{name}.py").write_text(source)
    (folder / f"{name}.yaml").write_text(f"trainer:\n  callbacks+:\n    - class_path: {name}.py:{kind}\n")
    return f"--config={name}.yaml"


def several(processes: int) -> tuple[str, ...]:
    return (f"--config={CONFIGS}/trainer/ddp.yaml", "--trainer.accelerator=cpu", f"--trainer.devices={processes}")
