"""ContrastiveAlignment of several data sets on 2 and 3 processes: loss, gradients, weights and scores of 1."""

from __future__ import annotations

import functools
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from callbacks import Identification
from contracts import NO_LABEL, Batch
from datamodules import MultiModal
from lightning_modules import ContrastiveAlignment, ResidualMLP, TemporalSpatialConv
from tests.experiments.launching import launch
from tests.formats.side_by_side import part, side_by_side
from tests.lightning_modules.fitting import made_up, trainer
from tests.lightning_modules.processes import ROOT, group

WORLDS = (2, 3)
ENCODERS: dict[str, Any] = {
    "fmri": functools.partial(ResidualMLP, hidden=8, input_dropout=0.0, dropout=0.0),
    "eeg": functools.partial(TemporalSpatialConv, sensors=4, filters=4, kernel=3, pool=4, stride=2, dropout=0.0),
}

# ---- loss and gradients ----------------------------------------------------------------------------

EACH = {"fmri": 4, "eeg": 3, "more": 5}
"""Rows of each process."""
WIDTH = 5
VARIANTS: list[dict[str, Any]] = [
    {"between": "none"},
    {"between": "stimulus"},
    {"between": "label"},
    {"between": "stimulus", "partners": "first"},
    {"between": "label", "partners": "first"},
    {"between": "label", "partners": "nowhere"},
    {"between": "label", "positives": "label", "subject_layers": "frozen_random", "temperature_form": "softplus"},
    {"between": "stimulus", "duplicates": "negatives", "direction": "brain_to_image", "temperature_form": "fixed"},
]
"""``partners``: whether recordings of all processes have partners in other data sets, of the first one, or none."""
IDS = ["-".join(variant.values()) for variant in VARIANTS]


def model_of(variant: dict[str, Any]) -> ContrastiveAlignment:
    parts: dict[str, Any] = {
        "fmri": made_up({"01": [6], "02": [6]}, width=WIDTH, classes=3),
        "eeg": made_up({"02": [3, 10], "03": [3, 10]}, width=WIDTH, classes=3),
        "more": made_up({"04": [7]}, width=WIDTH, classes=3),
    }
    people = {f"{name}-{person}": shape for name, one in parts.items() for person, shape in one["shape"].items()}
    layout: Any = made_up(people, width=WIDTH, classes=3) | {"modality": "several", "parts": parts}
    torch.manual_seed(2)
    options = {name: value for name, value in variant.items() if name != "partners"}
    encoders = {**ENCODERS, "more": ENCODERS["fmri"]}
    return ContrastiveAlignment(layout, encoders=encoders, temperature=0.3, between_weight=0.7, **options).eval()


def joined(processes: int, partners: str = "everywhere") -> dict[str, Batch]:
    """The rows of all processes, those of the first one first; the last process has the first person alone."""
    generator = torch.Generator().manual_seed(6)
    batches = {}
    for number, (name, shape, people) in enumerate(
        (("fmri", [6], [0, 1]), ("eeg", [3, 10], [2, 3]), ("more", [7], [4]))
    ):
        rows = processes * EACH[name]
        place = torch.arange(rows)
        # 4 pictures for all, which come several times in one data set, and one that only this one has
        stimulus = torch.where(place % 5 == 4, 50 + number, (place + number) % 4)
        subject = torch.tensor(people)[place % len(people)]
        subject[-EACH[name] :] = people[0]
        lonely = torch.zeros(rows, dtype=torch.bool)
        if partners != "everywhere":
            lonely = place >= (EACH[name] if partners == "first" else 0)
        stimulus = torch.where(lonely, 100 * (number + 1) + place, stimulus)
        label = torch.tensor([0, 1, 1, 2])[stimulus % 4]
        label = torch.where(lonely | (stimulus >= 50), NO_LABEL, label)
        batches[name] = Batch(
            signal=torch.randn(rows, *shape, generator=generator),
            embedding=torch.randn(rows, WIDTH, generator=generator),
            stimulus=stimulus,
            label=label,
            subject=subject,
            row=place,
        )
    return batches


def share(batches: dict[str, Batch], rank: int) -> dict[str, Any]:
    return {
        name: {key: value[rank * EACH[name] : (rank + 1) * EACH[name]] for key, value in batch.items()}
        for name, batch in batches.items()
    }


class Step(nn.Module):
    """A training step as DistributedDataParallel wraps it."""

    def __init__(self, model: ContrastiveAlignment) -> None:
        super().__init__()
        self.model = model
        model.log = model.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]

    def forward(self, batches: Any) -> Tensor:
        return self.model.training_step(batches, 0)


def stepped(step: nn.Module, model: ContrastiveAlignment, batches: Any) -> dict[str, Any]:
    loss = step(batches)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return {"loss": loss.detach(), "gradients": gradients}


# ---- fits and scores -------------------------------------------------------------------------------

FITS: dict[str, dict[str, Any]] = {
    "alone": {},
    "between": {"between": "label"},
    "frozen": {"between": "stimulus", "subject_layers": "frozen_random"},
}


