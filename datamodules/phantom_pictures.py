"""Phantom's pictures with captions: what a small CLIP is trained on, disjoint from everything that is ever shown."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from contracts import PADDING, Batch, DataError, Layout, ScoreContext
from datamodules.core import rendering
from datamodules.core.atomic import build_once
from datamodules.core.loading import DataModule, LoaderOptions, Samples
from datamodules.core.readers import load_npy
from datamodules.core.rendering import CLASS_NAMES, SIDE, render
from datamodules.core.splits import SPLIT_NAMES

FIRST_INDEX = 100_000
"""Pictures from this ``index`` of a class on are never stimuli (``Phantom`` refuses to show them)."""

SENTENCES = (
    None,
    "a {pattern} {shape}",
    "a {colour} {pattern} {shape} {place}",
    "a {pattern} {shape}",
)
"""What is said about the pictures, in turn; None is a whole caption. Where every caption says everything, colour,
place and background are enough to tell the pictures of a batch apart, and shape and pattern are never learned."""


@dataclass(frozen=True)
class PictureOptions:
    """Which pictures.

    Attributes:
        train: Training pictures of each of the 40 classes.
        validation: Validation pictures of each class.
        test: Test pictures of each class.
        context_length: Tokens of a caption; shorter ones are filled up with 0.
        seed: Seed of the pictures.
    """

    train: int = 200
    validation: int = 5
    test: int = 20
    context_length: int = 32
    seed: int = 0


class PhantomPictures(DataModule):
    """Rendered pictures and their captions (``datamodules.core.rendering``), in open_clip's tokens.

    Args:
        stores: Folder in which the rendered pictures are kept.
        pictures: Which pictures.
        loader: How they are served.

    Raises:
        DataError: Fewer than one picture of a class for training or testing, or captions longer than the context.
    """

    name = "phantom_pictures"

    def __init__(
        self,
        *,
        stores: str = "data/stores",
        pictures: PictureOptions = PictureOptions(),
        loader: LoaderOptions = LoaderOptions(batch_size=256),
    ) -> None:
        super().__init__(loader)
        if pictures.train < 1 or pictures.test < 1 or pictures.validation < 0:
            raise DataError(f"each class needs pictures for training and testing, found {pictures}")
        self.stores = Path(stores)
        self.pictures = pictures

    @cached_property
    def _rendered(self) -> tuple[NDArray[Any], NDArray[Any], list[str]]:
        """Pictures ``(N, H, W, 3)``, tokens ``(N, L)`` and hashes, split by split, class by class."""
        # another way of drawing or describing gives other pictures
        drawn_by = hashlib.sha256(inspect.getsource(rendering).encode()).hexdigest()
        facts = json.dumps([asdict(self.pictures), SENTENCES, drawn_by], sort_keys=True)
        folder = self.stores / f"{self.name}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"

        def build(partial: Path) -> None:
            import open_clip

            partial.mkdir()
            places = [(label, FIRST_INDEX + i) for split in SPLIT_NAMES for label, i in self._places(split)]
            rendered = [render(*place, self.pictures.seed) for place in track(places, "rendering", transient=True)]
            # one token more than allowed tells whether a caption was cut
            tokenize = open_clip.get_tokenizer("ViT-B-32", context_length=self.pictures.context_length + 1)
            captions = []
            for (_, number), picture in zip(places, rendered, strict=True):
                sentence = SENTENCES[number % len(SENTENCES)]
                captions.append(picture.caption if sentence is None else picture.describe(sentence))
            tokens = tokenize(captions).numpy()
            if tokens[:, -1].any():
                raise DataError(
                    f"{int((tokens[:, -1] > 0).sum())} captions are longer than {self.pictures.context_length} tokens; "
                    "raise --data.init_args.pictures.context_length"
                )
            np.save(partial / "images.npy", np.stack([picture.image for picture in rendered]))
            np.save(partial / "tokens.npy", tokens[:, :-1])
            hashes = [hashlib.sha256(picture.image.tobytes()).hexdigest() for picture in rendered]
            (partial / "facts.json").write_text(json.dumps({"pictures": asdict(self.pictures), "sha256": hashes}))

        folder = build_once(folder, build)
        hashes = json.loads((folder / "facts.json").read_text())["sha256"]
        return load_npy(folder / "images.npy", mmap=True), load_npy(folder / "tokens.npy"), hashes

    def _places(self, split: str) -> list[tuple[int, int]]:
        """Class and number of each picture of a split."""
        first, end = dict(zip(SPLIT_NAMES, pairwise(np.cumsum([0, *self._sizes()]).tolist()), strict=True))[split]
        return [(label, number) for label in range(len(CLASS_NAMES)) for number in range(first, end)]

    def _sizes(self) -> tuple[int, ...]:
        """Pictures of each class by split, in the order of ``SPLIT_NAMES``."""
        return tuple(getattr(self.pictures, split) for split in SPLIT_NAMES)

    def _rows(self, split: str) -> slice:
        ends = np.cumsum([0, *self._sizes()]) * len(CLASS_NAMES)
        position = SPLIT_NAMES.index(split)
        return slice(int(ends[position]), int(ends[position + 1]))

    @cached_property
    def layout(self) -> Layout:
        """Shape of a picture and names of the classes; renders what is missing."""
        _, _, hashes = self._rendered
        training_set = hashlib.sha256("".join(hashes[self._rows("train")]).encode()).hexdigest()[:8]
        who = "pictures"
        return Layout(
            modality="image",
            subjects=[who],
            shape={who: [3, SIDE, SIDE]},
            rois={who: {}},
            channels=[],
            positions=[],
            sampling_rate=0.0,
            start=0.0,
            image_shape=[3, SIDE, SIDE],
            embedding_width=0,
            embedding_space="",
            train_samples={who: self.pictures.train * len(CLASS_NAMES)},
            classes=list(CLASS_NAMES),
            protocol="by_stimulus",
            fold=0,
            folds=1,
            preparation={"context_length": str(self.pictures.context_length)},
            training_set=training_set,
            transductive=False,
        )

    def has_validation(self) -> bool:
        """Whether there are validation pictures."""
        return self.pictures.validation > 0

    def stimuli(self, split: str) -> frozenset[str]:
        """SHA-256 of the pictures of a split."""
        _, _, hashes = self._rendered
        return frozenset(hashes[self._rows(split)])

    def dataset(self, split: str) -> Samples:
        """Return the pictures of a split."""
        self.check_split(split)
        images, tokens, _ = self._rendered
        rows = self._rows(split)
        labels = torch.tensor([label for label, _ in self._places(split)])
        return _Pictures(images[rows], torch.from_numpy(tokens[rows]), labels)

    def make_context(self, split: str) -> ScoreContext:
        """Make the context without galleries: those of texts are the stage's."""
        return ScoreContext(galleries={}, layout=self.layout)


class _Pictures(Samples):
    def __init__(self, images: NDArray[Any], tokens: Tensor, labels: Tensor) -> None:
        self.images = images
        self.tokens = tokens
        self.labels = labels
        self.group = self.subject = torch.zeros_like(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, numbers: Tensor) -> Batch:
        real = torch.where(numbers < 0, ~numbers, numbers)
        return Batch(
            image=torch.from_numpy(rearrange(self.images[real.numpy()], "b h w c -> b c h w").copy()),
            tokens=self.tokens[real],
            stimulus=real,
            label=self.labels[real],
            subject=torch.zeros_like(real),
            row=torch.where(numbers < 0, PADDING, numbers),
        )
