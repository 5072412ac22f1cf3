"""The console script ``neuroalign``: runs, grids of runs and conversion under one name."""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks.termination import STATUS, termination
from callbacks.whole_file import free_space
from contracts import DataError, UserError
from experiments import convert, grid, import_weights, sweep
from experiments.failure import end_with_parent
from experiments.report import command as report
from experiments.run import run

COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "grid": (grid.main, "stages x data sets x people x folds x seeds: train, test, join, one table"),
    "sweep": (sweep.main, "trials of a sweep file, by an agent of Weights & Biases or without a server: one table"),
    "convert": (convert.main, "convert a data set and embed its pictures, without training"),
    "import-weights": (import_weights.main, "published weights of LEA, MinD-Vis and MaskGIT become a checkpoint"),
    "report": (report.main, "one HTML file of what runs found: scores, stimuli, curves, maps, and what was run"),
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says of a full disk, a used-up quota, and a file beyond the largest allowed."""
RUNS = {
    "fit": "train a stage",
    "validate": "score a checkpoint on the validation pictures",
    "test": "score a checkpoint on the test pictures",
    "predict": "keep what a stage gives for the test samples",
}


def main(args: Sequence[str] | None = None) -> None:
    """Entry point: errors that a user can mend are one line, without a traceback."""
    words = list(sys.argv[1:] if args is None else args)
    # float32 matrix products in full precision on every device: scores must not depend on the GPU
    torch.set_float32_matmul_precision("highest")
    _quiet()
    end_with_parent()
    try:
        with termination.heard():
            _call(words)
    except SIGTERMException:
        # Lightning would end with status 0, and what called (make, a scheduler) take the run for finished
        raise SystemExit(STATUS) from None
    except Exception as error:
        mendable = _mendable(error)
        if mendable is None:
            raise
        print(f"neuroalign: {mendable}", file=sys.stderr)
        raise SystemExit(2) from None


def _call(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print("usage: neuroalign COMMAND ...    (neuroalign COMMAND --help)")
        for name, text in {**RUNS, **{name: text for name, (_, text) in COMMANDS.items()}}.items():
            print(f"  {name:<16}{text}")
    elif words[0] in COMMANDS:
        COMMANDS[words[0]][0](words[1:])
    else:
        run(words)


def _mendable(error: BaseException | None) -> UserError | None:
    """The error that a user can mend, where the argument parser has wrapped one into its own."""
    while error is not None and not isinstance(error, UserError):
        if isinstance(error, OSError) and error.errno in FULL:
            return DataError(f"{error}; {free_space(Path(error.filename or '.'))}; free some and run the command again")
        error = error.__cause__
    return error


def _quiet() -> None:
    """Silence what third parties say on every run and a user can do nothing about; all else is shown."""
    # Lightning 2.6 calls older names of jsonargparse
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    for message in (
        # torch calls its own deprecated class inside Lightning
        ".*isinstance.treespec, LeafSpec.*",
        # one logger folder a command is meant to be replaced by the next run of it
        "Experiment logs directory .* exists and is not empty.*",
        # no validation set, as configured
        "Total length of `list` across ranks is zero.*",
        # closed-form stages have few batches, and read whole batches in the main process
        "The number of training batches .* is smaller than the logging interval.*",
        "The '.*_dataloader' does not have many workers.*",
    ):
        warnings.filterwarnings("ignore", message)
    # an advertisement
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda r: "litlogger" not in r.getMessage())
