import itertools

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from lightning_modules.networks.comoments import CoMoments, choose_form, fold_of, predicted_memory

P, Q, N = 7, 5, 103
SHAPE_ERROR = (ValueError, TypeCheckError)  # where annotations are checked, the check comes first


def data(offset: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, P, generator=generator, dtype=torch.float64)
    y = x[:, :Q] + torch.randn(N, Q, generator=generator, dtype=torch.float64)
    return (x + offset).float(), (y - offset).float()


def reference(x: Tensor, y: Tensor) -> list[np.ndarray]:
    """Two passes in long double."""
    a, b = x.numpy().astype(np.longdouble), y.numpy().astype(np.longdouble)
    da, db = a - a.mean(0), b - b.mean(0)
    return [np.asarray(v) for v in (len(a), a.mean(0), b.mean(0), da.T @ da, da.T @ db, db.T @ db)]


def check(moments: CoMoments, x: Tensor, y: Tensor, rtol: float = 1e-12) -> None:
    for found, expected in zip(moments.tensors(), reference(x, y), strict=True):
        assert found.dtype == torch.float64
        if found.ndim == 1 and expected.ndim == 2:
            expected = expected.diagonal()
        scale = float(np.abs(expected).max())
        np.testing.assert_allclose(found.numpy(), expected.astype(np.float64), rtol=0, atol=rtol * scale)


def streamed(x: Tensor, y: Tensor, sizes: list[int], **full: bool) -> CoMoments:
    moments = CoMoments.empty(P, Q, **full)
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        moments.update(a, b)
    return moments


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("sizes", [[N], [1] * N, [1, 0, 50, 2, 13, 37], [64, 39]], ids=str)
def test_streaming_in_any_batches_equals_one_shot(offset, sizes):
    x, y = data(offset)
    check(streamed(x, y, sizes, full_y=True), x, y)


@pytest.mark.parametrize(("full_x", "full_y"), list(itertools.product([True, False], repeat=2)))
def test_diagonals_replace_full_matrices(full_x, full_y):
    x, y = data(1e3)
    moments = streamed(x, y, [60, 43], full_x=full_x, full_y=full_y)
    assert (moments.sxx.ndim, moments.syy.ndim) == (1 + full_x, 1 + full_y)
    check(moments, x, y)
    np.testing.assert_allclose(moments.variation_y, reference(x, y)[5].diagonal().astype(float), rtol=1e-12)
    merged = CoMoments.of(x[:9], y[:9], full_x=full_x, full_y=full_y).merge(
        CoMoments.of(x[9:], y[9:], full_x=full_x, full_y=full_y)
    )
    check(merged, x, y)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5], ids=str)
def test_merge_in_any_order(order):
    x, y = data(1e3)
    parts = [CoMoments.of(a, b) for a, b in zip(x.split([1, 40, 2, 60]), y.split([1, 40, 2, 60]), strict=True)]
    a, b, c, d = (parts[i] for i in order)
    check(a.merge(b).merge(c).merge(d), x, y)
    check(a.merge(b.merge(c.merge(d))), x, y)
    check(a.merge(b).merge(c.merge(d)), x, y)


def test_merge_leaves_both_sides_alone_even_when_one_is_empty():
    x, y = data(0.0)
    full, empty = CoMoments.of(x, y), CoMoments.empty(P, Q)
    before = [t.clone() for t in full.tensors()]
    for merged in (full.merge(empty), empty.merge(full)):
        check(merged, x, y)
        merged.update(x, y)
    assert all(torch.equal(a, b) for a, b in zip(before, full.tensors(), strict=True))
    assert all(not t.any() for t in empty.merge(empty).tensors())


def test_swap_is_a_view_of_the_other_direction():
    x, y = data(1e3)
    moments = CoMoments.empty(P, Q, full_y=True)
    swapped = moments.swap()
    moments.update(x, y)
    check(swapped, y, x)
    assert swapped.sxy.data_ptr() == moments.sxy.data_ptr()
    assert [t.shape for t in CoMoments.empty(P, Q).swap().tensors()] == [
        t.shape for t in CoMoments.empty(Q, P, full_x=False, full_y=True).tensors()
    ]


