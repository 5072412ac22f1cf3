"""Paired differences: against values by hand, scipy, and the scores of the runs themselves."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import permutation_test

from callbacks.metrics import Block
from callbacks.metrics.resampling import bootstrap_weights
from experiments.report import paired
from experiments.report.comparison import ALL_PAIRS, comparison
from experiments.report.folds import blocks_of, gather_folds
from experiments.report.page import Chart, Note, Table
from experiments.report.paired import Values, difference, holm, identified_values, mean_values, signal_values
from experiments.report.runs import Run
from tests.experiments.report.tested_runs import invented_part, scores_of, table_rows, write_folds, write_run


def compared(runs: list[Run]) -> list[dict[str, str]]:
    [table] = [part for part in comparison(gather_folds(runs)) if isinstance(part, Table)]
    return table_rows(table)


def told(runs: list[Run]) -> str:
    return " ".join(part.text for part in comparison(gather_folds(runs)) if isinstance(part, Note))


def values(numbers: list[float]) -> Values:
    return mean_values(torch.tensor(numbers), torch.arange(len(numbers)))


# ---- scores stimulus by stimulus ---------------------------------------------------------------------


@pytest.mark.parametrize("folds", [1, 2])
def test_means_over_stimuli_are_the_scores_of_the_run(tmp_path: Path, folds: int) -> None:
    shown = [range(24)] if folds == 1 else [range(12), range(12, 24)]
    parts = [invented_part(stimuli=some, seed=number, repetitions=(2,)) for number, some in enumerate(shown)]
    runs = write_folds(tmp_path, parts) if folds > 1 else [write_run(tmp_path, parts[0])]
    [tested] = gather_folds(runs)
    found = identified_values(blocks_of(tested, "01"))
    scores = {score.name: score.value for score in scores_of(parts)}
    for name, each in found.items():
        assert float(each.values.mean()) == pytest.approx(scores[name], abs=1e-12)
        assert each.among == 24
        assert each.stimuli.tolist() == list(range(24))


def test_bootstrap_samples_draw_queries_and_distractors_together() -> None:
    rng = np.random.default_rng(3)
    queries, gallery = (torch.from_numpy(rng.normal(size=(6, 4))) for _ in range(2))
    # items 4 and 5 are distractors that no query is about
    labels = torch.zeros(4, dtype=torch.int64)
    block = Block(
        queries=queries[:4],
        stimulus=torch.arange(4),
        label=labels,
        gallery=gallery,
        gallery_stimulus=torch.arange(6),
        gallery_label=torch.zeros(6, dtype=torch.int64),
    )
    found = identified_values([block])
    weights = bootstrap_weights(4, paired.BOOTSTRAPS, np.random.default_rng(0)).numpy()
    unit = [side / side.norm(dim=1, keepdim=True) for side in (queries[:4], gallery)]
    sims = (unit[0] @ unit[1].T).numpy()
    for sample in range(20):
        items = [*np.repeat(np.arange(4), weights[sample].astype(int)), 4, 5]
        two_way, top_1 = [], []
        for query in items[:-2]:
            others = [item for item in items if item != query]
            better = sum(sims[query, item] > sims[query, query] for item in others)
            two_way.append(1 - better / len(others))
            top_1.append(float(better == 0))
        assert float(found["two_way"].resampled[sample]) == pytest.approx(np.mean(two_way))
        assert float(found["top_1"].resampled[sample]) == pytest.approx(np.mean(top_1))


def test_trials_of_a_stimulus_are_averaged() -> None:
    found = mean_values(torch.tensor([1.0, 3.0, 10.0]), torch.tensor([7, 7, 2]))
    assert found.stimuli.tolist() == [2, 7]
    assert found.values.tolist() == [10.0, 2.0]


def test_patterns_are_correlated_over_voxels() -> None:
    rng = np.random.default_rng(0)
    predicted, measured = rng.normal(size=(2, 5, 3, 4))
    found = signal_values(torch.from_numpy(predicted), torch.from_numpy(measured), torch.arange(5))
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(predicted, measured, strict=True)]
    assert found.values.tolist() == pytest.approx(expected)


# ---- differences -------------------------------------------------------------------------------------


def test_p_values_are_those_of_flipped_signs() -> None:
    rng = np.random.default_rng(1)
    left, right = rng.normal(0.3, 1.0, size=10), rng.normal(size=10)
    found = difference(values(left.tolist()), values(right.tolist()))
    # 2 ** 10 flips: scipy takes them all
    exact = permutation_test((left - right,), np.mean, permutation_type="samples", n_resamples=2000)
    assert found.value == pytest.approx((left - right).mean(), abs=1e-6)
    assert found.p_value == pytest.approx(exact.pvalue, abs=0.01)
    assert 0.01 < exact.pvalue < 0.5


def test_equal_scores_differ_by_nothing() -> None:
    found = difference(values([0.3, 0.5, 0.9]), values([0.3, 0.5, 0.9]))
    assert (found.value, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_intervals_are_paired() -> None:
    """What both runs share does not widen the interval: that of a constant difference has no width."""
    rng = np.random.default_rng(2)
    shared, noise = rng.normal(size=200), rng.normal(size=200)
    left = values((shared + 0.1 * noise).tolist())
    found = difference(left, values(shared.tolist()))
    error = 0.1 * noise.std() / np.sqrt(200)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert found.low < found.value < found.high


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_other_stimuli_are_refused() -> None:
    with pytest.raises(ValueError, match="not the same"):
        difference(values([1.0, 2.0]), values([1.0, 2.0, 3.0]))


# ---- on the page -------------------------------------------------------------------------------------


def test_better_runs_are_told_from_worse_ones_for_every_person_and_the_mean(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path, invented_part([person], noise=noise, seed=seed), people=f"sub-{person}", stage=stage)
        for (person, (stage, noise)), seed in zip(
            itertools.product(("01", "02"), (("bad", 6.0), ("good", 0.5))), range(4), strict=True
        )
    ]
    rows = [row for row in compared(runs) if row["score"] == "two_way"]
    assert [row["subject"] for row in rows] == ["01", "02", "mean"]
    for row in rows:
        assert (row["first"], row["second"]) == ("good", "bad")
        low, high = (float(end) for end in row["95 % interval"].split(" .. "))
        assert 0 < low < float(row["difference"]) < high
        assert float(row["first's"]) - float(row["second's"]) == pytest.approx(float(row["difference"]), abs=2e-3)
        assert float(row["p"]) < 0.01
    single = [float(row["difference"]) for row in rows[:2]]
    assert float(rows[2]["difference"]) == pytest.approx(np.mean(single), abs=1.1e-3)
    [chart] = [part for part in comparison(gather_folds(runs)) if isinstance(part, Chart)]
    assert chart.figure.data[0].marker.symbol == ("circle", "circle", "diamond")
    assert list(chart.figure.data[0].x) == pytest.approx([float(row["difference"]) for row in rows], abs=1e-3)


def test_signals_and_generated_pictures_are_compared_where_they_are_kept(tmp_path: Path) -> None:
    runs = [
        write_run(
            tmp_path,
            invented_part(signals=True, seed=seed, pictures={"pixcorr@seen": mean, "ssim@seen": 0.3}),
            stage=f"stage-{seed}",
        )
        for seed, mean in enumerate((0.2, 0.6))
    ]
    rows = {row["score"]: row for row in compared(runs)}
    assert list(rows) == ["two_way", "top_1", "pattern correlation", "pixcorr", "ssim"]
    assert float(rows["pixcorr"]["difference"]) == pytest.approx(0.4, abs=0.1)
    assert rows["pixcorr"]["first"] == "stage-1"


def test_p_values_are_corrected_for_the_pairs(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, invented_part(seed=seed), stage=f"stage-{seed}") for seed in range(3)]
    rows = [row for row in compared(runs) if row["score"] == "two_way"]
    assert len(rows) == 3
    assert [float(row["p (Holm)"]) for row in rows] == pytest.approx(holm([float(row["p"]) for row in rows]), abs=3e-4)


def test_many_runs_are_compared_with_the_first(tmp_path: Path) -> None:
    count = ALL_PAIRS + 1
    runs = [write_run(tmp_path, invented_part(seed=seed), name=f"seed-{seed}") for seed in range(count)]
    rows = [row for row in compared(runs) if row["score"] == "two_way"]
    assert [row["second"] for row in rows] == ["ridge seed-0"] * (count - 1)
    assert f"more than {ALL_PAIRS} runs" in told(runs)


@pytest.mark.parametrize("what", ["data", "stimuli", "people"])
def test_what_is_not_the_same_test_is_not_compared(tmp_path: Path, what: str) -> None:
    other = {
        "data": {"data": "other"},
        "stimuli": {"part": invented_part(stimuli=range(1, 25))},
        "people": {"part": invented_part(["02"]), "people": "sub-02"},
    }[what]
    runs = [
        write_run(tmp_path, invented_part(), stage="a"),
        write_run(**{"root": tmp_path, "part": invented_part(), "stage": "b", **other}),  # type: ignore[arg-type]
    ]
    assert not [part for part in comparison(gather_folds(runs)) if not isinstance(part, Note)]
    assert "No two of these runs tested the same person on the same stimuli" in told(runs)
    assert what != "data" or "different data sets (invented, other)" in told(runs)


def test_runs_without_outputs_are_named(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, invented_part() if stage == "a" else None, stage=stage) for stage in ("a", "b")]
    assert "1 runs on invented have kept no outputs" in told(runs)
    assert comparison(gather_folds(runs[:1])) == []


def test_folds_are_compared_together(tmp_path: Path) -> None:
    runs = []
    for stage, noise in (("a", 0.5), ("b", 4.0)):
        parts = [
            invented_part(stimuli=some, noise=noise, seed=seed) for seed, some in enumerate((range(12), range(12, 24)))
        ]
        runs += write_folds(tmp_path, parts, stage=stage)
    [row, *_] = compared(runs)
    assert row["stimuli"] == "24"
    assert (row["first"], row["second"]) == ("b", "a")
    assert float(row["difference"]) < 0
