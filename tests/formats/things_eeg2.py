"""Writes THINGS-EEG2 in its four layouts, only smaller."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

Array = np.ndarray[Any, Any]
Layout = Literal["preprocessed", "whitened", "arrays", "osf"]
FOLDERS = {
    "preprocessed": "Preprocessed_data_250Hz",
    "whitened": "Preprocessed_data_250Hz_whiten",
    "arrays": "preprocessed_eeg",
    "osf": "preprocessed_data",
}
NAMES = ("aardvark", "bat1", "bat2", "t-shirt", "crayfish", "hot_tub", "yo-yo", "zucchini", "abacus", "wok", "mug")
# the 17 of the authors' release in the order of their files, between others
OCCIPITAL = ("Pz", "P3", "P7", "O1", "Oz", "O2", "P4", "P8", "P1", "P5", "PO7", "PO3", "POz", "PO4", "PO8", "P6", "P2")
CHANNELS = ("Fp1", "FT9", *OCCIPITAL[:9], "CPz", *OCCIPITAL[9:])
BASELINE = 3
"""Samples before the picture, of which the whitened files and arrays keep the names of the times only."""


@dataclass(frozen=True)
class Person:
    """Signals ``(images, repetitions, C, T)`` without baseline, and the session of each repetition."""

    train: Array
    test: Array
    train_session: Array
    test_session: Array


@dataclass(frozen=True)
class Experiment:
    """Folder and file of each picture, pictures ``(n, 8, 8, 3)`` and people."""

    train_names: list[tuple[str, str]]
    test_names: list[tuple[str, str]]
    train_images: Array
    test_images: Array
    channels: tuple[str, ...]
    people: list[Person]


def experiment(
    *,
    people: int = 2,
    concepts: int = 6,
    exemplars: int = 2,
    test: int = 4,
    repetitions: int = 4,
    test_repetitions: int = 8,
    channels: tuple[str, ...] = CHANNELS,
    samples: int = 5,
    noise: float = 0.5,
    seed: int = 0,
) -> Experiment:
    """Responses that weigh the pixels of what was seen; folders are numbered anew for the test, as in the original."""
    random = np.random.default_rng(seed)
    number = concepts * exemplars
    images = random.integers(0, 256, (number + test, 8, 8, 3)).astype(np.uint8)
    pixels = images.reshape(len(images), -1) / 255 - 0.5

    def name(i: int) -> str:
        return NAMES[i] if i < len(NAMES) else f"thing{i}"

    train_names = [
        (f"{1 + i:05d}_{name(i)}", f"{name(i)}_{1 + j:02d}s.jpg") for i in range(concepts) for j in range(exemplars)
    ]
    test_names = [(f"{1 + i:05d}_{name(concepts + i)}", f"{name(concepts + i)}_{3 + i:02d}b.jpg") for i in range(test)]

    def person() -> Person:
        weights = random.standard_normal((pixels.shape[1], len(channels) * samples)) / 5

        def respond(stimuli: Array, times: int) -> Array:
            signal = np.repeat((stimuli @ weights)[:, None], times, axis=1)
            signal = signal + noise * random.standard_normal(signal.shape)
            return signal.reshape(len(stimuli), times, len(channels), samples)

        # half of the training pictures in sessions 0 and 2, the others in 1 and 3; every test picture in all
        halves = np.arange(number)[:, None] % 2 + 2 * (np.arange(repetitions) * 2 // repetitions)
        quarters = np.tile(np.arange(test_repetitions) * 4 // test_repetitions, (test, 1))
        return Person(
            respond(pixels[:number], repetitions), respond(pixels[number:], test_repetitions), halves, quarters
        )

    return Experiment(
        train_names, test_names, images[:number], images[number:], channels, [person() for _ in range(people)]
    )


def times(content: Experiment, *, rate: float = 250.0) -> Array:
    """Seconds of all samples, those before the picture with them."""
    return (np.arange(BASELINE + content.people[0].train.shape[-1]) - BASELINE) / rate


def pickled(content: Experiment, signal: Array, *, rate: float = 250.0, baseline: bool = False) -> dict[str, Any]:
    """The dict of ``preprocessed_eeg_training.npy``."""
    if baseline:
        before = np.random.default_rng(7).standard_normal((*signal.shape[:-1], BASELINE))
        signal = np.concatenate([before, signal], axis=-1)
    return {
        "preprocessed_eeg_data": signal,
        "ch_names": list(content.channels),
        "times": times(content, rate=rate),
    }


def whitened(content: Experiment, person: Person, part: Literal["train", "test"]) -> dict[str, Any]:
    """The dict of ``train.pt``: numpy arrays, the sessions counted from 0 in floating point."""
    signal, session = getattr(person, part), getattr(person, f"{part}_session")
    places = [f"{part}_images/{folder}/{file}" for folder, file in getattr(content, f"{part}_names")]
    texts = [file.rsplit("_", 1)[0] for _, file in getattr(content, f"{part}_names")]
    shape = signal.shape[:2]
    return {
        "eeg": signal.astype(np.float16),
        "label": np.tile(np.arange(shape[0])[:, None], (1, shape[1])),
        "img": np.tile(np.array(places)[:, None], (1, shape[1])),
        "text": np.tile(np.array(texts)[:, None], (1, shape[1])),
        "session": session.astype(np.float64),
        "ch_names": list(content.channels),
        "times": times(content),
    }


def write_table(root: Path, content: Experiment, *, suffix: str = "npy") -> None:
    """Write the authors' table of pictures, as they did or as JSON."""
    table: dict[str, list[str]] = {}
    for part in ("train", "test"):
        names = getattr(content, f"{part}_names")
        table |= {
            f"{part}_img_concepts": [folder for folder, _ in names],
            f"{part}_img_concepts_THINGS": [f"{int(folder[:5]) + 7:05d}{folder[5:]}" for folder, _ in names],
            f"{part}_img_files": [file for _, file in names],
        }
    root.mkdir(parents=True, exist_ok=True)
    if suffix == "npy":
        np.save(root / "image_metadata.npy", table, allow_pickle=True)  # type: ignore[arg-type]
    else:
        (root / "image_metadata.json").write_text(json.dumps(table))


