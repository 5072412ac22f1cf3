"""``neuroalign import-weights``: MaskGIT gives what the published one computes, and can be trained further."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contracts import Batch, ContractError, Layout
from lightning_modules import MaskGIT
from tests.experiments.test_import_maskgit import SMALL, Sizes, Vqgan, assert_close, both, golden, run
from tests.experiments.test_import_weights import WRAPPED
from tests.lightning_modules.fitting import loader, made_up, trainer
from tests.lightning_modules.plain_transformer import linear

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # the frozen tokenizer
    pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode"),
]
LEA = {
    "table": "token_emb.weight",
    "positions": "de_pos_emb.weight",
    "norm": "ln",
    "block": "decoder",
    "out": "self_attn.proj",
    "norms": "norm1 norm2",
    "mlp": "linear1 linear2",
    "head": "mlps",
    "bias": "mlps_bias",
}
OFFICIAL = {
    "table": "tok_emb.weight",
    "positions": "pos_emb",
    "norm": "emb_ln",
    "block": "blocks",
    "out": "MultiHeadAttention.out_proj",
    "norms": "AttentionLN MlpLN",
    "mlp": "MLP.0 MLP.2",
    "head": "Token_Prediction",
    "bias": "bias",
}
HEADS, TOKENS, EMBEDDING = 4, 9, 20


class Transformer:
    """Weights of a token transformer at random, and what it computes of 3 blocks, 50 codes and 9 tokens."""

    def __init__(self, naming: str, *, codes: int = 50, width: int = 48, mlp: int = 72, conditioned: bool) -> None:
        self.names = LEA if naming == "lea" else OFFICIAL
        self.eps = 1e-5 if naming == "lea" else 1e-12
        self.codes = codes
        shapes: dict[str, tuple[int, ...]] = {
            self.names["table"]: (codes + 1001, width),
            self.names["positions"]: (1 + TOKENS, width),
            self.names["bias"]: (codes + 1001,),
        }

        def layer(name: str, *shape: int, dot: str = ".") -> None:
            shapes.update({f"{name}{dot}weight": shape, f"{name}{dot}bias": shape[:1]})

        layer(self.names["norm"], width)
        for number in range(3):
            block = f"{self.names['block']}.{number}"
            for part in ("query", "key", "value") if naming == "lea" else ():
                layer(f"{block}.self_attn.{part}", width, width)
            if naming == "official":
                layer(f"{block}.MultiHeadAttention.in_proj", 3 * width, width, dot="_")
            layer(f"{block}.{self.names['out']}", width, width)
            for norm in self.names["norms"].split():
                layer(f"{block}.{norm}", width)
            first, second = self.names["mlp"].split()
            layer(f"{block}.{first}", mlp, width)
            layer(f"{block}.{second}", width, mlp)
        layer(f"{self.names['head']}.0", width, width)
        layer(f"{self.names['head']}.2", width)
        if conditioned:
            layer("decoder_embed", width, EMBEDDING)
        generator = torch.Generator().manual_seed(0)
        self.state = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        # so small that the epsilon of the norm behind them matters
        for name in (self.names["table"], self.names["positions"], "decoder_embed.weight", "decoder_embed.bias"):
            if name in self.state:
                self.state[name] *= 0.01

    def _normed(self, name: str, x: Tensor, eps: float = 1e-12) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps)

    def _attended(self, block: str, x: Tensor) -> Tensor:
        if self.names is LEA:
            parts = [linear(self.state, f"{block}.self_attn.{part}", x) for part in ("query", "key", "value")]
        else:
            name = f"{block}.MultiHeadAttention.in_proj"
            parts = list(F.linear(x, self.state[f"{name}_weight"], self.state[f"{name}_bias"]).chunk(3, dim=2))
        query, key, value = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in parts)
        weights = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(query.shape[3]), dim=3)
        return linear(self.state, f"{block}.{self.names['out']}", (weights @ value).transpose(1, 2).flatten(2))

    def logits(self, first: Tensor, tokens: Tensor) -> Tensor:
        """Logits over the codes; ``tokens`` in the published numbers, the hidden one is the last."""
        table = self.state[self.names["table"]]
        x = torch.cat([first[:, None], table[tokens]], dim=1) + self.state[self.names["positions"]]
        x = self._normed(self.names["norm"], x, self.eps)
        norms, (inner, outer) = self.names["norms"].split(), self.names["mlp"].split()
        for number in range(3):
            block = f"{self.names['block']}.{number}"
            x = self._normed(f"{block}.{norms[0]}", x + self._attended(block, x))
            hidden = F.gelu(linear(self.state, f"{block}.{inner}", x))
            x = self._normed(f"{block}.{norms[1]}", x + linear(self.state, f"{block}.{outer}", hidden))
        head = self.names["head"]
        x = self._normed(f"{head}.2", F.gelu(linear(self.state, f"{head}.0", x)))
        return (x @ table.T + self.state[self.names["bias"]])[:, 1:, : self.codes]


def tokens_of(codes: int, last: int, shape: tuple[int, int] = (2, TOKENS)) -> tuple[Tensor, Tensor]:
    """Some codes and hidden ones, in the published numbers and in ours."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, codes, shape, generator=generator)
    hidden = torch.rand(shape, generator=generator) < 0.5
    return tokens.masked_fill(hidden, last), tokens.masked_fill(hidden, codes)


