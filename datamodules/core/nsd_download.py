"""Downloads of the Natural Scenes Dataset, for those who have accepted its terms."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from datamodules.core.cifti import open_nifti
from datamodules.core.download import fetch_by_size
from datamodules.core.nsd_files import DESIGN, PICTURES, beta_folder, load_design, roi_folder
from datamodules.core.readers import open_hdf5

BUCKET = "https://natural-scenes-dataset.s3.amazonaws.com"
TERMS = "https://cvnlab.slite.page/p/IB6BSeW_7o/Terms-and-Conditions"
MARKER = "NSD_TERMS_ACCEPTED"
HINT = (
    f"NSD may be used by those who accept its terms ({TERMS}) and send in its agreement (http://naturalscenesdataset.org)"
    f"; put the files there ({BUCKET}), or have them downloaded: --data.init_args.accept_terms=true"
)


def terms_accepted(root: Path, accept: bool) -> bool:
    """Return whether the user accepts the terms, or once did; the first time is written down under ``root``."""
    marker = root / MARKER
    if accept and not marker.exists():
        root.mkdir(parents=True, exist_ok=True)
        marker.write_text(f"accepted: {datetime.now(UTC).isoformat(timespec='seconds')}\nterms: {TERMS}\n")
    return marker.exists()


def description_files(person: str, mask: str, atlases: Sequence[str]) -> list[Path]:
    """Return the files that a person's betas cannot be read without, below ``root``."""
    return [DESIGN, PICTURES, *(roi_folder(person) / f"{name}.nii.gz" for name in (mask, *atlases))]


def ncsnr_file(person: str) -> Path:
    """Return the place of a person's noise ceiling below ``root``."""
    return beta_folder(person) / "ncsnr.nii.gz"


def beta_file(person: str, session: int) -> Path:
    """Return the place of one session below ``root``; it may lie there as ``.hdf5`` instead."""
    return beta_folder(person) / f"betas_session{session:02d}.nii.gz"


def download(root: Path, files: Sequence[Path]) -> None:
    """Fetch those files that are not there from the public bucket.

    No checksums are published, so that size and format are checked.

    Raises:
        DataError: A file that is not to be had.
    """
    for file in files:
        fetch_by_size(root, file.as_posix(), f"{BUCKET}/{file.as_posix()}", check_format)


def check_format(path: Path) -> None:
    """Raise a ``DataError`` unless a file is what its name says."""
    if path.name.endswith(".nii.gz"):
        open_nifti(path)
    elif path.suffix == ".mat":
        load_design(path)
    else:
        open_hdf5(path).close()
