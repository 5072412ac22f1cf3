"""Sensors and sources of EEG and MEG in a spherical head, and the lead fields between them.

Head coordinates: x to the right, y to the front, z up, in metres. The head is MNE's default sphere model: four
shells (brain, liquor, skull, scalp) around ``HEAD_CENTRE``; for MEG only the centre matters, since a sphere's
conductivity profile leaves no trace outside it (Sarvas 1987).

References:
    Sarvas (1987), Physics in Medicine and Biology 32: the magnetic field of a dipole in a sphere.
    Berg and Scherg (1994), Electroencephalography and Clinical Neurophysiology 90: potentials on a layered sphere.
    Oostenveld and Praamstra (2001), Clinical Neurophysiology 112: the 10-5 electrode system.
    Boto et al. (2018), Nature 555: magnetometers worn on the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
from einops import einsum, rearrange, repeat
from jaxtyping import Float

from datamodules.core.fmri_simulation import AREAS

Modality = Literal["eeg", "meg"]

HEAD_CENTRE: Final = (0.0, 0.0, 0.04)
"""Centre of the head in head coordinates, in metres: the default of MNE's sphere model.

MNE's topographic plots need ``sphere=(*HEAD_CENTRE, HEAD_RADIUS)``.
"""

HEAD_RADIUS: Final = 0.09
"""Radius of the scalp in metres."""

BRAIN_RADIUS: Final = 0.9 * HEAD_RADIUS
"""Radius of the innermost shell in metres; a source must lie inside."""

HELMET_RADIUS: Final = 0.115
"""Distance of the magnetometers from the head's centre in metres: 25 mm outside the scalp."""


@dataclass(frozen=True)
class Cortex:
    """Where an area lies and how it responds. Positions and orientations are those of the right hemisphere.

    Attributes:
        patches: Dipoles in each hemisphere.
        latency: Peak of the first component after the onset of the picture, in seconds.
        position: Middle of the area, in metres from the head's centre.
        orientation: Main direction of the currents.
        retinotopy: How far patches lie apart whose fields are half a picture apart, in metres: the periphery in
            front, the upper half of the picture below. Fields in upper and lower half also turn the current.
        evoked: Mean dipole moment of a patch in each component over all pictures, in nA m.
        ipsilateral: Weight of the half of the picture on the patches' own side.
    """

    patches: int
    latency: float
    position: tuple[float, float, float]
    orientation: tuple[float, float, float]
    retinotopy: float
    evoked: tuple[float, float, float]
    ipsilateral: float


CORTEX: Final = {
    "V1": Cortex(6, 0.095, (0.010, -0.064, 0.002), (-0.2, -0.6, 0.6), 0.008, (1.0, -0.8, 0.3), 0.0),
    "V2": Cortex(6, 0.105, (0.018, -0.062, 0.004), (0.2, -0.7, 0.5), 0.008, (1.4, -1.2, 0.3), 0.0),
    "V3": Cortex(5, 0.115, (0.036, -0.054, 0.006), (0.5, -0.6, 0.4), 0.006, (3.0, -1.8, 0.5), 0.05),
    "V4": Cortex(5, 0.140, (0.034, -0.050, -0.026), (0.5, -0.5, -0.5), 0.004, (-2.0, 0.8, -0.4), 0.2),
    "LOC": Cortex(5, 0.175, (0.050, -0.044, -0.010), (0.7, -0.4, -0.4), 0.003, (-4.0, 1.5, 1.5), 0.5),
}
"""The areas' cortex; latencies follow Di Russo et al. (2002), Foxe and Simpson (2002) and Cichy et al. (2014)."""

