"""BOLD5000: five thousand photographs seen once (Chang et al. 2019)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from contracts import DataError
from datamodules.core.base import BrainDataModule, Facts
from datamodules.core.raw import Record, SignalAxes, Stimuli, Trials
from datamodules.core.readers import existing, load_npy
from datamodules.core.restricted_pickle import load_image_dict
from datamodules.core.samples import PublishedNormalisation

BETAS = Path("BOLD5000_GLMsingle_ROI_betas/py")
STIMULI = Path("BOLD5000_Stimuli")
PRESENTED = STIMULI / "Scene_Stimuli" / "Presented_Stimuli"
REPEATED = "repeated_stimuli_113_list.txt"
ROIS = ("EarlyVis", "LOC", "OPA", "PPA", "RSC")
HEMISPHERES = ("LH", "RH")
ABSENT_ROIS = {"CSI2": ["LOC"], "CSI3": ["LOC"]}
"""Inferred from the published loaders, which take what is there; the files say nothing."""
RECORDINGS = "https://figshare.com/articles/dataset/BOLD5000_Release_2_0/14456124"
PHOTOGRAPHS = "https://www.dropbox.com/s/5ie18t4rjjvsl47/BOLD5000_Stimuli.zip"
"""Those on figshare hold lists and labels only."""
PACK = 256
"""Pictures of the pickled dict that are handed on together."""


class BOLD5000(BrainDataModule):
    """Four people (``CSI1`` to ``CSI4``); some 4800 photographs seen once, and 113 seen repeatedly, the test set.

    Read are the GLMsingle betas of the regions, ``BOLD5000_GLMsingle_ROI_betas/py/CSI1_..._LHEarlyVis.npy`` and so on,
    of those people whose files are there, and ``BOLD5000_Stimuli`` with

    - lists of what was shown: ``Stimuli_Presentation_Lists/CSI1/CSI1_sess01/CSI_sess01_run01.txt``, sessions and runs
      in alphabetical order; or ``CSI1_imgnames.txt`` (or ``sub-CSI1_imgnames.txt``) in the person's folder, that of the
      lists or ``BOLD5000_Stimuli``, which does not tell sessions and runs apart;
    - ``repeated_stimuli_113_list.txt`` in ``Scene_Stimuli`` or a folder ``Presented_Stimuli``;
    - the pictures, in ``Scene_Stimuli/Presented_Stimuli``: ``img_dict.npy`` of MinD-Vis, or the folders ``COCO``,
      ``ImageNet`` and ``Scene``. Pictures that nobody saw are left out.

    Voxels stand region by region (EarlyVis, LOC, OPA, PPA, RSC), the left hemisphere before the right. The class of an
    ImageNet picture is its synset; pictures of COCO and scenes have none.

    ``samples.normalise=mindvis`` with ``split.validation=0`` gives the samples of the published loaders.

    Licence: CC0 (recordings); the pictures keep theirs.

    Reference: Chang et al. (2019), BOLD5000, a public fMRI dataset while viewing 5000 visual images, Scientific Data 6,
    49. Numbers of trials and pictures: the lists of what was shown.

    Args:
        root: Folder that holds both folders, or one that holds it as ``BOLD5000``.
        absent_rois: Regions without files, by person; None for LOC of CSI2 and CSI3. Where they are there after all,
            they are used.
        **kwargs: Options of every data set (``BrainDataModule``).
    """

    name = "bold5000"
    published_normalisation: ClassVar[PublishedNormalisation] = "all"
    facts = Facts(
        modality="fmri",
        units="GLMsingle beta, percent signal change",
        licence="CC0",
        citation="Chang et al. (2019), Scientific Data 6, 49",
        subjects=("CSI1", "CSI2", "CSI3", "CSI4"),
        trials={"CSI1": 5254, "CSI2": 5254, "CSI3": 5254, "CSI4": 3108},
        stimuli=4916,
    )

    def __init__(self, root: str, *, absent_rois: dict[str, list[str]] | None = None, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.absent_rois = ABSENT_ROIS if absent_rois is None else absent_rois

    def conversion_options(self) -> dict[str, Any]:
        """Regions that may be absent."""
        return {"absent_rois": {person: sorted(rois) for person, rois in self.absent_rois.items()}}

    def read(self, root: Path) -> Iterator[Record]:
        """Yield the people one after another, then the pictures that any of them saw."""
        if not (root / BETAS).is_dir() and (root / "BOLD5000" / BETAS).is_dir():
            root = root / "BOLD5000"
        unknown = sorted({roi for rois in self.absent_rois.values() for roi in rois} - set(ROIS))
        if unknown:
            raise DataError(f"no region {', '.join(unknown)}; change --data.init_args.absent_rois to {', '.join(ROIS)}")
        people = _find_betas(root / BETAS)
        repeated = _repeated(root)
        pictures = find_pictures(root / PRESENTED)
        shown: dict[str, None] = {}
        for subject, files in people.items():
            signal, rois = read_betas(root / BETAS, subject, files, self.absent_rois.get(subject, []))
            names, sessions, runs = read_lists(root, subject)
            if len(names) != len(signal):
                raise DataError(
                    f"{subject}: the lists in {root / STIMULI} name {len(names)} pictures, the betas in {root / BETAS} "
                    f"have {len(signal)} trials; both must come from the same sessions: add or remove lists"
                )
            _check_names(subject, names, repeated, pictures, root)
            split = ["test" if name in repeated else "train" for name in names]
            shown |= dict.fromkeys(names)
            yield SignalAxes(subject=subject, rois=rois)
            yield Trials(subject=subject, signal=signal, stimulus=names, split=split, session=sessions, run=runs)
        yield from _stimuli(list(shown), pictures)


# ---- recordings ------------------------------------------------------------------------------------


def _find_betas(folder: Path) -> dict[str, dict[str, Path]]:
    """Files by person and region of a hemisphere (``LHLOC``)."""
    pattern = rf"(CSI\d)_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_allses_((?:LH|RH)(?:{'|'.join(ROIS)}))\.npy"
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    people: dict[str, dict[str, Path]] = {}
    for path in entries:
        match = re.fullmatch(pattern, path.name)
        if match is not None:
            people.setdefault(match[1], {})[match[2]] = path
    if not people:
        found = ", ".join(path.name for path in entries[:8]) or ("nothing" if folder.is_dir() else "no such folder")
        raise DataError(
            f"no recordings of BOLD5000 in {folder}: expected {_beta_name('CSI1', 'LHEarlyVis')} and so on, found "
            f"{found}. Put BOLD5000_GLMsingle_ROI_betas of Release 2.0 there ({RECORDINGS}), or change "
            "--data.init_args.root"
        )
    return people


def _beta_name(subject: str, part: str) -> str:
    return f"{subject}_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_allses_{part}.npy"


def read_betas(
    folder: Path, subject: str, files: Mapping[str, Path], absent: Collection[str]
) -> tuple[Float[np.ndarray, "trials voxels"], dict[str, int]]:
    """Return one person's responses, regions in the order of ``ROIS``, and the sizes of the regions.

    Raises:
        DataError: A file that is missing though not declared absent, or does not fit the others.
    """
    parts: list[NDArray[Any]] = []
    rois: dict[str, int] = {}
    for roi in ROIS:
        for hemisphere in HEMISPHERES:
            path = files.get(hemisphere + roi)
            if path is None:
                if roi in absent:
                    continue
                raise DataError(
                    f"no file {folder / _beta_name(subject, hemisphere + roi)}; put it there, or declare the region "
                    f"absent: --data.init_args.absent_rois='{{\"{subject}\": {_quoted([*absent, roi])}}}'"
                )
            betas = load_npy(path)
            if betas.ndim != 2 or betas.dtype.kind != "f":
                raise DataError(f"{path}: expected betas (trials, voxels), found {betas.dtype} {betas.shape}")
            if parts and len(betas) != len(parts[0]):
                raise DataError(f"{path}: {len(betas)} trials, but the regions before have {len(parts[0])}")
            parts.append(betas)
            rois[roi] = rois.get(roi, 0) + betas.shape[1]
    return np.concatenate(parts, axis=1), {roi: size for roi, size in rois.items() if size}


def _quoted(names: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


# ---- what was shown --------------------------------------------------------------------------------


def read_names(path: Path) -> list[str]:
    """Read file names, one a line, without the mark of repeats (``rep_``) and without blank lines."""
    try:
        lines = existing(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}: {error}; it must be text, one file name a line") from error
    return [line.strip().removeprefix("rep_") for line in lines if line.strip()]


def read_lists(root: Path, subject: str) -> tuple[list[str], list[str], list[str]]:
    """Return the picture, session and run of each trial of a person.

    Raises:
        DataError: No list.
    """
    lists = root / STIMULI / "Stimuli_Presentation_Lists"
    folder = lists / subject
    names: list[str] = []
    sessions: list[str] = []
    runs: list[str] = []
    for session in sorted(filter(Path.is_dir, folder.iterdir())) if folder.is_dir() else []:
        for run in sorted(session.glob("*.txt")):
            found = read_names(run)
            names += found
            sessions += [session.name.rpartition("sess")[2]] * len(found)
            runs += [run.stem.rpartition("run")[2]] * len(found)
    if names:
        return names, sessions, runs
    files = (f"{subject}_imgnames.txt", f"sub-{subject}_imgnames.txt")
    places = [place / file for place in (folder, lists, lists.parent) for file in files]
    for path in places:
        if path.is_file():
            names = read_names(path)
            return names, ["1"] * len(names), ["1"] * len(names)
    raise DataError(
        f"no lists of what {subject} saw: neither {folder}/{subject}_sess01/*.txt nor {places[0]}; put them there "
        f"(BOLD5000_Stimuli.zip holds them, {PHOTOGRAPHS})"
    )


def _repeated(root: Path) -> frozenset[str]:
    folders = [root / PRESENTED.parent, root / PRESENTED, root / STIMULI / "Presented_Stimuli"]
    there = [folder / REPEATED for folder in folders if (folder / REPEATED).is_file()]
    return frozenset(read_names(there[0] if there else folders[0] / REPEATED))


def _check_names(
    subject: str, names: Sequence[str], repeated: frozenset[str], pictures: Mapping[str, Any], root: Path
) -> None:
    if not repeated & set(names):
        raise DataError(
            f"{subject}: none of the {len(repeated)} names in {REPEATED} was shown, so there is no test set; the list "
            f"has {', '.join(sorted(repeated)[:2])}, shown were {', '.join(names[:2])}; correct the list"
        )
    missing = list(dict.fromkeys(name for name in names if name not in pictures))
    if missing:
        raise DataError(
            f"{subject}: stimulus without image: {len(missing)} of {len(set(names))} pictures that were shown are not "
            f"among the {len(pictures)} in {root / PRESENTED}, the first is {missing[0]}; put it into img_dict.npy, or "
            "into the folder COCO, ImageNet or Scene there"
        )


# ---- pictures --------------------------------------------------------------------------------------


def find_pictures(folder: Path) -> dict[str, Path] | dict[str, NDArray[Any]]:
    """Return the pictures by file name: files, or arrays from ``img_dict.npy``.

    Raises:
        DataError: Neither is there.
    """
    if (folder / "img_dict.npy").is_file():
        return load_image_dict(folder / "img_dict.npy")
    parts = [folder / name for name in ("COCO", "ImageNet", "Scene")]
    files = {path.name: path for part in filter(Path.is_dir, parts) for path in sorted(part.iterdir())}
    if not files:
        raise DataError(
            f"no pictures in {folder}: expected img_dict.npy or the folders COCO, ImageNet and Scene; put them there "
            f"(folders: {PHOTOGRAPHS})"
        )
    return files


def _stimuli(names: Sequence[str], pictures: Mapping[str, Path] | Mapping[str, NDArray[Any]]) -> Iterator[Stimuli]:
    for start in range(0, len(names), PACK):
        part = names[start : start + PACK]
        found = [pictures[name] for name in part]
        label = [match[1] if (match := re.match(r"(n\d{8})_", name)) else "" for name in part]
        arrays = [picture for picture in found if isinstance(picture, np.ndarray)]
        if not arrays:
            yield Stimuli(id=part, image=[path for path in found if isinstance(path, Path)], label=label)
            continue
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise DataError(f"img_dict.npy: pictures must have one size, found {', '.join(map(str, sorted(shapes)))}")
        yield Stimuli(id=part, image=np.stack(arrays), label=label)
