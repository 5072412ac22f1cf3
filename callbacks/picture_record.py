"""PictureRecord: small copies of what was seen and generated in a test, which reports show."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from callbacks.metrics.gather import Outputs
from callbacks.picture_reduction import GENERATED, check_output, kept_pixels
from callbacks.record import save_tensors
from contracts import DataError

FILE = "pictures.safetensors"
_LOSSLESS_SIDE = 32


@dataclass(frozen=True)
class Pictures:
    """Small copies of pictures, encoded as PNG (up to 32 pixels) or WebP.

    Attributes:
        names: Name of each stimulus of the test, by its number.
        seen: The picture of each stimulus, by its number; empty where there are none.
        generated: By person and ``row`` of the test, the S generated pictures.
    """

    names: Mapping[int, str]
    seen: Mapping[int, bytes] = field(default_factory=dict)
    generated: Mapping[str, Mapping[int, Sequence[bytes]]] = field(default_factory=dict)


class PictureRecord(Callback):
    """Writes ``<run>/pictures.safetensors`` in a test: names and pictures of the stimuli, and generated pictures.

    Data sets without pictures leave the names alone. Generated pictures of 1,000 recordings with 5 samples take
    0.14 GB of memory until they are written, and about 15 MB of disk.

    Args:
        side: Longest side of a kept picture in pixels; smaller ones are kept as they are.
    """

    def __init__(self, side: int = 96) -> None:
        self.side = side
        self._outputs = Outputs()

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier test."""
        self._outputs = Outputs()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep small copies of what was generated from the recordings."""
        kept = {name: outputs[name] for name in ("stimulus", "subject", "row")}
        if GENERATED in outputs:
            check_output(outputs)
            kept[GENERATED] = self._reduced(outputs[GENERATED])
        self._outputs.update(kept)

    def _reduced(self, pictures: UInt8[Tensor, "b s 3 h w"]) -> Tensor:
        height, width = pictures.shape[-2:]
        scale = self.side / max(height, width)
        if scale >= 1:
            return pictures
        flat = kept_pixels(pictures.flatten(0, 1), (round(scale * height), round(scale * width)))
        small: Tensor = flat.unflatten(0, pictures.shape[:2])
        return small

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the pictures of all processes and write them."""
        people = self._outputs.compute()
        self._outputs = Outputs()
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.test
        layout: Any = pl_module.layout
        numbers = sorted({number for output in people.values() for number in output["stimulus"].tolist()})
        generated = {
            layout["subjects"][person]: {
                row: [_encoded(picture) for picture in pictures.permute(0, 2, 3, 1).numpy()]
                for row, pictures in zip(output["row"].tolist(), output[GENERATED], strict=True)
            }
            for person, output in people.items()
            if GENERATED in output
        }
        names = {number: data.stimulus_name(number) for number in numbers}
        save_pictures(Path(trainer.default_root_dir) / FILE, Pictures(names, self._seen(data, numbers), generated))

    def _seen(self, data: Any, numbers: Sequence[int]) -> dict[int, bytes]:
        seen = {}
        try:
            for number in numbers:
                picture = data.picture(number)
                if picture is None:
                    return {}
                small = Image.fromarray(picture)
                # never enlarges
                small.thumbnail((self.side, self.side))
                seen[number] = _encoded(np.asarray(small))
        except DataError as error:
            # scores need no pictures; a report says that they are missing
            rank_zero_warn(f"{FILE} of this run holds no pictures that were seen: {error}")
            return {}
        return seen


def _encoded(picture: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    if max(picture.shape[:2]) <= _LOSSLESS_SIDE:
        Image.fromarray(picture).save(stream, format="png", optimize=True)
    else:
        Image.fromarray(picture).save(stream, format="webp", quality=85)
    return stream.getvalue()


def save_pictures(path: Path, pictures: Pictures) -> None:
    """Write pictures into one ``.safetensors`` file, in one rename."""
    tensors = _packed("seen", list(pictures.seen), list(pictures.seen.values()))
    for person, rows in pictures.generated.items():
        flat = [picture for samples in rows.values() for picture in samples]
        numbers = [row for row, samples in rows.items() for _ in samples]
        tensors |= _packed(f"generated/{person}", numbers, flat)
    save_tensors(path, tensors, {"names": json.dumps({str(key): name for key, name in pictures.names.items()})})


def load_pictures(path: Path) -> Pictures:
    """Read what ``save_pictures`` wrote.

    Raises:
        DataError: Missing or damaged file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = {int(number): name for number, name in json.loads(file.metadata()["names"]).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        for name in tensors:
            if name.endswith("/bytes"):
                _check_pictures(name.removesuffix("/bytes"), tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"cannot read {path}: {type(error).__name__}: {error}; test the run again") from error
    generated: dict[str, dict[int, list[bytes]]] = {}
    for name in tensors:
        group, _, rest = name.partition("/")
        if group == "generated" and rest.endswith("/bytes"):
            rows = generated.setdefault(rest.removesuffix("/bytes"), {})
            for row, picture in _unpacked(name.removesuffix("/bytes"), tensors):
                rows.setdefault(row, []).append(picture)
    return Pictures(names, dict(_unpacked("seen", tensors)), generated)


def _packed(name: str, numbers: Sequence[int], encoded: Sequence[bytes]) -> dict[str, Tensor]:
    """Files one after another, where each ends, and what each is of."""
    return {
        f"{name}/bytes": torch.from_numpy(np.frombuffer(b"".join(encoded), np.uint8).copy()),
        f"{name}/end": torch.tensor([len(each) for each in encoded], dtype=torch.int64).cumsum(0),
        f"{name}/number": torch.tensor(numbers, dtype=torch.int64),
    }


def _check_pictures(name: str, tensors: Mapping[str, Tensor]) -> None:
    for number, picture in _unpacked(name, tensors):
        if not picture.startswith((b"\x89PNG", b"RIFF")):
            raise ValueError(f"{name} picture of {number} is neither PNG nor WebP: it starts with {picture[:4]!r}")


def _unpacked(name: str, tensors: Mapping[str, Tensor]) -> list[tuple[int, bytes]]:
    content = tensors[f"{name}/bytes"].numpy().tobytes()
    ends = tensors[f"{name}/end"].tolist()
    starts = [0, *ends][:-1]
    numbers = tensors[f"{name}/number"].tolist()
    return [(number, content[start:end]) for number, start, end in zip(numbers, starts, ends, strict=True)]
