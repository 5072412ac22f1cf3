"""Writes ImageNetEEG as its laboratory publishes it, only of fewer people, classes and photographs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

Array = np.ndarray[Any, Any]
BANDS = {"5_95": "eeg_5_95_std.pth", "14_70": "eeg_14_70_std.pth", "55_95": "eeg_55_95_std.pth"}
RAW = "eeg_signals_raw_with_mean_std.pth"
ALL, SINGLE = "block_splits_by_image_all.pth", "block_splits_by_image_single.pth"
CHANNELS = 128


@dataclass(frozen=True)
class Experiment:
    """What the files hold: ``entries`` with ``eeg``, ``image``, ``label`` and ``subject``, and entries of each part."""

    entries: list[dict[str, Any]]
    images: list[str]
    labels: list[str]
    split: dict[str, list[int]]

    @property
    def content(self) -> dict[str, Any]:
        """In the order of the keys of the published files."""
        return {"dataset": self.entries, "labels": self.labels, "images": self.images}


def experiment(
    *,
    people: int = 2,
    classes: int = 3,
    photographs: int = 8,
    lengths: Mapping[int, int] | None = None,
    stimulus: float = 1.0,
    block: float = 0.3,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> Experiment:
    """Segments of different lengths: an offset of the photograph, one of the block, and noise.

    Args:
        people: How many, at most 6.
        classes: How many; each is one block of each person.
        photographs: How many of each class, at least 4.
        lengths: Samples of an entry, by number; the others have 482 to 510.
        stimulus: Size of the offset of the photograph, which is the same for all people.
        block: Size of the offset of the block, which is drawn anew for each person.
        dtype: Type of the segments.
        seed: Of everything random.
    """
    random = np.random.default_rng(seed)
    # neither the labels nor the photographs stand in the order of their names
    labels = [f"n{2951358 - 1009 * c:08d}" for c in range(classes)]
    names = [f"{labels[i % classes]}_{31190 + 7 * i}" for i in range(classes * photographs)]
    patterns = stimulus * random.standard_normal((len(names), CHANNELS, 1))
    entries: list[dict[str, Any]] = []
    # the people take turns, class by class
    for label in range(classes):
        for person in range(1, people + 1):
            offset = block * random.standard_normal((CHANNELS, 1))
            for image in random.permutation(np.arange(label, len(names), classes)).tolist():
                length = (lengths or {}).get(len(entries), int(random.integers(482, 511)))
                noise = random.standard_normal((CHANNELS, length), np.float32)
                eeg = torch.from_numpy(noise + patterns[image] + offset).to(dtype)
                entries.append({"eeg": eeg, "image": image, "label": label, "subject": person})
    return Experiment(entries, names, labels, _split(entries, classes))


def _split(entries: list[dict[str, Any]], classes: int) -> dict[str, list[int]]:
    """By photograph: of each class one of four for ``val``, one of four for ``test``."""
    part = {0: "val", 1: "test", 2: "train", 3: "train"}
    split: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for number, entry in enumerate(entries):
        split[part[entry["image"] // classes % 4]].append(number)
    return split


def of_person(content: Experiment, person: int) -> dict[str, list[int]]:
    """The split as ``..._single.pth`` has it: entries of one person, counted among these, only the first half."""
    mine = [entry for entry in content.entries if entry["subject"] == person]
    half = range(len(mine) // 2)
    split = _split(mine, len(content.labels))
    return {part: [number for number in numbers if number in half] for part, numbers in split.items()}


def save(path: Path, content: Any, *, legacy: bool = True) -> None:
    """Write with torch; the published files are of the format before torch 1.6, as far as is known."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def write_images(folder: Path, names: list[str], *, sizes: int = 1) -> None:
    """Write ``<synset>/<name>.JPEG``, photographs of some different sizes."""
    random = np.random.default_rng(7)
    for number, name in enumerate(names):
        path = folder / name.partition("_")[0] / f"{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((16, 16 + 4 * (number % sizes))).save(path, quality=95)


def write(
    root: Path, *, band: str = "14_70", images: str | None = "train", legacy: bool = True, **options: Any
) -> Experiment:
    """Write one recording, both kinds of split and the photographs; the raw file has means and deviations, too."""
    content = experiment(**options)
    if band == "raw":
        statistics = {"means": torch.zeros(1, CHANNELS), "stddevs": torch.ones(1, CHANNELS)}
        save(root / RAW, content.content | statistics, legacy=legacy)
    else:
        save(root / BANDS[band], content.content, legacy=legacy)
    save(root / ALL, {"splits": [content.split]}, legacy=legacy)
    person = content.entries[-1]["subject"]
    save(root / SINGLE, {"splits": [of_person(content, person)]}, legacy=legacy)
    if images is not None:
        write_images(root / images, content.images)
    return content
