"""Frechet distance against torchmetrics and scipy, with Inception and with another network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from callbacks import FrechetInception, PictureNetwork, Score
from callbacks.frechet import build_inception
from callbacks.metrics import frechet_distance
from contracts import ContractError, DataError
from tests.callbacks.pictures import Net, decoded, output, part_of, photographs


def by_definition(a: Tensor, b: Tensor) -> float:
    x, y = a.double().numpy(), b.double().numpy()
    root: Any = sqrtm(np.cov(x.T) @ np.cov(y.T))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * np.real(root)))


def clouds(n: int, m: int, width: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(n + m + width)
    mixing = torch.randn(width, width, generator=random)
    return (
        torch.randn(n, width, generator=random) @ mixing + 3,
        2 * torch.randn(m, width, generator=random) + torch.rand(width, generator=random),
    )


@pytest.mark.parametrize(("n", "m", "width"), [(40, 30, 6), (200, 7, 6), (9, 300, 5)])
def test_distance_is_that_of_the_definition(n: int, m: int, width: int) -> None:
    a, b = clouds(n, m, width)
    assert frechet_distance(a, b) == pytest.approx(by_definition(a, b), rel=1e-8)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_distance_of_one_dimension_by_hand() -> None:
    a, b = torch.tensor([[0.0], [2], [4]]), torch.tensor([[10.0], [11], [12]])
    # means 2 and 11, standard deviations 2 and 1
    assert frechet_distance(a, b) == pytest.approx(81 + 1)
    far = torch.tensor([[1e6], [1e6 + 2], [1e6 + 4]])
    assert frechet_distance(far, far + 3) == pytest.approx(9)


def test_fewer_pictures_than_features() -> None:
    a, b = clouds(5, 6, 40)
    # ridges make the definition's covariances regular; without them its root is a matter of luck
    x, y = a.double().numpy(), b.double().numpy()
    values = []
    for ridge in (1e-6, 1e-8):
        one, other = (np.cov(z.T) + ridge * np.eye(40) for z in (x, y))
        root: Any = sqrtm(one @ other)
        values.append(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(one + other - 2 * np.real(root)))
    assert frechet_distance(a, b) == pytest.approx(values[1], rel=2e-4)
    assert abs(frechet_distance(a, b) - values[1]) < abs(frechet_distance(a, b) - values[0])
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(1, 3), torch.zeros(4, 3), "at least 2 generated pictures, there are 1"),
        (torch.zeros(4, 3), torch.zeros(1, 3), "at least 2 seen pictures, there are 1"),
        (torch.zeros(4, 3), torch.zeros(4, 2), "are 3 wide, of seen ones 2"),
        (torch.full((4, 3), torch.nan), torch.zeros(4, 3), "features of 4 of 4 generated pictures are not finite"),
    ],
)
def test_features_that_cannot_be_compared(a: Tensor, b: Tensor, message: str) -> None:
    function: Any = getattr(frechet_distance, "__wrapped__", frechet_distance)
    with pytest.raises(DataError, match=message):
        function(a, b)


def of_torchmetrics(network: Any, made: Tensor, seen: Tensor) -> float:
    metric = FrechetInceptionDistance(feature=network, input_img_size=(3, 24, 24))
    metric.update(seen, real=True)
    metric.update(made, real=False)
    return float(metric.compute())


class Coarse(torch.nn.Module):
    """Mean colour of the upper and of the lower half: 6 features."""

    num_features = 6

    def forward(self, pictures: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pictures.float(), (2, 1)).flatten(1)


def test_score_of_another_network_is_that_of_torchmetrics() -> None:
    seen = photographs(20, side=24)
    made = decoded(seen, 3, noise=0.6)
    callback = FrechetInception(network=PictureNetwork(Coarse(), name="coarse"))
    [score] = callback.evaluate([part_of(callback, output(seen, made))])
    each = [of_torchmetrics(Coarse(), made[:, s], seen) for s in range(3)]
    assert score.value == pytest.approx(np.mean(each), rel=1e-4)
    assert (score.name, score.gallery, score.n, score.stimuli) == ("fid", "coarse", 20, 20)
    assert (score.low, score.p_value, score.chance) == (None, None, None)
    assert score.note.startswith(f"mean of 3 samples (min {min(each):.3f}")
    assert score.note.endswith("less is better")


def test_a_seen_picture_counts_once_and_its_trials_each() -> None:
    seen = photographs(10, side=24)
    made = decoded(seen.repeat_interleave(3, dim=0), 1, noise=0.6)
    callback = FrechetInception(network={"model": "tests.callbacks.test_frechet.Coarse"})
    [score] = callback.evaluate([part_of(callback, output(seen, made, trials=3))])
    assert score.value == pytest.approx(of_torchmetrics(Coarse(), made[:, 0], seen), rel=1e-4)
    assert (score.n, score.stimuli) == (30, 10)


@pytest.mark.filterwarnings("ignore:FID of sub-01")
@pytest.mark.parametrize("antialias", [True, False])
def test_inception_is_that_of_torchmetrics(antialias: bool, tmp_path: Path) -> None:
    network = build_inception(64, "random", antialias=antialias)
    file = tmp_path / "inception.pth"
    torch.save(network.state_dict(), file)
    seen = photographs(3, side=24)
    made = decoded(seen, 1, noise=0.6)
    callback = FrechetInception(feature=64, weights=str(file), antialias=antialias)
    part = part_of(callback, output(seen, made))
    # torchmetrics' own class, which reads the file in its own way
    metric = FrechetInceptionDistance(64, feature_extractor_weights_path=str(file), antialias=antialias)
    assert metric.inception is not network
    [features] = [value for name, value in part.outputs["01"].items() if name.endswith(".seen")]
    torch.testing.assert_close(features, metric.inception(seen))
    metric.update(seen, real=True)
    metric.update(made[:, 0], real=False)
    [score] = callback.evaluate([part])
    assert score.gallery == "inception-64"
    assert score.value == pytest.approx(float(metric.compute()), rel=1e-3)


def test_few_pictures_are_warned_of() -> None:
    seen = photographs(8, side=24)
    callback = FrechetInception(network=PictureNetwork(Net()))
    part = part_of(callback, output(seen, decoded(seen, 2)))
    with pytest.warns(UserWarning, match="FID of sub-01: only 8 pictures for 8 features"):
        scores: list[Score] = callback.evaluate([part])
    assert "only 8 pictures for 8 features: biased upwards, covariance without full rank" in scores[0].note
    with pytest.warns(UserWarning, match="single picture"):
        assert callback.evaluate([part_of(callback, output(seen[:1], decoded(seen[:1], 2)), batches=1)]) == []


def test_wrong_weights_and_features(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="feature is one of 64, 192, 768, 2048, not 65"):
        past_the_type_checker(65)
    with pytest.raises(DataError, match=r"no file .*absent.pth"):
        build_inception(64, str(tmp_path / "absent.pth"), antialias=True)
    torch.save(Net().state_dict(), tmp_path / "net.pth")
    with pytest.raises(DataError, match=r"net.pth holds other weights than those of Inception of FID: 0 of"):
        build_inception(64, str(tmp_path / "net.pth"), antialias=True)


def past_the_type_checker(feature: int) -> None:
    init: Any = FrechetInception.__init__
    getattr(init, "__wrapped__", init)(FrechetInception.__new__(FrechetInception), feature)
