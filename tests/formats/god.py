"""Writes Generic Object Decoding in its three layouts, only smaller."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from PIL import Image

Array = np.ndarray[Any, Any]
# as in the published files; the voxels of LVC, HVC and VC are in other regions too, those of LOC, FFA and PPA overlap
MASKS = {
    "V1": [8, 3, 1],
    "V2": [0, 9, 5],
    "V3": [2, 9],
    "V4": [12, 6],
    "FFA": [4, 10],
    "PPA": [13],
    "LOC": [10, 16, 7],
    "LVC": [8, 3, 1, 0, 9, 5, 2, 12, 6],
    "HVC": [4, 10, 13, 16, 7, 15, 18],
    "VC": [8, 3, 1, 0, 9, 5, 2, 12, 6, 4, 10, 13, 16, 7, 15, 18],
}
# by hand from the lists above: each voxel in the first region that has it, in the order of the columns
EXCLUSIVE = {
    "V1": [1, 3, 8],
    "V2": [0, 5, 9],
    "V3": [2],
    "V4": [6, 12],
    "FFA": [4, 10],
    "PPA": [13],
    "LOC": [7, 16],
    "HVC": [15, 18],
}
VOXELS = 20
PLACES = np.stack([3.0 * np.arange(VOXELS) - 30, -60 - 1.5 * np.arange(VOXELS), 2.0 * np.arange(VOXELS) - 10], axis=1)
"""Millimetres."""


@dataclass(frozen=True)
class Person:
    """Trials in the order of the files; ``imagined`` are numbers of test classes."""

    train: Array
    train_index: Array
    test: Array
    test_index: Array
    imagery: Array
    imagined: Array


@dataclass(frozen=True)
class Experiment:
    """Names of stimuli such as ``n01500000_22``, pictures and people."""

    train_names: list[str]
    test_names: list[str]
    train_images: Array
    test_images: Array
    people: list[Person]


def experiment(
    *, people: int = 2, train: int = 12, test: int = 4, repetitions: int = 4, seed: int = 0, noise: float = 0.5
) -> Experiment:
    """Responses that weigh the pixels of what was seen; training classes of two pictures each."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (train + test, 8, 8, 3)).astype(np.uint8)
    train_names = [f"n{1500000 + i // 2:08d}_{22 + 1000 * (i % 2)}" for i in range(train)]
    test_names = [f"n{2500000 + 7 * i:08d}_{10040 + i}" for i in range(test)]
    pixels = images.reshape(len(images), -1) / 255 - 0.5

    def person() -> Person:
        weights = random.standard_normal((pixels.shape[1], VOXELS)) / 5

        def respond(stimuli: Array) -> Array:
            signal = pixels[stimuli] @ weights
            return 3 + signal + noise * random.standard_normal(signal.shape)

        shown = random.permutation(train)
        tested = np.repeat(np.arange(test), repetitions)
        imagined = np.concatenate([random.permutation(test) for _ in range(2)])
        return Person(respond(shown), shown, respond(train + tested), tested, respond(train + imagined), imagined)

    return Experiment(train_names, test_names, images[:train], images[train:], [person() for _ in range(people)])


def npz_content(person: Person) -> dict[str, Array]:
    """The arrays of ``sbj_N.npz``."""
    average = np.stack([person.test[person.test_index == i].mean(axis=0) for i in np.unique(person.test_index)])
    masks = {name: np.isin(np.arange(VOXELS), voxels) for name, voxels in MASKS.items()}
    arrays = (person.train, person.test, average, person.train_index, person.test_index)
    ceilings = (np.full(VOXELS, 0.5), np.full(VOXELS, 0.5))
    return masks | {f"arr_{i}": array for i, array in enumerate((*arrays, *ceilings))}


def write_image_npz(root: Path, content: Experiment, *, size: int = 256) -> None:
    """Write the pictures as MinD-Vis has them (256) or as they were published first (112, 0..1), with their labels."""
    images = {"train_images": content.train_images, "test_images": content.test_images}
    if size == 112:
        images = {key: image.astype(np.float32) / 255 for key, image in images.items()}
    np.savez(root / f"images_{size}.npz", allow_pickle=False, **images)
    for file, names in (("training", content.train_names), ("testing", content.test_names)):
        # the number loses its digits, as in copies that went through a spreadsheet
        rows = [f"{int(name[1:9])}.{float(name[10:]):.3g},{name}.JPEG" for name in names]
        (root / f"imagenet_{file}_label.csv").write_text("\n".join(rows) + "\n")


def write_class_index(root: Path, content: Experiment) -> None:
    """Write the names of the classes: one has two synsets, two share a name, and one is missing."""
    synsets = sorted({name[:9] for name in (*content.train_names, *content.test_names)})
    entries = [[synset, f"name{i}"] for i, synset in enumerate(synsets[:-1])]
    entries[0].insert(1, "n09999999")
    entries[1][-1] = entries[2][-1] = "crane"
    (root / "imagenet_class_index.json").write_text(json.dumps({str(i): entry for i, entry in enumerate(entries)}))


