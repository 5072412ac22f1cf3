"""A pickled dict of pictures: read without executing anything that stands in it."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts import DataError
from datamodules.core.restricted_pickle import load_image_dict


class Bomb:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.makedirs, (str(self.marker),)


class Crafted:
    """Pickled as whatever ``__reduce__`` is to return."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


PICTURE = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)


def save(path: Path, content: Any, *, protocol: int | None = None) -> Path:
    """Write what ``numpy.save`` writes for an object, or the same with another protocol."""
    if protocol is None:
        np.save(path, content, allow_pickle=True)
        return path
    array = np.empty((), object)
    array[()] = content
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(array, stream, protocol=protocol)
    return path


@pytest.mark.parametrize("protocol", [None, 3, 4])
def test_pickled_pictures_are_read(tmp_path: Path, protocol: int | None) -> None:
    columns = np.asfortranarray(PICTURE)
    content = {"a.jpg": PICTURE, "b.jpg": columns, "c.jpg": PICTURE[:, ::-1], "d.jpg": PICTURE}
    found = load_image_dict(save(tmp_path / "img_dict.npy", content, protocol=protocol))
    assert list(found) == list(content)
    for name, picture in content.items():
        assert found[name].dtype == np.uint8
        np.testing.assert_array_equal(found[name], picture)


def test_names_of_numpy_1_and_2_are_known(tmp_path: Path) -> None:
    path = save(tmp_path / "img_dict.npy", {"a": PICTURE}, protocol=3)
    content = path.read_bytes()
    assert content.count(b"numpy._core.multiarray") == 1
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    np.testing.assert_array_equal(load_image_dict(path)["a"], PICTURE)


@pytest.mark.parametrize(
    "content",
    [
        lambda bomb: {"a": PICTURE, "b": bomb},
        lambda bomb: {bomb: PICTURE},
        lambda bomb: {"a": np.array([bomb], object)},
        lambda bomb: {"a": np.array([(1, bomb)], [("x", int), ("y", object)])},
        lambda bomb: {"a": [bomb]},
        lambda bomb: bomb,
    ],
)
def test_a_pickle_that_would_run_code_does_not(tmp_path: Path, content: Callable[[Bomb], Any]) -> None:
    marker = tmp_path / "marker"
    path = save(tmp_path / "img_dict.npy", content(Bomb(marker)))
    with pytest.raises(DataError, match=r"img_dict\.npy .*os\.makedirs.*never executed"):
        load_image_dict(path)
    assert not marker.exists()
    # it would have
    np.load(path, allow_pickle=True)
    assert marker.exists()


@pytest.mark.parametrize(
    "function", [eval, exec, getattr, __import__, np.load, np.frombuffer, np.fromfile, np.dtypes.UInt8DType, io.BytesIO]
)
def test_no_function_is_handed_to_the_file(tmp_path: Path, function: Any) -> None:
    with pytest.raises(DataError, match=r"it wants .*never executed"):
        load_image_dict(save(tmp_path / "img_dict.npy", {"a": Crafted(function, ("0",))}))


@pytest.mark.parametrize(
    "name",
    [b"numpy\nload", b"numpy.core.multiarray\nfromfile", b"numpy\ndtype.__class__", b"os\nsystem", b"\n", b"numpy\n"],
)
def test_no_other_name_is_found(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / "img_dict.npy"
    for prefix in (b"", b"\x80\x04"):
        with path.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": ()})
            stream.write(prefix + b"c" + name + b"\n.")
        with pytest.raises(DataError, match="never executed"):
            load_image_dict(path)


def state(shape: Any, code: str, data: Any) -> Any:
    """An array whose pickled state says what it likes."""
    return Crafted(PICTURE.__reduce__()[0], (np.ndarray, (0,), b"b"), (1, shape, np.dtype(code), False, data))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"a": PICTURE.astype(np.float32)}, r"picture 'a': expected uint8 \(H, W, 3\), found f4 \(8, 6, 3\)"),
        ({"a": PICTURE.astype(np.int8)}, r"picture 'a': .* found i1"),
        ({"a": PICTURE[..., 0]}, r"picture 'a': .* found u1 \(8, 6\)"),
        ({"a": PICTURE[..., :2]}, r"picture 'a': .* found u1 \(8, 6, 2\)"),
        ({"a": np.array([PICTURE, None], object)}, r"picture 'a': .* found O8 \(2,\)"),
        ({"a": [1, 2]}, r"picture 'a': .* found a list"),
        ({"a": None}, r"picture 'a': .* found a NoneType"),
        ({3: PICTURE}, "names of pictures must be text, found int"),
        ([PICTURE], "expected one pickled dict|found an array"),
        ("text", "found"),
        ({"a": state((8, 6, 3), "u1", b"short")}, "picture 'a': expected 144 bytes, found 5"),
        ({"a": state((10**9, 10**9, 3), "u1", b"short")}, "expected 3000000000000000000 bytes, found 5"),
        ({"a": state((-1, -1, 3), "u1", b"abc")}, r"found u1 \(-1, -1, 3\)"),
        ({"a": state((8, 6, 3), "O", b"\x00" * 144)}, "found O8"),
        ({"a": state([8, 6, 3], "u1", b"\x00" * 144)}, "found u1"),
        ({"a": state((8, 6, 3), "u1", "text")}, "expected 144 bytes, found -1"),
        ({"a": Crafted(np.dtype, ("u1", False, True))}, "found a PickledDtype"),
        ({"a": Crafted(np.ndarray, ((2,), "O"))}, "cannot read .*never executed"),
        ({"a": np.ndarray}, "found a Inert"),
    ],
)
def test_other_pickles_are_refused(tmp_path: Path, content: Any, expected: str) -> None:
    with pytest.raises(DataError, match=expected) as raised:
        load_image_dict(save(tmp_path / "img_dict.npy", content))
    assert "img_dict.npy" in str(raised.value)


def test_a_plain_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "img_dict.npy", PICTURE)
    with pytest.raises(DataError, match=r"expected one pickled dict of pictures, found an array uint8 \(8, 6, 3\)"):
        load_image_dict(tmp_path / "img_dict.npy")
    with pytest.raises(DataError, match="no file"):
        load_image_dict(tmp_path / "absent.npy")


def test_damaged_bytes_never_end_in_another_error(tmp_path: Path) -> None:
    path = save(tmp_path / "img_dict.npy", {"a": PICTURE, "b": PICTURE + 1})
    content, random = path.read_bytes(), np.random.default_rng(0)
    read = 0
    for _ in range(500):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), 3):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            pictures = load_image_dict(path)
        except DataError:
            continue
        assert all(picture.dtype == np.uint8 and picture.ndim == 3 for picture in pictures.values())
        read += 1
    assert 0 < read < 500
