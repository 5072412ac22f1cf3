"""Similarity and dissimilarity of embeddings: against scipy and sums written out."""

from __future__ import annotations

import base64
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from scipy.stats import pearsonr, rankdata, spearmanr

from callbacks.metrics import Block
from callbacks.metrics.resampling import bootstrap_weights
from experiments.report import similarity
from experiments.report.dissimilarity import _resampled, _standard_ranks, agreement, dissimilarity, geometry
from experiments.report.page import Chart, Note, Table
from experiments.report.similarity import section
from tests.experiments.report.tested_runs import CLASSES, invented_part, table_rows, write_folds, write_run


def embeddings(seed: int, count: int = 12, width: int = 6) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, width)))


def parts_of(runs: list[Any], kind: type) -> list[Any]:
    found = section(runs)
    assert found is not None
    return [part for part in found.parts if isinstance(part, kind)]


def drawn(chart: Chart, place: int) -> np.ndarray:
    """A matrix as the page holds it."""
    z = chart.figure.to_plotly_json()["data"][place]["z"]
    if isinstance(z, dict):
        sides = [int(side) for side in str(z["shape"]).split(",")]
        return np.frombuffer(base64.b64decode(z["bdata"]), dtype=z["dtype"]).reshape(sides)
    return np.asarray(z)


# ---- dissimilarities ---------------------------------------------------------------------------------


def test_dissimilarity_is_scipys_correlation_distance() -> None:
    x = embeddings(0)
    assert dissimilarity(x, "x").numpy() == pytest.approx(squareform(pdist(x.numpy(), "correlation")), abs=1e-9)


def test_agreement_is_scipys_spearman_of_the_upper_triangles() -> None:
    x = embeddings(0)
    left, right = dissimilarity(x, "x"), dissimilarity(x + 0.7 * embeddings(1), "y")
    found = agreement(left, right)
    upper = np.triu_indices(12, 1)
    assert found.value == pytest.approx(spearmanr(left.numpy()[upper], right.numpy()[upper]).statistic)
    assert found.low < found.value < found.high
    assert found.p_value == 1 / 1000
    assert found.permutations == 999


def test_p_values_of_unrelated_matrices_are_uniform() -> None:
    p = [
        agreement(dissimilarity(embeddings(seed, 10), "x"), dissimilarity(embeddings(seed + 500, 10), "y")).p_value
        for seed in range(20)
    ]
    assert sum(value < 0.2 for value in p) <= 10
    assert 0.25 < np.mean(p) < 0.75


def test_p_values_are_those_of_all_orders_of_the_stimuli() -> None:
    x = embeddings(4, 5)
    left, right = dissimilarity(x, "x"), dissimilarity(x + 1.5 * embeddings(5, 5), "y")
    upper = np.triu_indices(5, 1)
    target = right.numpy()[upper]
    orders = [np.ix_(order, order) for order in itertools.permutations(range(5))]
    null = np.array([spearmanr(left.numpy()[order][upper], target).statistic for order in orders])
    assert agreement(left, right).p_value == pytest.approx((null >= null[0] - 1e-9).mean(), abs=0.05)


def test_bootstrap_counts_pairs_by_the_product_of_their_draws() -> None:
    left, right = dissimilarity(embeddings(0, 7), "x"), dissimilarity(embeddings(1, 7), "y")
    weights = bootstrap_weights(7, 5, np.random.default_rng(0))
    found = _resampled(_standard_ranks(left), _standard_ranks(right), weights.double())
    ranks = [squareform(rankdata(side.numpy()[np.triu_indices(7, 1)])) for side in (left, right)]
    for sample, counts in enumerate(weights.numpy().astype(int)):
        stimuli = np.repeat(np.arange(7), counts)
        pairs = [(i, j) for i in stimuli for j in stimuli if i != j]
        expected = pearsonr(*([side[pair] for pair in pairs] for side in ranks)).statistic
        assert float(found[sample]) == pytest.approx(expected)


@pytest.mark.parametrize(("count", "message"), [(2, "at least 3"), (4, "are the same")])
def test_what_cannot_be_correlated_is_refused(count: int, message: str) -> None:
    same = torch.ones(count, count, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        agreement(same, same)


def test_trials_are_averaged_and_stimuli_ordered_by_class() -> None:
    queries = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0], [7.0, 7.0]])
    block = Block(
        queries=queries,
        stimulus=torch.tensor([4, 4, 2, 3]),
        label=torch.tensor([0, 0, 1, 0]),
        gallery=torch.arange(6.0).reshape(3, 2),
        gallery_stimulus=torch.tensor([3, 2, 4]),
        gallery_label=torch.tensor([0, 1, 0]),
    )
    found = geometry([block])
    assert found.stimuli.tolist() == [3, 4, 2]
    assert found.labels.tolist() == [0, 0, 1]
    assert found.brain.tolist() == [[7.0, 7.0], [2.0, 0.0], [0.0, 5.0]]
    assert found.image.tolist() == [[0.0, 1.0], [4.0, 5.0], [2.0, 3.0]]


