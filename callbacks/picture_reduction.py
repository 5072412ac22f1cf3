"""From a batch of pictures to what scores keep of it, and back to pairs; shared by all scores of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from callbacks.metrics.picture_pairs import Pairs, compare, distinct, join
from callbacks.metrics.pictures import check_pictures, resize
from callbacks.metrics.similarity import Similarity
from callbacks.score import Part
from contracts import DataError, Output

SEEN = "image"
GENERATED = "generated"


def check_output(outputs: Output, generated: str = GENERATED) -> tuple[Tensor, Tensor]:
    """Return the seen pictures ``(B, 3, H, W)`` and the generated ones ``(B, S, 3, h, w)`` of an output.

    Raises:
        DataError: They are no pictures in bytes, or not of the same samples.
    """
    seen, made = outputs[SEEN], outputs[generated]
    check_pictures(seen, SEEN)
    check_pictures(made, generated, dimensions=5)
    if len(seen) != len(made):
        raise DataError(f"{SEEN} has {len(seen)} samples and {generated} {len(made)}; return both for the same batch")
    return seen, made


def by_sample(function: Callable[[Tensor], Tensor], pictures: UInt8[Tensor, "b s 3 h w"]) -> Tensor:
    """Apply a function of pictures ``(n, 3, H, W)`` to S pictures a sample; returns ``(B, S, ...)``."""
    found = function(pictures.flatten(0, 1))
    return rearrange(found, "(b s) ... -> b s ...", s=pictures.shape[1])


def embed_once(outputs: Output, name: str, embed: Callable[[Tensor], Tensor]) -> Tensor:
    """Embed the pictures of an entry, ``(B, 3, H, W)`` or ``(B, S, 3, h, w)``; a batch is embedded once for all scores.

    What is found is put into the output as ``embedding.<name>``: every callback of a run is given the same one, and a
    network may take longer than all else that is done with a batch.
    """
    key = f"embedding.{name}"
    if key not in outputs:
        pictures = outputs[name]
        outputs[key] = embed(pictures) if pictures.ndim == 4 else by_sample(embed, pictures)
    return outputs[key]


def by_pair(
    function: Callable[[Tensor, Tensor], Tensor], generated: Tensor, seen: Tensor, *, at_once: int = 16
) -> Tensor:
    """Apply a function of pairs to each generated picture and the seen one; returns ``(B, S)``."""
    samples = generated.shape[1]
    pictures, partners = generated.flatten(0, 1), seen.repeat_interleave(samples, dim=0)
    found = [function(a, b) for a, b in zip(pictures.split(at_once), partners.split(at_once), strict=True)]
    return rearrange(torch.cat(found), "(b s) -> b s", s=samples)


def kept_shape(seen: Tensor, *, size: int | None, pixels: int) -> tuple[int, int]:
    """Height and width at which pixels are kept: those of the scores, or ``pixels`` where these are larger."""
    scored = (int(seen.shape[-2]), int(seen.shape[-1])) if size is None else (size, size)
    return scored if max(scored) <= pixels else (pixels, pixels)


def kept_pixels(pictures: UInt8[Tensor, "n 3 h w"], shape: tuple[int, int]) -> UInt8[Tensor, "n 3 height width"]:
    """Resize pictures to what is kept of them, in bytes again."""
    if tuple(pictures.shape[-2:]) == shape:
        return pictures
    return (255 * resize(pictures, shape)).round().byte()


def pixels_key(*, size: int | None, pixels: int) -> str:
    """Beginning of the names of kept pixels; it tells all that they depend on."""
    return f"pixels_{pixels}_{'seen' if size is None else size}"


def joined(parts: Sequence[Part], subject: str, name: str) -> Tensor:
    """An entry of one person in all parts, one below the other."""
    return torch.cat([part.outputs[subject][name] for part in parts if subject in part.outputs])


def has(parts: Sequence[Part], subject: str, name: str) -> bool:
    """Whether all parts with this person have an entry."""
    return all(name in part.outputs[subject] for part in parts if subject in part.outputs)


def pairs_of(parts: Sequence[Part], subject: str, seen: str, generated: str) -> Pairs:
    """Compare kept entries of one person by Pearson correlation, each seen picture once, over all parts."""
    stimulus = joined(parts, subject, "stimulus")
    gallery, items = distinct(joined(parts, subject, seen), stimulus)
    return compare(joined(parts, subject, generated), stimulus, gallery, items)


def embedded_pairs(parts: Sequence[Part], subject: str, generated: str, *, cosine: bool = False) -> Pairs:
    """Compare embeddings of pictures; folds may embed in spaces of their own, so each brings its own seen pictures.

    Raises:
        DataError: Folds are joined and the gallery ``all`` of one lacks what another one showed.
    """
    mine = [part for part in parts if subject in part.outputs]
    similarity: Similarity = "cosine" if cosine else "pearson"
    if len(mine) == 1:
        [outputs] = [part.outputs[subject] for part in mine]
        gallery, items = distinct(outputs["embedding.seen"], outputs["stimulus"])
        return compare(outputs[generated], outputs["stimulus"], gallery, items, similarity=similarity)
    items = joined(parts, subject, "stimulus").unique()
    found = []
    for part in mine:
        everything = part.context.galleries.get("all")
        known = torch.empty(0, dtype=torch.int64) if everything is None else everything.stimulus
        absent = int((~torch.isin(items, known)).sum())
        if everything is None or absent:
            raise DataError(f"{absent} of {len(items)} seen pictures are not in gallery 'all' of a fold; test it again")
        order = known.argsort(stable=True)
        rows = order[torch.searchsorted(known[order], items)]
        outputs = part.outputs[subject]
        found.append(
            compare(outputs[generated], outputs["stimulus"], everything.embedding[rows], items, similarity=similarity)
        )
    return join(found)