_ELECTRODES: Final = (
    "Fp1 Fpz Fp2 AF7 AF3 AFz AF4 AF8 F7 F5 F3 F1 Fz F2 F4 F6 F8 FT7 FC5 FC3 FC1 FCz FC2 FC4 FC6 FT8 "
    "T7 C5 C3 C1 Cz C2 C4 C6 T8 TP7 CP5 CP3 CP1 CPz CP2 CP4 CP6 TP8 P9 P7 P5 P3 P1 Pz P2 P4 P6 P8 P10 "
    "PO7 PO3 POz PO4 PO8 O1 Oz O2 Iz"
)
_MAGNETOMETERS: Final = 102  # as many places as a whole-head system of the usual kind has
_PATCH_FIELD: Final = 6.0  # SD of the receptive fields' centres within one patch, in pixels
_BACKGROUND_SOURCES: Final = 300
_ALPHA_SOURCES: Final = 12
_HELMET_RIM: Final = (15.0, -30.0)  # lowest elevation of the helmet in front (above the eyes) and behind, degrees


@dataclass(frozen=True)
class Sensors:
    """Where a recording is made.

    Attributes:
        names: C channel names.
        positions: ``(C, 3)`` head coordinates in metres.
    """

    names: tuple[str, ...]
    positions: Float[np.ndarray, "c 3"]


@dataclass(frozen=True)
class Patches:
    """The patches of cortex of one person, area by area, the left hemisphere first.

    Attributes:
        area: P names of areas.
        hemisphere: P times ``left`` or ``right``.
        position: ``(P, 3)`` head coordinates in metres.
        orientation: ``(P, 3)`` unit vectors.
        receptive_field: ``(P, 3)`` centre x, y and SD, in pixels.
        latency: ``(P,)`` peak of the first component in seconds.
    """

    area: tuple[str, ...]
    hemisphere: tuple[str, ...]
    position: Float[np.ndarray, "p 3"]
    orientation: Float[np.ndarray, "p 3"]
    receptive_field: Float[np.ndarray, "p 3"]
    latency: Float[np.ndarray, " p"]


def sensors(modality: Modality) -> Sensors:
    """Give the 64 electrodes of an extended 10-20 cap or the 102 point magnetometers of a helmet.

    Electrodes are those of MNE's 10-05 template head, moved along the line from its centre onto the scalp of the
    sphere; magnetometers are spread evenly and measure the radial field.

    Raises:
        ValueError: A modality other than ``eeg`` and ``meg``.
    """
    info = _measurement_info(modality)
    positions = np.stack([channel["loc"][:3] for channel in info["chs"]]).astype(np.float64)
    return Sensors(names=tuple(info.ch_names), positions=positions)


def lead_field(
    modality: Modality, *, positions: Float[np.ndarray, "s 3"], orientations: Float[np.ndarray, "s 3"]
) -> Float[np.ndarray, "c s"]:
    """What each sensor picks up of each current dipole; about 0.1 s, nearly whatever their number.

    Args:
        modality: ``eeg`` or ``meg``.
        positions: ``(S, 3)`` head coordinates in metres.
        orientations: ``(S, 3)``; their length scales the dipole.

    Returns:
        ``(C, S)``: volts against the average of all electrodes, or tesla of radial field (outwards positive), for a
        dipole of 1 A m.

    Raises:
        ValueError: An unknown modality, or a source outside the brain.
    """
    import mne

    distance = np.linalg.norm(positions - np.array(HEAD_CENTRE), axis=1)
    if np.any(distance >= BRAIN_RADIUS):
        raise ValueError(
            f"sources must lie within {BRAIN_RADIUS:.3f} m of the head's centre, one is {distance.max():.3f} m away"
        )
    info = _measurement_info(modality)
    source_space = mne.setup_volume_source_space(
        pos={"rr": positions, "nn": np.tile([0.0, 0.0, 1.0], (len(positions), 1))},
        sphere=_head_model(),
        mindist=0.0,  # sources close to the skull count: the default drops them without an error
        verbose="error",
    )
    forward = mne.make_forward_solution(
        info,
        trans=None,
        src=source_space,
        bem=_head_model(),
        meg=modality == "meg",
        eeg=modality == "eeg",
        verbose="error",
    )
    if forward["nsource"] != len(positions):
        raise ValueError(f"only {forward['nsource']} of {len(positions)} sources are inside the head model")
    along_axes = rearrange(forward["sol"]["data"], "c (s xyz) -> c s xyz", xyz=3)
    field: Float[np.ndarray, "c s"] = einsum(along_axes, orientations, "c s xyz, s xyz -> c s")
    return field - field.mean(axis=0) if modality == "eeg" else field


