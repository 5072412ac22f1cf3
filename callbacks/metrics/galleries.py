"""Queries with their gallery, and the ranks of right items in chunks of queries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from callbacks.metrics.ranks import Ranks
from callbacks.metrics.similarity import Similarity, similarities, unit_rows
from contracts import NO_LABEL

Level = Literal["image", "class"]

# Elements of one (queries, gallery) matrix: 12 MB in float64, several of them live at a time.
_CHUNK_ELEMENTS = 1_500_000


@dataclass
class Block:
    """Queries with the gallery of their own embedding space, such as one fold of a cross-validation.

    Give ``queries`` and ``gallery``, or ``similarity`` in their place (log-likelihoods of an oracle).
    At class level ``gallery_stimulus`` must be numbers of stimuli; class centres are scored at image level
    with the labels in place of the stimuli, on both sides.

    Attributes:
        stimulus: ``(n,)`` int64, what each query saw; queries may share a stimulus.
        label: ``(n,)`` int64 class numbers, or ``NO_LABEL``.
        gallery_stimulus: ``(G,)`` int64.
        gallery_label: ``(G,)`` int64.
        queries: ``(n, d)`` embeddings.
        gallery: ``(G, d)`` embeddings.
        similarity: ``(n, G)`` similarities, higher is better.
    """

    stimulus: Int[Tensor, " n"]
    label: Int[Tensor, " n"]
    gallery_stimulus: Int[Tensor, " g"]
    gallery_label: Int[Tensor, " g"]
    queries: Float[Tensor, "n d"] | None = None
    gallery: Float[Tensor, "g d"] | None = None
    similarity: Float[Tensor, "n g"] | None = None

    def __post_init__(self) -> None:
        n, size = len(self.stimulus), len(self.gallery_stimulus)
        if (self.similarity is None) != (self.queries is not None and self.gallery is not None):
            raise ValueError("a block needs either queries and gallery, or similarity")
        rows = {"label": (self.label, n), "gallery_label": (self.gallery_label, size)}
        if self.queries is not None and self.gallery is not None:
            rows |= {"queries": (self.queries, n), "gallery": (self.gallery, size)}
            if self.queries.shape[1] != self.gallery.shape[1]:
                raise ValueError(f"queries are {self.queries.shape[1]} wide, the gallery {self.gallery.shape[1]}")
        for name, (value, length) in rows.items():
            if len(value) != length:
                raise ValueError(f"{name} has {len(value)} rows, its stimuli are {length}")
        if self.similarity is not None and tuple(self.similarity.shape) != (n, size):
            raise ValueError(f"similarity is {tuple(self.similarity.shape)}, not ({n}, {size})")


@dataclass
class Chunk:
    """Some rows of a block with the ranks of every candidate target.

    Attributes:
        which: ``(c,)`` position of each query's stimulus among the distinct stimuli.
        sims: ``(c, G)`` similarities, in the order of ``Targets.order``.
        value: ``(c, u)`` similarity of the right item if stimulus u were the target.
        among_others: ``(c, u)`` ranks for two-way and n-way.
        among_all: ``(c, u)`` ranks for top-k; the same at image level.
        best: ``(c, u)`` similarity of the item that counts for top-k.
    """

    which: Tensor
    sims: Tensor
    value: Tensor
    among_others: Ranks
    among_all: Ranks
    best: Tensor


class Targets:
    """The distinct stimuli of all queries and where their right items lie in the gallery.

    Args:
        blocks: The folds; their galleries must list the same items.
        level: ``image``: the right item has the query's stimulus. ``class``: top-k takes the best item of
            the class; two-way and n-way remove all items of the class but the right one, which is the best
            item of the exact stimulus, or of the class where the gallery lacks the stimulus.

    Raises:
        ValueError: No queries, unequal galleries, targets that the gallery lacks, ambiguous items.
    """

    def __init__(self, blocks: list[Block], level: Level) -> None:
        if level not in ("image", "class"):
            raise ValueError(f"level is 'image' or 'class', not {level!r}")
        if not blocks or not sum(len(block.stimulus) for block in blocks):
            raise ValueError("there are no queries to score")
        first = blocks[0]
        for i, block in enumerate(blocks[1:], start=1):
            if not torch.equal(block.gallery_stimulus, first.gallery_stimulus) or not torch.equal(
                block.gallery_label, first.gallery_label
            ):
                raise ValueError(f"block {i} lists other gallery items, or in another order, than block 0")
        self.level: Level = level
        self.size = len(first.gallery_stimulus)
        if self.size < 2:
            raise ValueError(f"a gallery of {self.size} cannot be scored: it needs at least 2 items")
        stimulus = torch.cat([block.stimulus for block in blocks]).cpu().numpy()
        label = torch.cat([block.label for block in blocks]).cpu().numpy()
        self.stimuli, first_row, self.which = np.unique(stimulus, return_index=True, return_inverse=True)
        self.label = label[first_row]
        items, labels = first.gallery_stimulus.cpu().numpy(), first.gallery_label.cpu().numpy()
        self.order = np.arange(self.size) if level == "image" else np.lexsort((items, labels))
        self.item_stimulus, self.item_label = items[self.order], labels[self.order]
        by_number = np.argsort(self.item_stimulus, kind="stable")
        ordered = self.item_stimulus[by_number]
        start = np.searchsorted(ordered, self.stimuli, side="left")
        self.copies = np.searchsorted(ordered, self.stimuli, side="right") - start
        self.position = np.where(self.copies > 0, by_number[np.minimum(start, self.size - 1)], -1)
        if level == "image":
            self._check_images(ordered)
        else:
            self._check_classes(label)
        # Bootstrap: position among the distinct stimuli of every gallery item, or -1 for other items.
        near = np.minimum(np.searchsorted(self.stimuli, self.item_stimulus), len(self.stimuli) - 1)
        self.item_which = np.where(self.stimuli[near] == self.item_stimulus, near, -1)

    def _check_images(self, ordered: np.ndarray) -> None:
        absent = self.stimuli[self.copies == 0]
        if len(absent):
            n = int((self.copies[self.which] == 0).sum())
            raise ValueError(f"{n} queries have no target in the gallery; stimuli {absent[:5].tolist()} ...")
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise ValueError(f"the gallery lists {len(twice)} stimuli more than once: {twice[:5].tolist()} ...")

    def _check_classes(self, label: np.ndarray) -> None:
        if (self.label == NO_LABEL).any():
            raise ValueError(f"{int((label == NO_LABEL).sum())} queries have no class")
        if (label != self.label[self.which]).any():
            raise ValueError("a stimulus has different labels in different queries")
        self.start = np.searchsorted(self.item_label, self.label, side="left")
        self.stop = np.searchsorted(self.item_label, self.label, side="right")
        absent = self.stimuli[self.start == self.stop]
        if len(absent):
            n = int((self.start == self.stop)[self.which].sum())
            raise ValueError(f"{n} queries have no target in the gallery; stimuli {absent[:5].tolist()} ...")
        if (self.stop - self.start == self.size).any():
            raise ValueError("all items of the gallery are of one class: there are no distractors")
        inside = self.position >= 0
        wrong = self.item_label[self.position[inside]] != self.label[inside]
        if wrong.any():
            raise ValueError(
                f"{int(wrong.sum())} stimuli have another label in the gallery than as queries, such as "
                f"{self.stimuli[inside][wrong][:5].tolist()}: are the gallery's numbers stimuli?"
            )

    @property
    def members(self) -> np.ndarray:
        """Number of right items of each distinct stimulus: 1, or the size of its class."""
        return np.ones(len(self.stimuli), int) if self.level == "image" else self.stop - self.start

    @property
    def sizes(self) -> Tensor | int:
        """Gallery size for two-way and n-way: N, or N less the class's other items, by stimulus."""
        return self.size if self.level == "image" else torch.from_numpy(self.size - self.members + 1)

    def chunks(self, blocks: list[Block], similarity: Similarity, rows: int | None) -> Iterator[Chunk]:
        """Yield all queries, in order, with the ranks of every candidate target."""
        widest = max(self.size, len(self.stimuli), 1000)
        step = max(1, _CHUNK_ELEMENTS // widest) if rows is None else rows
        done = 0
        for number, block in enumerate(blocks):
            order = torch.from_numpy(self.order)
            gallery = None
            if block.gallery is not None:
                gallery = block.gallery if self.level == "image" else block.gallery[order.to(block.gallery.device)]
                gallery = unit_rows(gallery, similarity, f"gallery of block {number}")
            for start in range(0, len(block.stimulus), step):
                part = slice(start, start + step)
                if gallery is not None and block.queries is not None:
                    sims = similarities(unit_rows(block.queries[part], similarity, "queries"), gallery)
                else:
                    assert block.similarity is not None
                    sims = block.similarity[part].detach().to("cpu", torch.float64)[:, order]
                    if bool(torch.isnan(sims).any()):
                        raise ValueError(f"similarity: {int(torch.isnan(sims).any(1).sum())} rows hold NaN")
                which = torch.from_numpy(self.which[done : done + len(sims)])
                done += len(sims)
                yield self._rank(sims, which)

    def _rank(self, sims: Tensor, which: Tensor) -> Chunk:
        ordered = torch.from_numpy(np.sort(sims.numpy(), axis=1))
        if self.level == "image":
            value = sims[:, torch.from_numpy(self.position)]
            ranks = Ranks(*_count(ordered, value), self.size)
            ranks = ranks._replace(tied=ranks.tied - 1)
            return Chunk(which, sims, value, ranks, ranks, value)
        # Class level: what the sorted row counts, less the items of the class itself.
        shape = (len(sims), len(self.stimuli))
        value, best = torch.empty(shape, dtype=torch.float64), torch.empty(shape, dtype=torch.float64)
        own_better, own_tied, right = (torch.empty(shape, dtype=torch.int64) for _ in range(3))
        for label in np.unique(self.label):
            here = np.flatnonzero(self.label == label)
            begin, end = int(self.start[here[0]]), int(self.stop[here[0]])
            own = sims[:, begin:end]
            top = own.amax(1)
            columns = torch.from_numpy(here)
            best[:, columns] = top[:, None]
            right[:, columns] = (own == top[:, None]).sum(1, keepdim=True)
            values = torch.empty(len(sims), len(here), dtype=torch.float64)
            for i, s in enumerate(here):
                p, copies = int(self.position[s]), int(self.copies[s])
                # Copies of a stimulus lie side by side; without any, the best of the class is right.
                values[:, i] = sims[:, p : p + copies].amax(1) if copies else top
            sorted_own = torch.from_numpy(np.sort(own.numpy(), axis=1))
            own_better[:, columns], own_tied[:, columns] = _count(sorted_own, values)
            value[:, columns] = values
        better, tied = _count(ordered, value)
        among_others = Ranks(better - own_better, tied - own_tied, self.sizes)
        best_better, best_tied = _count(ordered, best)
        among_all = Ranks(best_better, best_tied - right, self.size, right)
        return Chunk(which, sims, value, among_others, among_all, best)


def _count(ordered: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Number of items above each value and equal to it, from rows in ascending order."""
    value = value.contiguous()
    upper = torch.searchsorted(ordered, value, right=True)
    lower = torch.searchsorted(ordered, value, right=False)
    return ordered.shape[1] - upper, upper - lower


def rank_queries(
    block: Block, *, similarity: Similarity = "cosine", level: Level = "image", chunk: int | None = None
) -> tuple[Ranks, Ranks]:
    """Rank the right item of every query.

    Args:
        block: Queries and gallery.
        similarity: ``cosine`` or ``pearson``.
        level: ``image`` or ``class``, see :class:`Targets`.
        chunk: Queries at a time; None chooses it by memory.

    Returns:
        Ranks for top-k, and ranks for two-way and n-way; the same at image level.

    Raises:
        ValueError: See :class:`Targets` and :func:`unit_rows`.
    """
    targets = Targets([block], level)
    parts: tuple[list[Ranks], list[Ranks]] = ([], [])
    for piece in targets.chunks([block], similarity, chunk):
        for part, ranks in zip(parts, (piece.among_all, piece.among_others), strict=True):
            part.append(select(ranks, piece.which))
    return _join(parts[0]), _join(parts[1])


def select(ranks: Ranks, which: Tensor) -> Ranks:
    """Keep, of the ranks of all candidate targets ``(c, u)``, those of the real ones ``(c,)``."""

    def pick(x: Tensor | int) -> Tensor | int:
        if isinstance(x, int):
            return x
        return x[which] if x.ndim == 1 else x.gather(1, which[:, None])[:, 0]

    better, tied = (x.gather(1, which[:, None])[:, 0] for x in (ranks.better, ranks.tied))
    return Ranks(better, tied, pick(ranks.size), pick(ranks.right))


def _join(parts: list[Ranks]) -> Ranks:
    def cat(values: list[Tensor | int]) -> Tensor | int:
        return values[0] if isinstance(values[0], int) else torch.cat([torch.as_tensor(v) for v in values])

    return Ranks(
        torch.cat([p.better for p in parts]),
        torch.cat([p.tied for p in parts]),
        cat([p.size for p in parts]),
        cat([p.right for p in parts]),
    )
