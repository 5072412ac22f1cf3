"""Stages that are made from the run of an earlier one, alone, in a grid and through make."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.experiments.launching import CONFIGS, Neuroalign
from tests.formats import pieman

ROOT = CONFIGS.parent
DATA = f"{CONFIGS}/data/phantom.yaml"
PHANTOM = (
    '--data.init_args.phantom={"people": 2, "train_images": 1, "test_images": 1, "train_repetitions": 1, '
    '"test_repetitions": 1, "sessions": 1}',
    "--data.init_args.embedding={model: pixels, image_size: 4, target: pca(8), templates: []}",
    "--data.init_args.loader.batch_size=16",
)
TINY = tuple(
    f"--model.init_args.{size}"
    for size in ("heads=2", "width=16", "depth=1", "decoder_width=16", "decoder_num_heads=2")
)
FEW = "--trainer.max_epochs=1"
EARLIER = tuple(word.replace("--", "--fmri_mae.", 1) for word in (*TINY, FEW))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all commands are run; data are converted once."""
    return tmp_path_factory.mktemp("earlier")


@pytest.fixture(autouse=True)
def without_runs(folder: Path) -> None:
    """A test begins without runs."""
    shutil.rmtree(folder / "runs", ignore_errors=True)


def stage(name: str, *more: str) -> list[str]:
    words = [f"--config={CONFIGS}/trainer/cpu.yaml", f"--config={CONFIGS}/stage/{name}.yaml", f"--data={DATA}"]
    return [*words, *PHANTOM, "--run.table=false", *more]


def grid(stages: str = "ridge_lea", *options: str, more: tuple[str, ...] = EARLIER) -> list[str]:
    """Words of a grid of the first person."""
    files = ",".join(f"{CONFIGS}/stage/{name}.yaml" for name in stages.split(","))
    words = ["grid", f"--stage=[{files}]", f"--data=[{DATA}]", "--name=g", '--subjects=["01"]', *options]
    return [*words, "--", *PHANTOM, *more]


def run_of(name: str, run: str = "g", people: str = "sub-01") -> Path:
    return Path("runs") / "phantom" / people / name / run


def fits(printed: str) -> list[str]:
    """Stages that a grid has looked at, in order."""
    return [Path(line).parts[-2] for line in re.findall(r"^--- (\S+)$", printed, re.MULTILINE)]


def loaded(name: str) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(run_of(name) / "final.ckpt", weights_only=True)
    return checkpoint


def arguments(name: str, command: str = "fit") -> dict[str, Any]:
    resolved: dict[str, Any] = yaml.safe_load((run_of(name) / f"config_{command}.yaml").read_text())
    return resolved


# ---- one run -----------------------------------------------------------------------------------------


def test_an_earlier_run_is_that_of_the_same_data_people_and_name(neuroalign: Neuroalign) -> None:
    names = {"default": "0.001", "other": "0.1"}
    for name, rate in names.items():
        neuroalign("fit", *stage("fmri_mae", *TINY, FEW, f"--model.init_args.lr={rate}", f"--run.name={name}"))
    for name in names:
        neuroalign("fit", *stage("ridge_lea", f"--run.name={name}"))
        later, earlier = (
            torch.load(run_of(kind, name, "all") / "final.ckpt", weights_only=True)["state_dict"]
            for kind in ("ridge_lea", "fmri_mae")
        )
        taken = {key.removeprefix("autoencoder."): v for key, v in later.items() if key.startswith("autoencoder.")}
        assert taken.keys() == earlier.keys()
        assert all(torch.equal(taken[key], value) for key, value in earlier.items()), name
    for words, place in (
        (["--run.name=third"], "all/fmri_mae/third"),
        (['--data.init_args.subjects=["02"]'], "sub-02/fmri_mae/default"),
    ):
        message = neuroalign("fit", *stage("ridge_lea", *words), status=2)
        assert len(message.strip().splitlines()) == 1
        assert re.search(rf"no checkpoint \S*runs/phantom/{place}/final\.ckpt; train that stage first", message)
    message = neuroalign("fit", *stage("ridge_lea", "--run.name=n", "--model.init_args.fmri_mae=run:nothing"), status=2)
    assert "phantom/all/nothing/n/final.ckpt" in message


def test_a_finished_run_is_tested_with_what_it_was_made_from(neuroalign: Neuroalign) -> None:
    neuroalign("fit", *stage("fmri_mae", *TINY, FEW))
    neuroalign("fit", *stage("ridge_lea"))
    neuroalign("test", *stage("ridge_lea"))
    scores = run_of("ridge_lea", "default", "all") / "scores.json"
    before = json.loads(scores.read_text())
    assert {score["subject"] for score in before} == {"01", "02", "mean"}
    words = [*TINY, FEW, "--model.init_args.lr=0.1", "--run.overwrite=true"]
    neuroalign("fit", *stage("fmri_mae", *words))
    neuroalign("test", *stage("ridge_lea"))
    assert json.loads(scores.read_text()) == before, "the weights of the earlier stage are part of this one"