def draw_patches(rng: np.random.Generator) -> Patches:
    """Draw a person's visual cortex: areas lie and respond as in everyone, more or less."""
    area = [name for name, cortex in CORTEX.items() for _ in range(2 * cortex.patches)]
    side = np.concatenate([np.repeat([-1.0, 1.0], cortex.patches) for cortex in CORTEX.values()])
    # Fields lie in the half of the picture opposite to the hemisphere, in turns in its upper and lower quarter.
    spread = np.array([AREAS[name].spread for name in area])
    vertical = np.where(np.arange(len(area)) % 2 == 0, 1.0, -1.0)
    centre = np.clip(32 + np.abs(rng.normal(0, spread, size=(2, len(area)))) * [-side, vertical], 2, 62).T
    local = np.array([AREAS[name].field for name in area])
    width = np.hypot(local, _PATCH_FIELD) * np.exp(rng.normal(0, 0.2, size=len(area)))

    middle = np.array([CORTEX[name].position for name in area])
    retinotopy = np.array([CORTEX[name].retinotopy for name in area])[:, None]
    eccentricity, below = np.abs(centre[:, 0] / 32 - 1), centre[:, 1] / 32 - 1
    middle += retinotopy * np.stack([np.zeros(len(area)), eccentricity, below], axis=1)
    middle += rng.normal(0, 0.003, size=middle.shape).clip(-0.006, 0.006)  # no person's source leaves the brain
    middle[:, 0] = np.maximum(middle[:, 0], 0.003)  # nothing crosses to the other hemisphere
    direction = np.array([CORTEX[name].orientation for name in area])
    # The fields above and below the middle lie on opposite banks of a sulcus (cruciform model).
    direction[:, 2] += 40 * retinotopy[:, 0] * below
    direction += rng.normal(0, 0.3, size=direction.shape)
    mirror = np.stack([side, np.ones(len(area)), np.ones(len(area))], axis=1)

    sizes = [2 * cortex.patches for cortex in CORTEX.values()]
    shared, by_area = rng.normal(0, 0.003), np.repeat(rng.normal(0, 0.003, size=len(CORTEX)), sizes)
    latency = np.array([CORTEX[name].latency for name in area])
    return Patches(
        area=tuple(area),
        hemisphere=tuple("left" if s < 0 else "right" for s in side),
        position=np.array(HEAD_CENTRE) + mirror * middle,
        orientation=mirror * direction / np.linalg.norm(direction, axis=1, keepdims=True),
        receptive_field=np.concatenate([centre, width[:, None]], axis=1),
        latency=latency + shared + by_area + rng.normal(0, 0.003, size=len(area)),
    )


def background_covariance(modality: Modality, rng: np.random.Generator) -> Float[np.ndarray, "c c"]:
    """Covariance over sensors of many independent sources in the cortex of the whole brain; its median variance is 1.

    Sources lie 20 mm to 75 mm from the head's centre; their positions and orientations are drawn from ``rng``.
    """
    direction = rng.standard_normal((_BACKGROUND_SOURCES, 3))
    direction[:, 2] += 0.5  # the cerebrum lies in the upper part of the sphere
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    positions = np.array(HEAD_CENTRE) + rng.uniform(0.020, 0.075, size=(_BACKGROUND_SOURCES, 1)) * direction
    return _covariance(modality, positions, rng.standard_normal(positions.shape))


