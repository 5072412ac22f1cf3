"""Photographs, made-up decodings of them, and a stage that hands both to callbacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule, LightningModule
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks import Part
from contracts import NO_LABEL, PADDING, PASSED_THROUGH, Gallery, Layout, Output, ScoreContext
from tests.conftest import SHARED
from tests.lightning_modules.fitting import made_up

PHOTOGRAPHS = SHARED / "images" / "open_images"


def photographs(number: int = 12, side: int = 48) -> Tensor:
    """Real photographs ``(n, 3, side, side)`` in bytes, or smooth made-up ones where they are absent."""
    files = sorted(PHOTOGRAPHS.glob("*.jpg"))[:number]
    if len(files) < number:
        random = np.random.default_rng(0)
        # as smooth as photographs are: white noise has no mean colour, and nothing is left of it in a smaller picture
        coarse = torch.from_numpy(random.uniform(0, 255, (number, 3, 4, 4)))
        smooth = nn.functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False)
        return smooth.round().clamp(0, 255).to(torch.uint8)
    pictures = [np.asarray(Image.open(file).convert("RGB").resize((side, side))) for file in files]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def decoded(seen: Tensor, samples: int = 3, *, noise: float = 0.7, seed: int = 0, side: int | None = None) -> Tensor:
    """S pictures a sample ``(n, S, 3, h, w)``: the seen one mixed with noise."""
    random = torch.Generator().manual_seed(seed)
    side = seen.shape[-1] if side is None else side
    small = nn.functional.interpolate(seen.float(), (side, side))
    other = 255 * torch.rand(len(seen), samples, 3, side, side, generator=random)
    return ((1 - noise) * small[:, None] + noise * other).round().byte()


def output(seen: Tensor, generated: Tensor, *, trials: int = 1, person: int = 0, **more: Tensor) -> Output:
    """All samples of one person; ``generated`` holds ``trials`` rows for each seen picture."""
    number = len(seen) * trials
    return {
        "image": seen.repeat_interleave(trials, dim=0),
        "generated": generated,
        "label": torch.full((number,), NO_LABEL),
        "stimulus": (10 + 3 * torch.arange(len(seen))).repeat_interleave(trials),
        "subject": torch.full((number,), person),
        "row": torch.arange(number),
        **more,
    }


def context(
    *, people: tuple[str, ...] = ("01",), embed: Any = None, galleries: dict[str, Gallery] | None = None, **layout: Any
) -> ScoreContext:
    shape: Layout = made_up({name: [4] for name in people})
    return ScoreContext(
        galleries={} if galleries is None else galleries,
        layout=Layout(**{**shape, **layout}),
        embed=embed,
    )


def part_of(callback: Any, outputs: Output, *, embed: Any = None, batches: int = 3, **layout: Any) -> Part:
    """What a callback keeps of one person's output, in several batches."""
    about = context(embed=embed, **layout)
    callback._context = about
    rows = torch.arange(len(outputs["row"])).chunk(batches)
    kept = []
    for mine in rows:
        batch = {name: value[mine] for name, value in outputs.items()}
        kept.append({**callback.reduce(batch), **{name: batch[name] for name in PASSED_THROUGH}})
    return Part({"01": {name: torch.cat([batch[name] for batch in kept]) for name in kept[0]}}, about)


def grey_mean(pictures: Tensor) -> Tensor:
    """A small embedding: 4 x 4 means of each colour."""
    return nn.functional.adaptive_avg_pool2d(pictures.float(), 4).flatten(1) / 255


class Net(nn.Module):
    """A small network of one's own: uint8 pictures in, 8 features out; 48 wide at ``layers.1``."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.layers = nn.Sequential(nn.Linear(48, 48), nn.ReLU(inplace=True), nn.Linear(48, 8))

    def forward(self, pictures: Tensor) -> Tensor:
        features: Tensor = self.layers(grey_mean(pictures))
        return features


class Replay(LightningModule):
    """Returns batches as outputs."""

    def __init__(self, layout: Layout, names: frozenset[str], steps: tuple[str, ...] = ("validation", "test")) -> None:
        super().__init__()
        self.layout = layout
        self.provides = dict.fromkeys(steps, names)
        self.weight = nn.Parameter(torch.zeros(1))

    def score_context(self, about: ScoreContext) -> ScoreContext:
        return about

    def training_step(self, batch: Output, batch_idx: int) -> Tensor:
        return self.weight.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def validation_step(self, batch: Output, batch_idx: int) -> Output:
        return batch

    test_step = validation_step


class Recorded(LightningDataModule):
    """Deals the rows of people out over processes, padded, each person in batches of its own."""

    def __init__(self, people: list[Output], about: ScoreContext, batch_size: int = 5) -> None:
        super().__init__()
        self.people, self.about, self.batch_size = people, about, batch_size

    def score_context(self, stage: str) -> ScoreContext:
        return self.about

    def _batches(self) -> DataLoader[Any]:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = []
        for everything in self.people:
            number = len(everything["row"])
            # from the last row on, so that the order of arrival is not the order of rows
            rows = torch.arange(number - 1, -1, -1)
            wanted = -(-number // world) * world
            padding = torch.arange(wanted) >= number
            rows = torch.cat([rows, rows[: wanted - number]])
            for mine in torch.arange(wanted)[rank::world].split(self.batch_size):
                batch = {name: value[rows[mine]] for name, value in everything.items()}
                batch["row"] = batch["row"].masked_fill(padding[mine], PADDING)
                batches.append(batch)
        return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]

    train_dataloader = val_dataloader = test_dataloader = _batches
