"""CrossModalConversion: its regressions against scikit-learn, and what they are fitted on."""

from __future__ import annotations

from itertools import permutations as ordered_pairs
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import seed_everything
from sklearn.linear_model import Ridge
from torch import Tensor

from callbacks import CrossModal
from datamodules import MultiModal
from lightning_modules import ContrastiveAlignment, CrossModalConversion
from lightning_modules.networks.comoments import fold_of
from tests.formats.linear_world import PARTS, WIDTH, linear_world, part
from tests.lightning_modules.advice import NO_LOSS
from tests.lightning_modules.converting import aligned, encoded, fit, outputs, recordings, scored
from tests.lightning_modules.fitting import assert_same_weights, copied, trainer
from tests.lightning_modules.processes import call_anew

pytestmark = NO_LOSS


def plain_ridge(x: Any, y: Any, alpha: float, *, towards_identity: bool) -> Any:
    """Weights ``(P, Q)`` and intercept: of y, or without intercept of what the best multiple of x leaves of y."""
    if not towards_identity:
        found = Ridge(alpha).fit(x, y)
        return found.coef_.T, found.intercept_
    factor = (x * y).sum() / (x * x).sum()
    rest = Ridge(alpha, fit_intercept=False).fit(x, y - factor * x)
    return rest.coef_.T + factor * np.eye(len(rest.coef_)), 0.0


def assert_is_ridge(layer: Any, x: Tensor, y: Tensor, alpha: float, *, towards_identity: bool = True) -> None:
    weight, bias = plain_ridge(
        x.double().numpy(), y.flatten(1).double().numpy(), alpha, towards_identity=towards_identity
    )
    scale = float(np.abs(weight).max())
    np.testing.assert_allclose(layer.weight.detach().T, weight, atol=2e-5 * scale)
    np.testing.assert_allclose(layer.bias.detach(), bias + np.zeros(weight.shape[1]), atol=2e-5 * max(1.0, scale))


# ---- the regressions -------------------------------------------------------------------------------


@pytest.mark.parametrize("fit_on", ["validation", "train"])
def test_regressions_are_those_of_scikit_learn(data: MultiModal, alignment: Path, tmp_path: Path, fit_on: str) -> None:
    model = fit(data, alignment, tmp_path, alpha=3.0, fit_on=fit_on)
    for name in PARTS:
        brain, picture, _ = encoded(alignment, data, name, fit_on)
        assert_is_ridge(model.to_image[name], brain, picture, 3.0)
        assert_is_ridge(model.from_image[name], picture, brain, 3.0)
        for batch in recordings(data, name, "train"):
            person = data.layout["subjects"][int(batch["subject"][0])]
            assert_is_ridge(model.to_signal[person], batch["embedding"], batch["signal"], 3.0, towards_identity=False)


def preferred(x: Tensor, y: Tensor, stimulus: Tensor, alphas: list[float], *, towards_identity: bool) -> float:
    """The penalty with the least squared error on three folds of stimuli that were left out."""
    fold = fold_of(stimulus, 3).numpy()
    x, y = x.double().numpy(), y.flatten(1).double().numpy()
    factor = (x * y).sum() / (x * x).sum() if towards_identity else 0.0
    rest = y - factor * x if towards_identity else y
    errors = dict.fromkeys(alphas, 0.0)
    for alpha in alphas:
        for one in np.unique(fold):
            out = fold == one
            known = Ridge(alpha, fit_intercept=not towards_identity).fit(x[~out], rest[~out])
            errors[alpha] += float(((known.predict(x[out]) - rest[out]) ** 2).sum())
    return min(errors, key=errors.get)  # type: ignore[arg-type]