def alpha_covariance(modality: Modality, rng: np.random.Generator) -> Float[np.ndarray, "c c"]:
    """The same of a few sources around the parieto-occipital sulcus of both hemispheres: the alpha rhythm."""
    side = repeat(np.array([-1.0, 1.0]), "side -> (n side) 1", n=_ALPHA_SOURCES // 2)
    mirror = np.concatenate([side, np.ones((_ALPHA_SOURCES, 2))], axis=1)
    positions = np.array(HEAD_CENTRE) + np.array([0.018, -0.055, 0.022]) * mirror
    positions += rng.normal(0, 0.008, size=positions.shape).clip(-0.010, 0.010)
    orientations = np.array([0.0, -0.5, 0.5]) + rng.normal(0, 0.5, size=positions.shape)
    return _covariance(modality, positions, orientations)


def _covariance(
    modality: Modality, positions: Float[np.ndarray, "s 3"], orientations: Float[np.ndarray, "s 3"]
) -> Float[np.ndarray, "c c"]:
    field = lead_field(modality, positions=positions, orientations=orientations)
    covariance: Float[np.ndarray, "c c"] = field @ field.T
    covariance /= np.median(np.diagonal(covariance))
    return covariance


@lru_cache
def _head_model() -> Any:
    """The four shells; cached, since the fit of the potentials' series takes a while."""
    import mne

    return mne.make_sphere_model(r0=HEAD_CENTRE, head_radius=HEAD_RADIUS, verbose="error")


@lru_cache
def _measurement_info(modality: Modality) -> Any:
    """MNE's description of the sensors."""
    if modality == "eeg":
        return _eeg_info()
    if modality == "meg":
        return _meg_info()
    raise ValueError(f"modality must be 'eeg' or 'meg', got {modality!r}")


def _eeg_info() -> Any:
    import mne

    # The 10-05 template was renamed in MNE 1.13; the old name warns there, the new one is unknown before.
    names = ("colin27_1005", "standard_1005")
    template = next(name for name in names if name in mne.channels.get_builtin_montages())
    info = mne.create_info(_ELECTRODES.split(), sfreq=100.0, ch_types="eeg", verbose="error")
    info.set_montage(mne.channels.make_standard_montage(template), verbose="error")
    _, centre, _ = mne.bem.fit_sphere_to_headshape(info, dig_kinds="eeg", units="m", verbose="error")
    template_positions = np.stack([channel["loc"][:3] for channel in info["chs"]]) - centre
    directions = template_positions / np.linalg.norm(template_positions, axis=1, keepdims=True)
    positions = np.array(HEAD_CENTRE) + HEAD_RADIUS * directions
    montage = mne.channels.make_dig_montage(dict(zip(info.ch_names, positions, strict=True)), coord_frame="head")
    return info.set_montage(montage, verbose="error")


def _meg_info() -> Any:
    import mne
    from mne.io.constants import FIFF

    front, back = np.deg2rad(_HELMET_RIM)
    tilt = (front - back) / 2  # the plane through both ends of the rim, tilted backwards
    lowest = np.sin((front + back) / 2)
    # A Fibonacci lattice on the cap above that plane: equal areas along the axis, the golden angle around it.
    index = np.arange(_MAGNETOMETERS)
    height = lowest + (1 - lowest) * (index + 0.5) / _MAGNETOMETERS
    angle = index * np.pi * (3 - np.sqrt(5))
    ring = np.sqrt(1 - height**2)
    across, along = ring * np.cos(angle), ring * np.sin(angle)
    directions = np.stack(
        [across, np.cos(tilt) * along - np.sin(tilt) * height, np.sin(tilt) * along + np.cos(tilt) * height], axis=1
    )
    directions = directions[np.argsort(-directions[:, 1].round(2), kind="stable")]  # numbered from front to back
    names = [f"MEG{number:03d}" for number in range(1, _MAGNETOMETERS + 1)]
    info = mne.create_info(names, sfreq=100.0, ch_types="mag", verbose="error")
    info["dev_head_t"] = mne.transforms.Transform("meg", "head")  # the helmet's coordinates are the head's
    for channel, direction in zip(info["chs"], directions, strict=True):
        # The coil's axes follow its position; the last one is what it measures along.
        first = np.cross([0.0, 1.0, 0.0], direction)
        first /= np.linalg.norm(first)
        position = np.array(HEAD_CENTRE) + HELMET_RADIUS * direction
        channel["loc"] = np.concatenate([position, first, np.cross(direction, first), direction])
        channel["coil_type"] = FIFF.FIFFV_COIL_POINT_MAGNETOMETER
        channel["coord_frame"] = FIFF.FIFFV_COORD_DEVICE
    return info
