"""Stage: what all training stages share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lightning import LightningModule

from contracts import PASSED_THROUGH, Batch, ContractError, Layout, Output

COMPARED = (
    "modality",
    "subjects",
    "shape",
    "channels",
    "embedding_width",
    "embedding_space",
    "training_set",
    "preparation",
)
"""Entries of a layout that must agree between a checkpoint and the data it is used on."""


class Stage(LightningModule):
    """Base of all training stages; a subclass reads like the paper it implements.

    Every stage calls ``save_hyperparameters()`` on plain data, so that a checkpoint can be loaded without a
    datamodule. A stage logs losses and returns outputs; scores are computed by callbacks.

    Attributes:
        provides: For ``validation``, ``test`` and ``predict``, the names in the output (contract 2).
        batch_keys: Entries of the batch that the stage reads beside ``PASSED_THROUGH``.
        every_sample_once: Whether an epoch must hold every sample exactly once (closed-form stages), with
            padding marked by ``row``; else training drops the last ragged batch.

    Args:
        layout: Shapes and names of the data (contract 0), linked from the datamodule.
    """

    provides: ClassVar[Mapping[str, frozenset[str]]] = {}
    batch_keys: ClassVar[frozenset[str]] = frozenset({"signal", "embedding"})
    every_sample_once: ClassVar[bool] = False

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.lineage: list[dict[str, Any]] = []

    def passed_through(self, batch: Batch) -> Output:
        """Return the entries that every output carries on."""
        return {name: batch[name] for name in PASSED_THROUGH}  # type: ignore[literal-required]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record what this stage was made from; scores of later stages name it."""
        checkpoint["lineage"] = [
            *self.lineage,
            {
                "stage": type(self).__name__,
                "protocol": self.layout["protocol"],
                "training_set": self.layout["training_set"],
                "transductive": self.layout["transductive"],
            },
        ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that was made for other data.

        Raises:
            ContractError: The layouts differ; both sides are shown.
        """
        stored: Mapping[str, Any] = checkpoint["hyper_parameters"]["layout"]
        here: Mapping[str, Any] = self.layout
        different = [
            f"  {key}: checkpoint {stored[key]!r}, data {here[key]!r}" for key in COMPARED if stored[key] != here[key]
        ]
        if different:
            raise ContractError(
                "the checkpoint does not fit the data; give the --data options it was trained with, or train anew:\n"
                + "\n".join(different)
            )
