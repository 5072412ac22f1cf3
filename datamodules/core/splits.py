"""Which trials are for training, validation and testing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from contracts import DataError

Array = NDArray[Any]
Protocol = Literal["by_stimulus", "by_class", "leave_one_repetition_out"]
SPLIT_NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class SplitOptions:
    """How trials are divided; the name of the protocol is printed with every score.

    Attributes:
        protocol: ``by_stimulus``: no picture on two sides. ``by_class``: no class on two sides (zero-shot).
            ``leave_one_repetition_out``: fold f tests on repetition f of every picture; the same pictures
            are seen in training.
        folds: 0 for the data set's own division, else the number of folds (``leave_one_repetition_out``
            takes it from the data).
        fold: Which fold to test on, from 0.
        validation: Share of the training stimuli that is set aside for validation.
        seed: Seed of the assignment to folds and of the choice of validation stimuli.
    """

    protocol: Protocol = "by_stimulus"
    folds: int = 0
    fold: int = 0
    validation: float = 0.1
    seed: int = 0


def number_of_folds(trials: pd.DataFrame, options: SplitOptions) -> int:
    """Return how many folds the protocol has in these trials (1 for the data set's own division)."""
    if options.protocol == "leave_one_repetition_out":
        return int(trials["repetition"].max()) + 1
    return options.folds or 1


def split_trials(trials: pd.DataFrame, classes: pd.Series[str], options: SplitOptions) -> pd.Series[str]:
    """Assign each trial to ``train``, ``validation`` or ``test``.

    Args:
        trials: The store's trial table of the chosen people.
        classes: Class name by stimulus number.
        options: The protocol.

    Returns:
        The split of each trial, on the index of ``trials``.

    Raises:
        DataError: A stimulus (or class) on two sides, an empty side, an impossible fold.
    """
    folds = number_of_folds(trials, options)
    if not 0 <= options.fold < folds:
        raise DataError(f"split.fold must be 0..{folds - 1} under {options.protocol}, found {options.fold}")
    if not 0 <= options.validation < 1:
        raise DataError(f"split.validation is a share of the training stimuli, 0 <= v < 1, found {options.validation}")
    unit = trials["number"].map(classes) if options.protocol == "by_class" else trials["number"]
    if options.protocol == "by_class" and (unit == "").any():
        raise DataError("split.protocol=by_class needs a class name for every stimulus; this data set lacks some")
    if options.protocol == "leave_one_repetition_out":
        test = trials["repetition"] == options.fold
    elif options.folds:
        test = unit.map(_assign(unit, folds, options.seed)) == options.fold
    else:
        test = trials["split"] == "test"
    side = np.where(test, "test", "train").astype(object)
    if options.protocol != "leave_one_repetition_out":
        shared = sorted(set(unit[test]) & set(unit[~test]))
        if shared:
            kind = "class" if options.protocol == "by_class" else "stimulus"
            raise DataError(
                f"train/test overlap: {len(shared)} {kind} entries stand on both sides, the first is {kind} "
                f"{shared[0]!r} (equal pictures count as one stimulus). Correct the split column, or set "
                "split.folds to divide anew"
            )
    chosen = _choose(unit[~test].unique().tolist(), options.validation, options.seed)
    side[~test & unit.isin(chosen)] = "validation"
    for name in ("train", "test"):
        if not (side == name).any():
            raise DataError(
                f"no {name} trials under {options.protocol}: the data set marks "
                f"{', '.join(f'{n} {s}' for s, n in trials['split'].value_counts().items())} trials; correct the split "
                "of its trials, or divide anew with --data.init_args.split.folds=5"
            )
    return pd.Series(side.astype(str), trials.index)


def _assign(unit: pd.Series[Any], folds: int, seed: int) -> dict[Any, int]:
    units = np.sort(np.asarray(unit.unique()))
    if folds > len(units):
        raise DataError(f"split.folds={folds}, but there are only {len(units)} different stimuli or classes")
    order = np.random.default_rng(seed).permutation(len(units))
    return {units[position]: i % folds for i, position in enumerate(order)}


def _choose(units: list[Any], share: float, seed: int) -> Array:
    count = round(share * len(units))
    if share > 0 and not 0 < count < len(units):
        raise DataError(
            f"split.validation={share} of {len(units)} training stimuli is {count}; "
            "choose a share that leaves both sides some, or 0"
        )
    # another stream than the folds', so that the two choices are independent
    return np.random.default_rng([seed, 1]).permutation(sorted(units))[:count]
