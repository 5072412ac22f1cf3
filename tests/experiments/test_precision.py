"""What runs are computed in: bfloat16 where it does no harm, and scores and closed forms that do not know of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments import cli, devices
from experiments.cli import main
from experiments.devices import choose_precision
from experiments.run import CLI, run
from tests.experiments.launching import CONFIGS
from tests.experiments.test_distributed import assert_same_scores
from tests.tiny import TINY

CPU = f"--config={CONFIGS}/trainer/cpu.yaml"
BF16 = "--trainer.precision=bf16-mixed"
QUIET = ("--trainer.enable_progress_bar=false", "--run.table=false")
SMALL = {
    "fmri_mae": ("--trainer.max_epochs=1", "--run.monitor=null"),
    "maskgit": (
        *("--trainer.max_steps=4", *(f"--model.init_args.{each}" for each in ("width=16", "num_heads=2", "steps=2"))),
        "--model.init_args.mlp_width=16",
    ),
    "tokenizer": ("--trainer.max_steps=4",),
    "clip": ("--trainer.max_epochs=1",),
    "contrastive": ("--trainer.max_epochs=1",),
}


def words(stage: str, data: str, name: str, *more: str) -> list[str]:
    files = [CPU, f"--config={CONFIGS}/stage/{stage}.yaml", f"--data={CONFIGS}/data/{data}.yaml"]
    return [*files, *TINY[data], *QUIET, *SMALL.get(stage, ()), f"--run.name={name}", *more]


def weights(stage: str, data: str, name: str) -> dict[str, Tensor]:
    file = Path("runs") / data / "all" / stage / name / "final.ckpt"
    state: dict[str, Tensor] = torch.load(file, weights_only=True)["state_dict"]
    return state


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A GPU, as far as the choice looks, that computes bfloat16 itself."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    return monkeypatch


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[CLI]:
    """What each command built."""
    built: list[CLI] = []
    monkeypatch.setattr(cli, "run", lambda words: built.append(run(words)))
    return built


# ---- the choice ----------------------------------------------------------------------------------

ASKED = {"command": "fit", "accelerator": "auto", "closed_form": False, "bf16": True}


@pytest.mark.parametrize(
    ("given", "options", "expected", "said"),
    [
        (None, {}, "bf16-mixed", "bf16-mixed (this GPU has bfloat16)"),
        (None, {"accelerator": "gpu"}, "bf16-mixed", "bf16-mixed"),
        (None, {"accelerator": "cuda"}, "bf16-mixed", "bf16-mixed"),
        (None, {"accelerator": "cpu"}, None, "float32 (no GPU)"),
        (None, {"accelerator": "mps"}, None, "float32 (no GPU)"),
        (None, {"bf16": False}, None, ""),
        (None, {"closed_form": True}, None, "float32 (a closed-form stage)"),
        *(
            (None, {"command": each}, None, "scores must not depend on the GPU")
            for each in ("validate", "test", "predict")
        ),
        # what is given is taken
        ("32-true", {}, "32-true", ""),
        ("16-mixed", {}, "16-mixed", ""),
        ("bf16-mixed", {"command": "test", "bf16": False}, "bf16-mixed", ""),
        # but not for what is solved
        ("bf16-mixed", {"closed_form": True}, "32-true", "float32 instead of bf16-mixed (a closed-form stage)"),
        ("16-true", {"closed_form": True, "command": "test"}, "32-true", "float32 instead of 16-true"),
        ("64-true", {"closed_form": True}, "64-true", ""),
        ("32", {"closed_form": True}, "32", ""),
    ],
)
def test_precision_is_chosen_and_said(
    given: str | None,
    options: Mapping[str, str | bool],
    expected: str | None,
    said: str,
    gpu: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO"):
        assert choose_precision(given, **{**ASKED, **options}) == expected
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)


def test_a_gpu_that_only_emulates_bfloat16_computes_in_float32(
    gpu: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    with caplog.at_level("INFO"):
        assert choose_precision(None, **ASKED) is None
    assert "float32 (this GPU has no bfloat16 of its own)" in caplog.text
    gpu.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level("INFO"):
        assert choose_precision(None, **ASKED) is None
    assert "float32 (no GPU)" in caplog.text


# ---- runs ----------------------------------------------------------------------------------------


def test_a_fit_takes_the_choice_and_its_test_does_not(
    place: Path, commands: list[CLI], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the CPU computes bfloat16, too
    monkeypatch.setattr(devices, "_against_bf16", lambda command, *_: "" if command == "fit" else "not a fit")
    for command in ("fit", "test"):
        main([command, *words("contrastive", "phantom", "chosen", "--run.bf16=true")])
    assert [each.trainer.precision for each in commands] == ["bf16-mixed", "32-true"]


@pytest.mark.parametrize("stage", ["ridge_lea", pytest.param("ridge_direct", marks=pytest.mark.full)])
def test_ridge_does_not_change_with_precision(stage: str, place: Path) -> None:
    if stage == "ridge_lea":
        # the same one for both
        for name in ("full", "half"):
            main(["fit", *words("fmri_mae", "phantom", name)])
    for name, more in (("full", ()), ("half", (BF16,))):
        for command in ("fit", "test"):
            main([command, *words(stage, "phantom", name, *more)])
    full, half = (weights(stage, "phantom", name) for name in ("full", "half"))
    assert full.keys() == half.keys()
    for name, value in full.items():
        torch.testing.assert_close(half[name], value, rtol=1e-5, atol=1e-5)
    folder = place / "runs" / "phantom" / "all" / stage
    assert_same_scores(folder / "half" / "scores.json", folder / "full" / "scores.json")


@pytest.mark.parametrize(
    ("stage", "data"),
    [
        ("contrastive", "phantom"),
        *(
            pytest.param(stage, data, marks=pytest.mark.full)
            for stage, data in (
                ("fmri_mae", "phantom"),
                ("clip", "phantom_pictures"),
                ("tokenizer", "phantom_pictures"),
            )
        ),
    ],
)
def test_stages_trained_by_gradients_train_in_bfloat16(stage: str, data: str, place: Path, commands: list[CLI]) -> None:
    losses = {}
    for name, more in (("full", ()), ("half", (BF16,))):
        main(["fit", *words(stage, data, name, *more)])
        metrics = commands[-1].trainer.callback_metrics
        losses[name] = next(float(value) for key, value in metrics.items() if key.endswith("loss"))
        assert all(torch.isfinite(value).all() for value in metrics.values())
    full, half = (weights(stage, data, name) for name in ("full", "half"))
    assert {name: value.dtype for name, value in half.items()} == {name: value.dtype for name, value in full.items()}
    assert any(not torch.equal(half[name], full[name]) for name in full), "bfloat16 was never used"
    # three significant digits, over some steps
    assert losses["half"] == pytest.approx(losses["full"], rel=0.05)


@pytest.mark.full
def test_maskgit_trains_in_bfloat16_and_draws_in_float32(place: Path) -> None:
    main(["fit", *words("tokenizer", "phantom", "half")])
    for command, more in (("fit", (BF16,)), ("test", ())):
        main([command, *words("maskgit", "phantom", "half", *more)])
    assert (place / "runs" / "phantom" / "all" / "maskgit" / "half" / "scores.json").is_file()
