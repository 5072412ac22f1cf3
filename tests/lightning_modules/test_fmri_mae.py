"""FmriMAE on one data set: learning, losses that belong to rows, augmentation, what is refused, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lightning import Callback
from torch import Tensor

from contracts import PADDING, Batch, ContractError, DataError, Layout
from lightning_modules import FmriMAE
from tests.formats.recording import Recording
from tests.lightning_modules.advice import NO_VALIDATION
from tests.lightning_modules.brains import (
    PEOPLE,
    SAME,
    TINY,
    VARIANTS,
    autoencoder,
    brains,
    fitted,
    samples,
    volumes_of,
)
from tests.lightning_modules.fitting import Losses, assert_same_weights, copied, loader, made_up, recording, trainer

pytestmark = NO_VALIDATION
every_variant = pytest.mark.parametrize("name", VARIANTS)
MASKED = [name for name in VARIANTS if VARIANTS[name]["tokens"] != "roi"]


def rows_of(batch: Batch, chosen: Tensor) -> Batch:
    return cast(Batch, {name: value[chosen] for name, value in batch.items()})  # type: ignore[attr-defined]


def fitting_batch(stores: Path, name: str, **options: Any) -> tuple[FmriMAE, Batch]:
    data = brains(stores, volumes=volumes_of(name))
    return autoencoder(data, **VARIANTS[name], **options), samples(data, split="train")


# ---- learning --------------------------------------------------------------------------------------


@every_variant
def test_every_variant_learns(stores: Path, tmp_path: Path, name: str) -> None:
    data = brains(stores, volumes=volumes_of(name), batch_size=16)
    losses = Losses()
    options = {**VARIANTS[name], "mask_ratio": 0.5, "lr": 3e-3 if name == "paper" else 1e-2}
    model, _ = fitted(data, tmp_path / "fit.ckpt", losses, run={"max_epochs": 40, "limit_val_batches": 0}, **options)
    assert sum(losses.values[-6:]) < 0.7 * sum(losses.values[:6])
    untrained = autoencoder(data, **options)
    found = [
        trainer(tmp_path).test(stage, datamodule=data, verbose=False)[0]["test/loss"] for stage in (model, untrained)
    ]
    assert found[0] < 0.7 * found[1]


@pytest.mark.parametrize("options", [VARIANTS["code"], {"tokens": "patch", "patch_size": 5}], ids=["roi", "patch"])
def test_pictures_beside_the_signals_change_nothing(stores: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    losses = Losses()
    fitted(recording(stores), tmp_path / "fit.ckpt", losses, run={"max_epochs": 12}, lr=1e-2, **options)
    assert sum(losses.values[-6:]) < 1.1 * sum(losses.values[:6])


@every_variant
def test_the_output_carries_what_the_contract_says(stores: Path, name: str) -> None:
    model, batch = fitting_batch(stores, name)
    model.eval()
    output = model(batch)
    assert set(output) == {"latent", "signal", "predicted_signal", "label", "stimulus", "subject", "row"}
    assert output["predicted_signal"].shape == batch["signal"].shape
    assert output["signal"] is batch["signal"]
    assert output["latent"].shape == (len(batch["row"]), 32)
    assert all(output[entry] is batch[entry] for entry in ("label", "stimulus", "subject", "row"))
    latent = model.encode(batch["signal"], batch["subject"])
    assert latent.shape[1:] == model.latent_shape("01")
    assert torch.equal(model.decode(latent, batch["subject"]), output["predicted_signal"])
    mean = latent[:, 0] if VARIANTS[name]["tokens"] == "roi" else latent[:, 1:].mean(dim=1)
    assert torch.equal(output["latent"], mean)
    assert set(model.predict_step(batch, 0)) >= model.provides["predict"]


# ---- losses ----------------------------------------------------------------------------------------


@every_variant
def test_the_loss_is_the_mean_over_what_counts(stores: Path, name: str) -> None:
    """Written out: each number's squared error, weighed by whether its token is hidden."""
    model, batch = fitting_batch(stores, name)
    subject, tokens = batch["subject"], model.autoencoder.tokens
    keep = model.tokens_kept(batch["row"], 0, seed=3, epoch=2)
    numbers = tokens.flatten(batch["signal"], 0)
    predicted = model.autoencoder.decode(model.autoencoder.encode(numbers, subject, keep), subject, keep)
    over: Any = model.loss_over
    found = model.reconstruction_loss(batch, over, seed=3, epoch=2)
    for sample in range(len(subject)):
        counted = torch.ones(numbers.shape[1], dtype=torch.bool)
        if over == "hidden":
            assert keep is not None
            counted = ~torch.isin(tokens.token_of(0), keep[sample])
        expected = (predicted[sample] - numbers[sample]).square()[counted].mean()
        torch.testing.assert_close(found[sample], expected, atol=1e-5, rtol=1e-5)
    if keep is not None:
        share = 1 - keep.shape[1] / len(tokens.rows[0])
        assert share == pytest.approx(0.75, abs=0.1)


