"""Pictures from folders and data sets: each once, none of the test in training, recognised as file and as array."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from contracts import NO_LABEL, PADDING, DataError, Layout
from datamodules import EmbeddingOptions, Images, LoaderOptions, SplitOptions, Stimuli, Trials, ViewOptions
from datamodules.core.features import build_embedder
from datamodules.core.readers import load_image
from datamodules.core.sampler import BatchSampler
from datamodules.core.targets import fit_target
from datamodules.core.views import fit_size, view
from tests.formats.recording import Recording, pictures

Array = np.ndarray[Any, Any]
PIXELS = EmbeddingOptions(image_size=4, target="zscore")
SPLITS = ("train", "validation", "test")
VIEWS = ViewOptions(size=6, flip=True, crops=1, crop=0.8)
ARRAYS = pictures(60, side=12)


def save(folder: Path, numbers: Any, suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(ARRAYS[number]).save(folder / f"{number:03d}{suffix}")
    return folder


def dataset(folder: Path, name: str, train: list[int], test: list[int], *, as_files: bool = False) -> Recording:
    """Person 01 sees everything, 02 the first half of the training pictures and what nobody else is tested on."""
    shown = [*train, *test]
    root = folder / name
    names = [f"s{number}" for number in shown]
    image: Any = ARRAYS[shown]
    if as_files:
        save(root, shown)
        image = [root / f"{number:03d}.png" for number in shown]
    else:
        root.mkdir(parents=True)
    random = np.random.default_rng(0)
    split = ["train"] * len(train) + ["test"] * len(test)
    half = [*range(len(train) // 2), len(shown) - 1]
    records = [
        Stimuli(names, image, label=["a"] * len(shown)),
        # the last picture is one that 02 alone is tested on
        Trials("01", random.standard_normal((len(shown) - 1, 3)), stimulus=names[:-1], split=split[:-1]),
        Trials(
            "02",
            random.standard_normal((len(half), 3)),
            stimulus=[names[i] for i in half],
            split=[split[i] for i in half],
        ),
    ]
    return Recording(
        str(root), records, stores=str(folder / f"stores-{name}"), split=SplitOptions(validation=0.25), subjects=["01"]
    )


def images(folder: Path, **options: Any) -> Images:
    usual = {"stores": str(folder / "stores"), "embedding": PIXELS, "loader": LoaderOptions(batch_size=4)}
    return Images(**(usual | options))


def whole(data: Images, split: str) -> Any:
    samples = data.dataset(split)
    return samples[torch.arange(len(samples))]


def seen(data: Images, split: str) -> set[int]:
    """Which of ``ARRAYS`` are in a split, by their pixels; each once."""
    known = {array.tobytes(): number for number, array in enumerate(ARRAYS)}
    batch = whole(data, split)["image"].permute(0, 2, 3, 1)
    found = [known[image.contiguous().numpy().tobytes()] for image in batch]
    assert len(set(found)) == len(found), "a picture stands twice"
    return set(found)


# ---- which pictures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("as_files", [False, True])
def test_no_test_stimulus_of_anyone_is_trained_on(tmp_path: Path, as_files: bool) -> None:
    one = dataset(tmp_path, "one", [*range(16)], [16, 17, 18, 19], as_files=as_files)
    # two trains on 17 and validates on what one is trained on, and is tested on 0 and 1
    two = dataset(tmp_path, "two", [17, *range(20, 31)], [0, 1, 31], as_files=not as_files)
    folder = save(tmp_path / "photographs", [*range(2, 60)])
    data = images(tmp_path, folders=[str(folder)], datasets=[one, two], validation=0.1, test=0.1)
    split = {name: seen(data, name) for name in SPLITS}
    # 19 and 31 were shown to 02 alone, who is not chosen
    tested = {16, 17, 18, 19, 0, 1, 31}
    assert tested <= split["test"]
    assert not split["train"] & split["test"]
    assert not split["train"] & split["validation"]
    assert not split["validation"] & split["test"]
    assert split["train"] | split["validation"] | split["test"] == set(range(60))
    held = {data_: set(data_.trials["number"][data_.trials["side"] == "validation"]) for data_ in (one, two)}
    assert all(held.values())
    for data_, numbers in held.items():
        names = data_.store.stimuli["id"].iloc[sorted(numbers)]
        assert {int(name[1:]) for name in names} <= split["validation"] | split["test"]


def test_data_sets_alone(tmp_path: Path) -> None:
    one = dataset(tmp_path, "one", [*range(16)], [16, 17, 18, 19])
    two = dataset(tmp_path, "two", [17, *range(20, 31)], [0, 31])
    data = images(tmp_path, datasets=[one, two])
    assert seen(data, "test") == {16, 17, 18, 19, 0, 31}
    assert seen(data, "train") | seen(data, "validation") == {*range(1, 16), *range(20, 31)}
    assert data.has_validation()
    assert "prepared" not in vars(one), "no recording is prepared"
    assert not (tmp_path / "stores-one" / "features").exists(), "nothing is embedded twice"


def test_folds_of_everyone_count(tmp_path: Path) -> None:
    one = dataset(tmp_path, "one", [*range(16)], [16, 17, 18, 19])
    one.split = SplitOptions(folds=4, fold=1, validation=0.0)
    data = images(tmp_path, datasets=[one])
    tested = set(one.trials["number"][one.trials["side"] == "test"])
    assert tested <= set(one.tested_by_anyone)
    assert not seen(data, "train") & {int(one.store.stimuli["id"].iloc[number][1:]) for number in one.tested_by_anyone}


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_a_picture_in_two_formats_counts_once_on_the_side_of_its_pixels(tmp_path: Path, suffix: str) -> None:
    one = save(tmp_path / "one", range(40))
    both = images(tmp_path, folders=[str(one), str(save(tmp_path / "two", range(10, 50), suffix))], test=0.2)
    alone = images(tmp_path, folders=[str(one)], test=0.2)
    assert len(both.pictures) == 50
    for split in SPLITS:
        assert seen(alone, split) == seen(both, split) & set(range(40)), "sides do not depend on what else there is"


def test_white_pictures_of_two_shapes_are_two(tmp_path: Path) -> None:
    for width, height in ((8, 18), (12, 12)):
        Image.new("RGB", (width, height), "white").save(tmp_path / f"{width}.png")
    data = images(tmp_path, folders=[str(tmp_path)], views=ViewOptions(size=8), test=0.0, validation=0.0)
    assert [(picture.height, picture.width) for picture in data.pictures] == [(12, 12), (18, 8)]


def test_shares_of_folders(tmp_path: Path) -> None:
    folder = save(tmp_path / "photographs", range(60))
    data = images(tmp_path, folders=[str(folder)], validation=0.3, test=0.2)
    counts = {split: len(data.dataset(split)) for split in SPLITS}
    # 60 draws: SD 3.5 and 3.1
    assert abs(counts["validation"] - 18) < 11
    assert abs(counts["test"] - 12) < 10
    assert sum(counts.values()) == 60
    for split in SPLITS:
        assert len(data.stimuli(split)) == counts[split]
    none = images(tmp_path, folders=[str(folder)], validation=0.0, test=0.0)
    assert len(none.dataset("train")) == 60
    assert not none.has_validation()
    assert none.val_dataloader() == []
    with pytest.raises(DataError, match=r"none of 60 pictures is in split 'test'; raise --data\.init_args\.test"):
        none.dataset("test")


def test_class_is_the_subfolder(tmp_path: Path) -> None:
    save(tmp_path / "photographs", [0, 1])
    save(tmp_path / "photographs" / "animals" / "crane", [2])
    save(tmp_path / "photographs" / "boat", [3], ".BMP")
    data = images(tmp_path, folders=[str(tmp_path / "photographs")], validation=0.0, test=0.0)
    assert data.layout["classes"] == ["boat", "crane"]
    found = {}
    for label, image in zip(*(whole(data, "train")[name] for name in ("label", "image")), strict=True):
        [number] = [n for n in range(4) if np.array_equal(ARRAYS[n], image.permute(1, 2, 0))]
        found[number] = int(label)
    assert found == {0: NO_LABEL, 1: NO_LABEL, 2: 1, 3: 0}


# ---- batches ----------------------------------------------------------------------------------------


def test_every_view_has_its_own_embedding(tmp_path: Path) -> None:
    folder = save(tmp_path / "photographs", range(20))
    data = images(tmp_path, folders=[str(folder)], views=VIEWS, validation=0.1, test=0.2)
    embed = build_embedder(PIXELS)
    training = [picture for picture in data.pictures if picture.side == "train"]
    transform = fit_target("zscore", embed([picture.load() for picture in training]).numpy())
    batch = whole(data, "train")
    assert len(batch["row"]) == 4 * len(training) == data.layout["train_samples"]["pictures"]
    for row, number in enumerate(batch["stimulus"].tolist()):
        pixels = view(data.pictures[number].load(), data.pictures[number].sha256, row % 4, VIEWS)
        np.testing.assert_allclose(batch["embedding"][row], transform(embed([pixels]).numpy())[0], atol=1e-5)
        np.testing.assert_array_equal(batch["image"][row].permute(1, 2, 0), fit_size(pixels, 6))
    plain = images(tmp_path, folders=[str(folder)], validation=0.1, test=0.2)
    assert plain.layout["embedding_space"] == data.layout["embedding_space"], "the space does not depend on the views"
    assert torch.equal(whole(plain, "test")["embedding"], whole(data, "test")["embedding"])
    context = data.score_context("test")
    gallery = context.galleries["test"]
    batch = whole(data, "test")
    assert torch.equal(gallery.embedding, batch["embedding"])
    assert torch.equal(gallery.stimulus, batch["stimulus"])
    assert context.embed is not None
    torch.testing.assert_close(context.embed(whole(plain, "test")["image"]), batch["embedding"], rtol=0, atol=1e-5)
    assert context is data.score_context("predict")


def test_layout(tmp_path: Path) -> None:
    folder = str(save(tmp_path / "photographs", range(20)))
    data = images(tmp_path, folders=[folder], views=ViewOptions(size=5))
    layout = data.layout
    assert set(layout) == Layout.__required_keys__
    assert json.loads(json.dumps(layout)) == layout
    assert data.layout is layout
    assert (layout["modality"], layout["subjects"], layout["protocol"]) == ("image", ["pictures"], "by_stimulus")
    assert layout["image_shape"] == [3, 5, 5] == list(whole(data, "train")["image"].shape[1:])
    assert layout["embedding_width"] == 48 == whole(data, "train")["embedding"].shape[1]
    assert layout["embedding_space"].endswith(f"|zscore#{layout['training_set']}")
    unsized = images(tmp_path, folders=[folder]).layout
    assert unsized["image_shape"] == [3, 12, 12]
    assert unsized["training_set"] == layout["training_set"]
    assert images(tmp_path, folders=[folder], test=0.5).layout["training_set"] != layout["training_set"]
    blind = images(tmp_path, folders=[folder], embedding=EmbeddingOptions(model="none"))
    assert (blind.layout["embedding_width"], blind.layout["embedding_space"]) == (0, "none")
    assert set(whole(blind, "train")) == {"image", "stimulus", "label", "subject", "row"}


def test_order_resumes_and_ranks_share(tmp_path: Path) -> None:
    folder = str(save(tmp_path / "photographs", range(30)))

    def rows(epoch: int, done: int = 0) -> list[int]:
        loader: Any = images(tmp_path, folders=[folder], views=VIEWS).train_dataloader()
        loader.sampler.load_state_dict({"epoch": epoch, "batches_done": done})
        return torch.cat([batch["row"] for batch in loader]).tolist()

    assert rows(1) == rows(1) != rows(2)
    assert rows(1, done=4) == rows(1)[16:]
    samples = images(tmp_path, folders=[folder], views=VIEWS).dataset("train")
    served: list[int] = []
    for rank in range(2):
        for numbers in BatchSampler(samples.group, 3, shuffle=True, drop_last=False, rank=rank, world_size=2):
            served += [row for row in samples[numbers]["row"].tolist() if row != PADDING]
    assert sorted(served) == list(range(len(samples)))


def test_workers_give_the_same_batches(tmp_path: Path) -> None:
    folder = str(save(tmp_path / "photographs", range(20)))
    found = [
        list(images(tmp_path, folders=[folder], views=VIEWS, loader=LoaderOptions(4, workers=n)).train_dataloader())
        for n in (0, 1)
    ]
    for one, two in zip(*found, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


# ---- hashes -----------------------------------------------------------------------------------------


def test_pictures_are_read_once_and_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datamodules.core import picture_table

    read: list[str] = []

    def counted(path: Path) -> Array:
        read.append(path.name)
        return load_image(path)

    monkeypatch.setattr(picture_table, "load_image", counted)
    folder = save(tmp_path / "photographs", range(5))
    options: dict[str, Any] = {"folders": [str(folder)], "test": 0.0, "validation": 0.0}
    before = [picture.sha256 for picture in images(tmp_path, **options).pictures]
    assert len(read) == 5
    assert [picture.sha256 for picture in images(tmp_path, **options).pictures] == before
    assert len(read) == 5, "hashes are kept"
    Image.fromarray(ARRAYS[50]).save(folder / "002.png")
    os.utime(folder / "002.png", ns=(1, 1))
    after = [picture.sha256 for picture in images(tmp_path, **options).pictures]
    assert [one == two for one, two in zip(before, after, strict=True)] == [True, True, False, True, True]


# ---- bad input --------------------------------------------------------------------------------------


def test_folders_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*/nowhere; change --data\.init_args\.folders"):
        images(tmp_path, folders=[str(tmp_path / "nowhere")]).layout  # noqa: B018
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    with pytest.raises(DataError, match=r"no pictures \(jpg, jpeg, png, webp, bmp\) in .*/empty or below"):
        images(tmp_path, folders=[str(tmp_path / "empty")]).layout  # noqa: B018
    for nothing in ({}, {"folders": []}, {"folders": [], "datasets": []}):
        with pytest.raises(DataError, match=r"no pictures: give --data\.init_args\.folders or"):
            images(tmp_path, **nothing)


@pytest.mark.parametrize("content", ["truncated", "text", "empty"])
def test_damaged_pictures_are_named(tmp_path: Path, content: str) -> None:
    folder = save(tmp_path / "photographs", range(5))
    buffer = io.BytesIO()
    Image.fromarray(ARRAYS[7]).save(buffer, "jpeg")
    wrong = {"truncated": buffer.getvalue()[:-100], "text": b"not a picture", "empty": b""}[content]
    (folder / "wrong.jpg").write_bytes(wrong)
    with pytest.raises(DataError, match=rf"cannot read .*wrong\.jpg \({len(wrong)} bytes\)"):
        images(tmp_path, folders=[str(folder)]).layout  # noqa: B018
    (folder / "wrong.jpg").unlink()
    assert images(tmp_path, folders=[str(folder)], test=0.0).layout


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA"])
def test_grey_and_differently_sized_pictures(tmp_path: Path, mode: str) -> None:
    folder = save(tmp_path / "photographs", range(5))
    Image.fromarray(ARRAYS[9]).resize((9, 14)).convert(mode).save(folder / "other.png")
    options: dict[str, Any] = {"folders": [str(folder)], "test": 0.0, "validation": 0.0}
    with pytest.raises(DataError, match=r"of 2 different sizes .* from 9x14 to 12x12 pixels; set .*views\.size"):
        images(tmp_path, **options).layout  # noqa: B018
    data = images(tmp_path, views=ViewOptions(size=8), **options)
    assert whole(data, "train")["image"].shape == (6, 3, 8, 8)


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.1), (0.5, 0.5), (0.1, -1.0), (1.0, 0.0), (float("nan"), 0)])
def test_impossible_shares(tmp_path: Path, validation: float, test: float) -> None:
    with pytest.raises(DataError, match=r"shares of the pictures, 0 or more, and together below 1; found"):
        images(tmp_path, folders=["a"], validation=validation, test=test)


def test_data_sets_that_give_nothing(tmp_path: Path) -> None:
    one = dataset(tmp_path, "one", [*range(16)], [16, 17, 18, 19])
    one.split = SplitOptions(protocol="leave_one_repetition_out", validation=0.0)
    one.records = [*one.records, Trials("01", np.zeros((20, 3)), stimulus=[f"s{i}" for i in range(20)])]
    with pytest.raises(DataError, match=r"every picture of recording is tested .*leave_one_repetition_out"):
        images(tmp_path, datasets=[one]).layout  # noqa: B018
    one = dataset(tmp_path, "two", [*range(16)], [16, 17, 18, 19])
    one.records = [Stimuli(one.records[0].id, None), *one.records[1:]]
    with pytest.raises(DataError, match=r"recording has no pictures; remove it from --data\.init_args\.datasets"):
        images(tmp_path, datasets=[one]).layout  # noqa: B018


@pytest.mark.parametrize("keys", [{"signal", "image"}, {"image", "tokens"}, {"signal"}])
def test_stages_that_need_recordings_are_refused(tmp_path: Path, keys: set[str], monkeypatch: Any) -> None:
    data = images(tmp_path, folders=[str(save(tmp_path / "photographs", range(5)))])
    monkeypatch.setattr(data, "batch_keys", lambda: frozenset(keys))
    with pytest.raises(DataError, match=r"images has pictures and their embeddings alone; choose another --data"):
        data.dataset("train")


# ---- photographs ------------------------------------------------------------------------------------


def test_photographs(shared: Path, tmp_path: Path) -> None:
    folder = shared / "images" / "open_images"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: set NEUROALIGN_SHARED to the folder that holds images/open_images")
    data = images(tmp_path, folders=[str(folder)], views=ViewOptions(size=32, flip=True))
    assert len(data.pictures) == len(list(folder.glob("*.jpg")))
    split = {name: {image.numpy().tobytes() for image in whole(data, name)["image"]} for name in SPLITS}
    assert all(split.values())
    assert not split["train"] & split["test"]
    assert not split["validation"] & split["test"]
    for batch in data.train_dataloader():
        assert batch["image"].shape == (4, 3, 32, 32)
        break
