"""The runs of a grid: which there are, what each is made from, its command line and its recipe."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import yaml

from contracts import DataError
from datamodules import BrainDataModule, DataModule
from experiments.arguments import Parser, import_file_class, name_of
from experiments.failure import run_process
from experiments.run import EARLIER, earlier_folder, run, run_folder

T = TypeVar("T")
Launcher = Literal["inline", "process"]
_PEOPLE = "--data.init_args.subjects="
_MODEL = "--model.init_args."
# where a run is kept and what it prints: the same training by any of these
_NOT_TRAINED_WITH = ("--run.root=", "--run.name=", "--run.table=")


@dataclass(frozen=True)
class GridOptions:
    """Options of a grid; what else is on its command line goes to every run.

    Attributes:
        stage: Stage file, or a list of them.
        data: Data file or class, or a list of them.
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
        report: HTML file to write about all runs of the grid.
        trial: One trial of a sweep: its runs are validated, never tested, named by what they are trained with, and
            their mean is a row of the sweep's table, ``<root>/sweeps/<name>.csv``.
    """

    stage: list[str] | str
    data: list[str] | str
    trainer: str = str(Path(__file__).parents[1] / "configs" / "trainer" / "cpu.yaml")
    subjects: list[str] | str | None = None
    folds: list[int] | int | None = None
    seeds: list[int] | int = 0
    root: str = "runs"
    name: str = "default"
    overwrite: bool = False
    launcher: Launcher = "inline"
    reference: str | None = None
    report: str | None = None
    trial: bool = False

    @property
    def stages(self) -> list[Path]:
        """The stage files."""
        return [Path(file) for file in _listed(self.stage)]

    @property
    def several_seeds(self) -> bool:
        """Whether runs are told apart by their seeds, too."""
        return len(_listed(self.seeds)) > 1


def _listed(value: list[T] | T) -> list[T]:
    return value if isinstance(value, list) else [value]


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
        earlier = {"earlier": [cell.recipe for cell in self.earlier]} if self.earlier else {}
        return json.dumps({"words": self.words, "files": self._files(), **earlier}, indent=2) + "\n"

    @property
    def digest(self) -> str:
        """Ten hexadecimal digits of what it is trained with, wherever it is kept."""
        words = [word for word in self.words if not word.startswith(_NOT_TRAINED_WITH)]
        content = json.dumps([words, self._files(), [cell.digest for cell in self.earlier]])
        return hashlib.sha256(content.encode()).hexdigest()[:10]

    def _files(self) -> dict[str, str]:
        # a value is a file, or a class in one (my.py:MyData)
        named = [Path(word.partition("=")[2].partition(":")[0]) for word in self.words]
        return {str(file): file.read_text() for file in named if file.suffix in (".yaml", ".yml", ".py")}


@dataclass(frozen=True)
class Setting:
    """One stage on one data set with one seed.

    Attributes:
        stage: Name of the stage.
        data: Name of the data set.
        seed: The seed.
        name: Name of its runs, without their folds.
        module: The data set.
        models: The runs of each model: one a fold.
    """

    stage: str
    data: str
    seed: int
    name: str
    module: DataModule
    models: list[list[Cell]]


def settings(options: GridOptions, arguments: Sequence[str]) -> Iterator[Setting]:
    """Give what a grid trains, one stage on one data set with one seed after another.

    Args:
        options: The grid.
        arguments: Further arguments, such as ``--trainer.max_epochs=2``, of every run, but for those of the model
            (``--model.init_args.alpha=500``), which go to the stages named and not to earlier ones. With a stage's
            name before it an argument goes to that stage alone (``--fmri_mae.model.init_args.heads=8``).

    Raises:
        DataError: A stage file that is not there, an argument that no stage takes, or an unknown fold.
    """
    for stage in options.stages:
        if not stage.is_file():
            beside = ", ".join(sorted(file.stem for file in stage.parent.glob("*.yaml"))) or "nothing"
            raise DataError(f"no stage file {stage}; {stage.parent} has {beside}")
    _refuse_idle_arguments(arguments, options.stages)
    for data, stage, seed in itertools.product(_listed(options.data), options.stages, _listed(options.seeds)):
        module = _datamodule(data, arguments)
        data_name = name_of(data, type(module))
        name = f"{options.name}_seed-{seed}" if options.several_seeds else options.name
        shared = (f"--data.init_args.loader.seed={seed}", f"--seed_everything={seed}", f"--run.root={options.root}")
        models = []
        folds = _folds(module, options, data_name)
        for people in _trained_together(module, options.subjects):
            cells = []
            for fold in folds:
                cell_name = f"{name}_fold-{fold:02d}" if module.folds > 1 else name
                part = _part_of_data(module, people, fold)
                words = (f"--data={data}", *part, *shared, f"--run.name={cell_name}", "--run.table=false")
                folder = run_folder(options.root, data_name, people, stage.stem, cell_name)
                cells.append(_cell(stage, options, words, arguments, folder))
            models.append(cells)
        yield Setting(stage.stem, data_name, seed, name, module, models)


def command(words: Sequence[str], launcher: Launcher) -> None:
    """Run one command of a cell.

    Raises:
        DataError: A command in a process of its own failed.
    """
    if launcher == "inline":
        run(words)
        return
    # the run of an agent of Weights & Biases is that of the grid
    own = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_RUN_ID", "WANDB_SWEEP"))}
    status = run_process([sys.executable, "-m", "experiments", *words], own)
    if status:
        raise DataError(f"'neuroalign {words[0]}' failed with status {status}; its output is above: {' '.join(words)}")


def split_words(words: Sequence[str], own: Collection[str]) -> tuple[list[str], list[str]]:
    """Divide a command line into the options of the command itself and what it passes on.

    Args:
        words: The command line; everything after ``--`` is passed on.
        own: Names of the command's options.

    Returns:
        Its own words, and those passed on.
    """
    before, after = list(words), list[str]()
    if "--" in before:
        after = before[before.index("--") + 1 :]
        before = before[: before.index("--")]
    mine: list[str] = []
    others: list[str] = []
    for group in options_of(before):
        name = group[0].partition("=")[0].removeprefix("--")
        (mine if name in own or group[0] in ("-h", "--help") else others).extend(group)
    return mine, [*others, *after]


def options_of(words: Sequence[str]) -> list[list[str]]:
    """Options, each with the values that stand apart from it."""
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--") or word in ("-c", "-h") or not groups:
            groups.append([])
        groups[-1].append(word)
    return groups


# ---- cells ---------------------------------------------------------------------------------------------


def _cell(
    stage: Path,
    options: GridOptions,
    words: tuple[str, ...],
    arguments: Sequence[str],
    folder: Path,
    *,
    named: bool = True,
) -> Cell:
    """The run of a stage file and the runs it is made from."""
    own = _own_arguments(arguments, stage, named=named)
    earlier: dict[str, Cell] = {}
    for argument, value in _earlier(stage, own).items():
        there = earlier_folder(folder, value)
        same_people = there.parents[1] == folder.parents[1]
        theirs = words if same_people else tuple(word for word in words if not word.startswith(_PEOPLE))
        file = _stages_beside(stage)[_stage_of(value)]
        earlier[argument] = _cell(file, options, theirs, arguments, there, named=False)
    cell = Cell((f"--config={options.trainer}", f"--config={stage}", *words, *own), folder, tuple(earlier.values()))
    if not options.trial:
        return cell
    # a run of a trial is found by what it is trained with, so a later one must be told where an earlier one lies
    kept = folder.with_name(f"{folder.name}-{cell.digest}")
    told = (f"--model.init_args.{argument}={before.folder / 'final.ckpt'}" for argument, before in earlier.items())
    return Cell((*cell.words, *told, f"--run.name={kept.name}"), kept, cell.earlier)


def _earlier(stage: Path, own: Sequence[str]) -> dict[str, str]:
    """Arguments of a stage's model that name a stage which it is made from, and which (``run:<stage>``).

    Raises:
        DataError: One of them is not there.
    """
    given = yaml.safe_load(stage.read_text()).get("model", {}).get("init_args", {})
    for group in options_of(own):
        name, equals, value = group[0].partition("=")
        if name.startswith(_MODEL):
            given[name.removeprefix(_MODEL)] = value if equals else " ".join(group[1:])
    found = {name: value for name, value in given.items() if isinstance(value, str) and value.startswith(EARLIER)}
    for value in found.values():
        if _stage_of(value) not in _stages_beside(stage):
            raise DataError(
                f"{stage} is made from {value}, but there is no {stage.with_name(_stage_of(value))}.yaml; name a "
                "checkpoint instead"
            )
    return found


def _stage_of(value: str) -> str:
    return value.removeprefix(EARLIER).rpartition("/")[2]


def _stages_beside(stage: Path) -> dict[str, Path]:
    """Files of stages by name: in the folder of a stage file, and in folders ``stage`` and ``recipe`` beside that."""
    folders = (stage.parent.with_name("recipe"), stage.parent.with_name("stage"), stage.parent)
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def _refuse_idle_arguments(arguments: Sequence[str], stages: Sequence[Path]) -> None:
    """Refuse an argument of a stage that this grid does not train.

    Raises:
        DataError: There is one.
    """
    trained = {file.stem for stage in stages for file in _with_earlier(stage, arguments)}
    for word in arguments:
        receiver = word.removeprefix("--").partition(".")[0]
        if any(receiver in _stages_beside(stage) for stage in stages) and receiver not in trained:
            raise DataError(f"{word} is for the stage {receiver}, but this grid trains {', '.join(sorted(trained))}")


def _with_earlier(stage: Path, arguments: Sequence[str], *, named: bool = True) -> list[Path]:
    """A stage and all that it is made from."""
    earlier = _earlier(stage, _own_arguments(arguments, stage, named=named)).values()
    files = [_stages_beside(stage)[_stage_of(value)] for value in earlier]
    return [stage, *(each for file in files for each in _with_earlier(file, arguments, named=False))]


def _own_arguments(arguments: Sequence[str], stage: Path, *, named: bool) -> list[str]:
    """Those arguments that are for a stage; what no stage is named by goes to all, so that a typo is refused."""
    others = _stages_beside(stage).keys() - {stage.stem}
    own: list[str] = []
    for first, *values in options_of(arguments):
        receiver = first.removeprefix("--").partition(".")[0]
        if receiver not in others and (named or receiver != "model"):
            own += [first.replace(f"--{stage.stem}.", "--", 1), *values]
    return own


# ---- data ----------------------------------------------------------------------------------------------


def _folds(module: DataModule, options: GridOptions, data: str) -> Sequence[int]:
    chosen = [] if options.folds is None else _listed(options.folds)
    unknown = sorted(set(chosen) - set(range(module.folds)))
    if unknown:
        raise DataError(f"no folds {unknown} in {data}: it has {module.folds}, counted from 0; change --folds")
    return chosen or range(module.folds)


def _trained_together(module: DataModule, chosen: list[str] | str | None) -> list[list[str] | None]:
    """The people of each model; None for all."""
    subjects = None if chosen is None else _listed(chosen)
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
