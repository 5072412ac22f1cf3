"""Simulated fMRI of people who look at pictures, with everything known that recordings hide.

A picture passes through a hierarchy of visual areas (`visual_features`, the same for all people). A voxel
reads its area through a Gaussian receptive field and its own mixture of channels; a trial adds noise of
known covariance, and every session has its own gain and baseline::

    recorded = offset[session] + gain[session] * (response[stimulus] + noise)

Since all of this is known, so are the noise ceiling and the best possible decoder (`FMRISimulation.oracle`).

References:
    Adelson and Bergen (1985), J. Opt. Soc. Am. A 2: energy of Gabor filters (V1).
    Heeger (1992), Visual Neuroscience 9: divisive normalisation.
    Freeman and Simoncelli (2011), Nature Neuroscience 14: V2 reads combinations of V1 energies.
    Dumoulin and Wandell (2008), NeuroImage 39: population receptive fields, growing along the hierarchy.
    Allen et al. (2022), Nature Neuroscience 25: noise ceiling signal-to-noise ratio (ncsnr).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from jaxtyping import Float, Float32, Int, UInt8
from torch import Tensor

from datamodules.core.simulation import Simulation, draw_session, standardise


@dataclass(frozen=True)
class Area:
    """What makes a visual area.

    Attributes:
        voxels: Number of voxels of an average person.
        field: Median SD of the voxels' Gaussian receptive fields, in pixels of a 64-pixel picture.
        spread: SD of the receptive fields' centres around the middle of the picture, in pixels.
        ncsnr: Median signal SD / noise SD of one trial over responsive voxels.
        category: Share of the signal variance that depends on the class of the object alone.
    """

    voxels: int
    field: float
    spread: float
    ncsnr: float
    category: float = 0.0


AREAS: Final = {
    "V1": Area(voxels=150, field=5.0, spread=15.0, ncsnr=0.32),
    "V2": Area(voxels=120, field=7.0, spread=14.0, ncsnr=0.26),
    "V3": Area(voxels=100, field=10.0, spread=13.0, ncsnr=0.24),
    "V4": Area(voxels=100, field=14.0, spread=11.0, ncsnr=0.22),
    "LOC": Area(voxels=130, field=24.0, spread=8.0, ncsnr=0.20, category=0.4),
}
"""The simulated areas, in the order of the voxels."""

UNSATURATED_SNR: Final = 0.25
"""Factor ``snr`` at which even the best decoder errs on averages of six trials.

