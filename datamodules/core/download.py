"""Public files: taken from ``root`` if they are there, else fetched and checked, else an error that helps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pooch

from contracts import DataError


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
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"no file {path.absolute()}, and it could not be downloaded ({reason}). Put the file from {file.url} "
            f"(SHA-256 {file.sha256}) there, or set --data.init_args.root to the folder that holds it"
        ) from error
    return path
