"""Tokenizer: pictures <-> discrete codes, what MaskGIT learns to predict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from contracts import PADDING, Batch, ContractError, Layout, Output, ScoreContext
from lightning_modules.networks.image_tokenizers import build_tokenizer
from lightning_modules.networks.maskgit_vqgan import MaskGitVQGAN
from lightning_modules.stage import AdamW, GradientStage, Schedule

Architecture = Literal["fsq", "maskgit_vqgan"]


class PictureStage(GradientStage):
    """Base of stages that are trained on pictures alone, whoever saw them.

    Args:
        layout: Shape of the pictures, linked from the datamodule.
        optimiser: Optimiser and schedule.
        compile: Compile the networks in place.

    Raises:
        ContractError: Data without pictures.
    """

    def __init__(self, layout: Layout, *, optimiser: AdamW, compile: bool = False) -> None:
        super().__init__(layout, optimiser=optimiser, compile=compile)
        if not layout["image_shape"]:
            raise ContractError(
                f"{type(self).__name__} is trained on pictures, and these data have none; choose another --data"
            )

    def score_context(self, context: ScoreContext) -> ScoreContext:
        """Scores are about pictures, and no person's."""
        context = super().score_context(context)
        return replace(context, layout={**context.layout, "subjects": ["pictures"]})


