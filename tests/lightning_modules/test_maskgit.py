"""MaskGIT: masks and losses by formula, conditions, learning, pictures that belong to a stimulus."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from contracts import Batch
from datamodules import EmbeddingOptions
from lightning_modules import MaskGIT
from lightning_modules.networks.row_random import row_uniform
from lightning_modules.networks.token_sampling import sample_codes
from tests.formats.recording import Recording
from tests.lightning_modules.advice import NO_VALIDATION
from tests.lightning_modules.brains import without_key_bias
from tests.lightning_modules.fitting import SMALL_MASKGIT, copied, maskgit, pictured, shown, tokenizer, trainer
from tests.lightning_modules.processes import call_anew

pytestmark = NO_VALIDATION
N = 16


@pytest.fixture(scope="module")
def codes(stores: Path) -> Path:
    """A tokenizer of 4 x 4 codes."""
    return tokenizer(pictured(stores), stores / "tokenizer.ckpt", epochs=20)


def made(stores: Path, codes: Path, seed: int = 0, **options: Any) -> MaskGIT:
    """One that was never trained, whose predictions depend visibly on the condition."""
    seed_everything(seed, verbose=False)
    model = MaskGIT(pictured(stores).layout, **{**SMALL_MASKGIT, "tokenizer": str(codes), **options}).eval()
    with torch.no_grad():
        for weight in (*model.transformer.parameters(), *model.condition.parameters()):
            weight.add_(0.3 * torch.randn_like(weight))
        if model.no_condition is not None:
            model.no_condition.normal_()
    return model


def tensors(batch: Batch) -> dict[str, Tensor]:
    return cast(dict[str, Tensor], batch)


def many(batch: Batch, number: int) -> Batch:
    """The samples of a batch over and over, as different rows."""
    place = torch.arange(number) % len(batch["row"])
    repeated = {name: value[place] for name, value in tensors(batch).items()}
    return cast(Batch, {**repeated, "row": torch.arange(number)})


def rows_of(batch: Batch, chosen: Tensor) -> Batch:
    return cast(Batch, {name: value[chosen] for name, value in tensors(batch).items()})


# ---- masks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("per", ["sample", "batch"])
def test_a_share_of_the_codes_is_hidden(stores: Path, codes: Path, per: Any, least: float) -> None:
    model = made(stores, codes, mask_per=per, min_mask_ratio=least)
    rows = torch.arange(5, 3005)
    hidden = model.hidden_codes(rows, seed=4, epoch=2)
    u = row_uniform(rows, 1, seed=4, epoch=2, stream=0)[:, 0].double().numpy()
    ratio = np.maximum(np.cos(np.pi * u / 2), least)
    if per == "batch":
        ratio = np.full_like(ratio, ratio[0])
    expected = np.maximum(np.floor(ratio * N), 1).astype(int)
    assert hidden.sum(dim=1).tolist() == expected.tolist()
    if per == "sample" and least == 0:
        # u is uniform: the share of samples with at most k hidden codes is that of cos(pi u / 2) < (k + 1) / N
        for k in range(1, N - 1):
            share = 1 - np.arccos((k + 1) / N) * 2 / np.pi
            assert np.mean(expected <= k) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / len(rows)))
    if least < 1:
        # whatever their number, all places are alike
        for some in (hidden, hidden[expected <= np.median(expected)]):
            counts = some.sum(dim=0).numpy()
            assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_masks_belong_to_rows_epochs_and_seeds(stores: Path, codes: Path) -> None:
    model, rows = made(stores, codes), torch.arange(40)
    whole = model.hidden_codes(rows, seed=0, epoch=0)
    assert torch.equal(model.hidden_codes(rows.flip(0)[3:9], seed=0, epoch=0), whole.flip(0)[3:9])
    for seed, epoch in ((0, 1), (1, 0), (2**40, 0)):
        assert not torch.equal(model.hidden_codes(rows, seed=seed, epoch=epoch), whole)
    assert len(whole.unique(dim=0)) > 30


# ---- losses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_the_loss_is_the_cross_entropy_of_hidden_codes(stores: Path, codes: Path, smoothing: float) -> None:
    model = made(stores, codes, label_smoothing=smoothing, min_mask_ratio=0.2)
    batch = shown(pictured(stores), MaskGIT, "train")
    with torch.no_grad():
        loss, hidden = model.code_loss(batch, seed=1, epoch=3)
        right = model.tokenizer.encode(batch["image"]).flatten(1)
        given = torch.where(hidden, model.tokenizer.codes, right)
        logits = model.transformer.logits(model.transformer(given, model.condition(batch["embedding"])))
    assert torch.equal(hidden, model.hidden_codes(batch["row"], seed=1, epoch=3))
    logp = scipy.special.log_softmax(logits.double().numpy(), axis=2)
    of_right = np.take_along_axis(logp, right[..., None].numpy(), axis=2)[..., 0]
    expected = -(1 - smoothing) * of_right - smoothing * logp.mean(axis=2)
    np.testing.assert_allclose(loss, np.where(hidden, expected, 0), rtol=1e-4, atol=1e-5)
    assert len(right.unique()) > 3


def test_the_training_loss_is_the_mean_over_all_hidden_codes(stores: Path, codes: Path, tmp_path: Path) -> None:
    model = made(stores, codes, seed=5, dropout=0.0, condition_dropout=0.4, condition_noise=0.5, min_mask_ratio=0.0)
    batch = shown(pictured(stores), MaskGIT, "train")
    with torch.no_grad():
        loss, hidden = model.code_loss(batch, seed=torch.initial_seed(), epoch=1, augment=True)
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(model.train(), datamodule=pictured(stores, batch_size=16))
    found = float(run.callback_metrics["train/loss_step"])
    assert found == pytest.approx(float(loss.sum() / hidden.sum()), rel=1e-5)
    assert found != pytest.approx(float((loss.sum(dim=1) / hidden.sum(dim=1)).mean()), rel=1e-3)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_loss_of_a_split_does_not_depend_on_batches_or_augmentation(
    stores: Path, codes: Path, tmp_path: Path, size: int
) -> None:
    model = made(stores, codes, condition_dropout=0.5, condition_noise=2.0, samples=1)
    with torch.no_grad():
        loss, hidden = model.code_loss(shown(pictured(stores), MaskGIT))
    data = pictured(stores, batch_size=size)
    found = trainer(tmp_path).test(model, datamodule=data, verbose=False)[0]["test/loss"]
    assert found == pytest.approx(float((loss.sum(dim=1) / hidden.sum(dim=1)).mean()), rel=1e-5)


# ---- conditions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_conditions_are_dropped_in_some_samples(stores: Path, codes: Path, rate: float) -> None:
    model = made(stores, codes, condition_dropout=rate)
    batch = many(shown(pictured(stores), MaskGIT, "train"), 600)
    with torch.no_grad():
        found = model.code_loss(batch, seed=2, epoch=1, augment=True)[0].sum(dim=1)
        whole = model.code_loss(batch, seed=2, epoch=1)[0].sum(dim=1)
        assert model.no_condition is not None
        model.condition.weight.zero_()
        model.condition.bias.copy_(model.no_condition)
        without = model.code_loss(batch, seed=2, epoch=1)[0].sum(dim=1)
    dropped = torch.isclose(found, without)
    assert torch.equal(dropped, ~torch.isclose(found, whole))
    share = float(dropped.double().mean())
    assert share == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / 600))
    model.zero_grad()
    model.code_loss(batch, seed=2, epoch=1, augment=True)[0].sum().backward()
    gradient = model.no_condition.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_conditions_get_noise_in_units_of_each_embedding(stores: Path, codes: Path) -> None:
    model = made(stores, codes, condition_noise=0.5)
    batch = many(shown(pictured(stores), MaskGIT, "train"), 300)
    batch["embedding"] = batch["embedding"] * torch.linspace(0.1, 10, 300)[:, None]
    given: list[Tensor] = []
    handle = model.condition.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].detach()))
    with torch.no_grad():
        for epoch in (1, 1, 2):
            model.code_loss(batch, seed=2, epoch=epoch, augment=True)
        model.code_loss(rows_of(batch, torch.arange(7, 20)), seed=2, epoch=1, augment=True)
        model.code_loss(batch, seed=2, epoch=1)
    handle.remove()
    first, again, other, part, clean = given
    assert torch.equal(clean, batch["embedding"])
    assert torch.equal(first, again)
    torch.testing.assert_close(part, first[7:20], msg="noise does not depend on who else is in the batch")
    assert not torch.isclose(first, other).any(dim=1).all()
    size = batch["embedding"].square().mean(dim=1, keepdim=True).sqrt()
    noise = ((first - clean) / size).flatten().numpy()
    assert scipy.stats.kstest(noise / 0.5, "norm").pvalue > 1e-3


# ---- learning --------------------------------------------------------------------------------------------


def test_eight_pictures_are_learned_and_drawn_again(stores: Path, tmp_path: Path) -> None:
    data = pictured(stores, embedding=EmbeddingOptions(image_size=3, target="zscore"), validation=0.0, train=2, test=1)
    checkpoint = tokenizer(data, tmp_path / "tokenizer.ckpt", epochs=60)
    options: dict[str, Any] = {
        "width": 32,
        "depth": 2,
        "mlp_width": 64,
        "lr": 5e-3,
        "dropout": 0.0,
        "choice_temperature": 1.0,
    }
    path = maskgit(data, tmp_path / "maskgit.ckpt", tokenizer=str(checkpoint), epochs=250, **options)
    model = MaskGIT.load_from_checkpoint(path, weights_only=True).eval()
    batch = shown(data, MaskGIT, "train")
    assert len(batch["row"]) == 8
    right = model.tokenizer.encode(batch["image"]).flatten(1)
    assert len(right.unique(dim=0)) == 8
    with torch.no_grad():
        condition = model.condition(batch["embedding"])
        found = sample_codes(
            model.transformer, condition, stimulus=batch["stimulus"], side=4, options=model.sampler
        ).codes
        generated, confidence = model.generate(batch["embedding"], batch["stimulus"])
        # what is learned is the picture of an embedding, not the pictures
        swapped, _ = model.generate(batch["embedding"].roll(1, 0), batch["stimulus"])
    assert found.shape[1] == 5
    assert (found == right[:, None]).double().mean() > 0.9
    reconstructed = model.tokenizer.decode(right.unflatten(1, (4, 4)))[:, None].double()
    error, other = ((pictures - reconstructed).square().mean() for pictures in (generated, swapped))
    assert error < 0.2 * other
    assert (confidence < 0).all()
    assert confidence.mean() > -0.7


def test_half_precision_and_accumulated_gradients(stores: Path, codes: Path, tmp_path: Path) -> None:
    data, collect = pictured(stores), Collect()
    model = made(stores, codes, condition_dropout=0.3, condition_noise=0.3, guidance=1.0).train()
    run = trainer(tmp_path, collect, precision="bf16-mixed", accumulate_grad_batches=2, max_epochs=2)
    run.fit(model, datamodule=data)
    run.test(model, datamodule=data, verbose=False)
    assert all(math.isfinite(loss) for loss in collect.losses)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert all(output["confidence"].dtype == torch.float32 for output in collect.outputs)
    confidence = torch.cat([output["confidence"] for output in collect.outputs])
    assert torch.isfinite(confidence).all()


# ---- pictures --------------------------------------------------------------------------------------------


def test_the_output_carries_what_the_contract_says(stores: Path, codes: Path) -> None:
    model, batch = made(stores, codes, samples=3), shown(pictured(stores), MaskGIT)
    with torch.no_grad():
        output = model.predict_step(batch, 0)
        generated, confidence = model.generate(batch["embedding"], batch["stimulus"])
    assert set(output) == {*model.provides["test"], "label", "stimulus", "subject", "row"}
    assert (generated.shape, generated.dtype) == ((8, 3, 3, 8, 8), torch.uint8)
    assert confidence.shape == (8, 3)
    assert torch.equal(output["generated"], generated)
    assert torch.equal(output["confidence"], confidence)
    assert output["image"] is batch["image"]
    assert output["image_embedding"] is batch["embedding"]


@pytest.mark.parametrize("order", ["confidence", "halton"])
def test_sampling_arguments_reach_the_sampler(stores: Path, codes: Path, order: Any) -> None:
    options: dict[str, Any] = {"order": order, "steps": 7, "samples": 2, "choice_temperature": 0.5, "guidance": 1.5}
    model = made(stores, codes, condition_dropout=0.1, sampling_seed=9, **options)
    batch = shown(pictured(stores), MaskGIT)
    with torch.no_grad():
        expected = sample_codes(
            model.transformer,
            model.condition(batch["embedding"]),
            stimulus=batch["stimulus"],
            side=4,
            options=type(model.sampler)(order=order, steps=7, samples=2, temperature=0.5, guidance=1.5, seed=9),
            without=model.no_condition,
        ).codes
        images = model.tokenizer.decode(expected.unflatten(2, (4, 4)).flatten(0, 1)).unflatten(0, (8, 2))
        assert torch.equal(model.generate(batch["embedding"], batch["stimulus"])[0], images)


class Collect(Callback):
    """Keeps the outputs of a test, and of every step of a fit its loss."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, Tensor]] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss_step"]))

    def on_test_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *args: Any) -> None:
        self.outputs.append({name: outputs[name] for name in ("row", "generated", "confidence")})

    def pictures(self) -> dict[int, Tensor]:
        """By row; padding is left out."""
        return {
            row: pictures
            for output in self.outputs
            for row, pictures in zip(output["row"].tolist(), output["generated"], strict=True)
            if row >= 0
        }


