"""PictureNetwork: frozen networks that look at pictures, named in a configuration and built on first use."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from callbacks.metrics.pictures import check_pictures, resize
from callbacks.picture_weights import did_you_mean, load_weights, to_be_had
from contracts import ContractError, DataError


@dataclass(frozen=True)
class PictureNetwork:
    """A frozen network and what is asked of it.

    Pictures are resized as a whole to the square that the network takes, with its own interpolation and
    antialiasing, and normalised by its own mean and standard deviation; nothing is cropped away. The field's suite
    (MindEye) is AlexNet at ``features.4`` and ``features.11``, Inception at ``avgpool`` and CLIP ViT-L/14
    (``two_way``), EfficientNet-B1 and SwAV's ResNet-50 at ``avgpool`` (``distance``).

    Attributes:
        model: ``torchvision:<name>``, ``timm:<name>``, ``open_clip:<name>``; a class of your own (``my.py:Net`` or
            ``package.module.Net``) or an ``nn.Module`` whose forward takes uint8 ``(n, 3, H, W)`` and gives
            ``(n, D)``, which is used as it is.
        weights: ``pretrained`` (downloaded; for open_clip one of its tags instead), ``random`` (seed 0, a control) or
            a local file ``.pth``, ``.pt`` or ``.safetensors``. A class of your own brings its weights along unless a
            file is named.
        layer: Dotted name of a module whose output, flattened, is taken in place of the last one.
        size: Side in pixels of the square that the network gets; None takes that of its weights (MindEye gives
            AlexNet 256).
        scores: ``two_way``: identification by Pearson correlation; ``similarity``: mean cosine; ``distance``: mean
            of 1 - Pearson correlation.
        n_way: Pairs (n, k): top-k accuracy among n classes, the right one being what the network sees in the seen
            picture. Needs a classifier, without ``layer``.
        name: How its scores are listed; None makes one of model and layer.
    """

    model: str | nn.Module
    weights: str = "pretrained"
    layer: str | None = None
    size: int | None = None
    scores: list[Literal["two_way", "similarity", "distance"]] = field(default_factory=lambda: ["two_way"])
    n_way: list[tuple[int, int]] = field(default_factory=list)
    name: str | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.scores) - {"two_way", "similarity", "distance"})
        if unknown:
            raise ContractError(
                f"a network has no scores {', '.join(unknown)}; it has two_way, similarity, distance, and n_way"
            )
        if self.n_way and self.layer is not None:
            raise ContractError(
                f"n_way needs the classes that {self.title} gives out, not its layer {self.layer!r}; list the network "
                "twice, once without layer"
            )
        if not self.scores and not self.n_way:
            raise ContractError(f"nothing is asked of {self.title}; give scores or n_way")

    @staticmethod
    def of(network: PictureNetwork | Mapping[str, Any]) -> PictureNetwork:
        """Make one of what a configuration gives: itself, or plain data that was read back from a file."""
        if isinstance(network, PictureNetwork):
            return network
        pairs = [(n, k) for n, k in network.get("n_way", ())]
        return PictureNetwork(**{**network, "n_way": pairs})

    @property
    def title(self) -> str:
        """The name in tables and loggers, without ``/`` and blanks."""
        if self.name is not None:
            name = self.name
        else:
            own = self.model if isinstance(self.model, str) else type(self.model).__name__
            name = own if self.layer is None else f"{own}.{self.layer}"
        return name.replace("/", "-").replace(" ", "_")

    @property
    def key(self) -> str:
        """Names all that its features depend on, for entries of outputs."""
        model = self.model if isinstance(self.model, str) else type(self.model).__name__
        size = "" if self.size is None else f"@{self.size}"
        classes = "classes" if self.n_way else ""
        return "|".join((model, self.weights, self.layer or "", classes)).replace("/", "-") + size


class PictureFeatures:
    """Features of pictures by a network that is built when the first pictures come.

    Args:
        network: What to build.
        batch_size: Pictures per forward pass.
    """

    def __init__(self, network: PictureNetwork, batch_size: int = 64) -> None:
        self.spec = network
        self.batch_size = batch_size
        self._built: _Prepared | None = None

    @torch.no_grad()
    def __call__(self, pictures: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Look at pictures, on their device and in evaluation mode.

        Raises:
            DataError: A model, weights or a layer that do not exist; not pictures; features that are not finite or
                not a matrix.
        """
        check_pictures(pictures, "pictures")
        if self._built is None:
            self._built = build_network(self.spec)
        network = self._built.to(pictures.device)
        parts = [network(batch).float() for batch in pictures.split(self.batch_size)]
        features = torch.cat(parts)
        bad = int((~torch.isfinite(features).all(1)).sum())
        if bad:
            raise DataError(f"{self.spec.title} gives NaN or infinity for {bad} of {len(features)} pictures")
        return features


