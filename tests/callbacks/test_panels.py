"""Panels of pictures: the right picture at the right place, whatever the order of batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from PIL import Image
from torch import Tensor

from callbacks import PicturePanels
from callbacks.panels import draw_panel
from contracts import ContractError, DataError
from tests.callbacks.pictures import Recorded, Replay, context, decoded, grey_mean, output, photographs
from tests.lightning_modules.fitting import short_trainer

NAMES = frozenset({"image", "generated"})
SIDE = 32


class Remembers(WandbLogger):
    """Stands for Weights & Biases without starting it."""

    name = version = "remembers"
    save_dir = None

    def __init__(self) -> None:
        self.images: list[tuple[str, list[Image.Image]]] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.images.append((key, images))

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...
    def log_graph(self, *args: Any, **kwargs: Any) -> None: ...
    def finalize(self, status: str) -> None: ...
    def save(self) -> None: ...


def opened(file: Path) -> Image.Image:
    with Image.open(file) as panel:
        return panel.copy()


def cell(panel: Image.Image, row: int, column: int, side: int = SIDE) -> Tensor:
    """The picture ``(3, side, side)`` at a place of a panel."""
    left, top = 4 + column * (side + 4), 20 + row * (side + 4)
    box = np.asarray(panel.crop((left, top, left + side, top + side)))
    return torch.from_numpy(box.copy()).permute(2, 0, 1)


def enlarged(picture: Tensor, times: int = 2) -> Tensor:
    return picture.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)


@pytest.fixture(scope="module")
def seen() -> Tensor:
    return photographs(12, side=16)


def written(folder: Path, callback: PicturePanels, *people: Any, names: tuple[str, ...] = ("01",)) -> None:
    about = context(people=names)
    data = Recorded(list(people), about)
    short_trainer(folder, callback).test(Replay(about.layout, NAMES), datamodule=data, verbose=False)


def test_rows_and_columns(seen: Tensor, tmp_path: Path) -> None:
    made = decoded(seen, 2)
    noise = decoded(seen, 1, noise=1.0)
    # what is retrieved for row i is the picture of row i + 1
    target = torch.eye(12)
    found = output(
        seen,
        made,
        **{
            "noise.generated": noise,
            "brain_embedding": target.roll(1, dims=1) + 0.1,
            "image_embedding": target,
        },
    )
    written(tmp_path, PicturePanels(rows=3, side=SIDE), found)
    panel = opened(tmp_path / "pictures" / "test_sub-01.png")
    assert panel.size == (4 + 5 * (SIDE + 4), 20 + 3 * (SIDE + 4))
    for row in range(3):
        assert torch.equal(cell(panel, row, 0), enlarged(seen[row]))
        assert torch.equal(cell(panel, row, 1), enlarged(made[row, 0]))
        assert torch.equal(cell(panel, row, 2), enlarged(made[row, 1]))
        assert torch.equal(cell(panel, row, 3), enlarged(seen[row + 1]))
        assert torch.equal(cell(panel, row, 4), enlarged(noise[row, 0]))
    header = np.asarray(panel)[:16]
    assert header.min() < 128, "there is a header"
    assert not list((tmp_path / "pictures").glob(".*")), "nothing half-written is left"


def test_people_have_panels_of_their_own(seen: Tensor, tmp_path: Path) -> None:
    people = [output(seen, decoded(seen, 1)), output(seen.flip(0)[:4], decoded(seen.flip(0)[:4], 1), person=1)]
    people[1]["row"] += 12
    written(tmp_path, PicturePanels(side=SIDE), *people, names=("01", "02"))
    first, second = (opened(tmp_path / "pictures" / f"test_sub-{name}.png") for name in ("01", "02"))
    assert first.size[1] == 20 + 10 * (SIDE + 4)
    assert second.size[1] == 20 + 4 * (SIDE + 4)
    assert torch.equal(cell(second, 0, 0), enlarged(seen[11]))


def test_large_pictures_are_reduced_and_odd_ones_enlarged(seen: Tensor, tmp_path: Path) -> None:
    big = seen.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    written(tmp_path, PicturePanels(rows=2, side=SIDE), output(big, decoded(seen, 1, side=12, noise=0.0)))
    panel = opened(tmp_path / "pictures" / "test_sub-01.png")
    assert (cell(panel, 1, 0).float() - enlarged(seen[1]).float()).abs().mean() < 12
    made = decoded(seen, 1, side=12, noise=0.0)[1, 0]
    place = torch.arange(SIDE) * 12 // SIDE
    assert torch.equal(cell(panel, 1, 1), made[:, place][:, :, place])


def test_only_the_rows_shown_are_kept(seen: Tensor) -> None:
    callback = PicturePanels(rows=2, side=SIDE)
    whole = output(seen, decoded(seen, 1))
    for rows in torch.randperm(12, generator=torch.Generator().manual_seed(0)).split(3):
        callback._keep({name: value[rows] for name, value in whole.items()})
        assert len(callback._shown[0]["row"]) <= 2
    assert callback._shown[0]["row"].tolist() == [0, 1]
    assert callback._seen == {}, "nothing is retrieved"


def test_validation_and_the_logger(seen: Tensor, tmp_path: Path) -> None:
    logger = Remembers()
    about = context(embed=grey_mean)
    data = Recorded([output(seen, decoded(seen, 1))], about)
    run = short_trainer(tmp_path, PicturePanels(rows=2, side=SIDE, stages=("validation",)), logger=logger)
    run.validate(Replay(about.layout, NAMES), datamodule=data, verbose=False)
    [(key, [image])] = logger.images
    assert key == "pictures/validation_sub-01"
    assert image.tobytes() == opened(tmp_path / "pictures" / "validation_sub-01.png").tobytes()
    run.test(Replay(about.layout, NAMES), datamodule=data, verbose=False)
    assert len(logger.images) == 1
    assert not (tmp_path / "pictures" / "test_sub-01.png").exists()


def test_what_cannot_be_drawn_is_refused(seen: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="found rows=0, side=96"):
        PicturePanels(rows=0)
    about = context()
    data = Recorded([output(seen, decoded(seen, 1))], about)
    with pytest.raises(ContractError, match="PicturePanels needs generated, but Replay does not give it in test"):
        short_trainer(tmp_path, PicturePanels()).test(Replay(about.layout, frozenset({"image"})), datamodule=data)
    wrong = output(seen, decoded(seen, 1), **{"noise.generated": torch.zeros(12, 1, 3, 8, 8)})
    with pytest.raises(DataError, match=r"noise.generated must be uint8"):
        PicturePanels()._keep(wrong)
    assert draw_panel({**output(seen[:1], decoded(seen[:1], 1))}).size == (4 + 2 * 20, 16 + 20 + 4)
