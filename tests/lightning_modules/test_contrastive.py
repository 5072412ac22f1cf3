"""ContrastiveAlignment through Python: learning, checkpoints, validation."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import seed_everything
from torch import Tensor

from contracts import PADDING, Batch, ContractError, Layout
from lightning_modules import ContrastiveAlignment, LinearEncoder, ResidualMLP, TemporalSpatialConv, contrastive
from tests.lightning_modules.advice import NO_VALIDATION
from tests.lightning_modules.fitting import (
    PEOPLE,
    Losses,
    assert_same_weights,
    fit,
    linear_problem,
    loader,
    made_up,
    only,
    recording,
    small,
    tiny,
    trainer,
    whole,
)

pytestmark = NO_VALIDATION


# ---- learning --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoder", "shape", "lr", "epochs"),
    [
        (LinearEncoder, [30], 1e-2, 15),
        (functools.partial(ResidualMLP, hidden=64, input_dropout=0.1), [30], 1e-2, 15),
        (functools.partial(TemporalSpatialConv, sensors=16, filters=16, dropout=0.1), [12, 24], 1e-2, 25),
    ],
    ids=["linear", "mlp", "conv"],
)
def test_every_encoder_learns(tmp_path: Path, encoder: Any, shape: list[int], lr: float, epochs: int) -> None:
    *train, held_out = linear_problem(shape)
    seed_everything(0, verbose=False)
    model = ContrastiveAlignment(made_up({"01": shape}), encoder, lr=lr)

    def identified() -> float:
        with torch.no_grad():
            output = model.eval()(held_out)
        model.train()
        brain, image = (F.normalize(output[name], dim=1) for name in ("brain_embedding", "image_embedding"))
        return float(((brain @ image.T).argmax(dim=1) == torch.arange(len(brain))).float().mean())

    losses = Losses()
    assert identified() < 0.2
    run = trainer(tmp_path, losses, max_epochs=epochs)
    run.fit(model, train_dataloaders=loader(train))
    assert losses.values[0] > 0.5 * math.log(64)
    assert sum(losses.values[-6:]) < 0.3 * sum(losses.values[:6])
    assert identified() > 0.95
    assert only(model.losses).scale.item() != pytest.approx(1 / 0.07), "the temperature is learned, too"
    assert float(run.callback_metrics["train/scale"]) == pytest.approx(only(model.losses).scale.item(), rel=0.2)


def test_the_output_carries_what_the_contract_says(stores: Path) -> None:
    data = recording(stores)
    model = ContrastiveAlignment(data.layout, small).eval()
    batch = whole(data, 1)
    output = model(batch)
    assert set(output) == {"brain_embedding", "image_embedding", "label", "stimulus", "subject", "row"}
    assert output["brain_embedding"].shape == output["image_embedding"].shape == (8, 27)
    assert torch.equal(output["image_embedding"], batch["embedding"])
    assert all(output[name] is batch[name] for name in ("label", "stimulus", "subject", "row"))
    for step in (model.validation_step, model.test_step, model.predict_step):
        assert set(step(batch, 0)) >= model.provides[step.__name__.removesuffix("_step")]
    assert torch.equal(model.test_step(batch, 0)["brain_embedding"], output["brain_embedding"])


def test_arguments_of_the_loss_reach_it(stores: Path) -> None:
    data = recording(stores)
    batch = whole(data, split="train")
    options = {
        "normalise": "image",
        "direction": "image_to_brain",
        "temperature": 0.5,
        "temperature_form": "softplus",
        "positives": "label",
        "duplicates": "negatives",
    }
    # two samples of each picture, so that even the treatment of duplicates shows
    for name, value in options.items():
        torch.manual_seed(0)
        model = ContrastiveAlignment(data.layout, LinearEncoder, **{name: value})
        torch.manual_seed(0)
        usual = ContrastiveAlignment(data.layout, LinearEncoder)
        losses = [only(stage.losses)(**pairs(stage(batch))).item() for stage in (model, usual)]
        if name == "temperature_form":
            assert losses[0] == pytest.approx(losses[1], rel=1e-5)
            assert only(model.losses).logit_scale.item() != pytest.approx(only(usual.losses).logit_scale.item())
        else:
            assert losses[0] != pytest.approx(losses[1], rel=1e-3), name
    limited = ContrastiveAlignment(data.layout, LinearEncoder, max_scale=15.0)
    with torch.no_grad():
        only(limited.losses).logit_scale.fill_(10.0)
    assert only(limited.losses).scale.item() == pytest.approx(15.0)


def pairs(output: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "brain": output["brain_embedding"],
        "image": output["image_embedding"],
        "stimulus": output["stimulus"],
        "label": output["label"],
    }


# ---- hyperparameters and checkpoints ---------------------------------------------------------------


@pytest.mark.parametrize(
    "chosen",
    [{}, {"encoder": LinearEncoder}, {"encoder": small}, {"encoder": tiny}],
    ids=["default", "class", "partial", "partial of a convolution"],
)
def test_a_checkpoint_is_plain_data_and_enough(stores: Path, tmp_path: Path, chosen: dict[str, Any]) -> None:
    data = recording(stores, {"01": (4, 12), "02": (3, 12)} if chosen.get("encoder") is tiny else PEOPLE)
    seed_everything(0, verbose=False)
    model = ContrastiveAlignment(data.layout, **chosen, positives="label", temperature_form="softplus", lr=1e-2)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, datamodule=data)
    path = tmp_path / "plain.ckpt"
    run.save_checkpoint(path)
    stored = torch.load(path, weights_only=True)["hyper_parameters"]
    encoder = chosen.get("encoder", ResidualMLP)
    name, sizes = (encoder.func, encoder.keywords) if isinstance(encoder, functools.partial) else (encoder, {})
    assert stored["encoder"] is None
    assert only(stored["encoders"]) == {
        "class_path": f"lightning_modules.networks.encoders.{name.__name__}",
        "init_args": sizes,
    }
    assert stored["layout"] == data.layout
    assert (stored["positives"], stored["temperature_form"], stored["lr"]) == ("label", "softplus", 1e-2)
    for weights_only in (True, None):
        loaded = ContrastiveAlignment.load_from_checkpoint(path, weights_only=weights_only)
        assert type(only(loaded.encoders)) is name
        assert_same_weights(loaded.state_dict(), model.state_dict())
        for person in (0, 1):
            batch = whole(data, person)
            found, expected = loaded.eval()(batch), model.eval()(batch)
            assert torch.equal(found["brain_embedding"], expected["brain_embedding"])
            assert only(loaded.losses)(**pairs(found)) == only(model.losses)(**pairs(expected))


class Outside:
    class Nested(LinearEncoder):
        pass


def test_an_encoder_that_a_checkpoint_cannot_name_is_refused(stores: Path) -> None:
    layout = recording(stores).layout
    with pytest.raises(ContractError, match=r"class of a module, or functools\.partial.*<lambda>"):
        ContrastiveAlignment(layout, lambda layout: LinearEncoder(layout))
    with pytest.raises(ContractError, match=r"functools\.partial"):
        ContrastiveAlignment(layout, functools.partial(lambda layout: LinearEncoder(layout)))


@pytest.mark.parametrize("nested", [False, True], ids=["in a function", "in a class"])
def test_an_encoder_class_that_cannot_be_imported_is_refused_or_loads(
    stores: Path, tmp_path: Path, nested: bool
) -> None:
    class Local(LinearEncoder):
        pass

    data = recording(stores)
    try:
        fit(data, tmp_path / "local.ckpt", encoder=Outside.Nested if nested else Local)
    except ContractError as error:
        assert "Nested" in str(error) or "Local" in str(error)  # noqa: PT017
        return
    ContrastiveAlignment.load_from_checkpoint(tmp_path / "local.ckpt", weights_only=True)


def test_an_encoder_of_ones_own_loads(stores: Path, tmp_path: Path) -> None:
    data = recording(stores)
    model = fit(data, tmp_path / "own.ckpt", encoder=functools.partial(Own, factor=3.0))
    loaded = ContrastiveAlignment.load_from_checkpoint(tmp_path / "own.ckpt", weights_only=True)
    assert isinstance(only(loaded.encoders), Own)
    batch = whole(data)
    assert torch.equal(loaded.eval()(batch)["brain_embedding"], model.eval()(batch)["brain_embedding"])


class Own(LinearEncoder):
    def __init__(self, layout: Layout, *, factor: float) -> None:
        super().__init__(layout)
        self.factor = factor

    def forward(self, signal: Tensor, subject: Tensor) -> Tensor:
        return self.factor * super().forward(signal, subject)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, r"lr=0\.0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"weight_decay": -1.0}, r"weight_decay=-1\.0"),
        ({"warmup": 1.5}, r"warmup=1\.5"),
        ({"temperature": -0.1}, r"-0\.1"),
        ({"temperature": 0.001}, r"0\.001"),
        ({"positives": "label"}, "positives='label' needs class names"),
        ({"encoder": TemporalSpatialConv}, r"\{'01': \[12\]\}"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        ContrastiveAlignment(made_up({"01": [12]}), **options)


def test_positives_by_label_are_for_data_with_classes() -> None:
    model = ContrastiveAlignment(made_up({"01": [12]}, classes=2), positives="label")
    assert only(model.losses).positives == "label"


def test_a_checkpoint_of_other_data_is_refused(stores: Path, tmp_path: Path) -> None:
    data = recording(stores)
    fit(data, tmp_path / "base.ckpt")
    other = recording(stores, {"01": (12,), "02": (10,)})
    model = ContrastiveAlignment(other.layout, small)
    with pytest.raises(ContractError, match=r"shape: checkpoint \{.*'02': \[9\]\}, data \{.*'02': \[10\]\}"):
        trainer(tmp_path).test(model, datamodule=other, ckpt_path=tmp_path / "base.ckpt", weights_only=True)


# ---- validation ------------------------------------------------------------------------------------


def validation_loss(model: ContrastiveAlignment, folder: Path, **source: Any) -> float:
    [metrics] = trainer(folder).validate(model, **source, verbose=False)
    return float(metrics["validation/loss"])


def test_the_validation_loss_does_not_depend_on_the_batch_size(stores: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ContrastiveAlignment(recording(stores).layout, small)
    found = [
        validation_loss(model, tmp_path, datamodule=recording(stores, batch_size=size)) for size in (1, 2, 3, 5, 100)
    ]
    assert found == pytest.approx([found[0]] * 5, rel=1e-5)
    # both people together, pictures that both saw removed from each other's candidates
    outputs = [model.eval()(whole(recording(stores), person, "validation")) for person in (0, 1)]
    joined = {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}
    assert found[0] == pytest.approx(only(model.losses)(**pairs(joined)).item(), rel=1e-5)
    alone = [only(model.losses)(**pairs(output)).item() for output in outputs]
    assert found[0] != pytest.approx(sum(alone) / 2, rel=1e-2), "nothing to compare"


def test_the_validation_loss_counts_each_sample_once(tmp_path: Path) -> None:
    *_, batch = linear_problem([30])
    model = ContrastiveAlignment(made_up({"01": [30]}), small)
    order = torch.randperm(len(batch["row"]), generator=torch.Generator().manual_seed(0))
    shuffled = [Batch(**{name: value[part] for name, value in batch.items()}) for part in order.split(7)]
    padded = Batch(**{name: value[:2] for name, value in batch.items()})
    padded["row"] = torch.full((2,), PADDING)
    expected = only(model.losses)(**pairs(model.eval()(batch))).item()
    for batches in ([batch], shuffled, [padded, *shuffled], [*shuffled, padded]):
        found = validation_loss(model, tmp_path, dataloaders=loader(batches))
        assert found == pytest.approx(expected, rel=1e-5)


def test_the_validation_loss_is_that_of_blocks_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "VALIDATION_BATCH", 15)
    *_, batch = linear_problem([30])
    model = ContrastiveAlignment(made_up({"01": [30]}), small).eval()
    parts = [{k: v[p] for k, v in model(batch).items()} for p in torch.arange(40).split(15)]
    assert [len(part["row"]) for part in parts] == [15, 15, 10]
    expected = sum(len(part["row"]) * only(model.losses)(**pairs(part)).item() for part in parts) / 40
    # several processes hold the samples in another order, too
    for order in (torch.arange(40), torch.randperm(40, generator=torch.Generator().manual_seed(0))):
        batches = [Batch(**{name: value[part] for name, value in batch.items()}) for part in order.split(9)]
        assert validation_loss(model, tmp_path, dataloaders=loader(batches)) == pytest.approx(expected, rel=1e-5)


def test_the_validation_loss_is_anew_in_every_epoch(stores: Path, tmp_path: Path) -> None:
    """Nothing of the sanity check or of an earlier epoch stays in it."""
    data = recording(stores)
    model = ContrastiveAlignment(data.layout, small, lr=1e-2)
    run = trainer(tmp_path, max_epochs=3)
    run.fit(model, datamodule=data)
    logged = float(run.callback_metrics["validation/loss"])
    assert validation_loss(model, tmp_path, datamodule=data) == pytest.approx(logged, rel=1e-5)
