"""Handwritten sixes and nines seen in the scanner (van Gerven et al. 2010)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from contracts import DataError
from datamodules.core.base import BrainDataModule, Facts
from datamodules.core.download import PublicFile
from datamodules.core.raw import Record, SignalAxes, Stimuli, Trials
from datamodules.core.readers import load_mat, require_shape


class VanGerven2010(BrainDataModule):
    """One person, 100 different handwritten digits (6 or 9), each seen once; 3092 voxels of V1 to V3.

    The public copy holds averaged responses, 90 for training and 10 for testing. The order of the voxels among
    the three regions is not published, so they are one region here. Runs are not marked: no cleaning.

    Licence: none stated by the public copy; do not redistribute.

    Reference: van Gerven, de Lange & Heskes (2010), Neural decoding with hierarchical generative models,
    Neural Computation 22, 3127-3142. Numbers of trials, voxels and pixels: the file itself.
    """

    name = "vangerven2010"
    facts = Facts(
        modality="fmri",
        units="response amplitude, arbitrary",
        licence="none stated; do not redistribute",
        citation="van Gerven, de Lange & Heskes (2010), Neural Computation 22, 3127-3142",
        subjects=("01",),
        trials={"01": 100},
        stimuli=100,
        shape={"01": (3092,)},
    )
    files = (
        PublicFile(
            name="digit69_28x28.mat",
            url="https://raw.githubusercontent.com/ChangdeDu/DGMM/286503c79b010fd285065da7092ca43f873c1f58/digit69_28x28.mat",
            sha256="44513e09ad2398566aedd550088b817a3c0bf9cd7873f87078ecd7fdf170b22d",
        ),
    )

    def read(self, root: Path) -> Iterator[Record]:
        """Yield the 90 training trials, then the 10 test trials."""
        path = self.file("digit69_28x28.mat")
        keys = ("fmri", "stim", "label")
        content = load_mat(path, [f"{key}{part}" for part in ("Trn", "Test") for key in keys])
        for part, split in (("Trn", "train"), ("Test", "test")):
            signal, pixels, label = (content[f"{key}{part}"] for key in keys)
            require_shape(f"{path}: stim{part}", pixels, (len(signal), 784))
            require_shape(f"{path}: label{part}", label.reshape(-1), (len(signal),))
            if pixels.dtype != np.uint8:
                raise DataError(f"{path}: stim{part} must be uint8 (0..255), found {pixels.dtype}")
            # the file codes the digits as 1 and 2: sixes and nines
            unknown = sorted({float(code) for code in label.reshape(-1)} - {1.0, 2.0})
            if unknown:
                raise DataError(f"{path}: label{part} must hold 1 (six) or 2 (nine), found {unknown}")
            # MATLAB wrote each picture column by column
            images = pixels.reshape(-1, 28, 28).transpose(0, 2, 1)
            names = [f"{split}-{i:03d}" for i in range(len(images))]
            digits = [{1: "six", 2: "nine"}[int(code)] for code in label.reshape(-1)]
            yield Stimuli(id=names, image=np.ascontiguousarray(images, np.uint8), label=digits)
            yield Trials(subject="01", signal=signal, stimulus=names, split=split)
        yield SignalAxes(subject="01", rois={"V1-V3": content["fmriTrn"].shape[1]})
