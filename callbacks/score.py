"""ScoreCallback: from the outputs of all processes to scores, the same for every family of scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.metrics.gather import Outputs
from callbacks.metrics.resampling import Estimate
from contracts import PASSED_THROUGH, ContractError, Output, Score, ScoreContext


@dataclass(frozen=True)
class Part:
    """The gathered outputs of one run and their context; cross-validation gives one part a fold.

    Attributes:
        outputs: By person, the entries of the output, ``(n, ...)`` each, sorted by ``row``, without padding.
        context: What the datamodule said about them.
    """

    outputs: Mapping[str, Output]
    context: ScoreContext


class ScoreCallback(Callback):
    """Base of all scores; a subclass says what it ``needs`` and implements ``evaluate``.

    Outputs of all processes are gathered, sorted by ``row`` and scored once, so that 1, 2 and 3 processes
    agree. ``scores`` and ``part`` hold the latest result. In validation neither p-values nor intervals are
    computed.

    What is gathered is what ``reduce`` makes of each batch's output, so that pictures need not be kept. Entries of
    all callbacks of a run are kept together (``RunRecord``): two entries of one name must hold the same, so a name
    tells every setting that its content depends on, and it has no ``/``.

    Attributes:
        needs: Names of the output that are read beside ``PASSED_THROUGH``.
        table: The table in which a grid compares its scores; a score may name another one.
        optional: Further names, read where the output has them.
        test_is_enough: Whether validation goes unscored, instead of being refused, where a stage gives what is
            needed in tests alone.
    """

    needs: frozenset[str]
    table: ClassVar[str] = "recordings"
    optional: frozenset[str] = frozenset()
    test_is_enough: bool = False

    def __init__(self) -> None:
        self.part: Part | None = None
        self.scores: list[Score] = []
        self._context: ScoreContext | None = None
        self._outputs: Outputs | None = None
        self._validates = True

    def reduce(self, outputs: Output) -> Output:
        """Reduce the output of a batch to what ``evaluate`` reads, on the device of the output.

        Args:
            outputs: The output, ``(B, ...)`` each; padding included.

        Returns:
            What is kept, ``(B, ...)`` each; ``PASSED_THROUGH`` is kept beside it.
        """
        given = self.needs | (self.optional & outputs.keys())
        return {name: outputs[name] for name in sorted(given)}

    @abstractmethod
    def evaluate(self, parts: Sequence[Part], *, resample: bool = True) -> list[Score]:
        """Score the outputs of one run, or of all folds of a cross-validation together.

        Args:
            parts: One part a run.
            resample: Whether to compute p-values and intervals.

        Returns:
            One score per person and quantity.
        """

    def in_tables(self, parts: Sequence[Part], *, resample: bool = True) -> list[Score]:
        """Evaluate, and say of each score in which table it is compared."""
        return [replace(s, table=s.table or self.table) for s in self.evaluate(parts, resample=resample)]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare what the stage gives with what this score needs.

        Raises:
            ContractError: Something is missing.
        """
        provides: Mapping[str, frozenset[str]] = getattr(pl_module, "provides", {})
        given = provides.get("validation" if stage in ("fit", "validate") else stage, frozenset())
        missing = sorted(self.needs - given)
        self._validates = not (missing and self.test_is_enough and self.needs <= provides.get("test", frozenset()))
        if missing and self._validates:
            raise ContractError(
                f"{type(self).__name__} needs {', '.join(missing)}, but {type(pl_module).__name__} gives only "
                f"{', '.join(sorted(given)) or 'nothing'} in {TrainerFn(stage).value}; remove the callback or choose "
                "another stage"
            )

    def _start(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit/test
        stage_module: Any = pl_module
        self._context = stage_module.score_context(datamodule.score_context(stage))
        self._outputs = Outputs()

    def _update(self, outputs: Any) -> None:
        assert self._outputs is not None
        self._outputs.update({**self.reduce(outputs), **{name: outputs[name] for name in PASSED_THROUGH}})

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert self._outputs is not None
        assert self._context is not None
        names = self._context.layout["subjects"]
        gathered = {names[number]: outputs for number, outputs in self._outputs.compute().items()}
        self.part = Part(gathered, self._context)
        self.scores = self.in_tables([self.part], resample=stage == "test")
        for name, value in log_names(self.scores, stage).items():
            # every process has computed the same value
            pl_module.log(name, value, sync_dist=True)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask for the context."""
        if self._validates:
            self._start(trainer, pl_module, "validation")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep what is needed of a batch's output."""
        if self._validates:
            self._update(outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather, score and log; not in the sanity check before training, which sees a few batches only."""
        if self._validates and not trainer.sanity_checking:
            self._finish(trainer, pl_module, "validation")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask for the context."""
        self._start(trainer, pl_module, "test")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep what is needed of a batch's output."""
        self._update(outputs)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather, score and log."""
        self._finish(trainer, pl_module, "test")


def subjects_of(parts: Sequence[Part]) -> list[str]:
    """Names of all people with outputs, in order."""
    return list(dict.fromkeys(name for part in parts for name in part.outputs))


def to_score(
    estimate: Estimate,
    parts: Sequence[Part],
    *,
    subject: str,
    ceiling: float | None,
    reason: str,
    gallery: str = "",
    similarity: str = "",
) -> Score:
    """Make the score of one person from an estimate.

    Args:
        estimate: The number with interval, p-value and chance.
        parts: The runs it comes from; they tell protocol and transduction.
        subject: The person.
        ceiling: The best value that the noise allows.
        reason: Why there is no ceiling; noted in place of one.
        gallery: Name and size of the gallery.
        similarity: Similarity of the identification.
    """
    return Score(
        name=estimate.name,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        p_value=estimate.p_value,
        chance=estimate.chance,
        ceiling=ceiling,
        subject=subject,
        gallery=gallery,
        n=estimate.n,
        stimuli=estimate.stimuli,
        similarity=similarity,
        protocol=_protocol(parts),
        transductive=any(
            made["transductive"] for part in parts for made in (part.context.layout, *part.context.lineage)
        ),
        note="; ".join(filter(None, (estimate.note, "" if ceiling is not None else reason))),
    )


def _protocol(parts: Sequence[Part]) -> str:
    """The protocol with what was tested of it: a fold, several joined, or all."""
    layout = parts[0].context.layout
    if layout["folds"] == 1:
        return layout["protocol"]
    tested = f"fold {layout['fold']}" if len(parts) == 1 else f"{len(parts)} folds"
    return f"{layout['protocol']} ({tested} of {layout['folds']})"


def average(scores: Sequence[Score]) -> list[Score]:
    """Average each quantity over people; intervals and p-values belong to one person and are left out.

    Ceilings are averaged where every person has one. A quantity with one person gives nothing.
    """
    groups: dict[tuple[str, str, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.name, score.gallery, score.similarity), []).append(score)
    return [
        replace(
            members[0],
            subject="mean",
            value=sum(score.value for score in members) / len(members),
            low=None,
            high=None,
            p_value=None,
            chance=_mean([score.chance for score in members]),
            ceiling=_mean([score.ceiling for score in members]),
            n=sum(score.n for score in members),
            note=f"mean of {len({score.subject for score in members})} people",
        )
        for members in groups.values()
        if len({score.subject for score in members}) > 1
    ]


def log_names(scores: Sequence[Score], stage: str) -> dict[str, float]:
    """Names and values for a logger: the mean over people, and each person where there are several."""
    people = {score.subject for score in scores}
    logged = {}
    for score in [*scores, *average(scores)]:
        name = "/".join(filter(None, (stage, score.gallery_name.replace(" ", "_"), score.name)))
        if score.subject == "mean" or len(people) == 1:
            logged[name] = score.value
        else:
            logged[f"{name}/sub-{score.subject}"] = score.value
    return logged


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
