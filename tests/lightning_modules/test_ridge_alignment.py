"""RidgeAlignment on Phantom: against scikit-learn, above chance, at chance where nothing can be learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from callbacks import Encoding, Identification, Score
from contracts import ContractError
from datamodules import EmbeddingOptions, LoaderOptions, Phantom, PhantomOptions, SampleOptions, SplitOptions
from lightning_modules import RidgeAlignment
from tests.lightning_modules.advice import FEW_BATCHES
from tests.lightning_modules.fitting import trainer

pytestmark = FEW_BATCHES
SMALL = {"people": 1, "train_images": 6, "test_images": 2, "train_repetitions": 2, "test_repetitions": 4}


def phantom(stores: Path, batch_size: int = 50, validation: float = 0.0, **options: object) -> Phantom:
    return Phantom(
        stores=str(stores),
        phantom=PhantomOptions(**{**SMALL, **options}),
        embedding=EmbeddingOptions(image_size=16, target="pca(40)"),
        samples=SampleOptions(cleaning="zscore_session", average_train="all"),
        split=SplitOptions(validation=validation),
        loader=LoaderOptions(batch_size=batch_size),
    )


def fit(data: Phantom, folder: Path, **options: object) -> RidgeAlignment:
    model = RidgeAlignment(data.layout, **options)
    trainer(folder, max_epochs=1).fit(model, datamodule=data)
    return model


def scores(data: Phantom, folder: Path, **options: object) -> dict[str, Score]:
    model = fit(data, folder, **options)
    callbacks = Identification(), Encoding()
    trainer(folder, *callbacks).test(model, datamodule=data, verbose=False)
    return {score.name: score for callback in callbacks for score in callback.scores}


def everything(data: Phantom, split: str) -> dict[str, np.ndarray]:
    dataset = data.dataset(split)
    return {name: value.numpy() for name, value in dataset[torch.arange(len(dataset))].items()}


@pytest.mark.parametrize("form", ["primal", "kernel"])
@pytest.mark.parametrize("intercept", [True, False])
def test_weights_are_those_of_scikit_learn(stores: Path, tmp_path: Path, form: str, intercept: bool) -> None:
    data = phantom(stores, batch_size=17)
    model = fit(data, tmp_path, alpha=500.0, form=form, decode_intercept=intercept, encode_intercept=intercept)
    train = everything(data, "train")
    for layer, x, y in (
        (model.decoders[0], train["signal"], train["embedding"]),
        (model.encoders[0], train["embedding"], train["signal"]),
    ):
        expected = Ridge(500.0, fit_intercept=intercept).fit(x.astype(np.float64), y.astype(np.float64))
        scale = np.abs(expected.coef_).max()
        np.testing.assert_allclose(layer.weight.detach(), expected.coef_, atol=1e-5 * scale)
        np.testing.assert_allclose(layer.bias.detach(), expected.intercept_ + np.zeros(len(y.T)), atol=1e-5)


def test_neither_batch_size_nor_form_changes_the_solution(stores: Path, tmp_path: Path) -> None:
    reference = fit(phantom(stores), tmp_path).state_dict()
    for batch_size, form in ((7, "kernel"), (1000, "primal"), (33, "primal")):
        other = fit(phantom(stores, batch_size=batch_size), tmp_path, form=form).state_dict()
        for name, value in reference.items():
            torch.testing.assert_close(other[name].double(), value.double(), rtol=1e-4, atol=1e-5)


def test_phantom_is_decoded_and_encoded_below_the_ceiling(stores: Path, tmp_path: Path) -> None:
    found = scores(phantom(stores), tmp_path)
    two_way, encoding = found["two_way"], found["pearson_mean"]
    assert 0.75 < two_way.value <= two_way.ceiling
    assert two_way.p_value == 1 / 1000
    assert two_way.low < two_way.value < two_way.high
    assert 0.1 < encoding.value < encoding.ceiling
    assert encoding.p_value == 1 / 1000


@pytest.mark.parametrize("control", ["shuffled", "noise"])
def test_negative_controls_are_at_chance(stores: Path, tmp_path: Path, control: str) -> None:
    found = [scores(phantom(stores, control=control, seed=seed), tmp_path) for seed in range(3)]
    two_way = np.mean([one["two_way"].value for one in found])
    # 3 x 80 pictures: the standard error of a two-way score at chance is about .29 / sqrt(80) / sqrt(3)
    assert abs(two_way - 0.5) < 3 * 0.29 / np.sqrt(240)
    assert abs(np.mean([one["pearson_mean"].value for one in found])) < 0.03
    assert min(one["two_way"].p_value for one in found) > 0.01
    if control == "noise":
        assert found[0]["two_way"].ceiling == pytest.approx(0.5)


def test_cross_validation_beats_far_away_penalties(stores: Path, tmp_path: Path) -> None:
    chosen = scores(phantom(stores), tmp_path)["pearson_mean"].value
    for alpha in (1e-6, 1e9):
        assert chosen > scores(phantom(stores), tmp_path, alpha=alpha)["pearson_mean"].value


def test_an_unfitted_model_is_refused(stores: Path, tmp_path: Path) -> None:
    data = phantom(stores)
    with pytest.raises(ContractError, match="never fitted"):
        trainer(tmp_path).test(RidgeAlignment(data.layout), datamodule=data, verbose=False)


def test_predicted_memory_above_the_limit_is_refused_before_the_pass(stores: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"memory_limit is 1e-05 GB"):
        fit(phantom(stores), tmp_path, memory_limit=1e-5)


@pytest.mark.parametrize(("options", "message"), [({"alpha": -1.0}, "found -1.0"), ({"folds": 1}, "found 1")])
def test_bad_options_are_refused(stores: Path, options: dict[str, float], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        RidgeAlignment(phantom(stores).layout, **options)


def test_validation_uses_the_solution_of_the_epoch(stores: Path, tmp_path: Path) -> None:
    data = phantom(stores, validation=0.2)
    score = Identification()
    model = RidgeAlignment(data.layout)
    run = trainer(tmp_path, score, max_epochs=1)
    run.fit(model, datamodule=data)
    assert float(run.callback_metrics["validation/test/two_way"]) > 0.7
    assert score.scores[0].p_value is None