# ---- on the page -------------------------------------------------------------------------------------


def test_matrices_are_those_of_the_outputs_in_class_order(tmp_path: Path) -> None:
    part = invented_part(noise=0.5)
    [chart] = parts_of([write_run(tmp_path, part)], Chart)
    order = sorted(range(24), key=lambda i: (i % 3, i))
    brain = part.outputs["01"]["brain_embedding"][order].numpy()
    image = part.context.galleries["test"].embedding[order].numpy()
    cosine = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in image] for a in brain]
    assert drawn(chart, 0) == pytest.approx(100 * np.array(cosine), abs=0.51)
    assert drawn(chart, 1) == pytest.approx(100 * squareform(pdist(brain, "correlation")), abs=0.51)
    assert drawn(chart, 2) == pytest.approx(100 * squareform(pdist(image, "correlation")), abs=0.51)
    assert list(chart.figure.layout.xaxis.ticktext) == CLASSES
    # two lines for each boundary between three classes, in three matrices
    assert len(chart.figure.layout.shapes) == 2 * 2 * 3
    assert {shape.x0 for shape in chart.figure.layout.shapes if shape.x0 == shape.x1} == {7.5, 15.5}


def test_long_and_many_names_of_classes_leave_room_for_the_matrices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path, invented_part(classes=[f"{'long ' * 12}{number}" for number in range(3)]))
    [chart] = parts_of([run], Chart)
    assert list(chart.figure.layout.xaxis.ticktext) == [f"long long l… long long {number}" for number in range(3)]
    # whole where they are pointed at
    assert chart.figure.data[0].y[0].startswith("long " * 12)
    monkeypatch.setattr(similarity, "_TICKS", 2)
    [chart] = parts_of([run], Chart)
    assert len(chart.figure.layout.xaxis.ticktext) == len(chart.figure.layout.xaxis.tickvals) == 2


def test_the_table_tells_own_from_other_stimuli(tmp_path: Path) -> None:
    part = invented_part(noise=0.5, repetitions=(3,))
    [table] = parts_of([write_run(tmp_path, part)], Table)
    [row] = table_rows(table)
    assert row["stimuli"] == "24"
    assert float(row["cosine, own"]) > 0.85
    assert abs(float(row["cosine, others"])) < 0.1
    assert float(row["p"]) == 0.001


def test_people_and_runs_can_be_chosen(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path, invented_part(["01", "02", "03", "04"], seed=seed), people="all", stage=f"stage-{seed}")
        for seed in range(2)
    ]
    [chart], [table] = parts_of(runs, Chart), parts_of(runs, Table)
    [menu] = chart.figure.layout.updatemenus
    labels = [button.label for button in menu.buttons]
    assert len(labels) == similarity.CHOICES
    assert {label.split()[1] for label in labels[:2]} == {"stage-0", "stage-1"}
    assert len(table.rows) == 8
    assert "3 further people and runs are in the table alone" in chart.caption
    for place, button in enumerate(menu.buttons):
        visible = button.args[0]["visible"]
        assert [i // 3 for i, shown in enumerate(visible) if shown] == [place] * 3


def test_few_of_many_stimuli_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "DRAWN", 10)
    run = write_run(tmp_path, invented_part())
    [chart], [table] = parts_of([run], Chart), parts_of([run], Table)
    assert drawn(chart, 0).shape == (10, 10)
    assert "Of more than 10 stimuli 10 are drawn" in chart.caption
    assert table_rows(table)[0]["stimuli"] == "24"


def test_folds_are_put_together(tmp_path: Path) -> None:
    runs = write_folds(tmp_path, [invented_part(stimuli=[4 * fold]) for fold in range(5)], grid=False)
    [table] = parts_of(runs, Table)
    [row] = table_rows(table)
    assert row["stimuli"] == "5"
    assert row["notes"] == "5 folds; fewer than 20 stimuli"


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    single = write_run(tmp_path, invented_part(stimuli=[3]), scores=[])
    [note] = parts_of([single], Note)
    assert "a single item was tested" in note.text
    broken = invented_part()
    broken.outputs["01"]["brain_embedding"][0] = float("nan")
    [note] = parts_of([write_run(tmp_path, broken, name="broken", scores=[])], Note)
    assert "1 of 24 rows are not finite" in note.text
    assert section([write_run(tmp_path, name="none")]) is None
