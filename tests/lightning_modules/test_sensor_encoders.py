"""Encoders of EEG and MEG: sizes of the data sets, learning, what they refuse, and the equations of the small ones."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError
from torch import Tensor, nn

from contracts import ContractError
from lightning_modules import (
    ATM,
    EEGNet,
    SensorAttention,
    ShallowNet,
    SpectrogramConv,
    SubjectConv,
    SubjectMLP,
    TemporalSpatialConv,
)
from tests.lightning_modules.encoding import WIDTH, Make, layout_of, signals

# ---- sizes of the data sets ------------------------------------------------------------------------

PUBLISHED = (TemporalSpatialConv, SpectrogramConv, SubjectConv, ShallowNet, EEGNet, SensorAttention, ATM)
DATA = {
    "Phantom EEG": (64, 60, 100.0),
    "Phantom MEG": (102, 60, 100.0),
    "THINGS-EEG2": (63, 250, 250.0),
    "THINGS-MEG": (271, 281, 200.0),
    "ImageNetEEG": (128, 440, 1000.0),
    "UCI EEG": (64, 256, 256.0),
}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("make", PUBLISHED)
def test_shipped_sizes_take_every_data_set(make: Make, data: str) -> None:
    sensors, times, rate = DATA[data]
    encoder = make(layout_of({"a": [sensors, times], "b": [sensors, times]}, width=8, sampling_rate=rate)).eval()
    with torch.no_grad():
        encoded = encoder(signals(2, [sensors, times]), torch.tensor([1, 0]))
    assert encoded.shape == (2, 8)
    assert torch.isfinite(encoded).all()


@pytest.mark.parametrize("make", PUBLISHED)
def test_every_parameter_is_trained(make: Make) -> None:
    torch.manual_seed(0)
    encoder = make(layout_of({"a": [5, 60], "b": [5, 60]}))
    target = signals(4, [WIDTH], seed=1)
    (encoder(signals(4, [5, 60]), torch.tensor([0, 1, 0, 1])) - target).square().mean().backward()
    untrained = [
        name
        for name, parameter in encoder.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert not untrained


# ---- learning --------------------------------------------------------------------------------------

LEARNERS: dict[str, Make] = {
    "TemporalSpatialConv": functools.partial(TemporalSpatialConv, sensors=8, filters=8),
    "SpectrogramConv": functools.partial(SpectrogramConv, base=16, window=10),
    "SpectrogramConv, convolution": functools.partial(SpectrogramConv, base=16, window=10, subject_layer="convolution"),
    "SubjectConv": functools.partial(SubjectConv, base=16),
    "SubjectMLP": functools.partial(SubjectMLP, common=32, hidden=32),
    "ShallowNet": functools.partial(ShallowNet, filters=12),
    "ShallowNet, convolution": functools.partial(ShallowNet, filters=12, subject_layer="convolution"),
    "EEGNet": EEGNet,
    "EEGNet, convolution": functools.partial(EEGNet, subject_layer="convolution"),
    "SensorAttention": functools.partial(SensorAttention, sensors=12, harmonics=4, hidden=16, features=32),
    "ATM": functools.partial(ATM, filters=8),
    "ATM, convolution": functools.partial(ATM, filters=8, subject_layer="convolution"),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_encoders_learn(name: str) -> None:
    """Which of six courses a recording follows, for two people whose sensors have other signs; told in new noise."""
    torch.manual_seed(1)
    encoder = LEARNERS[name](layout_of({"a": [5, 60], "b": [5, 60]})).eval()  # without dropout
    which, who = torch.arange(24) % WIDTH, torch.arange(24) // WIDTH % 2
    course = (1 - 2 * who)[:, None, None] * signals(WIDTH, [5, 60])[which]
    learned, new = (course + 0.1 * signals(24, [5, 60], seed=seed) for seed in (1, 2))
    optimiser = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    for _ in range(100):
        optimiser.zero_grad()
        similarity = nn.functional.normalize(encoder(learned, who))
        nn.functional.cross_entropy(10 * similarity, which).backward()
        optimiser.step()
    assert (encoder(new, who).argmax(dim=1) == which).float().mean() > 0.9


@pytest.mark.parametrize("make", [SpectrogramConv, ShallowNet, EEGNet, SensorAttention, ATM])
def test_people_of_other_sensors_need_a_layer_of_their_own(make: Make) -> None:
    shapes = {"a": [4, 60], "b": [5, 60]}
    with pytest.raises(ContractError, match=f"{make.__name__} needs the same sensors.*'a': 4, 'b': 5"):
        make(layout_of(shapes))
    if make is not SensorAttention:
        encoder = make(layout_of(shapes), subject_layer="convolution")
        assert [layer.out_channels for layer in encoder.subject_layers.layers] == [5, 5], "the largest number"
        for person, shape in enumerate(shapes.values()):
            assert encoder(signals(2, shape), torch.full((2,), person)).shape == (2, WIDTH)


@pytest.mark.parametrize("make", [SpectrogramConv, ShallowNet, EEGNet, ATM])
def test_a_subject_layer_that_does_not_exist_is_refused(make: Make) -> None:
    # where annotations are checked, the check comes first
    with pytest.raises((ContractError, TypeCheckError), match="linear"):
        make(layout_of({"a": [4, 60]}), subject_layer="linear")


# ---- what encoders of sensors cannot do ------------------------------------------------------------


@pytest.mark.parametrize("make", PUBLISHED)
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"a": [60]}, r"\{'a': \[60\]\}.*ResidualMLP"),
        ({"a": [3, 60], "b": [60]}, r"'b': \[60\]"),
        ({"a": [3, 60], "b": [3, 61]}, r"\{'a': \[3, 60\], 'b': \[3, 61\]\}"),
    ],
    ids=["fmri", "fmri beside sensors", "other lengths"],
)
def test_signals_need_one_time_axis(make: Make, shapes: dict[str, list[int]], message: str) -> None:
    with pytest.raises(ContractError, match=f"{make.__name__} needs sensors x times.*{message}"):
        make(layout_of(shapes))


@pytest.mark.parametrize(
    ("make", "times", "options", "message"),
    [
        (TemporalSpatialConv, 12, {}, "12 time points .* kernel=5 and pool=9"),
        (TemporalSpatialConv, 4, {"pool": 1}, "4 time points .* kernel=5 and pool=1"),
        (SpectrogramConv, 39, {}, "window=40 .* 39 time points"),
        (SpectrogramConv, 60, {"window": 1}, "window=1 "),
        (SubjectConv, 32, {}, "32 time points are too few .* need 33"),
        (ShallowNet, 38, {}, "38 time points .* filters of 10 and averages of 30; change filter_seconds"),
        (ShallowNet, 60, {"pool_seconds": 0.0}, "durations must be positive, found 0.0 s"),
        (EEGNet, 23, {}, "23 time points .* averages of 3 x 8; change pool_seconds"),
        (ATM, 28, {}, "28 time points .* filters of 10 and averages of 20; change filter_seconds"),
    ],
)
def test_too_few_time_points_are_refused(make: Make, times: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=f"{make.__name__}.*{message}"):
        make(layout_of({"a": [3, times]}), **options)
    if not options:
        enough = make(layout_of({"a": [3, times + 1]}))
        assert enough(signals(2, [3, times + 1]), torch.zeros(2, dtype=torch.int64)).shape == (2, WIDTH)


@pytest.mark.parametrize("make", [ShallowNet, EEGNet, ATM])
def test_filters_in_seconds_need_a_sampling_rate(make: Make) -> None:
    with pytest.raises(ContractError, match=f"{make.__name__} needs a sampling rate, found 0.0"):
        make(layout_of({"a": [3, 60]}, sampling_rate=0.0))


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("times", [13, 14, 15, 16, 50])
def test_a_temporal_convolution_takes_any_length_that_is_enough(times: int, stride: int) -> None:
    encoder = TemporalSpatialConv(layout_of({"a": [3, times]}, width=WIDTH), sensors=4, filters=3, stride=stride)
    assert encoder(signals(2, [3, times]), torch.zeros(2, dtype=torch.int64)).shape == (2, WIDTH)


# ---- TemporalSpatialConv ---------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "pool", "stride"), [(5, 9, 3), (3, 4, 2), (1, 1, 1), (4, 2, 5)])
def test_filter_and_average_in_one_pass_are_those_in_two(kernel: int, pool: int, stride: int) -> None:
    torch.manual_seed(0)
    encoder = TemporalSpatialConv(layout_of({"a": [3, 30]}), kernel=kernel, pool=pool, stride=stride)
    both, x = encoder.trunk[1], signals(2, [1, 3, 30])
    expected = F.avg_pool2d(F.conv2d(x, both.weight, both.bias), (1, pool), (1, stride))
    torch.testing.assert_close(both(x), expected, rtol=1e-5, atol=1e-6)


# ---- ShallowNet ------------------------------------------------------------------------------------


def test_shallownet_is_its_equations() -> None:
    """Filters of 2 samples over 3 sensors, averages of 4 every 3 samples."""
    torch.manual_seed(0)
    encoder = ShallowNet(
        layout_of({"a": [3, 20]}), filters=2, filter_seconds=0.02, pool_seconds=0.04, stride_seconds=0.03
    ).eval()
    state = {name.removeprefix("trunk."): value for name, value in encoder.state_dict().items()}
    state["1.weight"] = encoder.trunk[1].weight.data.copy_(torch.tensor([0.5, 2.0]))
    state["1.bias"] = encoder.trunk[1].bias.data.copy_(torch.tensor([0.1, -0.3]))
    x = signals(2, [3, 20])
    in_time = torch.einsum("bctk,fk->bfct", x.unfold(2, 2, 1), state["0.temporal.weight"][:, 0, 0])
    in_time = in_time + state["0.temporal.bias"][:, None, None]
    in_space = torch.einsum("bfct,gfc->bgt", in_time, state["0.spatial.weight"][..., 0])
    centred = in_space - in_space.mean(dim=(1, 2), keepdim=True)
    normal = centred / (in_space.var(dim=(1, 2), correction=0, keepdim=True) + 1e-5).sqrt()
    normal = normal * state["1.weight"][:, None] + state["1.bias"][:, None]
    power = torch.stack([normal[..., i : i + 4].square().mean(dim=2) for i in range(0, 16, 3)], dim=2)
    expected = power.log().flatten(1) @ state["5.weight"].T + state["5.bias"]
    torch.testing.assert_close(encoder(x, torch.zeros(2, dtype=torch.int64)), expected, rtol=1e-5, atol=1e-5)


def test_silence_has_a_logarithm() -> None:
    encoder = ShallowNet(layout_of({"a": [3, 60]}))
    # no filter is silent of itself: all differ by their offsets
    encoder.trunk[1].weight.data.zero_()
    encoded = encoder(torch.zeros(2, 3, 60), torch.zeros(2, dtype=torch.int64))
    encoded.sum().backward()
    assert torch.isfinite(encoded).all()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


def test_filters_last_as_published() -> None:
    """At the published rates, the published numbers of samples."""
    shallow = ShallowNet(layout_of({"a": [22, 1000]}, sampling_rate=250.0))
    assert shallow.trunk[0].temporal.kernel_size == (1, 25)
    assert (shallow.trunk[2].average.kernel_size, shallow.trunk[2].average.stride) == ((75,), (15,))
    eegnet = EEGNet(layout_of({"a": [64, 128]}, sampling_rate=128.0))
    kernels = [layer.kernel_size for layer in eegnet.trunk if isinstance(layer, nn.Conv2d)]
    assert kernels == [(1, 64), (64, 1), (1, 16), (1, 1)]
    assert [layer.kernel_size for layer in eegnet.trunk if isinstance(layer, nn.AvgPool2d)] == [(1, 4), (1, 8)]


# ---- EEGNet ----------------------------------------------------------------------------------------


def _normal(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(dim=(1, 2, 3), keepdim=True)
    scaled = centred / (x.var(dim=(1, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    return scaled * weight[:, None, None] + bias[:, None, None]


def _over_time(x: Tensor, weight: Tensor) -> Tensor:
    """Correlate every map with its own filter; as long as before, one zero more after than before for even filters."""
    length = weight.shape[-1]
    return torch.einsum("bfctk,fk->bfct", F.pad(x, ((length - 1) // 2, length // 2)).unfold(3, length, 1), weight)


@pytest.mark.parametrize(("rate", "kernels"), [(100.0, (4, 1)), (128.0, (5, 1)), (200.0, (8, 1))])
def test_eegnet_is_its_equations(rate: float, kernels: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layout = layout_of({"a": [3, 48]}, sampling_rate=rate)
    encoder = EEGNet(layout, filters=2, separable_filters=3, filter_seconds=0.04, second_pool_seconds=0.1).eval()
    for layer in encoder.trunk:
        if isinstance(layer, nn.GroupNorm):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    first, spatial, depthwise, pointwise = (m for m in encoder.trunk if isinstance(m, nn.Conv2d))
    norms = [m for m in encoder.trunk if isinstance(m, nn.GroupNorm)]
    pools = [m.kernel_size[1] for m in encoder.trunk if isinstance(m, nn.AvgPool2d)]
    assert (first.weight.shape[-1], depthwise.weight.shape[-1]) == kernels
    x = signals(2, [3, 48])
    in_time = _over_time(x[:, None].expand(-1, 2, -1, -1), first.weight[:, 0, 0])
    in_time = _normal(in_time, norms[0].weight, norms[0].bias)
    # two spatial filters for each temporal one
    in_space = torch.einsum("bfct,fdc->bfdt", in_time, spatial.weight[:, 0, :, 0].unflatten(0, (2, 2)))
    maps = F.elu(_normal(in_space.flatten(1, 2)[:, :, None], norms[1].weight, norms[1].bias))
    maps = maps.unfold(3, pools[0], pools[0]).mean(dim=4)
    maps = _over_time(maps, depthwise.weight[:, 0, 0])
    maps = torch.einsum("bfct,gf->bgct", maps, pointwise.weight[..., 0, 0])
    maps = F.elu(_normal(maps, norms[2].weight, norms[2].bias))
    features = maps.unfold(3, pools[1], pools[1]).mean(dim=4).flatten(1)
    expected = features @ encoder.trunk[-1].weight.T + encoder.trunk[-1].bias
    torch.testing.assert_close(encoder(x, torch.zeros(2, dtype=torch.int64)), expected, rtol=1e-5, atol=1e-5)


def _norms(encoder: EEGNet) -> tuple[Tensor, Tensor]:
    spatial = next(layer for layer in encoder.trunk if isinstance(layer, nn.Conv2d) and layer.kernel_size[0] > 1)
    return spatial.weight.flatten(1).norm(dim=1), encoder.trunk[-1].weight.norm(dim=1)


def test_norms_of_eegnet_are_bounded_after_every_step() -> None:
    torch.manual_seed(0)
    encoder = EEGNet(layout_of({"a": [3, 60]}))
    x, who = signals(4, [3, 60]), torch.zeros(4, dtype=torch.int64)
    assert _norms(encoder)[1].max() <= 0.25 + 1e-6, "before the first pass"
    optimiser = torch.optim.SGD(encoder.parameters(), lr=1.0)
    for training in (True, True, False):
        encoder.train(training)
        # steps out of the balls
        with torch.no_grad():
            for layer in encoder.trunk:
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    layer.weight += torch.randn(layer.weight.shape)
        assert all(norm.max() > 1 for norm in _norms(encoder))
        free = [encoder.trunk[i].weight.clone() for i in (2, 10, 11)]
        encoder(x, who).square().mean().backward()
        spatial, projection = _norms(encoder)
        assert 0.999 < spatial.max() <= 1 + 1e-6
        assert 0.2499 < projection.max() <= 0.25 + 1e-6
        assert all(torch.equal(encoder.trunk[i].weight, value) for i, value in zip((2, 10, 11), free, strict=True))
        optimiser.step()


def test_short_weights_of_eegnet_stay_and_direction_is_kept() -> None:
    encoder = EEGNet(layout_of({"a": [3, 60]}))
    projection = encoder.trunk[-1]
    weight = torch.randn(projection.weight.shape)
    weight[0] *= 0.1 / weight[0].norm()
    projection.weight.data.copy_(weight)
    encoder(signals(2, [3, 60]), torch.zeros(2, dtype=torch.int64))
    assert torch.equal(projection.weight[0], weight[0])
    torch.testing.assert_close(F.normalize(projection.weight), F.normalize(weight))


def test_two_passes_of_eegnet_before_one_gradient() -> None:
    encoder = EEGNet(layout_of({"a": [3, 60]}), dropout=0.0)
    encoder.trunk[-1].weight.data.mul_(10)
    who = torch.zeros(2, dtype=torch.int64)
    passes = [encoder(signals(2, [3, 60], seed=seed), who).square().sum() for seed in (0, 1)]
    (passes[0] + passes[1]).backward()
    assert encoder.trunk[-1].weight.grad is not None
