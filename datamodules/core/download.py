"""Public files: taken from ``root`` if they are there, else fetched and checked, else an error that helps."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from shutil import copyfileobj, disk_usage
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pooch
from filelock import FileLock
from rich.progress import wrap_file

from contracts import DataError, reason_of

ATTEMPTS = 3
"""Downloads that break off are resumed so often before it is an error."""
SECONDS = 60
"""A server that says nothing for so long is gone."""


@dataclass(frozen=True)
class PublicFile:
    """A file of a data set.

    Attributes:
        name: Path below the data set's ``root``.
        url: Public address.
        sha256: Checksum of the file at that address.
    """

    name: str
    url: str
    sha256: str


def fetch(root: Path, file: PublicFile) -> Path:
    """Return the local path of a public file, downloading it if it is not there.

    A file that is there is used as it is and never replaced; a download is checked and renamed when whole.

    Raises:
        DataError: Not there and not to be had, or the download has another checksum.
    """
    path = root / file.name
    if path.is_file():
        return path
    try:
        pooch.retrieve(
            file.url, known_hash=f"sha256:{file.sha256}", fname=path.name, path=path.parent, progressbar=False
        )
    # pooch: network errors are OSErrors, a wrong checksum is a ValueError
    except (OSError, ValueError) as error:
        advice = (
            f"Put the file from {file.url} (SHA-256 {file.sha256}) there, or set --data.init_args.root to the folder "
            "that holds it"
        )
        raise _not_downloaded(path, error, advice) from error
    return path


def fetch_by_size(root: Path, name: str, url: str, check: Callable[[Path], object]) -> Path:
    """Return the local path of a public file that has no published checksum, downloading it if it is not there.

    A file that is there is used as it is and never replaced. A download has the size that the server states and
    passes ``check`` before it gets its name; one that breaks off is kept under a hidden name and resumed next time,
    as long as the server has the same version of the file. Processes that share ``root`` download one by one.

    Args:
        root: Folder of the data set.
        name: Path below it.
        url: Public address.
        check: Raises a ``DataError`` if the file, under a name that ends like its own, has another format.

    Raises:
        DataError: Not there and not to be had, no space for it, or another size or format than it should have.
    """
    path = root / name
    if path.is_file():
        return path
    advice = f"Run it again to resume, or put the file from {url} there"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".download.lock"):
            if not path.is_file():
                _download(path, url, check)
    # http.client: a connection that breaks off in the middle of an answer
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()  # it carries the open answer of the server
        raise _not_downloaded(path, error, advice) from error
    return path


def _not_downloaded(path: Path, error: Exception, advice: str) -> DataError:
    return DataError(f"no file {path.absolute()}, and it could not be downloaded ({reason_of(error)}). {advice}")


def _download(path: Path, url: str, check: Callable[[Path], object]) -> None:
    with urlopen(Request(url, method="HEAD"), timeout=SECONDS) as answer:
        size, version = int(answer.headers["Content-Length"] or 0), answer.headers["ETag"]
    if not size:
        raise OSError("the server does not state the size of the file, or it is empty")
    digest = hashlib.sha256(f"{version} {size}".encode()).hexdigest()[:8]
    partial = path.with_name(f".{digest}.partial.{path.name}")
    for other in path.parent.glob(f".*.partial.{path.name}"):
        if other != partial:
            other.unlink()  # of another version of the file
    missing = size - (partial.stat().st_size if partial.exists() else 0)
    free = disk_usage(path.parent).free
    if missing > free:
        raise OSError(f"{missing} bytes are missing, the disk has {free} free")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _append(partial, url, size, version)
            break
        except (OSError, HTTPException):
            if attempt == ATTEMPTS:
                raise
    try:
        check(partial)
    except DataError as error:
        partial.unlink()
        raise DataError(f"{url} gave a file of another format, which was removed: {error}") from error
    os.replace(partial, path)


def _append(partial: Path, url: str, size: int, version: str | None) -> None:
    """Add what is missing to a file, or begin anew where the server cannot go on from there."""
    have = partial.stat().st_size if partial.exists() else 0
    if have < size:
        # If-Match: rather fail than join two versions
        headers = {"Range": f"bytes={have}-"} | ({"If-Match": version} if version else {})
        with urlopen(Request(url, headers=headers if have else {}), timeout=SECONDS) as answer:
            rest = have if answer.status == 206 else 0
            with partial.open("ab" if rest else "wb") as stream:
                total = size - rest
                with wrap_file(
                    answer, total, description=f"downloading {url.rpartition('/')[2]}", transient=True
                ) as source:
                    copyfileobj(source, stream, 2**20)
                stream.flush()
                os.fsync(stream.fileno())
    found = partial.stat().st_size
    if found > size:
        partial.unlink()
    if found != size:
        raise OSError(f"{found} of {size} bytes came")
