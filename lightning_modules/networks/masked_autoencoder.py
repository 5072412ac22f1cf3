"""MaskedAutoencoder: a transformer over tokens of fMRI, with one vector or all tokens as its latent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int64
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lightning_modules.networks.brain_tokens import BrainTokens

Latent = Literal["cls", "tokens"]


class Transformer(nn.Module):
    """Pre-norm blocks (Dosovitskiy et al. 2021) and a last normalisation; attention is PyTorch's fused one.

    Args:
        width: Width of the tokens.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLPs relative to ``width``.
    """

    def __init__(self, width: int, *, depth: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(width, num_heads, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Return the tokens after all blocks."""
        for block in self.blocks:
            tokens = block(tokens)
        normalised: Tensor = self.norm(tokens)
        return normalised


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder over tokens of one kind.

    With ``latent="cls"`` the decoder sees nothing but the class token (LEA), optionally through a linear map of
    its own (the published code; the paper has none). With ``latent="tokens"`` it sees every token that was not
    hidden (He et al. 2022; MinD-Vis).

    Args:
        tokens: From signals to tokens and back.
        latent: What the decoder sees.
        latent_width: Width of the linear map on the class token; None for no such map.
        width: D of the encoder.
        depth: Blocks of the encoder.
        num_heads: Attention heads of the encoder.
        decoder_width: Width of the decoder.
        decoder_depth: Blocks of the decoder.
        decoder_num_heads: Attention heads of the decoder.
        mlp_ratio: Hidden width of all MLPs relative to the width.
        alike: Whether attention begins between tokens that are alike (``_attend_to_alike``).
    """

    def __init__(
        self,
        tokens: BrainTokens,
        *,
        latent: Latent,
        latent_width: int | None,
        width: int,
        depth: int,
        num_heads: int,
        decoder_width: int,
        decoder_depth: int,
        decoder_num_heads: int,
        mlp_ratio: float,
        alike: bool = False,
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.latent = latent
        self.width = width
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_width))
        self.encoder = Transformer(width, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio)
        self.to_latent = nn.Linear(width, latent_width) if latent_width is not None else nn.Identity()
        self.from_latent = nn.Linear(latent_width or width, decoder_width)
        self.decoder = Transformer(decoder_width, depth=decoder_depth, num_heads=decoder_num_heads, mlp_ratio=mlp_ratio)
        self._make_positions()
        self.apply(_initialise)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        if alike:
            _attend_to_alike(self.encoder)
            _attend_to_alike(self.decoder)

    def order_regions(self, names: Sequence[str]) -> None:
        """Number the regions of these names first, as a checkpoint has them (``BrainTokens.order_regions``)."""
        self.tokens.order_regions(names)
        self._make_positions()

    def _make_positions(self) -> None:
        # computed, not learned, so checkpoints need not hold them
        for name, width in (("positions", self.width), ("decoder_positions", self.from_latent.out_features)):
            table = sine_positions(self.tokens.table, width)
            self.register_buffer(name, table.to(self.cls_token.device), persistent=False)

    def encode(
        self, numbers: Float[Tensor, "b n"], subject: Int64[Tensor, " b"], keep: Int64[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b t w"]:
        """Encode signals.

        Args:
            numbers: Flattened signals of people of one layout (``BrainTokens.flatten``).
            subject: Person of each sample.
            keep: Tokens that the encoder sees, in this order; None for all.

        Returns:
            The latent, ``(B, 1, W)`` for ``cls``, or the class token and all tokens seen, ``(B, 1 + K, D)``.
        """
        rows = self.tokens.rows[int(subject[0])].to(numbers.device)
        tokens = self.tokens.embed(numbers, subject) + self.get_buffer("positions")[1 + rows]
        if keep is not None:
            tokens = tokens.gather(1, repeat(keep, "b k -> b k d", d=tokens.shape[2]))
        # row 0 of the table is zero: the class token has no position
        first = self.cls_token.expand(len(tokens), -1, -1).to(tokens.dtype)
        encoded = self.encoder(torch.cat([first, tokens], dim=1))
        latent: Tensor = self.to_latent(encoded[:, :1]) if self.latent == "cls" else encoded
        return latent

    def decode(
        self,
        latent: Float[Tensor, "b t w"],
        subject: Int64[Tensor, " b"],
        keep: Int64[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b n"]:
        """Decode what ``encode`` gave, with the same ``keep``, to flattened signals."""
        rows = self.tokens.rows[int(subject[0])].to(latent.device)
        seen = self.from_latent(latent)
        tokens = self.mask_token.to(seen.dtype).expand(len(seen), len(rows), -1)
        if self.latent == "tokens":
            if keep is None:
                tokens = seen[:, 1:]
            else:
                tokens = tokens.scatter(1, repeat(keep, "b k -> b k e", e=seen.shape[2]), seen[:, 1:])
        tokens = tokens + self.get_buffer("decoder_positions")[1 + rows]
        place = self.tokens.decoder_place(int(subject[0]))
        tokens = tokens if place is None else tokens + place
        decoded = self.decoder(torch.cat([seen[:, :1], tokens], dim=1))[:, 1:]
        return self.tokens.reconstruct(decoded, subject)

    def latent_shape(self, person: int) -> tuple[int, int]:
        """Shape of one sample's latent where nothing is hidden."""
        if self.latent == "cls":
            return 1, self.from_latent.in_features
        return 1 + len(self.tokens.rows[person]), self.width