def test_penalties_are_chosen_by_folds_of_stimuli(stores: Path, tmp_path: Path) -> None:
    data = linear_world(stores, noise=3.0)
    alignment = aligned(data, stores / "noisy.ckpt")
    alphas = [1e-3, 0.1, 1.0, 10.0, 1e4]
    model = fit(data, alignment, tmp_path, alphas=alphas, folds=3)
    chosen = set()
    for name in PARTS:
        brain, picture, stimulus = encoded(alignment, data, name, "validation")
        for layer, x, y in ((model.to_image[name], brain, picture), (model.from_image[name], picture, brain)):
            chosen.add(alpha := preferred(x, y, stimulus, alphas, towards_identity=True))
            assert_is_ridge(layer, x, y, alpha)
            logged = model.trainer.callback_metrics[f"alpha/{'to' if x is brain else 'from'}_image/{name}"]
            assert float(logged) == pytest.approx(alpha)
        for batch in recordings(data, name, "train"):
            person = data.layout["subjects"][int(batch["subject"][0])]
            alpha = preferred(batch["embedding"], batch["signal"], batch["stimulus"], alphas, towards_identity=False)
            assert_is_ridge(model.to_signal[person], batch["embedding"], batch["signal"], alpha, towards_identity=False)
    assert chosen - {alphas[0]}, "nothing to choose"


def test_everything_is_predicted_from_its_own(data: MultiModal, alignment: Path, tmp_path: Path) -> None:
    model = fit(data, alignment, tmp_path, alpha=1.0)
    for name in PARTS:
        for batch in recordings(data, name, "test"):
            found = outputs(model, batch)
            person = data.layout["subjects"][int(batch["subject"][0])]
            with torch.no_grad():
                brain = model.alignment.encode(batch["signal"], batch["subject"])
                brain = brain / brain.norm(dim=1, keepdim=True)
                decoded = model.to_image[name](brain)
                expected = {
                    "brain_embedding": brain,
                    "image_embedding": batch["embedding"],
                    "decoded_embedding": decoded,
                    "encoded_embedding": model.from_image[name](batch["embedding"]),
                    "signal": batch["signal"],
                    "predicted_signal": model.to_signal[person](batch["embedding"]).reshape(batch["signal"].shape),
                    # what a recording would be in the place of another modality: by way of the picture
                    **{f"{other}.brain_embedding": model.from_image[other](decoded) for other in PARTS},
                    **{key: batch[key] for key in ("label", "stimulus", "subject", "row")},
                }
            assert found.keys() == expected.keys()
            assert found.keys() - {"label", "stimulus", "subject", "row"} == model.provides["test"]
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, msg=key)


def test_people_of_one_batch_have_signals_of_their_own(data: MultiModal, alignment: Path, tmp_path: Path) -> None:
    model = fit(data, alignment, tmp_path, alpha=1.0)
    samples = data.dataset("test")
    batch = samples[torch.nonzero(samples.subject < 2).flatten()]
    order = torch.randperm(len(batch["row"]), generator=torch.Generator().manual_seed(0))
    mixed: Any = {key: value[order] for key, value in batch.items()}
    assert len(mixed["subject"].unique()) == 2
    alone = {
        int(row): s
        for one in recordings(data, "eeg", "test")
        for row, s in zip(one["row"], outputs(model, one)["predicted_signal"], strict=True)
    }
    for row, signal in zip(mixed["row"].tolist(), outputs(model, mixed)["predicted_signal"], strict=True):
        torch.testing.assert_close(signal, alone[row])


def turned(data: MultiModal, alignment: Path) -> Path:
    """An alignment whose every data set has the embeddings of the pictures, but turned in a way of its own."""
    checkpoint = torch.load(alignment, weights_only=True)
    for number, name in enumerate(PARTS):
        turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(number))).Q
        for person, batch in enumerate(recordings(data, name, "train")):
            signal = torch.cat([batch["signal"].flatten(1), torch.ones(len(batch["row"]), 1)], dim=1).double()
            solved = torch.linalg.lstsq(signal, (batch["embedding"] @ turn).double(), driver="gelsd").solution.float()
            layer = f"encoders.{name}.subject_layers.layers.{person}.2"
            checkpoint["state_dict"][f"{layer}.weight"] = solved[:-1].T.contiguous()
            checkpoint["state_dict"][f"{layer}.bias"] = solved[-1]
    result = alignment.with_name("turned.ckpt")
    torch.save(checkpoint, result)
    return result


