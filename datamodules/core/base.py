"""BrainDataModule: everything between a raw reader and a batch, shared by all data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from contracts import NO_LABEL, DataError, Gallery, Layout, ScoreContext
from datamodules.core.classes import class_names, class_numbers
from datamodules.core.conversion import Converted, Facts
from datamodules.core.dataset import SampleDataset
from datamodules.core.features import EmbeddingOptions
from datamodules.core.image_space import ImageSpace
from datamodules.core.loading import LoaderOptions, Samples, refuse_seeing
from datamodules.core.pictures import PictureDataset
from datamodules.core.samples import PublishedNormalisation, SampleOptions, SubjectSamples, prepare_subject
from datamodules.core.splits import SPLIT_NAMES, SplitOptions, number_of_folds, split_trials
from datamodules.core.views import ORIGINAL, ViewOptions, fit_size

__all__ = ["BrainDataModule", "Facts"]


class BrainDataModule(Converted):
    """Base of all data sets of brain recordings with pictures.

    A subclass sets ``name`` and ``facts`` and implements ``read``; it may list ``files`` that have a public
    address (see ``Converted``). Splits, averaging, normalisation, embeddings, batches and score contexts follow.

    Attributes:
        published_normalisation: What ``samples.normalise=mindvis`` means, as in the code of MinD-Vis and LEA:
            one mean and SD over all numbers of the ``training`` samples, which leaves test samples as they are
            (those of the normalised training samples are applied to them), or over ``all`` trials of a person
            before averaging, test trials with them.

    Args:
        root: Folder of the raw files.
        stores: Folder for converted data, prepared samples and embeddings.
        subjects: People to use, in this order; None for all.
        embedding: The image space.
        samples: How trials become samples.
        split: What is for training, validation and testing.
        views: How large pictures in a batch are and, for stages that learn from pictures alone, which views of
            them are training samples.
        loader: How samples are served.

    Raises:
        DataError: Anything wrong with the files or the options; the message says what to change.
    """

    published_normalisation: ClassVar[PublishedNormalisation] = "none"

    def __init__(
        self,
        root: str,
        *,
        stores: str = "data/stores",
        subjects: list[str] | None = None,
        embedding: EmbeddingOptions = EmbeddingOptions(),
        samples: SampleOptions = SampleOptions(),
        split: SplitOptions = SplitOptions(),
        views: ViewOptions = ORIGINAL,
        loader: LoaderOptions = LoaderOptions(),
    ) -> None:
        super().__init__(Path(root), Path(stores), loader)
        self.chosen_subjects = subjects
        self.embedding = embedding
        self.samples = samples
        self.split = split
        self.views = views

    # ---- what a data set provides ------------------------------------------------------------------

    def oracle(self, subject: str, split: str) -> Tensor | None:
        """Log-likelihoods ``(samples, G)`` of the split's stimuli under a known generating model, or None."""
        return None

    # ---- the shared chain --------------------------------------------------------------------------

    @cached_property
    def subjects(self) -> list[str]:
        """Names of the chosen people; the position of a name is the ``subject`` of a batch."""
        available = self.store.subjects
        chosen = available if self.chosen_subjects is None else self.chosen_subjects
        unknown = [name for name in chosen if name not in available]
        if unknown or not chosen or len(set(chosen)) < len(chosen):
            raise DataError(
                f"unknown, repeated or no subjects in {chosen}; {self.name} has {', '.join(available)}; "
                "change --data.init_args.subjects"
            )
        return list(chosen)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """Trials of the chosen people, with their ``side``: train, validation or test."""
        trials = self.store.trials
        trials = trials[trials["subject"].isin(self.subjects)].copy()
        trials["side"] = split_trials(trials, self.store.stimuli["class"], self.split, parts=self.parts)
        return trials

    def divide(self, side: pd.Series[str]) -> None:
        """Take over another division of the trials, before any sample is prepared (data sets side by side).

        Args:
            side: ``train``, ``validation``, ``test`` or empty (left out), on the index of ``trials``.
        """
        self.trials["side"] = side

    @property
    def tested_by_anyone(self) -> frozenset[int]:
        """Numbers of the stimuli that anyone is tested on, whether chosen or not."""
        trials = self.store.trials
        if self.split.folds:
            tested = trials["number"][
                split_trials(trials, self.store.stimuli["class"], self.split, parts=self.parts) == "test"
            ]
        else:
            # whatever is not marked for training, be it another part than the one tested now
            tested = trials["number"][~trials["split"].isin(self.split.trained.split("+"))]
        return frozenset(tested) | frozenset(self.trials["number"][self.trials["side"] == "test"])

    @property
    def folds(self) -> int:
        """Number of folds of the protocol (1: the data set's own division)."""
        trials = self.store.trials
        return number_of_folds(trials[trials["subject"].isin(self.subjects)], self.split)

    @cached_property
    def prepared(self) -> dict[str, SubjectSamples]:
        """Samples of each person, cleaned and averaged."""
        cache = self.stores / "prepared"
        # once for all: looking through all trials for each person would take a thousand people a million looks
        trials_of = self.trials.groupby("subject", sort=False)
        people = {}
        for subject in self.subjects:
            trials = trials_of.get_group(subject)
            people[subject] = prepare_subject(
                self.store,
                subject,
                trials,
                trials["side"],
                self.samples,
                cache,
                published=self.published_normalisation,
            )
        return people

    @cached_property
    def classes(self) -> list[str]:
        """Class names of the data set, sorted; the position of a name is the ``label`` of a batch."""
        return class_names(self.store.stimuli["class"])

    @cached_property
    def labels(self) -> Tensor:
        """Class number of each row of the stimulus table, or ``NO_LABEL``."""
        return class_numbers(self.store.stimuli["class"], self.classes)

    @cached_property
    def space(self) -> ImageSpace:
        """The embeddings of the stimuli."""
        return ImageSpace(
            self.embedding,
            self.stores,
            sha256=self.store.stimuli["sha256"].tolist(),
            image=self.store.image if self.store.has_pictures else None,
            labels=self.labels,
            classes=self.classes,
            training=self._training_stimuli,
        )

    @property
    def targets(self) -> Tensor:
        """Transformed embedding ``(S, D)`` of each row of the stimulus table."""
        return self.space.targets

    @cached_property
    def _training_stimuli(self) -> NDArray[Any]:
        training: NDArray[Any] = np.sort(self.trials["number"][self.trials["side"] == "train"].unique())
        return training

    @property
    def _preparation(self) -> dict[str, str]:
        checksums = [self.store.description["checksums"][f"sub-{name}_signals.npy"] for name in self.subjects]
        # text throughout: the argument parser would read a value of any type as YAML, a checksum of digits as a number
        options = {key: str(value) for key, value in asdict(self.samples).items() if key != "average_test"}
        return {**options, "recordings": hashlib.sha256("".join(checksums).encode()).hexdigest()[:8]}

    @cached_property
    def layout(self) -> Layout:
        """Shapes and names, known before anything is built; opens the store, or makes it."""
        return self.layout_in(self.space, self.classes)

    def layout_in(self, space: ImageSpace, classes: list[str]) -> Layout:
        """Return the layout with the given embeddings and class names, which may be shared with other data sets."""
        axes = {subject: self.store.axes(subject) for subject in self.subjects}
        first = axes[self.subjects[0]]
        return Layout(
            modality=self.store.modality,
            subjects=self.subjects,
            shape={name: list(person.kept.shape) for name, person in self.prepared.items()},
            rois={name: person.kept.rois for name, person in self.prepared.items()},
            channels=list(first.channels),
            positions=[] if first.positions is None else first.positions.tolist(),
            sampling_rate=first.sampling_rate,
            start=self.prepared[self.subjects[0]].kept.start,
            image_shape=self._image_shape,
            embedding_width=space.targets.shape[1],
            embedding_space=space.name,
            train_samples={name: len(person.rows["train"]) for name, person in self.prepared.items()},
            classes=classes,
            protocol=self.split.name,
            fold=self.split.fold,
            folds=self.folds,
            preparation=self._preparation,
            training_set=space.training_set,
            transductive=(self.samples.cleaning != "none" and self.samples.cleaning_fit == "all")
            or (self.samples.normalise == "mindvis" and self.published_normalisation == "all"),
        )

    @property
    def _image_shape(self) -> list[int]:
        """``[3, H, W]`` of the pictures in a batch."""
        if not self.store.has_pictures:
            return []
        if self.views.size is not None:
            return [3, self.views.size, self.views.size]
        try:
            return [3, *self.store.image_size(0)]
        except DataError:
            # signals and embeddings are of use without the raw files; who asks for the picture is told what is wrong
            return []

    def has_validation(self) -> bool:
        """Whether some training stimuli are set aside."""
        return self.split.validation > 0

    def stimuli(self, split: str) -> frozenset[str]:
        """SHA-256 of the pictures shown in the trials of a split."""
        numbers = self.trials["number"][self.trials["side"] == split].unique()
        return frozenset(self.store.stimuli["sha256"].iloc[numbers])

    def batch_keys(self) -> frozenset[str]:
        """Entries of a batch that the attached stage reads; without one, those that the data set has."""
        if self.trainer is None and not self.targets.shape[1]:
            return frozenset({"signal"})
        return super().batch_keys()

    def dataset(self, split: str) -> Samples:
        """Return the samples of ``train``, ``validation`` or ``test``; indexing with a tensor gives a batch.

        A stage that reads pictures and no signals gets each stimulus once, or once for each view in training.

        Raises:
            DataError: The stage reads what this data set does not have; a split without samples.
        """
        self.check_split(split)
        keys, splits = self.keys_of(split), self.splits_of(split)
        refuse_seeing(keys, splits)
        if "embedding" in keys and not self.targets.shape[1]:
            raise DataError(
                f"the stage needs embeddings, and {self.name} has none (embedding.model={self.embedding.model}, "
                f"{'with' if self.store.has_pictures else 'without'} pictures); choose another "
                "--data.init_args.embedding.model (classes: the class itself), or a self-supervised stage"
            )
        if "image" in keys and not self.store.has_pictures:
            raise DataError(f"the stage needs pictures, and {self.name} has none; choose another --data")
        if keys - {"signal", "embedding", "image"}:
            raise DataError(f"the stage reads {sorted(keys)}, {self.name} lacks some of these; choose another --data")
        if "image" in keys and "signal" not in keys:
            return self._picture_dataset(split, with_embedding="embedding" in keys)
        return self.recordings(
            splits,
            targets=self.targets if "embedding" in keys else None,
            labels=self.labels,
            pictures="image" in keys,
            device=self.root_device,
        )

    def recordings(
        self, splits: Sequence[str], *, targets: Tensor | None, labels: Tensor, pictures: bool, device: torch.device
    ) -> SampleDataset:
        """Return the samples of all people in some splits.

        Args:
            splits: Which of ``train``, ``validation`` and ``test``.
            targets: ``(S, D)`` embedding of each stimulus, or None to leave ``embedding`` out.
            labels: ``(S,)`` class number of each stimulus; with several splits none is told, because test recordings
                among those of training come without what was seen.
            pictures: Whether batches hold ``image``.
            device: Where signals live with ``loader.residence=device``.
        """
        return SampleDataset(
            [self.prepared[name] for name in self.subjects],
            splits,
            targets=targets,
            labels=labels if len(splits) == 1 else torch.full_like(labels, NO_LABEL),
            image=partial(_resized, self.store.image, self.views.size) if pictures else None,
            residence=self.loader.residence,
            device=device,
        )

    def _picture_dataset(self, split: str, *, with_embedding: bool) -> PictureDataset:
        """The stimuli of a split that are on no later side: those of testing are never trained or validated on."""
        numbers = {side: set(self.trials["number"][self.trials["side"] == side]) for side in SPLIT_NAMES}
        allowed = {
            "train": numbers["train"] - numbers["test"],
            "validation": numbers["validation"] - numbers["train"] - numbers["test"],
            "test": numbers["test"],
        }[split]
        if not allowed:
            raise DataError(
                f"no pictures of their own in split {split!r} ({len(numbers[split])} are shown in it) under "
                f"split.protocol={self.split.protocol}; a stage that learns from pictures needs by_stimulus or by_class"
            )
        stimulus = torch.tensor(sorted(allowed))
        views = self.views if split == "train" else replace(self.views, flip=False, crops=0)
        return PictureDataset(
            stimulus,
            self.store.image,
            sha256=self.space.sha256,
            labels=self.labels,
            views=views,
            targets=self.space.of_views(stimulus, views) if with_embedding else None,
            residence=self.loader.residence,
            device=self.root_device,
        )

    # ---- what scores need --------------------------------------------------------------------------

    def make_context(self, split: str) -> ScoreContext:
        """Make galleries, ceilings and oracles of a split; raises DataError where it has no trials."""
        if not (self.trials["side"] == split).any():
            raise DataError(f"no {split} trials to score; change --data.init_args.split")
        shown = torch.from_numpy(np.unique(np.concatenate([p.stimulus[split] for p in self.prepared.values()])))
        # what is fitted must not meet the test pictures, not even as distractors
        known_trials = self.trials if split == "test" else self.trials[self.trials["side"] != "test"]
        known = torch.from_numpy(np.unique(known_trials["number"].to_numpy(np.int64)))
        galleries = {
            "test": Gallery(self.targets[shown], shown, self.labels[shown], "image"),
            "all": Gallery(self.targets[known], known, self.labels[known], "extra"),
        }
        ceilings = {s: c for s in self.subjects if (c := self.encoding_ceiling(s, split)) is not None}
        oracles = {s: o for s in self.subjects if (o := self.oracle(s, split)) is not None}
        return ScoreContext(
            galleries=galleries | self.space.class_galleries(shown),
            layout=self.layout,
            encoding_ceiling=ceilings,
            oracle=oracles,
            embed=self.space.embed if self.space.embeds_pictures else None,
        )

    def encoding_ceiling(self, subject: str, split: str) -> Tensor | None:
        """Largest expected correlation, sqrt(s^2 / (s^2 + 1/n)), s = ncsnr, n = repetitions in a sample.

        Allen et al. (2022), Methods; 1/n is averaged where samples hold different numbers of repetitions.
        """
        ncsnr, person = self.store.axes(subject).ncsnr, self.prepared[subject]
        # validation stimuli are chosen among those of all people: one person may have seen none of them
        if ncsnr is None or not person.groups[split]:
            return None
        noise = float(np.mean([1 / len(trials) for trials in person.groups[split]]))
        power = torch.from_numpy(ncsnr if person.kept.index is None else ncsnr[person.kept.index]).double().square()
        return torch.sqrt(power / (power + noise))


def _resized(image: Callable[[int], NDArray[Any]], size: int | None, number: int) -> NDArray[Any]:
    """The picture with a stimulus number as it stands in a batch; a function, so that workers can be given it."""
    return fit_size(image(number), size)