def write_pictures(root: Path, content: Experiment, *, train: str = "training_images") -> None:
    """Write the pictures as files in one folder for each concept."""
    for part, images in ((train, content.train_images), ("test_images", content.test_images)):
        names = content.test_names if part == "test_images" else content.train_names
        for (folder, file), image in zip(names, images, strict=True):
            (root / part / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / part / folder / file, quality=95)


def write_recordings(root: Path, content: Experiment, layout: Layout = "whitened", *, folder: str = "") -> Path:
    """Write the signals of all people and return their folder."""
    place = root / (folder or FOLDERS[layout])
    for number, person in enumerate(content.people, start=1):
        home = place / f"sub-{number:02d}"
        home.mkdir(parents=True)
        for part in ("train", "test"):
            signal = getattr(person, part)
            if layout == "whitened":
                torch.save(whitened(content, person, part), home / f"{part}.pt", pickle_protocol=5)
            elif layout == "arrays":
                each = len(content.train_names) // len({folder for folder, _ in content.train_names})
                per = each if part == "train" else 1
                np.save(home / f"{part}.npy", signal.reshape(-1, per, *signal.shape[1:]).astype(np.float32))
            else:
                name = f"preprocessed_eeg_{'training' if part == 'train' else 'test'}.npy"
                if layout == "osf":
                    np.save(home / name, pickled(content, signal, rate=100.0, baseline=True), allow_pickle=True)  # type: ignore[arg-type]
                else:
                    with (home / name).open("wb") as stream:
                        pickle.dump(pickled(content, signal), stream, protocol=4)
    if layout == "arrays":
        info = {"ch_names": list(content.channels), "times": times(content).tolist(), "normalization": "mvnn"}
        (place / "info.json").write_text(json.dumps(info, indent=4))
    return place


def write(root: Path, layout: Layout = "whitened", **options: Any) -> Experiment:
    """Write one layout with its pictures and table."""
    root.mkdir(parents=True, exist_ok=True)
    content = experiment(**options)
    write_recordings(root, content, layout)
    write_table(root / "image_set", content)
    write_pictures(root / "image_set", content)
    return content
