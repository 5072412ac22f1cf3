"""A small data set in memory, whose records a test may change as it likes."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from datamodules import BrainDataModule, Facts, Record, SignalAxes, Stimuli, Trials

Array = np.ndarray[Any, Any]


class Recording(BrainDataModule):
    """Yields the records it is given, and writes down in ``root/reads.txt`` each time it is asked for them.

    Args:
        root: Folder of the raw files (pictures, if they are files).
        records: What ``read`` gives.
        variant: Stands for any option that changes what is read.
        **kwargs: As for every data set.
    """

    name = "recording"
    facts: ClassVar[Facts] = Facts(
        modality="fmri", units="arbitrary", licence="made up", citation="none", subjects=("01", "02")
    )

    def __init__(self, root: str, records: Iterable[Record], variant: str = "", **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.records = records
        self.variant = variant

    def conversion_options(self) -> dict[str, Any]:
        return {"variant": self.variant} if self.variant else {}

    def read(self, root: Path) -> Iterator[Record]:
        root.mkdir(parents=True, exist_ok=True)
        with (root / "reads.txt").open("a") as log:
            log.write("read\n")
        yield from self.records


class SensorRecording(Recording):
    """The same with EEG: signals of sensors and time points."""

    name = "sensors"
    facts = replace(Recording.facts, modality="eeg", units="V")


def pictures(number: int, *, side: int = 12, seed: int = 0) -> Array:
    """Different pictures ``(n, side, side, 3)`` uint8: a coloured bar on a coloured ground, and some grain."""
    random = np.random.default_rng([seed, 7])
    result = random.integers(0, 60, (number, side, side, 3))
    for picture in result:
        top = random.integers(side // 2)
        picture[top : top + side // 2] += random.integers(0, 190, 3)
    return result.astype(np.uint8)


def experiment(
    shape: Mapping[str, tuple[int, ...]] | None = None,
    *,
    classes: int = 4,
    train: int = 5,
    test: int = 2,
    train_repetitions: int = 2,
    test_repetitions: int = 3,
    sessions: int = 2,
    runs: int = 1,
    offset: float = 0.0,
    noise: float = 0.5,
    dtype: str = "float32",
    images: Literal["colour", "grey"] | Path = "colour",
    ncsnr: bool = True,
    seed: int = 0,
) -> list[Record]:
    """Records of an experiment in which every voxel (or sensor and time) weighs the pixels of the picture seen.

    Args:
        shape: Shape of one trial by person.
        classes: Number of classes.
        train: Training pictures of each class.
        test: Test pictures of each class.
        train_repetitions: How often each training picture is shown.
        test_repetitions: How often each test picture is shown.
        sessions: Sessions, each with its own gain and baseline.
        runs: Runs of each session.
        offset: Added to all signals.
        noise: SD of the noise; that of the signal is about 1.
        dtype: Type of the signals.
        images: Pictures as arrays in colour or grey, or a folder to which PNG files are written.
        ncsnr: Whether fMRI axes give the noise ceiling.
        seed: Seed of everything.
    """
    shape = {"01": (12,), "02": (9,)} if shape is None else shape
    each = train + test
    number = classes * each
    image = pictures(number, seed=seed)
    names = [f"picture-{i:03d}" for i in range(number)]
    split = np.array(["train" if i % each < train else "test" for i in range(number)])
    shown: Any = image.mean(axis=3).astype(np.uint8) if images == "grey" else image
    if isinstance(images, Path):
        images.mkdir(parents=True, exist_ok=True)
        shown = [images / f"{name}.png" for name in names]
        for path, picture in zip(shown, image, strict=True):
            Image.fromarray(picture).save(path)
    label = [f"class {i // each}" for i in range(number)]
    records: list[Record] = [Stimuli(names, shown, label, caption=[f"a picture of {name}" for name in label])]
    pixels = image.reshape(number, -1) / 255.0
    pixels = (pixels - pixels.mean(axis=0)) / pixels.std()
    repetitions = np.where(split == "train", train_repetitions, test_repetitions)
    for person, (subject, form) in enumerate(shape.items()):
        random = np.random.default_rng([seed, person])
        response = pixels @ random.standard_normal((pixels.shape[1], int(np.prod(form)))) / np.sqrt(pixels.shape[1])
        order = random.permutation(np.repeat(np.arange(number), repetitions))
        place = np.arange(len(order)) * sessions * runs // len(order)
        if len(form) == 1:
            first = form[0] // 3
            axes = SignalAxes(
                subject,
                rois={"V1": first, "V2": form[0] - first},
                ncsnr=np.linspace(0.2, 2, form[0], dtype=np.float32) if ncsnr else None,
            )
        else:
            channels = [f"E{i}" for i in range(form[0])]
            positions = random.standard_normal((form[0], 3)) / 10
            axes = SignalAxes(subject, channels=channels, positions=positions, sampling_rate=100.0, start=-0.1)
        records.append(axes)
        for session in range(sessions):
            gain, baseline = random.uniform(0.5, 2), random.normal(0, 2, int(np.prod(form)))
            for run in range(runs):
                mine = order[place == session * runs + run]
                clean = response[mine] + noise * random.standard_normal((len(mine), response.shape[1]))
                signal = (offset + baseline + gain * clean).reshape(-1, *form).astype(dtype)
                records.append(
                    Trials(
                        subject,
                        signal,
                        stimulus=[names[i] for i in mine],
                        split=list(split[mine]),
                        session=str(session + 1),
                        run=str(run + 1),
                    )
                )
    return records


def change(records: list[Record], kind: type[Any], position: int = 0, /, **values: Any) -> list[Record]:
    """Return the records with other values in the ``position``-th one of a kind."""
    places = [i for i, record in enumerate(records) if isinstance(record, kind)]
    result = list(records)
    result[places[position]] = replace(result[places[position]], **values)
    return result