def tokenizer(folder: Path, sizes: Sizes = SMALL, *, size: int = 12, seed: int = 0, to: str = "tok.ckpt") -> str:
    """Checkpoint of a tokenizer of 3 x 3 codes."""
    return str(run(folder, "maskgit_tokenizer", Vqgan("lea", sizes, seed=seed).state, f"--size={size}", to=to))


def imported(folder: Path, state: Any, path: str, *words: str, heads: int = HEADS, **names: str) -> Path:
    words = (f"--tokenizer={path}", f"--num_heads={heads}", *words)
    return run(folder, "maskgit_transformer", state, *words, **names)


def maskgit_of(path: Path) -> MaskGIT:
    return MaskGIT.load_from_checkpoint(path, weights_only=True).eval()


def logits_of(model: MaskGIT, first: Tensor, codes: Tensor) -> Tensor:
    return model.transformer.logits(model.transformer(codes, first))


# ---- what the published networks compute -------------------------------------------------------------


@pytest.mark.parametrize("how", WRAPPED)
def test_golden_transformer_of_lea(tmp_path: Path, how: str) -> None:
    name, wrap = WRAPPED[how]
    path = tokenizer(tmp_path, Sizes(width=32, multipliers=(1,), codes=1024), size=4)
    model = maskgit_of(imported(tmp_path, wrap(golden("lea_maskgit_transformer", "state_dict/")), path, name=name))
    values = golden("lea_maskgit_transformer")
    with torch.no_grad():
        codes = values["tokens"].where(values["tokens"] != 2024, torch.tensor(1024))
        assert (codes == 1024).any()
        assert_close(logits_of(model, model.condition(values["embedding"]), codes), values["logits"])


@pytest.mark.parametrize("how", WRAPPED)
def test_golden_official_transformer(tmp_path: Path, how: str) -> None:
    name, wrap = WRAPPED[how]
    values = golden("maskgit_official")
    path = run(tmp_path, "maskgit_tokenizer", golden("maskgit_official", "tokenizer/"), "--size=64", to="tok.ckpt")
    state = golden("maskgit_official", "transformer/")
    model = maskgit_of(imported(tmp_path, wrap(state), str(path), name=name))
    tokens = values["class_and_tokens"]
    assert (tokens[:, 0] >= 64).all()
    with torch.no_grad():
        codes = tokens[:, 1:].where(tokens[:, 1:] != 1064, torch.tensor(64))
        assert (codes == 64).any()
        found = logits_of(model, state["tok_emb.weight"][tokens[:, 0]], codes)
        assert_close(found, values["logits"][:, 1:, :64])
        assert torch.equal(model.tokenizer.network.encode(values["images"]), values["indices"])


@both
@pytest.mark.parametrize("codes", [50, 7])
def test_transformer_of_other_sizes(
    tmp_path: Path, naming: str, codes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Transformer(naming, codes=codes, conditioned=naming == "lea")
    path = tokenizer(tmp_path, Sizes(codes=codes))
    capsys.readouterr()
    # the tokenizer is part of what is written
    made = imported(tmp_path, plain.state, path)
    Path(path).unlink()
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    theirs = len(plain.state)
    ours = theirs - 3 * 2 * 2 if naming == "lea" else theirs
    absent = 0 if naming == "lea" else 2
    assert f"matched {theirs} of {theirs} weights, which are {ours} of {ours + absent} here" in lines[0]
    assert len(lines) == 2 + absent
    model = maskgit_of(made)
    assert model.hparams["embedding_eps"] == plain.eps
    assert model.layout["image_shape"] == [3, 12, 12]
    tokens, mine = tokens_of(codes, codes + 1000)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        if naming == "lea":
            embedding = torch.randn(2, EMBEDDING, generator=generator)
            first = linear(plain.state, "decoder_embed", embedding)
            assert_close(model.condition(embedding), first, 1e-6)
        else:
            first = plain.state["tok_emb.weight"][[codes, codes + 999]]
        assert_close(logits_of(model, first, mine), plain.logits(first, tokens))
        images = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8, generator=generator)
        assert torch.equal(model.tokenizer.encode(images), Vqgan("lea", Sizes(codes=codes)).encode(images / 255))


