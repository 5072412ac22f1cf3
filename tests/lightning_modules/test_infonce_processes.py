"""InfoNCE on 2 and 3 processes: loss and gradients are those of one process with all samples."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from contracts import NO_LABEL
from lightning_modules.networks.infonce import InfoNCE
from tests.experiments.launching import launch
from tests.lightning_modules.infonce import DIRECTION, DUPLICATES, POSITIVES
from tests.lightning_modules.processes import ROOT, group

WORLDS = (2, 3)
EACH = 5
"""Samples of each process."""
SPREAD = [
    dict(zip(("direction", "positives", "duplicates", "frozen"), choice, strict=True))
    for choice in itertools.product(DIRECTION, POSITIVES, DUPLICATES, (False, True))
]
"""``frozen``: pictures come without gradient, as from a frozen network."""


class Pair(nn.Module):
    """Linear encoders of both sides and the loss, wrapped as one module as Lightning does."""

    def __init__(self, *, direction: str, positives: str, duplicates: str, frozen: bool) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.brain, self.image = nn.Linear(7, 4), nn.Linear(6, 4).requires_grad_(not frozen)
        self.loss = InfoNCE(direction=direction, temperature=0.3, positives=positives, duplicates=duplicates)

    def forward(self, batch: dict[str, Tensor], *, gather: bool = True) -> Tensor:
        value: Tensor = self.loss(
            self.brain(batch["brain"]),
            self.image(batch["image"]),
            stimulus=batch["stimulus"],
            label=batch["label"],
            gather=gather,
        )
        return value


def joined_batch(processes: int) -> dict[str, Tensor]:
    """Every picture comes on several processes, and on the first one also twice."""
    generator = torch.Generator().manual_seed(8)
    rows = processes * EACH
    stimulus = torch.arange(rows) % (EACH - 1)
    return {
        "brain": torch.randn(rows, 7, generator=generator),
        "image": torch.randn(rows, 6, generator=generator),
        "stimulus": stimulus,
        "label": torch.tensor([0, 0, 1, NO_LABEL])[stimulus],
    }


def part(batch: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    return {name: value[rank * EACH : (rank + 1) * EACH] for name, value in batch.items()}


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.requires_grad}


def process(rank: int, processes: int, folder: str) -> None:
    """What one of several processes does: all variants, through DistributedDataParallel."""
    batch = part(joined_batch(processes), rank)
    found = []
    with group(folder, rank, processes):
        for variant in SPREAD:
            pair = Pair(**variant)
            wrapped = DistributedDataParallel(pair)
            value = wrapped(batch)
            value.backward()
            with torch.no_grad():
                watched, alone = pair(batch), pair(batch, gather=False)
            found.append({"loss": value.detach(), "watched": watched, "alone": alone, "gradients": gradients(pair)})
    torch.save(found, f"{folder}/{rank}-of-{processes}.pt")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All variants on 2 and 3 processes, from one start of Python, which takes the time."""
    folder = tmp_path_factory.mktemp("processes")
    name = "tests.lightning_modules.test_infonce_processes"
    launch(folder, ["-m", name, str(folder)], variables={"PYTHONPATH": str(ROOT)}, timeout=300)
    return folder


@pytest.fixture(params=WORLDS, ids=["2 processes", "3 processes"])
def several(started: Path, request: pytest.FixtureRequest) -> list[list[dict[str, Any]]]:
    """For each process, what it found for each variant."""
    files = [started / f"{rank}-of-{request.param}.pt" for rank in range(request.param)]
    return [torch.load(file, weights_only=True) for file in files]


def single(number: int, processes: int) -> tuple[Tensor, dict[str, Tensor]]:
    pair = Pair(**SPREAD[number])
    value = pair(joined_batch(processes))
    value.backward()
    return value.detach(), gradients(pair)


def every(variants: list[dict[str, Any]]) -> list[Any]:
    return [
        pytest.param(number, id="-".join(f"{value}" for value in variant.values()).replace("-True", "-frozen"))
        for number, variant in enumerate(variants)
    ]


@pytest.mark.parametrize("number", every(SPREAD))
def test_losses_and_gradients_are_those_of_the_joined_batch(several: list[list[dict[str, Any]]], number: int) -> None:
    mine = [found[number] for found in several]
    loss, expected = single(number, len(several))
    for name in ("loss", "watched"):
        mean = torch.stack([found[name] for found in mine]).mean()
        torch.testing.assert_close(mean, loss, rtol=1e-6, atol=1e-6)
    assert "loss.logit_scale" in expected
    for found in mine:
        assert found["gradients"].keys() == expected.keys()
        for name, value in expected.items():
            assert value.abs().max() > 1e-3, "nothing to compare"
            torch.testing.assert_close(found["gradients"][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("number", every(SPREAD))
def test_without_gathering_a_process_is_alone(several: list[list[dict[str, Any]]], number: int) -> None:
    joined = joined_batch(len(several))
    for rank, found in enumerate(several):
        expected = Pair(**SPREAD[number])(part(joined, rank)).detach()
        torch.testing.assert_close(found[number]["alone"], expected, rtol=1e-6, atol=1e-6)
        assert abs(found[number]["alone"] - found[number]["loss"]) > 1e-2, "gathering made no difference"


if __name__ == "__main__":
    for world in WORLDS:
        multiprocessing.start_processes(process, (world, sys.argv[1]), nprocs=world, start_method="fork")
