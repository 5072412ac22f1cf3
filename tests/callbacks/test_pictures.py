"""PictureScores: every score against its definition, in folds, in validation, and through the command line's parser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

from callbacks import Part, PictureNetwork, PictureScores, Score, average, load_part, save_part
from callbacks.metrics import class_scores, pixel_correlation, ssim
from callbacks.perceptual import build_perceptual
from contracts import ContractError, DataError, Gallery
from experiments import arguments
from tests.callbacks.pictures import Net, Recorded, Replay, context, decoded, grey_mean, output, part_of, photographs
from tests.lightning_modules.fitting import short_trainer


def named(scores: list[Score], name: str, gallery: str = "") -> Score:
    [found] = [score for score in scores if score.name == name and score.gallery.startswith(gallery)]
    return found


def correlations(made: Tensor, seen: Tensor) -> np.ndarray[Any, Any]:
    """``(n, S, n)`` from numpy."""
    gallery = seen.flatten(1).double().numpy()
    return np.array(
        [
            [[np.corrcoef(one, other)[0, 1] for other in gallery] for one in both]
            for both in made.flatten(2).double().numpy()
        ]
    )


def two_way(r: np.ndarray[Any, Any]) -> float:
    number = len(r)
    shares = [
        np.mean([r[i, s, i] > r[i, s, j] for j in range(number) if j != i])
        for i in range(number)
        for s in range(r.shape[1])
    ]
    return float(np.mean(shares))


@pytest.fixture(scope="module")
def seen() -> Tensor:
    return photographs(8, side=24)


@pytest.fixture(scope="module")
def made(seen: Tensor) -> Tensor:
    return decoded(seen, 3, noise=0.85)


def test_offline_scores(seen: Tensor, made: Tensor) -> None:
    callback = PictureScores()
    part = part_of(callback, output(seen, made), embed=grey_mean)
    scores = callback.evaluate([part])
    assert [(score.name, score.gallery, score.similarity) for score in scores] == [
        ("pixcorr", "", ""),
        ("ssim", "", ""),
        ("two_way", "pixels (8)", "pearson"),
        ("two_way", "embedding (8)", "pearson"),
        ("similarity", "embedding (8)", "cosine"),
    ]
    r = correlations(made, seen)
    own = r[np.arange(8), :, np.arange(8)]
    away = ~np.eye(8, dtype=bool)
    pixcorr = named(scores, "pixcorr")
    assert pixcorr.value == pytest.approx(own.mean(), abs=1e-6)
    assert pixcorr.chance == pytest.approx(r.mean(1)[away].mean(), abs=1e-6)
    assert f"mean of 3 samples (min {own.mean(0).min():.3f} .. max {own.mean(0).max():.3f})" in pixcorr.note
    pairs = np.array(
        [[[float(ssim(made[i, s][None], seen[j][None])) for j in range(8)] for s in range(3)] for i in range(8)]
    )
    assert named(scores, "ssim").value == pytest.approx(pairs[np.arange(8), :, np.arange(8)].mean(), abs=1e-6)
    assert named(scores, "ssim").chance == pytest.approx(pairs.mean(1)[away].mean(), abs=1e-5)
    assert named(scores, "two_way", "pixels").value == pytest.approx(two_way(r))
    embedded = correlations(grey_mean(made.flatten(0, 1)).unflatten(0, (8, 3)), grey_mean(seen))
    assert named(scores, "two_way", "embedding").value == pytest.approx(two_way(embedded))
    for score in scores:
        assert score.low is not None
        assert score.high is not None
        assert score.chance is not None
        assert score.p_value is not None
        assert score.low < score.value <= score.high
        assert score.chance < score.value
        assert (score.n, score.stimuli, score.subject) == (8, 8, "01")
    assert named(scores, "pixcorr").p_value == pytest.approx(0.001)


def test_what_is_kept_is_small_and_has_names_that_fit_into_a_file(tmp_path: Path) -> None:
    big = photographs(4, side=100)
    generated = decoded(big, 2, side=80)
    callback = PictureScores(size=90, pixels=16, networks=[PictureNetwork(Net())])
    part = part_of(callback, output(big, generated))
    pictures = [name for name, value in part.outputs["01"].items() if value.dtype == torch.uint8]
    assert sorted(pictures) == ["pixels_16_90.generated", "pixels_16_90.seen"]
    assert part.outputs["01"]["pixels_16_90.generated"].shape == (4, 2, 3, 16, 16)
    assert not {"image", "generated"} & part.outputs["01"].keys()
    assert not [name for name in part.outputs["01"] if "/" in name]
    save_part(tmp_path / "outputs.safetensors", part)
    again = load_part(tmp_path / "outputs.safetensors")
    scores = callback.evaluate([again])
    assert scores == callback.evaluate([part])
    flat, repeated = generated.flatten(0, 1), big.repeat_interleave(2, dim=0)
    assert named(scores, "pixcorr_90").value == pytest.approx(float(pixel_correlation(flat, repeated, size=90).mean()))
    assert "at 90 x 90 pixels, chance and p from pictures of 16 x 16 pixels" in named(scores, "pixcorr_90").note
    assert "from pictures of 16 x 16 pixels" in named(scores, "two_way", "pixels_90 (4)").note


def test_networks_and_what_is_asked_of_them(seen: Tensor, made: Tensor) -> None:
    net = Net()
    networks = [
        PictureNetwork(net, layer="layers.0", scores=["two_way", "distance", "similarity"], name="hidden"),
        PictureNetwork(net, scores=[], n_way=[(2, 1), (5, 2)]),
    ]
    callback = PictureScores(scores=(), networks=networks)
    scores = callback.evaluate([part_of(callback, output(seen, made))])
    assert [(score.name, score.gallery) for score in scores] == [
        ("two_way", "hidden (8)"),
        ("distance", "hidden (8)"),
        ("similarity", "hidden (8)"),
        ("2_way_top_1", "Net (8 classes)"),
        ("5_way_top_2", "Net (8 classes)"),
    ]
    features = net.layers[0](grey_mean(made.flatten(0, 1))).detach().unflatten(0, (8, 3))
    r = correlations(features, net.layers[0](grey_mean(seen)).detach())
    assert named(scores, "two_way").value == pytest.approx(two_way(r))
    distance = named(scores, "distance")
    assert distance.value == pytest.approx(1 - r[np.arange(8), :, np.arange(8)].mean(), abs=1e-6)
    assert distance.p_value is not None
    assert distance.p_value < 0.05
    assert "less is better" in distance.note
    with torch.no_grad():
        logits, right = net(made.flatten(0, 1)), net(seen).argmax(1).repeat_interleave(3)
    for n, k in ((2, 1), (5, 2)):
        every = class_scores(logits, torch.arange(8), n, k)
        score = named(scores, f"{n}_way_top_{k}")
        assert score.value == pytest.approx(float(every.gather(1, right[:, None]).mean()))
        assert score.chance == k / n
        columns = every.unflatten(0, (8, 3)).mean(1)[:, right[::3]]
        others = float(columns[~torch.eye(8, dtype=torch.bool)].mean())
        assert f"pairs that do not match reach {others:.3f}" in score.note
    wide = PictureScores(scores=(), networks=[PictureNetwork(net, n_way=[(9, 1)])])
    part = part_of(wide, output(seen, made))
    with pytest.raises(ContractError, match="found n=9, k=1; change n_way"):
        wide.evaluate([part])


def test_perceptual_distance(seen: Tensor, made: Tensor) -> None:
    callback = PictureScores(scores=("lpips",), lpips_weights="random")
    [score] = callback.evaluate([part_of(callback, output(seen, made))])
    network = build_perceptual("alex", "random")
    flat, repeated = (
        torch.nn.functional.interpolate(x / 255, (64, 64), mode="bilinear")
        for x in (made.flatten(0, 1), seen.repeat_interleave(3, dim=0))
    )
    assert score.value == pytest.approx(float(network(flat, repeated, normalize=True).mean()), abs=1e-6)
    assert (score.chance, score.p_value) == (None, None)
    assert score.low is not None


def test_trials_of_a_picture_count_each_and_the_picture_once(seen: Tensor) -> None:
    twice = decoded(seen.repeat_interleave(2, dim=0), 1, noise=0.85)
    callback = PictureScores(("pixcorr", "two_way"))
    pixcorr, identified = callback.evaluate([part_of(callback, output(seen, twice, trials=2))])
    r = correlations(twice, seen)
    which = np.repeat(np.arange(8), 2)
    assert pixcorr.value == pytest.approx(np.mean([r[i, 0, which[i]] for i in range(16)]), abs=1e-6)
    shares = [np.mean([r[i, 0, which[i]] > r[i, 0, j] for j in range(8) if j != which[i]]) for i in range(16)]
    assert identified.value == pytest.approx(np.mean(shares))
    assert (identified.n, identified.stimuli, identified.gallery) == (16, 8, "pixels (8)")


def test_no_samples_or_a_single_one(seen: Tensor) -> None:
    callback = PictureScores()
    scores = callback.evaluate([part_of(callback, output(seen, decoded(seen, 1)))])
    assert not [score for score in scores if "samples" in score.note]
    with pytest.warns(UserWarning, match="sub-01 saw a single picture"):
        scores = callback.evaluate([part_of(callback, output(seen[:1], decoded(seen[:1], 2)), batches=1)])
    assert [(score.name, score.chance, score.low) for score in scores] == [
        ("pixcorr", None, None),
        ("ssim", None, None),
    ]


def test_folds_are_joined_and_each_brings_its_own_space(seen: Tensor, made: Tensor) -> None:
    whole = output(seen, made)
    callback = PictureScores()

    def fold(number: int, rows: Tensor, sign: float) -> Part:
        def embed(pictures: Tensor) -> Tensor:
            return sign * grey_mean(pictures)

        everything = whole["stimulus"].flip(0)
        gallery = Gallery(embed(seen.flip(0)), everything, torch.zeros(8, dtype=torch.int64), "extra")
        mine = {name: value[rows] for name, value in whole.items()}
        part = part_of(callback, mine, embed=embed, batches=2, fold=number, folds=2)
        return Part(part.outputs, context(galleries={"all": gallery}, embed=embed, fold=number, folds=2))

    joined = [fold(0, torch.tensor([5, 0, 2]), 1.0), fold(1, torch.tensor([1, 3, 4, 6, 7]), -1.0)]
    expected = callback.evaluate([part_of(callback, whole, embed=grey_mean)])
    for ours, theirs in zip(callback.evaluate(joined), expected, strict=True):
        assert ours.value == pytest.approx(theirs.value, abs=1e-9), ours.name
        assert ours.chance == pytest.approx(theirs.chance, abs=1e-9)
        assert ours.gallery == theirs.gallery
        assert ours.protocol == "by_stimulus (2 folds of 2)"
    without = [Part(part.outputs, context(fold=part.context.layout["fold"], folds=2)) for part in joined]
    with pytest.raises(DataError, match="8 of 8 seen pictures are not in gallery 'all'"):
        callback.evaluate(without)


def test_two_callbacks_of_other_settings_do_not_clash(seen: Tensor, made: Tensor) -> None:
    kept: dict[str, Tensor] = {}
    callbacks = [PictureScores(size=None), PictureScores(size=20), PictureScores(pixels=10), PictureScores()]
    for callback in callbacks:
        for name, value in part_of(callback, output(seen, made), embed=grey_mean).outputs["01"].items():
            assert name not in kept or torch.equal(kept[name], value), name
            kept[name] = value


def test_two_scores_of_one_person_are_no_mean_of_people() -> None:
    one = Score(name="pixcorr", value=0.2, subject="01")
    assert average([one, one]) == []
    [mean] = average([one, Score(name="pixcorr", value=0.4, subject="02")])
    assert (mean.value, mean.note) == (pytest.approx(0.3), "mean of 2 people")


def test_runs_in_validation_without_resampling(seen: Tensor, made: Tensor, tmp_path: Path) -> None:
    about = context(embed=grey_mean)
    data = Recorded([output(seen, made)], about)
    callback = PictureScores()
    run = short_trainer(tmp_path, callback)
    run.validate(Replay(about.layout, frozenset({"image", "generated"})), datamodule=data, verbose=False)
    values = {score.name: score.value for score in callback.scores if score.gallery in ("", "pixels (8)")}
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    assert logged["validation/pixcorr"] == pytest.approx(values["pixcorr"])
    assert logged["validation/pixels/two_way"] == pytest.approx(values["two_way"])
    assert {(score.low, score.p_value) for score in callback.scores} == {(None, None)}
    # a stage that generates in tests only is validated without these scores
    test_only = Replay(about.layout, frozenset({"image", "generated"}), steps=("test",))
    callback = PictureScores()
    short_trainer(tmp_path, callback, limit_train_batches=1).fit(test_only, datamodule=data)
    assert callback.part is None
    with pytest.raises(ContractError, match="PictureScores needs generated, but Replay gives only image in test"):
        short_trainer(tmp_path, callback).test(
            Replay(about.layout, frozenset({"image"})), datamodule=data, verbose=False
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.zeros(8, 3, 24, 24)}, "image must be uint8 in 0..255, found float32"),
        ({"generated": torch.zeros(8, 3, 24, 24, dtype=torch.uint8)}, r"generated must be \(n, S, 3, H, W\)"),
        ({"generated": torch.zeros(7, 1, 3, 24, 24, dtype=torch.uint8)}, "image has 8 samples and generated 7"),
    ],
)
def test_other_outputs_are_refused(seen: Tensor, made: Tensor, change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PictureScores().reduce(output(seen, made) | change)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ContractError, match="called Net; give each network a name"):
        PictureScores(networks=[PictureNetwork(Net()), PictureNetwork(Net())])
    with pytest.raises(ContractError, match="called pixels"):
        PictureScores(networks=[PictureNetwork(Net(), name="pixels")])


# newer jsonargparse gives instantiate_classes another name, which older ones lack
@pytest.mark.filterwarnings("ignore")
def test_a_configuration_and_what_is_read_back_of_it() -> None:
    text = """
    scores: [pixcorr, ssim]
    size: 425
    networks:
      - {model: "torchvision:alexnet", layer: features.4, size: 256, name: alexnet_2}
      - {model: "torchvision:vit_h_14", scores: [], n_way: [[50, 1]]}
    """
    # the command line changes how the parser treats the arguments of classes
    parser: ArgumentParser = arguments.Parser()
    parser.add_class_arguments(PictureScores, "scores")
    config = parser.parse_object({"scores": yaml.safe_load(text)})
    made = parser.instantiate_classes(config).scores
    again = PictureScores(**yaml.safe_load(text))
    assert made.networks == again.networks
    assert made.networks[1].n_way == [(50, 1)]
    assert made.networks[0].title == "alexnet_2"
    # as the grid reads it from the run folder
    dumped = yaml.safe_load(parser.dump(config))["scores"]
    assert PictureScores(**dumped).networks == made.networks