class Tokenizer(PictureStage):
    """An autoencoder of pictures with discrete codes in its middle, behind ``encode`` and ``decode``.

    ``fsq``: a small one of ours (Mentzer et al. 2024), trained on squared and absolute differences of pixels, on a CPU
    in minutes. ``maskgit_vqgan``: the architecture of the published MaskGIT weights, which ``neuroalign
    import-weights`` brings into a checkpoint of this stage; it was published with a perceptual and an adversarial
    loss, which are not part of this stage.

    Reference: Chang et al. (2022), MaskGIT, section 4.1; Qian et al. (2023), LEA, section 3.3.

    Args:
        layout: Shape of the pictures, linked from the datamodule.
        architecture: ``fsq`` or ``maskgit_vqgan``.
        options: Arguments of ``FSQAutoencoder`` or ``MaskGitVQGAN``.
        grid: Largest number of codes along a side: ``fsq`` without ``widths`` among its options halves the side until
            it is no larger, or odd.
        absolute: Weight of the absolute differences beside the squared ones; they keep edges sharper.
        lr: Largest learning rate.
        weight_decay: Decoupled weight decay of matrices.
        warmup: Share of all steps over which the rate rises.
        schedule: ``constant``, ``cosine`` or ``linear``.
        compile: Compile the networks in place.

    Raises:
        ContractError: Pictures whose sides the tokenizer cannot divide, or options that the architecture lacks.
    """

    provides: ClassVar[Mapping[str, frozenset[str]]] = {
        step: frozenset({"image", "generated"}) for step in ("validation", "test", "predict")
    }
    batch_keys = frozenset({"image"})

    def __init__(
        self,
        layout: Layout,
        *,
        architecture: Architecture = "fsq",
        options: dict[str, Any] | None = None,
        grid: int = 8,
        absolute: float = 1.0,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        warmup: float = 0.05,
        schedule: Schedule = "cosine",
        compile: bool = False,
    ) -> None:
        optimiser = AdamW(lr=lr, weight_decay=weight_decay, warmup=warmup, schedule=schedule)
        super().__init__(layout, optimiser=optimiser, compile=compile)
        self.save_hyperparameters()
        self.absolute = absolute
        _, height, width = layout["image_shape"]
        chosen = {} if options is None else options
        if architecture == "fsq" and "widths" not in chosen:
            chosen = {**_levels(height, grid), **chosen}
        self.network = build_tokenizer(architecture, chosen)
        self.codes = self.network.codes
        self.factor = self.network.factor
        if height != width or height % self.factor:
            raise ContractError(
                f"pictures must be square with a side that {self.factor} divides, found {height} x {width}; set "
                "--data.init_args.views.size, or other --model.init_args.options"
            )
        self.side = height // self.factor

    def networks(self) -> Iterator[nn.Module]:
        """Encoder and decoder."""
        yield self.network.encoder
        yield self.network.decoder

    def encode(self, images: UInt8[Tensor, "b 3 h w"]) -> Int64[Tensor, "b i j"]:
        """Codes of pictures.

        Raises:
            ContractError: Pictures of another size or type.
        """
        self._check_pictures(images)
        return self.network.encode(_unit(images))

    def decode(self, codes: Int64[Tensor, "b i j"]) -> UInt8[Tensor, "b 3 h w"]:
        """Pictures of codes.

        Raises:
            ContractError: Codes that are none.
        """
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.codes:
            raise ContractError(
                f"codes must be in 0..{self.codes - 1}, found {int(codes.min())}..{int(codes.max())}; they are of "
                "another tokenizer"
            )
        return (self.network.decode(codes) * 255).round().to(torch.uint8)

    def forward(self, batch: Batch) -> Output:
        """Encode and decode the pictures of a batch.

        Returns:
            ``image (B, 3, H, W)``, ``generated (B, 1, 3, H, W)``, its reconstruction, and what every output carries on.
        """
        generated = self.decode(self.encode(batch["image"]))
        return {"image": batch["image"], "generated": generated[:, None], **self.passed_through(batch)}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        self._check_pictures(batch["image"])
        loss, extra = self.reconstruction_loss(batch["image"])
        total = loss.mean() + extra
        self.log("train/loss", total, on_step=True, on_epoch=True, batch_size=len(loss), sync_dist=True)
        return total

    def validation_step(self, batch: Batch, batch_idx: int) -> Output:
        """Add to the loss and return the output of a batch."""
        self.add_loss("validation/loss", self.reconstruction_loss(batch["image"])[0][batch["row"] != PADDING])
        return super().validation_step(batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> Output:
        """Add to the loss and return the output of a batch."""
        self.add_loss("test/loss", self.reconstruction_loss(batch["image"])[0][batch["row"] != PADDING])
        return super().test_step(batch, batch_idx)

    def reconstruction_loss(self, images: UInt8[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, " b"], Float[Tensor, ""]]:
        """Mean squared and absolute difference of each picture's pixels (0..1), and the loss of the codebook."""
        seen = _unit(images)
        extra = seen.new_zeros(())
        if isinstance(self.network, MaskGitVQGAN):
            reconstructed, extra = self.network(seen)
        else:
            reconstructed = self.network(seen)
        error = (reconstructed - seen).flatten(1)
        return error.square().mean(dim=1) + self.absolute * error.abs().mean(dim=1), extra

    def _check_pictures(self, images: Tensor) -> None:
        expected = tuple(self.layout["image_shape"])
        if tuple(images.shape[1:]) != expected or images.dtype != torch.uint8:
            raise ContractError(
                f"the tokenizer was made for uint8 pictures of {expected}, found {images.dtype} "
                f"{tuple(images.shape[1:])}; set --data.init_args.views.size"
            )


def _levels(side: int, grid: int) -> dict[str, Any]:
    """Stem and channels of as many levels as it takes to halve the side to the grid."""
    levels = 0
    while side > grid and side % 2 == 0:
        side //= 2
        levels += 1
    if not levels:
        raise ContractError(
            f"pictures with a side of {side} cannot be halved to at most {grid} codes; set --data.init_args.views.size "
            "to an even number, or a smaller --model.init_args.grid"
        )
    # of large pictures the first level, which costs most, takes two halvings at once
    stem, levels = (4, levels - 1) if levels > 2 else (2, levels)
    return {"stem": stem, "widths": [48, *([96] * (levels - 1))]}


def _unit(images: Tensor) -> Tensor:
    return images.float() / 255
