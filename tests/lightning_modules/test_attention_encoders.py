"""SensorAttention and ATM against their equations, and where sensors lie on the plane."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts import ContractError
from lightning_modules import ATM, SensorAttention
from lightning_modules.networks.attention_encoders import MARGIN, PositionMerger, azimuthal_equidistant
from tests.lightning_modules.encoding import WIDTH, layout_of, signals

NOBODY_ELSE = torch.zeros(2, dtype=torch.int64)
# vertex, right ear, forehead, 45 degrees to the left, nape of the neck below the origin
HEAD = [[0.0, 0.0, 0.1], [0.08, 0.0, 0.0], [0.0, 0.09, 0.0], [-0.05, 0.0, 0.05], [0.0, -0.05, -0.05]]


# ---- places ----------------------------------------------------------------------------------------


def test_angles_to_the_vertex_become_distances() -> None:
    expected = [[0, 0], [math.pi / 2, 0], [0, math.pi / 2], [-math.pi / 4, 0], [0, -3 * math.pi / 4]]
    np.testing.assert_allclose(azimuthal_equidistant(np.array(HEAD)), expected, atol=1e-12)
    np.testing.assert_allclose(azimuthal_equidistant(1000 * np.array(HEAD)), expected, atol=1e-12)
    assert not azimuthal_equidistant(np.zeros((1, 3))).any()


def test_places_fill_the_square_but_for_a_margin_in_one_scale() -> None:
    encoder = SensorAttention(layout_of({"a": [5, 20]}, positions=HEAD))
    places = encoder.trunk.before[0].places
    flat = torch.from_numpy(azimuthal_equidistant(np.array(HEAD))).float()
    # front to back is the longer axis
    torch.testing.assert_close((places[:, 1].min(), places[:, 1].max()), (torch.tensor(MARGIN), torch.tensor(0.9)))
    scale = 0.8 / (math.pi / 2 + 3 * math.pi / 4)
    torch.testing.assert_close(places - places[0], scale * flat, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(places[:, 0].min() + places[:, 0].max(), torch.tensor(1.0))
    single = SensorAttention(layout_of({"a": [1, 20]}, positions=[[0.0, 0.0, 0.1]]))
    torch.testing.assert_close(single.trunk.before[0].places, torch.tensor([[0.5, 0.5]]))


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([], r"each of 5 sensors, found \(0,\)"),
        (HEAD[:4], r"each of 5 sensors, found \(4, 3\)"),
        ([*HEAD[:4], [math.nan, 0.0, 0.1]], r"each of 5 sensors, found \(5, 3\) with 1 missing numbers"),
    ],
    ids=["none", "too few", "not a number"],
)
def test_attention_by_place_needs_places(positions: list[list[float]], message: str) -> None:
    with pytest.raises(ContractError, match=f"SensorAttention needs the position of {message}.*ATM"):
        SensorAttention(layout_of({"a": [5, 20]}, positions=positions))


# ---- means of sensors ------------------------------------------------------------------------------


def merger(places: Tensor, **options: Any) -> PositionMerger:
    torch.manual_seed(0)
    return PositionMerger(places, **{"sensors": 2, "harmonics": 3, "dropout": 0.0, **options})


def test_means_are_the_published_equation() -> None:
    places = torch.rand(4, 2, generator=torch.Generator().manual_seed(1))
    module, x = merger(places), signals(3, [4, 5])
    cosines, sines = module.heads.detach().double().unflatten(1, (2, 3, 3)).unbind(1)
    expected = torch.zeros(3, 2, 5, dtype=torch.float64)
    for j in range(2):
        scores = torch.zeros(4, dtype=torch.float64)
        for i, (a, b) in enumerate(places.double().tolist()):
            for k in range(3):
                for m in range(3):
                    phase = 2 * math.pi * (k * a + m * b)
                    scores[i] += cosines[j, k, m] * math.cos(phase) + sines[j, k, m] * math.sin(phase)
        weights = scores.exp() / scores.exp().sum()
        expected[:, j] = sum(weights[i] * x[:, i] for i in range(4))
    torch.testing.assert_close(module(x), expected.float(), rtol=1e-5, atol=1e-6)


def test_sensors_near_a_random_place_are_left_out_while_training() -> None:
    """Two groups far from each other: a disc meets one, the other, or none."""
    places = torch.tensor([[0.1, 0.1], [0.12, 0.1], [0.9, 0.9], [0.88, 0.9]])
    module = merger(places, dropout=0.4)
    # every output tells which sensors it saw
    x = torch.eye(4)[None].expand(400, -1, -1)
    seen = module(x) > 0
    assert (seen[:, 0] == seen[:, 1]).all(), "all outputs leave out the same sensors"
    groups = {tuple(row) for row in seen[:, 0].tolist()}
    assert groups >= {(True,) * 4, (False, False, True, True), (True, True, False, False)}
    torch.testing.assert_close(module(x).sum(dim=2), torch.ones(400, 2))
    share = (~seen[:, 0, 0]).float().mean().item()
    # within .4 of (.1, .1) and inside the square: about a quarter of the disc and its margin, .24
    assert 0.15 < share < 0.33
    module.eval()
    torch.testing.assert_close(module(x)[0], module(x)[1])
    assert (module(x) > 0).all()


def test_all_sensors_are_never_left_out() -> None:
    module = merger(torch.full((3, 2), 0.5), dropout=2.0)
    assert torch.isfinite(module(signals(4, [3, 5]))).all()


def test_heads_begin_small_and_places_are_not_weights() -> None:
    module = merger(torch.rand(4, 2), sensors=50, harmonics=8)
    assert set(module.state_dict()) == {"heads"}
    assert module.heads.std().item() == pytest.approx(1 / math.sqrt(128), rel=0.1)


# ---- SensorAttention -------------------------------------------------------------------------------


def _group_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=(1, 2), keepdim=True)
    return centred / (x.var(dim=(1, 2), correction=0, keepdim=True) + 1e-5).sqrt()


def _dilated(x: Tensor, layer: nn.Conv1d, dilation: int) -> Tensor:
    padded = F.pad(x, (dilation, dilation))
    length = x.shape[-1]
    taps = [padded[..., i * dilation : i * dilation + length] for i in range(3)]
    weight, bias = layer.weight, layer.bias
    return sum(torch.einsum("oc,bct->bot", weight[..., i], tap) for i, tap in enumerate(taps)) + bias[:, None]


@pytest.mark.parametrize("blocks", [1, 3])
def test_sensor_attention_is_its_equations(blocks: int) -> None:
    torch.manual_seed(0)
    encoder = SensorAttention(
        layout_of({"a": [4, 20], "b": [4, 20]}), sensors=5, harmonics=2, hidden=6, blocks=blocks, features=7
    ).eval()
    x = signals(2, [4, 20])
    mean, mix = encoder.trunk.before
    y = torch.einsum("oc,bct->bot", mix.weight[..., 0], mean(x)) + mix.bias[:, None]
    y = torch.einsum("oc,bct->bot", encoder.subject_layers.layers[1].weight[..., 0], y)
    after = list(encoder.trunk.after)
    for k, block in enumerate(after[:blocks]):
        for n, layer in enumerate(block.layers):
            change = F.gelu(_group_norm(_dilated(y, layer[0], 2 ** ((2 * k + n) % 5))))
            y = change if (k, n) == (0, 0) else y + change
        value, gate = _dilated(y, block.gate[0], 1).chunk(2, dim=1)
        y = value * gate.sigmoid()
    wide, _, narrow, time, _, _, projection = after[blocks:]
    y = F.gelu(torch.einsum("oc,bct->bot", wide.weight[..., 0], y) + wide.bias[:, None])
    y = torch.einsum("oc,bct->bot", narrow.weight[..., 0], y) + narrow.bias[:, None]
    y = F.gelu(y @ time.weight[0] + time.bias)
    expected = y @ projection.weight.T + projection.bias
    torch.testing.assert_close(encoder(x, torch.ones(2, dtype=torch.int64)), expected, rtol=1e-5, atol=1e-5)


def test_everything_shared_is_in_the_trunk() -> None:
    encoder = SensorAttention(layout_of({"a": [4, 20]}))
    names = {name.split(".")[0] for name, _ in encoder.named_parameters()}
    assert names == {"subject_layers", "trunk"}
    assert any(name.startswith("trunk.before.") for name, _ in encoder.named_parameters())


def test_published_numbers_of_parameters_of_sensor_attention() -> None:
    """Benchetrit et al. (2024): 272 sensors, 181 moments, four people, D = 768."""
    encoder = SensorAttention(layout_of({str(i): [272, 181] for i in range(4)}, width=768))
    count = {name: sum(p.numel() for p in module.parameters()) for name, module in encoder.named_modules()}
    merger, linear = "trunk.before.0", "trunk.before.1"
    assert (count[merger], count[linear], count["subject_layers"]) == (552_960, 73_170, 291_600)
    assert (count["trunk.after.0"], count["trunk.after.1"]) == (1_183_360, 1_231_360)
    assert count["trunk.after.2"] + count["trunk.after.4"] == 1_518_208
    assert (count["trunk.after.5"], count["trunk.after.8"]) == (182, 1_573_632)


# ---- ATM -------------------------------------------------------------------------------------------


def _attention(x: Tensor, layer: nn.TransformerEncoderLayer, heads: int) -> Tensor:
    packed = x @ layer.self_attn.in_proj_weight.T + layer.self_attn.in_proj_bias
    query, key, value = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in packed.chunk(3, dim=2))
    weights = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).softmax(dim=3)
    attended = (weights @ value).transpose(1, 2).flatten(2)
    return attended @ layer.self_attn.out_proj.weight.T + layer.self_attn.out_proj.bias


def _layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (x.var(dim=-1, correction=0, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("subject_layer", ["token", "convolution", "none"])
def test_atm_is_its_equations(subject_layer: Any) -> None:
    """30 time points are 32 wide tokens of 4 heads; filters of 3, averages of 5 every 2."""
    torch.manual_seed(0)
    encoder = ATM(
        layout_of({"a": [4, 30], "b": [4, 30]}),
        feedforward=9,
        filters=3,
        filter_seconds=0.03,
        pool_seconds=0.05,
        stride_seconds=0.02,
        subject_layer=subject_layer,
    ).eval()
    x = signals(2, [4, 30])
    embed, _, transformer, *_ = encoder.trunk
    y = x
    if subject_layer == "token":
        y = torch.cat([x, encoder.subject_layers.layers[0].token.expand(2, 1, 30)], dim=1)
    elif subject_layer == "convolution":
        layer = encoder.subject_layers.layers[0]
        y = torch.einsum("oc,bct->bot", layer.weight[..., 0], x) + layer.bias[:, None]
    y = y @ embed.weight.T + embed.bias
    assert y.shape[-1] == 32
    layer = transformer.layers[0]
    y = _layer_norm(y + _attention(y, layer, 4))
    hidden = F.gelu(y @ layer.linear1.weight.T + layer.linear1.bias)
    y = _layer_norm(_layer_norm(y + hidden @ layer.linear2.weight.T + layer.linear2.bias))[:, :4]
    temporal, spatial, mixed = (m for m in encoder.trunk if isinstance(m, nn.Conv2d))
    maps = torch.einsum("bctk,fk->bfct", y.unfold(2, 3, 1), temporal.weight[:, 0, 0]) + temporal.bias[:, None, None]
    maps = maps.unfold(3, 5, 2).mean(dim=4)
    maps = F.elu(_group_norm(maps.flatten(2)).unflatten(2, maps.shape[2:]))
    maps = torch.einsum("bfct,gfc->bgt", maps, spatial.weight[..., 0]) + spatial.bias[:, None]
    maps = F.elu(_group_norm(maps))
    maps = torch.einsum("bft,gf->bgt", maps, mixed.weight[..., 0, 0]) + mixed.bias[:, None]
    linear, residual, _ = list(encoder.trunk)[-3:]
    y = maps.flatten(1) @ linear.weight.T + linear.bias
    y = _layer_norm(y + F.gelu(y) @ residual.block[1].weight.T + residual.block[1].bias)
    torch.testing.assert_close(encoder(x, NOBODY_ELSE), y, rtol=1e-4, atol=1e-5)


def test_published_sizes_of_atm() -> None:
    encoder = ATM(layout_of({str(i): [63, 250] for i in range(10)}, width=1024, sampling_rate=250.0))
    temporal, spatial, mixed = (m for m in encoder.trunk if isinstance(m, nn.Conv2d))
    assert [layer.kernel_size for layer in (temporal, spatial, mixed)] == [(1, 25), (63, 1), (1, 1)]
    projection = next(m for m in encoder.trunk[1:] if isinstance(m, nn.Linear))
    assert (projection.in_features, projection.out_features) == (1440, 1024)
    assert encoder(signals(2, [63, 250]), NOBODY_ELSE).shape == (2, 1024)


def test_a_token_of_a_person_reaches_the_embedding_and_no_sensor_is_lost() -> None:
    torch.manual_seed(0)
    encoder = ATM(layout_of({"a": [4, 60], "b": [4, 60]})).eval()
    x = signals(2, [4, 60]).requires_grad_()
    assert (encoder(x, NOBODY_ELSE) - encoder(x, NOBODY_ELSE + 1)).abs().max() > 1e-4
    # attention alone would let every sensor reach the embedding: the convolution sees each one's own token
    tokens: list[Tensor] = []
    hook = encoder.trunk[3].register_forward_hook(lambda *found: tokens.append(found[-1]))
    encoder(x, NOBODY_ELSE)
    hook.remove()
    assert tokens[0].shape == (2, 4, 60)
    for sensor in range(4):
        (reach,) = torch.autograd.grad(tokens[0][:, sensor, 0].sum(), x, retain_graph=True)
        assert reach[:, sensor].norm() > 3 * reach[:, [i for i in range(4) if i != sensor]].norm(dim=2).max()


def test_dropout_of_attention_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    for encoder in (
        ATM(layout_of({"a": [4, 60]}), dropout=0.0, attention_dropout=0.5),
        ATM(layout_of({"a": [4, 60]}), dropout=0.5, attention_dropout=0.0),
        SensorAttention(layout_of({"a": [4, 60]}), spatial_dropout=0.5),
    ):
        x = signals(2, [4, 60])
        assert not torch.equal(encoder(x, NOBODY_ELSE), encoder(x, NOBODY_ELSE))
        encoder.eval()
        assert torch.equal(encoder(x, NOBODY_ELSE), encoder(x, NOBODY_ELSE))
        assert encoder(x, NOBODY_ELSE).shape == (2, WIDTH)
