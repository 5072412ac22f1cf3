"""Writes the Natural Scenes Dataset as it is published, and as Brain-Diffuser and MindEye2 keep it, only smaller.

Volumes and pictures are tiny; sessions of 750 trials and the experimental design have their true sizes.
"""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import scipy.io

Array = np.ndarray[Any, Any]
SHAPE = (5, 4, 3)
SIDE = 8
TRIALS = 750
FIRST = 37 * TRIALS
"""Trials of the sessions that were public at first."""
OUTSIDE = -1


@dataclass(frozen=True)
class Experiment:
    """Pictures are numbered from 0 among 73000; ``volumes`` are ``(x, y, z, 750)`` int16 by person and session."""

    design: dict[str, Array]
    shown: dict[str, Array]
    shared: Array
    images: dict[int, Array]
    mask: Array
    atlas: Array
    ncsnr: Array
    volumes: dict[str, list[Array]]


def labels() -> tuple[Array, Array]:
    """A mask of 22 voxels and an atlas whose regions lie in it and beside it; three labels of it in the mask."""
    mask = np.full(SHAPE, OUTSIDE, np.int16)
    mask[1:4, :, 1] = 0
    mask[1:4, 1:3, :] = 1
    mask[0, 0, 0] = mask[4, 3, 2] = mask[2, 0, 1] = mask[2, 3, 1] = 1
    atlas = np.full(SHAPE, OUTSIDE, np.int16)
    atlas[:, 1, :] = 0
    atlas[3, :, 0] = 1
    atlas[1, :, 1:] = 7
    atlas[4, 3, 2] = 2
    atlas[0, 3, 2] = 4
    return mask, atlas


def voxels(mask: Array, atlas: Array) -> tuple[list[tuple[int, ...]], dict[str, int]]:
    """Places of the voxels and sizes of the regions, worked out one voxel at a time."""
    names = {1: "V1v", 2: "V1d", 3: "V2v", 4: "V2d", 5: "V3v", 6: "V3d", 7: "hV4", 8: "rest"}
    region = {place: atlas[place] if atlas[place] > 0 else 8 for place in np.ndindex(*mask.shape) if mask[place] > 0}
    order = sorted(region, key=lambda place: (region[place], place))
    return order, {
        name: list(region.values()).count(label) for label, name in names.items() if label in region.values()
    }


def design(train: int, test: int, *, sessions: int, late: int = 0, seed: int = 0) -> dict[str, Array]:
    """``nsd_expdesign.mat``: the first sessions show few pictures again and again, ``late`` shared ones come last."""
    random = np.random.default_rng([seed, 1])
    pictures = 1 + random.permutation(73000)
    shared, own = pictures[:1000], pictures[1000:].reshape(8, -1)[:, :9000]
    positions = np.concatenate([1 + np.arange(test), 1001 + np.arange(train)])
    early = min(sessions * TRIALS, FIRST)
    order = np.concatenate([random.permutation(positions) for _ in range(early // len(positions) + 1)])[:early]
    rest = random.choice(positions, 30000 - early)
    # after the first 37 sessions
    rest[FIRST - early :][: 2 * late] = np.repeat(1000 - np.arange(late), 2)
    return {
        "masterordering": np.concatenate([order, rest])[None].astype(float),
        "subjectim": np.concatenate([np.tile(shared, (8, 1)), own], axis=1).astype(float),
        "sharedix": np.sort(shared)[None].astype(float),
        "basiccnt": np.zeros((3, 3)),
    }


def experiment(
    *, people: tuple[str, ...] = ("01", "02"), train: int = 40, test: int = 8, sessions: int = 2, late: int = 0,
    noise: float = 0.5, seed: int = 0,
) -> Experiment:  # fmt: skip
    """Responses that weigh the pixels of what was seen, with another gain in every session."""
    content = design(train, test, sessions=sessions, late=late, seed=seed)
    mask, atlas = labels()
    random = np.random.default_rng(seed)
    shown: dict[str, Array] = {}
    volumes: dict[str, list[Array]] = {}
    images: dict[int, Array] = {}
    for person in people:
        row = content["subjectim"][int(person) - 1].astype(int) - 1
        shown[person] = row[content["masterordering"][0].astype(int) - 1]
        weights = random.standard_normal((SIDE * SIDE * 3, *SHAPE)) / 5
        volumes[person] = []
        for session in range(sessions):
            mine = shown[person][session * TRIALS : (session + 1) * TRIALS]
            for picture in mine.tolist():
                if picture not in images:
                    images[picture] = random.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
            pixels = np.stack([images[picture].reshape(-1) for picture in mine.tolist()]) / 255 - 0.5
            signal = np.tensordot(pixels, weights, 1) + noise * random.standard_normal((TRIALS, *SHAPE))
            percent = random.uniform(0.5, 2) * signal + random.normal()
            volumes[person].append(np.moveaxis(300 * percent, 0, -1).round().astype(np.int16))
    ncsnr = random.uniform(0, 1, SHAPE).astype(np.float32)
    ncsnr[mask < 1] = np.nan
    shared = content["sharedix"][0].astype(int) - 1
    return Experiment(content, shown, shared, images, mask, atlas, ncsnr, volumes)


def save_nifti(path: Path, array: Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.8, 1.8, 1.8, 1])), path)  # type: ignore[no-untyped-call]
    return path


