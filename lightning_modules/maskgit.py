"""MaskGIT: codes of a picture from its embedding (LEA stage 2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int64, UInt8
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from contracts import PADDING, Batch, ContractError, Layout, Output
from lightning_modules.networks.checkpoints import load_stage
from lightning_modules.networks.row_random import row_normal, row_uniform
from lightning_modules.networks.token_sampling import Order, SamplerOptions, sample_codes
from lightning_modules.networks.token_transformer import TokenTransformer
from lightning_modules.stage import AdamW, Schedule
from lightning_modules.tokenizer import PictureStage, Tokenizer

_RATIO, _PLACES, _DROP, _NOISE = range(4)


class MaskGIT(PictureStage):
    """A bidirectional transformer that fills in the hidden codes of a picture, given the picture's embedding.

    Training hides a random share of the codes, ``max(cos(pi u / 2), min_mask_ratio)`` with u uniform, and predicts
    those. ``generate`` begins with all codes hidden and uncovers them in a few steps. A linear layer maps the embedding
    to position 0, where class-conditional MaskGIT has the class.

    Published values: ``width: 768, depth: 24, num_heads: 16, mlp_width: 3072, dropout: 0.01, label_smoothing: 0.1,
    min_mask_ratio: 0.5, lr: 5e-5, weight_decay: 0.01, schedule: linear``, one ratio for a batch (``mask_per: batch``),
    embeddings of length 1. One ratio for each sample, the default, has less variance. Beyond the paper: dropout of the
    condition with classifier-free guidance (Ho and Salimans 2022), noise on the condition, Halton order.

    Masks, dropped conditions and noise are a function of (seed, epoch, row), as in FmriMAE.

    Reference: Qian et al. (2023), LEA, section 3.3; Chang et al. (2022), MaskGIT, sections 3.1 and 3.2.

    Args:
        layout: Shape of the pictures and width of the embedding, linked from the datamodule.
        tokenizer: Checkpoint of the Tokenizer; ``run:<stage>`` on the command line is the finished run of that stage
            with the same data, people and name (``run:all/<stage>``: of all people). Its weights become part of this
            stage's checkpoint. None to take that of ``initialise_from``.
        width: Width of the tokens.
        depth: Blocks.
        num_heads: Attention heads.
        mlp_width: Width inside the MLP of a block.
        dropout: Dropout of embeddings and blocks.
        embedding_eps: Epsilon of the layer norm of the embeddings; None takes that of ``initialise_from``, else 1e-12
            as in MaskGIT (1e-5 in LEA's code).
        mask_per: Whether a mask ratio belongs to a ``sample`` or to a ``batch``.
        min_mask_ratio: Smallest share of codes that is hidden.
        label_smoothing: Share of the target that is spread over all codes.
        condition_dropout: Share of samples that are trained without their embedding.
        condition_noise: SD of Gaussian noise on the embedding while training, in units of its root mean square, for a
            decoder that is to see predicted embeddings.
        initialise_from: Checkpoint of a MaskGIT, such as ``neuroalign import-weights`` writes.
        order: Which codes a step of sampling keeps: those of most ``confidence``, or the next of a ``halton`` sequence.
        steps: T, steps of sampling.
        samples: S, pictures for each embedding.
        choice_temperature: Randomness of ``confidence``.
        guidance: Weight of classifier-free guidance.
        sampling_seed: Seed of the pictures.
        lr: Largest learning rate.
        weight_decay: Decoupled weight decay of matrices.
        warmup: Share of all steps over which the rate rises.
        schedule: ``constant``, ``cosine`` or ``linear``.
        compile: Compile the transformer in place.

    Raises:
        ContractError: Data without embeddings, shares outside 0..1, guidance without dropout of the condition, a
            tokenizer of another picture size, weights of another tokenizer or of other sizes.
    """

    provides: ClassVar[Mapping[str, frozenset[str]]] = {
        step: frozenset({"image", "generated", "confidence", "image_embedding"}) for step in ("test", "predict")
    }
    batch_keys = frozenset({"image", "embedding"})

    def __init__(
        self,
        layout: Layout,
        *,
        tokenizer: str | dict[str, Any] | None = None,
        width: int = 768,
        depth: int = 24,
        num_heads: int = 16,
        mlp_width: int = 3072,
        dropout: float = 0.01,
        embedding_eps: float | None = None,
        mask_per: Literal["sample", "batch"] = "sample",
        min_mask_ratio: float = 0.5,
        label_smoothing: float = 0.1,
        condition_dropout: float = 0.0,
        condition_noise: float = 0.0,
        initialise_from: str | None = None,
        order: Order = "confidence",
        steps: int = 11,
        samples: int = 5,
        choice_temperature: float = 4.5,
        guidance: float = 0.0,
        sampling_seed: int = 0,
        lr: float = 5e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.05,
        schedule: Schedule = "linear",
        compile: bool = False,
    ) -> None:
        optimiser = AdamW(lr=lr, weight_decay=weight_decay, betas=(0.9, 0.95), warmup=warmup, schedule=schedule)
        super().__init__(layout, optimiser=optimiser, compile=compile)
        self.save_hyperparameters()
        shares = {
            "dropout": dropout,
            "min_mask_ratio": min_mask_ratio,
            "label_smoothing": label_smoothing,
            "condition_dropout": condition_dropout,
        }
        wrong = {name: value for name, value in shares.items() if not 0 <= value <= 1}
        if wrong or condition_noise < 0:
            raise ContractError(
                f"shares must be in 0..1 and noise at least 0, found {shares | {'condition_noise': condition_noise}}"
            )
        if not layout["embedding_width"]:
            raise ContractError("MaskGIT needs embeddings of the pictures; choose --data.init_args.embedding.model")
        if num_heads < 1 or width % num_heads:
            raise ContractError(f"width must be a multiple of num_heads, found {width} and {num_heads}")
        if guidance and not condition_dropout:
            raise ContractError(f"guidance={guidance} needs a model trained with --model.init_args.condition_dropout")
        self.mask_per = mask_per
        self.min_mask_ratio = min_mask_ratio
        self.label_smoothing = label_smoothing
        self.condition_dropout = condition_dropout
        self.condition_noise = condition_noise
        self.sampler = SamplerOptions(
            order=order,
            steps=steps,
            samples=samples,
            temperature=choice_temperature,
            guidance=guidance,
            seed=sampling_seed,
        )
        self._initial = self._initial_checkpoint(initialise_from)
        if embedding_eps is None:
            embedding_eps = 1e-12 if self._initial is None else self._initial["hyper_parameters"]["embedding_eps"]
            self.hparams["embedding_eps"] = embedding_eps
        if tokenizer is None and self._initial is None:
            raise ContractError("MaskGIT needs a tokenizer: set --model.init_args.tokenizer to its checkpoint")
        self.tokenizer = self._tokenizer(tokenizer)
        self.side = self.tokenizer.side
        self.transformer = TokenTransformer(
            codes=self.tokenizer.codes,
            tokens=self.side**2,
            width=width,
            depth=depth,
            num_heads=num_heads,
            mlp_width=mlp_width,
            dropout=dropout,
            embedding_eps=embedding_eps,
        )
        self.condition = nn.Linear(layout["embedding_width"], width)
        self.no_condition = nn.Parameter(torch.zeros(width)) if condition_dropout else None

    def networks(self) -> Iterator[nn.Module]:
        """The transformer."""
        yield self.transformer

    def setup(self, stage: str) -> None:
        """Take over weights; a checkpoint that is resumed replaces them afterwards."""
        if stage == "fit" and self._initial is not None:
            self._take_over(self._initial)

    # ---- using -------------------------------------------------------------------------------------

    def generate(
        self, embedding: Float[Tensor, "b d"], stimulus: Int64[Tensor, " b"]
    ) -> tuple[UInt8[Tensor, "b s 3 h w"], Float[Tensor, "b s"]]:
        """Draw pictures for embeddings; no picture that was seen is needed.

        Args:
            embedding: Embeddings, known or predicted.
            stimulus: What the random numbers belong to: the same numbers give the same pictures in any batch.

        Returns:
            Pictures, and the confidence of each (mean log-probability of its codes).

        Raises:
            ContractError: Embeddings of another width, or that are no numbers.
        """
        if embedding.shape[-1] != self.condition.in_features:
            raise ContractError(
                f"MaskGIT was trained on embeddings of width {self.condition.in_features}, found "
                f"{embedding.shape[-1]}; give the --data.init_args.embedding it was trained with"
            )
        if not torch.isfinite(embedding).all():
            raise ContractError("embeddings are NaN or infinite, so there is no picture of them")
        # no picture is drawn with dropout, whoever asks
        training = self.transformer.training
        self.transformer.eval()
        sampled = sample_codes(
            self.transformer,
            self.condition(embedding),
            stimulus=stimulus,
            side=self.side,
            options=self.sampler,
            without=self.no_condition,
        )
        self.transformer.train(training)
        images = self.tokenizer.decode(rearrange(sampled.codes, "b s (i j) -> (b s) i j", i=self.side))
        return rearrange(images, "(b s) c h w -> b s c h w", b=len(embedding)), sampled.confidence

    def forward(self, batch: Batch) -> Output:
        """Draw pictures from the embeddings of a batch: the best that recordings could lead to.

        Returns:
            ``image (B, 3, H, W)``, ``generated (B, S, 3, H, W)``, ``confidence (B, S)``, ``image_embedding (B, D)`` and
            what every output carries on.
        """
        generated, confidence = self.generate(batch["embedding"], batch["stimulus"])
        return {
            "image": batch["image"],
            "generated": generated,
            "confidence": confidence,
            "image_embedding": batch["embedding"],
            **self.passed_through(batch),
        }

    # ---- training ----------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch: the mean over all its hidden codes, in all processes."""
        loss, hidden = self.code_loss(batch, seed=self._seed, epoch=1 + self.current_epoch, augment=True)
        total, count = loss.sum(), hidden.sum()
        # gradients are averaged over processes, whose hidden codes differ in number
        everywhere: Tensor = self.all_gather(count).sum() / self.trainer.world_size  # type: ignore[union-attr]
        mean = total / everywhere
        self.log("train/loss", mean, on_step=True, on_epoch=True, batch_size=len(batch["row"]), sync_dist=True)
        return mean

    def validation_step(self, batch: Batch, batch_idx: int) -> Output:
        """Add to the loss, under masks that are the same in every epoch; no picture is drawn."""
        self._add_loss("validation", batch)
        return self.passed_through(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Output:
        """Add to the loss, under the masks of ``validation_step``, and draw pictures."""
        self._add_loss("test", batch)
        return super().test_step(batch, batch_idx)

    def _add_loss(self, split: str, batch: Batch) -> None:
        loss, hidden = self.code_loss(batch)
        self.add_loss(f"{split}/loss", (loss.sum(dim=1) / hidden.sum(dim=1))[batch["row"] != PADDING])

    def code_loss(
        self, batch: Batch, *, seed: int = 0, epoch: int = 0, augment: bool = False
    ) -> tuple[Float[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """Cross-entropy of each code, 0 where it was not hidden, and which were.

        Args:
            batch: Pictures and their embeddings.
            seed: With ``epoch`` and ``row``, what masks and noise depend on.
            epoch: Epoch, from 1 while training.
            augment: Whether conditions are dropped and get noise.
        """
        row, embedding = batch["row"], batch["embedding"]
        with torch.no_grad():
            codes = rearrange(self.tokenizer.encode(batch["image"]), "b i j -> b (i j)")
        hidden = self.hidden_codes(row, seed=seed, epoch=epoch)
        if augment and self.condition_noise:
            noise = row_normal(row, embedding.shape[1], seed=seed, epoch=epoch, stream=_NOISE)
            size = embedding.square().mean(dim=1, keepdim=True).sqrt()
            embedding = embedding + self.condition_noise * size * noise
        condition = self.condition(embedding)
        if augment and self.no_condition is not None:
            dropped = row_uniform(row, 1, seed=seed, epoch=epoch, stream=_DROP) < self.condition_dropout
            condition = torch.where(dropped, self.no_condition.to(condition.dtype), condition)
        states = self.transformer(self.transformer.hide(codes, hidden), condition)
        logits = self.transformer.logits(states[hidden]).float()
        loss = F.cross_entropy(logits, codes[hidden], reduction="none", label_smoothing=self.label_smoothing)
        everywhere = torch.zeros(codes.shape, device=loss.device)
        return everywhere.masked_scatter(hidden, loss), hidden

    def hidden_codes(self, row: Int64[Tensor, " b"], *, seed: int, epoch: int) -> Bool[Tensor, "b n"]:
        """Which codes of each row of the data are hidden: at least one, ``floor(ratio N)``."""
        # a batch has the ratio of its first row
        source = row if self.mask_per == "sample" else row[:1].expand_as(row)
        u = row_uniform(source, 1, seed=seed, epoch=epoch, stream=_RATIO)
        n = self.side**2
        ratio = torch.cos(u * math.pi / 2).clamp(min=self.min_mask_ratio)
        count = (ratio * n).floor().clamp(min=1)
        place = row_uniform(row, n, seed=seed, epoch=epoch, stream=_PLACES).argsort(dim=1).argsort(dim=1)
        chosen: Tensor = place < count
        return chosen

    # ---- checkpoints -------------------------------------------------------------------------------

    def _initial_checkpoint(self, path: str | None) -> dict[str, Any] | None:
        # a checkpoint of this stage holds the weights; the file is not asked for again
        self.hparams["initialise_from"] = None
        if path is None:
            return None
        checkpoint = load_stage(Path(path), argument="initialise_from", stage="MaskGIT")
        self.lineage += checkpoint["lineage"]
        return checkpoint

    def _tokenizer(self, source: str | dict[str, Any] | None) -> Tokenizer:
        prefix = "tokenizer."
        if source is not None:
            tokenizer = self.earlier_stage(Tokenizer, source, argument="tokenizer")
        else:
            assert self._initial is not None
            arguments = self._initial["hyper_parameters"]["tokenizer"]
            tokenizer = self.earlier_stage(Tokenizer, arguments, argument="tokenizer")
            state = self._initial["state_dict"]
            tokenizer.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
            self.hparams["tokenizer"] = arguments
        if tokenizer.layout["image_shape"] != self.layout["image_shape"]:
            raise ContractError(
                f"the tokenizer was made for pictures of {tokenizer.layout['image_shape']}, the data have "
                f"{self.layout['image_shape']}; set --data.init_args.views.size, or train it on these data"
            )
        return tokenizer

    def _take_over(self, checkpoint: Mapping[str, Any]) -> None:
        state, mine = checkpoint["state_dict"], self.state_dict()
        if checkpoint["hyper_parameters"]["num_heads"] != self.hparams["num_heads"]:
            raise ContractError(
                f"initialise_from has num_heads={checkpoint['hyper_parameters']['num_heads']}, this run "
                f"{self.hparams['num_heads']}, and the same weights would compute something else"
            )
        other = [k for k in mine if k.startswith("tokenizer.") and (k not in state or not _same(mine[k], state[k]))]
        if other:
            raise ContractError(
                f"initialise_from was trained on the codes of another tokenizer ({len(other)} of its weights differ, "
                f"the first is {other[0]}); leave out --model.init_args.tokenizer to use its own"
            )
        fits = {name: value for name, value in state.items() if name in mine and mine[name].shape == value.shape}
        missing = [name for name in mine if name.startswith("transformer.") and name not in fits]
        if missing:
            raise ContractError(
                f"the transformer of initialise_from is another one: {len(missing)} weights differ, the first is "
                f"{missing[0]}; give the sizes that it was trained with"
            )
        self.load_state_dict(fits, strict=False)
        rank_zero_info(f"initialise_from: took over {len(fits)} of {len(mine)} weights; the rest begins anew")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.cpu(), b.cpu())
