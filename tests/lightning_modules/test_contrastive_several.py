"""ContrastiveAlignment on several data sets side by side: the loss, what is trained, validation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import seed_everything
from torch import Tensor

from contracts import NO_LABEL, ContractError
from lightning_modules import ContrastiveAlignment, LinearEncoder, ResidualMLP
from lightning_modules.networks.infonce import InfoNCE
from tests.formats.side_by_side import part, side_by_side
from tests.lightning_modules.advice import FEW_BATCHES
from tests.lightning_modules.fitting import Started, assert_same_weights, copied, made_up, small, tiny, trainer
from tests.lightning_modules.several import fitted, step_of, together

pytestmark = FEW_BATCHES


class Quiet:
    """Stands for a trainer that logs nothing: ``training_step`` outside of a fit."""

    def __init__(self, model: ContrastiveAlignment, patch: pytest.MonkeyPatch) -> None:
        self.logged: dict[str, float] = {}
        patch.setattr(model, "log", self._log)
        patch.setattr(model, "log_dict", lambda values, **_: [self._log(*pair) for pair in values.items()])

    def _log(self, name: str, value: Tensor, **_: Any) -> None:
        self.logged[name] = value.item()


# ---- the loss --------------------------------------------------------------------------------------


def unit(values: Tensor) -> Tensor:
    values = values.double()
    return values / values.square().sum(dim=1, keepdim=True).sqrt()


def to_images(brain: Tensor, image: Tensor, stimulus: Tensor, scale: float) -> float:
    """CLIP's loss, row by row in float64; other rows of the same stimulus are no candidates."""
    logits = scale * unit(brain) @ unit(image).T
    total = 0.0
    for matrix in (logits, logits.T):
        for i, row in enumerate(matrix.tolist()):
            candidates = [x for j, x in enumerate(row) if j == i or stimulus[j] != stimulus[i]]
            total += math.log(sum(math.exp(x) for x in candidates)) - row[i]
    return total / (2 * len(logits))


def between(first: Mapping[str, Tensor], second: Mapping[str, Tensor], by: str, scale: float) -> float:
    """The loss between recordings, row by row in float64; rows without partner are left out."""
    sides = []
    for own, other in ((first, second), (second, first)):
        losses = []
        for i in range(len(own["stimulus"])):
            logits = [scale * float(unit(own["brain"][i : i + 1])[0] @ unit(o[None])[0]) for o in other["brain"]]
            partners = [
                j
                for j in range(len(logits))
                if own["stimulus"][i] == other["stimulus"][j]
                or (by == "label" and own["label"][i] == other["label"][j] and own["label"][i] >= 0)
            ]
            if partners:
                whole = math.log(sum(math.exp(x) for x in logits))
                losses.append(whole - sum(logits[j] for j in partners) / len(partners))
        sides.append(sum(losses) / max(len(losses), 1))
    return sum(sides) / 2


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("by", ["none", "stimulus", "label"])
def test_the_loss_is_the_mean_over_data_sets_plus_that_over_their_pairs(
    stores: Path, monkeypatch: pytest.MonkeyPatch, by: Any, weight: float
) -> None:
    data = side_by_side(
        stores, {"fmri": part(stores, "fmri"), "eeg": part(stores, "eeg"), "more": part(stores, "fmri")}
    )
    torch.manual_seed(0)
    encoders = {"fmri": small, "eeg": tiny, "more": LinearEncoder}
    model = together(data.layout, encoders=encoders, between=by, between_weight=weight, temperature=0.2).eval()
    # scales of their own
    for number, loss in enumerate(model.losses.values()):
        loss.logit_scale.data.fill_(math.log(3.0 + number))
    batches, quiet = step_of(data), Quiet(model, monkeypatch)
    with torch.no_grad():
        found = model.training_step(batches, 0).item()
        outputs = {name: model(batch) for name, batch in batches.items()}
    alone = {
        name: to_images(o["brain_embedding"], o["image_embedding"], o["stimulus"], 3.0 + number)
        for number, (name, o) in enumerate(outputs.items())
    }
    expected = sum(alone.values()) / 3
    if by != "none":
        sides = {
            name: {"brain": o["brain_embedding"], "stimulus": o["stimulus"], "label": o["label"]}
            for name, o in outputs.items()
        }
        pairs = [("fmri", "eeg"), ("fmri", "more"), ("eeg", "more")]
        alone["between"] = sum(between(sides[a], sides[b], by, 5.0) for a, b in pairs) / 3
        assert alone["between"] > 0.1, "nothing to compare"
        expected += weight * alone["between"]
    assert found == pytest.approx(expected, rel=1e-5)
    assert quiet.logged["train/loss"] == pytest.approx(expected, rel=1e-5)
    for name, value in alone.items():
        assert quiet.logged[f"train/loss/{name}"] == pytest.approx(value, rel=1e-5)
    scales = {name: quiet.logged[f"train/scale/{name}"] for name in encoders}
    assert scales == pytest.approx({"fmri": 3.0, "eeg": 4.0, "more": 5.0})


