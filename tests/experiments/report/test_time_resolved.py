"""The analysis of decoding over time, against scikit-learn and our own scores; layouts of sensors."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import pdist
from sklearn.linear_model import Ridge

from callbacks.metrics import Block, identification
from datamodules import EmbeddingOptions, PhantomEEG, PhantomOptions, SplitOptions
from experiments.report import time_resolved
from experiments.report.topographies import chosen_times, draw_topographies, flatten
from lightning_modules.networks.ridge import default_alphas, fold_of
from tests.experiments.report.recordings import (
    CHANNELS,
    CLASSES,
    FIRST,
    INFORMED,
    LAST,
    PIXELS,
    RATE,
    START,
    TEST,
    TRAIN,
    InWindow,
    Silent,
    data_config,
    decoded,
    on_a_head,
    opened,
)

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root whose stores all tests share."""
    return tmp_path_factory.mktemp("raw")


@pytest.fixture(scope="module")
def curve(raw: Path) -> time_resolved.Curve:
    return decoded(opened(data_config(InWindow, raw)))


# ---- the analysis ----------------------------------------------------------------------------------


def inside(curve: time_resolved.Curve) -> Array:
    """Windows of 3 samples that lie wholly where the signal is."""
    return (curve.times >= START + (FIRST + 1) / RATE - 1e-9) & (curve.times <= START + (LAST - 2) / RATE + 1e-9)


def outside(curve: time_resolved.Curve) -> Array:
    """Windows that hold nothing of the signal."""
    return (curve.times < START + (FIRST - 1) / RATE - 1e-9) | (curve.times > START + LAST / RATE + 1e-9)


def test_decoding_is_above_chance_in_the_window_of_the_signal_alone(curve: time_resolved.Curve) -> None:
    assert len(curve.times) == 38
    np.testing.assert_allclose(curve.times[[0, -1]], [-0.09, 0.28])
    p = time_resolved.corrected_p(curve.score, curve.permuted)
    assert (p[inside(curve)] < 0.01).all()
    assert curve.score[inside(curve)].min() > 0.75
    assert (p[outside(curve)] > 0.05).all()
    assert abs(curve.score[outside(curve)].mean() - 0.5) < 0.03
    assert (curve.samples, curve.tested, curve.candidates) == (TRAIN, TEST, TEST)
    assert inside(curve)[curve.score.argmax()]


def test_the_pattern_is_in_the_sensors_of_the_signal(curve: time_resolved.Curve) -> None:
    best = curve.pattern[curve.score.argmax()]
    assert set(best.argsort()[-len(INFORMED) :]) == set(INFORMED)
    others = np.delete(best, INFORMED)
    assert best[list(INFORMED)].min() > 2 * others.max()
    assert curve.pattern[outside(curve)].max() < best.max() / 2


def test_silent_recordings_are_at_chance(raw: Path) -> None:
    curve = decoded(opened(data_config(Silent, raw)))
    assert (time_resolved.corrected_p(curve.score, curve.permuted) > 0.05).all()
    assert abs(curve.score.mean() - 0.5) < 0.03
    np.testing.assert_allclose(curve.permuted.mean(), 0.5, atol=0.01)


def by_hand(data: Any, window: int) -> tuple[Array, Array, Any, Any]:
    """Inputs, decoded embeddings of the test samples, and both batches, by scikit-learn at one window."""
    train: Any = data.dataset("train")[torch.arange(TRAIN)]
    test: Any = data.dataset("test")[torch.arange(TEST)]
    mean = [batch["signal"].numpy()[:, :, window : window + 3].mean(axis=2).astype(float) for batch in (train, test)]
    target = train["embedding"].numpy().astype(float)
    fold = fold_of(train["stimulus"], 5).numpy()
    centred = mean[0] - mean[0].mean(axis=0)
    grid = default_alphas(float(np.linalg.eigvalsh(centred.T @ centred).max())).numpy()
    errors = []
    for alpha in grid:
        held = [(Ridge(alpha=alpha).fit(mean[0][fold != k], target[fold != k]), fold == k) for k in range(5)]
        errors.append(sum(((model.predict(mean[0][rows]) - target[rows]) ** 2).sum() for model, rows in held))
    best = Ridge(alpha=grid[int(np.argmin(errors))]).fit(mean[0], target)
    return mean[0], best.predict(mean[1]), best, test


