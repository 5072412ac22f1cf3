"""Whose W&B run is whose, and what happens where Weights & Biases does not work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
from PIL import Image

from callbacks import WandbRun
from contracts import ContractError
from experiments.cli import main
from tests.experiments.launching import CONFIGS, call, launch, several, write_callback
from tests.experiments.wandb_files import (
    CONTRASTIVE,
    CPU,
    LOGGER,
    PHANTOM,
    RIDGE,
    STEPS,
    WANDB,
    Logged,
    logged,
    set_variables,
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder; W&B ends with the test."""
    set_variables(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    wandb.teardown()


def test_picture_panels_are_logged(place: Path) -> None:
    words = (CPU, WANDB, f"--config={CONFIGS}/stage/ridge_pixels.yaml", *PHANTOM, "--run.table=false")
    for command in ("fit", "test"):
        main([command, *words])
    fit, test = logged(place / "runs")
    assert fit.id == test.id
    pictures = place / "runs/phantom/all/ridge_pixels/default/pictures"
    for person in ("01", "02"):
        [entry] = test.values(f"pictures/test_sub-{person}")
        [name] = entry["filenames"]
        with Image.open(test.folder / "files" / name) as sent, Image.open(pictures / f"test_sub-{person}.png") as kept:
            assert np.array_equal(np.asarray(sent), np.asarray(kept))


# ---- whose run it is -----------------------------------------------------------------------------------


@pytest.mark.full
def test_runs_of_a_grid_have_a_run_each(place: Path) -> None:
    main(
        [
            "grid",
            f"--stage=[{CONFIGS}/stage/ridge_direct.yaml]",
            f"--data=[{CONFIGS}/data/phantom.yaml]",
            f"--trainer={CONFIGS}/trainer/cpu.yaml",
            "--name=g",
            "--",
            WANDB,
            *PHANTOM[1:],
        ]
    )
    found = logged(place / "runs")
    # fit and test of each
    assert len(found) == 4
    by_id: dict[str, list[Logged]] = {}
    for part in found:
        by_id.setdefault(part.id, []).append(part)
    assert [[part.name for part in parts] for parts in by_id.values()] == [
        [f"ridge_direct phantom sub-{person} g", ""] for person in ("01", "02")
    ]
    assert {parts[0].group for parts in by_id.values()} == {"ridge_direct phantom g"}


def test_the_trial_of_a_sweep_is_used_and_left_open(place: Path) -> None:
    trial = wandb.init(project="sweep", dir=str(place / "trial"), config={"model.init_args.alpha": 7})
    for command in ("fit", "test"):
        main([command, CPU, WANDB, *RIDGE, "--model.init_args.alpha=7"])
    assert wandb.run is trial
    trial.log({"mine": 1})
    trial.finish()
    assert not logged(place / "runs")
    [part] = logged(place / "trial")
    assert part.config["model.init_args.alpha"] == 7
    assert part.config["model"]["init_args"]["alpha"] == 7
    assert part.values("scores/test")
    assert part.values("mine") == [1]
    checkpoint = torch.load(next(place.rglob("final.ckpt")), weights_only=True)
    assert "wandb_run" not in checkpoint


@pytest.mark.full
def test_the_id_of_an_agent_is_used_and_not_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main(["fit", CPU, WANDB, *RIDGE])
    monkeypatch.setenv("WANDB_RUN_ID", "agents")
    main(["test", CPU, WANDB, *RIDGE])
    main(["fit", CPU, WANDB, *RIDGE, "--run.overwrite=true"])
    monkeypatch.delenv("WANDB_RUN_ID")
    main(["test", CPU, WANDB, *RIDGE])
    fit, test, anew, last = (part.id for part in logged(place / "runs"))
    assert test == anew == "agents"
    assert len({fit, test, last}) == 3


@pytest.mark.full
def test_a_checkpoint_of_another_folder_does_not_bring_its_run(place: Path) -> None:
    main(["fit", CPU, WANDB, *RIDGE])
    main(["test", CPU, WANDB, *RIDGE, "--run.name=other", f"--ckpt_path={next(place.rglob('final.ckpt'))}"])
    fit, test = logged(place / "runs")
    assert fit.id != test.id
    assert test.name == "ridge_direct phantom all other"
    assert test.config["run"]["name"] == "other"


@pytest.mark.full
def test_what_is_given_goes_before_what_is_made_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    monkeypatch.setenv("WANDB_RUN_GROUP", "together")
    monkeypatch.setenv("WANDB_TAGS", "first,second")
    monkeypatch.setenv("WANDB_DIR", str(place / "there"))
    main(["fit", CPU, WANDB, *RIDGE, f"{LOGGER}.name=mine", f"{LOGGER}.tags=[third]"])
    [part] = logged(place / "there")
    assert (part.project, part.name, part.group) == ("ours", "mine", "together")
    assert part.tags == ("first", "second", "third", "phantom", "all", "ridge_direct", "default")


def test_two_processes_make_one_run(place: Path) -> None:
    words = [*several(2), WANDB, *CONTRASTIVE, "--data.init_args.loader.batch_size=7", "--trainer.max_epochs=1"]
    launch(place, ["-m", "experiments", "fit", *words, f"{LOGGER}.gradients=true"], timeout=300)
    [part] = logged(place / "runs")
    assert part.exit_code == 0
    assert part.values("train/loss_step")
    checkpoint = torch.load(next(place.rglob("final.ckpt")), weights_only=True)
    assert checkpoint["wandb_run"] == part.id


# ---- when W&B does not work ----------------------------------------------------------------------------


def test_disabled_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    main(["fit", CPU, WANDB, *RIDGE])
    assert not list(place.rglob("*.wandb"))
    assert "wandb_run" not in torch.load(next(place.rglob("final.ckpt")), weights_only=True)


def test_a_folder_that_cannot_be_written_is_one_error(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "file").touch()
    monkeypatch.setenv("WANDB_DIR", str(place / "file"))
    _, said = call(["fit", CPU, WANDB, *RIDGE], capfd, status=2)
    assert "change WANDB_DIR" in said
    assert str(place / "file") in said
    assert "Traceback" not in said
    assert not list(place.rglob("*.ckpt"))


def test_without_a_server_nothing_is_trained(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(place))
    _, said = call(["fit", CPU, WANDB, *RIDGE], capfd, status=2)
    assert "Weights & Biases cannot start" in said
    assert "WANDB_MODE=offline" in said
    assert not list(place.rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("name", "value"), [("WANDB_MODE", "offlien"), ("WANDB_TAGS", "x" * 65), ("WANDB_RUN_ID", "a/b")]
)
def test_a_variable_that_w_and_b_refuses_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    _, said = call(["fit", CPU, WANDB, *RIDGE], capfd, status=2)
    [line] = [line for line in said.splitlines() if line.startswith("neuroalign: ")]
    assert "Weights & Biases cannot start" in line
    assert "WANDB_MODE=offline" in line
    assert "Traceback" not in said
    assert not list(place.rglob("*.ckpt"))


BREAKS = """
import os
import signal
from pathlib import Path
from lightning import Callback


class Breaks(Callback):
    '''Kills the service of W&B after the second batch, as a machine without memory would.'''

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if batch_idx == 1 and trainer.current_epoch == 0:
            for children in Path("/proc/self/task").glob("*/children"):
                for child in children.read_text().split():
                    if "wandb-core" in Path(f"/proc/{child}/cmdline").read_text():
                        os.kill(int(child), signal.SIGKILL)
                        print("killed", flush=True)
"""


@pytest.mark.full
def test_a_training_outlives_w_and_b(place: Path) -> None:
    breaks = write_callback(place, BREAKS, "Breaks")
    words = ["fit", CPU, WANDB, *CONTRASTIVE, breaks, "--trainer.max_epochs=2"]
    words += [f"{LOGGER}.gradients=true", f"{LOGGER}.checkpoints=true"]
    printed = launch(place, ["-m", "experiments", *words], timeout=300)
    assert "killed" in printed
    assert printed.count("Weights & Biases failed and logs no more of this run, which goes on") == 1
    [metrics] = place.rglob("metrics.csv")
    assert metrics.read_text().splitlines()[-1].split(",")
    checkpoint = torch.load(next(place.rglob("final.ckpt")), weights_only=True)
    assert checkpoint["global_step"] == 2 * STEPS


def test_a_disk_that_fills_up_is_told_at_the_end(place: Path) -> None:
    logger = WandbRun(save_dir=str(place / "kept"))
    assert logger.experiment is not None
    (place / "kept").rename(place / "gone")
    (place / "kept").touch()
    with pytest.warns(
        UserWarning, match="cannot keep its files in .*kept.*What Weights & Biases logged at last is lost"
    ):
        logger.finalize("success")


# ---- arguments -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--trainer.logger=WandbLogger",), "name callbacks.WandbRun instead"),
        ((WANDB, f"{LOGGER}.log_model=true"), "log_model"),
        ((WANDB, f"{LOGGER}.log_freq=0"), "log_freq >= 1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    place: Path, capfd: pytest.CaptureFixture[str], words: Sequence[str], expected: str
) -> None:
    _, said = call(["fit", CPU, *words, *RIDGE], capfd, status=2)
    assert expected in said
    assert "Traceback" not in said
    assert not list(place.rglob("*.ckpt"))


def test_a_frequency_is_at_least_one() -> None:
    with pytest.raises(ContractError, match="log_freq=0"):
        WandbRun(log_freq=0)