# ---- grid --------------------------------------------------------------------------------------------


def test_a_grid_trains_what_stages_are_made_from_once(neuroalign: Neuroalign) -> None:
    printed = neuroalign(*grid())
    assert fits(printed) == ["fmri_mae", "ridge_lea"]
    assert [entry["stage"] for entry in loaded("ridge_lea")["lineage"]] == ["FmriMAE", "RidgeAlignment"]
    assert (run_of("ridge_lea") / "scores.json").is_file()
    assert not (run_of("fmri_mae") / "scores.json").exists()
    finals = [run_of(name) / "final.ckpt" for name in ("fmri_mae", "ridge_lea")]
    before = [file.stat().st_mtime_ns for file in finals]
    neuroalign(*grid())
    assert [file.stat().st_mtime_ns for file in finals] == before, "finished runs are tested again, not trained"
    for words in (("--fmri_mae.model.init_args.lr=0.1",), ("--trainer.log_every_n_steps=3",)):
        message = neuroalign(*grid(more=(*EARLIER, *words)), status=2)
        assert "fmri_mae/g is finished, but was trained with other arguments" in message
        assert len(message.strip().splitlines()) == 1
    message = neuroalign(*grid(more=(*EARLIER, "--model.init_args.alpha=3")), status=2)
    assert "ridge_lea/g is finished, but was trained with other arguments" in message
    assert [file.stat().st_mtime_ns for file in finals] == before
    neuroalign(*grid("ridge_lea", "--overwrite=true", more=(*EARLIER, "--fmri_mae.model.init_args.lr=0.1")))
    assert all(file.stat().st_mtime_ns > old for file, old in zip(finals, before, strict=True))
    assert loaded("fmri_mae")["hyper_parameters"]["lr"] == 0.1
    weights = loaded("fmri_mae")["state_dict"]
    later = loaded("ridge_lea")["state_dict"]
    assert all(torch.equal(later[f"autoencoder.{name}"], value) for name, value in weights.items())


@pytest.mark.full
def test_a_grid_whose_earlier_stage_has_changed_says_so(neuroalign: Neuroalign, tmp_path: Path) -> None:
    stages = tmp_path / "stages"
    stages.mkdir()
    for name in ("fmri_mae", "ridge_lea"):
        (stages / f"{name}.yaml").write_text((CONFIGS / "stage" / f"{name}.yaml").read_text())
    words = [word.replace(f"{CONFIGS}/stage/", f"{stages}/") for word in grid()]
    neuroalign(*words)
    file = stages / "fmri_mae.yaml"
    file.write_text(file.read_text().replace("augmentation: noise", "augmentation: drop"))
    assert "fmri_mae/g is finished, but was trained with other" in neuroalign(*words, status=2)
    file.unlink()
    message = neuroalign(*words, status=2)
    assert f"is made from run:fmri_mae, but there is no {file}" in message


def test_stages_that_share_an_earlier_one_train_it_once(neuroalign: Neuroalign) -> None:
    # the earlier one may be asked for, too
    printed = neuroalign(*grid("fmri_mae,ridge_lea", "--overwrite=true"))
    assert fits(printed) == ["fmri_mae", "ridge_lea"]
    assert (run_of("fmri_mae") / "config_test.yaml").is_file()
    assert fits(neuroalign(*grid("ridge_lea,fmri_mae"))) == ["fmri_mae", "ridge_lea"]


def test_arguments_reach_the_stages_they_are_for(neuroalign: Neuroalign) -> None:
    apart = ("--fmri_mae.model.init_args.noise", "0.3", "--trainer.log_every_n_steps", "7")
    own = ("--model.init_args.alpha=500", "--ridge_lea.model.init_args.folds=3")
    neuroalign(*grid(more=(*EARLIER, *apart, *own)))
    earlier, later = arguments("fmri_mae"), arguments("ridge_lea")
    assert earlier["model"]["init_args"]["noise"] == 0.3
    assert earlier["model"]["init_args"]["width"] == 16
    assert later["model"]["init_args"]["alpha"] == 500
    assert later["model"]["init_args"]["folds"] == 3
    assert {config["trainer"]["log_every_n_steps"] for config in (earlier, later)} == {7}
    assert {config["trainer"]["max_epochs"] for config in (earlier, later)} == {1}
    assert earlier["data"] == later["data"]


def test_a_negative_value_that_stands_apart_belongs_to_its_option(neuroalign: Neuroalign) -> None:
    neuroalign(
        *grid(more=(*EARLIER, "--fmri_mae.trainer.limit_val_batches", "1", "--fmri_mae.trainer.max_steps", "-1"))
    )
    assert arguments("fmri_mae")["trainer"]["max_steps"] == -1


