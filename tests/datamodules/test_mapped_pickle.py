import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contracts import DataError
from datamodules.core.mapped_pickle import SMALL, load_mapped

Array = np.ndarray[Any, Any]
LARGE = np.arange(SMALL, dtype=np.float64).reshape(4, -1) / 1000


def as_npy(path: Path, content: Any) -> None:
    with path.open("wb") as stream:
        np.save(stream, content, allow_pickle=True)


def as_pickle(protocol: int) -> Callable[[Path, Any], Any]:
    return lambda path, content: path.write_bytes(pickle.dumps(content, protocol=protocol))


def as_python_pickle(path: Path, content: Any) -> None:
    with path.open("wb") as stream:
        pickle._Pickler(stream, protocol=5).dump(content)


def as_archive(path: Path, content: Any) -> None:
    with path.open("wb") as stream:
        torch.save(content, stream, pickle_protocol=5)


def as_tensors(path: Path, content: Any) -> None:
    arrays = {key: np.ascontiguousarray(value) for key, value in content.items() if isinstance(value, np.ndarray)}
    with path.open("wb") as stream:
        torch.save(content | {key: torch.from_numpy(value) for key, value in arrays.items()}, stream)


@pytest.mark.parametrize(
    "write", [as_npy, as_pickle(3), as_pickle(4), as_pickle(5), as_python_pickle, as_archive, as_tensors]
)
def test_large_arrays_are_mapped_and_all_are_equal(tmp_path: Path, write: Callable[[Path, Any], None]) -> None:
    path = tmp_path / "content.npy"
    content: dict[str, Any] = {
        "small": np.arange(6, dtype=np.float32).reshape(2, 3),
        "large": LARGE,
        "half": LARGE.astype(np.float16),
        "columns": np.asfortranarray(LARGE),
        "numbers": [1, 2.5, "text", None],
        "again": LARGE[:2].copy(),
        "name": "x" * 100_000,
    }
    write(path, content)
    found = load_mapped(path, list(content))
    for key, value in content.items():
        if isinstance(value, np.ndarray):
            assert found[key].dtype == value.dtype
            np.testing.assert_array_equal(found[key], value)
            assert isinstance(found[key], np.memmap) or (key == "small" and write is not as_tensors)
            assert not found[key].flags.writeable
        else:
            assert found[key] == value


@pytest.mark.parametrize("write", [as_npy, as_pickle(4), as_archive])
def test_text_and_other_byte_orders_are_read(tmp_path: Path, write: Callable[[Path, Any], None]) -> None:
    path = tmp_path / "content.npy"
    content = {
        "text": np.array([["a", "bcd"]] * 9000),
        "objects": np.array(["a", "b"], object),
        "big": LARGE.astype(">f4"),
        "flags": np.array([True, False]),
    }
    write(path, content)
    found = load_mapped(path, [])
    assert found["text"].tolist() == content["text"].tolist()
    assert found["objects"] == ["a", "b"]
    np.testing.assert_array_equal(found["big"], content["big"])
    assert found["flags"].tolist() == [True, False]


def test_parts_of_a_tensor_are_those_parts(tmp_path: Path) -> None:
    whole = torch.arange(120.0).reshape(2, 3, 20)
    torch.save({"second": whole[1], "rows": whole[:, :, :]}, tmp_path / "a.pt")
    found = load_mapped(tmp_path / "a.pt", ["second", "rows"])
    np.testing.assert_array_equal(found["second"], whole[1])
    np.testing.assert_array_equal(found["rows"], whole)
    torch.save({"turned": whole.transpose(0, 1)}, tmp_path / "b.pt")
    with pytest.raises(DataError, match=r"b\.pt.*do not lie in order"):
        load_mapped(tmp_path / "b.pt", [])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([LARGE], "expected a pickled dict of arrays by name, found a list|an array"),
        ({3: LARGE}, "expected a pickled dict of arrays by name"),
        (LARGE, "found an array float64"),
        ({"a": np.array([{}], object)}, "'a' must be an array of numbers or text, found .*O"),
        ({"a": np.zeros(3, [("x", "f4")])}, "'a' must be an array of numbers or text"),
        ({"a": np.zeros(3, complex)}, "'a' must be an array of numbers or text, found <c16"),
        ({"a": np.zeros(3, "M8[s]")}, "'a' must be an array of numbers or text, found <M8"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: Any, expected: str) -> None:
    as_npy(tmp_path / "content.npy", content)
    with pytest.raises(DataError, match=expected) as raised:
        load_mapped(tmp_path / "content.npy", [])
    assert "content.npy" in str(raised.value)


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    torch.save({"a": LARGE}, tmp_path / "a.pt", pickle_protocol=5)
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(DataError, match=r"b\.pt .*is compressed"):
        load_mapped(tmp_path / "b.pt", [])


@pytest.mark.parametrize("write", [as_npy, as_pickle(5), as_archive, as_tensors])
def test_damaged_bytes_never_end_in_another_error(tmp_path: Path, write: Callable[[Path, Any], None]) -> None:
    path, random = tmp_path / "content.pt", np.random.default_rng(0)
    write(path, {"a": LARGE.astype(np.float16), "b": LARGE[0, :4].copy(), "c": ["x", "y"]})
    content, read = path.read_bytes(), 0
    edges = [*range(400), *range(len(content) - 900, len(content))]  # the array itself may hold anything
    for _ in range(200):
        damaged = bytearray(content)
        for place in random.choice(edges, 2):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            found = load_mapped(path, [])
        except DataError:
            continue
        assert all(np.isfinite(np.asarray(v).size) for v in found.values() if isinstance(v, np.ndarray))
        read += 1
    assert 0 < read < 200
