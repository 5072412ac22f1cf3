"""``neuroalign import-weights``: published weights of LEA, MinD-Vis and MaskGIT become the checkpoint of a stage."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from jsonargparse import ArgumentParser

from contracts import DataError
from datamodules.core.atomic import build_once
from experiments import published_fmri, published_maskgit
from experiments.published_files import Import, PublishedFile, read_published

Source = Literal["lea", "mindvis", "maskgit_tokenizer", "maskgit_transformer"]
SOURCES: dict[Source, Callable[..., Import]] = {
    "lea": published_fmri.lea,
    "mindvis": published_fmri.mindvis,
    "maskgit_tokenizer": published_maskgit.tokenizer,
    "maskgit_transformer": published_maskgit.transformer,
}
"""What makes a stage of a file; its arguments are the options that it takes."""


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
    *,
    to: str,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    subject: str | None = None,
    rois: list[str] | None = None,
    voxels: int | None = None,
    saw_test_recordings: bool | None = None,
    size: int | None = None,
    tokenizer: str | None = None,
    embedding_width: int | None = None,
) -> None:
    """Import published weights (on the command line ``--from`` stands for ``--source``).

    Sizes are those of the tensors. Nothing in the file is run: it may hold tensors, plain containers and the
    published settings, which are read as plain attributes.

    Args:
        file: Weights, ``.pth`` (the state dict, or a dict that holds it as ``model`` or ``state_dict``) or
            ``.safetensors``.
        source: ``lea`` (fMRI autoencoder with regions), ``mindvis`` (masked autoencoder with patches),
            ``maskgit_tokenizer`` (VQGAN) or ``maskgit_transformer``; both in the names of LEA or of the PyTorch port
            of the official weights.
        to: Checkpoint to write, to be named as ``initialise_from`` of FmriMAE or ``fmri_mae`` of RidgeAlignment, as
            ``tokenizer`` of MaskGIT, or as ``initialise_from`` of MaskGIT and the decoder of later stages.
        num_heads: Attention heads, which weights do not tell; ``lea``, ``mindvis``: of the encoder. If not given,
            those of the settings in the file of a brain network, else 16 as published.
        decoder_num_heads: ``lea``, ``mindvis``: attention heads of the decoder; if not given, those of the settings,
            else of the encoder.
        subject: ``lea``, ``mindvis``: the person whose regions these are; if not given, ``01``.
        rois: ``lea``: names of the regions, in their order; needed to use the checkpoint with a data set.
        voxels: ``mindvis``: voxels of the person; if not given, those of the whole patches.
        saw_test_recordings: ``lea``, ``mindvis``: whether test recordings may have taken part in training; later
            scores are then marked as transductive. Unknown for published weights, and so true if not given.
        size: ``maskgit_tokenizer``: side of the pictures in pixels; if not given, that of 16 x 16 codes (256).
        tokenizer: ``maskgit_transformer``: checkpoint of the Tokenizer whose codes it predicts, as
            ``maskgit_tokenizer`` makes it; it becomes part of the checkpoint.
        embedding_width: ``maskgit_transformer``: width of the embeddings that pictures will be made from, for
            class-conditional weights; if not given, 1024. Their condition layer begins near the mean of the classes
            whatever the embedding, and is to be trained.

    Raises:
        DataError: A damaged file, one with other objects in it, no weight that fits or one that does not, weights that
            are not finite, other positions than the published ones, a tokenizer that does not fit, an option of
            another source.
    """
    if Path(to).exists():
        raise DataError(f"{to} is there already; choose another --to, or remove it")
    options = {
        "num_heads": num_heads,
        "decoder_num_heads": decoder_num_heads,
        "subject": subject,
        "rois": rois,
        "voxels": voxels,
        "saw_test_recordings": saw_test_recordings,
        "size": size,
        "tokenizer": tokenizer,
        "embedding_width": embedding_width,
    }
    given = {name: value for name, value in options.items() if value is not None}
    takes = [name for name in inspect.signature(SOURCES[source]).parameters if name != "file"]
    unused = [name for name in given if name not in takes]
    if unused:
        raise DataError(f"--{unused[0]} has no use with --from {source}, which takes {', '.join(takes)}; leave it out")
    content = read_published(Path(file))
    found = SOURCES[source](content, **given)
    _take_over(content, found)
    stage = found.stage
    entry = {
        "stage": f"{type(stage).__name__} imported from {source}",
        "protocol": "unknown",
        "training_set": "unknown",
        "transductive": found.transductive,
        "training_stimuli": [],
    }
    checkpoint = {
        "state_dict": stage.state_dict(),
        "hyper_parameters": dict(stage.hparams),
        "pytorch-lightning_version": lightning.__version__,
        "epoch": 0,
        "global_step": 0,
        "lineage": [*stage.lineage, entry],
    }
    build_once(Path(to), lambda partial: torch.save(checkpoint, partial))
    print(f"wrote {to}")


def _take_over(file: PublishedFile, found: Import) -> None:
    """Load the weights into the network, and say what became of each."""
    mine = found.network.state_dict()
    for ours, weight in found.weights.items():
        if ours in mine and mine[ours].shape != weight.shape:
            raise DataError(
                f"{file.path}: {', '.join(found.renamed.get(ours, ()))} is {tuple(weight.shape)}, and the others "
                f"ask for {tuple(mine[ours].shape)}; the file is of another network, or damaged"
            )
    taken = {ours: names for ours, names in found.renamed.items() if ours in mine}
    known = {name for names in taken.values() for name in names}
    rest = [name for name in file.state if name not in known and name not in found.derived]
    absent = [name for name in mine if name not in found.weights]
    if not taken or (absent and found.complete):
        raise DataError(
            f"{file.path}: {len(taken)} of {len(mine)} weights of the network are in the file, and {absent[0]} is not; "
            "fetch the whole file"
        )
    print(
        f"{file.path}: matched {len(known)} of {len(known) + len(rest)} weights, which are {len(taken)} of {len(mine)} "
        "here"
    )
    for name in rest:
        print(f"  {name}: not part of the network, left out")
    for name, how in found.made_up.items():
        print(f"  {name}: not in the file, begins as {how}")
    for name in absent:
        print(f"  {name}: not in the file, begins at random")
    found.network.load_state_dict({name: found.weights[name] for name in mine if name in found.weights}, strict=False)
