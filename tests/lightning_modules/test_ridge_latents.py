"""RidgeAlignment on the latents of an FmriMAE, and its moment matching."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import seed_everything
from sklearn.linear_model import Ridge

from callbacks import Encoding, Identification
from contracts import ContractError
from datamodules import EmbeddingOptions, LoaderOptions, SampleOptions, SignalAxes, SplitOptions, Stimuli
from lightning_modules import FmriMAE, RidgeAlignment
from tests.formats.recording import Recording, change, experiment, pictures
from tests.lightning_modules.advice import FEW_BATCHES
from tests.lightning_modules.brains import TINY
from tests.lightning_modules.fitting import trainer, whole

pytestmark = FEW_BATCHES
Array = np.ndarray[Any, Any]
PEOPLE = {"01": (12,), "02": (9,)}
LEA: dict[str, Any] = {"alpha": 500.0, "decode_intercept": False, "encode_intercept": True}
DIRECTIONS = ("decode", "encode")


def recording(stores: Path, people: dict[str, tuple[int, ...]] = PEOPLE, **options: Any) -> Recording:
    """People who saw 28 pictures twice (training) or three times, in units in which alpha=500 shrinks visibly."""
    records = options.pop("records", None)
    folder = stores / (options.pop("name", None) or "-".join(f"{name}x{form[0]}" for name, form in people.items()))
    return Recording(
        str(folder / "raw"),
        experiment(people) if records is None else records,
        stores=str(folder),
        **{
            "embedding": EmbeddingOptions(image_size=3, target="unit"),
            "split": SplitOptions(validation=0.2),
            "loader": LoaderOptions(batch_size=5),
            **options,
        },
    )


def autoencoder(data: Recording, path: Path, **options: Any) -> Path:
    """Train a small FmriMAE for an epoch; returns its checkpoint."""
    seed_everything(0, verbose=False)
    model = FmriMAE(data.layout, **{**TINY, **options})
    run = trainer(path.parent, max_epochs=1)
    run.fit(model, datamodule=data)
    run.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def latents(stores: Path) -> Path:
    return autoencoder(recording(stores), stores / "latents" / "fmri_mae.ckpt")


def fit(data: Recording, folder: Path, **options: Any) -> RidgeAlignment:
    model = RidgeAlignment(data.layout, **options)
    run = trainer(folder, max_epochs=1)
    run.fit(model, datamodule=data)
    run.save_checkpoint(folder / "ridge.ckpt")
    return model


def brain(data: Recording, checkpoint: Path | None, split: str, person: int = 0) -> tuple[Array, Array, Array]:
    """Latents (or signals), embeddings and signals of a person."""
    batch = whole(data, person, split)
    latent = batch["signal"]
    if checkpoint is not None:
        model = FmriMAE.load_from_checkpoint(checkpoint, weights_only=True).eval()
        name = data.layout["subjects"][person]
        number = 0 if model.common else model.layout["subjects"].index(name)
        with torch.no_grad():
            latent = model.encode(batch["signal"], torch.full_like(batch["subject"], number)).flatten(1)
    return tuple(value.numpy().astype(np.float64) for value in (latent, batch["embedding"], batch["signal"]))


def decoded(latent: Array, checkpoint: Path, person: int) -> Array:
    model = FmriMAE.load_from_checkpoint(checkpoint, weights_only=True).eval()
    shape = model.latent_shape(model.layout["subjects"][person])
    values = torch.from_numpy(latent).float().unflatten(1, shape)
    with torch.no_grad():
        return model.decode(values, torch.full((len(latent),), person)).numpy()


def references(data: Recording, checkpoint: Path | None, person: int) -> tuple[Ridge, Ridge]:
    latent, embedding, _ = brain(data, checkpoint, "train", person)
    return (
        Ridge(500.0, fit_intercept=False).fit(latent, embedding),
        Ridge(500.0, fit_intercept=True).fit(embedding, latent),
    )


def matched(predicted: Array, of: Array, targets: Array) -> Array:
    """SYSTEMS: (p - mean of predictions) / their SD * SD of the targets + their mean."""
    return (predicted - of.mean(axis=0)) / of.std(axis=0) * targets.std(axis=0) + targets.mean(axis=0)


def output(model: RidgeAlignment, data: Recording, person: int) -> dict[str, Array]:
    with torch.no_grad():
        return {name: value.numpy() for name, value in model.eval()(whole(data, person)).items()}


@pytest.mark.parametrize("form", ["primal", "kernel"])
@pytest.mark.parametrize("person", [0, 1])
def test_regressions_are_those_of_scikit_learn_on_the_latents(
    stores: Path, latents: Path, tmp_path: Path, form: str, person: int
) -> None:
    data = recording(stores)
    model = fit(data, tmp_path, fmri_mae=str(latents), form=form, **LEA)
    for layer, expected in zip(
        (model.decoders[person], model.encoders[person]), references(data, latents, person), strict=True
    ):
        scale = np.abs(expected.coef_).max()
        np.testing.assert_allclose(layer.weight.detach(), expected.coef_, atol=1e-5 * scale)
        np.testing.assert_allclose(
            layer.bias.detach(), np.broadcast_to(expected.intercept_, len(layer.bias)), atol=1e-5
        )
    found = output(model, data, person)
    latent, embedding, signal = brain(data, latents, "test", person)
    decode, encode = references(data, latents, person)
    np.testing.assert_allclose(found["brain_embedding"], decode.predict(latent), atol=1e-5)
    np.testing.assert_allclose(
        found["predicted_signal"], decoded(encode.predict(embedding), latents, person), atol=1e-4
    )
    np.testing.assert_array_equal(found["signal"], signal.astype(np.float32))


@pytest.mark.parametrize("form", ["primal", "kernel"])
@pytest.mark.parametrize("source", ["train", "test"])
@pytest.mark.parametrize("person", [0, 1])
@pytest.mark.parametrize("direct", [False, True], ids=["latents", "signals"])
def test_predictions_get_the_moments_of_their_targets(
    stores: Path, latents: Path, tmp_path: Path, form: str, source: str, person: int, direct: bool
) -> None:
    data = recording(stores)
    checkpoint = None if direct else latents
    options = {"fmri_mae": None if direct else str(latents), "moment_matching": source, "form": form, **LEA}
    model = fit(data, tmp_path, **options)
    if source == "test":
        trainer(tmp_path).test(model, datamodule=data, verbose=False)
    found = output(model, data, person)
    train, test = (brain(data, checkpoint, split, person) for split in ("train", "test"))
    of = train if source == "train" else test
    decode, encode = references(data, checkpoint, person)
    expected = matched(decode.predict(test[0]), decode.predict(of[0]), train[1])
    np.testing.assert_allclose(found["brain_embedding"], expected, rtol=1e-3, atol=1e-4)
    prediction = matched(encode.predict(test[1]), encode.predict(of[1]), train[0])
    expected = prediction if direct else decoded(prediction, latents, person)
    np.testing.assert_allclose(found["predicted_signal"], expected, rtol=1e-3, atol=1e-3)


def test_a_target_that_never_varies_stays_what_it_is(stores: Path, tmp_path: Path) -> None:
    image = pictures(28)
    image[:, :4, :4, 0] = 77  # a corner of constant red: one pixel of 3 x 3
    data = recording(stores, records=change(experiment(PEOPLE), Stimuli, image=image), name="constant")
    data.embedding = EmbeddingOptions(image_size=3)
    constant = np.flatnonzero(data.targets.std(dim=0) == 0)
    assert constant.tolist() == [0]
    for form in ("primal", "kernel"):
        model = fit(data, tmp_path, moment_matching="train", form=form, alpha=10.0)
        for person in (0, 1):
            found = output(model, data, person)["brain_embedding"][:, 0]
            np.testing.assert_allclose(found, 77 / 255, atol=1e-4, err_msg=form)


def test_moments_of_the_test_split_do_not_depend_on_the_batches(stores: Path, latents: Path, tmp_path: Path) -> None:
    found = []
    for size in (1, 3, 64):
        data = recording(stores, loader=LoaderOptions(batch_size=size))
        model = fit(data, tmp_path, fmri_mae=str(latents), moment_matching="test")
        trainer(tmp_path).test(model, datamodule=data, verbose=False)
        found.append([output(model, data, person)["predicted_signal"] for person in (0, 1)])
    for other in found[1:]:
        for one, reference in zip(other, found[0], strict=True):
            np.testing.assert_allclose(one, reference, atol=1e-4)


def test_a_checkpoint_keeps_the_moments_of_the_training_samples(stores: Path, latents: Path, tmp_path: Path) -> None:
    """Whatever a fit was told, its checkpoint may be tested with either."""
    data = recording(stores)
    states = {}
    for source in ("none", "train", "test"):
        fit(data, tmp_path, fmri_mae=str(latents), moment_matching=source, **LEA)
        states[source] = torch.load(tmp_path / "ridge.ckpt", weights_only=True)["state_dict"]
    for name, value in states["train"].items():
        for source in ("none", "test"):
            assert torch.equal(states[source][name], value), f"{name} of {source}"


def test_a_single_test_sample_is_decoded_with_moments_of_training_samples(stores: Path, tmp_path: Path) -> None:
    data = recording(stores, records=experiment(PEOPLE, classes=1, train=9, test=1), name="single")
    assert len(data.dataset("test")) == 2, "one of each person"
    model = fit(data, tmp_path, moment_matching="train", **LEA)
    trainer(tmp_path).test(model, datamodule=data, verbose=False)
    assert np.isfinite(output(model, data, 0)["predicted_signal"]).all()
    data = recording(
        stores, records=experiment(PEOPLE, classes=1, train=9, test=1), name="single", split=SplitOptions(validation=0)
    )
    model = fit(data, tmp_path, moment_matching="test", **LEA)
    with pytest.raises(ContractError, match=r"at least 2 samples of sub-01, found 1; .*moment_matching=train"):
        trainer(tmp_path).test(model, datamodule=data, verbose=False)


@pytest.mark.parametrize("form", ["primal", "kernel"])
def test_without_latents_and_moments_predictions_are_the_bare_regressions(
    stores: Path, tmp_path: Path, form: str
) -> None:
    data = recording(stores)
    model = fit(data, tmp_path, form=form, **LEA)
    batch = whole(data)
    with torch.no_grad():
        found = model.eval()(batch)
        assert torch.equal(found["brain_embedding"], model.decoders[0](batch["signal"]))
        assert torch.equal(found["predicted_signal"], model.encoders[0](batch["embedding"]))
    for layer, expected in zip((model.decoders[0], model.encoders[0]), references(data, None, 0), strict=True):
        np.testing.assert_allclose(layer.weight.detach(), expected.coef_, atol=1e-5 * np.abs(expected.coef_).max())


def test_a_checkpoint_needs_nothing_beside_it(stores: Path, tmp_path: Path) -> None:
    data = recording(stores)
    checkpoint = autoencoder(data, tmp_path / "fmri_mae.ckpt")
    model = fit(data, tmp_path, fmri_mae=str(checkpoint), moment_matching="train")
    expected = output(model, data, 1)
    checkpoint.unlink()
    again = RidgeAlignment.load_from_checkpoint(tmp_path / "ridge.ckpt", weights_only=True)
    for name, value in output(again, data, 1).items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize(
    ("relax", "source", "marked"), [(False, "train", False), (True, "train", True), (False, "test", True)]
)
def test_scores_name_the_autoencoder_and_whether_test_recordings_took_part(
    stores: Path, tmp_path: Path, relax: bool, source: str, marked: bool
) -> None:
    data = recording(stores)
    checkpoint = autoencoder(data, tmp_path / "fmri_mae.ckpt", relax=relax)
    model = fit(data, tmp_path, fmri_mae=str(checkpoint), moment_matching=source)
    lineage = torch.load(tmp_path / "ridge.ckpt", weights_only=True)["lineage"]
    assert [entry["stage"] for entry in lineage] == ["FmriMAE", "RidgeAlignment"]
    assert lineage[0]["transductive"] == relax
    again = RidgeAlignment.load_from_checkpoint(tmp_path / "ridge.ckpt", weights_only=True)
    scores = Identification(permutations=9, bootstraps=9), Encoding()
    for tested in (model, again):
        trainer(tmp_path, *scores).test(tested, datamodule=data, verbose=False)
        found = [score for callback in scores for score in callback.scores]
        assert found
        assert {score.transductive for score in found} == {marked}


def test_pictures_that_the_autoencoder_was_trained_on_are_not_tested(
    stores: Path, latents: Path, tmp_path: Path
) -> None:
    data = recording(stores, split=SplitOptions(validation=0.2, folds=3))
    model = fit(data, tmp_path, fmri_mae=str(latents))
    with pytest.raises(ContractError, match="test pictures were training pictures of the FmriMAE"):
        trainer(tmp_path).test(model, datamodule=data, verbose=False)


def test_one_of_several_people_has_the_layers_of_that_person(stores: Path, latents: Path, tmp_path: Path) -> None:
    together, alone = recording(stores), recording(stores, subjects=["02"])
    assert alone.layout["subjects"] == ["02"]
    one, both = (
        fit(data, tmp_path, fmri_mae=str(latents), moment_matching="train", **LEA) for data in (alone, together)
    )
    found, expected = output(one, alone, 0), output(both, together, 1)
    for name in ("brain_embedding", "predicted_signal"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def test_layers_in_common_serve_people_who_were_never_seen(stores: Path, tmp_path: Path) -> None:
    people = {"01": (12,), "02": (12,), "03": (12,)}
    known, other = (recording(stores, people, name="common", subjects=s) for s in (["01", "02"], ["03", "01"]))
    checkpoint = autoencoder(known, tmp_path / "fmri_mae.ckpt", voxels="common")
    model = fit(other, tmp_path, fmri_mae=str(checkpoint), **LEA)
    for person in (0, 1):
        latent, embedding, _ = brain(other, checkpoint, "test", person)
        decode, encode = references(other, checkpoint, person)
        found = output(model, other, person)
        np.testing.assert_allclose(found["brain_embedding"], decode.predict(latent), atol=1e-5)
        expected = decoded(encode.predict(embedding), checkpoint, 0)
        np.testing.assert_allclose(found["predicted_signal"], expected, atol=1e-4)


def test_what_the_autoencoder_was_not_made_for_is_refused(stores: Path, latents: Path) -> None:
    def refused(message: str, path: Path = latents, **options: Any) -> None:
        with pytest.raises(ContractError, match=message):
            RidgeAlignment(recording(stores, **options).layout, fmri_mae=str(path))

    refused(r"no checkpoint .*absent\.ckpt; train that stage first", stores / "absent.ckpt")
    refused("knows sub-01, sub-02, the data have sub-03", people={"01": (12,), "03": (12,)})
    refused(r"other voxels of sub-02: \[9\].*the data have \[12\]", people={"01": (12,), "02": (12,)})
    refused(r"prepared as .*'normalise': 'zscore'.* as .*'normalise': 'none'", samples=SampleOptions(normalise="none"))
    refused("other voxels of sub-01", samples=SampleOptions(rois=["V2", "V1"]))
    renamed = change(experiment(PEOPLE), SignalAxes, rois={"V2": 4, "V1": 8})
    refused(r"other voxels of sub-01.*\('V1', 4\), \('V2', 8\).*\('V2', 4\), \('V1', 8\)", records=renamed, name="swap")
    refused(r"other voxels of sub-01: .*12.*the data have \[4\]", samples=SampleOptions(rois=["V1"]))
