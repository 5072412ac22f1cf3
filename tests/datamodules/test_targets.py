from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import Normalizer, StandardScaler

from contracts import DataError
from datamodules.core.targets import fit_target

RANDOM = np.random.default_rng(0)
MIX = RANDOM.standard_normal((6, 6))
TRAIN = (RANDOM.standard_normal((30, 6)) @ MIX + 3).astype(np.float32)
OTHER = (RANDOM.standard_normal((8, 6)) @ MIX + 5).astype(np.float32)


@pytest.mark.parametrize(
    ("spec", "reference"),
    [
        ("unit", Normalizer()),
        ("center", StandardScaler(with_std=False)),
        ("zscore", StandardScaler()),
        ("pca(3)", PCA(3)),
        ("pca(3, whiten)", PCA(3, whiten=True)),
        ("pca(6,whiten)", PCA(6, whiten=True)),
    ],
)
def test_agrees_with_scikit_learn_and_is_fitted_on_training_alone(spec: str, reference: Any) -> None:
    reference.fit(TRAIN.astype(np.float64))
    transform = fit_target(spec, TRAIN)
    for data in (TRAIN, OTHER):
        found = transform(data)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, reference.transform(data.astype(np.float64)), rtol=1e-4, atol=1e-5)


def test_none_changes_nothing() -> None:
    np.testing.assert_array_equal(fit_target("none", TRAIN)(OTHER), OTHER)


def test_steps_follow_each_other() -> None:
    unit = Normalizer().fit_transform(TRAIN.astype(np.float64))
    reference = PCA(3, whiten=True).fit(unit)
    expected = reference.transform(Normalizer().transform(OTHER.astype(np.float64)))
    found = fit_target("unit|pca(3, whiten)", TRAIN)(OTHER)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found, fit_target(" unit | pca(3, whiten) ", TRAIN)(OTHER))
    swapped = fit_target("pca(3, whiten)|unit", TRAIN)(OTHER)
    np.testing.assert_allclose(np.linalg.norm(swapped, axis=1), 1, rtol=1e-5)


def test_a_constant_dimension_becomes_zero_under_zscore() -> None:
    train, other = TRAIN.copy(), OTHER.copy()
    train[:, 2] = 7
    found = fit_target("zscore", train)(other)
    assert np.isfinite(found).all()
    assert (found[:, 2] == 0).all()


@pytest.mark.parametrize("spec", ["pcs(3)", "pca", "pca(x)", "pca(3, white)", "", "unit,center", "pca(0)"])
def test_unknown_names_are_refused(spec: str) -> None:
    with pytest.raises(DataError, match=r"target"):
        fit_target(spec, TRAIN)


def test_more_components_than_stimuli_allow_are_refused() -> None:
    with pytest.raises(DataError, match=r"4 training stimuli of 6 numbers allow 3 components, asked for 4"):
        fit_target("pca(4)", TRAIN[:4])
    assert fit_target("pca(3)", TRAIN[:4])(OTHER).shape == (8, 3)
    with pytest.raises(DataError, match=r"allow 6 components, asked for 7"):
        fit_target("pca(7)", TRAIN)


def test_components_without_variance_are_refused() -> None:
    flat = TRAIN[:, :2] @ RANDOM.standard_normal((2, 6)).astype(np.float32)
    with pytest.raises(DataError, match=r"2 components.*asked for 3"):
        fit_target("pca(3, whiten)", flat)
    assert np.isfinite(fit_target("pca(2, whiten)", flat)(OTHER)).all()


def test_an_embedding_of_length_zero_has_no_direction() -> None:
    black = np.concatenate([OTHER, np.zeros((1, 6), np.float32)])
    with pytest.raises(DataError, match=r"unit.*length 0"):
        fit_target("unit", TRAIN)(black)
