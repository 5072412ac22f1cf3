"""Reader of a pickled dict of arrays that maps the large ones instead of reading them, and runs nothing.

Three kinds of file hold such a dict: what ``numpy.save`` writes for an object (``.npy``), a plain pickle, and the
archive of ``torch.save``. In all of them the bytes of a large array lie in one piece, outside of the frames of the
pickle, so their place in the file is known and ``numpy.memmap`` can stand for them: a file of 8 GB costs no memory
until a part of it is used. As in ``restricted_pickle``, the names of constructors stand for inert records of ours.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from contracts import DataError
from datamodules.core.readers import reading
from datamodules.core.restricted_pickle import ArrayUnpickler, Inert, PickledArray, PickledDtype, read_header, unwrapped

SMALL = 1 << 16
"""Bytes below which a value is read; the size of a frame of a pickle, within which values cannot be mapped."""
BUFFER_MODULES = ("numpy.core.numeric", "numpy._core.numeric")
"""Where numpy 1 and numpy 2 keep ``_frombuffer``, which arrays of pickle protocol 5 name."""
STORAGES = {"HalfStorage": "f2", "FloatStorage": "f4", "DoubleStorage": "f8", "LongStorage": "i8", "IntStorage": "i4"}
PLAIN = re.compile(r"[<>=|](?:[fiu][1248]|b1|U\d+)")
"""Types of arrays that are read: numbers and text of fixed width."""


ONLY_ARRAYS = (
    "It is truncated, of another format, or holds other pickled objects than arrays, which are never executed; fetch "
    "the file again"
)


def load_mapped(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Read a dict of arrays, lists and plain values from a ``.npy``, pickle or ``torch.save`` file.

    Args:
        path: The file.
        keys: What it must hold.

    Returns:
        All entries: arrays (and tensors) as read-only numpy arrays, mapped where they are large, arrays of Python text
        as lists, everything else as it is.

    Raises:
        DataError: Missing or truncated file, a missing key, an array of Python objects other than text, a pickle that
            wants to call anything but the constructors of numpy's arrays and torch's tensors.
    """
    with reading(path, ONLY_ARRAYS):
        with path.open("rb") as stream:
            content = unwrapped(_open(path, stream).load())
        size = path.stat().st_size
        if type(content) is not dict or not all(type(key) is str for key in content):
            raise DataError(f"{path}: expected a pickled dict of arrays by name, found {_kind(content)}")
        missing = [key for key in keys if key not in content]
        if missing:
            raise DataError(f"{path}: missing {', '.join(missing)}; found {', '.join(content) or 'nothing'}")
        return {
            key: _array(path, key, value, size) if isinstance(value, PickledArray) else value
            for key, value in content.items()
        }


class _Mapped:
    """Bytes that stay in the file."""

    __slots__ = ("length", "offset")

    def __init__(self, offset: int, length: int) -> None:
        self.offset = offset
        self.length = length

    def __len__(self) -> int:
        return self.length


class _MakeFromBuffer(Inert):
    __slots__ = ()

    def __call__(self, data: object, dtype: object, shape: object, order: object) -> PickledArray:
        array = PickledArray()
        array.__setstate__((1, shape, dtype, order == "F", data))
        return array


class _Storage(Inert):
    """Type of the numbers of a tensor."""

    __slots__ = ("code",)

    def __init__(self, code: str) -> None:
        self.code = code


class _MakeTensor(Inert):
    __slots__ = ()

    def __call__(self, storage: Any, offset: int, shape: Any, stride: Any, *_: object) -> PickledArray:
        kind, place, numbers = storage
        width = int(kind.code[1])
        steps = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        if any(have != want for have, want, length in zip(stride, steps, shape, strict=True) if length > 1):
            raise pickle.UnpicklingError(f"a tensor's numbers do not lie in order: stride {stride} of shape {shape}")
        if not 0 <= offset <= offset + math.prod(shape) <= numbers:
            raise pickle.UnpicklingError(f"a tensor of shape {shape} reaches beyond its {numbers} numbers")
        dtype = PickledDtype(kind.code)
        dtype.order = "<"
        array = PickledArray()
        data = _Mapped(place + offset * width, math.prod(shape) * width)
        array.__setstate__((1, tuple(shape), dtype, False, data))
        return array