def save_table(path: Path, name: str, shape: tuple[int, ...], dtype: str, rows: dict[int, Array]) -> Path:
    """Write an HDF5 table of which only some rows are filled; the others take no space."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        table = file.create_dataset(name, shape, dtype, chunks=(1, *shape[1:]))
        for row, value in rows.items():
            table[row] = value
    return path


# ---- official --------------------------------------------------------------------------------------


def roi(root: Path, person: str, name: str = "nsdgeneral") -> Path:
    return root / f"nsddata/ppdata/subj{person}/func1pt8mm/roi/{name}.nii.gz"


def betas(root: Path, person: str, name: str = "betas_session01.nii.gz") -> Path:
    return root / f"nsddata_betas/ppdata/subj{person}/func1pt8mm/betas_fithrf_GLMdenoise_RR" / name


def save_betas(path: Path, volume: Array) -> Path:
    """Write one session: NIfTI, or HDF5 as MATLAB writes ``(x, y, z, 750)``, with its axes in reverse."""
    if path.suffix != ".hdf5":
        return save_nifti(path, volume)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("betas", data=volume.T, chunks=(TRIALS, 1, 1, 1))
    return path


def design_path(root: Path) -> Path:
    return root / "nsddata/experiments/nsd/nsd_expdesign.mat"


def pictures_path(root: Path) -> Path:
    return root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"


def save_design(root: Path, content: dict[str, Array]) -> None:
    path = design_path(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, content, do_compression=True)


def write(root: Path, *, suffix: str = "nii.gz", **options: Any) -> Experiment:
    """Write the published folders."""
    content = experiment(**options)
    save_design(root, content.design)
    save_table(pictures_path(root), "imgBrick", (73000, SIDE, SIDE, 3), "u1", content.images)
    for person, sessions in content.volumes.items():
        save_nifti(roi(root, person), content.mask)
        save_nifti(roi(root, person, "prf-visualrois"), content.atlas)
        save_nifti(betas(root, person, "ncsnr.nii.gz"), content.ncsnr)
        for number, volume in enumerate(sessions, start=1):
            save_betas(betas(root, person, f"betas_session{number:02d}.{suffix}"), volume)
    return content


# ---- Brain-Diffuser --------------------------------------------------------------------------------


def averages(content: Experiment, person: str) -> dict[str, tuple[list[int], Array]]:
    """Pictures of each part in the order in which they were first seen, with 300 times the mean over repetitions."""
    trials = np.concatenate([volume[content.mask > 0].T for volume in content.volumes[person]]).astype(np.float64)
    shown = content.shown[person][: len(trials)]
    result = {}
    for part in ("train", "test"):
        pictures = [n for n in dict.fromkeys(shown.tolist()) if (n in set(content.shared.tolist())) == (part == "test")]
        result[part] = pictures, np.stack([trials[shown == number].mean(axis=0) for number in pictures])
    return result


def write_brain_diffuser(root: Path, *, captions: bool = True, **options: Any) -> Experiment:
    """Write ``processed_data``, with the pictures in float64."""
    content = experiment(**options)
    for person in content.volumes:
        folder = root / "processed_data" / f"subj{person}"
        folder.mkdir(parents=True, exist_ok=True)
        for part, (pictures, signal) in averages(content, person).items():
            name = f"nsd_{part}_{{}}_sub{int(person)}.npy".format
            np.save(folder / name("fmriavg_nsdgeneral"), signal)
            np.save(folder / name("stim"), np.stack([content.images[n] for n in pictures]).astype(np.float64))
            if captions:
                sentences = [["", f"picture {n}", "other", "", ""] if n % 2 else [f"number {n}"] * 5 for n in pictures]
                np.save(folder / name("cap"), np.array(sentences))
    return content


# ---- MindEye2 --------------------------------------------------------------------------------------


def behaviour(content: Experiment, person: str, trial: int) -> Array:
    """One row of behaviour."""
    picture = content.shown[person][trial]
    row = [picture, int(person), trial // TRIALS + 1, 1, 1, trial, *[-1] * 10, picture in content.shared]
    return np.array([row], np.float64)


def save_tar(path: Path, rows: dict[int, Array]) -> Path:
    """Write an archive of behaviour with other entries between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number, row in rows.items():
            for name, array in (("behav", row), ("past_behav", -np.ones((15, 17)))):
                buffer = io.BytesIO()
                np.save(buffer, array)
                entry = tarfile.TarInfo(f"sample{number:09d}.{name}.npy")
                entry.size = buffer.tell()
                buffer.seek(0)
                archive.addfile(entry, buffer)
    return path


