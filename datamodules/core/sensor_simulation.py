"""Simulated EEG and MEG of people who look at pictures, with everything known that recordings hide.

A picture passes through the same hierarchy of visual areas as for fMRI (`visual_features`). Each area has a few
patches of cortex in both hemispheres. A patch is a current dipole with its own receptive field in the opposite
half of the picture (fixation is in the middle), three components of its response that follow one another, each
tuned by its own mixture of channels, and a time course that starts after at least 40 ms. Lead fields carry the
dipoles to the sensors; a trial adds noise of known covariance, and every session has its own gains and offsets::

    recorded = offset[session] + gain[session] * (response[stimulus] + noise)

The noise of one trial is Gaussian with covariance ``S1 (x) T1 + S2 (x) T2`` (sensors (x) times): the background of
the whole brain and of the sensors, with a 1/f and a white part in time, and the occipital alpha rhythm. One change
of basis makes both parts diagonal, so the likelihood of a recording is exact and trials are cheap to draw. The price
of two parts only: the sensors' own noise has the time course of the background.

EEG is referenced to the average of all electrodes. The electrodes' own noise is added after that: it would
otherwise lack one dimension, in which the slightest rounding decided everything. So the average over electrodes
is not zero but holds nothing except that noise, and (gains apart) nothing is lost by referencing once more.

People are the same under both modalities: a seed stands for one cortex, whatever records it.

References:
    Di Russo et al. (2002), Human Brain Mapping 15: C1 in V1 from 55 ms, peak at about 90 ms; P1 in extrastriate
        cortex from 72 to 80 ms; N1 between 150 and 200 ms.
    Foxe and Simpson (2002), Experimental Brain Research 142: V1 from 56 ms, the dorsal stream within 30 ms.
    Cichy et al. (2014), Nature Neuroscience 17: pictures told apart best at about 100 ms, and like V1 then; like
        inferior temporal cortex later.
    Jeffreys and Axford (1972), Experimental Brain Research 16: opposite banks, opposite polarity (cruciform model).
    Huizenga et al. (2002), IEEE Transactions on Biomedical Engineering 49: noise as a Kronecker product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from einops import einsum, rearrange
from jaxtyping import Float, Int
from scipy.linalg import eigh, toeplitz

from datamodules.core.fmri_simulation import AREAS, Features
from datamodules.core.lead_fields import (
    CORTEX,
    Modality,
    Patches,
    Sensors,
    alpha_covariance,
    background_covariance,
    draw_patches,
    lead_field,
    sensors,
)
from datamodules.core.simulation import Simulation, draw_session, standardise

SAMPLING_RATE: Final = 100.0
"""Samples a second."""

TIMES: Final = (np.arange(60) - 10) / SAMPLING_RATE
"""Seconds from the onset of the picture: -0.1 to 0.49 s; 0.5 s is the first moment after the recording."""

EARLIEST: Final = 0.04
"""No patch responds before this time, in seconds."""


@dataclass(frozen=True)
class _Noise:
    """SDs of the parts of one trial's noise at the median sensor, in volts or tesla."""

    brain: float
    alpha: float
    sensor: float


_NOISE_LEVELS: Final[dict[Modality, _Noise]] = {
    "eeg": _Noise(brain=8.5e-6, alpha=3.0e-6, sensor=3e-6),
    "meg": _Noise(brain=300e-15, alpha=120e-15, sensor=120e-15),
}
_TUNED: Final = (3.2, 3.0, 2.4)  # SD over pictures of a patch's moment in each component, nA m
_DRIVE: Final = 0.25  # share of the variance of the first component that is the mere strength of the input
_LASTING: Final = 0.6  # share of the variance of the tuning that a patch's components have in common
_COHERENT: Final = 0.5  # share of it that the patches of an area have in common: what adds up at a distance
_PROFILES: Final = 4  # as for voxels: a patch averages over so many neurons that few axes of tuning survive
_DELAYS: Final = ((0.0, 0.0), (0.03, 0.07), (0.02, 0.15))  # of each component's onset and peak, seconds
_SHARPNESS: Final = (4.0, 4.0, 2.0)  # the peak of a component is (peak - onset) / sqrt(sharpness) wide
# Streams of random numbers: the second word of the seed. Those of fMRI of the same person begin at 0.
_SOURCES, _TUNING, _BACKGROUND, _SESSION, _TRIALS = range(16, 21)
_STREAM: Final[dict[Modality, int]] = {"eeg": 0, "meg": 1}  # third word of what the two do not share


