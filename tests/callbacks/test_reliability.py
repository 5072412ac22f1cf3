"""Reliability: diversity by hand, leaks and confident noise are found, honest decoders are left alone."""

from __future__ import annotations

import warnings
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from callbacks import PictureScores, Reliability, Score, load_part, save_part
from callbacks.reliability import diversity
from contracts import Output
from tests.callbacks.pictures import Recorded, Replay, context, decoded, grey_mean, output, part_of, photographs
from tests.lightning_modules.fitting import short_trainer

NUMBER = 24


@pytest.fixture(scope="module")
def seen() -> Tensor:
    return photographs(NUMBER, side=16)


def controlled(seen: Tensor, samples: int = 3, **change: Any) -> Output:
    """An honest decoder: pictures from recordings are like what was seen, those from noise are not, and it knows."""
    random = torch.Generator().manual_seed(1)

    def confidence(mean: float) -> Tensor:
        return mean + 0.3 * torch.randn(len(seen), samples, generator=random)

    order = (torch.arange(len(seen)) + 5) % len(seen)
    more = {
        "confidence": confidence(-1),
        "encoded.generated": decoded(seen, samples, noise=0.7, seed=1),
        "encoded.confidence": confidence(-1),
        "shuffled.generated": decoded(seen, samples, noise=1.0, seed=2),
        "noise.generated": decoded(seen[order], samples, noise=1.0, seed=3),
        "noise.confidence": confidence(-2),
    }
    return output(seen, decoded(seen, samples, noise=0.8), **{**more, **change})


def by_name(scores: list[Score]) -> dict[tuple[str, str], Score]:
    return {(score.name, score.gallery): score for score in scores}


def test_diversity_is_that_of_all_pairs() -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(5, 4, 9, generator=random) + torch.randn(5, 1, 9, generator=random)
    pairs = [
        np.mean([1 - np.corrcoef(sample[i], sample[j])[0, 1] for i, j in combinations(range(4), 2)])
        for sample in features.numpy()
    ]
    np.testing.assert_allclose(diversity(features), pairs, atol=1e-6)
    assert float(diversity(features[:, :1].expand(-1, 3, -1)).abs().max()) < 1e-9
    with pytest.raises(ValueError, match="single picture"):
        diversity(features[:, :1])


def test_an_honest_decoder_is_not_warned_of(seen: Tensor) -> None:
    callback = Reliability()
    part = part_of(callback, controlled(seen), embed=grey_mean)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = by_name(callback.evaluate([part]))
    space = f"embedding ({NUMBER})"
    for condition in ("real", "encoded", "shuffled", "noise"):
        assert scores[f"{condition}_two_way", space].similarity == "pearson"
        assert scores[f"{condition}_diversity", "pixels"].note == "3 samples"
        assert ((f"{condition}_confidence", "") in scores) == (condition != "shuffled"), "as the output has it"
        assert 0 < scores[f"{condition}_diversity", "embedding"].value < 2
    assert len(scores) == 4 * 3 + 3
    assert scores["real_two_way", space].value > 0.9
    assert scores["noise_two_way", space].low < 0.5 < scores["noise_two_way", space].high  # type: ignore[operator]
    assert scores["noise_diversity", "pixels"].value == pytest.approx(1, abs=0.05)
    assert scores["real_diversity", "pixels"].value < 1
    confidence = part.outputs["01"]["confidence"]
    assert scores["real_confidence", ""].value == pytest.approx(float(confidence.mean()), abs=1e-6)
    assert scores["real_confidence", ""].n == NUMBER
    assert not [score for score in scores.values() if "WARNING" in score.note or "LEAK" in score.note]


def test_two_way_of_real_is_that_of_picture_scores(seen: Tensor) -> None:
    outputs = controlled(seen)
    for embed, space in ((grey_mean, "embedding"), (None, "pixels")):
        callback, other = Reliability(), PictureScores(("two_way", "embedding"))
        gallery = f"{space} ({NUMBER})"
        ours = by_name(callback.evaluate([part_of(callback, outputs, embed=embed)]))["real_two_way", gallery]
        theirs = by_name(other.evaluate([part_of(other, outputs, embed=embed)]))["two_way", gallery]
        assert (ours.value, ours.low, ours.p_value) == (theirs.value, theirs.low, theirs.p_value)


