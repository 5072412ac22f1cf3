"""``neuroalign import-weights``: published files give what the published networks compute, others are refused."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from experiments.cli import main
from lightning_modules import FmriMAE
from tests.datamodules.contract import real_root
from tests.lightning_modules.brains import TINY, autoencoder, brains
from tests.lightning_modules.fitting import trainer
from tests.lightning_modules.plain_transformer import linear, sines, transformer

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
State = dict[str, Tensor]
GOLDEN = {"lea": "lea_autoencoder", "mindvis": "mindvis_mae"}
REGIONS = [6, 2, 9]
both = pytest.mark.parametrize("source", GOLDEN)


def golden(source: str) -> tuple[State, State, Mapping[str, str]]:
    """Weights, inputs and outputs, sizes."""
    file = f"golden/{GOLDEN[source]}.safetensors"
    with safe_open(real_root(file) / Path(file).name, "pt") as content:  # type: ignore[no-untyped-call]
        values = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        sizes = content.metadata()
    prefix = "state_dict/"
    state = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    return state, {name: value for name, value in values.items() if not name.startswith(prefix)}, sizes


def made_up(source: str, *, width: int = 24, decoder_width: int = 16, ratio: float = 1.5) -> State:
    """A state dict with the published names and other sizes: 5 tokens a region or patches of 5 voxels."""
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width), "mask_token": (1, 1, decoder_width)}

    def layer(name: str, *shape: int) -> None:
        shapes.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    for prefix, size, depth in (("", width, 1), ("decoder_", decoder_width, 2)):
        layer(f"{prefix}norm", size)
        for number in range(depth):
            block = f"{prefix}blocks.{number}"
            layer(f"{block}.norm1", size)
            layer(f"{block}.norm2", size)
            layer(f"{block}.attn.qkv", 3 * size, size)
            layer(f"{block}.attn.proj", size, size)
            layer(f"{block}.mlp.fc1", int(size * ratio), size)
            layer(f"{block}.mlp.fc2", size, int(size * ratio))
    tokens = 15 if source == "lea" else 4
    if source == "lea":
        for number, voxels in enumerate(REGIONS):
            layer(f"patch_embed.layers.{number}.0", 5, 1, 3)
            layer(f"patch_embed.layers.{number}.1", width, voxels)
            layer(f"channel_mapper.{number}.0", voxels, decoder_width)
        layer("pred", 20, width)
        layer("decoder_embed", decoder_width, 20)
        layer("decoder_pred", 1, 5, 3)
    else:
        layer("patch_embed.proj", width, 1, 5)
        layer("decoder_embed", decoder_width, width)
        layer("decoder_pred", 5, decoder_width)
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return state | {"pos_embed": sines(tokens, width)[None], "decoder_pos_embed": sines(tokens, decoder_width)[None]}


def imported(folder: Path, state: Any, *words: str, name: str = "weights.pth") -> FmriMAE:
    """Import through the entry point and read what it wrote."""
    file = folder / name
    if name.endswith(".safetensors"):
        save_file(state, file)
    else:
        torch.save(state, file)
    to = folder / "imported.ckpt"
    main(["import-weights", str(file), f"--to={to}", *words])
    return FmriMAE.load_from_checkpoint(to, weights_only=True).eval()


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# ---- what the published networks compute -----------------------------------------------------------


def assert_as_published(source: str, model: FmriMAE, values: State) -> None:
    signal, subject = values["fmri"][:, 0], torch.zeros(3, dtype=torch.int64)
    if source == "lea":
        batch: Any = {"signal": signal} | dict.fromkeys(("subject", "row", "label", "stimulus"), subject)
        latent = model.encode(signal, subject)
        assert_close(latent, values["latent"])
        assert_close(model.decode(latent, subject), values["reconstruction"][:, 0])
        assert_close(model.reconstruction_loss(batch, "all").mean(), values["mse"])
        return
    kept = int((values["mask"] == 0).sum(dim=1)[0])
    keep = values["ids_restore"].argsort(dim=1)[:, :kept]
    assert (values["mask"].gather(1, keep) == 0).all()
    numbers = model.autoencoder.tokens.flatten(signal, 0)
    latent = model.autoencoder.encode(numbers, subject, keep)
    assert_close(latent, values["latent"])
    predicted = model.autoencoder.decode(latent, subject, keep).unflatten(1, (12, 8))
    assert_close(predicted, values["prediction"])
    error = (predicted - numbers.unflatten(1, (12, 8))).square().mean(dim=2)
    assert_close((error * values["mask"]).sum() / values["mask"].sum(), values["loss"])


def parallel(state: State) -> State:
    return {f"module.{name}": value for name, value in state.items()}


WRAPPED: dict[str, tuple[str, Callable[[State], Any]]] = {
    "bare": ("w.pth", lambda state: state),
    "model": ("w.pth", lambda state: {"model": state, "epoch": 3, "best": 0.5}),
    "state_dict": ("w.pth", lambda state: {"state_dict": OrderedDict(state)}),
    "parallel": ("w.pth", lambda state: {"model": parallel(state)}),
    "parameters": ("w.pth", lambda state: {name: torch.nn.Parameter(value) for name, value in state.items()}),
    "safetensors": ("w.safetensors", lambda state: state),
    "parallel safetensors": ("w.safetensors", parallel),
}


@both
@pytest.mark.parametrize("how", WRAPPED)
def test_golden_values(tmp_path: Path, source: str, how: str) -> None:
    state, values, sizes = golden(source)
    name, wrap = WRAPPED[how]
    model = imported(tmp_path, wrap(state), f"--from={source}", f"--num_heads={sizes['heads']}", name=name)
    with torch.no_grad():
        assert_as_published(source, model, values)


@both
def test_settings_in_the_file_are_read_and_never_imported(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, values, sizes = golden(source)
    module = types.ModuleType("config")
    base = type("Config_MAE_fMRI", (), {"__module__": "config"})
    settings = type("Config_MBM_fMRI", (base,), {"__module__": "config"})
    module.Config_MBM_fMRI = settings  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "config", module)
    content = settings()
    content.__dict__.update(num_heads=int(sizes["heads"]), lr=2.5e-4, root_path="../", crop=[1, None], roi="VC")
    torch.save({"model": state, "config": content}, tmp_path / "published.pth")
    monkeypatch.delitem(sys.modules, "config")
    (tmp_path / "config.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    main(["import-weights", str(tmp_path / "published.pth"), f"--from={source}", f"--to={tmp_path / 'i.ckpt'}"])
    model = FmriMAE.load_from_checkpoint(tmp_path / "i.ckpt", weights_only=True).eval()
    assert model.hparams["num_heads"] == int(sizes["heads"])
    with torch.no_grad():
        assert_as_published(source, model, values)
    assert not (tmp_path / "canary").exists()
    assert "config" not in sys.modules


def test_settings_of_the_decoder_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("config")
    settings = type("Config_MBM_fMRI", (), {"__module__": "config"})
    module.Config_MBM_fMRI = settings  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "config", module)
    content = settings()
    content.__dict__.update(num_heads=3, decoder_num_heads=2)
    model = imported(tmp_path, {"model": made_up("mindvis"), "config": content}, "--from=mindvis")
    assert (model.hparams["num_heads"], model.hparams["decoder_num_heads"]) == (3, 2)


HEADS = ("--num_heads=3", "--decoder_num_heads=2")


def test_lea_of_other_sizes(tmp_path: Path) -> None:
    state = made_up("lea")
    model = imported(tmp_path, {"model": state}, "--from", "lea", *HEADS, "--subject=CSI1", "--rois=[V1,LOC,PPA]")
    assert model.layout["rois"] == {"CSI1": {"V1": 6, "LOC": 2, "PPA": 9}}
    signal = torch.randn(4, 17, generator=torch.Generator().manual_seed(1))
    tokens, voxels = [], []
    for number, part in enumerate(signal[:, None].split(REGIONS, dim=2)):
        name = f"patch_embed.layers.{number}"
        convolved = F.conv1d(part, state[f"{name}.0.weight"], state[f"{name}.0.bias"], padding=1)
        tokens.append(linear(state, f"{name}.1", convolved))
    embedded = torch.cat(tokens, dim=1) + state["pos_embed"][:, 1:]
    first = state["cls_token"].expand(4, -1, -1)
    encoded = transformer(state, torch.cat([first, embedded], dim=1), blocks="blocks", last="norm", heads=3)
    latent = linear(state, "pred", encoded[:, :1])
    masks = state["mask_token"].expand(4, 15, -1) + state["decoder_pos_embed"][:, 1:]
    inner = torch.cat([linear(state, "decoder_embed", latent), masks], dim=1)
    decoded = transformer(state, inner, blocks="decoder_blocks", last="decoder_norm", heads=2)[:, 1:]
    for number, part in enumerate(decoded.chunk(3, dim=1)):
        channels = linear(state, f"channel_mapper.{number}.0", part)
        voxels.append(F.conv1d(channels, state["decoder_pred.weight"], state["decoder_pred.bias"], padding=1)[:, 0])
    subject = torch.zeros(4, dtype=torch.int64)
    with torch.no_grad():
        assert_close(model.encode(signal, subject), latent)
        assert_close(model.decode(latent, subject), torch.cat(voxels, dim=1))


@pytest.mark.parametrize("voxels", [None, 18])
def test_mindvis_of_other_sizes(tmp_path: Path, voxels: int | None) -> None:
    state = made_up("mindvis")
    model = imported(tmp_path, state, "--from=mindvis", *HEADS, *([f"--voxels={voxels}"] if voxels else []))
    signal = torch.randn(4, voxels or 20, generator=torch.Generator().manual_seed(1))
    filled = torch.cat([signal, signal], dim=1)[:, :20]
    convolved = F.conv1d(filled[:, None], state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=5)
    embedded = convolved.transpose(1, 2) + state["pos_embed"][:, 1:]
    first = state["cls_token"].expand(4, -1, -1)
    latent = transformer(state, torch.cat([first, embedded], dim=1), blocks="blocks", last="norm", heads=3)
    inner = linear(state, "decoder_embed", latent) + state["decoder_pos_embed"]
    decoded = transformer(state, inner, blocks="decoder_blocks", last="decoder_norm", heads=2)[:, 1:]
    expected = linear(state, "decoder_pred", decoded).flatten(1)[:, : voxels or 20]
    subject = torch.zeros(4, dtype=torch.int64)
    with torch.no_grad():
        assert_close(model.encode(signal, subject), latent)
        assert_close(model.decode(latent, subject), expected)


@both
def test_weights_of_half_precision(tmp_path: Path, source: str) -> None:
    state = made_up(source)
    model = imported(tmp_path, {name: value.half() for name, value in state.items()}, f"--from={source}", *HEADS)
    assert_close(model.autoencoder.cls_token.detach(), state["cls_token"].half().float())


# ---- what is said of files that fit in part --------------------------------------------------------


@both
def test_what_does_not_match_is_listed(tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = made_up(source)
    count = len(whole) - 2
    imported(tmp_path, whole, f"--from={source}", *HEADS)
    said = capsys.readouterr().out
    assert f"matched {count} of {count} weights, which are {count} of {count} here" in said
    assert len(said.splitlines()) == 2
    (tmp_path / "imported.ckpt").unlink()
    state = whole | {"head.weight": torch.zeros(2, 3), "norm.mean": torch.zeros(24)}
    del state["decoder_norm.weight"]
    imported(tmp_path, state, f"--from={source}", *HEADS)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert f"matched {count - 1} of {count + 1} weights, which are {count - 1} of {count} here" in lines[0]
    assert "head.weight: not part of the network, left out" in lines
    assert "norm.mean: not part of the network, left out" in lines
    assert "decoder.norm.weight: not in the file, begins at random" in lines


# ---- and then --------------------------------------------------------------------------------------


@pytest.mark.parametrize("saw", [True, False])
def test_training_goes_on_from_what_was_imported(tmp_path: Path, saw: bool) -> None:
    words = ("--subject=02", "--rois=[A,B,C]", f"--saw_test_recordings={str(saw).lower()}")
    theirs = imported(tmp_path, made_up("lea"), "--from=lea", *HEADS, *words).state_dict()
    data = brains(tmp_path, {"01": {"A": 4, "B": 3}, "02": {"A": 6, "B": 2, "C": 9}})
    sizes = {**TINY, "width": 24, "num_heads": 3, "decoder_width": 16, "decoder_num_heads": 2, "decoder_depth": 2}
    options = {**sizes, "heads": 5, "mlp_ratio": 1.5, "latent_width": 20, "lr": 1e-12, "weight_decay": 0.0}
    model = autoencoder(data, **options, initialise_from=str(tmp_path / "imported.ckpt"))
    fresh = {name for name in model.state_dict() if ".layers.0." in name}
    run = trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    run.fit(model, datamodule=data)
    for name, value in model.state_dict().items():
        if name not in fresh:
            torch.testing.assert_close(value, theirs[name.replace(".layers.1.", ".layers.0.")], atol=1e-9, rtol=1e-6)
    assert fresh
    run.save_checkpoint(tmp_path / "fit.ckpt")
    first, second = torch.load(tmp_path / "fit.ckpt", weights_only=True)["lineage"]
    assert (first["stage"], first["transductive"]) == ("FmriMAE imported from lea", saw)
    assert (second["stage"], second["transductive"]) == ("FmriMAE", False)
