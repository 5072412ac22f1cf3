"""Images: pictures to train an image tokenizer and a generator on, from folders and from other data sets."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from contracts import DataError, Gallery, Layout, ScoreContext
from datamodules.core.base import BrainDataModule
from datamodules.core.classes import class_names, class_numbers
from datamodules.core.features import EmbeddingOptions
from datamodules.core.image_space import ImageSpace
from datamodules.core.loading import DataModule, LoaderOptions, Samples
from datamodules.core.picture_table import Picture, join, of_dataset, of_folder
from datamodules.core.pictures import PictureDataset
from datamodules.core.views import ORIGINAL, ViewOptions

WHO = "pictures"


class Images(DataModule):
    """Pictures without recordings, each with its embedding.

    Trained on: the pictures of the folders and the training stimuli of the data sets. Never trained or validated on:
    any stimulus that someone in one of the data sets is tested on, whoever is chosen there, wherever else it is found;
    a picture is recognised by its file and by its pixels. Each picture counts once. Validated and tested on: shares
    of the folders, and the validation and test stimuli of the data sets.

    Args:
        folders: Folders of pictures (jpg, jpeg, png, webp, bmp), at any depth; pictures in a subfolder have its name
            as their class, others have none.
        datasets: Data sets whose stimuli are used; their recordings are converted, but neither prepared nor
            embedded, and their ``embedding``, ``views`` and ``loader`` are not regarded.
        stores: Folder for hashes and embeddings.
        embedding: The image space; targets that are fitted are fitted on the training pictures.
        views: How large pictures are, and which views of them are training samples.
        validation: Share of the pictures of the folders, chosen by the hash of each picture.
        test: The same; in the expectation, so that few pictures may give none.
        loader: How pictures are served.

    Raises:
        DataError: No pictures, damaged pictures, pictures of different sizes without ``views.size``, impossible shares.
    """

    name = "images"

    def __init__(
        self,
        *,
        folders: list[str] | None = None,
        datasets: list[BrainDataModule] | None = None,
        stores: str = "data/stores",
        embedding: EmbeddingOptions = EmbeddingOptions(),
        views: ViewOptions = ORIGINAL,
        validation: float = 0.05,
        test: float = 0.05,
        loader: LoaderOptions = LoaderOptions(),
    ) -> None:
        super().__init__(loader)
        self.folders = [] if folders is None else [Path(folder) for folder in folders]
        self.datasets = [] if datasets is None else list(datasets)
        if not self.folders and not self.datasets:
            raise DataError("no pictures: give --data.init_args.folders or --data.init_args.datasets")
        if not (validation >= 0 and test >= 0 and validation + test < 1):
            raise DataError(
                "validation and test are shares of the pictures, 0 or more, and together below 1; found "
                f"--data.init_args.validation={validation} --data.init_args.test={test}"
            )
        self.stores = Path(stores)
        self.embedding = embedding
        self.views = views
        self.validation = validation
        self.test = test

    @cached_property
    def pictures(self) -> list[Picture]:
        """All pictures, once each; the position of one is its ``stimulus`` number in a batch."""
        index = self.stores / "pictures"
        found = [picture for data in self.datasets for picture in of_dataset(data, index)]
        for folder in self.folders:
            found += of_folder(folder, index, validation=self.validation, test=self.test)
        pictures = join(found)
        sizes = sorted({(picture.width, picture.height) for picture in pictures})
        if len(sizes) > 1 and self.views.size is None:
            raise DataError(
                f"pictures of {len(sizes)} different sizes cannot share a batch, from {sizes[0][0]}x{sizes[0][1]} to "
                f"{sizes[-1][0]}x{sizes[-1][1]} pixels; set --data.init_args.views.size"
            )
        if not any(picture.side == "train" for picture in pictures):
            raise DataError(
                f"none of the {len(pictures)} pictures is left to train on; lower --data.init_args.validation and test"
            )
        return pictures

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes, sorted; the position of a name is the ``label`` of a batch."""
        return class_names(picture.label for picture in self.pictures)

    @cached_property
    def labels(self) -> Tensor:
        """Class number of each picture, or ``NO_LABEL``."""
        return class_numbers((picture.label for picture in self.pictures), self.classes)

    @cached_property
    def space(self) -> ImageSpace:
        """The embeddings of the pictures."""
        return ImageSpace(
            self.embedding,
            self.stores,
            sha256=[picture.sha256 for picture in self.pictures],
            image=_Loaded(self.pictures),
            labels=self.labels,
            classes=self.classes,
            training=self._numbers("train").numpy(),
        )

    def _numbers(self, split: str) -> Tensor:
        numbers = [number for number, picture in enumerate(self.pictures) if picture.side == split]
        return torch.tensor(numbers, dtype=torch.int64)

    @cached_property
    def layout(self) -> Layout:
        """Shape of a picture in a batch, classes and image space; hashes and embeds what is missing."""
        first, size = self.pictures[0], self.views.size
        shape = [3, first.height, first.width] if size is None else [3, size, size]
        return Layout(
            modality="image",
            subjects=[WHO],
            shape={WHO: shape},
            rois={WHO: {}},
            channels=[],
            positions=[],
            sampling_rate=0.0,
            start=0.0,
            image_shape=shape,
            embedding_width=self.space.targets.shape[1],
            embedding_space=self.space.name,
            train_samples={WHO: len(self._numbers("train")) * self.views.count},
            classes=self.classes,
            protocol="by_stimulus",
            fold=0,
            folds=1,
            preparation={name: str(value) for name, value in asdict(self.views).items()},
            training_set=self.space.training_set,
            transductive=False,
        )

    def has_validation(self) -> bool:
        """Whether there are validation pictures."""
        return any(picture.side == "validation" for picture in self.pictures)

    def stimuli(self, split: str) -> frozenset[str]:
        """SHA-256 of the pictures of a split."""
        return frozenset(picture.sha256 for picture in self.pictures if picture.side == split)

    def batch_keys(self) -> frozenset[str]:
        """Entries of a batch that the attached stage reads; without one, all that there are."""
        if self.trainer is None:
            return frozenset({"image", "embedding"} if self.layout["embedding_width"] else {"image"})
        return super().batch_keys()

    def dataset(self, split: str) -> Samples:
        """Return the pictures of ``train`` (every view), ``validation`` or ``test``.

        Raises:
            DataError: The stage reads what pictures do not have; a split without pictures.
        """
        self.check_split(split)
        keys = self.keys_of(split)
        if keys - {"image", "embedding"} or self.splits_of(split) != (split,):
            raise DataError(
                f"the stage reads {', '.join(sorted(keys))}, and {self.name} has pictures and their embeddings alone; "
                "choose another --data, or a stage that learns from pictures"
            )
        if "embedding" in keys and not self.layout["embedding_width"]:
            raise DataError(
                f"the stage needs embeddings, and embedding.model={self.embedding.model} gives none; change "
                "--data.init_args.embedding.model"
            )
        numbers = self._shown(split)
        views = self.views if split == "train" else replace(self.views, flip=False, crops=0)
        return PictureDataset(
            numbers,
            _Loaded(self.pictures),
            sha256=self.space.sha256,
            labels=self.labels,
            views=views,
            targets=self.space.of_views(numbers, views) if "embedding" in keys else None,
            residence=self.loader.residence,
            device=self.root_device,
        )

    def _shown(self, split: str) -> Tensor:
        numbers = self._numbers(split)
        if not len(numbers):
            raise DataError(
                f"none of {len(self.pictures)} pictures is in split {split!r}; raise --data.init_args.{split}, a share "
                "of the pictures of the folders"
            )
        return numbers

    def about(self) -> list[dict[str, Any]]:
        """The folders, and what is declared about each data set."""
        folders = [{"name": self.name, "folder": str(folder)} for folder in self.folders]
        return [*folders, *(facts for data in self.datasets for facts in data.about())]

    def picture(self, number: int) -> NDArray[Any] | None:
        """The whole picture, RGB uint8 ``(H, W, 3)``."""
        return self.pictures[number].load()

    def missing_stores(self) -> list[Path]:
        """Those of the data sets."""
        return [folder for data in self.datasets for folder in data.missing_stores()]

    def make_context(self, split: str) -> ScoreContext:
        """Make the pictures of a split a gallery; raises DataError where there are none."""
        shown = self._shown(split)
        return ScoreContext(
            galleries={"test": Gallery(self.space.targets[shown], shown, self.labels[shown], "image")},
            layout=self.layout,
            ceiling_reason="no noise ceiling: pictures have no noise",
            embed=self.space.embed if self.space.embeds_pictures else None,
        )


class _Loaded:
    """Gives the picture with a number; a class, so that workers can be given it."""

    def __init__(self, pictures: list[Picture]) -> None:
        self.pictures = pictures

    def __call__(self, number: int) -> NDArray[Any]:
        return self.pictures[number].load()
