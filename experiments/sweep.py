"""``neuroalign sweep``: the trials of a sweep file, by an agent of Weights & Biases or, without a server, here.

Both run the same command lines, which ``neuroalign grid --trial=true`` answers: recordings are trained on and
validated, the test set is never seen. Both write the same table, ``<root>/sweeps/<name>.csv``.
"""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from jsonargparse import ArgumentParser
from lightning.pytorch.utilities.exceptions import SIGTERMException

from contracts import DataError, UserError
from experiments import grid
from experiments.cells import split_words
from experiments.failure import run_process
from experiments.sweep_file import Sweep, read_sweep
from experiments.trial import Made
from experiments.trial_table import Trial, print_trials, read_trial, read_trials, table_path, write_trial


@dataclass(frozen=True)
class SweepOptions:
    """Options of a sweep; what else is on its command line goes to every trial.

    Attributes:
        file: Sweep file.
        local: Run the trials here, without the server of Weights & Biases.
        count: Number of trials; if not given, ``run_cap`` of the file, or all of a grid.
        seed: Seed of random trials that are chosen here.
        data: Data file or class in place of those that the file names.
        dry_run: Only print the command lines of the trials.
        inline: Run trials of this machine in this process, one after another, instead of one process each.
    """

    file: str
    local: bool = False
    count: int | None = None
    seed: int = 0
    data: str | None = None
    dry_run: bool = False
    inline: bool = False


def main(args: Sequence[str]) -> None:
    """Parse the command line and run the sweep; the exit status is 1 where all trials have failed."""
    own, arguments = split_words(args, [field.name for field in fields(SweepOptions)])
    parser = ArgumentParser(prog="neuroalign sweep", description=__doc__)
    parser.add_class_arguments(SweepOptions)
    trials = run_sweep(SweepOptions(**parser.parse_args(own).as_dict()), arguments)
    if trials and all(trial.status == "failed" for trial in trials):
        raise SystemExit(1)


def run_sweep(options: SweepOptions, arguments: Sequence[str] = ()) -> list[Trial]:
    """Run the trials of a sweep file and print their table, the best first.

    A trial that fails does not end the sweep. A sweep that is run again runs what is not finished.

    Args:
        options: The sweep.
        arguments: Further words on the command line of every trial, options of the grid (``--subjects=01``) or
            arguments of its runs (``--trainer.max_epochs=2``).

    Returns:
        The trials of the sweep that came to an end.

    Raises:
        DataError: No login at Weights & Biases, a file that is no sweep, or a metric that is not logged.
    """
    if options.count is not None and options.count < 1:
        raise DataError(f"--count (COUNT=...) must be a number of trials, at least 1; found {options.count}")
    sweep = read_sweep(Path(options.file)).with_words(arguments, data=options.data)
    if options.dry_run:
        for values in sweep.trials(count=options.count, seed=options.seed):
            print(shlex.join(sweep.words(values)))
        return []
    # all trials have the root and the name of the command; stage and data may be parameters
    common, _ = grid.parse(["--stage=swept", "--data=swept", *sweep.words({})[2:]])
    where = common.root, common.name
    try:
        if options.local:
            return _run_here(sweep, options)
        _run_agent(sweep, options)
        return read_trials(*where)
    finally:
        trials = read_trials(*where)
        if trials:
            title = f"{common.name}: {sweep.metric}, {'greatest' if sweep.maximise else 'least'} first"
            print_trials(trials, title=title, metric=sweep.metric, maximise=sweep.maximise)
            print("table:", table_path(*where))


# ---- without a server ----------------------------------------------------------------------------------


def _run_here(sweep: Sweep, options: SweepOptions) -> list[Trial]:
    trials = []
    chosen = sweep.trials(count=options.count, seed=options.seed)
    for number, values in enumerate(chosen, start=1):
        words = sweep.words(values)
        made = Made.by(*grid.parse(words[2:]))
        print(f"=== trial {number} of {len(chosen)}:", *(f"{n}={v}" for n, v in values.items()), flush=True)
        trial = made.finished()
        if trial is not None:
            print("finished already", flush=True)
        else:
            said = _run_inline(words) if options.inline else _run_process(words)
            trial = read_trial(made.options.root, made.options.name, made.key)
            if trial is None or (said and trial.status == "finished"):
                # killed before it could say so itself
                trial = Trial(made.key, "failed", made.parameters, error=said)
                write_trial(made.options.root, made.options.name, trial)
        trials.append(trial)
        if trial.status == "finished" and sweep.metric not in trial.values:
            raise DataError(
                f"{sweep.file}: {sweep.metric} was not logged; validation logs {', '.join(trial.values)}; change "
                "metric.name"
            )
    return trials


def _run_inline(words: Sequence[str]) -> str:
    """Run a trial in this process; returns why it failed."""
    try:
        grid.main(words[2:])
    except SIGTERMException:
        raise
    except SystemExit:
        # the parser has said what is wrong
        return "stopped; its output says why"
    except Exception as error:
        if isinstance(error, UserError):
            print(f"neuroalign: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        return str(error)
    return ""


def _run_process(words: Sequence[str]) -> str:
    """Run a trial in a process of its own; returns why it failed.

    Raises:
        SIGTERMException: It was told to end, or the sweep was, and waited for the trial.
    """
    own = {name: value for name, value in _environment().items() if not name.startswith("WANDB_SWEEP")}
    status = run_process(words, own)
    return f"ended with status {status}; its output says why" if status else ""


def _environment() -> dict[str, str]:
    """The variables of this process, with the folder of its console scripts before others."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}


# ---- with a server -------------------------------------------------------------------------------------


def _run_agent(sweep: Sweep, options: SweepOptions) -> None:
    """Create the sweep and run its trials as one agent.

    Raises:
        DataError: No login.
    """
    import wandb

    offline = os.environ.get("WANDB_MODE", "online") != "online"
    if offline or not wandb.login(prompt=False):
        why = f"WANDB_MODE is {os.environ['WANDB_MODE']}" if offline else "there is no login (wandb login)"
        raise DataError(
            f"a sweep needs the server of Weights & Biases, and {why}; make sweep-local STAGE=... (neuroalign sweep "
            f"--file={sweep.file} --local=true) runs the same trials without it"
        )
    project = os.environ.get("WANDB_PROJECT", "neuroalign")
    # agents look for the program on the path
    os.environ.update(_environment())
    sweep_id = wandb.sweep(dict(sweep.content), project=project)
    print(f"more agents of this sweep: wandb agent {project}/{sweep_id}", flush=True)
    wandb.agent(sweep_id, project=project, count=options.count)