def sine_positions(length: int, width: int) -> Float[Tensor, "rows d"]:
    """Fixed positions, sines then cosines of 10000^(-2i/D) p, after a row of zeros for the class token.

    Vaswani et al. (2017), section 3.5, in the arrangement of He et al. (2022).
    """
    frequency = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    table = torch.cat([angle.sin(), angle.cos()], dim=1)
    return torch.cat([torch.zeros(1, table.shape[1], dtype=torch.float64), table]).float()


def tokens_to_keep(noise: Float[Tensor, "b l"], mask_ratio: float) -> Int64[Tensor, "b k"]:
    """Choose the tokens of least noise, so that ``mask_ratio`` of them are hidden, as many in every sample."""
    return noise.argsort(dim=1, stable=True)[:, : _kept(noise.shape[1], mask_ratio)]


def segments_to_keep(start: Float[Tensor, "b r"], steps: int, mask_ratio: float) -> Int64[Tensor, "b k"]:
    """Hide one run of consecutive time steps in every region, which may go on at the beginning.

    Args:
        start: Where each region's hidden run begins, as a share of the steps, in [0, 1).
        steps: Time steps of each region.
        mask_ratio: Share of the steps to hide.
    """
    first = (start * steps).long()
    kept = _kept(steps, mask_ratio)
    hidden = steps - kept
    step = (first[..., None] + hidden + torch.arange(kept, device=start.device)) % steps
    region = torch.arange(start.shape[1], device=start.device) * steps
    return rearrange(step + region[:, None], "b r k -> b (r k)")


def hidden_tokens(keep: Int64[Tensor, "b k"], length: int) -> Float[Tensor, "b l"]:
    """Return 1 for hidden tokens and 0 for those kept."""
    return torch.ones(len(keep), length, device=keep.device).scatter(1, keep, 0.0)


def _kept(length: int, mask_ratio: float) -> int:
    # 10 * (1 - 0.8) is not quite 2
    return max(1, min(length - 1, int(length * (1 - mask_ratio) + 1e-6)))


def _attend_to_alike(transformer: Transformer) -> None:
    """Begin with keys equal to queries, so that tokens attend to those that are like them.

    After Trockman & Kolter (2023), Mimetic initialization of self-attention layers. Among hundreds of regions,
    attention that begins at random takes thousands of steps to find a region's own past.
    """
    for block in transformer.blocks:
        query, key, _ = block.get_parameter("attn.qkv.weight").detach().chunk(3)
        query.mul_(2)
        key.copy_(query)


def _initialise(module: nn.Module) -> None:
    """As published by LEA and MinD-Vis: Xavier for linear layers, a small normal for convolutions, biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    elif isinstance(module, nn.Conv1d):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear | nn.Conv1d) and module.bias is not None:
        nn.init.zeros_(module.bias)
