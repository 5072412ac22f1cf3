"""Encoders: a layer for each person, a trunk for all, on one process and on two."""

from __future__ import annotations

import functools
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_modules import (
    ATM,
    EEGNet,
    LinearEncoder,
    ResidualMLP,
    ShallowNet,
    SpectrogramConv,
    TemporalSpatialConv,
)
from tests.experiments.launching import launch
from tests.lightning_modules.encoding import (
    KINDS,
    SENSORS,
    SMALL,
    VOXELS,
    WIDTH,
    Make,
    built,
    every_kind,
    layout_of,
    signals,
)
from tests.lightning_modules.processes import ROOT, group

# ---- shapes ----------------------------------------------------------------------------------------


@every_kind
def test_people_of_any_size_are_encoded_to_the_width(kind: str, shapes: dict[str, list[int]]) -> None:
    encoder = built(kind, shapes)
    for number, shape in enumerate(shapes.values()):
        for rows in (1, 4):
            encoded = encoder(signals(rows, shape), torch.full((rows,), number))
            assert encoded.shape == (rows, WIDTH)
            assert torch.isfinite(encoded).all()


@pytest.mark.parametrize("make", [LinearEncoder, ResidualMLP, TemporalSpatialConv])
def test_shipped_sizes_run(make: Make) -> None:
    encoder = make(layout_of({"a": [17, 50]}, width=32))
    assert encoder(signals(3, [17, 50]), torch.zeros(3, dtype=torch.int64)).shape == (3, 32)


def test_the_linear_encoder_is_one_matrix_product_a_person() -> None:
    encoder = built("linear", SENSORS)
    x = signals(4, SENSORS["b"])
    layer = next(m for m in encoder.subject_layers.layers[1].modules() if isinstance(m, nn.Linear))
    expected = x.flatten(1) @ layer.weight.T + layer.bias
    torch.testing.assert_close(encoder(x, torch.ones(4, dtype=torch.int64)), expected)


# ---- people ----------------------------------------------------------------------------------------


@every_kind
def test_every_layer_is_registered(kind: str, shapes: dict[str, list[int]]) -> None:
    encoder = built(kind, shapes)
    own = [list(layer.parameters()) for layer in encoder.subject_layers.layers]
    assert len(own) == len(shapes)
    registered = {id(p) for p in encoder.parameters()}
    assert all(layer and {id(p) for p in layer} <= registered for layer in own)
    names = {name.split(".")[2] for name in encoder.state_dict() if name.startswith("subject_layers.layers.")}
    assert names == {"0", "1", "2"}
    other = SMALL[kind](layout_of(shapes))
    x, who = signals(2, shapes["b"]), torch.ones(2, dtype=torch.int64)
    assert not torch.equal(other(x, who), encoder(x, who))
    other.load_state_dict(encoder.state_dict(), strict=True)
    assert torch.equal(other(x, who), encoder(x, who))


@every_kind
def test_a_layer_is_used_for_its_person_only(kind: str, shapes: dict[str, list[int]]) -> None:
    encoder = built(kind, shapes).eval()
    # a and c have the same shape and share a batch
    x, who = signals(6, shapes["a"]), torch.tensor([0, 2, 0, 2, 2, 0])
    before = encoder(x, who)
    with torch.no_grad():
        for parameter in encoder.subject_layers.layers[2].parameters():
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    after = encoder(x, who)
    assert torch.equal(after[who == 0], before[who == 0])
    assert ((after[who == 2] - before[who == 2]).abs().amax(dim=1) > 1e-3).all()


