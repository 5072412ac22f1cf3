"""Image tokenizers: pictures as a grid of discrete codes, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

from contracts import ContractError
from lightning_modules.networks.maskgit_vqgan import MaskGitVQGAN


@runtime_checkable
class ImageTokenizer(Protocol):
    """What a picture is turned into before a transformer sees it, in two methods.

    Attributes:
        codes: Number of different codes.
        factor: Pixels along a side for which one code stands.
    """

    codes: int
    factor: int

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Int64[Tensor, "b i j"]:
        """Codes of pictures in 0..1, each below ``codes``."""

    def decode(self, codes: Int64[Tensor, "b i j"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in 0..1."""


class FiniteScalarQuantizer(nn.Module):
    """A codebook that is a grid: every dimension of a vector is rounded to one of a few levels.

    Nothing is learned, so no code can die, and there is nothing to keep equal between processes. The gradient passes
    through the rounding.

    Reference: Mentzer et al. (2024), Finite scalar quantization: VQ-VAE made simple, section 3.1 and appendix A.

    Args:
        levels: Levels of each dimension; their product is the number of codes.

    Raises:
        ContractError: No dimension, or fewer than 2 levels.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ContractError(f"levels must be numbers of at least 2, found {list(levels)}")
        self.levels: Tensor
        self.basis: Tensor
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        basis = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    def forward(self, vectors: Float[Tensor, "b i j d"]) -> Float[Tensor, "b i j d"]:
        """Round ``(..., d)`` to the grid in -1..1, with the gradient of the unrounded values."""
        bounded = self._bounded(vectors)
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / (self.levels // 2)

    def codes(self, vectors: Float[Tensor, "b i j d"]) -> Int64[Tensor, "b i j"]:
        """Number of the grid point of each vector."""
        digits = self._bounded(vectors).round().long() + self.levels // 2
        return (digits * self.basis).sum(dim=-1)

    def vectors(self, codes: Int64[Tensor, "b i j"]) -> Float[Tensor, "b i j d"]:
        """Grid point of each number, what ``forward`` gives for the vectors that have it."""
        digits = codes[..., None] // self.basis % self.levels
        return (digits - self.levels // 2) / (self.levels // 2)

    def _bounded(self, vectors: Tensor) -> Tensor:
        """Squash to the range that is rounded to exactly ``levels`` integers."""
        half = (self.levels - 1) * (1 + 1e-3) / 2
        # an even number of levels has no middle one: shifted by half a level, so that zero stays zero
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        shift = torch.atanh(offset / half)
        return torch.tanh(vectors + shift) * half - offset


class FSQAutoencoder(nn.Module):
    """A small convolutional autoencoder with a grid of codes in the middle, which trains on a CPU in minutes.

    The first level reduces the side by ``stem``, every further one halves it: a stem of 2 and two widths make 7 x 7
    codes of a picture of 28 x 28.

    Args:
        widths: Channels of each level.
        stem: Pixels along a side for which one place of the first level stands.
        levels: Levels of each dimension of a code; their product is the number of codes.
        blocks: Residual blocks of each level, on either side.

    Raises:
        ContractError: No level, or a stem below 2 or odd.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (48, 96),
        stem: int = 2,
        levels: Sequence[int] = (8, 6, 5),
        blocks: int = 1,
    ) -> None:
        super().__init__()
        if not widths or stem < 2 or stem % 2:
            raise ContractError(
                f"widths must name the channels of at least one level and stem be even, found {list(widths)} and {stem}"
            )
        self.codes = math.prod(levels)
        self.factor = stem * 2 ** (len(widths) - 1)
        self.quantizer = FiniteScalarQuantizer(levels)
        down: list[nn.Module] = []
        width = 3
        for number, wider in enumerate(widths):
            stride = 2 if number else stem
            down += [nn.Conv2d(width, wider, kernel_size=stride + 2, stride=stride, padding=1)]
            down += [_Residual(wider) for _ in range(blocks)]
            width = wider
        self.encoder = nn.Sequential(*down, _norm(width), nn.SiLU(), nn.Conv2d(width, len(levels), kernel_size=1))
        up: list[nn.Module] = [nn.Conv2d(len(levels), width, kernel_size=3, padding=1)]
        for narrower in widths[-2::-1]:
            up += [_Residual(width) for _ in range(blocks)]
            # sub-pixel convolution: one convolution makes the four pixels of each place (Shi et al. 2016)
            up += [nn.Conv2d(width, 4 * narrower, kernel_size=3, padding=1), nn.PixelShuffle(2)]
            width = narrower
        up += [*(_Residual(width) for _ in range(blocks)), _norm(width), nn.SiLU()]
        self.decoder = nn.Sequential(
            *up, nn.Conv2d(width, 3 * stem**2, kernel_size=3, padding=1), nn.PixelShuffle(stem)
        )

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Reconstruct pictures in 0..1, not cut to that range."""
        return self._from_vectors(self.quantizer(self._vectors(images)))

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Int64[Tensor, "b i j"]:
        """Codes of pictures in 0..1."""
        codes: Tensor = self.quantizer.codes(self._vectors(images))
        return codes

    def decode(self, codes: Int64[Tensor, "b i j"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in 0..1."""
        images: Tensor = self._from_vectors(self.quantizer.vectors(codes)).clamp(0, 1)
        return images

    def _vectors(self, images: Tensor) -> Tensor:
        vectors: Tensor = rearrange(self.encoder(2 * images - 1), "b d i j -> b i j d")
        return vectors

    def _from_vectors(self, vectors: Tensor) -> Tensor:
        dtype = next(self.decoder.parameters()).dtype
        images: Tensor = self.decoder(rearrange(vectors.to(dtype), "b i j d -> b d i j"))
        return (images + 1) / 2


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _norm(width),
            nn.SiLU(),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            _norm(width),
            nn.SiLU(),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.layers(x)
        return y


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(width, 8), width)


def build_tokenizer(architecture: str, options: dict[str, Any]) -> FSQAutoencoder | MaskGitVQGAN:
    """Return a tokenizer by the name of its architecture.

    Args:
        architecture: ``fsq`` or ``maskgit_vqgan``.
        options: Arguments of its class.

    Raises:
        ContractError: An unknown architecture, or options that it does not have.
    """
    kinds = {"fsq": FSQAutoencoder, "maskgit_vqgan": MaskGitVQGAN}
    if architecture not in kinds:
        raise ContractError(f"architecture must be one of {', '.join(kinds)}, found {architecture!r}")
    try:
        network: FSQAutoencoder | MaskGitVQGAN = kinds[architecture](**options)
    except TypeError as error:
        raise ContractError(
            f"--model.init_args.options do not fit {architecture}: {error}; see {kinds[architecture].__name__}"
        ) from error
    return network
