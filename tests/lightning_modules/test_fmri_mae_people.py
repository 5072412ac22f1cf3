"""FmriMAE with several people: layers of their own or in common, and weights taken over from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from contracts import ContractError
from lightning_modules import FmriMAE
from tests.experiments.launching import launch
from tests.formats.recording import Recording
from tests.lightning_modules.advice import NO_VALIDATION
from tests.lightning_modules.brains import (
    PEOPLE,
    SAME,
    VARIANTS,
    Rois,
    autoencoder,
    brains,
    fitted,
    samples,
    volumes_of,
    without_key_bias,
)
from tests.lightning_modules.fitting import Started, assert_same_weights, copied, fit, recording, small, trainer

pytestmark = NO_VALIDATION
KINDS = ("code", "paper", "patch", "segments")
every_kind = pytest.mark.parametrize("name", KINDS)
STILL: dict[str, Any] = {"lr": 1e-12, "weight_decay": 0.0}
# the second person has not all regions, in another order, and one of their own
MIXED: Rois = {"01": {"V1": 5, "V2": 7, "FFA": 3}, "02": {"PPA": 4, "V1": 6}, "03": {"FFA": 2, "V2": 3}}


def begun(data: Recording, base: Path, folder: Path, **options: Any) -> tuple[FmriMAE, dict[str, Tensor]]:
    """A model made from a checkpoint, and its weights when training began."""
    started = Started()
    options = {**STILL, "initialise_from": str(base), **options}
    model, _ = fitted(data, folder / "next.ckpt", started, run={"max_epochs": 1}, **options)
    return model, started.weights


def layer(state: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """Weights of the layers of one number."""
    return {
        name.replace(f".layers.{number}.", ".layers."): value
        for name, value in state.items()
        if f".layers.{number}." in name
    }


def trunk(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if ".encoder." in name or ".decoder." in name}


def is_other(found: Mapping[str, Tensor], than: Mapping[str, Tensor]) -> bool:
    """Whether no matrix is the same."""
    pairs = [(found[name], than[name]) for name in found if found[name].ndim > 1 and found[name].shape[0] > 1]
    return all(one.shape != other.shape or not torch.equal(one, other) for one, other in pairs)


# ---- people in one model ---------------------------------------------------------------------------


@every_kind
def test_people_of_all_regions_are_trained_together(stores: Path, tmp_path: Path, name: str) -> None:
    data, started = brains(stores, MIXED, volumes=volumes_of(name), batch_size=4), Started()
    model, _ = fitted(data, tmp_path / "fit.ckpt", started, run={"max_epochs": 1}, **VARIANTS[name])
    for number, person in enumerate(MIXED):
        batch = samples(data, number)
        output = model.eval()(batch)
        assert output["predicted_signal"].shape == batch["signal"].shape
        assert model.latent_shape(person) == model.encode(batch["signal"], batch["subject"]).shape[1:]
        if name != "patch":
            before, after = layer(started.weights, number), layer(model.state_dict(), number)
            assert before
            assert is_other(after, before)


@every_kind
def test_a_model_in_common_gives_everyone_the_same(stores: Path, name: str) -> None:
    data = brains(stores, SAME, volumes=volumes_of(name))
    batch = samples(data)
    for voxels in ("common", "own"):
        model = autoencoder(data, **VARIANTS[name], voxels=voxels).eval()
        first, second = (
            model({**batch, "subject": torch.full_like(batch["subject"], person)})["predicted_signal"]
            for person in (0, 1)
        )
        assert torch.equal(first, second) == (voxels == "common" or name == "patch")
        assert model.latent_shape("01") == model.latent_shape("02")
        numbers = {entry.split(".layers.")[1][0] for entry in model.state_dict() if ".layers." in entry}
        assert numbers == (set() if name == "patch" else {"0"} if voxels == "common" else {"0", "1"})


def test_a_model_in_common_learns_from_everyone(stores: Path, tmp_path: Path) -> None:
    data, started = brains(stores, SAME), Started()
    model, _ = fitted(data, tmp_path / "fit.ckpt", started, run={"max_epochs": 1}, voxels="common")
    assert is_other(layer(model.state_dict(), 0), layer(started.weights, 0))
    trainer(tmp_path).test(model, datamodule=data, verbose=False)


# ---- taking over -----------------------------------------------------------------------------------


@every_kind
def test_everything_is_taken_over_by_the_same_people(stores: Path, tmp_path: Path, name: str) -> None:
    data = brains(stores, MIXED, volumes=volumes_of(name), batch_size=4)
    base, _ = fitted(data, tmp_path / "base.ckpt", run={"max_epochs": 1}, **VARIANTS[name])
    _, weights = begun(data, tmp_path / "base.ckpt", tmp_path, seed=1, **VARIANTS[name])
    assert_same_weights(weights, copied(base))


@pytest.mark.parametrize("name", ["code", "paper", "segments"])
def test_people_are_known_by_their_names(stores: Path, tmp_path: Path, name: str) -> None:
    """In another order, one of them gone, one with other regions, one new."""
    volumes = volumes_of(name)
    before = brains(stores, MIXED, volumes=volumes, batch_size=4)
    base, _ = fitted(before, tmp_path / "base.ckpt", run={"max_epochs": 1}, **VARIANTS[name])
    rois: Rois = {"03": MIXED["03"], "02": {"PPA": 4, "V1": 7}, "01": MIXED["01"], "04": {"V1": 6, "PPA": 4}}
    data = brains(stores, rois, volumes=volumes, batch_size=4)
    _, weights = begun(data, tmp_path / "base.ckpt", tmp_path, seed=1, **VARIANTS[name])
    theirs = base.state_dict()
    assert_same_weights(trunk(weights), trunk(theirs))
    place = {person: number for number, person in enumerate(data.layout["subjects"])}
    for person in ("03", "01"):
        assert_same_weights(layer(weights, place[person]), layer(theirs, list(MIXED).index(person)))
    for person in ("02", "04"):
        for number in range(3):
            assert is_other(layer(weights, place[person]), layer(theirs, number))


@pytest.mark.parametrize("name", ["code", "paper", "segments"])
@pytest.mark.parametrize(
    "people", [[*MIXED], ["03"], ["03", "02", "01"]], ids=["among the same", "alone", "in another order"]
)
def test_a_person_who_is_taken_over_is_reconstructed_as_before(
    stores: Path, tmp_path: Path, name: str, people: list[str]
) -> None:
    """What the model says about them is the same, whoever else is in the data set."""
    volumes = volumes_of(name)
    everyone = brains(stores, MIXED, volumes=volumes, batch_size=4)
    base, _ = fitted(everyone, tmp_path / "base.ckpt", run={"max_epochs": 3}, **VARIANTS[name])
    data = brains(stores, {person: MIXED[person] for person in people}, volumes=volumes, batch_size=4)
    model, _ = begun(data, tmp_path / "base.ckpt", tmp_path, seed=1, **VARIANTS[name])
    batch = samples(everyone, 2)
    expected = base.eval()(batch)["predicted_signal"]
    here = torch.full_like(batch["subject"], data.layout["subjects"].index("03"))
    found = model.eval()({**batch, "subject": here})["predicted_signal"]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_regions_of_other_names_are_other_regions(stores: Path, tmp_path: Path) -> None:
    """Of as many regions, each with an embedding of its name: those of new names begin anew."""
    rois: Rois = {"01": {"V1": 5, "V2": 7}}
    before = brains(stores, rois, volumes=8)
    base, _ = fitted(before, tmp_path / "base.ckpt", run={"max_epochs": 1}, tokens="region_time")
    data = brains(stores, {"01": {"PPA": 5, "FFA": 7}}, volumes=8)
    _, weights = begun(data, tmp_path / "base.ckpt", tmp_path, seed=1, tokens="region_time")
    for name in ("autoencoder.tokens.region", "autoencoder.tokens.decoder_region"):
        assert not torch.equal(weights[name], base.state_dict()[name]), name


@pytest.mark.parametrize("voxels", ["own", "common"])
@pytest.mark.parametrize("name", ["code", "segments"])
def test_layers_in_common_become_everyones(stores: Path, tmp_path: Path, name: str, voxels: str) -> None:
    volumes = volumes_of(name)
    options = {**VARIANTS[name], "voxels": "common"}
    base, _ = fitted(brains(stores, SAME, volumes=volumes), tmp_path / "base.ckpt", run={"max_epochs": 1}, **options)
    rois: Rois = {"07": SAME["01"], "08": SAME["01"]} | ({} if voxels == "common" else {"09": {"V1": 5, "V2": 8}})
    data = brains(stores, rois, volumes=volumes, batch_size=4)
    _, weights = begun(data, tmp_path / "base.ckpt", tmp_path, seed=1, **{**options, "voxels": voxels})
    theirs = layer(base.state_dict(), 0)
    assert theirs
    assert_same_weights(trunk(weights), trunk(base.state_dict()))
    for number in range(2 if voxels == "own" else 1):
        assert_same_weights(layer(weights, number), theirs)
    if voxels == "own":
        assert is_other(layer(weights, 2), theirs)


@pytest.mark.parametrize("before", ["own", "common"])
def test_layers_of_one_person_or_of_other_regions_do_not_become_common(
    stores: Path, tmp_path: Path, before: str
) -> None:
    base, _ = fitted(brains(stores, SAME), tmp_path / "base.ckpt", run={"max_epochs": 1}, voxels=before)
    regions = {"V1": 5, "V2": 7} if before == "own" else {"PPA": 5, "FFA": 7}
    data = brains(stores, {"01": regions, "02": regions})
    _, weights = begun(data, tmp_path / "base.ckpt", tmp_path, seed=1, voxels="common")
    assert_same_weights(trunk(weights), trunk(base.state_dict()))
    assert is_other(layer(weights, 0), layer(base.state_dict(), 0))


def test_regions_may_start_from_patches(stores: Path, tmp_path: Path) -> None:
    """LEA starts from MinD-Vis: the trunk, and what else has the same shape."""
    base, _ = fitted(brains(stores), tmp_path / "base.ckpt", run={"max_epochs": 1}, tokens="patch")
    _, weights = begun(brains(stores), tmp_path / "base.ckpt", tmp_path, seed=1, tokens="roi")
    theirs = base.state_dict()
    assert_same_weights(trunk(weights), trunk(theirs))
    for name in ("autoencoder.cls_token", "autoencoder.mask_token", "autoencoder.from_latent.weight"):
        assert torch.equal(weights[name], theirs[name])


def test_the_lineage_names_what_was_taken_over(stores: Path, tmp_path: Path) -> None:
    data = brains(stores)
    fitted(data, tmp_path / "base.ckpt", run={"max_epochs": 1}, relax=True)
    model, _ = begun(data, tmp_path / "base.ckpt", tmp_path)
    first, second = torch.load(tmp_path / "next.ckpt", weights_only=True)["lineage"]
    assert [entry["stage"] for entry in (first, second)] == ["FmriMAE", "FmriMAE"]
    assert (first["transductive"], second["transductive"]) == (True, False)
    context = model.score_context(data.score_context("test"))
    assert [entry["transductive"] for entry in context.lineage] == [True]


def test_a_resumed_fit_keeps_its_own_weights(stores: Path, tmp_path: Path) -> None:
    data = brains(stores)
    fitted(data, tmp_path / "base.ckpt", run={"max_epochs": 1})
    options = {"initialise_from": str(tmp_path / "base.ckpt")}
    first, _ = fitted(data, tmp_path / "first.ckpt", run={"max_epochs": 1}, seed=1, **options)
    model, started = autoencoder(data, seed=1, **options), Started()
    run = trainer(tmp_path, started, max_epochs=2)
    run.fit(model, datamodule=data, ckpt_path=tmp_path / "first.ckpt", weights_only=True)
    assert_same_weights(started.weights, copied(first))
    run.save_checkpoint(tmp_path / "second.ckpt")
    assert len(torch.load(tmp_path / "second.ckpt", weights_only=True)["lineage"]) == 2


def test_a_checkpoint_is_needed_for_fitting_only(stores: Path, tmp_path: Path) -> None:
    data = brains(stores)
    fitted(data, tmp_path / "base.ckpt", run={"max_epochs": 1})
    model, _ = begun(data, tmp_path / "base.ckpt", tmp_path)
    (tmp_path / "base.ckpt").unlink()
    loaded = FmriMAE.load_from_checkpoint(tmp_path / "next.ckpt", weights_only=True)
    trainer(tmp_path).test(loaded, datamodule=data, verbose=False)
    assert_same_weights(loaded.state_dict(), copied(model))


# ---- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({"width": 16}, "autoencoder.encoder.blocks.0"),
        ({"depth": 2}, "autoencoder.encoder.blocks.1"),
        ({"decoder_width": 16}, "autoencoder.decoder.blocks.0"),
        ({"decoder_depth": 2}, "autoencoder.decoder.blocks.1"),
        ({"mlp_ratio": 2.0}, "autoencoder.encoder.blocks.0.mlp"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_trunk_is_refused(stores: Path, tmp_path: Path, options: dict[str, Any], first: str) -> None:
    data = brains(stores)
    fitted(data, tmp_path / "base.ckpt", run={"max_epochs": 1})
    with pytest.raises(ContractError, match=f"the trunk of .*base.ckpt is another one: .* the first is {first}"):
        begun(data, tmp_path / "base.ckpt", tmp_path, **options)


def test_other_attention_heads_are_refused(stores: Path, tmp_path: Path) -> None:
    """Shapes do not tell them, the arguments in the checkpoint do."""
    data = brains(stores)
    fitted(data, tmp_path / "base.ckpt", run={"max_epochs": 1})
    with pytest.raises(ContractError, match="heads"):
        begun(data, tmp_path / "base.ckpt", tmp_path, num_heads=2)


@pytest.mark.parametrize("kind", ["missing", "no checkpoint", "another stage"])
def test_what_is_no_checkpoint_of_an_autoencoder_is_refused(stores: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "base.ckpt"
    if kind == "no checkpoint":
        path.write_text("nothing")
    if kind == "another stage":
        fit(recording(stores), path, encoder=small)
    with pytest.raises(ContractError, match=r"base\.ckpt"):
        begun(brains(stores, PEOPLE), path, tmp_path)


# ---- in processes of their own ---------------------------------------------------------------------

VALIDATE = """
from datetime import timedelta
from pathlib import Path
from lightning.pytorch.strategies import DDPStrategy
from datamodules.core.splits import SplitOptions
from tests.lightning_modules.brains import autoencoder, brains
from tests.lightning_modules.fitting import trainer
data = brains(Path(), {{"01": {{"V1": 5}}}})
data.split = SplitOptions(validation={validation} / 32)
strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=60))
run = trainer(Path(), devices={devices}, strategy=strategy if {devices} > 1 else "auto")
[results] = run.validate(autoencoder(data), datamodule=data, verbose=False)
if run.is_global_zero:
    Path("{devices}.txt").write_text(str(results["validation/loss"]))
