"""The stimuli one by one: what was seen, what was retrieved for it, and what was generated."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat

import torch
from PIL import Image
from torch import Tensor

from callbacks import Part
from callbacks.metrics import Block, chance_top_k, rank_queries
from callbacks.metrics.similarity import Similarity, similarities, unit_rows
from callbacks.picture_record import Pictures
from contracts import NO_LABEL
from experiments.report.folds import Tested, blocks_of, gallery_of, gather_folds
from experiments.report.page import Candidate, Case, Note, Section, StimulusGallery
from experiments.report.runs import Run

RETRIEVED = 5
"""Candidates shown of each case."""
_PICTURE_BYTES = 30_000_000
"""Of all pictures together; in the page they take a third more, and a page above 60 MB is slow to open."""
_SMALLER_SIDES = (64, 48, 32)
_ROWS = 500
"""Recordings whose similarities to a gallery are in memory at a time."""


@dataclass
class _Found:
    """What is put together run by run.

    Attributes:
        cases: All cases.
        pictures: Encoded pictures by a hash of their content, so that people and runs share them.
        missing: What cannot be shown: by the reason, of what.
        candidates: Sizes of the galleries.
        similarity: How they were compared.
    """

    cases: list[Case] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)
    candidates: set[int] = field(default_factory=set)
    similarity: set[str] = field(default_factory=set)

    def keep(self, picture: bytes | None) -> str:
        """Keep a picture and return its key; empty where there is none."""
        if picture is None:
            return ""
        key = hashlib.sha256(picture).hexdigest()[:20]
        self.pictures[key] = picture
        return key

    def lacks(self, reason: str, what: str) -> None:
        """Note what cannot be shown."""
        self.missing.setdefault(reason, []).append(what)


def section(runs: Sequence[Run]) -> Section | None:
    """Show every test stimulus with what was made of its recordings; None where nothing was decoded or generated.

    Ranks are those of the scores: among the gallery ``test`` (of several data sets side by side, that of a person's
    own), folds of a cross-validation among the pictures of all folds, averaged over tied places.
    """
    found = _Found()
    together = gather_folds(runs)
    short = {id(tested): f"{tested.data} {tested.stage} {tested.name}" for tested in together}
    people = Counter((short[id(tested)], subject) for tested in together for subject in tested.subjects)
    for tested in together:
        # a person's own run and that of all people together may differ in nothing else
        twice = any(people[short[id(tested)], subject] > 1 for subject in tested.subjects)
        _add(tested, tested.title if twice else short[id(tested)], found)
    if not found.cases and not found.missing:
        return None
    notes = [Note(f"{reason}: {', '.join(dict.fromkeys(what))}.") for reason, what in found.missing.items()]
    if not found.cases:
        return Section("Stimuli", notes)
    pictures = found.pictures
    side = _side_within(pictures)
    if side is not None:
        pictures = {key: _reduced(picture, side) for key, picture in pictures.items()}
        notes.append(Note(f"There are {len(pictures):,} pictures; they are reduced to {side} pixels here."))
    return Section("Stimuli", [*notes, StimulusGallery(found.cases, pictures, _caption(found))])


def _caption(found: _Found) -> str:
    about = ["Each case is one recording (or average of recordings) of a test stimulus."]
    if found.candidates:
        sizes = sorted({min(found.candidates), max(found.candidates)})
        number = " to ".join(f"{size:,}" for size in sizes)
        chance = " to ".join(f"{chance_top_k(size, RETRIEVED):.3f}" for size in reversed(sizes))
        about += [
            f"Retrieved are the best {RETRIEVED} of {number} candidates, those whose embeddings are most similar "
            f"({' or '.join(sorted(found.similarity))}) to the one decoded from the recording; the right one is among "
            f"them by chance with probability {chance}. It is outlined and ticked; a dotted outline is another "
            "candidate of the same class.",
            "The bar is the share of the other candidates that are less similar than the right one; its mark is the "
            "chance level, one half.",
        ]
    if any(case.generated for case in found.cases):
        about.append("Generated pictures are samples made from the recording.")
    return " ".join(about)


def _add(tested: Tested, title: str, found: _Found) -> None:
    """Add the cases of a run, or of all folds of one."""
    if not tested.parts:
        found.lacks("No outputs were kept (outputs.safetensors); test again to see retrieved stimuli", title)
        return
    kept = [run.pictures for run in tested.runs if run.pictures is not None]
    known = _joined(kept)
    cases = [case for subject in tested.subjects for case in _cases(tested, subject, title, known, found)]
    found.cases += cases
    if cases and not kept:
        found.lacks("Numbers in place of pictures (no pictures.safetensors); test again to see them", title)
    elif cases and not known.seen:
        found.lacks("Names in place of pictures: the data set has none to show", title)


def _cases(tested: Tested, subject: str, title: str, known: Pictures, found: _Found) -> Iterator[Case]:
    """The cases of a person."""
    folds = [(run, part) for run, part in zip(tested.runs, tested.parts, strict=True) if subject in part.outputs]
    parts = [part for _, part in folds]
    rows = [(run, row) for run, part in folds for row in part.outputs[subject]["row"].tolist()]
    samples = [() if run.pictures is None else run.pictures.generated.get(subject, {}).get(r, ()) for run, r in rows]
    places = _places(tested, subject, parts[0], known, found)
    if places is None:
        if not any(samples):
            return
        places = [((), 0.0, 0)] * len(rows)
    numbers, labels = (torch.cat([part.outputs[subject][name] for part in parts]) for name in ("stimulus", "label"))
    for number, label, made, (retrieved, rank, among) in zip(
        numbers.tolist(), labels.tolist(), samples, places, strict=True
    ):
        yield Case(
            run=title,
            subject=subject,
            stimulus=_name(known, number),
            label=_class_name(parts[0], label),
            seen=found.keep(known.seen.get(number)),
            retrieved=retrieved,
            generated=[found.keep(picture) for picture in made],
            rank=rank,
            among=among,
        )


_Place = tuple[Sequence[Candidate], float, int]


def _places(tested: Tested, subject: str, part: Part, known: Pictures, found: _Found) -> list[_Place] | None:
    """The best candidates, the rank of the right one and their number, of each recording of a person.

    None where nothing was decoded, or nothing can be retrieved.
    """
    blocks = blocks_of(tested, subject)
    if not blocks:
        return None
    classes = part.context.galleries[gallery_of(part, subject)].kind != "image"
    similarity = _similarity(tested, subject)
    places: list[_Place] = []
    try:
        for block in blocks:
            ranks, _ = rank_queries(block, similarity=similarity)
            # an average over tied places, as in the scores: two-way is 1 - (rank - 1) / (N - 1)
            means = (1 + ranks.better.double() + ranks.tied.double() / 2).tolist()
            candidates = _candidates(block, part, known, found, classes=classes)
            found.candidates.add(len(candidates))
            places += [
                (
                    [replace(candidates[item], right=True) if right else candidates[item] for item, right in best],
                    mean,
                    n,
                )
                for best, mean, n in zip(_best(block, similarity), means, repeat(len(candidates)), strict=False)
            ]
    except ValueError as error:
        # such as a fold of leave-one-picture-out, reported alone
        found.lacks(f"Nothing is retrieved ({error})", f"{tested.title}, person {subject}")
        return None
    found.similarity.add(similarity)
    return places


def _candidates(block: Block, part: Part, known: Pictures, found: _Found, *, classes: bool) -> list[Candidate]:
    """The items of a gallery, none of them marked as the right one."""
    numbers, labels = block.gallery_stimulus.tolist(), block.gallery_label.tolist()
    if classes:
        return [Candidate("", right=False, name=_class_name(part, number)) for number in numbers]
    return [
        Candidate(
            found.keep(known.seen.get(number)),
            right=False,
            name=_name(known, number),
            label=_class_name(part, label),
        )
        for number, label in zip(numbers, labels, strict=True)
    ]


def _best(block: Block, similarity: Similarity) -> Iterator[list[tuple[int, bool]]]:
    """Of each query the most similar items, best first, and whether each is the right one."""
    assert block.queries is not None
    assert block.gallery is not None
    gallery = unit_rows(block.gallery, similarity, "gallery")
    for queries, stimulus in zip(block.queries.split(_ROWS), block.stimulus.split(_ROWS), strict=True):
        order = _descending(similarities(unit_rows(queries, similarity, "queries"), gallery))
        right = block.gallery_stimulus[order] == stimulus[:, None]
        for items, correct in zip(order.tolist(), right.tolist(), strict=True):
            yield list(zip(items, correct, strict=True))


def _descending(sims: Tensor) -> Tensor:
    # stable: tied items stand in the order of the gallery
    return sims.argsort(dim=1, descending=True, stable=True)[:, :RETRIEVED]


def _similarity(tested: Tested, subject: str) -> Similarity:
    """What the scores of the gallery were computed with; cosine where nothing scored it."""
    name = gallery_of(tested.parts[0], subject)
    used = {score.similarity for run in tested.runs for score in run.scores if score.gallery_name == name}
    return "pearson" if used == {"pearson"} else "cosine"


def _name(known: Pictures, number: int) -> str:
    return known.names.get(number, f"stimulus {number}")


def _class_name(part: Part, label: int) -> str:
    return "" if label == NO_LABEL else part.context.layout["classes"][label]


def _joined(pictures: Sequence[Pictures]) -> Pictures:
    """Names and seen pictures of all folds; stimuli have the same number in each."""
    names: dict[int, str] = {}
    seen: dict[int, bytes] = {}
    for each in pictures:
        names |= each.names
        seen |= each.seen
    return Pictures(names, seen)


def _side_within(pictures: Mapping[str, bytes]) -> int | None:
    """The side to which pictures are reduced so that all take few enough bytes; None where they do as they are."""
    total = sum(len(picture) for picture in pictures.values())
    if total <= _PICTURE_BYTES:
        return None
    # a few of them tell what a smaller side saves
    sample = list(pictures.values())[:: max(1, len(pictures) // 50)]
    whole = sum(len(picture) for picture in sample)
    for side in _SMALLER_SIDES:
        if total * sum(len(_reduced(picture, side)) for picture in sample) / whole <= _PICTURE_BYTES:
            return side
    return _SMALLER_SIDES[-1]


def _reduced(picture: bytes, side: int) -> bytes:
    """A picture of at most that side; smaller ones stay as they are."""
    image = Image.open(io.BytesIO(picture))
    if max(image.size) <= side:
        return picture
    image.thumbnail((side, side))
    stream = io.BytesIO()
    image.save(stream, format="webp", quality=75, method=2)
    return stream.getvalue()