@every_variant
def test_validation_gives_one_number_for_the_same_weights(stores: Path, tmp_path: Path, name: str) -> None:
    found = []
    model = autoencoder(brains(stores, volumes=volumes_of(name)), **VARIANTS[name], augmentation="noise")
    for batch_size, seed in ((1, 0), (3, 1), (8, 2), (50, 2), (8, 2)):
        data = brains(stores, volumes=volumes_of(name), batch_size=batch_size)
        torch.manual_seed(seed)
        [results] = trainer(tmp_path).validate(model, datamodule=data, verbose=False)
        found.append(results["validation/loss"])
        if name in MASKED:
            assert ("all" in name) == (results["validation/hidden_error"] != results["validation/loss"])
    assert found == pytest.approx([found[0]] * len(found), rel=1e-5)
    assert found[2] == found[4]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_padding_does_not_count(stores: Path, tmp_path: Path, split: str) -> None:
    model, batch = fitting_batch(stores, "patch")
    padding = rows_of(batch, torch.tensor([0, 1, 2]))
    padding["row"] = torch.full((3,), PADDING)
    padding["signal"] = padding["signal"] + 100
    padded = cast(Batch, {name: torch.cat([batch[name], padding[name]]) for name in batch})  # type: ignore[literal-required]
    found = []
    for batches in ([batch], [padded], [batch, padding]):
        run = trainer(tmp_path)
        evaluate: Any = run.validate if split == "validation" else run.test
        [results] = evaluate(model, dataloaders=loader(batches), verbose=False)
        found.append(results[f"{split}/loss"])
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)