@every_kind
@pytest.mark.parametrize("order", [[0, 2, 0, 2], [2, 2, 0, 0], [0, 0, 2, 0], [2, 0, 2, 0]])
def test_samples_keep_their_places(kind: str, shapes: dict[str, list[int]], order: list[int]) -> None:
    encoder = built(kind, shapes).eval()
    x, who = signals(4, shapes["a"]), torch.tensor(order)
    one_by_one = torch.cat([encoder(x[i : i + 1], who[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(encoder(x, who), one_by_one, rtol=1e-5, atol=1e-6)
    assert (one_by_one[:, None] - one_by_one).abs().amax(dim=2).fill_diagonal_(1).min() > 1e-3, "nothing to compare"


@every_kind
def test_many_mixed_samples_keep_their_places(kind: str, shapes: dict[str, list[int]]) -> None:
    """More rows than a sort that happens to be stable on few."""
    encoder = built(kind, shapes).eval()
    x, who = signals(300, shapes["a"]), 2 * torch.randint(2, (300,), generator=torch.Generator().manual_seed(0))
    for person in (0, 2):
        alone = encoder(x[who == person], who[who == person])
        torch.testing.assert_close(encoder(x, who)[who == person], alone, rtol=1e-5, atol=1e-6)


@every_kind
def test_an_absent_person_gets_a_gradient_of_zero(kind: str, shapes: dict[str, list[int]]) -> None:
    encoder = built(kind, shapes)
    encoder(signals(3, shapes["b"]), torch.ones(3, dtype=torch.int64)).square().sum().backward()
    for number, layer in enumerate(encoder.subject_layers.layers):
        for parameter in layer.parameters():
            assert parameter.grad is not None
            assert parameter.grad.shape == parameter.shape
            assert bool(parameter.grad.abs().sum() > 0) == (number == 1)


def test_frozen_layers_and_inference_need_no_gradient() -> None:
    encoder = built("mlp", VOXELS)
    encoder.subject_layers.layers[0].requires_grad_(False)
    x, who = signals(3, [11]), torch.ones(3, dtype=torch.int64)
    encoder(x, who).sum().backward()
    assert all(p.grad is None for p in encoder.subject_layers.layers[0].parameters())
    assert all(p.grad is not None for p in encoder.subject_layers.layers[2].parameters())
    with torch.no_grad():
        assert not encoder(x, who).requires_grad


# ---- independence of the batch ---------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_an_embedding_does_not_depend_on_the_batch(kind: str, shapes: dict[str, list[int]], training: bool) -> None:
    encoder = built(kind, shapes).train(training)
    x, who = signals(5, shapes["a"]), torch.tensor([0, 2, 0, 0, 2])
    other = x.clone()
    other[1:] = 1e2 * other[1:] + 7
    kept = encoder(other, who)[0]
    torch.testing.assert_close(kept, encoder(x, who)[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(kept, encoder(x[:1], who[:1])[0], rtol=1e-5, atol=1e-6)


@every_kind
def test_no_state_changes_in_a_pass(kind: str, shapes: dict[str, list[int]]) -> None:
    encoder = built(kind, shapes).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder(signals(5, shapes["a"]), torch.zeros(5, dtype=torch.int64))
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (LinearEncoder, {"dropout": 0.5}),
        (ResidualMLP, {"hidden": 10, "input_dropout": 0.5, "dropout": 0.0}),
        (ResidualMLP, {"hidden": 10, "input_dropout": 0.0, "dropout": 0.5}),
        (TemporalSpatialConv, {"sensors": 4, "dropout": 0.5}),
    ],
)
def test_dropout_acts_in_training_alone(make: Make, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    encoder = make(layout_of({"a": [3, 20]}, width=16), **options)
    x, who = signals(4, [3, 20]), torch.zeros(4, dtype=torch.int64)
    assert not torch.equal(encoder(x, who), encoder(x, who))
    encoder.eval()
    assert torch.equal(encoder(x, who), encoder(x, who))


# ---- the order of people ---------------------------------------------------------------------------


@every_kind
def test_people_may_come_in_any_order(kind: str, shapes: dict[str, list[int]]) -> None:
    encoder = built(kind, shapes).eval()
    order = [2, 0, 1]
    turned = SMALL[kind](layout_of({name: shapes[name] for name in ("c", "a", "b")})).eval()
    state = encoder.state_dict()
    own = {name: value for name, value in state.items() if name.startswith("subject_layers.")}
    for place, person in enumerate(order):
        for name, value in own.items():
            _, layers, number, rest = name.split(".", 3)
            if int(number) == person:
                state[f"subject_layers.{layers}.{place}.{rest}"] = value
    turned.load_state_dict(state, strict=True)
    x = signals(4, shapes["a"])
    found, expected = turned(x, torch.tensor([0, 1, 0, 1])), encoder(x, torch.tensor([2, 0, 2, 0]))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


# ---- people without layers of their own, and layers that stay as they are --------------------------


@pytest.mark.parametrize("make", [SpectrogramConv, ShallowNet, EEGNet, functools.partial(ATM, subject_layer="none")])
def test_without_subject_layers_all_people_are_alike(make: Make) -> None:
    encoder = make(layout_of({"a": [4, 60], "b": [4, 60]})).eval()
    assert not [name for name in encoder.state_dict() if name.startswith("subject_layers.")]
    x = signals(3, [4, 60])
    assert torch.equal(encoder(x, torch.tensor([0, 1, 1])), encoder(x, torch.tensor([1, 0, 1])))


@every_kind
def test_frozen_subject_layers_stay_and_are_saved(kind: str, shapes: dict[str, list[int]]) -> None:
    encoder = built(kind, shapes)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.freeze_subject_layers()
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=0.1, weight_decay=0.1)
    x, who = signals(4, shapes["a"]), torch.tensor([0, 2, 0, 2])
    # a linear encoder has nothing else
    if list(encoder.trunk.parameters()):
        encoder(x, who).square().mean().backward()
        optimiser.step()
    after = encoder.state_dict()
    assert after.keys() == before.keys()
    for name, value in after.items():
        assert name.startswith("trunk.") or torch.equal(value, before[name])
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert bool(changed) == bool(list(encoder.trunk.parameters()))


# ---- two processes ---------------------------------------------------------------------------------

# the second process lacks person a, nobody has person b
PEOPLE = torch.tensor([[0, 2, 0, 2], [2, 2, 2, 2]])
# beside them, a step in which every layer is missing somewhere
DISJOINT = torch.tensor([[0, 0, 0, 0], [2, 2, 2, 2]])


def step(encoder: nn.Module, shapes: dict[str, list[int]], who: Tensor, rank: int) -> Tensor:
    x = signals(8, shapes["a"], seed=4).unflatten(0, (2, 4))[rank]
    value: Tensor = encoder(x, who[rank]).square().mean()
    return value


def gradients(encoder: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in encoder.named_parameters()}


def process(rank: int, folder: str) -> None:
    """What one of two processes does: a step of each encoder and division of people."""
    found = []
    with group(folder, rank, 2):
        for kind, shapes in KINDS:
            for who in (PEOPLE, DISJOINT):
                encoder = built(kind, shapes)
                wrapped = DistributedDataParallel(encoder)
                for _ in range(2):  # a second step would find gradients that the first one still waits for
                    encoder.zero_grad()
                    step(wrapped, shapes, who, rank).backward()
                found.append(gradients(encoder))
        encoder = built("subject conv", SENSORS)
        encoder.freeze_subject_layers()
        wrapped = DistributedDataParallel(encoder)
        for _ in range(2):
            encoder.zero_grad()
            step(wrapped, SENSORS, PEOPLE, rank).backward()
        found.append(gradients(encoder))
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Tensor | None]]]:
    folder = tmp_path_factory.mktemp("processes")
    launch(folder, ["-m", "tests.lightning_modules.test_encoders", str(folder)], variables={"PYTHONPATH": str(ROOT)})
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("who", [PEOPLE, DISJOINT], ids=["one lacks a person", "nobody shares a person"])
@every_kind
def test_processes_with_other_people_agree_on_all_gradients(
    both: list[list[dict[str, Tensor | None]]], kind: str, shapes: dict[str, list[int]], who: Tensor
) -> None:
    number = 2 * KINDS.index((kind, shapes)) + (who is DISJOINT)
    encoder = built(kind, shapes)
    (sum(step(encoder, shapes, who, rank) for rank in range(2)) / 2).backward()
    expected = gradients(encoder)
    first, second = (found[number] for found in both)
    assert first.keys() == second.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6)
        # a and c were there, b was not
        assert bool(value.abs().sum() > 0) == (not name.startswith("subject_layers.layers.1.")), name


def test_processes_with_frozen_subject_layers_agree(both: list[list[dict[str, Tensor | None]]]) -> None:
    encoder = built("subject conv", SENSORS)
    encoder.freeze_subject_layers()
    (sum(step(encoder, SENSORS, PEOPLE, rank) for rank in range(2)) / 2).backward()
    first, second = (found[-1] for found in both)
    for name, value in gradients(encoder).items():
        if name.startswith("subject_layers."):
            assert value is None
            assert first[name] is None
        else:
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    multiprocessing.start_processes(process, (sys.argv[1],), nprocs=2, start_method="fork")