At 1.0, 600 voxels with known tuning leave no doubt about which of 80 pictures was seen; at this factor
about one in ten is missed.
"""

_PROFILES: Final = 4  # a voxel averages over so many neurons that only a few axes of tuning survive
_UNRESPONSIVE: Final = 0.1  # share of voxels whose signal is a twentieth
_SHARED: Final = 0.3  # share of the noise variance that voxels have in common
_FACTORS: Final = 2  # shared sources of noise of each area, and as many of the whole brain
_GRID: Final = 16  # feature maps have 16 x 16 places, each 4 x 4 pixels
_HIERARCHY_SEED: Final = 20140  # the random filters of V2 and above; part of the model, not of a person
_TUNING, _NOISE, _SESSION, _TRIALS = range(4)  # a person's streams of random numbers: second word of the seed


@dataclass(frozen=True)
class Features:
    """What each area makes of each picture, before any person's voxels.

    Attributes:
        maps: By area, ``(N, channels, 16, 16)`` float32, not negative.
        label: ``(N,)`` class of each picture.
    """

    maps: Mapping[str, Float32[np.ndarray, "n c h w"]]
    label: Int[np.ndarray, " n"]


def visual_features(images: UInt8[np.ndarray, "n h w c"], labels: Sequence[int] | Int[np.ndarray, " n"]) -> Features:
    """Pass pictures through the hierarchy; about 2 s for 560.

    Args:
        images: ``(N, 64, 64, 3)`` uint8, RGB.
        labels: N classes; tune voxels of areas with a share of category signal.

    Returns:
        The maps of every area. Those of one picture do not depend on the others.

    Raises:
        ValueError: The pictures are not 64 x 64 RGB in uint8, or there is not one label for each.
    """
    label = np.asarray(labels, dtype=np.int64)
    if images.dtype != np.uint8 or images.shape[1:] != (64, 64, 3):
        raise ValueError(f"images must be uint8 (N, 64, 64, 3), got {images.dtype} {images.shape}")
    if label.shape != images.shape[:1]:
        raise ValueError(f"one label for each of {len(images)} images is needed, got shape {label.shape}")
    rng = np.random.default_rng(_HIERARCHY_SEED)
    sizes = {"V2": 42, "V3": 48, "V4": 48, "LOC hidden": 56, "LOC": 48}  # channels that each one reads
    filters = {
        name: torch.from_numpy(rng.standard_normal((48, size, 3, 3)) / np.sqrt(9 * size)).float()
        for name, size in sizes.items()
    }
    chunks: dict[str, list[Tensor]] = {name: [] for name in AREAS}
    with torch.no_grad():
        for chunk in np.array_split(images, max(1, len(images) // 64)):
            pixels = torch.from_numpy(np.ascontiguousarray(chunk)).float() / 255
            opponent = einsum(_OPPONENT, pixels, "plane rgb, n h w rgb -> n plane h w")
            v1 = _energy(opponent)
            v2 = _recombine(v1, filters["V2"])
            v3 = _recombine(v2, filters["V3"])
            v4 = torch.cat([_recombine(_spread(v3, 2), filters["V4"]), _hue(opponent)], dim=1)
            loc = _recombine(_spread(_recombine(_spread(v4, 2), filters["LOC hidden"]), 4), filters["LOC"])
            for name, maps in zip(AREAS, (v1, v2, v3, v4, loc), strict=True):
                chunks[name].append(maps)
    return Features(maps={name: torch.cat(maps).numpy() for name, maps in chunks.items()}, label=label)


_ENERGY_GAIN: Final = 0.7  # weight of local contrast beside local luminance and colour
# Luminance, red - green, blue - yellow.
_OPPONENT: Final = torch.tensor([[0.3, 0.59, 0.11], [0.7, -0.7, 0.0], [-0.35, -0.35, 0.7]])


def _energy(opponent: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 42 16 16"]:
    """V1: Gabor energy in 4 orientations x 3 scales of each opponent plane, and its rectified average."""
    axis = torch.arange(-5, 6).float()
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    bank = []
    for angle in torch.arange(4) * torch.pi / 4:
        wave = 2 * torch.pi / 5 * (torch.cos(angle) * x + torch.sin(angle) * y)
        envelope = torch.exp(-(x**2 + y**2) / (2 * 2.2**2))
        for carrier in (torch.cos(wave), torch.sin(wave)):
            gabor = envelope * (carrier - (envelope * carrier).sum() / envelope.sum())
            bank.append(gabor / gabor.abs().sum())
    filters = torch.stack(bank)[:, None]
    channels = []
    for plane in range(3):
        level = opponent[:, plane : plane + 1]
        for _ in range(3):  # the same filters on a picture half as large see a wavelength twice as long
            pair = F.conv2d(F.pad(level, (5, 5, 5, 5), mode="replicate"), filters)
            pair = rearrange(pair, "n (angle phase) h w -> n angle phase h w", phase=2)
            energy = pair.square().sum(dim=2).add(1e-6).sqrt()
            channels.append(_ENERGY_GAIN * F.adaptive_avg_pool2d(energy, _GRID))
            level = F.avg_pool2d(level, 2)
    mean = F.adaptive_avg_pool2d(opponent, _GRID) - torch.tensor([0.45, 0.0, 0.0])[:, None, None]
    return torch.cat([*channels, F.relu(mean), F.relu(-mean)], dim=1)


def _recombine(maps: Float[Tensor, "n c h w"], filters: Float[Tensor, "d c k k"]) -> Float[Tensor, "n d h w"]:
    """Divisive normalisation over channels, fixed random convolution, rectification."""
    level = reduce(maps, "n c h w -> n 1 1 1", "mean")
    normalised = maps / (0.5 * level + maps.mean(dim=1, keepdim=True))
    balanced = filters - filters.mean(dim=(1, 2, 3), keepdim=True)
    return F.relu(F.conv2d(F.pad(normalised, (1, 1, 1, 1), mode="replicate"), balanced))


def _spread(maps: Float[Tensor, "n c h w"], factor: int) -> Float[Tensor, "n c h w"]:
    """Blur over ``factor`` places: the next convolution sees a wider piece of the picture."""
    return F.interpolate(F.avg_pool2d(maps, factor), scale_factor=factor, mode="nearest")


def _hue(opponent: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 8 16 16"]:
    """Eight channels, each tuned to a direction in the colour plane."""
    angle = torch.arange(8) * torch.pi / 4
    direction = torch.stack([torch.cos(angle), torch.sin(angle)], dim=1)
    tuned = einsum(direction, opponent[:, 1:], "hue plane, n plane h w -> n hue h w")
    return F.adaptive_avg_pool2d(F.relu(tuned - 0.05), _GRID)


class FMRISimulation(Simulation):
    """One person: voxels tuned to the features of a set of pictures, their noise and their sessions.

    Attributes:
        rois: Area -> number of voxels, in the order of the voxels.
        receptive_field: ``(V, 3)`` centre x, y and SD of each voxel's receptive field, in pixels.
        response: ``(N, V)`` float64, noise-free response to each picture; over the pictures every voxel
            has mean 0 and SD ``signal_sd``.
        signal_sd: ``(V,)``.
        ncsnr: ``(V,)`` true signal SD / noise SD of one trial.
        independent: ``(V,)`` variance of the noise that each voxel has for itself.
        shared: ``(V, K)`` loadings of the noise that voxels have in common. The covariance of the noise
            of one trial is ``diag(independent) + shared @ shared.T``.
    """

    def __init__(
        self, features: Features, *, seed: int, voxels: Mapping[str, int] | None = None, snr: float = 1.0
    ) -> None:
        """Draw a person.

        Args:
            features: The pictures that the person may see, passed through the hierarchy.
            seed: Which person.
            voxels: Number of voxels by area; None draws numbers within 10 % of those of ``AREAS``.
            snr: Factor on every voxel's ncsnr (see ``UNSATURATED_SNR``); 0.0 leaves the noise alone.

        Raises:
            ValueError: Areas other than those of ``AREAS``, a negative seed or snr, or pictures all alike.
        """
        if seed < 0 or snr < 0:
            raise ValueError(f"seed and snr must not be negative, got seed={seed}, snr={snr}")
        rng = np.random.default_rng([seed, _TUNING])
        sizes = {name: round(area.voxels * rng.uniform(0.9, 1.1)) for name, area in AREAS.items()}
        self.rois: dict[str, int] = sizes if voxels is None else dict(voxels)
        if list(self.rois) != list(AREAS) or min(self.rois.values()) < 1:
            raise ValueError(f"voxels must name {', '.join(AREAS)} in this order, at least 1 each: {self.rois}")
        self.seed = seed
        # One generator for each area: the voxels of one do not change with the number of those before.
        streams = {name: np.random.default_rng([seed, _TUNING, i]) for i, name in enumerate(AREAS)}
        tuned = [_tune(features, name, count, streams[name]) for name, count in self.rois.items()]
        fields, responses, ratios = zip(*tuned, strict=True)
        self.receptive_field: Float[np.ndarray, "v 3"] = np.concatenate(fields)
        ncsnr = np.concatenate(ratios)

        rng = np.random.default_rng([seed, _NOISE])
        noise_sd = np.exp(rng.normal(0.0, 0.2, size=len(ncsnr)))
        self.independent: Float[np.ndarray, " v"] = (1 - _SHARED) * noise_sd**2
        self.shared: Float[np.ndarray, "v k"] = np.sqrt(_SHARED) * noise_sd[:, None] * self._draw_factors(rng)
        self.ncsnr: Float[np.ndarray, " v"] = snr * ncsnr
        self.signal_sd: Float[np.ndarray, " v"] = self.ncsnr * noise_sd
        self.response: Float[np.ndarray, "n v"] = np.concatenate(responses, axis=1) * self.signal_sd
        # Baselines are large beside a typical voxel's signal, silent voxels and snr = 0 included.
        typical = np.concatenate([np.full(count, AREAS[name].ncsnr) for name, count in self.rois.items()])
        self._baseline_unit: Float[np.ndarray, " v"] = typical * noise_sd

    def session(self, number: int) -> tuple[Float[np.ndarray, " v"], Float[np.ndarray, " v"]]:
        """Give the gain and the offset of every voxel in session ``number``, from 0 without an upper end.

        Returns:
            Gain ``(V,)``, log-normal with 15 % spread, and offset ``(V,)``, 3 to 10 typical signal SDs (at
            ``snr=1``) of the voxel's area to either side.
        """
        rng = np.random.default_rng([self.seed, _SESSION, number])
        gain, offset = draw_session(rng, len(self.ncsnr), spread=0.15, distances=(3.0, 10.0))
        return gain, offset * self._baseline_unit

    def _draw_noise(self, count: int, seed: int) -> Float[np.ndarray, "n v"]:
        rng = np.random.default_rng([self.seed, _TRIALS, seed])
        voxels, factors = self.shared.shape
        noise: Float[np.ndarray, "n v"] = rng.standard_normal((count, voxels)) * np.sqrt(self.independent)
        noise += rng.standard_normal((count, factors)) @ self.shared.T
        return noise

    def _distance(
        self, signal: Float[np.ndarray, "n v"], candidates: Int[np.ndarray, " g"]
    ) -> tuple[Float[np.ndarray, "n g"], float]:
        """By the Woodbury identity."""
        factors = self.shared.shape[1]
        scaled = self.shared / self.independent[:, None]
        lower = np.linalg.cholesky(np.eye(factors) + self.shared.T @ scaled)
        # precision = diag(1 / independent) - correction.T @ correction
        correction = np.linalg.solve(lower, scaled.T)
        log_det = np.log(self.independent).sum() + 2 * np.log(np.diag(lower)).sum()

        mean = self.response[candidates]
        weighted_mean = mean / self.independent - (mean @ correction.T) @ correction
        own = (signal**2 / self.independent).sum(axis=1) - ((signal @ correction.T) ** 2).sum(axis=1)
        distance = own[:, None] - 2 * signal @ weighted_mean.T + (mean * weighted_mean).sum(axis=1)
        return distance, log_det

    def _draw_factors(self, rng: np.random.Generator) -> Float[np.ndarray, "v k"]:
        """Rows of length 1; neighbours in the visual field are alike, within areas and in the whole brain."""
        edges = np.cumsum([0, *self.rois.values()])
        x, y = self.receptive_field[:, 0] / 32 - 1, self.receptive_field[:, 1] / 32 - 1
        columns = []
        for start, stop in [(0, edges[-1]), *pairwise(edges)]:
            for _ in range(_FACTORS):
                a, b, phase = rng.normal(0, 2.0), rng.normal(0, 2.0), rng.uniform(0, 2 * np.pi)
                wave = np.zeros(len(x))
                wave[start:stop] = np.cos(a * x + b * y + phase)[start:stop]
                columns.append(wave)
        loadings: Float[np.ndarray, "v k"] = np.stack(columns, axis=1)
        loadings /= np.linalg.norm(loadings, axis=1, keepdims=True)
        return loadings


def _tune(
    features: Features, name: str, count: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "v 3"], Float[np.ndarray, "n v"], Float[np.ndarray, " v"]]:
    """Receptive fields of an area's voxels, their standardised responses and their ncsnr."""
    area, maps, source = AREAS[name], features.maps[name], f"voxels of {name}"
    centre = np.clip(32 + rng.normal(0, area.spread, size=(count, 2)), 0, 64)
    width = area.field * np.exp(rng.normal(0, 0.2, size=count))
    place = (np.arange(_GRID) + 0.5) * 64 / _GRID
    across = np.exp(-0.5 * ((place - centre[:, :1]) / width[:, None]) ** 2)
    down = np.exp(-0.5 * ((place - centre[:, 1:]) / width[:, None]) ** 2)
    across, down = (part / part.sum(axis=1, keepdims=True) for part in (across, down))
    profiles = rng.standard_normal((maps.shape[1], _PROFILES))
    mixture = rng.standard_normal((_PROFILES, count))
    profile_maps = einsum(maps.astype(np.float64), profiles, "n c y x, c p -> n p y x")
    response = np.einsum("npyx,vy,vx,pv->nv", profile_maps, down, across, mixture, optimize=True)
    response = standardise(response, source)
    if area.category > 0:
        # Classes lie in a space of few axes, as animacy and size do for real objects.
        class_axes = rng.standard_normal((int(features.label.max()) + 1, 2 * _PROFILES))[features.label]
        preference = standardise(class_axes @ rng.standard_normal((2 * _PROFILES, count)), source)
        response = np.sqrt(1 - area.category) * response + np.sqrt(area.category) * preference
        response = standardise(response, source)
    # Log-normal around the area's median; some voxels hardly respond.
    silent = rng.uniform(size=count) < _UNRESPONSIVE
    ncsnr = area.ncsnr * np.exp(rng.normal(0, 0.5, size=count)) * np.where(silent, 0.05, 1.0)
    return np.concatenate([centre, width[:, None]], axis=1), response, ncsnr
