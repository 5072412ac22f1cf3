"""The console script ``neuroalign``: LightningCLI for runs, plain functions for everything around them."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import torch
import yaml
from jsonargparse import set_loader
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from callbacks import RunCheckpoint, RunRecord
from contracts import DataError, UserError
from datamodules import BrainDataModule
from lightning_modules import Stage

FILE_CLASS = re.compile(r"(?P<file>[^\s:'\"]+\.py):(?P<name>[A-Za-z_]\w*)")
RUN_COMMANDS = ("fit", "validate", "test", "predict")


@dataclass(frozen=True)
class RunOptions:
    """Where a run is kept: ``<root>/<data>/<subject>/<stage>/<name>/``.

    Attributes:
        root: Folder of all runs.
        name: Name of this run.
        resume: Continue from the run's last checkpoint, if there is one.
        overwrite: Train anew although the run is finished; its results are replaced when the new fit is.
        table: Print the scores of a test.
    """

    root: str = "runs"
    name: str = "default"
    resume: bool = False
    overwrite: bool = False
    table: bool = True


def import_file_class(text: str) -> str:
    """Turn ``my.py:MyData`` into an importable class path; other texts are returned as they are.

    The file is imported under a name of its own, so a data set may live outside the repository.

    Raises:
        DataError: No such file, or it defines no such class.
    """
    match = FILE_CLASS.fullmatch(text)
    if match is None:
        return text
    path = Path(match["file"]).expanduser().absolute()
    if not path.is_file():
        raise DataError(f"no file {path} (from {text!r}); the path is relative to {Path.cwd()}")
    module_name = f"neuroalign_file_{re.sub(r'[^0-9a-zA-Z]', '_', path.as_posix())}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    if not hasattr(sys.modules[module_name], match["name"]):
        raise DataError(f"{path} defines no {match['name']!r}")
    return f"{module_name}.{match['name']}"


def _import_file_classes(config: Any) -> Any:
    if isinstance(config, dict):
        return {
            key: import_file_class(value)
            if key == "class_path" and isinstance(value, str)
            else _import_file_classes(value)
            for key, value in config.items()
        }
    return [_import_file_classes(value) for value in config] if isinstance(config, list) else config


_load_yaml = jsonargparse.get_loader("yaml")


def _load(text: str) -> Any:
    return _import_file_classes(_load_yaml(text))


# the mode's own loader reads YAML and leaves interpolations to the parser; ours also imports files of classes
set_loader("omegaconf+", _load, exceptions=(yaml.YAMLError, DataError))


class Parser(LightningArgumentParser):
    """Adds a did-you-mean to what the parser says about misspelt classes and keys."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one clear error, with close names where one is misspelt, and exit with status 2."""
        # a value is echoed whole, and every class is optional to the parser: neither helps a reader
        noise = ("Given value", "- Expected a <class 'NoneType'>", "Did you mean")
        lines = [line for line in message.splitlines() if not line.strip().startswith(noise)]
        super().error("\n".join(dict.fromkeys(lines)) + _did_you_mean(message), ex)


_MISSPELT = re.compile(
    r"NestedArg\(key='([\w.]+)'|Option '([\w.]+)' is not accepted|[Kk]ey '([\w.]+)' is not expected"
    r"|import path string: ([\w.]+)|class_path '([\w.]+)'|[Uu]nrecognized arguments: --([\w.]+)"
)


def _did_you_mean(message: str) -> str:
    known = _known_names()
    words = {word for groups in _MISSPELT.findall(message) for name in groups for word in name.split(".") if word}
    close = [name for word in sorted(words - set(known)) for name in difflib.get_close_matches(word, known, n=3)]
    return f"\nDid you mean: {', '.join(dict.fromkeys(close))}?" if close else ""


def _known_names() -> list[str]:
    """Names of classes and arguments that a user may have meant."""
    import callbacks
    import datamodules
    import lightning_modules

    classes = {
        name: getattr(package, name)
        for package in (callbacks, datamodules, lightning_modules)
        for name in package.__all__
    }
    names = {*classes, "callbacks", "datamodules", "lightning_modules", "init_args", "data", "model", "trainer", "run"}
    for kind in (*classes.values(), Trainer, RunOptions):
        if isinstance(kind, type):
            names |= set(inspect.signature(kind).parameters)
    return sorted(names)


