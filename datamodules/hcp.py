"""Resting-state fMRI of the Human Connectome Project (Van Essen et al. 2013), in cortical areas."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from contracts import DataError
from datamodules.core.base import BrainDataModule, Facts
from datamodules.core.cifti import Parcellation, area_keys, open_cifti, read_columns, read_means, read_parcellation
from datamodules.core.raw import Record, SignalAxes, Stimuli, Trials
from datamodules.core.readers import load_npz, require_shape
from datamodules.core.samples import PublishedNormalisation
from datamodules.core.timeseries import SINGLE_VOLUMES, TimeSeriesOptions, cut_run

Array = NDArray[Any]
NPZ = "HCP_visual_voxel.npz"
REGISTRATION = "https://balsa.wustl.edu (until 2025 https://db.humanconnectome.org)"
TR = 0.72
"""Seconds from volume to volume (Smith et al. 2013, NeuroImage 80, 144-168)."""


class HCP(BrainDataModule):
    """Rest without stimuli: up to 1,200 people, for self-supervised training; a sample is some seconds of rest.

    The files need registration and cannot be downloaded here. Below ``root`` (or ``HCP``, ``npz``, ``HCP/npz`` in it)
    stand ``<person>/HCP_visual_voxel.npz`` with ``V1`` to ``V4`` ``(T, n)``, or, with ``dlabel``, CIFTI recordings
    anywhere below ``<person>``, in which areas are found by the vertices of the parcellation. Areas hold both
    hemispheres, the left one first. One person is read at a time. Grayordinates are the same in everyone, so areas
    that differ in size between people are refused. The moments of a run stand for stimuli and the same ones in
    everyone: divide by ``split.protocol=by_subject``.

    In the 91282 grayordinates of the published recordings V1 to V4 have 1618, 1220, 684 and 661. MinD-Vis (Chen et
    al. 2023) and LEA took windows of 8 s at 0.75 s a volume, which are ``time_series.average=10``,
    ``pad_to_multiple=16`` (4192) and ``samples.normalise=mindvis``; they added 16 where nothing had to be added.

    Licence: WU-Minn HCP Consortium Open Access Data Use Terms; no redistribution.

    Reference: Van Essen et al. (2013), The WU-Minn Human Connectome Project: an overview, NeuroImage 80, 62-79;
    areas: Glasser et al. (2016), A multi-modal parcellation of human cerebral cortex, Nature 536, 171-178.

    Args:
        root: Folder of the raw files.
        areas: Areas of the parcellation, in this order; None for V1, V2, V3, V4.
        parcels: Instead of voxels, the mean time series of every area of the parcellation (360), each its own region.
        dlabel: The parcellation, a ``.dlabel.nii``; None to read the ``.npz`` files.
        dtseries: Pattern of the names of a person's recordings; each run must match once.
        pad_to_multiple: Repeat the first voxels at the end, as a region ``padding``, until their number is a multiple.
        time_series: How a run becomes samples.
        **kwargs: As for every data set.
    """

    name = "hcp"
    published_normalisation: ClassVar[PublishedNormalisation] = "all"
    facts = Facts(
        modality="fmri",
        units="BOLD signal, arbitrary",
        licence="WU-Minn HCP Consortium Open Access Data Use Terms; no redistribution",
        citation="Van Essen et al. (2013), NeuroImage 80, 62-79",
        subjects=(),
    )

    def __init__(
        self,
        root: str,
        *,
        areas: list[str] | None = None,
        parcels: bool = False,
        dlabel: str | None = None,
        dtseries: str = "*rfMRI_REST1_LR*.dtseries.nii",
        pad_to_multiple: int = 1,
        time_series: TimeSeriesOptions = SINGLE_VOLUMES,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.areas = ["V1", "V2", "V3", "V4"] if areas is None else areas
        self.parcels = parcels
        self.dlabel = None if dlabel is None else Path(dlabel)
        self.dtseries = dtseries
        self.pad_to_multiple = pad_to_multiple
        self.time_series = time_series
        if not self.areas or len(set(self.areas)) < len(self.areas) or pad_to_multiple < 1:
            raise DataError(
                f"areas must be named once each and pad_to_multiple be at least 1, found {self.areas} and "
                f"{pad_to_multiple}; change --data.init_args"
            )
        if parcels and (areas is not None or dlabel is None):
            raise DataError(
                "parcels=true takes every area of a parcellation: give --data.init_args.dlabel, and no areas"
            )

    def conversion_options(self) -> dict[str, Any]:
        """Everything that decides which numbers a sample holds."""
        return {
            "areas": None if self.parcels else self.areas,
            "dlabel": None if self.dlabel is None else self.dlabel.name,
            "dtseries": None if self.dlabel is None else self.dtseries,
            "pad_to_multiple": self.pad_to_multiple,
            "time_series": asdict(self.time_series),
        }

    def read(self, root: Path) -> Iterator[Record]:
        """Yield the moments and samples of one run after another, person by person."""
        people = self._people(root)
        parcellation = None if self.dlabel is None else read_parcellation(self.dlabel)
        moments: set[str] = set()
        expected: tuple[dict[str, int], float] | None = None
        for subject, runs in people.items():
            for run, path in runs.items():
                recording = self._npz(path) if parcellation is None else self._cifti(path, parcellation)
                found = recording.rois, recording.tr
                if expected is None:
                    expected = found
                if found != expected:
                    other = {name: size for name, size in found[0].items() if expected[0][name] != size}
                    raise DataError(
                        f"{path}: one volume in {found[1]:g} s and areas of other sizes: {other or 'none'}; the first "
                        f"recording had one in {expected[1]:g} s and { {name: expected[0][name] for name in other} }. "
                        "All people must have the same grayordinates: leave this one out, or extract the areas again"
                    )
                signal, first = cut_run(recording.volumes, self.time_series, label=str(path))
                del recording
                names = [f"{run}-{volume:04d}" for volume in first]
                new = [name for name in names if name not in moments]
                moments.update(new)
                if new:
                    yield Stimuli(id=new, image=None)
                yield Trials(subject=subject, signal=self._pad(signal), stimulus=names, run=run)
                # before the next person is read
                del signal
        if expected is not None:
            rois, tr = expected
            extra = -sum(rois.values()) % self.pad_to_multiple
            yield SignalAxes(
                rois=rois | ({"padding": extra} if extra else {}),
                sampling_rate=1 / tr if self.time_series.segment else 0.0,
            )

    def _people(self, root: Path) -> dict[str, dict[str, Path]]:
        """Files of each person by run, from the innermost folder that holds any."""
        for place in (root / "HCP" / "npz", root / "HCP", root / "npz", root):
            folders = sorted(path for path in place.glob("*") if path.is_dir())
            people = {folder.name: runs for folder in folders if (runs := self._files(folder))}
            if people:
                return people
        wanted = f"<person>/{NPZ}" if self.dlabel is None else f"<person>/.../{self.dtseries}"
        if self.dlabel is None and any(root.rglob(self.dtseries)):
            hint = "There are CIFTI files: name a parcellation with --data.init_args.dlabel"
        elif self.dlabel is not None and any(root.rglob(NPZ)):
            hint = f"There are {NPZ} files: leave --data.init_args.dlabel out"
        else:
            hint = f"The recordings are not downloaded: register at {REGISTRATION} and accept the data use terms"
        raise DataError(f"no {wanted} below {root.absolute()}, nor HCP, npz or HCP/npz in it. {hint}")

    def _files(self, folder: Path) -> dict[str, Path]:
        """Files of one person by run."""
        if self.dlabel is None:
            return {"rest": folder / NPZ} if (folder / NPZ).is_file() else {}
        return _runs(sorted(path for path in folder.rglob(self.dtseries) if path.is_file()))

    def _npz(self, path: Path) -> _Recording:
        arrays = load_npz(path, self.areas)
        length = len(np.atleast_1d(arrays[self.areas[0]]))
        for name, array in arrays.items():
            require_shape(f"{path}: {name}", array, (length, None))
            if array.dtype.kind not in "fiu":
                raise DataError(f"{path}: {name} must hold numbers, found {array.dtype}")
        return _Recording(np.hstack(list(arrays.values())), {name: a.shape[1] for name, a in arrays.items()}, TR)

    def _cifti(self, path: Path, parcellation: Parcellation) -> _Recording:
        image = open_cifti(path, "SeriesAxis")
        series = image.header.get_axis(0)
        if series.unit != "SECOND" or series.step <= 0:
            raise DataError(f"{path}: volumes must follow in seconds, found a step of {series.step} {series.unit}")
        keys = area_keys(image.header.get_axis(1), parcellation, path=path)
        if self.parcels:
            areas = {name: [key] for key, name in parcellation.names.items()}
        else:
            areas = {name: [parcellation.key(f"{side}_{name}") for side in "LR"] for name in self.areas}
        columns = [np.flatnonzero(np.isin(keys, members)) for members in areas.values()]
        empty = [name for name, members in zip(areas, columns, strict=True) if not len(members)]
        if empty:
            raise DataError(f"{path}: no grayordinates of {', '.join(empty[:8])}; are these of {parcellation.path}?")
        if self.parcels:
            return _Recording(read_means(image, columns, path=path), dict.fromkeys(areas, 1), series.step)
        sizes = {name: len(members) for name, members in zip(areas, columns, strict=True)}
        return _Recording(read_columns(image, columns, path=path), sizes, series.step)

    def _pad(self, signal: Array) -> Array:
        extra = -signal.shape[1] % self.pad_to_multiple
        return np.pad(signal, [(0, 0), (0, extra), *[(0, 0)] * (signal.ndim - 2)], mode="wrap") if extra else signal


@dataclass(frozen=True)
class _Recording:
    """Volumes ``(T, V)``, sizes of the regions, and seconds from volume to volume."""

    volumes: Array
    rois: dict[str, int]
    tr: float


def _runs(files: list[Path]) -> dict[str, Path]:
    """A person's files by run; ``rfMRI_REST1_LR`` in any part of its name is one run in several versions."""
    runs: dict[str, Path] = {}
    for path in files:
        match = re.search(r"[rt]fMRI_[A-Za-z0-9]+_[A-Z]{2}", path.name)
        run = match[0] if match else path.name.removesuffix(".dtseries.nii")
        if run in runs:
            raise DataError(
                f"two versions of run {run}: {runs[run]} and {path}; narrow --data.init_args.dtseries to one of them"
            )
        runs[run] = path
    return runs
