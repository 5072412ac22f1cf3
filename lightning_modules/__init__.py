"""Training stages: one LightningModule a file."""

from lightning_modules.ridge_lea import RidgeAlignment
from lightning_modules.stage import Stage

__all__ = ["RidgeAlignment", "Stage"]
