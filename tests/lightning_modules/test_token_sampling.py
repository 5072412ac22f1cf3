"""Sampling of codes: a plain loop gives the same ones, whatever the batch, and they follow their distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from contracts import ContractError
from lightning_modules.networks.row_random import row_uniform
from lightning_modules.networks.token_sampling import (
    Sampled,
    SamplerOptions,
    halton_order,
    hidden_after,
    sample_codes,
)
from lightning_modules.networks.token_transformer import TokenTransformer

Array = np.ndarray[Any, Any]
WIDTH, CODES, SIDE, STIMULI = 16, 12, 4, 16
PUBLISHED = [3, 8, 13, 17, 22, 26, 29, 32, 34, 36, 36]
OPTIONS: dict[str, dict[str, Any]] = {
    "confidence": {},
    "cold": {"temperature": 0.0},
    "halton": {"order": "halton"},
    "guided": {"guidance": 2.0},
    "guided halton": {"order": "halton", "guidance": 0.7},
    "one sample": {"samples": 1},
    "one step": {"steps": 1},
    "more steps than codes": {"steps": 23},
    "another seed": {"seed": 2**40 + 5},
}
every_option = pytest.mark.parametrize("name", OPTIONS)


def options_of(name: str, **more: Any) -> SamplerOptions:
    return SamplerOptions(**{"steps": 5, "samples": 3, "temperature": 1.5, "seed": 3, **OPTIONS[name], **more})


def transformer(side: int = SIDE, codes: int = CODES, dtype: torch.dtype = torch.float64) -> TokenTransformer:
    """One whose predictions depend visibly on the condition, the place and the other codes."""
    torch.manual_seed(0)
    model = TokenTransformer(codes=codes, tokens=side**2, width=WIDTH, depth=2, num_heads=2, mlp_width=24)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model.to(dtype).eval()


def conditions(number: int = STIMULI, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(number, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


STIMULUS = torch.arange(STIMULI) * 7 + 2
FREE = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def drawn(
    model: TokenTransformer,
    options: SamplerOptions,
    rows: Sequence[int] | None = None,
    *,
    side: int = SIDE,
    dtype: torch.dtype = torch.float64,
) -> Sampled:
    chosen = torch.arange(STIMULI) if rows is None else torch.tensor(rows)
    return sample_codes(
        model,
        conditions(dtype=dtype)[chosen],
        stimulus=STIMULUS[chosen],
        side=side,
        options=options,
        without=FREE.to(dtype) if options.guidance else None,
    )


class Seen:
    """The codes that a transformer is given, call by call."""

    def __init__(self, model: TokenTransformer) -> None:
        self.codes: list[Tensor] = []
        self.handle = model.register_forward_pre_hook(lambda _, inputs: self.codes.append(inputs[0].clone()))


def hidden_counts(side: int, **more: Any) -> list[int]:
    """How many codes are hidden at each step, as the transformer sees it."""
    model = transformer(side)
    seen = Seen(model)
    sample_codes(
        model, conditions(2), stimulus=STIMULUS[:2], side=side, options=SamplerOptions(**{"samples": 2, **more})
    )
    counts = [(codes == CODES).sum(dim=1) for codes in seen.codes]
    assert all(len(set(count.tolist())) == 1 for count in counts), "all samples hide the same number"
    return [int(count[0]) for count in counts]


# ---- the schedule ------------------------------------------------------------------------------------


def test_codes_fixed_at_each_step_are_the_published_ones() -> None:
    hidden, fixed = 256, []
    for step in range(1, 12):
        left = hidden_after(step, steps=11, n=256, hidden=hidden) if step < 11 else 0
        fixed.append(hidden - left)
        hidden = left
    assert fixed == PUBLISHED


@pytest.mark.parametrize("order", ["confidence", "halton"])
def test_the_transformer_sees_the_published_schedule(order: str) -> None:
    counts = hidden_counts(16, order=order)
    assert (-np.diff([*counts, 0])).tolist() == PUBLISHED


@pytest.mark.parametrize(("side", "steps"), [(1, 1), (1, 4), (2, 4), (2, 11), (3, 30), (5, 3)])
def test_every_step_hides_fewer_but_at_least_one(side: int, steps: int) -> None:
    n, counts = side * side, hidden_counts(side, steps=steps)
    assert counts[0] == n
    for step in range(1, steps):
        expected = math.floor(n * math.cos(math.pi * step / (2 * steps)))
        assert counts[step] == max(1, min(counts[step - 1] - 1, expected))


# ---- a plain loop --------------------------------------------------------------------------------------


def plainly(model: TokenTransformer, row: int, sample: int, options: SamplerOptions, side: int) -> tuple[Array, float]:
    """One picture written out: all places go through the head and softmax at every step."""
    n, steps = side * side, options.steps
    numbers = row_uniform(STIMULUS[row : row + 1], steps * 2 * n, seed=options.seed, epoch=sample)
    uniform = numbers.double().numpy().reshape(steps, 2, n) + 2.0**-25
    known: dict[int, int] = {}
    kept: dict[int, float] = {}
    start = int(uniform[0, 1, 0] * n)
    order = list(halton_order(side))
    order = order[start:] + order[:start]
    for step in range(1, steps + 1):
        codes = torch.tensor([[known.get(place, model.codes) for place in range(n)]])
        with torch.no_grad():
            logits = model.logits(model(codes, conditions()[row : row + 1]))[0].numpy()
            if options.guidance:
                free = model.logits(model(codes, FREE[None]))[0].numpy()
                logits = logits + options.guidance * step / steps * (logits - free)
        logp = scipy.special.log_softmax(logits, axis=1)
        hidden = [place for place in range(n) if place not in known]
        new = {}
        for place in hidden:
            below = np.cumsum(np.exp(logp[place]))
            new[place] = min(int(np.sum(below < uniform[step - 1, 0, place] * below[-1])), model.codes - 1)
        if step < steps:
            left = max(1, min(len(hidden) - 1, math.floor(n * math.cos(math.pi / 2 * step / steps))))
            if options.order == "halton":
                hidden.sort(key=order.index)
            else:
                gumbel = -np.log(-np.log(uniform[step - 1, 1]))
                heat = options.temperature * (1 - step / steps)
                hidden.sort(key=lambda place: -(logp[place, new[place]] + heat * gumbel[place]))
            hidden = hidden[: len(hidden) - left]
        known |= {place: new[place] for place in hidden}
        kept |= {place: float(logp[place, new[place]]) for place in hidden}
    return np.array([known[place] for place in range(n)]), float(np.mean([kept[place] for place in range(n)]))


@every_option
def test_a_plain_loop_draws_the_same_codes_with_the_same_confidence(name: str) -> None:
    model, options = transformer(), options_of(name)
    found = drawn(model, options)
    assert found.codes.shape == (STIMULI, options.samples, SIDE**2)
    for row in (0, 5, 15):
        for sample in range(options.samples):
            codes, confidence = plainly(model, row, sample, options, SIDE)
            assert found.codes[row, sample].tolist() == codes.tolist()
            assert float(found.confidence[row, sample]) == pytest.approx(confidence, rel=1e-5)


@pytest.mark.parametrize("name", ["confidence", "halton", "guided", "more steps than codes"])
def test_a_picture_of_one_code(name: str) -> None:
    model, options = transformer(side=1), options_of(name)
    found = drawn(model, options, side=1)
    for row in range(4):
        codes, confidence = plainly(model, row, 1, options, 1)
        assert found.codes[row, 1].tolist() == codes.tolist()
        assert float(found.confidence[row, 1]) == pytest.approx(confidence, rel=1e-5)
    assert len(found.codes.unique()) > 4


# ---- batches -------------------------------------------------------------------------------------------


@every_option
def test_codes_do_not_depend_on_the_batch(name: str) -> None:
    model, options = transformer(), options_of(name)
    whole = drawn(model, options)
    for size in (1, 3):
        parts = [drawn(model, options, range(i, min(i + size, STIMULI))) for i in range(0, STIMULI, size)]
        assert torch.equal(torch.cat([part.codes for part in parts]), whole.codes)
        torch.testing.assert_close(torch.cat([part.confidence for part in parts]), whole.confidence)
    order = torch.randperm(STIMULI, generator=torch.Generator().manual_seed(0)).tolist()
    for rows in (order, order[:5], [3, 3, 3]):
        assert torch.equal(drawn(model, options, rows).codes, whole.codes[rows])


@every_option
def test_almost_all_codes_are_the_same_in_single_precision(name: str) -> None:
    single = torch.float32
    model, options = transformer(dtype=single), options_of(name)
    whole = drawn(model, options, dtype=single).codes
    one = torch.cat([drawn(model, options, [row], dtype=single).codes for row in range(STIMULI)])
    assert (one == whole).double().mean() >= 0.99
    assert (drawn(transformer(), options).codes == whole).double().mean() >= 0.99


def test_the_first_samples_are_the_same_however_many_are_drawn() -> None:
    model = transformer()
    many, few = (drawn(model, options_of("confidence", samples=samples)).codes for samples in (5, 2))
    assert torch.equal(many[:, :2], few)


@pytest.mark.parametrize("name", ["confidence", "halton", "one step"])
def test_seeds_samples_and_stimuli_give_other_pictures(name: str) -> None:
    model = transformer()
    condition = conditions(1).expand(STIMULI, -1)

    def pictures(seed: int) -> Tensor:
        options = options_of(name, seed=seed)
        return sample_codes(model, condition, stimulus=STIMULUS, side=SIDE, options=options).codes.flatten(0, 1)

    # the condition is always the same one
    everything = torch.cat([pictures(0), pictures(1)])
    assert len(everything.unique(dim=0)) == len(everything) == 2 * STIMULI * 3
    assert torch.equal(pictures(0), everything[: len(everything) // 2])


# ---- distributions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_codes_follow_the_distribution(guidance: float) -> None:
    """In one step the codes of a picture are independent, each from its softmax (chi-square)."""
    number, side, codes = 4000, 2, 5
    model, condition = transformer(side, codes), conditions(1)
    options = SamplerOptions(steps=1, samples=2, seed=1, guidance=guidance)
    given = condition.expand(number, -1)
    found = sample_codes(model, given, stimulus=torch.arange(number), side=side, options=options, without=FREE).codes
    hidden = torch.full((1, side**2), codes)
    with torch.no_grad():
        conditioned, free = (model.logits(model(hidden, c))[0].numpy() for c in (condition, FREE[None]))
    probability = scipy.special.softmax(conditioned + guidance * (conditioned - free), axis=1)
    values = found.flatten(0, 1).numpy()
    for place in range(side**2):
        counts = np.bincount(values[:, place], minlength=codes)
        assert scipy.stats.chisquare(counts, probability[place] * len(values)).pvalue > 1e-3
    for first, second in ((0, 1), (0, 3), (2, 3)):
        table = np.zeros((codes, codes))
        np.add.at(table, (values[:, first], values[:, second]), 1)
        assert scipy.stats.contingency.chi2_contingency(table + 0.1).pvalue > 1e-3


def test_codes_follow_the_distribution_in_half_precision() -> None:
    """Many codes of small probabilities, whose sum half precision would round away."""
    number, codes = 20_000, 300
    model, condition = transformer(2, codes, torch.float32), conditions(1, torch.float32)
    options = SamplerOptions(steps=1, samples=1, seed=1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        given = torch.nn.functional.linear(condition, torch.eye(WIDTH))
        logits = model.logits(model(torch.full((1, 4), codes), given))[0]
        many = given.expand(number, -1)
        found = sample_codes(model, many, stimulus=torch.arange(number), side=2, options=options)
    assert given.dtype == torch.bfloat16
    probability = logits.double().softmax(dim=1).numpy()
    for place in range(4):
        counts = np.bincount(found.codes[:, 0, place].numpy(), minlength=codes)
        often = probability[place] * number > 5
        counts, expected = (np.append(x[often], x[~often].sum()) for x in (counts, probability[place] * number))
        assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3


def test_without_heat_the_most_probable_are_kept() -> None:
    model = transformer()
    options = options_of("cold", steps=2, samples=1)
    # a picture of one step is what the first of two steps draws
    first = drawn(model, options_of("cold", steps=1, samples=1)).codes[:, 0]
    seen = Seen(model)
    drawn(model, options)
    seen.handle.remove()
    with torch.no_grad():
        logp = model.logits(model(seen.codes[0], conditions())).log_softmax(dim=-1)
    logp = logp.gather(2, first[..., None])[..., 0]
    visible = seen.codes[1] != CODES
    assert set(visible.sum(dim=1).tolist()) == {SIDE**2 - math.floor(SIDE**2 * math.cos(math.pi / 4))}
    assert torch.equal(seen.codes[1][visible], first[visible])
    for row in range(STIMULI):
        assert logp[row][visible[row]].min() > logp[row][~visible[row]].max()


def test_endless_heat_leaves_the_choice_to_chance() -> None:
    """What is kept has the largest Gumbel numbers then, whatever its probability."""
    model = transformer()
    seen = Seen(model)
    drawn(model, options_of("confidence", steps=2, samples=1, temperature=1e9))
    uniform = row_uniform(STIMULUS, 2 * SIDE**2, seed=3, epoch=0)[:, SIDE**2 :]
    kept = (seen.codes[1] != CODES).sum(dim=1)[0]
    for row in range(STIMULI):
        visible = (seen.codes[1][row] != CODES).nonzero().flatten()
        assert set(visible.tolist()) == set(uniform[row].argsort(descending=True)[:kept].tolist())


def test_guidance_grows_with_the_steps() -> None:
    """Against logits by hand, step by step: with so much of it the draw is the largest logit."""
    weight, steps = 1e6, 4
    model = transformer()
    seen = Seen(model)
    found = drawn(model, options_of("guided", guidance=weight, steps=steps, samples=1)).codes[:, 0]
    seen.handle.remove()
    inputs = [codes.chunk(2)[0] for codes in seen.codes]
    for step, (before, after) in enumerate(zip(inputs, [*inputs[1:], found], strict=True), start=1):
        with torch.no_grad():
            conditioned = model.logits(model(before, conditions()))
            free = model.logits(model(before, FREE.expand(STIMULI, -1)))
        largest = (conditioned + weight * step / steps * (conditioned - free)).argmax(dim=-1)
        new = (before == CODES) & (after != CODES)
        assert torch.equal(after[new], largest[new])
    # and with little of it, the exact weight of each step is in the plain loop
    plain = drawn(model, options_of("confidence")).codes
    assert (drawn(model, options_of("guided", guidance=1e-9)).codes == plain).all()
    assert (drawn(model, options_of("guided", guidance=1.0)).codes != plain).any()


# ---- Halton --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 2, 5, 7, 8, 16])
def test_the_halton_order_is_that_of_scipy(side: int) -> None:
    sequence = scipy.stats.qmc.Halton(d=2, scramble=False)
    # the origin, with which scipy begins, is left out
    points = sequence.fast_forward(1).random(40 * side * side)
    columns, rows = (points * side).astype(int).T
    expected = list(dict.fromkeys((rows * side + columns).tolist()))
    assert sorted(expected) == list(range(side * side))
    assert list(halton_order(side)) == expected


def test_codes_are_uncovered_along_the_halton_order_from_somewhere() -> None:
    model = transformer()
    seen = Seen(model)
    drawn(model, options_of("halton", steps=6))
    order = torch.tensor(halton_order(SIDE))
    starts = []
    for picture in range(3 * STIMULI):
        # the visible ones are a run of the order, which ends where it began
        runs = [(codes[picture] != CODES)[order].tolist() for codes in seen.codes[1:]]
        start = next(i for i, seen_here in enumerate(runs[0]) if seen_here and not runs[0][i - 1])
        starts.append(start)
        for visible in runs:
            count = sum(visible)
            assert [visible[(start + i) % len(visible)] for i in range(count)] == [True] * count
    assert len(set(starts)) > SIDE**2 // 2


# ---- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"samples": 0}, {"temperature": -0.1}, {"guidance": -1.0}, {"temperature": math.nan}]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ContractError, match=r"at least 1, temperature and guidance at least 0, found .*"):
        SamplerOptions(**options)


def test_guidance_needs_an_embedding_of_no_condition() -> None:
    with pytest.raises(ContractError, match="train with condition_dropout"):
        sample_codes(
            transformer(), conditions(2), stimulus=STIMULUS[:2], side=SIDE, options=SamplerOptions(guidance=1.0)
        )


@pytest.mark.parametrize("stimulus", [74442, 567976])
def test_the_largest_random_number_has_finite_noise(stimulus: int) -> None:
    """Of the numbers of these stimuli one is 1 - 2^-24, to which half a step is added; float32 would make it 1."""
    options = SamplerOptions(steps=2, samples=1, temperature=0.0)
    numbers = row_uniform(torch.tensor([stimulus]), 2 * 2 * 25, seed=0, epoch=0, stream=0)
    assert float(numbers.max()) == 1 - 2.0**-24
    given: dict[str, Any] = {"stimulus": torch.full((4,), stimulus), "side": 5, "options": options}
    single, double = (
        sample_codes(transformer(5, dtype=dtype), conditions(4, dtype), **given).codes
        for dtype in (torch.float32, torch.float64)
    )
    assert torch.equal(single, double)
