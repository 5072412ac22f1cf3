"""Time segment matching: against a slow implementation, at chance where nothing is known, in several folds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from callbacks import Part, Score, SegmentMatching
from callbacks.metrics.segment_matching import chance_of_matching, match_segments
from contracts import ScoreContext
from tests.lightning_modules.fitting import made_up

Array = np.ndarray[Any, Any]


def noise(people: int, moments: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((people, moments, width)).astype(np.float32)


def slowly(features: Array, one: Array, other: Array, neighbours: int) -> float:
    """Share of moments found between two groups of people, moment by moment, from the definition."""
    groups = [features[people].astype(np.float64).mean(axis=0) for people in (one, other)]
    groups = [group - group.mean(axis=0) for group in groups]
    moments = len(groups[0])
    found = 0
    for asked, answering in (groups, groups[::-1]):
        for i in range(moments):
            candidates = [j for j in range(moments) if j == i or abs(i - j) > neighbours]
            correlations = [np.corrcoef(asked[i], answering[j])[0, 1] for j in candidates]
            found += candidates[int(np.argmax(correlations))] == i
    return found / (2 * moments)


@pytest.mark.parametrize("people", [2, 5, 8])
@pytest.mark.parametrize("neighbours", [0, 3])
def test_shares_are_those_of_the_definition(people: int, neighbours: int) -> None:
    features = noise(people, 17, 6) + 0.7 * noise(1, 17, 6, seed=1) + 5
    found = match_segments(features, neighbours=neighbours, halves=12, seed=3)
    assert found.shape == (12,)
    random = np.random.default_rng(3)
    for share in found:
        one, other = np.array_split(random.permutation(people), 2)
        assert abs(len(one) - len(other)) == people % 2
        assert share == pytest.approx(slowly(features, one, other, neighbours))
    assert 0.1 < found.mean() < 0.95, "neither at chance nor perfect"
    if people > 2:
        assert len(set(found.tolist())) > 1


def test_the_same_features_in_all_are_always_found() -> None:
    features = np.repeat(noise(1, 30, 5), 4, axis=0) * np.array([1, 2, 3, 4], np.float32)[:, None, None]
    assert (match_segments(features, neighbours=0, halves=5, seed=0) == 1).all()


@pytest.mark.parametrize(("moments", "neighbours"), [(12, 0), (12, 4), (5, 3)])
def test_random_features_are_at_chance(moments: int, neighbours: int) -> None:
    chance = chance_of_matching(moments, neighbours)
    candidates = [[j for j in range(moments) if j == i or abs(i - j) > neighbours] for i in range(moments)]
    assert chance == pytest.approx(np.mean([1 / len(mine) for mine in candidates]))
    found = [
        match_segments(noise(2, moments, 40, seed), neighbours=neighbours, halves=1, seed=0)[0] for seed in range(400)
    ]
    # centring leaves moments a little anticorrelated with each other, not with those of other people
    assert np.mean(found) == pytest.approx(chance, abs=4 * np.std(found) / 20)


def test_neighbours_are_no_distractors() -> None:
    # in the second person every moment looks like the one before it
    first = np.eye(20, dtype=np.float32)[None]
    features = np.concatenate([first, np.roll(first, 1, axis=1) + 0.5 * first])
    assert match_segments(features, neighbours=0, halves=1, seed=0)[0] == 0
    # the first and the last one, which are no neighbours, look alike
    assert match_segments(features, neighbours=1, halves=1, seed=0)[0] == pytest.approx(19 / 20)


@pytest.mark.parametrize(("shape", "neighbours"), [((1, 9, 3), 0), ((3, 1, 3), 0), ((3, 4, 3), 3)])
def test_too_few_people_or_moments_are_refused(shape: tuple[int, int, int], neighbours: int) -> None:
    with pytest.raises(ValueError, match="2 people and"):
        match_segments(noise(*shape), neighbours=neighbours, halves=2, seed=0)


def test_features_that_do_not_vary_find_nothing_but_what_comes_first() -> None:
    found = match_segments(np.ones((4, 10, 3), np.float32), neighbours=0, halves=3, seed=0)
    assert (found <= 0.1).all()


# ---- the callback ------------------------------------------------------------------------------------


def part(
    people: dict[str, Array], moments: dict[str, list[int]] | None = None, *, fold: int = 0, folds: int = 1
) -> Part:
    """Outputs ``(moments, voxels, volumes)`` of some people; rows in an order of everyone's own."""
    random = np.random.default_rng(fold)
    outputs = {}
    for number, (name, signal) in enumerate(people.items()):
        own = list(range(len(signal))) if moments is None else moments[name]
        order = torch.from_numpy(random.permutation(len(signal)))
        outputs[name] = {
            "predicted_signal": torch.from_numpy(signal)[order],
            "stimulus": torch.tensor(own)[order],
            "label": torch.full((len(signal),), -1),
            "subject": torch.full((len(signal),), number),
            "row": torch.arange(len(signal)),
        }
    layout = made_up({name: list(signal.shape[1:]) for name, signal in people.items()})
    layout |= {"protocol": "by_subject", "fold": fold, "folds": folds}
    return Part(outputs, ScoreContext(galleries={}, layout=layout))


