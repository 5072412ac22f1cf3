"""Data sets: one file each, swapped by naming another one in ``--data``."""

from datamodules.bold5000 import BOLD5000
from datamodules.core.base import BrainDataModule, Facts
from datamodules.core.download import PublicFile
from datamodules.core.epochs import EpochOptions
from datamodules.core.features import EmbeddingOptions
from datamodules.core.loading import DataModule, LoaderOptions
from datamodules.core.raw import HDF5Pictures, Record, SignalAxes, Stimuli, Trials
from datamodules.core.samples import SampleOptions
from datamodules.core.splits import SplitOptions
from datamodules.core.timeseries import TimeSeriesOptions
from datamodules.core.views import ViewOptions
from datamodules.god import GOD
from datamodules.haxby2001 import Haxby2001
from datamodules.hcp import HCP
from datamodules.imagenet_eeg import ImageNetEEG
from datamodules.images import Images
from datamodules.miyawaki2008 import Miyawaki2008
from datamodules.multi_modal import MultiModal
from datamodules.nsd import NSD
from datamodules.phantom import Phantom, PhantomEEG, PhantomMEG, PhantomOptions
from datamodules.phantom_pictures import PhantomPictures, PictureOptions
from datamodules.pieman import PieMan
from datamodules.sensor_recordings import EEGRecordings, MEGRecordings, SensorRecordings
from datamodules.things_eeg2 import THINGSEEG2
from datamodules.things_meg import THINGSMEG
from datamodules.uci_eeg import UCIEEG
from datamodules.vangerven2010 import VanGerven2010

__all__ = [
    "BOLD5000",
    "GOD",
    "HCP",
    "NSD",
    "THINGSEEG2",
    "THINGSMEG",
    "UCIEEG",
    "BrainDataModule",
    "DataModule",
    "EEGRecordings",
    "EmbeddingOptions",
    "EpochOptions",
    "Facts",
    "HDF5Pictures",
    "Haxby2001",
    "ImageNetEEG",
    "Images",
    "LoaderOptions",
    "MEGRecordings",
    "Miyawaki2008",
    "MultiModal",
    "Phantom",
    "PhantomEEG",
    "PhantomMEG",
    "PhantomOptions",
    "PhantomPictures",
    "PictureOptions",
    "PieMan",
    "PublicFile",
    "Record",
    "SampleOptions",
    "SensorRecordings",
    "SignalAxes",
    "SplitOptions",
    "Stimuli",
    "TimeSeriesOptions",
    "Trials",
    "VanGerven2010",
    "ViewOptions",
]