# stimuli 3 and 5 are on both sides, 3 twice on one; classes 0 and 1 on both; the last rows have no partner at all
STIMULI = torch.tensor([3, 5, 3, 8, 1, 20]), torch.tensor([5, 3, 11, 12, 30])
LABELS = torch.tensor([0, 1, 0, 0, 2, NO_LABEL]), torch.tensor([1, 0, 0, 4, NO_LABEL])


def recordings(width: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    first, second = (torch.randn(len(s), width, generator=generator) for s in STIMULI)
    return (1.7 * first).requires_grad_(), (0.4 * second + 0.2).requires_grad_()


@pytest.mark.parametrize("by", ["stimulus", "label"])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_recordings_that_belong_together_are_told_from_all_others(by: Any, temperature: float) -> None:
    first, second = recordings()
    loss = InfoNCE(temperature=temperature, positives=by)
    found = loss.between(first, second, stimulus=STIMULI, label=LABELS)
    sides = [
        {"brain": side.detach(), "stimulus": s, "label": k}
        for side, s, k in zip((first, second), STIMULI, LABELS, strict=True)
    ]
    assert found.item() == pytest.approx(between(sides[0], sides[1], by, 1 / temperature), rel=1e-5)
    assert loss.between(second, first, stimulus=STIMULI[::-1], label=LABELS[::-1]).item() == pytest.approx(found.item())
    found.backward()
    # rows without partner are candidates of others, which pushes them away
    assert all((side.grad.abs().sum(dim=1) > 1e-4).all() for side in (first, second))


def test_rows_without_partner_ask_nothing() -> None:
    first, second = recordings()
    loss = InfoNCE(positives="stimulus", temperature=0.5)
    whole = loss.between(first, second, stimulus=STIMULI, label=LABELS)
    kept = torch.tensor([0, 1, 2])
    fewer = loss.between(
        first[kept], second, stimulus=(STIMULI[0][kept], STIMULI[1]), label=(LABELS[0][kept], LABELS[1])
    )
    logits = 2 * F.normalize(first, dim=1) @ F.normalize(second, dim=1).T
    # the rows of the second side that have a partner: 0 and 1, with one and two of them; their candidates are fewer now
    own = [
        F.cross_entropy(torch.stack([m[0], m[1], m[1]]), torch.tensor([1, 0, 2])) for m in (logits.T, logits[kept].T)
    ]
    assert (whole - fewer).item() != 0
    assert (own[0] - own[1]).abs() > 1e-3


@pytest.mark.parametrize("by", ["stimulus", "label"])
def test_without_any_partner_nothing_is_learned(by: Any) -> None:
    first, second = recordings()
    loss = InfoNCE(positives=by)
    apart = (torch.arange(6), torch.arange(10, 15)), (torch.full((6,), NO_LABEL), torch.full((5,), NO_LABEL))
    found = loss.between(first, second, stimulus=apart[0], label=apart[1])
    found.backward()
    assert found.item() == 0
    for gradient in (first.grad, second.grad, loss.logit_scale.grad):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("form", ["exp", "softplus", "raw"])
def test_the_scale_between_recordings_comes_back_from_its_limit(form: Any) -> None:
    """As that to pictures: beyond a cut of its value it would get no gradient and stay."""
    first, second = (side.detach() for side in recordings())
    loss = InfoNCE(temperature=0.01, temperature_form=form, positives="label")
    loss.logit_scale.data += 0.5
    optimiser = torch.optim.Adam(loss.parameters(), lr=0.1)
    for _ in range(30):
        optimiser.zero_grad()
        loss.between(first, second, stimulus=STIMULI, label=LABELS).backward()
        optimiser.step()
    assert loss.scale.item() < 100


# ---- what is trained -------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["none", "stimulus", "label"])
def test_all_encoders_and_the_layers_of_all_people_are_trained(stores: Path, tmp_path: Path, by: Any) -> None:
    started = Started()
    model = fitted(side_by_side(stores), tmp_path, started, between=by, lr=1e-2)
    same = [name for name, value in model.state_dict().items() if torch.equal(value, started.weights[name])]
    assert not same
    kinds = {".".join(name.split(".")[:2]) for name in started.weights}
    assert kinds == {"encoders.fmri", "encoders.eeg", "losses.fmri", "losses.eeg"} | (
        {"shared.logit_scale"} if by != "none" else set()
    )


def test_a_fit_learns_both(stores: Path, tmp_path: Path) -> None:
    data = side_by_side(stores)
    losses = {}
    for epochs in (1, 10):
        model = fitted(data, tmp_path, epochs=epochs, lr=1e-2, schedule="constant", between="label")
        model.eval()
        with torch.no_grad():
            outputs = {name: model(batch) for name, batch in step_of(data, rows=12).items()}
        losses[epochs] = {name: model._loss(name, output).item() for name, output in outputs.items()}
    for name, value in losses[10].items():
        assert value < losses[1][name] - 0.1, name


def test_one_data_set_is_trained_as_it_ever_was(stores: Path, tmp_path: Path) -> None:
    """A data set alone and as the only part: the same first weights, loss, names of logged values."""
    data, alone = side_by_side(stores, {"eeg": part(stores, "eeg")}, validation=0.0), part(stores, "eeg")
    found = {}
    for name, source in (("several", data), ("alone", alone)):
        seed_everything(0, verbose=False)
        model = ContrastiveAlignment(source.layout, tiny, lr=1e-2)
        started = copied(model)
        run = trainer(tmp_path, max_epochs=2)
        run.fit(model, datamodule=source)
        found[name] = (started, model, dict(run.callback_metrics), run.predict(model, datamodule=source))
    assert_same_weights(found["several"][0], found["alone"][0])
    assert found["several"][2].keys() == found["alone"][2].keys()
    assert "train/scale" in found["alone"][2]
    assert not any("/eeg" in name for name in found["alone"][2])
    # the orders of samples differ
    assert found["several"][1].state_dict().keys() == found["alone"][1].state_dict().keys()
    several, single = (torch.cat([o["row"] for o in found[name][3]]) for name in ("several", "alone"))
    assert torch.equal(several, single)


def test_the_usual_encoders_are_those_of_the_modality(stores: Path) -> None:
    layout = side_by_side(stores).layout
    model = ContrastiveAlignment(layout, encoders={"eeg": tiny})
    assert type(model.encoders["fmri"]) is ResidualMLP
    assert type(model.encoders["eeg"]) is tiny.func
    both = ContrastiveAlignment(layout, small, encoders={"eeg": LinearEncoder})
    assert type(both.encoders["fmri"]) is ResidualMLP
    assert both.hparams["encoders"]["fmri"]["init_args"] == small.keywords
    assert type(both.encoders["eeg"]) is LinearEncoder
    assert list(both.encoders) == ["fmri", "eeg"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoders": {"meg": tiny}}, r"encoders are given for \['meg'\]; the data set has fmri, eeg"),
        ({"encoders": {"several": tiny, "eeg": tiny}}, r"given for \['several'\]"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(stores: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        ContrastiveAlignment(side_by_side(stores).layout, **options)


@pytest.mark.parametrize("name", ["between", "train", "values"])
def test_names_that_mean_something_else_are_refused(name: str) -> None:
    layout: Any = made_up({f"{name}-01": [12]}) | {"parts": {name: made_up({"01": [12]})}}
    with pytest.raises(ContractError, match=rf"{name} cannot name a data set here; change --data\.init_args\.parts"):
        ContrastiveAlignment(layout)


def test_what_needs_several_data_sets_or_classes_is_refused_without() -> None:
    with pytest.raises(ContractError, match="between='label' needs several data sets side by side, found fmri"):
        ContrastiveAlignment(made_up({"01": [12]}, classes=2), between="label")
    with pytest.raises(ContractError, match=r"given for \['eeg'\]; the data set has fmri"):
        ContrastiveAlignment(made_up({"01": [12]}), encoders={"eeg": tiny})
    parts = {"one": made_up({"01": [12]}), "two": made_up({"02": [12]})}
    nameless: Any = made_up({"one-01": [12], "two-02": [12]}) | {"parts": parts, "modality": "several"}
    with pytest.raises(ContractError, match="needs class names"):
        ContrastiveAlignment(nameless, between="label")
    assert ContrastiveAlignment(nameless, between="stimulus").between == "stimulus"


# ---- validation ------------------------------------------------------------------------------------


def test_the_validation_loss_does_not_depend_on_the_batch_size(stores: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = together(side_by_side(stores).layout).eval()
    found = []
    for size in (1, 3, 7, 100):
        [metrics] = trainer(tmp_path).validate(model, datamodule=side_by_side(stores, batch_size=size), verbose=False)
        found.append({name: value for name, value in metrics.items() if name.startswith("validation/loss")})
        assert found[-1] == pytest.approx(found[0], rel=1e-5)
    # all people of a part together, each part by itself
    data = side_by_side(stores)
    samples = data.dataset("validation")
    for name, end in zip(samples.parts, samples.ends.tolist(), strict=True):
        rows = torch.arange(samples.first_row[name], end)
        outputs = [model(samples[rows[samples.group[rows] == g]]) for g in samples.group[rows].unique()]
        joined = {key: torch.cat([output[key] for output in outputs]) for key in outputs[0]}
        expected = to_images(joined["brain_embedding"], joined["image_embedding"], joined["stimulus"], 1 / 0.07)
        assert found[0][f"validation/loss/{name}"] == pytest.approx(expected, rel=1e-4)
    assert found[0]["validation/loss"] == pytest.approx(
        (found[0]["validation/loss/fmri"] + found[0]["validation/loss/eeg"]) / 2, rel=1e-5
    )
    assert len(found[0]) == 3


def test_a_part_without_validation_stimuli_has_no_validation_loss(stores: Path, tmp_path: Path) -> None:
    few = {"classes": (5,), "train": (0, 1), "test": (2,)}
    for seed in range(8):
        data = side_by_side(
            stores, {"few": part(stores, "fmri", **few), "eeg": part(stores, "eeg")}, validation=0.1, seed=seed
        )
        if not (data.divided["few"].trials["side"] == "validation").any():
            break
    model = together(data.layout, encoders={"few": small, "eeg": tiny})
    [metrics] = trainer(tmp_path).validate(model, datamodule=data, verbose=False)
    assert set(metrics) == {"validation/loss", "validation/loss/eeg"}
    assert metrics["validation/loss"] == metrics["validation/loss/eeg"]
