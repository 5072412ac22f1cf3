import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import binomtest, hypergeom, rankdata

from callbacks.metrics import (
    Block,
    Ranks,
    chance_n_way,
    chance_top_k,
    classifier_n_way,
    clip_correlation,
    identification,
    n_way,
    one_permutation_two_way,
    rank_queries,
    top_k,
    two_way,
    wilson,
)


def test_n_way_is_hypergeometric():
    r = torch.arange(30)
    for n, k in ((2, 1), (10, 1), (10, 3), (30, 5)):
        ours = n_way(Ranks(r, r * 0, 30), n, k)
        np.testing.assert_allclose(ours, hypergeom.cdf(k - 1, 29, r.numpy(), n - 1), atol=1e-12)
        assert float(ours.mean()) == pytest.approx(chance_n_way(n, k))


def test_ties_are_averaged_over_places():
    better, tied = torch.tensor([0, 1, 4, 7]), torch.tensor([3, 0, 5, 2])
    ties = Ranks(better, tied, 12)
    for score in (two_way, lambda r: top_k(r, 5), lambda r: n_way(r, 6, 2)):
        for i, value in enumerate(score(ties)):
            places = torch.arange(int(better[i]), int(better[i] + tied[i]) + 1)
            assert float(value) == pytest.approx(float(score(Ranks(places, places * 0, 12)).mean()), abs=1e-12)


def test_two_way_equals_two_of_two_way():
    ranks = Ranks(torch.tensor([0, 3, 8]), torch.tensor([1, 2, 0]), 10)
    torch.testing.assert_close(two_way(ranks), n_way(ranks, 2, 1), rtol=0, atol=1e-12)


def test_all_tied_class_scores_chance():
    ranks = Ranks(torch.tensor([0]), torch.tensor([15]), 20, torch.tensor([5]))
    for k in (1, 3, 10, 16):
        assert float(top_k(ranks, k)) == pytest.approx(chance_top_k(20, k, 5), abs=1e-12)


@pytest.mark.parametrize("call", [lambda r: top_k(r, 0), lambda r: n_way(r, 50, 1), lambda r: n_way(r, 3, 3)])
def test_impossible_scores_are_refused(call):
    with pytest.raises(ValueError, match="need"):
        call(Ranks(torch.tensor([0]), torch.tensor([0]), 10))


@pytest.mark.parametrize("similarity", ["cosine", "pearson"])
def test_image_ranks_against_numpy(similarity):
    g = torch.Generator().manual_seed(1)
    queries, gallery = torch.randn(9, 5, generator=g), torch.randn(12, 5, generator=g)
    gallery[7] = gallery[2]
    stimulus, items = torch.tensor([3, 3, 2, 7, 0, 1, 9, 11, 2]), torch.arange(12)
    block = Block(stimulus, stimulus * 0 - 1, items, items * 0 - 1, queries, gallery)
    ranks, _ = rank_queries(block, similarity=similarity)
    q, x = queries.double().numpy(), gallery.double().numpy()
    if similarity == "pearson":
        sims = np.corrcoef(q, x)[:9, 9:]
    else:
        sims = (q @ x.T) / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(x, axis=1)
    for i, s in enumerate(stimulus.tolist()):
        row = -np.round(sims[i], 10)
        assert int(ranks.better[i]) == rankdata(row, "min")[s] - 1
        assert int(ranks.better[i] + ranks.tied[i]) == rankdata(row, "max")[s] - 1


