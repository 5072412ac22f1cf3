"""MaskGIT's checkpoints: with the tokenizer in them, as a beginning, resumed inside an epoch; what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer, seed_everything
from torch import Tensor

from contracts import ContractError
from datamodules import EmbeddingOptions
from lightning_modules import MaskGIT, Tokenizer
from tests.experiments.test_resume import assert_equal
from tests.lightning_modules.advice import NO_VALIDATION
from tests.lightning_modules.fitting import (
    SMALL_MASKGIT,
    SMALL_TOKENIZER,
    assert_same_weights,
    copied,
    maskgit,
    pictured,
    shown,
    tokenizer,
    trainer,
)

pytestmark = NO_VALIDATION


@pytest.fixture(scope="module")
def codes(stores: Path) -> Path:
    """A tokenizer of 4 x 4 codes."""
    return tokenizer(pictured(stores), stores / "tokenizer.ckpt", epochs=10)


@pytest.fixture(scope="module")
def finished(stores: Path, codes: Path) -> Path:
    """A MaskGIT of these."""
    return maskgit(pictured(stores), stores / "maskgit.ckpt", tokenizer=str(codes), epochs=3)


def new(stores: Path, **options: Any) -> MaskGIT:
    seed_everything(7, verbose=False)
    embedding: Any = options.pop("embedding", EmbeddingOptions(image_size=3))
    return MaskGIT(pictured(stores, embedding=embedding).layout, **{**SMALL_MASKGIT, **options})


def loaded(path: Path, **options: Any) -> MaskGIT:
    return MaskGIT.load_from_checkpoint(path, weights_only=True, **options).eval()


def pictures(model: MaskGIT, stores: Path) -> Tensor:
    batch = shown(pictured(stores), MaskGIT)
    with torch.no_grad():
        return model.eval().generate(batch["embedding"], batch["stimulus"])[0]


def begun(model: MaskGIT) -> MaskGIT:
    """A model as it is when a fit begins."""
    model.setup("fit")
    return model.eval()


# ---- what is in them -----------------------------------------------------------------------------------


def test_a_checkpoint_carries_its_tokenizer(stores: Path, tmp_path: Path) -> None:
    data = pictured(stores)
    earlier = tokenizer(data, tmp_path / "tokenizer.ckpt", epochs=5)
    path = maskgit(data, tmp_path / "maskgit.ckpt", tokenizer=str(earlier))
    expected = pictures(loaded(path), stores)
    images = shown(data, MaskGIT)["image"]
    with torch.no_grad():
        of_tokenizer = Tokenizer.load_from_checkpoint(earlier, weights_only=True).eval().encode(images)
    earlier.unlink()
    model = loaded(path)
    assert torch.equal(pictures(model, stores), expected)
    assert len(expected.flatten(0, 1).unique(dim=0)) > 8
    assert torch.equal(model.tokenizer.encode(images), of_tokenizer)
    content = torch.load(path, weights_only=True)
    assert [entry["stage"] for entry in content["lineage"]] == ["Tokenizer", "MaskGIT"]
    assert str(earlier) not in str(content["hyper_parameters"])


def test_a_fit_leaves_the_tokenizer_alone(finished: Path, codes: Path) -> None:
    model = loaded(finished)
    weights = Tokenizer.load_from_checkpoint(codes, weights_only=True).state_dict()
    assert_same_weights(copied(model.tokenizer), weights)
    state = torch.load(finished, weights_only=True)
    assert len(state["optimizer_states"][0]["state"]) == len(list(model.parameters())) - len(weights)


def test_sampling_is_chosen_when_a_checkpoint_is_loaded(finished: Path, stores: Path) -> None:
    five, two = (pictures(loaded(finished, **options), stores) for options in ({}, {"samples": 2}))
    assert (five.shape[1], two.shape[1]) == (5, 2)
    assert torch.equal(five[:, :2], two)
    assert not torch.equal(pictures(loaded(finished, sampling_seed=1), stores), five)


# ---- resumed -------------------------------------------------------------------------------------------


class SaveAt(Callback):
    """Writes a checkpoint after a step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("step", [5, 8])
