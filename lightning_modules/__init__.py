"""Training stages: one LightningModule a file."""

from lightning_modules.contrastive import ContrastiveAlignment
from lightning_modules.conversion import CrossModalConversion
from lightning_modules.fmri_mae import FmriMAE
from lightning_modules.image_text import ImageText
from lightning_modules.lea import LEA
from lightning_modules.maskgit import MaskGIT
from lightning_modules.networks.attention_encoders import ATM, SensorAttention
from lightning_modules.networks.encoders import LinearEncoder, ResidualMLP, TemporalSpatialConv
from lightning_modules.networks.image_tokenizers import FSQAutoencoder, ImageTokenizer
from lightning_modules.networks.maskgit_vqgan import MaskGitVQGAN
from lightning_modules.networks.neural_alignment_encoders import SpectrogramConv, SubjectConv, SubjectMLP
from lightning_modules.networks.sensor_encoders import EEGNet, ShallowNet
from lightning_modules.ridge_lea import RidgeAlignment
from lightning_modules.ridge_pixels import PixelRidge
from lightning_modules.stage import AdamW, GradientStage, Stage
from lightning_modules.tokenizer import PictureStage, Tokenizer

__all__ = [
    "ATM",
    "LEA",
    "AdamW",
    "ContrastiveAlignment",
    "CrossModalConversion",
    "EEGNet",
    "FSQAutoencoder",
    "FmriMAE",
    "GradientStage",
    "ImageText",
    "ImageTokenizer",
    "LinearEncoder",
    "MaskGIT",
    "MaskGitVQGAN",
    "PictureStage",
    "PixelRidge",
    "ResidualMLP",
    "RidgeAlignment",
    "SensorAttention",
    "ShallowNet",
    "SpectrogramConv",
    "Stage",
    "SubjectConv",
    "SubjectMLP",
    "TemporalSpatialConv",
    "Tokenizer",
]