def write(root: Path, *, size: int = 256, **options: Any) -> Experiment:
    """Write the npz layout of MinD-Vis and LEA."""
    root.mkdir(parents=True, exist_ok=True)
    content = experiment(**options)
    for number, person in enumerate(content.people, start=1):
        np.savez(root / f"sbj_{number}.npz", allow_pickle=False, **npz_content(person))
    write_image_npz(root, content, size=size)
    write_class_index(root, content)
    return content


def write_pictures(root: Path, content: Experiment, *, suffix: str = ".png") -> None:
    """Write the pictures as files named by stimulus."""
    for part, names, images in (
        ("training", content.train_names, content.train_images),
        ("test", content.test_names, content.test_images),
    ):
        (root / "images" / part).mkdir(parents=True, exist_ok=True)
        for name, image in zip(names, images, strict=True):
            Image.fromarray(image).save(root / "images" / part / f"{name}{suffix}")


def bdata_content(
    content: Experiment, person: Person, *, runs: int = 2, sessions: bool = False
) -> tuple[Array, dict[str, Array]]:
    """Table and metadata of a person; the voxels stand between other columns, one of them is no voxel of VoxelData."""
    parts: list[tuple[int, Array, Iterator[str]]] = [
        (1, person.train, (content.train_names[i] for i in person.train_index)),
        (2, person.test, (content.test_names[i] for i in person.test_index)),
        (3, person.imagery, (f"{content.test_names[i][:9]}_0" for i in person.imagined)),
    ]
    rows = []
    for kind, signal, names in parts:
        for trial, (response, name) in enumerate(zip(signal, names, strict=True)):
            number = int(name[1:9]) + int(name[10:]) / 1e6
            run = 1 + trial * runs // len(signal)
            # a column of voxels that is flagged as a region though it is no voxel, before all others
            rows.append([99.0, *response, kind, run, number, 1 + (run > runs // 2)])
    columns = 1 + VOXELS
    blank = np.full(columns + 4, np.nan)

    def flags(*where: int) -> Array:
        values = blank.copy()
        values[list(where)] = 1
        return values

    metadata = {"VoxelData": flags(*range(1, columns))}
    for axis, name in enumerate(("voxel_x", "voxel_y", "voxel_z")):
        metadata[name] = blank.copy()
        metadata[name][1:columns] = PLACES[:, axis]
    for name, voxels in MASKS.items():
        metadata[f"ROI_{name}"] = flags(0, *(1 + voxel for voxel in voxels))
        metadata[f"ROI_{name}"][1 + np.setdiff1d(np.arange(VOXELS), voxels)[:3]] = 0
    keys = ("DataType", "Run", "stimulus_id", "Session")
    metadata |= {key: flags(columns + i) for i, key in enumerate(keys)}
    if not sessions:
        del metadata["Session"]
    return np.array(rows), metadata


def save_h5(path: Path, dataset: Array, metadata: dict[str, Array], *, spelling: str = "new") -> None:
    """Write BData as bdpy does."""
    table, group = ("dataset", "metadata") if spelling == "new" else ("dataSet", "metaData")
    with h5py.File(path, "w") as file:
        file[table] = dataset
        file[f"{group}/key"] = list(metadata) if spelling == "new" else np.array(list(metadata), "S")
        file[f"{group}/description"] = ["" for _ in metadata]
        file[f"{group}/value"] = np.stack(list(metadata.values()))
        file["header/ctime"] = "2020"


def save_mat(path: Path, dataset: Array, metadata: dict[str, Array]) -> None:
    """Write BData as BrainDecoderToolbox2 does."""
    keys = np.array([list(metadata)], object)
    struct = {"key": keys, "value": np.stack(list(metadata.values())), "description": keys}
    scipy.io.savemat(path, {"dataSet": dataset, "metaData": struct}, do_compression=True)


def write_bdata(root: Path, *, suffix: str = "h5", pictures: str = "files", **options: Any) -> Experiment:
    """Write ``SubjectN.h5`` or ``.mat`` with pictures as files or as the npz layout has them."""
    root.mkdir(parents=True, exist_ok=True)
    content = experiment(**options)
    for number, person in enumerate(content.people, start=1):
        dataset, metadata = bdata_content(content, person)
        if suffix == "h5":
            save_h5(root / f"Subject{number}.h5", dataset, metadata)
        else:
            save_mat(root / f"Subject{number}.mat", dataset, metadata)
    if pictures == "files":
        write_pictures(root, content)
    else:
        write_image_npz(root, content)
    return content
