"""FmriMAE: a masked autoencoder of fMRI, trained without labels or pictures (LEA stage 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from contracts import PADDING, Batch, ContractError, Layout, Output
from lightning_modules.networks.brain_tokens import Kind, make_tokens
from lightning_modules.networks.checkpoints import load_stage, renamed_people
from lightning_modules.networks.masked_autoencoder import (
    MaskedAutoencoder,
    hidden_tokens,
    segments_to_keep,
    tokens_to_keep,
)
from lightning_modules.networks.row_random import row_normal, row_uniform
from lightning_modules.stage import AdamW, GradientStage, Schedule

Masking = Literal["none", "random", "segments"]
LossOver = Literal["hidden", "all"]
Augmentation = Literal["none", "noise", "drop"]
_USUAL_MASKING: dict[Kind, Masking] = {"roi": "none", "patch": "random", "region_time": "segments"}
# uses of random numbers within a step
_MASK, _NOISE, _CHOICE, _DROP = range(4)


class FmriMAE(GradientStage):
    """An autoencoder of fMRI in three variants, told apart by their tokens.

    * ``roi``: LEA. Tokens of every region, nothing hidden, a decoder that sees one latent vector; the loss is over
      all voxels. ``variant: code`` is the published network (a linear map on the class token, one output
      convolution for all regions), ``variant: paper`` what the paper describes (neither).
    * ``patch``: MinD-Vis. Tokens of 16 voxels, 75 % of them hidden at random; the loss is over hidden patches.
    * ``region_time``: time series. Tokens of a region during some volumes; in every region one segment is hidden.

    Published sizes: width 1024, depth 24, decoder width 512, decoder depth 8, 16 heads each, MLP ratio 1. LEA's
    training: AdamW (.9, .95), weight decay .01, learning rate 5e-5 (GOD) or 5e-6 (BOLD5000), 100,000 steps of 8.

    Masks and noise are pure functions of (seed, epoch, row), so they depend neither on the batch nor on the number
    of processes. Two passes with equal ``row`` see the same.

    References: Qian et al. (2023), LEA, section 3.1, eq. 1, and its code; Chen et al. (2023), Seeing beyond the brain
    (MinD-Vis), section 3.2; He et al. (2022), Masked autoencoders are scalable vision learners.

    Args:
        layout: Shapes and regions of the data, linked from the datamodule.
        tokens: ``roi``, ``patch`` or ``region_time``.
        variant: ``roi``: ``code`` or ``paper``.
        heads: ``roi``: tokens of each region.
        patch_size: ``patch``: voxels of a token; ``region_time``: volumes of a token.
        voxels: ``own``: every person has region layers of their own; ``common``: the voxels of all are the same
            places of a common brain (grayordinates, parcels), with the same layers.
        width: Width of the encoder.
        depth: Blocks of the encoder.
        num_heads: Attention heads of the encoder.
        decoder_width: Width of the decoder.
        decoder_depth: Blocks of the decoder.
        decoder_num_heads: Attention heads of the decoder.
        mlp_ratio: Hidden width of the MLPs relative to the width.
        latent_width: ``roi`` with ``variant: code``: width of the latent; None for that of the encoder.
        masking: What is hidden: ``none``, ``random`` tokens, ``segments`` in time; None for the usual.
        mask_ratio: Share of the tokens that is hidden.
        loss: Mean squared error over ``hidden`` tokens, or over ``all``; None for the usual.
        augmentation: What is done to training signals, the clean ones being the target: ``noise`` adds Gaussian
            noise to some samples (the paper), ``drop`` zeroes some voxels of every sample (the code).
        augmentation_rate: Share of the samples (``noise``) or voxels (``drop``).
        noise: SD of the noise, in units of the normalised signal.
        regions: ``roi``, ``region_time``: names by whose order regions are numbered; None for the order in which they
            appear. A checkpoint holds its own, so that the people it is used with later may have others.
        relax: Train on the recordings of the test split, too, without what was seen; scores of this and every
            later stage are then marked as transductive.
        initialise_from: Checkpoint of an FmriMAE, trained or imported, whose weights are taken over where names
            and shapes agree: the trunk, and the layers of people and regions it knows.
        lr: Largest learning rate.
        weight_decay: Decoupled weight decay of matrices.
        betas: Decay rates of AdamW's moments.
        warmup: Share of all steps over which the rate rises.
        schedule: ``constant``, ``cosine`` or ``linear``.
        compile: Compile encoder and decoder in place.

    Raises:
        ContractError: Data or arguments that do not fit; a checkpoint that shares nothing.
    """

    provides: ClassVar = {
        step: frozenset({"latent", "signal", "predicted_signal"}) for step in ("validation", "test", "predict")
    }
    batch_keys = frozenset({"signal"})

    def __init__(
        self,
        layout: Layout,
        *,
        tokens: Kind = "roi",
        variant: Literal["code", "paper"] = "code",
        heads: int = 32,
        patch_size: int = 16,
        voxels: Literal["own", "common"] = "own",
        width: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mlp_ratio: float = 1.0,
        latent_width: int | None = None,
        masking: Masking | None = None,
        mask_ratio: float = 0.75,
        loss: LossOver | None = None,
        augmentation: Augmentation = "none",
        augmentation_rate: float = 0.25,
        noise: float = 0.1,
        regions: list[str] | None = None,
        relax: bool = False,
        initialise_from: str | None = None,
        lr: float = 5e-5,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup: float = 0.08,
        schedule: Schedule = "linear",
        compile: bool = False,
    ) -> None:
        optimiser = AdamW(lr=lr, weight_decay=weight_decay, betas=betas, warmup=warmup, schedule=schedule)
        super().__init__(layout, optimiser=optimiser, compile=compile)
        self.save_hyperparameters()
        _check_sizes(width=(width, num_heads), decoder_width=(decoder_width, decoder_num_heads))
        shares = {"mask_ratio": mask_ratio, "augmentation_rate": augmentation_rate}
        if not all(0 < share < 1 for share in shares.values()) or noise < 0 or min(heads, patch_size) < 1:
            raise ContractError(
                f"{' and '.join(shares)} must lie between 0 and 1, noise must not be negative, heads and patch_size be "
                f"at least 1; found {shares}, noise={noise}, heads={heads}, patch_size={patch_size}"
            )
        self.masking: Masking = _USUAL_MASKING[tokens] if masking is None else masking
        if (tokens == "roi") != (self.masking == "none") or (self.masking == "segments" and tokens != "region_time"):
            raise ContractError(
                f"masking={self.masking} does not go with tokens={tokens}: roi hides nothing (every token of a region "
                "sees all its voxels), patch hides random tokens, region_time random tokens or segments"
            )
        self.mask_ratio = mask_ratio
        self.loss_over: LossOver = loss or ("all" if tokens == "roi" else "hidden")
        if self.loss_over == "hidden" and self.masking == "none":
            raise ContractError("loss=hidden needs something hidden: masking is none; set --model.init_args.loss=all")
        self.augmentation = augmentation
        self.augmentation_rate = augmentation_rate
        self.noise = noise
        self.relax = relax
        self.initialise_from = initialise_from
        self.common = voxels == "common"
        code = tokens == "roi" and variant == "code"
        self.autoencoder = MaskedAutoencoder(
            make_tokens(
                tokens,
                layout,
                heads=heads,
                patch_size=patch_size,
                width=width,
                decoder_width=decoder_width,
                shared_output=variant == "code",
                common=self.common,
            ),
            latent="cls" if tokens == "roi" else "tokens",
            latent_width=(latent_width or width) if code else None,
            width=width,
            depth=depth,
            num_heads=num_heads,
            decoder_width=decoder_width,
            decoder_depth=decoder_depth,
            decoder_num_heads=decoder_num_heads,
            mlp_ratio=mlp_ratio,
            alike=tokens == "region_time",
        )
        if regions is not None:
            self._order_regions(regions)
        fewest = min(len(rows) for rows in self.autoencoder.tokens.rows)
        steps = getattr(self.autoencoder.tokens, "steps", 2)
        if self.masking != "none" and min(fewest, steps) < 2:
            raise ContractError(
                f"nothing can be hidden of a single token or time step; lower --model.init_args.patch_size={patch_size}"
            )

    def networks(self) -> Iterator[nn.Module]:
        """Encoder and decoder; the layers of regions depend on the person."""
        yield self.autoencoder.encoder
        yield self.autoencoder.decoder

    def setup(self, stage: str) -> None:
        """Take over weights; a checkpoint that is resumed replaces them afterwards."""
        if stage == "fit" and self.initialise_from is not None:
            self._take_over(Path(self.initialise_from))

    # ---- using -------------------------------------------------------------------------------------

    def encode(self, signal: Float[Tensor, "b ..."], subject: Int64[Tensor, " b"]) -> Float[Tensor, "b t w"]:
        """Encode whole signals.

        Args:
            signal: ``(B, V)`` or ``(B, V, T)``, of people of one layout.
            subject: Position of each sample's person in ``layout["subjects"]``.

        Returns:
            ``(B, 1, W)`` for ``roi``, else class token and all tokens ``(B, 1 + L, D)``.
        """
        subject = self._layer_of(subject)
        numbers = self.autoencoder.tokens.flatten(signal, int(subject[0]))
        return self.autoencoder.encode(numbers, subject)

    def decode(self, latent: Float[Tensor, "b t w"], subject: Int64[Tensor, " b"]) -> Float[Tensor, "b ..."]:
        """Decode what ``encode`` gave, or what was predicted in its place, to signals."""
        subject = self._layer_of(subject)
        return self.autoencoder.tokens.restore(self.autoencoder.decode(latent, subject), int(subject[0]))

    def latent_shape(self, subject: str) -> tuple[int, int]:
        """Shape of the latent of a person's sample, ``(1, W)`` or ``(1 + L, D)``."""
        return self.autoencoder.latent_shape(0 if self.common else self.layout["subjects"].index(subject))

    def forward(self, batch: Batch) -> Output:
        """Encode and decode a batch, nothing hidden.

        With ``loss: hidden`` nobody ever learned to reconstruct a token that was seen; ``predicted_signal`` then
        says little.

        Returns:
            ``latent (B, W)`` (``roi``) or ``(B, D)`` (else the mean over the tokens), ``signal``,
            ``predicted_signal`` (B, V) or (B, V, T), and what every output carries on.
        """
        latent = self.encode(batch["signal"], batch["subject"])
        return {
            "latent": latent[:, 0] if self.autoencoder.latent == "cls" else latent[:, 1:].mean(dim=1),
            "signal": batch["signal"],
            "predicted_signal": self.decode(latent, batch["subject"]),
            **self.passed_through(batch),
        }

    # ---- training ----------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss = self.reconstruction_loss(
            batch, self.loss_over, seed=self._seed, epoch=1 + self.current_epoch, augment=True
        ).mean()
        self.log("train/loss", loss, on_step=True, on_epoch=True, batch_size=len(batch["row"]), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Output:
        """Add to the loss, under masks that are the same in every epoch, and return the output of a batch."""
        self._add_errors("validation", batch)
        return super().validation_step(batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> Output:
        """Add to the loss, under the masks of ``validation_step``, and return the output of a batch."""
        self._add_errors("test", batch)
        return super().test_step(batch, batch_idx)

    def reconstruction_loss(
        self, batch: Batch, over: LossOver, *, seed: int = 0, epoch: int = 0, augment: bool = False
    ) -> Float[Tensor, " b"]:
        """Mean squared error of each sample of a batch.

        Args:
            batch: Samples of people of one layout.
            over: Numbers that count: those of ``hidden`` tokens, or ``all``.
            seed: With ``epoch`` and ``row``, what masks and noise depend on.
            epoch: Epoch, from 1 while training.
            augment: Whether the input is augmented.
        """
        subject = self._layer_of(batch["subject"])
        numbers = self.autoencoder.tokens.flatten(batch["signal"], int(subject[0]))
        row = batch["row"]
        keep = self.tokens_kept(row, int(subject[0]), seed=seed, epoch=epoch)
        seen = self._augmented(numbers, row, seed=seed, epoch=epoch) if augment else numbers
        predicted = self.autoencoder.decode(self.autoencoder.encode(seen, subject, keep), subject, keep)
        error = (predicted.float() - numbers).square()
        if keep is None or over == "all":
            return error.mean(dim=1)
        token_of = self.autoencoder.tokens.token_of(int(subject[0])).to(error.device)
        weight = hidden_tokens(keep, len(self.autoencoder.tokens.rows[int(subject[0])]))[:, token_of]
        return (error * weight).sum(dim=1) / weight.sum(dim=1)

    def tokens_kept(
        self, row: Int64[Tensor, " b"], person: int, *, seed: int, epoch: int
    ) -> Int64[Tensor, "b k"] | None:
        """Tokens that are not hidden in each row of the data; None where nothing is."""
        tokens = self.autoencoder.tokens
        if self.masking == "none":
            return None
        length = len(tokens.rows[person])
        if self.masking == "random":
            return tokens_to_keep(row_uniform(row, length, seed=seed, epoch=epoch, stream=_MASK), self.mask_ratio)
        steps: int = tokens.steps  # type: ignore[assignment]  # of RegionTimeTokens, as checked at the start
        start = row_uniform(row, length // steps, seed=seed, epoch=epoch, stream=_MASK)
        return segments_to_keep(start, steps, self.mask_ratio)

    def _augmented(self, numbers: Tensor, row: Tensor, *, seed: int, epoch: int) -> Tensor:
        size = numbers.shape[1]
        if self.augmentation == "noise":
            chosen = row_uniform(row, 1, seed=seed, epoch=epoch, stream=_CHOICE) < self.augmentation_rate
            return numbers + chosen * self.noise * row_normal(row, size, seed=seed, epoch=epoch, stream=_NOISE)
        if self.augmentation == "drop":
            return numbers * (row_uniform(row, size, seed=seed, epoch=epoch, stream=_DROP) >= self.augmentation_rate)
        return numbers

    def _add_errors(self, split: str, batch: Batch) -> None:
        real = batch["row"] != PADDING
        losses: dict[str, LossOver] = {f"{split}/loss": self.loss_over}
        if self.masking != "none":
            losses[f"{split}/hidden_error"] = "hidden"
        for name, over in losses.items():
            self.add_loss(name, self.reconstruction_loss(batch, over)[real])

    def _layer_of(self, subject: Tensor) -> Tensor:
        """Number of each person's layers: their own, or those of all."""
        return torch.zeros_like(subject) if self.common else subject

    # ---- checkpoints -------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record what this stage was made from, and whether it saw test recordings."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lineage"][-1]["transductive"] |= self.relax

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that was made for other data, and number the regions as it does."""
        super().on_load_checkpoint(checkpoint)
        regions = checkpoint["hyper_parameters"].get("regions")
        if regions is not None:
            self._order_regions(regions)

    def _order_regions(self, names: Sequence[str]) -> None:
        self.autoencoder.order_regions(names)
        self.hparams["regions"] = list(self.autoencoder.tokens.names)

    def _take_over(self, path: Path) -> None:
        checkpoint = load_stage(path, argument="initialise_from", stage="FmriMAE")
        arguments = checkpoint["hyper_parameters"]
        for name in ("num_heads", "decoder_num_heads"):
            if arguments[name] != self.hparams[name]:
                raise ContractError(
                    f"{path} has {name}={arguments[name]}, this run {self.hparams[name]}, and the same weights would "
                    f"compute something else; give --model.init_args.{name} as it was trained with"
                )
        layout = arguments["layout"]
        names = arguments.get("regions") or list(
            dict.fromkeys(n for s in layout["subjects"] for n in layout["rois"][s])
        )
        if arguments["tokens"] == self.hparams["tokens"] != "patch":
            self._order_regions(names)
        theirs = renamed_people(checkpoint["state_dict"], arguments, self.hparams)
        mine = self.state_dict()
        for name in ("autoencoder.tokens.region", "autoencoder.tokens.decoder_region"):
            if name in theirs and name in mine and theirs[name].shape[1:] == mine[name].shape[1:]:
                # their regions are numbered first here
                theirs[name] = torch.cat([theirs[name].to(self.device), mine[name][len(theirs[name]) :]])
        fits = {name: value for name, value in theirs.items() if name in mine and mine[name].shape == value.shape}
        trunk = [name for name in mine if name.startswith(("autoencoder.encoder.", "autoencoder.decoder."))]
        missing = [name for name in trunk if name not in fits]
        if missing:
            raise ContractError(
                f"the trunk of {path} is another one: {len(missing)} of {len(trunk)} weights differ, the first is "
                f"{missing[0]}; give the sizes that it was trained with"
            )
        self.load_state_dict(fits, strict=False)
        self.lineage = checkpoint["lineage"]
        rank_zero_info(f"{path}: took over {len(fits)} of {len(mine)} weights; the rest begins anew")


def _check_sizes(**sizes: tuple[int, int]) -> None:
    for name, (width, heads) in sizes.items():
        if heads < 1 or width % heads or width % 2:
            raise ContractError(f"{name} must be even and a multiple of its attention heads, found {width} and {heads}")
