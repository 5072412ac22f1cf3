"""The network of LPIPS, with the weights of its backbone from a file."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from callbacks.picture_weights import read_weights, to_be_had
from contracts import DataError

BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


def build_perceptual(network: Literal["alex", "vgg", "squeeze"] = "alex", weights: str = "pretrained") -> nn.Module:
    """Build LPIPS of torchmetrics, frozen; for :func:`callbacks.metrics.pictures.perceptual_distance`.

    Args:
        network: Backbone.
        weights: ``pretrained`` (downloaded), ``random`` (seed 0) or torchvision's file of the backbone.

    Returns:
        The network; the layer on top of the backbone has the published weights, which come with torchmetrics.

    Raises:
        DataError: Weights that cannot be had or belong to another network.
    """
    # the public class downloads its backbone and takes no file
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    title = f"LPIPS ({BACKBONES[network]})"
    with torch.random.fork_rng(devices=[]), to_be_had(title, weights):
        torch.manual_seed(0)  # for weights: random
        lpips = _NoTrainLpips(net=network, pnet_rand=weights != "pretrained")
    if weights in ("pretrained", "random"):
        return lpips
    state = read_weights(weights, title=title)
    own = dict(lpips.net.named_parameters())
    # slice2.3.weight, or slices.1.3.weight: the last number is torchvision's
    names = {name: ".".join(("features", *name.split(".")[2 if name.startswith("slices") else 1 :])) for name in own}
    matching = [name for name, their in names.items() if their in state and state[their].shape == own[name].shape]
    if len(matching) < len(own):
        raise DataError(
            f"{weights} is not torchvision's {BACKBONES[network]}: {len(matching)} of {len(own)} weights match; change "
            "lpips_weights or lpips_network"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[names[name]])
    return lpips
