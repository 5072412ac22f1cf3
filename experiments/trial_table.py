"""The table of a sweep: one small file a trial, so that several agents may write, joined into one CSV file."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from callbacks.whole_file import whole_file


@dataclass(frozen=True)
class Trial:
    """One row of the table.

    Attributes:
        key: Ten hexadecimal digits of the parameters.
        status: Whether it came to its end.
        parameters: What it was made with, by name.
        values: Means of what validation logged (``validation/...``), by name.
        runs: Its run folders, one for each person, fold and seed.
        error: Why it failed.
    """

    key: str
    status: Literal["finished", "failed"]
    parameters: Mapping[str, Any]
    values: Mapping[str, float] = field(default_factory=dict)
    runs: Sequence[str] = ()
    error: str = ""


def table_path(root: str, name: str) -> Path:
    """Where the table of a sweep is: ``<root>/sweeps/<name>.csv``."""
    return Path(root) / "sweeps" / f"{name}.csv"


def read_trial(root: str, name: str, key: str) -> Trial | None:
    """Return a trial of a sweep, or None if it was not run to its end."""
    file = _folder(root, name) / f"{key}.json"
    return Trial(**json.loads(file.read_text())) if file.exists() else None


def read_trials(root: str, name: str) -> list[Trial]:
    """Return all trials of a sweep that came to an end."""
    return [Trial(**json.loads(file.read_text())) for file in sorted(_folder(root, name).glob("*.json"))]


def write_trial(root: str, name: str, trial: Trial) -> Path:
    """Write a trial, and the table of all trials of its sweep so far; each in one rename."""
    folder = _folder(root, name)
    folder.mkdir(parents=True, exist_ok=True)
    table = table_path(root, name)
    advice = "free some space and run the sweep again"
    # of two agents the later one must not write what it read before the other's trial
    with FileLock(folder / ".lock"):
        with whole_file(folder / f"{trial.key}.json", advice) as partial:
            partial.write_text(json.dumps(asdict(trial), indent=2) + "\n")
        with whole_file(table, advice) as partial:
            partial.write_text(_as_csv(read_trials(root, name)))
    return table


def print_trials(trials: Sequence[Trial], *, title: str, metric: str, maximise: bool) -> None:
    """Print the trials of a sweep, the best first: the parameters that differ, and what validation logged.

    Args:
        trials: What to print.
        title: Above the table.
        metric: By which value they are sorted, within a data set; its column comes first.
        maximise: Whether its greatest value is best.
    """
    best = sorted(trials, key=lambda t: _badness(t, metric, maximise=maximise))
    names = dict.fromkeys(name for trial in trials for name in trial.parameters)
    parameters = [name for name in names if len({str(trial.parameters.get(name, "")) for trial in trials}) > 1]
    others = sorted({name for trial in trials for name in trial.values} - {metric})
    table = Table(title=escape(title), title_justify="left")
    table.add_column("trial")
    for name in parameters:
        table.add_column(escape(_short(name, parameters)), overflow="fold")
    for name in (metric, *others):
        table.add_column(escape(name.removeprefix("validation/")), justify="right")
    for trial in best:
        cells = [str(trial.parameters.get(name, "")) for name in parameters]
        found = ["-" if name not in trial.values else f"{trial.values[name]:.4g}" for name in (metric, *others)]
        table.add_row(trial.key, *map(escape, cells), *found)
    console = Console() if Console().is_terminal else Console(width=200)
    console.print(table)
    failed = [trial for trial in best if trial.status == "failed"]
    for trial in failed:
        given = " ".join(f"{name}={trial.parameters.get(name, '')}" for name in parameters)
        console.print(escape(f"failed: trial {trial.key} {given}: {trial.error}"))


def _short(name: str, names: Sequence[str]) -> str:
    """The last word of a parameter, where no other one ends in it."""
    last = name.rpartition(".")[2]
    return name if sum(other.rpartition(".")[2] == last for other in names) > 1 else last


def _badness(trial: Trial, metric: str, *, maximise: bool) -> tuple[str, float]:
    value = trial.values.get(metric, math.nan)
    return str(trial.parameters.get("data")), math.inf if math.isnan(value) else -value if maximise else value


def _as_csv(trials: Sequence[Trial]) -> str:
    parameters = dict.fromkeys(name for trial in trials for name in trial.parameters)
    values = sorted({name for trial in trials for name in trial.values})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "status", *parameters, *values, "runs", "error"])
    for trial in trials:
        given = [trial.parameters.get(name, "") for name in parameters]
        found = [trial.values.get(name, "") for name in values]
        writer.writerow([trial.key, trial.status, *given, *found, " ".join(trial.runs), trial.error])
    return text.getvalue()


def _folder(root: str, name: str) -> Path:
    return Path(root) / "sweeps" / name
