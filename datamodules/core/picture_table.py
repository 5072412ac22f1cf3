"""Pictures from folders and data sets, each once, on one side: tested before validated before trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from contracts import DataError
from datamodules.core.atomic import build_once
from datamodules.core.base import BrainDataModule
from datamodules.core.readers import load_image

Array = NDArray[Any]
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
PRECEDENCE = ("test", "validation", "train")
"""Where a picture is found on two sides, the first of these counts."""


@dataclass(frozen=True)
class Picture:
    """One picture, known but not loaded.

    Attributes:
        sha256: Hash of its file, or of its array as in the store; its embedding is found by it.
        pixels: Hash of its decoded pixels: the same for a file and for an array of one picture.
        height: In pixels.
        width: In pixels.
        label: Name of its class, or empty.
        side: ``train``, ``validation`` or ``test``.
        load: Gives the picture, RGB uint8 ``(H, W, 3)``.
    """

    sha256: str
    pixels: str
    height: int
    width: int
    label: str
    side: str
    load: Callable[[], Array]


def of_folder(folder: Path, index: Path, *, validation: float, test: float) -> list[Picture]:
    """Return all pictures below a folder, in the order of their paths; the class is the name of their subfolder.

    Args:
        folder: The folder.
        index: Folder in which hashes are kept, so that pictures are only decoded once.
        validation: Share of the pictures, chosen by the hash of their pixels.
        test: The same.

    Raises:
        DataError: No such folder, no picture in it, a damaged picture.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder.absolute()}; change --data.init_args.folders")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise DataError(
            f"no pictures ({', '.join(suffix[1:] for suffix in SUFFIXES)}) in {folder.absolute()} or below; change "
            "--data.init_args.folders"
        )
    # a file that was changed has another size or time, and is read again
    stats = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    loads = [partial(load_image, path) for path in paths]
    pixels = _pixels(index, stats, loads)
    files = _indexed(index, ["files", stats], partial(_file_hashes, paths))
    found = []
    for path, load, sha256, (digest, height, width) in zip(paths, loads, files, pixels, strict=True):
        label = "" if path.parent == folder else path.parent.name
        # the first 64 bits of the hash as a number between 0 and 1
        place = int(digest[:16], 16) / 2**64
        side = "test" if place < test else "validation" if place < test + validation else "train"
        found.append(Picture(sha256, digest, height, width, label, side, load))
    return found


def of_dataset(data: BrainDataModule, index: Path) -> list[Picture]:
    """Return the stimuli of the chosen people, and those that anyone is tested on.

    Args:
        data: A data set with pictures; nothing is embedded, and no signal is read.
        index: Folder in which hashes are kept.

    Raises:
        DataError: No pictures, or none that only training trials show.
    """
    if not data.store.has_pictures:
        raise DataError(f"{data.name} has no pictures; remove it from --data.init_args.datasets")
    sides = {side: set(data.trials["number"][data.trials["side"] == side]) for side in PRECEDENCE}
    sides["test"] |= data.tested_by_anyone
    if not sides["train"] - sides["test"] - sides["validation"]:
        raise DataError(
            f"every picture of {data.name} is tested or validated on under split.protocol={data.split.protocol}; use "
            "by_stimulus, or remove it from --data.init_args.datasets"
        )
    numbers = sorted(set[int]().union(*sides.values()))
    stimuli = data.store.stimuli.iloc[numbers]
    loads = [partial(data.store.image, number) for number in numbers]
    pixels = _pixels(index, stimuli["sha256"].tolist(), loads)
    rows = zip(numbers, stimuli["sha256"], stimuli["class"], loads, pixels, strict=True)
    return [
        Picture(sha256, digest, height, width, label, next(s for s in PRECEDENCE if number in sides[s]), load)
        for number, sha256, label, load, (digest, height, width) in rows
    ]


def join(pictures: Sequence[Picture]) -> list[Picture]:
    """Return each picture once, where it stands first, on the side that counts most wherever it stands.

    Two pictures are the same if their files are or their pixels are; one that was scaled or saved anew in a
    format that loses detail is another one.
    """
    key_of: dict[str, str] = {}
    keys = [key_of.setdefault(picture.sha256, picture.pixels) for picture in pictures]
    first: dict[str, Picture] = {}
    side: dict[str, str] = {}
    for key, picture in zip(keys, pictures, strict=True):
        first.setdefault(key, picture)
        side[key] = min(side.get(key, picture.side), picture.side, key=PRECEDENCE.index)
    return [replace(picture, side=side[key]) for key, picture in first.items()]


def _pixels(index: Path, identity: Sequence[Any], loads: Sequence[Callable[[], Array]]) -> list[list[Any]]:
    """Hash of the pixels, height and width of each picture; kept under what identifies the pictures."""

    def facts() -> list[Any]:
        found = []
        for load in track(loads, description="reading pictures", transient=True):
            image = load()
            content = f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes()
            found.append([hashlib.sha256(content).hexdigest(), image.shape[0], image.shape[1]])
        return found

    return _indexed(index, ["pixels", list(identity)], facts)


def _file_hashes(paths: Sequence[Path]) -> list[Any]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def _indexed(index: Path, identity: Any, make: Callable[[], list[Any]]) -> list[Any]:
    """What ``make`` gives, made once and kept."""
    file = index / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}.json"
    build_once(file, lambda partial_file: _write(partial_file, make()))
    try:
        found: list[Any] = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise DataError(f"{file} is damaged ({error}); delete it, it will be made again") from None
    return found


def _write(file: Path, content: list[Any]) -> None:
    file.write_text(json.dumps(content))
