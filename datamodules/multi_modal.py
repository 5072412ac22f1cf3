"""MultiModal: several data sets side by side, of any modalities, in one embedding space."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from contracts import DataError, Gallery, Layout, ScoreContext
from datamodules.core.base import BrainDataModule
from datamodules.core.features import EmbeddingOptions
from datamodules.core.image_space import ImageSpace
from datamodules.core.joint import JointSamples, JointTables, SideBySide, divide_together, joined
from datamodules.core.loading import DataModule, LoaderOptions, refuse_seeing
from datamodules.core.sampler import SideBySideSampler


class MultiModal(DataModule):
    """Several data sets side by side, such as EEG, MEG and fMRI of different people who saw different pictures.

    Stimuli are the same where their SHA-256 is, classes where their names are; people of all data sets follow each
    other, named ``<part>-<person>``. What one part is tested on is trained on in none
    (``datamodules.core.joint.divide_together``). All pictures are embedded in one space, whose target is fitted on the
    training stimuli of all parts.

    A stage that asks for it (``side_by_side``) is trained on a batch of every part in each step, each of the part's own
    ``loader.batch_size`` and in its own order; a part that is through begins again. Any other stage, and every
    evaluation, gets batches of one part after another, with the joint numbers of people: a stage for single data sets
    treats the people of all as those of one.

    Args:
        parts: The data sets by name (``eeg``, ``meg``, ``fmri``); in a configuration each a class with its arguments,
            or the file of a data set beside it. Their ``embedding``, ``views`` but for the size, ``split.validation``
            and ``loader.seed`` are not regarded.
        stores: Folder for embeddings.
        embedding: The image space of all.
        epoch: Steps of an epoch where parts are side by side: as many as the ``longest`` or ``shortest`` part has
            batches, or a number.
        validation: Share of the training stimuli that is set aside, the same in all parts.
        loader: The seed of the order and of the choice of validation stimuli, workers, and the batch size of
            evaluations and of stages that take one part after another.

    Raises:
        DataError: No parts, parts with names that cannot stand in a score, that cannot be divided together, or that
            were used before.
    """

    name = "multi_modal"

    def __init__(
        self,
        parts: dict[str, BrainDataModule],
        *,
        stores: str = "data/stores",
        embedding: EmbeddingOptions = EmbeddingOptions(),
        epoch: Literal["longest", "shortest"] | int = "longest",
        validation: float = 0.1,
        loader: LoaderOptions = LoaderOptions(),
    ) -> None:
        super().__init__(loader)
        if not parts or any(not name.isidentifier() for name in parts):
            raise DataError(f"--data.init_args.parts needs data sets by names such as eeg or fmri, found {list(parts)}")
        self.parts = dict(parts)
        self.stores = Path(stores)
        self.embedding = embedding
        self.epoch = epoch
        self.validation = validation
        self.tables = JointTables(self.parts)
        for part in self.parts.values():
            part.split = replace(part.split, validation=0.0)

    # ---- one numbering -----------------------------------------------------------------------------

    @cached_property
    def divided(self) -> dict[str, BrainDataModule]:
        """The data sets, divided together."""
        used = [name for name, part in self.parts.items() if "trials" in vars(part)]
        if used:
            raise DataError(
                f"part {', '.join(used)} has been used already, and so divided by itself; make it anew for MultiModal"
            )
        divide_together(self.tables, validation=self.validation, seed=self.loader.seed)
        return self.parts

    @cached_property
    def first_subject(self) -> dict[str, int]:
        """For each part, the number of its first person."""
        counts = [len(part.subjects) for part in self.parts.values()]
        return dict(zip(self.parts, accumulate([0, *counts[:-1]]), strict=True))

    @cached_property
    def space(self) -> ImageSpace:
        """The embeddings of the stimuli of all parts."""
        pictured = {name: part.store.has_pictures for name, part in self.divided.items()}
        without = [name for name, has in pictured.items() if not has]
        if without and any(pictured.values()) and self.embedding.model not in ("classes", "none"):
            raise DataError(
                f"parts without pictures ({', '.join(without)}) cannot be embedded beside others; give them their "
                "pictures, or set --data.init_args.embedding.model=classes"
            )
        return ImageSpace(
            self.embedding,
            self.stores,
            sha256=self.tables.stimuli["sha256"].tolist(),
            image=None if without else self.tables.image,
            labels=self.tables.labels,
            classes=self.tables.classes,
            training=self.tables.shown("train").numpy(),
        )

    @cached_property
    def layout(self) -> Layout:
        """Shapes and names of all parts, known before anything is built; opens the stores, or makes them."""
        parts = {name: part.layout_in(self.space, self.tables.classes) for name, part in self.divided.items()}
        layouts = list(parts.values())
        pictures = {tuple(layout["image_shape"]) for layout in layouts}

        def by_person(key: Literal["shape", "rois", "train_samples"]) -> dict[str, Any]:
            return {f"{name}-{person}": value for name, part in parts.items() for person, value in part[key].items()}

        return Layout(
            modality="several",
            subjects=[f"{name}-{person}" for name, part in parts.items() for person in part["subjects"]],
            shape=by_person("shape"),
            rois=by_person("rois"),
            channels=[],
            positions=[],
            sampling_rate=0.0,
            start=0.0,
            image_shape=layouts[0]["image_shape"] if len(pictures) == 1 else [],
            embedding_width=self.space.targets.shape[1],
            embedding_space=self.space.name,
            train_samples=by_person("train_samples"),
            classes=self.tables.classes,
            protocol=joined([_protocol(layout) for layout in layouts]),
            fold=0,
            folds=1,
            preparation={f"{name}.{k}": v for name, part in parts.items() for k, v in part["preparation"].items()},
            training_set=self.space.training_set,
            transductive=any(layout["transductive"] for layout in layouts),
            parts=parts,
        )

    # ---- samples -----------------------------------------------------------------------------------

    def has_validation(self) -> bool:
        """Whether some training stimuli are set aside."""
        return self.validation > 0

    def stimuli(self, split: str) -> frozenset[str]:
        """SHA-256 of the pictures shown in the trials of a split, in any part."""
        return frozenset().union(*(part.stimuli(split) for part in self.divided.values()))

    def dataset(self, split: str) -> JointSamples:
        """Return the samples of ``train``, ``validation`` or ``test`` of all parts, one after another.

        Raises:
            DataError: The stage reads what the parts do not have; a split without samples.
        """
        self.check_split(split)
        keys, splits = self.keys_of(split), self.splits_of(split)
        refuse_seeing(keys, splits)
        width = self.space.targets.shape[1]
        lacking = sorted(keys - {"signal", "embedding", "image"}) + ["embedding"] * ("embedding" in keys and not width)
        if lacking or "signal" not in keys:
            raise DataError(
                f"data sets side by side serve signals with embeddings and pictures, the stage reads {sorted(keys)}; "
                + (
                    "choose another --data.init_args.embedding.model"
                    if lacking == ["embedding"]
                    else "choose another --data"
                )
            )

        def of(name: str, part: BrainDataModule) -> Any:
            rows = self.tables.numbers[name]
            return part.recordings(
                splits,
                targets=self.space.targets[rows] if "embedding" in keys else None,
                labels=self.tables.labels[rows],
                pictures="image" in keys,
                device=self.root_device,
            )

        # a part may have no validation stimuli of its own
        parts = {
            name: of(name, part)
            for name, part in self.divided.items()
            if split == "train" or (part.trials["side"] == split).any()
        }
        if not parts:
            raise DataError(f"no samples in split {split!r}; change --data.init_args.validation")
        return JointSamples(parts, self.tables.numbers, self.first_subject)

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of all parts side by side where the stage asks for it, else of one part after another."""
        if not self._stage_wants("side_by_side", False):
            return super().train_dataloader()
        samples = self.dataset("train")
        samplers = {
            name: self.sampler(
                samples.parts[name],
                # parts of one size would else be in one order, and samples at the same place always meet
                replace(part.loader, seed=self.loader.seed + crc32(name.encode())),
                shuffle=True,
                drop_last=True,
            )
            for name, part in self.parts.items()
        }
        return self._serve(SideBySide(samples), SideBySideSampler(samplers, epoch=self.epoch), "train")

    # ---- what reports show -------------------------------------------------------------------------

    def about(self) -> list[dict[str, Any]]:
        """What is declared about each part."""
        return [{"part": name, **facts} for name, part in self.parts.items() for facts in part.about()]

    def stimulus_name(self, number: int) -> str:
        """Its name in the raw files of the first part that has it."""
        stimulus = self.tables.stimuli.iloc[number]
        return self.parts[stimulus["part"]].stimulus_name(int(stimulus["row"]))

    def picture(self, number: int) -> NDArray[Any] | None:
        """The picture as it was shown, RGB uint8 ``(H, W, 3)``; None where its part has none."""
        stimulus = self.tables.stimuli.iloc[number]
        return self.parts[stimulus["part"]].picture(int(stimulus["row"]))

    def missing_stores(self) -> list[Path]:
        """Those of the parts."""
        return [folder for part in self.parts.values() for folder in part.missing_stores()]

    # ---- what scores need --------------------------------------------------------------------------

    def make_context(self, split: str) -> ScoreContext:
        """Make galleries, ceilings and oracles of a split; raises DataError where no part has trials in it.

        Gallery ``test`` and ``all`` hold the stimuli of all parts, ``<part>.test`` those that the people of a part saw.
        """
        parts = self.divided
        shown = self.tables.shown(split)
        if not len(shown):
            raise DataError(f"no {split} trials to score; change --data.init_args.validation")
        # what is fitted must not meet the test pictures, not even as distractors
        known = torch.cat(
            [self.tables.shown(side) for side in ("train", "validation", "test")[: 2 + (split == "test")]]
        )
        galleries = {"test": self._gallery(shown), "all": replace(self._gallery(known.unique()), kind="extra")}
        ceilings, oracles = {}, {}
        for name, part in parts.items():
            # in the order of the part's own table, in which its oracle lists them
            seen = part.trials["number"][part.trials["side"] == split].drop_duplicates().sort_values()
            if not len(seen):
                continue
            galleries[f"{name}.test"] = self._gallery(self.tables.of(name, seen))
            for subject in part.subjects:
                ceiling, oracle = part.encoding_ceiling(subject, split), part.oracle(subject, split)
                if ceiling is not None:
                    ceilings[f"{name}-{subject}"] = ceiling
                if oracle is not None:
                    oracles[f"{name}-{subject}"] = oracle
        return ScoreContext(
            galleries=galleries | self.space.class_galleries(shown),
            layout=self.layout,
            encoding_ceiling=ceilings,
            oracle=oracles,
            embed=self.space.embed if self.space.embeds_pictures else None,
        )

    def _gallery(self, numbers: Tensor) -> Gallery:
        return Gallery(self.space.targets[numbers], numbers, self.tables.labels[numbers], "image")


def _protocol(layout: Layout) -> str:
    """The protocol of a part, with what was tested of it."""
    fold = f" (fold {layout['fold']} of {layout['folds']})" if layout["folds"] > 1 else ""
    return layout["protocol"] + fold
