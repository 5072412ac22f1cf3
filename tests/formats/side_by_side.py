"""Two small data sets that share some of their pictures: fMRI of people 01 and 02, EEG of people 02 and 03."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datamodules import (
    BrainDataModule,
    EmbeddingOptions,
    LoaderOptions,
    MultiModal,
    SampleOptions,
    SplitOptions,
    Stimuli,
    Trials,
)
from tests.formats.recording import Recording, SensorRecording, experiment, pictures

Array = np.ndarray[Any, Any]
EACH = 12
POOL: Array = pictures(6 * EACH, seed=3).reshape(6, EACH, 12, 12, 3)
"""Pictures of six classes, ``POOL[class, number]``."""

PARTS: Mapping[str, Mapping[str, Any]] = {
    "fmri": {
        "shape": {"01": (12,), "02": (9,)},
        "classes": (0, 1, 2, 3),
        "train": (0, 1, 2, 3, 4),
        "test": (5, 6),
        "batch_size": 5,
    },
    "eeg": {
        "shape": {"02": (4, 12), "03": (4, 12)},
        "classes": (1, 2, 3, 4),
        "train": (3, 4, 5, 8, 9, 10),
        "test": (6, 1),
        "batch_size": 4,
    },
}
"""By class, which numbers of ``POOL`` are for training and testing. Of classes 1 to 3, picture 5 is trained on by the
EEG and tested by the fMRI, picture 1 the other way round, 3 and 4 are trained on and 6 is tested by both."""

PIXELS = EmbeddingOptions(image_size=3)
USUAL = SampleOptions()
PLAIN = SampleOptions(cleaning="none", normalise="none", average_train="all")
"""Samples that do not depend on the division: means of trials."""


def name_of(kind: int, number: int) -> str:
    return f"class {kind} picture {number}"


def sha256(kind: int, number: int) -> str:
    """Key of a picture that is given as an array: the hash of its shape and numbers."""
    return hashlib.sha256(b"(12, 12, 3)" + POOL[kind, number].tobytes()).hexdigest()


def recorded(
    shape: Mapping[str, tuple[int, ...]],
    *,
    classes: Sequence[int],
    train: Sequence[int],
    test: Sequence[int],
    labels: Mapping[int, str] | None = None,
    has_pictures: bool = True,
    repetitions: int = 2,
    seed: int = 0,
    ncsnr: bool = True,
) -> list[Any]:
    """Records of an experiment with pictures of ``POOL``.

    Args:
        shape: Shape of one trial by person.
        classes: Classes of ``POOL``.
        train: Numbers of each class to train on.
        test: Numbers of each class to test on.
        labels: Class names that differ from ``class <number>``; empty text for none.
        has_pictures: Whether the pictures are there.
        repetitions: How often each training picture is shown.
        seed: Seed of the recordings.
        ncsnr: Whether the noise ceiling of fMRI is known.
    """
    records = experiment(
        shape,
        classes=len(classes),
        train=len(train),
        test=len(test),
        train_repetitions=repetitions,
        seed=seed,
        ncsnr=ncsnr,
    )
    shown = [(kind, number) for kind in classes for number in (*train, *test)]
    new = {f"picture-{i:03d}": name_of(*picture) for i, picture in enumerate(shown)}
    names = {kind: f"class {kind}" for kind in classes} | dict(labels or {})
    changed: list[Any] = []
    for record in records:
        if isinstance(record, Stimuli):
            image = np.stack([POOL[picture] for picture in shown]) if has_pictures else None
            record = replace(record, id=list(new.values()), image=image, label=[names[kind] for kind, _ in shown])
        elif isinstance(record, Trials):
            record = replace(record, stimulus=[new[name] for name in record.stimulus])
        changed.append(record)
    return changed


def part(
    stores: Path,
    name: str,
    *,
    split: Mapping[str, Any] | None = None,
    samples: SampleOptions = USUAL,
    embedding: EmbeddingOptions = PIXELS,
    batch_size: int | None = None,
    seed: int = 0,
    **changes: Any,
) -> Recording:
    """Make one of the data sets, with changes to ``PARTS`` and ``recorded``."""
    options = {**PARTS[name], **changes}
    own_batch_size, shape = options.pop("batch_size"), options.pop("shape")
    key = hashlib.sha256(repr((name, shape, sorted(options.items()))).encode()).hexdigest()[:8]
    kind = SensorRecording if len(next(iter(shape.values()))) == 2 else Recording
    return kind(
        str(stores / f"{name}-{key}" / "raw"),
        recorded(shape, **options),
        stores=str(stores / f"{name}-{key}"),
        embedding=embedding,
        samples=samples,
        split=SplitOptions(**{"validation": 0.0, **(split or {})}),
        loader=LoaderOptions(batch_size=batch_size or own_batch_size, seed=seed),
    )


def side_by_side(
    stores: Path,
    parts: Mapping[str, BrainDataModule] | None = None,
    *,
    validation: float = 0.25,
    embedding: EmbeddingOptions = PIXELS,
    batch_size: int = 7,
    seed: int = 0,
    **options: Any,
) -> MultiModal:
    """Both data sets, or others, as one."""
    return MultiModal(
        {name: part(stores, name) for name in PARTS} if parts is None else dict(parts),
        stores=str(stores / "joint"),
        embedding=embedding,
        validation=validation,
        loader=LoaderOptions(batch_size=batch_size, seed=seed),
        **options,
    )
