"""``neuroalign import-weights``: what is no MaskGIT, or does not fit its tokenizer, is refused with one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from experiments.cli import main
from lightning_modules import Tokenizer
from tests.experiments.test_import_maskgit import Sizes, State, Vqgan, both, tokenizer_of
from tests.experiments.test_import_maskgit_transformer import HEADS, Transformer, imported, tokenizer
from tests.experiments.test_import_refusals import Malicious, refused
from tests.experiments.test_import_weights import made_up as brain_weights

SOURCES = ("maskgit_tokenizer", "maskgit_transformer")
Change = Callable[[State], Any]


def with_(**values: Any) -> Change:
    """Other values under some names (dots written as __); None leaves a name out."""
    changes = {name.replace("__", "."): value for name, value in values.items()}
    return lambda state: {name: value for name, value in {**state, **changes}.items() if value is not None}


def nan_in(name: str) -> Change:
    return lambda state: {**state, name: torch.full_like(state[name], torch.nan)}


def grown(name: str, dimension: int = 0) -> Change:
    """One more row."""
    return lambda state: {**state, name: torch.cat([state[name], state[name].narrow(dimension, 0, 1)], dim=dimension)}


def other(content: Any) -> Change:
    return lambda _: content


def same(state: State) -> State:
    return state


TOKENIZERS: dict[str, tuple[str, Change, tuple[str, ...], str]] = {
    "other names": ("lea", other({"a.weight": torch.zeros(2)}), (), "no MaskGIT tokenizer: 0 of 1 names are known"),
    "brain": ("lea", other(brain_weights("lea")), (), "no MaskGIT tokenizer: 0 of"),
    "transformer": ("lea", other(Transformer("lea", conditioned=True).state), (), "no MaskGIT tokenizer: 0 of 59"),
    "no tensors": ("lea", other({"model": {"epoch": 3}}), (), "expected weights by name"),
    "nan": (
        "lea",
        nan_in("encoder.conv_out.bias"),
        (),
        "1 weights hold NaN or infinite values, the first is encoder.c",
    ),
    "no codebook": ("lea", with_(quantizer__embedding__weight=None), (), "codebook.weight is missing"),
    "no codebook, official": ("official", with_(quantizer__codebook__weight=None), (), "codebook.weight is missing"),
    "no level": (
        "lea",
        with_(encoder__down__1__block__0__conv1__weight=None),
        (),
        "levels.1.0.conv1.weight is missing",
    ),
    "no norm": ("lea", with_(decoder__mid__1__norm2__bias=None), (), "decoder.middle.1.norm2.bias is not; fetch"),
    "no enlargement": ("official", with_(**{"decoder.res_blocks.1.2.bias": None}), (), "decoder.enlarge.0.bias is not"),
    "code width": (
        "lea",
        grown("quantizer.embedding.weight", 1),
        (),
        "decoder.conv_in.weight is (128, 24, 3, 3), and",
    ),
    "group norm": (
        "official",
        grown("encoder.res_blocks.1.0.norm1.weight"),
        (),
        "encoder.res_blocks.1.0.norm1.weight is (129,), and the others ask for (128,)",
    ),
    "channels": (
        "lea",
        grown("encoder.down.1.block.0.conv1.weight"),
        (),
        "(129, 64, 3, 3), and the others ask for (128",
    ),
    "narrow": ("lea", grown("encoder.conv_in.weight"), (), "width must be a multiple of 32"),
    "flat codebook": (
        "lea",
        with_(quantizer__embedding__weight=torch.zeros(50)),
        (),
        "codebook.weight should have 2 dim",
    ),
    "empty codebook": (
        "lea",
        with_(quantizer__embedding__weight=torch.zeros(0, 24)),
        (),
        "none of them 0, and is (0, 24",
    ),
    "no channels": (
        "lea",
        with_(encoder__conv_in__weight=torch.zeros(0, 3, 3, 3)),
        (),
        "none of them 0, and is (0, 3, 3",
    ),
    "size": ("lea", same, ("--size=14",), "a code stands for 4 x 4 pixels, which do not divide --size 14"),
    "no size": ("official", same, ("--size=0",), "which do not divide --size 0"),
    "heads": (
        "lea",
        same,
        ("--num_heads=4",),
        "--num_heads has no use with --from maskgit_tokenizer, which takes size",
    ),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    naming, change, words, message = TOKENIZERS[name]
    assert message in refused(tmp_path, capsys, change(Vqgan(naming).state), "--from=maskgit_tokenizer", *words)


TRANSFORMERS: dict[str, tuple[str, Change, tuple[str, ...], str]] = {
    "other names": ("lea", other({"a.weight": torch.zeros(2)}), (), "no MaskGIT transformer: 0 of 1 names are known"),
    "brain": ("lea", other(brain_weights("mindvis")), (), "embedding.weight is missing"),
    "tokenizer": ("lea", other(Vqgan("lea").state), (), "no MaskGIT transformer: 0 of 78 names are known"),
    "nan": ("official", nan_in("pos_emb"), (), "1 weights hold NaN or infinite values, the first is pos_emb"),
    "no positions": ("lea", with_(de_pos_emb__weight=None), (), "transformer.positions is missing"),
    "no bias": ("official", with_(bias=None), (), "transformer.bias is missing"),
    "no norm": ("lea", with_(decoder__1__norm2__bias=None), (), "transformer.blocks.1.norm2.bias is not; fetch"),
    "half a condition": ("lea", with_(decoder_embed__bias=None), (), "condition.bias is missing"),
    "other half": ("lea", with_(decoder_embed__weight=None), (), "condition.weight is missing"),
    "no key": (
        "lea",
        with_(decoder__2__self_attn__key__weight=None),
        (),
        "2.self_attn.query.weight, decoder.2.self_attn.value.weight is (96, 48), and the others ask for (144, 48)",
    ),
    "key of another width": (
        "lea",
        grown("decoder.0.self_attn.key.weight", 1),
        (),
        "do not fit each other: [(48, 48), (4",
    ),
    "scalar key": ("lea", with_(decoder__0__self_attn__query__bias=torch.zeros(())), (), "do not fit each other: [()"),
    "width": (
        "official",
        grown("Token_Prediction.0.weight"),
        (),
        "Token_Prediction.0.weight is (49, 48), and the others",
    ),
    "wider table": (
        "official",
        grown("tok_emb.weight", 1),
        ("--num_heads=7",),
        "is (10, 48), and the others ask for (1",
    ),
    "more codes": (
        "lea",
        grown("token_emb.weight"),
        (),
        "has 1052 tokens: with 1000 classes and the hidden code, 51 cod",
    ),
    "fewer biases": ("lea", lambda s: {**s, "mlps_bias": s["mlps_bias"][:50]}, (), "has 50 biases: with 1000 classes"),
    "more positions": ("official", grown("pos_emb"), (), "has positions for 10 codes of a picture, --tokenizer"),
    "flat positions": (
        "official",
        with_(pos_emb=torch.zeros(10)),
        (),
        "transformer.positions should have 2 dimensions",
    ),
    "heads": ("lea", same, ("--num_heads=7",), "have a width of 48, which --num_heads 7 does not divide"),
    "no heads": ("lea", same, ("--num_heads=0",), "which --num_heads 0 does not divide"),
    "embedding": (
        "lea",
        same,
        ("--embedding_width=1024",),
        "trained on embeddings of width 20, --embedding_width is 10",
    ),
    "no embedding": ("official", same, ("--embedding_width=0",), "--embedding_width must be at least 1, found 0"),
    "size": ("lea", same, ("--size=12",), "--size has no use with --from maskgit_transformer, which takes tokenizer"),
    "recordings": ("lea", same, ("--saw_test_recordings=false",), "--saw_test_recordings has no use with"),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_what_is_no_transformer_is_refused(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    naming, change, words, message = TRANSFORMERS[name]
    state = change(Transformer(naming, conditioned=naming == "lea").state)
    words = ("--from=maskgit_transformer", f"--tokenizer={tokenizer(tmp_path)}", f"--num_heads={HEADS}", *words)
    assert message in refused(tmp_path, capsys, state, *words)


def fsq(folder: Path) -> str:
    """A tokenizer of ours with as many codes: 5 x 10."""
    path = tokenizer(folder)
    layout = tokenizer_of(Path(path)).layout
    checkpoint = torch.load(path, weights_only=True)
    model = Tokenizer(layout, options={"widths": [32, 32], "levels": [5, 10]})
    checkpoint |= {"hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}
    torch.save(checkpoint, folder / "fsq.ckpt")
    return str(folder / "fsq.ckpt")


def maskgit(folder: Path) -> str:
    return str(imported(folder, Transformer("lea", conditioned=True).state, tokenizer(folder), to="decoder.ckpt"))


def half(folder: Path) -> str:
    content = Path(tokenizer(folder)).read_bytes()
    (folder / "half.ckpt").write_bytes(content[: len(content) // 2])
    return str(folder / "half.ckpt")


OTHER_TOKENIZERS: dict[str, tuple[Callable[[Path], str | None], str]] = {
    "none": (lambda folder: None, "set --tokenizer to the checkpoint that --from maskgit_tokenizer has made"),
    "missing": (
        lambda folder: str(folder / "no.ckpt"),
        "no.ckpt; train that stage first on the same data, or change --t",
    ),
    "damaged": (half, "half.ckpt is damaged or no checkpoint"),
    "weights": (lambda folder: str(tokenizer(folder)).replace("tok.ckpt", "w.pth"), "is damaged or no checkpoint"),
    "other stage": (maskgit, "is the checkpoint of another stage (MaskGIT imported from maskgit_transformer)"),
    "ours": (fsq, "predicts the codes of MaskGIT's own tokenizer, --tokenizer"),
    "more codes": (
        lambda folder: tokenizer(folder, Sizes(codes=51)),
        "the hidden code, 50 codes are left; --tokenizer",
    ),
    "larger": (lambda folder: tokenizer(folder, size=16), "has positions for 9 codes of a picture, --tokenizer"),
    "smaller": (lambda folder: tokenizer(folder, Sizes(multipliers=(1, 2))), "gives 6 x 6 of pictures of [3, 12, 12]"),
}


@both
@pytest.mark.parametrize("name", OTHER_TOKENIZERS)
def test_what_is_not_its_tokenizer_is_refused(
    tmp_path: Path, naming: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = OTHER_TOKENIZERS[name]
    path = make(tmp_path)
    words = ["--from=maskgit_transformer", f"--num_heads={HEADS}", *([] if path is None else [f"--tokenizer={path}"])]
    said = refused(tmp_path, capsys, Transformer(naming, conditioned=naming == "lea").state, *words)
    assert message in said
    assert "init_args" not in said


def words_of(folder: Path, source: str) -> tuple[State, list[str]]:
    """Weights that can be imported, and the command line that does so, without the file."""
    words = ["import-weights", f"--from={source}", f"--to={folder / 'i.ckpt'}"]
    if source == "maskgit_tokenizer":
        return Vqgan("official").state, words
    words += [f"--tokenizer={tokenizer(folder)}", f"--num_heads={HEADS}"]
    return Transformer("official", conditioned=False).state, words


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.7, None], ids=["empty", "start", "most", "missing"])
def test_damaged_files(
    tmp_path: Path, source: str, suffix: str, share: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    state, words = words_of(tmp_path, source)
    file = tmp_path / f"damaged.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(state, file)  # type: ignore[operator]
    content = file.read_bytes()
    file.unlink()
    if share is not None:
        file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(SystemExit) as exit_:
        main([*words, str(file)])
    said = capsys.readouterr().err
    assert (exit_.value.code, said.count("\n")) == (2, 1)
    assert ("no file " if share is None else "cannot read ") + str(file) in said
    assert not (tmp_path / "i.ckpt").exists()


@pytest.mark.parametrize("source", SOURCES)
def test_nothing_in_a_file_is_run(tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    state, words = words_of(tmp_path, source)
    torch.save({"state_dict": state, "optimizer": Malicious(tmp_path / "canary")}, tmp_path / "bad.pth")
    with pytest.raises(SystemExit):
        main([*words, str(tmp_path / "bad.pth")])
    assert "never executed" in capsys.readouterr().err
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "i.ckpt").exists()


@pytest.mark.parametrize("source", SOURCES)
def test_an_existing_checkpoint_is_left_alone(tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    state, words = words_of(tmp_path, source)
    torch.save(state, tmp_path / "weights.pth")
    (tmp_path / "i.ckpt").write_text("mine")
    with pytest.raises(SystemExit) as exit_:
        main([*words, str(tmp_path / "weights.pth")])
    assert exit_.value.code == 2
    assert "i.ckpt is there already" in capsys.readouterr().err
    assert (tmp_path / "i.ckpt").read_text() == "mine"