@both
@pytest.mark.parametrize("width", [None, 40])
def test_without_a_condition_the_mean_of_the_classes_stands_first(
    tmp_path: Path, naming: str, width: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Transformer(naming, conditioned=False)
    path = tokenizer(tmp_path)
    capsys.readouterr()
    made = imported(tmp_path, plain.state, path, *([f"--embedding_width={width}"] if width else []))
    said = capsys.readouterr().out
    assert "condition.bias: not in the file, begins as the mean of the 1000 classes" in said
    assert "condition.weight: not in the file, begins as SD 0.01 times the size of the bias" in said
    model = maskgit_of(made)
    assert model.layout["embedding_width"] == (width or 1024)
    mean = plain.state[plain.names["table"]][50:1050].mean(dim=0)
    embedding = F.normalize(torch.randn(200, width or 1024, generator=torch.Generator().manual_seed(1)), dim=1)
    with torch.no_grad():
        assert_close(model.condition.bias, mean, 1e-7)
        moved = (model.condition(embedding) - mean).norm(dim=1) / mean.norm()
    assert moved.min() > 0.005
    assert moved.max() < 0.02
    again = maskgit_of(
        imported(tmp_path, plain.state, path, *([f"--embedding_width={width}"] if width else []), to="again.ckpt")
    )
    assert torch.equal(again.condition.weight, model.condition.weight)


@both
def test_weights_of_half_precision_and_the_published_heads(tmp_path: Path, naming: str) -> None:
    plain = Transformer(naming, conditioned=naming == "lea")
    state = {name: value.half() for name, value in plain.state.items()}
    model = maskgit_of(run(tmp_path, "maskgit_transformer", state, f"--tokenizer={tokenizer(tmp_path)}"))
    assert model.hparams["num_heads"] == 16
    assert_close(model.transformer.positions.detach(), plain.state[plain.names["positions"]].half().float())
    assert model.condition.bias.dtype == torch.float32


# ---- and then ----------------------------------------------------------------------------------------

SHAPES: dict[str, Any] = {
    "width": 48,
    "depth": 3,
    "num_heads": HEADS,
    "mlp_width": 72,
    "embedding_eps": 1e-5,
    "warmup": 0.0,
    "weight_decay": 0.0,
}


def pictures_layout() -> Layout:
    return made_up({"01": [4]}, width=EMBEDDING) | {"image_shape": [3, 12, 12]}  # type: ignore[return-value]


def pictures(number: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    batch = Batch(
        image=torch.randint(0, 256, (number, 3, 12, 12), dtype=torch.uint8, generator=generator),
        embedding=torch.randn(number, EMBEDDING, generator=generator),
        **{name: torch.arange(number) for name in ("stimulus", "row")},  # type: ignore[typeddict-item]
        **{name: torch.zeros(number, dtype=torch.int64) for name in ("label", "subject")},  # type: ignore[typeddict-item]
    )
    return [batch, batch]


def fitted(folder: Path, **options: Any) -> MaskGIT:
    model = MaskGIT(pictures_layout(), **{**SHAPES, **options})
    run_ = trainer(folder, max_epochs=1)
    run_.fit(model, train_dataloaders=loader(pictures()), val_dataloaders=loader(pictures()))
    run_.save_checkpoint(folder / "fit.ckpt")
    return model


def test_training_goes_on_from_what_was_imported(tmp_path: Path) -> None:
    made = imported(tmp_path, Transformer("lea", conditioned=True).state, tokenizer(tmp_path))
    theirs = {name: value.clone() for name, value in maskgit_of(made).state_dict().items()}
    for number, (rate, moves) in enumerate([(1e-12, False), (1e-3, True)]):
        (tmp_path / str(number)).mkdir()
        model = fitted(tmp_path / str(number), initialise_from=str(made), lr=rate)
        mine = model.state_dict()
        assert mine.keys() == theirs.keys()
        near = {name for name in mine if torch.allclose(mine[name], theirs[name], atol=1e-9, rtol=1e-6)}
        still = {name for name in mine if name.startswith("tokenizer.")}
        assert still < mine.keys()
        assert near == (still if moves else mine.keys())
    lineage = torch.load(tmp_path / "1" / "fit.ckpt", weights_only=True)["lineage"]
    assert [entry["stage"] for entry in lineage] == [
        "Tokenizer imported from maskgit_tokenizer",
        "MaskGIT imported from maskgit_transformer",
        "MaskGIT",
    ]
    assert not any(entry["transductive"] for entry in lineage)


def test_the_same_tokenizer_may_be_named_and_another_is_refused(tmp_path: Path) -> None:
    path = tokenizer(tmp_path)
    made = str(imported(tmp_path, Transformer("lea", conditioned=True).state, path))
    fitted(tmp_path, initialise_from=made, tokenizer=path)
    other = tokenizer(tmp_path, seed=1, to="other.ckpt")
    with pytest.raises(ContractError, match="trained on the codes of another tokenizer"):
        fitted(tmp_path, initialise_from=made, tokenizer=other)


def test_what_was_imported_draws_pictures(tmp_path: Path) -> None:
    model = maskgit_of(imported(tmp_path, Transformer("lea", conditioned=True).state, tokenizer(tmp_path)))
    embedding = torch.randn(2, EMBEDDING, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        images, confidence = model.generate(embedding, torch.arange(2))
    assert images.shape == (2, 5, 3, 12, 12)
    assert images.unique().numel() > 20
    assert confidence.isfinite().all()
