"""The command line as a user meets it: every rule of it, through the console script's entry point."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import load_file

from experiments.cli import main
from tests.experiments import launching

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
TINY = (
    '--data.init_args.phantom={"people": 2, "train_images": 2, "test_images": 1, "train_repetitions": 1, '
    '"test_repetitions": 2, "sessions": 2}',
    '--data.init_args.embedding={"model": "pixels", "image_size": 8, "target": "pca(8)"}',
)
Neuroalign = Callable[..., str]


@pytest.fixture
def neuroalign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Neuroalign:
    """Run a command in an empty folder with tiny Phantom data; returns what it printed, whatever its status."""
    monkeypatch.chdir(tmp_path)

    def call(command: str, *args: str, data: str | None = str(CONFIGS / "data/phantom.yaml"), status: int = 0) -> str:
        words = [command, f"--config={CONFIGS}/trainer/cpu.yaml", f"--config={CONFIGS}/stage/ridge_direct.yaml"]
        words += [] if data is None else [f"--data={data}"]
        words += [*TINY, *args] if data and data.endswith("phantom.yaml") else list(args)
        return "".join(launching.call(words, capfd, status=status))

    return call


def run_folder(tmp_path: Path, name: str = "default") -> Path:
    return tmp_path / "runs" / "phantom" / "all" / "ridge_direct" / name


def test_fit_and_test_leave_checkpoint_config_and_scores(neuroalign: Neuroalign, tmp_path: Path) -> None:
    neuroalign("fit")
    folder = run_folder(tmp_path)
    assert (folder / "final.ckpt").is_file()
    assert not (folder / "last.ckpt").exists()
    printed = neuroalign("test")
    scores = json.loads((folder / "scores.json").read_text())
    assert {score["subject"] for score in scores} == {"01", "02", "mean"}
    assert {score["name"] for score in scores} >= {"two_way", "top_1", "top_5", "pearson_mean", "pearson_of_ceiling"}
    required = {"name", "value", "low", "high", "p_value", "chance", "ceiling", "subject", "gallery", "n"}
    assert required | {"similarity", "protocol", "transductive"} <= set(scores[0])
    assert "two_way" in printed
    assert str(folder.relative_to(tmp_path)) in printed
    for command in ("fit", "test"):
        resolved = yaml.safe_load((folder / f"config_{command}.yaml").read_text())
        assert resolved["data"]["init_args"]["embedding"]["image_size"] == 8
        assert "${" not in (folder / f"config_{command}.yaml").read_text()
    assert (folder / "csv" / "test" / "metrics.csv").read_text().count("two_way")


def test_validate_and_predict_leave_their_results(neuroalign: Neuroalign, tmp_path: Path) -> None:
    neuroalign("fit")
    assert "two_way" in neuroalign("validate")
    scores = json.loads((run_folder(tmp_path) / "scores_validation.json").read_text())
    assert {score["n"] for score in scores if score["subject"] == "01"} == {8}
    neuroalign("predict")
    predictions = load_file(run_folder(tmp_path) / "predictions.safetensors")
    assert predictions["02/brain_embedding"].shape == (40, 8)
    assert predictions["02/row"].tolist() == list(range(40, 80))


def test_the_resolved_config_repeats_the_run(neuroalign: Neuroalign, tmp_path: Path) -> None:
    neuroalign("fit")
    neuroalign("test")
    first = json.loads((run_folder(tmp_path) / "scores.json").read_text())
    config = run_folder(tmp_path) / "config_fit.yaml"
    main(["fit", f"--config={config}", "--run.name=again"])
    main(["test", f"--config={config}", "--run.name=again", "--ckpt_path=null"])
    again = next((tmp_path / "runs").rglob("again/scores.json"))
    assert json.loads(again.read_text()) == first


def test_a_finished_run_is_neither_repeated_nor_lost(neuroalign: Neuroalign, tmp_path: Path) -> None:
    neuroalign("fit")
    final = run_folder(tmp_path) / "final.ckpt"
    before = final.read_bytes()
    message = neuroalign("fit", status=2)
    assert "--run.overwrite=true" in message
    assert "--run.resume=true" in message
    assert final.read_bytes() == before
    neuroalign("fit", "--run.overwrite=true", "--model.init_args.alpha=7")
    assert final.read_bytes() != before


def test_a_failing_fit_leaves_the_old_result(neuroalign: Neuroalign, tmp_path: Path) -> None:
    neuroalign("fit")
    before = (run_folder(tmp_path) / "final.ckpt").read_bytes()
    message = neuroalign("fit", "--run.overwrite=true", "--model.init_args.memory_limit=1e-6", status=2)
    assert "memory_limit" in message
    assert (run_folder(tmp_path) / "final.ckpt").read_bytes() == before
    neuroalign("fit", "--run.overwrite=true")


def test_checkpoint_is_plain_data_and_loads_without_a_datamodule(neuroalign: Neuroalign, tmp_path: Path) -> None:
    from lightning_modules import RidgeAlignment

    neuroalign("fit")
    final = run_folder(tmp_path) / "final.ckpt"
    checkpoint = torch.load(final, weights_only=True)
    assert checkpoint["lineage"][0]["stage"] == "RidgeAlignment"
    model = RidgeAlignment.load_from_checkpoint(final, weights_only=True)
    assert model.layout["subjects"] == ["01", "02"]
    assert all(bool(parameter.abs().sum() > 0) for parameter in model.parameters())


def test_a_checkpoint_of_other_data_is_refused_with_both_sides(neuroalign: Neuroalign, tmp_path: Path) -> None:
    neuroalign("fit")
    final = run_folder(tmp_path) / "final.ckpt"
    other = ("--run.name=other", f"--ckpt_path={final}", "--data.init_args.embedding.target=pca(5)")
    message = neuroalign("test", *other, status=2)
    assert "embedding_width: checkpoint 8, data 5" in message


def test_a_checkpoint_of_other_samples_is_refused(neuroalign: Neuroalign, tmp_path: Path) -> None:
    neuroalign("fit")
    message = neuroalign("test", "--data.init_args.samples.average_train=1", status=2)
    assert "'average_train': 'all'" in message
    assert "'average_train': '1'" in message
    # how test repetitions are averaged is free
    neuroalign("test", "--data.init_args.samples.average_test=1")


def test_a_layout_of_odd_texts_survives_the_command_line(
    neuroalign: Neuroalign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checksums and class names that look like numbers, dates or YAML stay what they are."""
    from datamodules import Phantom
    from datamodules.core.image_space import ImageSpace

    odd = {"cleaning": "12345678", "recordings": "1e10", "rois": "null"}
    monkeypatch.setattr(Phantom, "_preparation", property(lambda self: odd))
    monkeypatch.setattr(ImageSpace, "training_set", property(lambda self: "00123456"))
    neuroalign("fit")
    neuroalign("test")
    layout = torch.load(run_folder(tmp_path) / "final.ckpt", weights_only=True)["hyper_parameters"]["layout"]
    assert layout["preparation"] == odd
    assert layout["training_set"] == "00123456"


