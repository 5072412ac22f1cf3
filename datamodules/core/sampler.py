"""The order of samples: a pure function of (seed, epoch), cut into batches for every rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Sampler

from contracts import DataError


class BatchSampler(Sampler[Tensor]):
    """Yields the sample numbers of whole batches; people of different layouts never share one.

    A global batch holds ``batch_size`` samples for each of ``world_size`` ranks, all of one group, so that
    ranks always work on the same layout in the same step. ``~i`` (negative) marks sample ``i`` as padding.

    Args:
        group: ``(N,)`` group of each sample; a batch holds samples of one group.
        batch_size: Samples per rank.
        shuffle: New order in every epoch; else the order of the samples.
        drop_last: Leave out what does not fill a global batch (training by gradients). Else every sample
            comes exactly once, and ranks are evened out by padding.
        seed: Seed of the order.
        rank: This process.
        world_size: Number of processes.

    Raises:
        DataError: ``drop_last`` and no group fills a single global batch, or ``batch_size`` < 1.
    """

    def __init__(
        self,
        group: Int64[Tensor, " n"],
        batch_size: int,
        *,
        shuffle: bool,
        drop_last: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"loader.batch_size must be at least 1, found {batch_size}")
        self.members = [torch.nonzero(group == value).flatten() for value in group.unique()]
        self.global_size = batch_size * world_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0
        if len(self) == 0:
            largest = max((len(m) for m in self.members), default=0)
            raise DataError(
                f"batch larger than the data set: {batch_size} samples x {world_size} processes, but only {largest} "
                "training samples of one layout; lower --data.init_args.loader.batch_size"
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order follows; called by Lightning before each one."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Where the next iteration starts."""
        return {"epoch": self.epoch, "batches_done": self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start the next iteration inside an epoch, after the batches already done."""
        self.epoch, self.start = int(state["epoch"]), int(state["batches_done"])

    def __len__(self) -> int:
        """Number of batches of one epoch, equal on all ranks."""
        if self.drop_last:
            return sum(len(member) // self.global_size for member in self.members)
        return sum(-(-len(member) // self.global_size) for member in self.members)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield this rank's batches of the epoch, from ``start`` on."""
        batches = self._global_batches()[self.start :]
        self.start = 0
        for batch in batches:
            missing = -len(batch) % self.world_size
            padded = torch.cat([batch, ~batch[:1].expand(missing)]) if missing else batch
            yield padded[self.rank :: self.world_size]

    def _global_batches(self) -> list[Tensor]:
        if not self.shuffle:
            return [batch for member in self.members for batch in self._cut(member)]
        generator = torch.Generator().manual_seed(_mix(self.seed, self.epoch))
        orders = [member[torch.randperm(len(member), generator=generator)] for member in self.members]
        batches = [batch for order in orders for batch in self._cut(order)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def _cut(self, order: Tensor) -> list[Tensor]:
        batches = list(order.split(self.global_size)) if len(order) else []
        if self.drop_last and batches and len(batches[-1]) < self.global_size:
            batches.pop()
        return batches


class SideBySideSampler(Sampler[dict[str, Tensor]]):
    """Yields one batch of each of several data sets at a time, each from its own order and of its own size.

    A data set with fewer batches begins again in a new order, one with more goes on in the next epoch where it
    stopped: step i of epoch e is batch (e N + i) mod n of its pass (e N + i) div n, with N steps an epoch and n
    batches a pass. The order is therefore a pure function of (seed, epoch), as that of each ``BatchSampler``.

    Args:
        samplers: Sampler of each data set, by name.
        epoch: Steps N of an epoch: as many as the ``longest`` or the ``shortest`` data set has batches, or a number.

    Raises:
        DataError: A number of steps below 1.
    """

    def __init__(
        self, samplers: Mapping[str, BatchSampler], *, epoch: Literal["longest", "shortest"] | int = "longest"
    ) -> None:
        self.samplers = dict(samplers)
        lengths = [len(sampler) for sampler in self.samplers.values()]
        self.steps = max(lengths) if epoch == "longest" else min(lengths) if epoch == "shortest" else epoch
        if self.steps < 1:
            raise DataError(f"--data.init_args.epoch must be longest, shortest or at least 1 step, found {epoch}")
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order follows; called by Lightning before each one."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start the next iteration inside an epoch, after the batches already done."""
        self.epoch, self.start = int(state["epoch"]), int(state["batches_done"])

    def __len__(self) -> int:
        """Number of steps of one epoch."""
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield this rank's batches of the epoch by name, from ``start`` on."""
        start, self.start = self.start, 0
        first = self.epoch * self.steps + start
        streams = {name: _endless(sampler, first) for name, sampler in self.samplers.items()}
        for _ in range(start, self.steps):
            yield {name: next(stream) for name, stream in streams.items()}


def _endless(sampler: BatchSampler, first: int) -> Iterator[Tensor]:
    """All batches of one pass after another, from the ``first`` of all on."""
    epoch, start = divmod(first, len(sampler))
    while True:
        sampler.load_state_dict({"epoch": epoch, "batches_done": start})
        yield from sampler
        epoch, start = epoch + 1, 0


def _mix(seed: int, epoch: int) -> int:
    """One 63-bit seed from two numbers; neighbouring pairs give unrelated streams (splitmix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + epoch * 0xD1B54A32D192ED03 + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return (z ^ (z >> 31)) >> 1
