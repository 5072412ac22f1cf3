"""Data sets side by side whose signals are a linear map of the embedding of the picture, one for each person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules import (
    BrainDataModule,
    EmbeddingOptions,
    LoaderOptions,
    MultiModal,
    SampleOptions,
    SignalAxes,
    SplitOptions,
    Stimuli,
    Trials,
)
from tests.formats.recording import Recording, SensorRecording

WIDTH = 12
"""Numbers of a picture of 2 x 2 pixels, which are its embedding once they have length 1."""
PIXELS = EmbeddingOptions(image_size=2, target="unit")
POOL = np.random.default_rng(11).integers(0, 256, (120, 2, 2, 3), dtype=np.uint8)
"""Pictures of all data sets."""


@dataclass(frozen=True)
class Made:
    """One data set: shape of a trial by person, and which pictures of ``POOL`` are for training and testing."""

    shape: Mapping[str, tuple[int, ...]]
    train: Sequence[int]
    test: Sequence[int]


PARTS: Mapping[str, Made] = {
    "eeg": Made({"01": (2, 8), "02": (2, 8)}, range(60), range(80, 100)),
    "meg": Made({"03": (3, 6)}, range(10, 70), range(100, 120)),
    "fmri": Made({"02": (17,), "04": (14,)}, range(20, 80), range(85, 105)),
}
"""EEG and MEG share no test picture, fMRI shares 15 with the EEG and 5 with the MEG."""
ONE_PERSON: Mapping[str, Made] = {
    name: Made(dict([next(iter(made.shape.items()))]), made.train, made.test) for name, made in PARTS.items()
}


def records(made: Made, *, noise: float, seed: int, spoilt: Sequence[int] = ()) -> list[Any]:
    """Records of a data set; of the ``spoilt`` pictures the signals are nothing but loud noise."""
    shown = [*made.train, *made.test]
    names = [f"picture-{number:03d}" for number in shown]
    result: list[Any] = [Stimuli(names, POOL[shown], [f"class {number % 4}" for number in shown])]
    pixels = POOL[shown].reshape(len(shown), -1) / 255.0
    points = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
    split = ["train"] * len(made.train) + ["test"] * len(made.test)
    for person, shape in made.shape.items():
        random = np.random.default_rng([seed, int(person)])
        signal = 9 * points @ random.standard_normal((WIDTH, int(np.prod(shape)))) + random.normal(0, 2, np.prod(shape))
        signal += noise * random.standard_normal(signal.shape)
        for number in spoilt:
            if number in shown:
                signal[shown.index(number)] = 50 * random.standard_normal(signal.shape[1])
        if len(shape) == 1:
            result.append(SignalAxes(person, rois={"V1": shape[0]}))
        else:
            channels = [f"E{i}" for i in range(shape[0])]
            positions = random.standard_normal((shape[0], 3)) / 10
            result.append(SignalAxes(person, channels=channels, positions=positions, sampling_rate=100.0, start=-0.1))
        trials = signal.reshape(-1, *shape).astype(np.float32)
        result.append(Trials(person, trials, stimulus=names, split=split))
    return result


def part(
    stores: Path, name: str, made: Made, *, noise: float = 0.3, spoilt: Sequence[int] = (), batch_size: int = 9
) -> BrainDataModule:
    """One of the data sets, with signals as they are."""
    folder = stores / f"{name}-{'-'.join(made.shape)}-{noise}-{'-'.join(map(str, spoilt))}"
    kind = SensorRecording if len(next(iter(made.shape.values()))) == 2 else Recording
    return kind(
        str(folder / "raw"),
        records(made, noise=noise, seed=sum(map(ord, name)), spoilt=spoilt),
        stores=str(folder),
        embedding=PIXELS,
        samples=SampleOptions(cleaning="none", normalise="none"),
        split=SplitOptions(validation=0.0),
        loader=LoaderOptions(batch_size=batch_size),
    )


def linear_world(
    stores: Path,
    parts: Mapping[str, Made] = PARTS,
    *,
    validation: float = 0.4,
    batch_size: int = 16,
    seed: int = 0,
    **options: Any,
) -> MultiModal:
    """All data sets as one."""
    return MultiModal(
        {name: part(stores, name, made, **options) for name, made in parts.items()},
        stores=str(stores / "joint"),
        embedding=PIXELS,
        validation=validation,
        loader=LoaderOptions(batch_size=batch_size, seed=seed),
    )
