"""Checkpoints that another run or stage takes up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contracts import ContractError, reason_of


def load_stage(path: Path, *, argument: str, stage: str) -> dict[str, Any]:
    """Read the checkpoint of a stage.

    Args:
        path: The checkpoint.
        argument: The argument that names it, for messages.
        stage: Class name of the stage that it must be of.

    Raises:
        ContractError: Not there, damaged, or of another stage.
    """
    advice = f"change --model.init_args.{argument}"
    if not path.is_file():
        raise ContractError(f"no checkpoint {path.absolute()}; train that stage first on the same data, or {advice}")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        made_by: str = checkpoint["lineage"][-1]["stage"]
        checkpoint["hyper_parameters"]["layout"]
    # torch reports damaged files with many types: UnpicklingError, RuntimeError, EOFError ...
    except Exception as error:
        raise ContractError(f"{path} is damaged or no checkpoint ({reason_of(error)}); {advice}") from error
    if made_by.partition(" ")[0] != stage:
        raise ContractError(f"{path} is the checkpoint of another stage ({made_by}) than {stage}; {advice}")
    # the command line adds names of its own, which begin with an underscore
    arguments = checkpoint["hyper_parameters"]
    checkpoint["hyper_parameters"] = {key: value for key, value in arguments.items() if not key.startswith("_")}
    return checkpoint


def renamed_people(
    state: Mapping[str, Tensor], theirs: Mapping[str, Any], mine: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return weights of a checkpoint under the numbers that its people have here.

    The layers of a person who is not here, or has other regions here, are left out; those that all people there
    have in common become everyone's.

    Args:
        state: Weights of the checkpoint.
        theirs: Arguments of the FmriMAE that was saved.
        mine: Arguments of the FmriMAE that takes them over.
    """
    layouts = theirs["layout"], mine["layout"]
    rois = [{subject: list(layout["rois"][subject].items()) for subject in layout["subjects"]} for layout in layouts]
    destinations: dict[int, list[int]] = {}
    for number, name in enumerate(rois[0]):
        if theirs["voxels"] == mine["voxels"] == "common":
            destinations[number] = [0] * (number == 0 and rois[0][name] == next(iter(rois[1].values())))
        elif mine["voxels"] == "common":
            destinations[number] = []
        elif theirs["voxels"] == "common":
            destinations[number] = [place for place, own in enumerate(rois[1].values()) if own == rois[0][name]]
        else:
            destinations[number] = [list(rois[1]).index(name)] if rois[1].get(name) == rois[0][name] else []
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        before, layers, after = name.partition(".layers.")
        here, _, rest = after.partition(".")
        places = [f"{before}{layers}{place}.{rest}" for place in destinations[int(here)]] if layers else [name]
        renamed |= dict.fromkeys(places, value)
    return renamed
