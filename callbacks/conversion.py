"""CrossModal: decoding, encoding and conversion of every modality of an experiment, in two tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations as ordered_pairs
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from callbacks.metrics import Block, Estimate, identification
from callbacks.metrics.conversion import Retrieved, nearest, published_two_way, relative_two_way
from callbacks.metrics.pearson import encoding
from callbacks.score import Part, ScoreCallback, to_score
from contracts import NO_LABEL, ContractError, Output, Score, parts_of

PICTURES = "image"
"""Name of the pictures as a source or target."""


@dataclass(frozen=True)
class _Side:
    """All recordings of one data set, people one after another.

    Attributes:
        outputs: Entries of the output, ``(n, ...)`` each, but signals, which people have of different shapes.
        people: The outputs of each person.
        gallery: ``(G, d)`` embeddings of the pictures they saw, each once.
        stimulus: ``(G,)`` numbers of these.
        label: ``(G,)`` classes of these.
        oracle: ``(n, G)`` log-likelihoods under the generating model, where known.
    """

    outputs: Output
    people: Mapping[str, Output]
    gallery: Tensor
    stimulus: Tensor
    label: Tensor
    oracle: Tensor | None

    @property
    def seen(self) -> Tensor:
        """``(n, d)`` embedding of the picture that each recording is of."""
        return self.outputs["image_embedding"]

    def retrieved(self, pictures: Tensor, stimulus: Tensor) -> Retrieved:
        """Pictures retrieved for queries about some of the pictures of this data set."""
        return Retrieved(pictures, stimulus, self.gallery, self.stimulus)

    def block(self, queries: Tensor) -> Block:
        """Queries of all recordings, with the pictures seen as gallery."""
        return self._block(queries=queries, gallery=self.gallery)

    def known(self) -> Block | None:
        """What the generating model tells, where known."""
        return None if self.oracle is None else self._block(similarity=self.oracle)

    def _block(self, **similarity: Tensor) -> Block:
        return Block(
            stimulus=self.outputs["stimulus"],
            label=self.outputs["label"],
            gallery_stimulus=self.stimulus,
            gallery_label=self.label,
            **similarity,
        )


class CrossModal(ScoreCallback):
    """Everything that one space of several modalities is for, each modality with all of its people together.

    Every task is a retrieval of the nearest item of the target, by cosine, among those of the test split:

    * decoding, ``eeg to image``: among the pictures that its people saw, each once. ``top_k``: is it the right picture;
      ``class_top_k``: one of its class;
    * encoding, ``image to eeg``: among all recordings of the modality, once for each picture;
    * conversion, ``eeg to meg``: among all recordings of the other modality, whatever pictures these are of.

    What was retrieved stands for its picture: ``two_way`` is the exact two-way score of that picture's embedding among
    the embeddings of the source's test pictures, ``published_two_way`` the one-permutation version of the published
    code. ``rank_two_way`` of decoding takes the whole order of the gallery into account, not only its first. For
    conversions relative scores follow (``callbacks.metrics.conversion.relative_two_way``).

    ``by regression`` are the same tasks with a query that was predicted for the target, and ``pearson_mean`` the
    correlation of predicted and measured signals of the target's people, over the pictures that source and target
    share, or, where they share fewer than ``shared``, over classes (``class_pearson_mean``).

    Intervals resample pictures; recordings of a picture by all people stay together. The ceiling of decoding is
    the generating model's own, where known.

    Args:
        top_k: Values of k.
        permutations: Permutations of the pictures for p-values.
        bootstraps: Bootstrap samples of pictures for intervals.
        shared: Least number of pictures, or classes, over which signals are correlated.
        seed: Seed of all draws.
    """

    table = "decoding and encoding"
    needs = frozenset({"brain_embedding", "image_embedding"})
    optional = frozenset({"decoded_embedding", "encoded_embedding", "signal"})
    test_is_enough = True

    def __init__(
        self,
        top_k: Sequence[int] = (1, 5),
        permutations: int = 999,
        bootstraps: int = 1000,
        shared: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.top_k = tuple(top_k)
        self.permutations = permutations
        self.bootstraps = bootstraps
        self.shared = shared
        self.seed = seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave validation unscored: regressions are fitted on it, and a part may have too few pictures in it."""
        super().setup(trainer, pl_module, stage)
        self._validates = False

    def reduce(self, outputs: Output) -> Output:
        """Keep the embeddings, of regressions, too, and the signals."""
        converted = {name: value for name, value in outputs.items() if name.endswith(".brain_embedding")}
        return super().reduce(outputs) | converted

    def evaluate(self, parts: Sequence[Part], *, resample: bool = True) -> list[Score]:
        """Score every task of every modality.

        Raises:
            ContractError: Several folds, whose spaces differ.
        """
        if len(parts) > 1:
            raise ContractError("CrossModal scores one division of the data; folds have spaces of their own")
        sides = _sides(parts[0])
        regressed = all("decoded_embedding" in side.outputs for side in sides.values())
        scores: list[Score] = []
        for name, side in sides.items():
            for how, key in (("", "brain_embedding"), *([(" by regression", "decoded_embedding")] * regressed)):
                found = self._decoding(side, side.outputs[key], resample=resample)
                scores += self._named(found, parts, name, f"{name} to {PICTURES}{how} ({len(side.gallery)})")
        for name, side in sides.items():
            first = _first_of_each(side.outputs["stimulus"])
            about = side.outputs["stimulus"][first]
            for how, key in (("", "image_embedding"), *([(" by regression", "encoded_embedding")] * regressed)):
                pictures = side.seen[nearest(side.outputs[key][first], side.outputs["brain_embedding"])]
                found = self._two_way(side.retrieved(pictures, about), resample=resample)
                scores += self._named(found, parts, name, f"{PICTURES} to {name}{how} ({len(side.seen)})")
            if regressed:
                signals = self._signals(parts[0], None, side, resample=resample)
                scores += self._named(signals, parts, name, f"{PICTURES} to {name} by regression")
        for source, target in ordered_pairs(sides, 2):
            converted: list[Score] = []
            for how, key in (("", "brain_embedding"), *([(" by regression", f"{target}.brain_embedding")] * regressed)):
                found = self._conversion(sides[source], sides[target], key, regressed=bool(how), resample=resample)
                converted += self._named(found, parts, source, f"{source} to {target}{how} ({len(sides[target].seen)})")
            if regressed:
                signals = self._signals(parts[0], sides[source], sides[target], resample=resample)
                converted += self._named(signals, parts, source, f"{source} to {target} by regression")
            scores += [replace(score, table="conversion") for score in converted]
        return scores

    # ---- tasks -------------------------------------------------------------------------------------

    def _decoding(self, side: _Side, queries: Tensor, *, resample: bool) -> Iterator[Estimate]:
        """Identification of the picture and of its class, and the picture that was retrieved."""
        block, known = side.block(queries), side.known()
        yield from self._two_way(
            side.retrieved(side.gallery[nearest(queries, side.gallery)], side.outputs["stimulus"]), resample=resample
        )
        # with one picture a class these repeat the scores of pictures
        classes = len(side.label.unique()) > 1 and not bool((side.label == NO_LABEL).any())
        levels: list[Any] = ["image", *(["class"] if classes else [])]
        for level in levels:
            ceilings = {} if known is None else {e.name: e.value for e in self._identify(known, level, resample=False)}
            for estimate in self._identify(block, level, resample=resample):
                estimate.ceiling = ceilings.get(estimate.name)
                if estimate.name == "two_way":
                    estimate.name = "rank_two_way"
                yield estimate

    def _identify(self, block: Block, level: Any, *, resample: bool) -> list[Estimate]:
        return identification([block], level=level, top_k=self.top_k, n_way=(), **self._draws(resample=resample))

    def _two_way(self, retrieved: Retrieved, *, resample: bool) -> Iterator[Estimate]:
        block = Block(
            stimulus=retrieved.stimulus,
            label=torch.full_like(retrieved.stimulus, NO_LABEL),
            gallery_stimulus=retrieved.gallery_stimulus,
            gallery_label=torch.full_like(retrieved.gallery_stimulus, NO_LABEL),
            queries=retrieved.embedding,
            gallery=retrieved.gallery,
        )
        yield from identification([block], top_k=(), n_way=(), **self._draws(resample=resample))
        yield published_two_way(
            retrieved,
            permutations=self.permutations if resample else 0,
            bootstraps=self.bootstraps if resample else 0,
            seed=self.seed,
        )

    def _conversion(
        self, source: _Side, target: _Side, key: str, *, regressed: bool, resample: bool
    ) -> Iterator[Estimate]:
        converted = source.retrieved(
            target.seen[nearest(source.outputs[key], target.outputs["brain_embedding"])], source.outputs["stimulus"]
        )
        queries = target.outputs["decoded_embedding" if regressed else "brain_embedding"]
        decoded = target.retrieved(target.gallery[nearest(queries, target.gallery)], target.outputs["stimulus"])
        yield from self._two_way(converted, resample=resample)
        yield from relative_two_way(converted, decoded, bootstraps=self.bootstraps if resample else 0, seed=self.seed)

    def _signals(self, part: Part, source: _Side | None, target: _Side, *, resample: bool) -> Iterator[Estimate]:
        """Correlation of predicted and measured signals, of all people of the target; from pictures without source."""
        points = {True: "image_embedding", False: "decoded_embedding"}[source is None]
        start = (target if source is None else source).outputs
        encode = [part.context.encode.get(person) for person in target.people]
        people = list(target.people.values())
        if None in encode or any("signal" not in person for person in people):
            return
        for prefix, key in (("", "stimulus"), ("class_", "label")):
            common = set(start[key].tolist()) - {NO_LABEL if key == "label" else None}
            for person in people:
                common &= set(person[key].tolist())
            if len(common) < max(self.shared, 2):
                continue
            about = torch.tensor(sorted(common))
            mean = _mean_of_each(start[points], start[key], about)
            predicted = [predict(mean).flatten(1).cpu() for predict in encode if predict is not None]
            measured = [_mean_of_each(person["signal"].flatten(1), person[key], about) for person in people]
            for estimate in encoding(
                torch.cat(predicted, dim=1), torch.cat(measured, dim=1), about, **self._draws(resample=resample)
            ):
                if estimate.name == "pearson_mean":
                    estimate.name = f"{prefix}pearson_mean"
                    yield estimate
            return

    def _draws(self, *, resample: bool) -> dict[str, Any]:
        return {
            "n_permutations": self.permutations if resample else 0,
            "n_bootstraps": self.bootstraps if resample else 0,
            "seed": self.seed,
        }

    def _named(
        self, estimates: Iterator[Estimate], parts: Sequence[Part], subject: str, gallery: str
    ) -> Iterator[Score]:
        reason = parts[0].context.ceiling_reason if not parts[0].context.oracle else ""
        for estimate in estimates:
            yield to_score(
                estimate,
                parts,
                subject=subject,
                ceiling=estimate.ceiling,
                reason=reason,
                gallery=gallery,
                similarity="" if "pearson" in estimate.name else "cosine",
            )


