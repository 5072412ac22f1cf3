import json
import shutil
import struct
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from safetensors import safe_open

from contracts import DataError
from datamodules import BrainDataModule, SampleOptions, SplitOptions
from datamodules.core.bdata import load_bdata
from datamodules.god import GOD, exclusive_rois
from tests.datamodules.contract import SHARED, SMALL_PIXELS, DataModuleContract, everything, leftovers, real_root
from tests.formats import god as format

Array = np.ndarray[Any, Any]
VOXELS = [voxel for voxels in format.EXCLUSIVE.values() for voxel in voxels]
SIZES = {name: len(voxels) for name, voxels in format.EXCLUSIVE.items()}


def opened(root: Path, **options: Any) -> GOD:
    usual: dict[str, Any] = {"split": SplitOptions(validation=0.0), "embedding": SMALL_PIXELS}
    return GOD(str(root), stores=str(root.parent / "stores"), **(usual | options))


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(DataError) as raised:
        opened(root, **options).store  # noqa: B018
    assert not leftovers(root.parent / "stores")
    return str(raised.value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "raw"


# ---- contract --------------------------------------------------------------------------------------


class Contract(DataModuleContract):
    split: ClassVar[SplitOptions] = SplitOptions(validation=0.25)

    def make(self, root: Path, **options: Any) -> BrainDataModule:
        return GOD(str(root), **options)


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
    data = GOD(
        str(SHARED / "golden" / "layouts"),
        stores=str(tmp_path),
        split=SplitOptions(validation=0.0),
        samples=SampleOptions(normalise="mindvis"),
        embedding=SMALL_PIXELS,
    )
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


# ---- bad input -------------------------------------------------------------------------------------


def change_npz(path: Path, **changes: Any) -> None:
    with np.load(path) as arrays:
        content = {key: arrays[key] for key in arrays.files} | changes
    np.savez(path, **{key: value for key, value in content.items() if value is not None})


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"arr_3": np.arange(1, 13)}, ["arr_3", "1..12", "12 train images", "counted from 0"]),
        ({"arr_4": np.repeat(np.arange(-1, 3), 4)}, ["arr_4", "-1..2", "4 test images"]),
        ({"arr_3": np.arange(12.0)}, ["arr_3", "integers", "float64"]),
        ({"arr_4": np.zeros(15, int)}, ["arr_4", "(16)", "(15,)"]),
        ({"arr_2": np.zeros((3, 20))}, ["arr_2", "(4, 20)", "(3, 20)"]),
        ({"arr_0": np.zeros((12, 19))}, ["arr_0", "(any, 20)", "(12, 19)"]),
        ({"arr_0": np.zeros((12, 20), complex)}, ["arr_0", "floating point", "complex128"]),
        ({"V3": np.zeros(20)}, ["mask V3", "bool", "float64"]),
        ({"V3": np.zeros(19, bool)}, ["mask V3", "(20)", "(19,)"]),
        ({"PPA": None}, ["missing 'PPA'"]),
        (dict.fromkeys(format.MASKS, np.zeros(20, bool)), ["no voxel is in any region"]),
    ],
)
def test_other_content_of_the_npz_is_refused(root: Path, changes: dict[str, Any], expected: list[str]) -> None:
    format.write(root)
    change_npz(root / "sbj_1.npz", **changes)
    message = refused(root)
    for part in ("sbj_1.npz", *expected):
        assert part in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train_images": np.zeros((11, 8, 8, 3), np.uint8)}, ["train_images", "(12, any, any, 3)", "(11, 8, 8, 3)"]),
        ({"test_images": np.zeros((4, 8, 8), np.uint8)}, ["test_images", "(4, 8, 8)"]),
        ({"test_images": np.full((4, 8, 8, 3), 255.0)}, ["test_images", "uint8", "0..1", "float64", "255.0"]),
        ({"test_images": np.full((4, 8, 8, 3), np.nan)}, ["test_images", "nan"]),
        ({"test_images": np.full((4, 8, 8, 3), 7)}, ["test_images", "int64", "7..7"]),
        ({"train_images": None}, ["missing 'train_images'"]),
    ],
)
def test_other_pictures_are_refused(root: Path, changes: dict[str, Any], expected: list[str]) -> None:
    format.write(root)
    change_npz(root / "images_256.npz", **changes)
    message = refused(root)
    for part in ("images_256.npz", *expected):
        assert part in message