def test_a_fit_that_is_resumed_ends_where_an_unbroken_one_ends(
    stores: Path, codes: Path, tmp_path: Path, step: int
) -> None:
    """Four steps an epoch: inside the second one, and at its end."""

    def fit(name: str, *callbacks: Callback, start: Path | None = None, seed: int = 3) -> dict[str, Any]:
        seed_everything(seed, verbose=False)
        options = {"dropout": 0.2, "condition_dropout": 0.3, "condition_noise": 0.5}
        model = MaskGIT(data().layout, **{**SMALL_MASKGIT, "tokenizer": str(codes), **options})
        run = trainer(tmp_path, *callbacks, max_epochs=3)
        # as on the command line, which seeds before it resumes
        seed_everything(3, verbose=False)
        run.fit(model, datamodule=data(), ckpt_path=start, weights_only=True)
        assert run.global_step == 12
        run.save_checkpoint(tmp_path / name)
        found = torch.load(tmp_path / name, weights_only=True)
        return {key: found[key] for key in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers")}

    def data() -> Any:
        return pictured(stores, batch_size=4)

    expected = fit("unbroken.ckpt", SaveAt(step, tmp_path / "middle.ckpt"))
    # other weights to begin with
    assert_equal(fit("resumed.ckpt", start=tmp_path / "middle.ckpt", seed=4), expected)


# ---- weights to begin with -----------------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False], ids=["its tokenizer", "the same tokenizer"])
def test_a_fit_begins_with_the_weights_of_another(stores: Path, codes: Path, finished: Path, own: bool) -> None:
    more = {} if own else {"tokenizer": str(codes)}
    model = new(stores, initialise_from=str(finished), **more)
    before = copied(model)
    assert_same_weights(copied(begun(model)), copied(loaded(finished)))
    assert not torch.equal(before["transformer.positions"], copied(model)["transformer.positions"])
    assert torch.equal(pictures(model, stores), pictures(loaded(finished), stores))


def test_what_is_made_of_such_weights_asks_for_no_file(stores: Path, finished: Path, tmp_path: Path) -> None:
    first = shutil.copy(finished, tmp_path / "first.ckpt")
    path = maskgit(pictured(stores), tmp_path / "second.ckpt", initialise_from=str(first), lr=1e-9)
    Path(first).unlink()
    model = loaded(path)
    for name, value in copied(loaded(finished)).items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-6, rtol=1e-5)
    stages = [entry["stage"] for entry in torch.load(path, weights_only=True)["lineage"]]
    assert stages == ["Tokenizer", "MaskGIT", "MaskGIT"]


