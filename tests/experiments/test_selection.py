"""What a fit may look at when it chooses and stops: validation, never the test split; and adapting to new people."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from callbacks import RunCheckpoint, read_scores
from contracts import ContractError, DataError
from datamodules import EmbeddingOptions, LoaderOptions
from experiments.cli import main
from tests.experiments.launching import CONFIGS, launch
from tests.experiments.test_resume import assert_equal, state

TRAINER = f"--config={CONFIGS}/trainer/cpu.yaml"
CONTRASTIVE = f"--config={CONFIGS}/stage/contrastive.yaml"
QUIET = ("--trainer.enable_progress_bar=false", "--run.table=false")
SMALL = ("--model.init_args.encoder=ResidualMLP", "--model.init_args.encoder.init_args.hidden=32")

# two people and ten classes; what is recorded and shown for testing depends on a file that says how
SPOILT_SOURCE = """
from pathlib import Path
import numpy as np
from datamodules import BrainDataModule, Facts, Stimuli, Trials

class Spoilt(BrainDataModule):
    name = "spoilt"
    facts = Facts(modality="fmri", units="none", licence="MIT", citation="none", subjects=("a", "b"))

    def read(self, root):
        rng = np.random.default_rng(0)
        images = np.tile(rng.integers(0, 255, (60, 1, 1, 3), dtype=np.uint8), (1, 8, 8, 1))
        signal = {s: images[:, 0, 0] @ rng.normal(size=(3, 20)) + 20 * rng.normal(size=(60, 20)) for s in "ab"}
        test = np.arange(60) >= 50
        if Path(root, "spoilt.txt").exists():
            images[test] = rng.integers(0, 255, images[test].shape, dtype=np.uint8)
            for recorded in signal.values():
                recorded[test] = 1e6 * rng.normal(size=recorded[test].shape)
        names = [f"image-{i}" for i in range(60)]
        yield Stimuli(id=names, image=images, label=[f"class {i % 10}" for i in range(60)])
        split = ["test" if number >= 50 else "train" for number in range(60)]
        for subject, recorded in signal.items():
            yield Trials(subject=subject, signal=recorded, stimulus=names, split=split)
"""
SPOILT = (
    "--data=spoilt.py:Spoilt",
    "--data.init_args.root=raw",
    "--data.init_args.embedding.image_size=4",
    "--data.init_args.loader.batch_size=16",
    "--data.init_args.split.validation=0.2",
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    (tmp_path / "spoilt.py").write_text(SPOILT_SOURCE)
    return tmp_path


def fit(*more: str, name: str = "default") -> Path:
    main(["fit", TRAINER, CONTRASTIVE, *SPOILT, *SMALL, *QUIET, "--trainer.max_epochs=6", f"--run.name={name}", *more])
    return next(Path("runs").glob(f"*/*/contrastive/{name}"))


def lines(folder: Path) -> list[str]:
    return (folder / "csv" / "fit" / "metrics.csv").read_text().splitlines()


def test_nothing_of_a_fit_depends_on_the_test_split(place: Path) -> None:
    choice = ("--run.monitor=validation/all/two_way", "--run.mode=max", "--run.patience=3")
    galleries = ("--config=all.yaml",)
    (place / "all.yaml").write_text(
        "trainer:\n  callbacks+:\n    - class_path: callbacks.Identification\n      init_args:\n"
        "        galleries: [all, test]\n"
    )
    whole = fit(*choice, *galleries, name="whole")
    (place / "raw" / "spoilt.txt").touch()
    spoilt = fit(*choice, *galleries, "--data.init_args.stores=other", name="spoilt")
    assert_equal(state(spoilt / "final.ckpt"), state(whole / "final.ckpt"))
    assert_equal(state(spoilt / "last.ckpt"), state(whole / "last.ckpt"))
    assert lines(spoilt) == lines(whole)
    assert any("validation/all/two_way" in line for line in lines(whole)[:1])


ASKS_SOURCE = """
from lightning import Callback

