"""FmriMAE and what is made from it through the command line: on several processes, killed and resumed, relaxed."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from callbacks import read_scores
from experiments.cli import main
from tests.experiments.launching import CONFIGS, launch, several
from tests.experiments.test_resume import KILL_CONFIG, KILL_SOURCE, assert_equal, state
from tests.lightning_modules.brains import without_key_bias

# 26 training samples a person, so that the last batch of an epoch is not full; people of other regions, or of the same
BRAINS_SOURCE = """
import numpy as np
from datamodules import BrainDataModule, Facts, SignalAxes, Stimuli, Trials


class Brains(BrainDataModule):
    name = "brains"
    facts = Facts(modality="fmri", units="none", licence="MIT", citation="none", subjects=("a", "b"))
    sizes = {"a": (5, 8), "b": (5, 8)}

    def read(self, root):
        random = np.random.default_rng(0)
        image = np.tile(random.integers(0, 255, (40, 1, 1, 3), dtype=np.uint8), (1, 4, 4, 1))
        names = [f"image-{i}" for i in range(40)]
        yield Stimuli(names, image)
        for person, (first, second) in self.sizes.items():
            yield SignalAxes(person, rois={"V1": first, "V2": second})
            signal = image[:, 0, 0] / 64 @ random.normal(size=(3, first + second))
            signal = signal + random.normal(size=signal.shape)
            yield Trials(person, signal, stimulus=names, split=["train"] * 32 + ["test"] * 8)


class OtherRegions(Brains):
    name = "other"
    sizes = {"a": (5, 8), "b": (6, 3)}

    def read(self, root):
        yield from super().read(root)
