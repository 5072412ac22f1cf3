"""Layouts of data sets at their published sizes, without the data; any number of people.

Sizes come from what the data sets declare and from the shipped data files; what neither says stands here with its
source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import open_clip
import yaml

from contracts import Layout, Modality
from datamodules import GOD, NSD, THINGSMEG, PhantomEEG, PhantomMEG
from datamodules.core.fmri_simulation import AREAS
from datamodules.core.nsd_files import REGIONS, REST
from datamodules.phantom_pictures import PictureOptions

CONFIGS = Path(__file__).parents[2] / "configs"
GOD_SUBJECT_2 = (757, 727, 603, 416, 372, 124, 576, 829)
"""Voxels of V1, V2, V3, V4, FFA, PPA, LOC and the rest of HVC in GOD's second person."""
HCP_AREAS = {"V1": 1618, "V2": 1220, "V3": 684, "V4": 661}
"""Grayordinates of both hemispheres (``datamodules.HCP``)."""
PIEMAN_FACTORS = 100
IMAGENET_EEG = (128, 440)
"""Channels, and samples that the published code keeps (``datamodules.ImageNetEEG``)."""
THINGS_EEG2 = (63, 250)
"""Channels and samples of the preprocessed recordings (``datamodules.THINGSEEG2``)."""
SCALP = 61
"""Channels of the cap of ``datamodules.UCIEEG``."""
CONDITIONS = ["first", "matching", "non-matching"]
SIDE = 64
"""Of Phantom's pictures, in pixels."""

Shape = Sequence[int]


def read(file: str) -> dict[str, Any]:
    """Content of a shipped configuration file, such as ``stage/fmri_mae.yaml``."""
    content: dict[str, Any] = yaml.safe_load((CONFIGS / file).read_text())
    return content


def batch_size(data: str) -> int:
    """Samples of a batch of a shipped data file."""
    return int(read(f"data/{data}.yaml")["init_args"]["loader"]["batch_size"])


def embedding_width(data: str) -> int:
    """Numbers of an embedding of a shipped data file; 0 where nothing is embedded."""
    model = read(f"data/{data}.yaml")["init_args"]["embedding"]["model"]
    if model == "none":
        return 0
    if model == "classes":
        return len(CONDITIONS)
    if "local-dir" in model:
        return int(read("stage/clip.yaml")["model"]["init_args"]["embed_dim"])
    config: Any = open_clip.get_model_config(model.removeprefix("open_clip:"))
    return int(config["embed_dim"])


def layout(
    data: str,
    modality: Modality,
    shapes: Sequence[Shape],
    *,
    rois: Sequence[Mapping[str, int]] = (),
    side: int = 0,
    samples: int = 1000,
    **others: Any,
) -> Layout:
    """A layout of people called 1, 2, 3 ...

    Args:
        data: Data file whose embeddings these are.
        modality: Modality.
        shapes: Shape of one sample of each person.
        rois: Regions of each person; empty for none.
        side: Of the pictures in pixels; 0 for none.
        samples: Training samples of each person.
        **others: Further entries.
    """
    people = [f"{number + 1}" for number in range(len(shapes))]
    empty: dict[str, Any] = {
        **{"channels": [], "positions": [], "sampling_rate": 0.0, "start": 0.0, "classes": [], "preparation": {}},
        **{"protocol": "by_stimulus", "fold": 0, "folds": 1, "training_set": "none", "transductive": False},
    }
    known: dict[str, Any] = {
        "modality": modality,
        "subjects": people,
        "shape": {name: list(shape) for name, shape in zip(people, shapes, strict=True)},
        "rois": {name: dict(own) for name, own in zip(people, rois or [{}] * len(people), strict=True)},
        "image_shape": [3, side, side] if side else [],
        "embedding_width": embedding_width(data),
        "embedding_space": "noise",
        "train_samples": dict.fromkeys(people, samples),
    }
    made: Layout = {**empty, **known, **others}  # type: ignore[typeddict-item]  # checked by what is built from it
    return made


def phantom(people: int = 3) -> Layout:
    """Phantom's fMRI: the average of each of 480 training pictures, five areas."""
    areas = {name: area.voxels for name, area in AREAS.items()}
    shapes = [[sum(areas.values())]] * people
    return layout("phantom", "fmri", shapes, rois=[areas] * people, side=SIDE, samples=480)


