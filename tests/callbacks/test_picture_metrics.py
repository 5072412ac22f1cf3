"""Scores of pairs of pictures against independent references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from callbacks.metrics import (
    Estimate,
    chance_n_way,
    class_scores,
    classifier_n_way,
    clip_correlation,
    mean_of_pairs,
    perceptual_distance,
    pixel_correlation,
    ssim,
    two_way_of_pairs,
)
from callbacks.metrics.picture_pairs import Pairs, Resampling, compare, distinct, join, ssim_of_pairs
from callbacks.metrics.pictures import LocalMoments, resize, ssim_window
from callbacks.perceptual import build_perceptual
from contracts import DataError
from tests.callbacks.pictures import decoded, photographs

NONE = Resampling(permutations=0, bootstraps=0)


def ssim_by_hand(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], truncate: float = 3.5) -> float:
    """SSIM of two grey pictures from its definition, with scipy's Gaussian filter."""

    def blurred(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray(gaussian_filter(z, 1.5, truncate=truncate))

    edge = int(truncate * 1.5 + 0.5)
    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    places = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    places /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float(places[edge:-edge, edge:-edge].mean())


def grey(picture: Tensor) -> np.ndarray[Any, Any]:
    red, green, blue = picture.double().numpy() / 255
    return np.asarray(0.2125 * red + 0.7154 * green + 0.0721 * blue)


def test_pixel_correlation_is_that_of_numpy() -> None:
    seen = photographs()
    made = decoded(seen, 1)[:, 0]
    ours = pixel_correlation(made, seen)
    theirs = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(made.numpy(), seen.numpy(), strict=True)]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert 0.1 < float(ours.mean()) < 0.95
    torch.testing.assert_close(pixel_correlation(seen, seen), torch.ones(len(seen)).double())


def test_pixel_correlation_at_the_published_size() -> None:
    seen = photographs(3, side=64)
    made = decoded(seen, 1, side=32)[:, 0]
    big = [nn.functional.interpolate(x.float(), (425, 425), mode="bilinear", align_corners=False) for x in (made, seen)]
    theirs = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(*(x.numpy() for x in big), strict=True)]
    np.testing.assert_allclose(pixel_correlation(made, seen, size=425), theirs, atol=1e-5)


def test_ssim_is_that_of_the_definition_and_of_torchmetrics() -> None:
    seen = photographs()
    made = decoded(seen, 1)[:, 0]
    ours = ssim(made, seen)
    theirs = [ssim_by_hand(grey(a), grey(b)) for a, b in zip(made, seen, strict=True)]
    np.testing.assert_allclose(ours, theirs, atol=1e-7)
    a, b = (torch.stack([torch.from_numpy(grey(one)) for one in side])[:, None] for side in (made, seen))
    _, places = structural_similarity_index_measure(a, b, sigma=1.5, data_range=1.0, return_full_image=True)
    # torchmetrics goes on to average over places whose window reaches beyond the picture
    np.testing.assert_allclose(ours, places[..., 5:-5, 5:-5].flatten(1).mean(1), atol=1e-6)
    torch.testing.assert_close(ssim(seen, seen), torch.ones(len(seen)).double())


