"""Several data sets side by side through the command line: files of parts, single changes, the resolved options."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.experiments import launching

TRAINER = f"--config={launching.CONFIGS}/trainer/cpu.yaml"
TINY = {"people": 2, "train_images": 2, "test_images": 2, "train_repetitions": 1, "test_repetitions": 1, "sessions": 1}
Neuroalign = Callable[..., str]


def part_file(kind: str) -> dict[str, Any]:
    # the validation and embedding of a part are not regarded
    return {
        "class_path": f"datamodules.{kind}",
        "init_args": {"phantom": TINY, "split": {"validation": 0.5}, "loader": {"batch_size": 16}},
    }


STAGE = {
    "model": {
        "class_path": "lightning_modules.ContrastiveAlignment",
        "init_args": {
            "between": "label",
            "encoders": {"eeg": {"class_path": "LinearEncoder", "init_args": {"dropout": 0.25}}},
        },
    },
    "trainer": {
        "max_epochs": 1,
        "callbacks+": [{"class_path": "callbacks.Identification", "init_args": {"galleries": ["test"]}}],
    },
}


@pytest.fixture
def neuroalign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Neuroalign:
    """Run a command in a folder whose subfolder ``sets`` holds a file of two data sets and one of each part."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets").mkdir()
    both = {
        "class_path": "datamodules.MultiModal",
        "init_args": {
            "parts": {"eeg": "eeg.yaml", "fmri": "fmri.yaml"},
            "embedding": {"model": "pixels", "image_size": 8, "target": "pca(8)"},
            "validation": 0.2,
            "loader": {"batch_size": 30},
        },
    }
    files = {"eeg": part_file("PhantomEEG"), "fmri": part_file("Phantom"), "both": both}
    for name, content in files.items():
        (tmp_path / "sets" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(STAGE))

    def call(command: str, *words: str, status: int = 0) -> str:
        return "".join(launching.call([command, TRAINER, *words], capfd, status=status))

    return call


BOTH = ("--config=stage.yaml", "--data=sets/both.yaml")
CHANGES = (
    "--data.init_args.parts.eeg.init_args.loader.batch_size=7",
    "--data.init_args.epoch=shortest",
    "--model.init_args.encoders.fmri.class_path=ResidualMLP",
    "--model.init_args.encoders.fmri.init_args.hidden=16",
)


def read(folder: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(folder / "final.ckpt", weights_only=True)
    return checkpoint


def test_files_of_parts_single_changes_and_the_resolved_configuration(neuroalign: Neuroalign, tmp_path: Path) -> None:
    neuroalign("fit", *BOTH, *CHANGES)
    neuroalign("test", *BOTH, *CHANGES)
    folder = tmp_path / "runs" / "both" / "all" / "stage" / "default"
    first = read(folder)
    encoders = first["hyper_parameters"]["encoders"]
    assert [encoders[name]["class_path"].split(".")[-1] for name in ("eeg", "fmri")] == ["LinearEncoder", "ResidualMLP"]
    assert encoders["eeg"]["init_args"]["dropout"] == 0.25
    assert encoders["fmri"]["init_args"]["hidden"] == 16
    layout = first["hyper_parameters"]["layout"]
    assert layout["subjects"] == ["eeg-02", "eeg-03", "fmri-01", "fmri-02"]
    # as many steps as the shorter part has batches: of 16 of each person of the fMRI, of 7 of the EEG
    samples = layout["train_samples"]
    shorter = samples["fmri-01"] // 16 + samples["fmri-02"] // 16
    assert shorter < (samples["eeg-02"] + samples["eeg-03"]) // 7
    assert first["global_step"] == shorter
    resolved = yaml.safe_load((folder / "config_fit.yaml").read_text())["data"]["init_args"]
    assert resolved["parts"]["eeg"]["class_path"] == "datamodules.PhantomEEG"
    assert resolved["parts"]["eeg"]["init_args"]["loader"]["batch_size"] == 7
    assert resolved["parts"]["fmri"]["init_args"]["loader"]["batch_size"] == 16
    scores = json.loads((folder / "scores.json").read_text())
    assert {score["subject"] for score in scores} == {*layout["subjects"], "mean"}
    assert {score["protocol"] for score in scores} == {"by_stimulus"}

    # the folder of parts is not needed any more
    for file in ("eeg", "fmri", "both"):
        (tmp_path / "sets" / f"{file}.yaml").unlink()
    (folder / "config_fit.yaml").rename(tmp_path / "again.yaml")
    neuroalign("fit", "--config=again.yaml", "--run.name=again")
    [again] = (tmp_path / "runs").glob("**/again/final.ckpt")
    second = read(again.parent)["state_dict"]
    assert second.keys() == first["state_dict"].keys()
    assert all(torch.equal(second[name], value) for name, value in first["state_dict"].items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--model.init_args.encoders.meg.class_path=LinearEncoder",),
            "encoders are given for ['meg']; the data set has eeg",
        ),
        (("--data.init_args.parts.eeg.init_args.phantom.train_imagez=3",), "train_images"),
        (("--data.init_args.parts.eeg.init_args.split.protocol=by_subject",), "by_stimulus or by_class, found {'eeg'"),
        (("--data.init_args.epoch=longer",), "longest"),
    ],
    ids=["unknown part", "misspelt argument", "protocol", "epoch"],
)
def test_mistakes_are_named(neuroalign: Neuroalign, words: tuple[str, ...], message: str) -> None:
    printed = neuroalign("fit", *BOTH, *words, status=2)
    assert message in printed
    assert "Traceback" not in printed


def test_a_missing_file_of_a_part_is_named(neuroalign: Neuroalign, tmp_path: Path) -> None:
    (tmp_path / "sets" / "eeg.yaml").unlink()
    printed = neuroalign("fit", *BOTH, status=2)
    assert "eeg.yaml" in printed
    assert "Traceback" not in printed