@pytest.mark.parametrize(
    "word",
    [
        "--fmri_mae.model.init_args.widht=16",
        "--fmrimae.model.init_args.width=16",
        "--model.init_args.alhpa=3",
        "--model.init_args.width=16",
        "--trainer.max_epcohs=3",
        "--mindvis.model.init_args.widht=16",
    ],
)
def test_a_typo_is_refused(neuroalign: Neuroalign, word: str) -> None:
    message = neuroalign(*grid(more=(*EARLIER, word)), status=2)
    assert word.split(".")[-1].split("=")[0] in message or word.split(".")[0].removeprefix("--") in message
    assert not (run_of("ridge_lea") / "final.ckpt").exists()


def test_people_as_folds_are_trained_together_and_joined(
    neuroalign: Neuroalign, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEUROALIGN_SHARED", str(folder / "raw"))
    pieman.write(folder / "raw" / "htfa_timeseries", people=6)
    words = [f"--stage=[{CONFIGS}/stage/fmri_mae_timeseries.yaml]", f"--data=[{CONFIGS}/data/pieman.yaml]"]
    words += ["--name=g", "--", *TINY[1:], FEW, "--model.init_args.num_heads=2"]
    words += ["--data.init_args.loader.batch_size=32", "--data.init_args.split.validation=0.25"]
    neuroalign("grid", *words)
    assert [path.name for path in Path("runs/pieman").iterdir()] == ["all"]
    folder = Path("runs/pieman/all/fmri_mae_timeseries")
    assert len(list(folder.glob("g_fold-0[012]/final.ckpt"))) == 3
    single = json.loads((folder / "g_fold-00" / "scores.json").read_text())
    assert {score["protocol"] for score in single} == {"by_subject (fold 0 of 3)"}
    joined = json.loads((folder / "g" / "grid.json").read_text())
    assert {score["name"] for score in joined} == {"segments_of_predicted_signal", "segments_of_signal"}
    for score in joined:
        assert score["protocol"] == "by_subject (3 folds of 3)"
        assert score["note"].endswith("halves of 6 people")
        assert score["subject"] == "halves"
        assert score["n"] == 6 * score["stimuli"] > 6


# ---- make --------------------------------------------------------------------------------------------


def made(*words: str) -> list[str]:
    """Commands of ``make -n``, in order; variables of this process do not reach it."""
    names = ("MAKEFLAGS", "MAKELEVEL", "DATA", "TRAINER", "ARGS", "RESUME", "OVERWRITE", "SUBJECT")
    result = subprocess.run(
        ["make", "--no-print-directory", "-n", "-o", ".venv/.done", *words],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in names},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [line for line in result.stdout.replace("\\\n", "").splitlines() if line.startswith(".venv/bin/neuroalign")]


@pytest.mark.parametrize(("name", "earlier"), [("ridge-lea", "fmri_mae"), ("ridge-mindvis", "mindvis")])
def test_make_trains_the_earlier_stage_first(name: str, earlier: str) -> None:
    # a person whom nobody has trained on
    words = ("DATA=vangerven2010", "SUBJECT=nobody", "TRAINER=ddp", "OVERWRITE=1", "ARGS=--model.init_args.alpha=500")
    first, second = made(f"train-{name}", *words)
    common = "--data configs/data/vangerven2010.yaml --data.init_args.subjects='[\"nobody\"]'"
    assert first.split() == [
        *f".venv/bin/neuroalign fit -c configs/trainer/ddp.yaml -c configs/stage/{earlier}.yaml".split(),
        *f"{common} --run.resume=true".split(),
    ]
    assert f"-c configs/stage/{name.replace('-', '_')}.yaml {common}" in second
    assert "--run.overwrite=true --model.init_args.alpha=500" in second


def test_make_asks_for_one_person_where_told(neuroalign: Neuroalign) -> None:
    for target in ("train-ridge-direct", "score-ridge-direct", "score-ridge-lea"):
        [command] = made(target, "DATA=vangerven2010", "SUBJECT=01")
        assert "--data.init_args.subjects='[\"01\"]'" in command
        [command] = made(target, "DATA=vangerven2010")
        assert "subjects" not in command


def test_make_compares_the_stages_in_a_grid() -> None:
    [command] = made("lea-brain", "DATA=vangerven2010", "OVERWRITE=1", "ARGS=--fmri_mae.trainer.max_epochs=3")
    for name in ("ridge_lea", "ridge_mindvis", "ridge_direct"):
        assert f"configs/stage/{name}.yaml" in command
    assert command.endswith("--overwrite=true -- --fmri_mae.trainer.max_epochs=3")