class SensorSimulation(Simulation):
    """One person: patches tuned to the features of a set of pictures, lead fields, noise and sessions.

    Attributes:
        sensors: Names and positions of the C sensors.
        times: ``(T,)`` seconds from the onset of the picture, see ``TIMES``.
        patches: The sources.
        lead_field: ``(C, P)`` volts or tesla of a patch with a moment of 1 A m.
        course: ``(P, K, T)`` time course of each component, peak 1, exactly 0 up to ``EARLIEST``.
        moment: ``(N, P, K)`` A m, peak dipole moment of each component for each picture.
        response: ``(N, C, T)`` float64, noise-free response to each picture, in volts or tesla.
        evoked: ``(C, T)`` the part of it that all pictures share.
        spatial: ``(2, C, C)`` covariance over sensors of background and alpha, S1 and S2.
        temporal: ``(2, T, T)`` correlation over times of background and alpha, T1 and T2.
    """

    def __init__(self, features: Features, *, modality: Modality, seed: int, snr: float = 1.0) -> None:
        """Draw a person; under a second for 560 pictures.

        Args:
            features: The pictures that the person may see, passed through the hierarchy.
            modality: ``eeg`` (volts) or ``meg`` (tesla).
            seed: Which person; the same cortex under both modalities.
            snr: Factor on what differs between pictures; 0.0 leaves the response that all share, and the noise.

        Raises:
            ValueError: An unknown modality, a negative seed or snr, or pictures all alike.
        """
        self.sensors: Sensors = sensors(modality)
        if seed < 0 or snr < 0:
            raise ValueError(f"seed and snr must not be negative, got seed={seed}, snr={snr}")
        self.modality, self.seed = modality, seed
        self.times: Float[np.ndarray, " t"] = TIMES.copy()
        self.patches = draw_patches(np.random.default_rng([seed, _SOURCES]))
        self.lead_field: Float[np.ndarray, "c p"] = lead_field(
            modality, positions=self.patches.position, orientations=self.patches.orientation
        )
        self.course: Float[np.ndarray, "p k t"] = _draw_courses(self.patches.latency)
        mean = 1e-9 * np.array([CORTEX[area].evoked for area in self.patches.area])
        specific = 1e-9 * snr * np.array(_TUNED) * _tune(features, self.patches, seed=seed)
        self.moment: Float[np.ndarray, "n p k"] = mean + specific
        self.evoked: Float[np.ndarray, "c t"] = self._project(mean[None])[0]
        self.response: Float[np.ndarray, "n c t"] = self.evoked + self._project(specific)

        levels = _NOISE_LEVELS[modality]
        rng = np.random.default_rng([seed, _BACKGROUND])
        brain = levels.brain**2 * background_covariance(modality, rng)
        alpha = levels.alpha**2 * alpha_covariance(modality, rng)
        self.spatial: Float[np.ndarray, "2 c c"] = np.stack([brain + levels.sensor**2 * np.eye(len(brain)), alpha])
        self.temporal: Float[np.ndarray, "2 t t"] = np.stack(_temporal_correlations())
        # Generalised eigenvectors, U' S1 U = 1 and U' S2 U = diag(s), likewise V for time: U' noise V has
        # independent entries of variance 1 + s_i t_j.
        s, self._u = eigh(self.spatial[1], self.spatial[0])
        t, self._v = eigh(self.temporal[1], self.temporal[0])
        self._variance: Float[np.ndarray, "c t"] = 1 + np.outer(np.maximum(s, 0), np.maximum(t, 0))

    @property
    def noise_sd(self) -> Float[np.ndarray, " c"]:
        """SD of one trial's noise at each sensor, the same at all times: ``(C,)`` volts or tesla."""
        sd: Float[np.ndarray, " c"] = np.sqrt(np.diagonal(self.spatial.sum(axis=0)))
        return sd

    def session(self, number: int) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
        """Give the gain and the offset of every sensor in session ``number``, from 0 without an upper end.

        Returns:
            Gain ``(C,)``, log-normal with 10 % spread, and offset ``(C,)``, 1 to 3 SDs of the median sensor's noise
            to either side.
        """
        rng = np.random.default_rng([self.seed, _SESSION, _STREAM[self.modality], number])
        gain, offset = draw_session(rng, len(self.sensors.names), spread=0.1, distances=(1.0, 3.0))
        return gain, offset * np.median(self.noise_sd)

    def _draw_noise(self, count: int, seed: int) -> Float[np.ndarray, "n c t"]:
        rng = np.random.default_rng([self.seed, _TRIALS, _STREAM[self.modality], seed])
        white = rng.standard_normal((count, *self._variance.shape)) * np.sqrt(self._variance)
        # The way back from the basis in which entries are independent: U' S1 U = 1, so U'^-1 = S1 U.
        noise: Float[np.ndarray, "n c t"] = (self.spatial[0] @ self._u) @ white @ (self.temporal[0] @ self._v).T
        return noise

    def _distance(
        self, signal: Float[np.ndarray, "n c t"], candidates: Int[np.ndarray, " g"]
    ) -> tuple[Float[np.ndarray, "n g"], float]:
        observed = self._whiten(signal - self.evoked)
        # Relative to what pictures share: at snr = 0 this is 0 to the last bit, and all candidates tie.
        expected = self._whiten(self.response[candidates] - self.evoked)
        distance = (observed**2).sum(axis=1)[:, None] - 2 * observed @ expected.T + (expected**2).sum(axis=1)
        sensor_count, time_count = self._variance.shape
        log_det = (
            time_count * np.linalg.slogdet(self.spatial[0])[1]
            + sensor_count * np.linalg.slogdet(self.temporal[0])[1]
            + np.log(self._variance).sum()
        )
        return distance, log_det

    def _project(self, moment: Float[np.ndarray, "n p k"]) -> Float[np.ndarray, "n c t"]:
        """What the sensors measure of the patches, without noise."""
        currents = einsum(moment, self.course, "n p k, p k t -> n p t")
        measured: Float[np.ndarray, "n c t"] = self.lead_field @ currents
        return measured

    def _whiten(self, signal: Float[np.ndarray, "n c t"]) -> Float[np.ndarray, "n entries"]:
        """Change to the basis in which the entries of the noise are independent, with variance 1."""
        white: Float[np.ndarray, "n c t"] = self._u.T @ signal @ self._v / np.sqrt(self._variance)
        return rearrange(white, "n c t -> n (c t)")


