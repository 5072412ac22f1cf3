"""PicturePanels: what was seen beside what was generated, as a picture for people."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from PIL import Image, ImageDraw
from torch import Tensor

from callbacks.metrics.gather import Outputs
from callbacks.metrics.picture_pairs import unit_or_zero
from callbacks.picture_reduction import GENERATED, SEEN, check_output, kept_pixels
from contracts import PADDING, PASSED_THROUGH, ContractError, Output

CONDITIONS = (GENERATED, *(f"{condition}.{GENERATED}" for condition in ("encoded", "shuffled", "noise")))
_GAP = 4
_HEADER = 16


class PicturePanels(Callback):
    """Writes ``<run>/pictures/<stage>_sub-<name>.png`` and logs it to Weights & Biases where that is a logger.

    One row a sample, the first ones by row number; columns: the seen picture, the S generated ones, the seen picture
    that is retrieved (whose ``image_embedding`` is most like the ``brain_embedding`` of the row by cosine, where the
    output has both), and the pictures of control conditions. Small pictures are enlarged without smoothing.

    Only the rows shown are kept, and for the retrieval each seen picture once, at ``side`` pixels.

    Args:
        rows: Rows for each person.
        side: Side of a picture in pixels; smaller ones are enlarged to it, larger ones reduced.
        stages: When to write: ``test``, ``validation`` (each time, over the last one) or both.

    Raises:
        ContractError: Fewer than 1 row, or no side.
    """

    def __init__(
        self, rows: int = 10, side: int = 96, stages: Sequence[Literal["validation", "test"]] = ("test",)
    ) -> None:
        if rows < 1 or side < 1:
            raise ContractError(f"a panel needs rows and side of at least 1, found rows={rows}, side={side}")
        self.rows = rows
        self.side = side
        self.stages = tuple(stages)
        self._shown: dict[int, Output] = {}
        self._seen: dict[int, Output] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare what the stage gives with what a panel needs.

        Raises:
            ContractError: Pictures are missing.
        """
        provides: Mapping[str, frozenset[str]] = getattr(pl_module, "provides", {})
        for wanted in self.stages:
            missing = sorted({SEEN, GENERATED} - provides.get(wanted, frozenset()))
            if missing:
                raise ContractError(
                    f"PicturePanels needs {', '.join(missing)}, but {type(pl_module).__name__} does not give it in "
                    f"{wanted}; remove the callback or change its stages"
                )

    def _start(self) -> None:
        self._shown, self._seen = {}, {}

    def _keep(self, outputs: Output) -> None:
        check_output(outputs)
        row, subject = outputs["row"], outputs["subject"]
        retrieves = {"brain_embedding", "image_embedding"} <= outputs.keys()
        for person in subject[row != PADDING].unique().tolist():
            mine = (subject == person) & (row != PADDING)
            kept = {name: outputs[name][mine] for name in PASSED_THROUGH}
            for name in (SEEN, *CONDITIONS):
                if name in outputs:
                    check_output(outputs, name) if name != SEEN else None
                    kept[name] = self._thumbnails(outputs[name][mine])
            if retrieves:
                kept["brain_embedding"] = outputs["brain_embedding"][mine]
                candidates = {
                    "stimulus": outputs["stimulus"][mine],
                    SEEN: kept[SEEN],
                    "image_embedding": outputs["image_embedding"][mine],
                }
                self._seen[person] = _merge(self._seen.get(person), candidates, "stimulus", None)
            self._shown[person] = _merge(self._shown.get(person), kept, "row", self.rows)

    def _thumbnails(self, pictures: Tensor) -> Tensor:
        """Pictures ``(..., 3, H, W)`` as squares of ``side`` pixels on the CPU."""
        flat = pictures.reshape(-1, *pictures.shape[-3:])
        height, width = flat.shape[-2:]
        if max(height, width) < self.side:
            # whole repetitions of each pixel where they fit
            rows = torch.arange(self.side, device=flat.device) * height // self.side
            columns = torch.arange(self.side, device=flat.device) * width // self.side
            small = flat[:, :, rows][..., columns]
        else:
            small = kept_pixels(flat, (self.side, self.side))
        return small.reshape(*pictures.shape[:-2], self.side, self.side).cpu()

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        shown = _gather(self._shown, "row", self.rows)
        seen = _gather(self._seen, "stimulus", None)
        self._start()
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        module: Any = pl_module
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit/test
        names = module.score_context(datamodule.score_context(stage)).layout["subjects"]
        for person, output in sorted(shown.items()):
            retrieved = _retrieve(output, seen[person]) if person in seen else None
            panel = draw_panel(output, retrieved)
            name = f"{stage}_sub-{names[person]}"
            path = Path(trainer.default_root_dir) / "pictures" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.partial")
            panel.save(partial, format="png")
            os.replace(partial, path)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(key=f"pictures/{name}", images=[panel])

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation."""
        self._start()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep the rows that will be shown."""
        if "validation" in self.stages and not trainer.sanity_checking:
            self._keep(outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the rows of all processes and draw them."""
        if "validation" in self.stages and not trainer.sanity_checking:
            self._finish(trainer, pl_module, "validation")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier test."""
        self._start()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep the rows that will be shown."""
        if "test" in self.stages:
            self._keep(outputs)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the rows of all processes and draw them."""
        if "test" in self.stages:
            self._finish(trainer, pl_module, "test")


def _merge(old: Output | None, new: Output, by: str, most: int | None) -> Output:
    """Both, each number of ``by`` once and in order, the first ``most`` of them; on the CPU."""
    new = {name: value.detach().cpu() for name, value in new.items()}
    both = new if old is None else {name: torch.cat([old[name], new[name]]) for name in new}
    _, first = np.unique(both[by].numpy(), return_index=True)
    rows = torch.from_numpy(first[:most])
    return {name: value[rows] for name, value in both.items()}


def _gather(people: Mapping[int, Output], by: str, most: int | None) -> dict[int, Output]:
    """What all processes kept, merged as within one."""
    gathered = Outputs()
    for person, output in people.items():
        number = len(output[by])
        gathered.update({**output, "row": output[by], "subject": torch.full((number,), person)})
    return {person: _merge(None, output, by, most) for person, output in gathered.compute().items()}


def _retrieve(output: Output, seen: Output) -> Tensor:
    """The seen pictures most like the decoded embeddings, ``(n, 3, side, side)``."""
    brain = unit_or_zero(output["brain_embedding"], "cosine", "brain_embedding of")
    image = unit_or_zero(seen["image_embedding"], "cosine", "image_embedding of")
    return seen[SEEN][(brain @ image.T).argmax(1)]


def draw_panel(output: Output, retrieved: Tensor | None = None) -> Image.Image:
    """Draw the rows of one person.

    Args:
        output: ``image`` ``(n, 3, side, side)``, ``generated`` and those of control conditions
            ``(n, S, 3, side, side)``, uint8, and ``row``.
        retrieved: ``(n, 3, side, side)`` retrieved pictures.

    Returns:
        The panel with a header over each group of columns.
    """
    groups: list[tuple[str, Tensor]] = [("seen", output[SEEN][:, None])]
    groups += [(GENERATED, output[GENERATED])]
    if retrieved is not None:
        groups.append(("retrieved", retrieved[:, None]))
    groups += [(name.removesuffix(f".{GENERATED}"), output[name]) for name in CONDITIONS[1:] if name in output]
    side = output[SEEN].shape[-1]
    rows, columns = len(output["row"]), sum(pictures.shape[1] for _, pictures in groups)
    panel = Image.new("RGB", (columns * (side + _GAP) + _GAP, _HEADER + rows * (side + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(panel)
    column = 0
    for title, pictures in groups:
        draw.text((_GAP + column * (side + _GAP), 2), title, fill="black")
        for one in rearrange(pictures, "n s c h w -> s n h w c").numpy():
            for row, picture in enumerate(one):
                place = (_GAP + column * (side + _GAP), _HEADER + _GAP + row * (side + _GAP))
                panel.paste(Image.fromarray(picture), place)
            column += 1
    return panel
