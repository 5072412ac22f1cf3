"""Classes of stimuli: their names in order, and the number of each stimulus's class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from contracts import NO_LABEL


def class_names(of_stimuli: Iterable[str]) -> list[str]:
    """Return the classes of some stimuli, sorted, each once; the position of a name is the ``label`` of a batch.

    Args:
        of_stimuli: Class name of each stimulus, empty where it has none.
    """
    return sorted(set(of_stimuli) - {""})


def class_numbers(of_stimuli: Iterable[str], classes: Sequence[str]) -> Int64[Tensor, " s"]:
    """Return the class number of each stimulus, or ``NO_LABEL``.

    Args:
        of_stimuli: Class name of each stimulus, empty where it has none.
        classes: All names, in the order of their numbers.
    """
    position = {name: number for number, name in enumerate(classes)} | {"": NO_LABEL}
    return torch.tensor([position[name] for name in of_stimuli], dtype=torch.int64)