@pytest.mark.parametrize("condition", ["noise", "shuffled"])
def test_a_leak_is_found(seen: Tensor, condition: str) -> None:
    callback = Reliability()
    leaking = controlled(seen, **{f"{condition}.generated": decoded(seen, 3, noise=0.8, seed=9)})
    part = part_of(callback, leaking, embed=grey_mean)
    with pytest.warns(UserWarning, match=f"LEAK: pictures from {condition} recordings are identified above chance"):
        scores = by_name(callback.evaluate([part]))
    flagged = [name for (name, _), score in scores.items() if "LEAK" in score.note]
    assert flagged == [f"{condition}_two_way"]
    # in validation there are no intervals to judge by
    assert not [score for score in callback.evaluate([part], resample=False) if score.note.count("LEAK")]


@pytest.mark.parametrize(("mean", "flagged"), [(-2.0, False), (-1.0, True), (0.0, True)])
def test_confident_noise_is_found(seen: Tensor, mean: float, flagged: bool) -> None:
    random = torch.Generator().manual_seed(4)
    callback = Reliability()
    noise = mean + 0.3 * torch.randn(NUMBER, 3, generator=random)
    part = part_of(callback, controlled(seen, **{"noise.confidence": noise}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores = by_name(callback.evaluate([part]))
    assert bool([one for one in caught if "as confident as those of recordings" in str(one.message)]) == flagged
    gap = float((part.outputs["01"]["confidence"] - noise).mean())
    assert (f"(real - noise {gap:.3f}, " in scores["noise_confidence", ""].note) == flagged


def test_what_an_output_lacks_is_left_out(seen: Tensor) -> None:
    callback = Reliability()
    plain = output(seen, decoded(seen, 2))
    scores = by_name(callback.evaluate([part_of(callback, plain)]))
    assert set(scores) == {("real_two_way", f"pixels ({NUMBER})"), ("real_diversity", "pixels")}
    single = controlled(seen, samples=1)
    scores = by_name(callback.evaluate([part_of(callback, single)]))
    assert not [name for name, _ in scores if name.endswith("diversity")]
    assert "no diversity" in scores["real_two_way", f"pixels ({NUMBER})"].note
    with pytest.warns(UserWarning, match="single picture"):
        scores = by_name(callback.evaluate([part_of(callback, output(seen[:1], decoded(seen[:1], 2)), batches=1)]))
    assert list(scores) == [("real_diversity", "pixels")]


def test_scores_of_a_file_are_the_same(seen: Tensor, tmp_path: Path) -> None:
    callback = Reliability()
    part = part_of(callback, controlled(seen), embed=grey_mean)
    save_part(tmp_path / "outputs.safetensors", part)
    assert callback.evaluate([load_part(tmp_path / "outputs.safetensors")]) == callback.evaluate([part])


def test_pictures_are_embedded_once_for_all_scores(seen: Tensor, tmp_path: Path) -> None:
    embedded = []

    def embed(pictures: Tensor) -> Tensor:
        embedded.append(len(pictures))
        return grey_mean(pictures)

    outputs = controlled(seen, 3)
    names = frozenset(outputs)
    about = context(embed=embed)
    both = (PictureScores(scores=["embedding"]), Reliability(permutations=9, bootstraps=9))
    data = Recorded([outputs], about, batch_size=8)
    short_trainer(tmp_path, *both).test(Replay(about.layout, names), datamodule=data, verbose=False)
    # what was seen, and 3 pictures of each sample from recordings and three conditions
    assert sum(embedded) == len(seen) * (1 + 4 * 3)
    found = [by_name(callback.scores) for callback in both]
    space = f"embedding ({len(seen)})"
    assert found[0]["two_way", space].value == found[1]["real_two_way", space].value
