import importlib.util
import sys
from typing import Literal

import numpy as np
import pytest

from datamodules.core import lead_fields
from datamodules.core.lead_fields import (
    BRAIN_RADIUS,
    CORTEX,
    HEAD_CENTRE,
    HEAD_RADIUS,
    HELMET_RADIUS,
    alpha_covariance,
    background_covariance,
    draw_patches,
    lead_field,
    sensors,
)

BOTH = pytest.mark.parametrize("modality", ["eeg", "meg"])
CENTRE = np.array(HEAD_CENTRE)


def sarvas(sensor: np.ndarray, source: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Field of a dipole in a conducting sphere around the origin, equation 25 of Sarvas (1987)."""
    a_vector = sensor - source
    a, r = np.linalg.norm(a_vector), np.linalg.norm(sensor)
    f = a * (r * a + r**2 - source @ sensor)
    gradient = (a**2 / r + a_vector @ sensor / a + 2 * a + 2 * r) * sensor
    gradient = gradient - (a + 2 * r + a_vector @ sensor / a) * source
    cross = np.cross(moment, source)
    return 1e-7 * (f * cross - (cross @ sensor) * gradient) / f**2


def test_electrodes_carry_standard_names_and_lie_on_the_scalp_where_these_say() -> None:
    eeg = sensors("eeg")
    assert len(set(eeg.names)) == len(eeg.names) == len(eeg.positions) == 64
    at = dict(zip(eeg.names, (eeg.positions - CENTRE) / HEAD_RADIUS, strict=True))
    np.testing.assert_allclose(np.linalg.norm(list(at.values()), axis=1), 1, atol=1e-6)
    for name, direction in {"Cz": (0, 0.1, 1), "Oz": (0, -1, 0.2), "Fpz": (0, 1, -0.1), "T7": (-1, 0, -0.1)}.items():
        assert at[name] @ np.array(direction) > 0.97, name
    assert at["PO8"][0] > 0.3
    assert at["PO8"][1] < -0.5
    np.testing.assert_allclose(at["PO7"] * [-1, 1, 1], at["PO8"], atol=0.06)


def test_magnetometers_surround_the_head_evenly_but_leave_the_face_free() -> None:
    meg = sensors("meg")
    assert len(set(meg.names)) == len(meg.names) == 102
    direction = (meg.positions - CENTRE) / HELMET_RADIUS
    np.testing.assert_allclose(np.linalg.norm(direction, axis=1), 1, atol=1e-6)
    assert 0.02 <= HELMET_RADIUS - HEAD_RADIUS <= 0.03
    gap = np.linalg.norm(meg.positions[:, None] - meg.positions, axis=2)
    nearest = np.sort(gap, axis=1)[:, 1]
    assert nearest.min() > 0.6 * nearest.max()
    assert direction[direction[:, 1] > 0.8, 2].min() > 0.1  # above the eyes
    assert direction[direction[:, 1] < -0.8, 2].min() < -0.4  # below the inion
    assert abs(direction[:, 0].mean()) < 0.02


def test_magnetometers_measure_the_radial_field_of_sarvas() -> None:
    source, moment = np.array([0.025, -0.055, 0.01]), np.array([0.4, 0.7, -0.6])
    positions = sensors("meg").positions - CENTRE
    expected = [sarvas(at, source, moment) @ at / np.linalg.norm(at) for at in positions]
    actual = lead_field("meg", positions=(source + CENTRE)[None], orientations=moment[None])[:, 0]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert 1e-14 < np.abs(actual).max() * 10e-9 < 1e-12  # tesla of 10 nA m


def test_radial_sources_are_silent_in_meg_but_not_in_eeg() -> None:
    radial = np.array([[0.04, -0.05, 0.02], [0.0, 0.03, 0.06]])
    tangential = np.cross(radial, [0.0, 0.3, 1.0])
    silent, loud = (
        np.abs(lead_field("meg", positions=radial + CENTRE, orientations=o)).max() for o in (radial, tangential)
    )
    assert silent < 1e-9 * loud
    potentials = np.abs(lead_field("eeg", positions=radial + CENTRE, orientations=radial / 0.067)).max(axis=0)
    assert np.all((potentials * 10e-9 > 5e-7) & (potentials * 10e-9 < 2e-5))  # volts of 10 nA m


def test_potentials_refer_to_the_average_and_peak_above_a_radial_source() -> None:
    eeg = sensors("eeg")
    under = np.array([eeg.positions[eeg.names.index(name)] for name in ("PO8", "Cz", "O1")]) - CENTRE
    unit = under / HEAD_RADIUS
    field = lead_field("eeg", positions=CENTRE + 0.07 * unit, orientations=unit)
    np.testing.assert_allclose(field.mean(axis=0), 0, atol=1e-12 * np.abs(field).max())
    assert [eeg.names[i] for i in field.argmax(axis=0)] == ["PO8", "Cz", "O1"]
    np.testing.assert_allclose(
        lead_field("eeg", positions=CENTRE + 0.07 * unit, orientations=-2 * unit), -2 * field, rtol=1e-12
    )


def test_people_have_the_same_areas_in_both_hemispheres_at_places_and_times_of_their_own() -> None:
    people = [draw_patches(np.random.default_rng(seed)) for seed in range(200)]
    assert len(people[0].area) == 2 * sum(cortex.patches for cortex in CORTEX.values())
    side = np.where(np.array(people[0].hemisphere) == "left", -1, 1)
    for person in people:
        local = person.position - CENTRE
        assert np.all(np.linalg.norm(local, axis=1) < BRAIN_RADIUS)
        assert np.all(local[:, 0] * side > 0)
        assert np.all(local[:, 1] < -0.025)  # the back of the head
        assert np.all((person.receptive_field[:, 0] - 32) * side < 0)  # the opposite half of the picture
    np.testing.assert_allclose(np.linalg.norm(people[0].orientation, axis=1), 1)
    assert 0.001 < np.linalg.norm(people[0].position - people[1].position, axis=1).mean() < 0.02
    area = np.array(people[0].area)
    latency = [np.mean([person.latency[area == name].mean() for person in people]) for name in CORTEX]
    np.testing.assert_allclose(latency, [0.095, 0.105, 0.115, 0.140, 0.175], atol=0.001)


@BOTH
def test_background_is_everywhere_and_alpha_at_the_back(modality: Literal["eeg", "meg"]) -> None:
    y = sensors(modality).positions[:, 1]
    background = background_covariance(modality, np.random.default_rng(0))
    alpha = alpha_covariance(modality, np.random.default_rng(0))
    for covariance in (background, alpha):
        assert np.median(np.diag(covariance)) == pytest.approx(1)
        np.testing.assert_allclose(covariance, covariance.T, rtol=1e-9)
    assert np.linalg.matrix_rank(background, tol=1e-6) >= len(y) - 20
    assert np.linalg.matrix_rank(alpha, tol=1e-6) <= 12
    front, back = (y > 0.03), (y < -0.03)
    assert np.diag(alpha)[back].mean() > 4 * np.diag(alpha)[front].mean()
    assert np.diag(background)[back].mean() < 2 * np.diag(background)[front].mean()


def test_a_source_outside_the_brain_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.085 m away"):
        lead_field("eeg", positions=CENTRE + np.array([[0.0, 0.0, 0.085]]), orientations=np.ones((1, 3)))


def test_an_unknown_modality_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # A second copy of the module, without the type checker of the tests, which would step in first.
    spec = importlib.util.spec_from_file_location("bare_lead_fields", lead_fields.__file__)
    bare = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bare_lead_fields", bare)
    spec.loader.exec_module(bare)
    with pytest.raises(ValueError, match="modality must be 'eeg' or 'meg', got 'ecog'"):
        bare.sensors("ecog")
