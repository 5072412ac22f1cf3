"""Scores of what was retrieved: the published two-way, and one modality relative to another."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from callbacks.metrics import Block, Estimate, identification
from callbacks.metrics.conversion import Retrieved, nearest, published_two_way, relative_two_way
from callbacks.metrics.published import one_permutation_two_way
from callbacks.metrics.resampling import bootstrap_weights
from contracts import NO_LABEL


def retrievals(
    pictures: int = 30, trials: int = 1, *, noise: float = 1.0, common: float = 0.0, distractors: int = 0, seed: int = 0
) -> Retrieved:
    """Pictures retrieved by noisy queries; a share of the noise is that of all recordings of a picture."""
    random = torch.Generator().manual_seed(seed)
    gallery = torch.randn(pictures + distractors, 6, generator=random)
    stimulus = torch.arange(pictures).repeat_interleave(trials)
    noises = [torch.randn(number, 6, generator=random) for number in (pictures, len(stimulus))]
    mixed = common**0.5 * noises[0][stimulus] + (1 - common) ** 0.5 * noises[1]
    queries = normalize(gallery[stimulus], dim=1) + noise * mixed
    # neither the numbers of the pictures nor the order of the gallery is that of the queries
    order = torch.randperm(len(gallery), generator=random)
    return Retrieved(gallery[nearest(queries, gallery)], 100 - 3 * stimulus, gallery[order], (100 - 3 * order))


def guesses(pictures: int, trials: int, *, seed: int, per_picture: bool = False, few: int | None = None) -> Retrieved:
    """Pictures retrieved by chance: for every trial anew, or the same one for all trials of a picture."""
    random = torch.Generator().manual_seed(seed)
    gallery = torch.randn(pictures, 6, generator=random)
    stimulus = torch.arange(pictures).repeat_interleave(trials)
    number = pictures if per_picture else len(stimulus)
    which = torch.randint(few or pictures, (number,), generator=random)
    return Retrieved(gallery[which[stimulus] if per_picture else which], stimulus, gallery, torch.arange(pictures))


def plain_two_way(retrieved: Retrieved) -> float:
    """The exact score, trial by trial and distractor by distractor."""
    place = {int(number): position for position, number in enumerate(retrieved.gallery_stimulus)}
    points = normalize(retrieved.gallery.double(), dim=1)
    scores = []
    for found, number in zip(normalize(retrieved.embedding.double(), dim=1), retrieved.stimulus, strict=True):
        own = place[int(number)]
        similarity = [round(float(found @ point), 11) for point in points]
        others = [value for position, value in enumerate(similarity) if position != own]
        scores.append(np.mean([1.0 if similarity[own] > v else 0.5 if similarity[own] == v else 0.0 for v in others]))
    return float(np.mean(scores))


def exact(retrieved: Retrieved, **options: int) -> Estimate:
    """The same through ``identification``."""
    none = [torch.full_like(x, NO_LABEL) for x in (retrieved.stimulus, retrieved.gallery_stimulus)]
    block = Block(
        retrieved.stimulus, none[0], retrieved.gallery_stimulus, none[1], retrieved.embedding, retrieved.gallery
    )
    [estimate] = identification([block], top_k=(), n_way=(), **options)
    return estimate


def relative(conversion: Retrieved, decoding: Retrieved, **options: int | float) -> dict[str, Estimate]:
    return {estimate.name: estimate for estimate in relative_two_way(conversion, decoding, **options)}


# ---- what is nearest -----------------------------------------------------------------------------


def test_nearest_is_the_largest_cosine_whatever_the_lengths() -> None:
    random = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(50, 5, generator=random), torch.randn(40, 5, generator=random)
    lengths = torch.rand(40, 1, generator=random) + 0.1
    expected = [
        max(range(40), key=lambda j, q=q: float(torch.cosine_similarity(q, gallery[j], dim=0))) for q in queries
    ]
    assert nearest(7 * queries, gallery * lengths).tolist() == expected


def test_of_items_that_tie_the_first_is_nearest() -> None:
    gallery = torch.tensor([[0.0, 1.0], [3.0, 1.0], [1.0, 0.0], [6.0, 2.0], [2.0, 0.0]])
    queries = torch.tensor([[1.0, 0.0], [3.0, 1.0], [1.0, -9.0]])
    assert nearest(queries, gallery).tolist() == [2, 1, 2]


def test_nearest_does_not_depend_on_chunks() -> None:
    random = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(2500, 4, generator=random), torch.randn(9, 4, generator=random)
    assert torch.equal(nearest(queries, gallery), torch.cat([nearest(part, gallery) for part in queries.split(7)]))


# ---- as published --------------------------------------------------------------------------------


def drawn(number: int, seed: int) -> Tensor:
    """The permutation that stands in for the published one, which had no seed."""
    first, *_ = np.random.SeedSequence(seed).spawn(3)
    return torch.from_numpy(np.random.default_rng(first).permutation(number))


@pytest.mark.parametrize("seed", range(4))
def test_the_published_score_is_that_of_one_permutation(seed: int) -> None:
    for retrieved in (retrievals(40, seed=seed), retrievals(10, 7, noise=2.0, seed=seed), guesses(6, 9, seed=seed)):
        estimate = published_two_way(retrieved, permutations=0, bootstraps=0, seed=seed)
        number = len(retrieved.stimulus)
        expected = one_permutation_two_way(retrieved.embedding, retrieved.target, drawn(number, seed))
        assert estimate.name == "published_two_way"
        assert estimate.value == pytest.approx(expected, abs=1e-12)
        assert (estimate.n, estimate.stimuli) == (number, len(retrieved.stimulus.unique()))
        assert (estimate.low, estimate.high, estimate.p_value) == (None, None, None)


def test_the_published_score_of_the_published_code(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = load_file(shared / "golden" / "scores.safetensors")
    numbers = torch.arange(len(golden["target"]))
    retrieved = Retrieved(golden["predicted"], numbers, golden["target"], numbers)

    class Drawn(np.random.Generator):
        def permutation(self, *_: object, **__: object) -> np.ndarray:  # type: ignore[override]
            return golden["one_permutation"].numpy()

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Drawn(np.random.PCG64(seed)))
    estimate = published_two_way(retrieved, permutations=0, bootstraps=0)
    assert estimate.value == pytest.approx(float(golden["one_permutation_two_way"]), abs=1e-6)


def over_seeds(retrieved: Retrieved, seeds: int = 200) -> tuple[float, float]:
    """Mean of the score over its permutation, and the standard error of that."""
    values = [published_two_way(retrieved, permutations=0, bootstraps=0, seed=seed).value for seed in range(seeds)]
    return float(np.mean(values)), float(np.std(values) / np.sqrt(seeds)) + 1e-9


def test_perfect_predictions_miss_only_the_trials_that_meet_themselves() -> None:
    for pictures, trials in ((12, 1), (6, 4)):
        mean, error = over_seeds(retrievals(pictures, trials, noise=0.0))
        assert abs(mean - (1 - 1 / pictures)) < 4 * error


def test_collapsed_predictions_score_nothing_and_chance_says_so() -> None:
    estimate = published_two_way(guesses(20, 3, seed=0, few=1), permutations=19, bootstraps=50)
    assert (estimate.value, estimate.chance, estimate.p_value, estimate.low) == (0.0, 0.0, 1.0, 0.0)
    assert estimate.high > 0


@pytest.mark.parametrize(("trials", "few"), [(1, None), (4, 5), (4, 2)])
def test_chance_is_what_the_same_pictures_score_in_a_random_order(trials: int, few: int | None) -> None:
    retrieved = guesses(15, trials, seed=1, few=few)
    random = torch.Generator().manual_seed(2)
    number = len(retrieved.stimulus)
    values = [
        one_permutation_two_way(
            retrieved.embedding[torch.randperm(number, generator=random)],
            retrieved.target,
            torch.randperm(number, generator=random),
        )
        for _ in range(1500)
    ]
    chance = published_two_way(retrieved, permutations=0, bootstraps=0).chance
    assert chance < 0.5
    assert abs(chance - np.mean(values)) < 4 * np.std(values) / np.sqrt(1500)


@pytest.mark.parametrize(("pictures", "trials", "per_picture"), [(120, 1, False), (20, 8, False), (20, 8, True)])
def test_published_p_values_are_uniform_where_nothing_is_known(pictures: int, trials: int, per_picture: bool) -> None:
    found = [
        published_two_way(
            guesses(pictures, trials, seed=seed, per_picture=per_picture), permutations=79, bootstraps=0, seed=seed
        )
        for seed in range(250)
    ]
    p = np.array([estimate.p_value for estimate in found])
    assert 0.4 < p.mean() < 0.6
    for level in (0.1, 0.25, 0.75):
        assert np.mean(p <= level) == pytest.approx(level, abs=0.08)


def test_published_p_values_are_small_where_something_is_known() -> None:
    assert published_two_way(retrievals(30, 2, noise=0.3), permutations=199, bootstraps=0).p_value == 1 / 200


@pytest.mark.parametrize(("trials", "common"), [(1, 0.0), (8, 0.8)])
def test_published_intervals_cover(trials: int, common: float) -> None:
    found = [
        published_two_way(
            retrievals(40, trials, noise=0.8, common=common, seed=seed), permutations=0, bootstraps=200, seed=seed
        )
        for seed in range(150)
    ]
    truth = np.mean([estimate.value for estimate in found])
    assert np.mean([estimate.low <= truth <= estimate.high for estimate in found]) >= 0.88
    wider = [
        published_two_way(retrievals(40, 2, seed=seed), permutations=0, confidence=level)
        for level in (0.5, 0.99)
        for seed in [0]
    ]
    assert wider[1].low < wider[0].low < wider[0].value < wider[0].high < wider[1].high


def test_the_published_score_of_many_trials_takes_no_minutes() -> None:
    """9600 trials of 200 pictures, as in THINGS-MEG; without a table of similarities it is a quarter of an hour."""
    retrieved = guesses(200, 48, seed=0)
    start = time.process_time()
    published_two_way(retrieved, permutations=999, bootstraps=100)
    assert time.process_time() - start < 30


# ---- exact ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("trials", [1, 3])
def test_the_exact_score_is_that_of_a_plain_loop(trials: int) -> None:
    base = retrievals(12, trials, noise=1.5, distractors=4)
    # two pictures of the gallery look the same: they tie for whatever is retrieved
    gallery = base.gallery.clone()
    gallery[3] = 2 * gallery[9]
    for retrieved in (base, Retrieved(base.embedding, base.stimulus, gallery, base.gallery_stimulus)):
        expected = plain_two_way(retrieved)
        assert exact(retrieved, n_permutations=0, n_bootstraps=0).value == pytest.approx(expected, abs=1e-12)
        # the score relative to itself is 1, and relative to one of value v it is 1 / v
        perfect = Retrieved(retrieved.target, retrieved.stimulus, retrieved.gallery, retrieved.gallery_stimulus)
        found = relative(retrieved, perfect, bootstraps=0)["normalised_two_way"].value
        assert found == pytest.approx(expected / plain_two_way(perfect), abs=1e-12)


def test_the_target_is_the_picture_of_the_query() -> None:
    retrieved = retrievals(9, 2, distractors=3, noise=0.0)
    assert torch.equal(retrieved.gallery_stimulus[retrieved.columns], retrieved.stimulus)
    torch.testing.assert_close(retrieved.target, retrieved.embedding)


# ---- relative ------------------------------------------------------------------------------------


def on_a_circle(places: list[int], stimulus: list[int], number: int) -> Retrieved:
    """Pictures on a quarter of a circle: of two, the one with the nearer number is the more similar one."""
    angle = torch.linspace(0.0, 1.5, number, dtype=torch.float64) ** 1.01
    gallery = torch.stack([angle.cos(), angle.sin()], dim=1).float()
    return Retrieved(gallery[places], torch.tensor(stimulus), gallery, torch.arange(number))


def test_relative_scores_by_hand() -> None:
    # of 4 others: the retrieved picture itself wins against the right one, and so do those between
    conversion = on_a_circle([0, 0, 4], [0, 2, 4], 5)  # 1, 1/2 (0 and 1 are nearer to 0), 1
    decoding = on_a_circle([0, 3, 2], [0, 2, 4], 5)  # 1, 1/2 or 3/4, ...
    value, base = plain_two_way(conversion), plain_two_way(decoding)
    assert value == pytest.approx((1 + 1 / 2 + 1) / 3)
    found = relative(conversion, decoding, bootstraps=0)
    assert base > 0.5
    assert list(found) == ["normalised_two_way", "chance_corrected_two_way"]
    normalised, corrected = found.values()
    assert normalised.value == pytest.approx(value / base)
    assert normalised.chance == pytest.approx(0.5 / base)
    assert corrected.value == pytest.approx((value - 0.5) / (base - 0.5))
    assert corrected.chance == 0.0
    for estimate in (normalised, corrected):
        assert (estimate.n, estimate.stimuli, estimate.low, estimate.high) == (3, 3, None, None)
        assert estimate.p_value is None
        assert estimate.note == "fewer than 20 stimuli"


def test_where_nothing_is_lost_there_is_no_doubt() -> None:
    decoding = retrievals(25, 3, noise=0.6)
    for estimate in relative(decoding, decoding).values():
        assert (estimate.value, estimate.low, estimate.high) == (1.0, 1.0, 1.0)


def mixed(share: float, seed: int, pictures: int = 40) -> tuple[Retrieved, Retrieved]:
    """Conversion and decoding with noise of a picture, of which they share a part."""
    random = torch.Generator().manual_seed(seed)
    gallery = normalize(torch.randn(pictures, 6, generator=random), dim=1)
    ours, theirs, shared = (torch.randn(pictures, 6, generator=random) for _ in range(3))
    sides = []
    for own, size in ((ours, 0.9), (theirs, 0.5)):
        queries = gallery + size * (share**0.5 * shared + (1 - share) ** 0.5 * own)
        sides.append(
            Retrieved(gallery[nearest(queries, gallery)], torch.arange(pictures), gallery, torch.arange(pictures))
        )
    return sides[0], sides[1]


def moved(retrieved: Retrieved) -> Retrieved:
    """The same about other stimuli."""
    return Retrieved(
        retrieved.embedding, retrieved.stimulus + 1000, retrieved.gallery, retrieved.gallery_stimulus + 1000
    )


def test_what_two_scores_share_makes_their_interval_narrower() -> None:
    widths = []
    for seed in range(8):
        conversion, decoding = mixed(0.9, seed)
        for other in (decoding, moved(decoding)):
            estimate = relative(conversion, other, bootstraps=400)["normalised_two_way"]
            widths.append(estimate.high - estimate.low)
    together, apart = np.array(widths).reshape(8, 2).T
    assert np.mean(together) < 0.95 * np.mean(apart)


@pytest.mark.parametrize("share", [0.0, 0.8])
def test_relative_intervals_cover(share: float) -> None:
    found = [relative(*mixed(share, seed), bootstraps=200, seed=seed) for seed in range(150)]
    for name in ("normalised_two_way", "chance_corrected_two_way"):
        estimates = [one[name] for one in found if name in one]
        assert len(estimates) > 140
        truth = np.mean([estimate.value for estimate in estimates])
        assert np.mean([estimate.low <= truth <= estimate.high for estimate in estimates]) >= 0.88


def test_a_decoding_at_chance_has_nothing_to_be_corrected_by() -> None:
    conversion = retrievals(30, noise=0.5)
    for seed in range(5):
        assert list(relative(conversion, guesses(30, 1, seed=seed, per_picture=True), bootstraps=300)) in (
            ["normalised_two_way"],
        )
    # without intervals the value decides
    above, below = (
        next(g for s in itertools.count() if (plain_two_way(g := guesses(30, 1, seed=s)) > 0.5) is wanted)
        for wanted in (True, False)
    )
    assert len(relative(conversion, above, bootstraps=0)) == 2
    assert len(relative(conversion, below, bootstraps=0)) == 1


def test_a_weak_target_makes_the_normalised_score_look_good_and_its_chance_says_so() -> None:
    conversion, target = guesses(40, 1, seed=3), retrievals(40, noise=1.5)
    found = relative(conversion, target)["normalised_two_way"]
    assert found.low < found.chance < found.high
    assert found.chance > 0.5


@pytest.mark.parametrize("number", [2, 3])
def test_few_pictures_that_no_sample_may_hold_give_no_nonsense(number: int) -> None:
    conversion, decoding = retrievals(number, noise=0.0, seed=1), moved(retrievals(number, noise=0.0, seed=2))
    for estimate in relative(conversion, decoding).values():
        assert (estimate.value, estimate.low, estimate.high) == (1.0, 1.0, 1.0)


def resampled_two_way(retrieved: Retrieved, drawn: dict[int, int]) -> float:
    """The score of a sample in which each stimulus stands so often, as query and as distractor."""
    similarity = normalize(retrieved.embedding.double(), dim=1) @ normalize(retrieved.gallery.double(), dim=1).T
    won, queries = 0.0, 0
    for row, about in zip(similarity.tolist(), retrieved.stimulus.tolist(), strict=True):
        own = row[retrieved.gallery_stimulus.tolist().index(about)]
        others = [
            (value, drawn[stimulus])
            for value, stimulus in zip(row, retrieved.gallery_stimulus.tolist(), strict=True)
            if stimulus != about
        ]
        won += drawn[about] * sum(times * (value < own) for value, times in others) / sum(t for _, t in others)
        queries += drawn[about]
    return won / queries


def test_a_stimulus_is_drawn_as_query_and_as_distractor_of_both() -> None:
    whole, decoding = retrievals(9, 2, noise=0.9), retrievals(9, noise=0.3, seed=4)
    # the conversion is about some of the pictures, numbered alike, and there is another picture in its gallery
    conversion = Retrieved(
        whole.embedding[4:],
        whole.stimulus[4:],
        torch.cat([whole.gallery, torch.ones(1, 6)]),
        torch.cat([whole.gallery_stimulus, torch.tensor([7])]),
    )
    found = relative(conversion, decoding, bootstraps=25, seed=3)["normalised_two_way"]
    stimuli = torch.cat([conversion.gallery_stimulus, decoding.gallery_stimulus]).unique().tolist()
    weights = bootstrap_weights(len(stimuli), 25, np.random.default_rng(3)).int().tolist()
    samples = [dict(zip(stimuli, row, strict=True)) for row in weights]
    ratios = [resampled_two_way(conversion, drawn) / resampled_two_way(decoding, drawn) for drawn in samples]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])), abs=1e-6)


def test_a_decoding_that_is_always_wrong_leaves_nothing_to_divide_by() -> None:
    wrong = on_a_circle([1, 0], [0, 1], 2)
    assert plain_two_way(wrong) == 0.0
    for bootstraps in (0, 50):
        assert relative(wrong, wrong, bootstraps=bootstraps) == {}


def test_relative_scores_do_not_depend_on_the_order_of_trials() -> None:
    conversion, decoding = retrievals(20, 3, noise=1.0), retrievals(20, 2, noise=0.5, seed=5)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    turned = Retrieved(
        conversion.embedding[order], conversion.stimulus[order], conversion.gallery, conversion.gallery_stimulus
    )
    for name, estimate in relative(conversion, decoding, bootstraps=100).items():
        other = relative(turned, decoding, bootstraps=100)[name]
        for field in ("value", "low", "high", "chance"):
            assert getattr(other, field) == pytest.approx(getattr(estimate, field), abs=1e-6)