def _draw_courses(latency: Float[np.ndarray, " p"]) -> Float[np.ndarray, "p k t"]:
    """Gamma functions: nothing before the onset, a smooth rise, a slower decay."""
    courses = []
    for (later_onset, later_peak), sharpness in zip(_DELAYS, _SHARPNESS, strict=True):
        onset = np.maximum(EARLIEST, 0.5 * latency) + later_onset
        relative = np.maximum(TIMES - onset[:, None], 0) / (latency + later_peak - onset)[:, None]
        courses.append((relative * np.exp(1 - relative)) ** sharpness)
    return np.stack(courses, axis=1)


def _tune(features: Features, patches: Patches, *, seed: int) -> Float[np.ndarray, "n p k"]:
    """Each patch's response to each picture in each component: over the pictures, mean 0 and SD 1."""
    components = len(_TUNED)
    place = (np.arange(16) + 0.5) * 4
    tuned = []
    for number, name in enumerate(AREAS):
        rng = np.random.default_rng([seed, _TUNING, number])
        maps, source = features.maps[name].astype(np.float64), f"patches of {name}"
        chosen = np.array(patches.area) == name
        x, y, width = patches.receptive_field[chosen].T[..., None]
        across = np.exp(-0.5 * ((place - x) / width) ** 2)
        right = np.array(patches.hemisphere)[chosen] == "right"
        own_side = (place > 32) == right[:, None]
        across *= np.where(own_side, CORTEX[name].ipsilateral, 1.0)
        down = np.exp(-0.5 * ((place - y) / width) ** 2)
        seen = np.einsum("ncyx,py,px->npc", maps, down, across, optimize=True)
        profiles = rng.standard_normal((maps.shape[1], _PROFILES))
        size = (int(chosen.sum()), _PROFILES, components)
        lasting, passing = rng.standard_normal((*size[:2], 1)), rng.standard_normal(size)
        own = np.sqrt(_LASTING) * lasting + np.sqrt(1 - _LASTING) * passing
        mixtures = np.sqrt(1 - _COHERENT) * own + np.sqrt(_COHERENT) * rng.standard_normal((1, *size[1:]))
        response = standardise(einsum(seen, profiles, mixtures, "n p c, c a, p a k -> n p k"), source)
        drive = standardise(seen.mean(axis=2, keepdims=True), source)
        response[..., :1] = np.sqrt(_DRIVE) * drive + np.sqrt(1 - _DRIVE) * response[..., :1]
        share = AREAS[name].category
        if share > 0:
            axes = rng.standard_normal((int(features.label.max()) + 1, 2 * _PROFILES))[features.label]
            weights = rng.standard_normal((2 * _PROFILES, int(chosen.sum()), components))
            preference = standardise(einsum(axes, weights, "n a, a p k -> n p k"), source)
            response = np.sqrt(1 - share) * response + np.sqrt(share) * preference
        tuned.append(standardise(response, source))
    return np.concatenate(tuned, axis=1)


def _temporal_correlations() -> tuple[Float[np.ndarray, "t t"], Float[np.ndarray, "t t"]]:
    """Of the background, 1/f above 0.5 Hz and three tenths white, and of a rhythm of 10 Hz, from their spectra."""
    frequency = np.linspace(0, SAMPLING_RATE / 2, 2001)
    lag_waves = np.cos(2 * np.pi * np.outer(TIMES - TIMES[0], frequency))
    background = lag_waves @ (1 / np.maximum(frequency, 0.5))
    alpha = lag_waves @ np.exp(-0.5 * ((frequency - 10) / 1.0) ** 2)
    ongoing = 0.7 * toeplitz(background / background[0]) + 0.3 * np.eye(len(TIMES))
    return ongoing, toeplitz(alpha / alpha[0])
