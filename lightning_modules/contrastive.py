"""ContrastiveAlignment: recordings encoded into the space of frozen image embeddings."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from contracts import PADDING, Batch, ContractError, Layout, Output
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
    """An encoder of fMRI, EEG or MEG, trained so that recordings meet the embedding of the picture seen.

    Every person has a layer of their own, all share the trunk (``lightning_modules.networks.encoders``); the loss is
    InfoNCE with every published choice as an argument (``lightning_modules.networks.infonce``).

    References: Radford et al. (2021), CLIP; Défossez et al. (2023), Decoding speech perception from non-invasive
    brain recordings; Ferrante et al. (2024), Towards neural foundation models for vision (arXiv 2411.09723), whose
    loss is ``direction: brain_to_image, temperature: 0.1, temperature_form: fixed, duplicates: negatives``.

    Args:
        layout: Shapes of the data, linked from the datamodule.
        encoder: ``LinearEncoder``, ``ResidualMLP``, ``TemporalSpatialConv`` or a class of your own, with its sizes;
            None for the usual one of the modality: ``ResidualMLP`` for fMRI, ``TemporalSpatialConv`` for EEG and MEG.
        normalise: Which side of the dot product has length 1.
        direction: Which side asks.
        temperature: Temperature at the start.
        temperature_form: ``fixed``, or learned as ``exp``, ``softplus`` or ``raw``.
        max_scale: Largest learned 1 / temperature.
        positives: Further pairs that belong together: ``none``, same ``stimulus``, same class (``label``).
        duplicates: Other pairs of the same stimulus: ``removed`` from the negatives, or ``negatives``.
        lr: Largest learning rate.
        weight_decay: Decoupled weight decay of matrices.
        warmup: Share of all steps over which the rate rises.
        schedule: ``constant``, ``cosine`` or ``linear``.
        compile: Compile the trunk in place.
        adapt: Checkpoint of a ContrastiveAlignment of other people: its trunk and temperature are taken over and
            stay as they are, only the layers of the people of this run are trained.

    Raises:
        ContractError: Arguments that do not fit each other or the data; an ``adapt`` that shares nothing.
    """

    provides: ClassVar = {
        step: frozenset({"brain_embedding", "image_embedding"}) for step in ("validation", "test", "predict")
    }

    def __init__(
        self,
        layout: Layout,
        encoder: EncoderFactory | None = None,
        *,
        normalise: Normalise = "both",
        direction: Direction = "symmetric",
        temperature: float = 0.07,
        temperature_form: TemperatureForm = "exp",
        max_scale: float = 100.0,
        positives: Positives = "none",
        duplicates: Duplicates = "removed",
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        warmup: float = 0.1,
        schedule: Schedule = "cosine",
        compile: bool = False,
        adapt: str | None = None,
    ) -> None:
        optimiser = AdamW(lr=lr, weight_decay=weight_decay, warmup=warmup, schedule=schedule)
        super().__init__(layout, optimiser=optimiser, compile=compile)
        if encoder is None:
            encoder = ResidualMLP if layout["modality"] == "fmri" else TemporalSpatialConv
        if isinstance(getattr(encoder, "func", encoder), type):
            # from Python; the command line makes plain data of it by itself
            encoder = _described(encoder)  # type: ignore[assignment]
        self.save_hyperparameters()
        if callable(self.hparams["encoder"]):
            raise ContractError(
                "encoder must be a class or functools.partial of one, so that a checkpoint can name it; found "
                f"{encoder!r}"
            )
        if positives == "label" and not layout["classes"]:
            raise ContractError("positives='label' needs class names; this data set has none")
        self.loss = InfoNCE(
            normalise=normalise,
            direction=direction,
            temperature=temperature,
            temperature_form=temperature_form,
            max_scale=max_scale,
            positives=positives,
            duplicates=duplicates,
        )
        shapes = {subject: layout["shape"][subject] for subject in layout["subjects"]}
        self.encoder: Encoder = _factory(encoder)(shapes, layout["embedding_width"])
        self.adapt = adapt
        self._validated: list[Output] = []

    def networks(self) -> Iterator[nn.Module]:
        """The trunk: which people's layers run depends on the batch."""
        yield self.encoder.trunk

    def setup(self, stage: str) -> None:
        """Take over what ``adapt`` names; a checkpoint that is resumed replaces it afterwards."""
        if stage == "fit" and self.adapt is not None:
            self._take_over(Path(self.adapt))

    def _take_over(self, path: Path) -> None:
        shared = (*self.encoder.trunk.parameters(), *self.loss.parameters())
        if not list(self.encoder.trunk.parameters()):
            raise ContractError(f"{type(self.encoder).__name__} shares nothing between people: train without adapt")
        if not path.is_file():
            raise ContractError(f"no checkpoint {path.absolute()}; change --model.init_args.adapt")
        checkpoint = torch.load(path, map_location=self.device, weights_only=True)
        refuse_other_data(checkpoint, self.layout, SHARED_BETWEEN_PEOPLE)
        form = checkpoint["hyper_parameters"].get("temperature_form", self.loss.temperature_form)
        if form != self.loss.temperature_form:
            raise ContractError(
                f"{path} has temperature_form={form!r}, this run {self.loss.temperature_form!r}, which would read its "
                "temperature as another one; give --model.init_args.temperature_form as it was trained with"
            )
        mine, theirs = _without_people(self.state_dict()), _without_people(checkpoint["state_dict"])
        different = [
            f"  {name}: {_shape(theirs.get(name))} in the checkpoint, {_shape(mine.get(name))} here"
            for name in sorted(mine.keys() | theirs.keys())
            if _shape(theirs.get(name)) != _shape(mine.get(name))
        ]
        if different:
            raise ContractError(
                f"the trunk of {path} is another one; give the encoder arguments that it was trained with:\n"
                + "\n".join(different)
            )
        self.load_state_dict(theirs, strict=False)
        self.lineage = checkpoint["lineage"]
        for parameter in shared:
            parameter.requires_grad_(False)

    def forward(self, batch: Batch) -> Output:
        """Encode the signals of a batch.

        Returns:
            ``brain_embedding (B, D)``, ``image_embedding (B, D)`` and what every output carries on.
        """
        return {
            "brain_embedding": self.encoder(batch["signal"], batch["subject"]),
            "image_embedding": batch["embedding"],
            **self.passed_through(batch),
        }

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss = self._loss(self(batch))
        self.log("train/loss", loss, on_step=True, on_epoch=True, batch_size=len(batch["row"]), sync_dist=True)
        self.log("train/scale", self.loss.scale.detach())
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Output:
        """Return the output of a validation batch, and keep it for the loss."""
        output = super().validation_step(batch, batch_idx)
        self._validated.append(output)
        return output

    def on_validation_epoch_end(self) -> None:
        """Log the loss over all validation samples in their order, whatever the batches and processes."""
        kept = ("brain_embedding", "image_embedding", "stimulus", "label", "row")
        mine = {name: torch.cat([output[name] for output in self._validated]) for name in kept}
        self._validated = []
        everything = {
            name: self.all_gather(value).flatten(0, 1) if self.trainer.world_size > 1 else value  # type: ignore[union-attr]
            for name, value in mine.items()
        }
        order = everything["row"].argsort()
        order = order[everything["row"][order] != PADDING]
        blocks = order.split(VALIDATION_BATCH)
        losses = [self._loss({k: v[block] for k, v in everything.items()}, gather=False) for block in blocks]
        total = sum(loss * len(block) for loss, block in zip(losses, blocks, strict=True)) / len(order)
        # every process has computed the same value
        self.log("validation/loss", total, sync_dist=True, prog_bar=True)

    def _loss(self, output: Output, *, gather: bool = True) -> Tensor:
        loss: Tensor = self.loss(
            output["brain_embedding"],
            output["image_embedding"],
            stimulus=output["stimulus"],
            label=output["label"],
            gather=gather,
        )
        return loss


def _factory(encoder: EncoderFactory | Mapping[str, Any]) -> EncoderFactory:
    """Return what makes an encoder; checkpoints hold its class path and arguments."""
    if not isinstance(encoder, Mapping):
        return encoder
    module, _, name = encoder["class_path"].rpartition(".")
    kind: EncoderFactory = getattr(importlib.import_module(module), name)
    return functools.partial(kind, **encoder.get("init_args", {}))


def _described(encoder: Any) -> dict[str, Any]:
    """Class path and arguments of an encoder, plain data for the checkpoint."""
    partial = encoder if isinstance(encoder, functools.partial) else functools.partial(encoder)
    if "." in partial.func.__qualname__ or partial.args:
        raise ContractError(
            "encoder must be a class of a module, or functools.partial of one with arguments by name, so that a "
            f"checkpoint can name it; found {encoder!r}"
        )
    return {"class_path": f"{partial.func.__module__}.{partial.func.__qualname__}", "init_args": partial.keywords}


def _without_people(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights that do not belong to any one person."""
    return {name: value for name, value in state.items() if not name.startswith("encoder.subject_layers.")}


def _shape(value: Tensor | None) -> str:
    return "nothing" if value is None else str(tuple(value.shape))
