"""The stages that are measured, built on noise as their shipped files say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import open_clip
import torch
from torch import Tensor

from contracts import Batch, Layout, parts_of
from experiments.arguments import import_class
from experiments.benchmarks import layouts
from experiments.benchmarks.layouts import batch_size, read
from lightning_modules import Stage

PUBLISHED: dict[str, Callable[..., Layout]] = {
    "eeg": layouts.imagenet_eeg,
    "meg": layouts.things_meg,
    "fmri": layouts.nsd,
}
"""The data sets of Ferrante et al. (2024)."""
PHANTOM: dict[str, Callable[..., Layout]] = {
    "eeg": layouts.phantom_eeg,
    "meg": layouts.phantom_meg,
    "fmri": layouts.phantom,
}
SMALL_BATCH = 2
"""Of stages of published size, whose samples take seconds on a CPU."""


@dataclass(frozen=True)
class Case:
    """A stage and what it is trained on.

    Attributes:
        file: Shipped file of the stage.
        layout: Layout of some number of people, or of the usual number.
        batch: Samples of a step, of each data set.
        on: What the data are, for the table.
        change: Arguments in place of those of the file.
        earlier: Files of the stages that arguments name.
    """

    file: str
    layout: Callable[..., Layout]
    batch: int
    on: str
    change: Mapping[str, Any] = field(default_factory=dict)
    earlier: Mapping[str, str] = field(default_factory=dict)


_pictures_256 = partial(layouts.pictures, data="images_god_bold5000", side=256)
_phantom, _god = batch_size("phantom"), batch_size("god")
SMALL: dict[str, Case] = {
    "clip": Case("stage/clip.yaml", layouts.pictures, batch_size("phantom_pictures"), "Phantom's pictures"),
    "fmri_mae": Case("stage/fmri_mae.yaml", layouts.phantom, _phantom, "Phantom"),
    "mindvis": Case("stage/mindvis.yaml", layouts.phantom, _phantom, "Phantom"),
    "fmri_mae_timeseries": Case(
        "stage/fmri_mae_timeseries.yaml", layouts.pieman, batch_size("pieman"), "PieMan, 100 factors x 10 volumes"
    ),
    "tokenizer": Case("stage/tokenizer.yaml", layouts.pictures, _phantom, "pictures of 64 x 64"),
    "maskgit": Case(
        "stage/maskgit.yaml",
        layouts.pictures,
        _phantom,
        "pictures of 64 x 64",
        earlier={"tokenizer": "stage/tokenizer.yaml"},
    ),
    "contrastive_fmri": Case("stage/contrastive.yaml", layouts.nsd, batch_size("nsd"), "NSD, 8 people"),
    "contrastive_eeg": Case(
        "stage/contrastive.yaml", layouts.things_eeg2, batch_size("things_eeg2"), "THINGS-EEG2, 10 people"
    ),
    "contrastive_meg": Case(
        "stage/contrastive.yaml", layouts.things_meg, batch_size("things_meg"), "THINGS-MEG, 4 people"
    ),
    "contrastive_eeg_classes": Case(
        "stage/contrastive_eeg_classes.yaml", layouts.uci_eeg, batch_size("uci_eeg"), "UCI EEG, 20 people"
    ),
    "neural_alignment": Case(
        "recipe/neural_alignment.yaml",
        layouts.side_by_side(3, **PHANTOM),
        batch_size("phantom_multimodal"),
        "Phantom's EEG, MEG and fMRI",
    ),
    "ridge_direct": Case("stage/ridge_direct.yaml", layouts.god, _god, "GOD, one person, 1,200 samples"),
    "ridge_lea": Case(
        "stage/ridge_lea.yaml",
        layouts.phantom,
        _phantom,
        "Phantom, 480 samples a person",
        earlier={"fmri_mae": "stage/fmri_mae.yaml"},
    ),
}
FULL: dict[str, Case] = {
    "fmri_mae_full": Case("stage/fmri_mae_full.yaml", layouts.god, SMALL_BATCH, "GOD, one person"),
    "fmri_mae_full_hcp": Case(
        "stage/fmri_mae_full.yaml", layouts.hcp, SMALL_BATCH, "HCP, V1 to V4", change={"voxels": "common"}
    ),
    "fmri_mae_full_nsd": Case(
        "stage/fmri_mae_full.yaml", partial(layouts.nsd, people=1), SMALL_BATCH, "NSD, one person, 8 regions"
    ),
    "tokenizer_full": Case("stage/tokenizer_full.yaml", _pictures_256, 1, "pictures of 256 x 256"),
    "maskgit_full": Case(
        "stage/maskgit_full.yaml",
        _pictures_256,
        SMALL_BATCH,
        "pictures of 256 x 256",
        earlier={"tokenizer": "stage/tokenizer_full.yaml"},
    ),
    "neural_alignment_nsd": Case(
        "recipe/neural_alignment.yaml",
        layouts.side_by_side(8, fmri=layouts.nsd),
        batch_size("nsd"),
        "NSD alone, 8 people",
    ),
    "neural_alignment_published": Case(
        "recipe/neural_alignment_published.yaml",
        layouts.side_by_side(4, **PUBLISHED),
        batch_size("phantom_multimodal"),
        "ImageNetEEG, THINGS-MEG and NSD, 4 people each",
    ),
}
CASES = {**SMALL, **FULL}


def build(case: Case, layout: Layout, **change: Any) -> Stage:
    """Build the stage as its file says, with earlier stages as theirs say.

    Args:
        case: Stage and data.
        layout: Layout of the data.
        **change: Arguments in place of those of the file, beside those of the case.
    """
    kind = import_class(read(case.file)["model"]["class_path"])
    given = read(case.file)["model"]["init_args"]
    earlier = {name: {"layout": layout, **read(file)["model"]["init_args"]} for name, file in case.earlier.items()}
    if "encoders" in given and "encoders" not in case.change:
        # a recipe of several data sets, of which some are there; nothing can be shared with those that are not
        parts = parts_of(layout)
        given["encoders"] = {name: encoder for name, encoder in given["encoders"].items() if name in parts}
        given |= {"between": "none"} if len(parts) < 2 else {}
    torch.manual_seed(0)
    stage: Stage = kind(**{"layout": layout, **given, **earlier, **case.change, **change})
    return stage


def noise(stage: Stage, layout: Layout, size: int, *, start: int = 0, subject: int | None = None) -> Any:
    """A batch of noise, or one of each of several data sets.

    Args:
        stage: Says what it reads.
        layout: Layout of the data.
        size: Samples, of each data set.
        start: Number of the first sample.
        subject: Person of all samples; None for all who have the shape of the first.
    """
    if "parts" in layout:
        first = 0
        batches = {}
        for name, part in layout["parts"].items():
            batches[name] = noise(stage, part, size, start=start, subject=subject)
            batches[name]["subject"] += first
            first += len(part["subjects"])
        return batches
    shapes = list(layout["shape"].values())
    alike = [number for number, shape in enumerate(shapes) if shape == shapes[subject or 0]]
    row = torch.arange(start, start + size)
    everything: dict[str, Callable[[], Tensor]] = {
        "signal": lambda: torch.randn(size, *shapes[alike[0]]),
        "embedding": lambda: torch.randn(size, layout["embedding_width"]),
        "image": lambda: torch.randint(0, 256, (size, *layout["image_shape"]), dtype=torch.uint8),
        "tokens": lambda: torch.randint(1, _vocabulary(), (size, int(layout["preparation"]["context_length"]))),
    }
    people = torch.tensor(alike)[row % len(alike)] if subject is None else torch.full_like(row, subject)
    label = row % max(len(layout["classes"]), 1)
    read = {name: make() for name, make in everything.items() if name in stage.batch_keys}
    return Batch(**read, stimulus=row, label=label, subject=people, row=row)  # type: ignore[typeddict-item]


def _vocabulary() -> int:
    config: Any = open_clip.get_model_config("ViT-B-32")
    return int(config["text_cfg"]["vocab_size"])
