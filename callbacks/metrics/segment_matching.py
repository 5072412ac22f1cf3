"""Time segment matching: is a moment of a story found by what other people's brains did?"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray


def match_segments(
    features: Float[NDArray[np.floating], "p s f"], *, neighbours: int, halves: int, seed: int
) -> Float[NDArray[np.float64], " h"]:
    """Share of moments found between two halves of the people, for some random divisions in two.

    In each half the features are averaged over its people, and centred over the moments. A moment of one half is
    found if, of all moments of the other, its own correlates best with it; moments that overlap it are no
    distractors. Averaged over both directions. Chance is 1 / (number of distractors + 1).

    After Haxby et al. (2011), A common, high-dimensional model of the representational space in human ventral temporal
    cortex, Neuron 72, 404-416 (movie segments), in the form of Manning et al. (2018), NeuroImage 180, 243-252 (halves
    of the people).

    Args:
        features: Features of each person (P) and moment (S), moments in their order in time.
        neighbours: Moments before and after one that overlap it.
        halves: Number of random divisions.
        seed: Seed of the divisions.

    Returns:
        The share for each division.

    Raises:
        ValueError: Fewer than 2 people, or fewer than 2 moments apart from the neighbours.
    """
    people, moments = features.shape[:2]
    if people < 2 or moments < neighbours + 2:
        raise ValueError(f"2 people and {neighbours + 2} moments are needed, found {people} and {moments}")
    apart = np.abs(np.subtract.outer(np.arange(moments), np.arange(moments)))
    overlapping = (apart > 0) & (apart <= neighbours)
    random = np.random.default_rng(seed)
    found = []
    for _ in range(halves):
        order = random.permutation(people)
        one, other = (_standardised(features[half].mean(axis=0)) for half in np.array_split(order, 2))
        correlation = np.where(overlapping, -np.inf, one @ other.T)
        best = [correlation.argmax(axis=axis) == np.arange(moments) for axis in (0, 1)]
        found.append(np.mean(best))
    return np.array(found)


def chance_of_matching(moments: int, neighbours: int) -> float:
    """Expected share without any information; moments near an end have fewer neighbours."""
    place = np.arange(moments)
    overlapping = np.minimum(place, neighbours) + np.minimum(moments - 1 - place, neighbours)
    return float(np.mean(1 / (moments - overlapping)))


def _standardised(features: Float[NDArray[np.floating], "s f"]) -> NDArray[np.float64]:
    x = features.astype(np.float64)
    x = x - x.mean(axis=0)
    x = x - x.mean(axis=1, keepdims=True)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    unit: NDArray[np.float64] = x / np.where(length > 0, length, 1)
    return unit
