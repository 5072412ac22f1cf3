"""Files that are not what they should be: one clear error, and nothing of them is ever executed."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from contracts import DataError
from datamodules.core.readers import load_image, load_mat, load_npy, load_npz, load_torch, reading, require_shape

ARRAY = np.arange(5000, dtype=np.float32).reshape(50, 100)


def h5(path: Path, **arrays: Any) -> None:
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value


def photograph(path: Path, format: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format=format)


WRITE: dict[str, Callable[[Path], Any]] = {
    "array.npy": lambda path: np.save(path, ARRAY),
    "arrays.npz": lambda path: np.savez(path, a=ARRAY, b=ARRAY[0]),
    "five.mat": lambda path: scipy.io.savemat(path, {"a": ARRAY, "b": ARRAY[:1]}, do_compression=True),
    "seven.mat": lambda path: h5(path, a=ARRAY.T, b=ARRAY[:1].T),
    "weights.pth": lambda path: torch.save({"a": torch.from_numpy(ARRAY)}, path),
    "picture.png": lambda path: photograph(path, "PNG"),
    "picture.jpg": lambda path: photograph(path, "JPEG"),
}
READ: dict[str, Callable[[Path], Any]] = {
    "array.npy": load_npy,
    "arrays.npz": lambda path: load_npz(path, ["a", "b"]),
    "five.mat": lambda path: load_mat(path, ["a", "b"]),
    "seven.mat": lambda path: load_mat(path, ["a", "b"]),
    "weights.pth": load_torch,
    "picture.png": load_image,
    "picture.jpg": load_image,
}
KINDS = pytest.mark.parametrize("name", list(WRITE))


def write(folder: Path, name: str) -> Path:
    WRITE[name](folder / name)
    return folder / name


def test_whole_files_are_read(tmp_path: Path) -> None:
    np.testing.assert_array_equal(load_npy(write(tmp_path, "array.npy")), ARRAY)
    mapped = load_npy(tmp_path / "array.npy", mmap=True)
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, ARRAY)
    for name in ("arrays.npz", "five.mat", "seven.mat"):
        found = READ[name](write(tmp_path, name))
        assert list(found) == ["a", "b"]
        np.testing.assert_array_equal(found["a"], ARRAY)
        np.testing.assert_array_equal(found["b"].reshape(-1), ARRAY[0])
    np.testing.assert_array_equal(load_torch(write(tmp_path, "weights.pth"))["a"], ARRAY)
    assert load_image(write(tmp_path, "picture.png")).shape == (40, 50, 3)


def test_an_error_that_is_clear_already_passes_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, "array.npy")
    with pytest.raises(DataError, match=r"^no such region$"), reading(path):
        raise DataError("no such region")
    said = rf"^cannot read {path} \(20128 bytes\): KeyError\. Look elsewhere$"
    with pytest.raises(DataError, match=said), reading(path, "Look elsewhere"):
        raise KeyError


@KINDS
def test_a_missing_file_names_what_is_there_instead(tmp_path: Path, name: str) -> None:
    (tmp_path / "there.txt").touch()
    with pytest.raises(DataError, match=rf"no file .*{name}; the folder .* holds: there\.txt"):
        READ[name](tmp_path / "not" / "here" / name)
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="no file"):
        READ[name](tmp_path / name)


@KINDS
@pytest.mark.parametrize("share", [0, 0.005, 0.02, 0.1, 0.3, 0.6, 0.9, 0.99])
def test_truncated_files_are_refused_and_kept(tmp_path: Path, name: str, share: float) -> None:
    path = write(tmp_path, name)
    content = path.read_bytes()[: int(share * path.stat().st_size)]
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"cannot read .*{name} \({len(content)} bytes\): ."):
        READ[name](path)
    assert path.read_bytes() == content


@KINDS
def test_files_of_another_format_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("<html>404: not found</html>" * 100)
    with pytest.raises(DataError, match=rf"cannot read .*{name} \(2700 bytes\)"):
        READ[name](tmp_path / name)


@pytest.mark.parametrize("name", ["arrays.npz", "five.mat", "seven.mat"])
def test_a_missing_key_is_named_beside_those_there(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    load = load_npz if name.endswith("npz") else load_mat
    with pytest.raises(DataError, match=rf"{name}: missing 'c', 'd'; found 'a', 'b'"):
        load(path, ["a", "c", "d"])


def test_an_archive_is_not_an_array(tmp_path: Path) -> None:
    path = write(tmp_path, "arrays.npz").rename(tmp_path / "array.npy")
    with pytest.raises(DataError, match=r"expected one array \(\.npy\), found an archive"):
        load_npy(path)


def test_an_array_is_not_an_archive(tmp_path: Path) -> None:
    path = write(tmp_path, "array.npy").rename(tmp_path / "arrays.npz")
    with pytest.raises(DataError, match=r"expected an archive \(\.npz\), found one array"):
        load_npz(path, ["a"])


def test_maps_of_truncated_arrays_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "array.npy")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="cannot read"):
        load_npy(path, mmap=True)


def test_cells_structs_and_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "five.mat"
    scipy.io.savemat(path, {"cell": np.array([[1, "a"]], object), "struct": {"x": 1}, "text": "abc"})
    for key in ("cell", "struct", "text"):
        with pytest.raises(DataError, match=rf"five\.mat: '{key}' must hold numbers, found"):
            load_mat(path, [key])
    with h5py.File(tmp_path / "seven.mat", "w") as file:
        file["x/y"] = 1
        file["names"] = ["a", "b"]
        file.create_dataset("cell", (2,), h5py.ref_dtype)
    for key in ("x", "names", "cell"):
        with pytest.raises(DataError, match=rf"'{key}' must hold numbers, found"):
            load_mat(tmp_path / "seven.mat", [key])


class Bomb:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def zipped(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=array, b=array)
    return buffer.getvalue()


def saved(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("array.npy", lambda bomb: saved(np.array([bomb, 1], object))),
        ("array.npy", pickle.dumps),
        ("arrays.npz", lambda bomb: zipped(np.array([bomb, 1], object))),
        ("arrays.npz", pickle.dumps),
        ("five.mat", pickle.dumps),
        ("seven.mat", pickle.dumps),
        ("weights.pth", pickle.dumps),
        ("weights.pth", lambda bomb: torch_saved({"a": bomb})),
        ("picture.png", pickle.dumps),
    ],
)
def test_pickles_are_refused_and_never_executed(tmp_path: Path, name: str, content: Callable[[Bomb], bytes]) -> None:
    marker = tmp_path / "marker"
    (tmp_path / name).write_bytes(content(Bomb(marker)))
    with pytest.raises(DataError, match=rf"{name}.*never executed"):
        READ[name](tmp_path / name)
    assert not marker.exists()


def torch_saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_the_bomb_is_real(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "marker"))).close()
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("shape", "expected", "found"),
    [((3, 4), (3, 5), r"\(3, 5\), found \(3, 4\)"), ((3,), (None, 2), r"\(any, 2\), found \(3,\)")],
)
def test_shapes_are_compared(shape: tuple[int, ...], expected: tuple[int | None, ...], found: str) -> None:
    with pytest.raises(DataError, match=f"betas: expected shape {found}"):
        require_shape("betas", np.zeros(shape), expected)
    require_shape("betas", np.zeros((3, 4)), (None, 4))
