"""What is asked of simulated recordings of any kind."""

from __future__ import annotations

import numpy as np

from datamodules.core.fmri_simulation import FMRISimulation
from datamodules.core.sensor_simulation import SensorSimulation


def two_way(score: np.ndarray) -> float:
    """Share of wrong candidates that score below the right one, on the diagonal; ties count half."""
    right = np.diag(score)[:, None]
    below = (score < right).sum(axis=1) + 0.5 * ((score == right).sum(axis=1) - 1)
    return float(np.mean(below / (score.shape[1] - 1)))


def assert_oracle_knows_sessions(
    sim: FMRISimulation | SensorSimulation, noiseless: np.ndarray, session: np.ndarray
) -> None:
    """Ten pictures, twice each and one after another, are as likely as their responses without sessions."""
    groups = [np.array([2 * i, 2 * i + 1]) for i in range(10)]
    actual = sim.oracle(noiseless, session, groups=groups, candidates=np.arange(10))
    expected = sim.log_likelihood(sim.response[:10], repetitions=np.full(10, 2), candidates=np.arange(10))
    np.testing.assert_allclose(actual, expected, rtol=1e-9)
    np.testing.assert_array_equal(actual.argmax(axis=1), np.arange(10))
