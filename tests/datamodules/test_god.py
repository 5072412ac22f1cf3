"""``GOD``: what is written is what is read, and what the published loader reads."""

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors import safe_open

from datamodules import BrainDataModule, SampleOptions, SplitOptions
from datamodules.god import GOD, exclusive_rois
from tests.datamodules.contract import DataModuleContract, everything, real_root
from tests.datamodules.god import opened
from tests.formats import god as format

Array = np.ndarray[Any, Any]
VOXELS = [voxel for voxels in format.EXCLUSIVE.values() for voxel in voxels]
SIZES = {name: len(voxels) for name, voxels in format.EXCLUSIVE.items()}


# ---- contract --------------------------------------------------------------------------------------


class Contract(DataModuleContract):
    kind = GOD
    split: ClassVar[SplitOptions] = SplitOptions(validation=0.25)


class TestNpz(Contract):
    @classmethod
    def write(cls, root: Path) -> None:
        format.write(root / "Kamitani" / "npz")

    def real(self, stores: Path) -> BrainDataModule:
        return GOD(str(real_root("god/sbj_1.npz")), stores=str(stores))


class BDataContract(Contract):
    # runs of the test set hold no training trials
    @pytest.mark.parametrize(
        "options",
        [
            SampleOptions(),
            SampleOptions(average_test=2, normalise="none"),
            SampleOptions(cleaning="zscore_run", cleaning_fit="all", average_test=3),
            SampleOptions(cleaning="zscore_session", cleaning_fit="all", average_train="all", normalise="none"),
        ],
    )
    def test_samples_are_cleaned_then_averaged_then_normalised(self, root: Path, options: SampleOptions) -> None:
        super().test_samples_are_cleaned_then_averaged_then_normalised(root, options)


class TestH5(BDataContract):
    @classmethod
    def write(cls, root: Path) -> None:
        format.write_bdata(root)


class TestMat(BDataContract):
    @classmethod
    def write(cls, root: Path) -> None:
        format.write_bdata(root, suffix="mat", pictures="npz")


class TestImagery(BDataContract):
    split: ClassVar[SplitOptions] = SplitOptions(validation=0.25, tested="imagery")

    @classmethod
    def write(cls, root: Path) -> None:
        format.write_bdata(root, test=5)


# ---- what is written is what is read ---------------------------------------------------------------


def test_regions_are_exclusive_in_the_order_of_the_published_keys() -> None:
    masks = {name: np.isin(np.arange(format.VOXELS), voxels) for name, voxels in format.MASKS.items()}
    sizes, order = exclusive_rois(masks)
    assert list(sizes.items()) == list(SIZES.items())
    assert order.tolist() == VOXELS


@pytest.mark.parametrize("folder", [".", "npz", "Kamitani", "Kamitani/npz"])
@pytest.mark.parametrize("size", [256, 112])
def test_arrays_of_the_npz_reach_the_store(root: Path, folder: str, size: int) -> None:
    content = format.write(root / folder, size=size)
    store = opened(root).store
    assert store.subjects == ["01", "02"]
    images = np.concatenate([content.train_images, content.test_images])
    names = [*content.train_names, *content.test_names]
    assert store.stimuli["id"].tolist() == names
    for number, image in enumerate(images):
        np.testing.assert_array_equal(store.image(number), image)
    for subject, person in zip(store.subjects, content.people, strict=True):
        assert store.axes(subject).rois == SIZES
        signal = np.concatenate([person.train, person.test])[:, VOXELS].astype(np.float32)
        np.testing.assert_array_equal(store.signals(subject), signal)
        trials = store.trials[store.trials["subject"] == subject]
        assert trials["split"].tolist() == ["train"] * 12 + ["test"] * 16
        shown = [*(names[i] for i in person.train_index), *(names[12 + i] for i in person.test_index)]
        assert trials["stimulus"].tolist() == shown


@pytest.mark.parametrize("suffix", ["h5", "mat"])
@pytest.mark.parametrize("pictures", ["files", "npz"])
def test_table_of_the_bdata_reaches_the_store(root: Path, suffix: str, pictures: str) -> None:
    content = format.write_bdata(root, suffix=suffix, pictures=pictures)
    store = opened(root).store
    by_name = dict(zip(content.train_names, content.train_images, strict=True))
    by_name |= dict(zip(content.test_names, content.test_images, strict=True))
    assert sorted(store.stimuli["id"]) == sorted(by_name)
    for number, name in enumerate(store.stimuli["id"]):
        np.testing.assert_array_equal(store.image(number), by_name[name])
    for subject, person in zip(store.subjects, content.people, strict=True):
        assert store.axes(subject).rois == SIZES
        signal = np.concatenate([person.train, person.test, person.imagery])[:, VOXELS].astype(np.float32)
        np.testing.assert_array_equal(store.signals(subject), signal)
        trials = store.trials[store.trials["subject"] == subject]
        assert trials["split"].tolist() == ["train"] * 12 + ["test"] * 16 + ["imagery"] * 8
        tested = [content.test_names[i] for i in (*person.test_index, *person.imagined)]
        assert trials["stimulus"].tolist() == [*(content.train_names[i] for i in person.train_index), *tested]
        runs = ["1"] * 6 + ["2"] * 6 + ["1"] * 8 + ["2"] * 8 + ["1"] * 4 + ["2"] * 4
        assert trials["run"].tolist() == runs
        sessions = ["perceptionTraining"] * 12 + ["perceptionTest"] * 16 + ["imageryTest"] * 8
        assert trials["session"].tolist() == sessions


