"""Which trials are for training, validation and testing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from contracts import DataError

Array = NDArray[Any]
Protocol = Literal["by_stimulus", "by_class", "by_run", "by_subject", "leave_one_repetition_out"]
SPLIT_NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class SplitOptions:
    """How trials are divided; the name of the protocol is printed with every score.

    Attributes:
        protocol: ``by_stimulus``: no picture on two sides. ``by_class``: no class on two sides (zero-shot).
            ``by_run``: no run on two sides, ``by_subject``: no person on two sides; the same stimuli are met again.
            ``leave_one_repetition_out``: fold f tests on repetition f of every picture; the same pictures
            are seen in training.
        trained: Part of the data set's trials to train on, or several joined by ``+``; THINGS-MEG marks those of
            concepts that are tested, which were trained on as published, as another part than ``train``.
        tested: The same of testing; GOD also has ``imagery``. Trials of no such part are left out.
        folds: 0 for the data set's own division, else the number of folds (``leave_one_repetition_out``
            takes it from the data).
        fold: Which fold to test on, from 0.
        validation: Share of the training stimuli (classes, runs, people) that is set aside for validation.
        seed: Seed of the assignment to folds and of the choice of validation stimuli.
    """

    protocol: Protocol = "by_stimulus"
    trained: str = "train"
    tested: str = "test"
    folds: int = 0
    fold: int = 0
    validation: float = 0.1
    seed: int = 0

    @property
    def name(self) -> str:
        """The protocol as it is printed with every score, with the parts that are not the usual ones."""
        trained = "" if self.trained == "train" else f", trained on {self.trained}"
        tested = "" if self.tested == "test" else f", tested on {self.tested}"
        return self.protocol + trained + tested


def number_of_folds(trials: pd.DataFrame, options: SplitOptions) -> int:
    """Return how many folds the protocol has in these trials (1 for the data set's own division)."""
    if options.protocol == "leave_one_repetition_out":
        return int(trials["repetition"].max()) + 1
    return options.folds or 1


def split_trials(
    trials: pd.DataFrame,
    classes: pd.Series[str],
    options: SplitOptions,
    *,
    parts: Sequence[str] = ("train", "test"),
) -> pd.Series[str]:
    """Assign each trial to ``train``, ``validation`` or ``test``.

    Args:
        trials: The store's trial table of the chosen people.
        classes: Class name by stimulus number.
        options: The protocol.
        parts: What trials may be marked as; the chosen people need not have trials of each.

    Returns:
        The split of each trial, on the index of ``trials``; empty text for those that are left out.

    Raises:
        DataError: A stimulus (or class) on two sides, an empty side, an impossible fold.
    """
    folds = number_of_folds(trials, options)
    if not 0 <= options.fold < folds:
        raise DataError(f"split.fold must be 0..{folds - 1} under {options.protocol}, found {options.fold}")
    if not 0 <= options.validation < 1:
        raise DataError(f"split.validation is a share of the training stimuli, 0 <= v < 1, found {options.validation}")
    trained, tested = options.trained.split("+"), options.tested.split("+")
    marked = {*parts, *trials["split"]}
    if not {*trained, *tested} <= marked or {*trained} & {*tested}:
        name, argument = ("train", "trained") if {*trained} - marked else ("test", "tested")
        raise DataError(f"{_nothing(name, trials, options)}; change --data.init_args.split.{argument}")
    used = trials["split"].isin([*trained, *tested])
    unit = _unit(trials, classes, options)
    if options.protocol == "by_class" and (unit[used] == "").any():
        raise DataError("split.protocol=by_class needs a class name for every stimulus; this data set lacks some")
    if options.protocol == "leave_one_repetition_out":
        test = used & (trials["repetition"] == options.fold)
    elif options.folds:
        test = used & (unit.map(_assign(unit[used], folds, options.seed)) == options.fold)
    else:
        test = trials["split"].isin(tested)
    train = used & ~test
    side = np.select([test, train], ["test", "train"], "").astype(object)
    if options.protocol != "leave_one_repetition_out":
        shared = sorted(set(unit[test]) & set(unit[train]))
        if shared:
            kind = options.protocol.removeprefix("by_")
            raise DataError(
                f"train/test overlap: {len(shared)} {kind} entries stand on both sides, the first is {kind} "
                f"{shared[0]!r} (equal pictures count as one stimulus). Correct the split column, or set "
                "split.folds to divide anew"
            )
    chosen = choose(unit[train].unique().tolist(), options.validation, options.seed)
    side[train & unit.isin(chosen)] = "validation"
    for name in ("train", "test"):
        if not (side == name).any():
            raise DataError(
                f"{_nothing(name, trials, options)}; correct the split of its trials, or divide anew with "
                "--data.init_args.split.folds=5"
            )
    return pd.Series(side.astype(str), trials.index)


def _nothing(name: str, trials: pd.DataFrame, options: SplitOptions) -> str:
    marks = ", ".join(f"{count} {mark}" for mark, count in trials["split"].value_counts().items())
    return (
        f"no {name} trials under {options.protocol} (trained: {options.trained}, tested: {options.tested}): the data "
        f"set marks {marks} trials"
    )


def _unit(trials: pd.DataFrame, classes: pd.Series[str], options: SplitOptions) -> pd.Series[Any]:
    """What must not stand on two sides."""
    if options.protocol == "by_class":
        return trials["number"].map(classes)
    if options.protocol == "by_subject":
        return trials["subject"]
    if options.protocol == "by_run":
        return trials["subject"] + "/" + trials["session"] + "/" + trials["run"]
    return trials["number"]


def _assign(unit: pd.Series[Any], folds: int, seed: int) -> dict[Any, int]:
    units = np.sort(np.asarray(unit.unique()))
    if folds > len(units):
        raise DataError(f"split.folds={folds}, but there are only {len(units)} different ones to divide")
    order = np.random.default_rng(seed).permutation(len(units))
    return {units[position]: i % folds for i, position in enumerate(order)}


def choose(units: list[Any], share: float, seed: int) -> Array:
    """Choose the share of the training units (stimuli, classes, ...) that is set aside for validation.

    Raises:
        DataError: A share that is above 0 and leaves one of the sides none.
    """
    count = round(share * len(units))
    if share > 0 and not 0 < count < len(units):
        raise DataError(
            f"split.validation={share} of {len(units)} training stimuli is {count}; "
            "choose a share that leaves both sides some, or 0"
        )
    # another stream than the folds', so that the two choices are independent
    return np.random.default_rng([seed, 1]).permutation(sorted(units))[:count]