def test_in_a_linear_world_without_noise_everything_is_predicted(stores: Path, tmp_path: Path) -> None:
    data = linear_world(stores, noise=0.0)
    model = fit(data, turned(data, aligned(data, stores / "noiseless.ckpt")), tmp_path, alpha=1e-9)
    found = scored(model, data, tmp_path)
    for name in PARTS:
        batch = recordings(data, name, "test")[-1]
        out = outputs(model, batch)
        torch.testing.assert_close(out["decoded_embedding"], batch["embedding"], atol=1e-3, rtol=0)
        torch.testing.assert_close(out["encoded_embedding"], out["brain_embedding"], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(out["predicted_signal"], batch["signal"], atol=1e-3, rtol=1e-3)
        assert found[f"{name} to image by regression", "top_1"].value == 1.0
        assert found[f"image to {name} by regression", "two_way"].value == 1.0
        assert found[f"image to {name} by regression", "pearson_mean"].value > 0.999
    for source, target in ordered_pairs(PARTS, 2):
        signals = {
            name: score
            for (gallery, name), score in found.items()
            if gallery == f"{source} to {target} by regression" and "pearson" in name
        }
        # EEG and MEG share no pictures, and there are 4 classes; 15 pictures are shared with fMRI
        wanted = {"pearson_mean"} if {source, target} == {"eeg", "fmri"} else set()
        assert signals.keys() == wanted
        assert all(score.value > 0.999 for score in signals.values())
        assert found[f"{source} to {target} by regression", "two_way"].value > 0.85
    assert found["eeg to fmri by regression", "two_way"].value > found["eeg to fmri", "two_way"].value


# ---- what they are fitted on -----------------------------------------------------------------------


def changed(data: MultiModal, stores: Path, side: str) -> MultiModal:
    """The same data but for the signals of one side of the division, which are noise; checksums are made to agree."""
    shown = {name: torch.cat([b["stimulus"] for b in recordings(data, name, side)]) for name in PARTS}
    rows = {name: {sha: i for i, sha in enumerate(own.store.stimuli["sha256"])} for name, own in data.parts.items()}
    other = {}
    for name, made in PARTS.items():
        pictures = [*made.train, *made.test]
        numbers = data.tables.stimuli["sha256"].iloc[shown[name].unique().tolist()]
        spoilt = [pictures[rows[name][sha]] for sha in numbers]
        other[name] = part(stores, name, made, spoilt=spoilt)
    result = MultiModal(
        other, stores=str(data.stores), embedding=data.embedding, validation=data.validation, loader=data.loader
    )
    result.layout["preparation"].update(data.layout["preparation"])
    return result


def groups(model: CrossModalConversion) -> dict[str, dict[str, Tensor]]:
    state = copied(model)
    return {
        kind: {name: value for name, value in state.items() if name.startswith(f"{kind}.")}
        for kind in ("to_image", "from_image", "to_signal")
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    assert a.keys() == b.keys()
    assert a
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("fit_on", ["validation", "train"])
@pytest.mark.parametrize("side", ["train", "validation", "test"])
def test_recordings_have_no_influence_on_what_is_not_fitted_on_them(
    data: MultiModal, alignment: Path, stores: Path, tmp_path: Path, side: str, fit_on: str
) -> None:
    first = groups(fit(data, alignment, tmp_path, fit_on=fit_on))
    second = groups(fit(changed(data, stores, side), alignment, tmp_path, fit_on=fit_on))
    embeddings_change = side == fit_on
    assert same(first["to_image"], second["to_image"]) is not embeddings_change
    assert same(first["from_image"], second["from_image"]) is not embeddings_change
    assert same(first["to_signal"], second["to_signal"]) is (side != "train")


def test_neither_trying_out_nor_validation_changes_the_fit(data: MultiModal, alignment: Path, tmp_path: Path) -> None:
    expected = copied(fit(data, alignment, tmp_path))
    model = fit(data, alignment, tmp_path, run={"num_sanity_val_steps": 2})
    assert_same_weights(copied(model), expected)
    trainer(tmp_path).validate(model, datamodule=data, verbose=False)
    trainer(tmp_path, CrossModal(permutations=0, bootstraps=0)).test(model, datamodule=data, verbose=False)
    assert_same_weights(copied(model), expected)
    # the frozen alignment is what it was
    state = torch.load(alignment, weights_only=True)["state_dict"]
    assert_same_weights(copied(model.alignment), state)
    assert not any(parameter.requires_grad for parameter in model.alignment.parameters())


def test_training_samples_are_encoded_without_dropout(data: MultiModal, stores: Path, tmp_path: Path) -> None:
    seed_everything(0, verbose=False)
    loose = ContrastiveAlignment(
        data.layout,
        encoder={"class_path": "lightning_modules.LinearEncoder", "init_args": {"dropout": 0.5}},  # type: ignore[arg-type]
    )
    run = trainer(tmp_path, max_epochs=1)
    run.fit(loose, datamodule=data)
    run.save_checkpoint(tmp_path / "loose.ckpt")
    one, two = (fit(data, tmp_path / "loose.ckpt", tmp_path, fit_on="train", alpha=1.0) for _ in range(2))
    assert_same_weights(copied(one), copied(two))
    brain, picture, _ = encoded(tmp_path / "loose.ckpt", data, "eeg", "train")
    assert_is_ridge(one.to_image["eeg"], brain, picture, 1.0)


def test_the_size_of_batches_does_not_matter(data: MultiModal, alignment: Path, stores: Path, tmp_path: Path) -> None:
    expected = copied(fit(data, alignment, tmp_path))
    for size in (5, 1000):
        found = copied(fit(linear_world(stores, batch_size=size), alignment, tmp_path))
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_a_validation_within_the_epoch_is_fitted_on_and_so_is_the_last(
    data: MultiModal, alignment: Path, tmp_path: Path
) -> None:
    expected = copied(fit(data, alignment, tmp_path))
    model = fit(data, alignment, tmp_path, run={"val_check_interval": 0.3})
    assert_same_weights(copied(model), expected)


def test_a_second_epoch_fits_anew(data: MultiModal, alignment: Path, tmp_path: Path) -> None:
    expected = copied(fit(data, alignment, tmp_path))
    assert_same_weights(copied(fit(data, alignment, tmp_path, run={"max_epochs": 2})), expected)


def of_processes(stores: Path, alignment: Path, folder: Path, devices: int) -> None:
    """Fit and test; the first process keeps what was found."""
    torch.set_num_threads(1)
    data = linear_world(stores, batch_size=7)
    several: dict[str, Any] = {"strategy": "ddp", "devices": devices} if devices > 1 else {}
    model = fit(data, alignment, folder, run=several)
    score = CrossModal(permutations=9, bootstraps=9)
    run = trainer(folder, score, **several)
    run.test(model, datamodule=data, verbose=False)
    if run.is_global_zero:
        values = {f"{one.gallery}|{one.name}": torch.tensor([one.value, one.low]) for one in score.scores}
        torch.save({"state": copied(model), "scores": values}, folder / "found.pt")


def test_two_processes_agree_with_one(data: MultiModal, alignment: Path, stores: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    of_processes(stores, alignment, one, 1)
    call_anew(of_processes, stores, alignment, two, 2, folder=two, timeout=240)
    expected, found = (torch.load(folder / "found.pt", weights_only=True) for folder in (one, two))
    for kind in ("state", "scores"):
        assert expected[kind].keys() == found[kind].keys()
        for name, value in expected[kind].items():
            torch.testing.assert_close(found[kind][name], value, rtol=1e-5, atol=1e-5, msg=name)
