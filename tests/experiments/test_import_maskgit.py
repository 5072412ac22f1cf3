"""``neuroalign import-weights``: the tokenizer of MaskGIT gives what the published network computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from experiments.cli import main
from lightning_modules import Tokenizer
from tests.datamodules.contract import real_root
from tests.experiments.test_import_weights import WRAPPED

State = dict[str, Tensor]
NAMINGS = ("lea", "official")
both = pytest.mark.parametrize("naming", NAMINGS)


def golden(file: str, prefix: str = "") -> State:
    with safe_open(real_root(f"golden/{file}.safetensors") / f"{file}.safetensors", "pt") as content:  # type: ignore[no-untyped-call]
        names = [name for name in content.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): content.get_tensor(name) for name in names}


def run(folder: Path, source: str, state: Any, *words: str, name: str = "w.pth", to: str = "made.ckpt") -> Path:
    """Import through the entry point."""
    (save_file if name.endswith(".safetensors") else torch.save)(state, folder / name)  # type: ignore[operator]
    main(["import-weights", str(folder / name), f"--from={source}", f"--to={folder / to}", *words])
    return folder / to


def tokenizer_of(path: Path) -> Tokenizer:
    return Tokenizer.load_from_checkpoint(path, weights_only=True).eval()


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


# ---- a plain network, from weights with the published names -------------------------------------------


class Sizes(NamedTuple):
    width: int = 64
    multipliers: Sequence[int] = (1, 2, 2)
    blocks: int = 1
    codes: int = 50
    code_width: int = 24


SMALL = Sizes()
SIZES = (SMALL, Sizes(width=32, multipliers=(1, 3, 2, 2), blocks=3, codes=30, code_width=40), Sizes(32, (1,), 2))


class Vqgan:
    """Weights of a VQGAN at random, and what it computes."""

    def __init__(self, naming: str, sizes: Sizes = SMALL, *, seed: int = 0) -> None:
        self.naming, self.sizes = naming, sizes
        self.generator = torch.Generator().manual_seed(seed)
        self.state: State = {}
        parts = ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")
        self.parts = parts if naming == "lea" else ("norm0", "conv0", "norm1", "conv1", "conv_res")
        self.codebook = f"quantizer.{'embedding' if naming == 'lea' else 'codebook'}.weight"
        widths = [sizes.width * multiplier for multiplier in sizes.multipliers]
        self.convolution("encoder.conv_in", 3, widths[0], 3, bias=False)
        self.convolution("decoder.conv_in", sizes.code_width, widths[-1], 3)
        for half, order in (("encoder", widths), ("decoder", widths[::-1])):
            before = order[0]
            for level, wider in enumerate(order):
                for number in range(sizes.blocks):
                    self.block(self.level(half, level, number), before, wider)
                    before = wider
                if half == "decoder" and level < len(widths) - 1:
                    self.convolution(self.enlarge(level), wider, wider, 3)
            for number in range(2):
                self.block(self.middle(half, number), widths[-1], widths[-1])
            self.norm(f"{half}.norm_out", order[-1])
        self.convolution("encoder.conv_out", widths[-1], sizes.code_width, 1)
        self.convolution("decoder.conv_out", widths[0], 3, 3)
        self.state[self.codebook] = self.random(sizes.codes, sizes.code_width)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def norm(self, name: str, width: int) -> None:
        self.state |= {f"{name}.weight": 1 + 0.3 * self.random(width), f"{name}.bias": 0.2 * self.random(width)}

    def convolution(self, name: str, inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> None:
        self.state[f"{name}.weight"] = self.random(outputs, inputs, kernel, kernel) / math.sqrt(inputs * kernel**2)
        if bias:
            self.state[f"{name}.bias"] = 0.2 * self.random(outputs)

    def block(self, name: str, inputs: int, outputs: int) -> None:
        norm1, conv1, norm2, conv2, shortcut = (f"{name}.{part}" for part in self.parts)
        self.norm(norm1, inputs)
        self.convolution(conv1, inputs, outputs, 3, bias=False)
        self.norm(norm2, outputs)
        self.convolution(conv2, outputs, outputs, 3, bias=False)
        if inputs != outputs:
            self.convolution(shortcut, outputs, outputs, 1, bias=False)

    def level(self, half: str, level: int, number: int) -> str:
        if self.naming == "lea":
            return f"{half}.{'down' if half == 'encoder' else 'up'}.{level}.block.{number}"
        return f"{half}.res_blocks.{level + (half == 'decoder')}.{number}"

    def middle(self, half: str, number: int) -> str:
        if self.naming == "lea":
            return f"{half}.mid.{number}"
        return f"{half}.res_blocks.{len(self.sizes.multipliers) if half == 'encoder' else 0}.{number}"

    def enlarge(self, level: int) -> str:
        if self.naming == "lea":
            return f"decoder.up.{level}.upsample.conv"
        return f"decoder.res_blocks.{level + 1}.{self.sizes.blocks + 1}"

    def _convolved(self, name: str, x: Tensor) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def _normed(self, name: str, x: Tensor) -> Tensor:
        y = F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-5)
        return y * torch.sigmoid(y)

    def _blocked(self, name: str, x: Tensor) -> Tensor:
        norm1, conv1, norm2, conv2, shortcut = (f"{name}.{part}" for part in self.parts)
        y = self._convolved(conv2, self._normed(norm2, self._convolved(conv1, self._normed(norm1, x))))
        # the published shortcut sees what the block gives, not what it is given
        return y + (self._convolved(shortcut, y) if f"{shortcut}.weight" in self.state else x)

    def encode(self, x: Tensor) -> Tensor:
        x = self._convolved("encoder.conv_in", x)
        for level in range(len(self.sizes.multipliers)):
            if level:
                x = F.avg_pool2d(x, 2)
            for number in range(self.sizes.blocks):
                x = self._blocked(self.level("encoder", level, number), x)
        x = self._blocked(self.middle("encoder", 1), self._blocked(self.middle("encoder", 0), x))
        x = self._convolved("encoder.conv_out", self._normed("encoder.norm_out", x)).movedim(1, 3)
        return torch.cdist(x.flatten(0, 2), self.state[self.codebook]).argmin(dim=1).view(x.shape[:3])

    def decode(self, codes: Tensor) -> Tensor:
        x = self._convolved("decoder.conv_in", self.state[self.codebook][codes].movedim(3, 1))
        x = self._blocked(self.middle("decoder", 1), self._blocked(self.middle("decoder", 0), x))
        for level in range(len(self.sizes.multipliers)):
            for number in range(self.sizes.blocks):
                x = self._blocked(self.level("decoder", level, number), x)
            if level < len(self.sizes.multipliers) - 1:
                x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                x = self._convolved(self.enlarge(level), x)
        return self._convolved("decoder.conv_out", self._normed("decoder.norm_out", x))


# ---- the tokenizer -----------------------------------------------------------------------------------


GOLDEN = {"lea": ("maskgit_vqgan", "state_dict/"), "official": ("maskgit_official", "tokenizer/")}


@both
@pytest.mark.parametrize("how", WRAPPED)
def test_golden_tokenizer(tmp_path: Path, naming: str, how: str) -> None:
    file, prefix = GOLDEN[naming]
    name, wrap = WRAPPED[how]
    model = tokenizer_of(run(tmp_path, "maskgit_tokenizer", wrap(golden(file, prefix)), "--size=64", name=name))
    values = golden(file)
    with torch.no_grad():
        codes = model.network.encode(values["images"])
        assert torch.equal(codes, values["indices"])
        assert_close(model.network.decode(codes), values["reconstruction"].clamp(0, 1))
    assert model.layout["image_shape"] == [3, 64, 64]
    assert model.layout["modality"] == "image"


@both
@pytest.mark.parametrize("sizes", SIZES)
def test_tokenizer_of_other_sizes(
    tmp_path: Path, naming: str, sizes: Sizes, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Vqgan(naming, sizes)
    path = run(tmp_path, "maskgit_tokenizer", {"model": plain.state | {"disc.weight": torch.zeros(1)}})
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    count = len(plain.state)
    assert f"matched {count} of {count + 1} weights, which are {count} of {count} here" in lines[0]
    assert lines[1] == "disc.weight: not part of the network, left out"
    assert len(lines) == 3
    model = tokenizer_of(path)
    side = 16 * 2 ** (len(sizes.multipliers) - 1)
    assert model.layout["image_shape"] == [3, side, side]
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=plain.generator)
    with torch.no_grad():
        codes = model.encode(images)
        assert torch.equal(codes, plain.encode(images / 255))
        assert codes.unique().numel() > sizes.codes // 3
        expected = plain.decode(codes)
        assert_close(model.network.decode(codes), expected.clamp(0, 1))
        assert ((expected > 0) & (expected < 1)).float().mean() > 0.2