def test_tensors_and_back():
    moments = CoMoments.of(*data(0.0), full_y=True)
    back = CoMoments.from_tensors(moments.tensors())
    assert all(a is b for a, b in zip(moments.tensors(), back.tensors(), strict=True))
    with pytest.raises(ValueError, match="6 tensors, found 5"):
        CoMoments.from_tensors(moments.tensors()[:5])
    with pytest.raises(SHAPE_ERROR, match=r"not statistics of one pair|Type-check"):
        CoMoments.from_tensors([*moments.tensors()[:5], torch.zeros(Q + 1, dtype=torch.float64)])


def test_no_gradient_is_kept():
    x, y = data(0.0)
    moments = CoMoments.of(x.requires_grad_(), y)
    assert not any(t.requires_grad for t in moments.merge(moments).tensors())


def test_errors_name_the_argument():
    x, y = data(0.0)
    moments = CoMoments.empty(P, Q)
    bad = y.clone()
    bad[3, 1], bad[4, 2] = float("nan"), float("inf")
    with pytest.raises(ValueError, match=f"y: 2 of {N * Q} values"):
        moments.update(x, bad)
    with pytest.raises(ValueError, match=r"expected \(103, 7\), \(103, 5\)"):
        moments.update(y, x)
    with pytest.raises(SHAPE_ERROR, match=r"expected|Type-check"):
        moments.update(x, y[:-1])
    assert moments.count == 0
    with pytest.raises(ValueError, match="cannot be merged"):
        moments.merge(CoMoments.empty(P, Q, full_y=True))


def splitmix64(value: int) -> int:
    z = (value + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@pytest.mark.parametrize("n_folds", [1, 2, 5, 7])
def test_fold_is_splitmix64_in_exact_arithmetic(n_folds):
    stimulus = [0, 1, 2, 1199, 72_999, -1, -(2**63), 2**63 - 1, *range(10**12, 10**12 + 50)]
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # published test vector
    found = fold_of(torch.tensor(stimulus), n_folds)
    assert found.dtype == torch.int64
    assert found.tolist() == [(splitmix64(s) >> 1) % n_folds for s in stimulus]


def test_folds_keep_stimuli_together_and_are_balanced():
    stimulus = torch.arange(10_000).repeat(3)[torch.randperm(30_000, generator=torch.Generator().manual_seed(0))]
    fold = fold_of(stimulus, 5)
    folds_of_stimulus = torch.zeros(10_000, 5).index_put_((stimulus, fold), torch.tensor(1.0))
    assert (folds_of_stimulus.sum(dim=1) == 1).all()
    counts = fold.bincount(minlength=5) / 3
    assert (counts - 2000).abs().max() < 4 * (10_000 * 0.2 * 0.8) ** 0.5
    # numbers in arithmetic progression (one session, one class) spread as well
    assert fold_of(torch.arange(0, 50_000, 5), 5).bincount(minlength=5).min() > 1840


def test_fold_errors():
    with pytest.raises(ValueError, match="n_folds must be at least 1, found 0"):
        fold_of(torch.arange(3), 0)
    with pytest.raises(SHAPE_ERROR, match=r"must be int64, found torch\.int32|Type-check"):
        fold_of(torch.arange(3, dtype=torch.int32), 5)


def test_form_and_memory():
    assert [choose_form(100, n) for n in (99, 100, 101)] == ["kernel", "primal", "primal"]
    statistics = sum(t.nbytes for t in CoMoments.empty(400, 30).tensors())
    assert predicted_memory(400, 30, 10**6, "primal", 5) > 5 * statistics
    assert predicted_memory(400, 30, 10**6, "primal", 5) == predicted_memory(400, 30, 10, "primal", 5)
    both = predicted_memory(400, 30, 10, "primal", 5, full_y=True) - predicted_memory(400, 30, 10, "primal", 5)
    assert both == 8 * (5 + 5) * (30 * 30 - 30)
    assert predicted_memory(15_000, 512, 1200, "kernel", 5) < predicted_memory(15_000, 512, 1200, "primal", 5)
