"""Writes BOLD5000 as MinD-Vis and LEA read it, or as it is published, only smaller."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]
ROIS = ("EarlyVis", "LOC", "OPA", "PPA", "RSC")
SIZES = {
    "LHEarlyVis": 5,
    "RHEarlyVis": 4,
    "LHLOC": 3,
    "RHLOC": 2,
    "LHOPA": 1,
    "RHOPA": 2,
    "LHPPA": 2,
    "RHPPA": 1,
    "LHRSC": 1,
    "RHRSC": 1,
}
BETAS = Path("BOLD5000_GLMsingle_ROI_betas/py")
LISTS = Path("BOLD5000_Stimuli/Stimuli_Presentation_Lists")
SCENES = Path("BOLD5000_Stimuli/Scene_Stimuli")
PRESENTED = SCENES / "Presented_Stimuli"


@dataclass(frozen=True)
class Experiment:
    """Pictures by name, the names seen repeatedly, and for each person the runs (lists of names) and the betas."""

    pictures: dict[str, Array]
    repeated: list[str]
    runs: dict[str, list[list[str]]]
    betas: dict[str, dict[str, Array]]


def experiment(*, people: int = 2, train: int = 12, test: int = 3, runs: int = 4, seed: int = 0) -> Experiment:
    """Every person sees each training picture once and each test picture once in every run, betas in that order."""
    random = np.random.default_rng(seed)
    kinds = ("n01440764_{}.JPEG", "n02012849_{}.JPEG", "COCO_train2014_{:012d}.jpg", "airportterminal{}.jpg")
    # two more than anyone sees
    names = [kinds[i % 4].format(10 + i) for i in range(train + test + 2)]
    pictures = {name: random.integers(0, 256, (8, 8, 3)).astype(np.uint8) for name in names}
    repeated = names[:test]
    pixels = {name: picture.ravel() / 255 - 0.5 for name, picture in pictures.items()}
    lists: dict[str, list[list[str]]] = {}
    betas: dict[str, dict[str, Array]] = {}
    for number in range(1, people + 1):
        order = np.array_split(random.permutation(names[test : test + train]), runs)
        shown = [random.permutation([*run, *repeated]).tolist() for run in order]
        lists[f"CSI{number}"] = shown
        signal = np.stack([pixels[name] for run in shown for name in run])
        betas[f"CSI{number}"] = {}
        for part, size in SIZES.items():
            response = signal @ random.standard_normal((signal.shape[1], size)) / 5
            betas[f"CSI{number}"][part] = (response + 0.5 * random.standard_normal(response.shape)).astype(np.float32)
    return Experiment(pictures, repeated, lists, betas)


def beta_file(root: Path, subject: str, part: str) -> Path:
    """Where the betas of a person's region in a hemisphere lie."""
    return root / BETAS / f"{subject}_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_allses_{part}.npy"


def write_lists(root: Path, content: Experiment) -> None:
    """Write one list for each run, two runs a session; repeats are marked from the second time on."""
    for subject, runs in content.runs.items():
        seen: set[str] = set()
        for number, run in enumerate(runs):
            session = 1 + number // 2
            folder = root / LISTS / subject / f"{subject}_sess{session:02d}"
            folder.mkdir(parents=True, exist_ok=True)
            lines = [f"rep_{name}" if name in seen else name for name in run]
            seen.update(run)
            (folder / f"CSI_sess{session:02d}_run{1 + number % 2:02d}.txt").write_text("\r\n".join(lines) + "\n")
        (root / LISTS / subject / f"{subject}_sess01.mat").touch()


def write_image_names(root: Path, content: Experiment) -> None:
    """Write one list for each person."""
    (root / LISTS).mkdir(parents=True, exist_ok=True)
    for subject, runs in content.runs.items():
        names = [name for run in runs for name in run]
        (root / LISTS / f"sub-{subject}_imgnames.txt").write_text("\n".join(names) + "\n")


def write(root: Path, *, lists: str = "runs", pictures: str = "dict", **options: Any) -> Experiment:
    """Write betas, lists (``runs`` or ``names``) and pictures (``dict`` of MinD-Vis or ``files``)."""
    content = experiment(**options)
    (root / BETAS).mkdir(parents=True, exist_ok=True)
    (root / PRESENTED).mkdir(parents=True, exist_ok=True)
    for subject, parts in content.betas.items():
        for part, betas in parts.items():
            np.save(beta_file(root, subject, part), betas)
    (write_lists if lists == "runs" else write_image_names)(root, content)
    (root / SCENES / "repeated_stimuli_113_list.txt").write_text("\n".join(content.repeated))
    if pictures == "dict":
        np.save(root / PRESENTED / "img_dict.npy", content.pictures, allow_pickle=True)  # type: ignore[arg-type]
        return content
    for name, picture in content.pictures.items():
        folder = root / PRESENTED / ("COCO" if name.startswith("COCO") else "ImageNet" if name[0] == "n" else "Scene")
        folder.mkdir(exist_ok=True)
        # the suffix of the name does not matter to what is in the file
        Image.fromarray(picture).save(folder / name, format="PNG")
    return content