def test_class_ranks_by_brute_force():
    g = np.random.default_rng(0)
    sims = g.integers(0, 6, (10, 14)).astype(float)
    items, labels = np.arange(14), g.integers(0, 4, 14)
    labels[:4] = [0, 1, 2, 3]
    stimulus = np.array([0, 5, 9, 13, 100, 101, 2, 2, 7, 11])
    label = np.array([labels[s] if s < 14 else s - 100 for s in stimulus])
    t = torch.from_numpy
    block = Block(t(stimulus), t(label), t(items), t(labels), similarity=t(sims))
    of_all, of_others = rank_queries(block, level="class", chunk=3)
    for i, (s, c) in enumerate(zip(stimulus, label, strict=True)):
        own, rest = sims[i, labels == c], sims[i, labels != c]
        right = sims[i, s] if s < 14 else own.max()
        assert int(of_others.better[i]) == (rest > right).sum()
        assert int(of_others.tied[i]) == (rest == right).sum()
        assert int(of_others.size[i]) == len(rest) + 1
        assert int(of_all.better[i]) == (rest > own.max()).sum()
        assert int(of_all.tied[i]) == (rest == own.max()).sum()
        assert int(of_all.right[i]) == (own == own.max()).sum()


def _block(**changes):
    g = torch.Generator().manual_seed(0)
    s = torch.arange(6)
    values = {"stimulus": s, "label": s % 2, "gallery_stimulus": s, "gallery_label": s % 2}
    values |= {"queries": torch.randn(6, 4, generator=g), "gallery": torch.randn(6, 4, generator=g)}
    return Block(**(values | changes))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (_block(queries=torch.zeros(6, 4)), "queries: 6 of 6 rows have zero norm"),
        (_block(gallery=torch.full((6, 4), torch.nan)), "gallery of block 0: 6 of 6 rows are not finite"),
        (_block(stimulus=torch.arange(3, 9)), r"3 queries have no target .* \[6, 7, 8\]"),
        (_block(gallery_stimulus=torch.tensor([0, 1, 2, 3, 4, 4])), "1 queries have no target"),
        (_block(stimulus=torch.zeros(6).long(), gallery_stimulus=torch.tensor([0, 1, 2, 3, 4, 4])), "once"),
    ],
)
def test_unrankable_input_is_refused(block, message):
    with pytest.raises(ValueError, match=message):
        identification([block])


def test_constant_rows_have_no_pearson():
    with pytest.raises(ValueError, match="queries: 6 of 6 rows are constant"):
        identification([_block(queries=torch.full((6, 4), 0.1))], similarity="pearson")


def test_gallery_of_one_and_unequal_folds_are_refused():
    one = torch.zeros(1).long()
    with pytest.raises(ValueError, match="gallery of 1"):
        identification([Block(one, one, one, one, similarity=torch.zeros(1, 1))])
    with pytest.raises(ValueError, match="block 1 lists other"):
        identification([_block(), _block(gallery_stimulus=torch.arange(6).flip(0))])


def test_wilson_is_that_of_scipy():
    for k, n in ((0, 7), (3, 10), (50, 50), (199, 200)):
        theirs = binomtest(k, n).proportion_ci(0.9, method="wilson")
        assert wilson(k, n, 0.9) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.fixture(scope="module")
def golden():
    default = Path(__file__).parents[3].parent / "shared" / "data"
    path = Path(os.environ.get("NEUROALIGN_SHARED", default)) / "golden" / "scores.safetensors"
    if not path.exists():
        pytest.skip(f"no golden values at {path}")
    return load_file(path)


def test_published_scores_are_reproduced(golden):
    p, t = golden["predicted"], golden["target"]
    ours = one_permutation_two_way(p, t, golden["one_permutation"])
    assert ours == pytest.approx(float(golden["one_permutation_two_way"]), abs=1e-6)
    assert clip_correlation(p, t) == pytest.approx(float(golden["clip_correlation"]), abs=1e-6)
    s = torch.arange(40)
    exact = identification([Block(s, s, s, s, p, t)], similarity="pearson", n_way=())[0]
    assert exact.value == pytest.approx(clip_correlation(p, t), abs=1e-12)


def test_sampled_n_way_lies_within_its_error(golden):
    for sampled, (n, k) in zip(golden["n_way_sampled"], ((2, 1), (10, 1), (50, 1), (50, 5)), strict=True):
        exact = classifier_n_way(golden["class_logits"], golden["true_class"], n, k)
        error = (exact * (1 - exact) / 1000).sqrt()
        assert bool(((sampled - exact).abs() <= 4 * error + 1e-9).all())