def test_a_damaged_checkpoint_is_one_error(neuroalign: Neuroalign, tmp_path: Path) -> None:
    neuroalign("fit")
    final = run_folder(tmp_path) / "final.ckpt"
    final.write_bytes(final.read_bytes()[:-1000])
    message = neuroalign("test", status=2)
    assert "final.ckpt is damaged" in message
    assert "Traceback" not in message


def test_a_run_that_is_being_trained_is_left_alone(neuroalign: Neuroalign, tmp_path: Path) -> None:
    run_folder(tmp_path).mkdir(parents=True)
    with FileLock(run_folder(tmp_path) / ".lock"):
        assert "trained by another process" in neuroalign("fit", status=2)
    neuroalign("fit")


def test_a_run_folder_that_cannot_be_made_is_one_error(neuroalign: Neuroalign, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = neuroalign("fit", f"--run.root={tmp_path}/file", status=2)
    assert "change --run.root" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('name = "noise"', "name = (", "noise.py:6 cannot be imported: SyntaxError"),
        ("import numpy as np", "import nompy as np", "noise.py:2 cannot be imported: ModuleNotFoundError"),
        ("rng = np.random.default_rng(0)", "{}['boom']", "noise.py:10 ({}['boom']): KeyError: 'boom'"),
        ('split=["train"] * 22 + ["test"] * 8', 'split="train"', "marks 30 train trials"),
    ],
)
def test_faults_of_a_users_file_are_one_line(
    neuroalign: Neuroalign, tmp_path: Path, old: str, new: str, expected: str
) -> None:
    (tmp_path / "noise.py").write_text(OUTSIDE.replace(old, new))
    message = neuroalign("fit", "--data.init_args.root=.", data="noise.py:Noise", status=2)
    assert expected in message
    assert "Traceback" not in message
    assert "usage" not in message


