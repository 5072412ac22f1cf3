from collections import Counter

import pytest
import torch
from torch import Tensor

from contracts import DataError
from datamodules.core.sampler import BatchSampler

ONE = torch.zeros(23, dtype=torch.int64)
TWO = torch.tensor([0] * 9 + [1] * 14)
MIXED = torch.arange(23) % 3


def batches(group: Tensor = ONE, size: int = 4, *, epoch: int = 0, **options: int | bool) -> list[list[int]]:
    sampler = BatchSampler(group, size, **({"shuffle": True, "drop_last": False} | options))  # type: ignore[arg-type]
    sampler.set_epoch(epoch)
    result = [batch.tolist() for batch in sampler]
    assert len(result) == len(sampler)
    return result


def ranks(group: Tensor, size: int, world_size: int, **options: int | bool) -> list[list[list[int]]]:
    return [batches(group, size, rank=rank, world_size=world_size, **options) for rank in range(world_size)]


def flat(found: list[list[int]]) -> list[int]:
    return [number for batch in found for number in batch]


def test_without_shuffling_the_order_is_that_of_the_samples() -> None:
    assert flat(batches(shuffle=False)) == list(range(23))
    assert [len(batch) for batch in batches(shuffle=False)] == [4, 4, 4, 4, 4, 3]


@pytest.mark.parametrize("group", [ONE, TWO, MIXED])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_batch_never_mixes_layouts_and_every_sample_comes_once(group: Tensor, shuffle: bool) -> None:
    found = batches(group, shuffle=shuffle)
    assert all(len(set(group[batch].tolist())) == 1 for batch in found)
    assert sorted(flat(found)) == list(range(23))


@pytest.mark.parametrize(("group", "whole"), [(ONE, 5), (TWO, 2 + 3), (MIXED, 2 + 2 + 1)])
def test_drop_last_leaves_only_whole_batches(group: Tensor, whole: int) -> None:
    found = batches(group, drop_last=True)
    assert [len(batch) for batch in found] == [4] * whole
    assert len(set(flat(found))) == 4 * whole


def test_shuffled_batches_of_two_layouts_alternate() -> None:
    kinds = [int(TWO[batch[0]]) for batch in batches(TWO, 2)]
    assert kinds != sorted(kinds)
    assert kinds != sorted(kinds, reverse=True)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    assert batches(seed=1, epoch=2) == batches(seed=1, epoch=2)
    assert len({str(batches(seed=seed, epoch=epoch)) for seed in range(4) for epoch in range(4)}) == 16
    state = torch.get_rng_state()
    first = batches()
    torch.manual_seed(5)
    assert batches() == first, "the global random state must not matter"
    torch.set_rng_state(state)
    batches()
    assert torch.equal(torch.get_rng_state(), state), "the global random state must not change"


def test_every_place_in_the_order_is_equally_likely() -> None:
    firsts = Counter(batches(torch.zeros(4, dtype=torch.int64), 4, epoch=epoch)[0][0] for epoch in range(800))
    # 200 expected each; SD 12
    assert all(150 < firsts[number] < 250 for number in range(4)), firsts


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("group", [ONE, TWO])
def test_ranks_partition_each_global_batch(group: Tensor, world_size: int) -> None:
    alone = batches(group, 3 * world_size, drop_last=True) if world_size < 4 else batches(group, 12, drop_last=True)
    parts = ranks(group, 12 // 4 if world_size == 4 else 3, world_size, drop_last=True)
    assert alone
    for number, whole in enumerate(alone):
        mine = [part[number] for part in parts]
        assert {len(part) for part in mine} == {3}
        assert sorted(flat(mine)) == sorted(whole)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 4, 50])
@pytest.mark.parametrize("group", [ONE, TWO, MIXED])
def test_evaluation_covers_all_and_marks_what_only_fills_up(group: Tensor, size: int, world_size: int) -> None:
    parts = ranks(group, size, world_size, shuffle=False)
    shapes = [[len(batch) for batch in part] for part in parts]
    assert all(shape == shapes[0] for shape in shapes)
    numbers = [number for part in parts for number in flat(part)]
    assert sorted(number for number in numbers if number >= 0) == list(range(23))
    for step in zip(*parts, strict=True):
        together = flat(list(step))
        real = {number for number in together if number >= 0}
        padding = [~number for number in together if number < 0]
        assert set(padding) <= real, "padding repeats a sample of the same step"
        assert len(padding) < world_size


def test_state_says_where_the_next_pass_starts() -> None:
    sampler = BatchSampler(ONE, 4, shuffle=True, drop_last=True)
    sampler.set_epoch(7)
    whole = [batch.tolist() for batch in sampler]
    state = {**sampler.state_dict(), "batches_done": 3}
    other = BatchSampler(ONE, 4, shuffle=True, drop_last=True)
    other.load_state_dict(state)
    assert other.state_dict() == {"epoch": 7, "batches_done": 3}
    assert [batch.tolist() for batch in other] == whole[3:]
    other.load_state_dict(state)
    other.set_epoch(8)
    assert [batch.tolist() for batch in other] == batches(epoch=8, drop_last=True), "another epoch starts at 0"


def test_batch_larger_than_the_data_set_is_refused_in_training_only() -> None:
    with pytest.raises(DataError, match=r"batch larger than the data set: 12 samples x 2 processes, but only 23"):
        batches(ONE, 12, drop_last=True, world_size=2)
    assert len(batches(ONE, 50, drop_last=False)) == 1
    with pytest.raises(DataError, match=r"only 14 training samples of one layout.*batch_size"):
        batches(TWO, 15, drop_last=True)


@pytest.mark.parametrize("size", [0, -3])
def test_batch_size_below_one_is_refused(size: int) -> None:
    with pytest.raises(DataError, match=f"batch_size must be at least 1, found {size}"):
        batches(ONE, size)
