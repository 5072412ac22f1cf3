"""What simulated people have in common, whatever records them: sessions, trials, and the best possible decoder.

A person has a noise-free response to each picture. A trial adds noise of known covariance, and every session has its
own gain and offset for each voxel or sensor::

    recorded = offset[session] + gain[session] * (response[stimulus] + noise)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Int


class Simulation(ABC):
    """One person, whose trials can be recorded and, with everything known, decoded.

    Signals are ``(n, V)`` (voxels) or ``(n, C, T)`` (sensors, time points), below ``(n, ...)``; gains and offsets are
    those of voxels or sensors.

    Attributes:
        response: ``(N, ...)`` float64, noise-free response to each of N pictures.
    """

    response: Float[np.ndarray, "pictures ..."]

    @abstractmethod
    def session(self, number: int) -> tuple[Float[np.ndarray, " v"], Float[np.ndarray, " v"]]:
        """Give the gain and the offset of every voxel or sensor in session ``number``, from 0 without an upper end."""

    @abstractmethod
    def _draw_noise(self, count: int, seed: int) -> Float[np.ndarray, "n ..."]:
        """Noise of some trials, a fresh array; trials of different seeds are independent."""

    @abstractmethod
    def _distance(
        self, signal: Float[np.ndarray, "n ..."], candidates: Int[np.ndarray, " g"]
    ) -> tuple[Float[np.ndarray, "n g"], float]:
        """Squared Mahalanobis distances to the responses of candidates, and log det, under the noise of one trial."""

    def record(
        self, stimulus: Int[np.ndarray, " n"], session: Int[np.ndarray, " n"], *, seed: int
    ) -> Float32[np.ndarray, "n ..."]:
        """Record trials.

        Args:
            stimulus: Picture of each trial, 0..N-1.
            session: Session of each trial, from 0.
            seed: Noise of these trials; trials recorded under different seeds are independent.

        Returns:
            ``offset + gain * (response + noise)`` of each trial.

        Raises:
            ValueError: The two arrays differ in length, or there is no such picture.
        """
        if stimulus.shape != session.shape:
            raise ValueError(f"one session for each trial is needed: {stimulus.shape} and {session.shape}")
        self._check_pictures("stimulus", stimulus)
        trials = self._draw_noise(len(stimulus), seed)
        trials += self.response[stimulus]
        gain, offset = self._sessions(session)
        trials *= gain
        trials += offset
        recorded: Float32[np.ndarray, "n ..."] = trials.astype(np.float32)
        return recorded

    def log_likelihood(
        self,
        signal: Float[np.ndarray, "n ..."],
        *,
        repetitions: Int[np.ndarray, " n"],
        candidates: Int[np.ndarray, " g"],
    ) -> Float[np.ndarray, "n g"]:
        """Log-likelihood of each candidate picture, all that the best possible decoder can use.

        Args:
            signal: Averages over trials of one picture each, gain and offset removed exactly.
            repetitions: Number of trials in each average.
            candidates: Pictures to compare, 0..N-1.

        Returns:
            ``log N(signal; response[candidate], covariance / repetitions)``.

        Raises:
            ValueError: An average has no trials, or there is no such picture.
        """
        if np.any(repetitions < 1):
            raise ValueError(f"every averaged sample needs at least one trial, got {repetitions.min()}")
        self._check_pictures("candidates", candidates)
        distance, log_det = self._distance(signal.astype(np.float64), candidates)
        count = np.asarray(repetitions, dtype=np.float64)[:, None]
        numbers = self.response[0].size
        result: Float[np.ndarray, "n g"] = count * distance + log_det + numbers * np.log(2 * np.pi / count)
        return -0.5 * result

    def oracle(
        self,
        recorded: Float[np.ndarray, "m ..."],
        session: Int[np.ndarray, " m"],
        *,
        groups: Sequence[Int[np.ndarray, " _"]],
        candidates: Int[np.ndarray, " g"],
    ) -> Float[np.ndarray, "n g"]:
        """Decode recorded trials with full knowledge of the person.

        Args:
            recorded: Trials as `record` gives them.
            session: Session of each trial.
            groups: For each decoded sample, the rows of ``recorded`` that are averaged.
            candidates: Pictures to compare, 0..N-1.

        Returns:
            `log_likelihood` of the averages; at ``snr=0`` all candidates tie exactly.

        Raises:
            ValueError: The first two differ in length, a group is empty, or there is no such picture.
        """
        if len(recorded) != len(session) or min(len(group) for group in groups) < 1:
            sizes = sorted({len(group) for group in groups})
            raise ValueError(
                f"one session for each trial is needed, and a trial in every group: "
                f"{len(recorded)} trials, {len(session)} sessions, groups of {sizes}"
            )
        gain, offset = self._sessions(session)
        restored = (recorded.astype(np.float64) - offset) / gain
        signal = np.stack([restored[group].mean(axis=0) for group in groups])
        repetitions = np.array([len(group) for group in groups])
        return self.log_likelihood(signal, repetitions=repetitions, candidates=candidates)

    def _sessions(self, number: Int[np.ndarray, " n"]) -> tuple[Float[np.ndarray, "n ..."], Float[np.ndarray, "n ..."]]:
        """Gain and offset of each trial, alike at all times."""
        unique, position = np.unique(number, return_inverse=True)
        gain, offset = zip(*(self.session(int(value)) for value in unique), strict=True)
        times = (1,) * (self.response.ndim - 2)
        of_trials = (np.stack(part)[position] for part in (gain, offset))
        gains, offsets = (part.reshape(*part.shape, *times) for part in of_trials)
        return gains, offsets

    def _check_pictures(self, name: str, number: Int[np.ndarray, " n"]) -> None:
        count = len(self.response)
        wrong = number[(number < 0) | (number >= count)]
        if wrong.size:
            raise ValueError(f"{name} must lie in 0..{count - 1}, got {wrong[0]}")


def draw_session(
    rng: np.random.Generator, count: int, *, spread: float, distances: tuple[float, float]
) -> tuple[Float[np.ndarray, " v"], Float[np.ndarray, " v"]]:
    """Draw the gains and offsets of a session.

    Args:
        rng: Of the person and the session.
        count: Number of voxels or sensors.
        spread: SD of the logarithm of the gains.
        distances: Smallest and largest offset, to either side of 0.
    """
    gain = np.exp(rng.normal(0.0, spread, size=count))
    sign = rng.choice((-1.0, 1.0), size=count)
    return gain, sign * rng.uniform(*distances, size=count)


def standardise(response: Float[np.ndarray, "n ..."], of: str) -> Float[np.ndarray, "n ..."]:
    """Return responses of mean 0 and SD 1 over the pictures.

    Args:
        response: ``(n, ...)`` to n pictures.
        of: Whose responses, for the error.

    Raises:
        ValueError: Some respond the same to all pictures.
    """
    sd = response.std(axis=0)
    if np.any(sd < 1e-9):
        raise ValueError(f"some {of} respond the same to all {len(response)} pictures: use more")
    standard: Float[np.ndarray, "n ..."] = (response - response.mean(axis=0)) / sd
    return standard
