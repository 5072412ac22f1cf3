"""Costs of the stages: what is counted agrees with formulas worked by hand; what is measured is not tested."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from contracts import UserError
from experiments.benchmarks import costs, layouts, stages, subjects
from experiments.benchmarks.cases import CASES, Case, build, noise
from experiments.benchmarks.costs import Training
from experiments.benchmarks.data_path import GeneratedPatterns, measure, open_generated
from experiments.benchmarks.in_turns import SIDE, On, flop_counter, in_turns, matmul_rate
from tests.shipped import files

CPU = On()
KEYS = ("first_ever", "first_batch", "epoch", "own", "mapped")
# closed forms of the same kind as ridge_direct and ridge_lea, on other inputs
LIKE_RIDGE = {"ridge_mindvis", "ridge_pixels", "lea", "lea_direct", "conversion", "conversion_published"}


@pytest.fixture(autouse=True)
def small_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others do on the machine would make the large one take seconds."""
    monkeypatch.setitem(SIDE, "cpu", 64)


def patterns(people: int = 2) -> Any:
    return layouts.layout("god", "fmri", [(50,)] * people, embedding_width=8)


def test_fused_attention_is_counted_on_the_cpu() -> None:
    b, h, s, d = 2, 4, 16, 8
    query = torch.randn(b, h, s, d, requires_grad=True)
    with flop_counter() as counter:
        attended = F.scaled_dot_product_attention(query, query, query)
        assert counter.get_total_flops() == 2 * 2 * b * h * s * s * d
        # scores once more, and two products for each of two products
        attended.sum().backward()
    assert counter.get_total_flops() == 7 * 2 * b * h * s * s * d


def test_products_added_in_place_are_counted() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    with flop_counter() as counter:
        torch.zeros(3, 7).addmm_(a, b)
        torch.zeros(2, 3, 7).baddbmm_(a.expand(2, 3, 5), b.expand(2, 5, 7))
    assert counter.get_total_flops() == 2 * 3 * 5 * 7 + 2 * 2 * 3 * 5 * 7


# products of (B, D) and (D, B): forward, and back to the brain's side and to a learned temperature
@pytest.mark.parametrize(
    ("options", "products"),
    [
        ({"temperature_form": "fixed", "direction": "brain_to_image"}, 1 + 1),
        ({"temperature_form": "exp", "direction": "symmetric"}, 2 + 3),
    ],
)
@pytest.mark.parametrize("steps", [1, 2])
def test_operations_of_a_linear_encoder_are_those_worked_by_hand(options: Any, products: int, steps: int) -> None:
    b, v, d = 6, 50, 8
    linear = {"class_path": "lightning_modules.LinearEncoder"}
    case = Case("stage/contrastive.yaml", patterns, b, "noise", change={"encoder": linear, **options})
    found = stages.measure(case, CPU, people=1, steps=steps)
    # a linear map forward and the gradient of its weights; signals need none
    assert found["flop"] * b == 2 * (2 * b * v * d) + products * 2 * b * b * d
    assert found["trained"] == v * d + d + (options["temperature_form"] != "fixed")
    assert len(found["share"]) == steps
    assert found["seconds"] > 0


def test_weights_of_people_grow_with_them_and_operations_do_not() -> None:
    linear = {"class_path": "lightning_modules.LinearEncoder"}
    case = Case("stage/contrastive.yaml", patterns, 6, "noise", change={"encoder": linear})
    one, three = (stages.measure(case, CPU, people=people, steps=1) for people in (1, 3))
    assert three["weights"] - one["weights"] == 2 * (50 * 8 + 8)
    assert three["flop"] == one["flop"]


def test_sums_of_ridge_regression_are_counted_over_a_whole_pass() -> None:
    p, q, n = 20, 8, 64

    def narrow(people: int = 1) -> Any:
        return layouts.layout("god", "fmri", [(p,)] * people, embedding_width=q, samples=n)

    case = Case("stage/ridge_direct.yaml", narrow, 16, "noise", change={"alpha": 1.0})
    found = stages.measure(case, CPU, steps=3)
    # the solutions come on top, once
    assert n * costs.ridge_flop(p, q) < found["flop"] * n < n * costs.ridge_flop(p, q) + 20 * (p + q) ** 3
    assert len(found["share"]) == 1


@pytest.mark.parametrize("name", ["mindvis", "maskgit", "neural_alignment", "contrastive_eeg_classes", "clip"])
def test_a_stage_is_measured_as_its_file_says(name: str) -> None:
    found = stages.measure(CASES[name], CPU, batch=8, steps=1)
    assert found["flop"] > 0
    assert 0 < found["trained"] <= found["weights"]
    assert re.match(rf"\| {name} \| .+ \| [\d.]+ / [\d.]+ \| 8 \| ", stages.row(name, found))


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_built_at_its_size(name: str) -> None:
    with torch.device("meta"):
        stage = build(CASES[name], CASES[name].layout())
    assert sum(parameter.numel() for parameter in stage.parameters()) > 0


