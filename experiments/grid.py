"""``neuroalign grid``: stages x data files x subjects x folds x seeds, trained, tested, joined and printed.

A stage that is made from an earlier one (``run:<stage>`` among the arguments of its model) has that one trained first,
in every cell, from the file of that name beside its own.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
from contracts import DataError
from datamodules import BrainDataModule, DataModule
from experiments.arguments import Parser, import_class, import_file_class, name_of
from experiments.run import EARLIER, earlier_folder, run, run_folder

_PEOPLE = "--data.init_args.subjects="


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
        words: The command line of its commands, without the command.
        folder: Its run folder.
        earlier: The runs that it is made from, to be trained before.
    """

    words: tuple[str, ...]
    folder: Path
    earlier: tuple[Cell, ...] = ()

    @property
    def recipe(self) -> str:
        """What it is trained with: its command line and the content of the files that this names."""
        # a value is a file, or a class in one (my.py:MyData)
        named = [Path(word.partition("=")[2].partition(":")[0]) for word in self.words]
        texts = {str(file): file.read_text() for file in named if file.suffix in (".yaml", ".yml", ".py")}
        earlier = {"earlier": [cell.recipe for cell in self.earlier]} if self.earlier else {}
        return json.dumps({"words": self.words, "files": texts, **earlier}, indent=2) + "\n"


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
    trainer: str = str(Path(__file__).parents[1] / "configs" / "trainer" / "cpu.yaml"),
    subjects: list[str] | None = None,
    folds: list[int] | None = None,
    seeds: list[int] = [0],  # noqa: B006  (never changed)
    root: str = "runs",
    name: str = "default",
    overwrite: bool = False,
    launcher: Literal["inline", "process"] = "inline",
    reference: str | None = None,
    arguments: Sequence[str] = (),
) -> list[Score]:
    """Train and test every cell, join the folds of each person, and print one table.

    A cell whose run is finished is only tested again, unless ``overwrite``.

    Args:
        stage: Stage files.
        data: Data files or classes.
        trainer: Trainer file.
        subjects: People, each with a model of their own, but for the protocol ``by_subject``; all of the data set if
            not given.
        folds: Folds; all of the protocol if not given.
        seeds: Seeds; scores of several seeds are listed one below the other.
        root: Folder of all runs.
        name: Name of the runs.
        overwrite: Train finished runs anew.
        launcher: ``inline`` runs cells one after another in this process; ``process`` starts one for each
            command, which several devices need.
        reference: File of published scores, printed beside those of the same name and gallery.
        arguments: Further arguments, such as ``--trainer.max_epochs=2``, of every run, but for those of the model
            (``--model.init_args.alpha=500``), which go to the stages named and not to earlier ones. With a stage's
            name before it an argument goes to that stage alone (``--fmri_mae.model.init_args.heads=8``).

    Returns:
        The scores of the table.

    Raises:
        DataError: A finished run of that name was trained with other arguments.
    """
    # rows by the table that they are compared in
    tables: dict[str, list[tuple[str, str, Score]]] = {}
    folders: list[Path] = []
    trained: set[Path] = set()
    published = None if reference is None else read_reference(Path(reference))
    _refuse_idle_arguments(arguments, [Path(file) for file in stage])
    for data_source, stage_file, seed in itertools.product(data, stage, seeds):
        module = _datamodule(data_source, arguments)
        data_name, stage_name = name_of(data_source, type(module)), Path(stage_file).stem
        run_name = f"{name}_seed-{seed}" if len(seeds) > 1 else name
        unknown = sorted(set(folds or ()) - set(range(module.folds)))
        if unknown:
            raise DataError(f"no folds {unknown} in {data_name}: it has {module.folds}, counted from 0; change --folds")
        joined: dict[str, list[Score]] = {}
        for people in _trained_together(module, subjects):
            cells = []
            for fold in folds or range(module.folds):
                cell_name = f"{run_name}_fold-{fold:02d}" if module.folds > 1 else run_name
                words = (
                    f"--data={data_source}",
                    *_part_of_data(module, people, fold),
                    f"--data.init_args.loader.seed={seed}",
                    f"--seed_everything={seed}",
                    f"--run.root={root}",
                    f"--run.name={cell_name}",
                    "--run.table=false",
                )
                folder = run_folder(root, data_name, people, stage_name, cell_name)
                cells.append(_cell(Path(stage_file), trainer, words, arguments, folder))
            for cell in cells:
                _train(cell, launcher, trained, overwrite=overwrite)
                _command(["test", *cell.words], launcher)
            folders += [cell.folder for cell in cells]
            for table, scores in _join(cells).items():
                joined.setdefault(table, []).extend(scores)
        scores = [score for group in joined.values() for score in [*group, *average(group)]]
        write_scores(run_folder(root, data_name, None, stage_name, run_name) / "grid.json", scores)
        shown_as = f"{data_name} seed {seed}" if len(seeds) > 1 else data_name
        for table, group in joined.items():
            tables.setdefault(table, []).extend((stage_name, shown_as, score) for score in [*group, *average(group)])
    rows = [row for group in tables.values() for row in group]
    print_scores(
        [score for *_, score in rows],
        title="neuroalign grid",
        first=[("stage", [row[0] for row in rows]), ("data", [row[1] for row in rows])],
    )
    if len(stage) > 1 or published:
        for table, compared in tables.items():
            print_comparison(compared, title=f"{table}, side by side", reference=published)
    print("run folders:", *folders, sep="\n  ")
    return [score for *_, score in rows]


