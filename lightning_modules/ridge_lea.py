"""RidgeAlignment: closed-form maps between brain and image space, both ways (LEA stage 3)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, distributed, nn

from contracts import PADDING, Batch, ContractError, Layout, Output
from lightning_modules.networks.ridge import (
    CoMoments,
    Form,
    RidgeSolution,
    choose_form,
    fold_of,
    predicted_memory,
    solve_ridge,
    solve_ridge_kernel,
)
from lightning_modules.stage import Stage

Direction = Literal["decode", "encode"]


class RidgeAlignment(Stage):
    """One ridge regression per person and direction, from sums collected in a single pass over the data.

    Decoding maps a signal (V, or C x T flattened) to the embedding of the picture (D), encoding the reverse.
    Statistics are collected per cross-validation fold and merged over processes, so the result does not depend
    on batch size, order or number of processes. Folds are hashes of the stimulus.

    Recommended: ``alpha: cv``. LEA's published numbers use ``alpha: 500``, embeddings of length 1
    (``embedding.target=unit``), ``decode_intercept: false`` and ``encode_intercept: true``.

    Reference: Qian et al. (2023), LEA: Learning Latent Embedding Alignment Model for fMRI Decoding and Encoding,
    section 3.2 and its code (``Ridge(alpha=500)``).

    Args:
        layout: Shapes of the data, linked from the datamodule.
        alpha: Penalty of both directions, or ``cv`` to choose each by cross-validation.
        alphas: Penalties that ``cv`` compares; None for 15 values relative to the largest eigenvalue.
        per_target: Choose alpha for each embedding dimension or voxel by itself.
        folds: Folds of the cross-validation.
        decode_intercept: Intercept of signal -> embedding.
        encode_intercept: Intercept of embedding -> signal.
        form: ``primal`` streams the data; ``kernel`` holds it; ``auto`` takes ``kernel`` where the input is
            wider than the training samples are many.
        memory_limit: Largest predicted memory of the fit in GB; more is refused before the pass.

    Raises:
        ContractError: An alpha that is not ``cv`` or a number of at least 0, fewer than 2 folds, a predicted
            memory above the limit, a test without a fit.
    """

    provides: ClassVar = {
        step: frozenset({"brain_embedding", "image_embedding", "signal", "predicted_signal"})
        for step in ("validation", "test", "predict")
    }
    every_sample_once = True

    def __init__(
        self,
        layout: Layout,
        *,
        alpha: float | Literal["cv"] = "cv",
        alphas: list[float] | None = None,
        per_target: bool = False,
        folds: int = 5,
        decode_intercept: bool = True,
        encode_intercept: bool = True,
        form: Literal["auto", "primal", "kernel"] = "auto",
        memory_limit: float = 16.0,
    ) -> None:
        super().__init__(layout)
        self.save_hyperparameters()
        if alpha != "cv" and not (isinstance(alpha, float | int) and 0 <= alpha < math.inf):
            raise ContractError(f"alpha must be 'cv' or a number of at least 0, found {alpha!r}")
        if folds < 2:
            raise ContractError(f"folds must be at least 2, found {folds}")
        self.automatic_optimization = False
        self.alpha = None if alpha == "cv" else float(alpha)
        self.alphas = alphas
        self.per_target = per_target
        self.n_folds = folds
        self.intercept: dict[Direction, bool] = {"decode": decode_intercept, "encode": encode_intercept}
        self.form = form
        self.memory_limit = memory_limit
        width = layout["embedding_width"]
        sizes = [math.prod(layout["shape"][subject]) for subject in layout["subjects"]]
        self.decoders = nn.ModuleList(_linear(size, width) for size in sizes)
        self.encoders = nn.ModuleList(_linear(width, size) for size in sizes)
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self.solutions: dict[tuple[str, Direction], RidgeSolution] = {}
        self._sums: dict[tuple[int, Direction], _Streamed | _Held] = {}

    def configure_optimizers(self) -> list[Any]:
        """Return no optimizer: the solution is closed form."""
        return []

    # ---- fitting -----------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        """Choose the form of each regression, and print and check the memory it will take."""
        self._sums = {}
        total = 0
        for person, subject in enumerate(self.layout["subjects"]):
            n = self.layout["train_samples"][subject]
            for direction in ("decode", "encode"):
                p, q = self._sizes(person, direction)
                form: Form = choose_form(p, n) if self.form == "auto" else self.form
                memory = predicted_memory(p, q, n, form, self.n_folds)
                total = max(total, 0) + memory
                held = ", holds the training data" if form == "kernel" else ""
                rank_zero_info(
                    f"ridge sub-{subject} {direction}: {p} -> {q} on {n} samples, {form} form{held}, "
                    f"{memory / 1e9:.2f} GB"
                )
                make = _Held if form == "kernel" else _Streamed
                self._sums[person, direction] = make(p, q, self.n_folds, self.device)
        if total > self.memory_limit * 1e9:
            raise ContractError(
                f"the fit is predicted to take {total / 1e9:.1f} GB, memory_limit is {self.memory_limit} GB; fit one "
                "person at a time (--data.init_args.subjects), use fewer voxels (--data.init_args.samples.rois) or "
                "raise --model.init_args.memory_limit"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the sums of its people."""
        real = batch["row"] != PADDING
        fold = fold_of(batch["stimulus"], self.n_folds)
        for person in batch["subject"][real].unique().tolist():
            mine = real & (batch["subject"] == person)
            signal, embedding = batch["signal"][mine].flatten(1), batch["embedding"][mine]
            self._sums[person, "decode"].add(signal, embedding, fold[mine], batch["row"][mine])
            self._sums[person, "encode"].add(embedding, signal, fold[mine], batch["row"][mine])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Merge the sums of all processes and solve after the last batch, before validation runs."""
        if not self.trainer.is_last_batch:
            return
        for (person, direction), sums in self._sums.items():
            subject = self.layout["subjects"][person]
            solution = sums.solve(
                alpha=self.alpha,
                alphas=self.alphas,
                intercept=self.intercept[direction],
                per_target=self.per_target,
            )
            if solution is None:
                if self.trainer.fast_dev_run:  # type: ignore[attr-defined]  # one batch, of one person
                    layer = (self.decoders if direction == "decode" else self.encoders)[person]
                    # anything but zeros, which have no direction to score; nothing of a smoke run is kept
                    nn.init.xavier_uniform_(layer.get_parameter("weight"))
                    continue
                raise ContractError(
                    f"sub-{subject}: the pass over the training data held no sample of this person; "
                    "remove --trainer.limit_train_batches"
                )
            self.solutions[subject, direction] = solution
            layer = (self.decoders if direction == "decode" else self.encoders)[person]
            with torch.no_grad():
                layer.get_parameter("weight").copy_(solution.weight.T)
                layer.get_parameter("bias").copy_(solution.bias)
            self.log(f"alpha/{direction}/sub-{subject}", solution.alpha.float().mean(), rank_zero_only=True)
        self._sums = {}
        self.get_buffer("fitted").fill_(True)

    # ---- using -------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Output:
        """Decode the signals and encode the embeddings of a batch.

        Returns:
            ``brain_embedding (B, D)``, ``image_embedding (B, D)``, ``signal`` and ``predicted_signal``
            (B, V) or (B, C, T), and what every output carries on.
        """
        # Lightning tries validation out before training
        if not self.get_buffer("fitted") and not self.trainer.sanity_checking:
            raise ContractError(
                "this RidgeAlignment was never fitted; run fit first or name a checkpoint with --ckpt_path"
            )
        signal, embedding, subject = batch["signal"], batch["embedding"], batch["subject"]
        decoded, encoded = torch.empty_like(embedding), torch.empty_like(signal)
        for person in subject.unique().tolist():
            mine = subject == person
            decoded[mine] = self.decoders[person](signal[mine].flatten(1))
            encoded[mine] = self.encoders[person](embedding[mine]).reshape(signal[mine].shape)
        return {
            "brain_embedding": decoded,
            "image_embedding": embedding,
            "signal": signal,
            "predicted_signal": encoded,
            **self.passed_through(batch),
        }

    def _sizes(self, person: int, direction: Direction) -> tuple[int, int]:
        size, width = (
            math.prod(self.layout["shape"][self.layout["subjects"][person]]),
            self.layout["embedding_width"],
        )
        return (size, width) if direction == "decode" else (width, size)


class _Streamed:
    """Co-moments of each fold; needs P x P numbers a fold, however long the data."""

    def __init__(self, p: int, q: int, n_folds: int, device: torch.device) -> None:
        self.folds = [CoMoments.empty(p, q, device) for _ in range(n_folds)]

    def add(self, x: Tensor, y: Tensor, fold: Tensor, row: Tensor) -> None:
        for k in fold.unique().tolist():
            self.folds[k].update(x[fold == k], y[fold == k])

    def solve(self, **options: Any) -> RidgeSolution | None:
        """Return the solution, the same on all ranks; None if no rank has seen a sample."""
        folds = [_over_ranks(fold) for fold in self.folds]
        return solve_ridge(folds, **options) if any(fold.count > 0 for fold in folds) else None


class _Held:
    """The samples themselves, for inputs wider than long."""

    def __init__(self, p: int, q: int, n_folds: int, device: torch.device) -> None:
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        self.parts = [(torch.zeros(0, p, device=device), torch.zeros(0, q, device=device), empty, empty)]

    def add(self, x: Tensor, y: Tensor, fold: Tensor, row: Tensor) -> None:
        self.parts.append((x, y, fold, row))

    def solve(self, **options: Any) -> RidgeSolution | None:
        """Return the solution, the same on all ranks; None if no rank has seen a sample."""
        x, y, fold, row = (_rows_of_ranks(torch.cat(column)) for column in zip(*self.parts, strict=True))
        order = row.argsort()
        return solve_ridge_kernel(x[order], y[order], fold[order], **options) if len(row) else None


def _linear(p: int, q: int) -> nn.Linear:
    """A linear layer of zeros: weights come from the fit, never from chance."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, p, q, device=torch.get_default_device())
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _world_size() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _over_ranks(moments: CoMoments) -> CoMoments:
    """Merge the statistics of all processes, in the order of ranks, so that all get the same bits."""
    if _world_size() == 1:
        return moments
    total = CoMoments.empty(len(moments.mean_x), len(moments.mean_y), moments.sxx.device)
    for rank in range(_world_size()):
        mine = rank == distributed.get_rank()
        tensors = [value.clone() if mine else torch.empty_like(value) for value in moments.tensors()]
        for value in tensors:
            distributed.broadcast(value, src=rank)
        total = total.merge(CoMoments(*tensors))
    return total


def _rows_of_ranks(values: Tensor) -> Tensor:
    """Join the rows of all processes."""
    if _world_size() == 1:
        return values
    parts = []
    for rank in range(_world_size()):
        length = torch.tensor(len(values), device=values.device)
        distributed.broadcast(length, src=rank)
        mine = rank == distributed.get_rank()
        part = values.contiguous() if mine else values.new_empty(int(length), *values.shape[1:])
        distributed.broadcast(part, src=rank)
        parts.append(part)
    return torch.cat(parts)