def test_another_embedding_keeps_the_transformer(stores: Path, finished: Path) -> None:
    model = begun(new(stores, initialise_from=str(finished), embedding=EmbeddingOptions(image_size=2)))
    weights = copied(loaded(finished))
    found = copied(model)
    assert found["condition.weight"].shape != weights["condition.weight"].shape
    transformer = [name for name in weights if name.startswith("transformer.")]
    assert transformer
    assert not [name for name in transformer if not torch.equal(found[name], weights[name])]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 4}, "has num_heads=2, this run 4"),
        ({"width": 32}, "the transformer of initialise_from is another one: .*give the sizes"),
        ({"depth": 2}, "the transformer of initialise_from is another one: .*blocks.1"),
        ({"mlp_width": 8}, "the transformer of initialise_from is another one: .*mlp"),
    ],
)
def test_weights_of_other_sizes_are_refused(
    stores: Path, finished: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        begun(new(stores, initialise_from=str(finished), **options))


@pytest.mark.parametrize("more", [{"seed": 1}, {"options": {"widths": [16], "levels": [3, 4]}}], ids=str)
def test_weights_of_another_tokenizer_are_refused(
    stores: Path, finished: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    other = tokenizer(pictured(stores), tmp_path / "other.ckpt", epochs=1, **{**SMALL_TOKENIZER, **more})
    with pytest.raises(
        ContractError, match=r"the codes of another tokenizer .*leave out --model\.init_args\.tokenizer"
    ):
        begun(new(stores, initialise_from=str(finished), tokenizer=str(other)))


# ---- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding": EmbeddingOptions(model="none")}, r"needs embeddings .*--data\.init_args\.embedding\.model"),
        ({"guidance": 1.0}, r"guidance=1\.0 needs a model trained with --model\.init_args\.condition_dropout"),
        ({"tokenizer": None}, r"needs a tokenizer: set --model\.init_args\.tokenizer"),
        ({"num_heads": 3}, "width must be a multiple of num_heads, found 16 and 3"),
        ({"label_smoothing": 1.5}, r"shares must be in 0\.\.1 .*'label_smoothing': 1\.5"),
        ({"min_mask_ratio": -0.1}, r"shares must be in 0\.\.1 .*'min_mask_ratio': -0\.1"),
        ({"condition_dropout": 2.0}, r"shares must be in 0\.\.1 .*'condition_dropout': 2\.0"),
        ({"condition_noise": -1.0}, r"noise at least 0.*'condition_noise': -1\.0"),
        ({"steps": 0}, "steps and samples must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    stores: Path, codes: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        new(stores, **{"tokenizer": str(codes), **options})


def test_a_tokenizer_of_another_picture_size_is_refused(stores: Path, codes: Path) -> None:
    with pytest.raises(ContractError, match=r"for pictures of \[3, 8, 8\], the data have \[3, 12, 12\]; set .*views"):
        MaskGIT(pictured(stores, side=12).layout, tokenizer=str(codes), **SMALL_MASKGIT)


def test_checkpoints_that_are_none_are_refused(stores: Path, codes: Path, finished: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(finished.read_bytes()[:-2000])
    absent = tmp_path / "absent.ckpt"
    for argument, other in (("tokenizer", finished), ("initialise_from", codes)):
        wanted = {"tokenizer": "Tokenizer", "initialise_from": "MaskGIT"}[argument]
        for path, message in (
            (other, f"is the checkpoint of another stage .* than {wanted}; change --model.init_args.{argument}"),
            (cut, f"cut.ckpt is damaged or no checkpoint .*change --model.init_args.{argument}"),
            (absent, rf"no checkpoint {absent}; train that stage first .*--model.init_args.{argument}"),
        ):
            with pytest.raises(ContractError, match=message):
                new(stores, **{argument: str(path)})


def test_embeddings_that_are_none_are_refused(stores: Path, finished: Path) -> None:
    model, batch = loaded(finished), shown(pictured(stores), MaskGIT)
    with pytest.raises(ContractError, match="trained on embeddings of width 27, found 12"):
        model.generate(batch["embedding"][:, :12], batch["stimulus"])
    for wrong in (torch.nan, torch.inf):
        embedding = batch["embedding"].clone()
        embedding[3, 5] = wrong
        with pytest.raises(ContractError, match="NaN or infinite"):
            model.generate(embedding, batch["stimulus"])


def test_pictures_are_drawn_without_dropout_whatever_the_mode(finished: Path, stores: Path) -> None:
    model = loaded(finished, dropout=0.5)
    expected = pictures(model, stores)
    batch = shown(pictured(stores), MaskGIT)
    drawn, _ = model.train().generate(batch["embedding"], batch["stimulus"])
    assert torch.equal(drawn, expected)
    assert model.transformer.training


def test_the_epsilon_of_the_embeddings_is_that_of_the_weights_unless_given(
    stores: Path, codes: Path, tmp_path: Path
) -> None:
    begin = maskgit(pictured(stores), tmp_path / "begin.ckpt", tokenizer=str(codes), embedding_eps=1e-3)
    for given, expected in ((None, 1e-3), (1e-2, 1e-2)):
        model = new(stores, initialise_from=str(begin), embedding_eps=given)
        assert model.transformer.norm.eps == model.hparams["embedding_eps"] == expected
    assert new(stores, tokenizer=str(codes)).transformer.norm.eps == 1e-12
