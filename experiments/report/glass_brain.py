"""Values of voxels where they lie: on a glass brain, or in three views without an outline."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from datamodules import BrainDataModule, DataModule, MultiModal
from datamodules.core.raw import Space

Array = NDArray[Any]
TEMPLATE = np.array([[-80, -115, -75], [80, 80, 90]])
"""Millimetres: a box around the MNI152 brain (nilearn's template spans -72..72, -107..73, -65..80)."""
OFF_ORIGIN = 10.0
"""Millimetres: visual cortex lies at least so far from the origin of a scanner's coordinates; where voxels surround the
origin, it is the middle of what was recorded and tells no place."""
VIEWS = ((1, 2, "from the right"), (0, 2, "from behind"), (0, 1, "from above"))
AXES = ("left - right (mm)", "back - front (mm)", "bottom - top (mm)")


@dataclass(frozen=True)
class Places:
    """Where the voxels of a person's samples lie.

    Attributes:
        coordinates: ``(V, 3)`` millimetres to the right, front and top.
        space: What they refer to.
    """

    coordinates: Float[np.ndarray, "v 3"]
    space: Space


def places_of(module: DataModule, subject: str) -> Places | str:
    """Return where the voxels of a person's samples lie, or why that is not known.

    Args:
        module: The data set; of several side by side the person is ``<part>-<name>``.
        subject: The person.
    """
    data: Any = module
    if isinstance(module, MultiModal):
        part, _, subject = subject.partition("-")
        data = module.divided[part]
    if not isinstance(data, BrainDataModule):
        return "the data set has no recordings"
    axes = data.store.axes(subject)
    if axes.coordinates is None or axes.space is None:
        return "the data set gives no coordinates of its voxels"
    kept = data.prepared[subject].kept
    if kept.index is None:
        return Places(axes.coordinates, axes.space)
    # of a time series, (V, T), whole voxels are kept
    samples = int(np.prod(data.store.signals(subject).shape[2:]))
    return Places(axes.coordinates[kept.index.reshape(kept.shape[0], -1)[:, 0] // samples], axes.space)


def has_outline(places: Places) -> bool:
    """Whether the outline of the template's brain tells where voxels lie, if only roughly."""
    if places.space == "MNI152":
        return True
    coordinates = places.coordinates
    inside = ((coordinates >= TEMPLATE[0]) & (coordinates <= TEMPLATE[1])).all(axis=1).mean() > 0.95
    middle = (coordinates.min(axis=0) + coordinates.max(axis=0)) / 2
    return bool(inside and np.linalg.norm(middle) > OFF_ORIGIN)


def draw_brain(values: Float[np.ndarray, " v"], places: Places, *, chance: float) -> bytes:
    """Draw values of voxels as PNG, the largest in front, with a scale from 0 to the 99th percentile.

    Voxels in the space of the template, or near it, are drawn within the outline of its brain; others in three views
    along the axes of their own space.

    Args:
        values: A value for each voxel; those that are not finite are left out.
        places: Where they lie.
        chance: Voxels up to this value are grey.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    known = np.isfinite(values)
    values, coordinates = values[known], places.coordinates[known]
    order = values.argsort()
    values, coordinates = values[order], coordinates[order]
    top = max(float(np.quantile(values, 0.99)), 1.25 * chance, 0.01)
    look = {"cmap": _colours(chance / top), "vmin": 0, "vmax": top}
    size = float(np.clip(8000 / len(values), 3, 30))
    figure = Figure(figsize=(9, 2.9), dpi=150)
    FigureCanvasAgg(figure)
    if has_outline(places):
        _draw_glass(figure, values, coordinates, look, size, places.space)
    else:
        _draw_views(figure, values, coordinates, look, size)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


def _colours(chance: float) -> Any:
    """Grey up to a share of the scale, then from light to dark."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    steps = 256
    grey = int(np.clip(round(chance * steps), 0, steps))
    dark = colormaps["viridis_r"](np.linspace(0.1, 1, steps - grey))
    return ListedColormap(np.vstack([np.tile([0.86, 0.86, 0.86, 1], (grey, 1)), dark]))


def _draw_glass(
    figure: Any, values: Array, coordinates: Array, look: dict[str, Any], size: float, space: Space
) -> None:
    from nilearn import plotting

    plotting.plot_markers(
        values,
        coordinates,
        node_size=size,
        **{f"node_{name}": value for name, value in look.items()},
        alpha=0.9,
        # each hemisphere alone where it is known which voxel lies in which
        display_mode="lyrz" if space == "MNI152" else "ortho",
        figure=figure,
        node_kwargs={"linewidths": 0},
    )


def _draw_views(figure: Any, values: Array, coordinates: Array, look: dict[str, Any], size: float) -> None:
    axes = figure.subplots(1, 4, width_ratios=[1, 1, 1, 0.05])
    points = None
    middle = (coordinates.min(axis=0) + coordinates.max(axis=0)) / 2
    half = 0.55 * np.ptp(coordinates, axis=0).max()
    for ax, (across, up, view) in zip(axes, VIEWS, strict=False):
        points = ax.scatter(*coordinates[:, [across, up]].T, c=values, s=size, linewidths=0, **look)
        ax.set_title(view, fontsize=9)
        ax.set_xlabel(AXES[across], fontsize=8)
        ax.set_ylabel(AXES[up], fontsize=8)
        # one scale in all views
        ax.set_xlim(middle[across] - half, middle[across] + half)
        ax.set_ylim(middle[up] - half, middle[up] + half)
        ax.set_aspect("equal")
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    figure.colorbar(points, cax=axes[-1]).ax.tick_params(labelsize=8)
    figure.tight_layout()
