"""Every encoder in small, and the people that the tests of encoders build them for."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contracts import Layout
from lightning_modules import (
    ATM,
    EEGNet,
    LinearEncoder,
    ResidualMLP,
    SensorAttention,
    ShallowNet,
    SpectrogramConv,
    SubjectConv,
    SubjectMLP,
    TemporalSpatialConv,
)
from lightning_modules.networks.encoders import Encoder
from tests.lightning_modules.fitting import made_up

Make = Callable[..., Encoder]
WIDTH = 6
# small sizes; without dropout, for comparisons between passes
SMALL: dict[str, Make] = {
    "linear": LinearEncoder,
    "mlp": functools.partial(ResidualMLP, hidden=10, blocks=2, input_dropout=0.0, dropout=0.0),
    "conv": functools.partial(TemporalSpatialConv, sensors=4, filters=3, kernel=3, pool=4, stride=2, dropout=0.0),
    "subject mlp": functools.partial(SubjectMLP, common=9, hidden=8),
    "spectrogram": functools.partial(SpectrogramConv, base=4, window=8, subject_layer="convolution"),
    "subject conv": functools.partial(SubjectConv, base=4),
    "shallow": functools.partial(
        ShallowNet,
        filters=4,
        filter_seconds=0.05,
        pool_seconds=0.1,
        stride_seconds=0.05,
        dropout=0.0,
        subject_layer="convolution",
    ),
    "eegnet": functools.partial(EEGNet, filters=3, separable_filters=4, dropout=0.0, subject_layer="convolution"),
    "attention": functools.partial(SensorAttention, sensors=5, harmonics=3, hidden=6, features=8, spatial_dropout=0.0),
    "atm": functools.partial(ATM, heads=2, feedforward=12, attention_dropout=0.0, filters=3, dropout=0.0),
    "atm convolution": functools.partial(
        ATM, heads=2, feedforward=12, attention_dropout=0.0, filters=3, dropout=0.0, subject_layer="convolution"
    ),
}
VOXELS = {"a": [7], "b": [11], "c": [7]}
SENSORS = {"a": [3, 36], "b": [5, 36], "c": [3, 36]}
ALIKE = {"a": [4, 36], "b": [4, 36], "c": [4, 36]}
FLAT = ("linear", "mlp", "subject mlp")
SAME_SENSORS = ("attention", "atm")
KINDS = [
    *((kind, VOXELS) for kind in FLAT),
    *((kind, ALIKE if kind in SAME_SENSORS else SENSORS) for kind in SMALL),
]
every_kind = pytest.mark.parametrize(
    ("kind", "shapes"), KINDS, ids=[f"{kind}-{'fmri' if shapes is VOXELS else 'sensors'}" for kind, shapes in KINDS]
)


def layout_of(shapes: dict[str, list[int]], *, width: int = WIDTH, **entries: Any) -> Layout:
    """A layout with sensor positions, as many as the first person has sensors."""
    layout = made_up(shapes, width=width)
    positions = torch.randn(next(iter(shapes.values()))[0], 3, generator=torch.Generator().manual_seed(0))
    layout["positions"] = (0.1 * positions / positions.norm(dim=1, keepdim=True)).tolist()
    return Layout(**{**layout, **entries})


def built(kind: str, shapes: dict[str, list[int]], **options: Any) -> Encoder:
    torch.manual_seed(3)
    encoder = SMALL[kind](layout_of(shapes), **options)
    if kind in ("spectrogram", "subject conv"):
        # six layers of ReLU without normalisation: what differs between samples would fade to nothing
        for layer in encoder.trunk.modules():
            if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
                layer.weight.data *= math.sqrt(6)
    return encoder


def signals(rows: int, shape: list[int], seed: int = 0) -> Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed))
