"""Small figures and letters seen in the scanner (Miyawaki et al. 2008, figure session)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datamodules.core.base import BrainDataModule, Facts
from datamodules.core.download import PublicFile
from datamodules.core.raw import Record, SignalAxes, Stimuli, Trials
from datamodules.core.readers import load_mat, require_shape


class Miyawaki2008(BrainDataModule):
    """One person, 10 figures and letters of 10 x 10 pixels, each seen 8 times; 797 voxels of V1.

    The public file holds the responses averaged over each block. It has no division into training and test:
    use ``split.folds`` (no picture on two sides) or ``split.protocol=leave_one_repetition_out``.

    Licence: BSD-3-style text of the repository that carries the data.

    Reference: Miyawaki et al. (2008), Visual image reconstruction from human brain activity, Neuron 60, 915-929;
    public file: Fujiwara, Miyawaki & Kamitani (2013), Neural Computation 25, 979-1005. Numbers: the file itself.
    """

    name = "miyawaki2008"
    facts = Facts(
        modality="fmri",
        units="response amplitude, arbitrary",
        licence="BSD-3-style, ATR 2013",
        citation="Miyawaki et al. (2008), Neuron 60, 915-929",
        subjects=("01",),
        trials={"01": 80},
        stimuli=10,
        shape={"01": (797,)},
    )
    files = (
        PublicFile(
            name="V1_mean_figure.mat",
            url="https://raw.githubusercontent.com/KamitaniLab/VBCCA/357a0948bddb96834cf564745233ec4d19356afc/sample/data/V1_mean_figure.mat",
            sha256="a65908b290870694af100b51c6c143c0217146494350a5b8219eb1b2ed137788",
        ),
    )

    def read(self, root: Path) -> Iterator[Record]:
        """Yield the ten pictures, then the 80 trials in the order of the file."""
        path = self.file("V1_mean_figure.mat")
        content = load_mat(path, ["R2", "I2"])
        signal, pixels = content["R2"].T, content["I2"].T
        require_shape(f"{path}: I2", content["I2"], (100, len(signal)))
        # MATLAB wrote each picture column by column; equal pixels are the same picture
        images, first, picture = np.unique(
            (pixels > 0).reshape(-1, 10, 10).transpose(0, 2, 1),
            axis=0,
            return_index=True,
            return_inverse=True,
        )
        order = np.argsort(first)
        number = np.argsort(order)[picture.reshape(-1)]
        names = [f"figure-{i:02d}" for i in range(len(order))]
        yield Stimuli(id=names, image=images[order].astype(np.uint8) * 255, label=names)
        yield SignalAxes(subject="01", rois={"V1": signal.shape[1]})
        yield Trials(subject="01", signal=signal, stimulus=[names[i] for i in number])