def drawn(model: MaskGIT, data: Recording, folder: Path) -> dict[int, Tensor]:
    collect = Collect()
    trainer(folder, collect).test(model, datamodule=data, verbose=False)
    return collect.pictures()


def assert_same_pictures(found: dict[int, Tensor], expected: dict[int, Tensor], number: int = 8) -> None:
    assert sorted(found) == sorted(expected) == list(range(number))
    assert all(torch.equal(found[row], pictures) for row, pictures in expected.items())


@pytest.mark.parametrize("order", ["confidence", "halton"])
def test_pictures_do_not_depend_on_the_batch_size(stores: Path, codes: Path, tmp_path: Path, order: str) -> None:
    model = made(stores, codes, order=order)
    expected = drawn(model, pictured(stores, batch_size=16), tmp_path)
    assert len({pictures.numpy().tobytes() for row in expected.values() for pictures in row}) > 30
    for size in (1, 3):
        assert_same_pictures(drawn(model, pictured(stores, batch_size=size), tmp_path), expected)


def fit_and_draw(folder: Path, *, devices: int = 1, batch_size: int = 8) -> None:
    """Write down losses, weights and pictures; what each of two processes calls, too."""
    data = pictured(folder / f"stores-{devices}", classes=3, train=6, test=3, validation=0.17, batch_size=batch_size)
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=60))
    collect = Collect()
    run = trainer(folder, collect, devices=devices, strategy=strategy if devices > 1 else "auto", max_epochs=4)
    seed_everything(0, verbose=False)
    # from dropout no two processes get the same numbers as one
    options = {"min_mask_ratio": 0.0, "dropout": 0.0, "condition_dropout": 0.3, "condition_noise": 0.5, "guidance": 1.0}
    model = MaskGIT(data.layout, **{**SMALL_MASKGIT, "tokenizer": str(folder / "tokenizer.ckpt"), **options})
    run.fit(model, datamodule=data)
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    weights = copied(model)
    if devices > 1:
        # weights differ by rounding; pictures are compared for the very same ones
        model.load_state_dict(torch.load(folder / "1-0.pt", weights_only=True)["weights"])
    run.test(model, datamodule=data, verbose=False)
    metrics["test/loss"] = float(run.callback_metrics["test/loss"])
    content = {"losses": collect.losses, "metrics": metrics, "pictures": collect.pictures()}
    torch.save({**content, "weights": weights}, folder / f"{devices}-{run.global_rank}.pt")


@pytest.mark.full
def test_losses_weights_and_pictures_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"classes": 3, "train": 6, "test": 3, "validation": 0.17}
    tokenizer(pictured(tmp_path / "stores-1", **sizes), tmp_path / "tokenizer.ckpt", epochs=2)
    fit_and_draw(tmp_path)
    call_anew(fit_and_draw, tmp_path, folder=tmp_path, devices=2, batch_size=4)
    one, *two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    assert len(set(one["losses"])) == len(one["losses"]) >= 4
    for process in two:
        assert process["losses"] == pytest.approx(one["losses"], rel=1e-4)
        for name in ("train/loss_epoch", "validation/loss", "test/loss"):
            assert process["metrics"][name] == pytest.approx(one["metrics"][name], rel=1e-4), name
        theirs = without_key_bias(process["weights"])
        for name, value in without_key_bias(one["weights"]).items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-4)
    first, second = (process["pictures"] for process in two)
    assert first
    assert second
    assert not set(first) & set(second)
    assert_same_pictures({**first, **second}, one["pictures"], 9)
