"""One trial of a sweep: runs that are trained and validated, never tested, and a row of the sweep's table."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch.utilities.exceptions import SIGTERMException

from contracts import DataError
from experiments.cells import Cell, GridOptions, Launcher, Setting, command, options_of, settings
from experiments.trial_table import Trial, read_trial, write_trial

_UNIMPORTANT = ("root", "name", "launcher", "trial", "overwrite", "reference")


@dataclass(frozen=True)
class Made:
    """What a trial is made with.

    Attributes:
        options: The grid; one stage, one data set.
        arguments: Further arguments of its runs (``settings``), in an order that does not depend on the launcher.
        parameters: Options of the grid that matter, and arguments, by name.
        key: Ten hexadecimal digits of the parameters.
    """

    options: GridOptions
    arguments: tuple[str, ...]
    parameters: Mapping[str, Any]
    key: str

    @classmethod
    def by(cls, options: GridOptions, arguments: Sequence[str]) -> Made:
        """Put what a command line says in order."""
        groups = _in_order(arguments)
        parameters = _parameters(options, groups)
        key = hashlib.sha256(json.dumps(parameters).encode()).hexdigest()[:10]
        return cls(options, tuple(word for group in groups for word in group), parameters, key)

    def settings(self) -> list[Setting]:
        """What is trained: one stage on one data set, by all seeds.

        Raises:
            DataError: The options are none of a trial.
        """
        if self.options.overwrite or self.options.reference is not None:
            raise DataError(
                "a trial neither overwrites nor is compared with published scores: leave --overwrite and --reference "
                "out; a changed recipe is another run"
            )
        found = list(settings(self.options, self.arguments))
        if len({(setting.stage, setting.data) for setting in found}) > 1:
            raise DataError(
                "a trial is about one stage and one data set; sweep them as parameters of the sweep file, such as "
                "data: {values: [configs/data/god.yaml, configs/data/bold5000.yaml]}"
            )
        return found

    def finished(self) -> Trial | None:
        """The trial, from the table, if it is finished and its runs are there, trained as they would be now."""
        trial = read_trial(self.options.root, self.options.name, self.key)
        if trial is None or trial.status != "finished":
            return None
        cells = _cells(self.settings())
        # names of runs tell what they are trained with: a file that was changed since gives other ones
        same = list(trial.runs) == [str(cell.folder) for cell in cells]
        return trial if same and all(_is_trained(cell) for cell in cells) else None

    def run(self) -> Trial:
        """Train and validate; returns means over people, folds and seeds.

        Raises:
            DataError: Nothing is set aside for validation, or nothing was logged.
        """
        found = self.settings()
        _refuse_without_validation(found[0])
        cells = _cells(found)
        if any(len(model) > 1 for setting in found for model in setting.models):
            print(
                "several folds: what one of them validates on, another tests on; sweep one (--folds=0) where the test "
                "set must be new to what is chosen here"
            )
        values = _mean([_validated(cell, self.options.launcher) for cell in cells])
        return Trial(self.key, "finished", self.parameters, values=values, runs=[str(cell.folder) for cell in cells])


def run_trial(options: GridOptions, arguments: Sequence[str]) -> Trial:
    """Train and validate the runs of a trial, and write their mean into the table of its sweep.

    Runs are named by what they are trained with. What is finished is not trained again, be it a whole trial or an
    earlier stage that several trials are made from; a run that was interrupted goes on from its last checkpoint.
    Several agents may run trials of one sweep: where two need the same run, one trains it and the other waits.

    Args:
        options: The grid.
        arguments: Further arguments of its runs.

    Returns:
        The row of the table.
    """
    made = Made.by(options, arguments)
    with _tracked() as log:
        try:
            trial = made.finished() or made.run()
        except (Exception, SystemExit) as error:
            # a terminated trial has not failed: it goes on where it was
            if not isinstance(error, SIGTERMException):
                said = "stopped; its output says why" if isinstance(error, SystemExit) else str(error)
                write_trial(options.root, options.name, Trial(made.key, "failed", made.parameters, error=said))
            raise
        log(trial.values)
    print(f"trial {trial.key} of {options.name}", *(f"{n:<40}{v:.6g}" for n, v in trial.values.items()), sep="\n  ")
    print("table:", write_trial(options.root, options.name, trial))
    return trial


def _cells(found: Sequence[Setting]) -> list[Cell]:
    return [cell for setting in found for cells in setting.models for cell in cells]


def _in_order(arguments: Sequence[str]) -> list[list[str]]:
    """Arguments of runs, each with its values: files first, then by name, however the launcher has ordered them."""
    groups = options_of(arguments)
    files = [group for group in groups if group[0].partition("=")[0] in ("-c", "--config")]
    return [*files, *sorted((g for g in groups if g not in files), key=lambda group: group[0].partition("=")[0])]


def _parameters(options: GridOptions, arguments: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What a trial is made with, by name: options of the grid that matter, and arguments of its runs."""
    given = {name: value for name, value in asdict(options).items() if name not in _UNIMPORTANT and value is not None}
    if options.trainer == GridOptions.trainer:
        del given["trainer"]
    for first, *values in arguments:
        name, equals, value = first.partition("=")
        name = "config" if name == "-c" else name.removeprefix("--")
        value = value if equals else " ".join(values)
        given[name] = f"{given[name]} {value}" if name == "config" and name in given else value
    return given


