"""What a raw data set is read into: stimuli, trials and what the axes of a signal mean.

A datamodule's ``read`` yields these three kinds of record, in any order, subject by subject; everything
after (storing, splitting, averaging, embedding, batching, scoring) is shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped, UInt8


@dataclass(frozen=True)
class HDF5Pictures:
    """Pictures in a table of an HDF5 file, which stays where it is and is read one picture at a time.

    Attributes:
        path: The file, ``.hdf5`` or ``.h5``.
        dataset: Its table: ``(N, H, W, 3)``, ``(N, 3, H, W)`` or grey ``(N, H, W)``; uint8, or floating point in
            0..1, which is rounded to the 256 steps of uint8.
        rows: Row of each picture, from 0; only these are used.
    """

    path: Path
    dataset: str
    rows: Sequence[int]

    def __len__(self) -> int:
        """Number of pictures that are used."""
        return len(self.rows)


@dataclass(frozen=True)
class Stimuli:
    """Pictures, or whatever else was perceived (a moment of a story, rest), once each.

    Attributes:
        id: Name of each stimulus, unique in the data set; what ``Trials.stimulus`` refers to.
        image: The pictures: uint8 arrays ``(N, H, W, 3)`` or grey ``(N, H, W)``, one file path each, or rows of a
            table in an HDF5 file; None where the data set has none.
        label: Class name of each picture, or empty for none.
        caption: One sentence for each picture, or empty for none.
    """

    id: Sequence[str]
    image: UInt8[np.ndarray, "n h w 3"] | UInt8[np.ndarray, "n h w"] | HDF5Pictures | Sequence[Path] | None
    label: Sequence[str] = ()
    caption: Sequence[str] = ()


@dataclass(frozen=True)
class Trials:
    """Consecutive trials of one person, in order of acquisition.

    Attributes:
        subject: Name without prefix, as in BIDS (``01``).
        signal: ``(n, V)`` fMRI responses, ``(n, V, T)`` fMRI time series or ``(n, C, T)`` EEG/MEG; stored as
            float32 or float16.
        stimulus: ``Stimuli.id`` of what was perceived in each trial.
        split: The data set's own split of each trial, ``train``, ``test`` or another of its ``parts`` (one string
            for all).
        session: Session of each trial (one string for all).
        run: Run of each trial within its session (one string for all).
    """

    subject: str
    signal: Float[np.ndarray, "n v"] | Float[np.ndarray, "n c t"]
    stimulus: Sequence[str]
    split: Sequence[str] | str = "train"
    session: Sequence[str] | str = "1"
    run: Sequence[str] | str = "1"


Space = Literal["MNI152", "native"]
"""What coordinates of voxels refer to: the MNI 152 template, or the person's own brain as it lay in the scanner."""


@dataclass(frozen=True)
class SignalAxes:
    """What the columns of one person's signals are; yielded before or after the trials.

    Attributes:
        subject: The person; None where all people share the same axes (sensors of a cap).
        rois: fMRI: name -> number of voxels, in the order of the voxels; must add up to V.
        channels: EEG/MEG: sensor names, in the order of C.
        positions: EEG/MEG: sensor positions ``(C, 3)`` in metres, head coordinates.
        sampling_rate: Samples per second of T; 0 without a time axis.
        start: Time of the first sample relative to stimulus onset, in seconds.
        ncsnr: Noise ceiling signal-to-noise ratio (signal SD / noise SD of one trial) per voxel ``(V,)``,
            as NSD publishes it (Allen et al. 2022, Methods, "noise ceiling").
        coordinates: fMRI: centre of each voxel ``(V, 3)``, world coordinates in millimetres to the right, front and
            top of the origin; None where the files do not tell.
        space: What ``coordinates`` refer to; None without them.
    """

    subject: str | None = None
    rois: dict[str, int] = field(default_factory=dict)
    channels: Sequence[str] = ()
    positions: Float[np.ndarray, "c 3"] | None = None
    sampling_rate: float = 0.0
    start: float = 0.0
    ncsnr: Shaped[np.ndarray, " v"] | None = None
    coordinates: Float[np.ndarray, "v 3"] | None = None
    space: Space | None = None


Record = Stimuli | Trials | SignalAxes