@pytest.mark.parametrize(("side", "window"), [(3, 3), (8, 7), (10, 9), (11, 11), (40, 11)])
def test_small_pictures_get_a_smaller_window(side: int, window: int) -> None:
    assert ssim_window(side) == window
    seen = photographs(4, side=side)
    made = decoded(seen, 1, noise=0.3)[:, 0]
    truncate = (window // 2) / 1.5
    theirs = [ssim_by_hand(grey(a), grey(b), truncate) for a, b in zip(made, seen, strict=True)]
    np.testing.assert_allclose(ssim(made, seen), theirs, atol=1e-7)


def test_ssim_of_all_pairs_is_that_of_each() -> None:
    seen = photographs(5, side=20)
    made = decoded(seen, 2)
    items = torch.arange(5) * 2
    stimulus = torch.tensor([8, 0, 2, 4, 6])
    pairs, chance = ssim_of_pairs(made.float() / 255, stimulus, seen.float() / 255, items)
    assert pairs is not None
    assert chance is None
    for i in range(5):
        for s in range(2):
            expected = ssim(made[i, s].expand(5, -1, -1, -1), seen)
            torch.testing.assert_close(pairs.similarity[i, s], expected, atol=1e-5, rtol=0)
    # beyond the limit: the next two pictures after the own one, by alternating sample numbers
    nothing, some = ssim_of_pairs(made.float() / 255, stimulus, seen.float() / 255, items, limit=10)
    assert nothing is None
    own = [4, 0, 1, 2, 3]
    chosen = [float(pairs.similarity[i, i % 2, (own[i] + shift) % 5]) for i in range(5) for shift in (1, 2)]
    assert some == pytest.approx(np.mean(chosen), abs=1e-6)
    assert ssim_of_pairs(made[:1].float(), items[:1], seen[:1].float(), items[:1]) == (None, None)


def test_perceptual_distance_is_that_of_torchmetrics() -> None:
    seen = photographs(4, side=64)
    made = decoded(seen, 1)[:, 0]
    network = build_perceptual("alex", "random")
    with pytest.MonkeyPatch.context() as patch:
        # the class would download its backbone; it gets ours, under its own published layer on top
        patch.setattr("torchmetrics.image.lpip._NoTrainLpips", lambda net: build_perceptual(net, "random"))
        metric = LearnedPerceptualImagePatchSimilarity("alex", normalize=True)
    ours = perceptual_distance(made, seen, network)
    for a, b, value in zip(made, seen, ours, strict=True):
        assert float(metric(a[None] / 255, b[None] / 255)) == pytest.approx(float(value), abs=1e-6)
        metric.reset()
    assert float(ours.min()) > 0
    assert float(perceptual_distance(seen, seen, network).abs().max()) < 1e-9
    # small pictures are enlarged
    small = [
        nn.functional.interpolate(x / 255, (64, 64), mode="bilinear") for x in (made[:, :, :9, :9], seen[:, :, :9, :9])
    ]
    expected = network(*small, normalize=True).flatten().double()
    torch.testing.assert_close(perceptual_distance(made[:, :, :9, :9], seen[:, :, :9, :9], network), expected)


def test_perceptual_backbone_from_a_file(tmp_path: Path) -> None:
    from torchvision.models import alexnet, squeezenet1_1

    seen = photographs(2, side=64)
    made = decoded(seen, 1)[:, 0]
    values = []
    for net, kind, file in (("alex", alexnet, "a.pth"), ("squeeze", squeezenet1_1, "b.pth")):
        torch.manual_seed(5)
        backbone = kind(weights=None)
        torch.save(backbone.state_dict(), tmp_path / file)
        network: Any = build_perceptual(net, str(tmp_path / file))  # type: ignore[arg-type]
        shifted = (2 * (seen / 255) - 1 - network.scaling_layer.shift) / network.scaling_layer.scale
        last = backbone.features[:12](shifted) if net == "alex" else backbone.features[:13](shifted)
        torch.testing.assert_close(network.net(shifted)[-1], last)
        values.append(perceptual_distance(made, seen, network))
    assert not torch.allclose(*values)
    with pytest.raises(DataError, match=r"b.pth is not torchvision's alexnet: 1 of 10 weights match"):
        build_perceptual("alex", str(tmp_path / "b.pth"))
    with pytest.raises(DataError, match="no file"):
        build_perceptual("alex", str(tmp_path / "c.pth"))


# ---- identification and means --------------------------------------------------------------------------


def two_way_by_hand(made: np.ndarray[Any, Any], seen: np.ndarray[Any, Any], own: list[int]) -> float:
    shares = []
    for row, right in zip(made, own, strict=True):
        r = [np.corrcoef(row.flatten(), other.flatten())[0, 1] for other in seen]
        others = [j for j in range(len(seen)) if j != right]
        shares.append(np.mean([1.0 if r[right] > r[j] else 0.5 if r[right] == r[j] else 0.0 for j in others]))
    return float(np.mean(shares))


def test_two_way_is_that_of_a_double_loop_and_of_lea() -> None:
    seen = photographs(10, side=16)
    made = decoded(seen, 3, noise=0.93)
    stimulus = torch.arange(10) * 4
    pairs = compare(made, stimulus, seen, stimulus)
    estimate = two_way_of_pairs(pairs, Resampling(permutations=99, bootstraps=100))
    each = [two_way_by_hand(made[:, s].numpy(), seen.numpy(), list(range(10))) for s in range(3)]
    assert estimate.value == pytest.approx(np.mean(each))
    assert 0.55 < estimate.value < 0.999
    published = [clip_correlation(made[:, s].flatten(1).float(), seen.flatten(1).float()) for s in range(3)]
    assert estimate.value == pytest.approx(np.mean(published))
    assert f"mean of 3 samples (min {min(each):.3f} .. max {max(each):.3f})" in estimate.note
    assert estimate.n == estimate.stimuli == 10
    assert estimate.chance == 0.5
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < estimate.value < estimate.high
    assert estimate.p_value == pytest.approx(0.01)


def test_trials_share_a_picture_and_it_stands_once_in_the_gallery() -> None:
    seen = photographs(6, side=12)
    made = decoded(seen.repeat_interleave(2, dim=0), 2, noise=0.93)
    stimulus = torch.tensor([7, 3, 9, 1, 5, 0]).repeat_interleave(2)
    gallery, items = distinct(seen.repeat_interleave(2, dim=0), stimulus)
    assert items.tolist() == [0, 1, 3, 5, 7, 9]
    torch.testing.assert_close(gallery, seen[[5, 3, 1, 4, 0, 2]])
    estimate = two_way_of_pairs(compare(made, stimulus, gallery, items), NONE)
    own = [items.tolist().index(int(s)) for s in stimulus]
    each = [two_way_by_hand(made[:, s].numpy(), gallery.numpy(), own) for s in range(2)]
    assert estimate.value == pytest.approx(np.mean(each))
    assert (estimate.n, estimate.stimuli) == (12, 6)


def test_a_picture_without_contrast_is_at_chance() -> None:
    seen = photographs(6, side=12)
    stimulus = torch.arange(6)
    made = torch.full((6, 1, 3, 12, 12), 128, dtype=torch.uint8)
    pairs = compare(made, stimulus, seen, stimulus)
    estimate = two_way_of_pairs(pairs, NONE)
    assert estimate.value == 0.5
    assert "6 pictures without contrast count as 0" in estimate.note
    assert torch.isnan(pixel_correlation(made[:, 0], seen)).all()


def mean_estimate(pairs: Pairs, **options: Any) -> Estimate:
    resampling = Resampling(permutations=199, bootstraps=400)
    return mean_of_pairs("similarity", pairs.values, pairs.stimulus, resampling, matrix=pairs, **options)


def test_means_have_the_chance_of_pairs_that_do_not_match() -> None:
    seen = photographs(9, side=12)
    made = decoded(seen, 2, noise=0.8)
    stimulus = torch.arange(9)
    pairs = compare(made, stimulus, seen, stimulus, similarity="cosine")
    flat, gallery = made.flatten(2).double().numpy(), seen.flatten(1).double().numpy()
    cosine = np.array(
        [[[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in gallery] for a in both] for both in flat]
    )
    estimate = mean_estimate(pairs)
    own = cosine[np.arange(9), :, np.arange(9)]
    assert estimate.value == pytest.approx(own.mean())
    away = ~np.eye(9, dtype=bool)
    assert estimate.chance == pytest.approx(cosine.mean(1)[away].mean())
    assert estimate.p_value == pytest.approx(1 / 200)
    assert estimate.low is not None
    assert estimate.high is not None
    # the interval is about as wide as that of the mean of 9 independent values
    width = own.mean(1).std(ddof=1) / 3 * 2 * 1.96
    assert 0.5 * width < estimate.high - estimate.low < 1.5 * width
    apart = Pairs(1 - pairs.similarity, stimulus, stimulus)
    distance = mean_estimate(apart, lower_is_better=True, bounds=(0.0, 2.0))
    assert distance.value == pytest.approx(1 - estimate.value)
    assert distance.chance == pytest.approx(1 - estimate.chance)
    assert distance.p_value == pytest.approx(1 / 200)
    assert mean_estimate(apart).p_value == 1


def test_random_pictures_have_uniform_p_values() -> None:
    p_values = []
    for seed in range(150):
        random = torch.Generator().manual_seed(seed)
        features, gallery = torch.randn(8, 2, 5, generator=random), torch.randn(8, 5, generator=random)
        pairs = compare(features, torch.arange(8), gallery, torch.arange(8))
        estimate = mean_of_pairs("x", pairs.values, pairs.stimulus, Resampling(199, 0, seed), matrix=pairs)
        assert estimate.p_value is not None
        p_values.append(estimate.p_value)
    assert 0.4 < np.mean(p_values) < 0.6
    assert 0.02 < np.mean(np.array(p_values) <= 0.1) < 0.2


def test_a_single_picture_has_neither_interval_nor_chance() -> None:
    seen = photographs(1, side=12)
    pairs = compare(decoded(seen, 2), torch.tensor([4]), seen, torch.tensor([4]))
    estimate = mean_estimate(pairs)
    assert (estimate.low, estimate.high, estimate.p_value, estimate.chance) == (None,) * 4
    with pytest.raises(ValueError, match="gallery of 1"):
        two_way_of_pairs(pairs, NONE)


def test_folds_are_joined_over_one_gallery() -> None:
    seen = photographs(8, side=12)
    made, stimulus = decoded(seen, 2, noise=0.9), torch.arange(8)
    whole = compare(made, stimulus, seen, stimulus)
    folds = join([compare(made[rows], stimulus[rows], seen, stimulus) for rows in (slice(0, 3), slice(3, 8))])
    resampling = Resampling(99, 99)
    assert two_way_of_pairs(folds, resampling) == two_way_of_pairs(whole, resampling)


# ---- classifier ----------------------------------------------------------------------------------------


def test_class_scores_are_those_of_the_closed_form_and_of_drawn_trials() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 40, generator=random).mul(3).round()
    candidates = torch.tensor([0, 39, 17])
    for n, k in ((2, 1), (10, 1), (10, 3)):
        ours = class_scores(logits, candidates, n, k)
        for column, right in enumerate(candidates.tolist()):
            theirs = classifier_n_way(logits, torch.full((7,), right), n, k)
            torch.testing.assert_close(ours[:, column], theirs)
    draws = np.random.default_rng(0)
    hits = []
    for _ in range(4000):
        others = draws.choice(np.delete(np.arange(40), 17), 9, replace=False)
        ahead = (logits[0, others] > logits[0, 17]).sum() + (logits[0, others] == logits[0, 17]).sum() * draws.random()
        hits.append(float(ahead < 3))
    assert np.mean(hits) == pytest.approx(float(class_scores(logits, candidates, 10, 3)[0, 2]), abs=0.05)
    assert float(class_scores(logits, torch.arange(40), 10).mean()) == pytest.approx(chance_n_way(10), abs=1e-9)


