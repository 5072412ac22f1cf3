"""``GOD``: what is refused, where files belong, and the layouts of tables that are taken."""

import shutil
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io

from contracts import DataError
from datamodules.core.bdata import load_bdata
from tests.datamodules.god import opened, refused
from tests.formats import god as format

Array = np.ndarray[Any, Any]


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
