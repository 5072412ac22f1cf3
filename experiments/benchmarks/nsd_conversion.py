"""What does it take to use NSD? Memory and seconds of reading it, and passes over all training trials.

``python -m experiments.benchmarks.nsd_conversion`` writes sessions of the published size, of one person, and compares
our conversion and loader with reading whole sessions into memory, as published code does. Pictures are tiny: they stay
where they are, and no pixel is measured.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from datamodules import NSD, EmbeddingOptions, LoaderOptions, SampleOptions, SplitOptions
from datamodules.core.nsd_download import ncsnr_file
from datamodules.core.nsd_files import (
    DESIGN,
    PICTURE_TABLE,
    PICTURES,
    SHARED,
    STIMULI,
    SUBJECTS,
    TRIALS,
    beta_folder,
    roi_folder,
)
from experiments.benchmarks.conversion import Recordings, Residence, Way, compare
from experiments.benchmarks.in_turns import command

Array = NDArray[Any]
PERSON = SUBJECTS[0]
SHAPE = (81, 104, 83)
VOXELS = 15724
"""In the mask ``nsdgeneral`` of the first person."""
PICTURE_SIDE = 16
SPARSE = 8
"""One in so many voxels of the part of the brain that holds the mask is in the mask, for cortex is folded."""
Suffix = Literal["hdf5", "nii.gz"]


def nsd_conversion(
    folder: Path | None = None,
    sessions: int = 2,
    batch_size: int = 64,
    rounds: int = 1,
    suffix: Suffix = "hdf5",
    implementation: Way = "all",
) -> None:
    """Write the sessions, measure each way of using them in a process of its own, and print a table.

    Args:
        folder: Where files are kept for the next time; None for a temporary folder. A session takes 1.1 GB.
        sessions: How many; 40 for a whole person.
        batch_size: Samples of a batch.
        rounds: How often each way is measured.
        suffix: Form of the betas; ``nii.gz`` takes longer to write and to read.
        implementation: ``all`` compares; any other does one thing in this process and prints what it took as JSON.
    """
    # a session as int16 and as float32, between them nibabel's float64, or what HDF5 notes about each of its chunks
    session = (14 if suffix == "nii.gz" else 12) * 1e-9 * TRIALS * np.prod(SHAPE)
    recordings = Recordings(
        text=f"{sessions} sessions of {TRIALS} volumes of {' x '.join(map(str, SHAPE))}, {VOXELS} voxels in the mask,",
        # every session's voxels, and once more joined, of which training trials are taken
        needed=float(session + 12e-9 * sessions * TRIALS * VOXELS),
        write=partial(write_files, sessions=sessions, suffix=suffix),
        read_whole=partial(read_whole, sessions=sessions, suffix=suffix),
        opened=partial(open_store, sessions=sessions, batch_size=batch_size),
    )
    compare(
        "experiments.benchmarks.nsd_conversion",
        implementation,
        recordings,
        folder=folder,
        batch_size=batch_size,
        rounds=rounds,
        written={"sessions": sessions, "suffix": suffix},
    )


def open_store(raw: Path, stores: Path, residence: Residence, *, sessions: int, batch_size: int) -> NSD:
    """The data set as ``configs/data/nsd.yaml`` has it, without embeddings."""
    return NSD(
        str(raw),
        file_format="official",
        sessions=sessions,
        subjects=[PERSON],
        stores=str(stores),
        embedding=EmbeddingOptions(model="none"),
        samples=SampleOptions(cleaning="zscore_session", bad_features="zero"),
        split=SplitOptions(tested="test+test_rest", validation=0.0),
        loader=LoaderOptions(batch_size=batch_size, residence=residence),
    )


def read_whole(raw: Path, *, sessions: int, suffix: Suffix) -> tuple[torch.Tensor, torch.Tensor]:
    """Training trials ``(n, V)`` and their pictures ``(n,)``; each session is read whole, then masked and z-scored."""
    import nibabel
    import scipy.io

    design = scipy.io.loadmat(raw / DESIGN)
    order = design["subjectim"][SUBJECTS.index(PERSON)][design["masterordering"][0].astype(int) - 1]
    shown = order[: sessions * TRIALS].astype(np.int64) - 1
    train = ~np.isin(shown, design["sharedix"][0].astype(np.int64) - 1)
    mask = nibabel.load(raw / roi_folder(PERSON) / "nsdgeneral.nii.gz").get_fdata() > 0  # type: ignore[attr-defined]
    signals = []
    for number in range(sessions):
        path = raw / beta_folder(PERSON) / f"betas_session{number + 1:02d}.{suffix}"
        if suffix == "hdf5":
            with h5py.File(path) as file:
                volumes = file["betas"][()].astype(np.float32).T
        else:
            volumes = nibabel.load(path).get_fdata().astype(np.float32)  # type: ignore[attr-defined]
        signal = volumes[mask].T / 300
        fitted = signal[train[number * TRIALS : (number + 1) * TRIALS]]
        signals.append((signal - fitted.mean(axis=0)) / fitted.std(axis=0))
        del volumes
    return torch.from_numpy(np.concatenate(signals)[train]), torch.from_numpy(shown[train])


# ---- files -----------------------------------------------------------------------------------------


def write_files(raw: Path, *, sessions: int, suffix: Suffix) -> None:
    """Write noise in the published form: design, pictures, mask, regions, noise ceiling and betas."""
    generator = np.random.default_rng(0)
    for path in (DESIGN, PICTURES, roi_folder(PERSON) / "roi", ncsnr_file(PERSON)):
        (raw / path).parent.mkdir(parents=True, exist_ok=True)
    _write_design(raw / DESIGN, generator)
    with h5py.File(raw / PICTURES, "w") as file:
        file[PICTURE_TABLE] = generator.integers(0, 256, (STIMULI, PICTURE_SIDE, PICTURE_SIDE, 3), np.uint8)
    mask = make_mask(generator)
    # slabs along x, so that voxels stand region by region in the order of the volume
    slab = np.arange(SHAPE[0])[:, None, None] * 8 // SHAPE[0]
    _save_nifti(raw / roi_folder(PERSON) / "nsdgeneral.nii.gz", mask.astype(np.int16))
    _save_nifti(
        raw / roi_folder(PERSON) / "prf-visualrois.nii.gz", np.where(mask & (slab < 7), slab + 1, 0).astype(np.int16)
    )
    _save_nifti(raw / ncsnr_file(PERSON), np.where(mask, generator.random(SHAPE), np.nan).astype(np.float32))
    for number in range(1, sessions + 1):
        _write_session(raw / beta_folder(PERSON) / f"betas_session{number:02d}.{suffix}", generator)


def make_mask(generator: np.random.Generator) -> Array:
    """Return which voxels are used, ``(x, y, z)``: scattered over the part of the volume around the occipital pole."""
    centre = np.array(SHAPE) * [0.5, 0.3, 0.5]
    distance = np.square(np.indices(SHAPE) - centre[:, None, None, None]).sum(axis=0).ravel()
    near = np.argsort(distance, kind="stable")[: SPARSE * VOXELS]
    mask = np.zeros(SHAPE, bool)
    mask.ravel()[generator.choice(near, VOXELS, replace=False)] = True
    return mask


def _write_design(path: Path, generator: np.random.Generator) -> None:
    """Each person sees the shared pictures and own ones, three times each, all in random order."""
    import scipy.io

    pictures = 1 + generator.permutation(STIMULI)
    own = pictures[SHARED:].reshape(len(SUBJECTS), -1)
    subjectim = np.concatenate([np.tile(pictures[:SHARED], (len(SUBJECTS), 1)), own], axis=1)
    ordering = 1 + generator.permutation(np.repeat(np.arange(subjectim.shape[1]), 3))
    design = {"masterordering": ordering[None], "subjectim": subjectim, "sharedix": np.sort(pictures[:SHARED])[None]}
    scipy.io.savemat(path, {name: value.astype(float) for name, value in design.items()}, do_compression=True)


def _write_session(path: Path, generator: np.random.Generator) -> None:
    """HDF5 as MATLAB writes it, axes in reverse and one voxel's 750 trials a chunk; or NIfTI."""
    if path.suffix != ".hdf5":
        _save_nifti(path, generator.integers(-3000, 3000, (*SHAPE, TRIALS), np.int16))
        return
    x, y, z = SHAPE
    with h5py.File(path, "w") as file:
        betas = file.create_dataset("betas", (TRIALS, z, y, x), np.int16, chunks=(TRIALS, 1, 1, 1))
        for plane in range(z):
            betas[:, plane] = generator.integers(-3000, 3000, (TRIALS, y, x), np.int16)


def _save_nifti(path: Path, volume: Array) -> None:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1.8, 1.8, 1.8, 1])), path)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    command(nsd_conversion)
