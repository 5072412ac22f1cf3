"""The same scores as torchmetrics: collect batches on every process, gather, sort, score once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from callbacks.metrics.galleries import Block
from callbacks.metrics.identification import identification
from callbacks.metrics.pearson import encoding
from callbacks.metrics.resampling import Estimate
from contracts import PADDING, Gallery


class _Collected(Metric):
    """Keep whole rows until the end; states are flat, so that a process without a batch can join."""

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    def __init__(self, dtypes: dict[str, torch.dtype], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._dtypes = dtypes
        for name in dtypes:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def _keep(self, **rows: Tensor) -> None:
        for name, value in rows.items():
            if len(value) != len(rows["row"]):
                raise ValueError(f"{name} has {len(value)} rows, row has {len(rows['row'])}")
            getattr(self, name).append(value.detach().to(self._dtypes[name]).flatten())

    def _sync_dist(
        self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        # torchmetrics puts an empty float tensor where a process saw no batch; gathering fails for int64.
        for name, dtype in self._dtypes.items():
            if not getattr(self, name):
                setattr(self, name, [torch.empty(0, dtype=dtype, device=self.device)])
        super()._sync_dist(dist_sync_fn, process_group)

    def _gathered(self) -> dict[str, Tensor]:
        """All rows in the order of ``row``, once each, without padding."""
        if not len(getattr(self, "row")):  # noqa: B009 - a state, unknown to the type checker
            raise ValueError("there is nothing to score: no batch has arrived")
        states = {name: dim_zero_cat(getattr(self, name)).cpu() for name in self._dtypes}
        row = states["row"]
        if not bool((row != PADDING).any()):
            raise ValueError("there is nothing to score: all rows are padding")
        order = torch.argsort(row, stable=True)
        ordered = row[order]
        fresh = torch.cat([torch.ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])
        keep = order[fresh & (ordered != PADDING)]
        return {name: value.view(len(row), -1)[keep] for name, value in states.items()}


class IdentificationMetric(_Collected):
    """Identification of stimuli from embeddings; ``compute`` returns the list of estimates.

    Args:
        gallery: The candidates, the same on every process.
        options: Arguments of :func:`identification`.
        kwargs: Arguments of ``torchmetrics.Metric``.
    """

    def __init__(self, gallery: Gallery, *, options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        dtypes = {"embedding": torch.float32} | dict.fromkeys(("stimulus", "label", "row"), torch.int64)
        super().__init__(dtypes, **kwargs)
        self.gallery = gallery
        self.options = {} if options is None else options

    def update(
        self,
        embedding: Float[Tensor, "b d"],
        stimulus: Int[Tensor, " b"],
        label: Int[Tensor, " b"],
        row: Int[Tensor, " b"],
    ) -> None:
        """Collect one batch, padding included."""
        self._keep(embedding=embedding, stimulus=stimulus, label=label, row=row)

    def compute(self) -> list[Estimate]:
        """Score all rows; raises ValueError where there are none."""
        rows = self._gathered()
        block = Block(
            stimulus=rows["stimulus"][:, 0],
            label=rows["label"][:, 0],
            gallery_stimulus=self.gallery.stimulus.cpu(),
            gallery_label=self.gallery.label.cpu(),
            queries=rows["embedding"],
            gallery=self.gallery.embedding,
        )
        return identification([block], **self.options)


class PearsonMetric(_Collected):
    """Correlation of predicted with measured signals; ``compute`` returns the list of estimates.

    Args:
        ceiling: ``(V,)`` largest expected correlation per feature, or None.
        options: Arguments of :func:`encoding`.
        kwargs: Arguments of ``torchmetrics.Metric``.
    """

    def __init__(self, *, ceiling: Tensor | None = None, options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        dtypes = {"predicted": torch.float32, "target": torch.float32}
        super().__init__(dtypes | dict.fromkeys(("stimulus", "row"), torch.int64), **kwargs)
        self.ceiling = ceiling
        self.options = {} if options is None else options

    def update(
        self,
        predicted: Float[Tensor, "b ..."],
        target: Float[Tensor, "b ..."],
        stimulus: Int[Tensor, " b"],
        row: Int[Tensor, " b"],
    ) -> None:
        """Collect one batch, padding included."""
        if predicted.shape != target.shape:
            raise ValueError(f"predicted is {tuple(predicted.shape)}, target {tuple(target.shape)}")
        self._keep(predicted=predicted, target=target, stimulus=stimulus, row=row)

    def compute(self) -> list[Estimate]:
        """Score all rows; raises ValueError where there are none."""
        rows = self._gathered()
        return encoding(rows["predicted"], rows["target"], rows["stimulus"][:, 0], ceiling=self.ceiling, **self.options)
