"""Stage: what all training stages share; GradientStage: what those trained by gradients share."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextvars import Context
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from lightning import LightningModule
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]  # listed without __all__
from torch import Tensor, nn

from contracts import PASSED_THROUGH, Batch, ContractError, Gallery, Layout, Output, ScoreContext
from lightning_modules.networks.checkpoints import load_stage

COMPARED = (
    "modality",
    "subjects",
    "shape",
    "channels",
    "embedding_width",
    "embedding_space",
    "training_set",
    "preparation",
)
"""Entries of a layout that must agree between a checkpoint and the data it is used on."""

S = TypeVar("S", bound="Stage")
Schedule = Literal["constant", "cosine", "linear"]


class Stage(LightningModule):
    """Base of all training stages; a subclass reads like the paper it implements.

    Every stage calls ``save_hyperparameters()`` on plain data, so that a checkpoint can be loaded without a
    datamodule. A stage logs losses and returns outputs; scores are computed by callbacks.

    Attributes:
        provides: For ``validation``, ``test`` and ``predict``, the names in the output (contract 2).
        batch_keys: Entries of the batch that the stage reads beside ``PASSED_THROUGH``.
        evaluation_keys: Further entries that it reads when it is validated or tested, which scores need.
        side_by_side: Whether training batches of several data sets hold a batch of every one (contract 1).
        every_sample_once: Whether an epoch must hold every sample exactly once (closed-form stages), with
            padding marked by ``row``; else training drops the last ragged batch.
        lineage: The earlier stages that this one was made from, each with its protocol, its training stimuli
            and whether it saw test recordings.

    Args:
        layout: Shapes and names of the data (contract 0), linked from the datamodule.
    """

    provides: ClassVar[Mapping[str, frozenset[str]]] = {}
    batch_keys: ClassVar[frozenset[str]] = frozenset({"signal", "embedding"})
    evaluation_keys: ClassVar[frozenset[str]] = frozenset()
    side_by_side: ClassVar[bool] = False
    every_sample_once: ClassVar[bool] = False

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.lineage: list[dict[str, Any]] = []

    def passed_through(self, batch: Batch) -> Output:
        """Return the entries that every output carries on."""
        return {name: batch[name] for name in PASSED_THROUGH}  # type: ignore[literal-required]

    def validation_step(self, batch: Batch, batch_idx: int) -> Output:
        """Return the output of a validation batch."""
        return self(batch)  # type: ignore[no-any-return]

    def test_step(self, batch: Batch, batch_idx: int) -> Output:
        """Return the output of a test batch."""
        return self(batch)  # type: ignore[no-any-return]

    def predict_step(self, batch: Batch, batch_idx: int) -> Output:
        """Return the output of a batch."""
        return self(batch)  # type: ignore[no-any-return]

    def galleries(self) -> Mapping[str, Gallery]:
        """Galleries that only the stage can make, such as texts through its own text tower."""
        return {}

    def earlier_stage(
        self,
        kind: type[S],
        source: str | dict[str, Any],
        *,
        argument: str,
        change: Mapping[str, Any] = MappingProxyType({}),
    ) -> S:
        """Build an earlier stage, frozen, whose weights become part of this stage's checkpoint.

        Args:
            kind: Its class.
            source: Its checkpoint, or its arguments where a checkpoint of this stage holds its weights.
            argument: The argument of this stage that names it.
            change: Arguments that take the place of its own.

        Raises:
            ContractError: No such checkpoint, or one of another stage.
        """
        state, arguments = None, source
        if isinstance(arguments, str):
            checkpoint = load_stage(Path(arguments), argument=argument, stage=kind.__name__)
            arguments, state = checkpoint["hyper_parameters"], checkpoint["state_dict"]
            self.lineage += [entry for entry in checkpoint["lineage"] if entry not in self.lineage]
            # arguments instead of the path: the checkpoint of this stage can then be loaded without that file
            self.hparams[argument] = arguments
        with torch.random.fork_rng(devices=[]):
            # a context of its own: Lightning would give it the hyper-parameters of this stage as its own
            stage = Context().run(functools.partial(kind, **{**arguments, **change}))
        if state is not None:
            stage.load_state_dict(state)
        return stage.requires_grad_(requires_grad=False)

    def score_context(self, context: ScoreContext) -> ScoreContext:
        """Add to the datamodule's context what the stage knows (contract 3)."""
        lineage = tuple({key: entry[key] for key in entry if key != "training_stimuli"} for entry in self.lineage)
        return replace(context, galleries={**context.galleries, **self.galleries()}, lineage=lineage)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record what this stage was made from; scores of later stages name it."""
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit
        checkpoint["lineage"] = [
            *self.lineage,
            {
                "stage": type(self).__name__,
                "protocol": self.layout["protocol"],
                "training_set": self.layout["training_set"],
                "transductive": self.layout["transductive"],
                # what chose a checkpoint was seen, too
                "training_stimuli": sorted(datamodule.stimuli("train") | datamodule.stimuli("validation"))
                if datamodule
                else [],
            },
        ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that was made for other data.

        Raises:
            ContractError: The layouts differ; both sides are shown.
        """
        refuse_other_data(checkpoint, self.layout, COMPARED)
        self.lineage = checkpoint["lineage"][:-1]

    def on_test_start(self) -> None:
        """Refuse to test on pictures that an earlier stage was trained on, unless the protocol says so.

        Raises:
            ContractError: There are such pictures.
        """
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.test
        for stage in self.lineage if datamodule else ():
            seen = datamodule.stimuli("test") & set(stage["training_stimuli"])
            if seen and self.layout["protocol"].startswith(("by_stimulus", "by_class")):
                raise ContractError(
                    f"{len(seen)} test pictures were training pictures of the {stage['stage']} that this "
                    f"{type(self).__name__} was made from; train that one on the same division of the data"
                )