def identified(predicted: Array, test: Any) -> Any:
    """Two-way identification by our own scores."""
    block = Block(
        queries=torch.from_numpy(predicted),
        stimulus=test["stimulus"],
        label=test["label"],
        gallery=test["embedding"],
        gallery_stimulus=test["stimulus"],
        gallery_label=test["label"],
    )
    (found,) = identification([block], top_k=(), n_way=(), n_permutations=999, n_bootstraps=0)
    return found


@pytest.mark.parametrize("window", [3, FIRST + 1, FIRST + 3, 30])
def test_scores_and_patterns_are_those_of_scikit_learn_and_identification(
    raw: Path, curve: time_resolved.Curve, window: int
) -> None:
    data = opened(data_config(InWindow, raw))
    inputs, predicted, model, test = by_hand(data, window)
    expected = identified(predicted, test)
    np.testing.assert_allclose(curve.score[window], expected.value, atol=1e-9)
    p = (1 + (curve.permuted[:, window] >= curve.score[window]).sum()) / (1 + time_resolved.PERMUTATIONS)
    assert expected.p_value is not None
    assert abs(p - expected.p_value) < 0.06
    # Haufe et al. (2014): covariance of inputs and decoded embedding
    outputs = model.predict(inputs)
    covariance = np.cov(inputs.T, outputs.T, bias=True)[:CHANNELS, CHANNELS:]
    train: Any = data.dataset("train")[torch.arange(TRAIN)]
    spread = np.sqrt(train["embedding"].numpy().astype(float).var(axis=0).mean())
    np.testing.assert_allclose(curve.pattern[window], np.sqrt((covariance**2).mean(axis=1)) / spread, rtol=1e-5)


def test_means_of_embeddings_and_signals_are_fitted_too(raw: Path) -> None:
    data = opened(data_config(InWindow, raw, embedding=PIXELS | {"target": "none"}, samples={"normalise": "none"}))
    _, predicted, model, test = by_hand(data, FIRST + 1)
    assert np.abs(model.intercept_).max() > 0.1
    curve = decoded(data)
    np.testing.assert_allclose(curve.score[FIRST + 1], identified(predicted, test).value, atol=1e-9)
    without = identified(predicted - model.intercept_, test).value
    assert abs(curve.score[FIRST + 1] - without) > 0.02


@pytest.mark.full
def test_passes_of_few_windows_give_the_same(
    raw: Path, curve: time_resolved.Curve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_resolved, "MEMORY", 7 * 8 * 5 * (CHANNELS + 1) * (CHANNELS + 12))
    monkeypatch.setattr(time_resolved, "BATCH", 17)
    again = decoded(opened(data_config(InWindow, raw)))
    np.testing.assert_allclose(again.score, curve.score, atol=1e-9)
    np.testing.assert_allclose(again.permuted, curve.permuted, atol=1e-9)
    np.testing.assert_allclose(again.pattern, curve.pattern, rtol=1e-6)


def test_classes_are_identified_where_embeddings_stand_for_them(raw: Path) -> None:
    curve = decoded(opened(data_config(InWindow, raw, embedding=CLASSES)), classes=True)
    assert curve.candidates == 2
    p = time_resolved.corrected_p(curve.score, curve.permuted)
    assert (p[inside(curve)] < 0.05).all()
    assert (p[outside(curve)] > 0.05).all()


def test_who_is_only_tested_is_decoded_by_what_others_taught(raw: Path) -> None:
    config = data_config(InWindow, raw, people=["01", "02"], untrained=["03"], samples={"normalise": "none"})
    curve = decoded(opened(config), 2)
    assert (curve.samples, curve.tested) == (2 * TRAIN, TEST)
    p = time_resolved.corrected_p(curve.score, curve.permuted)
    assert (p[inside(curve)] < 0.01).all()
    assert (p[outside(curve)] > 0.05).all()


