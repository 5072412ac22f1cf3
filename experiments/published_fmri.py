"""Published fMRI autoencoders, of LEA and MinD-Vis: they become an FmriMAE."""

from __future__ import annotations

from typing import Any

import torch

from contracts import DataError
from experiments.published_files import Import, Names, PublishedFile, count, unknown_layout
from lightning_modules.fmri_mae import FmriMAE
from lightning_modules.networks.masked_autoencoder import sine_positions

# the published names, and ours
_SHARED: Names = (
    (r"cls_token|mask_token", r"\g<0>"),
    (r"blocks\.(.+)", r"encoder.blocks.\1"),
    (r"norm\.(.+)", r"encoder.norm.\1"),
    (r"decoder_embed\.(.+)", r"from_latent.\1"),
    (r"decoder_blocks\.(.+)", r"decoder.blocks.\1"),
    (r"decoder_norm\.(.+)", r"decoder.norm.\1"),
)
_LEA: Names = (
    *_SHARED,
    (r"patch_embed\.layers\.(\d+)\.0\.(.+)", r"tokens.inputs.layers.0.convolutions.\1.\2"),
    (r"patch_embed\.layers\.(\d+)\.1\.(.+)", r"tokens.inputs.layers.0.projections.\1.\2"),
    (r"pred\.(.+)", r"to_latent.\1"),
    (r"channel_mapper\.(\d+)\.0\.(.+)", r"tokens.outputs.layers.0.projections.\1.\2"),
    (r"decoder_pred\.(.+)", r"tokens.mix.\1"),
)
_MINDVIS: Names = (
    *_SHARED,
    (r"patch_embed\.proj\.(.+)", r"tokens.input.\1"),
    (r"decoder_pred\.(.+)", r"tokens.output.\1"),
)
# the weights that tell the sizes, and their dimensions
_NEEDED = {"cls_token": 3, "mask_token": 3, "blocks.0.mlp.fc1.weight": 2}
_POSITIONS = ("pos_embed", "decoder_pos_embed")


def lea(
    file: PublishedFile,
    *,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    subject: str = "01",
    rois: list[str] | None = None,
    saw_test_recordings: bool = True,
) -> Import:
    """The fMRI autoencoder of LEA, with regions; arguments are those of ``import_weights``.

    Raises:
        DataError: Another network, other positions than the published ones, or names of other regions.
    """
    regions = count(file.state, r"(?:patch_embed\.layers|channel_mapper)\.(\d+)\.")
    projections = [f"patch_embed.layers.{number}.1.weight" for number in range(regions)]
    needed = {"patch_embed.layers.0.0.weight": 3, "pred.weight": 2, **_NEEDED, **dict.fromkeys(projections, 2)}
    renamed = file.renamed(_LEA)
    file.require("lea autoencoder", needed, found=file.state, known=len(renamed))
    sizes = [file.state[name].shape[1] for name in projections]
    names = [f"region-{number + 1}" for number in range(regions)] if rois is None else rois
    if len(names) != regions or len(set(names)) < regions:
        raise DataError(f"{file.path} has {regions} regions of {sizes} voxels, --rois names {names}")
    arguments = {
        "tokens": "roi",
        "variant": "code",
        "heads": file.state["patch_embed.layers.0.0.weight"].shape[0],
        "latent_width": file.state["pred.weight"].shape[0],
        **_sizes(file, num_heads=num_heads, decoder_num_heads=decoder_num_heads),
    }
    layout = unknown_layout(subject, dict(zip(names, sizes, strict=True)))
    stage = FmriMAE(layout, **arguments)
    return _import(file, stage, renamed=renamed, saw_test_recordings=saw_test_recordings)


def mindvis(
    file: PublishedFile,
    *,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    subject: str = "01",
    voxels: int | None = None,
    saw_test_recordings: bool = True,
) -> Import:
    """The masked autoencoder of MinD-Vis, with patches; arguments are those of ``import_weights``.

    Raises:
        DataError: Another network, other positions than the published ones, or voxels that its patches do not hold.
    """
    renamed = file.renamed(_MINDVIS)
    needed = {"patch_embed.proj.weight": 3, "pos_embed": 3, **_NEEDED}
    file.require("mindvis autoencoder", needed, found=file.state, known=len(renamed))
    patch = file.state["patch_embed.proj.weight"].shape[-1]
    patches = file.state["pos_embed"].shape[1] - 1
    size = patches * patch if voxels is None else voxels
    if not (patches - 1) * patch < size <= patches * patch:
        raise DataError(f"{file.path} has {patches} patches of {patch} voxels, --voxels is {voxels}")
    arguments = {
        "tokens": "patch",
        "patch_size": patch,
        **_sizes(file, num_heads=num_heads, decoder_num_heads=decoder_num_heads),
    }
    stage = FmriMAE(unknown_layout(subject, {"all": size}), **arguments)
    return _import(file, stage, renamed=renamed, saw_test_recordings=saw_test_recordings)


def _import(file: PublishedFile, stage: FmriMAE, *, renamed: dict[str, list[str]], saw_test_recordings: bool) -> Import:
    _check_positions(file)
    return Import(
        stage=stage,
        network=stage.autoencoder,
        weights=file.weights(renamed),
        renamed=renamed,
        derived=_POSITIONS,
        # an encoder without its decoder is worth taking over
        complete=False,
        transductive=saw_test_recordings,
    )


def _sizes(file: PublishedFile, *, num_heads: int | None, decoder_num_heads: int | None) -> dict[str, Any]:
    """Arguments of FmriMAE that the weights and settings tell."""
    width, decoder_width = file.state["cls_token"].shape[-1], file.state["mask_token"].shape[-1]
    heads = int(file.settings.get("num_heads", 16)) if num_heads is None else num_heads
    decoder_heads = file.settings.get("decoder_num_heads", heads) if decoder_num_heads is None else decoder_num_heads
    return {
        "width": width,
        "depth": count(file.state, r"blocks\.(\d+)\."),
        "num_heads": heads,
        "decoder_width": decoder_width,
        "decoder_depth": count(file.state, r"decoder_blocks\.(\d+)\."),
        "decoder_num_heads": int(decoder_heads),
        "mlp_ratio": file.state["blocks.0.mlp.fc1.weight"].shape[0] / width,
    }


def _check_positions(file: PublishedFile) -> None:
    for name in _POSITIONS:
        if name in file.state:
            table = file.state[name][0]
            expected = sine_positions(len(table) - 1, table.shape[1])
            # as exact as numbers of the file's type are
            if not torch.allclose(table.float(), expected, atol=max(1e-5, 2 * torch.finfo(table.dtype).eps)):
                raise DataError(
                    f"{file.path}: {name} is not the fixed table of sines and cosines of the published networks"
                )
