"""Whole batches of samples from the prepared signals of one or several people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contracts import PADDING, Batch, DataError
from datamodules.core.loading import Residence, Samples
from datamodules.core.pictures import stack_pictures
from datamodules.core.samples import SubjectSamples

Array = NDArray[Any]


class SampleDataset(Samples):
    """Samples of one split, or of several, served as batches: ``dataset[numbers]`` is a ``Batch``.

    Sample numbers run over the people in order; ``~i`` gives sample ``i`` marked as padding.

    Args:
        people: Prepared samples of each person.
        splits: Which of ``train``, ``validation`` and ``test``.
        targets: ``(S, D)`` embedding of each stimulus, or None to leave ``embedding`` out.
        labels: ``(S,)`` class number of each stimulus.
        image: Gives the picture with a stimulus number, or None to leave ``image`` out.
        residence: ``mmap``, ``ram`` or ``device``.
        device: Where ``device`` is.

    Raises:
        DataError: No sample in this split.
    """

    def __init__(
        self,
        people: Sequence[SubjectSamples],
        splits: Sequence[str],
        *,
        targets: Tensor | None,
        labels: Tensor,
        image: Callable[[int], Array] | None = None,
        residence: Residence = "mmap",
        device: torch.device = torch.device("cpu"),
    ) -> None:
        parts = [(number, split) for split in splits for number in range(len(people))]
        sizes = [len(people[number].rows[split]) for number, split in parts]
        if not sum(sizes):
            raise DataError(f"no samples in split {' or '.join(map(repr, splits))}; change --data.init_args.split")
        place = device if residence == "device" else torch.device("cpu")
        self.signals = [_load(people[number], split, residence, place) for number, split in parts]
        self.mean = [torch.as_tensor(people[number].mean[split]).to(place) for number, split in parts]
        self.scale = [torch.as_tensor(1 / people[number].std[split]).to(place) for number, split in parts]
        self.source = torch.cat([row for _, row in self.signals])
        self.stimulus = torch.from_numpy(np.concatenate([people[number].stimulus[split] for number, split in parts]))
        self.part = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor(sizes))
        self.subject = torch.tensor([number for number, _ in parts])[self.part]
        self.shapes = [person.kept.shape for person in people]
        layouts = [(person.kept.shape, *person.kept.rois.items()) for person in people]
        numbers = {layout: number for number, layout in enumerate(dict.fromkeys(layouts))}
        self.group = torch.tensor([numbers[layout] for layout in layouts])[self.subject]
        self.targets = None if targets is None else targets.to(place)
        self.labels = labels
        self.image = image
        self.place = place

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.stimulus)

    def __getitem__(self, numbers: Tensor) -> Batch:
        """Return the batch of some sample numbers, all of people of one layout (shape and regions).

        Args:
            numbers: ``(B,)`` int64.
        """
        # a batch of small recordings takes a fifth of a millisecond, so every look-up beside the signal counts
        padded = bool(numbers.min() < 0)
        real = torch.where(numbers < 0, ~numbers, numbers) if padded else numbers
        stimulus = self.stimulus.index_select(0, real)
        subject = self.subject.index_select(0, real)
        batch = Batch(
            signal=self._signal(real),
            stimulus=stimulus,
            label=self.labels.index_select(0, stimulus),
            subject=subject,
            row=torch.where(numbers < 0, PADDING, numbers) if padded else numbers,
        )
        if self.targets is not None:
            batch["embedding"] = self.targets.index_select(0, stimulus.to(self.place))
        if self.image is not None:
            batch["image"] = self._images(stimulus)
        return batch

    def _signal(self, real: Tensor) -> Tensor:
        part = self.part.index_select(0, real)
        parts = part.unique().tolist() if len(self.signals) > 1 else [0]
        if len(parts) == 1:
            return self._of_part(parts[0], real)
        places = {number: torch.nonzero(part == number).flatten() for number in parts}
        signal = torch.empty(len(real), *self.shapes[int(self.subject[real[0]])], device=self.place)
        for number, rows in places.items():
            signal[rows.to(self.place)] = self._of_part(number, real[rows])
        return signal

    def _of_part(self, number: int, real: Tensor) -> Tensor:
        stored, _ = self.signals[number]
        signal = stored.index_select(0, self.source.index_select(0, real).to(self.place)).float()
        return signal.sub_(self.mean[number]).mul_(self.scale[number])

    def _images(self, stimulus: Tensor) -> Tensor:
        assert self.image is not None
        return stack_pictures([self.image(number) for number in stimulus.tolist()])


def _load(person: SubjectSamples, split: str, residence: Residence, place: torch.device) -> tuple[Tensor, Tensor]:
    """Return the signals to index, and the row of each sample in them."""
    rows = torch.from_numpy(person.rows[split])
    if residence == "mmap":
        # copy-on-write: torch wants writable memory, the file must never change
        path = person.signal.filename  # type: ignore[attr-defined]  # numpy.memmap
        return torch.from_numpy(np.load(path, mmap_mode="c")), rows
    signal = torch.from_numpy(person.signal[person.rows[split]])
    return signal.to(place), torch.arange(len(rows))
