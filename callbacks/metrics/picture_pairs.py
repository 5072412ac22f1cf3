"""Pairs of generated and seen pictures: who is most alike, mean scores with interval, p-value and chance."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from callbacks.metrics.galleries import Block
from callbacks.metrics.identification import identification
from callbacks.metrics.pictures import LocalMoments
from callbacks.metrics.resampling import (
    Estimate,
    bootstrap_weights,
    centred_interval,
    few_stimuli,
    permutation_p,
    permutations,
    share_interval,
)
from callbacks.metrics.similarity import Similarity, similarities
from contracts import NO_LABEL, DataError

PAIRS_OF_SSIM = 15_000
"""Pairs of pictures beyond which the chance of SSIM is taken from some of them; about two seconds of one core."""

_ROWS = 256  # features of networks are wide, and doubles


@dataclass(frozen=True)
class Resampling:
    """How often to permute and to draw again.

    Attributes:
        permutations: Permutations of the stimuli for p-values; 0 gives none.
        bootstraps: Bootstrap samples of stimuli for intervals; 0 gives none.
        seed: Seed of both.
        confidence: Coverage of the intervals.
    """

    permutations: int = 999
    bootstraps: int = 1000
    seed: int = 0
    confidence: float = 0.95


@dataclass(frozen=True)
class Pairs:
    """Similarities of each generated picture with each seen one.

    Attributes:
        similarity: ``(n, S, U)`` float64, higher is more alike; S pictures were generated for one sample.
        stimulus: ``(n,)`` int64, what each sample saw.
        items: ``(U,)`` int64, distinct stimuli of the columns.
        flat: Number of pictures without any contrast (or features that are all equal); they count as 0.
    """

    similarity: Float[Tensor, "n s u"]
    stimulus: Int[Tensor, " n"]
    items: Int[Tensor, " u"]
    flat: int = 0

    @property
    def own(self) -> Int[Tensor, " n"]:
        """Column of what each sample saw; raises DataError where a stimulus has no column."""
        column = torch.searchsorted(self.items, self.stimulus).clamp(max=len(self.items) - 1)
        absent = int((self.items[column] != self.stimulus).sum())
        if absent:
            raise DataError(f"{absent} of {len(self.stimulus)} samples saw pictures that are not in the gallery")
        return column

    @property
    def values(self) -> Float[Tensor, "n s"]:
        """Similarity of each generated picture with the one that was seen."""
        return self.similarity.gather(2, self.own[:, None, None].expand(-1, self.similarity.shape[1], 1))[..., 0]


def distinct(features: Shaped[Tensor, "n ..."], stimulus: Int[Tensor, " n"]) -> tuple[Tensor, Tensor]:
    """Keep each stimulus once: the features of the first sample that shows it, and the sorted stimuli ``(U,)``."""
    items, first = np.unique(stimulus.numpy(), return_index=True)
    return features[torch.from_numpy(first)], torch.from_numpy(items)


def compare(
    generated: Shaped[Tensor, "n s ..."],
    stimulus: Int[Tensor, " n"],
    gallery: Shaped[Tensor, "u ..."],
    items: Int[Tensor, " u"],
    *,
    similarity: Similarity = "pearson",
) -> Pairs:
    """Compare each generated picture with each seen one.

    A picture without contrast has no correlation, but a decoder may well draw one: it counts as 0 with all.

    Args:
        generated: ``(n, S, ...)`` features or pixels of S pictures a sample.
        stimulus: ``(n,)`` what each sample saw.
        gallery: ``(U, ...)`` of the seen pictures, each once.
        items: ``(U,)`` their stimuli, ascending.
        similarity: ``pearson`` or ``cosine``.

    Returns:
        The similarities, in float64.

    Raises:
        DataError: Features that are not finite.
    """
    samples = generated.shape[1]
    columns, flat = _unit(gallery, similarity, "seen")
    products = []
    for some in generated.flatten(0, 1).split(_ROWS):
        rows, flat_rows = _unit(some, similarity, "generated")
        products.append(similarities(rows, columns))
        flat += flat_rows
    return Pairs(rearrange(torch.cat(products), "(n s) u -> n s u", s=samples), stimulus, items, flat)


def join(pairs: list[Pairs]) -> Pairs:
    """Samples of several folds, compared with the same items."""
    return Pairs(
        torch.cat([fold.similarity for fold in pairs]),
        torch.cat([fold.stimulus for fold in pairs]),
        pairs[0].items,
        sum(fold.flat for fold in pairs),
    )


def unit_or_zero(features: Tensor, similarity: Similarity, name: str) -> Float[Tensor, "n d"]:
    """Rows of unit length in float64 (and zero mean, for ``pearson``); rows without a direction become 0."""
    return _unit(features, similarity, name)[0]


def _unit(features: Tensor, similarity: Similarity, name: str) -> tuple[Tensor, int]:
    if similarity not in ("cosine", "pearson"):
        raise ValueError(f"similarity is 'cosine' or 'pearson', not {similarity!r}")
    x = features.detach().cpu().flatten(1).double()
    bad = int((~torch.isfinite(x).all(1)).sum())
    if bad:
        raise DataError(f"{bad} of {len(x)} {name} pictures have features that are not finite; check the network")
    flat = x.amax(1) == x.amin(1) if similarity == "pearson" else (x == 0).all(1)
    if similarity == "pearson":
        x -= x.mean(1, keepdim=True)
    x /= torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x.masked_fill(flat[:, None], 0.0), int(flat.sum())


def two_way_of_pairs(pairs: Pairs, resampling: Resampling, *, name: str = "two_way") -> Estimate:
    """Two-way identification of the seen picture among all seen ones by each generated picture.

    The score of ``callbacks.metrics.identification``: for each sample number s the share of other pictures that are
    less like the generated one than the seen one, a tie counting one half; then the mean over s. A stimulus is
    resampled and permuted with all of its samples.

    Args:
        pairs: Similarities; at least 2 items.
        resampling: Permutations and bootstrap.
        name: Name of the estimate.

    Returns:
        The estimate, ``n`` counting samples and not the pictures generated for them.

    Raises:
        ValueError: A single item.
    """
    n, samples = pairs.similarity.shape[:2]

    def score(similarity: Tensor, *, permutations: int, bootstraps: int) -> Estimate:
        label = torch.full((len(similarity),), NO_LABEL)
        block = Block(
            stimulus=pairs.stimulus.repeat_interleave(len(similarity) // n),
            label=label,
            gallery_stimulus=pairs.items,
            gallery_label=torch.full((len(pairs.items),), NO_LABEL),
            similarity=similarity,
        )
        [estimate] = identification(
            [block],
            top_k=(),
            n_way=(),
            n_permutations=permutations,
            n_bootstraps=bootstraps,
            confidence=resampling.confidence,
            seed=resampling.seed,
        )
        return estimate

    whole = score(
        pairs.similarity.flatten(0, 1), permutations=resampling.permutations, bootstraps=resampling.bootstraps
    )
    each = [score(pairs.similarity[:, s], permutations=0, bootstraps=0).value for s in range(samples)]
    note = "; ".join(filter(None, (whole.note, note_of_samples(each), note_of_flat(pairs.flat))))
    return replace(whole, name=name, n=n, note=note)


def mean_of_pairs(
    name: str,
    values: Float[Tensor, "n s"],
    stimulus: Int[Tensor, " n"],
    resampling: Resampling,
    *,
    matrix: Pairs | None = None,
    chance: float | None = None,
    lower_is_better: bool = False,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> Estimate:
    """Mean of a score of pairs over samples, with its interval, p-value and chance.

    Interval: bootstrap over stimuli, centred percentiles (Wilson's with the effective size, for scores in 0..1).
    p-value: stimuli are permuted among the samples. Chance: mean over all pairs that do not match.

    Args:
        name: Name of the estimate.
        values: ``(n, S)`` scores of the S pictures of each sample.
        stimulus: ``(n,)`` what each sample saw.
        resampling: Permutations and bootstrap.
        matrix: The same score, or a close relative, for all pairs; None gives no p-value and no chance.
        chance: Chance, where known otherwise.
        lower_is_better: Whether the score is a distance; ``matrix`` then holds distances.
        bounds: Smallest and largest value.

    Returns:
        The estimate; NaN values have been refused.

    Raises:
        DataError: Values that are not numbers.
    """
    if bool(torch.isnan(values).any()):
        raise DataError(f"{name}: {int(torch.isnan(values).any(1).sum())} of {len(values)} samples have no score (NaN)")
    values = values.double()
    stimuli, which = np.unique(stimulus.numpy(), return_inverse=True)
    u, rows = len(stimuli), torch.from_numpy(which)
    value = float(values.mean())
    rng_permute, rng_boot = (np.random.default_rng(s) for s in np.random.SeedSequence(resampling.seed).spawn(2))
    low = high = p_value = None
    if resampling.bootstraps and u > 1:
        weights = bootstrap_weights(u, resampling.bootstraps, rng_boot)[:, rows].double()
        drawn = weights @ values.mean(1) / weights.sum(1)
        if bounds == (0.0, 1.0):
            low, high = share_interval(value, drawn, u, resampling.confidence)
        else:
            low, high = centred_interval(value, drawn, resampling.confidence)
            low, high = max(low, bounds[0]), min(high, bounds[1])
    if matrix is not None and len(matrix.items) > 1:
        mean = matrix.similarity.mean(1)
        own = mean.gather(1, matrix.own[:, None])[:, 0]
        if chance is None:
            chance = float((mean.sum() - own.sum()) / (mean.numel() - len(mean)))
        if resampling.permutations and u > 1:
            seen = matrix.own[torch.from_numpy(np.unique(which, return_index=True)[1])]
            shuffles = permutations(u, resampling.permutations, rng_permute).long()
            permuted = mean.gather(1, seen[shuffles[:, rows]].T).mean(0)
            sign = -1 if lower_is_better else 1
            p_value = permutation_p(sign * float(own.mean()), sign * permuted)
    notes = [few_stimuli(u), note_of_samples(values.mean(0).tolist())]
    notes.append(note_of_flat(matrix.flat if matrix is not None else 0))
    return Estimate(name, value, low, high, p_value, chance, len(values), u, "; ".join(filter(None, notes)))


def ssim_of_pairs(
    generated: Float[Tensor, "n s 3 h w"],
    stimulus: Int[Tensor, " n"],
    gallery: Float[Tensor, "u 3 h w"],
    items: Int[Tensor, " u"],
    *,
    limit: int = PAIRS_OF_SSIM,
) -> tuple[Pairs | None, float | None]:
    """SSIM of all pairs of generated and seen pictures, or its chance from some of those that do not match.

    Args:
        generated: ``(n, S, 3, h, w)`` in 0..1.
        stimulus: ``(n,)`` what each sample saw.
        gallery: ``(U, 3, h, w)`` seen pictures, each once.
        items: ``(U,)`` their stimuli, ascending.
        limit: Number of pairs up to which all are computed. Beyond it picture i is compared with the 1, 2 ... next
            ones after its own, as many as the limit allows but at least one, by one sample number each.

    Returns:
        All pairs, or None; and the chance where they are None. Both are None for a single stimulus.
    """
    n, samples = generated.shape[:2]
    if len(items) < 2:
        return None, None
    one, other = LocalMoments(generated.flatten(0, 1)), LocalMoments(gallery)
    if n * samples * len(items) <= limit:
        mine = torch.arange(n * samples).repeat_interleave(len(items))
        theirs = torch.arange(len(items)).repeat(n * samples)
        found = _ssim_in_chunks(one, other, mine, theirs)
        return Pairs(rearrange(found, "(n s u) -> n s u", n=n, s=samples), stimulus, items), None
    own = torch.searchsorted(items, stimulus)
    shifts = torch.arange(1, min(max(limit // n, 1), len(items) - 1) + 1)
    row = torch.arange(n)
    mine = (row * samples + row % samples).repeat(len(shifts))
    theirs = ((own[None] + shifts[:, None]) % len(items)).flatten()
    return None, float(_ssim_in_chunks(one, other, mine, theirs).mean())


def _ssim_in_chunks(one: LocalMoments, other: LocalMoments, mine: Tensor, theirs: Tensor) -> Tensor:
    chunks = zip(mine.split(500), theirs.split(500), strict=True)
    return torch.cat([one.ssim(other, m, t) for m, t in chunks])


def note_of_samples(each: list[float]) -> str:
    """Say how far the scores of the sample numbers 1..S lie apart; nothing for a single one."""
    if len(each) < 2:
        return ""
    return f"mean of {len(each)} samples (min {min(each):.3f} .. max {max(each):.3f})"


def note_of_flat(flat: int) -> str:
    """Say how many pictures have no contrast, or nothing."""
    return f"{flat} pictures without contrast count as 0" if flat else ""
