"""Discrimination: are two classes told apart by decoded embeddings?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from callbacks.metrics import Estimate
from callbacks.metrics.discrimination import discrimination
from callbacks.metrics.similarity import similarities, unit_rows
from callbacks.score import Part, ScoreCallback, subjects_of, to_score
from contracts import ContractError, Gallery, Output, Score

Array = NDArray[Any]
EVERYONE = "all"
"""Subject of the score of all tested people together."""


class Discrimination(ScoreCallback):
    """Area under the ROC curve of one class against another, or against the rest.

    Formulas: ``callbacks.metrics.discrimination``. The evidence of a sample is its embedding's similarity to the centre
    of the first class less that to the centre of the second, or to the most similar of all other centres. Only samples
    of these classes are scored. Each person has a score, ``auc_first_vs_matching``; where several people are tested,
    the samples of all are also pooled, ``auc_first_vs_matching_pooled``: one threshold for everyone. Folds are joined,
    each with its own centres.

    Classes are permuted for the p-value among stimuli, whose trials stay together; where a class is a single stimulus,
    among samples. Intervals are about other stimuli (or samples) of the same person, the pooled one about other people.

    Args:
        pairs: Names of two classes, or of one, which is held against all others.
        query: Output that is looked at: ``brain_embedding``, or ``image_embedding`` for a model of images.
        gallery: Where the classes lie: ``class_centres`` (mean embedding of training stimuli) or ``text``.
        similarity: ``cosine`` or ``pearson``.
        permutations: Permutations of the classes for the p-value.
        seed: Seed of the permutations.
    """

    def __init__(
        self,
        pairs: Sequence[Sequence[str]],
        query: Literal["brain_embedding", "image_embedding"] = "brain_embedding",
        gallery: Literal["class_centres", "text"] = "class_centres",
        similarity: Literal["cosine", "pearson"] = "cosine",
        permutations: int = 999,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.needs = frozenset({query})
        self.query = query
        self.pairs = [tuple(pair) for pair in pairs]
        self.gallery = gallery
        self.similarity: Literal["cosine", "pearson"] = similarity
        self.permutations = permutations
        self.seed = seed
        if not self.pairs or any(not 1 <= len(pair) <= 2 or len(set(pair)) < len(pair) for pair in self.pairs):
            raise ContractError(f"Discrimination needs pairs of two different classes, or single ones, found {pairs}")

    def evaluate(self, parts: Sequence[Part], *, resample: bool = True) -> list[Score]:
        """Tell the classes of each pair apart, for each person and for all together.

        Raises:
            ContractError: No such class or gallery.
        """
        scores: list[Score] = []
        for pair in self.pairs:
            pieces: dict[str, list[_Evidence]] = {}
            for part in parts:
                for subject, piece in self._of_part(part, pair).items():
                    pieces.setdefault(subject, []).append(piece)
            people = {name: _Evidence.joined(pieces[name]) for name in subjects_of(parts) if name in pieces}
            people = {name: evidence for name, evidence in people.items() if evidence.of_both(name, pair)}
            name = f"auc_{pair[0]}_vs_{pair[1] if len(pair) == 2 else 'rest'}"
            asked = {subject: (name, [evidence]) for subject, evidence in people.items()}
            if len(people) > 1:
                asked[EVERYONE] = (f"{name}_pooled", list(people.values()))
            size = len(parts[0].context.galleries[self.gallery].label)
            scores += [
                to_score(
                    self._estimate(named, evidence, resample=resample),
                    parts,
                    subject=subject,
                    ceiling=None,
                    reason="",
                    gallery=f"{self.gallery} ({size})",
                    similarity=self.similarity,
                )
                for subject, (named, evidence) in asked.items()
            ]
        return scores

    def _of_part(self, part: Part, pair: Sequence[str]) -> dict[str, _Evidence]:
        """Evidence of each person of one part."""
        classes = part.context.layout["classes"]
        unknown = [name for name in pair if name not in classes]
        if unknown:
            raise ContractError(
                f"Discrimination: no class {', '.join(unknown)}; this data set has {', '.join(classes) or 'none'}"
            )
        if self.gallery not in part.context.galleries:
            raise ContractError(
                f"Discrimination: no gallery {self.gallery!r}; this data set has {', '.join(part.context.galleries)}"
            )
        gallery = part.context.galleries[self.gallery]
        numbers = [classes.index(name) for name in pair]
        if not {*numbers} <= {*gallery.label.tolist()} or len(gallery.label) < 2:
            rank_zero_warn(f"this run tests no sample of {' or of '.join(pair)}: there is nothing to tell apart in it")
            return {}
        return {subject: self._of_person(outputs, gallery, numbers) for subject, outputs in part.outputs.items()}

    def _of_person(self, outputs: Output, gallery: Gallery, numbers: Sequence[int]) -> _Evidence:
        label = outputs["label"].cpu()
        used = (
            torch.isin(label, torch.tensor(numbers)) if len(numbers) == 2 else torch.ones(len(label), dtype=torch.bool)
        )
        queries = unit_rows(outputs[self.query][used], self.similarity, self.query)
        similar = similarities(queries, unit_rows(gallery.embedding, self.similarity, self.gallery))
        first = gallery.label.cpu() == numbers[0]
        second = gallery.label.cpu() == numbers[1] if len(numbers) == 2 else ~first
        evidence = similar[:, first].amax(1) - similar[:, second].amax(1)
        return _Evidence(evidence.numpy(), (label == numbers[0])[used].numpy(), outputs["stimulus"].cpu()[used].numpy())

    def _estimate(self, name: str, people: Sequence[_Evidence], *, resample: bool) -> Estimate:
        grouped = all(evidence.has_stimuli_to_permute for evidence in people)
        evidence = _Evidence.joined(people)
        sizes = [len(one.value) for one in people]
        return discrimination(
            name,
            evidence.value,
            evidence.positive,
            unit=evidence.stimulus if grouped else np.arange(len(evidence.value)),
            person=np.repeat(np.arange(len(people)), sizes),
            n_permutations=self.permutations,
            resample=resample,
            seed=self.seed,
        )


@dataclass(frozen=True)
class _Evidence:
    """How much more a sample is like the first class than like the second, whether it is of it, and its stimulus."""

    value: Array
    positive: Array
    stimulus: Array

    @classmethod
    def joined(cls, pieces: Sequence[_Evidence]) -> _Evidence:
        return cls(*(np.concatenate([getattr(piece, field.name) for piece in pieces]) for field in fields(cls)))

    def of_both(self, subject: str, pair: Sequence[str]) -> bool:
        """Whether there are samples of both classes; says so where not."""
        both = bool(self.positive.any() and not self.positive.all())
        if not both:
            rank_zero_warn(f"sub-{subject} has no samples of both sides of {' and '.join(pair)}, so it gets no score")
        return both

    @property
    def has_stimuli_to_permute(self) -> bool:
        """Whether each class is of several stimuli."""
        return all(len(np.unique(self.stimulus[side])) > 1 for side in (self.positive, ~self.positive))
