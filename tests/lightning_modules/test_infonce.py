"""InfoNCE against numpy, hand-worked cases and published code."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import open_clip.loss
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from contracts import NO_LABEL, ContractError
from lightning_modules.networks.infonce import InfoNCE
from tests.lightning_modules.infonce import (
    DIRECTION,
    DUPLICATES,
    FORMS,
    LABEL,
    NORMALISE,
    POSITIVES,
    STIMULUS,
    different_pictures,
    embeddings,
    reference,
)

# ---- against numpy ---------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicates", DUPLICATES)
@pytest.mark.parametrize("positives", POSITIVES)
@pytest.mark.parametrize("direction", DIRECTION)
@pytest.mark.parametrize("normalise", NORMALISE)
def test_every_combination_is_the_formula(normalise: str, direction: str, positives: str, duplicates: str) -> None:
    brain, image = embeddings()
    loss = InfoNCE(
        normalise=normalise, direction=direction, temperature=0.2, positives=positives, duplicates=duplicates
    )
    expected = reference(
        brain,
        image,
        normalise=normalise,
        direction=direction,
        scale=5.0,
        positives=positives,
        duplicates=duplicates,
    )
    assert loss(brain, image, stimulus=STIMULUS, label=LABEL).item() == pytest.approx(expected, rel=2e-6)


def test_the_combinations_are_different_numbers() -> None:
    """Else the test above could pass with an argument that does nothing."""
    brain, image = embeddings()
    found = {}
    for combination in itertools.product(NORMALISE, DIRECTION, POSITIVES, DUPLICATES):
        normalise, direction, positives, duplicates = combination
        loss = InfoNCE(normalise=normalise, direction=direction, positives=positives, duplicates=duplicates)
        found[combination] = round(loss(brain, image, stimulus=STIMULUS, label=LABEL).item(), 4)
    # what to do with duplicates matters only where they are not positives
    assert len(set(found.values())) == len(NORMALISE) * len(DIRECTION) * (len(POSITIVES) + 1)


def test_samples_without_class_do_not_belong_together() -> None:
    brain, image = embeddings(4)
    loss = InfoNCE(positives="label")
    nothing = loss(brain, image, **different_pictures(4))
    assert nothing == loss(brain, image, stimulus=torch.arange(4), label=torch.arange(4))
    assert nothing != loss(brain, image, stimulus=torch.arange(4), label=torch.zeros(4, dtype=torch.int64))


def test_the_order_of_samples_does_not_matter() -> None:
    brain, image = embeddings()
    order = torch.tensor([4, 0, 8, 2, 6, 1, 3, 7, 5])
    for positives, duplicates in itertools.product(POSITIVES, DUPLICATES):
        loss = InfoNCE(positives=positives, duplicates=duplicates)
        found = loss(brain[order], image[order], stimulus=STIMULUS[order], label=LABEL[order])
        torch.testing.assert_close(found, loss(brain, image, stimulus=STIMULUS, label=LABEL), rtol=1e-6, atol=0)


# ---- the temperature -------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.5, 1.0, 10.0])
@pytest.mark.parametrize("form", FORMS)
def test_the_scale_starts_at_one_over_the_temperature(form: str, temperature: float) -> None:
    loss = InfoNCE(temperature=temperature, temperature_form=form)
    assert loss.scale.item() == pytest.approx(1 / temperature, rel=2e-6)
    assert len(list(loss.parameters())) == (form != "fixed")
    assert "logit_scale" in loss.state_dict()


@pytest.mark.parametrize("start", [0.2, 1.0])
@pytest.mark.parametrize("form", ["exp", "softplus", "raw"])
def test_the_gradient_of_the_temperature_is_that_of_finite_differences(form: str, start: float) -> None:
    brain, image = embeddings()
    loss = InfoNCE(temperature=start, temperature_form=form)
    loss(brain, image, stimulus=STIMULUS, label=LABEL).backward()
    scale = {"exp": math.exp, "softplus": lambda t: math.log1p(math.exp(t)), "raw": float}[form]
    t, step = loss.logit_scale.item(), 1e-5
    options = {"normalise": "both", "direction": "symmetric", "positives": "none", "duplicates": "removed"}
    above, below = (reference(brain, image, scale=scale(t + d), **options) for d in (step, -step))
    assert abs(above - below) / (2 * step) > 1e-3, "nothing to compare"
    assert loss.logit_scale.grad.item() == pytest.approx((above - below) / (2 * step), rel=1e-4)


@pytest.mark.parametrize("form", ["exp", "softplus", "raw"])
def test_the_learned_scale_stops_at_its_limit(form: str) -> None:
    brain, image = embeddings()
    loss = InfoNCE(temperature_form=form, max_scale=20.0)
    with torch.no_grad():
        loss.logit_scale.fill_(60.0)
    assert loss.scale.item() == 20.0
    expected = reference(
        brain, image, normalise="both", direction="symmetric", scale=20.0, positives="none", duplicates="removed"
    )
    found = loss(brain, image, stimulus=STIMULUS, label=LABEL)
    assert found.item() == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("form", ["exp", "softplus", "raw"])
@pytest.mark.parametrize("beyond", [0.0, 0.5])
def test_the_learned_scale_comes_back_from_its_limit(form: str, beyond: float) -> None:
    """As in CLIP, whose parameter is cut to the limit after each step and goes on learning from there."""
    brain, image = embeddings()
    loss = InfoNCE(temperature=0.01, temperature_form=form, max_scale=100.0)
    with torch.no_grad():
        loss.logit_scale += beyond
    optimiser = torch.optim.Adam(loss.parameters(), lr=0.1)
    for _ in range(30):
        optimiser.zero_grad()
        # the pairs are random: a smaller scale is always better
        loss(brain, image, stimulus=STIMULUS, label=LABEL).backward()
        optimiser.step()
    assert loss.scale.item() < 100


@pytest.mark.parametrize("form", ["exp", "softplus", "raw"])
def test_a_scale_that_overflows_is_at_its_limit_with_a_finite_gradient(form: str) -> None:
    brain, image = embeddings()
    loss = InfoNCE(temperature_form=form)
    with torch.no_grad():
        loss.logit_scale.fill_(200.0)
    loss(brain, image, stimulus=STIMULUS, label=LABEL).backward()
    assert loss.scale.item() == pytest.approx(100.0)
    assert torch.isfinite(loss.logit_scale.grad)


def test_a_fixed_temperature_has_no_limit_and_nothing_to_learn() -> None:
    loss = InfoNCE(temperature=1e-3, temperature_form="fixed", max_scale=100.0)
    assert loss.scale.item() == pytest.approx(1000)
    assert not list(loss.parameters())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("temperature", [1e-3, 10.0])
def test_extreme_temperatures_are_finite(form: str, temperature: float) -> None:
    brain, image = (x.requires_grad_() for x in embeddings())
    loss = InfoNCE(normalise="both", temperature=temperature, temperature_form=form, max_scale=2000.0)
    value = loss(brain, image, stimulus=STIMULUS, label=LABEL)
    value.backward()
    expected = reference(
        brain.detach(),
        image.detach(),
        normalise="both",
        direction="symmetric",
        scale=1 / temperature,
        positives="none",
        duplicates="removed",
    )
    assert value.item() == pytest.approx(expected, rel=1e-5)
    for gradient in (brain.grad, image.grad, *(p.grad for p in loss.parameters())):
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() > 0


# ---- worked by hand --------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTION)
@pytest.mark.parametrize(("rows", "scale"), [(2, 1.0), (5, 3.0), (8, 10.0)])
def test_orthonormal_embeddings(rows: int, scale: float, direction: str) -> None:
    vectors = torch.eye(8)[:rows]
    loss = InfoNCE(temperature=1 / scale, direction=direction)
    expected = math.log(1 + (rows - 1) * math.exp(-scale))
    # lengths do not matter where both sides are normalised
    found = loss(3 * vectors, 5 * vectors, **different_pictures(rows))
    assert found.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_orthonormal_embeddings_of_one_picture_seen_twice() -> None:
    vectors = torch.eye(4)
    pairs = {"stimulus": torch.tensor([0, 0, 1, 2]), "label": torch.full((4,), NO_LABEL)}
    e = math.exp(-2.0)
    expected = {
        # the two rows of picture 0 have two wrong candidates, the others three
        ("none", "removed"): (math.log(1 + 2 * e) + math.log(1 + 3 * e)) / 2,
        ("none", "negatives"): math.log(1 + 3 * e),
        # one of the two positives is orthogonal: its logit is 0 instead of 2
        ("stimulus", "removed"): math.log(1 + 3 * e) + 1 / 2,
    }
    for (positives, duplicates), value in expected.items():
        loss = InfoNCE(temperature=0.5, positives=positives, duplicates=duplicates)
        assert loss(vectors, vectors, **pairs).item() == pytest.approx(value, rel=1e-5), (positives, duplicates)


@pytest.mark.parametrize("normalise", NORMALISE)
def test_identical_embeddings_give_the_logarithm_of_the_batch(normalise: str) -> None:
    same = torch.full((7, 3), 0.4)
    value = InfoNCE(normalise=normalise)(same, same, **different_pictures(7))
    assert value.item() == pytest.approx(math.log(7), rel=1e-5)


def test_a_batch_of_a_single_picture_teaches_nothing() -> None:
    brain, image = embeddings(3)
    brain.requires_grad_()
    value = InfoNCE()(brain, image, stimulus=torch.zeros(3, dtype=torch.int64), label=torch.zeros(3, dtype=torch.int64))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(brain.grad, torch.zeros_like(brain), rtol=0, atol=1e-6)


# ---- published losses ------------------------------------------------------------------------------


def test_the_default_is_that_of_open_clip() -> None:
    brain, image = embeddings(16)
    loss = InfoNCE()
    expected = open_clip.loss.ClipLoss()(F.normalize(image, dim=-1), F.normalize(brain, dim=-1), torch.tensor(1 / 0.07))
    torch.testing.assert_close(loss(brain, image, **different_pictures(16)), expected, rtol=1e-6, atol=0)
    # with duplicates as negatives also where pictures come twice
    found = InfoNCE(duplicates="negatives")(brain, image, stimulus=torch.zeros(16).long(), label=torch.zeros(16).long())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_ferrante_is_cross_entropy_one_way() -> None:
    brain, image = embeddings()
    loss = InfoNCE(direction="brain_to_image", temperature=0.1, temperature_form="fixed", duplicates="negatives")
    logits = F.normalize(brain, dim=-1) @ F.normalize(image, dim=-1).T / 0.1
    expected = F.cross_entropy(logits, torch.arange(len(logits)))
    torch.testing.assert_close(loss(brain, image, stimulus=STIMULUS, label=LABEL), expected, rtol=1e-6, atol=0)


def test_defossez_normalises_the_other_side_alone() -> None:
    brain, image = embeddings()
    loss = InfoNCE(
        normalise="image", direction="brain_to_image", temperature=1.0, temperature_form="fixed", duplicates="negatives"
    )
    logits = torch.einsum("bd,od->bo", brain, image / image.norm(dim=-1, keepdim=True))
    expected = F.cross_entropy(logits, torch.arange(len(logits)))
    torch.testing.assert_close(loss(brain, image, stimulus=STIMULUS, label=LABEL), expected, rtol=1e-6, atol=0)


def test_positives_by_label_are_supervised_contrastive_learning() -> None:
    """Khosla et al. (2020), eq. 2: recordings are the anchors, A(i) all pictures, P(i) those of the same class."""
    brain, image = embeddings()
    z = F.normalize(brain.double(), dim=-1)
    a = F.normalize(image.double(), dim=-1)
    label = torch.tensor([0, 1, 0, 0, 1, 2, 1, 0, 2])
    tau, total = 0.1, 0.0
    for i in range(len(z)):
        denominator = sum(torch.exp(z[i] @ other / tau) for other in a)
        belonging = [p for p in range(len(a)) if label[p] == label[i]]
        total -= sum(torch.log(torch.exp(z[i] @ a[p] / tau) / denominator) for p in belonging) / len(belonging)
    loss = InfoNCE(direction="brain_to_image", temperature=tau, temperature_form="fixed", positives="label")
    found = loss(brain, image, stimulus=torch.arange(len(z)), label=label)
    assert found.item() == pytest.approx(float(total) / len(z), rel=2e-6)


def test_the_published_neural_alignment_loss(shared: Path) -> None:
    golden = load_file(shared / "golden" / "neural_alignment.safetensors")
    loss = InfoNCE(direction="brain_to_image", temperature=0.1, temperature_form="fixed", duplicates="negatives")
    found = loss(golden["loss_brain"], golden["loss_image"], **different_pictures(len(golden["loss_brain"])))
    assert found.item() == pytest.approx(golden["loss"].item(), abs=1e-5)


# ---- precision, arguments --------------------------------------------------------------------------


@pytest.mark.parametrize("rounded", [False, True], ids=["float32 inputs", "bfloat16 inputs"])
def test_the_loss_is_computed_in_float32_under_autocast(rounded: bool) -> None:
    brain, image = (x.bfloat16() if rounded else x for x in embeddings())
    pairs = {"stimulus": STIMULUS, "label": LABEL}
    loss = InfoNCE(temperature=0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(brain, image, **pairs)
        # what half precision would have given is another number
        half = F.normalize(brain, dim=-1) @ F.normalize(image, dim=-1).T
    assert found.dtype == torch.float32
    assert half.dtype == torch.bfloat16
    assert torch.equal(found, loss(brain.float(), image.float(), **pairs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "found 0.0 and"),
        ({"temperature": -0.1}, r"found -0\.1 and"),
        ({"temperature": math.nan}, "found nan and"),
        ({"temperature": math.inf}, "found inf and"),
        ({"temperature_form": "fixed", "temperature": 0.0}, "found 0.0 and"),
        ({"max_scale": 0.0}, r"and 0\.0"),
        ({"max_scale": -3.0}, r"and -3\.0"),
        ({"max_scale": math.nan}, "and nan"),
        ({"temperature": 0.001}, r"temperature of 0\.001 .* max_scale=100"),
        ({"temperature": 0.5, "temperature_form": "raw", "max_scale": 1.5}, r"scale of 2\.0, above max_scale=1\.5"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        InfoNCE(**options)
