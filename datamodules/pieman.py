"""Factors of the brains of people who heard one story (Simony et al. 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray

from contracts import DataError
from datamodules.core.base import BrainDataModule, Facts
from datamodules.core.download import PublicFile
from datamodules.core.raw import Record, SignalAxes, Stimuli, Trials
from datamodules.core.readers import reading
from datamodules.core.timeseries import SINGLE_VOLUMES, TimeSeriesOptions, cut_run

Array = NDArray[Any]
TR = 1.5
"""Seconds from volume to volume (Nastase et al. 2021, Scientific Data 8, 250, figure 1: 300 volumes in 450 s)."""


class PieMan(BrainDataModule):
    """36 people, each 300 volumes (450 s) of the story "Pie Man": activity of 100 spatial factors instead of voxels.

    The factors are those of hierarchical topographic factor analysis, the same 100 for all people. Everyone heard the
    same moment in the same volume, so moments stand for stimuli and are met again in everyone: divide by
    ``split.protocol=by_subject``.

    Licence: MIT, of the repository that carries the data.

    Reference: Simony et al. (2016), Dynamic reconfiguration of the default mode network during narrative
    comprehension, Nature Communications 7, 12141; factors: Manning et al. (2018), A probabilistic approach to
    discovering dynamic full-brain functional connectivity patterns, NeuroImage 180, 243-252; public file: Heusser et
    al. (2018), HyperTools, Journal of Machine Learning Research 18, 1-6. Numbers: the file itself.

    Args:
        root: Folder of the raw files.
        time_series: How the story becomes samples.
        **kwargs: As for every data set.
    """

    name = "pieman"
    facts = Facts(
        modality="fmri",
        units="factor activity, arbitrary",
        licence="MIT",
        citation="Simony et al. (2016), Nature Communications 7, 12141",
        subjects=tuple(f"{number:02d}" for number in range(1, 37)),
    )
    files = (
        PublicFile(
            name="weights.mat",
            url="https://raw.githubusercontent.com/ContextLab/hypertools/289ecd36e139622a2461c9a1d45be98dc219cc89/examples/sample_data/weights.mat",
            sha256="b8c06fa3da0ce6d696b2a11837928760971423058b9b86bb7296a7fc35aa04f0",
        ),
    )

    def __init__(self, root: str, *, time_series: TimeSeriesOptions = SINGLE_VOLUMES, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.time_series = time_series

    def conversion_options(self) -> dict[str, Any]:
        """How the story is cut."""
        return {"time_series": asdict(self.time_series)}

    def read(self, root: Path) -> Iterator[Record]:
        """Yield the moments of the story, then each person's samples."""
        path = self.file("weights.mat")
        people = load_cell(path, "weights")
        volumes, factors = people[0].shape
        for number, run in enumerate(people):
            if run.shape != (volumes, factors):
                raise DataError(
                    f"{path}: cell {number + 1} is {run.shape}, the first is {(volumes, factors)}; all people heard "
                    "the same story in the same factors"
                )
        for number, run in enumerate(people):
            signal, first = cut_run(run, self.time_series, label=f"{path}: cell {number + 1}")
            moments = [f"tr-{volume:04d}" for volume in first]
            if number == 0:
                yield Stimuli(id=moments, image=None)
            yield Trials(subject=f"{number + 1:02d}", signal=signal, stimulus=moments)
        yield SignalAxes(
            rois={f"factor-{number + 1:03d}": 1 for number in range(factors)},
            sampling_rate=1 / TR if self.time_series.segment else 0.0,
        )


def load_cell(path: Path, key: str) -> list[Array]:
    """Read a MATLAB cell array that holds matrices of real numbers, and nothing else.

    Raises:
        DataError: Missing or truncated file, missing key, or anything but such a cell array; MATLAB 7.3 too.
    """
    with reading(path, "It is truncated or no MATLAB 5 file; fetch it again"):
        content = scipy.io.loadmat(path, variable_names=[key])
    if key not in content:
        found = ", ".join(repr(name) for name, *_ in scipy.io.whosmat(path)) or "nothing"
        raise DataError(f"{path}: missing {key!r}; found {found}")
    cells = content[key]
    if cells.dtype != object or cells.size == 0:
        raise DataError(f"{path}: {key!r} must be a cell array of matrices, found {cells.dtype} {cells.shape}")
    matrices = list(cells.ravel())
    for number, matrix in enumerate(matrices):
        if type(matrix) is not np.ndarray or matrix.dtype.kind not in "fiu" or matrix.ndim != 2 or 0 in matrix.shape:
            found = f"{matrix.dtype} {matrix.shape}" if isinstance(matrix, np.ndarray) else type(matrix).__name__
            raise DataError(f"{path}: cell {number + 1} of {key!r} must be a matrix of real numbers, found {found}")
    return matrices