def test_a_reader_that_changed_does_not_get_the_old_store(neuroalign: Neuroalign, tmp_path: Path) -> None:
    for name, text in (("one", OUTSIDE), ("two", OUTSIDE.replace("default_rng(0)", "default_rng(1)"))):
        (tmp_path / f"{name}.py").write_text(text)
    neuroalign("fit", "--data.init_args.root=.", "--run.name=one", data="one.py:Noise")
    message = neuroalign("fit", "--data.init_args.root=.", "--run.name=two", data="two.py:Noise", status=2)
    assert "another version of Noise.read" in message


def test_data_has_exactly_one_source(neuroalign: Neuroalign, tmp_path: Path) -> None:
    second = tmp_path / "more.yaml"
    second.write_text("data:\n  class_path: datamodules.VanGerven2010\n")
    assert "2 sources" in neuroalign("fit", f"--config={second}", status=2)
    assert "2 sources" in neuroalign("fit", f"--data={CONFIGS}/data/miyawaki2008.yaml", status=2)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("argument", "suggestion"),
    [
        ("--data.init_args.embeding.model=pixels", "embedding"),
        ("--model.init_args.alfa=3", "alpha"),
        ("--model=RidgeAlignmnt", "RidgeAlignment"),
        ("--data.init_args.embedding.modle=pixels", "model"),
    ],
)
def test_a_typo_ends_with_a_suggestion(neuroalign: Neuroalign, argument: str, suggestion: str) -> None:
    message = neuroalign("fit", argument, status=2)
    assert suggestion in message.partition("Did you mean: ")[2]
    assert "Given value" not in message


def test_a_missing_data_file_names_those_there_are(neuroalign: Neuroalign) -> None:
    message = neuroalign("fit", data=str(CONFIGS / "data/phantm.yaml"), status=2)
    assert "phantom.yaml" in message


def test_errors_of_data_are_one_line_without_traceback(neuroalign: Neuroalign) -> None:
    message = neuroalign("fit", '--data.init_args.subjects=["09"]', status=2)
    assert "Traceback" not in message
    assert "phantom has 01, 02" in message


def test_test_without_a_checkpoint_says_what_to_do(neuroalign: Neuroalign) -> None:
    assert "train this run first" in neuroalign("test", status=2)


OUTSIDE = """
import numpy as np
from datamodules import BrainDataModule, Facts, Stimuli, Trials

class Noise(BrainDataModule):
    name = "noise"
    facts = Facts(modality="fmri", units="none", licence="MIT", citation="none", subjects=("a",))

    def read(self, root):
        rng = np.random.default_rng(0)
        images = np.tile(rng.integers(0, 255, (30, 1, 1, 3), dtype=np.uint8), (1, 8, 8, 1))
        names = [f"image-{i}" for i in range(30)]
        yield Stimuli(id=names, image=images)
        signal = images[:, 0, 0] @ rng.normal(size=(3, 40)) + rng.normal(size=(30, 40))
        yield Trials(subject="a", signal=signal, stimulus=names, split=["train"] * 22 + ["test"] * 8)
"""