def test_class_scores_lie_within_the_error_of_published_trials(shared: Path) -> None:
    golden = load_file(shared / "golden" / "scores.safetensors")
    for sampled, (n, k) in zip(golden["n_way_sampled"], ((2, 1), (10, 1), (50, 1), (50, 5)), strict=True):
        exact = class_scores(golden["class_logits"], golden["true_class"], n, k).diagonal()
        error = (exact * (1 - exact) / 1000).clamp(min=1e-12).sqrt()
        assert ((exact - sampled.double()).abs() <= 4 * error + 1e-6).all(), (n, k)


# ---- bad input -----------------------------------------------------------------------------------------

GOOD = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)


@pytest.mark.parametrize("score", [pixel_correlation, ssim])
@pytest.mark.parametrize(
    ("generated", "message"),
    [
        (GOOD.float(), r"generated must be uint8 in 0..255, found float32 with values 0 .. 0; .*byte\(\)"),
        (GOOD.float().fill_(torch.nan), "found float32 with values nan"),
        (GOOD.long() + 300, "found int64 with values 300 .. 300"),
        (GOOD[:, :1], r"must be \(n, 3, H, W\), found \(2, 1, 16, 16\)"),
        (GOOD[0], r"found \(3, 16, 16\)"),
        (GOOD[:1], "1 generated pictures and 2 seen ones"),
    ],
    ids=["float", "nan", "long", "grey", "single", "fewer"],
)
def test_other_pictures_are_refused(score: Any, generated: Tensor, message: str) -> None:
    function = getattr(score, "__wrapped__", score)
    with pytest.raises(Exception, match=message) as caught:
        function(generated, GOOD)
    assert isinstance(caught.value, DataError)


