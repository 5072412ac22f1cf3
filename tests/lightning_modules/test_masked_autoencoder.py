"""The masked autoencoder against plain primitives, what hidden tokens may reach, masks, and gradients."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.networks.brain_tokens import PatchTokens, RegionTimeTokens, RoiTokens
from lightning_modules.networks.masked_autoencoder import (
    MaskedAutoencoder,
    hidden_tokens,
    segments_to_keep,
    sine_positions,
    tokens_to_keep,
)
from tests.lightning_modules.plain_transformer import linear, sines, transformer

Kind = Literal["code", "paper", "patch", "region_time"]
REGIONS = {"01": {"V1": 5, "V2": 3}, "02": {"V2": 4}}
SIZES = {"width": 24, "depth": 2, "num_heads": 3, "decoder_width": 16, "decoder_depth": 1, "decoder_num_heads": 2}
KINDS: tuple[Kind, ...] = ("code", "paper", "patch", "region_time")
MASKED: tuple[Kind, ...] = ("patch", "region_time")


def autoencoder(kind: Kind, rois: Any = REGIONS, *, seed: int = 0, **options: Any) -> MaskedAutoencoder:
    """A small one, every weight random (as none is at first: biases, gains)."""
    sizes = {**SIZES, "mlp_ratio": 1.5, **options}
    widths = {"width": sizes["width"], "decoder_width": sizes["decoder_width"]}
    tokens: Any
    if kind == "patch":
        voxels = {person: sum(own.values()) for person, own in rois.items()}
        tokens = PatchTokens(voxels, patch_size=2, **widths)
    elif kind == "region_time":
        tokens = RegionTimeTokens(rois, volumes=8, patch_size=2, **widths)
    else:
        tokens = RoiTokens(rois, heads=3, shared_output=kind == "code", **widths)
    made = MaskedAutoencoder(
        tokens,
        latent="tokens" if kind in MASKED else "cls",
        latent_width=20 if kind == "code" else None,
        **sizes,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.normal_(generator=generator).mul_(0.2).add_(0.8 if "norm" in name else 0)
    return made


def signal(model: MaskedAutoencoder, person: int, rows: int = 3) -> Tensor:
    return torch.randn(rows, model.tokens.numbers[person], generator=torch.Generator().manual_seed(9))


def some_tokens(model: MaskedAutoencoder, person: int, rows: int = 3, kept: int = 0) -> Tensor:
    length = len(model.tokens.rows[person])
    noise = torch.rand(rows, length, generator=torch.Generator().manual_seed(4))
    return noise.argsort(dim=1)[:, : kept or max(1, length // 2)]


# ---- against plain primitives ----------------------------------------------------------------------


@pytest.mark.parametrize("person", [0, 1])
@pytest.mark.parametrize("kind", ["code", "paper"])
def test_one_latent_vector_is_what_the_primitives_give(kind: Kind, person: int) -> None:
    model = autoencoder(kind)
    state, tokens = model.state_dict(), model.tokens
    numbers, subject = signal(model, person), torch.full((3,), person)
    rows = 1 + tokens.rows[person]
    embedded = tokens.embed(numbers, subject) + sines(6, 24)[rows]
    encoded = transformer(
        state,
        torch.cat([state["cls_token"].expand(3, -1, -1), embedded], dim=1),
        blocks="encoder.blocks",
        last="encoder.norm",
        heads=3,
    )
    latent = linear(state, "to_latent", encoded[:, :1]) if kind == "code" else encoded[:, :1]
    masks = state["mask_token"].expand(3, len(rows), -1) + sines(6, 16)[rows]
    decoded = transformer(
        state,
        torch.cat([linear(state, "from_latent", latent), masks], dim=1),
        blocks="decoder.blocks",
        last="decoder.norm",
        heads=2,
    )
    assert model.latent_shape(person) == latent.shape[1:] == ((1, 20) if kind == "code" else (1, 24))
    found = model.encode(numbers, subject)
    torch.testing.assert_close(found, latent, atol=1e-5, rtol=1e-5)
    expected = tokens.reconstruct(decoded[:, 1:], subject)
    torch.testing.assert_close(model.decode(found, subject), expected, atol=1e-5, rtol=1e-5)
    assert ("to_latent.weight" in state) == (kind == "code")


@pytest.mark.parametrize("hidden", [True, False], ids=["masked", "whole"])
@pytest.mark.parametrize("person", [0, 1])
@pytest.mark.parametrize("kind", MASKED)
def test_all_tokens_are_what_the_primitives_give(kind: Kind, person: int, hidden: bool) -> None:
    model = autoencoder(kind)
    state, tokens = model.state_dict(), model.tokens
    numbers, subject = signal(model, person), torch.full((3,), person)
    rows = tokens.rows[person]
    keep = some_tokens(model, person) if hidden else None
    seen = torch.arange(len(rows)).expand(3, -1) if keep is None else keep
    embedded = tokens.embed(numbers, subject) + sines(tokens.table, 24)[1 + rows]
    chosen = torch.stack([embedded[sample, seen[sample]] for sample in range(3)])
    latent = transformer(
        state,
        torch.cat([state["cls_token"].expand(3, -1, -1), chosen], dim=1),
        blocks="encoder.blocks",
        last="encoder.norm",
        heads=3,
    )
    inner = linear(state, "from_latent", latent)
    full = state["mask_token"].repeat(3, len(rows), 1)
    for sample in range(3):
        full[sample, seen[sample]] = inner[sample, 1:]
    full = full + sines(tokens.table, 16)[1 + rows]
    if kind == "region_time":
        names = ["V1", "V2"]
        numbers_of = [names.index(name) for name in list(REGIONS.values())[person]]
        full = full + state["tokens.decoder_region"][numbers_of].repeat_interleave(4, dim=0)
    decoded = transformer(
        state, torch.cat([inner[:, :1], full], dim=1), blocks="decoder.blocks", last="decoder.norm", heads=2
    )
    found = model.encode(numbers, subject, keep)
    torch.testing.assert_close(found, latent, atol=1e-5, rtol=1e-5)
    expected = tokens.reconstruct(decoded[:, 1:], subject)
    torch.testing.assert_close(model.decode(found, subject, keep), expected, atol=1e-5, rtol=1e-5)
    if keep is None:
        assert model.latent_shape(person) == latent.shape[1:] == (1 + len(rows), 24)


@pytest.mark.parametrize(("rows", "width"), [(1, 2), (12, 48), (257, 64)])
def test_positions_are_sines_and_cosines(rows: int, width: int) -> None:
    found = sine_positions(rows, width)
    torch.testing.assert_close(found, sines(rows, width), atol=1e-6, rtol=0)
    assert found.dtype == torch.float32
    assert (found[0] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_positions_are_computed_and_not_kept(kind: Kind) -> None:
    assert not [name for name in autoencoder(kind).state_dict() if "positions" in name]


# ---- what hidden tokens may reach ------------------------------------------------------------------


@pytest.mark.parametrize("kind", MASKED)
def test_what_is_hidden_changes_nothing(kind: Kind) -> None:
    model, subject = autoencoder(kind), torch.zeros(3, dtype=torch.int64)
    numbers, keep = signal(model, 0), some_tokens(autoencoder(kind), 0)
    weight = hidden_tokens(keep, len(model.tokens.rows[0]))[:, model.tokens.token_of(0)]
    assert 0 < weight.mean() < 1
    changed = numbers + 100 * weight
    latents = [model.encode(value, subject, keep) for value in (numbers, changed)]
    assert torch.equal(*latents)
    assert torch.equal(*(model.decode(latent, subject, keep) for latent in latents))
    seen = numbers + 100 * (1 - weight)
    assert not torch.allclose(model.encode(seen, subject, keep), latents[0])


@pytest.mark.parametrize("kind", MASKED)
def test_the_order_of_kept_tokens_means_nothing(kind: Kind) -> None:
    model, subject = autoencoder(kind), torch.zeros(3, dtype=torch.int64)
    numbers, keep = signal(model, 0), some_tokens(autoencoder(kind), 0, kept=3)
    order = torch.tensor([2, 0, 1])
    latent, permuted = model.encode(numbers, subject, keep), model.encode(numbers, subject, keep[:, order])
    torch.testing.assert_close(permuted[:, 1:], latent[:, 1:][:, order], atol=1e-5, rtol=1e-5)
    decoded, again = model.decode(latent, subject, keep), model.decode(permuted, subject, keep[:, order])
    torch.testing.assert_close(again, decoded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_a_batch_do_not_see_each_other(kind: Kind) -> None:
    model, subject = autoencoder(kind), torch.zeros(3, dtype=torch.int64)
    numbers = signal(model, 0)
    keep = some_tokens(model, 0) if kind in MASKED else None
    whole = model.decode(model.encode(numbers, subject, keep), subject, keep)
    one = None if keep is None else keep[1:2]
    alone = model.decode(model.encode(numbers[1:2], subject[:1], one), subject[:1], one)
    torch.testing.assert_close(alone, whole[1:2], atol=1e-5, rtol=1e-5)


# ---- gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("person", [0, 1], ids=["without the second", "without the first"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_has_a_gradient_in_every_batch(kind: Kind, person: int) -> None:
    """DDP waits for all of them, those of people that the batch lacks included."""
    model, subject = autoencoder(kind), torch.full((3,), person)
    keep = some_tokens(model, person) if kind in MASKED else None
    decoded = model.decode(model.encode(signal(model, person), subject, keep), subject, keep)
    decoded.square().mean().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without
    for name, parameter in model.named_parameters():
        if ".layers." in name:
            own = f".layers.{person}." in name
            assert bool((parameter.grad != 0).any()) == own, name
        # the bias of keys moves all of a query's logits alike, so it never matters
        elif "qkv.bias" not in name:
            assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("kind", KINDS)
def test_weights_begin_as_published(kind: Kind) -> None:
    torch.manual_seed(0)
    widths = {"width": 64, "decoder_width": 48}
    tokens: Any = {
        "patch": lambda: PatchTokens({"01": 64}, patch_size=8, **widths),
        "region_time": lambda: RegionTimeTokens({"01": {"V1": 9}}, volumes=4, patch_size=2, **widths),
    }.get(kind, lambda: RoiTokens({"01": {"V1": 50}}, heads=8, shared_output=kind == "code", **widths))()
    model = MaskedAutoencoder(
        tokens, latent="tokens", latent_width=None, **{**SIZES, **widths, "num_heads": 4, "mlp_ratio": 1.0}
    )
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            bound = (6 / sum(module.weight.shape)) ** 0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound, name
        if isinstance(module, torch.nn.Conv1d):
            assert module.weight.detach().std() == pytest.approx(0.02, rel=0.5), name
        if isinstance(module, torch.nn.Linear | torch.nn.Conv1d):
            assert (module.bias == 0).all(), name
    for token in (model.cls_token, model.mask_token):
        assert token.detach().std() == pytest.approx(0.02, rel=0.4)


def test_attention_may_begin_between_tokens_that_are_alike() -> None:
    torch.manual_seed(0)
    tokens = RegionTimeTokens({"01": {"a": 3, "b": 3, "c": 2}}, volumes=4, patch_size=2, width=24, decoder_width=16)
    options = {"latent": "tokens", "latent_width": None, "mlp_ratio": 1.0, **SIZES}
    for alike in (True, False):
        model = MaskedAutoencoder(tokens, **options, alike=alike)  # type: ignore[arg-type]
        for block in (*model.encoder.blocks, *model.decoder.blocks):
            query, key, value = block.attn.qkv.weight.chunk(3)
            assert torch.equal(query, key) == alike
            assert (query.std() > 1.5 * value.std()) == alike
    # regions of one size begin with the same map, others with their own
    weight = tokens.inputs.layers[0].weight
    assert torch.equal(weight[0], weight[1])
    assert not torch.equal(weight[0, :4], weight[2, :4])


# ---- masks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "ratio", "kept"), [(12, 0.75, 3), (10, 0.5, 5), (7, 0.75, 1), (3, 0.99, 1)])
def test_the_tokens_of_least_noise_are_kept(length: int, ratio: float, kept: int) -> None:
    noise = torch.rand(6, length, generator=torch.Generator().manual_seed(0))
    keep = tokens_to_keep(noise, ratio)
    for sample in range(6):
        assert set(keep[sample].tolist()) == set(noise[sample].argsort()[:kept].tolist())
    hidden = hidden_tokens(keep, length)
    assert torch.equal(hidden.sum(dim=1), torch.full((6,), float(length - kept)))
    assert (hidden.gather(1, keep) == 0).all()
    assert set(hidden.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9])
def test_a_share_that_is_a_whole_number_of_tokens_is_hidden_exactly(ratio: float) -> None:
    for length in (10, 20, 50, 100):
        hidden = length - tokens_to_keep(torch.rand(1, length), ratio).shape[1]
        assert hidden == round(length * ratio), f"{hidden} of {length}"


def test_something_is_hidden_and_something_is_seen_whatever_the_share() -> None:
    for length in (2, 3, 10):
        for ratio in (0.001, 0.999):
            assert 0 < tokens_to_keep(torch.rand(1, length), ratio).shape[1] < length
            assert 0 < segments_to_keep(torch.rand(1, 1), length, ratio).shape[1] < length


@pytest.mark.parametrize(("steps", "ratio", "hidden"), [(8, 0.75, 6), (8, 0.5, 4), (5, 0.25, 2), (2, 0.75, 1)])
def test_one_run_is_hidden_in_every_region(steps: int, ratio: float, hidden: int) -> None:
    start = torch.tensor([[0.0, 0.5, 1 - 2**-24], [0.3, 0.99, 0.7]])
    keep = segments_to_keep(start, steps, ratio)
    assert keep.shape == (2, 3 * (steps - hidden))
    weight = hidden_tokens(keep, 3 * steps).unflatten(1, (3, steps))
    assert (weight.sum(dim=2) == hidden).all()
    for sample in range(2):
        for region in range(3):
            first = int(float(start[sample, region]) * steps)
            expected = {(first + step) % steps for step in range(hidden)}
            assert set(weight[sample, region].nonzero().flatten().tolist()) == expected


def test_runs_begin_everywhere_alike() -> None:
    start = torch.rand(8000, 1, generator=torch.Generator().manual_seed(0))
    share = hidden_tokens(segments_to_keep(start, 8, 0.5), 8).mean(dim=0)
    assert F.l1_loss(share, torch.full((8,), 0.5)) < 0.02