@pytest.mark.parametrize(
    ("samples", "rate", "expected"),
    [
        (5, 100.0, [(0, 3), (1, 4), (2, 5)]),
        (4, 20.0, [(0, 1), (1, 2), (2, 3), (3, 4)]),
        (2, 1000.0, [(0, 2)]),
    ],
)
def test_windows(samples: int, rate: float, expected: list[tuple[int, int]]) -> None:
    assert [(window.start, window.stop) for window in time_resolved.windows(samples, rate)] == expected


@pytest.mark.parametrize("samples", [60, 61, 700, 2000])
def test_windows_are_at_most_sixty_and_reach_the_end(samples: int) -> None:
    found = time_resolved.windows(samples, 1000.0)
    assert len(found) <= 60
    assert found[0].start == 0
    step = found[1].start - found[0].start if len(found) > 1 else 1
    assert samples - step < found[-1].stop <= samples


def test_the_largest_score_of_all_times_corrects() -> None:
    permuted = np.array([[0.5, 0.6], [0.7, 0.4], [0.5, 0.5]])
    # largest of each permutation: .6, .7, .5
    np.testing.assert_allclose(time_resolved.corrected_p(np.array([0.55, 0.65, 0.71]), permuted), [0.75, 0.5, 0.25])


def test_phantom_is_decoded_after_onset_and_not_before(tmp_path: Path) -> None:
    data = PhantomEEG(
        stores=str(tmp_path),
        phantom=PhantomOptions(people=1, train_images=4, test_images=1, train_repetitions=1, sessions=1, snr=4.0),
        embedding=EmbeddingOptions(image_size=4, target="center"),
        split=SplitOptions(validation=0.0),
    )
    curve = decoded(data)
    p = time_resolved.corrected_p(curve.score, curve.permuted)
    # nothing before 40 ms depends on the picture
    assert (p[curve.times < 0.03] > 0.05).all()
    assert (p[(curve.times > 0.1) & (curve.times < 0.3)] < 0.05).any()
    assert 0.05 < curve.times[curve.score.argmax()] < 0.45


# ---- heads -----------------------------------------------------------------------------------------


def test_sensors_are_laid_out_from_above() -> None:
    centre, radius = np.array([0.01, 0.02, 0.04]), 0.1
    top, front, right, half = [0, 0, 1], [0, 1, 0], [1, 0, 0], [np.sqrt(0.5), 0, np.sqrt(0.5)]
    left, below = [-1, 0, 0], [0, -np.sqrt(0.5), -np.sqrt(0.5)]
    flat = flatten(centre + radius * np.array([top, front, right, half, left, below]))
    np.testing.assert_allclose(flat, [[0, 0], [0, 1], [1, 0], [0.5, 0], [-1, 0], [0, -1.5]], atol=1e-6)


def test_sensors_in_a_plane_keep_their_places() -> None:
    flat = flatten(np.array([[0, 0.05, 0.1], [0.05, 0, 0.1], [-0.05, 0, 0.1], [0, -0.05, 0.1], [0, 0, 0.1]]))
    assert flat[0, 1] > 0.2
    assert flat[1, 0] > 0.2
    np.testing.assert_allclose(flat[4], [0, 0], atol=1e-6)
    assert pdist(flat).min() > 0.2


def test_the_best_time_is_among_those_drawn() -> None:
    times, score = np.linspace(-0.1, 0.5, 61), np.zeros(61)
    score[27] = 1
    assert chosen_times(times, score) == [0, 12, 27, 36, 48, 60]
    assert chosen_times(times[:2], score[:2]) == [0, 1]


def test_heads_show_where_the_pattern_is() -> None:
    """The brightest pixels of the first head lie on the side of the sensors with the largest pattern."""
    positions = on_a_head(40)
    pattern = np.zeros((6, 40))
    pattern[0, positions[:, 1] < -0.03] = 1
    picture = Image.open(io.BytesIO(draw_topographies(positions, pattern, np.arange(6) / 10, np.full(6, 0.5))))
    pixels = np.asarray(picture.convert("RGB")).astype(int)[:, : picture.width // 7]
    yellow = np.argwhere((pixels[..., 0] > 200) & (pixels[..., 1] > 200) & (pixels[..., 2] < 80))
    assert len(yellow) > 100
    assert yellow[:, 0].mean() > 0.6 * picture.height, "the back of the head is below"