def story(people: int, moments: int = 14) -> dict[str, Array]:
    shape = (moments, 3, 2)
    random = np.random.default_rng(5)
    common = random.standard_normal(shape)
    return {f"{i:02d}": (common + 1.5 * random.standard_normal(shape)).astype(np.float32) for i in range(people)}


def test_the_score_says_what_it_is() -> None:
    people = story(6)
    [score] = SegmentMatching(neighbours=2, halves=40).evaluate([part(people)])
    features = np.stack([signal.reshape(14, 6) for signal in people.values()])
    shares = match_segments(features, neighbours=2, halves=40, seed=0)
    assert score.name == "segments_of_predicted_signal"
    assert score.value == pytest.approx(shares.mean())
    assert (score.low, score.high) == pytest.approx(tuple(np.quantile(shares, [0.025, 0.975])))
    assert score.low < score.value < score.high
    assert score.chance == pytest.approx(chance_of_matching(14, 2))
    assert (score.n, score.stimuli, score.subject, score.protocol) == (84, 14, "halves", "by_subject")
    assert score.note == "40 random halves of 6 people"


def test_the_order_of_rows_does_not_matter() -> None:
    people = story(5)
    scores = [SegmentMatching(halves=10).evaluate([part(people, fold=seed)]) for seed in range(3)]
    values = {(one.value, one.low, one.high) for [one] in scores}
    assert len(values) == 1


def test_folds_of_people_are_joined() -> None:
    people = story(6)
    names = list(people)
    [whole] = SegmentMatching(halves=20).evaluate([part(people)])
    parts = [part({name: people[name] for name in names[2 * i : 2 * i + 2]}, fold=i, folds=3) for i in range(3)]
    [joined] = SegmentMatching(halves=20).evaluate(parts)
    for field in ("value", "low", "high", "chance", "n", "stimuli", "note", "name", "subject"):
        assert getattr(joined, field) == getattr(whole, field), field
    assert joined.protocol == "by_subject (3 folds of 3)"
    # a fold that is tested on one person waits for the others
    single = [part({name: people[name]}, fold=i, folds=6) for i, name in enumerate(names)]
    assert SegmentMatching().evaluate(single[:1]) == []
    [again] = SegmentMatching(halves=20).evaluate(single)
    assert again.value == whole.value


def test_while_fitting_one_division_is_enough() -> None:
    [score] = SegmentMatching(halves=20).evaluate([part(story(4))], resample=False)
    assert (score.low, score.high) == (None, None)
    assert score.note.startswith("1 random halves")


@pytest.mark.parametrize(
    "moments",
    [{"00": [0, 1, 2, 3], "01": [0, 1, 2, 4]}, {"00": [0, 1, 2, 3], "01": [0, 1, 2]}, {"00": [0, 1], "01": [0, 1]}],
    ids=["others", "fewer", "too few"],
)
def test_people_who_did_not_perceive_the_same_give_no_score(moments: dict[str, list[int]]) -> None:
    people = {name: noise(1, len(own), 3)[0][:, :, None] for name, own in moments.items()}
    scores: list[Score] = SegmentMatching(neighbours=1).evaluate([part(people, moments)])
    assert scores == []
