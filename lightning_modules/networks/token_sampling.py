"""Sampling of pictures as codes: from all hidden to none in a few steps, the same for any batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int64
from torch import Tensor

from contracts import ContractError
from lightning_modules.networks.row_random import row_uniform
from lightning_modules.networks.token_transformer import TokenTransformer

Order = Literal["confidence", "halton"]


@dataclass(frozen=True)
class SamplerOptions:
    """How codes are drawn.

    Attributes:
        order: Which codes are kept at a step: the most ``confidence`` ones (Chang et al. 2022, section 3.2), or those
            next in a ``halton`` sequence, which spreads them over the picture and makes no mistake of confidence
            (Besnier et al. 2025, Halton scheduler for masked generative image transformers).
        steps: T, steps from all hidden to none.
        samples: S, pictures for each condition.
        temperature: Of the choice of what is kept (``confidence``): Gumbel noise of this size, which falls to zero
            with the steps, is added to the log-probabilities.
        guidance: Weight w of classifier-free guidance, ``l + w (l - l without condition)``, growing from w / T to w
            with the steps; 0 for none. The model must have been trained with ``condition_dropout``.
        seed: Seed of the samples.

    Raises:
        ContractError: No step or sample, or a negative temperature or guidance.
    """

    order: Order = "confidence"
    steps: int = 11
    samples: int = 5
    temperature: float = 4.5
    guidance: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.samples < 1 or not (self.temperature >= 0 and self.guidance >= 0):
            raise ContractError(
                "steps and samples must be at least 1, temperature and guidance at least 0, found "
                f"{self}; change --model.init_args"
            )


@dataclass(frozen=True)
class Sampled:
    """Drawn codes.

    Attributes:
        codes: ``(B, S, N)`` int64.
        confidence: ``(B, S)`` float32, mean over the codes of the log-probability with which each was drawn in the
            step that kept it.
    """

    codes: Int64[Tensor, "b s n"]
    confidence: Float[Tensor, "b s"]


@torch.no_grad()
def sample_codes(
    transformer: TokenTransformer,
    condition: Float[Tensor, "b w"],
    *,
    stimulus: Int64[Tensor, " b"],
    side: int,
    options: SamplerOptions,
    without: Float[Tensor, " w"] | None = None,
) -> Sampled:
    """Draw S pictures for each condition.

    All random numbers are a function of (seed, stimulus, sample), so that a picture does not depend on its batch, its
    place in it or the number of processes. The S samples run as one batch; the head, the softmax and the draw concern
    hidden places alone.

    Args:
        transformer: Predicts codes.
        condition: What stands at position 0.
        stimulus: What the random numbers of each condition belong to.
        side: Codes along a side of the picture.
        options: How codes are drawn.
        without: The condition that stands for none, for guidance.
    """
    n, steps, samples = side * side, options.steps, options.samples
    device = condition.device
    # half precision has too few numbers below 1 to draw from
    dtype = torch.promote_types(condition.dtype, torch.float32)
    # integers are hashed the same everywhere, but drawn on the CPU nothing of a device can come in
    drawn = torch.stack([_uniform(stimulus.cpu(), s, n=n, options=options) for s in range(samples)], dim=1)
    # the largest of them would be rounded to 1 in float32, whose Gumbel noise is infinite
    uniform = rearrange(drawn, "b s t two n -> t two (b s) n").to(device, dtype).clamp(max=1 - 2.0**-24)
    given = repeat(condition, "b w -> (b s) w", s=samples)
    codes = torch.full((len(given), n), transformer.codes, device=device)
    logp = torch.zeros(len(given), n, device=device, dtype=dtype)
    hidden = torch.arange(n, device=device).expand(len(given), n)
    rank = _halton_ranks(side, drawn[:, :, 0, 1, :1], device) if options.order == "halton" else None
    for step in range(steps):
        # before anything is drawn all samples of a condition are one
        first = step == 0
        logits = _logits(
            transformer,
            codes[::samples] if first else codes,
            condition if first else given,
            hidden[::samples] if first else hidden,
            without=without,
            guidance=options.guidance * (step + 1) / steps,
        ).to(dtype)
        if first:
            logits = repeat(logits, "b m k -> (b s) m k", s=samples)
        logits = logits.log_softmax(dim=-1)
        chosen = _draw(logits, uniform[step, 0].gather(1, hidden))
        score = logits.gather(2, chosen[..., None])[..., 0]
        codes = codes.scatter(1, hidden, chosen)
        logp = logp.scatter(1, hidden, score)
        left = hidden_after(step + 1, steps=steps, n=n, hidden=hidden.shape[1])
        if step + 1 == steps:
            break
        if rank is None:
            heat = options.temperature * (1 - (step + 1) / steps)
            worth = score + heat * _gumbel(uniform[step, 1].gather(1, hidden))
        else:
            worth = -rank.gather(1, hidden).to(dtype)
        again = worth.topk(left, dim=1, largest=False).indices
        hidden = hidden.gather(1, again).sort(dim=1).values
        codes = codes.scatter(1, hidden, transformer.codes)
    return Sampled(
        codes=rearrange(codes, "(b s) n -> b s n", s=samples),
        confidence=rearrange(logp.mean(dim=1).float(), "(b s) -> b s", s=samples),
    )


def hidden_after(step: int, *, steps: int, n: int, hidden: int) -> int:
    """Codes that are hidden again after a step, counted from 1: at least one, and one less than before.

    ``floor(n cos(pi step / 2 steps))`` (Chang et al. 2022, section 3.2). The last step draws all that are left.
    """
    return max(1, min(hidden - 1, math.floor(n * math.cos(math.pi / 2 * step / steps))))


def _logits(
    transformer: TokenTransformer,
    codes: Tensor,
    condition: Tensor,
    hidden: Tensor,
    *,
    without: Tensor | None,
    guidance: float,
) -> Float[Tensor, "b m k"]:
    """Logits at the hidden places, guided where asked for."""
    if guidance and without is None:
        raise ContractError("guidance needs the embedding of no condition: train with condition_dropout")
    if guidance and without is not None:
        codes, hidden = (repeat(x, "b n -> (two b) n", two=2) for x in (codes, hidden))
        condition = torch.cat([condition, without.expand_as(condition)])
    states = transformer(codes, condition)
    logits = transformer.logits(states.gather(1, repeat(hidden, "b m -> b m w", w=states.shape[-1])))
    if guidance:
        conditioned, free = logits.chunk(2)
        logits = conditioned + guidance * (conditioned - free)
    return logits


def _uniform(stimulus: Tensor, sample: int, *, n: int, options: SamplerOptions) -> Float[Tensor, "b t 2 n"]:
    """Numbers in (0, 1) for each step: one for the draw and one for the choice of what is kept, for each code."""
    flat = row_uniform(stimulus, options.steps * 2 * n, seed=options.seed, epoch=sample, stream=0)
    # the grid of 2^-24 holds 0, of which there is no logarithm
    return rearrange(flat.double() + 2.0**-25, "b (t two n) -> b t two n", two=2, n=n)


def _draw(logp: Float[Tensor, "b m k"], uniform: Float[Tensor, "b m"]) -> Int64[Tensor, "b m"]:
    """Draw a code by the inverse of its distribution function."""
    cumulative = logp.exp().cumsum(dim=-1)
    wanted = uniform * cumulative[..., -1]
    return torch.searchsorted(cumulative, wanted[..., None].contiguous())[..., 0].clamp(max=logp.shape[-1] - 1)


def _gumbel(uniform: Tensor) -> Tensor:
    return -torch.log(-torch.log(uniform))


def _halton_ranks(side: int, shift: Float[Tensor, "b s 1"], device: torch.device) -> Int64[Tensor, "bs n"]:
    """Place of each code in the Halton order, which begins somewhere else for each sample."""
    order = torch.tensor(halton_order(side))
    n = len(order)
    start = (shift * n).long().clamp(max=n - 1)
    ranks = torch.empty(n, dtype=torch.int64)
    ranks[order] = torch.arange(n)
    return rearrange((ranks - start) % n, "b s n -> (b s) n").to(device)


@lru_cache
def halton_order(side: int) -> tuple[int, ...]:
    """All places of a square grid, row by row numbered, in the order in which a Halton sequence first meets them.

    Bases 2 for columns and 3 for rows (Halton 1964).
    """
    order: dict[int, None] = {}
    index = 0
    while len(order) < side * side:
        index += 1
        row, column = (int(_radical_inverse(index, base) * side) for base in (3, 2))
        order.setdefault(row * side + column)
    return tuple(order)


def _radical_inverse(index: int, base: int) -> float:
    value, factor = 0.0, 1.0
    while index:
        factor /= base
        index, digit = divmod(index, base)
        value += digit * factor
    return value
