"""Tokenizer: the grid of codes against numpy, what training makes of pictures, sizes, processes, checkpoints."""

from __future__ import annotations

import itertools
import json
import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import seed_everything
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from contracts import ContractError, Layout
from datamodules import LoaderOptions, SplitOptions, VanGerven2010
from datamodules.core.views import ViewOptions
from lightning_modules import FSQAutoencoder, ImageTokenizer, MaskGitVQGAN, Tokenizer
from lightning_modules.networks.image_tokenizers import FiniteScalarQuantizer
from tests.formats import vangerven2010
from tests.lightning_modules.advice import NO_VALIDATION
from tests.lightning_modules.fitting import SMALL_TOKENIZER, copied, made_up, pictured, shown, tokenizer, trainer
from tests.lightning_modules.processes import call_anew

pytestmark = NO_VALIDATION
Array = np.ndarray[Any, Any]
LEVELS = ([2], [3], [4, 4, 4], [5, 3], [8, 5, 2], [7, 6, 5])
every_grid = pytest.mark.parametrize("levels", LEVELS, ids=str)
VQGAN: dict[str, Any] = {
    "architecture": "maskgit_vqgan",
    "options": {"width": 32, "multipliers": [1, 2], "blocks": 1, "codes": 20, "code_width": 8},
}


def of_pictures(*shape: int) -> Layout:
    return {**made_up({"01": [4]}), "image_shape": list(shape)}


# ---- the grid of codes ---------------------------------------------------------------------------------


def vectors_of(levels: list[int]) -> Tensor:
    """All combinations of 50 values."""
    return torch.cartesian_prod(*[torch.linspace(-6, 6, 50)] * len(levels)).reshape(-1, 1, 1, len(levels))


@every_grid
def test_codes_name_the_points_that_vectors_are_rounded_to(levels: list[int]) -> None:
    quantizer, vectors = FiniteScalarQuantizer(levels), vectors_of(levels)
    codes = quantizer.codes(vectors)
    torch.testing.assert_close(quantizer.vectors(codes), quantizer(vectors), atol=1e-6, rtol=0)
    # all are reached, and none beyond
    assert codes.unique().tolist() == list(range(math.prod(levels)))


