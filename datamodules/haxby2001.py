"""Faces, houses and six other categories seen in blocks (Haxby et al. 2001)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from contracts import DataError
from datamodules.core.base import BrainDataModule, Facts
from datamodules.core.cifti import load_nifti
from datamodules.core.coordinates import world_coordinates
from datamodules.core.download import PublicFile
from datamodules.core.raw import Record, SignalAxes, Space, Stimuli, Trials
from datamodules.core.readers import existing, require_shape
from datamodules.core.timeseries import SINGLE_VOLUMES, TimeSeriesOptions, clean_run, cut_run

Array = NDArray[Any]
REST = "rest"
CATEGORIES = (REST, "face", "house", "shoe", "cat", "scissors", "scrambledpix", "bottle", "chair")
"""Position: the code in ``attributes.txt`` (README of the public files)."""
ADDRESS = "https://raw.githubusercontent.com/PyMVPA/PyMVPA/master/mvpa2/data/"


class Haxby2001(BrainDataModule):
    """Pictures of 8 categories in blocks of 9 volumes (22.5 s), between rest; 12 runs of 121 volumes, TR 2.5 s.

    The public files hold one person and the posterior half of one axial slice: 1452 volumes of 40 x 20 x 1 voxels, 530
    in the mask. Each run shows each category in one block, 96 in all. Which pictures were shown is not published:
    a block stands for a stimulus, and its category is its class (``embedding.model=classes``). Divide by
    ``split.protocol=by_run``. With ``openfmri`` the same recording, or any in the layout of OpenFMRI (task 001, model
    001), is read run by run, with its people named as there.

    Licence: Creative Commons Attribution-ShareAlike 3.0 (recordings).

    Reference: Haxby et al. (2001), Distributed and overlapping representations of faces and objects in ventral
    temporal cortex, Science 293, 2425-2430. Numbers: the files themselves; TR: their headers.

    Args:
        root: Folder of the raw files.
        form: A sample is the mean pattern of the volumes of a block (``blocks``), a single volume of a block
            (``volumes``), or whatever ``time_series`` cuts the whole run into, rest included and without classes
            (``segments``).
        shift: Volumes by which the response is taken to lag behind the block.
        openfmri: Folder below ``root`` that holds ``sub001``; None for ``attributes.txt`` beside one ``bold``.
        bold: Name of the recording: of all runs below ``root``, or of each run in the layout of OpenFMRI.
        mask: Voxels to take (not 0), below ``root`` or below the person's folder.
        time_series: Cleaning of each run; with ``segments`` also its samples.
        **kwargs: As for every data set.
    """

    name = "haxby2001"
    facts = Facts(
        modality="fmri",
        units="BOLD signal, arbitrary",
        licence="CC BY-SA 3.0",
        citation="Haxby et al. (2001), Science 293, 2425-2430",
        subjects=("001",),
    )
    files = (
        PublicFile(
            name="bold.nii.gz",
            url=f"{ADDRESS}bold.nii.gz",
            sha256="cbbd4d07803caaa9f77381af24e790cf77058664a128bd514a4c1668eefb92d7",
        ),
        PublicFile(
            name="mask.nii.gz",
            url=f"{ADDRESS}mask.nii.gz",
            sha256="8d879d35aaeee3afddfb69a7e1b8dd2b3be446671452d7e841dc6588845f2877",
        ),
        PublicFile(
            name="attributes.txt",
            url=f"{ADDRESS}attributes.txt",
            sha256="a252fa822cd1cec9e1192b139d7b5e35a5615dbe75598f73d4cf1b803aae62b0",
        ),
    )

    def __init__(
        self,
        root: str,
        *,
        form: Literal["blocks", "volumes", "segments"] = "blocks",
        shift: int = 0,
        openfmri: str | None = None,
        bold: str = "bold.nii.gz",
        mask: str = "mask.nii.gz",
        time_series: TimeSeriesOptions = SINGLE_VOLUMES,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.form = form
        self.shift = shift
        self.openfmri = openfmri
        self.bold = bold
        self.mask = mask
        self.time_series = time_series
        cut = time_series.segment or time_series.average > 1
        if cut and form != "segments":
            raise DataError(
                f"form={form} takes its volumes from the blocks: time_series.average and segment belong to "
                "--data.init_args.form=segments"
            )
        if shift < 0 or (shift and form == "segments"):
            raise DataError(
                f"shift is a number of volumes of blocks, at least 0 (form {form}: {shift}); change "
                "--data.init_args.shift"
            )

    def conversion_options(self) -> dict[str, Any]:
        """Everything that decides which numbers a sample holds."""
        options = ("form", "shift", "openfmri", "bold", "mask")
        return {name: getattr(self, name) for name in options} | {"time_series": asdict(self.time_series)}

    def read(self, root: Path) -> Iterator[Record]:
        """Yield the blocks (or moments) and samples of one run after another."""
        known: set[str] = set()
        for run in self._table(root) if self.openfmri is None else self._openfmri(root / self.openfmri):
            place = f"sub-{run.subject}, run {run.name}"
            if self.form == "segments":
                signal, first = cut_run(run.volumes, self.time_series, label=place)
                names = [f"run-{run.name}_volume-{volume:03d}" for volume in first]
                label = dict.fromkeys(names, "")
            else:
                volumes = clean_run(run.volumes, self.time_series.clean)
                blocks = _blocks(run, self.shift)
                if not blocks:
                    raise DataError(f"{place}: no block of any category among its {len(volumes)} volumes")
                label = {name: category for name, category, _ in blocks}
                if self.form == "blocks":
                    signal = np.stack([volumes[rows].mean(axis=0, dtype=np.float64) for _, _, rows in blocks])
                    names = list(label)
                else:
                    signal = volumes[np.concatenate([rows for _, _, rows in blocks])]
                    names = [name for name, _, rows in blocks for _ in rows]
            new = [name for name in label if name not in known]
            known.update(new)
            if new:
                yield Stimuli(id=new, image=None, label=[label[name] for name in new])
            yield Trials(subject=run.subject, signal=signal, stimulus=names, run=run.name)
            yield SignalAxes(
                subject=run.subject,
                rois={Path(self.mask).name.split(".")[0]: run.volumes.shape[1]},
                sampling_rate=1 / run.tr if self.time_series.segment else 0.0,
                coordinates=run.coordinates,
                space=run.space,
            )

    def _path(self, name: str) -> Path:
        public = any(file.name == name for file in self.files)
        return self.file(name) if public else existing(self.root / name)

    def _table(self, root: Path) -> Iterator[_Run]:
        """Runs of one recording, by the label and run of each volume."""
        path = self._path("attributes.txt")
        table = [line.split() for line in path.read_text().splitlines() if line.strip()]
        wrong = next((line for line in table if len(line) != 2 or _category(line[0]) is None), None)
        if wrong is not None:
            raise DataError(
                f"{path}: expected lines of a category (0 to {len(CATEGORIES) - 1}, or {', '.join(CATEGORIES)}) and a "
                f"run, found {' '.join(wrong)!r}"
            )
        volumes, geometry = _masked(self._path(self.bold), self._path(self.mask))
        if len(table) != len(volumes):
            raise DataError(f"{path} labels {len(table)} volumes, {root / self.bold} holds {len(volumes)}")
        numbers = [run for _, run in table]
        order = list(dict.fromkeys(numbers))
        if [run for run, _ in groupby(numbers)] != order:
            raise DataError(f"{path}: volumes of one run must follow each other")
        for position, run in enumerate(order):
            rows = [i for i, number in enumerate(numbers) if number == run]
            labels = [_category(table[i][0]) or REST for i in rows]
            yield _Run("001", f"{position + 1:02d}", volumes[rows], labels, **geometry)

    def _openfmri(self, folder: Path) -> Iterator[_Run]:
        """Runs of all people in the layout of OpenFMRI, by the onsets and durations of the blocks in seconds."""
        key = existing(folder / "models" / "model001" / "condition_key.txt")
        fields = [line.split(maxsplit=2) for line in key.read_text().splitlines() if line.strip()]
        if any(len(line) != 3 for line in fields):
            raise DataError(f"{key}: expected lines of task, condition and category")
        categories = {condition: name for task, condition, name in fields if task == "task001"}
        runs = sorted(folder.glob("sub*/BOLD/task001_run*"))
        if not runs:
            raise DataError(f"no sub*/BOLD/task001_run* in {folder.absolute()}")
        for run in runs:
            person = run.parents[1]
            mask = person / self.mask
            volumes, geometry = _masked(run / self.bold, mask if mask.is_file() else existing(self.root / self.mask))
            labels = [REST] * len(volumes)
            for condition, category in categories.items():
                path = existing(person / "model" / "model001" / "onsets" / run.name / f"{condition}.txt")
                for onset, duration in _events(path):
                    tr = geometry["tr"]
                    # a volume belongs to the block in which it begins; a millisecond for rounding
                    first, end = (int(np.ceil((time - 1e-3) / tr)) for time in (onset, onset + duration))
                    if not 0 <= first < end <= len(volumes):
                        raise DataError(
                            f"{path}: {onset:g} s for {duration:g} s holds no volume of the run, or reaches beyond its "
                            f"{len(volumes)} volumes of {tr:g} s"
                        )
                    labels[first:end] = [category] * (end - first)
            number = run.name.removeprefix("task001_run").lstrip("0")
            yield _Run(person.name.removeprefix("sub"), number.zfill(2), volumes, labels, **geometry)


@dataclass(frozen=True)
class _Run:
    """Volumes ``(T, V)`` of one run, their categories, the seconds from one to the next, and places ``(V, 3)``."""

    subject: str
    name: str
    volumes: Array
    labels: list[str]
    tr: float
    coordinates: Array | None
    space: Space | None


def _blocks(run: _Run, shift: int) -> list[tuple[str, str, Array]]:
    """Name, category and volumes of each block of a run."""
    labels = [REST] * min(shift, len(run.labels)) + run.labels[: max(len(run.labels) - shift, 0)]
    blocks, seen = [], dict[str, int]()
    for category, rows in groupby(range(len(labels)), key=labels.__getitem__):
        if category != REST:
            seen[category] = seen.get(category, 0) + 1
            again = f"-{seen[category]}" if seen[category] > 1 else ""
            blocks.append((f"run-{run.name}_{category}{again}", category, np.array(list(rows))))
    return blocks


def _masked(bold: Path, mask: Path) -> tuple[Array, dict[str, Any]]:
    """Voxels of the mask in each volume ``(T, V)``; seconds from one volume to the next, places of the voxels."""
    volumes, header = load_nifti(bold)
    chosen, _ = load_nifti(mask)
    if volumes.ndim != 4:
        raise DataError(f"{bold}: expected volumes over time (4 axes), found shape {volumes.shape}")
    require_shape(str(mask), chosen, volumes.shape[:3])
    if not (chosen != 0).any():
        raise DataError(f"{mask}: no voxel in the mask")
    tr = float(header.get_zooms()[3])
    if not tr > 0:
        raise DataError(f"{bold}: the header gives no time from volume to volume (pixdim[4] is {tr})")
    coordinates, space = world_coordinates(header, np.argwhere(chosen != 0))
    return volumes[chosen != 0].T, {"tr": tr, "coordinates": coordinates, "space": space}


def _category(text: str) -> str | None:
    if text.isdecimal() and int(text) < len(CATEGORIES):
        return CATEGORIES[int(text)]
    return text if text in CATEGORIES else None


def _events(path: Path) -> list[tuple[float, float]]:
    """Onset and duration of each block in seconds (the third column, a weight, is not read)."""
    try:
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
        return [(float(onset), float(duration)) for onset, duration, *_ in lines]
    except ValueError as error:
        raise DataError(f"{path}: expected lines of onset and duration in seconds ({error})") from error