def test_too_small_pictures_and_bad_features_are_refused() -> None:
    tiny = GOOD[:, :, :2]
    with pytest.raises(DataError, match="at least 3 pixels a side"):
        ssim(tiny, tiny)
    with pytest.raises(DataError, match="at least 3 pixels"):
        LocalMoments(tiny / 255)
    items = torch.arange(3)
    with pytest.raises(DataError, match="1 of 3 generated pictures have features that are not finite"):
        compare(torch.tensor([[[1.0, 2]], [[3, torch.nan]], [[1, 5]]]), items, torch.rand(3, 2), items)
    with pytest.raises(DataError, match="2 of 3 samples saw pictures that are not in the gallery"):
        Pairs(torch.rand(3, 1, 3), items + 2, items).own  # noqa: B018
    with pytest.raises(DataError, match="x: 1 of 3 samples have no score"):
        mean_of_pairs("x", torch.tensor([[0.0], [torch.nan], [1]]), items, NONE)
    with pytest.raises(DataError, match="NaN for 1 of 2"):
        class_scores(torch.tensor([[0.0, 1, 2], [torch.nan, 1, 2]]), torch.tensor([0]), 2)


def test_resizing_keeps_bytes_that_have_the_size() -> None:
    seen = photographs(2, side=12)
    torch.testing.assert_close(resize(seen, (12, 12)), seen / 255)
    bicubic = resize(seen, (30, 20), mode="bicubic")
    assert bicubic.shape == (2, 3, 30, 20)
    assert 0 <= float(bicubic.min()) <= float(bicubic.max()) <= 1
