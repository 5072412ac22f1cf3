"""Retrieval scores of predictions with known noise, against what theory says of them.

A prediction z = e_i + s * noise of an item of a gallery of unit vectors, with isotropic Gaussian noise, is closer to
e_i than to e_j with probability Phi(|e_i - e_j| / 2s): z . (e_i - e_j) has mean |e_i - e_j|^2 / 2 and SD s |e_i - e_j|.
That is cosine similarity, too: the norm of z is the same for all items. The similarities to all items are jointly
Gaussian with mean G_i and covariance s^2 G, G the Gram matrix, from which the distribution of the rank is drawn here
without ever making a prediction.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom, norm

from callbacks.metrics import Block, Estimate, Ranks, identification, n_way, top_k, two_way

Array = np.ndarray[Any, Any]
DRAWS = 600
N_WAY = ((2, 1), (50, 1), (50, 5))
TOP_K = (1, 5)
NAMES = ("two_way", "top_1", "top_5", "2_way_top_1", "50_way_top_1", "50_way_top_5")


def clip_features() -> Array:
    """CLIP ViT-L/14 features of the 200 test pictures of THINGS-EEG2 (NICE-EEG), or skip."""
    shared = Path(__file__).parents[2].parent / "shared" / "data"
    path = Path(os.environ.get("NEUROALIGN_SHARED", shared)) / "things_eeg2" / "nice_clip_feature_maps_test200.npy"
    if not path.is_file():
        pytest.skip(f"no {path}: set NEUROALIGN_SHARED to the folder that holds things_eeg2")
    features: Array = np.load(path, allow_pickle=False).reshape(200, -1)
    return features.astype(np.float64)


def drawn_features() -> Array:
    """Features of the same kind: a common part, a few clusters, and what is left."""
    random = np.random.default_rng(3)
    parts = random.standard_normal(40) + random.standard_normal((10, 40))[np.arange(90) % 10]
    return parts + random.standard_normal((90, 40))


def gallery_of(kind: str, similarity: str = "cosine") -> Array:
    features = clip_features() if kind == "clip" else drawn_features()
    if similarity == "pearson":
        features = features - features.mean(axis=1, keepdims=True)
    unit: Array = features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit


class Theory:
    """Scores of single predictions under the model, by the number of items that come before the right one."""

    def __init__(self, gallery: Array, spread: float, draws: int = DRAWS) -> None:
        gram = gallery @ gallery.T
        self.size = len(gram)
        values, vectors = np.linalg.eigh(gram)
        root = vectors * np.sqrt(values.clip(min=0))
        random = np.random.default_rng(11)
        shift = spread * random.standard_normal((draws, self.size)) @ root.T
        margin = gram - np.diagonal(gram)[:, None]
        self.better = np.stack([(margin + (one - one[:, None]) > 0).sum(axis=1) for one in shift])
        distance = np.sqrt((2 - 2 * gram).clip(min=0))
        others = ~np.eye(self.size, dtype=bool)
        self.two_way = float(norm.cdf(distance[others] / (2 * spread)).mean())

    def scores(self, name: str) -> Array:
        """``(draws, items)``: what a prediction of an item scores."""
        places = np.arange(self.size)
        if name == "two_way":
            table: Array = 1 - places / (self.size - 1)
        elif name.startswith("top_"):
            table = (places < int(name[4:])).astype(float)
        else:
            n, k = (int(part) for part in name.split("_way_top_"))
            table = np.asarray(hypergeom.cdf(k - 1, self.size - 1, places, n - 1))
        result: Array = table[self.better]
        return result

    def expected(self, name: str) -> tuple[float, float, float]:
        """Mean score, its standard error, and the SD of a prediction's score around the mean of its item."""
        scores = self.scores(name)
        error = scores.mean(axis=1).std(ddof=1) / np.sqrt(len(scores))
        return float(scores.mean()), float(error), float(np.sqrt(scores.var(axis=0, ddof=1).mean()))


def predictions(gallery: Array, spread: float, repetitions: int, seed: int) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    shown = np.repeat(np.arange(len(gallery)), repetitions)
    return gallery[shown] + spread * random.standard_normal((len(shown), gallery.shape[1])), shown


def scored(gallery: Array, queries: Array, shown: Array, **options: Any) -> dict[str, Estimate]:
    stimulus, items = torch.from_numpy(shown), torch.arange(len(gallery))
    block = Block(stimulus, stimulus, items, items, torch.from_numpy(queries), torch.from_numpy(gallery))
    usual: dict[str, Any] = {"top_k": TOP_K, "n_way": N_WAY, "n_permutations": 0, "n_bootstraps": 0}
    return {estimate.name: estimate for estimate in identification([block], **(usual | options))}