def _sides(part: Part) -> dict[str, _Side]:
    """The recordings of each data set that has any in this split."""
    layouts = parts_of(part.context.layout)
    several = "parts" in part.context.layout
    sides = {}
    for name, layout in layouts.items():
        prefix = f"{name}-" if several else ""
        names = [f"{prefix}{person}" for person in layout["subjects"] if f"{prefix}{person}" in part.outputs]
        if not names:
            continue
        people = {person: part.outputs[person] for person in names}
        entries = [entry for entry in people[names[0]] if entry != "signal"]
        gallery = part.context.galleries[f"{name}.test" if several else "test"]
        oracles = [part.context.oracle.get(person) for person in names]
        sides[name] = _Side(
            outputs={entry: torch.cat([person[entry] for person in people.values()]) for entry in entries},
            people=people,
            gallery=gallery.embedding,
            stimulus=gallery.stimulus,
            label=gallery.label,
            oracle=torch.cat([o for o in oracles if o is not None]) if all(o is not None for o in oracles) else None,
        )
    return sides


def _first_of_each(keys: Tensor) -> Tensor:
    """Position of the first row of each key, in the order of the keys."""
    order = keys.argsort(stable=True)
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = keys[order][1:] != keys[order][:-1]
    return order[first]


def _mean_of_each(values: Tensor, keys: Tensor, about: Tensor) -> Tensor:
    """Mean of the rows of each of some keys, ``(len(about), ...)``."""
    rows = torch.isin(keys, about)
    which = torch.searchsorted(about, keys[rows])
    total = torch.zeros(len(about), values.shape[1], dtype=torch.float64).index_add_(0, which, values[rows].double())
    return (total / torch.bincount(which, minlength=len(about))[:, None]).float()
