from functools import reduce

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from threadpoolctl import threadpool_limits
from torch import Tensor

from lightning_modules.networks.comoments import CoMoments, fold_of
from lightning_modules.networks.ridge import (
    default_alphas,
    fit_kernel,
    fit_primal,
    select_alpha_kernel,
    select_alpha_primal,
    solve_ridge,
    solve_ridge_kernel,
)

Q, FOLDS = 6, 5
SHAPE_ERROR = (ValueError, TypeCheckError)  # where annotations are checked, the check comes first
RELATIVE = [1e-8, 1e-6, 1e-4, 1e-2, 1.0, 100.0]
both_intercepts = pytest.mark.parametrize("intercept", [True, False], ids=["intercept", "origin"])
offsets = pytest.mark.parametrize("offset", [0.0, 1e3])
shapes = pytest.mark.parametrize(("n", "p"), [(150, 40), (60, 160)], ids=["long", "wide"])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Hundreds of small fits: on a busy machine, threads that wait for a core cost more than they save."""
    with threadpool_limits(1):
        yield


def data(n: int, p: int, offset: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Decaying spectrum (1e-4 in amplitude), collinear columns, targets of all scales, 3 repetitions."""
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.standard_normal((p, p)))
    x = rng.standard_normal((n, p)) * np.logspace(0, -4, p) @ rotation
    x[:, 3], x[:, 4] = x[:, 1], x[:, 1] - 2 * x[:, 2]
    signal = x @ rng.standard_normal((p, Q))
    y = (signal + np.logspace(-1, 1, Q) * signal.std(0) * rng.standard_normal((n, Q))) * np.logspace(-3, 3, Q)
    stimulus = torch.from_numpy(rng.permutation(np.arange(n) // 3))
    return torch.from_numpy(x + offset), torch.from_numpy(y + offset), fold_of(stimulus, FOLDS)


def by_svd(x: Tensor, y: Tensor, alpha: float | np.ndarray, intercept: bool) -> tuple[np.ndarray, np.ndarray]:
    """W = V s / (s^2 + alpha) U^T y, of centred data."""
    a, b = x.numpy(), y.numpy()
    mean_a, mean_b = (a.mean(0), b.mean(0)) if intercept else (np.zeros(a.shape[1]), np.zeros(b.shape[1]))
    u, s, vt = np.linalg.svd(a - mean_a, full_matrices=False)
    weight = vt.T @ (s[:, None] / (s[:, None] ** 2 + alpha) * (u.T @ (b - mean_b)))
    return weight, mean_b - mean_a @ weight


def top(x: Tensor, intercept: bool) -> float:
    return float(torch.linalg.matrix_norm(x - x.mean(0) if intercept else x, 2)) ** 2


def moments_of_folds(x: Tensor, y: Tensor, fold: Tensor, **full: bool) -> list[CoMoments]:
    return [CoMoments.of(x[fold == k], y[fold == k], **full) for k in range(FOLDS)]


def close(found: Tensor, expected: np.ndarray, rtol: float = 1e-5) -> None:
    """Relative to the largest entry of each target (column)."""
    error = np.abs(found.numpy() - expected).max(0) / np.abs(expected).max(0).clip(1e-300)
    assert error.max() < rtol, f"relative error {error.max():.1e}"


# ---- fits ------------------------------------------------------------------------------------------


@shapes
@offsets
@both_intercepts
@pytest.mark.parametrize("relative", RELATIVE)
def test_fits_agree_with_svd_and_sklearn(n, p, offset, intercept, relative):
    x, y, _ = data(n, p, offset)
    alpha = relative * top(x, intercept)
    weight, bias = by_svd(x, y, alpha, intercept)
    sklearn = Ridge(alpha=alpha, fit_intercept=intercept, solver="svd").fit(x.numpy(), y.numpy())
    for found_weight, found_bias in (
        fit_primal(CoMoments.of(x, y), alpha, intercept=intercept),
        fit_kernel(x, y, alpha, intercept=intercept),
    ):
        close(found_weight, weight)
        close(found_weight, sklearn.coef_.T)
        close(x @ found_weight + found_bias, sklearn.predict(x.numpy()))
        scale = np.abs(bias) + np.abs(y.numpy()).max(0)
        np.testing.assert_array_less(np.abs(found_bias.numpy() - bias), 1e-5 * scale)
        assert intercept or not found_bias.any()


@shapes
@both_intercepts
def test_one_alpha_for_each_target(n, p, intercept):
    x, y, _ = data(n, p, 1e3)
    alpha = torch.logspace(-7, 1, Q, dtype=torch.float64) * top(x, intercept)
    weight, _ = by_svd(x, y, alpha.numpy(), intercept)
    close(fit_primal(CoMoments.of(x, y), alpha, intercept=intercept)[0], weight)
    close(fit_kernel(x, y, alpha, intercept=intercept)[0], weight)


@both_intercepts
def test_single_precision_input_and_odd_batches(intercept):
    x, y, _ = (v.float() if v.is_floating_point() else v for v in data(150, 40, 1e3))
    moments = CoMoments.empty(40, Q)
    for a, b in zip(x.split(7), y.split(7), strict=True):
        moments.update(a, b)
    alpha = 1e-8 * top(x.double(), intercept)
    close(fit_primal(moments, alpha, intercept=intercept)[0], by_svd(x.double(), y.double(), alpha, intercept)[0])


@shapes
@both_intercepts
def test_alpha_zero_is_minimum_norm_least_squares(n, p, intercept):
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.standard_normal((n, p)) @ np.diag(np.linspace(1, 2, p)))
    x[:, 3] = x[:, 1]
    y = torch.from_numpy(rng.standard_normal((n, Q)))
    means = (x.mean(0), y.mean(0)) if intercept else (0.0, 0.0)
    weight = np.linalg.lstsq((x - means[0]).numpy(), (y - means[1]).numpy(), rcond=1e-7)[0]
    close(fit_primal(CoMoments.of(x, y), 0.0, intercept=intercept)[0], weight)
    close(fit_kernel(x, y, 0.0, intercept=intercept)[0], weight)


@pytest.mark.parametrize("n", [1, 2])
def test_very_few_samples(n):
    x, y, _ = data(60, 10, 3.0)
    for intercept in (True, False):
        for weight, bias in (
            fit_primal(CoMoments.of(x[:n], y[:n]), 0.5, intercept=intercept),
            fit_kernel(x[:n], y[:n], 0.5, intercept=intercept),
        ):
            expected = by_svd(x[:n], y[:n], 0.5, intercept)
            np.testing.assert_allclose(weight, expected[0], atol=1e-12)
            np.testing.assert_allclose(bias, expected[1], rtol=1e-12)


@both_intercepts
def test_encoding_direction_from_the_same_statistics(intercept):
    x, y, fold = data(150, 40, 1e3)
    folds = [m.swap() for m in moments_of_folds(x, y, fold, full_x=False, full_y=True)]
    alphas = default_alphas(top(y, intercept), 6)
    found = select_alpha_primal(folds, alphas, intercept=intercept)
    expected = select_alpha_primal(moments_of_folds(y, x, fold), alphas, intercept=intercept)
    np.testing.assert_allclose(found.r2, expected.r2, rtol=1e-9, atol=1e-9)
    weight, _ = fit_primal(reduce(CoMoments.merge, folds), alphas[2], intercept=intercept)
    close(weight, by_svd(y, x, float(alphas[2]), intercept)[0])


# ---- cross-validation ------------------------------------------------------------------------------


def by_sklearn(x: Tensor, y: Tensor, fold: Tensor, alphas: Tensor, intercept: bool) -> np.ndarray:
    """R^2 (A, Q) of held-out predictions, target by target, with scikit-learn alone."""
    splits = PredefinedSplit(fold.numpy())
    table = np.empty((len(alphas), y.shape[1]))
    for target, row in np.ndindex(y.shape[1], len(alphas)):
        a, b = x.numpy(), y[:, target].numpy()
        model = Ridge(alpha=float(alphas[row]), fit_intercept=intercept, solver="svd")
        squares = sum(((b[v] - model.fit(a[t], b[t]).predict(a[v])) ** 2).sum() for t, v in splits.split())
        table[row, target] = 1 - squares / ((b - b.mean()) ** 2).sum()
    return table


@shapes
@offsets
@both_intercepts
def test_cross_validation_agrees_with_sklearn(n, p, offset, intercept):
    x, y, fold = data(n, p, offset)
    alphas = torch.logspace(-8, 2, 6, dtype=torch.float64) * top(x, intercept)
    table = by_sklearn(x, y, fold, alphas, intercept)
    best = alphas[table.argmax(0)]
    assert not intercept or len(best.unique()) > 2  # the targets differ in noise, so the test can tell them apart
    variation = y.numpy().var(0)
    shared = alphas[((table - 1) * variation).sum(1).argmax()]  # squared error of all targets together
    primal, kernel = moments_of_folds(x, y, fold), (x, y, fold)
    for per_target, expected in ((True, best), (False, shared)):
        options = {"intercept": intercept, "per_target": per_target}
        for choice in (
            select_alpha_primal(primal, alphas, **options),
            select_alpha_kernel(*kernel, alphas, **options),
        ):
            np.testing.assert_allclose(choice.r2, table, rtol=1e-5, atol=1e-5)
            assert choice.alpha.shape == expected.shape
            assert torch.equal(choice.alpha, expected)
            assert torch.equal(choice.alphas, alphas)


def test_per_target_choice_is_that_of_grid_search():
    # Folds of one size, so that the mean over folds of mean squared errors has the same minimum as the sum.
    x, y, _ = data(150, 40)
    fold = torch.arange(150) % FOLDS
    alphas = default_alphas(top(x, True), 8)
    choice = select_alpha_primal(moments_of_folds(x, y, fold), alphas, per_target=True)
    for target in range(Q):
        search = GridSearchCV(
            Ridge(solver="svd"),
            {"alpha": alphas.tolist()},
            scoring="neg_mean_squared_error",
            cv=PredefinedSplit(fold.numpy()),
        ).fit(x.numpy(), y[:, target].numpy())
        assert choice.alpha[target] == search.best_params_["alpha"]


@both_intercepts
@pytest.mark.parametrize("per_target", [True, False])
def test_solving_is_choosing_and_fitting(intercept, per_target):
    x, y, fold = data(60, 160, 1e3)
    folds = moments_of_folds(x, y, fold)
    options = {"intercept": intercept, "per_target": per_target}
    grid = default_alphas(top(x, intercept))
    choice = select_alpha_primal(folds, grid, **options)
    weight, bias = fit_primal(CoMoments.of(x, y), choice.alpha, intercept=intercept)
    for solution in (solve_ridge(folds, **options), solve_ridge_kernel(x, y, fold, **options)):
        torch.testing.assert_close(solution.alphas, grid, rtol=1e-9, atol=0)
        torch.testing.assert_close(solution.alpha, choice.alpha, rtol=1e-9, atol=0)
        close(solution.weight, weight.numpy())
        close(x @ solution.weight + solution.bias, (x @ weight + bias).numpy())
    alpha = 1e-8 * top(x, intercept)
    fixed = solve_ridge(folds, alpha=alpha, intercept=intercept)
    close(fixed.weight, fit_kernel(x, y, alpha, intercept=intercept)[0].numpy())
    assert (fixed.alpha.shape, fixed.alphas.shape, fixed.r2.shape) == ((), (0,), (0, Q))


@pytest.mark.parametrize("form", ["primal", "kernel"])
def test_a_shared_alpha_does_not_depend_on_the_axes_of_the_targets(form):
    x, y, fold = data(60, 30)
    y = y * torch.logspace(0, -2, y.shape[1], dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(y.shape[1], y.shape[1], dtype=torch.float64)).Q
    alphas = default_alphas(top(x, True), 25)

    def select(targets: Tensor):
        if form == "kernel":
            return select_alpha_kernel(x, targets, fold, alphas)
        return select_alpha_primal(moments_of_folds(x, targets, fold), alphas)

    assert select(y @ turn).alpha == select(y).alpha


@pytest.mark.parametrize("form", ["primal", "kernel"])
@both_intercepts
def test_constant_targets_are_ignored(form, intercept):
    x, y, fold = data(60, 30)
    extended = torch.cat([y, torch.full((60, 1), 1000.1, dtype=torch.float64)], dim=1)
    alphas = default_alphas(top(x, True), 9)

    def select(targets: Tensor, per_target: bool = False):
        options = {"intercept": intercept, "per_target": per_target}
        if form == "kernel":
            return select_alpha_kernel(x, targets, fold, alphas, **options)
        return select_alpha_primal(moments_of_folds(x, targets, fold), alphas, **options)

    assert select(extended).alpha == select(y).alpha
    assert select(extended).r2[:, -1].isnan().all()
    assert not select(extended).r2[:, :-1].isnan().any()
    assert select(extended, per_target=True).alpha[-1] == alphas.max()
    with pytest.raises(ValueError, match="every target is constant"):
        select(extended[:, -1:])


def test_ties_go_to_the_larger_alpha():
    _, y, fold = data(60, 30)
    # A single column orthogonal to the targets in every fold: no alpha is better than another.
    flat = torch.zeros(60, 1, dtype=torch.float64)
    grid = [1.0, 100.0, 10.0]
    assert select_alpha_primal(moments_of_folds(flat, y, fold), grid).alpha == 100.0
    assert (select_alpha_kernel(flat, y, fold, grid, per_target=True).alpha == 100.0).all()


def test_empty_folds_are_skipped():
    x, y, fold = data(60, 30)
    folds = moments_of_folds(x, y, fold)
    expected = select_alpha_primal(folds, [1.0, 2.0]).r2
    assert torch.equal(select_alpha_primal([CoMoments.empty(30, Q), *folds], [1.0, 2.0]).r2, expected)
    with pytest.raises(ValueError, match="at least 2 folds with samples, found 1; give a fixed alpha"):
        select_alpha_primal([folds[0], CoMoments.empty(30, Q)], [1.0])
    with pytest.raises(ValueError, match="at least 2 folds with samples, found 1"):
        select_alpha_kernel(x, y, torch.zeros(60, dtype=torch.int64), [1.0])


# ---- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [-1.0, float("nan"), float("inf")])
def test_impossible_alphas(alpha):
    x, y, fold = data(60, 30)
    folds = moments_of_folds(x, y, fold)
    for call in (
        lambda: fit_primal(folds[0], alpha),
        lambda: fit_kernel(x, y, alpha),
        lambda: select_alpha_primal(folds, [1.0, alpha]),
        lambda: select_alpha_kernel(x, y, fold, [1.0, alpha]),
        lambda: solve_ridge(folds, alpha=alpha),
    ):
        with pytest.raises(ValueError, match="alpha must be finite and at least 0"):
            call()


def test_errors_say_what_is_wrong():
    x, y, fold = data(60, 30)
    bad = x.clone()
    bad[0, :3] = float("nan")
    with pytest.raises(ValueError, match="x: 3 of 1800 values are NaN"):
        fit_kernel(bad, y, 1.0)
    with pytest.raises(SHAPE_ERROR, match=r"must be \(n, P\) and \(n, Q\)|Type-check"):
        fit_kernel(x, y[:-1], 1.0)
    with pytest.raises(ValueError, match=r"one or 6, found shape \(2,\)"):
        fit_primal(CoMoments.of(x, y), torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="at least one"):
        select_alpha_kernel(x, y, fold, [])
    with pytest.raises(SHAPE_ERROR, match=r"fold must be \(60,\)|Type-check"):
        select_alpha_kernel(x, y, fold[:-1], [1.0])
    with pytest.raises(ValueError, match="needs the full sxx"):
        fit_primal(CoMoments.of(x, y).swap(), 1.0)
    for nothing in (lambda: fit_primal(CoMoments.empty(3, 2), 1.0), lambda: solve_ridge([])):
        with pytest.raises(ValueError, match="got no samples"):
            nothing()
    with pytest.raises(ValueError, match=r"largest eigenvalue of 0\.0"):
        solve_ridge([CoMoments.of(torch.zeros(4, 3), y[:4])] * 2)
    with pytest.raises(ValueError, match="n = 0"):
        default_alphas(1.0, 0)


def test_default_grid():
    grid = default_alphas(50.0)
    assert len(grid) == 15
    np.testing.assert_allclose(grid[[0, -1]], [50e-6, 500.0])
    np.testing.assert_allclose(grid[1:] / grid[:-1], 10**0.5)