# ---- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.15, 0.3, 0.6, 2.0])
@pytest.mark.parametrize("kind", ["clip", "drawn"])
def test_scores_are_those_of_theory(kind: str, spread: float) -> None:
    gallery = gallery_of(kind)
    theory = Theory(gallery, spread)
    queries, shown = predictions(gallery, spread, repetitions=40, seed=1)
    found = scored(gallery, queries, shown)
    assert set(found) == set(NAMES)
    for name, estimate in found.items():
        expected, error, single = theory.expected(name)
        tolerance = 3 * np.hypot(error, single / np.sqrt(len(shown)))
        assert estimate.value == pytest.approx(expected, abs=tolerance), name
        assert tolerance < 0.03, name
    # two of the scores are known without any draws, and two are the same
    expected, error, single = theory.expected("two_way")
    assert expected == pytest.approx(theory.two_way, abs=3 * error)
    assert found["two_way"].value == pytest.approx(theory.two_way, abs=3 * single / np.sqrt(len(shown)))
    assert found["2_way_top_1"].value == pytest.approx(found["two_way"].value, abs=1e-12)


@pytest.mark.parametrize("kind", ["clip", "drawn"])
def test_theory_holds_for_pearsons_correlation_of_centred_items(kind: str) -> None:
    gallery = gallery_of(kind, "pearson")
    theory = Theory(gallery, 0.3)
    queries, shown = predictions(gallery, 0.3, repetitions=10, seed=2)
    # whatever is added to all numbers of a prediction changes no correlation
    found = scored(gallery, 2 * queries + 5, shown, similarity="pearson")
    for name in NAMES:
        expected, error, single = theory.expected(name)
        assert found[name].value == pytest.approx(expected, abs=3 * np.hypot(error, single / np.sqrt(len(shown)))), name


def test_noise_alone_scores_chance_and_none_scores_one() -> None:
    gallery = gallery_of("drawn")
    shown = np.arange(len(gallery))
    assert {estimate.value for estimate in scored(gallery, gallery, shown).values()} == {1.0}
    queries, shown = predictions(gallery, 1e6, repetitions=100, seed=3)
    for name, estimate in scored(gallery, queries, shown).items():
        # the right item stands anywhere: of N places each is as likely, where items are alike on average
        assert estimate.chance is not None
        assert estimate.value == pytest.approx(estimate.chance, abs=0.015), name


def test_functions_of_ranks_are_those_of_theory() -> None:
    theory = Theory(gallery_of("drawn"), 0.4, draws=20)
    better = torch.from_numpy(theory.better)
    ranks = Ranks(better, torch.zeros_like(better), theory.size)
    np.testing.assert_allclose(two_way(ranks), theory.scores("two_way"), atol=1e-12)
    for k in (1, 2, 5, 20):
        np.testing.assert_allclose(top_k(ranks, k), theory.scores(f"top_{k}"), atol=1e-12)
    for n, k in ((2, 1), (10, 1), (50, 1), (50, 5), (theory.size, 1), (theory.size, 5)):
        np.testing.assert_allclose(n_way(ranks, n, k), theory.scores(f"{n}_way_top_{k}"), atol=1e-9)


# ---- intervals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clip", "drawn"])
def test_intervals_hold_the_value_of_theory_as_often_as_they_say(kind: str) -> None:
    gallery, spread, rounds = gallery_of(kind), 0.4, 100
    theory = Theory(gallery, spread)
    found = []
    for seed in range(rounds):
        queries, shown = predictions(gallery, spread, repetitions=1, seed=100 + seed)
        found.append(scored(gallery, queries, shown, n_bootstraps=200, seed=seed))
    for name in ("two_way", "top_1", "top_5"):
        truth = theory.two_way if name == "two_way" else theory.expected(name)[0]
        low, value, high = np.array([(e[name].low, e[name].value, e[name].high) for e in found], float).T
        covered = ((low <= truth) & (truth <= high)).mean()
        # binomial error of the share
        assert covered >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / rounds), name
        # an interval that is wide enough to hold anything says nothing: against the SD of the score itself
        assert 0.75 < ((high - low) / 2).mean() / (norm.ppf(0.975) * value.std(ddof=1)) < 1.5, name
