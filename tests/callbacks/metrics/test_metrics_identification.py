import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, top_k_accuracy_score

from callbacks.metrics import Block, identification


def _embeddings(n, noise, seed, extra=0, trials=1, width=32):
    g = torch.Generator().manual_seed(seed)
    gallery = torch.randn(n + extra, width, generator=g)
    stimulus, items = torch.arange(n).repeat(trials), torch.arange(n + extra)
    queries = gallery[stimulus] + noise * torch.randn(n * trials, width, generator=g)
    return Block(stimulus, stimulus % 5, items, items % 5, queries, gallery)


def test_values_agree_with_sklearn():
    block = _embeddings(30, 2.0, 0)
    two_way, top_1, top_5, ten = identification([block], n_way=((10, 1), (31, 1)), n_bootstraps=20)
    q, g = (torch.nn.functional.normalize(x.double(), dim=1).numpy() for x in (block.queries, block.gallery))
    sims = q @ g.T
    area = [roc_auc_score(np.arange(30) == i, row) for i, row in enumerate(sims)]
    assert two_way.value == pytest.approx(np.mean(area), abs=1e-9)
    for k, ours in ((1, top_1), (5, top_5)):
        assert ours.value == pytest.approx(top_k_accuracy_score(np.arange(30), sims, k=k), abs=1e-12)
    assert ten.name == "10_way_top_1"
    assert ten.chance == pytest.approx(0.1)
    assert top_5.chance == pytest.approx(5 / 30)


@pytest.mark.parametrize("level", ["image", "class"])
def test_result_depends_on_the_seed_but_not_on_chunks(level):
    blocks = [_embeddings(25, 2.0, s, extra=7, trials=2) for s in (0, 1)]
    options = {"level": level, "n_way": ((10, 1),), "n_permutations": 99, "n_bootstraps": 100}
    state = torch.random.get_rng_state()
    whole, parts = (identification(blocks, chunk=c, **options) for c in (None, 7))
    assert torch.equal(state, torch.random.get_rng_state())
    for a, b in zip(whole, parts, strict=True):
        for field in ("value", "low", "high", "p_value", "chance"):
            assert getattr(a, field) == pytest.approx(getattr(b, field), abs=1e-7)
        assert (a.n, a.stimuli) == (100, 25)
        assert a.low < a.value < a.high
        assert a.name.startswith("class_") == (level == "class")
    assert whole[0].low != identification(blocks, seed=1, **options)[0].low


def test_perfect_score_reports_wilson_and_few_stimuli():
    block = _embeddings(8, 0.0, 0, trials=3)
    for estimate in identification([block], n_way=()):
        assert (estimate.value, estimate.high) == (1.0, 1.0)
        assert estimate.low == pytest.approx(0.6756, abs=1e-3)
        assert estimate.note == "fewer than 20 stimuli"


def test_constant_similarity_scores_chance():
    s = torch.arange(20)
    block = Block(s, s % 4, s, s % 4, similarity=torch.zeros(20, 20))
    for level in ("image", "class"):
        for estimate in identification([block], level=level, n_way=((10, 3),)):
            assert estimate.value == pytest.approx(estimate.chance, abs=1e-9)
            assert estimate.p_value == 1.0


def test_p_values_are_uniform_under_the_null():
    p = []
    for seed in range(150):
        block = _embeddings(20, 0.0, seed)
        block.queries = torch.randn(20, 32, generator=torch.Generator().manual_seed(1000 + seed))
        p.append(identification([block], n_way=(), top_k=(), n_permutations=99, n_bootstraps=0)[0].p_value)
    assert 0.4 < np.mean(p) < 0.6
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.08)


def _coverage(n, noise, runs):
    results = [
        identification([_embeddings(n, noise, seed)], n_way=(), n_permutations=0, n_bootstraps=300, seed=seed)
        for seed in range(runs)
    ]
    truth = np.array([[e.value for e in r] for r in results]).mean(0)
    inside = [[e.low <= t <= e.high for e, t in zip(r, truth, strict=True)] for r in results]
    return np.mean(inside, 0)


def test_intervals_cover():
    assert (_coverage(50, 3.0, 150) >= 0.88).all()


@pytest.mark.full
@pytest.mark.parametrize("noise", [1.5, 3.0, 8.0])
@pytest.mark.parametrize("n", [50, 200])
def test_intervals_cover_widely(n, noise):
    covered = _coverage(n, noise, 500)
    print(n, noise, covered)
    assert (covered >= 0.88).all()
    assert (covered <= 0.995).all()


_LARGE = """
import re, torch
from callbacks.metrics import Block, identification
torch.set_num_threads(2)
g = torch.Generator().manual_seed(0)
items = torch.arange(100_000)
gallery = torch.randn(100_000, 768, generator=g)
queries = torch.randn(10_000, 768, generator=g).mul_(6).add_(gallery[:10_000])
none = torch.full_like(items, -1)
identification([Block(items[:10_000], none[:10_000], items, none, queries, gallery)])
# of this program alone: ru_maxrss begins with that of the process that started it
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]))
"""


@pytest.mark.full
def test_large_gallery_stays_below_two_gigabytes():
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", _LARGE], cwd=root, capture_output=True, text=True, check=True, timeout=590
    )
    assert int(done.stdout) < 2e9
