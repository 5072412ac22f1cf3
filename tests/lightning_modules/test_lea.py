"""LEA: the pictures of decoded embeddings and of its controls; PixelRidge, the baseline, against scikit-learn."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import scipy.stats
import torch
from lightning import Callback, Trainer, seed_everything
from sklearn.linear_model import Ridge
from torch import Tensor

from contracts import ContractError, Layout, Output
from datamodules import EmbeddingOptions
from lightning_modules import LEA, FmriMAE, MaskGIT, PixelRidge, RidgeAlignment
from tests.formats.recording import Recording
from tests.lightning_modules.advice import FEW_BATCHES
from tests.lightning_modules.brains import TINY
from tests.lightning_modules.fitting import made_up, maskgit, pictured, tokenizer, trainer, whole

pytestmark = FEW_BATCHES
Array = np.ndarray[Any, Any]
S = TypeVar("S", bound=RidgeAlignment)
CONDITIONS: list[Any] = ["encoded", "shuffled", "noise"]
PASSED = {"label", "stimulus", "subject", "row"}
ALIGNED = {"brain_embedding", "image_embedding", "signal", "predicted_signal"}
RIDGE: dict[str, Any] = {"alpha": 5.0}


@pytest.fixture(scope="module")
def earlier(stores: Path) -> Path:
    """Folder with an autoencoder, a tokenizer and a MaskGIT, whose pictures depend visibly on the embedding."""
    folder = stores / "earlier"
    data = pictured(stores)
    tokenizer(data, folder / "tokenizer.ckpt", epochs=10)
    path = maskgit(data, folder / "maskgit.ckpt", tokenizer=str(folder / "tokenizer.ckpt"), samples=2)
    content = torch.load(path, weights_only=True)
    for name, weight in content["state_dict"].items():
        if name.startswith(("transformer.", "condition.")):
            weight.add_((6.0 if name == "condition.weight" else 0.3) * torch.randn_like(weight))
    torch.save(content, path)
    seed_everything(0, verbose=False)
    model = FmriMAE(data.layout, **TINY)
    run = trainer(folder, max_epochs=1)
    run.fit(model, datamodule=data)
    run.save_checkpoint(folder / "fmri_mae.ckpt")
    return folder


def fitted(model: S, data: Recording, folder: Path) -> S:
    run = trainer(folder, max_epochs=1)
    run.fit(model, datamodule=data)
    run.save_checkpoint(folder / "fitted.ckpt")
    return model


def lea(data: Recording, earlier: Path, folder: Path, **options: Any) -> LEA:
    model = LEA(data.layout, maskgit=str(earlier / "maskgit.ckpt"), **{"conditions": CONDITIONS, **RIDGE, **options})
    return fitted(model, data, folder)


class Collect(Callback):
    """Keeps what a test gives."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []

    def on_test_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *args: Any) -> None:
        self.outputs.append(outputs)


def outputs_of(model: RidgeAlignment, data: Recording, folder: Path) -> list[Output]:
    collect = Collect()
    trainer(folder, collect).test(model, datamodule=data, verbose=False)
    return collect.outputs


def by_row(outputs: list[Output], name: str) -> dict[int, Tensor]:
    return {
        row: value
        for output in outputs
        for row, value in zip(output["row"].tolist(), output[name], strict=True)
        if row >= 0
    }


