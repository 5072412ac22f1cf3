"""ContrastiveAlignment: recordings encoded into the space of frozen image embeddings."""

from __future__ import annotations

import functools
import importlib
from bisect import bisect
from collections.abc import Iterator, Mapping
from itertools import accumulate, combinations
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from contracts import PADDING, Batch, ContractError, Layout, Output, parts_of
from lightning_modules.networks.checkpoints import load_stage
from lightning_modules.networks.encoders import Encoder, EncoderFactory, ResidualMLP, TemporalSpatialConv
from lightning_modules.networks.infonce import (
    Direction,
    Duplicates,
    InfoNCE,
    Normalise,
    Positives,
    TemperatureForm,
)
from lightning_modules.stage import AdamW, GradientStage, Schedule, refuse_other_data

VALIDATION_BATCH = 1024
"""Samples among which each validation sample is told apart in ``validation/loss``."""

SHARED_BETWEEN_PEOPLE = ("modality", "embedding_width", "embedding_space", "sampling_rate", "start")
"""Entries of a layout that must agree between people of one trunk."""


class ContrastiveAlignment(GradientStage):
    """Encoders of fMRI, EEG or MEG, trained so that recordings meet the embedding of the picture seen.

    Every data set has an encoder of its own, in which every person has a layer of their own and all share the trunk
    (``lightning_modules.networks.encoders``); the loss is InfoNCE with every published choice as an argument
    (``lightning_modules.networks.infonce``). Of several data sets (``MultiModal``) each step has a batch of every one;
    they meet in the frozen space of the pictures, and with ``between`` also directly: recordings of one and another
    data set belong together where the stimulus, or its class, is the same. The loss is the mean over data sets, plus
    the mean over their pairs.

    References: Radford et al. (2021), CLIP; Défossez et al. (2023), Decoding speech perception from non-invasive
    brain recordings; Ferrante et al. (2024), Towards neural foundation models for vision (arXiv 2411.09723), whose
    loss is ``direction: brain_to_image, temperature: 0.1, temperature_form: fixed, duplicates: negatives`` and whose
    layers of people were never trained (``subject_layers: frozen_random``), because its code did not register them.

    Args:
        layout: Shapes of the data, linked from the datamodule.
        encoder: A class of ``lightning_modules`` (``LinearEncoder``, ``ResidualMLP``, ``TemporalSpatialConv`` ...) or
            of your own, with its sizes; None for the usual one of the modality: ``ResidualMLP`` for fMRI,
            ``TemporalSpatialConv`` for EEG and MEG.
        encoders: Encoders of single data sets, by the name of the part, in place of ``encoder``.
        subject_layers: Layers of people are ``trainable``, or stay ``frozen_random`` as they began.
        normalise: Which side of the dot product has length 1.
        direction: Which side asks.
        temperature: Temperature at the start.
        temperature_form: ``fixed``, or learned as ``exp``, ``softplus`` or ``raw``, for each data set by itself.
        max_scale: Largest learned 1 / temperature.
        positives: Further pairs that belong together: ``none``, same ``stimulus``, same class (``label``).
        duplicates: Other pairs of the same stimulus: ``removed`` from the negatives, or ``negatives``.
        between: What recordings of two data sets belong together: ``none``, same ``stimulus``, same class (``label``;
            the same stimulus always is).
        between_weight: Factor on the loss between data sets.
        lr: Largest learning rate.
        weight_decay: Decoupled weight decay of matrices.
        warmup: Share of all steps over which the rate rises.
        schedule: ``constant``, ``cosine`` or ``linear``.
        compile: Compile the trunks in place.
        adapt_subject: Checkpoint of a ContrastiveAlignment of other people: its trunks and temperatures are taken over
            and stay as they are, only the layers of the people of this run are trained.

    Raises:
        ContractError: Arguments that do not fit each other or the data; an ``adapt_subject`` that shares nothing.
    """

    provides: ClassVar = {
        step: frozenset({"brain_embedding", "image_embedding"}) for step in ("validation", "test", "predict")
    }
    side_by_side = True

    def __init__(
        self,
        layout: Layout,
        encoder: EncoderFactory | None = None,
        *,
        encoders: dict[str, EncoderFactory] | None = None,
        subject_layers: Literal["trainable", "frozen_random"] = "trainable",
        normalise: Normalise = "both",
        direction: Direction = "symmetric",
        temperature: float = 0.07,
        temperature_form: TemperatureForm = "exp",
        max_scale: float = 100.0,
        positives: Positives = "none",
        duplicates: Duplicates = "removed",
        between: Positives = "none",
        between_weight: float = 1.0,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        warmup: float = 0.1,
        schedule: Schedule = "cosine",
        compile: bool = False,
        adapt_subject: str | None = None,
    ) -> None:
        optimiser = AdamW(lr=lr, weight_decay=weight_decay, warmup=warmup, schedule=schedule)
        super().__init__(layout, optimiser=optimiser, compile=compile)
        parts = parts_of(layout)
        self.save_hyperparameters()
        self._check_arguments(parts, encoders or {}, positives, between, subject_layers, adapt_subject)
        given = {name: (encoders or {}).get(name) or encoder or _usual(part) for name, part in parts.items()}
        described = {name: _described(chosen) for name, chosen in given.items()}
        self.hparams.update(encoder=None, encoders=described)
        self.encoders: dict[str, Encoder] = nn.ModuleDict()  # type: ignore[assignment]
        self.losses: dict[str, InfoNCE] = nn.ModuleDict()  # type: ignore[assignment]
        for name, part in parts.items():
            self.encoders[name] = _made(described[name], part)
            self.losses[name] = InfoNCE(
                normalise=normalise,
                direction=direction,
                temperature=temperature,
                temperature_form=temperature_form,
                max_scale=max_scale,
                positives=positives,
                duplicates=duplicates,
            )
        if subject_layers == "frozen_random":
            for name, made in self.encoders.items():
                made.freeze_subject_layers()
                if not any(parameter.requires_grad for parameter in made.parameters()):
                    raise ContractError(
                        f"{type(made).__name__} has nothing but layers of people, so nothing of {name} would be "
                        "trained; set --model.init_args.subject_layers=trainable or choose another encoder"
                    )
        self.between = between
        self.between_weight = between_weight
        if between != "none":
            self.shared = InfoNCE(
                temperature=temperature, temperature_form=temperature_form, max_scale=max_scale, positives=between
            )
        self.adapt_subject = adapt_subject
        self._names = list(parts)
        self._first = list(accumulate([0, *(len(part["subjects"]) for part in parts.values())]))[:-1]
        self._validated: list[Output] = []

    def _check_arguments(
        self,
        parts: Mapping[str, Layout],
        encoders: Mapping[str, Any],
        positives: Positives,
        between: Positives,
        subject_layers: str,
        adapt_subject: str | None,
    ) -> None:
        taken = sorted(name for name in parts if name == "between" or name in dir(nn.ModuleDict))
        if taken:
            raise ContractError(f"{', '.join(taken)} cannot name a data set here; change --data.init_args.parts")
        unknown = sorted(set(encoders) - set(parts))
        if unknown:
            raise ContractError(f"encoders are given for {unknown}; the data set has {', '.join(parts)}")
        if "label" in (positives, between) and not self.layout["classes"]:
            raise ContractError("positives='label' needs class names; this data set has none")
        if between != "none" and len(parts) < 2:
            raise ContractError(f"between={between!r} needs several data sets side by side, found {', '.join(parts)}")
        if subject_layers == "frozen_random" and adapt_subject is not None:
            raise ContractError("adapt_subject trains the layers of people alone; set subject_layers=trainable")

    def networks(self) -> Iterator[nn.Module]:
        """The trunks: which people's layers run depends on the batch."""
        for encoder in self.encoders.values():
            yield encoder.trunk

    def setup(self, stage: str) -> None:
        """Take over what ``adapt_subject`` names; a checkpoint that is resumed replaces it afterwards."""
        if stage == "fit" and self.adapt_subject is not None:
            self._take_over(Path(self.adapt_subject))

    def _take_over(self, path: Path) -> None:
        for name, encoder in self.encoders.items():
            if not list(encoder.subject_layers.parameters()):
                raise ContractError(
                    f"{type(encoder).__name__} has no layers of people of {name} to train: give it some "
                    "(subject_layer=convolution), or test the other checkpoint on the new people as it is"
                )
            if not list(encoder.trunk.parameters()):
                raise ContractError(
                    f"{type(encoder).__name__} shares nothing between the people of {name}: train without adapt_subject"
                )
        checkpoint = load_stage(path, argument="adapt_subject", stage=type(self).__name__)
        theirs = parts_of(checkpoint["hyper_parameters"]["layout"])
        for name, part in parts_of(self.layout).items():
            if name not in theirs:
                raise ContractError(f"{path} was trained on {', '.join(theirs)}, not on {name}; choose another")
            refuse_other_data({"hyper_parameters": {"layout": theirs[name]}}, part, SHARED_BETWEEN_PEOPLE)
        form = checkpoint["hyper_parameters"].get("temperature_form", self.hparams["temperature_form"])
        if form != self.hparams["temperature_form"]:
            raise ContractError(
                f"{path} has temperature_form={form!r}, this run {self.hparams['temperature_form']!r}, which would "
                "read its temperature as another one; give --model.init_args.temperature_form as it was trained with"
            )
        mine, given = self._without_people(self.state_dict()), self._without_people(checkpoint["state_dict"])
        different = [
            f"  {name}: {_shape(given.get(name))} in the checkpoint, {_shape(mine.get(name))} here"
            for name in sorted(mine.keys() | given.keys())
            if _shape(given.get(name)) != _shape(mine.get(name))
        ]
        if different:
            raise ContractError(
                f"the trunk of {path} is another one; give the encoder arguments that it was trained with:\n"
                + "\n".join(different)
            )
        self.load_state_dict(given, strict=False)
        self.lineage = checkpoint["lineage"]
        for name, parameter in self.named_parameters():
            parameter.requires_grad = name not in mine

    def _without_people(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the data sets of this run that do not belong to any one person."""
        modules = [f"{kind}.{name}" for name in self._names for kind in ("encoders", "losses")]
        own = tuple(f"{module}." for module in (*modules, *(["shared"] if self.between != "none" else [])))
        people = tuple(f"encoders.{name}.subject_layers." for name in self._names)
        return {name: value for name, value in state.items() if name.startswith(own) and not name.startswith(people)}

    # ---- using -------------------------------------------------------------------------------------

    def encode(self, signal: Float[Tensor, "b ..."], subject: Int64[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Encode signals of people of one layout, ``subject`` by position in ``layout["subjects"]``."""
        part = self._part_of(subject)
        encoded: Tensor = self.encoders[self._names[part]](signal, subject - self._first[part])
        return encoded

    def _part_of(self, subject: Int64[Tensor, " b"]) -> int:
        # asking a GPU for a number makes it wait
        return bisect(self._first, int(subject[0])) - 1 if len(self._names) > 1 else 0

    def forward(self, batch: Batch) -> Output:
        """Encode the signals of a batch.

        Returns:
            ``brain_embedding (B, D)``, ``image_embedding (B, D)`` and what every output carries on.
        """
        return {
            "brain_embedding": self.encode(batch["signal"], batch["subject"]),
            "image_embedding": batch["embedding"],
            **self.passed_through(batch),
        }

    # ---- training ----------------------------------------------------------------------------------

    def training_step(self, batch: Batch | dict[str, Batch], batch_idx: int) -> Tensor:
        """Return the loss of a batch, or of a batch of every data set."""
        # a data set that is the only one of several comes by its name, too
        batches: Any = batch if "parts" in self.layout else {self._names[0]: batch}
        outputs = {name: self(part) for name, part in batches.items()}
        losses = {name: self._loss(name, output) for name, output in outputs.items()}
        loss = torch.stack(list(losses.values())).mean()
        if self.between != "none":
            between = [self._between(*pair) for pair in combinations(outputs.values(), 2)]
            losses["between"] = torch.stack(between).mean()
            loss = loss + self.between_weight * losses["between"]
        size = sum(len(output["row"]) for output in outputs.values())
        self.log("train/loss", loss, on_step=True, on_epoch=True, batch_size=size, sync_dist=True)
        for name in outputs:
            self.log(self._log_name("train/scale", name), self.losses[name].scale.detach())
        if len(losses) > 1:
            values = {f"train/loss/{name}": value.detach() for name, value in losses.items()}
            self.log_dict(values, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Output:
        """Return the output of a validation batch, and keep it for the loss."""
        output = super().validation_step(batch, batch_idx)
        self._validated.append(output)
        return output

    def on_validation_epoch_end(self) -> None:
        """Log the loss over all validation samples in their order, whatever the batches and processes."""
        kept = ("brain_embedding", "image_embedding", "stimulus", "label", "subject", "row")
        mine = {name: torch.cat([output[name] for output in self._validated]) for name in kept}
        self._validated = []
        everything = {
            name: self.all_gather(value).flatten(0, 1) if self.trainer.world_size > 1 else value  # type: ignore[union-attr]
            for name, value in mine.items()
        }
        order = everything["row"].argsort()
        order = order[everything["row"][order] != PADDING]
        part = torch.bucketize(everything["subject"][order], torch.tensor(self._first, device=order.device), right=True)
        losses = {}
        for number in part.unique().tolist():
            name = self._names[number - 1]
            own = order[part == number]
            blocks = own.split(VALIDATION_BATCH)
            values = [self._loss(name, {k: v[block] for k, v in everything.items()}, gather=False) for block in blocks]
            shares = torch.tensor([len(block) / len(own) for block in blocks], device=own.device)
            losses[name] = (torch.stack(values) * shares).sum()
        # every process has computed the same value
        self.log("validation/loss", torch.stack(list(losses.values())).mean(), sync_dist=True, prog_bar=True)
        if len(self._names) > 1:
            self.log_dict({f"validation/loss/{name}": value for name, value in losses.items()}, sync_dist=True)

    def _loss(self, name: str, output: Output, *, gather: bool = True) -> Tensor:
        loss: Tensor = self.losses[name](
            output["brain_embedding"],
            output["image_embedding"],
            stimulus=output["stimulus"],
            label=output["label"],
            gather=gather,
        )
        return loss

    def _between(self, first: Output, second: Output) -> Tensor:
        return self.shared.between(
            *(output["brain_embedding"] for output in (first, second)),
            stimulus=(first["stimulus"], second["stimulus"]),
            label=(first["label"], second["label"]),
        )

    def _log_name(self, name: str, part: str) -> str:
        return f"{name}/{part}" if len(self._names) > 1 else name


def _usual(part: Layout) -> EncoderFactory:
    return ResidualMLP if part["modality"] == "fmri" else TemporalSpatialConv


def _made(described: Mapping[str, Any], part: Layout) -> Encoder:
    """Build an encoder from its class path and arguments."""
    module, _, name = described["class_path"].rpartition(".")
    kind: EncoderFactory = getattr(importlib.import_module(module), name)
    return functools.partial(kind, **(described.get("init_args") or {}))(part)


def _described(encoder: Any) -> dict[str, Any]:
    """Class path and arguments of an encoder, plain data for the checkpoint.

    Raises:
        ContractError: Neither a class of a module nor ``functools.partial`` of one with arguments by name.
    """
    if isinstance(encoder, Mapping):
        return dict(encoder)
    partial = encoder if isinstance(encoder, functools.partial) else functools.partial(encoder)
    # the command line's own partial holds functions of the argument parser before the class
    *before, kind = (partial.func, *partial.args)
    if not isinstance(kind, type) or "." in kind.__qualname__ or not all(map(callable, before)):
        raise ContractError(
            "encoder must be a class of a module, or functools.partial of one with arguments by name, so that a "
            f"checkpoint can name it; found {encoder!r}"
        )
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": partial.keywords}


def _shape(value: Tensor | None) -> str:
    return "nothing" if value is None else str(tuple(value.shape))
