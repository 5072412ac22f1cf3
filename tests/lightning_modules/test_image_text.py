"""ImageText on a few of Phantom's pictures: zero-shot classification, and what open_clip makes of the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from PIL import Image

from callbacks import Identification, OpenClipFolder, RunCheckpoint
from contracts import ContractError, DataError
from datamodules import EmbeddingOptions, LoaderOptions, Phantom, PhantomOptions, PhantomPictures, PictureOptions
from datamodules.core.features import FeatureBank
from lightning_modules import ContrastiveAlignment, ImageText

TOWERS: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear"},
    "text_cfg": {"width": 32, "heads": 2, "layers": 1},
}


def pictures(stores: Path, **sizes: int) -> PhantomPictures:
    options = PictureOptions(**{"train": 8, "validation": 1, "test": 2, **sizes})
    return PhantomPictures(stores=str(stores), pictures=options, loader=LoaderOptions(batch_size=64))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ImageText, PhantomPictures, list[Any]]:
    """A model trained for some seconds, its folder and its test scores."""
    folder = tmp_path_factory.mktemp("clip")
    data = pictures(folder / "stores", train=30)
    torch.manual_seed(0)
    stage = ImageText(data.layout, lr=5e-3, **TOWERS)
    score = Identification(galleries=["text"], query="image_embedding", permutations=0, bootstraps=0)
    trainer = Trainer(
        max_epochs=5,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder / "run",
        callbacks=[score, OpenClipFolder(), RunCheckpoint()],
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(stage, datamodule=data)
    trainer.test(stage, datamodule=data, verbose=False)
    return folder / "run", stage.eval(), data, score.scores


def test_unseen_pictures_are_classified_by_sentences_above_chance(run: Any) -> None:
    scores = {score.name: score for score in run[3]}
    assert scores["top_1"].chance == pytest.approx(1 / 40)
    assert scores["top_1"].value > 0.05
    assert scores["two_way"].value > 0.6
    assert scores["top_5"].gallery == "text (40)"


def test_the_gallery_of_texts_is_the_mean_over_templates(run: Any) -> None:
    _, stage, data, _ = run
    gallery = stage.galleries()["text"]
    tokenize = open_clip.get_tokenizer("ViT-B-32", context_length=32)
    name = data.layout["classes"][7]
    with torch.no_grad():
        sentences = stage.encode_text(tokenize([template.format(name) for template in stage.templates]))
    torch.testing.assert_close(gallery.embedding[7], F.normalize(sentences, dim=-1).mean(dim=0))
    assert gallery.label.tolist() == list(range(40))


def test_open_clip_loads_the_folder_and_embeds_alike(run: Any) -> None:
    folder, stage, data, _ = run
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder / 'open_clip'}")
    batch = data.dataset("test")[torch.arange(6)]
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in batch["image"]]
    with torch.no_grad():
        theirs = model.eval().encode_image(torch.stack([transform(image) for image in images]))
        torch.testing.assert_close(theirs, stage.encode_image(batch["image"]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.encode_text(batch["tokens"]), stage.encode_text(batch["tokens"]))
    assert model.logit_scale.exp().item() == pytest.approx(stage.loss.scale.item())


def test_the_folder_is_an_image_space_for_recordings(run: Any, tmp_path: Path) -> None:
    folder, stage, _, _ = run
    options = EmbeddingOptions(model=f"open_clip:local-dir:{folder / 'open_clip'}")
    experiment = PhantomOptions(people=1, train_images=1, test_images=1, train_repetitions=1, test_repetitions=1)
    data = Phantom(stores=str(tmp_path / "stores"), phantom=experiment, embedding=options)
    image = torch.from_numpy(np.stack([data.store.image(number) for number in range(4)])).permute(0, 3, 1, 2)
    with torch.no_grad():
        torch.testing.assert_close(data.targets[:4], stage.encode_image(image), rtol=1e-4, atol=1e-5)
    assert data.layout["embedding_width"] == 32
    moved = tmp_path / "elsewhere"
    (folder / "open_clip").rename(moved)
    try:
        same = FeatureBank(tmp_path / "stores" / "features", EmbeddingOptions(model=f"open_clip:local-dir:{moved}"))
        assert data.layout["embedding_space"] == same.space, "the same model elsewhere is the same space"
        (moved / "open_clip_config.json").write_text((moved / "open_clip_config.json").read_text() + "\n")
        other = FeatureBank(tmp_path / "stores" / "features", EmbeddingOptions(model=f"open_clip:local-dir:{moved}"))
        assert other.space != same.space
    finally:
        moved.rename(folder / "open_clip")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "open_clip:local-dir:/nowhere"}, "no open_clip model in /nowhere.*make train-clip"),
        ({"model": "open_clip:hf-hub:a/b", "weights": "laion2b"}, "has its own weights: remove embedding.weights"),
    ],
)
def test_a_model_that_is_not_there_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        FeatureBank(tmp_path, EmbeddingOptions(**options))


def test_a_folder_without_weights_is_never_a_random_model(run: Any, tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "open_clip_config.json").write_text(
        (run[0] / "open_clip" / "open_clip_config.json").read_text()
    )
    bank = FeatureBank(tmp_path, EmbeddingOptions(model=f"open_clip:local-dir:{tmp_path / 'clip'}"))
    with pytest.raises(DataError, match="cannot use the weights"):
        bank.build(["00" * 32], lambda number: np.zeros((64, 64, 3), np.uint8))


def test_pictures_are_a_pure_function_of_their_options(tmp_path: Path) -> None:
    one, two = pictures(tmp_path / "one"), pictures(tmp_path / "two")
    for split in ("train", "validation", "test"):
        everything = torch.arange(len(one.dataset(split)))
        a, b = one.dataset(split)[everything], two.dataset(split)[everything]
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert a["image"].shape[1:] == (3, 64, 64)
        assert a["image"].dtype == torch.uint8
        assert a["label"].bincount().unique().numel() == 1
    padded = one.dataset("test")[torch.tensor([3, ~3])]
    assert padded["row"].tolist() == [3, -1]
    assert torch.equal(padded["image"][0], padded["image"][1])
    assert not one.stimuli("train") & (one.stimuli("validation") | one.stimuli("test"))


def test_captions_name_the_class(tmp_path: Path) -> None:
    data = pictures(tmp_path)
    batch = data.dataset("test")[torch.arange(80)]
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    for tokens, label in zip(batch["tokens"], batch["label"], strict=True):
        caption = tokenizer.decode([token for token in tokens.tolist() if token])
        assert data.layout["classes"][label] in caption.replace("<start_of_text>", ""), caption


def test_captions_that_are_cut_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"longer than 8 tokens; raise --data\.init_args\.pictures\.context_length"):
        pictures(tmp_path, context_length=8).layout  # noqa: B018
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_cfg": {"timm_model_name": "resnet_of_mine"}}, "open_clip cannot build this model"),
        ({"text_cfg": {"widht": 32}}, "widht"),
        ({"templates": ["a picture"]}, "templates hold {}"),
    ],
)
def test_impossible_models_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=message):
        ImageText(pictures(tmp_path).layout, **{**TOWERS, **change})


def test_recordings_are_no_pictures_with_captions(tmp_path: Path) -> None:
    experiment = PhantomOptions(people=1, train_images=1, test_images=1, train_repetitions=1, test_repetitions=1)
    data = Phantom(stores=str(tmp_path), phantom=experiment, embedding=EmbeddingOptions(image_size=4))
    with pytest.raises(ContractError, match="phantom_pictures"):
        ImageText(data.layout, **TOWERS)
    assert ContrastiveAlignment(data.layout)