class _MakeNothing(Inert):
    """Stands for ``OrderedDict``, which holds the hooks of a tensor."""

    __slots__ = ()

    def __call__(self) -> None:
        return None


class _Unpickler(ArrayUnpickler):
    """Leaves large values where they are.

    Args:
        stream: The file, at the start of the pickle.
        storages: Offset of the numbers of each tensor of a ``torch.save`` archive.
    """

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(ArrayUnpickler.dispatch)
    # set by ``load`` of the base class
    read: Callable[[int], bytes]
    append: Callable[[object], None]
    _unframer: Any

    def __init__(self, stream: BinaryIO, storages: dict[str, int]) -> None:
        super().__init__(stream)
        self._stream = stream
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if module in BUFFER_MODULES and name == "_frombuffer":
            return _MakeFromBuffer()
        if module == "torch" and name in STORAGES:
            return _Storage(STORAGES[name])
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _MakeTensor()
        if module == "collections" and name == "OrderedDict":
            return _MakeNothing()
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> tuple[_Storage, int, int]:
        _, kind, key, _, numbers = pid
        return kind, self._storages[key], numbers

    def _load_bytes(self, form: str) -> None:
        (length,) = struct.unpack(form, self.read(struct.calcsize(form)))
        if length < SMALL or self._unframer.current_frame is not None:
            self.append(bytes(self.read(length)))
            return
        self.append(_Mapped(self._stream.tell(), length))
        self._stream.seek(length, 1)


for _opcode, _form in ((pickle.BINBYTES, "<I"), (pickle.BINBYTES8, "<Q"), (pickle.BYTEARRAY8, "<Q")):
    _Unpickler.dispatch[_opcode[0]] = lambda unpickler, form=_form: unpickler._load_bytes(form)


def _open(path: Path, stream: BinaryIO) -> _Unpickler:
    head = stream.read(len(np.lib.format.MAGIC_PREFIX))
    stream.seek(0)
    if head == np.lib.format.MAGIC_PREFIX:
        shape, dtype = read_header(stream)
        if shape != () or dtype != np.dtype(object):
            raise DataError(f"{path}: expected a pickled dict of arrays by name, found an array {dtype} {shape}")
        return _Unpickler(stream, {})
    if head[:4] != b"PK\x03\x04":
        return _Unpickler(stream, {})
    records = {name.partition("/")[2]: offset for name, offset in _records(stream).items()}
    stream.seek(records["data.pkl"])
    return _Unpickler(stream, {name.removeprefix("data/"): offset for name, offset in records.items()})


def _records(stream: BinaryIO) -> dict[str, int]:
    """Where the bytes of each record of an archive begin."""
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
    places = {}
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise zipfile.BadZipFile(f"{entry.filename} is compressed, which torch.save never does")
        stream.seek(entry.header_offset)
        name, extra = struct.unpack("<26x2H", stream.read(30))
        places[entry.filename] = entry.header_offset + 30 + name + extra
    return places


def _kind(value: object) -> str:
    return "an array" if isinstance(value, PickledArray) else f"a {type(value).__name__}"


def _array(path: Path, key: str, record: PickledArray, size: int) -> NDArray[Any] | list[str]:
    place = f"{path}: {key!r}"
    code = f"{record.dtype.order}{record.dtype.code}" if isinstance(record.dtype, PickledDtype) else "nothing"
    if type(record.data) is list and all(type(text) is str for text in record.data):
        return record.data
    shape = record.shape
    regular = type(shape) is tuple and all(type(length) is int and length >= 0 for length in shape)
    if not PLAIN.fullmatch(code) or not regular:
        raise DataError(f"{place} must be an array of numbers or text, found {code} {shape}")
    dtype, order = np.dtype(code), "F" if record.fortran else "C"
    expected = math.prod(shape) * dtype.itemsize
    found = len(record.data) if isinstance(record.data, bytes | _Mapped) else -1
    if isinstance(record.data, _Mapped) and record.data.offset + found > size:
        raise DataError(f"{place} ends beyond the file of {size} bytes: it is truncated; fetch the file again")
    if found != expected:
        raise DataError(f"{place}: expected {expected} bytes, found {found}")
    if isinstance(record.data, bytes):
        return np.frombuffer(record.data, dtype).reshape(shape, order=order)  # type: ignore[call-overload, no-any-return]
    return np.memmap(path, dtype, "r", record.data.offset, shape, order)  # type: ignore[call-overload, no-any-return]
