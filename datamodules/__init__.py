"""Data sets: one file each, swapped by naming another one in ``--data``."""

from datamodules.core.base import BrainDataModule, Facts
from datamodules.core.download import PublicFile
from datamodules.core.features import EmbeddingOptions
from datamodules.core.loading import DataModule, LoaderOptions
from datamodules.core.raw import Record, SignalAxes, Stimuli, Trials
from datamodules.core.samples import SampleOptions
from datamodules.core.splits import SplitOptions
from datamodules.miyawaki2008 import Miyawaki2008
from datamodules.phantom import Phantom, PhantomEEG, PhantomMEG, PhantomOptions
from datamodules.phantom_pictures import PhantomPictures, PictureOptions
from datamodules.vangerven2010 import VanGerven2010

__all__ = [
    "BrainDataModule",
    "DataModule",
    "EmbeddingOptions",
    "Facts",
    "LoaderOptions",
    "Miyawaki2008",
    "Phantom",
    "PhantomEEG",
    "PhantomMEG",
    "PhantomOptions",
    "PhantomPictures",
    "PictureOptions",
    "PublicFile",
    "Record",
    "SampleOptions",
    "SignalAxes",
    "SplitOptions",
    "Stimuli",
    "Trials",
    "VanGerven2010",
]
