"""Recordings whose samples are made in one way or another."""

from pathlib import Path
from typing import Any

import numpy as np

from datamodules import EmbeddingOptions, LoaderOptions, SampleOptions
from tests.datamodules.contract import everything
from tests.formats.recording import Recording, experiment

Array = np.ndarray[Any, Any]


def recording(
    folder: Path,
    records: list[Any] | None = None,
    samples: SampleOptions | None = None,
    kind: type[Recording] = Recording,
    **options: Any,
) -> Recording:
    samples = SampleOptions() if samples is None else samples
    records = experiment({"01": (12,)}) if records is None else records
    usual = {"stores": str(folder / "stores"), "loader": LoaderOptions(batch_size=4)}
    small = EmbeddingOptions(image_size=4)
    return kind(str(folder / "raw"), records, samples=samples, embedding=small, **(usual | options))


def signals(data: Recording, split: str) -> Array:
    return np.concatenate([batch["signal"].numpy() for batch in everything(data, split)])