"""
DATA = {
    "brains": ("--data=brains.py:Brains", "--data.init_args.root=raw", "--data.init_args.split.validation=0.2"),
    "other": ("--data=brains.py:OtherRegions", "--data.init_args.root=raw", "--data.init_args.split.validation=0.2"),
}
SIZES = ("width=16", "depth=1", "num_heads=2", "decoder_width=16", "decoder_num_heads=2", "heads=3", "patch_size=2")
TINY = (*(f"--model.init_args.{size}" for size in SIZES), "--trainer.log_every_n_steps=1")
VARIANTS = {
    "patch": ("mindvis", ("--model.init_args.masking=random", "--model.init_args.augmentation=noise")),
    "hidden": ("mindvis", ("--model.init_args.loss=hidden",)),
    "roi": ("fmri_mae", ("--model.init_args.augmentation=noise", "--model.init_args.augmentation_rate=0.5")),
    "drop": ("fmri_mae", ("--model.init_args.augmentation=drop",)),
}
ONE = (f"--config={CONFIGS}/trainer/cpu.yaml",)


def train(trainer: Sequence[str], data: str, name: str, batch_size: int, *more: str) -> list[str]:
    file, options = VARIANTS[name]
    words = ["fit", *trainer, f"--config={CONFIGS}/stage/{file}.yaml", *DATA[data], *TINY, *options]
    return [*words, f"--data.init_args.loader.batch_size={batch_size}", f"--run.name={name}", *more]


def ridge(command: str, trainer: Sequence[str], name: str, earlier: Path, *more: str) -> list[str]:
    words = [command, *trainer, f"--config={CONFIGS}/stage/ridge_lea.yaml", *DATA["other"], "--run.table=false"]
    words += ["--data.init_args.embedding={model: pixels, image_size: 2}", f"--model.init_args.fmri_mae={earlier}"]
    return [*words, f"--run.name={name}", *more]


def run_of(folder: Path, data: str, name: str, stage: str = "") -> Path:
    return folder / "runs" / data / "all" / (stage or VARIANTS[name][0]) / name


def losses(run: Path) -> list[float]:
    with (run / "csv" / "fit" / "metrics.csv").open() as file:
        return [float(row["train/loss_step"]) for row in csv.DictReader(file) if row.get("train/loss_step")]


def commands(trainer: Sequence[str], batch_size: int) -> list[list[str]]:
    return [
        train(trainer, data, name, batch_size, "--trainer.max_epochs=3")
        for data in DATA
        for name in VARIANTS
        if data == "other" or name in ("patch", "roi")
    ]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process, this one, leaves behind."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "brains.py").write_text(BRAINS_SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in commands(ONE, 8):
            main(words)
        earlier = run_of(folder, "other", "roi") / "final.ckpt"
        main(ridge("fit", ONE, "one", earlier))
        for moments in ("train", "test"):
            main(ridge("test", ONE, "one", earlier, f"--model.init_args.moment_matching={moments}"))
            run = run_of(folder, "other", "one", "ridge_lea")
            (run / "scores.json").rename(run / f"scores_{moments}.json")
    return folder


@pytest.fixture(scope="module")
def two(one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave behind, which start together and run all commands one after another."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "brains.py").write_text(BRAINS_SOURCE)
    earlier = run_of(one, "other", "roi") / "final.ckpt"
    words = commands(several(2), 4)
    words.append(ridge("fit", several(2), "two", earlier))
    # 8 test samples a person in batches of 3: one process has more of them than the other
    matching = ("--model.init_args.moment_matching=test", "--data.init_args.loader.batch_size=3")
    words.append(ridge("test", several(2), "two", earlier, *matching))
    (folder / "commands.json").write_text(json.dumps(words))
    (folder / "driver.py").write_text(
        "import json\n"
        "from pathlib import Path\n"
        "from experiments.cli import main\n"
        'for words in json.loads(Path("commands.json").read_text()):\n'
        "    main(words)\n"
    )
    assert "Starting with 2 processes" in launch(folder, ["driver.py"])
    return folder


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", VARIANTS)
def test_losses_do_not_depend_on_the_number_of_processes(one: Path, two: Path, data: str, name: str) -> None:
    if data == "brains" and name not in ("patch", "roi"):
        pytest.skip("people of other regions are the harder case")
    expected = losses(run_of(one, data, name))
    assert len(expected) == 18
    assert len(set(expected)) == len(expected)
    assert losses(run_of(two, data, name)) == pytest.approx(expected, rel=1e-4)
    ours, theirs = (
        without_key_bias(torch.load(run_of(folder, data, name) / "final.ckpt", weights_only=True)["state_dict"])
        for folder in (one, two)
    )
    for key, value in ours.items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-3, atol=1e-4)


# ---- ridge regression on its latents -----------------------------------------------------------------


def test_moments_of_all_test_samples_whatever_the_number_of_processes(one: Path, two: Path) -> None:
    found = read_scores(run_of(two, "other", "two", "ridge_lea") / "scores.json")
    expected = read_scores(run_of(one, "other", "one", "ridge_lea") / "scores_test.json")
    assert len(found) == len(expected) > 4
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.name, ours.subject, ours.gallery) == (theirs.name, theirs.subject, theirs.gallery)
        # after three epochs reconstructed signals hardly vary between pictures, so correlations of them see rounding
        exact = 1e-4 if ours.name.startswith("pearson") else 1e-5
        assert ours.value == pytest.approx(theirs.value, abs=exact), f"{ours.name} of {ours.subject}"
    plain = read_scores(run_of(one, "other", "one", "ridge_lea") / "scores_train.json")
    assert {score.transductive for score in found + expected if score.subject != "mean"} == {True}
    assert {score.transductive for score in plain} == {False}
    assert any(abs(a.value - b.value) > 1e-4 for a, b in zip(plain, expected, strict=True))


def test_scores_of_a_mean_are_marked_like_those_it_is_of(one: Path) -> None:
    scores = read_scores(run_of(one, "other", "one", "ridge_lea") / "scores_test.json")
    assert {score.transductive for score in scores if score.subject == "mean"} == {True}


def test_a_test_with_other_moments_leaves_the_checkpoint_alone(one: Path) -> None:
    run = run_of(one, "other", "one", "ridge_lea")
    assert {path.name for path in run.glob("*.ckpt")} == {"final.ckpt"}
    assert (run / "final.ckpt").stat().st_mtime_ns < (run / "scores_train.json").stat().st_mtime_ns


def test_scores_of_what_was_made_from_a_relaxed_stage_are_transductive(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "brains.py").write_text(BRAINS_SOURCE)
    main(train(ONE, "other", "roi", 8, "--trainer.max_epochs=1", "--model.init_args.relax=true"))
    earlier = run_of(tmp_path, "other", "roi") / "final.ckpt"
    main(ridge("fit", ONE, "relaxed", earlier))
    main(ridge("test", ONE, "relaxed", earlier))
    scores = read_scores(run_of(tmp_path, "other", "relaxed", "ridge_lea") / "scores.json")
    assert {score.transductive for score in scores if score.subject != "mean"} == {True}
    assert read_scores(run_of(one, "other", "one", "ridge_lea") / "scores_train.json")[0].transductive is False


# ---- killed and resumed ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    (folder / "brains.py").write_text(BRAINS_SOURCE)
    (folder / "kill.py").write_text(KILL_SOURCE)
    (folder / "kill.yaml").write_text(KILL_CONFIG)
    return folder


@pytest.fixture(scope="module")
def hooks(place: Path) -> dict[tuple[str, int], int]:
    """How many hooks an unbroken fit passes, by variant and processes; filled when asked for."""
    return {}


def kill_and_resume(
    place: Path, hooks: dict[tuple[str, int], int], name: str, share: float, processes: int = 1, minutes: float = 0
) -> None:
    def start(run: str, *more: str, **options: object) -> None:
        trainer = ONE if processes == 1 else several(processes)
        words = train(trainer, "other", name, 8 // processes, "--trainer.max_epochs=3", "--config=kill.yaml")
        launch(place, ["-m", "experiments", *words, f"--run.name={run}", *more], **options)  # type: ignore[arg-type]

    def checkpoint(run: str) -> Path:
        return run_of(place, "other", run, VARIANTS[name][0]) / "final.ckpt"

    # variants of one stage share its folder
    unbroken, run = f"unbroken-{name}-{processes}", f"killed-{name}-{processes}-{share}"
    often = f"--run.checkpoint_minutes={minutes}"
    if (name, processes) not in hooks:
        start(unbroken, "--run.checkpoint_minutes=0")
        hooks[name, processes] = int((place / "passed.txt").read_text())
    at = round(share * hooks[name, processes])
    start(run, often, status=-9, variables={"KILL_AT": str(at)})
    assert not checkpoint(run).exists()
    start(run, often, "--run.resume=true")
    assert_equal(state(checkpoint(run)), state(checkpoint(unbroken)))


@pytest.mark.full
def test_a_killed_fit_goes_on_as_if_nothing_had_happened(place: Path, hooks: dict[tuple[str, int], int]) -> None:
    kill_and_resume(place, hooks, "patch", 0.45)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("name", "processes", "minutes"), [("roi", 1, 0), ("drop", 1, 15), ("patch", 2, 0)])
def test_kills_anywhere(
    place: Path, hooks: dict[tuple[str, int], int], name: str, processes: int, minutes: float, seed: int
) -> None:
    share = random.Random(f"{name} {processes} {seed}").uniform(0.1, 0.9)
    kill_and_resume(place, hooks, name, round(share, 3), processes, minutes)