@pytest.mark.parametrize("file", ["sbj_2.npz", "images_256.npz"])
def test_pickles_are_refused_and_never_executed(root: Path, file: str) -> None:
    format.write(root)
    marker = root / "marker"
    key = "arr_0" if file == "sbj_2.npz" else "test_images"
    change_npz(root / file, **{key: np.array([Bomb(marker)], object)})
    assert "never executed" in refused(root)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("imagenet_training_label.csv", "1.0,n01500000_22.JPEG\n" * 12, "12 names|1 names stand twice"),
        ("imagenet_testing_label.csv", "n02500000_10040.JPEG\n", "line 1"),
        ("imagenet_testing_label.csv", "1,cat.jpg\n", "line 1"),
        ("imagenet_testing_label.csv", None, "no file"),
        ("imagenet_class_index.json", "{", "cannot read"),
        ("imagenet_class_index.json", "[]", "cannot read"),
        ("imagenet_class_index.json", '{"0": ["n01500000"]}', "synsets followed by a name"),
        ("imagenet_class_index.json", '{"0": 3}', "cannot read"),
    ],
)
def test_other_labels_are_refused(root: Path, file: str, text: str | None, expected: str) -> None:
    format.write(root)
    (root / file).unlink()
    if text is not None:
        (root / file).write_text(text)
    message = refused(root)
    assert file in message
    assert any(part in message for part in expected.split("|"))


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("file", ["sbj_1.npz", "images_256.npz", "Subject1.h5", "Subject1.mat"])
def test_truncated_files_are_refused(root: Path, file: str, share: float) -> None:
    if file.startswith("Subject"):
        format.write_bdata(root, suffix=file.rpartition(".")[2], people=1)
    else:
        format.write(root, people=1)
    content = (root / file).read_bytes()
    (root / file).write_bytes(content[: int(share * len(content))])
    assert f"cannot read {root / file}" in refused(root)


def test_without_recordings_the_message_says_where_they_belong(root: Path) -> None:
    root.mkdir()
    (root / "readme.txt").touch()
    message = refused(root)
    for part in (str(root), "sbj_1.npz", "Subject1.h5", "found readme.txt", "figshare.com", "--data.init_args.root"):
        assert part in message
    format.write(root)
    assert "--data.init_args.file_format" in refused(root, file_format="h5")
    assert "no recordings" in refused(root / "absent")


def test_two_files_of_a_person_are_refused(root: Path) -> None:
    format.write_bdata(root)
    shutil.copy(root / "Subject1.h5", root / "sub-01.h5")
    assert "two files of person 01" in refused(root)


def bdata(root: Path) -> tuple[Array, dict[str, Array]]:
    content = format.write_bdata(root, people=1)
    return format.bdata_content(content, content.people[0])


@pytest.mark.parametrize("suffix", ["h5", "mat"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d, m: d.__setitem__((0, -4), 4), ["DataType", "[4.0]"]),
        (lambda d, m: d.__setitem__((3, -4), np.nan), ["DataType of sample 3 is nan"]),
        (lambda d, m: d.__setitem__((5, -2), np.nan), ["stimulus_id of sample 5 is nan"]),
        (lambda d, m: d.__setitem__((5, -2), 1500000.0000225), ["synset.image", "1500000.0000225"]),
        (lambda d, m: d.__setitem__((5, -2), -3.0), ["synset.image", "-3.0"]),
        (lambda d, m: d.__setitem__((5, -2), 1500000.000023), ["stimulus without image", "n01500000_23", "request"]),
        (lambda d, m: d.__setitem__((-1, -2), 1234567.0), ["no test picture of the imagined class n01234567"]),
        (lambda d, m: d.__setitem__((12, -2), 2500000.010041), ["n02500000_10041", "test pictures of one class"]),
        (lambda d, m: m.pop("ROI_LOC"), ["no metadata key 'ROI_LOC'", "ROI_V1"]),
        (lambda d, m: m.pop("DataType"), ["no metadata key 'DataType'"]),
        (lambda d, m: m.pop("stimulus_id"), ["no metadata key 'Label'"]),
        (lambda d, m: m["Run"].fill(np.nan), ["one column with metadata 'Run', found 0"]),
        (lambda d, m: m["Run"].__setitem__(slice(-2, None), 1), ["one column with metadata 'Run', found 3"]),
        (lambda d, m: m["VoxelData"].fill(np.nan), ["no column of VoxelData is in any region"]),
    ],
)
def test_other_content_of_the_bdata_is_refused(root: Path, suffix: str, change: Any, expected: list[str]) -> None:
    dataset, metadata = bdata(root)
    change(dataset, metadata)
    (root / "Subject1.h5").unlink()
    (format.save_h5 if suffix == "h5" else format.save_mat)(root / f"Subject1.{suffix}", dataset, metadata)
    message = refused(root)
    for part in (f"Subject1.{suffix}", *expected):
        assert part in message


