"""What Weights & Biases is told of a training and of what comes after it, offline."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb

from experiments.cli import main
from tests.experiments.launching import write_callback
from tests.experiments.wandb_files import CONTRASTIVE, CPU, LOGGER, STEPS, WANDB, Logged, logged, set_variables

KEEPS = """
import torch
from lightning import Callback


class Keeps(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        gradients = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}
        torch.save(gradients, f"gradients-{trainer.global_step}.pt")
"""


@dataclass(frozen=True)
class Story:
    """A training and what came after it, each command with what it logged."""

    run: Path
    parts: dict[str, Logged]
    scores: dict[str, list[Any]]
    layout: dict[str, Any]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("wandb")
    keeps = write_callback(folder, KEEPS, "Keeps")
    gradients = (f"{LOGGER}.gradients=true", f"{LOGGER}.log_freq=3", keeps)
    commands = {
        "fit": ("fit", "--trainer.max_epochs=1", *gradients),
        "resumed": ("fit", "--trainer.max_epochs=2", "--run.resume=true", f"{LOGGER}.checkpoints=true"),
        "validate": ("validate",),
        "test": ("test",),
        "anew": ("fit", "--trainer.max_epochs=1", "--run.overwrite=true"),
        "test anew": ("test",),
    }
    parts, scores, layout = {}, {}, {}
    run = folder / "runs" / "phantom" / "all" / "contrastive" / "told"
    with pytest.MonkeyPatch.context() as patch:
        set_variables(patch, folder)
        patch.chdir(folder)
        for name, (command, *words) in commands.items():
            main([command, CPU, WANDB, *CONTRASTIVE, "--run.name=told", *words])
            [parts[name]] = [
                part for part in logged(folder / "runs") if part.folder not in [p.folder for p in parts.values()]
            ]
            if command in ("validate", "test"):
                file = "scores.json" if command == "test" else "scores_validation.json"
                scores[name] = json.loads((run / file).read_text())
            if name == "resumed":
                checkpoint = torch.load(run / "final.ckpt", weights_only=True)
                layout = checkpoint["hyper_parameters"]["layout"]
                (folder / "resumed.ckpt").write_bytes((run / "final.ckpt").read_bytes())
        return Story(run, parts, scores, layout)


# ---- one W&B run a training ----------------------------------------------------------------------------


def test_all_commands_on_a_training_are_one_run(story: Story) -> None:
    ids = {name: part.id for name, part in story.parts.items()}
    assert ids["fit"]
    assert ids["fit"] == ids["resumed"] == ids["validate"] == ids["test"]
    assert ids["anew"] == ids["test anew"] != ids["fit"]
    assert all(part.exit_code == 0 for part in story.parts.values())
    assert wandb.run is None


def test_a_run_is_named_by_its_folder_when_it_is_new(story: Story) -> None:
    for name, part in story.parts.items():
        assert part.project == "neuroalign"
        new = name in ("fit", "anew")
        assert part.name == ("contrastive phantom all told" if new else "")
        assert part.group == ("contrastive phantom told" if new else "")
        assert part.tags == (("phantom", "all", "contrastive", "told") if new else ())


def test_the_configuration_is_that_of_the_training(story: Story) -> None:
    config = story.parts["fit"].config
    assert config["model"]["init_args"]["encoder"]["init_args"]["hidden"] == 16
    assert config["data"]["init_args"]["loader"]["batch_size"] == 14
    assert config["trainer"]["max_epochs"] == 1
    assert config["seed_everything"] == 0
    assert story.parts["resumed"].config["trainer"]["max_epochs"] == 2
    for name in ("validate", "test", "test anew"):
        assert not story.parts[name].config.keys() - {"_wandb"}


def test_layouts_are_left_out(story: Story) -> None:
    assert story.layout["shape"].keys() == {"01", "02"}
    for part in story.parts.values():
        text = json.dumps(part.config)
        assert "layout" not in text
        assert story.layout["training_set"] not in text


def test_resumed_steps_follow(story: Story) -> None:
    steps = [
        row["trainer/global_step"]
        for name in ("fit", "resumed")
        for row in story.parts[name].history
        if "train/loss_step" in row
    ]
    assert steps == list(range(2 * STEPS))
    # scores stand where the checkpoint was made, and do not turn the clock back
    for name in ("validate", "test"):
        assert {row["trainer/global_step"] for row in story.parts[name].history} == {2 * STEPS}
        assert "epoch" not in story.parts[name].summary
    assert story.parts["resumed"].summary["epoch"] == 1


# ---- what is logged ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "stage"), [("validate", "validation"), ("test", "test")])
def test_scores_are_numbers_in_history_and_summary(story: Story, command: str, stage: str) -> None:
    part, scores = story.parts[command], story.scores[command]
    assert len(scores) > 4
    for score in scores:
        person = "" if score["subject"] == "mean" else f"/sub-{score['subject']}"
        name = f"{stage}/{score['gallery'].partition(' (')[0]}/{score['name']}{person}"
        assert part.values(name) == [pytest.approx(score["value"], abs=1e-6)]
        assert part.summary[name] == part.values(name)[0]


@pytest.mark.parametrize(("command", "stage"), [("validate", "validation"), ("test", "test")])
def test_scores_are_a_table_with_every_column(story: Story, command: str, stage: str) -> None:
    part, scores = story.parts[command], story.scores[command]
    [entry] = part.values(f"scores/{stage}")
    table = json.loads((part.folder / "files" / entry["path"]).read_text())
    assert [dict(zip(table["columns"], row, strict=True)) for row in table["data"]] == scores


def test_gradients_are_logged_when_asked_for(story: Story) -> None:
    rows = [row for row in story.parts["fit"].history if "gradients" in " ".join(row)]
    # the first step and every third
    assert [row["trainer/global_step"] for row in rows] == [0, 3]
    assert not [name for row in story.parts["resumed"].history for name in row if "gradients" in name]
    for row in rows:
        used = torch.load(story.run.parents[4] / f"gradients-{row['trainer/global_step']}.pt", weights_only=True)
        assert {name.removeprefix("gradients/") for name in row if name.startswith("gradients/")} == set(used)
        for name, gradient in used.items():
            histogram = row[f"gradients/{name}"]
            counts, bins = np.histogram(gradient.numpy().astype(float), bins=64)
            if gradient.min() < gradient.max():
                np.testing.assert_allclose(histogram["bins"], bins, rtol=1e-6)
                # values between two bins may be rounded into either
                np.testing.assert_allclose(histogram["values"], counts, atol=2)
            assert sum(histogram["values"]) == gradient.numel()


def test_the_final_checkpoint_goes_up_when_asked_for(story: Story) -> None:
    artifacts = {name: [a for a in part.artifacts.values() if a.type == "model"] for name, part in story.parts.items()}
    assert [name for name, found in artifacts.items() if found] == ["resumed"]
    [artifact] = artifacts["resumed"]
    assert artifact.name == "phantom-all-contrastive-told"
    assert set(artifact.aliases) == {"final", "latest"}
    metadata = json.loads(artifact.metadata)
    assert metadata["steps"] == 2 * STEPS
    assert metadata["epochs"] == 2
    assert metadata["class"] == "ContrastiveAlignment"
    assert metadata["protocol"] == story.layout["protocol"]
    [entry] = artifact.manifest.contents
    assert entry.path == "final.ckpt"
    content = (story.run.parents[4] / "resumed.ckpt").read_bytes()
    assert entry.digest == base64.b64encode(hashlib.md5(content).digest()).decode()
    assert Path(entry.local_path).read_bytes() == content
