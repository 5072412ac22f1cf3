"""A linear map of every region's own, for any number of regions in one matrix product."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class RegionInput(nn.Module):
    """One linear map a region from its voxels in P volumes to a token.

    Args:
        sizes: Voxels of each region.
        patch_size: Volumes of a token (P).
        width: Width of the tokens.
    """

    def __init__(self, sizes: list[int], patch_size: int, width: int) -> None:
        super().__init__()
        self.place, largest = _places(sizes), max(sizes)
        self.weight = nn.Parameter(_blocks(sizes, largest, patch_size, width))
        self.bias = nn.Parameter(torch.zeros(len(sizes), width))
        self.shape = (len(sizes), largest)

    def forward(self, signal: Float[Tensor, "b v s p"]) -> Float[Tensor, "b r s d"]:
        """Return ``(B, R, S, D)`` tokens of ``(B, V, S, P)`` signals."""
        regions, largest = self.shape
        padded = signal.new_zeros(len(signal), regions * largest, *signal.shape[2:])
        padded = padded.index_copy(1, self.place.to(signal.device), signal)
        padded = rearrange(padded, "b (r v) s p -> b r s (v p)", r=regions)
        return torch.einsum("brsi,rio->brso", padded, self.weight) + self.bias[:, None]


class RegionOutput(nn.Module):
    """One linear map a region from a token to its voxels in P volumes.

    Args:
        sizes: Voxels of each region.
        patch_size: Volumes of a token (P).
        width: Width of the tokens.
    """

    def __init__(self, sizes: list[int], patch_size: int, width: int) -> None:
        super().__init__()
        self.place, largest = _places(sizes), max(sizes)
        self.weight = nn.Parameter(_blocks(sizes, largest, patch_size, width).transpose(1, 2).contiguous())
        self.bias = nn.Parameter(torch.zeros(len(sizes), largest * patch_size))
        self.patch_size = patch_size

    def forward(self, tokens: Float[Tensor, "b r s e"]) -> Float[Tensor, "b v s p"]:
        """Return ``(B, V, S, P)`` signals of ``(B, R, S, E)`` tokens."""
        padded = torch.einsum("brse,reo->brso", tokens, self.weight) + self.bias[:, None]
        padded = rearrange(padded, "b r s (v p) -> b (r v) s p", p=self.patch_size)
        return padded.index_select(1, self.place.to(tokens.device))


def _places(sizes: list[int]) -> Tensor:
    """Where the voxels stand among regions that are padded to the largest."""
    padded = np.arange(max(sizes)) < np.array(sizes)[:, None]
    return torch.from_numpy(np.flatnonzero(padded))


def _blocks(sizes: list[int], largest: int, patch_size: int, width: int) -> Tensor:
    """Weights ``(R, largest * P, width)``, drawn as those of a linear layer; equal at first for regions of one size.

    What attention learns about one region then holds for all from the beginning.
    """
    weight = torch.zeros(len(sizes), largest * patch_size, width)
    drawn = {size: nn.init.xavier_uniform_(torch.empty(size * patch_size, width)) for size in dict.fromkeys(sizes)}
    for region, size in zip(weight, sizes, strict=True):
        region[: size * patch_size] = drawn[size]
    return weight
