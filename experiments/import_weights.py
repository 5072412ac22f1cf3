"""``neuroalign import-weights``: published weights of LEA and MinD-Vis become a checkpoint of FmriMAE."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from jsonargparse import ArgumentParser
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from contracts import DataError, Layout
from datamodules.core.atomic import build_once
from datamodules.core.readers import existing, load_torch
from lightning_modules.fmri_mae import FmriMAE
from lightning_modules.networks.masked_autoencoder import sine_positions

Source = Literal["lea", "mindvis"]
CONFIG_CLASSES = tuple(
    f"config.{name}"
    for name in ("Config_MAE_fMRI", "Config_MBM_fMRI", "Config_MBM_finetune", "Config_Generative_Model")
)
"""Classes of settings that the published files pickle beside the weights; read as plain attributes."""

# the published names, and ours
_SHARED = (
    (r"cls_token|mask_token", r"\g<0>"),
    (r"blocks\.(.+)", r"encoder.blocks.\1"),
    (r"norm\.(.+)", r"encoder.norm.\1"),
    (r"decoder_embed\.(.+)", r"from_latent.\1"),
    (r"decoder_blocks\.(.+)", r"decoder.blocks.\1"),
    (r"decoder_norm\.(.+)", r"decoder.norm.\1"),
)
_NAMES: dict[Source, tuple[tuple[str, str], ...]] = {
    "lea": (
        *_SHARED,
        (r"patch_embed\.layers\.(\d+)\.0\.(.+)", r"tokens.inputs.layers.0.convolutions.\1.\2"),
        (r"patch_embed\.layers\.(\d+)\.1\.(.+)", r"tokens.inputs.layers.0.projections.\1.\2"),
        (r"pred\.(.+)", r"to_latent.\1"),
        (r"channel_mapper\.(\d+)\.0\.(.+)", r"tokens.outputs.layers.0.projections.\1.\2"),
        (r"decoder_pred\.(.+)", r"tokens.mix.\1"),
    ),
    "mindvis": (
        *_SHARED,
        (r"patch_embed\.proj\.(.+)", r"tokens.input.\1"),
        (r"decoder_pred\.(.+)", r"tokens.output.\1"),
    ),
}
# the weights that tell the sizes
_NEEDED: dict[Source, tuple[str, ...]] = {
    "lea": ("patch_embed.layers.0.0.weight", "pred.weight", "cls_token", "mask_token", "blocks.0.mlp.fc1.weight"),
    "mindvis": ("patch_embed.proj.weight", "pos_embed", "cls_token", "mask_token", "blocks.0.mlp.fc1.weight"),
}
_POSITIONS = ("pos_embed", "decoder_pos_embed")


def main(args: Sequence[str]) -> None:
    """Parse the command line and import a file."""
    words = [f"--source{word[len('--from') :]}" if re.match(r"--from(=|$)", word) else word for word in args]
    parser = ArgumentParser(prog="neuroalign import-weights", description=__doc__)
    parser.add_argument("file", help="weights, .pth or .safetensors")
    parser.add_function_arguments(import_weights, skip={"file"})
    config: dict[str, Any] = parser.parse_args(words).as_dict()
    import_weights(**config)


def import_weights(
    file: str,
    source: Source,
    to: str,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    subject: str = "01",
    rois: list[str] | None = None,
    voxels: int | None = None,
    saw_test_recordings: bool = True,
) -> None:
    """Import published weights (on the command line ``--from`` stands for ``--source``).

    Sizes are those of the tensors. Nothing in the file is run: it may hold tensors, plain containers and the
    published settings, which are read as plain attributes.

    Args:
        file: Weights, ``.pth`` (the state dict, or a dict that holds it as ``model`` or ``state_dict``) or
            ``.safetensors``.
        source: ``lea`` (fMRI autoencoder with regions) or ``mindvis`` (masked autoencoder with patches).
        to: Checkpoint to write, to be named as ``initialise_from`` of FmriMAE or ``fmri_mae`` of RidgeAlignment.
        num_heads: Attention heads of the encoder, which weights do not tell; if not given, those of the settings
            in the file, else 16 as published.
        decoder_num_heads: Attention heads of the decoder; if not given, those of the settings, else of the encoder.
        subject: The person whose regions these are.
        rois: ``lea``: names of the regions, in their order; needed to use the checkpoint with a data set.
        voxels: ``mindvis``: voxels of the person; if not given, those of the whole patches.
        saw_test_recordings: Whether test recordings may have taken part in training; later scores are then marked
            as transductive. Unknown for published weights, and so true.

    Raises:
        DataError: A damaged file, one with other objects in it, no weight that fits, weights that are not finite,
            other positions than the published ones.
    """
    path = Path(file)
    if Path(to).exists():
        raise DataError(f"{to} is there already; choose another --to, or remove it")
    content = _read(path)
    state = {name.removeprefix("module."): value for name, value in _state(path, content).items()}
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise DataError(f"{path}: {len(broken)} weights hold NaN or infinite values, the first is {broken[0]}")
    renamed = {ours: name for name in state if (ours := _our_name(name, source)) is not None}
    regions = _count(state, r"(?:patch_embed\.layers|channel_mapper)\.(\d+)\.") if source == "lea" else 0
    needed = *_NEEDED[source], *(f"patch_embed.layers.{number}.1.weight" for number in range(regions))
    missing = [name for name in needed if name not in state]
    if missing:
        raise DataError(
            f"{path} is no {source} autoencoder: {len(renamed)} of {len(state)} names are known, and {missing[0]} is "
            f"missing; it holds {', '.join(list(state)[:6])} ..."
        )
    settings = getattr(content.get("config"), "__dict__", {}) if isinstance(content, dict) else {}
    heads = int(settings.get("num_heads", 16)) if num_heads is None else num_heads
    decoder_heads = int(settings.get("decoder_num_heads", heads)) if decoder_num_heads is None else decoder_num_heads
    arguments = _sizes(state, source) | {"num_heads": heads, "decoder_num_heads": decoder_heads}
    layout = _layout(path, state, source, subject=subject, rois=rois, voxels=voxels)
    _check_positions(path, state)
    model = FmriMAE(layout, **arguments)
    mine = model.autoencoder.state_dict()
    taken = {
        ours: state[name] for ours, name in renamed.items() if ours in mine and mine[ours].shape == state[name].shape
    }
    weights = [name for name in state if name not in _POSITIONS]
    print(f"{path}: matched {len(taken)} of {len(weights)} weights, which are {len(taken)} of {len(mine)} here")
    for ours, name in renamed.items():
        if ours not in taken:
            here = tuple(mine[ours].shape) if ours in mine else "nothing"
            print(f"  {name}: {tuple(state[name].shape)} in the file, {here} here")
    for name in weights:
        if name not in renamed.values():
            print(f"  {name}: not part of the network, left out")
    for name in (name for name in mine if name not in taken):
        print(f"  {name}: not in the file, begins at random")
    model.autoencoder.load_state_dict(taken, strict=False)
    checkpoint = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": lightning.__version__,
        "epoch": 0,
        "global_step": 0,
        "lineage": [
            {
                "stage": f"FmriMAE imported from {source}",
                "protocol": "unknown",
                "training_set": "unknown",
                "transductive": saw_test_recordings,
                "training_stimuli": [],
            }
        ],
    }
    build_once(Path(to), lambda partial: torch.save(checkpoint, partial))
    print(f"wrote {to}")


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            return load_file(existing(path))
        except SafetensorError as error:
            raise DataError(
                f"cannot read {path} ({path.stat().st_size} bytes): {error}; fetch the file again"
            ) from error
    return load_torch(path, plain_classes=CONFIG_CLASSES)


def _state(path: Path, content: Any) -> Mapping[str, Tensor]:
    """The state dict of a file, which may stand in a dict beside other things."""
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise DataError(f"{path}: expected weights by name (or a dict with 'model'), found {type(content).__name__}")
    return tensors


def _our_name(name: str, source: Source) -> str | None:
    for pattern, ours in _NAMES[source]:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(ours)
    return None


def _sizes(state: Mapping[str, Tensor], source: Source) -> dict[str, Any]:
    """Arguments of FmriMAE that the shapes of the weights tell."""
    width, decoder_width = state["cls_token"].shape[-1], state["mask_token"].shape[-1]
    arguments = {
        "width": width,
        "depth": _count(state, r"blocks\.(\d+)\."),
        "decoder_width": decoder_width,
        "decoder_depth": _count(state, r"decoder_blocks\.(\d+)\."),
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
    }
    if source == "mindvis":
        return arguments | {"tokens": "patch", "patch_size": state["patch_embed.proj.weight"].shape[-1]}
    return arguments | {
        "tokens": "roi",
        "variant": "code",
        "heads": state["patch_embed.layers.0.0.weight"].shape[0],
        "latent_width": state["pred.weight"].shape[0],
    }


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    numbers = [int(match[1]) for name in state if (match := re.match(pattern, name))]
    return 1 + max(numbers, default=-1)


def _layout(
    path: Path,
    state: Mapping[str, Tensor],
    source: Source,
    *,
    subject: str,
    rois: list[str] | None,
    voxels: int | None,
) -> Layout:
    if source == "lea":
        count = _count(state, r"patch_embed\.layers\.(\d+)\.")
        sizes = [state[f"patch_embed.layers.{number}.1.weight"].shape[1] for number in range(count)]
        names = [f"region-{number + 1}" for number in range(count)] if rois is None else rois
        if len(names) != count or len(set(names)) < count:
            raise DataError(f"{path} has {count} regions of {sizes} voxels, --rois names {names}")
    else:
        patch = state["patch_embed.proj.weight"].shape[-1]
        patches = state["pos_embed"].shape[1] - 1
        names, sizes = ["all"], [patches * patch if voxels is None else voxels]
        if not (patches - 1) * patch < sizes[0] <= patches * patch:
            raise DataError(f"{path} has {patches} patches of {patch} voxels, --voxels is {voxels}")
    return Layout(
        modality="fmri",
        subjects=[subject],
        shape={subject: [sum(sizes)]},
        rois={subject: dict(zip(names, sizes, strict=True))},
        channels=[],
        positions=[],
        sampling_rate=0.0,
        start=0.0,
        image_shape=[],
        embedding_width=0,
        embedding_space="none",
        train_samples={subject: 0},
        classes=[],
        protocol="unknown",
        fold=0,
        folds=1,
        preparation={},
        training_set="unknown",
        transductive=False,
    )


def _check_positions(path: Path, state: Mapping[str, Tensor]) -> None:
    for name in _POSITIONS:
        if name in state:
            table = state[name][0]
            expected = sine_positions(len(table) - 1, table.shape[1])
            # as exact as numbers of the file's type are
            if not torch.allclose(table.float(), expected, atol=max(1e-5, 2 * torch.finfo(table.dtype).eps)):
                raise DataError(f"{path}: {name} is not the fixed table of sines and cosines of the published networks")
