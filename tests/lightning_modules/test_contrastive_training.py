"""ContrastiveAlignment in training: a loss that is no number ends it, and its seed decides all that is random."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer, seed_everything
from torch import Tensor

from callbacks import RunCheckpoint
from contracts import Batch, ContractError
from lightning_modules import ContrastiveAlignment, LinearEncoder
from tests.lightning_modules.advice import NO_VALIDATION
from tests.lightning_modules.fitting import PEOPLE, assert_same_weights, fit, only, recording, small, trainer

pytestmark = NO_VALIDATION


# ---- a loss that is no number ----------------------------------------------------------------------


class Broken(Callback):
    """Puts a NaN into one signal of the last batch of an epoch, or of the second."""

    def __init__(self, epoch: int, *, last: bool = True) -> None:
        self.epoch = epoch
        self.last = last

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        if trainer.current_epoch == self.epoch and (trainer.is_last_batch if self.last else batch_idx == 1):
            batch["signal"][1, 0] = math.nan


def test_a_loss_that_is_no_number_ends_the_fit(stores: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ContractError, match=r"loss is NaN or infinite in epoch 1, batch \d+; lower .*lr \(now 0\.002\)"
    ):
        fit(recording(stores), tmp_path / "nan.ckpt", Broken(1), lr=2e-3)
    assert not (tmp_path / "nan.ckpt").exists()


def test_a_loss_that_became_no_number_earlier_ends_the_fit(stores: Path, tmp_path: Path) -> None:
    """Weights that are NaN after any batch make every later loss NaN."""

    class Early(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
            if batch_idx == 0:
                batch["signal"][0, 0] = math.nan

    with pytest.raises(ContractError, match="loss is NaN or infinite in epoch 0"):
        fit(recording(stores), tmp_path / "nan.ckpt", Early())


def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(stores: Path, tmp_path: Path) -> None:
    """A resumed fit goes on from ``last.ckpt``: weights that are NaN must never get there."""
    data = recording(stores)
    model = ContrastiveAlignment(data.layout, small)
    callbacks = RunCheckpoint(every_minutes=0), Broken(epoch=1, last=False)
    run = trainer(tmp_path, *callbacks, log_every_n_steps=1, enable_checkpointing=True)
    with pytest.raises(ContractError, match="loss is NaN or infinite in epoch 1"):
        run.fit(model, datamodule=data)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert not [name for name, value in state.items() if not torch.isfinite(value).all()]


@pytest.mark.parametrize("temperature_form", ["exp", "softplus", "raw", "fixed"])
@pytest.mark.parametrize("encoder", [LinearEncoder, small], ids=["linear", "mlp"])
def test_a_rate_that_is_far_too_large_ends_the_fit(
    stores: Path, tmp_path: Path, encoder: Any, temperature_form: str
) -> None:
    with pytest.raises(ContractError, match=r"(loss|sum of weights) is NaN or infinite.*lr \(now 1000000\.0\)"):
        fit(recording(stores), tmp_path / "large.ckpt", lr=1e6, encoder=encoder, temperature_form=temperature_form)


# ---- reproducibility -------------------------------------------------------------------------------


class Draws(Callback):
    """Uses up random numbers where a fit does not expect it."""

    def on_train_batch_start(self, *args: Any) -> None:
        torch.rand(1)

    on_train_batch_end = on_train_epoch_start = on_validation_batch_end = on_validation_start = on_train_batch_start


class Seeds(Callback):
    """The seed of the random state in which each step is computed."""

    def __init__(self) -> None:
        self.values: list[int] = []

    def on_before_backward(self, *args: Any) -> None:
        self.values.append(torch.initial_seed())


def weights_of_fit(
    stores: Path, folder: Path, *callbacks: Callback, start: int = 0, seed: int = 0
) -> dict[str, Tensor]:
    """A fit from the same first weights, whatever its seed."""
    data = recording(stores)
    torch.manual_seed(start)
    model = ContrastiveAlignment(data.layout, small, lr=1e-2)
    seed_everything(seed, verbose=False)
    trainer(folder, *callbacks).fit(model, datamodule=data)
    return model.state_dict()


def test_a_fit_is_a_function_of_its_seed(stores: Path, tmp_path: Path) -> None:
    first = weights_of_fit(stores, tmp_path)
    assert_same_weights(weights_of_fit(stores, tmp_path), first)
    assert_same_weights(weights_of_fit(stores, tmp_path, Draws()), first)
    other = weights_of_fit(stores, tmp_path, seed=1)
    assert all(not torch.equal(other[name], value) for name, value in first.items() if "weight" in name)


def test_every_step_has_its_own_random_state(stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seeds(seed: int) -> list[int]:
        callback = Seeds()
        weights_of_fit(stores, tmp_path, callback, seed=seed)
        return callback.values

    first = seeds(0)
    # 2 epochs of 12 batches: 2 x 16 samples of each person in batches of 5, whole ones only
    assert len(first) == 24
    assert len(set(first)) == 24
    assert seeds(0) == first
    assert not set(seeds(1)) & set(first)
    monkeypatch.setattr(ContrastiveAlignment, "global_rank", property(lambda self: 1))
    assert not set(seeds(0)) & set(first)


def test_the_seed_of_a_step_depends_on_nothing_else(stores: Path, tmp_path: Path) -> None:
    """Neither the model nor the data, nor how many steps were made in this process."""
    callbacks: list[Seeds] = []
    for shape, encoder in ((PEOPLE, small), (PEOPLE, LinearEncoder)):
        callbacks.append(Seeds())
        fit(recording(stores, shape), tmp_path / "seeds.ckpt", callbacks[-1], encoder=encoder, seed=4)
    assert callbacks[0].values == callbacks[1].values


def test_dropout_of_a_step_follows_its_seed(stores: Path, tmp_path: Path) -> None:
    class Masks(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            self.seen: list[Tensor] = []
            layers = [m for m in only(pl_module.encoders).modules() if isinstance(m, torch.nn.Dropout)]
            for layer in layers:
                layer.register_forward_hook(lambda layer, inputs, output: self.seen.append(output == 0))

    masks = [Masks(), Masks()]
    weights_of_fit(stores, tmp_path, masks[0])
    weights_of_fit(stores, tmp_path, Draws(), masks[1])
    assert len(masks[0].seen) > 20
    assert all(torch.equal(a, b) for a, b in zip(masks[0].seen, masks[1].seen, strict=True))
    assert any(mask.any() for mask in masks[0].seen)
