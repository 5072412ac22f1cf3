"""Pictures without recordings, and pictures beside recordings, from any data set of the house."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from contracts import PADDING, DataError
from datamodules import EmbeddingOptions, LoaderOptions, SplitOptions, Stimuli, Trials, ViewOptions
from datamodules.core.features import build_embedder
from datamodules.core.pictures import PictureDataset
from datamodules.core.sampler import BatchSampler
from datamodules.core.targets import fit_target
from datamodules.core.views import fit_size, view
from tests.formats.recording import Recording, change, experiment, pictures

RECORDS = experiment({"01": (6,), "02": (6,)})
PIXELS = EmbeddingOptions(image_size=4, target="zscore")
ALL_VIEWS = ViewOptions(size=7, flip=True, crops=2, crop=0.6)


class Stage(LightningModule):
    """Declares what it reads, as a stage does."""

    def __init__(self, batch_keys: set[str], evaluation_keys: set[str] | None = None) -> None:
        super().__init__()
        self.batch_keys = frozenset(batch_keys)
        if evaluation_keys is not None:
            self.evaluation_keys = frozenset(evaluation_keys)


def recording(
    folder: Path, keys: set[str], records: list[Any] = RECORDS, later: set[str] | None = None, **options: Any
) -> Recording:
    """A data set with a stage attached."""
    usual = {"stores": str(folder / "stores"), "embedding": PIXELS, "loader": LoaderOptions(batch_size=4)}
    data = Recording(str(folder / "raw"), records, **(usual | options))
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, use_distributed_sampler=False)
    data.trainer.strategy.connect(Stage(keys, later))
    return data


def whole(data: Recording, split: str) -> Any:
    dataset = data.dataset(split)
    return dataset[torch.arange(len(dataset))]


def test_each_stimulus_comes_once_and_none_of_the_test_in_training(tmp_path: Path) -> None:
    data = recording(tmp_path, {"image"})
    seen: dict[str, set[bytes]] = {}
    for split in ("train", "validation", "test"):
        batch = whole(data, split)
        assert set(batch) == {"image", "stimulus", "label", "subject", "row"}
        assert isinstance(data.dataset(split), PictureDataset)
        assert batch["image"].dtype == torch.uint8
        assert batch["row"].tolist() == list(range(len(batch["row"])))
        assert not batch["subject"].any()
        assert batch["label"].tolist() == data.labels[batch["stimulus"]].tolist()
        shown = data.trials["number"][data.trials["side"] == split]
        assert batch["stimulus"].tolist() == sorted(set(shown)), "each once, in the order of the table"
        for image, number in zip(batch["image"], batch["stimulus"].tolist(), strict=True):
            np.testing.assert_array_equal(image.permute(1, 2, 0), data.store.image(number))
        seen[split] = {image.numpy().tobytes() for image in batch["image"]}
    assert all(seen.values())
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]
    assert not seen["train"] & seen["validation"]


def test_what_anyone_is_tested_on_is_nobody_s_training_picture(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    records = [
        Stimuli([f"s{i}" for i in range(6)], pictures(6, side=8)),
        Trials("01", random.standard_normal((6, 3)), stimulus=[f"s{i}" for i in range(6)]),
        Trials("02", random.standard_normal((2, 3)), stimulus=["s4", "s0"]),
    ]
    found = {}
    for fold in (0, 1):
        split = SplitOptions(protocol="by_subject", folds=2, fold=fold, validation=0.0)
        data = recording(tmp_path, {"image"}, records, split=split)
        tested = data.trials["subject"][data.trials["side"] == "test"].unique().item()
        found[tested] = data
    assert whole(found["02"], "train")["stimulus"].tolist() == [1, 2, 3, 5]
    assert whole(found["02"], "test")["stimulus"].tolist() == [0, 4]
    with pytest.raises(DataError, match=r"no pictures of their own in split 'train' \(2 are shown"):
        found["01"].dataset("train")


def test_repetitions_of_a_picture_are_not_divided(tmp_path: Path) -> None:
    split = SplitOptions(protocol="leave_one_repetition_out", validation=0.0)
    with pytest.raises(DataError, match=r"split\.protocol=leave_one_repetition_out; .* needs by_stimulus"):
        recording(tmp_path, {"image"}, split=split).dataset("train")


@pytest.mark.parametrize("residence", ["mmap", "ram", "device"])
def test_embedding_of_every_view_is_that_of_its_own_pixels(tmp_path: Path, residence: Any) -> None:
    loader = LoaderOptions(batch_size=4, residence=residence)
    data = recording(tmp_path, {"image", "embedding"}, views=ALL_VIEWS, loader=loader)
    embed = build_embedder(PIXELS)
    batch = whole(data, "train")
    originals = sorted(set(data.trials["number"][data.trials["side"] == "train"]))
    assert len(batch["row"]) == 6 * len(originals) == 6 * len(batch["stimulus"].unique())
    # fitted on the pictures themselves, so that the space does not depend on the views
    transform = fit_target("zscore", embed([data.store.image(number) for number in originals]).numpy())
    for row, number in enumerate(batch["stimulus"].tolist()):
        pixels = view(data.store.image(number), data.store.stimuli["sha256"].iloc[number], row % 6, ALL_VIEWS)
        expected = transform(embed([pixels]).numpy())[0]
        np.testing.assert_allclose(batch["embedding"][row], expected, atol=1e-5)
        np.testing.assert_array_equal(batch["image"][row].permute(1, 2, 0), fit_size(pixels, 7))
    # two crops may fall on one place, of which there are 36
    assert len(batch["embedding"].unique(dim=0)) > 0.95 * len(batch["row"]), "views differ"
    plain = recording(tmp_path, {"image", "embedding"})
    assert plain.layout == data.layout | {"image_shape": plain.layout["image_shape"]}
    for split in ("validation", "test"):
        for name in ("embedding", "stimulus"):
            assert torch.equal(whole(data, split)[name], whole(plain, split)[name]), "view 0 alone"
    assert torch.equal(batch["embedding"][::6], whole(plain, "train")["embedding"])


def test_views_cost_the_embeddings_of_pictures_nothing(tmp_path: Path) -> None:
    plain = recording(tmp_path, {"image", "embedding"})
    plain.dataset("train")
    features = tmp_path / "stores" / "features"
    before = {path: path.read_bytes() for path in features.rglob("*.safetensors")}
    recording(tmp_path, {"image", "embedding"}, views=ViewOptions(flip=True)).dataset("train")
    assert {path: path.read_bytes() for path in before} == before
    after = set(features.rglob("*.safetensors"))
    assert len(after) == len(before) + 1
    recording(tmp_path, {"image", "embedding"}, views=ViewOptions(flip=True)).dataset("train")
    assert set(features.rglob("*.safetensors")) == after, "made once"


@pytest.mark.parametrize("model", ["pixels", "classes", "none"])
def test_embed_gives_the_embedding_of_the_batch(tmp_path: Path, model: str) -> None:
    embedding = EmbeddingOptions(model=model, image_size=4, target="unit", batch_size=2)
    data = recording(tmp_path, {"image"} | ({"embedding"} if model != "none" else set()), embedding=embedding)
    context = data.score_context("test")
    if model != "pixels":
        assert context.embed is None
        return
    batch = whole(data, "test")
    assert context.embed is not None
    torch.testing.assert_close(context.embed(batch["image"]), batch["embedding"], rtol=0, atol=1e-5)
    assert context.embed(batch["image"][:0]).shape == (0, data.layout["embedding_width"])


def test_the_network_of_embed_is_built_once_and_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datamodules.core import image_space

    data = recording(tmp_path, {"image", "embedding"})
    embed = data.score_context("test").embed
    assert embed is not None
    built: list[Any] = []

    def build(options: EmbeddingOptions) -> Any:
        built.append(options)
        return build_embedder(options)

    monkeypatch.setattr(image_space, "build_embedder", build)
    image = whole(data, "test")["image"]
    assert not built
    for _ in range(2):
        embed(image)
    assert len(built) == 1


def test_classes_are_the_same_for_every_view(tmp_path: Path) -> None:
    embedding = EmbeddingOptions(model="classes")
    data = recording(tmp_path, {"image", "embedding"}, views=ViewOptions(flip=True), embedding=embedding)
    batch = whole(data, "train")
    assert torch.equal(batch["embedding"].argmax(dim=1), batch["label"])


# ---- beside recordings ------------------------------------------------------------------------------


def test_recordings_come_with_the_whole_picture_resized(tmp_path: Path) -> None:
    data = recording(tmp_path, {"signal", "image", "embedding"}, views=ALL_VIEWS)
    batch = data.dataset("train")[torch.arange(5)]
    plain = recording(tmp_path, {"signal", "embedding"}).dataset("train")[torch.arange(5)]
    assert torch.equal(batch["embedding"], plain["embedding"])
    assert data.layout["image_shape"] == [3, 7, 7] == list(batch["image"].shape[1:])
    for image, number in zip(batch["image"], batch["stimulus"].tolist(), strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0), fit_size(data.store.image(number), 7))


@pytest.mark.parametrize("keys", [{"signal", "embedding"}, {"image"}])
def test_entries_for_scores_alone_are_not_read_in_training(tmp_path: Path, keys: set[str]) -> None:
    further = {"signal", "embedding", "image"} - keys if "signal" in keys else {"embedding"}
    data = recording(tmp_path, keys, later=further)
    first = torch.tensor([0])
    passed = {"stimulus", "label", "subject", "row"}
    assert set(data.dataset("train")[first]) == keys | passed
    for split in ("validation", "test"):
        assert set(data.dataset(split)[first]) == keys | further | passed


# ---- layout -----------------------------------------------------------------------------------------


def test_image_shape_is_that_of_the_batch(tmp_path: Path) -> None:
    data = recording(tmp_path, {"image"})
    assert data.layout["image_shape"] == list(whole(data, "train")["image"].shape[1:])
    sized = recording(tmp_path, {"image"}, views=ViewOptions(size=9))
    assert sized.layout["image_shape"] == [3, 9, 9] == list(whole(sized, "train")["image"].shape[1:])
    blind = recording(tmp_path / "blind", {"signal"}, change(RECORDS, Stimuli, image=None))
    assert blind.layout["image_shape"] == []
    assert blind.score_context("test").embed is None


def files(folder: Path, sizes: list[tuple[int, int]], mode: str = "RGB") -> list[Path]:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number, (width, height) in enumerate(sizes):
        picture = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        picture.convert(mode).save(folder / f"{number:02d}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_grey_and_differently_sized_pictures(tmp_path: Path, mode: str) -> None:
    sizes = [(10 + i % 3, 12 - i % 4) for i in range(28)]
    records = change(RECORDS, Stimuli, image=files(tmp_path / "raw", sizes, mode))
    data = recording(tmp_path, {"image", "embedding"}, records, views=ALL_VIEWS)
    assert whole(data, "train")["image"].shape[1:] == (3, 7, 7)
    unsized = recording(tmp_path, {"image"}, records)
    assert unsized.layout["image_shape"] == [3, 12, 10]
    with pytest.raises(DataError, match=r"found 10x\d+ and 12x\d+ pixels; set --data\.init_args\.views\.size"):
        whole(unsized, "train")
    (tmp_path / "raw" / "00.png").unlink()
    assert recording(tmp_path, {"signal"}, records).layout["image_shape"] == [], "signals are of use without pictures"


# ---- order ------------------------------------------------------------------------------------------


def order(data: Recording, epoch: int, done: int = 0) -> list[int]:
    loader: Any = data.train_dataloader()
    loader.sampler.load_state_dict({"epoch": epoch, "batches_done": done})
    return torch.cat([batch["row"] for batch in loader]).tolist()


def test_order_is_a_function_of_seed_and_epoch_and_resumes(tmp_path: Path) -> None:
    def data() -> Recording:
        return recording(tmp_path, {"image"}, views=ALL_VIEWS)

    assert order(data(), 1) == order(data(), 1) != order(data(), 2)
    assert order(data(), 1, done=3) == order(data(), 1)[3 * 4 :]


def test_padding_is_marked_and_holds_the_sample_it_repeats(tmp_path: Path) -> None:
    dataset = recording(tmp_path, {"image", "embedding"}, views=ALL_VIEWS).dataset("train")
    padded, real = dataset[torch.tensor([9, ~8])], dataset[torch.tensor([9, 8])]
    assert padded["row"].tolist() == [9, PADDING]
    assert real["row"].tolist() == [9, 8]
    for name in ("image", "embedding", "stimulus", "label"):
        assert torch.equal(padded[name], real[name])  # type: ignore[literal-required]


@pytest.mark.parametrize("split", ["train", "test"])
def test_two_ranks_share_the_samples(tmp_path: Path, split: str) -> None:
    dataset = recording(tmp_path, {"image", "embedding"}, views=ALL_VIEWS).dataset(split)
    rows: list[int] = []
    for rank in range(2):
        options = {"shuffle": split == "train", "drop_last": False, "rank": rank, "world_size": 2}
        for numbers in BatchSampler(dataset.group, 3, **options):
            batch = dataset[numbers]
            rows += [row for row in batch["row"].tolist() if row != PADDING]
            padded = batch["row"] == PADDING
            assert torch.equal(batch["image"], dataset[torch.where(numbers < 0, ~numbers, numbers)]["image"])
            assert int(padded.sum()) <= 1
    assert sorted(rows) == list(range(len(dataset)))


def test_pictures_that_only_scores_need_are_not_read_for_a_prediction(tmp_path: Path) -> None:
    data = recording(tmp_path, {"signal", "embedding"}, later={"image"})
    assert data.trainer is not None
    assert "image" in whole(data, "test")
    data.trainer.state.fn = TrainerFn.PREDICTING
    assert "image" not in whole(data, "test")
