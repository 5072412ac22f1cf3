"""RidgeAlignment: closed-form maps between brain and image space, both ways (LEA stage 3)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from contracts import PADDING, Batch, ContractError, Layout, Output, ScoreContext
from lightning_modules.fmri_mae import FmriMAE
from lightning_modules.networks.ridge import Form, RidgeSolution, choose_form, fold_of, predicted_memory
from lightning_modules.networks.ridge_sums import (
    HeldSamples,
    MatchedMoments,
    StreamedSums,
    checked_penalty,
    rows_of_ranks,
    zero_linear,
)
from lightning_modules.stage import Stage

Direction = Literal["decode", "encode"]
MomentMatching = Literal["none", "train", "test"]


class RidgeAlignment(Stage):
    """One ridge regression per person and direction, from sums collected in a single pass over the data.

    Decoding maps a signal (V, or C x T flattened) to the embedding of the picture (D), encoding the reverse. With
    ``fmri_mae`` the signal's latent takes the place of the signal: decoding is signal -> latent -> embedding, encoding
    embedding -> latent -> signal (LEA). Without, these are the paper's direct baselines.

    Statistics are collected per cross-validation fold and merged over processes, so the result does not depend
    on batch size, order or number of processes. Folds are hashes of the stimulus.

    Ridge shrinks: predictions vary less than what they predict, and a decoder of latents that sees them answers with
    the mean. ``moment_matching`` gives them the mean and SD of the training targets, dimension by dimension. LEA's
    code takes the SD of the predictions from the whole test set, which is transductive (``test``).

    Recommended: ``alpha: cv``. LEA's published numbers use ``alpha: 500``, embeddings of length 1
    (``embedding.target=unit``), ``decode_intercept: false``, ``encode_intercept: true``, ``moment_matching: test``.

    Reference: Qian et al. (2023), LEA: Learning Latent Embedding Alignment Model for fMRI Decoding and Encoding,
    section 3.2 and its code (``Ridge(alpha=500)``).

    Args:
        layout: Shapes of the data, linked from the datamodule.
        fmri_mae: Checkpoint of the FmriMAE whose latents are aligned; ``run:<stage>`` on the command line is the
            finished run of that stage with the same data, people and name. None to align the signals themselves.
            The weights become part of this stage's checkpoint.
        moment_matching: Where the moments of predictions come from: ``train``: predictions of the training samples;
            ``test``: all predictions of the tested split, which marks the scores as transductive; ``none``.
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
            memory above the limit, a test without a fit, an ``fmri_mae`` that is not there or was made for other
            regions or another preparation of the data.
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
        fmri_mae: str | dict[str, Any] | None = None,
        moment_matching: MomentMatching = "none",
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
        self.automatic_optimization = False
        self.alpha = checked_penalty(alpha, folds)
        self.alphas = alphas
        self.per_target = per_target
        self.n_folds = folds
        self.intercept: dict[Direction, bool] = {"decode": decode_intercept, "encode": encode_intercept}
        self.form = form
        self.memory_limit = memory_limit
        self.moment_matching = moment_matching
        self.autoencoder = self._autoencoder(fmri_mae)
        self.width = width = layout["embedding_width"]
        sizes = [self._brain_size(subject) for subject in layout["subjects"]]
        self.decoders = nn.ModuleList(zero_linear(size, width) for size in sizes)
        self.encoders = nn.ModuleList(zero_linear(width, size) for size in sizes)
        self.moments = nn.ModuleDict(
            {
                "decode": nn.ModuleList(MatchedMoments(width) for _ in sizes),
                "encode": nn.ModuleList(MatchedMoments(size) for size in sizes),
            }
        )
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self.solutions: dict[tuple[str, Direction], RidgeSolution] = {}
        self._sums: dict[tuple[int, Direction], StreamedSums | HeldSamples] = {}

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
                make = HeldSamples if form == "kernel" else StreamedSums
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
        targets = self.targets(batch)
        for person in batch["subject"][real].unique().tolist():
            mine = real & (batch["subject"] == person)
            brain, embedding = self._brain(batch["signal"][mine], person), targets[mine]
            self._sums[person, "decode"].add(brain, embedding, fold[mine], batch["row"][mine])
            self._sums[person, "encode"].add(embedding, brain, fold[mine], batch["row"][mine])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Merge the sums of all processes and solve after the last batch, before validation runs."""
        if not self.trainer.is_last_batch:
            return
        for (person, direction), sums in self._sums.items():
            subject = self.layout["subjects"][person]
            solved = sums.solve(
                alpha=self.alpha,
                alphas=self.alphas,
                intercept=self.intercept[direction],
                per_target=self.per_target,
            )
            if solved is None:
                if self.trainer.fast_dev_run:  # type: ignore[attr-defined]  # one batch, of one person
                    layer = (self.decoders if direction == "decode" else self.encoders)[person]
                    # anything but zeros, which have no direction to score; nothing of a smoke run is kept
                    nn.init.xavier_uniform_(layer.get_parameter("weight"))
                    continue
                raise ContractError(
                    f"sub-{subject}: the pass over the training data held no sample of this person; "
                    "remove --trainer.limit_train_batches"
                )
            solution, moments = solved
            self.solutions[subject, direction] = solution
            self._matched(direction, person).copy_(moments)
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
                f"this {type(self).__name__} was never fitted; run fit first or name a checkpoint with --ckpt_path"
            )
        embedding = self.targets(batch)
        return {
            "brain_embedding": self.decode(batch["signal"], batch["subject"]),
            "image_embedding": embedding,
            "signal": batch["signal"],
            "predicted_signal": self.encode(embedding, batch["subject"]),
            **self.passed_through(batch),
        }

    def decode(self, signal: Float[Tensor, "b ..."], subject: Int64[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Predict embeddings from signals of people of one layout, ``subject`` by position in the layout."""
        decoded = torch.empty(len(signal), self.width, device=signal.device)
        for person in subject.unique().tolist():
            mine = subject == person
            decoded[mine] = self._rescaled("decode", person, self.decoders[person](self._brain(signal[mine], person)))
        return decoded

    def encode(self, embedding: Float[Tensor, "b d"], subject: Int64[Tensor, " b"]) -> Float[Tensor, "b ..."]:
        """Predict signals from embeddings, for people of one layout."""
        names = self.layout["subjects"]
        encoded = torch.empty(len(embedding), *self.layout["shape"][names[int(subject[0])]], device=embedding.device)
        for person in subject.unique().tolist():
            mine = subject == person
            brain = self._rescaled("encode", person, self.encoders[person](embedding[mine]))
            encoded[mine] = self._signal(brain, person).reshape(encoded[mine].shape)
        return encoded

    def targets(self, batch: Batch) -> Float[Tensor, "b d"]:
        """What signals are decoded to."""
        return batch["embedding"]

    def _rescaled(self, direction: Direction, person: int, predictions: Tensor) -> Tensor:
        if self.moment_matching == "none":
            return predictions
        matched: Tensor = self._matched(direction, person)(predictions)
        return matched

    def _sizes(self, person: int, direction: Direction) -> tuple[int, int]:
        size = self._brain_size(self.layout["subjects"][person])
        return (size, self.width) if direction == "decode" else (self.width, size)

    def _predictions(self, signal: Tensor, embedding: Tensor, person: int) -> tuple[Tensor, Tensor]:
        """Predicted embeddings, and predicted latents or signals, of samples of one person."""
        return self.decoders[person](self._brain(signal, person)), self.encoders[person](embedding)

    def _matched(self, direction: Direction, person: int) -> MatchedMoments:
        matched: Any = self.moments.get_submodule(direction).get_submodule(str(person))
        return matched  # type: ignore[no-any-return]

    # ---- latents -----------------------------------------------------------------------------------

    def _autoencoder(self, source: str | dict[str, Any] | None) -> FmriMAE | None:
        if source is None:
            return None
        autoencoder = self.earlier_stage(FmriMAE, source, argument="fmri_mae")
        if isinstance(source, str):
            self._refuse_other_brain(autoencoder)
        return autoencoder

    def _refuse_other_brain(self, autoencoder: FmriMAE) -> None:
        """Compare people, regions and preparation of the autoencoder's data with those here.

        Raises:
            ContractError: They differ; both sides are shown.
        """
        theirs, mine = autoencoder.layout, self.layout
        known = theirs["subjects"][:1] if autoencoder.common else theirs["subjects"]
        for subject in mine["subjects"]:
            there = known[0] if autoencoder.common else subject
            if there not in known:
                raise ContractError(
                    f"the fmri_mae knows sub-{', sub-'.join(known)}, the data have sub-{subject}; train it on this "
                    "person, or choose others with --data.init_args.subjects"
                )
            # regions in their order are what the layers are made for
            before, now = (
                f"{layout['shape'][name]} in regions {list(layout['rois'][name].items())}"
                for layout, name in ((theirs, there), (mine, subject))
            )
            if before != now:
                raise ContractError(
                    f"the fmri_mae was trained on other voxels of sub-{subject}: {before}, the data have {now}; train "
                    "it on these data"
                )
        if theirs["preparation"]:
            options = [_without_recordings(layout["preparation"]) for layout in (theirs, mine)]
            if options[0] != options[1]:
                raise ContractError(
                    f"the fmri_mae was trained on samples prepared as {options[0]}, the data are prepared as "
                    f"{options[1]}; give both the same --data.init_args.samples"
                )

    def _brain_size(self, subject: str) -> int:
        shape = self.layout["shape"][subject] if self.autoencoder is None else self.autoencoder.latent_shape(subject)
        return math.prod(shape)

    def _brain(self, signal: Tensor, person: int) -> Tensor:
        """Signals or their latents, as one vector a sample."""
        if self.autoencoder is None:
            return signal.flatten(1)
        with torch.no_grad():
            return self.autoencoder.encode(signal, self._people(signal, person)).flatten(1)

    def _signal(self, brain: Tensor, person: int) -> Tensor:
        """Signals from vectors of ``_brain``."""
        if self.autoencoder is None:
            return brain
        latent = brain.unflatten(1, self.autoencoder.latent_shape(self.layout["subjects"][person]))
        return self.autoencoder.decode(latent, self._people(brain, person))

    def _people(self, samples: Tensor, person: int) -> Tensor:
        """Number of a person among the people of the autoencoder, once a sample."""
        assert self.autoencoder is not None
        subject = self.layout["subjects"][person]
        number = 0 if self.autoencoder.common else self.autoencoder.layout["subjects"].index(subject)
        return torch.full((len(samples),), number, device=samples.device)

    # ---- moments of the tested split ---------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Take the moments of the predictions from the validation split, where asked for."""
        if not self.trainer.sanity_checking:
            self._match_split("val_dataloader")

    def on_test_epoch_start(self) -> None:
        """Take the moments of the predictions from the test split, where asked for."""
        self._match_split("test_dataloader")

    def on_predict_epoch_start(self) -> None:
        """Take the moments of the predictions from the predicted split, where asked for."""
        self._match_split("predict_dataloader")

    @torch.no_grad()
    def _match_split(self, loader: str) -> None:
        if self.moment_matching != "test" or not self.get_buffer("fitted"):
            return
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.test
        directions: tuple[Direction, ...] = ("decode", "encode")
        people = range(len(self.layout["subjects"]))
        found = {
            (person, direction): [torch.zeros(0, self._sizes(person, direction)[1], device=self.device)]
            for person in people
            for direction in directions
        }
        for batch in getattr(datamodule, loader)():
            batch = move_data_to_device(batch, self.device)
            real = batch["row"] != PADDING
            targets = self.targets(batch)
            for person in batch["subject"][real].unique().tolist():
                mine = real & (batch["subject"] == person)
                predictions = self._predictions(batch["signal"][mine], targets[mine], person)
                for direction, predicted in zip(directions, predictions, strict=True):
                    found[person, direction].append(predicted)
        for (person, direction), parts in found.items():
            predicted = rows_of_ranks(torch.cat(parts)).double()
            if len(predicted) < 2:
                raise ContractError(
                    f"moment_matching=test needs at least 2 samples of sub-{self.layout['subjects'][person]}, found "
                    f"{len(predicted)}; set --model.init_args.moment_matching=train"
                )
            self._matched(direction, person).take_split(predicted)

    def score_context(self, context: ScoreContext) -> ScoreContext:
        """Mark the scores where the moments of the tested split took part."""
        context = super().score_context(context)
        if self.moment_matching != "test":
            return context
        return replace(context, layout={**context.layout, "transductive": True})


def _without_recordings(preparation: dict[str, str]) -> dict[str, str]:
    """Preparation of samples whoever the people are."""
    return {key: value for key, value in preparation.items() if key != "recordings"}
