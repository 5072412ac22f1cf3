import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from callbacks.metrics import encoding, pearson


def _signals(n=40, v=30, noise=1.0, offset=0.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, v, generator=g, dtype=torch.float64)
    return x + offset, x + noise * torch.randn(n, v, generator=g, dtype=torch.float64) + offset


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_pearson_is_that_of_scipy(offset):
    x, y = _signals(offset=offset)
    theirs = [pearsonr(x[:, i] - offset, y[:, i] - offset).statistic for i in range(30)]
    np.testing.assert_allclose(pearson(x, y), theirs, atol=1e-8)
    np.testing.assert_allclose(pearson(x.view(40, 5, 6), y.view(40, 5, 6)), theirs, atol=1e-8)


def test_encoding_summaries_and_ceiling():
    x, y = _signals()
    y[:, 3] = 2.0
    x[:, 4] = 1.0
    ceiling = torch.linspace(0, 1, 30)
    results = encoding(x, y, torch.arange(40), ceiling=ceiling, n_permutations=99, n_bootstraps=200)
    by_name = {e.name: e for e in results}
    keep = torch.arange(30) != 3
    r = pearson(x, y).nan_to_num(0.0)[keep]
    limit = ceiling[keep].double()
    assert by_name["pearson_mean"].value == pytest.approx(float(r.mean()))
    assert by_name["pearson_median"].value == pytest.approx(np.median(r))
    assert by_name["pearson_share_above_0.3"].value == pytest.approx(float((r > 0.3).double().mean()))
    of = r[limit > 0.1] / limit[limit > 0.1]
    assert by_name["pearson_of_ceiling"].value == pytest.approx(float(of.mean()))
    assert by_name["pearson_mean"].ceiling == pytest.approx(float(limit.mean()))
    assert by_name["pearson_mean"].p_value == pytest.approx(0.01)
    assert by_name["pearson_mean"].note == "1 constant features left out; 1 constant predictions count as 0"
    for e in results:
        assert e.low < e.value < e.high


def test_repetitions_are_permuted_and_resampled_together():
    x, y = _signals(n=60, noise=3.0)
    stimulus = torch.arange(60) % 20
    x = x[:20].repeat(3, 1)
    estimate = encoding(x, y, stimulus, n_permutations=19, n_bootstraps=50)[0]
    assert (estimate.n, estimate.stimuli, estimate.note) == (60, 20, "")
    assert estimate == encoding(x, y, stimulus, n_permutations=19, n_bootstraps=50)[0]


def test_null_p_values_are_uniform():
    p = []
    for seed in range(100):
        x, y = _signals(n=25, v=10, seed=seed)[0], _signals(n=25, v=10, seed=seed + 500)[0]
        p.append(encoding(x, y, torch.arange(25), n_permutations=49, n_bootstraps=0)[0].p_value)
    assert 0.4 < np.mean(p) < 0.6


def test_unfit_signals_are_refused():
    x, y = _signals()
    s = torch.arange(40)
    with pytest.raises(ValueError, match=r"predicted is \(40, 29\)"):
        encoding(x[:, 1:], y, s)
    with pytest.raises(ValueError, match="all 30 features of target are constant"):
        encoding(x, y * 0, s)
    with pytest.raises(ValueError, match="target: 40 of 40 rows are not finite"):
        encoding(x, y * torch.nan, s)
    with pytest.raises(ValueError, match="ceiling is"):
        encoding(x, y, s, ceiling=torch.ones(3))