def phantom_eeg(people: int = 3) -> Layout:
    """Phantom's EEG."""
    return layout("phantom_eeg", "eeg", [next(iter(PhantomEEG.facts.shape.values()))] * people, side=SIDE)


def phantom_meg(people: int = 3) -> Layout:
    """Phantom's MEG."""
    return layout("phantom_meg", "meg", [next(iter(PhantomMEG.facts.shape.values()))] * people, side=SIDE)


def god(people: int = 1) -> Layout:
    """GOD: 1,200 training pictures; everyone has the regions of the second person."""
    rois = dict(zip((f"region-{number}" for number in range(len(GOD_SUBJECT_2))), GOD_SUBJECT_2, strict=True))
    return layout("god", "fmri", [GOD.facts.shape["02"]] * people, rois=[rois] * people, side=256, samples=1200)


def nsd(people: int = 8) -> Layout:
    """NSD in ``nsdgeneral``, divided evenly into as many regions as its atlas has; after eight people they repeat."""
    names = [*REGIONS["prf-visualrois"].values(), REST]
    shapes = list(islice(cycle(NSD.facts.shape.values()), people))
    rois = [even(names, voxels) for (voxels,) in shapes]
    return layout("nsd", "fmri", shapes, rois=rois, side=425, samples=27000)


def even(names: Sequence[str], voxels: int) -> dict[str, int]:
    """Voxels divided evenly among regions: sizes are not published, and no cost depends on more than their sum."""
    return {name: voxels * (i + 1) // len(names) - voxels * i // len(names) for i, name in enumerate(names)}


def hcp(people: int = 1) -> Layout:
    """HCP's V1 to V4, the same grayordinates in everyone."""
    return layout("hcp", "fmri", [[sum(HCP_AREAS.values())]] * people, rois=[HCP_AREAS] * people)


def pieman(people: int = 36) -> Layout:
    """PieMan: segments of factors."""
    volumes = read("data/pieman.yaml")["init_args"]["time_series"]["segment"]
    rois = {f"factor-{number}": 1 for number in range(PIEMAN_FACTORS)}
    return layout("pieman", "fmri", [[PIEMAN_FACTORS, volumes]] * people, rois=[rois] * people)


def imagenet_eeg(people: int = 6) -> Layout:
    """ImageNetEEG."""
    return layout("imagenet_eeg", "eeg", [IMAGENET_EEG] * people)


def things_eeg2(people: int = 10) -> Layout:
    """THINGS-EEG2."""
    return layout("things_eeg2", "eeg", [THINGS_EEG2] * people)


def things_meg(people: int = 4) -> Layout:
    """THINGS-MEG in the window of its data file, at 200 Hz."""
    start, end = read("data/things_meg.yaml")["init_args"]["samples"]["window"]
    channels, _ = next(iter(THINGSMEG.facts.shape.values()))
    return layout("things_meg", "meg", [[channels, round(200 * (end - start))]] * people)


def uci_eeg(people: int = 20) -> Layout:
    """UCI EEG: one second at the rate of its data file."""
    rate = read("data/uci_eeg.yaml")["init_args"]["sampling_rate"]
    return layout("uci_eeg", "eeg", [[SCALP, rate]] * people, classes=CONDITIONS, sampling_rate=float(rate))


def pictures(people: int = 1, *, data: str = "phantom", side: int = SIDE) -> Layout:
    """Pictures alone, with captions; they are of nobody."""
    preparation = {"context_length": str(PictureOptions().context_length)}
    return layout(data, "image", [[3, side, side]], side=side, preparation=preparation)


def side_by_side(usual: int = 3, **parts: Callable[[int], Layout]) -> Callable[..., Layout]:
    """Data sets side by side, each with the ``usual`` number of people or as many as are asked for."""

    def joint(people: int = usual) -> Layout:
        each = {name: part(people) for name, part in parts.items()}
        # all of them meet in one space of pictures
        width = max(part["embedding_width"] for part in each.values())
        joined: dict[str, Any] = {
            key: {f"{name}-{person}": part[key][person] for name, part in each.items() for person in part["subjects"]}
            for key in ("shape", "rois", "train_samples")
        }
        made = layout("phantom", "several", [], embedding_width=width, subjects=list(joined["shape"]))
        made |= joined  # type: ignore[typeddict-item]  # entries of a layout
        made["parts"] = {name: {**part, "embedding_width": width} for name, part in each.items()}
        return made

    return joint
