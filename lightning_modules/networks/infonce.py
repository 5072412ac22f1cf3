"""InfoNCE: recordings and pictures that belong together, told from all others of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_gather

from contracts import NO_LABEL, ContractError

Normalise = Literal["none", "image", "brain", "both"]
Direction = Literal["brain_to_image", "image_to_brain", "symmetric"]
TemperatureForm = Literal["fixed", "exp", "softplus", "raw"]
Positives = Literal["none", "stimulus", "label"]
Duplicates = Literal["removed", "negatives"]


class InfoNCE(nn.Module):
    r"""Contrastive loss of B recordings and the embeddings of the B pictures seen, over all processes.

    With logits :math:`l_{ij} = s\, b_i \cdot v_j` of recording i and picture j, positives P(i) and candidates C(i),

    .. math:: L_{b \to v} = \frac1B \sum_i \Big( \log \sum_{j \in C(i)} e^{l_{ij}}
              - \frac1{|P(i)|} \sum_{p \in P(i)} l_{ip} \Big)

    and ``symmetric`` is the mean of this and the same from pictures to recordings. Candidates are gathered from
    all processes with gradients; each process returns the loss of its own rows, so that the mean over processes
    (which DDP takes of gradients) is the loss of the whole batch.

    Published choices: CLIP (Radford et al. 2021, figure 3) ``both, symmetric, exp`` from temperature .07 and a
    scale of at most 100; Ferrante et al. (2024) ``both, brain_to_image, fixed`` at .1, ``duplicates: negatives``;
    Défossez et al. (2023), eq. 2 ``image, brain_to_image, fixed`` at 1; Khosla et al. (2020), eq. 2 (L_out)
    ``positives: label``; code that multiplies by the parameter itself, as ATM's (Li et al. 2024), ``raw``.

    Args:
        normalise: Which side has length 1 in the dot product.
        direction: Which side asks: ``brain_to_image``, ``image_to_brain`` or ``symmetric``.
        temperature: 1 / s at the start.
        temperature_form: s is ``fixed``, or learned as ``exp``(t), ``softplus``(t) or t itself (``raw``).
        max_scale: Largest s of a learned temperature.
        positives: What belongs together beside a recording and the picture seen: nothing, recordings of the same
            ``stimulus``, or of the same class (``label``; the same stimulus always is).
        duplicates: Pairs of the same stimulus that are not positives are ``removed`` from the candidates, or count
            as ``negatives``.

    Raises:
        ContractError: A temperature or ``max_scale`` that is not positive, a start above ``max_scale``, or a choice
            that does not exist.
    """

    def __init__(
        self,
        *,
        normalise: Normalise = "both",
        direction: Direction = "symmetric",
        temperature: float = 0.07,
        temperature_form: TemperatureForm = "exp",
        max_scale: float = 100.0,
        positives: Positives = "none",
        duplicates: Duplicates = "removed",
    ) -> None:
        super().__init__()
        for value, choices in (
            (normalise, Normalise),
            (direction, Direction),
            (temperature_form, TemperatureForm),
            (positives, Positives),
            (duplicates, Duplicates),
        ):
            if value not in get_args(choices):
                raise ContractError(f"InfoNCE knows {', '.join(get_args(choices))}, found {value!r}")
        if not 0 < temperature < math.inf or not max_scale > 0:
            raise ContractError(f"temperature and max_scale must be positive, found {temperature} and {max_scale}")
        scale = 1 / temperature
        if temperature_form != "fixed" and scale > max_scale:
            raise ContractError(f"a temperature of {temperature} is a scale of {scale}, above max_scale={max_scale}")
        self.normalise = normalise
        self.direction = direction
        self.temperature_form = temperature_form
        self.max_scale = max_scale
        self.positives = positives
        self.duplicates = duplicates
        start = _parameter(scale, temperature_form)
        self.limit = math.inf if temperature_form == "fixed" else _parameter(max_scale, temperature_form)
        if temperature_form == "fixed":
            self.register_buffer("logit_scale", torch.tensor(start))
        else:
            self.logit_scale = nn.Parameter(torch.tensor(start))

    @property
    def scale(self) -> Float[Tensor, ""]:
        """The factor s on similarities."""
        value = self.logit_scale.clamp(max=self.limit)
        if self.temperature_form == "exp":
            return value.exp()
        return F.softplus(value) if self.temperature_form == "softplus" else value

    def forward(
        self,
        brain: Float[Tensor, "b d"],
        image: Float[Tensor, "b d"],
        *,
        stimulus: Int64[Tensor, " b"],
        label: Int64[Tensor, " b"],
        gather: bool = True,
    ) -> Float[Tensor, ""]:
        """Return the loss of this process's rows, in float32.

        Args:
            brain: Embeddings of recordings; as many on every process.
            image: Embeddings of the pictures seen.
            stimulus: Which picture each one is.
            label: Class of each picture, or ``NO_LABEL``.
            gather: Whether candidates come from all processes, or from these rows alone.
        """
        self._cut_scale()
        collect = _gather if gather and _world_size() > 1 else _as_it_is
        # half precision cannot tell large logits apart
        with torch.autocast(brain.device.type, enabled=False):
            brain, image = brain.float(), image.float()
            if self.normalise in ("brain", "both"):
                brain = F.normalize(brain, dim=-1)
            if self.normalise in ("image", "both"):
                image = F.normalize(image, dim=-1)
            positive, candidate = self._pairs(stimulus, label, collect)
            losses = []
            if self.direction != "image_to_brain":
                losses.append(_cross_entropies(self.scale * brain @ collect(image).T, positive, candidate).mean())
            if self.direction != "brain_to_image":
                losses.append(_cross_entropies(self.scale * image @ collect(brain).T, positive, candidate).mean())
            return torch.stack(losses).mean()

    def between(
        self,
        first: Float[Tensor, "b d"],
        second: Float[Tensor, "c d"],
        *,
        stimulus: tuple[Int64[Tensor, " b"], Int64[Tensor, " c"]],
        label: tuple[Int64[Tensor, " b"], Int64[Tensor, " c"]],
    ) -> Float[Tensor, ""]:
        """Return the symmetric loss between recordings of two data sets, in float32.

        Recordings of the same stimulus belong together, with ``positives: label`` of the same class; all others of the
        other data set, from all processes, are told apart. A recording that belongs to none of them is left out. The
        mean over processes is the mean over all rows that are left, whatever their number in each; 0 without any.

        Args:
            first: Embeddings of recordings; as many on every process.
            second: Embeddings of recordings of another data set; as many on every process.
            stimulus: Which picture each one is about, on both sides.
            label: Class of each picture, or ``NO_LABEL``, on both sides.
        """
        self._cut_scale()
        with torch.autocast(first.device.type, enabled=False):
            sides = [F.normalize(side.float(), dim=-1) for side in (first, second)]
            losses = []
            for own, other in ((0, 1), (1, 0)):
                collect = _gather if _world_size() > 1 else _as_it_is
                positive = stimulus[own][:, None] == collect(stimulus[other])
                if self.positives == "label":
                    theirs = collect(label[other])
                    positive = positive | ((label[own][:, None] == theirs) & (theirs != NO_LABEL))
                left = positive.any(dim=1)
                logits = self.scale * sides[own] @ collect(sides[other]).T
                entropies = _cross_entropies(logits, positive | ~left[:, None], torch.ones_like(positive))
                count = left.sum()
                if _world_size() > 1:
                    distributed.all_reduce(count)
                # DDP takes the mean of gradients over processes
                losses.append((entropies * left).sum() * _world_size() / count.clamp(min=1))
            return torch.stack(losses).mean()

    def _cut_scale(self) -> None:
        if self.training and self.logit_scale.requires_grad:
            # the parameter itself is cut, as in CLIP: beyond a cut of its value it would get no gradient and stay
            self.logit_scale.data.clamp_(max=self.limit)

    def _pairs(
        self, stimulus: Int64[Tensor, " b"], label: Int64[Tensor, " b"], collect: Callable[[Tensor], Tensor]
    ) -> tuple[Bool[Tensor, "b w"], Bool[Tensor, "b w"]]:
        """Which columns are positives of each row, and which are candidates at all."""
        rank = distributed.get_rank() if collect is _gather else 0
        all_stimuli, all_labels = collect(stimulus), collect(label)
        own = torch.zeros(len(stimulus), len(all_stimuli), dtype=torch.bool, device=stimulus.device)
        own[:, rank * len(stimulus) : (rank + 1) * len(stimulus)].fill_diagonal_(True)
        same = stimulus[:, None] == all_stimuli
        if self.positives == "none":
            return own, own | ~same if self.duplicates == "removed" else torch.ones_like(own)
        if self.positives == "label":
            same = same | ((label[:, None] == all_labels) & (label[:, None] != NO_LABEL))
        return same, torch.ones_like(own)


def _parameter(scale: float, form: TemperatureForm) -> float:
    """The parameter t that stands for a scale s."""
    if form == "exp":
        return math.log(scale)
    # softplus(t) = s; log(expm1(s)) would overflow for large s
    return scale + math.log(-math.expm1(-scale)) if form == "softplus" else scale


def _cross_entropies(
    logits: Float[Tensor, "b w"], positive: Bool[Tensor, "b w"], candidate: Bool[Tensor, "b w"]
) -> Float[Tensor, " b"]:
    """Cross-entropy of each row with the target uniform over its positives."""
    total = logits.masked_fill(~candidate, -math.inf).logsumexp(dim=1)
    mean = logits.masked_fill(~positive, 0).sum(dim=1) / positive.sum(dim=1)
    return total - mean


def _world_size() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _as_it_is(values: Tensor) -> Tensor:
    return values


def _gather(values: Tensor) -> Tensor:
    """Rows of all processes in the order of ranks, with gradients to all of them."""
    if values.requires_grad:
        return torch.cat(all_gather(values.contiguous()))
    parts = [torch.empty_like(values) for _ in range(_world_size())]
    distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)
