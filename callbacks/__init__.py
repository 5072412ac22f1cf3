"""Scores, pictures and checkpoints as Lightning callbacks; the formulas are in ``callbacks.metrics``."""

from callbacks.checkpoint import RunCheckpoint
from callbacks.conversion import CrossModal
from callbacks.discrimination import Discrimination
from callbacks.encoding import Encoding
from callbacks.frechet import FrechetInception
from callbacks.identification import Identification
from callbacks.open_clip_folder import OpenClipFolder
from callbacks.panels import PicturePanels
from callbacks.picture_networks import PictureFeatures, PictureNetwork
from callbacks.picture_record import PictureRecord, Pictures, load_pictures
from callbacks.pictures import PictureScores
from callbacks.record import RunRecord, load_part, read_scores, save_part, write_scores
from callbacks.reliability import Reliability
from callbacks.score import Part, ScoreCallback, average
from callbacks.segment_matching import SegmentMatching
from callbacks.tables import Reference, print_comparison, print_scores, read_reference
from callbacks.wandb_record import WandbRecord
from callbacks.wandb_run import WandbRun
from contracts import Score

__all__ = [
    "CrossModal",
    "Discrimination",
    "Encoding",
    "FrechetInception",
    "Identification",
    "OpenClipFolder",
    "Part",
    "PictureFeatures",
    "PictureNetwork",
    "PicturePanels",
    "PictureRecord",
    "PictureScores",
    "Pictures",
    "Reference",
    "Reliability",
    "RunCheckpoint",
    "RunRecord",
    "Score",
    "ScoreCallback",
    "SegmentMatching",
    "WandbRecord",
    "WandbRun",
    "average",
    "load_part",
    "load_pictures",
    "print_comparison",
    "print_scores",
    "read_reference",
    "read_scores",
    "save_part",
    "write_scores",
]
