"""``neuroalign grid``: stages x data files x subjects x folds x seeds, trained, tested, joined and printed.

A stage that is made from an earlier one (``run:<stage>`` among the arguments of its model) has that one trained first,
in every cell, from the file of that name beside its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from glob import escape
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser

from callbacks import (
    Score,
    ScoreCallback,
    average,
    load_part,
    print_comparison,
    print_scores,
    read_reference,
    read_scores,
    write_scores,
)
from callbacks.whole_file import whole_file
from contracts import DataError
from experiments.arguments import import_class
from experiments.cells import Cell, GridOptions, Launcher, command, settings, split_words
from experiments.report.command import write_report
from experiments.run import run_folder
from experiments.trial import run_trial


def main(args: Sequence[str]) -> None:
    """Parse the command line and run the grid; what is no option of the grid goes to every run."""
    options, arguments = parse(args)
    if options.trial and options.report:
        raise DataError("a trial is not tested, so there is nothing to report on; leave out --report or --trial")
    if options.trial:
        run_trial(options, arguments)
    else:
        run_grid(options, arguments)


def parse(args: Sequence[str]) -> tuple[GridOptions, list[str]]:
    """Return the options of a grid's command line, and the arguments of its runs (all after ``--``, too)."""
    own, arguments = split_words(args, [field.name for field in fields(GridOptions)])
    parser = ArgumentParser(prog="neuroalign grid", description=__doc__)
    parser.add_class_arguments(GridOptions)
    return GridOptions(**parser.parse_args(own).as_dict()), arguments


def run_grid(options: GridOptions, arguments: Sequence[str] = ()) -> list[Score]:
    """Train and test every cell, join the folds of each person, and print one table.

    A cell whose run is finished is only tested again, unless it is to be overwritten.

    Args:
        options: The grid.
        arguments: Further arguments of its runs (``settings``).

    Returns:
        The scores of the table.

    Raises:
        DataError: A finished run of that name was trained with other arguments.
    """
    # rows by the table that they are compared in
    tables: dict[str, list[tuple[str, str, Score]]] = {}
    folders: list[Path] = []
    trained: set[Path] = set()
    published = None if options.reference is None else read_reference(Path(options.reference))
    for setting in settings(options, arguments):
        joined: dict[str, list[Score]] = {}
        for cells in setting.models:
            for cell in cells:
                _train(cell, options.launcher, trained, overwrite=options.overwrite)
                command(["test", *cell.words], options.launcher)
            folders += [cell.folder for cell in cells]
            for table, scores in _join(cells).items():
                joined.setdefault(table, []).extend(scores)
        scores = [score for group in joined.values() for score in [*group, *average(group)]]
        write_scores(run_folder(options.root, setting.data, None, setting.stage, setting.name) / "grid.json", scores)
        shown_as = f"{setting.data} seed {setting.seed}" if options.several_seeds else setting.data
        for table, group in joined.items():
            tables.setdefault(table, []).extend((setting.stage, shown_as, s) for s in [*group, *average(group)])
    rows = [row for group in tables.values() for row in group]
    print_scores(
        [score for *_, score in rows],
        title="neuroalign grid",
        first=[("stage", [row[0] for row in rows]), ("data", [row[1] for row in rows])],
    )
    if len(options.stages) > 1 or published:
        for table, compared in tables.items():
            print_comparison(compared, title=f"{table}, side by side", reference=published)
    print("run folders:", *folders, sep="\n  ")
    if options.report:
        # names are taken as they are, not as patterns
        write_report([escape(str(folder)) for folder in folders], to=options.report)
    return [score for *_, score in rows]


def _train(cell: Cell, launcher: Launcher, trained: set[Path], *, overwrite: bool) -> None:
    """Train a run, unless it is finished or was trained by this grid; runs that share an earlier one train it once."""
    if cell.folder in trained:
        return
    trained.add(cell.folder)
    for earlier in cell.earlier:
        _train(earlier, launcher, trained, overwrite=overwrite)
    print(f"--- {cell.folder}", flush=True)
    recipe = cell.folder / "grid_recipe.json"
    finished = (cell.folder / "final.ckpt").exists()
    same = recipe.exists() and recipe.read_text() == cell.recipe
    if finished and not overwrite and not same:
        raise DataError(
            f"{cell.folder} is finished, but was trained with other arguments or files than these; choose another "
            "--name, or train it anew with --overwrite=true"
        )
    if overwrite or not finished:
        # written before, so that a grid that is killed knows its own run again, and goes on with it; but what stands
        # beside a finished run is about that
        if finished:
            recipe.unlink(missing_ok=True)
        else:
            write_recipe(recipe, cell)
        goes_on = ["--run.resume=auto"] * (same and not finished and not overwrite)
        command(["fit", *cell.words, f"--run.overwrite={str(overwrite).lower()}", *goes_on], launcher)
        write_recipe(recipe, cell)


def write_recipe(path: Path, cell: Cell) -> None:
    """Write down what a run is trained with."""
    with whole_file(path, "free some space and run the grid again") as partial:
        partial.write_text(cell.recipe)


def _join(cells: Sequence[Cell]) -> dict[str, list[Score]]:
    """Score the outputs of all folds of one person together; by the table that the scores belong to."""
    callbacks = _score_callbacks(cells[0])
    if not callbacks:
        # a stage that nothing scores leaves nothing
        found = []
    elif len(cells) == 1:
        # means of people are added for all cells alike
        found = [score for score in read_scores(cells[0].folder / "scores.json") if score.subject != "mean"]
    else:
        parts = [load_part(cell.folder / "outputs.safetensors") for cell in cells]
        found = [score for callback in callbacks for score in callback.in_tables(parts)]
    scores: dict[str, list[Score]] = {}
    for score in found:
        scores.setdefault(score.table, []).append(score)
    return scores


def _score_callbacks(cell: Cell) -> list[ScoreCallback]:
    """The score callbacks of a run, from its resolved configuration."""
    config = yaml.safe_load((cell.folder / "config_test.yaml").read_text())
    callbacks = []
    for entry in config["trainer"]["callbacks"] or []:
        kind = import_class(entry["class_path"])
        if issubclass(kind, ScoreCallback):
            callbacks.append(kind(**entry.get("init_args", {})))
    return callbacks
