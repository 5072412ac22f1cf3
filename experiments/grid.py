"""``neuroalign grid``: stages x data files x subjects x folds x seeds, trained, tested, joined and printed."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from jsonargparse import ArgumentParser

from callbacks import Part, Score, ScoreCallback, average, load_part, print_scores, write_scores
from contracts import DataError
from datamodules import BrainDataModule
from experiments import cli


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
        stage: Stage file.
        data: Data file or class.
        subject: Person.
        fold: Fold of the protocol.
        seed: Seed of everything.
        arguments: The command line of its commands, without the command.
        folder: Its run folder.
    """

    stage: str
    data: str
    subject: str
    fold: int
    seed: int
    arguments: tuple[str, ...]
    folder: Path


def main(args: Sequence[str]) -> None:
    """Parse the command line and run the grid; arguments after ``--`` go to every run."""
    words = list(args)
    rest = words[words.index("--") + 1 :] if "--" in words else []
    parser = ArgumentParser(prog="neuroalign grid", description=__doc__)
    parser.add_function_arguments(run_grid, skip={"arguments"})
    config = parser.parse_args(words[: len(words) - len(rest) - bool("--" in words)])
    run_grid(**config.as_dict(), arguments=rest)


def run_grid(
    stage: list[str],
    data: list[str],
    trainer: str = "configs/trainer/cpu.yaml",
    subjects: list[str] | None = None,
    folds: list[int] | None = None,
    seeds: list[int] = [0],  # noqa: B006  (never changed)
    root: str = "runs",
    name: str = "default",
    overwrite: bool = False,
    launcher: Literal["inline", "process"] = "inline",
    arguments: Sequence[str] = (),
) -> list[Score]:
    """Train and test every cell, join the folds of each person, and print one table.

    A cell whose run is finished is not trained again, unless ``overwrite``; it is tested again.

    Args:
        stage: Stage files.
        data: Data files or classes.
        trainer: Trainer file.
        subjects: People; all of the data set if not given.
        folds: Folds; all of the protocol if not given.
        seeds: Seeds; scores of several seeds are listed one below the other.
        root: Folder of all runs.
        name: Name of the runs.
        overwrite: Train finished runs anew.
        launcher: ``inline`` runs cells one after another in this process; ``process`` starts one for each
            command, which several devices need.
        arguments: Further arguments of every run, such as ``--model.init_args.alpha=500``.

    Returns:
        The scores of the table.
    """
    rows: list[tuple[str, str, Score]] = []
    folders: list[Path] = []
    for data_file, stage_file in itertools.product(data, stage):
        module = _datamodule(data_file, arguments)
        people = subjects or module.subjects
        chosen = list(range(module.folds)) if folds is None else folds
        for seed in seeds:
            scores: list[Score] = []
            for subject in people:
                cells = [
                    _cell(
                        stage_file,
                        data_file,
                        trainer,
                        subject,
                        fold,
                        seed,
                        root,
                        name,
                        arguments,
                        module.folds,
                        seeds,
                    )
                    for fold in chosen
                ]
                for cell in cells:
                    _run(cell, launcher, overwrite=overwrite)
                folders += [cell.folder for cell in cells]
                scores += _join(cells)
            scores += average(scores)
            joined = Path(root) / cli.name_of(data_file, type(module)) / "all" / Path(stage_file).stem
            suffix = f"_seed-{seed}" if len(seeds) > 1 else ""
            write_scores(joined / f"{name}{suffix}" / "grid.json", scores)
            rows += [
                (Path(stage_file).stem, f"{cli.name_of(data_file, type(module))}{suffix}", score) for score in scores
            ]
    print_scores(
        [score for *_, score in rows],
        title="neuroalign grid",
        first=[("stage", [row[0] for row in rows]), ("data", [row[1] for row in rows])],
    )
    print("run folders:")
    for folder in folders:
        print(f"  {folder}")
    return [score for *_, score in rows]


def _cell(
    stage: str,
    data: str,
    trainer: str,
    subject: str,
    fold: int,
    seed: int,
    root: str,
    name: str,
    arguments: Sequence[str],
    folds: int,
    seeds: Sequence[int],
) -> Cell:
    suffix = (f"_fold-{fold:02d}" if folds > 1 else "") + (f"_seed-{seed}" if len(seeds) > 1 else "")
    words = (
        f"--config={trainer}",
        f"--config={stage}",
        f"--data={data}",
        f'--data.init_args.subjects=["{subject}"]',
        f"--data.init_args.split.fold={fold}",
        f"--data.init_args.loader.seed={seed}",
        f"--seed_everything={seed}",
        f"--run.root={root}",
        f"--run.name={name}{suffix}",
        "--run.table=false",
        *arguments,
    )
    module = _datamodule(data, arguments)
    folder = Path(root) / cli.name_of(data, type(module)) / f"sub-{subject}" / Path(stage).stem / f"{name}{suffix}"
    return Cell(stage, data, subject, fold, seed, words, folder)


def _run(cell: Cell, launcher: str, *, overwrite: bool) -> None:
    finished = (cell.folder / "final.ckpt").exists()
    commands = [["test", *cell.arguments]]
    if overwrite or not finished:
        commands.insert(0, ["fit", *cell.arguments, f"--run.overwrite={str(overwrite).lower()}"])
    for command in commands:
        if launcher == "inline":
            cli.run(command)
        else:
            result = subprocess.run([sys.executable, "-m", "experiments", *command], check=False)
            if result.returncode:
                raise DataError(f"run {cell.folder} failed with status {result.returncode}; its output is above")


def _join(cells: Sequence[Cell]) -> list[Score]:
    """Score the outputs of all folds of one person together."""
    parts: list[Part] = [load_part(cell.folder / "outputs.safetensors") for cell in cells]
    return [score for callback in _score_callbacks(cells[0]) for score in callback.evaluate(parts)]


def _score_callbacks(cell: Cell) -> list[ScoreCallback]:
    """The score callbacks of a run, from its resolved configuration."""
    config = yaml.safe_load((cell.folder / "config_test.yaml").read_text())
    callbacks = []
    for entry in config["trainer"]["callbacks"] or []:
        kind = cli.import_class(entry["class_path"])
        if issubclass(kind, ScoreCallback):
            callbacks.append(kind(**entry.get("init_args", {})))
    return callbacks


def _datamodule(data: str, arguments: Sequence[str]) -> BrainDataModule:
    """The data set with the arguments that concern it, to ask for its people and folds."""
    parser = cli.Parser(prog="neuroalign grid", parser_mode="omegaconf+")
    parser.add_subclass_arguments(BrainDataModule, "data", required=True)
    words = [
        f"--data={cli.import_file_class(data)}",
        *(word for word in arguments if word.startswith("--data.")),
    ]
    module: BrainDataModule = parser.instantiate_classes(parser.parse_args(words)).data
    return module
