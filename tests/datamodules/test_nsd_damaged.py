"""Official files of NSD that are damaged or do not fit together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io

from datamodules.core.cifti import load_nifti
from tests.datamodules.test_nsd import refused
from tests.formats import nsd as format

Array = np.ndarray[Any, Any]


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_design(root: Path, change: Callable[[dict[str, Array]], Any]) -> None:
    content = {k: v for k, v in scipy.io.loadmat(format.design_path(root)).items() if not k.startswith("__")}
    change(content)
    format.save_design(root, content)


def rewrite(path: Path, change: Callable[[Array], Array]) -> None:
    volume, _ = load_nifti(path)
    format.save_nifti(path, change(volume))


def scaled(root: Path) -> None:
    import nibabel

    path = format.betas(root, "01")
    image = nibabel.Nifti1Image(load_nifti(path)[0], np.eye(4))
    image.header.set_slope_inter(1 / 300, 0)
    nibabel.save(image, path)


def hdf5(root: Path, name: str = "betas", change: Callable[[Array], Array] = lambda a: a) -> None:
    path = format.betas(root, "01", "betas_session01.hdf5")
    with h5py.File(path, "w") as file:
        file[name] = change(load_nifti(format.betas(root, "01"))[0].T)


def pictures(root: Path, number: int) -> None:
    format.save_table(format.pictures_path(root), "imgBrick", (number, 8, 8, 3), "u1", {})


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda r: format.roi(r, "01").unlink(), ["1 of 4 files", "nsdgeneral.nii.gz", "person 01", "init_args.mask"]),
        (lambda r: format.roi(r, "01", "prf-visualrois").unlink(), ["prf-visualrois.nii.gz", "atlases"]),
        (lambda r: format.design_path(r).unlink(), ["nsd_expdesign.mat", "accept_terms=true"]),
        (lambda r: format.pictures_path(r).unlink(), ["nsd_stimuli.hdf5", "accept_terms=true"]),
        (lambda r: rewrite(format.roi(r, "01"), lambda a: a * 0), ["no voxel is in the mask"]),
        (lambda r: rewrite(format.roi(r, "01"), lambda a: a[:4]), ["(5, 4, 3), but nsdgeneral.nii.gz has (4, 4, 3)"]),
        (lambda r: rewrite(format.roi(r, "01"), lambda a: a + 0.5), ["whole numbers", "float"]),
        (lambda r: rewrite(format.roi(r, "01"), lambda a: a[..., None]), ["(5, 4, 3, 1)"]),
        (lambda r: rewrite(format.betas(r, "01"), lambda a: a[:4]), ["(4, 4, 3, 750), expected (5, 4, 3, 750)"]),
        (lambda r: rewrite(format.betas(r, "01"), lambda a: a[..., :749]), ["(5, 4, 3, 749), expected (5, 4, 3, 750)"]),
        (lambda r: rewrite(format.betas(r, "01"), lambda a: a / np.float32(300)), ["must be int16", "float32"]),
        (scaled, ["must be int16", "scaled by 0.00333"]),
        (lambda r: half(format.betas(r, "01")), ["cannot read", "betas_session01.nii.gz", "truncated"]),
        (lambda r: format.betas(r, "01").write_bytes(b"text"), ["cannot read", "betas_session01.nii.gz"]),
        (lambda r: half(format.roi(r, "01")), ["cannot read", "nsdgeneral.nii.gz"]),
        (
            lambda r: rewrite(format.betas(r, "01", "ncsnr.nii.gz"), lambda a: a[:4]),
            ["ncsnr.nii.gz", "(4, 4, 3), expected (5, 4, 3)"],
        ),
        (lambda r: hdf5(r, "other"), ["betas_session01.hdf5: no table 'betas'; found 'other'"]),
        (lambda r: hdf5(r, change=lambda a: a.T), ["(750, 3, 4, 5), expected (5, 4, 3, 750)"]),
        (lambda r: hdf5(r, change=lambda a: a.astype(np.float32)), ["must be int16", "float32"]),
        (
            lambda r: (hdf5(r), half(format.betas(r, "01", "betas_session01.hdf5"))),
            ["cannot read", "betas_session01.hdf5"],
        ),
        (lambda r: pictures(r, 100), ["pictures are missing", "'imgBrick' holds 100"]),
        (lambda r: half(format.pictures_path(r)), ["cannot read", "nsd_stimuli.hdf5"]),
        (lambda r: half(format.design_path(r)), ["cannot read", "nsd_expdesign.mat"]),
        (
            lambda r: change_design(r, lambda d: d.update(masterordering=d["masterordering"][:, :-1])),
            ["masterordering must be (1, 30000), found (1, 29999)"],
        ),
        (
            lambda r: change_design(r, lambda d: d.update(subjectim=d["subjectim"][:7])),
            ["subjectim must be (8, 10000), found (7, 10000)"],
        ),
        (lambda r: change_design(r, lambda d: d.pop("sharedix")), ["missing 'sharedix'"]),
        (
            lambda r: change_design(r, lambda d: d["masterordering"].__setitem__((0, 5), 10001)),
            ["masterordering must be whole numbers in 1..10000", "10001"],
        ),
        (
            lambda r: change_design(r, lambda d: d["subjectim"].__setitem__((0, 5), 0.5)),
            ["subjectim must be whole numbers in 1..73000"],
        ),
        (
            lambda r: change_design(r, lambda d: d["subjectim"].__setitem__((2, 5), d["subjectim"][2, 2000])),
            ["first 1000 pictures of person 03 are not those of sharedix"],
        ),
    ],
)
def test_wrong_official_files_are_refused(root: Path, damage: Any, expected: list[str]) -> None:
    format.write(root, people=("01",), sessions=1)
    damage(root)
    message = refused(root, sessions=1)
    for part in expected:
        assert part in message
