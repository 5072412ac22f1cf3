"""SideBySideSampler: a batch of each data set in every step, in an order that is a function of (seed, epoch)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from contracts import DataError
from datamodules.core.sampler import BatchSampler, SideBySideSampler

# batches an epoch: 12, 5 (of two layouts: 3 + 2) and 1
SIZES = {"long": (24, 2), "mixed": (20, 4), "short": (4, 4)}
GROUPS = {"mixed": torch.tensor([0] * 12 + [1] * 8)}
LENGTHS = {"long": 12, "mixed": 5, "short": 1}


def sampler(*, seed: int = 0, epoch: Any = "longest", rank: int = 0, world_size: int = 1) -> SideBySideSampler:
    samplers = {
        name: BatchSampler(
            GROUPS.get(name, torch.zeros(number, dtype=torch.int64)),
            size // world_size,
            shuffle=True,
            drop_last=True,
            seed=seed + len(name),
            rank=rank,
            world_size=world_size,
        )
        for name, (number, size) in SIZES.items()
    }
    return SideBySideSampler(samplers, epoch=epoch)


def plain(steps: Any) -> list[dict[str, list[int]]]:
    return [{name: batch.tolist() for name, batch in step.items()} for step in steps]


def epochs(made: SideBySideSampler, number: int, *, first: int = 0) -> list[list[dict[str, list[int]]]]:
    """What a fit gets, epoch by epoch."""
    found = []
    for epoch in range(first, first + number):
        made.set_epoch(epoch)
        found.append(plain(made))
    return found


def passes(name: str, number: int, *, seed: int = 0) -> list[list[int]]:
    """All batches of one data set by itself, one pass after another."""
    alone = sampler(seed=seed).samplers[name]
    found: list[list[int]] = []
    for epoch in range(number):
        alone.set_epoch(epoch)
        found += [batch.tolist() for batch in alone]
    return found


@pytest.mark.parametrize(("epoch", "steps"), [("longest", 12), ("shortest", 1), (7, 7), (30, 30)])
def test_every_step_has_a_whole_batch_of_each(epoch: Any, steps: int) -> None:
    made = sampler(epoch=epoch)
    assert len(made) == steps
    for found in epochs(made, 3):
        assert len(found) == steps
        for step in found:
            assert {name: len(batch) for name, batch in step.items()} == {n: size for n, (_, size) in SIZES.items()}
            assert min(min(batch) for batch in step.values()) >= 0, "no padding"
            # people of different layouts never share a batch
            assert len(set(GROUPS["mixed"][step["mixed"]].tolist())) == 1


@pytest.mark.parametrize("epoch", ["longest", "shortest", 5, 7, 30])
def test_each_data_set_goes_through_pass_after_pass(epoch: Any) -> None:
    """Whatever the epochs, the batches of one data set are those that it has by itself, without a gap."""
    made = sampler(epoch=epoch)
    found = [step for steps in epochs(made, 6) for step in steps]
    for name, length in LENGTHS.items():
        alone = passes(name, len(found) // length + 1)
        assert [step[name] for step in found] == alone[: len(found)]


@pytest.mark.parametrize("epoch", ["longest", "shortest", 5, 7])
def test_every_sample_comes_equally_often(epoch: Any) -> None:
    made = sampler(epoch=epoch)
    counts: dict[str, Counter[int]] = {name: Counter() for name in SIZES}
    for number, steps in enumerate(epochs(made, 40), start=1):
        for step in steps:
            for name, batch in step.items():
                counts[name].update(batch)
        for name, (samples, _) in SIZES.items():
            times = [counts[name][i] for i in range(samples)]
            assert max(times) - min(times) <= 1, f"{name} after {number} epochs"
            assert sum(times) == number * len(made) * SIZES[name][1]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = epochs(sampler(), 4)
    assert epochs(sampler(), 4) == first
    assert epochs(sampler(), 2, first=2) == first[2:], "earlier epochs need not be gone through"
    backwards = sampler()
    for epoch in (3, 0, 2, 1):
        backwards.set_epoch(epoch)
        assert plain(backwards) == first[epoch]
    state = torch.get_rng_state()
    torch.manual_seed(8)
    assert epochs(sampler(), 4) == first, "the global random state must not matter"
    torch.set_rng_state(state)
    orders = {str(epochs(sampler(seed=seed), 1, first=epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_an_epoch_that_is_left_early_changes_nothing_later() -> None:
    made, expected = sampler(), epochs(sampler(), 3)
    for epoch in range(3):
        made.set_epoch(epoch)
        steps = iter(made)
        assert plain([next(steps) for _ in range(5)]) == expected[epoch][:5]
    made.set_epoch(1)
    assert plain(made) == expected[1]


@pytest.mark.parametrize("epoch", ["longest", "shortest", 7])
@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_resumed_epoch_goes_on_where_it_stopped(epoch: Any, at: int, share: float) -> None:
    expected = epochs(sampler(epoch=epoch), 6)
    made = sampler(epoch=epoch)
    done = int(share * len(made))
    made.load_state_dict({"epoch": at, "batches_done": done})
    # Lightning names the epoch again before it begins
    made.set_epoch(at)
    assert plain(made) == expected[at][done:]
    assert plain(made) == expected[at], "the next iteration is whole"
    assert epochs(made, 2, first=at + 1) == expected[at + 1 : at + 3]
    made.load_state_dict({"epoch": at, "batches_done": done})
    made.set_epoch(at + 1)
    assert plain(made) == expected[at + 1], "another epoch starts at 0"


@pytest.mark.parametrize("epoch", ["longest", 7])
def test_two_processes_have_the_batches_of_one(epoch: Any) -> None:
    [together, *parts] = [
        epochs(made, 3)
        for made in (sampler(epoch=epoch), *(sampler(epoch=epoch, rank=r, world_size=2) for r in (0, 1)))
    ]
    for whole, first, second in zip(*([s for steps in f for s in steps] for f in (together, *parts)), strict=True):
        for name in SIZES:
            assert len(first[name]) == len(second[name]) == SIZES[name][1] // 2
            assert sorted(first[name] + second[name]) == sorted(whole[name])


def test_one_data_set_alone_is_its_own_sampler() -> None:
    alone = sampler().samplers["mixed"]
    made = SideBySideSampler({"mixed": alone})
    assert [step["mixed"] for steps in epochs(made, 4) for step in steps] == passes("mixed", 4)


@pytest.mark.parametrize("epoch", [0, -1])
def test_another_length_is_refused(epoch: Any) -> None:
    with pytest.raises(DataError, match=rf"epoch must be longest, shortest or at least 1 step, found {epoch}"):
        sampler(epoch=epoch)


def test_batches_are_numbers_of_samples() -> None:
    step = next(iter(sampler()))
    assert all(isinstance(batch, Tensor) and batch.dtype == torch.int64 for batch in step.values())
