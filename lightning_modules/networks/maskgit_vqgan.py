"""The tokenizer of MaskGIT: a VQGAN without attention, exact in its quirks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

from contracts import ContractError


class MaskGitVQGAN(nn.Module):
    """Pictures of 256 x 256 as 16 x 16 codes from 1024, as in the published weights.

    Quirks that the published weights rely on: pictures in 0..1; no attention; where a residual block changes the
    number of channels, its 1 x 1 shortcut is applied to the output of the block instead of its input.

    Reference: Chang et al. (2022), MaskGIT: Masked generative image transformer, section 4.1 and its code; Esser et
    al. (2021), Taming transformers, for the architecture.

    Args:
        width: Channels of the first level.
        multipliers: Channels of each level, times ``width``; all levels but the last halve the side.
        blocks: Residual blocks of a level.
        codes: Number of codes.
        code_width: Length of a code's vector.
        norm_eps: Epsilon of the group norms: 1e-5 in the ports to PyTorch, 1e-6 in the original.

    Raises:
        ContractError: Channels that 32 groups do not divide.
    """

    def __init__(
        self,
        *,
        width: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        codes: int = 1024,
        code_width: int = 256,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if width % 32 or not multipliers:
            raise ContractError(
                f"width must be a multiple of 32 and multipliers not empty, found {width}, {multipliers}"
            )
        self.codes = codes
        self.factor = 2 ** (len(multipliers) - 1)
        widths = [width * m for m in multipliers]
        self.encoder = _Encoder(widths, blocks=blocks, code_width=code_width, eps=norm_eps)
        self.decoder = _Decoder(widths, blocks=blocks, code_width=code_width, eps=norm_eps)
        self.codebook = nn.Embedding(codes, code_width)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, Tensor]:
        """Reconstruct pictures in 0..1, with the gradient passed through the codes.

        Returns:
            Pictures, not cut to 0..1, and the loss of the codebook with its commitment, a scalar (van den Oord et al.
            2017, eq. 3, commitment 0.25).
        """
        vectors = self.encoder(images)
        nearest = rearrange(self.codebook(self._nearest(vectors)), "b i j d -> b d i j")
        loss = F.mse_loss(nearest, vectors.detach()) + 0.25 * F.mse_loss(vectors, nearest.detach())
        return self.decoder(vectors + (nearest - vectors).detach()), loss

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Int64[Tensor, "b i j"]:
        """Codes of pictures in 0..1: the nearest in the codebook by squared distance."""
        return self._nearest(self.encoder(images))

    def decode(self, codes: Int64[Tensor, "b i j"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in 0..1."""
        images: Tensor = self.decoder(rearrange(self.codebook(codes), "b i j d -> b d i j"))
        return images.clamp(0, 1)

    def _nearest(self, vectors: Float[Tensor, "b d i j"]) -> Int64[Tensor, "b i j"]:
        flat = rearrange(vectors, "b d i j -> (b i j) d")
        book = self.codebook.weight
        distance = flat.square().sum(dim=1, keepdim=True) + book.square().sum(dim=1) - 2 * flat @ book.T
        height, width = vectors.shape[-2:]
        return rearrange(distance.argmin(dim=1), "(b i j) -> b i j", i=height, j=width)


class _Encoder(nn.Module):
    def __init__(self, widths: Sequence[int], *, blocks: int, code_width: int, eps: float) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], kernel_size=3, padding=1, bias=False)
        steps = list(pairwise((widths[0], *widths)))
        self.levels = nn.ModuleList(_level(a, b, blocks, eps) for a, b in steps)
        self.middle = _level(widths[-1], widths[-1], 2, eps)
        self.norm_out = nn.GroupNorm(32, widths[-1], eps)
        self.conv_out = nn.Conv2d(widths[-1], code_width, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for number, level in enumerate(self.levels):
            x = F.avg_pool2d(level(x), 2) if number < len(self.levels) - 1 else level(x)
        y: Tensor = self.conv_out(F.silu(self.norm_out(self.middle(x))))
        return y


class _Decoder(nn.Module):
    """The levels in the order in which they run, from the smallest picture on."""

    def __init__(self, widths: Sequence[int], *, blocks: int, code_width: int, eps: float) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(code_width, widths[-1], kernel_size=3, padding=1)
        self.middle = _level(widths[-1], widths[-1], 2, eps)
        steps = list(pairwise((widths[-1], *widths[::-1])))
        self.levels = nn.ModuleList(_level(a, b, blocks, eps) for a, b in steps)
        self.enlarge = nn.ModuleList(nn.Conv2d(b, b, kernel_size=3, padding=1) for _, b in steps[:-1])
        self.norm_out = nn.GroupNorm(32, widths[0], eps)
        self.conv_out = nn.Conv2d(widths[0], 3, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.conv_in(x))
        for number, level in enumerate(self.levels):
            x = level(x)
            if number < len(self.enlarge):
                x = self.enlarge[number](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        y: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return y


def _level(width: int, wider: int, blocks: int, eps: float) -> nn.Sequential:
    return nn.Sequential(*(_Residual(width if number == 0 else wider, wider, eps) for number in range(blocks)))


class _Residual(nn.Module):
    def __init__(self, width: int, wider: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(32, width, eps)
        self.conv1 = nn.Conv2d(width, wider, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(32, wider, eps)
        self.conv2 = nn.Conv2d(wider, wider, kernel_size=3, padding=1, bias=False)
        self.shortcut = None if width == wider else nn.Conv2d(wider, wider, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        # sic: the shortcut sees the output of the block
        return y + (x if self.shortcut is None else self.shortcut(y))