def test_both_spellings_sessions_and_names_of_people_are_known(root: Path) -> None:
    content = format.write_bdata(root, people=1)
    dataset, metadata = format.bdata_content(content, content.people[0], sessions=True)
    metadata["Label"] = metadata.pop("stimulus_id")
    (root / "Subject1.h5").unlink()
    format.save_h5(root / "sub-03.h5", dataset, metadata, spelling="old")
    store = opened(root).store
    assert store.subjects == ["03"]
    assert store.trials["session"].iloc[[0, 11, 12, 27, 28, 35]].tolist() == [
        "perceptionTraining01",
        "perceptionTraining02",
        "perceptionTest01",
        "perceptionTest02",
        "imageryTest01",
        "imageryTest02",
    ]


def test_layouts_of_one_experiment_give_the_same_samples(root: Path) -> None:
    content = format.write(root)
    for number, person in enumerate(content.people, start=1):
        format.save_h5(root / f"Subject{number}.h5", *format.bdata_content(content, person))
        format.save_mat(root / f"Subject{number}.mat", *format.bdata_content(content, person))
    formats = ("auto", "npz", "h5", "mat")
    modules = [opened(root, file_format=name) for name in formats]
    assert len({data.store.folder for data in modules}) == 4
    for split in ("train", "test"):
        first = everything(modules[0], split)
        for data in modules[1:]:
            for one, other in zip(first, everything(data, split), strict=True):
                for name in one:
                    assert torch.equal(one[name], other[name]), name  # type: ignore[literal-required]


def test_classes_have_the_names_of_the_index_or_those_of_their_synsets(root: Path) -> None:
    content = format.write(root)
    classes = dict(zip(opened(root).store.stimuli["id"], opened(root).store.stimuli["class"], strict=True))
    last = max(content.test_names)
    assert classes[content.train_names[0]] == classes[content.train_names[1]] == "name0"
    # two animals and machines share a name in ImageNet
    assert classes[content.train_names[2]] == "crane (n01500001)"
    assert classes[content.train_names[4]] == "crane (n01500002)"
    assert classes[last] == last[:9]
    (root / "imagenet_class_index.json").unlink()
    shutil.rmtree(root.parent / "stores")
    assert set(opened(root).store.stimuli["class"]) == {
        name[:9] for name in (*content.train_names, *content.test_names)
    }


def test_imagery_is_tested_on_the_test_picture_of_its_class(root: Path) -> None:
    content = format.write_bdata(root, people=1)
    data = opened(root, split=SplitOptions(validation=0.0, tested="imagery"), samples=SampleOptions(normalise="none"))
    (batch,) = everything(data, "test")
    person = content.people[0]
    for signal, number in zip(batch["signal"], batch["stimulus"].tolist(), strict=True):
        stimulus = content.test_names.index(data.store.stimuli["id"][number])
        expected = person.imagery[person.imagined == stimulus][:, VOXELS].mean(axis=0)
        np.testing.assert_allclose(signal, expected, rtol=1e-5, atol=1e-5)
    assert len(batch["row"]) == 4


# ---- published loaders -----------------------------------------------------------------------------


def test_published_loader_returns_the_same(tmp_path: Path) -> None:
    npz = real_root("golden/layouts/Kamitani/npz/sbj_1.npz")
    golden = real_root("golden/published_loaders.safetensors") / "published_loaders.safetensors"
    data = opened(golden.parent / "layouts", stores=str(tmp_path), samples=SampleOptions(normalise="mindvis"))
    # training pictures were seen once and test trials stand picture by picture, so both orders agree
    (train,), (test,) = everything(data, "train"), everything(data, "test")
    with safe_open(golden, "numpy") as file:
        np.testing.assert_allclose(train["signal"], file.get_tensor("god_train"), atol=1e-5)
        np.testing.assert_allclose(test["signal"], file.get_tensor("god_test"), atol=1e-5)
        for number, image in zip(train["stimulus"].tolist(), file.get_tensor("god_train_image"), strict=False):
            np.testing.assert_array_equal(data.store.image(number), image)
        names = json.loads(file.metadata()["first_god_class_names"].replace("'", '"'))
    classes = [data.layout["classes"][label] for label in train["label"].tolist()]
    assert classes[: len(names)] == names
    # what the published loader takes for the test set is our average of the single trials
    with np.load(npz / "sbj_1.npz") as arrays:
        _, order = exclusive_rois({name: arrays[name] for name in format.MASKS})
        np.testing.assert_allclose(test["signal"], arrays["arr_2"][:, order], atol=1e-5)
        assert [arrays["arr_3"].min(), arrays["arr_3"].max()] == [0, 1199], "counted from 0"
        assert [arrays["arr_4"].min(), arrays["arr_4"].max()] == [0, 49], "counted from 0"
