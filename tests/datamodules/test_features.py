import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor

from contracts import DataError
from datamodules import EmbeddingOptions
from datamodules.core.features import FeatureBank, build_embedder, pool
from tests.datamodules.small_clip import known_to_open_clip
from tests.formats.recording import pictures

Array = np.ndarray[Any, Any]
VIT = "test_vit.r160_in1k"
CONV = "test_resnet.r160_in1k"
IMAGES = list(pictures(5, side=24))


def sha(image: Array) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


HASHES = [sha(image) for image in IMAGES]


def embed(model: str, images: list[Array] = IMAGES, **options: Any) -> Array:
    return build_embedder(EmbeddingOptions(model=model, **options))(images).numpy()


# ---- pixels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "filter"), [(24, None), (10, Image.Resampling.BOX), (40, Image.Resampling.BILINEAR)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels(size: int, filter: Any, mode: str) -> None:
    found = embed("pixels", image_size=size, grey=mode == "L")
    for row, image in zip(found, IMAGES, strict=True):
        picture = Image.fromarray(image).convert(mode)
        expected = np.asarray(picture if filter is None else picture.resize((size, size), filter))
        np.testing.assert_array_equal(row, expected.astype(np.float32).flatten() / np.float32(255))


def test_halved_pixels_are_means_of_four() -> None:
    found = embed("pixels", image_size=12).reshape(5, 12, 12, 3)
    expected = np.stack(IMAGES).reshape(5, 12, 2, 12, 2, 3).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(found, expected, atol=1.01 / 255)


# ---- timm -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks() -> dict[str, tuple[torch.nn.Module, Tensor]]:
    """Random networks with the pictures as they go in."""
    result = {}
    for name in (VIT, CONV):
        torch.manual_seed(0)
        network = timm.create_model(name, pretrained=False, num_classes=0).eval()
        transform = create_transform(**resolve_model_data_config(network), is_training=False)
        result[name] = network, torch.stack([transform(Image.fromarray(image)) for image in IMAGES])
    return result


@pytest.mark.parametrize("name", [VIT, CONV])
def test_timm_without_layer_is_the_pooled_output(name: str, networks: Any) -> None:
    network, batch = networks[name]
    expected = network(batch).detach()
    np.testing.assert_allclose(embed(f"timm:{name}", weights="random"), expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(expected[0], expected[1])


@pytest.mark.parametrize("pooling", ["auto", "cls", "mean", "max", "flatten"])
def test_timm_layer_of_tokens(pooling: str, networks: Any) -> None:
    network, batch = networks[VIT]
    kept: list[Tensor] = []
    handle = network.blocks[1].register_forward_hook(lambda module, inputs, output: kept.append(output.detach()))
    network(batch)
    handle.remove()
    tokens = kept[0].numpy()
    expected = {
        "auto": tokens[:, 0],
        "cls": tokens[:, 0],
        "mean": tokens.mean(axis=1),
        "max": tokens.max(axis=1),
        "flatten": tokens.reshape(5, -1),
    }[pooling]
    found = embed(f"timm:{VIT}", weights="random", layer="blocks.1", pooling=pooling)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["auto", "mean", "max", "flatten"])
def test_timm_layer_of_maps(pooling: str, networks: Any) -> None:
    network, batch = networks[CONV]
    kept: list[Tensor] = []
    handle = network.layer2.register_forward_hook(lambda module, inputs, output: kept.append(output.detach()))
    network(batch)
    handle.remove()
    maps = kept[0].numpy()
    expected = {"max": maps.max(axis=(2, 3)), "flatten": maps.reshape(5, -1)}.get(pooling, maps.mean(axis=(2, 3)))
    found = embed(f"timm:{CONV}", weights="random", layer="layer2", pooling=pooling)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "pooling"), [((2, 3), "cls"), ((2, 3), "mean"), ((2, 3, 4, 5), "cls"), ((2, 3, 4, 5, 6), "auto")]
)
def test_poolings_that_do_not_fit_are_refused(shape: tuple[int, ...], pooling: Any) -> None:
    with pytest.raises(DataError, match=rf"pooling '{pooling}' does not fit an output of shape \(2, 3"):
        pool(torch.zeros(shape), pooling)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("classes", [0, 10])
def test_timm_weights_from_a_local_file(tmp_path: Path, networks: Any, suffix: str, classes: int) -> None:
    torch.manual_seed(1)
    network = timm.create_model(VIT, pretrained=False, num_classes=classes).eval()
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": network.state_dict()}, file)
    else:
        save_file(network.state_dict(), file)
    network.reset_classifier(0)
    expected = network(networks[VIT][1]).detach()
    np.testing.assert_allclose(embed(f"timm:{VIT}", weights=str(file)), expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(embed(f"timm:{VIT}", weights="random"), expected, atol=1e-3)


def test_random_weights_are_the_same_each_time_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = embed(f"timm:{VIT}", weights="random")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    np.testing.assert_array_equal(embed(f"timm:{VIT}", weights="random"), first)


# ---- open_clip --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of a CLIP model that is small enough for a test."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
    }
    with known_to_open_clip(tmp_path_factory.mktemp("clip") / "tiny-test-clip.json", config) as name:
        yield name


