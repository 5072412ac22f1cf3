"""Files of published weights: read, recognised by their names, and what they become here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from contracts import DataError, Layout
from datamodules.core.readers import FETCH_AGAIN, load_torch, reading
from lightning_modules.stage import Stage

CONFIG_CLASSES = tuple(
    f"config.{name}"
    for name in ("Config_MAE_fMRI", "Config_MBM_fMRI", "Config_MBM_finetune", "Config_Generative_Model")
)
"""Classes of settings that the published files pickle beside the weights; read as plain attributes."""

Names = Sequence[tuple[str, str]]
"""Pairs of a regular expression that matches a published name, and ours; the first that matches counts."""


@dataclass(frozen=True)
class PublishedFile:
    """The weights of a file, and what stands beside them.

    Attributes:
        path: The file.
        state: Weights by their published names.
        settings: The settings of the published run; empty where the file has none.
    """

    path: Path
    state: Mapping[str, Tensor]
    settings: Mapping[str, Any]

    def renamed(self, names: Names) -> dict[str, list[str]]:
        """Find our names.

        Returns:
            Published names by ours; several where ours is theirs joined along the rows, in the order of ``names``.
        """
        found: dict[str, list[tuple[int, str]]] = {}
        for name in self.state:
            for order, (pattern, ours) in enumerate(names):
                match = re.fullmatch(pattern, name)
                if match:
                    found.setdefault(match.expand(ours), []).append((order, name))
                    break
        return {ours: [name for _, name in sorted(parts)] for ours, parts in found.items()}

    def weights(self, renamed: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
        """Weights by our names.

        Raises:
            DataError: Parts of a weight that cannot be joined.
        """
        weights = {}
        for ours, names in renamed.items():
            parts = [self.state[name] for name in names]
            if len(parts) > 1 and (not parts[0].ndim or len({part.shape[1:] for part in parts}) > 1):
                raise DataError(
                    f"{self.path}: {', '.join(names)} do not fit each other: {[tuple(part.shape) for part in parts]}"
                )
            weights[ours] = torch.cat(parts) if len(parts) > 1 else parts[0]
        return weights

    def require(self, kind: str, needed: Mapping[str, int], *, found: Mapping[str, Tensor], known: int) -> None:
        """Refuse a file without the weights that tell the sizes.

        Args:
            kind: What the file should be, for the message.
            needed: Number of dimensions of those weights by name.
            found: Weights by name, published or ours.
            known: How many of the names in the file are known.

        Raises:
            DataError: One is missing, or has other dimensions.
        """
        missing = [name for name in needed if name not in found]
        if missing:
            raise DataError(
                f"{self.path} is no {kind}: {known} of {len(self.state)} names are known, and {missing[0]} is "
                f"missing; it holds {', '.join(list(self.state)[:6])} ..."
            )
        for name, dimensions in needed.items():
            if found[name].ndim != dimensions or not found[name].numel():
                raise DataError(
                    f"{self.path} is no {kind}: {name} should have {dimensions} dimensions, none of them 0, and is "
                    f"{tuple(found[name].shape)}"
                )


@dataclass(frozen=True)
class Import:
    """What a file becomes.

    Attributes:
        stage: A stage of the sizes of the file.
        network: The part of it that the weights belong to.
        weights: Weights by their names in ``network``.
        renamed: Published names by ours.
        derived: Published names that are checked instead of taken over.
        made_up: Our names whose weights the file lacks and that begin as ``weights`` has them.
        complete: Whether a weight that the file lacks is an error; else it begins at random.
        transductive: Whether test recordings may have taken part in training.
    """

    stage: Stage
    network: nn.Module
    weights: Mapping[str, Tensor]
    renamed: Mapping[str, Sequence[str]]
    derived: Sequence[str] = ()
    made_up: Mapping[str, str] = field(default_factory=dict)
    complete: bool = True
    transductive: bool = False


def read_published(path: Path) -> PublishedFile:
    """Read a ``.pth`` (the state dict, or a dict that holds it as ``model`` or ``state_dict``) or ``.safetensors``.

    Nothing in the file is run: it may hold tensors, plain containers and the published settings.

    Raises:
        DataError: No such file, a damaged one, one with other objects or without weights, weights that are not finite.
    """
    content = _read(path)
    state = {name.removeprefix("module."): value for name, value in _state(path, content).items()}
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise DataError(f"{path}: {len(broken)} weights hold NaN or infinite values, the first is {broken[0]}")
    settings = getattr(content.get("config"), "__dict__", {}) if isinstance(content, dict) else {}
    return PublishedFile(path, state, settings)


def count(names: Mapping[str, Any], pattern: str) -> int:
    """Number of layers: 1 + the largest first group of ``pattern`` at the start of a name; 0 without a match."""
    numbers = [int(match[1]) for name in names if (match := re.match(pattern, name))]
    return 1 + max(numbers, default=-1)


def unknown_layout(
    subject: str,
    rois: Mapping[str, int] | None = None,
    *,
    size: int | None = None,
    embedding_width: int = 0,
) -> Layout:
    """Return the layout of weights that do not tell what they were trained on.

    Args:
        subject: The person, or whatever stands in place of one.
        rois: fMRI: name -> number of voxels.
        size: Pictures: their side in pixels.
        embedding_width: D, where the weights take embeddings.
    """
    regions = {} if rois is None else dict(rois)
    image_shape = [] if size is None else [3, size, size]
    return Layout(
        modality="image" if rois is None else "fmri",
        subjects=[subject],
        shape={subject: image_shape if rois is None else [sum(regions.values())]},
        rois={subject: regions},
        channels=[],
        positions=[],
        sampling_rate=0.0,
        start=0.0,
        image_shape=image_shape,
        embedding_width=embedding_width,
        embedding_space="unknown" if embedding_width else "none",
        train_samples={subject: 0},
        classes=[],
        protocol="unknown",
        fold=0,
        folds=1,
        preparation={},
        training_set="unknown",
        transductive=False,
    )


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        with reading(path, FETCH_AGAIN):
            return load_file(path)
    return load_torch(path, plain_classes=CONFIG_CLASSES)


def _state(path: Path, content: Any) -> Mapping[str, Tensor]:
    """The state dict of a file, which may stand in a dict beside other things."""
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {k: v.detach() for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise DataError(f"{path}: expected weights by name (or a dict with 'model'), found {type(content).__name__}")
    return tensors
