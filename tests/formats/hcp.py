"""Writes people of the Human Connectome Project, only smaller: ``.npz`` of areas, or CIFTI with a parcellation."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.cifti2 import cifti2, cifti2_axes

Array = np.ndarray[Any, Any]
VERTICES = 60
AREAS = ("V1", "V2", "V3", "V4", "MT")
LEFT, RIGHT = "CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT"
SIZES = {"V1": 9, "V2": 7, "V3": 5, "V4": 4}
RUN = "rfMRI_REST1_LR"


def arrays(person: int, *, volumes: int = 40, sizes: dict[str, int] | None = None) -> dict[str, Array]:
    """Areas of one person, ``(T, n)`` each."""
    random = np.random.default_rng([person, 11])
    used = SIZES if sizes is None else sizes
    return {name: 3 + person + random.standard_normal((volumes, size)) for name, size in used.items()}


def write_npz(root: Path, *, people: int = 3, **options: Any) -> Path:
    """Write ``<person>/HCP_visual_voxel.npz`` below ``root``."""
    for person in range(people):
        folder = root / f"{100 + person}"
        folder.mkdir(parents=True)
        np.savez(folder / "HCP_visual_voxel.npz", **arrays(person, **options))
    return root


def grayordinates(*, medial_wall: bool = False, volumes: bool = True) -> cifti2_axes.BrainModelAxis:
    """Both surfaces, without every seventh vertex (the medial wall) unless asked, and a few voxels of an accumbens."""
    vertices = np.arange(VERTICES) if medial_wall else np.flatnonzero(np.arange(VERTICES) % 7)
    axis = cifti2_axes.BrainModelAxis.from_surface(vertices, VERTICES, name=LEFT)
    axis = axis + cifti2_axes.BrainModelAxis.from_surface(vertices, VERTICES, name=RIGHT)
    if volumes:
        inside = np.zeros((3, 3, 3), bool)
        inside[0, :2, 1] = True
        axis = axis + cifti2_axes.BrainModelAxis.from_mask(
            inside, name="CIFTI_STRUCTURE_ACCUMBENS_LEFT", affine=np.eye(4)
        )
    return axis


def vertex_keys() -> dict[str, Array]:
    """Key of the area of each vertex: the right side has keys 1 to 5, the left 6 to 10; the last ones have none."""
    area = np.minimum(np.arange(VERTICES) // 11, len(AREAS))
    keys = np.where(area < len(AREAS), area + 1, 0)
    return {RIGHT: keys, LEFT: np.where(keys > 0, keys + len(AREAS), 0)}


def write_dlabel(path: Path, *, medial_wall: bool = False) -> Path:
    """Write the parcellation, on the cortex only."""
    models = grayordinates(medial_wall=medial_wall, volumes=False)
    keys = np.concatenate([vertex_keys()[name][model.vertex] for name, _, model in models.iter_structures()])
    table = {0: ("???", (0.0, 0.0, 0.0, 0.0))}
    for side, offset in (("R", 1), ("L", 1 + len(AREAS))):
        table |= {i + offset: (f"{side}_{name}_ROI", (0.5, 0.5, 0.5, 1.0)) for i, name in enumerate(AREAS)}
    labels = cifti2_axes.LabelAxis(["areas"], [table])
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(cifti2.Cifti2Image(keys[None].astype(np.float32), (labels, models)), path)  # type: ignore[no-untyped-call]
    return path


def series(person: int, *, volumes: int = 40, columns: int = 104, seed: int = 0) -> Array:
    """A recording ``(T, grayordinates)``."""
    return np.random.default_rng([person, 5, seed]).standard_normal((volumes, columns)).astype(np.float32)


def save_series(path: Path, data: Array, models: cifti2_axes.BrainModelAxis, *, step: float = 0.72) -> None:
    """Write a recording ``(T, grayordinates)``, a volume every ``step`` seconds."""
    axes = (cifti2_axes.SeriesAxis(0, step, len(data)), models)
    nibabel.save(cifti2.Cifti2Image(data, axes), path)  # type: ignore[no-untyped-call]


def write_dtseries(
    root: Path, *, people: int = 2, volumes: int = 40, runs: tuple[str, ...] = (RUN,), step: float = 0.72
) -> Path:
    """Write recordings where the Human Connectome Project keeps them, below ``root``."""
    models = grayordinates()
    for person in range(people):
        for number, run in enumerate(runs):
            folder = root / f"{100 + person}" / "MNINonLinear" / "Results" / run
            folder.mkdir(parents=True)
            data = series(person, volumes=volumes, columns=len(models), seed=number)
            save_series(folder / f"{run}_Atlas_MSMAll.dtseries.nii", data, models, step=step)
    return root