class Asks(Callback):
    def __init__(self, what: str) -> None:
        self.what = what

    def on_train_epoch_start(self, trainer, module):
        data = trainer.datamodule
        {
            "dataset": lambda: data.dataset("test"),
            "loader": data.test_dataloader,
            "predictions": data.predict_dataloader,
            "context": lambda: data.score_context("test"),
        }[self.what]()
"""


@pytest.mark.parametrize("what", ["dataset", "loader", "predictions", "context"])
def test_the_test_split_cannot_be_reached_from_a_fit(place: Path, what: str, capfd: pytest.CaptureFixture[str]) -> None:
    (place / "asks.py").write_text(ASKS_SOURCE)
    (place / "asks.yaml").write_text(
        f"trainer:\n  callbacks+:\n    - class_path: asks.py:Asks\n      init_args: {{what: {what}}}\n"
    )
    with pytest.raises(SystemExit):
        fit("--config=asks.yaml")
    assert "the test split was asked for while fitting" in capfd.readouterr().err
    assert not list(place.rglob("final.ckpt"))


def test_the_test_split_is_there_again_after_a_fit(place: Path) -> None:
    folder = fit()
    main(["test", TRAINER, CONTRASTIVE, *SPOILT, *SMALL, *QUIET])
    assert (folder / "scores.json").exists()


# ---- the choice of a checkpoint ------------------------------------------------------------------


def test_the_best_checkpoint_is_kept(place: Path) -> None:
    rate = (
        "--model.init_args.lr=0.01",
        "--model.init_args.schedule=constant",
        "--model.init_args.warmup=0",
        "--trainer.max_epochs=12",
    )
    # the worst by loss, which is surely not the last
    folder = fit("--run.monitor=validation/loss", "--run.mode=max", *rate)
    header, *rows = [line.split(",") for line in lines(folder)]
    column = header.index("validation/loss")
    losses = [float(row[column]) for row in rows if row[column]]
    assert len(losses) == 12
    best = int(np.argmax(losses))
    assert best < 11, "the last epoch is the best: this says nothing"
    checkpoint = torch.load(folder / "final.ckpt", weights_only=True)
    assert checkpoint["epoch"] == best
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 11
    assert not (folder / "best.ckpt").exists()
    until = fit(*rate, f"--trainer.max_epochs={best + 1}", name="until")
    assert_equal(checkpoint["state_dict"], state(until / "final.ckpt")["state_dict"])
    main(["validate", TRAINER, CONTRASTIVE, *SPOILT, *SMALL, *QUIET])
    assert read_scores(folder / "scores_validation.json")


def test_a_fit_stops_when_validation_gets_no_better(place: Path) -> None:
    folder = fit(
        "--run.monitor=validation/loss", "--run.patience=2", "--model.init_args.lr=0.1", "--trainer.max_epochs=60"
    )
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] < 58
    assert (folder / "final.ckpt").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run.monitor=test/test/two_way"], "only validation may choose a checkpoint"),
        (["--run.monitor=train/loss"], "only validation may choose a checkpoint"),
        (["--run.monitor=validation/losss"], "validation/losss' was not logged; validation logs .*validation/loss"),
        (
            ["--run.monitor=validation/loss", "--data.init_args.split.validation=0"],
            r"set --data\.init_args\.split\.val",
        ),
        (["--run.patience=3"], "needs something to watch"),
    ],
)
def test_impossible_choices_are_refused(
    place: Path, words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        fit(*words)
    printed = capfd.readouterr().err
    assert re.search(message, printed), printed
    assert not list(place.rglob("final.ckpt"))


def test_an_overwriting_fit_that_fails_leaves_the_old_result(place: Path) -> None:
    folder = fit()
    before = (folder / "final.ckpt").read_bytes()
    with pytest.raises(SystemExit):
        fit("--run.overwrite=true", "--run.monitor=validation/nothing")
    assert (folder / "final.ckpt").read_bytes() == before


def test_a_resumed_fit_keeps_the_logs_of_its_parts(place: Path) -> None:
    folder = fit("--trainer.max_epochs=2")
    first = lines(folder)
    fit("--trainer.max_epochs=4", "--run.resume=true")
    assert lines(folder) == first
    assert (folder / "csv" / "fit-2" / "metrics.csv").exists()
    assert torch.load(folder / "final.ckpt", weights_only=True)["epoch"] == 3


def test_monitor_must_be_about_validation() -> None:
    with pytest.raises(ContractError, match="only validation"):
        RunCheckpoint(monitor="test/loss")


# ---- new people ----------------------------------------------------------------------------------


def test_a_new_person_is_learned_by_their_own_layer(place: Path) -> None:
    one, other = '--data.init_args.subjects=["a"]', '--data.init_args.subjects=["b"]'
    base = fit(one, "--trainer.max_epochs=30", name="base")
    adapt = f"--model.init_args.adapt_subject={base / 'final.ckpt'}"
    adapted = fit(other, adapt, "--trainer.max_epochs=30", name="adapted")
    before, after = (state(folder / "final.ckpt")["state_dict"] for folder in (base, adapted))
    shared = [name for name in before if "subject_layers" not in name]
    assert len(shared) > 5
    assert all(torch.equal(before[name], after[name]) for name in shared)
    words = [TRAINER, CONTRASTIVE, *SPOILT, *SMALL, *QUIET, other, "--run.name=adapted"]
    (base / "final.ckpt").rename(base / "away.ckpt")
    main(["test", *words, f"--model.init_args.adapt_subject={base / 'final.ckpt'}"])
    scores = {score.name: score.value for score in read_scores(adapted / "scores.json")}
    assert scores["two_way"] > 0.6


def test_a_person_is_not_adapted_to_other_pictures(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one, other = '--data.init_args.subjects=["a"]', '--data.init_args.subjects=["b"]'
    base = fit(one, "--data.init_args.split.folds=3", name="base")
    folds = ("--data.init_args.split.folds=3", "--data.init_args.split.fold=1")
    adapt = f"--model.init_args.adapt_subject={base / 'final.ckpt'}"
    fit(other, *folds, adapt, name="adapted")
    with pytest.raises(SystemExit):
        main(["test", TRAINER, CONTRASTIVE, *SPOILT, *SMALL, *QUIET, other, *folds, adapt, "--run.name=adapted"])
    assert "test pictures were training pictures of the ContrastiveAlignment" in capfd.readouterr().err


def test_the_position_of_a_fit_is_plain(tmp_path: Path) -> None:
    from tests.formats.recording import Recording, experiment

    data: Any = Recording(
        str(tmp_path / "raw"),
        experiment(),
        stores=str(tmp_path / "stores"),
        embedding=EmbeddingOptions(image_size=4),
        loader=LoaderOptions(batch_size=4, workers=0),
    )
    assert data.state_dict() == {"epoch": 0, "batches_done": 0}
    first = [batch["row"].tolist() for batch in data.train_dataloader()]
    data.load_state_dict({"epoch": 0, "batches_done": 3})
    assert [batch["row"].tolist() for batch in data.train_dataloader()] == first[3:]
    with pytest.raises(DataError, match="split must be one of"):
        data.dataset("tests")


@pytest.mark.full
def test_a_compiled_stage_has_the_same_weights(place: Path) -> None:
    still = ("--model.init_args.encoder.init_args.input_dropout=0", "--model.init_args.encoder.init_args.dropout=0")
    for compiled in ("false", "true"):
        # in a process of its own: the checks of types that tests switch on cannot be compiled
        words = [*SPOILT, *SMALL, *still, *QUIET, "--trainer.max_epochs=2", f"--run.name={compiled}"]
        launch(
            place, ["-m", "experiments", "fit", TRAINER, CONTRASTIVE, *words, f"--model.init_args.compile={compiled}"]
        )
    plain, compiled_state = (
        state(place / "runs" / "spoilt" / "all" / "contrastive" / name / "final.ckpt")["state_dict"]
        for name in ("false", "true")
    )
    assert plain.keys() == compiled_state.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled_state[name], value, rtol=1e-3, atol=1e-4)
