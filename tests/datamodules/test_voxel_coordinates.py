"""Where voxels lie, from the raw files to the store."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine

from contracts import DataError
from datamodules import GOD, NSD, BrainDataModule, EmbeddingOptions, Haxby2001, SignalAxes
from datamodules.core.store import BrainStore, write_store
from tests.datamodules.opening import opened
from tests.formats import god, haxby2001, nsd
from tests.formats.recording import change, experiment

Array = np.ndarray[Any, Any]
AFFINE = np.array([[-3.1, 0, 0, 60], [0, 3.6, -1, -35], [0, 1, 3.6, 12], [0, 0, 0, 1.0]])
"""Voxels from right to left, tilted about the left-right axis."""


def place(path: Path, *, sform: int = 0, qform: int = 0) -> Path:
    """Give the header of an image an affine under these codes."""
    image: Any = nibabel.load(path)  # type: ignore[attr-defined]
    array = np.asarray(image.dataobj)
    header = image.header
    header.set_sform(AFFINE if sform else np.eye(4), sform)
    header.set_qform(AFFINE if qform else np.eye(4), qform)
    path.unlink()
    nibabel.save(nibabel.Nifti1Image(array, None, header), path)  # type: ignore[no-untyped-call]
    return path


# ---- the store -------------------------------------------------------------------------------------


def write(folder: Path, records: Sequence[Any]) -> BrainStore:
    about = {"licence": "made up", "citation": "none", "units": "V"}
    write_store(folder / "store", records, root=folder, name="made-up", modality="fmri", about=about)
    return BrainStore(folder / "store", folder)


@pytest.mark.parametrize("space", ["MNI152", "native"])
def test_coordinates_come_back(tmp_path: Path, space: str) -> None:
    coordinates = np.random.default_rng(0).normal(0, 40, (12, 3))
    records = change(experiment({"01": (12,)}), SignalAxes, coordinates=coordinates, space=space)
    axes = write(tmp_path, records).axes("01")
    np.testing.assert_array_equal(axes.coordinates, coordinates.astype(np.float32))
    assert axes.space == space


def test_a_time_series_has_a_place_for_each_voxel(tmp_path: Path) -> None:
    coordinates = np.arange(36.0).reshape(12, 3)
    records = change(
        experiment({"01": (12, 5)}), SignalAxes, coordinates=coordinates, space="native", channels=(), positions=None
    )
    found = write(tmp_path, records).axes("01").coordinates
    np.testing.assert_array_equal(found, coordinates)


def test_a_store_without_places_opens_as_before(tmp_path: Path) -> None:
    store = write(tmp_path, experiment({"01": (12,)}))
    assert not list(store.folder.glob("*coordinates*"))
    description = store.folder / "dataset_description.json"
    content = json.loads(description.read_text())
    # as written before there were places
    assert content["axes"]["01"].pop("space") is None
    description.write_text(json.dumps(content))
    axes = BrainStore(store.folder, tmp_path).axes("01")
    assert axes.coordinates is None
    assert axes.space is None


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (
            {"ncsnr": None, "coordinates": np.zeros((11, 3)), "space": "native"},
            ["coordinates must be (12, 3)", "(11, 3)"],
        ),
        ({"coordinates": np.full((12, 3), np.nan), "space": "native"}, ["12 of 12 voxels", "not finite", "voxel 0"]),
        ({"coordinates": np.zeros((12, 3)), "space": None}, ["space None", "MNI152, native"]),
        ({"space": "native"}, ["no coordinates", "'native'"]),
    ],
)
def test_places_that_do_not_fit_are_refused(tmp_path: Path, entries: dict[str, Any], words: list[str]) -> None:
    records = experiment({"01": (12,)})
    axes = next(record for record in records if isinstance(record, SignalAxes))
    broken = [replace(record, **entries) if record is axes else record for record in records]
    with pytest.raises(DataError) as raised:
        write(tmp_path, broken)
    for word in ["sub-01", *words]:
        assert word in str(raised.value)


# ---- NIfTI: Haxby et al. (2001) and NSD ------------------------------------------------------------


def haxby(root: Path, **options: Any) -> BrainDataModule:
    return opened(Haxby2001, root, embedding=EmbeddingOptions(model="classes"), **options)


@pytest.mark.parametrize(("codes", "space"), [({"sform": 1}, "native"), ({"sform": 4}, "MNI152"), ({"qform": 1}, "")])
def test_haxby2001_takes_the_places_of_the_masked_voxels(tmp_path: Path, codes: dict[str, int], space: str) -> None:
    root = haxby2001.write(tmp_path / "raw")
    path = place(root / "bold.nii.gz", **codes)
    axes = haxby(root).store.axes("001")
    inside = haxby2001.mask()
    voxels = [(x, y, z) for x in range(4) for y in range(6) for z in range(1) if inside[x, y, z]]
    affine = nibabel.load(path).affine  # type: ignore[attr-defined]
    np.testing.assert_allclose(axes.coordinates, apply_affine(affine, voxels), atol=1e-4)  # type: ignore[no-untyped-call]
    assert axes.coordinates is not None
    if codes != {"qform": 1}:
        # the first voxel of the mask is (0, 4, 0), worked out by hand
        np.testing.assert_allclose(axes.coordinates[0], [60, 4 * 3.6 - 35, 12 + 4], atol=1e-4)
    assert axes.space == (space or "native")


def test_a_header_without_codes_gives_no_place(tmp_path: Path) -> None:
    root = haxby2001.write(tmp_path / "raw")
    place(root / "bold.nii.gz")
    axes = haxby(root).store.axes("001")
    assert axes.coordinates is None
    assert axes.space is None


def test_kept_voxels_point_to_their_places(tmp_path: Path) -> None:
    """What a report reads: coordinates of the stored voxels, by the index of those that samples keep."""
    root = tmp_path / "raw"
    content = nsd.write(root, train=16, test=4, sessions=1)
    affine = np.diag([1.8, 1.8, 1.8, 1])
    affine[:3, 3] = [-4, 5, 6]
    for person in ("01", "02"):
        for name, array in (("nsdgeneral", content.mask), ("prf-visualrois", content.atlas)):
            image = nibabel.Nifti1Image(array, affine)  # type: ignore[no-untyped-call]
            nibabel.save(image, nsd.roi(root, person, name))
    data = opened(NSD, root, fewer_sessions=True)
    voxels, rois = nsd.voxels(content.mask, content.atlas)
    expected = apply_affine(affine, voxels)  # type: ignore[no-untyped-call]
    axes = data.store.axes("01")
    np.testing.assert_allclose(axes.coordinates, expected, atol=1e-4)
    assert axes.space == "native"
    data.samples = replace(data.samples, rois=["hV4"])
    kept = data.prepared["01"].kept.index
    assert kept is not None
    assert axes.coordinates is not None
    start = sum(list(rois.values())[: list(rois).index("hV4")])
    np.testing.assert_allclose(axes.coordinates[kept], expected[start : start + rois["hV4"]], atol=1e-4)


# ---- BData: GOD ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["h5", "mat"])
def test_god_takes_the_places_from_the_metadata(tmp_path: Path, suffix: str) -> None:
    root = tmp_path / "raw"
    god.write_bdata(root, suffix=suffix)
    axes = opened(GOD, root).store.axes("01")
    voxels = [voxel for members in god.EXCLUSIVE.values() for voxel in members]
    np.testing.assert_allclose(axes.coordinates, [god.PLACES[voxel] for voxel in voxels], atol=1e-4)
    assert axes.space == "native"


@pytest.mark.parametrize("lacking", ["voxel_z", "one voxel"])
def test_god_without_all_places_has_none(tmp_path: Path, lacking: str) -> None:
    root = tmp_path / "raw"
    content = god.write_bdata(root)
    for number, person in enumerate(content.people, start=1):
        dataset, metadata = god.bdata_content(content, person)
        if lacking == "voxel_z":
            del metadata["voxel_z"]
        else:
            metadata["voxel_z"][1 + god.EXCLUSIVE["V2"][0]] = np.nan
        god.save_h5(root / f"Subject{number}.h5", dataset, metadata)
    axes = opened(GOD, root).store.axes("01")
    assert axes.coordinates is None
    assert axes.space is None


def test_god_npz_has_no_places(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    god.write(root / "Kamitani" / "npz")
    assert opened(GOD, root).store.axes("01").coordinates is None