@every_grid
def test_every_code_is_a_point_of_its_own(levels: list[int]) -> None:
    quantizer, number = FiniteScalarQuantizer(levels), math.prod(levels)
    found = quantizer.vectors(torch.arange(number)[None, None])[0, 0]
    # the first dimension counts fastest; points of an even number of levels reach from -1 to the last but one
    axes = [[(digit - n // 2) / (n // 2) for digit in range(n)] for n in levels]
    expected = [point[::-1] for point in itertools.product(*axes[::-1])]
    torch.testing.assert_close(found, torch.tensor(expected))


@every_grid
def test_rounding_lets_the_gradient_of_the_squashed_value_pass(levels: list[int]) -> None:
    """Mentzer et al., appendix A: tanh shifted and scaled, then rounded as if that were nothing."""
    vectors = vectors_of(levels)[::7].requires_grad_()
    FiniteScalarQuantizer(levels)(vectors).sum().backward()
    number = np.array(levels)
    half = (number - 1) * (1 + 1e-3) / 2
    shift = np.arctanh(np.where(number % 2 == 0, 0.5, 0) / half)
    slope = half * (1 - np.tanh(vectors.detach().double().numpy() + shift) ** 2) / (number // 2)
    assert vectors.grad is not None
    np.testing.assert_allclose(vectors.grad, slope, atol=1e-5)
    assert FiniteScalarQuantizer(levels)(torch.zeros(1, 1, 1, len(levels))).abs().max() == 0


@pytest.mark.parametrize("levels", [[], [4, 1], [0]])
def test_levels_that_are_none_are_refused(levels: list[int]) -> None:
    with pytest.raises(ContractError, match="levels must be numbers of at least 2"):
        FSQAutoencoder(levels=levels)


@pytest.mark.parametrize("widths", [(8,), (8, 16), (4, 8, 12)])
def test_both_networks_are_image_tokenizers(widths: tuple[int, ...]) -> None:
    fsq = FSQAutoencoder(widths=widths, levels=(3, 5, 2), blocks=2)
    vqgan = MaskGitVQGAN(width=32, multipliers=(1,) * (1 + len(widths)), blocks=1, codes=30, code_width=8)
    images = torch.rand(2, 3, 16, 16)
    for network in (fsq, vqgan):
        assert isinstance(network, ImageTokenizer)
        assert (network.codes, network.factor) == (30, 2 ** len(widths))
        codes = network.encode(images)
        assert codes.shape == (2, 16 // network.factor, 16 // network.factor)
        assert network.decode(codes).shape == images.shape
    torch.testing.assert_close(fsq.decode(fsq.encode(images)), fsq(images).clamp(0, 1))
    torch.testing.assert_close(vqgan.decode(vqgan.encode(images)), vqgan(images)[0].clamp(0, 1))


# ---- training ------------------------------------------------------------------------------------------


def test_training_reconstructs_digits_that_were_never_seen(tmp_path: Path) -> None:
    data = VanGerven2010(
        str(vangerven2010.write(tmp_path / "raw", train=48, test=12).parent),
        stores=str(tmp_path / "stores"),
        split=SplitOptions(validation=0.1),
        loader=LoaderOptions(batch_size=8),
    )
    options: dict[str, Any] = {"options": {"widths": [16, 16], "levels": [4, 4, 4]}, "lr": 1e-2}
    before = Tokenizer(data.layout, **options)
    path = tokenizer(data, tmp_path / "tokenizer.ckpt", epochs=30, **options)
    model = Tokenizer.load_from_checkpoint(path, weights_only=True).eval()
    losses = [
        trainer(tmp_path).test(stage, datamodule=data, verbose=False)[0]["test/loss"] for stage in (before, model)
    ]
    assert losses[1] < 0.3 * losses[0]
    images, training = (shown(data, Tokenizer, split)["image"] for split in ("test", "train"))
    with torch.no_grad():
        found = model.decode(model.encode(images)).double()
    mean = training.double().mean(dim=0)
    error, baseline = ((images - guess).square().mean() for guess in (found, mean))
    assert error < 0.3 * baseline


def test_a_small_maskgit_vqgan_trains(stores: Path, tmp_path: Path) -> None:
    data = pictured(stores)
    torch.manual_seed(0)
    model = Tokenizer(data.layout, **VQGAN, lr=3e-3)
    before = copied(model)
    run = trainer(tmp_path, max_epochs=3)
    start = run.validate(model, datamodule=data, verbose=False)[0]["validation/loss"]
    run.fit(model, datamodule=data)
    assert run.validate(model, datamodule=data, verbose=False)[0]["validation/loss"] < 0.8 * start
    assert not [name for name, weight in model.state_dict().items() if torch.equal(weight, before[name])]


@pytest.mark.parametrize("absolute", [0.0, 2.5])
@pytest.mark.parametrize("options", [{}, VQGAN], ids=["fsq", "maskgit_vqgan"])
def test_the_loss_is_that_of_the_formula(
    stores: Path, tmp_path: Path, options: dict[str, Any], absolute: float
) -> None:
    data = pictured(stores)
    torch.manual_seed(0)
    model = Tokenizer(data.layout, **{**SMALL_TOKENIZER, **options}, absolute=absolute)
    images = shown(data, Tokenizer)["image"]
    with torch.no_grad():
        found, extra = model.reconstruction_loss(images)
        seen = images.float() / 255
        # not cut to 0..1, unlike pictures
        result = model.network(seen)
    error = (result[0] if options else result).double().numpy() - seen.double().numpy()
    expected = (error**2).mean(axis=(1, 2, 3)) + absolute * np.abs(error).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert float(extra) == pytest.approx(float(result[1]) if options else 0.0)
    # a step on everything
    with torch.no_grad():
        parts = [part.mean() for part in model.reconstruction_loss(shown(data, Tokenizer, "train")["image"])]
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(model, datamodule=pictured(stores, batch_size=16))
    assert float(run.callback_metrics["train/loss_step"]) == pytest.approx(float(sum(parts)), rel=1e-5)


def test_the_codebook_is_drawn_to_the_encoder_and_a_quarter_back(stores: Path) -> None:
    """Van den Oord et al. (2017), eq. 3, by hand."""
    torch.manual_seed(0)
    network = MaskGitVQGAN(**VQGAN["options"])
    images = shown(pictured(stores), Tokenizer)["image"].float() / 255
    vectors = network.encoder(images).detach().double().permute(0, 2, 3, 1).reshape(-1, 8).numpy()
    book = network.codebook.weight.detach().double().numpy()
    distance = ((vectors[:, None] - book) ** 2).sum(axis=2)
    assert network.encode(images).flatten().tolist() == distance.argmin(axis=1).tolist()
    _, loss = network(images)
    nearest = book[distance.argmin(axis=1)]
    assert loss.item() == pytest.approx(1.25 * ((vectors - nearest) ** 2).mean(), rel=1e-4)
    loss.backward()
    gradient = np.zeros_like(book)
    np.add.at(gradient, distance.argmin(axis=1), 2 * (nearest - vectors) / vectors.size)
    found = network.codebook.weight.grad
    assert found is not None
    np.testing.assert_allclose(found, gradient, atol=1e-6)


def test_the_gradient_of_the_picture_passes_through_the_codes(stores: Path) -> None:
    """What the decoder says about the codes' vectors is told to the encoder, and not to the codebook."""
    torch.manual_seed(0)
    network = MaskGitVQGAN(**VQGAN["options"])
    images = shown(pictured(stores), Tokenizer)["image"].float() / 255
    network(images)[0].square().sum().backward()
    found = [weight.grad for weight in network.encoder.parameters()]
    assert network.codebook.weight.grad is None
    network.zero_grad()
    vectors = network.encoder(images)
    nearest = network.codebook(network.encode(images)).permute(0, 3, 1, 2).detach().requires_grad_()
    network.decoder(nearest).square().sum().backward()
    vectors.backward(nearest.grad)
    for weight, gradient in zip(network.encoder.parameters(), found, strict=True):
        assert gradient is not None
        torch.testing.assert_close(gradient, weight.grad, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


# ---- sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "grid", "side"),
    [(10, 8, 5), (28, 8, 7), (64, 8, 8), (64, 16, 16), (8, 7, 4), (28, 7, 7), (28, 14, 14), (12, 2, 3)],
)
def test_the_side_is_halved_until_it_fits_the_grid_or_is_odd(size: int, grid: int, side: int) -> None:
    model = Tokenizer(of_pictures(3, size, size), grid=grid, options={"levels": [3, 4]}).eval()
    assert (model.side, model.codes, model.factor) == (side, 12, size // side)
    images = torch.randint(256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        codes = model.encode(images)
        found = model.decode(codes)
    assert (codes.shape, codes.dtype) == ((2, side, side), torch.int64)
    assert (found.shape, found.dtype) == (images.shape, torch.uint8)


@pytest.mark.parametrize("size", [9, 8, 33, 1])
def test_pictures_that_cannot_be_halved_are_refused_in_words_of_the_user(size: int) -> None:
    with pytest.raises(ContractError, match=rf"a side of {size} .*--data\.init_args\.views\.size"):
        Tokenizer(of_pictures(3, size, size))


def test_pictures_of_another_kind_are_refused(stores: Path) -> None:
    data = pictured(stores)
    model = Tokenizer(data.layout, **SMALL_TOKENIZER)
    images = shown(data, Tokenizer)["image"]
    for wrong in (images[:, :, :6], images.float() / 255, images[:, :1], images.repeat(1, 1, 2, 2)):
        with pytest.raises(ContractError, match=r"made for uint8 pictures of \(3, 8, 8\), found"):
            model.encode(wrong)
        with pytest.raises(ContractError, match=r"views\.size"):
            model.training_step({**shown(data, Tokenizer), "image": wrong}, 0)
    for wrong in (torch.full((1, 4, 4), 12), torch.full((1, 4, 4), -1)):
        with pytest.raises(ContractError, match=r"codes must be in 0\.\.11, found (12|-1).* of another tokenizer"):
            model.decode(wrong)
    assert model.decode(torch.full((1, 4, 4), 11)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 8, 12), {}, "must be square with a side that .* found 8 x 12"),
        ((3, 12, 8), {}, "must be square with a side that 2 divides, found 12 x 8"),
        ((3, 10, 10), {"options": {"widths": [8, 8]}}, "a side that 4 divides, found 10 x 10"),
        ((), {}, "Tokenizer is trained on pictures, and these data have none"),
        ((3, 8, 8), {"options": {"widths": [8], "colour": 3}}, "options do not fit fsq: .*colour.* see FSQAutoencoder"),
        ((3, 8, 8), {"architecture": "vae", "options": {"widths": [8]}}, "one of fsq, maskgit_vqgan, found 'vae'"),
        ((3, 8, 8), {"architecture": "maskgit_vqgan", "options": {"width": 48}}, "multiple of 32"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(shape: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        Tokenizer(of_pictures(*shape), **{"options": {"widths": [8]}, **options})


# ---- outputs, checkpoints and processes ----------------------------------------------------------------


def test_the_output_is_the_reconstruction(stores: Path) -> None:
    data = pictured(stores)
    model = Tokenizer(data.layout, **SMALL_TOKENIZER).eval()
    batch = shown(data, Tokenizer)
    with torch.no_grad():
        output = model.predict_step(batch, 0)
        codes = model.encode(batch["image"])
        assert torch.equal(codes, model.network.encode(batch["image"].float() / 255))
        # rounded to the nearest of 256 values
        expected = np.rint(255 * model.network.decode(codes).numpy()).astype(np.uint8)
    np.testing.assert_array_equal(output["generated"][:, 0], expected)
    assert set(output) == {*model.provides["test"], "label", "stimulus", "subject", "row"}
    assert output["image"] is batch["image"]
    assert model.score_context(data.score_context("test")).layout["subjects"] == ["pictures"]


@pytest.mark.parametrize("options", [SMALL_TOKENIZER, VQGAN, {"grid": 2}], ids=["fsq", "maskgit_vqgan", "grid"])
def test_a_checkpoint_is_loaded_without_the_data(stores: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    data = pictured(stores)
    path = tokenizer(data, tmp_path / "tokenizer.ckpt", **{**SMALL_TOKENIZER, "options": None, **options})
    first, second = (Tokenizer.load_from_checkpoint(path, weights_only=True).eval() for _ in range(2))
    images = shown(data, Tokenizer)["image"]
    with torch.no_grad():
        codes = first.encode(images)
        assert torch.equal(second.encode(images), codes)
        assert torch.equal(second.decode(codes), first.decode(codes))
    assert first.side == (2 if "grid" in options else 4)


def test_every_picture_and_view_is_trained_on_once(stores: Path) -> None:
    data = pictured(stores, views=ViewOptions(flip=True))
    views = shown(data, Tokenizer, "train")["image"]
    # two people saw 16 pictures, repeatedly
    assert len(views) == 32
    assert torch.equal(views[1::2], views[::2].flip(-1))
    assert len(shown(data, Tokenizer, "test")["image"]) == 8


def fit_and_validate(folder: Path, *, devices: int = 1, batch_size: int = 8) -> None:
    """Write down losses and weights of a fit; what one of two processes calls, too."""
    seed_everything(0, verbose=False)
    # 15 pictures to train on; 3 for validation, which 2 processes do not share equally
    sizes: dict[str, Any] = {"classes": 3, "train": 6, "test": 1, "validation": 0.17}
    data = pictured(folder / f"stores-{devices}", batch_size=batch_size, **sizes)
    model = Tokenizer(data.layout, **SMALL_TOKENIZER)
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=60))
    run = trainer(folder, devices=devices, strategy=strategy if devices > 1 else "auto", max_epochs=4)
    run.fit(model, datamodule=data)
    losses = {name: float(value) for name, value in run.callback_metrics.items()}
    [after] = run.validate(model, datamodule=data, verbose=False)
    if run.is_global_zero:
        (folder / f"{devices}.json").write_text(json.dumps({**losses, "after": after["validation/loss"]}))
        torch.save(model.state_dict(), folder / f"{devices}.pt")


@pytest.mark.full
def test_losses_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    fit_and_validate(tmp_path)
    call_anew(fit_and_validate, tmp_path, folder=tmp_path, devices=2, batch_size=4)
    one, two = (json.loads((tmp_path / f"{devices}.json").read_text()) for devices in (1, 2))
    assert one["after"] == pytest.approx(one["validation/loss"], rel=1e-5)
    for name in ("validation/loss", "train/loss_epoch", "after"):
        assert two[name] == pytest.approx(one[name], rel=1e-4), name
    ours, theirs = (torch.load(tmp_path / f"{devices}.pt", weights_only=True) for devices in (1, 2))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_loss_of_a_split_does_not_depend_on_the_batch_size(stores: Path, tmp_path: Path, size: int) -> None:
    data = pictured(stores, batch_size=size)
    torch.manual_seed(0)
    model = Tokenizer(data.layout, **SMALL_TOKENIZER)
    with torch.no_grad():
        expected = model.eval().reconstruction_loss(shown(pictured(stores), Tokenizer, "test")["image"])[0].mean()
    found = trainer(tmp_path).test(model, datamodule=data, verbose=False)[0]["test/loss"]
    assert found == pytest.approx(float(expected), rel=1e-5)
