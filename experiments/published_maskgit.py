"""Published MaskGIT, of LEA or the official one: its VQGAN becomes a Tokenizer, its transformer a MaskGIT.

The official weights are those of Chang et al. (2022) in their port to PyTorch; LEA's (Qian et al. 2023) have names of
their own. Which ones a file holds is told by its names.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from contracts import ContractError, DataError
from experiments.published_files import Import, Names, PublishedFile, count, unknown_layout
from lightning_modules.maskgit import MaskGIT
from lightning_modules.networks.checkpoints import load_stage
from lightning_modules.tokenizer import Tokenizer

CLASSES = 1000
"""Classes of ImageNet; in the published tables of tokens they follow the codes, and the hidden code follows them."""

SIDE = 16
"""Codes along a side of the published pictures."""

CONDITION_SCALE = 0.01
"""SD of made-up weights of the condition layer, in units of the root mean square of its bias: an embedding of length 1
moves the condition by about a hundredth of the bias, one of length 10 by a tenth. Small weights do not hold training
up: the gradient of a linear layer does not depend on them."""


# ---- the tokenizer ---------------------------------------------------------------------------------


def tokenizer(file: PublishedFile, *, size: int | None = None) -> Import:
    """The VQGAN of MaskGIT, without its discriminator; arguments are those of ``import_weights``.

    Raises:
        DataError: Another network, or a size that it cannot divide.
    """
    # in the official names the lists of blocks are those of the levels and, at one end, the middle
    levels = max(count(file.state, r"(?:en|de)coder\.res_blocks\.(\d+)\."), 1) - 1
    renamed = max((file.renamed(names) for names in (_lea_vqgan(), _official_vqgan(levels))), key=len)
    weights = file.weights(renamed)
    found = count(weights, r"encoder\.levels\.(\d+)\.")
    first = [f"encoder.levels.{level}.0.conv1.weight" for level in range(max(found, 1))]
    needed = {"encoder.conv_in.weight": 4, "codebook.weight": 2, **dict.fromkeys(first, 4)}
    file.require("MaskGIT tokenizer", needed, found=weights, known=len(renamed))
    width = weights["encoder.conv_in.weight"].shape[0]
    codes, code_width = weights["codebook.weight"].shape
    options = {
        "width": width,
        # channels that are no multiple are refused with the weights that do not fit
        "multipliers": [weights[name].shape[0] // width for name in first],
        "blocks": count(weights, r"encoder\.levels\.0\.(\d+)\."),
        "codes": codes,
        "code_width": code_width,
    }
    factor = 2 ** (found - 1)
    side = SIDE * factor if size is None else size
    if side < 1 or side % factor:
        raise DataError(f"{file.path}: a code stands for {factor} x {factor} pixels, which do not divide --size {side}")
    stage = Tokenizer(unknown_layout("pictures", size=side), architecture="maskgit_vqgan", options=options)
    return Import(stage, stage.network, weights=weights, renamed=renamed)


def _lea_vqgan() -> Names:
    parts = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"nin_shortcut": "shortcut"}
    return [
        (r"(encoder|decoder)\.(conv_in|norm_out|conv_out)\.(.+)", r"\1.\2.\3"),
        (r"decoder\.up\.(\d+)\.upsample\.conv\.(.+)", r"decoder.enlarge.\1.\2"),
        (r"quantizer\.embedding\.weight", "codebook.weight"),
        *((rf"(..)coder\.mid\.(\d+)\.{a}\.(.+)", rf"\1coder.middle.\2.{b}.\3") for a, b in parts.items()),
        *(
            (rf"{half}\.{levels}\.(\d+)\.block\.(\d+)\.{a}\.(.+)", rf"{half}.levels.\1.\2.{b}.\3")
            for half, levels in (("encoder", "down"), ("decoder", "up"))
            for a, b in parts.items()
        ),
    ]


def _official_vqgan(levels: int) -> Names:
    parts = {"norm0": "norm1", "conv0": "conv1", "norm1": "norm2", "conv1": "conv2", "conv_res": "shortcut"}
    # the middle is the last of the encoder's lists of blocks, and the first of the decoder's
    places = [
        (rf"encoder\.res_blocks\.{levels}", "encoder.middle"),
        (r"decoder\.res_blocks\.0", "decoder.middle"),
        *((rf"encoder\.res_blocks\.{level}", f"encoder.levels.{level}") for level in range(levels)),
        *((rf"decoder\.res_blocks\.{level + 1}", f"decoder.levels.{level}") for level in range(levels)),
    ]
    return [
        (r"(encoder|decoder)\.(conv_in|norm_out|conv_out)\.(.+)", r"\1.\2.\3"),
        (r"quantizer\.codebook\.weight", "codebook.weight"),
        # in a list of blocks, what has weights of its own is the convolution after the enlargement
        *(
            (rf"decoder\.res_blocks\.{level + 1}\.\d+\.(weight|bias)", rf"decoder.enlarge.{level}.\1")
            for level in range(levels)
        ),
        *((rf"{theirs}\.(\d+)\.{a}\.(.+)", rf"{ours}.\1.{b}.\2") for theirs, ours in places for a, b in parts.items()),
    ]


# ---- the transformer -------------------------------------------------------------------------------

# epsilon of the layer norm of the embeddings, and the names
_TRANSFORMERS: tuple[tuple[float, Names], ...] = (
    (
        1e-5,
        (
            (r"token_emb\.weight", "transformer.embedding.weight"),
            (r"de_pos_emb\.weight", "transformer.positions"),
            (r"ln\.(.+)", r"transformer.norm.\1"),
            *(
                (rf"decoder\.(\d+)\.self_attn\.{part}\.(.+)", r"transformer.blocks.\1.attention.qkv.\2")
                for part in ("query", "key", "value")
            ),
            (r"decoder\.(\d+)\.self_attn\.proj\.(.+)", r"transformer.blocks.\1.attention.proj.\2"),
            (r"decoder\.(\d+)\.(norm[12])\.(.+)", r"transformer.blocks.\1.\2.\3"),
            (r"decoder\.(\d+)\.linear([12])\.(.+)", r"transformer.blocks.\1.mlp.fc\2.\3"),
            (r"mlps\.([02])\.(.+)", r"transformer.head.\1.\2"),
            (r"mlps_bias", "transformer.bias"),
            (r"decoder_embed\.(.+)", r"condition.\1"),
        ),
    ),
    (
        1e-12,
        (
            (r"tok_emb\.weight", "transformer.embedding.weight"),
            (r"pos_emb", "transformer.positions"),
            (r"emb_ln\.(.+)", r"transformer.norm.\1"),
            (r"blocks\.(\d+)\.MultiHeadAttention\.in_proj_(.+)", r"transformer.blocks.\1.attention.qkv.\2"),
            (r"blocks\.(\d+)\.MultiHeadAttention\.out_proj\.(.+)", r"transformer.blocks.\1.attention.proj.\2"),
            (r"blocks\.(\d+)\.AttentionLN\.(.+)", r"transformer.blocks.\1.norm1.\2"),
            (r"blocks\.(\d+)\.MlpLN\.(.+)", r"transformer.blocks.\1.norm2.\2"),
            (r"blocks\.(\d+)\.MLP\.0\.(.+)", r"transformer.blocks.\1.mlp.fc1.\2"),
            (r"blocks\.(\d+)\.MLP\.2\.(.+)", r"transformer.blocks.\1.mlp.fc2.\2"),
            (r"Token_Prediction\.([02])\.(.+)", r"transformer.head.\1.\2"),
            (r"bias", "transformer.bias"),
        ),
    ),
)
_NEEDED = {
    "transformer.embedding.weight": 2,
    "transformer.positions": 2,
    "transformer.bias": 1,
    "transformer.blocks.0.mlp.fc1.weight": 2,
}


def transformer(
    file: PublishedFile, *, tokenizer: str | None = None, num_heads: int = 16, embedding_width: int | None = None
) -> Import:
    """The token transformer of MaskGIT; arguments are those of ``import_weights``.

    Raises:
        DataError: Another network, no tokenizer or one that does not fit, or embeddings of another width.
    """
    eps, renamed = max(((eps, file.renamed(names)) for eps, names in _TRANSFORMERS), key=lambda pair: len(pair[1]))
    weights = file.weights(renamed)
    has_condition = any(name.startswith("condition.") for name in weights)
    conditioned = {"condition.weight": 2, "condition.bias": 1} if has_condition else {}
    file.require("MaskGIT transformer", _NEEDED | conditioned, found=weights, known=len(renamed))
    table, width = weights["transformer.embedding.weight"], weights["transformer.embedding.weight"].shape[1]
    if num_heads < 1 or width % num_heads:
        raise DataError(f"{file.path}: tokens have a width of {width}, which --num_heads {num_heads} does not divide")
    inputs = _embedding_width(file, weights, asked=embedding_width)
    path, image_shape = _tokenizer(file, tokenizer)
    stage = MaskGIT(
        unknown_layout("pictures", size=image_shape[1], embedding_width=inputs),
        tokenizer=path,
        width=width,
        depth=count(weights, r"transformer\.blocks\.(\d+)\."),
        num_heads=num_heads,
        mlp_width=weights["transformer.blocks.0.mlp.fc1.weight"].shape[0],
        embedding_eps=eps,
    )
    codes, side = stage.tokenizer.codes, stage.tokenizer.side
    tokens = len(weights["transformer.positions"]) - 1
    if tokens != side**2:
        raise DataError(
            f"{file.path} has positions for {tokens} codes of a picture, --tokenizer {path} gives {side} x {side} of "
            f"pictures of {image_shape}; import it with another --size"
        )
    for name, rows in (("tokens", len(table)), ("biases", len(weights["transformer.bias"]))):
        if rows != codes + CLASSES + 1:
            raise DataError(
                f"{file.path} has {rows} {name}: with {CLASSES} classes and the hidden code, {rows - CLASSES - 1} "
                f"codes are left; --tokenizer {path} has {codes}; give the one that it was trained with"
            )
    made_up = {}
    if not has_condition:
        made_up = {
            "condition.weight": f"SD {CONDITION_SCALE} times the size of the bias",
            "condition.bias": f"the mean of the {CLASSES} classes",
        }
        weights |= _condition(table[codes:-1], inputs)
    # classes are left out: what the condition layer gives stands in their place
    weights["transformer.embedding.weight"] = torch.cat([table[:codes], table[-1:]])
    weights["transformer.bias"] = weights["transformer.bias"][:codes]
    parts = nn.ModuleDict({"transformer": stage.transformer, "condition": stage.condition})
    return Import(stage, parts, weights=weights, renamed=renamed, made_up=made_up)


def _embedding_width(file: PublishedFile, weights: dict[str, Tensor], *, asked: int | None) -> int:
    if "condition.weight" in weights:
        own = weights["condition.weight"].shape[1]
        if asked not in (None, own):
            raise DataError(
                f"{file.path} was trained on embeddings of width {own}, --embedding_width is {asked}; leave it out"
            )
        return own
    width = 1024 if asked is None else asked
    if width < 1:
        raise DataError(f"--embedding_width must be at least 1, found {width}")
    return width


def _tokenizer(file: PublishedFile, path: str | None) -> tuple[str, list[int]]:
    """The tokenizer's checkpoint and the shape of its pictures."""
    if path is None:
        raise DataError(
            f"{file.path} predicts the codes of a tokenizer: set --tokenizer to the checkpoint that "
            "--from maskgit_tokenizer has made"
        )
    try:
        arguments = load_stage(Path(path), argument="tokenizer", stage="Tokenizer")["hyper_parameters"]
    except ContractError as error:
        # the same argument has another name here
        raise DataError(str(error).replace("--model.init_args.tokenizer", "--tokenizer")) from error
    if arguments["architecture"] != "maskgit_vqgan":
        raise DataError(
            f"{file.path} predicts the codes of MaskGIT's own tokenizer, --tokenizer {path} is "
            f"{arguments['architecture']}; give one that --from maskgit_tokenizer has made"
        )
    return path, list(arguments["layout"]["image_shape"])


def _condition(classes: Tensor, inputs: int) -> dict[str, Tensor]:
    """A condition layer that gives, for any embedding, nearly the mean of the rows of the classes."""
    bias = classes.float().mean(dim=0)
    # the same file gives the same checkpoint
    noise = torch.randn(len(bias), inputs, generator=torch.Generator().manual_seed(0))
    return {"condition.weight": CONDITION_SCALE * bias.square().mean().sqrt() * noise, "condition.bias": bias}
