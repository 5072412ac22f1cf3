"""Data sets side by side: one numbering of stimuli, classes and people, one division, one order of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from contracts import PADDING, Batch, DataError
from datamodules.core.base import BrainDataModule
from datamodules.core.classes import class_names, class_numbers
from datamodules.core.loading import Samples
from datamodules.core.splits import choose

Array = NDArray[Any]
DIVIDED = ("by_stimulus", "by_class")
"""Protocols under which data sets can be divided together."""


class JointTables:
    """The stimuli and classes of several data sets in one numbering; a stimulus is its SHA-256, a class its name.

    Args:
        parts: The data sets by name.
    """

    def __init__(self, parts: Mapping[str, BrainDataModule]) -> None:
        self.parts = dict(parts)

    @cached_property
    def stimuli(self) -> pd.DataFrame:
        """One row for each stimulus: ``sha256``, ``class`` (the first one given), ``part`` and ``row`` where it is."""
        tables = [
            part.store.stimuli[["sha256", "class"]].assign(part=name, row=np.arange(len(part.store.stimuli)))
            for name, part in self.parts.items()
        ]
        everything = pd.concat(tables, ignore_index=True)
        named = everything[everything["class"] != ""].drop_duplicates("sha256").set_index("sha256")["class"]
        once = everything.drop_duplicates("sha256").reset_index(drop=True)
        return once.assign(**{"class": once["sha256"].map(named).fillna("")})

    @cached_property
    def numbers(self) -> dict[str, Int64[Tensor, " s"]]:
        """For each data set, the joint number of each row of its stimulus table."""
        position = pd.Series(np.arange(len(self.stimuli)), self.stimuli["sha256"])
        return {
            name: torch.tensor(position.loc[part.store.stimuli["sha256"]].tolist()) for name, part in self.parts.items()
        }

    def of(self, name: str, rows: pd.Series[int]) -> Int64[Tensor, " n"]:
        """Joint numbers of some rows of the stimulus table of a data set."""
        # a copy: what pandas gives may not be written to
        joint: Tensor = self.numbers[name][torch.tensor(rows.tolist(), dtype=torch.int64)]
        return joint

    @cached_property
    def classes(self) -> list[str]:
        """Class names of all data sets, sorted; the position of a name is the ``label`` of a batch."""
        return class_names(self.stimuli["class"])

    @cached_property
    def labels(self) -> Int64[Tensor, " s"]:
        """Class number of each stimulus, or ``NO_LABEL``."""
        return class_numbers(self.stimuli["class"], self.classes)

    def image(self, number: int) -> Array:
        """The picture with a joint stimulus number, RGB uint8 ``(H, W, 3)``."""
        stimulus = self.stimuli.iloc[number]
        return self.parts[stimulus["part"]].store.image(int(stimulus["row"]))

    def shown(self, side: str) -> Int64[Tensor, " n"]:
        """Joint numbers of the stimuli on one side of the division, each once, in order."""
        numbers = [
            self.of(name, part.trials["number"][part.trials["side"] == side]) for name, part in self.parts.items()
        ]
        shown: Tensor = torch.cat(numbers).unique()
        return shown


def divide_together(tables: JointTables, *, validation: float, seed: int) -> None:
    """Divide the trials of all data sets so that nothing stands on two sides of any of them.

    What one data set tests is trained on in none: such training trials are left out. With a data set divided
    ``by_class``, the same holds for classes. Validation stimuli (or classes) are chosen from all that are left.

    Args:
        tables: The data sets; their own ``split.validation`` must be 0.
        validation: Share of the training stimuli (classes) that is set aside, in all data sets alike.
        seed: Seed of the choice.

    Raises:
        DataError: A protocol that divides by neither, an impossible share, a data set with nothing left to train on.
    """
    if not 0 <= validation < 1:
        raise DataError(f"validation is a share of the training stimuli, 0 <= v < 1, found {validation}")
    unknown = {name: part.split.protocol for name, part in tables.parts.items() if part.split.protocol not in DIVIDED}
    if unknown:
        raise DataError(
            f"data sets side by side are divided {' or '.join(DIVIDED)}, found {unknown}; change their split.protocol"
        )
    whole_classes = any(part.split.protocol == "by_class" for part in tables.parts.values())
    shown, tested, tested_classes = {}, set[str](), set[str]()
    for name, part in tables.parts.items():
        stimuli = tables.stimuli.iloc[tables.of(name, part.trials["number"]).numpy()]
        shown[name] = stimuli.set_index(part.trials.index)
        test = shown[name][part.trials["side"] == "test"]
        tested |= set(test["sha256"])
        if part.split.protocol == "by_class":
            # under its own names, too: another part may call all that it shows otherwise
            own = part.store.stimuli["class"].iloc[part.trials["number"][part.trials["side"] == "test"]]
            tested_classes |= {*test["class"], *own} - {""}
    sides, units = {}, {}
    for name, part in tables.parts.items():
        side, stimulus, kind = part.trials["side"], shown[name]["sha256"], shown[name]["class"]
        elsewhere = (side == "train") & (stimulus.isin(tested) | kind.isin(tested_classes))
        sides[name] = side.mask(elsewhere, "")
        units[name] = kind.where(kind != "", stimulus) if whole_classes else stimulus
        if not (sides[name] == "train").any():
            raise DataError(
                f"part {name!r} has no training trial left: all {elsewhere.sum()} show what another part is tested on"
            )
        if elsewhere.any():
            rank_zero_info(
                f"{name}: {elsewhere.sum()} of {(side == 'train').sum()} training trials are left out, because another "
                "data set is tested on what they show"
            )
    chosen = choose(
        sorted({unit for name, side in sides.items() for unit in units[name][side == "train"]}), validation, seed
    )
    for name, part in tables.parts.items():
        validated = (sides[name] == "train") & units[name].isin(chosen)
        if validated.any() and validated.sum() == (sides[name] == "train").sum():
            raise DataError(f"part {name!r}: all of its training stimuli would be validated on; lower validation")
        part.divide(sides[name].mask(validated, "validation"))


class JointSamples(Samples):
    """Samples of several data sets in one numbering; a batch holds samples of one.

    Args:
        parts: Samples of each data set by name, with joint labels and embeddings.
        numbers: For each, the joint number of each row of its stimulus table.
        subjects: For each, the number of its first person among those of all.
    """

    def __init__(
        self, parts: Mapping[str, Samples], numbers: Mapping[str, Int64[Tensor, " s"]], subjects: Mapping[str, int]
    ) -> None:
        self.parts = dict(parts)
        self.numbers = [numbers[name] for name in self.parts]
        self.first_subject = [subjects[name] for name in self.parts]
        sizes = [len(part) for part in self.parts.values()]
        self.ends = torch.tensor(sizes).cumsum(0)
        self.first_row = dict(zip(self.parts, (self.ends - torch.tensor(sizes)).tolist(), strict=True))
        groups = [part.group for part in self.parts.values()]
        first_group = np.cumsum([0, *(int(group.max()) + 1 for group in groups)]).tolist()
        self.group = torch.cat([group + first for group, first in zip(groups, first_group, strict=False)])
        self.subject = torch.cat(
            [part.subject + first for part, first in zip(self.parts.values(), self.first_subject, strict=True)]
        )

    def __len__(self) -> int:
        """Number of samples."""
        return int(self.ends[-1])

    def __getitem__(self, numbers: Tensor) -> Batch:
        """Return the batch of some sample numbers, all of one data set and of people of one layout."""
        real = torch.where(numbers < 0, ~numbers, numbers)
        which = int(torch.searchsorted(self.ends, real[0], right=True))
        name = list(self.parts)[which]
        first = self.first_row[name]
        batch = self.parts[name][torch.where(numbers < 0, numbers + first, numbers - first)]
        batch["stimulus"] = self.numbers[which].index_select(0, batch["stimulus"])
        batch["subject"] = batch["subject"] + self.first_subject[which]
        batch["row"] = torch.where(batch["row"] == PADDING, PADDING, batch["row"] + first)
        return batch


class SideBySide(Dataset[dict[str, Batch]]):
    """Batches of all data sets at a time, by name.

    Args:
        samples: The samples of all.
    """

    def __init__(self, samples: JointSamples) -> None:
        self.samples = samples

    def __getitem__(self, numbers: Mapping[str, Tensor]) -> dict[str, Batch]:
        """Return the batch of some sample numbers of each data set, counted within it; none is padding."""
        return {name: self.samples[own + self.samples.first_row[name]] for name, own in numbers.items()}


def joined(values: Sequence[str]) -> str:
    """One text for several: the text itself where all agree, else all of them."""
    return values[0] if len(set(values)) == 1 else " / ".join(dict.fromkeys(values))
