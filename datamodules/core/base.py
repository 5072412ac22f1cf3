"""BrainDataModule: everything between a raw reader and a batch, shared by all data sets."""

from __future__ import annotations

import hashlib
import inspect
import json
import traceback
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from contracts import NO_LABEL, DataError, Gallery, Layout, Modality, ScoreContext, UserError
from datamodules.core.atomic import build_once
from datamodules.core.dataset import SampleDataset
from datamodules.core.download import PublicFile, fetch
from datamodules.core.features import EmbeddingOptions, FeatureBank
from datamodules.core.loading import EVALUATED, DataModule, LoaderOptions
from datamodules.core.raw import Record
from datamodules.core.samples import PublishedNormalisation, SampleOptions, SubjectSamples, prepare_subject
from datamodules.core.splits import SplitOptions, number_of_folds, split_trials
from datamodules.core.store import BrainStore, write_store
from datamodules.core.targets import TargetTransform, fit_target
from datamodules.core.texts import TextBank


@dataclass(frozen=True)
class Facts:
    """What is declared about a data set, each with its source in the class docstring; tests recompute it.

    Attributes:
        modality: ``fmri``, ``eeg`` or ``meg``.
        units: Units of the signals.
        licence: Licence of the recordings.
        citation: Paper to cite.
        subjects: Names of the people.
        trials: Number of trials by person; empty where it depends on options.
        stimuli: Number of different pictures; 0 where it depends on options.
        shape: Shape of one trial by person; empty where it depends on options.
    """

    modality: Modality
    units: str
    licence: str
    citation: str
    subjects: tuple[str, ...]
    trials: Mapping[str, int] = field(default_factory=dict)
    stimuli: int = 0
    shape: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class BrainDataModule(DataModule):
    """Base of all data sets of brain recordings with pictures.

    A subclass sets ``name`` and ``facts`` and implements ``read``; it may list ``files`` that have a public
    address. Conversion, splits, averaging, normalisation, embeddings, batches and score contexts follow.

    Attributes:
        parts: What ``Trials.split`` may be.
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
        loader: How samples are served.

    Raises:
        DataError: Anything wrong with the files or the options; the message says what to change.
    """

    name: str
    facts: ClassVar[Facts]
    files: ClassVar[tuple[PublicFile, ...]] = ()
    parts: ClassVar[tuple[str, ...]] = ("train", "test")
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
        loader: LoaderOptions = LoaderOptions(),
    ) -> None:
        super().__init__(loader)
        self.root = Path(root)
        self.stores = Path(stores)
        self.chosen_subjects = subjects
        self.embedding = embedding
        self.samples = samples
        self.split = split
        self._contexts: dict[str, ScoreContext] = {}

    # ---- what a data set provides ------------------------------------------------------------------

    @abstractmethod
    def read(self, root: Path) -> Iterator[Record]:
        """Read the raw files and yield ``Stimuli``, ``SignalAxes`` and ``Trials``, people one after another.

        Args:
            root: Folder of the raw files; ``self.file(name)`` gives (and fetches) those listed in ``files``.
        """

    def conversion_options(self) -> dict[str, Any]:
        """Options that change what ``read`` gives; each combination has its own store."""
        return {}

    def oracle(self, subject: str, split: str) -> Tensor | None:
        """Log-likelihoods ``(samples, G)`` of the split's stimuli under a known generating model, or None."""
        return None

    # ---- the shared chain --------------------------------------------------------------------------

    def file(self, name: str) -> Path:
        """Return the path of one of ``files``, downloading it where it is missing."""
        known = {file.name: file for file in self.files}
        return fetch(self.root, known[name])

    @cached_property
    def store(self) -> BrainStore:
        """The converted data set; converts it on first use, one process at a time."""
        options = self.conversion_options()
        digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:8]

        def convert(folder: Path) -> None:
            about = {
                "licence": self.facts.licence,
                "citation": self.facts.citation,
                "units": self.facts.units,
                "conversion_options": options,
                "root": str(self.root.absolute()),
                "reader": self._reader,
            }
            records = self._records()
            write_store(
                folder,
                records,
                root=self.root,
                name=self.name,
                modality=self.facts.modality,
                about=about,
                parts=self.parts,
            )

        folder = build_once(self.stores / (f"{self.name}-{digest}" if options else self.name), convert)
        store = BrainStore(folder, self.root)
        if store.description.get("reader") != self._reader:
            raise DataError(
                f"{folder} was made by another version of {type(self).__name__}.read; delete it to convert again, or "
                "choose another folder with --data.init_args.stores"
            )
        made_from = store.description.get("root")
        # where the raw files are gone, the store is all there is
        if self.root.exists() and made_from != str(self.root.absolute()):
            raise DataError(
                f"{folder} was made from {made_from}, root is {self.root.absolute()}; choose another folder with "
                f"--data.init_args.stores, or delete {folder} to convert again"
            )
        return store

    @property
    def _reader(self) -> str:
        """Checksum of the code of ``read``: what it gave before says nothing about what it gives now."""
        return hashlib.sha256(inspect.getsource(type(self).read).encode()).hexdigest()[:16]

    def _records(self) -> Iterator[Record]:
        """What ``read`` yields; a fault in it is told in one line, with its place."""
        try:
            yield from self.read(self.root)
        except (UserError, OSError):
            raise
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            raise DataError(
                f"{type(self).__name__}.read failed at {where.filename}:{where.lineno} ({where.line}): "
                f"{type(error).__name__}: {error}"
            ) from error

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
        trials["side"] = split_trials(trials, self.store.stimuli["class"], self.split)
        return trials

    @property
    def folds(self) -> int:
        """Number of folds of the protocol (1: the data set's own division)."""
        trials = self.store.trials
        return number_of_folds(trials[trials["subject"].isin(self.subjects)], self.split)

    @cached_property
    def prepared(self) -> dict[str, SubjectSamples]:
        """Samples of each person, cleaned and averaged."""
        cache = self.stores / "prepared"
        people = {}
        for subject in self.subjects:
            trials = self.trials[self.trials["subject"] == subject]
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
        return sorted(set(self.store.stimuli["class"]) - {""})

    @cached_property
    def labels(self) -> Tensor:
        """Class number of each row of the stimulus table, or ``NO_LABEL``."""
        position = {name: number for number, name in enumerate(self.classes)} | {"": NO_LABEL}
        return torch.tensor([position[name] for name in self.store.stimuli["class"]])

    @cached_property
    def targets(self) -> Tensor:
        """Transformed embedding ``(S, D)`` of each row of the stimulus table."""
        _, raw = self._embedded
        return torch.from_numpy(self._fit_target(raw)(raw))

    @cached_property
    def _embedded(self) -> tuple[str, NDArray[Any]]:
        """Name of the image space and the embedding ``(S, D)`` of each row of the stimulus table."""
        stimuli = self.store.stimuli
        if self.embedding.model == "classes":
            if (self.labels == NO_LABEL).any():
                raise DataError("embedding.model=classes needs a class for every stimulus; this data set lacks some")
            names = hashlib.sha256(json.dumps(self.classes).encode()).hexdigest()[:8]
            return f"classes-{names}", np.eye(len(self.classes), dtype=np.float32)[self.labels.numpy()]
        if self.embedding.model == "none" or not self.store.has_pictures:
            return "none", np.zeros((len(stimuli), 0), np.float32)
        bank = FeatureBank(self.stores / "features", self.embedding)
        bank.build(stimuli["sha256"].tolist(), self.store.image)
        return bank.space, bank.lookup(stimuli["sha256"].tolist())

    def _fit_target(self, embedding: NDArray[Any]) -> TargetTransform:
        nothing = embedding.shape[1] == 0
        return fit_target("none" if nothing else self.embedding.target, embedding[self._training_stimuli])

    @cached_property
    def _training_stimuli(self) -> NDArray[Any]:
        training: NDArray[Any] = np.sort(self.trials["number"][self.trials["side"] == "train"].unique())
        return training

    @cached_property
    def _training_set(self) -> str:
        hashes = "".join(self.store.stimuli["sha256"].iloc[self._training_stimuli])
        return hashlib.sha256(hashes.encode()).hexdigest()[:8]

    @property
    def _preparation(self) -> dict[str, str]:
        checksums = [self.store.description["checksums"][f"sub-{name}_signals.npy"] for name in self.subjects]
        # text throughout: the argument parser would read a value of any type as YAML, a checksum of digits as a number
        options = {key: str(value) for key, value in asdict(self.samples).items() if key != "average_test"}
        return {**options, "recordings": hashlib.sha256("".join(checksums).encode()).hexdigest()[:8]}

    @cached_property
    def layout(self) -> Layout:
        """Shapes and names, known before anything is built; opens the store, or makes it."""
        axes = {subject: self.store.axes(subject) for subject in self.subjects}
        first = axes[self.subjects[0]]
        space, raw = self._embedded
        if not raw.shape[1]:
            pass
        elif self.embedding.target not in ("none", "unit"):
            # a fitted target is a space of its own for each set of training stimuli
            space += f"|{self.embedding.target}#{self._training_set}"
        elif self.embedding.target == "unit":
            space += "|unit"
        return Layout(
            modality=self.store.modality,
            subjects=self.subjects,
            shape={name: list(person.kept.shape) for name, person in self.prepared.items()},
            rois={name: person.kept.rois for name, person in self.prepared.items()},
            channels=list(first.channels),
            positions=[] if first.positions is None else first.positions.tolist(),
            sampling_rate=first.sampling_rate,
            start=self.prepared[self.subjects[0]].kept.start,
            image_shape=[],
            embedding_width=self.targets.shape[1],
            embedding_space=space,
            train_samples={name: len(person.rows["train"]) for name, person in self.prepared.items()},
            classes=self.classes,
            protocol=self.split.protocol + ("" if self.split.tested == "test" else f", tested on {self.split.tested}"),
            fold=self.split.fold,
            folds=self.folds,
            preparation=self._preparation,
            training_set=self._training_set,
            transductive=(self.samples.cleaning != "none" and self.samples.cleaning_fit == "all")
            or (self.samples.normalise == "mindvis" and self.published_normalisation == "all"),
        )

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

    def dataset(self, split: str) -> SampleDataset:
        """Return the samples of ``train``, ``validation`` or ``test``; indexing with a tensor gives a batch."""
        self.check_split(split)
        keys, splits = self.batch_keys(), self.splits_of(split)
        if len(splits) > 1 and keys & {"embedding", "image"}:
            raise DataError(
                "a stage with relax=true must be self-supervised: it may read neither embeddings nor images"
            )
        if "embedding" in keys and not self.targets.shape[1]:
            raise DataError(
                f"the stage needs embeddings, and {self.name} has none (embedding.model={self.embedding.model}, "
                f"{'with' if self.store.has_pictures else 'without'} pictures); choose another "
                "--data.init_args.embedding.model (classes: the class itself), or a self-supervised stage"
            )
        if "image" in keys and not self.store.has_pictures:
            raise DataError(f"the stage needs pictures, and {self.name} has none; choose another --data")
        return SampleDataset(
            [self.prepared[name] for name in self.subjects],
            splits,
            targets=self.targets if "embedding" in keys else None,
            # test recordings come without what was seen
            labels=self.labels if len(splits) == 1 else torch.full_like(self.labels, NO_LABEL),
            image=self.store.image if "image" in keys else None,
            residence=self.loader.residence,
            device=self.trainer.strategy.root_device if self.trainer else torch.device("cpu"),
        )

    # ---- what scores need --------------------------------------------------------------------------

    def score_context(self, stage: Literal["validate", "validation", "test", "predict"]) -> ScoreContext:
        """Return galleries, ceilings, protocol and layout for scoring a split (contract 3); made once a split."""
        split = EVALUATED[stage]
        self.check_split(split)
        if split not in self._contexts:
            self._contexts[split] = self._make_context(split)
        return self._contexts[split]

    def _make_context(self, split: str) -> ScoreContext:
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
        centres = self._class_centres(shown)
        if centres is not None:
            galleries["class_centres"] = centres
            if self.embedding.model == "classes":
                # stimuli of a class are one and the same there
                galleries["test"] = centres
        if self.embedding.templates and self.embedding.model.startswith("open_clip:"):
            galleries["text"] = self._texts(shown)
        ceilings = {s: c for s in self.subjects if (c := self._encoding_ceiling(s, split)) is not None}
        oracles = {s: o for s in self.subjects if (o := self.oracle(s, split)) is not None}
        return ScoreContext(
            galleries=galleries,
            layout=self.layout,
            encoding_ceiling=ceilings,
            oracle=oracles,
        )

    def _class_centres(self, shown: Tensor) -> Gallery | None:
        """Mean embedding of the training stimuli of each shown class; None where a class has none (zero-shot)."""
        training = torch.from_numpy(self._training_stimuli)
        classes = self.labels[shown].unique()
        members = [training[self.labels[training] == number] for number in classes]
        if (classes == NO_LABEL).any() or any(len(member) == 0 for member in members):
            return None
        centres = torch.stack([self.targets[member].mean(dim=0) for member in members])
        return Gallery(centres, classes, classes, "class_centre")

    def _texts(self, shown: Tensor) -> Gallery:
        """Sentences about each shown class, in the space of the targets."""
        classes = self.labels[shown].unique()
        if (classes == NO_LABEL).any():
            raise DataError(
                f"embedding.templates need a class for every shown stimulus, {self.name} lacks some; set "
                "--data.init_args.embedding.templates=[]"
            )
        _, raw = self._embedded
        texts = self._fit_target(raw).for_texts(TextBank(self.stores / "texts", self.embedding).embed(self.classes))
        return Gallery(torch.from_numpy(texts)[classes], classes, classes, "text")

    def _encoding_ceiling(self, subject: str, split: str) -> Tensor | None:
        """Largest expected correlation, sqrt(s^2 / (s^2 + 1/n)), s = ncsnr, n = repetitions in a sample.

        Allen et al. (2022), Methods; 1/n is averaged where samples hold different numbers of repetitions.
        """
        ncsnr = self.store.axes(subject).ncsnr
        if ncsnr is None:
            return None
        person = self.prepared[subject]
        noise = float(np.mean([1 / len(trials) for trials in person.groups[split]]))
        power = torch.from_numpy(ncsnr if person.kept.index is None else ncsnr[person.kept.index]).double().square()
        return torch.sqrt(power / (power + noise))
