"""WandbRun: one Weights & Biases run a training, whatever commands and processes it takes."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning_utilities.core.rank_zero import rank_zero_only, rank_zero_warn

from contracts import ContractError, DataError

_STEP = "trainer/global_step"
_LONGEST_TAG = 64


class WandbRun(WandbLogger):
    """Lightning's ``WandbLogger`` for the runs of this project; the first process alone talks to Weights & Biases.

    A fit, the fits that resume it, and the commands that validate and test it go on in one W&B run, whose id its
    checkpoints carry (``WandbRecord``). A W&B run that is already active in this process (the trial of a sweep) is
    used as it is, and left open; so is the id that an agent sets (``WANDB_RUN_ID``). Without login the run is kept
    offline; ``WANDB_MODE`` and the other variables of W&B are respected.

    When W&B cannot start, nothing has been trained yet and that is an error. When it fails later, that is said once
    and the training goes on: the CSV file of the run folder holds every number.

    Args:
        project: Project of W&B.
        entity: User or team; that of the login if not given.
        save_dir: Folder for ``wandb/``; that of all runs if not given.
        name: Shown name; ``<stage> <data> <people> <name>`` of the run folder if not given.
        group: What is shown together; the people and folds of a stage on a data set if not given.
        tags: Further tags, beside data set, people, stage and name.
        gradients: Whether histograms of the gradients are logged.
        log_freq: Steps of an optimiser between them.
        checkpoints: Whether the checkpoint of a finished fit goes up as an artifact.

    Raises:
        ContractError: ``log_freq`` below 1.
    """

    def __init__(
        self,
        project: str = "neuroalign",
        entity: str | None = None,
        save_dir: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        gradients: bool = False,
        log_freq: int = 100,
        checkpoints: bool = False,
    ) -> None:
        if log_freq < 1:
            raise ContractError(f"gradients are logged every log_freq >= 1 steps, found log_freq={log_freq}")
        # Lightning has no default for where files are kept but the working folder
        super().__init__(project=project, save_dir=save_dir or ".")
        self.gradients = gradients
        self.log_freq = log_freq
        self.checkpoints = checkpoints
        self._save_dir = save_dir
        self._entity = entity
        self._shown: dict[str, Any] = {"name": name, "group": group, "tags": tuple(tags)}
        self._config: Mapping[str, Any] = {}
        self._new = True
        self._step: int | None = None
        self._borrowed = False
        self._lost = False

    def belong_to(
        self,
        folder: Path,
        *,
        config: Mapping[str, Any],
        run_id: str | None,
        step: int | None,
        name: str,
        group: str,
        tags: Sequence[str],
    ) -> None:
        """Say which run this is about, before anything is logged.

        Args:
            folder: Where files of W&B are kept, if neither ``save_dir`` nor ``WANDB_DIR`` say so.
            config: Resolved configuration; that of a W&B run that is gone on with is only added to.
            run_id: The W&B run to go on with; None for a new one.
            step: Where on the axis of the training a checkpoint is scored; None in a fit, which counts by itself.
            name: Name for a new one, if not given otherwise.
            group: Likewise.
            tags: Further tags of a new one.

        Raises:
            DataError: W&B cannot keep its files there; it would silently keep them among temporary ones.
        """
        self._id = os.environ.get("WANDB_RUN_ID") or run_id
        self._new = run_id is None
        self._step = step
        self._config = config
        given = self._shown
        self._shown = {
            "name": given["name"] or os.environ.get("WANDB_NAME") or name,
            "group": given["group"] or os.environ.get("WANDB_RUN_GROUP") or group,
            "tags": [*_variable("WANDB_TAGS"), *given["tags"], *(tag[:_LONGEST_TAG] for tag in tags)],
        }
        self._save_dir = self._save_dir or os.environ.get("WANDB_DIR") or str(folder)
        self._require_room()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started when it is first asked for; a dummy in all but the first process.

        Raises:
            DataError: W&B cannot start.
        """
        if self._experiment is None:
            self._experiment = self._start()
            self._id = None if self._experiment.disabled else self._experiment.id
            self._experiment.define_metric(_STEP)
            self._experiment.define_metric("*", step_metric=_STEP, step_sync=True)
        return self._experiment

    def _start(self) -> Any:
        import wandb

        active: Any = wandb.run
        if active is not None:
            self._borrowed = True
            active.config.update(dict(self._config), allow_val_change=True)
            return active
        try:
            return wandb.init(
                project=self._project,
                entity=self._entity,
                dir=self._save_dir,
                id=self._id,
                resume="allow",
                config=dict(self._config),
                mode=_mode(),
                # what a person has changed on the page since stays
                **(self._shown if self._new else {}),
            )
        # a variable that it refuses is a ValueError of pydantic, in several lines
        except (wandb.Error, OSError, ValueError) as error:
            raise DataError(
                f"Weights & Biases cannot start: {' '.join(str(error).split())}; WANDB_MODE=offline keeps the run on "
                "this machine, WANDB_MODE=disabled leaves it out"
            ) from error

    @property
    def kept_id(self) -> str | None:
        """The id by which later commands go on; None where the W&B run is not of this training alone."""
        return None if self._borrowed or "WANDB_RUN_ID" in os.environ else self._id

    def attempt(self, log: Callable[[Any], object]) -> None:
        """Do something with the W&B run; once W&B has failed, say so and do nothing any more."""
        if self._lost:
            return
        run = self.experiment
        try:
            log(run)
        # its service may be killed, its disk full, its server gone: its errors have no base in common
        except Exception as error:
            self._lost = True
            rank_zero_warn(
                f"Weights & Biases failed and logs no more of this run, which goes on: {type(error).__name__}: {error}"
            )

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers, pictures, tables or histograms at a step of the training."""
        if self._step is not None:
            # Lightning counts steps and epochs from 0 where it does not train
            metrics, step = {name: value for name, value in metrics.items() if name != "epoch"}, self._step
        self.attempt(lambda run: run.log(dict(metrics) if step is None else {**metrics, _STEP: step}))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Leave out what Lightning sends of a stage: its arguments are in the configuration, layouts too long."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Finish the W&B run, so that the next run of this process has its own; not one that was already there.

        Args:
            status: ``success``, ``failed``, or ``finished`` where Lightning has asked SLURM for another job and
                trains on until this one ends.
        """
        if self._experiment is None or self._borrowed or status == "finished":
            return
        self.attempt(lambda run: run.finish(exit_code=int(status != "success")))
        self._experiment = None
        try:
            self._require_room()
        except DataError as error:
            # the service of W&B only writes this into a log of its own
            rank_zero_warn(f"{error}. What Weights & Biases logged at last is lost; the run is whole")

    def _require_room(self) -> None:
        """Write a little where W&B keeps its files.

        Raises:
            DataError: That fails.
        """
        if self._save_dir is None or os.environ.get("WANDB_MODE") == "disabled":
            return
        try:
            Path(self._save_dir).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._save_dir) as file:
                file.write(bytes(4096))
                file.flush()
        except OSError as error:
            raise DataError(
                f"Weights & Biases cannot keep its files in {self._save_dir}: {error}; change WANDB_DIR or "
                "--trainer.logger.init_args.save_dir"
            ) from error


def _mode() -> Literal["offline"] | None:
    """The mode of W&B where nothing sets it: offline without login, which is said once."""
    import wandb

    chosen = "WANDB_MODE" in os.environ or wandb.setup().settings.mode != "online"
    if chosen or wandb.login(prompt=False, verify=False):
        return None
    _say_offline()
    return "offline"


@functools.cache
def _say_offline() -> None:
    print("Weights & Biases: not logged in, so this run is kept offline (wandb sync uploads it)", file=sys.stderr)


def _variable(name: str) -> list[str]:
    return [word.strip() for word in os.environ.get(name, "").split(",") if word.strip()]