def assert_same(found: dict[int, Tensor], expected: dict[int, Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    assert expected
    assert not [row for row, value in expected.items() if not torch.equal(found[row], value)]


# ---- pictures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moments", ["none", "train", "test"])
@pytest.mark.parametrize("latents", [False, True], ids=["signals", "latents"])
def test_pictures_are_those_of_what_ridge_alignment_decodes(
    stores: Path, earlier: Path, tmp_path: Path, moments: Any, latents: bool
) -> None:
    data = pictured(stores)
    options = {**RIDGE, "moment_matching": moments, "fmri_mae": str(earlier / "fmri_mae.ckpt") if latents else None}
    found = outputs_of(lea(data, earlier, tmp_path, **options), data, tmp_path)
    ridge = fitted(RidgeAlignment(data.layout, **options), data, tmp_path)
    expected = outputs_of(ridge, data, tmp_path)
    decoder = MaskGIT.load_from_checkpoint(earlier / "maskgit.ckpt", weights_only=True).eval()
    people = set()
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ALIGNED | PASSED)
        with torch.no_grad():
            # image -> fMRI -> image
            again = ridge.decode(ridge.encode(theirs["image_embedding"], theirs["subject"]), theirs["subject"])
            for prefix, embedding in (("", theirs["brain_embedding"]), ("encoded.", again)):
                pictures, confidence = decoder.generate(embedding, theirs["stimulus"])
                assert torch.equal(ours[f"{prefix}generated"], pictures)
                assert torch.equal(ours[f"{prefix}confidence"], confidence)
        people |= {(int(person), ours["signal"].shape[1]) for person in ours["subject"]}
    assert people == {(0, 12), (1, 9)}
    everything = [by_row(found, f"{name}generated") for name in ("", "encoded.", "shuffled.", "noise.")]
    assert len(everything[0]) == 16
    # what sees latents and shrinks decodes little more than the mean
    for one, other in itertools.combinations(everything, 2) if not latents or moments != "none" else ():
        assert sum(torch.equal(one[row], other[row]) for row in one) < 8
    assert next(iter(everything[0].values())).shape == (2, 3, 8, 8)


def test_the_output_is_what_is_provided(stores: Path, earlier: Path, tmp_path: Path) -> None:
    data = pictured(stores)
    drawn = {"generated", "confidence"}
    for conditions in ([], ["noise"], CONDITIONS):
        model = lea(data, earlier, tmp_path, conditions=conditions)
        names = drawn | {f"{condition}.{name}" for condition in conditions for name in drawn}
        [first, *_] = outputs_of(model, data, tmp_path)
        assert set(first) - PASSED == model.provides["test"] == ALIGNED | names | {"image"}
        predictions: Any = trainer(tmp_path).predict(model, datamodule=data)
        assert set(predictions[0]) - PASSED == model.provides["predict"] == ALIGNED | names
        assert torch.equal(predictions[0]["generated"], first["generated"])
        assert model.provides["validation"] == ALIGNED
        with torch.no_grad():
            assert set(model.eval().validation_step(whole(data), 0)) - PASSED == ALIGNED


# ---- controls ------------------------------------------------------------------------------------------


def test_controls_are_made_of_the_recording(stores: Path, earlier: Path) -> None:
    data = pictured(stores)
    model = LEA(data.layout, maskgit=str(earlier / "maskgit.ckpt"))
    number, voxels = 400, 12
    random = torch.Generator().manual_seed(0)
    place = torch.arange(number)
    signal = 3 * torch.randn(number, voxels, generator=random) + torch.arange(number)[:, None]
    everything = {"signal": signal, "row": place, "subject": place * 0, "stimulus": place, "label": place}
    batch: Any = everything
    shuffled = model.recording_of("shuffled", batch, predicted=signal)
    assert torch.equal(shuffled.sort(dim=1).values, signal.sort(dim=1).values)
    # each voxel goes to each place equally often
    counts = np.zeros((voxels, voxels))
    for before, after in zip(signal.argsort(dim=1).numpy(), shuffled.argsort(dim=1).numpy(), strict=True):
        np.add.at(counts, (before, after), 1)
    assert scipy.stats.chisquare(counts.flatten(), ddof=2 * voxels - 2).pvalue > 1e-3
    noise = model.recording_of("noise", batch, predicted=signal)
    standard = (noise - signal.mean(dim=1, keepdim=True)) / signal.std(dim=1, keepdim=True)
    assert scipy.stats.kstest(standard.flatten().numpy(), "norm").pvalue > 1e-3
    assert model.recording_of("encoded", batch, predicted=2 * signal).equal(2 * signal)
    controls: list[tuple[Any, Tensor]] = [("shuffled", shuffled), ("noise", noise)]
    for condition, expected in controls:
        some = torch.tensor([7, 3, 3, 250])
        part: Any = {name: value[some] for name, value in everything.items()}
        found = model.recording_of(condition, part, predicted=signal[some])
        assert torch.equal(found, expected[some])
        others: Any = {**everything, "row": place + 1}
        elsewhere = model.recording_of(condition, others, predicted=signal)
        assert not torch.isclose(elsewhere, expected).all(dim=1).any()


def test_pictures_of_controls_do_not_depend_on_the_batch(stores: Path, earlier: Path, tmp_path: Path) -> None:
    model = lea(pictured(stores), earlier, tmp_path)
    expected = outputs_of(model, pictured(stores), tmp_path)
    for size in (1, 3):
        found = outputs_of(model, pictured(stores, batch_size=size), tmp_path)
        for prefix in ("", *(f"{condition}." for condition in CONDITIONS)):
            assert_same(by_row(found, f"{prefix}generated"), by_row(expected, f"{prefix}generated"))


def test_time_series_have_controls_too(stores: Path, earlier: Path, tmp_path: Path) -> None:
    data = pictured(stores, people={"01": (4, 6)})
    path = maskgit(data, tmp_path / "maskgit.ckpt", tokenizer=str(earlier / "tokenizer.ckpt"))
    model = LEA(data.layout, maskgit=str(path), conditions=CONDITIONS, **RIDGE)
    [output, *_] = outputs_of(fitted(model, data, tmp_path), data, tmp_path)
    assert output["signal"].shape == output["predicted_signal"].shape == (8, 4, 6)
    assert output["shuffled.generated"].shape == output["noise.generated"].shape == (8, 5, 3, 8, 8)


# ---- checkpoints and arguments -------------------------------------------------------------------------


def test_the_checkpoint_is_enough(stores: Path, earlier: Path, tmp_path: Path) -> None:
    data = pictured(stores)
    for name in ("maskgit", "fmri_mae"):
        (tmp_path / f"{name}.ckpt").write_bytes((earlier / f"{name}.ckpt").read_bytes())
    latents = str(tmp_path / "fmri_mae.ckpt")
    options = {"moment_matching": "train", "sampling": {"samples": 3, "order": "halton"}, "fmri_mae": latents}
    expected = outputs_of(lea(data, tmp_path, tmp_path, **options), data, tmp_path)
    for name in ("maskgit", "fmri_mae"):
        (tmp_path / f"{name}.ckpt").unlink()
    model = LEA.load_from_checkpoint(tmp_path / "fitted.ckpt", weights_only=True)
    found = outputs_of(model, data, tmp_path)
    for name in ("generated", "noise.generated", "confidence", "brain_embedding"):
        assert_same(by_row(found, name), by_row(expected, name))
    lineage = torch.load(tmp_path / "fitted.ckpt", weights_only=True)["lineage"]
    assert [entry["stage"] for entry in lineage] == ["FmriMAE", "Tokenizer", "MaskGIT", "LEA"]


def test_sampling_takes_the_place_of_what_the_maskgit_was_trained_with(
    stores: Path, earlier: Path, tmp_path: Path
) -> None:
    data = pictured(stores)
    sampling: dict[str, Any] = {
        "order": "halton",
        "steps": 3,
        "samples": 4,
        "choice_temperature": 0.5,
        "sampling_seed": 8,
    }
    found = outputs_of(lea(data, earlier, tmp_path, sampling=sampling), data, tmp_path)
    path = earlier / "maskgit.ckpt"
    decoder = MaskGIT.load_from_checkpoint(path, weights_only=True, **sampling).eval()
    for output in found:
        with torch.no_grad():
            pictures, _ = decoder.generate(output["brain_embedding"], output["stimulus"])
        assert torch.equal(output["generated"], pictures)
        assert pictures.shape[1] == 4
    unknown = r"may name order, steps, samples, .*sampling_seed, found colour, width"
    with pytest.raises(ContractError, match=unknown):
        LEA(data.layout, maskgit=str(path), sampling={"width": 8, "samples": 1, "colour": "red"})
    with pytest.raises(ContractError, match=r"guidance=2\.0 needs a model trained with"):
        LEA(data.layout, maskgit=str(path), sampling={"guidance": 2.0})


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        (
            EmbeddingOptions(image_size=2),
            r"(?s)another image space.*MaskGIT: pixels.*, 27 numbers.*data: .*, 12 numbers",
        ),
        (
            EmbeddingOptions(image_size=3, target="unit"),
            r"(?s)MaskGIT: pixels.*, 27 numbers.*data: .*unit.*, 27 numbers",
        ),
    ],
    ids=["width", "target"],
)
def test_another_image_space_is_refused(
    stores: Path, earlier: Path, tmp_path: Path, embedding: EmbeddingOptions, message: str
) -> None:
    data = pictured(stores, embedding=embedding)
    with pytest.raises(ContractError, match=message):
        LEA(data.layout, maskgit=str(earlier / "maskgit.ckpt"))
    # imported weights do not know their space, but its width
    content = torch.load(earlier / "maskgit.ckpt", weights_only=True)
    content["hyper_parameters"]["layout"]["embedding_space"] = "unknown"
    torch.save(content, tmp_path / "imported.ckpt")
    if embedding.image_size == 2:
        with pytest.raises(ContractError, match=r"MaskGIT: unknown, 27 numbers"):
            LEA(data.layout, maskgit=str(tmp_path / "imported.ckpt"))
    else:
        LEA(data.layout, maskgit=str(tmp_path / "imported.ckpt"))


