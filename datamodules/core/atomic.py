"""Build a file or folder once, whole or not at all, however many processes ask for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from contracts import DataError


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Make ``target`` with ``build`` unless it is there; readers only ever see the finished thing.

    ``build`` gets the path of a temporary sibling, which is flushed to disk and renamed when ``build``
    returns. A lock file beside the target lets one process build while the others wait and then find it.
    What a killed process left behind is removed by the next one.

    Args:
        target: Path of the file or folder to make.
        build: Writes a file or folder at the path it is given.

    Returns:
        ``target``.

    Raises:
        DataError: The disk is full, the folder cannot be written to, or another I/O error of ``build``; nothing is
            left behind and what was there before is untouched.
    """
    if target.exists():
        return target
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if target.exists():
                return target
            _remove(partial)
            try:
                build(partial)
                _flush(partial)
                os.replace(partial, target)
                _flush_folder(target.parent)
            except BaseException:
                _remove(partial)
                raise
    except OSError as error:
        there = next(folder for folder in target.absolute().parents if folder.is_dir())
        advice = (
            f"; {shutil.disk_usage(there).free / 1e6:,.1f} MB are free in {there}; free some space there or choose "
            "another folder (--data.init_args.stores)"
        )
        about_files = isinstance(error, FileNotFoundError)
        raise DataError(f"could not make {target}: {error}{'' if about_files else advice}; nothing was kept") from error
    return target


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Force the content to disk, so that a rename never outruns the data after a power cut."""
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file():
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