def test_every_stage_that_trains_is_a_case() -> None:
    shipped = {f"{path.parent.name}/{path.name}" for path in [*files("stage"), *files("recipe")]}
    missing = shipped - {case.file for case in CASES.values()} - {f"stage/{name}.yaml" for name in LIKE_RIDGE}
    assert missing == {"recipe/picture_suite.yaml"}


def test_noise_of_several_data_sets_numbers_people_jointly() -> None:
    layout = layouts.side_by_side(2, eeg=layouts.phantom_eeg, fmri=layouts.phantom)()
    stage = build(CASES["neural_alignment"], layout, encoders={}, between="none")
    batch = noise(stage, layout, 4)
    assert layout["subjects"] == ["eeg-1", "eeg-2", "fmri-1", "fmri-2"]
    assert batch["eeg"]["subject"].tolist() == [0, 1, 0, 1]
    assert batch["fmri"]["subject"].tolist() == [2, 3, 2, 3]


def test_nsd_is_divided_evenly_and_wholly() -> None:
    layout = layouts.nsd(9)
    assert [sum(rois.values()) for rois in layout["rois"].values()] == [v for (v,) in layout["shape"].values()]
    sizes = layout["rois"]["1"].values()
    assert max(sizes) - min(sizes) <= 1
    assert layout["shape"]["9"] == layout["shape"]["1"]


def test_the_table_of_stages(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    stages.stages(implementation="contrastive_eeg_classes", batch_size=4, steps=1)
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    found |= {"flop": 2.5e9, "seconds": 0.25, "memory": 1.5, "share": [0.5, 0.25, 0.75]}
    asked: list[dict[str, Any]] = []

    def measured(_: str, names: list[str], *, rounds: int, **options: Any) -> dict[str, list[Any]]:
        asked.append(options)
        return {name: [found] * rounds for name in names}

    monkeypatch.setattr(stages, "in_turns", measured)
    stages.stages(which="mindvis,contrastive_eeg_classes", batch_size=4, device="cpu")
    *_, first, second = capfd.readouterr().out.splitlines()
    assert first.startswith("| mindvis | Phantom | ")
    assert second.endswith(" | 4 | 2.5 | 4 | 1.50 | 0.50 (0.25 .. 0.75) |")
    assert asked == [{"batch_size": 4, "people": None, "steps": 3, "device": "cpu"}] * 2
    with pytest.raises(UserError, match="no stage unheard_of; there are small, full, all, clip"):
        stages.stages(which="unheard_of")


@pytest.mark.full
def test_a_stage_is_measured_in_a_process_of_its_own() -> None:
    options = {"batch_size": 4, "steps": 1, "people": None, "compile": False}
    found = in_turns("experiments.benchmarks.stages", ["mindvis"], rounds=1, **options)
    assert found["mindvis"][0]["samples"] == 4
    with pytest.raises(UserError, match="ended with status 1"):
        in_turns("experiments.benchmarks.stages", ["mindvis"], rounds=1, batch_size=-1)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert matmul_rate(CPU) > 0
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="has no GPU"):
            stages.stages(device="cuda")


# ---- people ----------------------------------------------------------------------------------------


def test_what_each_further_person_adds() -> None:
    first, *others = subjects.each_further([1, 2, 6], [1.0, 1.5, 3.5])
    assert first is None
    assert others == [0.5, 0.5]