@every_variant
@pytest.mark.parametrize("augmentation", ["none", "noise", "drop"])
def test_losses_of_rows_do_not_depend_on_how_batches_are_cut(stores: Path, name: str, augmentation: str) -> None:
    model, batch = fitting_batch(stores, name, augmentation=augmentation, augmentation_rate=0.5)
    over: Any = model.loss_over
    options: Any = {"seed": 5, "epoch": 3, "augment": True}
    together = model.reconstruction_loss(batch, over, **options)
    order = torch.randperm(len(together), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(99)
    cut = torch.cat([model.reconstruction_loss(rows_of(batch, part), over, **options) for part in order.split(5)])
    torch.testing.assert_close(cut, together[order], atol=1e-5, rtol=1e-5)
    if augmentation != "none" or name in MASKED:
        for other in ({"seed": 6}, {"epoch": 4}):
            assert not torch.allclose(model.reconstruction_loss(batch, over, **{**options, **other}), together)


@pytest.mark.parametrize(
    "options", [{"tokens": "patch"}, {"augmentation": "noise", "noise": 5.0}], ids=["mask", "noise"]
)
def test_masks_and_noise_change_between_epochs_of_a_fit(stores: Path, tmp_path: Path, options: Any) -> None:
    """With weights that stand still, the loss of an epoch is a draw of its own; a second fit draws the same."""

    def losses(seed: int) -> list[list[float]]:
        watched = Losses()
        data = brains(stores, {"01": PEOPLE["01"]}, batch_size=24)
        model = autoencoder(data, lr=1e-12, **options)
        torch.manual_seed(seed)
        trainer(tmp_path, watched, max_epochs=3).fit(model, datamodule=data)
        return [watched.values]

    [first], [again], [other] = losses(0), losses(0), losses(1)
    assert len(set(first)) == 3
    assert first == again
    assert first != other


# ---- augmentation ----------------------------------------------------------------------------------


def seen_by(model: FmriMAE, batch: Batch, **options: Any) -> tuple[Tensor, Tensor]:
    """What the encoder is given, and what the numbers are."""
    given: list[Tensor] = []
    tokens: Any = model.autoencoder.tokens
    embed = tokens.embed
    tokens.embed = lambda numbers, subject: (given.append(numbers), embed(numbers, subject))[1]
    model.reconstruction_loss(batch, "all", seed=1, epoch=1, **options)
    tokens.embed = embed
    return given[0], batch["signal"]


def many(rows: int = 1000, voxels: int = 12) -> Batch:
    zeros = torch.zeros(rows, dtype=torch.int64)
    signal = 3 + torch.rand(rows, voxels, generator=torch.Generator().manual_seed(0))
    return Batch(signal=signal, subject=zeros, label=zeros, stimulus=zeros, row=torch.arange(rows))


@pytest.mark.parametrize("rate", [0.25, 0.6])
def test_noise_is_added_to_some_samples(stores: Path, rate: float) -> None:
    model = autoencoder(brains(stores), augmentation="noise", augmentation_rate=rate, noise=0.2)
    seen, clean = seen_by(model, many(), augment=True)
    changed = seen != clean
    assert set(changed.float().mean(dim=1).gt(0.5).tolist()) == {True, False}
    assert (changed.all(dim=1) | ~changed.any(dim=1)).float().mean() > 0.99
    assert changed.any(dim=1).float().mean() == pytest.approx(rate, abs=0.05)
    added = (seen - clean)[changed.any(dim=1)]
    assert added.std() == pytest.approx(0.2, rel=0.05)
    # in every voxel: the number that chose the sample says nothing about the noise
    assert added.std(dim=0).tolist() == pytest.approx([0.2] * 12, rel=0.25)
    assert added.mean() == pytest.approx(0, abs=0.01)
    assert torch.equal(*seen_by(model, many(), augment=False))


@pytest.mark.parametrize("rate", [0.25, 0.6])
def test_voxels_are_dropped_in_every_sample(stores: Path, rate: float) -> None:
    model = autoencoder(brains(stores), augmentation="drop", augmentation_rate=rate)
    seen, clean = seen_by(model, many(), augment=True)
    dropped = seen == 0
    assert torch.equal(seen[~dropped], clean[~dropped])
    assert dropped.float().mean() == pytest.approx(rate, abs=0.02)
    assert dropped.float().mean(dim=0).tolist() == pytest.approx([rate] * 12, abs=0.08)
    assert dropped.any(dim=1).float().mean() > 0.9


@pytest.mark.parametrize("augmentation", ["noise", "drop"])
def test_the_target_stays_clean(stores: Path, augmentation: str) -> None:
    model = autoencoder(brains(stores), augmentation=augmentation, augmentation_rate=0.9, noise=50.0)
    decode = model.autoencoder.decode
    batch = many(50)
    # a decoder that always says the clean signal makes no error
    model.autoencoder.decode = lambda *_: batch["signal"]  # type: ignore[assignment, method-assign]
    assert (model.reconstruction_loss(batch, "all", seed=1, epoch=1, augment=True) == 0).all()
    model.autoencoder.decode = decode  # type: ignore[method-assign]


# ---- what is refused -------------------------------------------------------------------------------

REGION_TIME: dict[str, Any] = {"tokens": "region_time", "patch_size": 2}
LAYOUTS: dict[str, Layout] = {
    "responses": made_up({"01": [12], "02": [12]}),
    "series": {**made_up({"01": [12, 8]}), "modality": "fmri"},
    "one step": {**made_up({"01": [12, 2]}), "modality": "fmri"},
    "eeg": made_up({"01": [12, 8]}),
}


@pytest.mark.parametrize(
    ("of", "options", "message"),
    [
        ("responses", {"width": 33, "num_heads": 3}, "width must be even .* found 33 and 3"),
        ("responses", {"num_heads": 5}, "width must be .* a multiple of its attention heads, found 32 and 5"),
        ("responses", {"num_heads": 0}, "num_heads|attention heads"),
        ("responses", {"decoder_num_heads": 5}, "decoder_width must be .*, found 32 and 5"),
        *(("responses", {"mask_ratio": share}, f"mask_ratio.*'mask_ratio': {share}") for share in (0.0, 1.0, -0.5)),
        ("responses", {"augmentation_rate": 1.5}, "augmentation_rate.*1.5"),
        ("responses", {"noise": -0.1}, "noise=-0.1"),
        ("responses", {"heads": 0}, "heads=0"),
        ("responses", {"patch_size": 0, "tokens": "patch"}, "patch_size=0"),
        ("responses", {"masking": "random"}, "masking=random does not go with tokens=roi"),
        ("responses", {"tokens": "patch", "masking": "none"}, "masking=none does not go with tokens=patch"),
        ("responses", {"tokens": "patch", "masking": "segments"}, "masking=segments does not go with tokens=patch"),
        ("series", {**REGION_TIME, "masking": "none"}, "masking=none does not go with tokens=region_time"),
        ("responses", {"loss": "hidden"}, "loss=hidden needs something hidden"),
        ("responses", {"tokens": "patch", "patch_size": 13}, "patch_size=13 is more than the 12 voxels"),
        ("responses", {"tokens": "patch", "patch_size": 12}, "patch_size"),
        ("responses", REGION_TIME, "tokens=region_time are made of time series"),
        ("series", {"tokens": "roi"}, "tokens=roi are made of responses"),
        ("series", {**REGION_TIME, "patch_size": 3}, "8 volumes are no multiple of patch_size=3"),
        ("one step", REGION_TIME, "patch_size"),
        ("eeg", REGION_TIME, "for fMRI, the data set is eeg"),
        ("responses", {"lr": 0.0}, "lr must be positive"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(of: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        FmriMAE(LAYOUTS[of], **{**TINY, **options})


def test_a_missing_number_is_no_loss(stores: Path, tmp_path: Path) -> None:
    model, batch = fitting_batch(stores, "code")
    batch["signal"] = batch["signal"].clone()
    batch["signal"][2, 3] = torch.nan
    before = copied(model)
    with pytest.raises(ContractError, match="the loss is NaN or infinite in epoch 0, batch 0"):
        trainer(tmp_path).fit(model, train_dataloaders=loader([batch]))
    assert_same_weights(model.state_dict(), before)


# ---- checkpoints and ways to run -------------------------------------------------------------------


@every_variant
def test_a_checkpoint_is_loaded_without_the_data(stores: Path, tmp_path: Path, name: str) -> None:
    data = brains(stores, volumes=volumes_of(name))
    model, _ = fitted(data, tmp_path / "fit.ckpt", run={"max_epochs": 1}, **VARIANTS[name])
    loaded = FmriMAE.load_from_checkpoint(tmp_path / "fit.ckpt", weights_only=True)
    assert_same_weights(loaded.state_dict(), copied(model))
    batch = samples(data)
    found, expected = (stage.eval()(batch)["predicted_signal"] for stage in (loaded, model))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("relax", [True, False])
def test_test_recordings_are_trained_on_only_if_asked_for(stores: Path, tmp_path: Path, relax: bool) -> None:
    labels: set[int] = set()
    signals: list[Tensor] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Batch, batch_idx: int) -> None:
            labels.update(batch["label"].tolist())
            signals.append(batch["signal"])
            with pytest.raises(DataError, match="test split was asked for while fitting"):
                trainer.datamodule.dataset("test")

    data: Recording = recording(stores, {"01": (12,)}, batch_size=2)
    fitted(data, tmp_path / "fit.ckpt", Watch(), run={"max_epochs": 1}, relax=relax)
    seen = torch.cat(signals)
    tested = recording(stores, {"01": (12,)})
    test = samples(tested)["signal"]
    found = sum(bool((seen - sample).abs().max(dim=1).values.min() < 1e-6) for sample in test)
    assert found == (len(test) if relax else 0)
    assert labels == ({-1} if relax else {0, 1, 2, 3})
    [entry] = torch.load(tmp_path / "fit.ckpt", weights_only=True)["lineage"]
    assert entry["transductive"] is relax
    trainer(tmp_path).test(FmriMAE.load_from_checkpoint(tmp_path / "fit.ckpt"), datamodule=tested, verbose=False)


@every_variant
def test_half_precision_and_accumulated_gradients(stores: Path, tmp_path: Path, name: str) -> None:
    data = brains(stores, SAME, volumes=volumes_of(name))
    run = {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "max_epochs": 3}
    losses = Losses()
    model, _ = fitted(data, tmp_path / "fit.ckpt", losses, run=run, **VARIANTS[name], augmentation="noise")
    assert all(torch.tensor(losses.values).isfinite())
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in model.state_dict().values())
