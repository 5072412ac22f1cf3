"""Data sets whose signal is known to lie in some sensors at some time, or in some voxels, and runs on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import yaml

from callbacks import Part, save_part
from contracts import Output
from datamodules import BrainDataModule, EmbeddingOptions, Facts, MultiModal, Record, SignalAxes, Stimuli, Trials
from datamodules import DataModule as AnyData
from datamodules.core.samples import SampleOptions
from datamodules.core.splits import SplitOptions
from experiments.report.runs import Run
from experiments.report.time_resolved import Curve, decode
from tests.formats.recording import pictures

Array = np.ndarray[Any, Any]
CHANNELS, TIMES, RATE, START = 12, 40, 100.0, -0.1
INFORMED = (4, 5, 6)
"""Channels with a signal."""
FIRST, LAST = 22, 28
"""Samples with a signal: 120 to 170 ms."""
TRAIN, TEST = 90, 30
PIXELS = {"model": "pixels", "image_size": 2, "weights": None, "target": "center", "templates": []}
CLASSES = PIXELS | {"model": "classes", "target": "none"}
HERE = "tests.experiments.report.recordings"


def on_a_head(number: int) -> Array:
    """Positions ``(n, 3)`` in metres all over the upper half of a sphere, from the top down in a spiral."""
    height = np.linspace(1, 0, number)
    turn = np.arange(number) * np.pi * (3 - np.sqrt(5))
    flat = np.sqrt(1 - height**2)
    return 0.09 * np.column_stack([flat * np.cos(turn), flat * np.sin(turn), height]) + [0, 0.01, 0.04]


class _Known(BrainDataModule):
    """Pictures, bright and dark; ``people`` see them all, ``untrained`` those of the test alone."""

    facts: ClassVar[Facts]

    def __init__(
        self, root: str, people: list[str] | None = None, untrained: list[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(root, **kwargs)
        self.people = ["01"] if people is None else people
        self.untrained = [] if untrained is None else untrained

    def conversion_options(self) -> dict[str, Any]:
        return {"people": self.people, "untrained": self.untrained}

    def axes(self) -> SignalAxes:
        raise NotImplementedError

    def respond(self, pixels: Array, random: np.random.Generator) -> Array:
        raise NotImplementedError

    def read(self, root: Path) -> Iterator[Record]:
        images = pictures(TRAIN + TEST, seed=3)
        names = [f"picture-{i:03d}" for i in range(len(images))]
        # a picture's class is its brightness, so that it can be told from the signal
        brightness = images.mean(axis=(1, 2, 3))
        label = np.where(brightness > np.median(brightness), "bright", "dark")
        yield Stimuli(names, images, label.tolist())
        pixels = images.reshape(len(images), 2, 6, 2, 6, 3).mean(axis=(2, 4)).reshape(len(images), -1)
        pixels = (pixels - pixels.mean(axis=0)) / pixels.std()
        for number, person in enumerate([*self.people, *self.untrained]):
            seen = np.arange(0 if person in self.people else TRAIN, len(images))
            signal = self.respond(pixels[seen], np.random.default_rng([5, number]))
            split = ["train" if i < TRAIN else "test" for i in seen]
            yield Trials(person, signal.astype(np.float32), [names[i] for i in seen], split=split)
            yield replace(self.axes(), subject=person)


class InWindow(_Known):
    """EEG whose sensors ``INFORMED`` weigh the pixels of the picture from sample ``FIRST`` to ``LAST``, else noise."""

    name = "in_window"
    facts = Facts(modality="eeg", units="V", licence="made up", citation="none", subjects=("01",))

    def __init__(self, root: str, with_positions: bool = True, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.with_positions = with_positions

    def conversion_options(self) -> dict[str, Any]:
        return super().conversion_options() | {"with_positions": self.with_positions}

    def axes(self) -> SignalAxes:
        return SignalAxes(
            channels=[f"E{i}" for i in range(CHANNELS)],
            positions=on_a_head(CHANNELS) if self.with_positions else None,
            sampling_rate=RATE,
            start=START,
        )

    def respond(self, pixels: Array, random: np.random.Generator) -> Array:
        signal = random.standard_normal((len(pixels), CHANNELS, TIMES))
        # the same cap, and brains alike enough for a decoder of one to serve another
        weights = np.random.default_rng(9).standard_normal((pixels.shape[1], len(INFORMED)))
        weights[:, 0] = 1  # brightness, which is the class
        signal[:, INFORMED, FIRST:LAST] += (pixels @ weights)[:, :, None]
        return signal


class Silent(InWindow):
    """EEG that knows nothing of the pictures."""

    name = "silent"

    def respond(self, pixels: Array, random: np.random.Generator) -> Array:
        return random.standard_normal((len(pixels), CHANNELS, TIMES))


ROIS = {"V1": 20, "V2": 25, "PPA": 15}
VOXELS = sum(ROIS.values())


class InPlace(_Known):
    """fMRI of 60 voxels with places in front of each other, and noise ceilings."""

    name = "in_place"
    facts = Facts(modality="fmri", units="arbitrary", licence="made up", citation="none", subjects=("01",))

    def __init__(self, root: str, space: str | None = "MNI152", shift: float = 0.0, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.space_of_voxels: Any = space
        self.shift = shift

    def conversion_options(self) -> dict[str, Any]:
        return super().conversion_options() | {"space": self.space_of_voxels, "shift": self.shift}

    def axes(self) -> SignalAxes:
        known = self.space_of_voxels is not None
        return SignalAxes(
            rois=ROIS,
            ncsnr=np.linspace(0.5, 2, VOXELS, dtype=np.float32),
            coordinates=places() + self.shift if known else None,
            space=self.space_of_voxels,
        )

    def respond(self, pixels: Array, random: np.random.Generator) -> Array:
        return pixels @ random.standard_normal((pixels.shape[1], VOXELS)) + random.standard_normal(
            (len(pixels), VOXELS)
        )


def places() -> Array:
    """In the back of a brain, one voxel after the other along y."""
    number = np.arange(VOXELS)
    return np.column_stack([40.0 * (-1.0) ** number, -100 + number, 10.0 + number % 5])


def data_config(kind: type[BrainDataModule], root: Path, **options: Any) -> dict[str, Any]:
    """What a data file holds; the options of an image space, samples and divisions as there."""
    usual: dict[str, Any] = {
        "root": str(root),
        "stores": str(root / "stores"),
        "embedding": PIXELS,
        "split": {"validation": 0.0},
    }
    return {"class_path": f"{HERE}.{kind.__name__}", "init_args": usual | options}


def opened(config: dict[str, Any]) -> AnyData:
    """The data set of a configuration."""
    options = dict(config["init_args"])
    for name, kind in (("embedding", EmbeddingOptions), ("split", SplitOptions), ("samples", SampleOptions)):
        if name in options:
            options[name] = kind(**{key: value for key, value in options[name].items() if key != "window"})
    if "samples" in options and "window" in config["init_args"]["samples"]:
        options["samples"] = replace(options["samples"], window=tuple(config["init_args"]["samples"]["window"]))
    if "parts" in options:
        options["parts"] = {name: opened(part) for name, part in options["parts"].items()}
        return MultiModal(**options)
    kind_of: Any = globals()[config["class_path"].rpartition(".")[2]]
    data: AnyData = kind_of(**options)
    return data


def recorded_run(folder: Path, config: dict[str, Any], *, error: float | None = None) -> Run:
    """A run as a test leaves it: its configuration and outputs.

    Args:
        folder: ``<root>/<data>/<people>/<stage>/<name>``.
        config: The data.
        error: SD of the noise in which predicted signals differ from those measured, growing from 0 at the first voxel
            to this at the last; None for a stage that predicts none.
    """
    data = opened(config)
    samples = data.dataset("test")
    outputs: dict[str, Output] = {}
    for number, person in enumerate(data.layout["subjects"]):
        rows = (samples.subject == number).nonzero()[:, 0]
        if len(rows):
            batch: Any = samples[rows]
            outputs[person] = {name: batch[name] for name in ("signal", "stimulus", "label", "row", "subject")}
            outputs[person]["brain_embedding"] = batch["embedding"]
            if error is not None:
                noise = np.random.default_rng([7, number]).standard_normal(batch["signal"].shape)
                noise = error * noise * np.linspace(0, 1, noise.shape[1]).reshape(-1, *[1] * (noise.ndim - 2))
                outputs[person]["predicted_signal"] = batch["signal"] + torch.from_numpy(noise).float()
    folder.mkdir(parents=True)
    save_part(folder / "outputs.safetensors", Part(outputs, data.score_context("test")))
    (folder / "config_test.yaml").write_text(yaml.safe_dump({"data": config}))
    return Run(folder)


def run_folder(root: Path, name: str = "r", *, data: str = "made_up", people: str = "all", stage: str = "s") -> Path:
    """Where a run is kept."""
    return root / "runs" / data / people / stage / name


def of_kind(parts: Sequence[Any], kind: type[Any]) -> list[Any]:
    """Parts of a section of one kind."""
    return [part for part in parts if isinstance(part, kind)]


def decoded(data: Any, subject: int = 0, *, classes: bool = False) -> Curve:
    """Decoding over time of one person."""
    train, test = data.dataset("train"), data.dataset("test")
    return decode(train, test, subject, rate=RATE, start=START, classes=classes)
