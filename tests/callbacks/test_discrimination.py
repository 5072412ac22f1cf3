"""Discrimination: against scikit-learn, at chance where nothing is known, people and folds joined."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from torch import Tensor

from callbacks import Discrimination, Part, RunRecord
from callbacks.metrics.discrimination import area, discrimination
from contracts import ContractError, Gallery, Output, ScoreContext
from tests.callbacks.pictures import Recorded, Replay
from tests.lightning_modules.fitting import made_up, short_trainer
from tests.lightning_modules.processes import both_ways

Array = np.ndarray[Any, Any]


def samples(number: int, *, share: float = 0.4, effect: float = 1.0, seed: int = 0) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    positive = random.random(number) < share
    return random.standard_normal(number) + effect * positive, positive


def estimate(evidence: Array, positive: Array, **options: Any) -> Any:
    alone = {"unit": np.arange(len(evidence)), "person": np.zeros(len(evidence), int)}
    return discrimination("auc", evidence, positive, **{**alone, **options})


# ---- the area ------------------------------------------------------------------------------------


def test_area_of_a_case_worked_by_hand() -> None:
    assert area(np.array([1.0, 3, 2, 4]), np.array([False, False, True, True])) == 0.75
    assert area(np.array([1.0, 2, 2, 2]), np.array([False, False, True, True])) == (1 + 0.5 + 1 + 0.5) / 4


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_area_is_that_of_scikit_learn_with_and_without_ties(decimals: int | None, share: float) -> None:
    for seed in range(10):
        evidence, positive = samples(150, share=share, seed=seed)
        evidence = evidence if decimals is None else evidence.round(decimals)
        assert area(evidence, positive) == pytest.approx(roc_auc_score(positive, evidence), abs=1e-12)


@pytest.mark.parametrize(
    ("evidence", "positive", "message"),
    [
        ([1.0, 2], [True, True], "samples of both classes are needed, found 2 and 0"),
        ([1.0, 2], [False, False], "found 0 and 2"),
        ([1.0, np.nan], [True, False], "1 of 2 numbers are not finite"),
    ],
)
def test_what_cannot_be_told_apart(evidence: list[float], positive: list[bool], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        area(np.array(evidence), np.array(positive))


# ---- interval and p-value --------------------------------------------------------------------------


def placements(evidence: Array, positive: Array) -> tuple[Array, Array]:
    """Share of the other class that each sample is right about, pair by pair (DeLong et al. 1988)."""
    right = np.array([[(a > b) + 0.5 * (a == b) for b in evidence[~positive]] for a in evidence[positive]])
    return right.mean(axis=1), right.mean(axis=0)


def wilson(p: float, n: float, z: float) -> list[float]:
    centre, half = (
        (p + z**2 / (2 * n)) / (1 + z**2 / n),
        z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n),
    )
    return [centre - half, centre + half]


def test_the_interval_has_the_variance_of_delong() -> None:
    # so many samples that Student's distribution is the normal one
    evidence, positive = samples(1500, effect=0.7)
    found = estimate(evidence.round(1), positive, n_permutations=1)
    one, other = placements(evidence.round(1), positive)
    variance = one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other)
    expected = wilson(found.value, found.value * (1 - found.value) / variance, norm.ppf(0.975))
    assert [found.low, found.high] == pytest.approx(expected, abs=3e-4)
    assert found.low < found.value < found.high


def test_the_interval_of_people_has_the_variance_of_obuchowski() -> None:
    people = 400
    random = np.random.default_rng(1)
    person = np.repeat(np.arange(people), 6)
    positive = random.random(len(person)) < 0.5
    evidence = random.standard_normal(len(person)) + (0.5 + random.standard_normal(people)[person]) * positive
    evidence += random.standard_normal(people)[person]
    found = estimate(evidence, positive, person=person, n_permutations=1)
    one, other = placements(evidence, positive)
    sums = [
        np.bincount(person[side], place - found.value, minlength=people)
        for side, place in ((positive, one), (~positive, other))
    ]
    m, n = len(one), len(other)
    holds = [np.unique(person[side]) for side in (positive, ~positive)]
    both = len(np.intersect1d(*holds))
    k, other_k = map(len, holds)
    variance = (
        k / (k - 1) * (sums[0] ** 2).sum() / m**2
        + other_k / (other_k - 1) * (sums[1] ** 2).sum() / n**2
        + 2 * both / (both - 1) * (sums[0] * sums[1]).sum() / (m * n)
    )
    expected = wilson(found.value, found.value * (1 - found.value) / variance, norm.ppf(0.975))
    assert [found.low, found.high] == pytest.approx(expected, abs=1e-3)
    alone = estimate(evidence, positive, n_permutations=1)
    assert found.high - found.low > 1.15 * (alone.high - alone.low), "samples of one person are not independent"


def test_the_interval_covers_the_true_area() -> None:
    covered = []
    for seed in range(400):
        random = np.random.default_rng(seed)
        positive = np.arange(24) < 12
        found = estimate(random.standard_normal(24) + norm.ppf(0.8) * np.sqrt(2) * positive, positive, n_permutations=1)
        covered.append(found.low <= 0.8 <= found.high)
    assert 0.92 < np.mean(covered) < 0.99


def test_perfect_discrimination_has_an_interval_below_1() -> None:
    positive = np.arange(30) < 10
    found = estimate(positive.astype(float), positive)
    assert (found.value, found.high, found.p_value) == (1, 1, 1 / 1000)
    assert found.low == pytest.approx(10 / (10 + norm.ppf(0.975) ** 2))


def test_p_values_are_uniform_where_nothing_is_known() -> None:
    p = []
    for seed in range(300):
        random = np.random.default_rng(seed)
        person = np.repeat(np.arange(4), 10)
        # people differ in their level and in their share of the classes
        positive = random.random(40) < np.repeat([0.3, 0.7, 0.5, 0.9], 10)
        positive[:2] = True, False
        evidence = random.standard_normal(40) + 3 * person
        p.append(estimate(evidence, positive, person=person, n_permutations=99, seed=seed).p_value)
    assert np.mean(p) == pytest.approx(0.5, abs=0.06)
    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.09
    evidence, positive = samples(60)
    assert estimate(evidence, positive).p_value < 0.05
    assert estimate(-evidence, positive).p_value > 0.95


def test_trials_of_a_stimulus_stay_together() -> None:
    # 4 stimuli of each class, 25 trials each, that differ from each other whatever their class
    p = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        unit = np.repeat(np.arange(8), 25)
        evidence = random.standard_normal(8)[unit] + 0.3 * random.standard_normal(200)
        p.append(estimate(evidence, unit % 2 == 0, unit=unit, n_permutations=99, seed=seed).p_value)
    assert np.mean(np.array(p) <= 0.05) < 0.1
    assert np.mean(p) == pytest.approx(0.5, abs=0.08)
    with pytest.raises(ValueError, match="1 units hold samples of both classes"):
        estimate(np.arange(4.0), np.arange(4) > 1, unit=np.array([0, 1, 1, 2]))


# ---- the callback ----------------------------------------------------------------------------------


CLASSES = ["class 0", "class 1", "class 2"]
PEOPLE = ("01", "02", "03")


def outputs(person: int, *, number: int = 40, repeats: int = 1, effect: float = 0.8, seed: int = 0) -> Output:
    """Embeddings around three centres."""
    random = torch.Generator().manual_seed(10 * seed + person)
    label = torch.arange(number) % 3
    stimulus = 100 + torch.arange(number) // (3 * repeats) * 3 + label
    embedding = torch.randn(number, 3, generator=random) + effect * torch.eye(3)[label] + person
    return {
        "brain_embedding": embedding,
        "label": label,
        "stimulus": stimulus,
        "subject": torch.full((number,), person),
        "row": torch.arange(number) + number * person,
    }


def context(*, fold: int = 0, folds: int = 1, centres: Tensor | None = None, shown: int = 3) -> ScoreContext:
    embedding = torch.eye(3) if centres is None else centres
    label = torch.arange(shown)
    gallery = Gallery(embedding[:shown], label, label, "class_centre")
    layout = made_up({name: [4, 5] for name in PEOPLE}, width=3, classes=3)
    layout |= {"protocol": "by_subject", "fold": fold, "folds": folds}
    return ScoreContext(galleries={"class_centres": gallery}, layout=layout)


def part(people: dict[str, Output], **options: Any) -> Part:
    return Part(people, context(**options))


def cosine(output: Output, centre: Tensor) -> Array:
    return torch.nn.functional.cosine_similarity(output["brain_embedding"].double(), centre.double()[None]).numpy()


def reference(output: Output, first: int, second: int | None, centres: Tensor | None = None) -> tuple[Array, Array]:
    """Evidence and class of the samples of the pair."""
    similar = np.stack([cosine(output, centre) for centre in (torch.eye(3) if centres is None else centres)], axis=1)
    label = output["label"].numpy()
    used = np.isin(label, [first, second]) if second is not None else label >= 0
    others = [second] if second is not None else [i for i in range(3) if i != first]
    return (similar[:, first] - similar[:, others].max(axis=1))[used], label[used] == first


def everyone(**options: Any) -> dict[str, Output]:
    return {name: outputs(number, **options) for number, name in enumerate(PEOPLE)}


@pytest.mark.parametrize(("pair", "numbers"), [((0, 1), (0, 1)), ((2, 1), (2, 1)), ((1,), (1, None))])
def test_scores_are_those_of_scikit_learn(pair: tuple[int, ...], numbers: tuple[int, int | None]) -> None:
    people = everyone()
    scores = Discrimination([[CLASSES[i] for i in pair]], permutations=99).evaluate([part(people)])
    assert [score.subject for score in scores] == ["01", "02", "03", "all"]
    evidence = {name: reference(output, *numbers) for name, output in people.items()}
    for score, (value, positive) in zip(scores, evidence.values(), strict=False):
        assert score.value == pytest.approx(roc_auc_score(positive, value), abs=1e-9)
        assert score.n == score.stimuli == len(value)
        assert score.p_value is not None
        assert score.low < score.value < score.high  # type: ignore[operator]
        assert (score.chance, score.similarity, score.gallery) == (0.5, "cosine", "class_centres (3)")
        assert score.protocol == "by_subject"
    name = f"auc_{CLASSES[pair[0]]}_vs_{CLASSES[pair[1]] if len(pair) > 1 else 'rest'}"
    assert [score.name for score in scores] == [name, name, name, f"{name}_pooled"]
    pooled = [np.concatenate(values) for values in zip(*evidence.values(), strict=True)]
    assert scores[-1].value == pytest.approx(roc_auc_score(pooled[1], pooled[0]), abs=1e-9)
    assert scores[-1].n == len(pooled[0])
    assert scores[-1].p_value == 0.01
    assert not scores[0].ceiling
    assert scores[0].note == ""


def test_the_second_class_may_come_first() -> None:
    people = {"01": outputs(0)}
    there, back = Discrimination([["class 0", "class 1"], ["class 1", "class 0"]]).evaluate([part(people)])
    assert there.value == pytest.approx(back.value, abs=1e-12)


def test_folds_are_joined_each_with_its_own_centres() -> None:
    people = everyone()
    turned = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3)))[0]
    there = {**people["02"], "brain_embedding": people["02"]["brain_embedding"] @ turned}
    whole = Discrimination([["class 0", "class 2"]]).evaluate([part({name: people[name] for name in ("01", "02")})])
    parts = [part({"01": people["01"]}, fold=0, folds=2), part({"02": there}, fold=1, folds=2, centres=turned)]
    joined = Discrimination([["class 0", "class 2"]]).evaluate(parts)
    for one, other in zip(whole, joined, strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-9)
        assert (one.subject, one.n, one.name) == (other.subject, other.n, other.name)
    assert joined[-1].protocol == "by_subject (2 folds of 2)"
    # folds of the same person's samples are one score
    halves = [{k: v[rows] for k, v in people["01"].items()} for rows in (slice(0, 15), slice(15, 40))]
    again = Discrimination([["class 0", "class 2"]]).evaluate([part({"01": half}) for half in halves])
    assert [(score.subject, score.value) for score in again] == [("01", whole[0].value)]


def test_stimuli_are_permuted_where_classes_have_several(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Array] = []

    def spy(*arguments: Any, **options: Any) -> Any:
        asked.append(options["unit"])
        return discrimination(*arguments, **options)

    monkeypatch.setattr("callbacks.discrimination.discrimination", spy)
    callback = Discrimination([["class 0", "class 1"]], permutations=9)
    [score] = callback.evaluate([part({"01": outputs(0, repeats=2)})])
    assert len(set(asked[-1])) == score.stimuli < score.n
    one = {**outputs(0), "stimulus": outputs(0)["label"]}
    [score] = callback.evaluate([part({"01": one})])
    assert len(set(asked[-1])) == score.n


def test_while_fitting_neither_interval_nor_p_value() -> None:
    for score in Discrimination([["class 0"]]).evaluate([part(everyone())], resample=False):
        assert (score.low, score.high, score.p_value) == (None, None, None)


def test_runs_that_test_one_class_get_no_score() -> None:
    output = outputs(0)
    alone = {name: value[output["label"] == 0] for name, value in output.items()}
    with pytest.warns(UserWarning, match="sub-01 has no samples of both sides of class 0 and class 1"):
        assert Discrimination([["class 0", "class 1"]]).evaluate([part({"01": alone})]) == []
    with pytest.warns(UserWarning, match="this run tests no sample of class 0 or of class 2"):
        assert Discrimination([["class 0", "class 2"]]).evaluate([part({"01": alone}, shown=2)]) == []
    with pytest.warns(UserWarning, match="sub-01 has no"):
        scores = Discrimination([["class 0", "class 1"]]).evaluate([part({"01": alone, "02": outputs(1)})])
    assert [score.subject for score in scores] == ["02"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": [["class 0", "cat"]]}, "no class cat; this data set has class 0, class 1, class 2"),
        ({"pairs": [["class 0"]], "gallery": "text"}, "no gallery 'text'; this data set has class_centres"),
    ],
)
def test_classes_and_galleries_that_are_not_there(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        Discrimination(**options).evaluate([part(everyone())])


@pytest.mark.parametrize("pairs", [[], [[]], [["a", "a"]], [["a", "b", "c"]]])
def test_what_is_no_pair(pairs: list[list[str]]) -> None:
    with pytest.raises(ContractError, match="needs pairs of two different classes, or single ones"):
        Discrimination(pairs)


# ---- processes -------------------------------------------------------------------------------------


def scored(folder: Path, devices: int) -> None:
    torch.set_num_threads(1)
    people = [outputs(number, number=23 + 4 * number) for number in range(3)]
    start = 0
    for output in people:
        output["row"] = torch.arange(len(output["label"])) + start
        start += len(output["label"])
    callbacks = [Discrimination([["class 0", "class 1"], ["class 2"]], permutations=99), RunRecord(table=False)]
    options: dict[str, Any] = {"strategy": "ddp", "devices": devices} if devices > 1 else {}
    about = context()
    run = short_trainer(folder, *callbacks, **options)
    for command in (run.validate, run.test):
        command(
            Replay(about.layout, frozenset({"brain_embedding"})),
            datamodule=Recorded(people, about, batch_size=4),
            verbose=False,
        )


@pytest.mark.full
def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    one, two = both_ways(scored, tmp_path)
    for name in ("scores.json", "scores_validation.json"):
        ours, theirs = (json.loads((folder / name).read_text()) for folder in (two, one))
        assert ours == theirs
        # three people and all of them, for two pairs; the mean over people of each
        assert {score["subject"] for score in ours} == {*PEOPLE, "all", "mean"}
        means = [score for score in ours if score["subject"] == "mean"]
        assert [score["name"] for score in means] == ["auc_class 0_vs_class 1", "auc_class 2_vs_rest"]