def test_memory_by_people_is_printed_for_training_and_data(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def trained(_: str, names: list[str], *, people: int, **__: Any) -> dict[str, list[Any]]:
        return {names[0]: [{"memory": 0.1 * people, "weights": 1e6 * people, "seconds": 0.5, "samples": 4}]}

    monkeypatch.setattr(subjects, "in_turns", trained)
    subjects.subjects("training", (1, 3), which="mindvis")
    assert capfd.readouterr().out.splitlines()[2:] == [
        "| mindvis | 1 | 1.00 | 0.10 | - | 2.00 |",
        "| mindvis | 3 | 3.00 | 0.30 | 0.100 | 2.00 |",
    ]
    lines: list[str] = []
    monkeypatch.setattr(subjects, "print", lambda line, **_: lines.append(line), raising=False)
    monkeypatch.setattr(subjects, "in_turns", lambda *_, **__: {"serve": [dict.fromkeys(KEYS, 0.25)]})
    subjects.subjects("data", (1, 2), samples=20, voxels=8)
    assert lines[2:] == [
        f"| {n} | 0.000 | 0.25 | 0.25 | 0.25 | 0.250 | {b} | 0.250 |" for n, b in ((1, "-"), (2, "0.00"))
    ]


def test_a_store_of_several_people_is_served(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module = subjects.open_people(tmp_path, 3, samples=20, voxels=8, batch_size=10)
    assert module.layout["shape"] == {person: [8] for person in ("0001", "0002", "0003")}
    assert len(module.dataset("train")) == 60
    options = {"samples": 20, "voxels": 8, "batch_size": 10}
    subjects.subjects("data", (3,), folder=tmp_path, implementation="serve", **options)  # type: ignore[arg-type]
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert set(found) == set(KEYS)
    assert found["first_ever"] > 0


def test_signals_on_the_device_are_those_of_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"kind": GeneratedPatterns, "shape": (8,)}
    mapped, held = (
        open_generated(tmp_path, 30, 10, residence, **options).dataset("train") for residence in ("mmap", "device")
    )
    rows = torch.arange(30)
    assert torch.equal(mapped[rows]["signal"], held[rows]["signal"])
    measure(str(tmp_path), 100, 16, 1, "cpu", ["device"])
    printed = capfd.readouterr().out
    assert re.search(r"^\| device \| yes \| \d+\.\d\d s \|$", printed, re.MULTILINE)
    assert re.search(r"^\| device \| \d+\.\d\d \| \d+\.\d\d \| \d+\.\d\d \(", printed, re.MULTILINE)


# ---- costs -----------------------------------------------------------------------------------------

FLOP = {name: 3e11 for name in (*costs.STAGES, "embedding")}


def test_hours_and_rates_are_those_worked_by_hand() -> None:
    plan = Training("x", samples=100, seen=1000, flop=3.6e9, sample_bytes=400)
    assert plan.epochs == 10
    assert plan.hours(1e9) == pytest.approx(1.0)
    # a sample takes 3.6 s
    assert plan.bytes_a_second(1e9) == pytest.approx(400 / 3.6)
    assert costs.row(replace(plan, seen=1e12), 1e9, 400 / 3.6 * 4).endswith(
        " | 3.6 | 3,600.00 | 1,000,000,000.00 | 0.0 | 0.000111 | 0.25 |"
    )


def test_a_thousand_people_of_hcp() -> None:
    lea, shipped, mindvis = costs.hcp(FLOP, 1000)
    # 4 runs of 120 windows of 10 volumes
    assert lea.samples == shipped.samples == mindvis.samples == 480_000
    assert (lea.seen, shipped.seen, mindvis.seen) == (800_000, 10_000_000, 240_000_000)
    assert lea.sample_bytes == 4 * 4183
    # 8e5 x 3e11 / 1e14 s
    assert lea.hours(1e14) == pytest.approx(2400 / 3600)


def test_all_of_nsd() -> None:
    assert sum(costs.nsd_trials().values()) == 213_000
    plans = {plan.text: plan for plan in costs.nsd(FLOP)}
    alignment = plans["neural alignment, 12 epochs"]
    assert alignment.samples == pytest.approx(191_700)
    assert alignment.epochs == pytest.approx(12)
    assert 4 * 12682 < alignment.sample_bytes < 4 * 17907
    autoencoders = plans["LEA: autoencoders of 8 people, each 100,000 steps of 8"]
    assert autoencoders.seen == 6_400_000
    assert plans["LEA: MaskGIT, 300,000 steps of 8"].seen == 2_400_000
    ridge = plans["LEA: ridge regression, latents (a third of a step) and sums"]
    assert ridge.flop == pytest.approx(1e11 + 8 * 1024**2)


@pytest.mark.full
def test_operations_of_the_vision_transformer_are_those_worked_by_hand() -> None:
    tokens, width, layers = 257, 1280, 32
    block = 2 * tokens * 12 * width**2 + 2 * 2 * tokens**2 * width
    patches = 2 * 256 * width * 3 * 14**2
    assert costs.embedding_flop("nsd") == layers * block + patches + 2 * width * 1024


@pytest.mark.full
def test_costs_are_printed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    found = {"flop": 3e11, "seconds": 3.0, "share": [0.5]}
    monkeypatch.setattr(costs, "in_turns", lambda _, names, **__: {name: [found] for name in names})
    costs.costs(people=10, samples=200, peak=1e14, utilisation=0.5)
    printed = capfd.readouterr().out
    assert "assumed: 100 TFLOP/s x 0.50 = 50.0 TFLOP/s" in printed
    assert "fmri_mae_full_hcp: 0.50, 0.100" in printed
    assert "on disk: HCP 0.1 GB (areas at full rate before conversion: 1 GB); NSD 12." in printed
    assert len(re.findall(r"^\| .*(?:HCP|LEA|alignment)", printed, re.MULTILINE)) == 10
