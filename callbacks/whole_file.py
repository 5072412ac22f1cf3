"""Files that are whole or not there: written beside their place, flushed, and put there by one rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from contracts import DataError


@contextmanager
def whole_file(path: Path, advice: str) -> Iterator[Path]:
    """Give the temporary sibling to write to; when that is done it takes the place of ``path``.

    Where anything goes wrong (a full disk, an error of the caller, an order to end) the sibling is removed and what
    was at ``path`` before is untouched. A process killed in between leaves the sibling, which the next one replaces.

    Args:
        path: The file.
        advice: What to do once there is space, for the message.

    Raises:
        DataError: The disk is full, or another I/O error; with the space that is left.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            with partial.open("rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    # safetensors reports a full disk as an error of its own
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"could not write {path}: {error}; {free_space(path.parent)}; what was there before is untouched; {advice}"
        ) from error


def free_space(folder: Path) -> str:
    """Say how much space is left where a folder is or would be made."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    return f"{shutil.disk_usage(there).free / 1e6:,.1f} MB are free in {there}"
