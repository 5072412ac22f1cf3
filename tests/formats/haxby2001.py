"""Writes the public slice of Haxby et al. (2001), only smaller: one NIfTI with a table, and the same as OpenFMRI."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np

Array = np.ndarray[Any, Any]
CATEGORIES = ("rest", "face", "house", "shoe", "cat", "scissors", "scrambledpix", "bottle", "chair")
TR = 2.5
REST, BLOCK = 2, 3


def labels(runs: int, *, seed: int = 0) -> list[list[int]]:
    """Category of each volume of each run: every category in one block, rest between."""
    random = np.random.default_rng([seed, 2])
    result = []
    for _ in range(runs):
        run = [0] * REST
        for code in random.permutation(np.arange(1, len(CATEGORIES))):
            run += [int(code)] * BLOCK + [0] * REST
        result.append(run)
    return result


def mask() -> Array:
    """20 of 4 x 6 x 1 voxels."""
    inside = np.ones((4, 6, 1), np.int16)
    inside[0, :4] = 0
    return inside


def volumes(runs: int, *, noise: float = 30, seed: int = 0) -> Array:
    """Voxels over time ``(4, 6, 1, T)`` int16: a pattern for each category, runs of other baselines."""
    random = np.random.default_rng(seed)
    pattern = 60 * random.standard_normal((len(CATEGORIES), 4, 6, 1))
    pattern[0] = 0
    parts = []
    for run in labels(runs, seed=seed):
        base = 500 + 50 * random.standard_normal((4, 6, 1))
        trend = np.linspace(0, 40, len(run))[:, None, None, None]
        parts.append(base + trend + pattern[run] + noise * random.standard_normal((len(run), 4, 6, 1)))
    return np.moveaxis(np.concatenate(parts), 0, -1).round().astype(np.int16)


def save(path: Path, array: Array, *, tr: float = TR) -> Path:
    """Write a NIfTI image whose fourth axis is time in steps of ``tr`` seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, np.eye(4))  # type: ignore[no-untyped-call]
    if array.ndim == 4:
        image.header.set_zooms((3.1, 3.75, 3.75, tr))
    nibabel.save(image, path)
    return path


def write(root: Path, *, runs: int = 6, **options: Any) -> Path:
    """Write ``bold.nii.gz``, ``mask.nii.gz`` and ``attributes.txt`` below ``root``."""
    save(root / "bold.nii.gz", volumes(runs, **options))
    save(root / "mask.nii.gz", mask())
    lines = [f"{code} {number}" for number, run in enumerate(labels(runs)) for code in run]
    (root / "attributes.txt").write_text("\n".join(lines) + "\n")
    return root


def write_openfmri(root: Path, *, people: int = 1, runs: int = 6) -> Path:
    """Write the same recordings run by run, with onsets in seconds; another seed for each further person."""
    codes = {f"cond{number:03d}": name for number, name in enumerate(CATEGORIES[1:], start=1)}
    models = root / "models" / "model001"
    models.mkdir(parents=True)
    key = "".join(f"task001 {condition} {name}\n" for condition, name in codes.items())
    (models / "condition_key.txt").write_text(key)
    for person in range(people):
        folder = root / f"sub{person + 1:03d}"
        save(folder / "masks" / "slice.nii.gz", mask())
        bold, run_labels = volumes(runs, seed=person), labels(runs, seed=person)
        length = bold.shape[-1] // runs
        for number, run in enumerate(run_labels):
            name = f"task001_run{number + 1:03d}"
            save(folder / "BOLD" / name / "bold.nii.gz", bold[..., number * length : (number + 1) * length])
            onsets = folder / "model" / "model001" / "onsets" / name
            onsets.mkdir(parents=True)
            for code, condition in enumerate(codes, start=1):
                (onsets / f"{condition}.txt").write_text(f"{run.index(code) * TR}\t{BLOCK * TR}\t1\n")
    return root