def refuse_other_data(checkpoint: Mapping[str, Any], layout: Layout, compared: tuple[str, ...]) -> None:
    """Compare the layout of a checkpoint with that of the data.

    Raises:
        ContractError: Some of the ``compared`` entries differ; both sides are shown.
    """
    stored: Mapping[str, Any] = checkpoint["hyper_parameters"]["layout"]
    here: Mapping[str, Any] = layout
    different = [
        f"  {key}: checkpoint {stored[key]!r}, data {here[key]!r}" for key in compared if stored[key] != here[key]
    ]
    if different:
        raise ContractError(
            "the checkpoint does not fit the data; give the --data options it was trained with, or train anew:\n"
            + "\n".join(different)
        )


@dataclass(frozen=True)
class AdamW:
    """Optimiser and schedule of a stage (Loshchilov and Hutter 2019).

    Attributes:
        lr: Largest learning rate.
        weight_decay: Decoupled weight decay; not for biases, gains and other vectors.
        betas: Decay rates of the two moments.
        warmup: Share of all steps over which the rate rises linearly.
        schedule: What follows: ``constant``, ``cosine`` or ``linear`` to zero.

    Raises:
        ContractError: A rate that is not positive, a negative decay, a share outside 0..1.
    """

    lr: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = 0.0
    schedule: Schedule = "constant"

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.weight_decay >= 0 and 0 <= self.warmup <= 1):
            raise ContractError(
                f"lr must be positive, weight_decay at least 0 and warmup a share of the steps, found lr={self.lr}, "
                f"weight_decay={self.weight_decay}, warmup={self.warmup}"
            )

    def rate(self, step: int, steps: int) -> float:
        """Factor on ``lr`` at a step, counted from 0, of ``steps``."""
        rising = round(self.warmup * steps)
        if step < rising:
            return (step + 1) / rising
        share = (step - rising) / max(steps - rising, 1)
        return {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}[self.schedule]


