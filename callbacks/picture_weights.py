"""Weights of frozen networks: read without executing anything, and refused where they are of another network."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from contracts import DataError, reason_of

UNUSED = ("prototypes.", "projection_head.")
"""Weights that the public SwAV files hold beside the network: heads that its training alone needed."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a message on an unknown name: what is close to it, or what there is."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names[:20])} ..."


@contextmanager
def to_be_had(model: str, weights: str) -> Iterator[None]:
    """Turn whatever goes wrong while weights are fetched or read into a DataError that says so."""
    try:
        yield
    except DataError:
        raise
    # downloads and files fail with many types: URLError, OSError, RuntimeError, UnpicklingError ...
    except Exception as error:
        raise DataError(
            f"{model}: cannot use the weights {weights!r} ({reason_of(error)}); they could not be downloaded, are "
            "damaged or belong to another model: name a local file, or 'random' for a control"
        ) from error


def load_weights(
    network: nn.Module,
    file: str,
    *,
    title: str,
    unused: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
) -> None:
    """Load a file of weights into a network; pickled objects in it are never executed.

    Args:
        network: The network.
        file: A ``.safetensors`` file, or one of ``torch.save``; a ``state_dict`` or ``model`` within it is taken,
            and the prefix ``module.`` of parallel training is left out.
        title: What it is called in messages.
        unused: Beginnings of names that the file may hold and the network has not, beside the heads of SwAV.
        optional: Beginnings of names that the file may lack, because no features depend on them.

    Raises:
        DataError: No such file, a damaged one, or weights of another network.
    """
    state = read_weights(file, title=title)
    own = network.state_dict()
    left_out = (*UNUSED, *unused)
    state = {key: value for key, value in state.items() if key in own or not key.startswith(left_out)}
    missing = [key for key in own if key not in state and not key.startswith(optional or ("\0",))]
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    foreign = [key for key in state if key not in own]
    shapes = [key for key, value in state.items() if key in own and own[key].shape != value.shape]
    if missing or foreign or shapes:
        matched = len(state) - len(foreign) - len(shapes)
        wrong = [
            f"{len(keys)} {what} (first {keys[0]})"
            for what, keys in (("missing", missing), ("unknown", foreign), ("of another shape", shapes))
            if keys
        ]
        raise DataError(
            f"{file} holds other weights than those of {title}: {matched} of {len(own)} match, {', '.join(wrong)}; "
            "change weights or model"
        )
    network.load_state_dict(state, strict=False)


def read_weights(file: str, *, title: str) -> dict[str, Tensor]:
    """Read a file of weights as plain tensors by name.

    Raises:
        DataError: No such file, a damaged one, or one that holds something else.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise DataError(f"{title}: no file {path.absolute()}; weights is 'pretrained', 'random' or a file")
    with to_be_had(title, file):
        found: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    for name in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise DataError(f"{title}: {path} holds no weights by name, but {type(found).__name__}; save a state_dict")
    return {key.removeprefix("module."): value for key, value in found.items()}
