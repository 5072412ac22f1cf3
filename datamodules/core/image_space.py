"""ImageSpace: the embeddings of the pictures of one data set, as stages see them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from contracts import NO_LABEL, DataError, Gallery
from datamodules.core.features import Embedder, EmbeddingOptions, FeatureBank, build_embedder
from datamodules.core.targets import TargetTransform, fit_target
from datamodules.core.texts import TextBank
from datamodules.core.views import ViewOptions, view, view_key

Array = NDArray[Any]


class ImageSpace:
    """Embeddings of stimuli, transformed as fitted on the training stimuli; nothing is made before it is asked for.

    Args:
        options: The image space.
        stores: Folder of all stores; embeddings lie in its folders ``features`` and ``texts``.
        sha256: Hash of each stimulus, by number.
        image: Gives the picture with a stimulus number, RGB uint8 ``(H, W, 3)``; None without pictures.
        labels: ``(S,)`` class number of each stimulus, or ``NO_LABEL``.
        classes: Names of the classes.
        training: ``(N,)`` numbers of the training stimuli, each once, in order.
    """

    def __init__(
        self,
        options: EmbeddingOptions,
        stores: Path,
        *,
        sha256: Sequence[str],
        image: Callable[[int], Array] | None,
        labels: Int64[Tensor, " s"],
        classes: Sequence[str],
        training: Int64[np.ndarray, " n"],
    ) -> None:
        self.options = options
        self.stores = stores
        self.sha256 = list(sha256)
        self.image = image
        self.labels = labels
        self.classes = list(classes)
        self.training = training
        self._embedder: Embedder | None = None

    @property
    def embeds_pictures(self) -> bool:
        """Whether embeddings are made from pictures: neither classes, nor none, nor without pictures."""
        return self.options.model not in ("classes", "none") and self.image is not None

    @cached_property
    def training_set(self) -> str:
        """Identity of the set of training stimuli."""
        return hashlib.sha256("".join(self.sha256[number] for number in self.training).encode()).hexdigest()[:8]

    @cached_property
    def name(self) -> str:
        """Identity of the space: model, weights, layer, pooling, transform and target, or ``none``."""
        space, raw = self._embedded
        if not raw.shape[1]:
            return space
        if self.options.target not in ("none", "unit"):
            # a fitted target is a space of its own for each set of training stimuli
            return f"{space}|{self.options.target}#{self.training_set}"
        return f"{space}|unit" if self.options.target == "unit" else space

    @cached_property
    def targets(self) -> Float[Tensor, "s d"]:
        """Transformed embedding of each stimulus.

        Raises:
            DataError: A model or pictures that cannot be had, a target that cannot be fitted.
        """
        _, raw = self._embedded
        return torch.from_numpy(self._transform(raw))

    def of_views(self, numbers: Int64[Tensor, " n"], views: ViewOptions) -> Float[Tensor, "samples d"]:
        """Return the transformed embedding of every view of some stimuli, all views of one after another.

        Each view is embedded as a picture of its own; the transform is that of the whole training pictures.

        Args:
            numbers: Stimulus numbers.
            views: What views there are.
        """
        if views.count == 1 or not self.embeds_pictures:
            return self.targets[numbers].repeat_interleave(views.count, dim=0)
        assert self.image is not None
        image, options = self.image, views
        samples = [(number, v) for number in numbers.tolist() for v in range(views.count)]
        keys = [view_key(self.sha256[number], v, views) for number, v in samples]

        def picture(position: int) -> Array:
            number, v = samples[position]
            return view(image(number), self.sha256[number], v, options)

        self._bank.build(keys, picture)
        return torch.from_numpy(self._transform(self._bank.lookup(keys)))

    def embed(self, pictures: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Embed pictures as the stimuli are embedded; the network is built at the first call.

        Args:
            pictures: On any device.

        Returns:
            float32, on the CPU.

        Raises:
            DataError: The space is not one of pictures, or these are not uint8.
        """
        if not self.embeds_pictures:
            raise DataError(f"embedding.model={self.options.model} embeds no pictures; choose another one")
        if pictures.dtype != torch.uint8:
            raise DataError(f"pictures to embed must be uint8 (0..255), found {pictures.dtype}")
        if self._embedder is None:
            self._embedder = build_embedder(self.options)
        if not len(pictures):
            return self.targets.new_zeros(0, self.targets.shape[1])
        images = list(np.ascontiguousarray(rearrange(pictures.cpu().numpy(), "n c h w -> n h w c")))
        size = self.options.batch_size
        parts = [self._embedder(images[start : start + size]) for start in range(0, len(images), size)]
        return torch.from_numpy(self._transform(torch.cat(parts).to(torch.float32).numpy()))

    def class_galleries(self, shown: Int64[Tensor, " n"]) -> dict[str, Gallery]:
        """Galleries of the classes of some stimuli.

        Args:
            shown: Stimulus numbers.

        Returns:
            ``class_centres``, mean embeddings of the training stimuli of each class, unless a class has none
            (zero-shot); in the space of classes they are the ``test`` gallery, too, since stimuli of a class are one
            and the same there. ``text``, sentences about each class, where model and user want some.

        Raises:
            DataError: Sentences are wanted about a stimulus without class.
        """
        centres, texts = self._class_centres(shown), self._texts(shown)
        of_classes = centres if self.options.model == "classes" else None
        galleries = {"test": of_classes, "class_centres": centres, "text": texts}
        return {name: gallery for name, gallery in galleries.items() if gallery is not None}

    def _class_centres(self, shown: Int64[Tensor, " n"]) -> Gallery | None:
        training = torch.from_numpy(self.training)
        classes = self.labels[shown].unique()
        members = [training[self.labels[training] == number] for number in classes]
        if (classes == NO_LABEL).any() or any(len(member) == 0 for member in members):
            return None
        centres = torch.stack([self.targets[member].mean(dim=0) for member in members])
        return Gallery(centres, classes, classes, "class_centre")

    def _texts(self, shown: Int64[Tensor, " n"]) -> Gallery | None:
        """In the space of the targets."""
        if not self.options.templates or not self.options.model.startswith("open_clip:"):
            return None
        classes = self.labels[shown].unique()
        if (classes == NO_LABEL).any():
            raise DataError(
                "embedding.templates need a class for every shown stimulus, this data set lacks some; set "
                "--data.init_args.embedding.templates=[]"
            )
        bank = TextBank(self.stores / "texts", self.options)
        texts = self._transform.for_texts(bank.embed(self.classes))
        return Gallery(torch.from_numpy(texts)[classes], classes, classes, "text")

    @cached_property
    def _bank(self) -> FeatureBank:
        return FeatureBank(self.stores / "features", self.options)

    @cached_property
    def _embedded(self) -> tuple[str, Array]:
        """Name of the space before the target transform, and the embedding ``(S, D)`` of each stimulus."""
        if self.options.model == "classes":
            if (self.labels == NO_LABEL).any():
                raise DataError("embedding.model=classes needs a class for every stimulus; this data set lacks some")
            names = hashlib.sha256(json.dumps(self.classes).encode()).hexdigest()[:8]
            return f"classes-{names}", np.eye(len(self.classes), dtype=np.float32)[self.labels.numpy()]
        if self.image is None or not self.embeds_pictures:
            return "none", np.zeros((len(self.sha256), 0), np.float32)
        self._bank.build(self.sha256, self.image)
        return self._bank.space, self._bank.lookup(self.sha256)

    @cached_property
    def _transform(self) -> TargetTransform:
        _, raw = self._embedded
        return fit_target(self.options.target if raw.shape[1] else "none", raw[self.training])
