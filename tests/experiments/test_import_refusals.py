"""``neuroalign import-weights``: what is no such network is refused with one line, and nothing in a file is run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from experiments.cli import main
from tests.experiments.test_import_weights import HEADS, State, imported, made_up
from tests.lightning_modules.plain_transformer import sines


def refused(folder: Path, capsys: pytest.CaptureFixture[str], state: Any, *words: str, **options: Any) -> str:
    """The one line that is said, with status 2; nothing is written."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        imported(folder, state, *words, **options)
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("neuroalign: ")
    assert said.count("\n") == 1
    assert not (folder / "imported.ckpt").exists()
    assert "imported" not in "".join(path.name for path in folder.iterdir())
    return said


def changed(source: str, **values: Any) -> State:
    """A state dict with other values under some names (dots written as __); None leaves a name out."""
    state: dict[str, Any] = made_up(source) | {name.replace("__", "."): value for name, value in values.items()}
    return {name: value for name, value in state.items() if value is not None}


REFUSED: dict[str, tuple[str, Callable[[], Any], tuple[str, ...], str]] = {
    "other network": ("lea", lambda: {"conv.weight": torch.zeros(2)}, (), "no lea autoencoder: 0 of 1 names are known"),
    "other source": ("lea", lambda: made_up("mindvis"), (), "patch_embed.layers.0.0.weight is missing"),
    "no cls": ("mindvis", lambda: changed("mindvis", cls_token=None), (), "cls_token is missing"),
    "half a region": ("lea", lambda: changed("lea", patch_embed__layers__1__1__weight=None), (), "layers.1.1.weight"),
    "no tensors": ("lea", lambda: {"model": {"epoch": 3}}, (), "expected weights by name"),
    "a list": ("lea", lambda: [torch.zeros(2)], (), "expected weights by name"),
    "nan": (
        "lea",
        lambda: changed("lea", pred__bias=torch.tensor([torch.nan] * 20)),
        (),
        "1 weights hold NaN or infinite values, the first is pred.bias",
    ),
    "infinite": ("mindvis", lambda: changed("mindvis", norm__bias=torch.full((24,), torch.inf)), (), "norm.bias"),
    "other shape": (
        "mindvis",
        lambda: changed("mindvis", norm__bias=torch.zeros(25)),
        (),
        "norm.bias is (25,), and the others ask for (24,)",
    ),
    "other dimensions": ("lea", lambda: changed("lea", cls_token=torch.zeros(24)), (), "cls_token should have 3"),
    "option of another source": (
        "lea",
        lambda: made_up("lea"),
        ("--voxels=17",),
        "--voxels has no use with --from lea",
    ),
    "count of rois": ("lea", lambda: made_up("lea"), ("--rois=[V1,V2]",), "has 3 regions of [6, 2, 9] voxels"),
    "repeated rois": ("lea", lambda: made_up("lea"), ("--rois=[V1,V2,V1]",), "--rois names ['V1', 'V2', 'V1']"),
    "too many voxels": ("mindvis", lambda: made_up("mindvis"), ("--voxels=21",), "4 patches of 5 voxels, --voxels is"),
    "too few voxels": ("mindvis", lambda: made_up("mindvis"), ("--voxels=15",), "--voxels is 15"),
    "positions": (
        "lea",
        lambda: changed("lea", pos_embed=sines(15, 24)[None] + 0.01),
        (),
        "pos_embed is not the fixed",
    ),
    "decoder positions": (
        "mindvis",
        lambda: changed("mindvis", decoder_pos_embed=sines(4, 16)[None].flip(1)),
        (),
        "decoder_pos_embed is not the fixed",
    ),
    "heads": ("lea", lambda: made_up("lea"), ("--num_heads=7",), "multiple of its attention heads"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_such_network_is_refused(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    source, make, words, message = REFUSED[name]
    assert message in refused(tmp_path, capsys, make(), f"--from={source}", *HEADS, *words)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("plain", [True, False], ids=["pickle", "torch"])
def test_nothing_in_a_file_is_run(tmp_path: Path, plain: bool, capsys: pytest.CaptureFixture[str]) -> None:
    canary = tmp_path / "canary"
    content = {"model": made_up("lea"), "config": Malicious(canary)}
    file = tmp_path / "w.pth"
    if plain:
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    with pytest.raises(SystemExit) as exit_:
        main(["import-weights", str(file), "--from=lea", f"--to={tmp_path / 'i.ckpt'}"])
    said = capsys.readouterr().err
    assert (exit_.value.code, said.count("\n")) == (2, 1)
    assert f"cannot read {file}" in said
    assert "never executed" in said
    assert not canary.exists()
    assert not (tmp_path / "i.ckpt").exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.7, None], ids=["empty", "start", "most", "missing"])
def test_damaged_files(tmp_path: Path, suffix: str, share: float | None, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / f"w.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(made_up("lea"), file)  # type: ignore[operator]
    content = file.read_bytes()
    file.unlink()
    if share is not None:
        file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(SystemExit) as exit_:
        main(["import-weights", str(file), "--from=lea", f"--to={tmp_path / 'i.ckpt'}"])
    said = capsys.readouterr().err
    assert (exit_.value.code, said.count("\n")) == (2, 1)
    assert ("no file " if share is None else "cannot read ") + str(file) in said
    assert not (tmp_path / "i.ckpt").exists()


def test_an_existing_checkpoint_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "imported.ckpt"
    to.write_text("mine")
    with pytest.raises(SystemExit) as exit_:
        imported(tmp_path, made_up("lea"), "--from=lea", *HEADS)
    assert exit_.value.code == 2
    assert f"{to} is there already" in capsys.readouterr().err
    assert to.read_text() == "mine"
