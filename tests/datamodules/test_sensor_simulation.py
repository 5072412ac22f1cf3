from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from scipy.stats import Covariance, multivariate_normal

from datamodules.core.fmri_simulation import AREAS, Features, visual_features
from datamodules.core.lead_fields import CORTEX
from datamodules.core.rendering import render_many
from datamodules.core.sensor_simulation import EARLIEST, SAMPLING_RATE, TIMES, SensorSimulation
from tests.datamodules.simulating import assert_oracle_knows_sessions, two_way

N = 160
LABELS = np.arange(N) % 40
Modality = Literal["eeg", "meg"]
BOTH = pytest.mark.parametrize("modality", ["eeg", "meg"])


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.stack([p.image for p in render_many(LABELS, np.arange(N) // 40, seed=0)])


@pytest.fixture(scope="module")
def features(images: np.ndarray) -> Features:
    return visual_features(images, LABELS)


@pytest.fixture(scope="module")
def people(features: Features) -> dict[Modality, SensorSimulation]:
    return {modality: SensorSimulation(features, modality=modality, seed=1) for modality in ("eeg", "meg")}


def experiment(sim: SensorSimulation, *, pictures: int, repetitions: int) -> tuple[np.ndarray, np.ndarray, list]:
    """Recorded trials of the first pictures, sessions, and the rows of each picture."""
    stimulus = np.tile(np.arange(pictures), repetitions)
    session = np.random.default_rng(0).integers(4, size=len(stimulus))
    groups = [np.arange(i, len(stimulus), pictures) for i in range(pictures)]
    return sim.record(stimulus, session, seed=0), session, groups


@BOTH
def test_shapes_types_and_units(people: dict[Modality, SensorSimulation], modality: Modality) -> None:
    sim = people[modality]
    channels = {"eeg": 64, "meg": 102}[modality]
    assert sim.response.shape == (N, channels, 60)
    assert sim.response.dtype == np.float64
    np.testing.assert_allclose(sim.response.mean(axis=0), sim.evoked, atol=1e-9 * np.abs(sim.evoked).max())
    assert sim.times[0] == -0.1
    assert sim.times[10] == 0.0
    assert sim.times[-1] == 0.49
    np.testing.assert_allclose(np.diff(sim.times), 1 / SAMPLING_RATE)
    recorded = sim.record(np.arange(5), np.zeros(5, dtype=int), seed=0)
    assert recorded.shape == (5, channels, 60)
    assert recorded.dtype == np.float32
    # As recordings of real people: some microvolts in noise of 10, 100 to 200 fT in noise of a few hundred.
    peak, noise = {"eeg": ((3e-6, 1e-5), 1e-5), "meg": ((1e-13, 3e-13), 3.5e-13)}[modality]
    assert peak[0] < np.abs(sim.evoked).max() < peak[1]
    assert np.median(sim.noise_sd) == pytest.approx(noise, rel=0.15)


@BOTH
def test_same_seed_same_bytes_other_seed_other_person(features: Features, modality: Modality) -> None:
    one, same, other = (SensorSimulation(features, modality=modality, seed=seed) for seed in (1, 1, 2))
    stimulus, session = np.arange(8), np.arange(8) % 3
    assert one.response.tobytes() == same.response.tobytes()
    assert one.record(stimulus, session, seed=4).tobytes() == same.record(stimulus, session, seed=4).tobytes()
    assert np.any(one.record(stimulus, session, seed=4) != one.record(stimulus, session, seed=5))
    specific = [(sim.response - sim.evoked).ravel() for sim in (one, other)]
    assert abs(np.corrcoef(specific)[0, 1]) < 0.5
    # People differ, but not in what makes them people: the evoked response looks alike.
    assert 0.5 < np.corrcoef(one.evoked.ravel(), other.evoked.ravel())[0, 1] < 0.99


def test_a_person_has_one_cortex_but_noise_of_its_own_under_both_modalities(
    people: dict[Modality, SensorSimulation],
) -> None:
    eeg, meg = people["eeg"], people["meg"]
    np.testing.assert_array_equal(eeg.moment, meg.moment)
    np.testing.assert_array_equal(eeg.patches.position, meg.patches.position)
    assert not np.allclose(eeg.session(0)[0], meg.session(0)[0][:64])


@BOTH
def test_nothing_happens_before_40_ms(people: dict[Modality, SensorSimulation], modality: Modality) -> None:
    sim = people[modality]
    assert np.all(sim.response[..., sim.times <= EARLIEST] == 0)
    started = np.abs(sim.response[..., sim.times > 0.085]).max(axis=1)
    assert np.all(started > 0)
    # Two recordings of different pictures under one seed agree to the last bit up to there, and not later.
    one, other = (sim.record(np.array([i]), np.array([0]), seed=0) for i in (0, 1))
    np.testing.assert_array_equal(one[..., sim.times <= EARLIEST], other[..., sim.times <= EARLIEST])
    assert np.any(one[..., sim.times > 0.08] != other[..., sim.times > 0.08])


def test_areas_respond_one_after_the_other(features: Features) -> None:
    fine = np.mean([latencies(SensorSimulation(features, modality="eeg", seed=seed)) for seed in range(4)], axis=0)
    np.testing.assert_allclose(fine, [0.095, 0.105, 0.115, 0.140, 0.175], atol=0.008)
    assert list(fine) == sorted(fine)


def latencies(sim: SensorSimulation) -> list[float]:
    """When the first component of each area is strongest: the top of a parabola through the largest samples."""
    peaks = []
    for name in AREAS:
        course = sim.course[np.array(sim.patches.area) == name, 0].mean(axis=0)
        top = course.argmax()
        before, at, after = course[top - 1 : top + 2]
        peaks.append(TIMES[top] + 0.5 * (before - after) / (before - 2 * at + after) / SAMPLING_RATE)
    return peaks


def test_the_evoked_potential_is_positive_then_negative_over_the_back_of_the_head(
    people: dict[Modality, SensorSimulation],
) -> None:
    sim = people["eeg"]
    rows = [sim.sensors.names.index(name) for name in ("PO7", "PO8", "P7", "P8")]
    posterior = sim.evoked[rows].mean(axis=0)
    assert posterior[np.isclose(TIMES, 0.10)] > 1e-6
    assert posterior[np.isclose(TIMES, 0.17)] < -1e-6
    y = sim.sensors.positions[:, 1]
    strength = np.abs(sim.evoked).max(axis=1)
    assert strength[y < -0.05].mean() > 1.5 * strength[y > 0.05].mean()


def test_the_evoked_field_of_both_hemispheres_has_opposite_signs(people: dict[Modality, SensorSimulation]) -> None:
    sim = people["meg"]
    x, y, _ = sim.sensors.positions.T
    field = sim.evoked[:, np.isclose(TIMES, 0.11)][:, 0]
    left, right = field[(x < -0.02) & (y < 0)].mean(), field[(x > 0.02) & (y < 0)].mean()
    assert left * right < 0
    assert min(abs(left), abs(right)) > 2e-14


def test_the_left_half_of_the_picture_drives_the_right_hemisphere(images: np.ndarray) -> None:
    cut = 20  # filters reach over the middle
    changed = images.copy()
    changed[:, :, :cut] = np.roll(images, 1, axis=0)[:, :, :cut]
    both = visual_features(np.concatenate([images, changed]), np.tile(LABELS, 2))
    sim = SensorSimulation(both, modality="eeg", seed=1)
    change = ((sim.moment[:N] - sim.moment[N:]) ** 2).mean(axis=(0, 2))
    area, right = np.array(sim.patches.area), np.array(sim.patches.hemisphere) == "right"
    ratio = {name: change[(area == name) & ~right].mean() / change[(area == name) & right].mean() for name in AREAS}
    assert ratio["V1"] < 0.01
    assert ratio["V2"] < 0.05
    assert 0.05 < ratio["LOC"] < 1  # large fields, and normalisation across the whole picture
    # Nothing else changes over the left hemisphere than what volume conduction carries there.
    at = (TIMES > 0.08) & (TIMES < 0.14)
    power = ((sim.response[:N] - sim.response[N:]) ** 2)[..., at].mean(axis=(0, 2))
    x, y, _ = sim.sensors.positions.T
    assert power[(x > 0.02) & (y < -0.04)].sum() > 1.5 * power[(x < -0.02) & (y < -0.04)].sum()


def test_the_objects_class_matters_in_loc_alone(features: Features) -> None:
    other = Features(maps=features.maps, label=np.random.default_rng(0).permutation(features.label))
    one, two = (SensorSimulation(f, modality="eeg", seed=1) for f in (features, other))
    changed = np.abs(one.moment - two.moment).max(axis=(0, 2)) > 1e-12
    np.testing.assert_array_equal(changed, np.array(one.patches.area) == "LOC")


def test_every_component_varies_with_the_picture_and_snr_scales_that(features: Features) -> None:
    sim, half, none = (SensorSimulation(features, modality="meg", seed=1, snr=snr) for snr in (1.0, 0.5, 0.0))
    mean = [CORTEX[area].evoked for area in sim.patches.area]
    np.testing.assert_allclose(sim.moment.mean(axis=0) * 1e9, mean, atol=1e-9)
    spread = sim.moment.std(axis=0)
    np.testing.assert_allclose(spread, np.broadcast_to(spread[0], spread.shape))
    np.testing.assert_allclose(half.response - half.evoked, 0.5 * (sim.response - sim.evoked), atol=1e-20)
    np.testing.assert_array_equal(none.response, np.broadcast_to(sim.evoked, none.response.shape))


@BOTH
def test_noise_has_the_declared_covariance(people: dict[Modality, SensorSimulation], modality: Modality) -> None:
    sim = people[modality]
    count = 3000
    session = np.zeros(count, dtype=int)
    gain, offset = sim.session(0)
    trials = (sim.record(session, session, seed=3) - offset[:, None]) / gain[:, None] - sim.response[0]
    # A few sensors (of the back, front and side) at a few times, near and a period of alpha apart.
    rows, columns = np.array([0, 20, 40, -2, -1]), np.array([2, 3, 7, 12, 40])
    actual = np.cov(trials[:, rows][:, :, columns].reshape(count, -1), rowvar=False)
    declared = sum(
        np.kron(spatial[np.ix_(rows, rows)], temporal[np.ix_(columns, columns)])
        for spatial, temporal in zip(sim.spatial, sim.temporal, strict=True)
    )
    variance = np.diag(declared)
    # Standard error of an entry of a sample covariance of normal data.
    error = np.sqrt((declared**2 + np.outer(variance, variance)) / count)
    assert np.max(np.abs(actual - declared) / error) < 5
    np.testing.assert_allclose(np.sqrt(variance), np.repeat(sim.noise_sd[rows], 5))
    # Neither part is nothing, and both are correlations that a recording can have.
    background, alpha = sim.temporal
    assert background[0, 1] > background[0, 5] > 0.1
    assert alpha[0, 5] < -0.7  # half a period
    assert alpha[0, 10] > 0.7
    assert np.all(np.linalg.eigvalsh(sim.spatial[0]) > 0)
    assert np.all(np.linalg.eigvalsh(background) > 0)


@BOTH
def test_averages_have_as_much_less_noise_as_they_have_trials(
    people: dict[Modality, SensorSimulation], modality: Modality
) -> None:
    sim = people[modality]
    recorded = sim.record(np.zeros(400, dtype=int), np.zeros(400, dtype=int), seed=0)
    _, offset = sim.session(0)
    single = recorded.std(axis=0).mean()
    averaged = recorded.reshape(100, 4, *recorded.shape[1:]).mean(axis=1).std(axis=0).mean()
    assert averaged == pytest.approx(single / 2, rel=0.05)
    gain, _ = sim.session(0)
    expected = offset[:, None] + gain[:, None] * sim.response[0]
    error = gain[:, None] * sim.noise_sd[:, None] / np.sqrt(400)
    assert np.abs((recorded.mean(axis=0) - expected) / error).max() < 5


def test_log_likelihood_agrees_with_scipy_and_with_a_dense_inverse(people: dict[Modality, SensorSimulation]) -> None:
    sim = people["eeg"]
    repetitions, candidates = np.array([1, 3]), np.array([4, 0, 17])
    noise = np.random.default_rng(0).normal(size=(2, *sim.evoked.shape)) * 1e-5
    signal = sim.response[[4, 9]] + noise
    scale = 1e6  # microvolts keep the dense determinant within range
    covariance = scale**2 * (np.kron(sim.spatial[0], sim.temporal[0]) + np.kron(sim.spatial[1], sim.temporal[1]))
    distribution = multivariate_normal(cov=Covariance.from_cholesky(np.linalg.cholesky(covariance)))
    expected = []
    for row, count in zip(signal, repetitions, strict=True):
        scaled = np.sqrt(count) * scale * (row - sim.response[candidates]).reshape(len(candidates), -1)
        # The density of an average of n is that of its sqrt(n)-fold times the change of volume.
        expected.append(distribution.logpdf(scaled) + row.size * np.log(np.sqrt(count) * scale))
    actual = sim.log_likelihood(signal, repetitions=repetitions, candidates=candidates)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)
    np.testing.assert_allclose(np.diff(actual, axis=1), np.diff(expected, axis=1), rtol=1e-4)


@BOTH
def test_oracle_undoes_gain_and_offset(people: dict[Modality, SensorSimulation], modality: Modality) -> None:
    sim = people[modality]
    stimulus, session = np.repeat(np.arange(10), 2), np.tile([0, 3], 10)
    gain, offset = (
        np.stack(part)[session // 3][..., None] for part in zip(sim.session(0), sim.session(3), strict=True)
    )
    assert_oracle_knows_sessions(sim, offset + gain * sim.response[stimulus], session)
    assert np.std(np.log(sim.session(0)[0])) == pytest.approx(0.1, abs=0.03)
    shift = np.abs(sim.session(0)[1] - sim.session(1)[1])
    assert np.median(shift) > np.median(sim.noise_sd)


@BOTH
def test_oracle_is_nearly_perfect_on_eight_trials_and_errs_on_one(
    people: dict[Modality, SensorSimulation], modality: Modality
) -> None:
    sim = people[modality]
    recorded, session, groups = experiment(sim, pictures=80, repetitions=8)
    eight = two_way(sim.oracle(recorded, session, groups=groups, candidates=np.arange(80)))
    one = two_way(sim.oracle(recorded, session, groups=[group[:1] for group in groups], candidates=np.arange(80)))
    assert eight > 0.995
    assert 0.9 < one < 0.999
    # Scoring without the sessions' offsets is far worse: they hurt as they should.
    wrong = two_way(sim.oracle(recorded, np.zeros_like(session), groups=groups, candidates=np.arange(80)))
    assert wrong < eight - 0.02


@BOTH
def test_without_signal_all_candidates_tie_exactly(features: Features, modality: Modality) -> None:
    silent = SensorSimulation(features, modality=modality, seed=1, snr=0.0)
    recorded, session, groups = experiment(silent, pictures=20, repetitions=2)
    score = silent.oracle(recorded, session, groups=groups, candidates=np.arange(20))
    assert np.ptp(score, axis=1).max() == 0
    assert two_way(score) == 0.5


@BOTH
def test_regression_decodes_the_response_but_neither_the_baseline_nor_pure_noise(
    features: Features, modality: Modality
) -> None:
    maps = features.maps["V1"].reshape(N, 42, 4, 4, 4, 4).mean(axis=(3, 5)).reshape(N, -1)
    maps = (maps - maps.mean(axis=0)) / maps.std(axis=0)
    train, test = np.arange(120), np.arange(120, N)

    def decode(sim: SensorSimulation, chosen: np.ndarray) -> float:
        recorded, session, _ = experiment(sim, pictures=N, repetitions=8)
        recorded = recorded[..., chosen].reshape(len(recorded), -1)
        for number in np.unique(session):
            rows = session == number
            recorded[rows] = (recorded[rows] - recorded[rows].mean(axis=0)) / recorded[rows].std(axis=0)
        signal = recorded.reshape(8, N, -1).mean(axis=0)
        gram = signal[train] @ signal[train].T
        gram += 0.3 * np.trace(gram) / len(train) * np.eye(len(train))
        predicted = signal[test] @ signal[train].T @ np.linalg.solve(gram, maps[train])
        return two_way(np.corrcoef(predicted, maps[test])[: len(test), len(test) :])

    after, before = TIMES > EARLIEST, TIMES <= EARLIEST
    sims = [SensorSimulation(features, modality=modality, seed=seed) for seed in range(3)]
    assert np.mean([decode(sim, after) for sim in sims]) > 0.63  # at chance: 0.5, standard error 0.03
    assert abs(np.mean([decode(sim, before) for sim in sims]) - 0.5) < 0.09
    silent = [SensorSimulation(features, modality=modality, seed=seed, snr=0.0) for seed in range(3)]
    assert abs(np.mean([decode(sim, after) for sim in silent]) - 0.5) < 0.09


INDEX = np.array([0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, _: SensorSimulation(f, modality="eeg", seed=-1), "seed=-1"),
        (lambda f, _: SensorSimulation(f, modality="eeg", seed=1, snr=-0.5), r"snr=-0\.5"),
        (lambda _, sim: sim.record(np.array([0, N]), INDEX, seed=0), f"stimulus must lie in 0..{N - 1}, got {N}"),
        (
            lambda _, sim: sim.log_likelihood(sim.response[:2], repetitions=np.array([1, 0]), candidates=INDEX),
            "at least one trial, got 0",
        ),
        (
            lambda _, sim: sim.log_likelihood(sim.response[:2], repetitions=INDEX + 1, candidates=INDEX - 1),
            f"candidates must lie in 0..{N - 1}, got -1",
        ),
        (
            lambda _, sim: sim.oracle(sim.response[:2], INDEX, groups=[INDEX, INDEX[:0]], candidates=INDEX),
            r"groups of \[0, 2\]",
        ),
        (
            lambda _, __: SensorSimulation(
                visual_features(np.zeros((2, 64, 64, 3), np.uint8), [0, 1]), modality="meg", seed=1
            ),
            "same to all 2 pictures",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    call: Callable[[Features, SensorSimulation], object],
    message: str,
    features: Features,
    people: dict[Modality, SensorSimulation],
) -> None:
    with pytest.raises(ValueError, match=message):
        call(features, people["eeg"])
