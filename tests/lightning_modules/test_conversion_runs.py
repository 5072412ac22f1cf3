"""CrossModalConversion: checkpoints, what it refuses, and runs that are tried out or broken off."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from callbacks import CrossModal, RunCheckpoint
from contracts import ContractError
from datamodules import MultiModal
from lightning_modules import CrossModalConversion
from tests.formats.linear_world import ONE_PERSON, PARTS, linear_world, part
from tests.lightning_modules.advice import NO_LOSS
from tests.lightning_modules.converting import aligned, fit, outputs, recordings, scored
from tests.lightning_modules.fitting import assert_same_weights, copied, trainer

pytestmark = NO_LOSS


# ---- checkpoints -----------------------------------------------------------------------------------


def test_a_checkpoint_needs_neither_the_alignment_nor_the_data(
    data: MultiModal, alignment: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "gone.ckpt"
    shutil.copy(alignment, copy)
    model = fit(data, copy, tmp_path)
    copy.unlink()
    loaded = CrossModalConversion.load_from_checkpoint(tmp_path / "conversion.ckpt", weights_only=True)
    assert_same_weights(copied(loaded), copied(model))
    assert bool(loaded.get_buffer("fitted"))
    assert isinstance(loaded.hparams["alignment"], dict)
    for batch in recordings(data, "fmri", "test"):
        loaded.trainer = model.trainer
        expected = outputs(model, batch)
        for key, value in outputs(loaded, batch).items():
            assert torch.equal(value, expected[key]), key


def test_what_it_was_made_from_is_kept(data: MultiModal, alignment: Path, tmp_path: Path) -> None:
    fit(data, alignment, tmp_path)
    lineage = torch.load(tmp_path / "conversion.ckpt", weights_only=True)["lineage"]
    assert [entry["stage"] for entry in lineage] == ["ContrastiveAlignment", "CrossModalConversion"]
    known = {entry["stage"]: set(entry["training_stimuli"]) for entry in lineage}
    assert known["ContrastiveAlignment"] == data.stimuli("train") | data.stimuli("validation")
    loaded = CrossModalConversion.load_from_checkpoint(tmp_path / "conversion.ckpt", weights_only=True)
    assert [entry["stage"] for entry in loaded.lineage] == ["ContrastiveAlignment"]


def test_pictures_that_the_alignment_has_seen_are_not_tested(data: MultiModal, alignment: Path, tmp_path: Path) -> None:
    model = fit(data, alignment, tmp_path)
    [seen] = model.lineage
    model.lineage = [{**seen, "training_stimuli": [*seen["training_stimuli"], min(data.stimuli("test"))]}]
    with pytest.raises(ContractError, match="1 test pictures were training pictures of the ContrastiveAlignment"):
        scored(model, data, tmp_path)


def test_a_single_data_set_is_decoded_and_encoded(stores: Path, tmp_path: Path) -> None:
    data = part(stores, "eeg", PARTS["eeg"])
    data.split = type(data.split)(validation=0.4)
    checkpoint = aligned(data, stores / "single.ckpt")
    model = fit(data, checkpoint, tmp_path)
    found = scored(model, data, tmp_path)
    assert {score.table for score in found.values()} == {"decoding and encoding"}
    assert found["eeg to image by regression", "two_way"].value > 0.7
    assert ("image to eeg by regression", "pearson_mean") in found


# ---- what it refuses -------------------------------------------------------------------------------


def without_a_person(stores: Path) -> MultiModal:
    return linear_world(stores, {**PARTS, "eeg": ONE_PERSON["eeg"]})


def divided_otherwise(stores: Path) -> MultiModal:
    return linear_world(stores, seed=1)


def recorded_otherwise(stores: Path) -> MultiModal:
    return linear_world(stores, noise=0.2)


@pytest.mark.parametrize(
    ("other", "entry"),
    [(without_a_person, "subjects"), (divided_otherwise, "training_set"), (recorded_otherwise, "preparation")],
)
def test_an_alignment_of_other_data_is_refused(
    alignment: Path, stores: Path, other: Callable[[Path], MultiModal], entry: str
) -> None:
    with pytest.raises(ContractError, match=f"(?s)does not fit the data.*  {entry}: checkpoint"):
        CrossModalConversion(other(stores).layout, alignment=str(alignment))


def test_an_alignment_that_is_none_is_refused(data: MultiModal, alignment: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"no checkpoint .*nothing\.ckpt"):
        CrossModalConversion(data.layout, alignment=str(tmp_path / "nothing.ckpt"))
    fit(data, alignment, tmp_path)
    with pytest.raises(ContractError, match="ContrastiveAlignment"):
        CrossModalConversion(data.layout, alignment=str(tmp_path / "conversion.ckpt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"alpha": -1.0}, "found -1.0"), ({"alpha": float("inf")}, "found inf"), ({"folds": 1}, "found 1")],
)
def test_bad_options_are_refused(data: MultiModal, alignment: Path, options: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        CrossModalConversion(data.layout, alignment=str(alignment), **options)


def test_a_model_that_was_never_fitted_is_refused(data: MultiModal, alignment: Path, tmp_path: Path) -> None:
    model = CrossModalConversion(data.layout, alignment=str(alignment))
    with pytest.raises(ContractError, match="this CrossModalConversion was never fitted"):
        scored(model, data, tmp_path)


def test_without_validation_there_is_nothing_to_fit_on(stores: Path, tmp_path: Path) -> None:
    data = linear_world(stores, validation=0.0)
    checkpoint = aligned(data, stores / "unvalidated.ckpt")
    with pytest.raises(ContractError, match="none are set aside; set --data"):
        fit(data, checkpoint, tmp_path)
    assert bool(fit(data, checkpoint, tmp_path, fit_on="train").get_buffer("fitted"))


@pytest.mark.parametrize("limit", ["limit_val_batches", "limit_train_batches"])
def test_recordings_that_are_left_out_are_missed(data: MultiModal, alignment: Path, tmp_path: Path, limit: str) -> None:
    with pytest.raises(ContractError, match=rf"there is no recording to fit .* on; .*--trainer\.{limit}"):
        fit(data, alignment, tmp_path, run={limit: 1})
    if limit == "limit_val_batches":
        with pytest.raises(ContractError, match="none are set aside"):
            fit(data, alignment, tmp_path, run={limit: 0})


def test_too_few_pictures_to_choose_a_penalty_are_said_to_be(stores: Path, tmp_path: Path) -> None:
    data = linear_world(stores, {"meg": PARTS["meg"]}, validation=1 / 60)
    checkpoint = aligned(data, stores / "few.ckpt")
    with pytest.raises(ContractError, match=r"meg: .*to_image.*at least 2 folds.*alpha"):
        fit(data, checkpoint, tmp_path)
    assert bool(fit(data, checkpoint, tmp_path, alpha=1.0).get_buffer("fitted"))


def test_predicted_memory_above_the_limit_is_refused_before_the_pass(
    data: MultiModal, alignment: Path, tmp_path: Path
) -> None:
    with pytest.raises(ContractError, match=r"memory_limit is 1e-06 GB"):
        fit(data, alignment, tmp_path, memory_limit=1e-6)


# ---- running ---------------------------------------------------------------------------------------


def test_a_batch_of_everything_runs(data: MultiModal, alignment: Path, tmp_path: Path) -> None:
    model = CrossModalConversion(data.layout, alignment=str(alignment))
    run = trainer(tmp_path, CrossModal(permutations=0, bootstraps=0), fast_dev_run=True)
    run.fit(model, datamodule=data)
    run.test(model, datamodule=data, verbose=False)


def test_a_fit_that_is_resumed_is_whole(data: MultiModal, alignment: Path, tmp_path: Path) -> None:
    expected = copied(fit(data, alignment, tmp_path / "unbroken"))
    folder = tmp_path / "broken"

    class Killed(Callback):
        def on_train_batch_end(self, run: Trainer, model: Any, *_: Any) -> None:
            if run.fit_loop.batch_idx == 4:
                raise KeyboardInterrupt

    # every batch is late enough for a checkpoint
    model = CrossModalConversion(data.layout, alignment=str(alignment))
    options: dict[str, Any] = {"max_epochs": 1, "enable_checkpointing": True, "log_every_n_steps": 1}
    with pytest.raises(SystemExit):
        trainer(folder, RunCheckpoint(every_minutes=0), Killed(), **options).fit(model, datamodule=data)
    assert not (folder / "final.ckpt").exists()
    last = folder / "last.ckpt"
    again = CrossModalConversion(data.layout, alignment=str(alignment))
    trainer(folder, RunCheckpoint(every_minutes=0), **options).fit(
        again, datamodule=data, ckpt_path=str(last) if last.exists() else None, weights_only=True
    )
    assert_same_weights(copied(again), expected)
    final = torch.load(folder / "final.ckpt", weights_only=True)
    assert_same_weights(final["state_dict"], expected)
    # what is finished has nothing left to do
    third = CrossModalConversion(data.layout, alignment=str(alignment))
    trainer(folder, RunCheckpoint(), **options).fit(
        third, datamodule=data, ckpt_path=str(folder / "final.ckpt"), weights_only=True
    )
    assert_same_weights(copied(third), expected)
