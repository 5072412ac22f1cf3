"""Random numbers that belong to a row of the data: the same on any device, batch and number of processes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_GOLDEN, _MIX_1, _MIX_2 = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def row_uniform(row: Int64[Tensor, " b"], n: int, *, seed: int, epoch: int, stream: int = 0) -> Float[Tensor, "b n"]:
    """Uniform numbers in [0, 1), a pure function of (seed, epoch, stream, row, position), float32.

    A counter hashed by the finaliser of splitmix64 (Steele, Lea & Flood 2014), in wrapping 64-bit integers, so that
    no generator has a state to keep and no sample waits for another one.

    Args:
        row: Row of each sample.
        n: Numbers for each.
        seed: Seed of the run.
        epoch: Epoch.
        stream: Which of several uses within a step.
    """
    signed = (seed + 2**63) % 2**64 - 2**63
    key = torch.full((), signed, dtype=torch.int64, device=row.device)
    for part in (torch.full_like(key, epoch), torch.full_like(key, stream), row[:, None]):
        key = _hash(key + part * _GOLDEN + _GOLDEN)
    bits = _hash(key + torch.arange(1, n + 1, device=row.device) * _GOLDEN)
    return _shift(bits, 40).float() * 2.0**-24


def row_normal(row: Int64[Tensor, " b"], n: int, *, seed: int, epoch: int, stream: int = 0) -> Float[Tensor, "b n"]:
    """Standard normal numbers by the same rule (Box & Muller 1958)."""
    radius, angle = row_uniform(row, 2 * n, seed=seed, epoch=epoch, stream=stream).chunk(2, dim=1)
    return torch.sqrt(-2 * torch.log1p(-radius)) * torch.cos(2 * torch.pi * angle)


def _hash(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    hashed: Tensor = z ^ _shift(z, 31)
    return hashed


def _shift(z: Tensor, places: int) -> Tensor:
    """Shift to the right with zeros from the left."""
    shifted: Tensor = (z >> places) & (2 ** (64 - places) - 1)
    return shifted
