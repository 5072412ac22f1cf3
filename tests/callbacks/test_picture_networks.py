"""Frozen networks: features against direct calls, weights from files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms.functional import normalize
from torchvision.transforms.functional import resize as torchvision_resize

from callbacks import PictureFeatures, PictureNetwork
from contracts import ContractError, DataError
from tests.callbacks.pictures import Net, grey_mean, photographs

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def prepared(seen: Tensor, side: int, **facts: Any) -> Tensor:
    small: Tensor = torchvision_resize(seen.float() / 255, [side, side], antialias=True)
    result: Tensor = normalize(small.clamp(0, 1), **facts)
    return result


def with_seed(build: Any) -> Any:
    torch.manual_seed(0)
    return build().eval()


def test_alexnet_at_a_layer() -> None:
    from torchvision.models import alexnet

    seen = photographs(3, side=40)
    network = with_seed(lambda: alexnet(weights=None))
    x = prepared(seen, 64, **IMAGENET)
    for layer, last in (("features.4", 5), ("features.3", 4), ("features.11", 12)):
        ours = PictureFeatures(
            PictureNetwork("torchvision:alexnet", weights="random", layer=layer, size=64), batch_size=2
        )(seen)
        # features.3 is followed by an activation that writes into its output
        expected = network.features[:last](x).flatten(1)
        torch.testing.assert_close(ours, expected)
        assert not ours.requires_grad
    classes = PictureFeatures(PictureNetwork("torchvision:alexnet", weights="random", size=64, n_way=[(50, 1)]))(seen)
    torch.testing.assert_close(classes, network(x))
    whole = PictureFeatures(PictureNetwork("torchvision:alexnet", weights="random"))(seen[:1])
    torch.testing.assert_close(whole, network(prepared(seen[:1], 224, **IMAGENET)))


def test_timm_with_its_own_preparation() -> None:
    import timm

    seen = photographs(3, side=40)
    for name in ("test_vit", "test_efficientnet"):
        network = with_seed(lambda name=name: timm.create_model(name, num_classes=0))
        config = timm.data.resolve_model_data_config(network)
        x = nn.functional.interpolate(
            seen / 255, config["input_size"][1:], mode=config["interpolation"], antialias=True, align_corners=False
        )
        x = normalize(x.clamp(0, 1), config["mean"], config["std"])
        torch.testing.assert_close(
            PictureFeatures(PictureNetwork(f"timm:{name}", weights="random"))(seen), network(x), atol=1e-5, rtol=1e-4
        )
    with_classes = PictureFeatures(PictureNetwork("timm:test_vit", weights="random", scores=[], n_way=[(10, 1)]))
    assert with_classes(seen).shape == (3, 1000)


def test_open_clip_with_its_own_preparation() -> None:
    import open_clip

    seen = photographs(2, side=40)
    clip = with_seed(lambda: open_clip.create_model("ViT-S-32-alt", load_weights=False))
    facts = clip.visual.preprocess_cfg
    x = nn.functional.interpolate(seen / 255, (224, 224), mode="bicubic", antialias=True, align_corners=False)
    x = normalize(x.clamp(0, 1), facts["mean"], facts["std"])
    spec = PictureNetwork("open_clip:ViT-S-32-alt", weights="random")
    torch.testing.assert_close(PictureFeatures(spec)(seen), clip.encode_image(x), atol=1e-5, rtol=1e-4)


def test_a_file_of_swav_is_enough_for_the_layer_before_its_heads(tmp_path: Path) -> None:
    from torchvision.models import resnet50

    torch.manual_seed(7)
    network = resnet50(weights=None).eval()
    state = {f"module.{key}": value for key, value in network.state_dict().items() if not key.startswith("fc.")}
    state["module.prototypes.weight"] = torch.zeros(30, 12)
    state["module.projection_head.0.weight"] = torch.zeros(20, 2048)
    file = tmp_path / "swav.pth.tar"
    torch.save(state, file)
    seen = photographs(2, side=40)
    spec = PictureNetwork("torchvision:resnet50", weights=str(file), layer="avgpool", size=64)
    network.fc = nn.Identity()
    torch.testing.assert_close(PictureFeatures(spec)(seen), network(prepared(seen, 64, **IMAGENET)))
    with pytest.raises(DataError, match=r"318 of 320 match, 2 missing \(first fc.weight\)"):
        PictureFeatures(PictureNetwork("torchvision:resnet50", weights=str(file), size=64))(seen)
    with pytest.raises(DataError, match=r"other weights than those of torchvision:alexnet: 0 of 16 match.*unknown"):
        PictureFeatures(PictureNetwork("torchvision:alexnet", weights=str(file), size=64))(seen)


def test_files_of_weights(tmp_path: Path) -> None:
    import timm

    seen = photographs(2, side=32)
    torch.manual_seed(9)
    network = timm.create_model("test_vit").eval()
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    torch.save({"state_dict": network.state_dict()}, tmp_path / "vit.pth")
    for file in ("vit.safetensors", "vit.pth"):
        features, classes = (
            PictureFeatures(PictureNetwork("timm:test_vit", weights=str(tmp_path / file), n_way=n_way))(seen)
            for n_way in ([], [(5, 1)])
        )
        torch.testing.assert_close(network.head(features), classes)
    (tmp_path / "damaged.safetensors").write_bytes(b"no weights")
    torch.save({"network": nn.Linear(2, 2)}, tmp_path / "pickled.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for file, message in (
        ("absent.pth", "no file .*absent.pth; weights is 'pretrained', 'random' or a file"),
        ("damaged.safetensors", "cannot use the weights"),
        ("pickled.pth", "cannot use the weights .*pickled.pth"),
        ("list.pth", "holds no weights by name, but list"),
    ):
        with pytest.raises(DataError, match=message):
            PictureFeatures(PictureNetwork("timm:test_vit", weights=str(tmp_path / file)))(seen)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (PictureNetwork("torchvision:alexnt"), "no model 'alexnt'; did you mean alexnet"),
        (PictureNetwork("timm:test_vitt"), "did you mean test_vit"),
        (PictureNetwork("open_clip:ViT-L14"), "did you mean ViT-L-14"),
        (PictureNetwork("open_clip:ViT-L-14", weights="open"), "weights must be one of openai, .*found 'open'"),
        (
            PictureNetwork("torchvision:alexnet", weights="random", layer="feature.4"),
            r"torchvision:alexnet.feature.4 has no layer 'feature.4'; did you mean features.4",
        ),
        (PictureNetwork("alexnet"), "cannot import the network 'alexnet'"),
        (PictureNetwork("nowhere.py:Net"), "cannot import the network 'nowhere.py:Net'"),
        (PictureNetwork("torch.nn.functional.relu6x"), "cannot import"),
        (PictureNetwork("collections.OrderedDict"), "makes a OrderedDict, not an nn.Module"),
        (PictureNetwork(nn.Identity()), r"Identity must give \(n, D\) for 2 pictures, found \(2, 3, 16, 16\)"),
    ],
    ids=lambda value: value.title if isinstance(value, PictureNetwork) else "",
)
def test_networks_that_do_not_exist(spec: PictureNetwork, message: str) -> None:
    with pytest.raises(DataError, match=message):
        PictureFeatures(spec)(photographs(2, side=16))


def test_requests_that_make_no_sense() -> None:
    mistyped = PictureNetwork("timm:x")
    # past the type checker of the tests
    object.__setattr__(mistyped, "scores", ["cosine"])
    with pytest.raises(ContractError, match="no scores cosine"):
        mistyped.__post_init__()
    with pytest.raises(ContractError, match=r"not its layer 'features.4'; list the network twice"):
        PictureNetwork("torchvision:alexnet", layer="features.4", n_way=[(50, 1)])
    with pytest.raises(ContractError, match="nothing is asked of timm:x"):
        PictureNetwork("timm:x", scores=[])


def test_networks_of_ones_own(tmp_path: Path) -> None:
    seen = photographs(3, side=16)
    expected = Net().layers(grey_mean(seen))
    (tmp_path / "my.py").write_text("from tests.callbacks.pictures import Net\n")
    for model in (Net(), "tests.callbacks.pictures.Net", f"{tmp_path}/my.py:Net"):
        torch.testing.assert_close(PictureFeatures(PictureNetwork(model))(seen), expected)
    hidden = PictureFeatures(PictureNetwork(Net(), layer="layers.0"))(seen)
    torch.testing.assert_close(hidden, Net().layers[0](grey_mean(seen)))
    assert PictureNetwork(Net(), layer="layers.1").title == "Net.layers.1"
    other = Net()
    nn.init.ones_(other.layers[0].weight)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    from_file = PictureNetwork("tests.callbacks.pictures.Net", weights=str(tmp_path / "other.pth"))
    torch.testing.assert_close(PictureFeatures(from_file)(seen), other(seen))


def test_features_that_are_not_finite_or_not_of_pictures() -> None:
    broken = Net()
    nn.init.constant_(broken.layers[0].weight, torch.nan)
    with pytest.raises(DataError, match="Net gives NaN or infinity for 2 of 2 pictures"):
        PictureFeatures(PictureNetwork(broken))(photographs(2, side=8))


def test_nothing_is_built_before_the_first_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    monkeypatch.setattr("callbacks.picture_networks._own", lambda path: built.append(path) or Net())
    features = PictureFeatures(PictureNetwork("my.Net"))
    assert not built
    state = torch.get_rng_state()
    for _ in range(2):
        features(photographs(2, side=8))
    assert built == ["my.Net"]
    assert torch.equal(torch.get_rng_state(), state), "random weights leave the random state as it was"


def test_keys_tell_networks_apart() -> None:
    specs = [
        PictureNetwork("timm:a"),
        PictureNetwork("timm:a", weights="random"),
        PictureNetwork("timm:a", weights="x/y.pth"),
        PictureNetwork("timm:a", layer="b"),
        PictureNetwork("timm:a", size=32),
        PictureNetwork("timm:a", n_way=[(2, 1)]),
    ]
    keys = [spec.key for spec in specs]
    assert len(set(keys)) == len(keys)
    assert not [key for key in keys if "/" in key]
