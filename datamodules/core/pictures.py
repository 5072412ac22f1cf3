"""Pictures without recordings as samples: each stimulus once, or once for each view."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from contracts import PADDING, Batch, DataError
from datamodules.core.loading import Residence, Samples
from datamodules.core.views import ORIGINAL, ViewOptions, fit_size, view

Array = NDArray[Any]


class PictureDataset(Samples):
    """Views of pictures, served as batches: ``dataset[numbers]`` is a ``Batch`` with ``image``.

    Samples run over the pictures in order, all views of one after another: sample ``i`` is view ``i % V`` of
    picture ``i // V``. ``~i`` gives sample ``i`` marked as padding.

    Args:
        stimulus: ``(N,)`` stimulus numbers, each once.
        image: Gives the picture with a stimulus number, RGB uint8 ``(H, W, 3)``.
        sha256: Hash of each stimulus, by number.
        labels: ``(S,)`` class number of each stimulus.
        views: How large pictures are, and which V views of each are samples.
        targets: ``(N * V, D)`` embedding of each sample, or None to leave ``embedding`` out.
        residence: ``mmap`` decodes pictures as they are asked for; ``ram`` and ``device`` hold all of them decoded.
        device: Where ``device`` is.

    Raises:
        DataError: A picture that cannot be read; pictures of different sizes in a batch (``ram`` and ``device``:
            among all).
    """

    def __init__(
        self,
        stimulus: Int64[Tensor, " n"],
        image: Callable[[int], Array],
        *,
        sha256: Sequence[str],
        labels: Int64[Tensor, " s"],
        views: ViewOptions = ORIGINAL,
        targets: Float[Tensor, "samples d"] | None = None,
        residence: Residence = "mmap",
        device: torch.device = torch.device("cpu"),
    ) -> None:
        self.place = device if residence == "device" else torch.device("cpu")
        self.stimulus = stimulus.repeat_interleave(views.count)
        self.group = self.subject = torch.zeros_like(self.stimulus)
        self.labels = labels
        self.image = image
        self.sha256 = sha256
        self.views = views
        self.targets = None if targets is None else targets.to(self.place)
        self.decoded: Tensor | None = None
        if residence != "mmap":
            self.decoded = stack_pictures(self.picture(i) for i in range(len(self))).to(self.place)

    def __len__(self) -> int:
        """Number of samples, N * V."""
        return len(self.stimulus)

    def picture(self, sample: int) -> Array:
        """Return the picture of a sample as it stands in a batch, uint8 ``(H, W, 3)``."""
        stimulus = int(self.stimulus[sample])
        whole = self.image(stimulus)
        seen = view(whole, self.sha256[stimulus], sample % self.views.count, self.views)
        return fit_size(seen, self.views.size)

    def __getitem__(self, numbers: Tensor) -> Batch:
        """Return the batch of some sample numbers.

        Args:
            numbers: ``(B,)`` int64.
        """
        real = torch.where(numbers < 0, ~numbers, numbers)
        stimulus = self.stimulus[real]
        if self.decoded is None:
            image = stack_pictures(self.picture(sample) for sample in real.tolist())
        else:
            image = self.decoded[real.to(self.place)]
        batch = Batch(
            image=image,
            stimulus=stimulus,
            label=self.labels[stimulus],
            subject=self.subject[real],
            row=torch.where(numbers < 0, PADDING, numbers),
        )
        if self.targets is not None:
            batch["embedding"] = self.targets[real.to(self.place)]
        return batch


def stack_pictures(images: Iterable[Array]) -> UInt8[Tensor, "n 3 h w"]:
    """Return pictures ``(H, W, 3)`` as one tensor.

    Args:
        images: Pictures of one size.

    Raises:
        DataError: Pictures of different sizes.
    """
    found = list(images)
    sizes = sorted({(image.shape[1], image.shape[0]) for image in found})
    if len(sizes) > 1:
        raise DataError(
            f"pictures of different sizes cannot share a batch, found {sizes[0][0]}x{sizes[0][1]} and "
            f"{sizes[-1][0]}x{sizes[-1][1]} pixels; set --data.init_args.views.size"
        )
    return torch.from_numpy(rearrange(np.stack(found), "b h w c -> b c h w").copy())
