"""Identification: is the picture found by its decoded embedding?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.metrics import Block, Estimate, identification
from callbacks.score import Part, ScoreCallback, subjects_of, to_score
from contracts import ContractError, Gallery, Output, Score


class Identification(ScoreCallback):
    """Scores of one rank: two-way, top-k and n-way identification of the seen picture in a gallery.

    Formulas: ``callbacks.metrics.ranks``. The ceiling of a gallery of test pictures is the score of the oracle
    that knows the generating model, where there is one (Phantom).

    Args:
        galleries: Names of galleries (``test``, ``all``, ``class_centres``, ``text``).
        optional_galleries: Further ones, left out where a data set has none of that name.
        query: Output that is looked for: ``brain_embedding``, or ``image_embedding`` for a model of images.
        similarity: ``cosine`` or ``pearson``.
        level: ``image``: the very picture; ``class``: any picture of its class.
        top_k: Values of k.
        n_way: Pairs (n, k): probability that the right item is among the best k of n.
        permutations: Permutations of the stimuli for the p-value.
        bootstraps: Bootstrap samples of stimuli for the interval.
        seed: Seed of both.
    """

    def __init__(
        self,
        galleries: Sequence[str] = ("test",),
        optional_galleries: Sequence[str] = (),
        query: Literal["brain_embedding", "image_embedding"] = "brain_embedding",
        similarity: Literal["cosine", "pearson"] = "cosine",
        level: Literal["image", "class"] = "image",
        top_k: Sequence[int] = (1, 5),
        n_way: Sequence[tuple[int, int]] = (),
        permutations: int = 999,
        bootstraps: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.query: Literal["brain_embedding", "image_embedding"] = query
        self.needs = frozenset({query})
        self.galleries = tuple(galleries)
        self.optional_galleries = tuple(optional_galleries)
        self.similarity: Literal["cosine", "pearson"] = similarity
        self.level: Literal["image", "class"] = level
        self.top_k = tuple(top_k)
        self.n_way = tuple((n, k) for n, k in n_way)
        self.permutations = permutations
        self.bootstraps = bootstraps
        self.seed = seed

    def evaluate(self, parts: Sequence[Part], *, resample: bool = True) -> list[Score]:
        """Identify each person's pictures in each gallery.

        Raises:
            ContractError: No such gallery.
        """
        scores: list[Score] = []
        given = [name for name in self.optional_galleries if all(name in part.context.galleries for part in parts)]
        for name in (*self.galleries, *given):
            galleries = joint_galleries(parts, name)
            if len(galleries[0].stimulus) < 2:
                # one fold of leave-one-picture-out; joining the folds gives a gallery of all
                rank_zero_warn(
                    f"gallery {name!r} holds a single item, so there is nothing to identify in this run alone"
                )
                continue
            for subject in subjects_of(parts):
                blocks = [
                    block_of(part.outputs[subject], gallery, self.query)
                    for part, gallery in zip(parts, galleries, strict=True)
                    if subject in part.outputs
                ]
                estimates = self._identify(blocks, resample=resample)
                ceilings = self._ceilings(parts, name, subject, blocks)
                scores += [
                    to_score(
                        estimate,
                        parts,
                        subject=subject,
                        ceiling=ceilings.get(estimate.name),
                        reason=f"no decoding ceiling: {_reason(parts)}",
                        gallery=f"{name} ({len(galleries[0].stimulus)})",
                        similarity=self.similarity,
                    )
                    for estimate in estimates
                ]
        return scores

    def _identify(self, blocks: Sequence[Block], *, resample: bool) -> list[Estimate]:
        return identification(
            blocks,
            similarity=self.similarity,
            level=self.level,
            top_k=self.top_k,
            n_way=self.n_way,
            n_permutations=self.permutations if resample else 0,
            n_bootstraps=self.bootstraps if resample else 0,
            seed=self.seed,
        )

    def _ceilings(self, parts: Sequence[Part], name: str, subject: str, blocks: Sequence[Block]) -> dict[str, float]:
        """Scores of the oracle; it knows one division of the data and the gallery of its test pictures."""
        oracle = parts[0].context.oracle.get(subject)
        if len(parts) > 1 or name != "test" or "parts" in parts[0].context.layout or oracle is None:
            return {}
        block = blocks[0]
        known = Block(
            similarity=oracle,
            stimulus=block.stimulus,
            label=block.label,
            gallery_stimulus=block.gallery_stimulus,
            gallery_label=block.gallery_label,
        )
        return {estimate.name: estimate.value for estimate in self._identify([known], resample=False)}


def joint_galleries(parts: Sequence[Part], name: str) -> list[Gallery]:
    """Return one gallery a part, all of the same items: folds embed the pictures in spaces of their own.

    Raises:
        ContractError: No such gallery.
    """
    for part in parts:
        if name not in part.context.galleries:
            raise ContractError(f"no gallery {name!r}; this data set has {', '.join(part.context.galleries)}")
    galleries = [part.context.galleries[name] for part in parts]
    if len(parts) == 1 or name != "test" or galleries[0].kind != "image":
        return galleries
    shown = torch.cat([gallery.stimulus for gallery in galleries]).unique()
    joint = []
    for part in parts:
        everything = part.context.galleries["all"]
        mine = torch.isin(everything.stimulus, shown)
        joint.append(
            Gallery(
                everything.embedding[mine],
                everything.stimulus[mine],
                everything.label[mine],
                galleries[0].kind,
            )
        )
    return joint


def block_of(outputs: Output, gallery: Gallery, query: str) -> Block:
    """Return the queries of a person with their gallery.

    Args:
        outputs: Outputs of the person.
        gallery: Among what each query is looked for.
        query: Name of the queries in the outputs.
    """
    # centres and texts stand for classes
    target = outputs["label"] if gallery.kind in ("class_centre", "text") else outputs["stimulus"]
    return Block(
        queries=outputs[query],
        stimulus=target,
        label=outputs["label"],
        gallery=gallery.embedding,
        gallery_stimulus=gallery.stimulus,
        gallery_label=gallery.label,
    )


def _reason(parts: Sequence[Part]) -> str:
    if parts[0].context.oracle:
        return "the oracle is computed for the gallery of one division"
    return "the generating model of the recordings is not known"
