"""Other people on a trained trunk: only their own layers are trained, and nothing is tested that it has seen."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import seed_everything

from contracts import ContractError
from datamodules import EmbeddingOptions
from lightning_modules import ContrastiveAlignment, LinearEncoder, ResidualMLP, RidgeAlignment
from tests.formats.recording import Recording
from tests.lightning_modules.advice import NO_VALIDATION
from tests.lightning_modules.fitting import (
    PEOPLE,
    Started,
    fit,
    linear_problem,
    loader,
    made_up,
    only,
    recording,
    small,
    trainer,
    whole,
)

pytestmark = NO_VALIDATION


@pytest.fixture(scope="module")
def base(stores: Path) -> Path:
    path = stores / "base.ckpt"
    fit(recording(stores), path, lr=1e-2)
    return path


OTHER = {"03": (15,)}


def adapted(stores: Path, base: Path, folder: Path, shape: Any = OTHER, **options: Any) -> ContrastiveAlignment:
    return fit(recording(stores, shape), folder / "adapted.ckpt", adapt_subject=str(base), **options)


@pytest.mark.parametrize("shape", [OTHER, {"04": (7,), "05": (12,)}], ids=["one", "two"])
def test_only_the_layers_of_new_people_are_trained(stores: Path, base: Path, tmp_path: Path, shape: Any) -> None:
    started = Started()
    data = recording(stores, shape)
    model = fit(data, tmp_path / "adapted.ckpt", started, adapt_subject=str(base), lr=1e-2)
    theirs, mine = torch.load(base, weights_only=True)["state_dict"], model.state_dict()
    own = {name for name in mine if name.startswith("encoders.fmri.subject_layers.")}
    assert {name.split(".")[4] for name in own} == {str(i) for i in range(len(shape))}
    assert "losses.fmri.logit_scale" in mine.keys() - own
    assert len(mine.keys() - own) > 5
    for name, value in mine.items():
        if name in own:
            assert not torch.equal(value, started.weights[name]), f"{name} was not trained"
        else:
            assert torch.equal(value, started.weights[name]), f"{name} was trained"
            assert torch.equal(value, theirs[name]), f"{name} is not that of the base"
    fresh = ContrastiveAlignment(data.layout, small).state_dict()
    assert any(not torch.equal(theirs[name], fresh[name]) for name in fresh.keys() - own), "nothing to compare"


def test_new_people_are_decoded_by_the_old_trunk(tmp_path: Path) -> None:
    """Trained on one person of a linear problem, adapted to another: identified as well."""
    encoder = functools.partial(ResidualMLP, hidden=64, input_dropout=0.1)
    paths = {}
    for person, voxels in (("01", 30), ("02", 50)):
        *train, held_out = linear_problem([voxels])
        seed_everything(0, verbose=False)
        adapt = str(paths["01"]) if paths else None
        model = ContrastiveAlignment(made_up({person: [voxels]}), encoder, lr=1e-2, adapt_subject=adapt)
        run = trainer(tmp_path, max_epochs=15)
        run.fit(model, train_dataloaders=loader(train))
        paths[person] = tmp_path / f"{person}.ckpt"
        run.save_checkpoint(paths[person])
    with torch.no_grad():
        brain = F.normalize(model.eval()(held_out)["brain_embedding"], dim=1)
    found = (brain @ F.normalize(held_out["embedding"], dim=1).T).argmax(dim=1)
    assert (found == torch.arange(len(found))).float().mean() > 0.9


def test_the_lineage_names_the_base(stores: Path, base: Path, tmp_path: Path) -> None:
    data = recording(stores)
    [entry] = torch.load(base, weights_only=True)["lineage"]
    assert entry == {
        "stage": "ContrastiveAlignment",
        "protocol": "by_stimulus",
        "training_set": data.layout["training_set"],
        "transductive": False,
        "training_stimuli": sorted(data.stimuli("train") | data.stimuli("validation")),
    }
    adapted(stores, base, tmp_path)
    first, second = torch.load(tmp_path / "adapted.ckpt", weights_only=True)["lineage"]
    assert first == entry
    assert second["stage"] == "ContrastiveAlignment"
    loaded = ContrastiveAlignment.load_from_checkpoint(tmp_path / "adapted.ckpt", weights_only=True)
    assert loaded.lineage == [entry]
    context = loaded.score_context(recording(stores, OTHER).score_context("test"))
    assert [stage["stage"] for stage in context.lineage] == ["ContrastiveAlignment"]
    assert "training_stimuli" not in context.lineage[0]


def test_adapting_twice_names_both(stores: Path, base: Path, tmp_path: Path) -> None:
    adapted(stores, base, tmp_path)
    fit(recording(stores, {"06": (8,)}), tmp_path / "twice.ckpt", adapt_subject=str(tmp_path / "adapted.ckpt"))
    assert len(torch.load(tmp_path / "twice.ckpt", weights_only=True)["lineage"]) == 3


def test_a_missing_base_is_refused(stores: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=re.escape(f"no checkpoint {tmp_path / 'nowhere.ckpt'}")):
        adapted(stores, tmp_path / "nowhere.ckpt", tmp_path)


def test_a_damaged_base_is_refused(stores: Path, base: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(base.read_bytes()[:-1000])
    with pytest.raises(ContractError, match=r"torn\.ckpt is damaged.*adapt_subject"):
        adapted(stores, torn, tmp_path)


def test_a_trunk_of_other_sizes_is_refused(stores: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractError) as raised:
        adapted(stores, base, tmp_path, encoder=functools.partial(ResidualMLP, hidden=24))
    assert "encoders.fmri.trunk.2.weight: (27, 16) in the checkpoint, (27, 24) here" in str(raised.value)
    with pytest.raises(ContractError, match=r"nothing in the checkpoint, \(16,\) here"):
        adapted(stores, base, tmp_path, encoder=functools.partial(ResidualMLP, hidden=16, blocks=2))


def test_a_trunk_of_another_kind_is_refused(stores: Path, tmp_path: Path) -> None:
    data = recording(stores)
    model, run = RidgeAlignment(data.layout), trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    run.fit(model, datamodule=data)
    run.save_checkpoint(tmp_path / "ridge.ckpt")
    with pytest.raises(
        ContractError, match=r"checkpoint of another stage \(RidgeAlignment\) than ContrastiveAlignment"
    ):
        adapted(stores, tmp_path / "ridge.ckpt", tmp_path)


def test_an_encoder_without_trunk_is_refused(stores: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="LinearEncoder shares nothing between the people of fmri"):
        adapted(stores, base, tmp_path, encoder=LinearEncoder)


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        (EmbeddingOptions(image_size=4), "embedding_width: checkpoint 27, data 48"),
        (EmbeddingOptions(image_size=3, target="unit"), r"embedding_space: checkpoint '\S+', data '\S+\|unit'"),
    ],
    ids=["width", "space"],
)
def test_another_image_space_is_refused(
    stores: Path, base: Path, tmp_path: Path, embedding: EmbeddingOptions, message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        fit(recording(stores, OTHER, embedding=embedding), tmp_path / "adapted.ckpt", adapt_subject=str(base))


@pytest.mark.parametrize("form", ["fixed", "softplus", "raw"])
def test_the_temperature_of_the_base_is_kept_or_refused(stores: Path, base: Path, tmp_path: Path, form: str) -> None:
    """The number in the checkpoint means another scale under another form."""
    scale = ContrastiveAlignment.load_from_checkpoint(base, weights_only=True).losses["fmri"].scale.item()
    try:
        model = adapted(stores, base, tmp_path, temperature_form=form)
    except ContractError as error:
        assert "temperature_form" in str(error)  # noqa: PT017
        return
    assert only(model.losses).scale.item() == pytest.approx(scale, rel=1e-5)


def test_an_adapted_model_is_tested_after_its_base_is_gone(stores: Path, base: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.ckpt"
    gone.write_bytes(base.read_bytes())
    data = recording(stores, OTHER)
    model = fit(data, tmp_path / "adapted.ckpt", adapt_subject=str(gone))
    gone.unlink()
    batch = whole(data)
    expected = model.eval()(batch)["brain_embedding"]
    loaded = ContrastiveAlignment.load_from_checkpoint(tmp_path / "adapted.ckpt", weights_only=True)
    assert torch.equal(loaded.eval()(batch)["brain_embedding"], expected)
    other = ContrastiveAlignment(data.layout, small, adapt_subject=str(gone))
    run = trainer(tmp_path)
    run.test(other, datamodule=data, ckpt_path=tmp_path / "adapted.ckpt", weights_only=True, verbose=False)
    assert torch.equal(other.eval()(batch)["brain_embedding"], expected)
    trainer(tmp_path).test(loaded, datamodule=data, verbose=False)


def on_fold(stores: Path, fold: int, shape: Any, **split: Any) -> Recording:
    return recording(stores, shape, **{"folds": 2, "fold": fold, "validation": 0.0, **split})


def test_pictures_that_the_base_was_trained_on_are_no_test_pictures(stores: Path, tmp_path: Path) -> None:
    fit(on_fold(stores, 0, PEOPLE), tmp_path / "base.ckpt")
    same, other = (on_fold(stores, fold, OTHER) for fold in (0, 1))
    model = fit(same, tmp_path / "same.ckpt", adapt_subject=str(tmp_path / "base.ckpt"))
    trainer(tmp_path).test(model, datamodule=same, verbose=False)
    model = fit(other, tmp_path / "other.ckpt", adapt_subject=str(tmp_path / "base.ckpt"))
    message = "14 test pictures were training pictures of the ContrastiveAlignment"
    with pytest.raises(ContractError, match=message):
        trainer(tmp_path).test(model, datamodule=other, verbose=False)
    loaded = ContrastiveAlignment.load_from_checkpoint(tmp_path / "other.ckpt", weights_only=True)
    with pytest.raises(ContractError, match=message):
        trainer(tmp_path).test(loaded, datamodule=other, verbose=False)


def test_a_protocol_that_shares_pictures_allows_them(stores: Path, tmp_path: Path) -> None:
    split = {"protocol": "leave_one_repetition_out", "folds": 0}
    fit(on_fold(stores, 0, PEOPLE, **split), tmp_path / "base.ckpt")
    data = on_fold(stores, 1, OTHER, **split)
    model = fit(data, tmp_path / "adapted.ckpt", adapt_subject=str(tmp_path / "base.ckpt"))
    trainer(tmp_path).test(model, datamodule=data, verbose=False)
