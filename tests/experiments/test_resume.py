"""A fit that was killed or told to end, and resumed, ends bitwise where an unbroken one does, on 1 and 2 processes."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.experiments.launching import CONFIGS, launch, several

KILL_SOURCE = """
import os
import signal
from lightning import Callback


class Kill(Callback):
    '''Kills the whole process group, as a scheduler or a power cut would, when the n-th hook is reached; or tells
    one process to end.'''

    def __init__(self) -> None:
        self.passed, self.at = 0, int(os.environ.get("KILL_AT", "0"))
        self.told = os.environ.get("TELL_RANK", "")

    def _pass(self, trainer) -> None:
        self.passed += 1
        if self.passed == self.at:
            if not self.told:
                os.killpg(0, signal.SIGKILL)
            elif self.told == "all":
                os.killpg(0, signal.SIGTERM)
            elif self.told == str(trainer.global_rank):
                os.kill(os.getpid(), getattr(signal, os.environ["TELL"]))
        if trainer.is_global_zero:
            with open("passed.txt", "w") as file:
                file.write(str(self.passed))

    def on_train_batch_start(self, trainer, *args): self._pass(trainer)
    def on_before_optimizer_step(self, trainer, *args): self._pass(trainer)
    def on_train_batch_end(self, trainer, *args): self._pass(trainer)
    def on_validation_batch_end(self, trainer, *args): self._pass(trainer)
    def on_validation_end(self, trainer, *args): self._pass(trainer)
    def on_train_epoch_end(self, trainer, *args): self._pass(trainer)
    def on_save_checkpoint(self, trainer, *args): self._pass(trainer)
    def on_train_end(self, trainer, *args): self._pass(trainer)