def data_of(folder: Path, processes: int) -> MultiModal:
    """Batches of 6 and 12 samples over all processes; 32 test samples in batches of 5, and 20 validation samples."""
    stores = folder / "stores"
    parts = {name: part(stores, name, batch_size=size // processes) for name, size in (("fmri", 6), ("eeg", 12))}
    return side_by_side(stores, parts, batch_size=5)


def fitted(folder: Path, processes: int) -> dict[str, Any]:
    """Fit, validate and test every variant; what this process found."""
    spread: dict[str, Any] = {} if processes == 1 else {"devices": processes, "strategy": "ddp"}
    found: dict[str, Any] = {}
    for name, options in FITS.items():
        data = data_of(folder, processes)
        seed_everything(0, verbose=False)
        model = ContrastiveAlignment(data.layout, encoders=ENCODERS, lr=1e-3, warmup=0.0, **options)
        score = Identification(galleries=["test", "class_centres"], permutations=9, bootstraps=9)
        run = trainer(folder, score, max_epochs=2, num_sanity_val_steps=0, **spread)
        run.fit(model, datamodule=data)
        validated = {key: value for key, value in run.callback_metrics.items() if key.startswith("validation")}
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        # the same weights whatever the number of processes, so that scores must agree
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape) / 3)
        [validation] = run.validate(model, datamodule=data, verbose=False)
        run.test(model, datamodule=data, verbose=False)
        found[name] = {
            "weights": weights,
            "validated": validated,
            "validation": validation,
            "scores": [s.as_dict() for s in score.scores],
        }
    return found


def process(rank: int, processes: int, folder: str, port: int) -> None:
    """What one of several processes does."""
    steps = []
    with group(folder, rank, processes):
        for variant in VARIANTS:
            model = model_of(variant)
            wrapped = DistributedDataParallel(Step(model))
            steps.append(stepped(wrapped, model, share(joined(processes, variant.get("partners", "everywhere")), rank)))
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.save({"steps": steps, "fits": fitted(Path(folder), processes)}, f"{folder}/{rank}-of-{processes}.pt")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything on 2 and 3 processes, from one start of Python, which takes the time."""
    folder = tmp_path_factory.mktemp("processes")
    data_of(folder, 1).layout  # noqa: B018  (the stores are there when the processes start)
    name = "tests.lightning_modules.test_contrastive_processes"
    launch(folder, ["-m", name, str(folder)], variables={"PYTHONPATH": str(ROOT)}, timeout=240)
    return folder


@pytest.fixture(params=WORLDS, ids=["2 processes", "3 processes"])
def several(started: Path, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What each process found."""
    return [torch.load(started / f"{rank}-of-{request.param}.pt", weights_only=True) for rank in range(request.param)]


@pytest.fixture(scope="module")
def one(started: Path) -> dict[str, Any]:
    """Fits and scores of one process."""
    return fitted(started, 1)


@pytest.mark.parametrize("number", range(len(VARIANTS)), ids=IDS)
def test_losses_and_gradients_are_those_of_the_joined_batch(several: list[dict[str, Any]], number: int) -> None:
    variant = VARIANTS[number]
    model = model_of(variant)
    expected = stepped(Step(model), model, joined(len(several), variant.get("partners", "everywhere")))
    mine = [found["steps"][number] for found in several]
    mean = torch.stack([found["loss"] for found in mine]).mean()
    torch.testing.assert_close(mean, expected["loss"], rtol=1e-6, atol=1e-6)
    assert len(expected["gradients"]) > 15
    for found in mine:
        assert found["gradients"].keys() == expected["gradients"].keys()
        for name, value in expected["gradients"].items():
            if name != "shared.logit_scale" or variant.get("partners") != "nowhere":
                assert value.abs().max() > 1e-6, f"nothing to compare in {name}"
            torch.testing.assert_close(found["gradients"][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_the_variants_are_different_numbers() -> None:
    """Else the test above could pass with a loss between data sets that is 0."""
    losses = []
    for variant in VARIANTS:
        model = model_of(variant)
        losses.append(round(Step(model)(joined(2, variant.get("partners", "everywhere"))).item(), 4))
    assert len(set(losses)) == len(VARIANTS)


@pytest.mark.parametrize("name", FITS)
def test_a_fit_ends_with_the_weights_of_one_process(several: list[dict[str, Any]], one: Any, name: str) -> None:
    expected = one[name]["weights"]
    for found in several:
        assert found["fits"][name]["weights"].keys() == expected.keys()
        for key, value in found["fits"][name]["weights"].items():
            assert torch.equal(value, several[0]["fits"][name]["weights"][key]), f"{key} differs between processes"
            torch.testing.assert_close(value, expected[key], rtol=0, atol=2e-4, msg=key)
        for key, value in one[name]["validated"].items():
            assert float(found["fits"][name]["validated"][key]) == pytest.approx(float(value), abs=0.02), key


@pytest.mark.parametrize("name", FITS)
def test_scores_do_not_depend_on_the_number_of_processes(several: list[dict[str, Any]], one: Any, name: str) -> None:
    losses = ["validation/loss", "validation/loss/eeg", "validation/loss/fmri"]
    assert sorted(key for key in one[name]["validation"] if "loss" in key) == losses
    for found in (each["fits"][name] for each in several):
        assert found["validation"] == pytest.approx(one[name]["validation"], abs=1e-5)
        assert len(found["scores"]) == len(one[name]["scores"])
        for mine, expected in zip(found["scores"], one[name]["scores"], strict=True):
            for entry, value in expected.items():
                wanted = pytest.approx(value, abs=1e-5) if isinstance(value, float) else value
                assert mine[entry] == wanted, f"{expected['name']} of {expected['subject']}: {entry}"
    assert {score["subject"] for score in one[name]["scores"]} == {"fmri-01", "fmri-02", "eeg-02", "eeg-03"}
    assert {score["gallery"] for score in one[name]["scores"]} == {"test (13)", "class_centres (5)"}


if __name__ == "__main__":
    for world in WORLDS:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            free_port = free.getsockname()[1]
        multiprocessing.start_processes(process, (world, sys.argv[1], free_port), nprocs=world, start_method="fork")