class CLI(LightningCLI):
    """LightningCLI with the rules of this project.

    * exactly one source sets ``data``;
    * ``data.layout`` is linked into the model;
    * the run folder is the trainer's ``default_root_dir`` and holds the resolved configuration;
    * a finished run is refused unless it is to be resumed or overwritten.
    """

    def __init__(self, args: Sequence[str]) -> None:
        self.data_source = find_data_source(args)
        self.stage_source = find_sources(args, "model")[-1:]
        self.words = list(args)
        super().__init__(
            Stage,
            BrainDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=_SaveRunConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={"parser_mode": "omegaconf+"},
            auto_configure_optimizers=False,
            args=[_import_argument(word) for word in args],
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and leave the command line where Lightning looks for it when it starts further processes."""
        # Lightning warns when it is given arguments beside those of the process
        sys.argv = sys.argv[:1]
        super().parse_arguments(parser, args)
        sys.argv = [*sys.argv, *self.words]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--run.*`` and the one link between data and model."""
        parser.add_class_arguments(RunOptions, "run")
        parser.link_arguments("data.layout", "model.init_args.layout", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Choose the run folder and settle which checkpoint to start from."""
        config = self.config[self.subcommand]
        self.run_options = RunOptions(**config.run.as_dict())
        self.folder = run_folder(
            self.run_options.root,
            name_of(self.data_source, import_class(config.data.class_path)),
            config.data.init_args.get("subjects"),
            name_of("".join(self.stage_source), import_class(config.model.class_path)),
            self.run_options.name,
        )
        config.trainer.default_root_dir = str(self.folder)
        # checkpoints are plain data; anything else in one is refused
        config.weights_only = True
        if self.subcommand == "fit":
            config.ckpt_path = self._start_of_fit(config)
        elif config.ckpt_path is None and not config.trainer.fast_dev_run:
            config.ckpt_path = str(self._final())
        if self.subcommand in ("validate", "test"):
            # our table says more than Lightning's
            config.verbose = False

    def _start_of_fit(self, config: Any) -> str | None:
        final, last = self.folder / "final.ckpt", self.folder / "last.ckpt"
        if final.exists() and not (
            self.run_options.resume or self.run_options.overwrite or config.trainer.fast_dev_run
        ):
            raise DataError(
                f"{final} exists: this run is finished. Choose another --run.name, continue it with "
                "--run.resume=true (RESUME=1), or replace it with --run.overwrite=true (OVERWRITE=1)"
            )
        if config.ckpt_path is not None or not self.run_options.resume:
            return config.ckpt_path  # type: ignore[no-any-return]
        return next((str(path) for path in (last, final) if path.exists()), None)

    def _final(self) -> Path:
        final = self.folder / "final.ckpt"
        if not final.exists():
            raise DataError(f"no {final}: train this run first, or name a checkpoint with --ckpt_path")
        return final

    def _parse_ckpt_path(self) -> None:
        """Keep the configuration as given: a checkpoint that does not fit it is refused with both sides shown."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with our checkpoint and record callbacks and a CSV logger in the run folder."""
        trainer_config = self._get(self.config_init, "trainer")
        loggers = trainer_config["logger"]
        loggers = [] if loggers in (None, True, False) else loggers if isinstance(loggers, list) else [loggers]
        if any(isinstance(logger, WandbLogger) for logger in loggers):
            _work_offline_without_login()
        if not trainer_config["fast_dev_run"]:
            loggers = [*loggers, CSVLogger(self.folder, name="csv", version=self.subcommand)]
        self.trainer_defaults["callbacks"] = [RunCheckpoint(), RunRecord(table=self.run_options.table)]
        return super().instantiate_trainer(**kwargs, logger=loggers or False)


class _SaveRunConfig(SaveConfigCallback):
    """Writes the resolved configuration into the run folder, one file a command."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self.config_filename = f"config_{TrainerFn(stage).value}.yaml"
        folder = Path(trainer.default_root_dir)
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            # saved under a temporary name first: a killed run leaves the old file whole
            partial = folder / f".{self.config_filename}.partial"
            self.parser.save(self.config, partial, skip_none=False, overwrite=True, multifile=False)
            os.replace(partial, folder / self.config_filename)
        trainer.strategy.barrier()


def run_folder(root: str, data: str, subjects: Sequence[str] | None, stage: str, name: str) -> Path:
    """Return ``<root>/<data>/<people>/<stage>/<name>``; people are ``all`` or ``sub-<a>+<b>``."""
    people = "all" if subjects is None else "sub-" + "+".join(subjects)
    return Path(root) / data / people / stage / name


def find_data_source(args: Sequence[str]) -> str:
    """Return the one source that sets ``data``: a configuration file or a class; empty if there is none.

    Raises:
        DataError: Several; merging two would silently keep arguments of the first.
    """
    sources = find_sources(args, "data")
    if len(sources) > 1:
        raise DataError(
            f"'data' is set by {len(sources)} sources: {', '.join(sources)}. Keep one --data; change single entries "
            "with --data.init_args.<name>=<value>"
        )
    for source in sources:
        path = Path(source)
        if path.suffix in (".yaml", ".yml") and not path.is_file():
            beside = sorted(entry.name for entry in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
            close = difflib.get_close_matches(path.name, beside) or beside
            raise DataError(f"no file {path.absolute()}; {path.parent} has {', '.join(close) or 'no such file'}")
    return "".join(sources)


def find_sources(args: Sequence[str], key: str) -> list[str]:
    """Return what sets a key on a command line: values of ``--<key>`` and configuration files that have it."""
    sources: list[str] = []
    for flag, value in _flags(args):
        if flag == f"--{key}":
            sources.append(value)
        elif flag in ("-c", "--config") and Path(value).is_file():
            content = yaml.safe_load(Path(value).read_text()) or {}
            nested = [content, *(content.get(command) or {} for command in RUN_COMMANDS)]
            sources += [value for part in nested if isinstance(part, dict) and key in part]
    return sources


def name_of(source: str, kind: type) -> str:
    """Name of a data set or stage in run folders: of its configuration file, else its own, else its class's."""
    if source.endswith((".yaml", ".yml")):
        return Path(source).stem
    return str(getattr(kind, "name", kind.__name__.lower()))


def import_class(class_path: str) -> type:
    """Return the class that a class path (``package.Class`` or ``my.py:Class``) names."""
    module, _, name = import_file_class(class_path).rpartition(".")
    kind: type = getattr(importlib.import_module(module), name)
    return kind


def _flags(args: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of flag and value, for both ``--flag value`` and ``--flag=value``."""
    pairs = []
    for position, word in enumerate(args):
        flag, equals, value = word.partition("=")
        if flag.startswith("-"):
            pairs.append((flag, value if equals else args[position + 1] if position + 1 < len(args) else ""))
    return pairs


def _work_offline_without_login() -> None:
    import wandb

    if "WANDB_MODE" not in os.environ and not wandb.login(prompt=False):
        wandb.setup(settings=wandb.Settings(mode="offline"))
        print(
            "Weights & Biases: not logged in, so this run is kept offline (wandb sync uploads it)",
            file=sys.stderr,
        )


def run(args: Sequence[str]) -> CLI:
    """Run one command (``fit``, ``validate``, ``test`` or ``predict``) and return what it built."""
    return CLI(args)


def _import_argument(word: str) -> str:
    flag, equals, value = word.partition("=")
    return f"{flag}={import_file_class(value)}" if equals and flag.startswith("-") else import_file_class(word)


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


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of ``neuroalign``: errors of data and contracts are one line, without a traceback."""
    words = list(sys.argv[1:] if args is None else args)
    # float32 matrix products in full precision on every device: scores must not depend on the GPU
    torch.set_float32_matmul_precision("highest")
    _quiet()
    try:
        if words and words[0] in ("convert", "grid"):
            from experiments import convert, grid

            command = {"convert": convert.main, "grid": grid.main}[words[0]]
            command(words[1:])
        else:
            run(words)
    except UserError as error:
        print(f"neuroalign: {error}", file=sys.stderr)
        raise SystemExit(2) from None
