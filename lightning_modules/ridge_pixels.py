"""PixelRidge: pictures from recordings by ridge regression to pixels, the baseline of every decoder of pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from contracts import Batch, ContractError, Layout, Output
from lightning_modules.ridge_lea import RidgeAlignment


class PixelRidge(RidgeAlignment):
    """The plainest way to a picture: ridge regression from the recordings to its pixels.

    The baseline that a decoder of pictures must be compared with: its pictures are blurred means, and correlate well
    with what was seen.

    Args:
        layout: Shapes of the data, linked from the datamodule.
        side: Largest side of the pictures that are predicted, in pixels.
        **kwargs: Arguments of RidgeAlignment.

    Raises:
        ContractError: Data without pictures of one square size, or a side below 1.
    """

    batch_keys = frozenset({"signal", "image"})

    def __init__(self, layout: Layout, *, side: int = 64, **kwargs: Any) -> None:
        shape = layout["image_shape"]
        if not shape:
            raise ContractError("PixelRidge predicts pictures, and these data have none; choose another --data")
        if shape[1] != shape[2] or side < 1:
            raise ContractError(
                f"PixelRidge needs square pictures of one size and a side of at least 1, found {shape} and {side}; set "
                "--data.init_args.views.size"
            )
        used = min(side, shape[1])
        pixels: Layout = {**layout, "embedding_width": 3 * used**2, "embedding_space": "pixels"}
        super().__init__(pixels, **kwargs)
        # a checkpoint is about the data as they are; asked for by name: RidgeAlignment does not see them where a
        # wrapper checks the types of its arguments
        self.save_hyperparameters("layout", "side")
        self.layout = layout
        self.side = used
        self.provides = {  # type: ignore[misc]  # its embeddings are pixels, which no gallery of the data holds
            "validation": frozenset({"signal", "predicted_signal"}),
            "test": frozenset({"signal", "predicted_signal", "image", "generated"}),
            "predict": frozenset({"signal", "predicted_signal", "generated"}),
        }

    def targets(self, batch: Batch) -> Tensor:
        """Pixels in 0..1 ``(B, 3 side side)`` of the pictures, made smaller where they are larger than ``side``."""
        images = batch["image"].float() / 255
        if images.shape[-1] != self.side:
            images = interpolate(images, size=(self.side, self.side), mode="area")
        return images.flatten(1)

    def forward(self, batch: Batch) -> Output:
        """Predict the pixels of the pictures, and the signals from the pixels.

        Returns:
            ``image (B, 3, H, W)``, ``generated (B, 1, 3, side, side)``, ``signal`` and ``predicted_signal``, and what
            every output carries on.
        """
        output = super().forward(batch)
        pixels = output.pop("brain_embedding").unflatten(1, (1, 3, self.side, self.side))
        output.pop("image_embedding")
        generated = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
        return {**output, "generated": generated, "image": batch["image"]}
