"""Galleries of sentences about classes, embeddings that are classes, and data sets without pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from callbacks import Identification, Part
from contracts import NO_LABEL, DataError
from datamodules import EmbeddingOptions, LoaderOptions, SplitOptions, Stimuli
from datamodules.core.features import load_open_clip
from datamodules.core.targets import TargetTransform, fit_target
from datamodules.core.texts import TextBank
from experiments.cli import main
from lightning_modules import FmriMAE
from tests.datamodules.small_clip import known_to_open_clip
from tests.experiments.launching import CONFIGS
from tests.formats.recording import Recording, change, experiment
from tests.lightning_modules.brains import TINY
from tests.lightning_modules.fitting import trainer

Array = np.ndarray[Any, Any]
TEMPLATES = ["a {}", "a photo of the {}."]
NAMES = ["black_cat", "dog", "Sun flower"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of a CLIP model that is small enough for a test; its vocabulary is the tokenizer's."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    with known_to_open_clip(tmp_path_factory.mktemp("clip") / "tiny-clip-of-texts.json", config) as name:
        yield name


def options(clip: str, **changed: Any) -> EmbeddingOptions:
    return EmbeddingOptions(**{"model": f"open_clip:{clip}", "weights": "random", "templates": TEMPLATES, **changed})


def directly(clip: str, classes: list[str], templates: list[str] = TEMPLATES) -> Array:
    """Mean direction of the sentences about each class."""
    import open_clip

    network, _ = load_open_clip(clip, "random")
    network.eval()
    rows = []
    with torch.no_grad():
        for name in classes:
            tokens = open_clip.get_tokenizer(clip)([template.replace("{}", name) for template in templates])
            rows.append(normalize(normalize(network.encode_text(tokens), dim=1).mean(dim=0), dim=0))
    return torch.stack(rows).numpy()


def recording(folder: Path, records: list[Any] | None = None, **changed: Any) -> Recording:
    records = experiment() if records is None else records
    usual = {"stores": str(folder / "stores"), "loader": LoaderOptions(batch_size=8)}
    return Recording(str(folder / "raw"), records, **(usual | changed))


# ---- embeddings of texts -----------------------------------------------------------------------------


def test_a_class_is_the_mean_direction_of_its_sentences(tmp_path: Path, clip: str) -> None:
    found = TextBank(tmp_path, options(clip)).embed(NAMES)
    assert found.dtype == np.float32
    expected = directly(clip, ["black cat", "dog", "Sun flower"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert np.abs(expected - directly(clip, NAMES)).max() > 1e-3, "underscores would have been seen"
    assert np.abs(expected - directly(clip, ["black cat", "dog", "Sun flower"], TEMPLATES[:1])).max() > 1e-3


def test_texts_are_embedded_once(tmp_path: Path, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = TextBank(tmp_path, options(clip)).embed(NAMES)
    with monkeypatch.context() as patch:
        patch.setattr("datamodules.core.texts.load_open_clip", lambda *_: pytest.fail("computed again"))
        again = TextBank(tmp_path, options(clip, target="unit", batch_size=3)).embed(NAMES)
    np.testing.assert_array_equal(again, first)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    for bank, names in (
        (TextBank(tmp_path, options(clip, templates=TEMPLATES[::-1])), NAMES),
        (TextBank(tmp_path, options(clip, templates=["the {}"])), NAMES),
        (TextBank(tmp_path, options(clip)), NAMES[::-1]),
    ):
        bank.embed(names)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(file.read_bytes()[:20]), lambda f: f.write_text("x")])
def test_a_damaged_file_is_named(tmp_path: Path, clip: str, damage: Any) -> None:
    bank = TextBank(tmp_path, options(clip))
    bank.embed(NAMES)
    [file] = tmp_path.glob("*.safetensors")
    damage(file)
    with pytest.raises(DataError, match=rf"{file} is damaged .*delete it"):
        bank.embed(NAMES)
    file.unlink()
    assert bank.embed(NAMES).shape == (3, 16)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layer": "visual"}, "with layer visual"),
        ({"templates": ["a {}", "a picture"]}, r"must hold \{\} where the class name goes, found \['a \{\}', 'a pic"),
    ],
)
def test_texts_that_cannot_be_made_are_refused(
    tmp_path: Path, clip: str, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        recording(tmp_path, embedding=options(clip, **changed)).score_context("test")


@pytest.mark.parametrize("model", ["pixels", "classes"])
def test_a_model_without_texts_has_no_gallery_of_them(tmp_path: Path, clip: str, model: str) -> None:
    chosen = options(clip, model=model, weights=None)
    assert "text" not in recording(tmp_path, embedding=chosen).score_context("test").galleries
    with pytest.raises(DataError, match=rf"only the embeddings of a whole open_clip model .*found {model}"):
        TextBank(tmp_path, chosen)


@pytest.mark.parametrize("target", ["center", "zscore", "unit|center", "pca(3)", "center|pca(2, whiten)|unit"])
def test_texts_are_transformed_about_their_own_mean(target: str) -> None:
    random = np.random.default_rng(0)
    images, texts = random.standard_normal((30, 5)) + 3, (random.standard_normal((4, 5)) - 2).astype(np.float32)
    transform = fit_target(target, images.astype(np.float32))
    x = texts.astype(np.float64)
    for kind, *values in transform.steps:
        if kind == "unit":
            x = x / np.linalg.norm(x, axis=1, keepdims=True)
        else:
            factor = values[1]
            x = x - x.mean(axis=0)
            x = x @ factor if factor.ndim == 2 else x * factor
    found = transform.for_texts(texts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-5)
    if not target.endswith("unit"):
        np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-5)
    if target == "zscore":
        np.testing.assert_allclose(found, (texts - texts.mean(axis=0)) / images.std(axis=0), rtol=1e-4, atol=1e-5)
    assert TargetTransform().for_texts(texts) == pytest.approx(texts)


@pytest.mark.parametrize("target", ["none", "unit|center"])
def test_the_gallery_holds_the_shown_classes(tmp_path: Path, clip: str, target: str) -> None:
    # the own division tests class 3 alone, and not every class name is one word
    records = experiment()
    labels = [str(name).replace(" ", "_") for name in records[0].label]  # type: ignore[union-attr]
    data = recording(
        tmp_path,
        change(records, Stimuli, label=labels),
        embedding=options(clip, target=target),
        split=SplitOptions(protocol="by_class", folds=2, validation=0.5),
    )
    gallery = data.score_context("test").galleries["text"]
    shown = sorted({int(data.labels[n]) for n in data.trials["number"][data.trials["side"] == "test"]})
    assert gallery.kind == "text"
    assert gallery.label.tolist() == gallery.stimulus.tolist() == shown
    texts = directly(clip, [f"class {i}" for i in range(4)])
    if target != "none":
        texts = texts - texts.mean(axis=0)
    np.testing.assert_allclose(gallery.embedding, texts[shown], rtol=1e-3, atol=1e-5)


def test_texts_need_a_class_for_every_stimulus(tmp_path: Path, clip: str) -> None:
    records = change(experiment(), Stimuli, label=[""] * 28)
    with pytest.raises(DataError, match=r"templates need a class for every shown stimulus.*templates=\[\]"):
        recording(tmp_path, records, embedding=options(clip)).score_context("test")
    assert (
        "text"
        not in recording(tmp_path, records, embedding=options(clip, templates=[])).score_context("test").galleries
    )


@pytest.mark.parametrize("templates", [TEMPLATES, []], ids=["texts", "none"])
def test_texts_are_scored_where_there_are_some(tmp_path: Path, clip: str, templates: list[str]) -> None:
    data = recording(tmp_path, embedding=options(clip, templates=templates))
    context, samples = data.score_context("test"), data.dataset("test")
    batch = samples[torch.nonzero(samples.subject == 0).flatten()]
    outputs = {**batch, "brain_embedding": batch["embedding"]}
    callback = Identification(optional_galleries=["text", "nowhere"], permutations=9, bootstraps=9)
    scores = callback.evaluate([Part({"01": outputs}, context)])
    found = {score.gallery: score for score in scores if score.name == "two_way"}
    assert set(found) == ({"test (8)", "text (4)"} if templates else {"test (8)"})
    if templates:
        similarity = (
            normalize(outputs["brain_embedding"], dim=1) @ normalize(context.galleries["text"].embedding, dim=1).T
        )
        own = similarity.gather(1, outputs["label"][:, None])
        wins = ((own > similarity).float() + 0.5 * (own == similarity).float()).sum(dim=1) - 0.5
        assert found["text (4)"].value == pytest.approx(float(wins.mean()) / 3, abs=1e-6)


def test_zero_shot_classification_through_the_command_line(tmp_path: Path, monkeypatch, clip: str) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"--config={CONFIGS}/trainer/cpu.yaml", f"--config={CONFIGS}/stage/ridge_direct.yaml"]
    words += [f"--data={CONFIGS}/data/phantom.yaml", "--run.table=false", "--run.name=texts"]
    words += ['--data.init_args.phantom={"people": 1, "train_images": 1, "test_images": 1, "sessions": 1}']
    words += [
        f'--data.init_args.embedding={{"model": "open_clip:{clip}", "weights": "random", "templates": ["a {{}}"]}}',
        "--data.init_args.split={protocol: by_class, folds: 4, validation: 0}",
        '--trainer.callbacks+={"class_path": "callbacks.Identification", "init_args": {"galleries": ["text"], '
        '"level": "class", "top_k": [1]}}',
    ]
    for command in ("fit", "test"):
        main([command, *words])
    scores = json.loads(next(tmp_path.rglob("scores.json")).read_text())
    texts = [score for score in scores if score["gallery"].startswith("text (")]
    assert {score["name"] for score in texts} >= {"class_two_way", "class_top_1"}
    assert {score["protocol"] for score in scores} == {"by_class (fold 0 of 4)"}
    [number] = {int(score["gallery"][6:-1]) for score in texts}
    assert next(score["chance"] for score in texts if score["name"] == "class_top_1") == pytest.approx(1 / number)


# ---- stimuli that are classes, or nothing ------------------------------------------------------------


def test_a_stimulus_is_the_indicator_of_its_class(tmp_path: Path) -> None:
    data = recording(tmp_path, embedding=EmbeddingOptions(model="classes"))
    assert data.layout["embedding_width"] == 4
    np.testing.assert_array_equal(data.targets, np.eye(4)[data.labels])
    assert data.layout["embedding_space"].startswith("classes-")
    galleries = data.score_context("test").galleries
    assert galleries["test"].kind == "class_centre"
    np.testing.assert_array_equal(galleries["test"].embedding, np.eye(4))
    assert galleries["test"].label.tolist() == [0, 1, 2, 3]
    batch = data.dataset("test")[torch.tensor([0])]
    assert batch["embedding"].argmax() == batch["label"]
    others = recording(
        tmp_path / "other",
        change(experiment(), Stimuli, label=[f"kind {i // 7}" for i in range(28)]),
        embedding=EmbeddingOptions(model="classes"),
    )
    assert others.layout["embedding_space"] != data.layout["embedding_space"]


def test_classes_are_needed_for_every_stimulus(tmp_path: Path) -> None:
    records = change(experiment(), Stimuli, label=["", *["a class"] * 27])
    with pytest.raises(DataError, match=r"embedding\.model=classes needs a class for every stimulus"):
        recording(tmp_path, records, embedding=EmbeddingOptions(model="classes")).layout  # noqa: B018


@pytest.mark.parametrize("pictures", [True, False])
def test_what_is_not_embedded_serves_stages_that_need_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: bool
) -> None:
    records = experiment() if pictures else change(experiment(), Stimuli, image=None)
    data = recording(tmp_path, records, embedding=EmbeddingOptions(model="none" if pictures else "pixels"))
    assert data.layout["embedding_width"] == 0
    assert data.layout["embedding_space"] == "none"
    with monkeypatch.context() as patch:
        patch.setattr(data, "batch_keys", lambda: frozenset({"signal", "embedding"}))
        with pytest.raises(DataError, match=r"the stage needs embeddings, and recording has none .*embedding\.model"):
            data.dataset("train")
    assert not data.score_context("test").oracle
    assert (data.labels != NO_LABEL).all()
    model = FmriMAE(data.layout, **TINY)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, datamodule=data)
    run.test(model, datamodule=data, verbose=False)
    assert "embedding" not in data.dataset("test")[torch.tensor([0])]


def test_pictures_that_are_not_there_are_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = recording(tmp_path, change(experiment(), Stimuli, image=None), embedding=EmbeddingOptions(model="classes"))
    assert data.layout["embedding_width"] == 4
    assert data.dataset("train")[torch.tensor([0])]["embedding"].sum() == 1
    monkeypatch.setattr(data, "batch_keys", lambda: frozenset({"image"}))
    with pytest.raises(DataError, match="the stage needs pictures, and recording has none"):
        data.dataset("train")
