"""Values of sensors on a head seen from above."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

Array = NDArray[Any]
MAPS = 6


def flatten(positions: Float[np.ndarray, "c 3"]) -> Float[np.ndarray, "c 2"]:
    """Lay sensors on a sphere out in the plane: nose up, the angle from the top as distance (azimuthal equidistant).

    The sphere is the one that fits the sensors best (least squares); its equator, 90 degrees from the top, has
    distance 1.

    Args:
        positions: Metres, head coordinates (right, front, top).
    """
    # |p|^2 = 2 c p + (r^2 - |c|^2) is linear in the centre c
    system = np.column_stack([2 * positions, np.ones(len(positions))])
    solution, _, rank, _ = np.linalg.lstsq(system, (positions**2).sum(axis=1))
    # sensors in a plane, or too few, fit spheres of any size
    centre = solution[:3] if rank == 4 else positions.mean(axis=0) * [1, 1, 0]
    x, y, z = (positions - centre).T
    angle = np.arctan2(np.hypot(x, y), z) / (np.pi / 2)
    azimuth = np.arctan2(y, x)
    return np.column_stack([angle * np.cos(azimuth), angle * np.sin(azimuth)])


def chosen_times(times: Array, score: Array) -> list[int]:
    """Which times are drawn: evenly from the first to the last, and the best one in place of its neighbour."""
    count = min(MAPS, len(times))
    even = np.unique(np.linspace(0, len(times) - 1, count).round().astype(int))
    best = int(score.argmax())
    even[np.abs(even - best).argmin()] = best
    return even.tolist()  # type: ignore[no-any-return]


def draw_topographies(positions: Array, pattern: Array, times: Array, score: Array) -> bytes:
    """Draw head maps of patterns ``(W, C)`` at some times (seconds from onset) as PNG, with one scale."""
    import mne
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = chosen_times(times, score)
    figure = Figure(figsize=(1.75 * len(chosen) + 0.6, 2.2), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(chosen) + 1, width_ratios=[1] * len(chosen) + [0.05], squeeze=False)[0]
    place = flatten(positions)
    image: Any = None
    for ax, window in zip(axes, chosen, strict=False):
        image, _ = mne.viz.plot_topomap(
            pattern[window],
            place,
            sphere=1.0,
            cmap="viridis",
            vlim=(0, float(pattern[chosen].max())),
            contours=0,
            axes=ax,
            show=False,
        )
        best = "best: " if window == int(score.argmax()) else ""
        ax.set_title(f"{best}{1000 * times[window]:.0f} ms\ntwo-way {score[window]:.3f}", fontsize=9)
    figure.colorbar(image, cax=axes[-1]).ax.tick_params(labelsize=8)
    axes[-1].set_box_aspect(15)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()