@pytest.mark.parametrize("by_file", [False, True])
def test_a_data_set_may_live_outside_the_repository(neuroalign: Neuroalign, tmp_path: Path, by_file: bool) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "noise.py").write_text(OUTSIDE)
    data = "elsewhere/noise.py:Noise"
    if by_file:
        data = "noise.yaml"
        (tmp_path / data).write_text("class_path: elsewhere/noise.py:Noise\ninit_args:\n  root: elsewhere\n")
    arguments = () if by_file else ("--data.init_args.root=elsewhere",)
    neuroalign("fit", *arguments, data=data)
    neuroalign("test", *arguments, data=data)
    scores = json.loads((tmp_path / "runs/noise/all/ridge_direct/default/scores.json").read_text())
    assert next(score for score in scores if score["name"] == "two_way")["value"] > 0.8
    config = yaml.safe_load((tmp_path / "runs/noise/all/ridge_direct/default/config_test.yaml").read_text())
    assert config["data"]["class_path"].endswith("Noise")


@pytest.mark.full
def test_weights_and_biases_works_offline_without_login(neuroalign: Neuroalign, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "wb"))
    (tmp_path / "wb").mkdir()
    # a process of its own: wandb keeps threads and global settings
    words = ["fit", f"--config={CONFIGS}/trainer/cpu.yaml", f"--config={CONFIGS}/stage/ridge_direct.yaml"]
    words += [f"--config={CONFIGS}/logger/wandb.yaml", f"--data={CONFIGS}/data/phantom.yaml", *TINY]
    result = subprocess.run([sys.executable, "-m", "experiments", *words], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "kept offline" in result.stderr
    assert list((tmp_path / "wb").rglob("*.wandb"))
    assert (run_folder(tmp_path) / "csv" / "fit" / "metrics.csv").is_file()


def test_samplers_of_lightning_are_refused(neuroalign: Neuroalign) -> None:
    message = neuroalign("fit", "--trainer.use_distributed_sampler=true", status=2)
    assert "use_distributed_sampler=false" in message


def test_convert_prepares_without_training(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    main(["convert", f"--data={CONFIGS}/data/phantom.yaml", *TINY])
    printed = capsys.readouterr().out
    assert "sub-02" in printed
    assert (tmp_path / "data/stores/features").is_dir()
    assert not (tmp_path / "runs").exists()


def test_a_score_that_needs_what_a_stage_lacks_is_refused_before_the_first_step(
    neuroalign: Neuroalign, tmp_path: Path
) -> None:
    (tmp_path / "needy.py").write_text(
        "from callbacks import ScoreCallback\n"
        "class Needy(ScoreCallback):\n"
        "    needs = frozenset({'generated'})\n"
        "    def evaluate(self, parts, *, resample=True):\n"
        "        return []\n"
    )
    extra = tmp_path / "needy.yaml"
    extra.write_text("trainer:\n  callbacks+:\n    - class_path: needy.py:Needy\n")
    message = neuroalign("fit", f"--config={extra}", status=2)
    assert "Needy needs generated, but RidgeAlignment gives only brain_embedding" in message


def test_grid_joins_folds_and_averages_people(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"--stage=[{CONFIGS}/stage/ridge_direct.yaml]", f"--data=[{CONFIGS}/data/phantom.yaml]"]
    words += [f"--trainer={CONFIGS}/trainer/cpu.yaml", "--name=g", "--", *TINY, "--data.init_args.split.folds=3"]
    words += ["--data.init_args.split.validation=0"]
    main(["grid", *words])
    scores = json.loads((tmp_path / "runs/phantom/all/ridge_direct/g/grid.json").read_text())
    two_way = {score["subject"]: score for score in scores if score["name"] == "two_way"}
    assert set(two_way) == {"01", "02", "mean"}
    # every one of the 120 pictures was tested once, in a gallery of all
    assert two_way["01"]["stimuli"] == 120
    assert two_way["01"]["gallery"] == "test (120)"
    assert two_way["01"]["protocol"] == "by_stimulus (3 folds of 3)"
    assert two_way["mean"]["value"] == pytest.approx((two_way["01"]["value"] + two_way["02"]["value"]) / 2)
    assert len(list((tmp_path / "runs/phantom").glob("sub-*/ridge_direct/g_fold-*/final.ckpt"))) == 6
    assert "run folders:" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["grid", *words, "--model.init_args.alpha=3"])
    assert "trained with other arguments" in capsys.readouterr().err


def test_the_console_script_lists_its_commands(capsys) -> None:
    main([])
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("fit", "validate", "test", "predict", "grid", "convert"))