def test_tables_of_another_type_are_refused(root: Path) -> None:
    dataset, metadata = bdata(root)
    path = root / "Subject1.h5"
    format.save_h5(path, dataset.astype(np.float32), metadata)
    assert "float64 matrix, found float32" in refused(root)
    format.save_h5(path, dataset[:, :-1], metadata)
    assert "(18, 24)" in refused(root) or "expected shape" in refused(root)
    format.save_h5(path, dataset[0], metadata)
    assert "float64 matrix" in refused(root)
    with h5py.File(path, "a") as file:
        del file["metadata/key"]
        file["metadata/key"] = np.arange(3)
    assert "must hold text" in refused(root)
    with h5py.File(path, "a") as file:
        del file["metadata/key"]
    assert "metadata/key must be an array; found nothing" in refused(root)
    with h5py.File(path, "w") as file:
        file["data"] = 1
    assert "no dataset or dataSet; found data" in refused(root)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (np.zeros((2, 2)), "one struct with fields key and value"),
        ({"key": np.array(["a"], object)}, "one struct with fields key and value"),
        ({"key": np.arange(3.0), "value": np.zeros((3, 3))}, "must be a cell of text, found float64"),
        ({"key": np.array([{"x": 1}], object), "value": np.zeros((1, 3))}, "must be a cell of text"),
        ({"key": np.array(["a", "a"], object), "value": np.zeros((2, 3))}, "stand twice: a"),
        ({"key": np.array(["a"], object), "value": np.array([["x"]], object)}, "metadata value must be a float64"),
        ({"key": np.array(["a"], object), "value": np.zeros((1, 2))}, "expected shape (1, 3), found (1, 2)"),
    ],
)
def test_other_structs_are_refused(tmp_path: Path, metadata: Any, expected: str) -> None:
    scipy.io.savemat(tmp_path / "Subject1.mat", {"dataSet": np.zeros((4, 3)), "metaData": metadata})
    with pytest.raises(DataError) as raised:
        load_bdata(tmp_path / "Subject1.mat")
    assert expected in str(raised.value)
    assert "Subject1.mat" in str(raised.value)


def test_whole_numbers_of_matlab_are_read_as_doubles(tmp_path: Path) -> None:
    path = tmp_path / "Subject1.mat"
    metadata = {"key": np.array(["a"], object), "value": np.array([[1.0, 0.0, np.nan]])}
    scipy.io.savemat(path, {"metaData": metadata})
    # MATLAB stores a matrix of class double in the smallest type that holds it; scipy does not, so by hand
    parts = [struct.pack("<IIII", 6, 8, 6, 0), struct.pack("<IIii", 5, 8, 4, 3), struct.pack("<II8s", 1, 7, b"dataSet")]
    parts.append(struct.pack("<II16s", 2, 12, bytes(range(12))))
    with path.open("ab") as stream:
        stream.write(struct.pack("<II", 14, sum(map(len, parts))) + b"".join(parts))
    data = load_bdata(path)
    assert data.columns("a").tolist() == [True, False, False]
    assert data.values("a").tolist() == [0, 1, 2, 3]


def test_without_pictures_the_message_says_where_they_belong(root: Path) -> None:
    format.write_bdata(root)
    shutil.rmtree(root / "images")
    message = refused(root)
    for part in ("no pictures", str(root / "images" / "training"), "images_256.npz", "request"):
        assert part in message


@pytest.mark.parametrize("suffix", [".JPEG", ".jpg", ".png"])
def test_pictures_may_have_any_suffix(root: Path, suffix: str) -> None:
    content = format.write_bdata(root, people=1)
    shutil.rmtree(root / "images")
    format.write_pictures(root, content, suffix=suffix)
    assert opened(root).store.image(0).shape == (8, 8, 3)
