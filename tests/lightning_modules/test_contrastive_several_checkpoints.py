"""ContrastiveAlignment on several data sets side by side: frozen layers, checkpoints, resuming, other people."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer, seed_everything

from contracts import ContractError
from datamodules import EmbeddingOptions, MultiModal
from lightning_modules import ContrastiveAlignment, LinearEncoder
from tests.formats.side_by_side import PARTS, part, side_by_side
from tests.lightning_modules.advice import FEW_BATCHES
from tests.lightning_modules.fitting import assert_same_weights, copied, small, tiny, trainer
from tests.lightning_modules.several import ENCODERS, fitted, step_of, together

pytestmark = FEW_BATCHES


# ---- layers of people that stay as they began ------------------------------------------------------


@pytest.mark.parametrize("several", [True, False], ids=["several data sets", "one data set"])
def test_frozen_layers_of_people_stay_as_they_began(stores: Path, tmp_path: Path, several: bool) -> None:
    data: Any = side_by_side(stores) if several else part(stores, "fmri")
    seed_everything(0, verbose=False)
    encoders = ENCODERS if several else {"fmri": small}
    model = together(data.layout, encoders=encoders, subject_layers="frozen_random", lr=1e-2, weight_decay=0.5)
    started = copied(model)
    run = trainer(tmp_path)
    run.fit(model, datamodule=data)
    people = {name for name in started if ".subject_layers." in name}
    assert {name.split(".")[1] for name in people} == set(encoders)
    for name, value in model.state_dict().items():
        assert torch.equal(value, started[name]) == (name in people), name
    [optimiser] = run.optimizers
    optimised = {id(p) for group in optimiser.param_groups for p in group["params"]}
    assert optimised == {id(p) for name, p in model.named_parameters() if name not in people}
    run.save_checkpoint(tmp_path / "frozen.ckpt")
    seed_everything(99, verbose=False)
    loaded = ContrastiveAlignment.load_from_checkpoint(tmp_path / "frozen.ckpt", weights_only=True)
    assert_same_weights(loaded.state_dict(), model.state_dict())
    assert not any(p.requires_grad for e in loaded.encoders.values() for p in e.subject_layers.parameters())
    outputs, expected = (
        [o["brain_embedding"] for o in trainer(tmp_path).predict(m, datamodule=data)] for m in (loaded, model)
    )
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


def test_frozen_layers_need_something_else_to_train(stores: Path) -> None:
    layout = side_by_side(stores).layout
    with pytest.raises(ContractError, match=r"LinearEncoder has nothing but layers of people.*eeg.*subject_layers"):
        together(layout, encoders={"fmri": small, "eeg": LinearEncoder}, subject_layers="frozen_random")
    with pytest.raises(ContractError, match="adapt_subject trains the layers of people alone"):
        together(layout, subject_layers="frozen_random", adapt_subject="some.ckpt")


# ---- checkpoints -----------------------------------------------------------------------------------


def test_a_checkpoint_is_plain_data_and_enough(stores: Path, tmp_path: Path) -> None:
    data = side_by_side(stores)
    model = fitted(data, tmp_path, between="label", positives="label", temperature_form="softplus")
    stored = torch.load(tmp_path / "several.ckpt", weights_only=True)
    assert stored["hyper_parameters"]["layout"] == data.layout
    assert stored["hyper_parameters"]["encoders"] == {
        "fmri": {"class_path": "lightning_modules.networks.encoders.ResidualMLP", "init_args": small.keywords},
        "eeg": {"class_path": "lightning_modules.networks.encoders.TemporalSpatialConv", "init_args": tiny.keywords},
    }
    assert stored["lineage"][0]["training_stimuli"] == sorted(data.stimuli("train") | data.stimuli("validation"))
    loaded = ContrastiveAlignment.load_from_checkpoint(tmp_path / "several.ckpt", weights_only=True)
    assert_same_weights(loaded.state_dict(), model.state_dict())
    for batch in step_of(data).values():
        assert torch.equal(loaded.eval()(batch)["brain_embedding"], model.eval()(batch)["brain_embedding"])
    trainer(tmp_path).test(loaded, datamodule=side_by_side(stores), verbose=False)


@pytest.mark.parametrize(
    ("change", "entry"),
    [
        ({"parts": {"fmri": "fmri"}}, "subjects"),
        ({"parts": {"eeg": "eeg", "fmri": "fmri"}}, "subjects"),
        ({"parts": {"fmri": "fmri", "meg": "eeg"}}, "subjects"),
        ({"seed": 3}, "training_set"),
        ({"embedding": EmbeddingOptions(image_size=4)}, "embedding_width"),
    ],
    ids=["fewer parts", "another order", "another name", "another division", "another space"],
)
def test_a_checkpoint_of_other_data_is_refused(
    stores: Path, several_base: Path, tmp_path: Path, change: dict[str, Any], entry: str
) -> None:
    parts = change.pop("parts", None) or {name: name for name in PARTS}
    other = side_by_side(stores, {name: part(stores, kind) for name, kind in parts.items()}, **change)
    model = ContrastiveAlignment(other.layout, LinearEncoder)
    with pytest.raises(ContractError, match=f"{entry}: checkpoint"):
        trainer(tmp_path).test(model, datamodule=other, ckpt_path=several_base, weights_only=True)


# ---- resuming --------------------------------------------------------------------------------------


class Stops(Callback):
    """Writes a checkpoint after a batch, and ends the fit as if it were killed."""

    def __init__(self, path: Path, *, epoch: int, batch: int) -> None:
        self.path, self.at = path, (epoch, batch)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == self.at:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("epoch", "stop"),
    [("longest", (0, 4)), ("longest", (2, 0)), (7, (1, 3)), ("shortest", (1, 8))],
    ids=["first epoch", "third epoch", "number of steps", "shortest"],
)
def test_a_fit_that_was_stopped_inside_an_epoch_ends_where_an_unbroken_one_ends(
    stores: Path, tmp_path: Path, epoch: Any, stop: tuple[int, int]
) -> None:
    def begun() -> tuple[MultiModal, ContrastiveAlignment]:
        data = side_by_side(stores, epoch=epoch)
        seed_everything(0, verbose=False)
        return data, together(data.layout, between="label", lr=1e-2)

    data, unbroken = begun()
    trainer(tmp_path, max_epochs=3).fit(unbroken, datamodule=data)
    data, stopped = begun()
    path = tmp_path / "stopped.ckpt"
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer(tmp_path, Stops(path, epoch=stop[0], batch=stop[1]), max_epochs=3).fit(stopped, datamodule=data)
    state = next(v for k, v in torch.load(path, weights_only=True).items() if k == "MultiModal")
    assert state == {"epoch": stop[0], "batches_done": stop[1] + 1}
    data, resumed = begun()
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.add_(1.0)
    trainer(tmp_path, max_epochs=3).fit(resumed, datamodule=data, ckpt_path=path, weights_only=True)
    assert_same_weights(resumed.state_dict(), unbroken.state_dict())


# ---- adapting --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several_base(stores: Path) -> Path:
    folder = stores / "base"
    folder.mkdir()
    fitted(side_by_side(stores), folder, between="label", lr=1e-2)
    return folder / "several.ckpt"


NEW = {"07": (3, 12), "08": (5, 12)}


@pytest.mark.parametrize("alone", [True, False], ids=["data set alone", "as the only part"])
def test_new_people_of_one_of_several_data_sets(stores: Path, several_base: Path, tmp_path: Path, alone: bool) -> None:
    one = part(stores, "eeg", shape=NEW, train=(3, 4), test=(6,))
    data: Any = one if alone else side_by_side(stores, {"eeg": one}, validation=0.0)
    seed_everything(1, verbose=False)
    model = ContrastiveAlignment(data.layout, tiny, adapt_subject=str(several_base), lr=1e-2)
    first = copied(model)
    run = trainer(tmp_path)
    run.fit(model, datamodule=data)
    theirs = torch.load(several_base, weights_only=True)["state_dict"]
    people = {name for name in first if name.startswith("encoders.eeg.subject_layers.")}
    assert len(people) == 4
    assert {"losses.eeg.logit_scale", "encoders.eeg.trunk.1.weight"} <= first.keys() - people
    for name, value in model.state_dict().items():
        if name in people:
            assert not torch.equal(value, first[name]), f"{name} was not trained"
        else:
            assert torch.equal(value, theirs[name]), f"{name} is not that of the base"
    assert [entry["stage"] for entry in model.lineage] == ["ContrastiveAlignment"]


def test_new_people_of_all_of_several_data_sets(stores: Path, several_base: Path, tmp_path: Path) -> None:
    parts = {"fmri": part(stores, "fmri", shape={"09": (6,)}), "eeg": part(stores, "eeg", shape=NEW)}
    model = fitted(side_by_side(stores, parts), tmp_path, between="stimulus", adapt_subject=str(several_base))
    theirs, mine = torch.load(several_base, weights_only=True)["state_dict"], model.state_dict()
    kept = {name for name in mine if ".subject_layers." not in name}
    assert {"shared.logit_scale", "losses.fmri.logit_scale"} <= kept
    assert all(torch.equal(mine[name], theirs[name]) for name in kept)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == mine.keys() - kept


def test_a_base_that_does_not_fit_is_refused(stores: Path, several_base: Path, tmp_path: Path) -> None:
    def adapted(data: Any, encoder: Any = tiny, **options: Any) -> None:
        model = ContrastiveAlignment(data.layout, encoder, adapt_subject=str(several_base), **options)
        trainer(tmp_path).fit(model, datamodule=data)

    eeg = functools.partial(part, stores, "eeg", shape=NEW)
    with pytest.raises(ContractError, match=r"was trained on fmri, eeg, not on meg; choose another"):
        adapted(side_by_side(stores, {"meg": eeg()}))
    with pytest.raises(ContractError, match="modality: checkpoint 'eeg', data 'fmri'"):
        adapted(side_by_side(stores, {"eeg": part(stores, "fmri", shape={"09": (6,)})}), small)
    with pytest.raises(ContractError, match="embedding_width: checkpoint 27, data 48"):
        adapted(eeg(embedding=EmbeddingOptions(image_size=4)))
    with pytest.raises(ContractError, match=r"encoders\.eeg\.trunk\.\d.*in the checkpoint"):
        adapted(eeg(), functools.partial(tiny.func, **{**tiny.keywords, "filters": 9}))
    with pytest.raises(ContractError, match="LinearEncoder shares nothing between the people of eeg"):
        adapted(eeg(), LinearEncoder)
    with pytest.raises(ContractError, match="temperature_form='exp', this run 'softplus'"):
        adapted(eeg(), temperature_form="softplus")


def test_a_base_without_a_loss_between_data_sets_is_refused_where_there_is_one(stores: Path, tmp_path: Path) -> None:
    fitted(side_by_side(stores), tmp_path)
    parts = {"fmri": part(stores, "fmri", shape={"09": (6,)}), "eeg": part(stores, "eeg", shape=NEW)}
    with pytest.raises(ContractError, match=r"shared\.logit_scale: nothing in the checkpoint"):
        fitted(
            side_by_side(stores, parts),
            tmp_path / "adapted",
            between="label",
            adapt_subject=str(tmp_path / "several.ckpt"),
        )