class _Prepared(nn.Module):
    """A network with the preparation of its pictures, which gives one vector a picture."""

    def __init__(
        self,
        network: nn.Module,
        *,
        size: int | None,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        mode: str = "bilinear",
        layer: str | None = None,
        title: str = "",
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.size, self.mode, self.title, self.layer = size, mode, title, layer
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self._kept: Tensor | None = None
        if layer is not None:
            modules = dict(network.named_modules())
            if layer not in modules:
                raise DataError(f"{title} has no layer {layer!r}; {did_you_mean(layer, list(modules)[1:])}")
            modules[layer].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        # a later activation may write into it
        self._kept = first.clone()

    def forward(self, pictures: Tensor) -> Tensor:
        x = pictures
        if self.size is not None:
            x = (resize(pictures, (self.size, self.size), mode=self.mode) - self.mean) / self.std
        self._kept = None
        features = self.network(x)
        if self.layer is not None:
            if self._kept is None:
                raise DataError(f"{self.title}: the layer {self.layer!r} does not run on a picture; choose another")
            features, self._kept = self._kept.flatten(1), None
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(pictures):
            found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise DataError(f"{self.title} must give (n, D) for {len(pictures)} pictures, found {found}; give a layer")
        return features


def build_network(spec: PictureNetwork) -> _Prepared:
    """Build a network with its weights; the only place where anything is downloaded.

    Raises:
        DataError: A model, weights or a layer that do not exist.
    """
    common: dict[str, Any] = {"layer": spec.layer, "title": spec.title}
    if isinstance(spec.model, nn.Module):
        return _Prepared(spec.model, size=None, **common)
    kind, _, name = spec.model.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for weights: random
        if kind == "torchvision":
            network, facts = _torchvision(name, spec.weights, layer=spec.layer)
        elif kind == "timm":
            network, facts = _timm(name, spec.weights, classes=bool(spec.n_way))
        elif kind == "open_clip":
            network, facts = _open_clip(name, spec.weights)
        else:
            network = _own(spec.model)
            if spec.weights not in ("pretrained", "random"):
                load_weights(network, spec.weights, title=spec.title)
            return _Prepared(network, size=None, **common)
    if spec.size is not None:
        facts["size"] = spec.size
    return _Prepared(network, **facts, **common)


def _torchvision(name: str, weights: str, *, layer: str | None) -> tuple[nn.Module, dict[str, Any]]:
    from torchvision.models import get_model, get_model_weights, list_models

    if name not in list_models():
        raise DataError(f"torchvision has no model {name!r}; {did_you_mean(name, list_models())}")
    default = get_model_weights(name).DEFAULT
    preset = default.transforms()
    facts = {
        "size": preset.crop_size[0],
        "mean": preset.mean,
        "std": preset.std,
        "mode": preset.interpolation.value,
    }
    # the weights of these two were made for inputs scaled in another way, which the network does itself
    options = {"transform_input": True, "init_weights": False} if name in ("inception_v3", "googlenet") else {}
    if weights == "pretrained":
        with to_be_had(f"torchvision:{name}", weights):
            return get_model(name, weights=default), facts
    network: nn.Module = get_model(name, weights=None, **options)
    if weights != "random":
        # a file without classifier (SwAV) is enough for a layer before it
        heads = tuple(head for head in ("fc.", "classifier.", "heads.") if layer and not layer.startswith(head[:-1]))
        optional = ("AuxLogits.", "aux1.", "aux2.", *heads)
        load_weights(network, weights, title=f"torchvision:{name}", optional=optional)
    return network, facts


def _timm(name: str, weights: str, *, classes: bool) -> tuple[nn.Module, dict[str, Any]]:
    import timm
    from timm.data.config import resolve_model_data_config

    if not timm.is_model(name):
        raise DataError(f"timm has no model {name!r}; {did_you_mean(name.split('.')[0], timm.list_models())}")
    options: dict[str, Any] = {} if classes else {"num_classes": 0}
    with to_be_had(f"timm:{name}", weights):
        network: Any = timm.create_model(name, pretrained=weights == "pretrained", **options)
    config = resolve_model_data_config(network)
    facts = {
        "size": config["input_size"][-1],
        "mean": config["mean"],
        "std": config["std"],
        "mode": "bilinear" if config["interpolation"] == "bilinear" else "bicubic",
    }
    if weights not in ("pretrained", "random"):
        classifier = network.pretrained_cfg["classifier"]
        names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
        unused = () if classes else tuple(f"{entry}." for entry in names)
        load_weights(network, weights, title=f"timm:{name}", unused=unused)
    return network, facts


class _ImageTower(nn.Module):
    def __init__(self, clip: Any) -> None:
        super().__init__()
        # the whole model stays a module, so that it moves to a device
        self.clip = clip

    def forward(self, pictures: Tensor) -> Tensor:
        embedding: Tensor = self.clip.encode_image(pictures)
        return embedding


def _open_clip(name: str, weights: str) -> tuple[nn.Module, dict[str, Any]]:
    import open_clip

    if name not in open_clip.list_models():
        raise DataError(f"open_clip has no model {name!r}; {did_you_mean(name, open_clip.list_models())}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights != "random" and weights not in tags and not _is_file(weights):
        raise DataError(
            f"open_clip:{name}: weights must be one of {', '.join(tags) or 'no tags'}, 'random' or a local file, "
            f"found {weights!r}"
        )
    with to_be_had(f"open_clip:{name}", weights):
        clip: Any = open_clip.create_model(
            name, pretrained=None if weights == "random" else weights, load_weights=weights != "random"
        )
    config = clip.visual.preprocess_cfg
    size = config["size"]
    facts = {
        "size": size if isinstance(size, int) else size[0],
        "mean": config["mean"],
        "std": config["std"],
        "mode": config["interpolation"],
    }
    return _ImageTower(clip), facts


def _is_file(weights: str) -> bool:
    return Path(weights).expanduser().is_file()


def _own(path: str) -> nn.Module:
    """Build a class of the user's, from a file or a module.

    Raises:
        DataError: It cannot be imported, or is no network.
    """
    place, _, name = path.rpartition(":" if ".py:" in path else ".")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, Path(place).expanduser())
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        kind = getattr(module, name)
    except (ImportError, OSError, AttributeError, ValueError) as error:
        raise DataError(
            f"cannot import the network {path!r} ({error}); give torchvision:<name>, timm:<name>, open_clip:<name>, "
            "my.py:Net or package.module.Net"
        ) from error
    network = kind()
    if not isinstance(network, nn.Module):
        raise DataError(f"{path} makes a {type(network).__name__}, not an nn.Module; name a class of networks")
    return network
