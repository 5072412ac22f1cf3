"""Training stages: one LightningModule a file."""

from lightning_modules.contrastive import ContrastiveAlignment
from lightning_modules.fmri_mae import FmriMAE
from lightning_modules.image_text import ImageText
from lightning_modules.networks.encoders import LinearEncoder, ResidualMLP, TemporalSpatialConv
from lightning_modules.ridge_lea import RidgeAlignment
from lightning_modules.stage import AdamW, GradientStage, Stage

__all__ = [
    "AdamW",
    "ContrastiveAlignment",
    "FmriMAE",
    "GradientStage",
    "ImageText",
    "LinearEncoder",
    "ResidualMLP",
    "RidgeAlignment",
    "Stage",
    "TemporalSpatialConv",
]
