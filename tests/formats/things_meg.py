"""Writes THINGS-MEG as it was published, only smaller: epochs in several fif files, a table, photographs."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pandas as pd
from PIL import Image

Array = np.ndarray[Any, Any]
CHANNELS = ("MLC11-1609", "MLF12-1609", "MRO21-1609", "MRT51-1609", "MZP01-1609")
TIMES = 8
SAMPLING_RATE = 200.0
# as in the published files, before the onset
FIRST_SAMPLE = -2
# a quarter turn about the vertical axis, and a shift: by hand, (x, y, z) becomes (0.01 - y, 0.02 + x, 0.03 + z)
DEVICE_TO_HEAD = np.array([[0, -1, 0, 0.01], [1, 0, 0, 0.02], [0, 0, 1, 0.03], [0, 0, 0, 1]])


@dataclass
class Person:
    """Samples ``(n, C, T)`` in the order of the table of trials, and sensors ``(C, 3)`` in device coordinates."""

    signal: Array
    attributes: pd.DataFrame
    positions: Array


@dataclass
class Experiment:
    """Pictures by stimulus (``coat_rack0_01b``), concepts that are tested, and people."""

    images: dict[str, Array]
    tested: list[str]
    people: list[Person]


def experiment(
    *,
    people: int = 2,
    concepts: int = 10,
    tested: int = 3,
    images: int = 3,
    repetitions: int = 4,
    catch: int = 5,
    sessions: int = 2,
    runs: int = 2,
    seed: int = 0,
    noise: float = 0.5,
) -> Experiment:
    """Responses that weigh the pixels of what was seen; a test image of the last concepts, and catch trials between."""
    random = np.random.default_rng(seed)
    # a name may hold what separates it from the number of the picture
    names = [f"{'coat_rack' if i % 2 else 'aardvark'}{i}" for i in range(concepts)]
    stimuli = [f"{name}_{i + 1:02d}b" for name in names for i in range(images)]
    test_stimuli = [f"{name}_{13 + i:02d}s" for i, name in enumerate(names[-tested:])]
    seen = [*stimuli, *test_stimuli]
    pixels = random.integers(0, 256, (len(seen), 8, 8, 3)).astype(np.uint8)
    pictures = dict(zip(seen, pixels, strict=True))

    def person() -> Person:
        kinds = ["exp"] * len(stimuli) + ["test"] * tested * repetitions + ["catch"] * catch
        shown = [*stimuli, *test_stimuli * repetitions, *[f"catch{i:03d}" for i in range(catch)]]
        order = random.permutation(len(shown))
        table = pd.DataFrame({"trial_type": kinds, "shown": shown}).iloc[order].reset_index(drop=True)
        place = table.index.to_numpy() * sessions * runs // len(table)
        weights = random.standard_normal((8 * 8 * 3, len(CHANNELS) * TIMES)) / 5
        grey = np.full((8, 8, 3), 127.5)
        pattern = np.stack([pictures.get(stimulus, grey).ravel() / 255 - 0.5 for stimulus in table["shown"]])
        signal = pattern @ weights + noise * random.standard_normal((len(table), weights.shape[1]))
        number = [float(names.index(s.rpartition("_")[0]) + 1) if s in pictures else np.nan for s in table["shown"]]
        attributes = pd.DataFrame(
            {
                "trial_type": table["trial_type"],
                "image_nr": table.index + 1,
                # no number in catch trials, hence floats
                "things_category_nr": number,
                "image_path": [_image_path(*row) for row in table.itertuples(index=False)],
                "run_nr": place % runs + 1,
                "session_nr": place // runs + 1,
            }
        )
        # as in the files, whose samples are float32
        samples = signal.reshape(-1, len(CHANNELS), TIMES).astype(np.float32)
        return Person(samples, attributes, random.standard_normal((len(CHANNELS), 3)).round(3) / 10)

    return Experiment(pictures, names[-tested:], [person() for _ in range(people)])


def _image_path(kind: str, stimulus: str) -> str:
    if kind == "exp":
        return f"images_meg/{stimulus.rpartition('_')[0]}/{stimulus}.jpg"
    return f"images_{kind}_meg/{stimulus}.jpg"


def save_epochs(
    path: Path,
    person: Person,
    *,
    parts: int = 3,
    metadata: bool = True,
    channels: tuple[str, ...] = CHANNELS,
    sampling_rate: float = SAMPLING_RATE,
    first_sample: int = FIRST_SAMPLE,
    kind: str = "mag",
    reference: int = 1,
) -> list[Path]:
    """Write the epochs of a person in about so many parts, with reference sensors before the others."""
    kinds = ["ref_meg"] * reference + [kind] * len(channels)
    info = mne.create_info([*(f"G{i}-1609" for i in range(reference)), *channels], sampling_rate, kinds)
    for entry, place in zip(info["chs"][reference:], person.positions, strict=True):
        entry["loc"][:3] = place
    info["dev_head_t"] = mne.transforms.Transform("meg", "head", DEVICE_TO_HEAD)
    signal = np.concatenate([np.full_like(person.signal[:, :1], 99)] * reference + [person.signal], axis=1)
    events = np.stack([300 * np.arange(len(signal)) + 7, np.zeros(len(signal)), np.arange(len(signal)) % 5 + 1], axis=1)
    epochs = mne.EpochsArray(
        signal,
        info,
        events.astype(int),
        tmin=first_sample / sampling_rate,
        metadata=person.attributes if metadata else None,
        verbose="ERROR",
    )
    for old in path.parent.glob(f"{path.stem}*.fif"):
        old.unlink()
    if parts == 1:
        return list(epochs.save(path, verbose="ERROR"))
    # MNE splits by bytes, of which it wants a megabyte to spare; what it wants in all is what it says
    try:
        epochs.save(path, split_size=1, verbose="ERROR")
    except ValueError as error:
        found = re.search(r"\((\d+) bytes\)", str(error))
        assert found is not None
        smallest = int(found[1])
    one = signal[0].size * 4
    return list(epochs.save(path, split_size=smallest + one * (len(signal) // parts), verbose="ERROR"))


def write_pictures(folder: Path, content: Experiment) -> None:
    """Write the photographs, each in the folder of its concept."""
    for stimulus, image in content.images.items():
        path = folder / stimulus.rpartition("_")[0] / f"{stimulus}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def write(root: Path, *, parts: int = 3, metadata: bool = True, tables: bool = False, **options: Any) -> Experiment:
    """Write epochs and photographs; the tables of trials stand in the epochs, in files of their own, or in both."""
    root.mkdir(parents=True, exist_ok=True)
    content = experiment(**options)
    for number, person in enumerate(content.people, start=1):
        save_epochs(root / f"preprocessed_P{number}-epo.fif", person, parts=parts, metadata=metadata)
        if tables:
            person.attributes.to_csv(root / f"sample_attributes_P{number}.csv", index=False)
    write_pictures(root / "Images", content)
    return content
