"""CrossModalConversion: decoding, encoding and conversion between modalities through one embedding space."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from contracts import PADDING, Batch, ContractError, Layout, Output, ScoreContext, parts_of
from lightning_modules.contrastive import ContrastiveAlignment
from lightning_modules.networks.comoments import fold_of, predicted_memory
from lightning_modules.networks.ridge_sums import StreamedSums, checked_penalty, zero_linear
from lightning_modules.stage import COMPARED, Stage, refuse_other_data

KINDS = ("to_image", "from_image", "to_signal")
"""Regressions z -> e, e -> z and e -> s."""


class CrossModalConversion(Stage):
    """Any modality to the pictures (decoding), from the pictures (encoding), and to any other modality (conversion).

    As published, each of these is a retrieval: recordings and pictures are points of one space, made by a finished
    ``ContrastiveAlignment``, and the nearest point of the target modality is the answer; nothing is fitted. Beyond
    that, this stage fits ridge regressions, in one pass, that predict the target instead of looking it up:

    * to the target's embedding: recording -> picture (z -> e) and picture -> recording (e -> z), one of each for every
      data set; a conversion is the first of the source, then the second of the target. The encoders have learned the
      training recordings by heart, so these are fitted on the validation recordings, which they have not seen. They
      have no intercept, since cosines would then rank by the mean, and are shrunk towards the identity, which is
      the retrieval: few recordings change little. z has length 1;
    * to the target's signal: picture -> signal (e -> s), one for every person, fitted on the training samples; a
      conversion is z -> e of the source, then e -> s of the target person.

    Nothing of this needs stimuli that two modalities share. ``validation/loss`` is the mean squared error of the
    signals predicted from held-out pictures, by which penalties can be chosen (a mean over data sets, each of which is
    logged, too).

    Reference: Ferrante et al. (2024), Towards neural foundation models for vision (arXiv 2411.09723), for the
    retrieval; the regressions are beyond it.

    Args:
        layout: Shapes of the data, linked from the datamodule.
        alignment: Checkpoint of the ContrastiveAlignment of the same data; ``run:<stage>`` on the command line is the
            finished run of that name with the same data, people and run name. Its weights become part of this
            stage's checkpoint.
        fit_on: Recordings that regressions between embeddings are fitted on: ``validation``, or ``train`` where
            nothing was set aside.
        alpha: Penalty of all regressions, or ``cv`` to choose each by cross-validation over stimuli.
        alphas: Penalties that ``cv`` compares; None for 15 values relative to the largest eigenvalue.
        folds: Folds of the cross-validation.
        memory_limit: Largest predicted memory of the fit in GB; more is refused before the pass.

    Raises:
        ContractError: An alignment that is not there or was trained on other data, an alpha that is not ``cv`` or a
            number of at least 0, fewer than 2 folds, no recordings to fit on, a memory above the limit.
    """

    every_sample_once = True

    def __init__(
        self,
        layout: Layout,
        *,
        alignment: str | dict[str, Any],
        fit_on: Literal["validation", "train"] = "validation",
        alpha: float | Literal["cv"] = "cv",
        alphas: list[float] | None = None,
        folds: int = 5,
        memory_limit: float = 16.0,
    ) -> None:
        super().__init__(layout)
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.fit_on = fit_on
        self.options: dict[str, Any] = {"alpha": checked_penalty(alpha, folds), "alphas": alphas}
        self.n_folds = folds
        self.memory_limit = memory_limit
        self.alignment = self.earlier_stage(ContrastiveAlignment, alignment, argument="alignment")
        if isinstance(alignment, str):
            refuse_other_data({"hyper_parameters": {"layout": self.alignment.layout}}, layout, COMPARED)
        width = layout["embedding_width"]
        self.parts = parts_of(layout)
        names = [(name, person) for name, part in self.parts.items() for person in part["subjects"]]
        self.part_of = dict(zip(layout["subjects"], (name for name, _ in names), strict=True))
        self.to_image: dict[str, nn.Linear] = _linears({name: (width, width) for name in self.parts})
        self.from_image: dict[str, nn.Linear] = _linears({name: (width, width) for name in self.parts})
        self.to_signal: dict[str, nn.Linear] = _linears(
            {_key(person): (width, math.prod(layout["shape"][person])) for person in layout["subjects"]}
        )
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self._sums: dict[tuple[str, str], StreamedSums] = {}
        # of each part: sum and number of the errors of a validation
        self._errors = torch.zeros(len(self.parts), 2, dtype=torch.double)

    @property
    def provides(self) -> Mapping[str, frozenset[str]]:  # type: ignore[override]  # depends on the data
        """What each step gives; a validation during the fit has nothing to give yet."""
        known = frozenset({"brain_embedding", "image_embedding", "signal"})
        regressed = {"decoded_embedding", "encoded_embedding", "predicted_signal"}
        everything = known | regressed | {f"{name}.brain_embedding" for name in self.parts}
        return {"validation": known, "test": everything, "predict": everything}

    def configure_optimizers(self) -> list[Any]:
        """Return no optimizer: the solutions are closed form."""
        return []

    # ---- fitting -----------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        """Print and check the memory that the fit will take, and begin to collect."""
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit
        if self.fit_on == "validation" and not (datamodule.has_validation() and self.trainer.limit_val_batches):
            raise ContractError(
                "regressions between embeddings are fitted on validation recordings, and none are set aside; set "
                "--data.init_args.validation, or --model.init_args.fit_on=train"
            )
        width, sizes = self.layout["embedding_width"], self._sizes()
        # sums of all are held at once, the workspace of one solution at a time
        total, working = (
            [predicted_memory(width, q, 1, "primal", folds) for q in sizes.values()] for folds in (self.n_folds, 0)
        )
        memory = sum(total) - sum(working) + max(working)
        rank_zero_info(f"{len(sizes)} regressions from {width} numbers, {memory / 1e9:.2f} GB")
        if memory > self.memory_limit * 1e9:
            raise ContractError(
                f"the fit is predicted to take {memory / 1e9:.1f} GB, memory_limit is {self.memory_limit} GB; use "
                "fewer people or a shorter window (samples.window), or raise --model.init_args.memory_limit"
            )
        self._sums = self._empty_sums(*KINDS)
        # training samples are encoded as all others are
        self.alignment.eval()

    def _sizes(self) -> dict[tuple[str, str], int]:
        """Width of what each regression predicts."""
        width = self.layout["embedding_width"]
        sizes = {(kind, name): width for kind in ("to_image", "from_image") for name in self.parts}
        signals = {("to_signal", person): math.prod(self.layout["shape"][person]) for person in self.layout["subjects"]}
        return sizes | signals

    def _empty_sums(self, *kinds: str) -> dict[tuple[str, str], StreamedSums]:
        width = self.layout["embedding_width"]
        return {
            key: StreamedSums(width, size, self.n_folds, self.device)
            for key, size in self._sizes().items()
            if key[0] in kinds
        }

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the sums of signals, and of embeddings where these are fitted on it."""
        real = batch["row"] != PADDING
        for number in batch["subject"][real].unique().tolist():
            mine = real & (batch["subject"] == number)
            self._add("to_signal", self.layout["subjects"][number], batch, mine, to=batch["signal"].flatten(1))
        if self.fit_on == "train":
            self._add_embeddings(batch)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Solve after the last batch what needs no validation, before validation runs."""
        if self.trainer.is_last_batch:
            self._solve("to_signal")
            if self.fit_on == "train":
                self._solve("to_image", "from_image")

    def on_validation_epoch_start(self) -> None:
        """Begin to collect anew where an earlier validation of this epoch has solved the regressions already."""
        self._errors = torch.zeros(len(self.parts), 2, dtype=torch.double, device=self.device)
        if self._collects():
            self._sums = self._empty_sums("to_image", "from_image") | self._sums

    def validation_step(self, batch: Batch, batch_idx: int) -> Output:
        """Return what is known without regressions; while fitting, add the batch to the sums of embeddings."""
        if self._collects():
            self._add_embeddings(batch)
        self._add_error(batch)
        return {
            "brain_embedding": self._embed(batch),
            "image_embedding": batch["embedding"],
            "signal": batch["signal"],
            **self.passed_through(batch),
        }

    def _add_error(self, batch: Batch) -> None:
        """Add to the mean squared error, of each part, of signals predicted from pictures."""
        real = batch["row"] != PADDING
        predicted = self._signals(batch["embedding"], batch["subject"])
        errors = (predicted - batch["signal"]).square().flatten(1).mean(dim=1)[real].double()
        place = list(self.parts).index(self._part(batch["subject"]))
        self._errors[place] += torch.stack([errors.sum(), torch.full_like(errors.sum(), len(errors))])

    def _log_errors(self) -> None:
        # these regressions are fitted on training recordings, whatever those between embeddings are fitted on
        total, count = self.trainer.strategy.reduce(self._errors, reduce_op="sum").unbind(dim=1)
        errors = {name: value for name, value in zip(self.parts, total / count, strict=True) if value.isfinite()}
        for name, value in errors.items():
            # every process has the same value
            self.log(f"validation/loss/{name}", value.float(), sync_dist=True)
        self.log("validation/loss", torch.stack(list(errors.values())).mean().float(), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Solve the regressions between embeddings, and log the error of those of signals."""
        if self._collects():
            self._solve("to_image", "from_image")
        self._log_errors()

    def _collects(self) -> bool:
        fitting: bool = self.trainer.state.fn == "fit" and not self.trainer.sanity_checking
        return fitting and self.fit_on == "validation"

    @torch.no_grad()
    def _add_embeddings(self, batch: Batch) -> None:
        real = batch["row"] != PADDING
        name = self._part(batch["subject"])
        brain = self._embed(batch)
        self._add("to_image", name, batch, real, start=brain, to=batch["embedding"])
        self._add("from_image", name, batch, real, to=brain)

    def _add(
        self, kind: str, name: str, batch: Batch, mine: Tensor, *, to: Tensor, start: Tensor | None = None
    ) -> None:
        start = batch["embedding"] if start is None else start
        fold = fold_of(batch["stimulus"], self.n_folds)
        self._sums[kind, name].add(start[mine], to[mine], fold[mine], batch["row"][mine])

    def _solve(self, *kinds: str) -> None:
        for key in [key for key in self._sums if key[0] in kinds]:
            kind, name = key
            layer = getattr(self, kind)[_key(name)]
            signal = kind == "to_signal"
            try:
                solved = self._sums.pop(key).solve(
                    intercept=signal, towards_identity=not signal, per_target=False, **self.options
                )
            except ValueError as error:
                raise ContractError(f"{name}: {kind} cannot be fitted: {error} (--model.init_args.alpha)") from error
            if solved is None:
                if self.trainer.fast_dev_run:  # type: ignore[attr-defined]  # one batch, of one person
                    # anything but zeros, which have no direction to score; nothing of a smoke run is kept
                    nn.init.xavier_uniform_(layer.weight)
                    continue
                raise ContractError(
                    f"{name}: there is no recording to fit {kind} on; remove --trainer.limit_train_batches and "
                    "--trainer.limit_val_batches, or raise --data.init_args.validation"
                )
            with torch.no_grad():
                layer.weight.copy_(solved[0].weight.T)
                layer.bias.copy_(solved[0].bias)
            self.log(f"alpha/{kind}/{name}", solved[0].alpha.float().mean(), rank_zero_only=True)
        self.get_buffer("fitted").fill_(not self._sums)

    # ---- using -------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Output:
        """Embed the recordings of a batch and predict everything else from them.

        Returns:
            ``brain_embedding`` and ``image_embedding (B, D)``, z and e; ``decoded_embedding (B, D)``, the picture's
            embedding predicted from z; for every data set ``<part>.brain_embedding (B, D)``, what z would be in its
            place; ``encoded_embedding (B, D)``, z predicted from e; ``signal`` and ``predicted_signal`` (B, V) or
            (B, C, T), s predicted from e; and what every output carries on.
        """
        if not self.get_buffer("fitted") and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise ContractError(
                f"this {type(self).__name__} was never fitted; run fit first or name a checkpoint with --ckpt_path"
            )
        name = self._part(batch["subject"])
        brain = self._embed(batch)
        decoded = self.to_image[name](brain)
        return {
            "brain_embedding": brain,
            "image_embedding": batch["embedding"],
            "decoded_embedding": decoded,
            **{f"{part}.brain_embedding": self.from_image[part](decoded) for part in self.parts},
            "encoded_embedding": self.from_image[name](batch["embedding"]),
            "signal": batch["signal"],
            "predicted_signal": self._signals(batch["embedding"], batch["subject"]),
            **self.passed_through(batch),
        }

    def _embed(self, batch: Batch) -> Float[Tensor, "b d"]:
        return F.normalize(self.alignment.encode(batch["signal"], batch["subject"]), dim=-1)

    def _signals(self, points: Float[Tensor, "b d"], subject: Int64[Tensor, " b"]) -> Float[Tensor, "b ..."]:
        names = self.layout["subjects"]
        signals = points.new_empty(len(points), *self.layout["shape"][names[int(subject[0])]])
        for number in subject.unique().tolist():
            mine = subject == number
            signals[mine] = self._signal(names[number], points[mine])
        return signals

    def _signal(self, person: str, points: Float[Tensor, "b d"]) -> Float[Tensor, "b ..."]:
        """The signal of a person that is expected for points of the space of pictures."""
        layer = self.to_signal[_key(person)]
        with torch.no_grad():
            signal: Tensor = layer(points.to(layer.weight))
        return signal.reshape(len(points), *self.layout["shape"][person])

    def _part(self, subject: Int64[Tensor, " b"]) -> str:
        return self.part_of[self.layout["subjects"][int(subject[0])]]

    def score_context(self, context: ScoreContext) -> ScoreContext:
        """Add what predicts signals."""
        encode = {person: functools.partial(self._signal, person) for person in self.layout["subjects"]}
        return replace(super().score_context(context), encode=encode)


def _key(name: str) -> str:
    """A name that a module may have, without a dot."""
    return name.replace(".", "|")


def _linears(sizes: Mapping[str, tuple[int, int]]) -> Any:
    return nn.ModuleDict({name: zero_linear(p, q) for name, (p, q) in sizes.items()})