def write_mindeye2(root: Path, *, order: str = "tars", dtype: str = "float32", **options: Any) -> Experiment:
    """Write betas, pictures and what was shown: in archives, or as a table of numbers."""
    content = experiment(**options)
    root.mkdir(parents=True, exist_ok=True)
    pictures = {n: np.moveaxis(image, -1, 0) / 255 for n, image in content.images.items()}
    save_table(root / "coco_images_224_float16.hdf5", "images", (73000, 3, SIDE, SIDE), "f2", pictures)
    shared = np.zeros(73000, bool)
    shared[content.shared] = True
    np.save(root / "shared1000.npy", shared)
    for person, volumes in content.volumes.items():
        sessions = [volume[content.mask > 0].T / 300 for volume in volumes]
        signal = np.concatenate([(x - x.mean(axis=0)) / x.std(axis=0) for x in sessions]).astype(dtype)
        bits = {"float32": 32, "float16": 16}[dtype]
        with h5py.File(root / f"betas_all_subj{person}_fp{bits}_renorm.hdf5", "w") as file:
            file["betas"] = signal
        if order == "table":
            with h5py.File(root / "COCO_73k_subj_indices.hdf5", "a") as file:
                file[f"subj{person}"] = content.shown[person][: len(signal)]
            continue
        rows = {trial: behaviour(content, person, trial) for trial in range(len(signal))}
        tested = {trial for trial, row in rows.items() if row[0, -1]}
        folder = root / "wds" / f"subj{person}"
        save_tar(folder / "new_test" / "0.tar", {trial: rows[trial] for trial in sorted(tested)})
        for session in range(len(volumes)):
            trials = set(range(session * TRIALS, (session + 1) * TRIALS)) - tested
            save_tar(folder / "train" / f"{session}.tar", {trial: rows[trial] for trial in sorted(trials)})
    return content