class GradientStage(Stage):
    """Base of stages trained by gradients.

    Before every batch the global random state is set to a function of (seed, epoch, batch, process), so that
    dropout and masks of a resumed fit are those of an unbroken one, from whatever point it resumes.

    Args:
        layout: Shapes and names of the data.
        optimiser: Optimiser and schedule.
        compile: Compile the networks (``networks``) in place when a fit starts; names of weights stay.
    """

    def __init__(self, layout: Layout, *, optimiser: AdamW, compile: bool = False) -> None:
        super().__init__(layout)
        self.optimiser = optimiser
        self.compiled = compile
        self._seed = 0
        self._losses: dict[str, Tensor] = {}

    @abstractmethod
    def networks(self) -> Iterator[nn.Module]:
        """What ``compile`` compiles."""

    def configure_optimizers(self) -> Any:
        """AdamW with the schedule stepped after every batch that stepped."""
        options = self.optimiser
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps) and (options.schedule != "constant" or options.warmup):
            raise ContractError("a schedule needs an end: set --trainer.max_epochs or --trainer.max_steps")
        groups = param_groups_weight_decay(self, options.weight_decay)
        optimiser = torch.optim.AdamW(groups, lr=options.lr, betas=options.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: options.rate(step, int(steps)))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Keep the seed of the fit, and compile."""
        self._seed = torch.initial_seed()
        if self.compiled:
            for network in self.networks():
                network.compile()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the random state of this step."""
        key = np.random.SeedSequence([self._seed, self.current_epoch, batch_idx, self.global_rank])
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0] >> 1))

    def on_before_backward(self, loss: Tensor) -> None:
        """Stop where the loss is no number, before it spoils the weights that a checkpoint would keep.

        Raises:
            ContractError: The loss is NaN or infinite.
        """
        # asking a GPU for a number makes it wait, so only before checkpoints may be written
        if self._is_looked_at():
            self._check(loss, "loss")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop at the end of an epoch whose last step spoiled the weights.

        Raises:
            ContractError: A weight is NaN or infinite.
        """
        if self.trainer.is_last_batch:
            self._check(torch.stack([parameter.detach().sum() for parameter in self.parameters()]), "sum of weights")

    def add_loss(self, name: str, values: Tensor) -> None:
        """Add values ``(n,)``, one for each sample, to a mean over all samples of a validation or test epoch."""
        count = torch.full((), len(values), dtype=torch.double, device=values.device)
        self._losses[name] = self._losses.get(name, 0) + torch.stack([values.double().sum(), count])

    def on_validation_epoch_end(self) -> None:
        """Log the losses over all validation samples, whatever the batches and processes."""
        self._log_losses()

    def on_test_epoch_end(self) -> None:
        """Log the losses over all test samples, whatever the batches and processes."""
        self._log_losses()

    def _log_losses(self) -> None:
        # Lightning averages numbers of samples over processes as integers, so they are added up here
        for name, own in self._losses.items():
            total, count = self.trainer.strategy.reduce(own, reduce_op="sum")
            # every process has the same value
            self.log(name, (total / count).float(), sync_dist=True, prog_bar=True)
        self._losses = {}

    def _is_looked_at(self) -> bool:
        trainer: Any = self.trainer
        done: int = trainer.fit_loop.batch_idx + 1
        return trainer.is_last_batch or done % trainer.log_every_n_steps == 0  # type: ignore[no-any-return]

    def _check(self, value: Tensor, name: str) -> None:
        if not torch.isfinite(value).all():
            trainer: Any = self.trainer
            raise ContractError(
                f"the {name} is NaN or infinite in epoch {self.current_epoch}, batch {trainer.fit_loop.batch_idx}; "
                f"lower --model.init_args.lr (now {self.optimiser.lr}) or clip gradients "
                "(--trainer.gradient_clip_val=1)"
            )
