"""Random numbers that belong to a row: the documented hash, their distributions, and what they depend on."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from lightning_modules.networks.row_random import row_normal, row_uniform

WORD = 2**64
Draw = Callable[..., Tensor]
both = pytest.mark.parametrize("draw", [row_uniform, row_normal], ids=["uniform", "normal"])


def splitmix64(z: int) -> int:
    """The finaliser of Steele, Lea and Flood (2014), figure 19, in integers that do not wrap by themselves."""
    z %= WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def reference(row: int, n: int, *, seed: int, epoch: int, stream: int) -> list[float]:
    golden = 0x9E3779B97F4A7C15
    key = seed
    for part in (epoch, stream, row):
        key = splitmix64(key + (part + 1) * golden)
    return [(splitmix64(key + position * golden) >> 40) / 2**24 for position in range(1, n + 1)]


def rows(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


@pytest.mark.parametrize(
    ("seed", "epoch", "stream"),
    [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (666, 100_000, 3), (2**32 - 1, 7, 2), (2**63 - 1, 1, 1)],
)
def test_the_numbers_are_those_of_the_documented_hash(seed: int, epoch: int, stream: int) -> None:
    numbers = (0, 1, 2, 17, 2**31, 2**40 + 1, -1)
    found = row_uniform(rows(*numbers), 5, seed=seed, epoch=epoch, stream=stream)
    assert found.dtype == torch.float32
    for row, values in zip(numbers, found.tolist(), strict=True):
        assert values == reference(row, 5, seed=seed, epoch=epoch, stream=stream), row


@pytest.mark.parametrize("seed", [2**63, 2**64 - 1])
def test_any_seed_that_torch_names_works(seed: int) -> None:
    """``torch.initial_seed`` gives 64 bits without a sign, after ``torch.manual_seed(-1)`` as after ``torch.seed``."""
    [found] = row_uniform(rows(3), 4, seed=seed, epoch=1).tolist()
    assert found == reference(3, 4, seed=seed, epoch=1, stream=0)


def test_normal_numbers_are_those_of_box_and_muller() -> None:
    uniform = np.array(reference(5, 14, seed=3, epoch=2, stream=1))
    expected = np.sqrt(-2 * np.log(1 - uniform[:7])) * np.cos(2 * math.pi * uniform[7:])
    found = row_normal(rows(5), 7, seed=3, epoch=2, stream=1)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-5)


def test_the_largest_uniform_number_is_below_one_and_gives_a_finite_normal_one() -> None:
    found = row_uniform(torch.arange(4000), 500, seed=1, epoch=1)
    assert float(found.min()) >= 0
    assert float(found.max()) < 1
    assert torch.isfinite(row_normal(torch.arange(4000), 250, seed=1, epoch=1)).all()


@pytest.mark.parametrize(("count", "n"), [(20_000, 1), (1, 20_000), (200, 100)])
@pytest.mark.parametrize(("draw", "law"), [(row_uniform, "uniform"), (row_normal, "norm")], ids=["uniform", "normal"])
def test_the_distribution_is_as_said_along_rows_and_positions(draw: Draw, law: str, count: int, n: int) -> None:
    for seed, epoch, stream in ((0, 0, 0), (0, 1, 0), (5, 3, 2)):
        found = draw(torch.arange(count), n, seed=seed, epoch=epoch, stream=stream).double().numpy().ravel()
        assert stats.kstest(found, law).pvalue > 1e-3


NEIGHBOURS = {
    "rows": lambda draw, n: (draw(rows(4), n, seed=0, epoch=1), draw(rows(5), n, seed=0, epoch=1)),
    "padding": lambda draw, n: (draw(rows(-1), n, seed=0, epoch=1), draw(rows(0), n, seed=0, epoch=1)),
    "epochs": lambda draw, n: (draw(rows(4), n, seed=0, epoch=1), draw(rows(4), n, seed=0, epoch=2)),
    "streams": lambda draw, n: (
        draw(rows(4), n, seed=0, epoch=1, stream=1),
        draw(rows(4), n, seed=0, epoch=1, stream=2),
    ),
    "seeds": lambda draw, n: (draw(rows(4), n, seed=0, epoch=1), draw(rows(4), n, seed=1, epoch=1)),
    "row and epoch": lambda draw, n: (draw(rows(4), n, seed=0, epoch=2), draw(rows(5), n, seed=0, epoch=1)),
    "seed and epoch": lambda draw, n: (draw(rows(4), n, seed=1, epoch=1), draw(rows(4), n, seed=0, epoch=2)),
    "epoch and stream": lambda draw, n: (
        draw(rows(4), n, seed=0, epoch=2, stream=1),
        draw(rows(4), n, seed=0, epoch=1, stream=2),
    ),
    "row and stream": lambda draw, n: (
        draw(rows(4), n, seed=0, epoch=1, stream=1),
        draw(rows(5), n, seed=0, epoch=1, stream=0),
    ),
}


@both
@pytest.mark.parametrize("name", NEIGHBOURS)
def test_neighbours_are_unrelated(draw: Draw, name: str) -> None:
    n = 10_000
    one, other = (value.double().numpy()[0] for value in NEIGHBOURS[name](draw, n))
    assert not np.isin(one, other).mean() > 0.01, "numbers come again"
    for shift in range(-3, 4):
        r = np.corrcoef(one, np.roll(other, shift))[0, 1]
        assert abs(r) < 4.5 / math.sqrt(n), f"correlated at a shift of {shift}"


@both
def test_positions_of_a_row_are_unrelated(draw: Draw) -> None:
    found = draw(torch.arange(5000), 12, seed=0, epoch=1).double().numpy()
    r = np.corrcoef(found.T) - np.eye(12)
    assert np.abs(r).max() < 5 / math.sqrt(5000)


@both
def test_the_numbers_of_a_row_depend_on_nothing_else_in_the_batch(draw: Draw) -> None:
    batch = torch.tensor([9, 3, -1, 3, 700])
    found = draw(batch, 6, seed=2, epoch=4, stream=1)
    assert torch.equal(found[1], found[3])
    for position, row in enumerate(batch):
        assert torch.equal(draw(row[None], 6, seed=2, epoch=4, stream=1)[0], found[position])
    order = torch.tensor([4, 2, 0, 3, 1])
    assert torch.equal(draw(batch[order], 6, seed=2, epoch=4, stream=1), found[order])
    assert draw(batch[:0], 6, seed=2, epoch=4).shape == (0, 6)


def test_a_uniform_number_depends_on_its_position_and_not_on_how_many_follow() -> None:
    found = row_uniform(rows(1, 2), 50, seed=0, epoch=1)
    for n in (1, 7, 49):
        assert torch.equal(row_uniform(rows(1, 2), n, seed=0, epoch=1), found[:, :n])


@both
def test_no_generator_is_asked_or_moved(draw: Draw) -> None:
    torch.manual_seed(1)
    first = draw(rows(1), 3, seed=0, epoch=1)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(draw(rows(1), 3, seed=0, epoch=1), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