"""
KILL_CONFIG = "trainer:\n  callbacks+:\n    - class_path: kill.py:Kill\n"
# two people of other numbers of voxels, whose batches alternate, dropout, and gradients gathered over two batches;
# 5 batches an epoch on one process: the last one steps alone
FIT = (
    "-m",
    "experiments",
    "fit",
    f"--config={CONFIGS}/stage/contrastive.yaml",
    f"--data={CONFIGS}/data/phantom.yaml",
    '--data.init_args.phantom={"people": 2, "train_images": 1, "test_images": 1, "train_repetitions": 1, '
    '"test_repetitions": 1, "sessions": 1}',
    "--data.init_args.embedding={model: pixels, image_size: 8, target: pca(8)}",
    "--model.init_args.encoder=ResidualMLP",
    "--model.init_args.encoder.init_args.hidden=16",
    "--trainer.max_epochs=4",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--config=kill.yaml",
    "--run.monitor=validation/test/two_way",
    "--run.mode=max",
    "--run.patience=3",
)
PROCESSES = {1: (f"--config={CONFIGS}/trainer/cpu.yaml",), 2: several(2)}
BATCH = {1: "--data.init_args.loader.batch_size=14", 2: "--data.init_args.loader.batch_size=7"}


def words(processes: int, name: str, *more: str) -> list[str]:
    first, command, verb, *rest = FIT
    return [first, command, verb, *PROCESSES[processes], *rest, BATCH[processes], f"--run.name={name}", *more]


def run_folder(folder: Path, name: str) -> Path:
    return folder / "runs" / "phantom" / "all" / "contrastive" / name


def state(path: Path) -> dict[str, Any]:
    """Everything of a checkpoint that decides what comes next, and what was chosen."""
    checkpoint = torch.load(path, weights_only=True)
    callbacks = {
        re.sub(r"\{.*", "", name): value for name, value in checkpoint["callbacks"].items() if "Kill" not in name
    }
    kept = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers")
    return {name: checkpoint[name] for name in kept} | {"callbacks": callbacks}


def assert_equal(found: Any, expected: Any, place: str = "") -> None:
    """Compare nested plain data; tensors bit by bit."""
    assert type(found) is type(expected), place
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for key, value in expected.items():
            assert_equal(found[key], value, f"{place}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), place
        for number, value in enumerate(expected):
            assert_equal(found[number], value, f"{place}/{number}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), f"{place} differs by {(found - expected).abs().max()}"
    else:
        assert found == expected, place


def assert_same_run(folder: Path, name: str, unbroken: Path) -> None:
    for file in ("final.ckpt", "last.ckpt"):
        assert_equal(state(run_folder(folder, name) / file), state(unbroken / file), file)
    left = {path.name for path in run_folder(folder, name).iterdir()}
    assert not [file for file in left if "best" in file], left


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    (folder / "kill.py").write_text(KILL_SOURCE)
    (folder / "kill.yaml").write_text(KILL_CONFIG)
    return folder


@pytest.fixture(scope="module")
def hooks(place: Path) -> dict[int, int]:
    """For each number of processes, how many hooks an unbroken fit passes."""
    passed = {}
    for processes in (1, 2):
        launch(place, words(processes, f"unbroken-{processes}", "--run.checkpoint_minutes=0"))
        passed[processes] = int((place / "passed.txt").read_text())
    return passed


def resume(place: Path, processes: int, name: str, minutes: float) -> None:
    """Let a fit that was broken off come to its end."""
    launch(place, words(processes, name, f"--run.checkpoint_minutes={minutes}", "--run.resume=auto"))
    assert_same_run(place, name, run_folder(place, f"unbroken-{processes}"))


def kill_and_resume(place: Path, processes: int, kills: Sequence[int], minutes: float, name: str) -> None:
    """Kill a fit when it has passed so many hooks, several times in a row, and let it finish."""
    option = f"--run.checkpoint_minutes={minutes}"
    for number, at in enumerate(kills):
        again = ["--run.resume=true"] if number else []
        launch(place, words(processes, name, option, *again), status=-9, variables={"KILL_AT": str(at)})
        assert not (run_folder(place, name) / "final.ckpt").exists()
    resume(place, processes, name, minutes)


@pytest.mark.parametrize(("processes", "share"), [(1, 0.45), pytest.param(2, 0.6, marks=pytest.mark.full)])
def test_a_killed_fit_goes_on_as_if_nothing_had_happened(
    place: Path, hooks: dict[int, int], processes: int, share: float
) -> None:
    kill_and_resume(place, processes, [round(share * hooks[processes])], 0, f"killed-{processes}")


@pytest.mark.full
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("processes", "minutes"), [(1, 0), (2, 0), (1, 15), (2, 15)])
def test_twenty_four_kills_anywhere(
    place: Path, hooks: dict[int, int], processes: int, minutes: float, seed: int
) -> None:
    at = random.Random(f"{processes} {minutes} {seed}").randint(1, hooks[processes])
    kill_and_resume(place, processes, [at], minutes, f"killed-{processes}-{minutes}-{seed}")


@pytest.mark.full
def test_a_fit_that_is_killed_again_and_again_comes_to_its_end(place: Path, hooks: dict[int, int]) -> None:
    kill_and_resume(place, 1, [hooks[1] // 3] * 2, 0, "often")


# ---- told to end ---------------------------------------------------------------------------------


def tell_and_resume(place: Path, processes: int, rank: int, told: str, at: int, name: str) -> None:
    """Tell one process of a fit to end, which writes no checkpoint before it is told, and resume it."""
    variables = {"KILL_AT": str(at), "TELL_RANK": str(rank), "TELL": told}
    printed = launch(place, words(processes, name, "--run.checkpoint_minutes=60"), status=143, variables=variables)
    assert "told to end" in printed
    assert "Traceback" not in printed
    folder = run_folder(place, name)
    assert not (folder / "final.ckpt").exists()
    assert not list(folder.glob("*_rank-*.txt")), "an order is no failure"
    assert not list(folder.glob("hpc_ckpt*"))
    resume(place, processes, name, 60)


@pytest.mark.full
def test_one_of_two_processes_is_told_to_end(place: Path, hooks: dict[int, int]) -> None:
    tell_and_resume(place, 2, 1, "SIGTERM", 3, "told")


def test_a_fit_that_is_told_to_end_loses_no_batch(place: Path, hooks: dict[int, int]) -> None:
    # the first hooks: start of a batch, its end, start of the second, the step of both, its end
    variables = {"KILL_AT": "4", "TELL_RANK": "0", "TELL": "SIGUSR1"}
    launch(place, words(1, "first", "--run.checkpoint_minutes=60"), status=143, variables=variables)
    state = torch.load(run_folder(place, "first") / "last.ckpt", weights_only=True)
    progress = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    assert (state["epoch"], state["global_step"], progress["processed"]) == (0, 1, 2)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("processes", "rank", "told"), [(1, 0, "SIGUSR1"), (2, 0, "SIGTERM"), (2, 1, "SIGTERM")])
def test_told_to_end_anywhere(
    place: Path, hooks: dict[int, int], processes: int, rank: int, told: str, seed: int
) -> None:
    # not in the last epoch, which ends before it is told
    at = random.Random(f"{processes} {rank} {seed}").randint(1, 3 * hooks[processes] // 4 - 8)
    tell_and_resume(place, processes, rank, told, at, f"told-{processes}-{rank}-{seed}")


@pytest.mark.full
def test_an_order_to_all_leaves_those_that_prepare_batches(place: Path, hooks: dict[int, int]) -> None:
    workers = "--data.init_args.loader.workers=1"
    variables = {"KILL_AT": "20", "TELL_RANK": "all"}
    printed = launch(
        place, words(1, "workers", "--run.checkpoint_minutes=60", workers), status=143, variables=variables
    )
    assert "told to end" in printed
    assert "Traceback" not in printed
    resume(place, 1, "workers", 60)