def test_other_checkpoints_are_refused(stores: Path, earlier: Path) -> None:
    layout = pictured(stores).layout
    with pytest.raises(ContractError, match=r"another stage \(Tokenizer\) than MaskGIT; change .*maskgit"):
        LEA(layout, maskgit=str(earlier / "tokenizer.ckpt"))
    with pytest.raises(ContractError, match=r"no checkpoint .*absent\.ckpt; train that stage first"):
        LEA(layout, maskgit=str(earlier / "absent.ckpt"))


# ---- PixelRidge ----------------------------------------------------------------------------------------


def smaller(images: Tensor, side: int) -> Array:
    """Means over the pixels that each pixel of a smaller picture covers."""
    size, pixels = images.shape[-1], images.numpy().astype(np.float64) / 255
    edges = [(math.floor(i * size / side), math.ceil((i + 1) * size / side)) for i in range(side)]
    rows = [[pixels[:, :, a:b, c:d].mean(axis=(2, 3)) for c, d in edges] for a, b in edges]
    return np.array(rows).transpose(2, 3, 0, 1)


@pytest.mark.parametrize(("side", "found_side"), [(4, 4), (3, 3), (8, 8), (64, 8), (1, 1)])
def test_pixels_are_those_of_scikit_learn(stores: Path, tmp_path: Path, side: int, found_side: int) -> None:
    data = pictured(stores, embedding=EmbeddingOptions(model="none"))
    model = fitted(PixelRidge(data.layout, side=side, alpha=3.0), data, tmp_path)
    # no embedding is read
    assert data.layout["embedding_width"] == 0
    outputs = outputs_of(PixelRidge.load_from_checkpoint(tmp_path / "fitted.ckpt", weights_only=True), data, tmp_path)
    found = {name: by_row(outputs, name) for name in ("generated", "predicted_signal")}
    data.keys_of = lambda split: frozenset({"signal", "image"})  # type: ignore[method-assign]
    for person in (0, 1):
        train, test = (whole(data, person, split) for split in ("train", "test"))
        pixels, seen = (smaller(batch["image"], found_side).reshape(len(batch["row"]), -1) for batch in (train, test))
        decode = Ridge(3.0).fit(train["signal"].numpy().astype(np.float64), pixels)
        encode = Ridge(3.0).fit(pixels, train["signal"].numpy().astype(np.float64))
        expected = decode.predict(test["signal"].numpy().astype(np.float64)).clip(0, 1) * 255
        rows = test["row"].tolist()
        generated = torch.stack([found["generated"][row] for row in rows])
        assert (generated.shape, generated.dtype) == ((8, 1, 3, found_side, found_side), torch.uint8)
        assert np.abs(generated.numpy().reshape(expected.shape) - expected).max() <= 0.5 + 1e-2
        signals = torch.stack([found["predicted_signal"][row] for row in rows])
        np.testing.assert_allclose(signals, encode.predict(seen), atol=1e-4)
    assert set(outputs[0]) - PASSED == model.provides["test"] == {"signal", "predicted_signal", "image", "generated"}
    assert outputs[0]["image"].shape[1:] == (3, 8, 8)


@pytest.mark.parametrize(
    ("shape", "side", "message"),
    [
        ([], 4, r"these data have none; choose another --data"),
        ([3, 8, 12], 4, r"needs square pictures .*set --data\.init_args\.views\.size"),
        ([3, 8, 8], 0, r"a side of at least 1, found \[3, 8, 8\] and 0"),
    ],
)
def test_pixels_need_square_pictures(shape: list[int], side: int, message: str) -> None:
    layout: Layout = {**made_up({"01": [4]}), "image_shape": shape}
    with pytest.raises(ContractError, match=message):
        PixelRidge(layout, side=side)