def _cell(
    stage: Path, trainer: str, words: tuple[str, ...], arguments: Sequence[str], folder: Path, *, named: bool = True
) -> Cell:
    """The run of a stage file and the runs it is made from."""
    earlier = []
    for value, file in _earlier(stage).items():
        there = earlier_folder(folder, value)
        same_people = there.parents[1] == folder.parents[1]
        theirs = words if same_people else tuple(word for word in words if not word.startswith(_PEOPLE))
        earlier.append(_cell(file, trainer, theirs, arguments, there, named=False))
    own = _own_arguments(arguments, stage, named=named)
    return Cell((f"--config={trainer}", f"--config={stage}", *words, *own), folder, tuple(earlier))


def _stages_beside(stage: Path) -> dict[str, Path]:
    """Files of stages by name: in the folder of a stage file, and in folders ``stage`` and ``recipe`` beside that."""
    folders = (stage.parent.with_name("recipe"), stage.parent.with_name("stage"), stage.parent)
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def _refuse_idle_arguments(arguments: Sequence[str], stages: Sequence[Path]) -> None:
    """Refuse an argument of a stage that this grid does not train.

    Raises:
        DataError: There is one.
    """
    trained = {file.stem for stage in stages for file in _with_earlier(stage)}
    for word in arguments:
        receiver = word.removeprefix("--").partition(".")[0]
        if any(receiver in _stages_beside(stage) for stage in stages) and receiver not in trained:
            raise DataError(f"{word} is for the stage {receiver}, but this grid trains {', '.join(sorted(trained))}")


def _with_earlier(stage: Path) -> list[Path]:
    """A stage and all that it is made from."""
    return [stage, *(each for file in _earlier(stage).values() for each in _with_earlier(file))]


def _earlier(stage: Path) -> dict[str, Path]:
    """Files of the stages that a stage is made from, by the argument that says so (``run:<stage>``).

    Raises:
        DataError: One of them is not there.
    """
    files = {}
    for value in yaml.safe_load(stage.read_text()).get("model", {}).get("init_args", {}).values():
        if isinstance(value, str) and value.startswith(EARLIER):
            name = value.removeprefix(EARLIER).rpartition("/")[2]
            known = _stages_beside(stage)
            if name not in known:
                raise DataError(
                    f"{stage} is made from {value}, but there is no {stage.with_name(name)}.yaml; name a checkpoint "
                    "instead"
                )
            files[value] = known[name]
    return files


def _own_arguments(arguments: Sequence[str], stage: Path, *, named: bool) -> list[str]:
    """Those arguments that are for a stage; what no stage is named by goes to all, so that a typo is refused."""
    others = _stages_beside(stage).keys() - {stage.stem}
    own: list[str] = []
    mine = True
    for word in arguments:
        if word.startswith("--") or word == "-c":
            receiver = word.removeprefix("--").partition(".")[0]
            mine = receiver not in others and (named or receiver != "model")
            word = word.replace(f"--{stage.stem}.", "--", 1)
        # a value that stands apart belongs to the option before it
        own += [word] * mine
    return own


def _train(cell: Cell, launcher: str, trained: set[Path], *, overwrite: bool) -> None:
    """Train a run, unless it is finished or was trained by this grid; runs that share an earlier one train it once."""
    if cell.folder in trained:
        return
    trained.add(cell.folder)
    for earlier in cell.earlier:
        _train(earlier, launcher, trained, overwrite=overwrite)
    print(f"--- {cell.folder}", flush=True)
    recipe = cell.folder / "grid_recipe.json"
    finished = (cell.folder / "final.ckpt").exists()
    if finished and not overwrite and not (recipe.exists() and recipe.read_text() == cell.recipe):
        raise DataError(
            f"{cell.folder} is finished, but was trained with other arguments or files than these; choose another "
            "--name, or train it anew with --overwrite=true"
        )
    if overwrite or not finished:
        _command(["fit", *cell.words, f"--run.overwrite={str(overwrite).lower()}"], launcher)
        recipe.write_text(cell.recipe)


def _command(words: list[str], launcher: str) -> None:
    if launcher == "inline":
        run(words)
        return
    status = subprocess.run([sys.executable, "-m", "experiments", *words], check=False).returncode
    if status:
        raise DataError(f"'neuroalign {words[0]}' failed with status {status}; its output is above: {' '.join(words)}")


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


def _trained_together(module: DataModule, subjects: list[str] | None) -> list[list[str] | None]:
    """The people of each model; None for all."""
    if not isinstance(module, BrainDataModule):
        if subjects is not None:
            raise DataError(f"--subjects chooses people of one data set of recordings, not of {module.name}")
        return [None]
    # where people are the folds, they are trained on together
    if module.split.protocol == "by_subject":
        return [subjects]
    return [[subject] for subject in subjects or module.subjects]


def _part_of_data(module: DataModule, people: list[str] | None, fold: int) -> tuple[str, ...]:
    if not isinstance(module, BrainDataModule):
        return ()
    return (f"{_PEOPLE}{json.dumps(people)}", f"--data.init_args.split.fold={fold}")


def _datamodule(data: str, arguments: Sequence[str]) -> DataModule:
    """The data set with the arguments that concern it, to ask for its people and folds."""
    parser = Parser(prog="neuroalign grid", parser_mode="omegaconf+")
    parser.add_subclass_arguments(DataModule, "data", required=True)
    words = [
        f"--data={import_file_class(data)}",
        *(word for word in arguments if word.startswith("--data.")),
    ]
    module: DataModule = parser.instantiate_classes(parser.parse_args(words)).data
    return module
