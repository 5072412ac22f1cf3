"""PictureScores: how alike are the pictures decoded from recordings to those that were seen?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from callbacks.metrics.picture_pairs import (
    Pairs,
    Resampling,
    compare,
    distinct,
    mean_of_pairs,
    ssim_of_pairs,
    two_way_of_pairs,
)
from callbacks.metrics.pictures import class_scores, perceptual_distance, pixel_correlation, ssim
from callbacks.metrics.ranks import chance_n_way
from callbacks.metrics.resampling import Estimate
from callbacks.perceptual import build_perceptual
from callbacks.picture_networks import PictureFeatures, PictureNetwork
from callbacks.picture_reduction import (
    GENERATED,
    SEEN,
    by_pair,
    by_sample,
    check_output,
    embed_once,
    embedded_pairs,
    has,
    joined,
    kept_pixels,
    kept_shape,
    pairs_of,
    pixels_key,
)
from callbacks.score import Part, ScoreCallback, subjects_of, to_score
from contracts import ContractError, Output, Score

PictureScore = Literal["pixcorr", "ssim", "two_way", "embedding", "lpips"]
OFFLINE: tuple[PictureScore, ...] = ("pixcorr", "ssim", "two_way", "embedding")


class PictureScores(ScoreCallback):
    """Scores of S generated pictures a sample against the seen one; formulas in ``callbacks.metrics.pictures``.

    =============== ================ ==================================================================================
    Score           Gallery          Meaning
    =============== ================ ==================================================================================
    ``pixcorr``                      Pearson correlation of pixels
    ``ssim``                         structural similarity in grey
    ``lpips``                        perceptual distance; without chance, which whole pictures would be needed for
    ``two_way``     pixels (N)       identification among the N seen pictures, Pearson correlation of pixels
    ``two_way``     embedding (N)    the same in the data set's own image space: with CLIP, "CLIP correlation" of LEA
    ``similarity``  embedding (N)    mean cosine there: "CLIP similarity" of LEA
    ``two_way``     <network> (N)    the same in the features of a network
    ``similarity``  <network> (N)
    ``distance``    <network> (N)    mean of 1 - Pearson correlation
    ``50_way_top_1``  <network>      a classifier finds the seen class in the generated picture, exact (MinD-Vis and
                                     LEA estimate it by random draws)
    =============== ================ ==================================================================================

    A score is computed for each sample number s over all stimuli and averaged over s, as in LEA; its note tells the
    smallest and the largest. Intervals resample stimuli, p-values permute them, and chance is the mean over all pairs
    that do not match (0.5 for ``two_way``; k / n for ``n_way``, whose note tells what those pairs reach). For
    ``lpips`` and ``distance`` less is better.

    With a ``size`` the scores of pixels carry it in their names: ``pixcorr_425``, ``ssim_425``, gallery ``pixels_425``.

    Whole pictures are not gathered. What is kept for a sample are its scores and, for each of its 1 + S pictures,
    pixels up to ``pixels`` a side (12 kB for 64) and the features of each network in float32 (AlexNet ``features.4``:
    560 kB). ``two_way`` in pixels, and chance and p-value of ``pixcorr`` and ``ssim``, come from the kept pixels.

    Args:
        scores: Which of ``pixcorr``, ``ssim``, ``two_way`` (pixels), ``embedding`` (both scores of it; left out where
            the data set embeds no pictures) and ``lpips``.
        networks: Networks and what is asked of each.
        size: Side in pixels at which pixels are scored (published: 425); None takes the size of the seen picture.
        pixels: Largest side at which pixels are kept.
        lpips_network: Backbone of LPIPS: ``alex``, ``vgg`` or ``squeeze``.
        lpips_weights: ``pretrained`` (downloaded), ``random`` (seed 0, a control) or torchvision's file of the
            backbone; the weights on top of it come with torchmetrics.
        batch_size: Pictures per forward pass of a network.
        permutations: Permutations of the stimuli for the p-value.
        bootstraps: Bootstrap samples of stimuli for the interval.
        seed: Seed of both.

    Raises:
        ContractError: Unknown scores, or two networks of one name.
    """

    needs = frozenset({SEEN, GENERATED})
    table = "pictures"
    test_is_enough = True

    def __init__(
        self,
        scores: Sequence[PictureScore] = OFFLINE,
        networks: Sequence[PictureNetwork | dict[str, Any]] = (),
        size: int | None = None,
        pixels: int = 64,
        lpips_network: Literal["alex", "vgg", "squeeze"] = "alex",
        lpips_weights: str = "pretrained",
        batch_size: int = 64,
        permutations: int = 999,
        bootstraps: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        unknown = sorted(set(scores) - {*OFFLINE, "lpips"})
        if unknown:
            raise ContractError(f"no picture scores {', '.join(unknown)}; there are {', '.join((*OFFLINE, 'lpips'))}")
        self.chosen = tuple(scores)
        self.networks = [PictureNetwork.of(network) for network in networks]
        titles = [network.title for network in self.networks]
        twice = sorted({title for title in titles if titles.count(title) > 1} | ({"pixels", "embedding"} & {*titles}))
        if twice:
            raise ContractError(f"two networks or spaces are called {', '.join(twice)}; give each network a name")
        self.size = size
        self.pixels = pixels
        self.permutations = permutations
        self.bootstraps = bootstraps
        self.seed = seed
        self._pixels_key = pixels_key(size=size, pixels=pixels)
        self._at = "" if size is None else f"_{size}"
        self._suffix = f"@{'seen' if size is None else size}"
        self._lpips_key = f"lpips|{lpips_network}|{lpips_weights}".replace("/", "-")
        self.lpips_network: Literal["alex", "vgg", "squeeze"] = lpips_network
        self.lpips_weights = lpips_weights
        self._lpips: nn.Module | None = None
        self._features = [PictureFeatures(network, batch_size) for network in self.networks]

    def reduce(self, outputs: Output) -> Output:
        """Score each pair and keep small pixels and features; see the class for how much that is.

        Raises:
            DataError: Not pictures, a network that does not exist, or features that are not finite.
        """
        seen, generated = check_output(outputs)
        kept: Output = {}
        if "pixcorr" in self.chosen:
            r = by_pair(lambda a, b: pixel_correlation(a, b, size=self.size), generated, seen)
            # a decoder that draws without contrast is wrong, and no reason to stop
            kept[f"pixcorr{self._suffix}"] = r.nan_to_num(0.0)
        if "ssim" in self.chosen:
            kept[f"ssim{self._suffix}"] = by_pair(lambda a, b: ssim(a, b, size=self.size), generated, seen)
        if "lpips" in self.chosen:
            if self._lpips is None:
                self._lpips = build_perceptual(self.lpips_network, self.lpips_weights)
            network = self._lpips.to(seen.device)
            kept[self._lpips_key] = by_pair(lambda a, b: perceptual_distance(a, b, network), generated, seen)
        if {"pixcorr", "ssim", "two_way"} & {*self.chosen}:
            kept |= reduce_pixels(outputs, size=self.size, pixels=self.pixels)
        embed = self._context.embed if self._context is not None else None
        if "embedding" in self.chosen and embed is not None:
            kept["embedding.seen"] = embed_once(outputs, SEEN, embed)
            kept["embedding.generated"] = embed_once(outputs, GENERATED, embed)
        for network_features in self._features:
            key = network_features.spec.key
            kept[f"{key}.seen"] = network_features(seen)
            kept[f"{key}.generated"] = by_sample(network_features, generated)
        return kept

    def evaluate(self, parts: Sequence[Part], *, resample: bool = True) -> list[Score]:
        """Score the pictures of each person.

        Raises:
            ContractError: More classes are asked for than a network knows.
            DataError: Values that are not numbers.
        """
        resampling = Resampling(
            permutations=self.permutations if resample else 0,
            bootstraps=self.bootstraps if resample else 0,
            seed=self.seed,
        )
        scores: list[Score] = []
        for subject in subjects_of(parts):
            stimuli = len(joined(parts, subject, "stimulus").unique())
            if stimuli < 2:
                rank_zero_warn(
                    f"sub-{subject} saw a single picture in this run, so there is nothing to identify it among, and "
                    "no chance"
                )
            found = [*self._of_pixels(parts, subject, resampling), *self._of_embedding(parts, subject, resampling)]
            for network in self.networks:
                found += self._of_network(parts, subject, network, resampling)
            scores += [
                to_score(
                    estimate,
                    parts,
                    subject=subject,
                    ceiling=None,
                    reason="",
                    gallery=gallery,
                    similarity=similarity,
                )
                for estimate, gallery, similarity in found
            ]
        return scores

    def _of_pixels(
        self, parts: Sequence[Part], subject: str, resampling: Resampling
    ) -> list[tuple[Estimate, str, str]]:
        stimulus = joined(parts, subject, "stimulus")
        found: list[tuple[Estimate, str, str]] = []
        if {"pixcorr", "ssim", "two_way"} & {*self.chosen}:
            pixels, note = pixel_pairs(parts, subject, size=self.size, pixels=self.pixels)
            height, width = joined(parts, subject, f"{self._pixels_key}.sides")[0].tolist()
            at = f"at {height} x {width} pixels" + (f", chance and p {note}" if note else "")
            if "pixcorr" in self.chosen:
                values = joined(parts, subject, f"pixcorr{self._suffix}")
                estimate = mean_of_pairs(f"pixcorr{self._at}", values, stimulus, resampling, matrix=pixels)
                found.append((noted(estimate, at), "", ""))
            if "ssim" in self.chosen:
                values = joined(parts, subject, f"ssim{self._suffix}")
                matrix, chance = self._ssim_of_all(parts, subject)
                estimate = mean_of_pairs(f"ssim{self._at}", values, stimulus, resampling, matrix=matrix, chance=chance)
                few = "chance from some of the pairs, without p" if matrix is None and chance is not None else ""
                found.append((noted(noted(estimate, at), few), "", ""))
            if "two_way" in self.chosen and len(pixels.items) > 1:
                estimate = noted(two_way_of_pairs(pixels, resampling), note)
                found.append((estimate, f"pixels{self._at} ({len(pixels.items)})", "pearson"))
        if "lpips" in self.chosen:
            values = joined(parts, subject, self._lpips_key)
            estimate = mean_of_pairs("lpips", values, stimulus, resampling, bounds=(0.0, float("inf")))
            found.append((noted(estimate, "less is better"), "", ""))
        return found

    def _ssim_of_all(self, parts: Sequence[Part], subject: str) -> tuple[Pairs | None, float | None]:
        stimulus = joined(parts, subject, "stimulus")
        gallery, items = distinct(joined(parts, subject, f"{self._pixels_key}.seen"), stimulus)
        generated = joined(parts, subject, f"{self._pixels_key}.generated")
        return ssim_of_pairs(generated.float() / 255, stimulus, gallery.float() / 255, items)

    def _of_embedding(
        self, parts: Sequence[Part], subject: str, resampling: Resampling
    ) -> list[tuple[Estimate, str, str]]:
        name = "embedding.generated"
        if "embedding" not in self.chosen or not has(parts, subject, name):
            return []
        correlations = embedded_pairs(parts, subject, name)
        cosines = embedded_pairs(parts, subject, name, cosine=True)
        return _of_space("embedding", ("two_way", "similarity"), correlations, cosines, resampling)

    def _of_network(
        self, parts: Sequence[Part], subject: str, network: PictureNetwork, resampling: Resampling
    ) -> list[tuple[Estimate, str, str]]:
        seen, generated = f"{network.key}.seen", f"{network.key}.generated"
        stimulus = joined(parts, subject, "stimulus")
        gallery, items = distinct(joined(parts, subject, seen), stimulus)
        features = joined(parts, subject, generated)
        found: list[tuple[Estimate, str, str]] = []
        if network.scores:
            correlations = pairs_of(parts, subject, seen, generated)
            cosines = correlations
            if "similarity" in network.scores:
                cosines = compare(features, stimulus, gallery, items, similarity="cosine")
            found += _of_space(network.title, network.scores, correlations, cosines, resampling)
        classes = features.shape[-1]
        for n, k in network.n_way:
            if not 1 <= k < n <= classes:
                raise ContractError(
                    f"n_way of {network.title} needs 1 <= k < n <= {classes} classes, found n={n}, k={k}; change n_way"
                )
            right, column = gallery.argmax(1).unique(return_inverse=True)
            accuracy = class_scores(features.flatten(0, 1), right, n, k).view(*features.shape[:2], -1)
            matrix = Pairs(accuracy[..., column], stimulus, items)
            estimate = mean_of_pairs(
                f"{n}_way_top_{k}",
                matrix.values,
                stimulus,
                resampling,
                matrix=matrix,
                bounds=(0.0, 1.0),
            )
            # a classifier that sees the same few classes everywhere is right more often than by drawing at random
            others = "" if estimate.chance is None else f"pairs that do not match reach {estimate.chance:.3f}"
            estimate = noted(replace(estimate, chance=chance_n_way(n, k)), others)
            found.append((estimate, f"{network.title} ({classes} classes)", ""))
        return found


def _of_space(
    title: str, asked: Sequence[str], correlations: Pairs, cosines: Pairs, resampling: Resampling
) -> list[tuple[Estimate, str, str]]:
    """Scores of one space of features, with gallery and similarity."""
    found: list[tuple[Estimate, str, str]] = []
    gallery = f"{title} ({len(correlations.items)})"
    stimulus = correlations.stimulus
    for score in asked:
        if score == "two_way" and len(correlations.items) > 1:
            found.append((two_way_of_pairs(correlations, resampling), gallery, "pearson"))
        elif score == "similarity":
            estimate = mean_of_pairs("similarity", cosines.values, stimulus, resampling, matrix=cosines)
            found.append((estimate, gallery, "cosine"))
        elif score == "distance":
            apart = replace(correlations, similarity=1 - correlations.similarity)
            estimate = mean_of_pairs(
                "distance",
                apart.values,
                stimulus,
                resampling,
                matrix=apart,
                lower_is_better=True,
                bounds=(0.0, 2.0),
            )
            found.append((noted(estimate, "less is better"), gallery, "pearson"))
    return found


def noted(estimate: Estimate, note: str) -> Estimate:
    """Add to the note of an estimate."""
    return replace(estimate, note="; ".join(filter(None, (estimate.note, note))))


def reduce_pixels(outputs: Output, *, size: int | None, pixels: int, generated: str = GENERATED) -> Output:
    """Keep small pixels of seen and generated pictures, and the sides at which they are scored."""
    seen, made = check_output(outputs, generated)
    shape = kept_shape(seen, size=size, pixels=pixels)
    key = pixels_key(size=size, pixels=pixels)
    scored = tuple(seen.shape[-2:]) if size is None else (size, size)
    return {
        f"{key}.seen": kept_pixels(seen, shape),
        f"{key}.{generated}": by_sample(lambda flat: kept_pixels(flat, shape), made),
        f"{key}.sides": torch.tensor(scored).expand(len(seen), 2),
    }


def pixel_pairs(
    parts: Sequence[Part], subject: str, *, size: int | None, pixels: int, generated: str = GENERATED
) -> tuple[Pairs, str]:
    """Compare kept pixels; the note tells where they are smaller than what is scored."""
    key = pixels_key(size=size, pixels=pixels)
    kept: Tensor = joined(parts, subject, f"{key}.seen")
    sides: Tensor = joined(parts, subject, f"{key}.sides")
    small = tuple(kept.shape[-2:]) != tuple(sides[0].tolist())
    note = f"from pictures of {kept.shape[-2]} x {kept.shape[-1]} pixels" if small else ""
    return pairs_of(parts, subject, f"{key}.seen", f"{key}.{generated}"), note