# ---- runs ----------------------------------------------------------------------------------------------


def _is_trained(cell: Cell) -> bool:
    return (cell.folder / "final.ckpt").exists()


def _refuse_without_validation(setting: Setting) -> None:
    if not setting.module.has_validation():
        raise DataError(
            f"nothing of {setting.data} is set aside for validation, and a trial never sees the test set; set "
            "--data.init_args.split.validation=0.1 (of pictures alone and of several data sets "
            "--data.init_args.validation)"
        )


def _validated(cell: Cell, launcher: Launcher) -> dict[str, float]:
    """Train a run where that is not done, and return what its validation logs."""
    _train(cell, launcher)
    with _alone(cell.folder):
        logged = cell.folder / "csv" / "validate" / "metrics.csv"
        logged.unlink(missing_ok=True)
        command(["validate", *cell.words], launcher)
        found = list(csv.DictReader(logged.read_text().splitlines())) if logged.exists() else []
    values = {name: float(text) for row in found for name, text in row.items() if text}
    # people who share a model are averaged already
    return {n: v for n, v in values.items() if n.startswith("validation/") and "/sub-" not in n and math.isfinite(v)}


def _train(cell: Cell, launcher: Launcher) -> None:
    """Train a run and what it is made from, unless it is finished; one process at a time."""
    for earlier in cell.earlier:
        _train(earlier, launcher)
    with _alone(cell.folder):
        if _is_trained(cell):
            return
        print(f"--- {cell.folder}", flush=True)
        # its name says what it is trained with, so an unfinished one is the same
        command(["fit", *cell.words, "--run.resume=true"], launcher)
        (cell.folder / "grid_recipe.json").write_text(cell.recipe)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time work on a run; the lock of a process that was killed is free."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".trial.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"--- {folder}: waiting for another process that works on this run", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _mean(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over runs of what all of them logged.

    Raises:
        DataError: There is nothing.
    """
    shared = [name for name in runs[0] if all(name in values for values in runs)]
    if not shared:
        raise DataError(
            "validation has logged no number, so trials cannot be compared; add a score to the stage file "
            "(callbacks+:) that can be computed in validation"
        )
    return {name: sum(values[name] for values in runs) / len(runs) for name in shared}


# ---- Weights & Biases ----------------------------------------------------------------------------------


@contextmanager
def _tracked() -> Iterator[Callable[[Mapping[str, float]], None]]:
    """A run of Weights & Biases for the trial of one of its agents, to log values into; else these go nowhere."""
    if "WANDB_SWEEP_ID" not in os.environ:
        yield lambda values: None
        return
    import wandb

    run = wandb.init()
    status = 1
    try:
        yield lambda values: run.log(dict(values))
        status = 0
    finally:
        run.finish(exit_code=status)
