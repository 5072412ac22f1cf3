"""``neuroalign report``: from run folders to one HTML file."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from filelock import FileLock
from jsonargparse import ArgumentParser

from callbacks.whole_file import whole_file
from contracts import DataError
from experiments.report.runs import Run, find_runs

SECTIONS = ("scores", "stimuli", "conversion", "similarity", "brain", "sensors", "training", "provenance")
"""Modules in the order of the page; they are imported when a report is written, since they draw with libraries that
other commands need not wait for."""


def main(args: Sequence[str]) -> None:
    """Parse the command line and write the report."""
    parser = ArgumentParser(prog="neuroalign report", description=__doc__)
    parser.add_function_arguments(write_report)
    write_report(**parser.parse_args(list(args)).as_dict())


def write_report(runs: list[str], to: str | None = None, title: str | None = None) -> Path:
    """Write one self-contained HTML file about a run, or about several side by side.

    Args:
        runs: Folders of tested runs, or folders above such; with ``*`` for any part of a name.
        to: The file; ``report.html`` in the run folder, or in the folder that all runs share, if not given.
        title: Heading of the page; what the runs are, if not given.

    Returns:
        The file.

    Raises:
        DataError: No tested run, a damaged file in one, or the report cannot be written there.
    """
    found = find_runs(runs)
    target = _target(found, to)
    number = f"{len(found)} {'run' if len(found) == 1 else 'runs'}"
    page = importlib.import_module("experiments.report.page")
    modules = [importlib.import_module(f"experiments.report.{name}") for name in SECTIONS]
    sections = [section for module in modules if (section := module.section(found)) is not None]
    about = f"{number}, written on {date.today().strftime('%-d %B %Y')}"
    text = page.render(_title(found) if title is None else title, sections, about)
    _write(target, text)
    print(f"report of {number}: {target} ({target.stat().st_size / 1e6:.1f} MB)")
    return target


def _write(target: Path, text: str) -> None:
    """Write the page; at one time one process does."""
    with _says_where(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f".{target.name}.lock")).acquire()
    with lock, whole_file(target, "name another file with --to") as partial:
        partial.write_text(text, encoding="utf-8")


def _target(runs: Sequence[Run], to: str | None) -> Path:
    """Where to write, checked before the work of making the report."""
    if to is None:
        # of a single run the folder itself
        target = Path(os.path.relpath(os.path.commonpath([run.folder.absolute() for run in runs]))) / "report.html"
    else:
        target = Path(to).expanduser()
    if target.suffix.lower() not in (".html", ".htm"):
        raise DataError(f"a report is an HTML file, found --to={to}; end its name in .html")
    with _says_where(target):
        if target.is_dir():
            raise DataError(f"{target} is a folder; name a file with --to")
        folder = next(place for place in target.absolute().parents if place.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise DataError(f"cannot write {target}: {folder} takes no files; name another place with --to")
    return target


@contextmanager
def _says_where(target: Path) -> Iterator[None]:
    """Say in one line what is wrong with a place, such as too long a name."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror or error}; name another file with --to") from error


def _title(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return runs[0].title
    data, stages = (list(dict.fromkeys(names)) for names in ([r.data for r in runs], [r.stage for r in runs]))
    return f"{', '.join(stages)} on {', '.join(data)}"