"""


@pytest.mark.full
@pytest.mark.parametrize("validation", [5, 1], ids=["some", "fewer samples than processes"])
def test_two_processes_find_the_same_validation_loss(tmp_path: Path, validation: int) -> None:
    """A process that has nothing but padding must not keep the others waiting."""
    variables = {"PYTHONPATH": str(Path(__file__).parents[2])}
    for devices in (1, 2):
        (tmp_path / "script.py").write_text(VALIDATE.format(validation=validation, devices=devices))
        launch(tmp_path, ["script.py"], variables=variables)
    one, two = (float((tmp_path / f"{devices}.txt").read_text()) for devices in (1, 2))
    assert two == pytest.approx(one, rel=1e-5)


FIT = """
from pathlib import Path
from tests.lightning_modules.brains import VARIANTS, brains, fitted, volumes_of
name, compiled = {name!r}, {compiled}
data = brains(Path(), volumes=volumes_of(name))
fitted(data, Path(f"{{compiled}}.ckpt").absolute(), run={{"max_epochs": 1}}, compile=compiled, **VARIANTS[name])
"""


@pytest.mark.full
@pytest.mark.parametrize("name", ["code", "patch", "segments"])
def test_compiled_networks_have_the_same_weights(tmp_path: Path, name: str) -> None:
    variables = {"PYTHONPATH": str(Path(__file__).parents[2])}
    states = []
    for compiled in (False, True):
        # in a process of its own: the checks of types that tests switch on cannot be compiled
        launch(tmp_path, ["-c", FIT.format(name=name, compiled=compiled)], variables=variables, timeout=300)
        states.append(torch.load(tmp_path / f"{compiled}.ckpt", weights_only=True)["state_dict"])
    plain, by_compiler = (without_key_bias(state) for state in states)
    assert plain.keys() == by_compiler.keys()
    for key, value in plain.items():
        torch.testing.assert_close(by_compiler[key], value, rtol=1e-2, atol=1e-3)
