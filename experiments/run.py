"""One run: ``fit``, ``validate``, ``test`` or ``predict`` through LightningCLI, kept in a run folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerFn

from callbacks import PictureRecord, RunCheckpoint, RunRecord
from callbacks.checkpoint import BEGUN_ANEW, refuse_damaged
from callbacks.termination import termination
from callbacks.whole_file import whole_file
from contracts import DataError
from datamodules import DataModule
from experiments.about import RunFacts
from experiments.arguments import Parser, find_data_source, find_sources, import_class, import_file_class, name_of
from experiments.devices import choose_precision, slurm_processes
from experiments.failure import RecordFailure
from experiments.run_logger import RunLogger
from experiments.tracking import track
from lightning_modules import Stage

EARLIER = "run:"
"""``run:<stage>`` as an argument of a model is the finished run of that stage, with the same data, people and name;
``run:all/<stage>`` that of all people together."""


@dataclass(frozen=True)
class RunOptions:
    """Where a run is kept: ``<root>/<data>/<subject>/<stage>/<name>/``.

    Attributes:
        root: Folder of all runs.
        name: Name of this run.
        resume: Continue from the run's last whole checkpoint if there is one, from the beginning if there is none; a
            finished run with nothing left to do stays as it is. ``auto`` is what schedulers write, who start a job
            again without knowing how far it came; ``true`` means the same.
        overwrite: Train anew although the run is finished; its results are replaced when the new fit is. With
            ``resume``, too, an unfinished fit is continued, and only a finished one trained anew.
        table: Print the scores of a test.
        monitor: Logged value (``validation/...``) by which the kept checkpoint is chosen; None keeps the last.
        mode: Whether its least (``min``) or greatest (``max``) value is best.
        patience: Validations without improvement of ``monitor`` after which the fit stops; None for no limit.
        checkpoint_minutes: Minutes between checkpoints within an epoch.
        bf16: Fit stages that are trained by gradients in bfloat16 where the GPU has it (``bf16-mixed``), unless
            ``--trainer.precision`` says otherwise.
        slurm: The processes are those that ``srun`` has started, in place of ``--trainer.devices`` and ``num_nodes``.
    """

    root: str = "runs"
    name: str = "default"
    resume: bool | Literal["auto"] = False
    overwrite: bool = False
    table: bool = True
    monitor: str | None = None
    mode: Literal["min", "max"] = "min"
    patience: int | None = None
    checkpoint_minutes: float = 15.0
    bf16: bool = False
    slurm: bool = False


class CLI(LightningCLI):
    """LightningCLI with the rules of this project.

    * exactly one source sets ``data``;
    * ``data.layout`` is linked into the model;
    * the run folder is the trainer's ``default_root_dir`` and holds the resolved configuration;
    * a finished run is refused unless it is to be resumed or overwritten.
    """

    def __init__(self, args: Sequence[str], failure: RecordFailure) -> None:
        self.failure = failure
        self.data_source = find_data_source(args)
        self.stage_source = find_sources(args, "model")[-1:]
        self.words = list(args)
        super().__init__(
            Stage,
            DataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=_SaveRunConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={"parser_mode": "omegaconf+", "allow_abbrev": False},
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
        for name, value in config.model.init_args.as_dict().items():
            if isinstance(value, str) and value.startswith(EARLIER):
                config.model.init_args[name] = str(earlier_folder(self.folder, value) / "final.ckpt")
        stage: Any = import_class(config.model.class_path)
        config.trainer.precision = choose_precision(
            config.trainer.precision,
            command=str(self.subcommand),
            accelerator=str(config.trainer.accelerator),
            closed_form=stage.every_sample_once,
            bf16=self.run_options.bf16,
        )
        # checkpoints are plain data; anything else in one is refused
        config.weights_only = True
        if self.subcommand == "fit":
            config.ckpt_path = self._start_of_fit(config)
        elif config.ckpt_path is None and not config.trainer.fast_dev_run:
            config.ckpt_path = str(self._final())
        if not config.trainer.fast_dev_run:
            self.failure.begin(self.folder)
        if config.ckpt_path is not None and Path(config.ckpt_path).is_file():
            refuse_damaged(Path(config.ckpt_path), self._instead_of(Path(config.ckpt_path)))
        if self.subcommand in ("validate", "test"):
            # our table says more than Lightning's
            config.verbose = False

    def _start_of_fit(self, config: Any) -> str | None:
        final, last = self.folder / "final.ckpt", self.folder / "last.ckpt"
        options = self.run_options
        if final.exists() and not (options.resume or options.overwrite or config.trainer.fast_dev_run):
            raise DataError(
                f"{final} exists: this run is finished. Choose another --run.name, continue it with "
                "--run.resume=true (RESUME=1), or replace it with --run.overwrite=true (OVERWRITE=1)"
            )
        finished = final.exists() and not (self.folder / BEGUN_ANEW).exists()
        if config.ckpt_path is not None or not options.resume or (finished and options.overwrite):
            return config.ckpt_path  # type: ignore[no-any-return]
        return next((str(path) for path in (last, *[final] * finished) if path.exists()), None)

    def _instead_of(self, path: Path) -> str:
        """What to do about a damaged checkpoint."""
        anew = "train anew with --run.overwrite=true (OVERWRITE=1)"
        if path.parent != self.folder or path.name == "final.ckpt":
            return anew
        return f"delete it to train from the beginning: the fit cannot go on from where it was, or {anew}"

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
        if not trainer_config["fast_dev_run"]:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(f"cannot keep the run in {self.folder}: {error}; change --run.root") from error
            loggers = [*loggers, RunLogger(self.folder, name="csv", version=self._log_version())]
        options = self.run_options
        self.trainer_defaults["callbacks"] = [
            self.failure,
            RunCheckpoint(every_minutes=options.checkpoint_minutes, monitor=options.monitor, mode=options.mode),
            RunRecord(table=options.table),
            PictureRecord(),
            RunFacts(self.words),
            *self._trackers(loggers),
        ]
        if options.patience is not None:
            if options.monitor is None:
                raise DataError("--run.patience needs something to watch: set --run.monitor, such as validation/loss")
            self.trainer_defaults["callbacks"].append(
                EarlyStopping(monitor=options.monitor, mode=options.mode, patience=options.patience)
            )
        processes = slurm_processes() if options.slurm else {}
        trainer = super().instantiate_trainer(**kwargs, **processes, logger=loggers or False)
        # ours stay (callbacks.termination)
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        return trainer

    def _trackers(self, loggers: Sequence[Logger]) -> list[Callback]:
        """Tell Weights & Biases, where it is a logger, which run this is."""
        config = self.config[self.subcommand]
        if config.trainer.fast_dev_run or not loggers:
            return []
        resolved = yaml.safe_load(self._parser(self.subcommand).dump(config, skip_none=False))
        return track(loggers, self.folder, command=str(self.subcommand), config=resolved, checkpoint=config.ckpt_path)

    def _log_version(self) -> str:
        """One folder of logs a command; a resumed fit gets another one beside those of its earlier parts."""
        config = self.config[self.subcommand]
        resumed = self.subcommand == "fit" and config.ckpt_path and Path(config.ckpt_path).parent == self.folder
        earlier = len(list((self.folder / "csv").glob("fit*"))) if resumed else 0
        return f"fit-{earlier + 1}" if earlier else str(self.subcommand)


class _SaveRunConfig(SaveConfigCallback):
    """Writes the resolved configuration into the run folder, one file a command."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self.config_filename = f"config_{TrainerFn(stage).value}.yaml"
        folder = Path(trainer.default_root_dir)
        if trainer.is_global_zero:
            with whole_file(folder / self.config_filename, "free some space and run the command again") as partial:
                self.parser.save(self.config, partial, skip_none=False, overwrite=True, multifile=False)
        trainer.strategy.barrier()


def run_folder(root: str, data: str, subjects: Sequence[str] | None, stage: str, name: str) -> Path:
    """Return ``<root>/<data>/<people>/<stage>/<name>``; people are ``all`` or ``sub-<a>+<b>``."""
    people = "all" if subjects is None else "sub-" + "+".join(subjects)
    return Path(root) / data / people / stage / name


def earlier_folder(folder: Path, value: str) -> Path:
    """Return the run folder that ``run:<stage>`` or ``run:all/<stage>`` means for the run in ``folder``."""
    people, _, stage = value.removeprefix(EARLIER).rpartition("/")
    return folder.parents[2] / (people if people else folder.parents[1].name) / stage / folder.name


def run(args: Sequence[str]) -> CLI:
    """Run one command (``fit``, ``validate``, ``test`` or ``predict``) and return what it built."""
    # told to end after the last batch of the run before
    termination.check()
    with RecordFailure(args) as failure:
        return CLI(args, failure)


def _import_argument(word: str) -> str:
    flag, equals, value = word.partition("=")
    return f"{flag}={import_file_class(value)}" if equals and flag.startswith("-") else import_file_class(word)
