"""ImageText: a small CLIP of our own, for an image space without downloads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from contracts import Batch, ContractError, Gallery, Layout, Output
from lightning_modules.networks.infonce import InfoNCE
from lightning_modules.stage import AdamW, GradientStage, Schedule

MAX_SCALE = 100.0
"""Largest 1 / temperature, as in CLIP."""


class ImageText(GradientStage):
    """An open_clip model trained on pictures and captions with CLIP's symmetric InfoNCE.

    The model is open_clip's own class, so what is learned here can be used wherever a published CLIP can
    (``callbacks.OpenClipFolder`` writes it in open_clip's format). Zero-shot classification compares a picture with
    the mean embedding of several sentences about each class.

    Reference: Radford et al. (2021), Learning transferable visual models from natural language supervision,
    figure 3 (loss) and section 3.1.4 (prompt ensembles).

    Args:
        layout: Shape of the pictures and names of the classes, linked from the datamodule.
        embed_dim: D of the shared space.
        vision_cfg: Image tower, as open_clip's ``CLIPVisionCfg``; ``image_size`` comes from the layout.
        text_cfg: Text tower, as open_clip's ``CLIPTextCfg``; ``context_length`` comes from the layout.
        templates: Sentences about a class, with ``{}`` in place of its name.
        mean: Mean of R, G and B (0..1) that is taken off a picture.
        std: SD of R, G and B by which it is divided.
        temperature: Temperature at the start; learned as exp.
        lr: Largest learning rate.
        weight_decay: Decoupled weight decay of matrices.
        warmup: Share of all steps over which the rate rises.
        schedule: ``constant``, ``cosine`` or ``linear``.
        compile: Compile the model in place.

    Raises:
        ContractError: Towers that open_clip does not know, pictures that are not square, templates without ``{}``.
    """

    provides: ClassVar = {
        step: frozenset({"image_embedding", "text_embedding"}) for step in ("validation", "test", "predict")
    }
    batch_keys = frozenset({"image", "tokens"})

    def __init__(
        self,
        layout: Layout,
        *,
        embed_dim: int,
        vision_cfg: dict[str, Any],
        text_cfg: dict[str, Any],
        templates: Sequence[str] = ("a picture of a {}", "a {} on a background", "there is a {}"),
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.25, 0.25, 0.25),
        temperature: float = 0.07,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        warmup: float = 0.1,
        schedule: Schedule = "cosine",
        compile: bool = False,
    ) -> None:
        optimiser = AdamW(lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98), warmup=warmup, schedule=schedule)
        super().__init__(layout, optimiser=optimiser, compile=compile)
        self.save_hyperparameters()
        if layout["modality"] != "image":
            raise ContractError(
                f"ImageText is trained on pictures with captions, this data set holds {layout['modality']}; use "
                "configs/data/phantom_pictures.yaml"
            )
        [(_, height, width)] = layout["shape"].values()
        if height != width or not all("{}" in template for template in templates):
            raise ContractError(
                f"pictures must be square, found {height} x {width}, and templates hold {{}}, found {list(templates)}"
            )
        self.templates = tuple(templates)
        self.config: dict[str, Any] = {
            "model_cfg": {
                "embed_dim": embed_dim,
                "vision_cfg": {"image_size": height, **vision_cfg},
                "text_cfg": {"context_length": int(layout["preparation"]["context_length"]), **text_cfg},
            },
            "preprocess_cfg": {"mean": list(mean), "std": list(std)},
        }
        self.clip = _build(self.config["model_cfg"])
        # convolutions on a CPU are about 1.5 times as fast in this order
        self.clip.get_submodule("visual").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # the loss has the temperature that is learned
        self.clip.get_parameter("logit_scale").requires_grad_(False)
        self.loss = InfoNCE(temperature=temperature, max_scale=MAX_SCALE)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def networks(self) -> Iterator[nn.Module]:
        """Both towers; the model itself is never called."""
        yield self.clip.get_submodule("visual")
        yield self.clip.get_submodule("transformer")

    def encode_image(self, image: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Embed pictures, not normalised."""
        pixels = (image.float() / 255 - self.get_buffer("mean")) / self.get_buffer("std")
        embedding: Tensor = self.clip.encode_image(pixels.contiguous(memory_format=torch.channels_last))  # type: ignore[operator]
        return embedding

    def encode_text(self, tokens: Tensor) -> Float[Tensor, "b d"]:
        """Embed captions given as tokens ``(B, L)``, not normalised."""
        embedding: Tensor = self.clip.encode_text(tokens)  # type: ignore[operator]
        return embedding

    def forward(self, batch: Batch) -> Output:
        """Embed the pictures and captions of a batch.

        Returns:
            ``image_embedding`` and ``text_embedding (B, D)`` and what every output carries on.
        """
        return {
            "image_embedding": self.encode_image(batch["image"]),
            "text_embedding": self.encode_text(batch["tokens"]),
            **self.passed_through(batch),
        }

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        output = self(batch)
        loss: Tensor = self.loss(
            output["image_embedding"],
            output["text_embedding"],
            stimulus=_same_captions(batch["tokens"]),
            label=output["label"],
        )
        self.log("train/loss", loss, on_step=True, on_epoch=True, batch_size=len(batch["row"]), sync_dist=True)
        return loss

    @torch.no_grad()
    def galleries(self) -> Mapping[str, Gallery]:
        """The classes as texts: the mean of the unit embeddings of all templates, for zero-shot classification."""
        import open_clip

        names = self.layout["classes"]
        length = self.config["model_cfg"]["text_cfg"]["context_length"]
        tokenize = open_clip.get_tokenizer("ViT-B-32", context_length=length)
        per_template = [
            F.normalize(self.encode_text(tokenize([text.format(name) for name in names]).to(self.device)), dim=-1)
            for text in self.templates
        ]
        classes = torch.arange(len(names))
        return {"text": Gallery(torch.stack(per_template).mean(dim=0).cpu(), classes, classes, "text")}

    def open_clip_folder(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what open_clip needs: its configuration, and the weights among those of a checkpoint."""
        weights = {name.removeprefix("clip."): value for name, value in state.items() if name.startswith("clip.")}
        return self.config, {**weights, "logit_scale": state["loss.logit_scale"].clamp(max=math.log(MAX_SCALE))}


def _same_captions(tokens: Int64[Tensor, "b l"]) -> Int64[Tensor, " b"]:
    """A number for each caption, the same for equal ones in any process: pictures that share one are no negatives."""
    weights = torch.randint(-(2**62), 2**62, tokens.shape[1:], generator=torch.Generator().manual_seed(0))
    return (tokens * weights.to(tokens.device)).sum(dim=1)


def _build(config: Mapping[str, Any]) -> nn.Module:
    import open_clip

    try:
        model: nn.Module = open_clip.model.CLIP(**config)
    # a timm tower that does not exist is a RuntimeError, a name that open_clip does not know a TypeError
    except (TypeError, RuntimeError, AssertionError, ValueError) as error:
        raise ContractError(
            f"open_clip cannot build this model ({error}); change --model.init_args.vision_cfg or text_cfg"
        ) from error
    return model
