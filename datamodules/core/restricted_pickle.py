"""Reader of ``img_dict.npy``: a pickled dict of pictures, read without running anything that it holds.

The names of numpy's constructors in the pickle stand for inert records of ours, which keep shape and bytes; no
function of numpy or Python is ever handed to the file. (numpy's own ``dtype`` would be enough for harm: its state
may claim that bytes are object pointers.) Pictures are made from the bytes afterwards.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from contracts import DataError
from datamodules.core.readers import reading

ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
"""Where numpy 1 and numpy 2 keep ``_reconstruct``."""


ONLY_PICTURES = (
    "It is truncated, of another format, or holds other pickled objects than numpy arrays, which are never executed; "
    "fetch the file again, or put the pictures in its place as files"
)


def load_image_dict(path: Path) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
    """Read a ``.npy`` file that holds one pickled dict, name -> RGB picture, as ``numpy.save`` writes it.

    Returns:
        Pictures by name, uint8 ``(H, W, 3)``, read-only views of the file's bytes, in the order of the file.

    Raises:
        DataError: Missing or truncated file, anything in it but a dict of text to uint8 pictures, a pickle that
            wants to call anything but numpy's array constructors.
    """
    with reading(path, ONLY_PICTURES), path.open("rb") as stream:
        shape, dtype = read_header(stream)
        if shape != () or dtype != np.dtype(object):
            raise DataError(f"{path}: expected one pickled dict of pictures, found an array {dtype} {shape}")
        content = ArrayUnpickler(stream).load()
    return _pictures(path, content)


def read_header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type from the head of a ``.npy`` file; raises whatever numpy raises.

    Args:
        stream: The file, at its start; is left behind the header.
    """
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"version {version} of the .npy format is not used for pickles")
    return shape, dtype


def unwrapped(content: object) -> object:
    """Return the object that ``numpy.save`` wraps into an array of one element."""
    wrapped = isinstance(content, PickledArray) and content.shape == () and type(content.data) is list
    return content.data[0] if wrapped and len(content.data) == 1 else content  # type: ignore[attr-defined]


class Inert:
    """Stands for one of numpy's constructors; without attributes, so that a pickle cannot change it."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Refuse.

        Raises:
            UnpicklingError: Always.
        """
        raise pickle.UnpicklingError("the state of a constructor cannot be set")


class PickledDtype:
    """What is kept of a ``numpy.dtype``: its code, such as ``u1``, and its byte order, such as ``<``."""

    __slots__ = ("code", "order")

    def __init__(self, code: object) -> None:
        self.code = code
        self.order: object = "|"

    def __setstate__(self, state: Any) -> None:
        """Take the byte order; fields and flags say nothing about plain numbers."""
        self.order = state[1]


class PickledArray:
    """What is kept of a ``numpy.ndarray``."""

    __slots__ = ("data", "dtype", "fortran", "shape")

    def __init__(self) -> None:
        self.shape: Any = None
        self.dtype: Any = None
        self.fortran: Any = None
        self.data: Any = None

    def __setstate__(self, state: Any) -> None:
        """Take what numpy writes of an array."""
        _, self.shape, self.dtype, self.fortran, self.data = state


class _MakeDtype(Inert):
    __slots__ = ()

    def __call__(self, code: object, *_: object) -> PickledDtype:
        return PickledDtype(code)


class _MakeArray(Inert):
    __slots__ = ()

    def __call__(self, *_: object) -> PickledArray:
        return PickledArray()


# the one written in Python: that in C fills a table as long as a damaged file says, until memory ends
class ArrayUnpickler(pickle._Unpickler):
    """Reads containers, text, numbers and records of arrays; whatever else a pickle names is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the inert record that stands for one of numpy's constructors.

        Raises:
            UnpicklingError: Any other name.
        """
        if module == "numpy" and name == "dtype":
            return _MakeDtype()
        if module == "numpy" and name == "ndarray":
            return Inert()
        if module in ARRAY_MODULES and name == "_reconstruct":
            return _MakeArray()
        raise pickle.UnpicklingError(f"it wants {module}.{name}")


def _pictures(path: Path, content: object) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
    # numpy.save wraps the dict into an object array of one element
    if (
        isinstance(content, PickledArray)
        and content.shape == ()
        and type(content.data) is list
        and len(content.data) == 1
    ):
        content = content.data[0]
    if type(content) is not dict:
        kind = "an array" if isinstance(content, PickledArray) else f"a {type(content).__name__}"
        raise DataError(f"{path}: expected a pickled dict of pictures, found {kind}")
    pictures = {}
    for name, array in content.items():
        if type(name) is not str:
            raise DataError(f"{path}: names of pictures must be text, found {type(name).__name__}")
        pictures[name] = _picture(f"{path}: picture {name!r}", array)
    return pictures


def _picture(place: str, array: object) -> UInt8[np.ndarray, "h w 3"]:
    if not isinstance(array, PickledArray):
        raise DataError(f"{place}: expected uint8 (H, W, 3), found a {type(array).__name__}")
    code = array.dtype.code if isinstance(array.dtype, PickledDtype) else None
    shape = array.shape if type(array.shape) is tuple else ()
    regular = len(shape) == 3 and all(type(size) is int and size > 0 for size in shape) and shape[2] == 3
    if code not in ("u1", "|u1") or not regular:
        raise DataError(f"{place}: expected uint8 (H, W, 3), found {code} {shape}")
    found = len(array.data) if type(array.data) is bytes else -1
    if found != shape[0] * shape[1] * shape[2]:
        raise DataError(f"{place}: expected {shape[0] * shape[1] * shape[2]} bytes, found {found}")
    return np.frombuffer(array.data, np.uint8).reshape(shape, order="F" if array.fortran else "C")