@pytest.mark.parametrize("local", [False, True])
def test_open_clip(tmp_path: Path, clip: str, local: bool) -> None:
    import open_clip

    torch.manual_seed(3 if local else 0)
    network, _, transform = open_clip.create_model_and_transforms(clip)
    weights = "random"
    if local:
        weights = str(tmp_path / "weights.pt")
        torch.save(network.state_dict(), weights)
    batch = torch.stack([transform(Image.fromarray(image)) for image in IMAGES])
    with torch.no_grad():
        expected = network.eval().encode_image(batch)
    found = embed(f"open_clip:{clip}", weights=weights)
    assert found.shape == (5, 16)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    layer = embed(f"open_clip:{clip}", weights=weights, layer="visual.transformer.resblocks.0", pooling="flatten")
    assert layer.shape == (5, 64 * (1 + 4))


def test_open_clip_weights_are_named_where_they_are_missing(clip: str) -> None:
    with pytest.raises(DataError, match=r"weights must be one of no tags, 'random' or a local file, found None"):
        embed(f"open_clip:{clip}")


# ---- what cannot be built ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet"}, "must be pixels, timm:<name> or open_clip:<name>, found 'resnet'"),
        ({"model": "timm:"}, "found 'timm:'"),
        ({"model": "pixels:3"}, "found 'pixels:3'"),
        ({"weights": "random"}, "pixels have neither weights nor layers"),
        ({"layer": "a"}, "pixels have neither weights nor layers"),
        ({"model": "timm:resnet51", "weights": "random"}, r"timm has no model 'resnet51'; close names: .*resnet"),
        ({"model": f"timm:{VIT}"}, "weights must be 'pretrained', 'random' or a local file, found None"),
        ({"model": f"timm:{VIT}", "weights": "rnadom"}, "found 'rnadom'"),
        ({"model": f"timm:{VIT}", "weights": "no/such.pth"}, r"no weights file /.*no/such\.pth.*embedding\.weights"),
        ({"model": f"timm:{VIT}", "weights": "random", "layer": "block.1"}, r"no layer 'block\.1'.*blocks\.1"),
        ({"model": "open_clip:ViT-Z", "weights": "random"}, "open_clip has no model 'ViT-Z'"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        FeatureBank(tmp_path, EmbeddingOptions(**options)).build(HASHES, IMAGES.__getitem__)
    assert not list(tmp_path.rglob("*.safetensors"))


class Bomb:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("kind", ["timm", "open_clip"])
@pytest.mark.parametrize("content", ["bomb", "truncated", "other model", "text"])
def test_weights_that_cannot_be_used_are_refused_and_never_executed(
    tmp_path: Path, clip: str, kind: str, content: str
) -> None:
    file = tmp_path / "weights.pth"
    if content == "bomb":
        torch.save({"state_dict": Bomb(tmp_path / "marker")}, file)
    elif content == "text":
        file.write_text("not weights")
    else:
        torch.save({"weight": torch.zeros(1000)}, file)
        file.write_bytes(file.read_bytes()[: 500 if content == "truncated" else None])
    model = f"timm:{VIT}" if kind == "timm" else f"open_clip:{clip}"
    bank = FeatureBank(tmp_path / "features", EmbeddingOptions(model=model, weights=str(file)))
    with pytest.raises(DataError, match=r"weights\.pth"):
        bank.build(HASHES, IMAGES.__getitem__)
    assert not (tmp_path / "marker").exists()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_bomb_is_real(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


# ---- the bank ---------------------------------------------------------------------------------------


def space(**options: Any) -> str:
    return FeatureBank(Path("nowhere"), EmbeddingOptions(**options)).space


def test_everything_that_changes_an_embedding_is_part_of_the_space(tmp_path: Path) -> None:
    files = []
    for number in range(2):
        files.append(str(tmp_path / f"{number}.pth"))
        torch.save({"weight": torch.tensor(number)}, files[-1])
    vit = {"model": f"timm:{VIT}", "weights": "random"}
    different = [
        {},
        {"image_size": 16},
        {"grey": True},
        vit,
        vit | {"model": f"timm:{CONV}"},
        vit | {"weights": "pretrained"},
        vit | {"weights": files[0]},
        vit | {"weights": files[1]},
        vit | {"layer": "blocks.0"},
        vit | {"layer": "blocks.0", "pooling": "mean"},
    ]
    assert len({space(**options) for options in different}) == len(different)


def test_what_changes_no_embedding_is_not_part_of_the_space(tmp_path: Path) -> None:
    assert space(batch_size=3, target="unit") == space()
    one, two = tmp_path / "one.pth", tmp_path / "folder.pth"
    torch.save({"weight": torch.zeros(3)}, one)
    two.write_bytes(one.read_bytes())
    options = {"model": f"timm:{VIT}"}
    assert space(weights=str(one), **options) == space(weights=str(two), **options), "the content counts, not the path"


def test_embeddings_are_found_by_picture_never_by_position(tmp_path: Path) -> None:
    bank = FeatureBank(tmp_path, EmbeddingOptions(image_size=4, batch_size=2))
    bank.build(HASHES, IMAGES.__getitem__)
    expected = embed("pixels", image_size=4)
    for order in ([0, 1, 2, 3, 4], [3, 1, 4], [2, 2, 0]):
        np.testing.assert_array_equal(bank.lookup([HASHES[i] for i in order]), expected[order])
    with pytest.raises(DataError, match=f"no embedding of 2 pictures, the first is {'0' * 64}"):
        bank.lookup([HASHES[0], "0" * 64, "1" * 64])


def test_batch_size_changes_no_embedding(tmp_path: Path) -> None:
    found = []
    for size in (1, 3, 64):
        options = EmbeddingOptions(model=f"timm:{VIT}", weights="random", batch_size=size)
        bank = FeatureBank(tmp_path / str(size), options)
        bank.build(HASHES, IMAGES.__getitem__)
        found.append(bank.lookup(HASHES))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[0], found[2], rtol=1e-4, atol=1e-5)


def test_only_missing_pictures_are_computed(tmp_path: Path) -> None:
    asked: list[str] = []

    def image(hashes: list[str]) -> Any:
        def get(position: int) -> Array:
            asked.append(hashes[position])
            return IMAGES[HASHES.index(hashes[position])]

        return get

    bank = FeatureBank(tmp_path, EmbeddingOptions(image_size=4))
    first = [HASHES[2], HASHES[0], HASHES[2]]
    bank.build(first, image(first))
    assert sorted(asked) == sorted({HASHES[0], HASHES[2]}), "equal pictures are computed once"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    asked.clear()
    bank.build(HASHES, image(HASHES))
    assert sorted(asked) == sorted({HASHES[1], HASHES[3], HASHES[4]})
    assert all(path.read_bytes() == content for path, content in before.items())
    asked.clear()
    FeatureBank(tmp_path, EmbeddingOptions(image_size=4)).build(HASHES[::-1], image(HASHES[::-1]))
    assert not asked
    np.testing.assert_array_equal(bank.lookup(HASHES), embed("pixels", image_size=4))


@pytest.mark.parametrize("content", [None, "", "{", '{"model": "pixels", "image_size": 5, "grey": false}'])
def test_a_bank_that_holds_another_space_is_refused(tmp_path: Path, content: str | None) -> None:
    bank = FeatureBank(tmp_path, EmbeddingOptions(image_size=4))
    bank.build(HASHES, IMAGES.__getitem__)
    shards = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    description = bank.folder / "description.json"
    if content is None:
        description.unlink()
    else:
        description.write_text(content)
    with pytest.raises(DataError, match=r"description\.json|was made with") as raised:
        bank.lookup(HASHES)
    assert str(bank.folder) in str(raised.value)
    if content and "model" in content:
        assert "'image_size': 5" in str(raised.value)
        assert "'image_size': 4" in str(raised.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")} == shards


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_a_damaged_shard_is_named_and_can_be_deleted(tmp_path: Path, damage: str) -> None:
    bank = FeatureBank(tmp_path, EmbeddingOptions(image_size=4))
    bank.build(HASHES, IMAGES.__getitem__)
    expected = bank.lookup(HASHES)
    shard = next(tmp_path.rglob("*.safetensors"))
    content = shard.read_bytes()
    shard.write_bytes({"truncated": content[:-10], "text": b"not a shard", "empty": b""}[damage])
    for action in (lambda: bank.lookup(HASHES), lambda: bank.build(HASHES, IMAGES.__getitem__)):
        with pytest.raises(DataError, match=rf"{shard.name} is damaged .*delete it, it will be computed again"):
            action()
    shard.unlink()
    bank.build(HASHES, IMAGES.__getitem__)
    np.testing.assert_array_equal(bank.lookup(HASHES), expected)


def test_a_picture_that_cannot_be_read_leaves_no_shard(tmp_path: Path) -> None:
    def image(position: int) -> Array:
        if position == 3:
            raise DataError("cannot read picture 3")
        return IMAGES[position]

    bank = FeatureBank(tmp_path, EmbeddingOptions(image_size=4))
    with pytest.raises(DataError, match="cannot read picture 3"):
        bank.build(HASHES, image)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.partial"))
