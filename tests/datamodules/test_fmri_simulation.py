from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from datamodules.core.fmri_simulation import AREAS, UNSATURATED_SNR, Features, FMRISimulation, visual_features
from datamodules.core.rendering import render_many
from tests.datamodules.simulating import assert_oracle_knows_sessions, two_way

N = 200
SMALL = {"V1": 12, "V2": 10, "V3": 8, "V4": 8, "LOC": 10}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.stack([p.image for p in render_many(np.arange(N) % 40, np.arange(N) // 40, seed=0)])


@pytest.fixture(scope="module")
def features(images: np.ndarray) -> Features:
    return visual_features(images, np.arange(N) % 40)


def experiment(sim: FMRISimulation, *, repetitions: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Recorded trials and sessions; the rows of picture i are ``i, i + N, i + 2 N ...``."""
    stimulus = np.tile(np.arange(N), repetitions)
    session = np.random.default_rng(seed).integers(4, size=len(stimulus))
    return sim.record(stimulus, session, seed=seed), session


def test_shapes_types_and_standardised_responses(features: Features) -> None:
    sim = FMRISimulation(features, seed=1)
    voxels = sum(sim.rois.values())
    assert list(sim.rois) == list(AREAS) == ["V1", "V2", "V3", "V4", "LOC"]
    assert 540 <= voxels <= 660
    assert sim.response.shape == (N, voxels)
    assert sim.response.dtype == np.float64
    np.testing.assert_allclose(sim.response.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(sim.response.std(axis=0), sim.signal_sd)
    noise_variance = sim.independent + (sim.shared**2).sum(axis=1)
    np.testing.assert_allclose(sim.ncsnr, sim.signal_sd / np.sqrt(noise_variance))
    recorded = sim.record(np.arange(5), np.zeros(5, dtype=int), seed=0)
    assert recorded.shape == (5, voxels)
    assert recorded.dtype == np.float32


def test_same_seed_same_bytes_other_seed_other_person(images: np.ndarray, features: Features) -> None:
    again = visual_features(images, np.arange(N) % 40)
    assert all(again.maps[name].tobytes() == maps.tobytes() for name, maps in features.maps.items())
    one, same, other = (FMRISimulation(features, seed=seed) for seed in (1, 1, 2))
    stimulus, session = np.arange(8), np.arange(8) % 3
    assert one.record(stimulus, session, seed=4).tobytes() == same.record(stimulus, session, seed=4).tobytes()
    assert np.any(one.record(stimulus, session, seed=4) != one.record(stimulus, session, seed=5))
    assert one.rois != other.rois


def test_features_of_a_picture_do_not_depend_on_the_others(images: np.ndarray, features: Features) -> None:
    alone = visual_features(images[7:8], [7])
    for name, maps in features.maps.items():
        np.testing.assert_allclose(alone.maps[name][0], maps[7], rtol=1e-4, atol=1e-5)


def test_receptive_fields_grow_and_responses_tolerate_shifts_accordingly(images: np.ndarray) -> None:
    shifted = np.roll(images, 8, axis=2)  # to the right, by an eighth of the picture
    labels = np.tile(np.arange(N) % 40, 2)
    sim = FMRISimulation(visual_features(np.concatenate([images, shifted]), labels), seed=1)
    roi = np.repeat(list(sim.rois), list(sim.rois.values()))
    width = [np.median(sim.receptive_field[roi == name, 2]) for name in AREAS]
    assert width == sorted(width)
    assert width[-1] > 3 * width[0]
    change = ((sim.response[:N] - sim.response[N:]) ** 2).mean(axis=0) / sim.signal_sd**2
    by_area = [change[roi == name].mean() for name in AREAS]
    assert by_area[0] > 1.5 * by_area[2] > 1.5 * by_area[4], by_area


def test_signal_is_strongest_low_in_the_hierarchy_and_some_voxels_are_silent(features: Features) -> None:
    sims = [FMRISimulation(features, seed=seed) for seed in range(4)]
    median = [
        np.median(np.concatenate([s.ncsnr[np.repeat(list(s.rois), list(s.rois.values())) == a] for s in sims]))
        for a in AREAS
    ]
    assert median[0] > 1.2 * median[-1]
    ncsnr = np.concatenate([s.ncsnr for s in sims])
    assert 0.05 < np.mean(ncsnr < 0.03) < 0.15
    np.testing.assert_allclose(FMRISimulation(features, seed=0, snr=0.5).ncsnr, 0.5 * sims[0].ncsnr)


def test_noise_of_repeats_has_the_declared_covariance_and_ncsnr(features: Features) -> None:
    sim = FMRISimulation(features, seed=1, voxels=SMALL)
    repetitions = 40
    stimulus = np.tile(np.arange(N), repetitions)
    session = np.zeros(len(stimulus), dtype=int)
    gain, offset = sim.session(0)
    trials = (sim.record(stimulus, session, seed=3) - offset) / gain
    by_picture = trials.reshape(repetitions, N, -1)

    residual = (by_picture - by_picture.mean(axis=0)).reshape(len(trials), -1)
    freedom = (repetitions - 1) * N
    covariance = residual.T @ residual / freedom
    declared = np.diag(sim.independent) + sim.shared @ sim.shared.T
    variance = np.diag(declared)
    # Standard error of an entry of a sample covariance of normal data.
    error = np.sqrt((declared**2 + np.outer(variance, variance)) / freedom)
    assert np.max(np.abs(covariance - declared) / error) < 5
    correlation = declared / np.sqrt(np.outer(variance, variance))
    assert np.abs(correlation - np.eye(len(correlation))).max() > 0.1  # the shared part is not nothing

    # ncsnr as Allen et al. (2022) estimate it: what the noise variance leaves of the total variance.
    total = by_picture.reshape(len(trials), -1).var(axis=0)
    noise = by_picture.var(axis=0, ddof=1).mean(axis=0)
    estimate = np.sqrt(np.maximum(total - noise, 0) / noise)
    strong = sim.ncsnr > 0.1
    np.testing.assert_allclose(estimate[strong], sim.ncsnr[strong], atol=0.035)


def test_trials_are_independent_of_one_another(features: Features) -> None:
    sim = FMRISimulation(features, seed=1, snr=0.0)
    trials, _ = experiment(sim, repetitions=2)
    other, _ = experiment(sim, repetitions=2, seed=1)
    centred = [part - part.mean(axis=0) for part in (trials[:N], trials[N:], other[:N])]
    for a, b in ((0, 1), (0, 2)):
        correlation = np.sum(centred[a] * centred[b], axis=0) / np.sqrt(
            np.sum(centred[a] ** 2, axis=0) * np.sum(centred[b] ** 2, axis=0)
        )
        assert abs(correlation.mean()) < 0.05


def test_sessions_differ_in_gain_and_by_large_offsets(features: Features) -> None:
    sim = FMRISimulation(features, seed=1)
    (gain, offset), (gain_2, offset_2), (gain_again, _) = (sim.session(s) for s in (0, 1, 0))
    np.testing.assert_array_equal(gain, gain_again)
    assert np.std(np.log(gain)) == pytest.approx(0.15, abs=0.02)
    assert abs(np.corrcoef(gain, gain_2)[0, 1]) < 0.2
    assert np.median(np.abs(offset - offset_2) / sim.signal_sd) > 3


def test_log_likelihood_agrees_with_scipy(features: Features) -> None:
    sim = FMRISimulation(features, seed=1, voxels=SMALL)
    repetitions, candidates = np.array([1, 3, 6]), np.array([4, 0, 9, 17])
    signal = np.random.default_rng(0).normal(size=(3, sum(SMALL.values())))
    covariance = np.diag(sim.independent) + sim.shared @ sim.shared.T
    expected = [
        [multivariate_normal.logpdf(row, sim.response[c], covariance / n) for c in candidates]
        for row, n in zip(signal, repetitions, strict=True)
    ]
    actual = sim.log_likelihood(signal, repetitions=repetitions, candidates=candidates)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_oracle_undoes_gain_and_offset(features: Features) -> None:
    sim = FMRISimulation(features, seed=1)
    stimulus, session = np.repeat(np.arange(10), 2), np.tile([0, 3], 10)
    gain, offset = (np.stack(part)[session // 3] for part in zip(sim.session(0), sim.session(3), strict=True))
    assert_oracle_knows_sessions(sim, offset + gain * sim.response[stimulus], session)


def test_oracle_is_good_but_not_perfect_where_the_noise_is_strong(features: Features) -> None:
    sim = FMRISimulation(features, seed=1, snr=UNSATURATED_SNR)
    recorded, session = experiment(sim, repetitions=6)
    groups = [np.arange(i, len(recorded), N) for i in range(80)]
    score = sim.oracle(recorded, session, groups=groups, candidates=np.arange(80))
    assert 0.97 < two_way(score) < 1.0
    # Scoring without the sessions' offsets is far worse: they hurt as they should.
    wrong = sim.oracle(recorded, np.zeros_like(session), groups=groups, candidates=np.arange(80))
    assert two_way(wrong) < two_way(score) - 0.1


def test_pure_noise_is_at_chance_for_oracle_and_regression(features: Features, images: np.ndarray) -> None:
    pixels = images.reshape(N, 8, 8, 8, 8, 3).mean(axis=(2, 4)).reshape(N, -1) / 255
    train, test = np.arange(120), np.arange(120, N)

    def decode(sim: FMRISimulation) -> float:
        recorded, session = experiment(sim, repetitions=6)
        for number in np.unique(session):
            rows = session == number
            recorded[rows] = (recorded[rows] - recorded[rows].mean(axis=0)) / recorded[rows].std(axis=0)
        signal = recorded.reshape(6, N, -1).mean(axis=0)
        gram = signal[train] @ signal[train].T + 50.0 * np.eye(len(train))
        mean = pixels[train].mean(axis=0)
        predicted = signal[test] @ signal[train].T @ np.linalg.solve(gram, pixels[train] - mean)
        return two_way(np.corrcoef(predicted, pixels[test] - mean)[: len(test), len(test) :])

    silent = FMRISimulation(features, seed=1, snr=0.0)
    recorded, session = experiment(silent, repetitions=2)
    groups = [np.array([i, i + N]) for i in range(20)]
    score = silent.oracle(recorded, session, groups=groups, candidates=np.arange(20))
    assert np.ptp(score, axis=1).max() == 0
    assert two_way(score) == 0.5
    chance = [decode(FMRISimulation(features, seed=seed, snr=0.0)) for seed in range(6)]
    assert abs(np.mean(chance) - 0.5) < 0.06, chance
    assert decode(FMRISimulation(features, seed=1)) > 0.75


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda f: FMRISimulation(f, seed=-1), "negative"),
        (lambda f: FMRISimulation(f, seed=1, snr=-1.0), "negative"),
        (lambda f: FMRISimulation(f, seed=1, voxels={"V1": 5}), "V1, V2"),
        (lambda f: FMRISimulation(f, seed=1, voxels=SMALL | {"V4": 0}), "at least 1"),
        (lambda f: visual_features(np.zeros((2, 32, 32, 3), np.uint8), [0, 1]), "64, 64"),
        (lambda f: visual_features(np.zeros((2, 64, 64, 3), np.uint8), [0]), "one label"),
        (
            lambda f: FMRISimulation(visual_features(np.zeros((2, 64, 64, 3), np.uint8), [0, 1]), seed=1),
            "same",
        ),
        (
            lambda f: FMRISimulation(f, seed=1).record(np.array([0, N]), np.array([0, 1]), seed=0),
            f"stimulus must lie in 0..{N - 1}, got {N}",
        ),
        (
            lambda f: FMRISimulation(f, seed=1).oracle(
                np.zeros((2, 1)), np.arange(2), groups=[np.arange(2), np.arange(0)], candidates=np.arange(2)
            ),
            r"groups of \[0, 2\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(build: Callable[[Features], object], message: str, features: Features) -> None:
    with pytest.raises(ValueError, match=message):
        build(features)
