import gc
import pickle
import re
import tracemalloc
import weakref
from pathlib import Path
from typing import Any, ClassVar

import nibabel
import numpy as np
import pytest
from nibabel.cifti2 import cifti2_axes
from safetensors.numpy import load_file

from contracts import DataError
from datamodules import BrainDataModule, LoaderOptions, SampleOptions, SplitOptions, Trials
from datamodules.core.timeseries import TimeSeriesOptions
from datamodules.hcp import HCP
from tests.datamodules.contract import everything, real_root
from tests.datamodules.opening import refused_saying
from tests.datamodules.test_timeseries import ContractWithoutPictures
from tests.formats import hcp as format

CIFTI = "formats/cifti"
DLABEL = f"{CIFTI}/Q1-Q6_RelatedValidation210.CorticalAreas_dil_Final_Final_Areas_Group_Colors.32k_fs_LR.dlabel.nii"
DTSERIES = f"{CIFTI}/Conte69.MyelinAndCorrThickness.32k_fs_LR.dtseries.nii"
GOLDEN = "golden/published_loaders.safetensors"
VOLUMES = TimeSeriesOptions()
WINDOWS = TimeSeriesOptions(average=10)
BY_PERSON = SplitOptions(protocol="by_subject", folds=3, validation=0.0)
AS_RECORDED = SampleOptions(normalise="none")


class TestHCP(ContractWithoutPictures):
    split: ClassVar[SplitOptions] = SplitOptions(folds=3, validation=0.25)

    @classmethod
    def write(cls, root: Path) -> None:
        format.write_npz(root / "HCP" / "npz", volumes=123)

    def make(self, root: Path, **options: Any) -> BrainDataModule:
        return self.without_embeddings(HCP(str(root), pad_to_multiple=16, time_series=WINDOWS, **options))


class TestHCPParcels(ContractWithoutPictures):
    split: ClassVar[SplitOptions] = SplitOptions(folds=3, validation=0.25)

    @classmethod
    def write(cls, root: Path) -> None:
        format.write_dtseries(root / "HCP", volumes=60)
        format.write_dlabel(root / "areas.dlabel.nii")

    def make(self, root: Path, **options: Any) -> BrainDataModule:
        segments = TimeSeriesOptions(clean="zscore", segment=5)
        dlabel = str(root / "areas.dlabel.nii")
        return self.without_embeddings(HCP(str(root), parcels=True, dlabel=dlabel, time_series=segments, **options))


def hcp(folder: Path, **options: Any) -> HCP:
    usual: dict[str, Any] = {"samples": AS_RECORDED, "split": BY_PERSON, "loader": LoaderOptions(batch_size=2)}
    usual["time_series"] = WINDOWS
    data = HCP(str(folder), stores=str(folder / "stores"), **usual | options)
    return ContractWithoutPictures.without_embeddings(data)  # type: ignore[return-value]


def cifti(folder: Path, **options: Any) -> HCP:
    return hcp(folder, dlabel=str(folder / "areas.dlabel.nii"), **{"time_series": VOLUMES} | options)


# ---- areas of the .npz files ---------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "HCP", "npz", "HCP/npz"])
def test_windows_of_the_areas_in_order(tmp_path: Path, place: str) -> None:
    format.write_npz(tmp_path / place, volumes=45)
    data = hcp(tmp_path)
    assert data.store.subjects == ["100", "101", "102"]
    for person, name in enumerate(data.store.subjects):
        joined = np.concatenate(list(format.arrays(person, volumes=45).values()), axis=1)
        expected = [window.mean(axis=0) for window in np.array_split(joined, 45 // 10)]
        np.testing.assert_allclose(data.store.signals(name), expected, rtol=1e-5)
    assert data.store.axes("100").rois == format.SIZES
    assert data.store.axes("100").sampling_rate == 0
    assert data.store.stimuli["id"].tolist() == ["rest-0000", "rest-0012", "rest-0023", "rest-0034"]


def test_chosen_areas_and_padding(tmp_path: Path) -> None:
    format.write_npz(tmp_path, volumes=20)
    data = hcp(tmp_path, areas=["V4", "V3"], pad_to_multiple=4, time_series=VOLUMES)
    content = format.arrays(1, volumes=20)
    expected = np.concatenate([content["V4"], content["V3"], content["V4"][:, :3]], axis=1)
    np.testing.assert_allclose(data.store.signals("101"), expected, rtol=1e-6)
    assert data.store.axes("101").rois == {"V4": 4, "V3": 5, "padding": 3}
    even = hcp(tmp_path, areas=["V4"], pad_to_multiple=4, time_series=VOLUMES)
    assert even.store.axes("101").rois == {"V4": 4}, "nothing to add"
    small = hcp(tmp_path, areas=["V4"], pad_to_multiple=16, time_series=TimeSeriesOptions(segment=5))
    assert small.store.signals("101").shape == (4, 16, 5)
    np.testing.assert_array_equal(small.store.signals("101")[:, 12:], small.store.signals("101")[:, :4])


def test_no_person_on_two_sides(tmp_path: Path) -> None:
    format.write_npz(tmp_path)
    tested = []
    for fold in range(3):
        data = hcp(tmp_path, split=SplitOptions(protocol="by_subject", folds=3, fold=fold, validation=0.0))
        sides = {name: set(side) for name, side in data.trials.groupby("subject")["side"]}
        assert sorted(map(sorted, sides.values())) == [["test"], ["train"], ["train"]]
        tested += [name for name, side in sides.items() if side == {"test"}]
        assert [len(batch["row"]) for batch in everything(data, "test")] == [4]
    assert sorted(tested) == ["100", "101", "102"]


def test_published_normalisation_equals_that_of_mind_vis(tmp_path: Path) -> None:
    expected = load_file(real_root(GOLDEN) / "published_loaders.safetensors")["hcp"]
    data = HCP(
        str(real_root(GOLDEN) / "layouts"),
        pad_to_multiple=16,
        time_series=WINDOWS,
        samples=SampleOptions(normalise="mindvis", average_test=1),
        split=SplitOptions(folds=2, validation=0.0),
        stores=str(tmp_path),
    )
    ContractWithoutPictures.without_embeddings(data)
    assert data.subjects == ["s1", "s2"]
    found = np.full((2, 120, 32), np.nan)
    moments = sorted(data.store.stimuli["id"])
    for split in ("train", "test"):
        [batch] = everything(data, split)
        for signal, subject, number in zip(batch["signal"], batch["subject"], batch["stimulus"], strict=True):
            found[subject, moments.index(data.store.stimuli["id"][int(number)])] = signal
    # the published code took the people in the order of os.listdir: s2, s1
    np.testing.assert_allclose(found[::-1].reshape(240, 1, 32), expected, atol=1e-5)
    assert data.layout["rois"]["s1"] == {"V1": 9, "V2": 7, "V3": 5, "V4": 4, "padding": 7}


# ---- areas of CIFTI recordings -------------------------------------------------------------------


@pytest.mark.parametrize("medial_wall", [False, True])
def test_areas_are_found_by_their_vertices(tmp_path: Path, medial_wall: bool) -> None:
    format.write_dtseries(tmp_path / "HCP")
    format.write_dlabel(tmp_path / "areas.dlabel.nii", medial_wall=medial_wall)
    data = cifti(tmp_path, areas=["MT", "V1"])
    vertices = [v for v in range(format.VERTICES) if v % 7]
    keys = format.vertex_keys()
    # the left surface comes first, then the right one
    columns = [
        [i for i, v in enumerate(vertices) if keys[format.LEFT][v] == number + 5]
        + [len(vertices) + i for i, v in enumerate(vertices) if keys[format.RIGHT][v] == number]
        for number in (5, 1)
    ]
    expected = format.series(1)[:, [*columns[0], *columns[1]]]
    np.testing.assert_array_equal(data.store.signals("101"), expected)
    assert data.store.axes("101").rois == {"MT": len(columns[0]), "V1": len(columns[1])}


def test_parcels_are_means_of_every_area(tmp_path: Path) -> None:
    format.write_dtseries(tmp_path / "HCP")
    format.write_dlabel(tmp_path / "areas.dlabel.nii")
    data = cifti(tmp_path, parcels=True, time_series=TimeSeriesOptions(segment=20))
    names = [f"{side}_{area}" for side in "RL" for area in format.AREAS]
    assert data.store.axes("100").rois == dict.fromkeys(names, 1)
    assert data.store.axes("100").sampling_rate == pytest.approx(1 / 0.72)
    vertices = np.flatnonzero(np.arange(format.VERTICES) % 7)
    keys = np.concatenate([format.vertex_keys()[side][vertices] for side in (format.LEFT, format.RIGHT)])
    run = format.series(0).astype(np.float64)[:, : len(keys)]
    expected = np.stack([run[:, keys == key].mean(axis=1) for key in range(1, 11)])
    np.testing.assert_allclose(data.store.signals("100"), [expected[:, :20], expected[:, 20:]], atol=1e-6)


def test_several_runs_of_a_person(tmp_path: Path) -> None:
    runs = ("rfMRI_REST1_LR", "rfMRI_REST1_RL", "rfMRI_REST2_LR")
    format.write_dtseries(tmp_path, runs=runs)
    format.write_dlabel(tmp_path / "areas.dlabel.nii")
    one, all_runs = cifti(tmp_path), cifti(tmp_path, dtseries="rfMRI_REST?_??_*.dtseries.nii")
    assert one.store.trials["run"].unique().tolist() == ["rfMRI_REST1_LR"]
    assert all_runs.store.trials.groupby("run").size().to_dict() == dict.fromkeys(runs, 80)
    np.testing.assert_array_equal(all_runs.store.signals("100")[:40], one.store.signals("100"))
    assert all_runs.store.stimuli["id"].nunique() == 120


def test_a_real_recording_of_the_cortex(tmp_path: Path) -> None:
    real_root(DLABEL, DTSERIES)
    folder = real_root(DTSERIES)
    (tmp_path / "100").mkdir()
    (tmp_path / "100" / "maps.dtseries.nii").symlink_to(folder / Path(DTSERIES).name)
    options: dict[str, Any] = {"dlabel": str(folder / Path(DLABEL).name), "dtseries": "maps*", "time_series": VOLUMES}
    data = hcp(tmp_path, **options)
    assert data.store.stimuli["id"].tolist() == ["maps-0000", "maps-0001"]
    image = nibabel.load(folder / Path(DTSERIES).name)
    labels = nibabel.load(folder / Path(DLABEL).name)
    place = {
        (name, int(vertex)): column
        for name, columns, model in image.header.get_axis(1).iter_structures()
        for column, vertex in zip(range(len(image.header.get_axis(1)))[columns], model.vertex, strict=True)
    }
    values = np.asarray(labels.dataobj[0]).astype(int)
    axis = labels.header.get_axis(1)
    for area, both in {"V1": (1, 181), "V4": (6, 186)}.items():
        rois = data.store.axes("100").rois
        start = sum(size for name, size in rois.items() if name < area)
        columns = sorted(
            place[axis.name[i], int(axis.vertex[i])] for i in np.flatnonzero(np.isin(values, both)).tolist()
        )
        assert rois[area] == len(columns)
        np.testing.assert_array_equal(
            data.store.signals("100")[:, start : start + len(columns)], np.asarray(image.dataobj)[:, columns]
        )


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npz", "cifti"])
def test_one_person_at_a_time_is_read(tmp_path: Path, kind: str) -> None:
    if kind == "npz":
        format.write_npz(tmp_path, people=5)
        data = hcp(tmp_path, time_series=VOLUMES)
    else:
        format.write_dtseries(tmp_path, people=5)
        format.write_dlabel(tmp_path / "areas.dlabel.nii")
        data = cifti(tmp_path)
    alive: list[weakref.ref[Any]] = []
    people = set()
    for record in data.read(tmp_path):
        gc.collect()
        if isinstance(record, Trials):
            assert not [signal for signal in alive if signal() is not None]
            alive.append(weakref.ref(record.signal))
            people.add(record.subject)
        del record
    assert len(people) == 5


def test_memory_of_a_conversion_does_not_grow_with_the_people(tmp_path: Path) -> None:
    def peak(people: int) -> int:
        folder = tmp_path / str(people)
        format.write_npz(folder, people=people, volumes=400, sizes={"V1": 200, "V2": 100, "V3": 100, "V4": 100})
        data = hcp(folder, time_series=VOLUMES)
        tracemalloc.start()
        data.store  # noqa: B018
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    peak(1)  # imports and caches
    assert peak(16) < 1.3 * peak(4)


# ---- bad input -----------------------------------------------------------------------------------


def test_nothing_there_says_where_to_register(tmp_path: Path) -> None:
    refused_saying(hcp(tmp_path), "no <person>/HCP_visual_voxel.npz", "https://balsa.wustl.edu", "register")
    refused_saying(hcp(tmp_path / "nowhere"), "register")


def test_each_layout_names_the_option_that_reads_the_other(tmp_path: Path) -> None:
    format.write_dtseries(tmp_path / "cifti")
    refused_saying(hcp(tmp_path / "cifti"), "There are CIFTI files", "--data.init_args.dlabel")
    format.write_npz(tmp_path / "npz")
    format.write_dlabel(tmp_path / "npz" / "areas.dlabel.nii")
    refused_saying(cifti(tmp_path / "npz"), "There are HCP_visual_voxel.npz files")


def test_a_missing_parcellation(tmp_path: Path) -> None:
    format.write_dtseries(tmp_path)
    refused_saying(cifti(tmp_path), "no file", "areas.dlabel.nii")


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["dtseries", "dlabel"])
@pytest.mark.parametrize("parcels", [False, True])
def test_truncated_cifti(tmp_path: Path, kind: str, share: float, parcels: bool) -> None:
    format.write_dtseries(tmp_path)
    format.write_dlabel(tmp_path / "areas.dlabel.nii")
    path = next(tmp_path.rglob(f"*.{kind}.nii"))
    whole = path.read_bytes()
    # the end holds voxels of the accumbens, which are not read
    size = int(len(whole) * share)
    path.write_bytes(whole[:size])
    refused_saying(cifti(tmp_path, parcels=parcels), "cannot read", path.name, f"({size} bytes)", "truncated")


def test_files_that_are_something_else(tmp_path: Path) -> None:
    format.write_dtseries(tmp_path)
    format.write_dlabel(tmp_path / "areas.dlabel.nii")
    series = next(tmp_path.rglob("*.dtseries.nii"))
    refused_saying(hcp(tmp_path, dlabel=str(series)), "expected a CIFTI image of LabelAxis", "found SeriesAxis")
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4))  # type: ignore[no-untyped-call]
    nibabel.save(image, tmp_path / "volume.nii")
    refused_saying(hcp(tmp_path, dlabel=str(tmp_path / "volume.nii")), "volume.nii", "found another image")
    series.write_bytes((tmp_path / "areas.dlabel.nii").read_bytes())
    refused_saying(cifti(tmp_path), series.name, "expected a CIFTI image of SeriesAxis", "found LabelAxis")


def test_areas_that_are_not_there(tmp_path: Path) -> None:
    format.write_dtseries(tmp_path)
    format.write_dlabel(tmp_path / "areas.dlabel.nii")
    refused_saying(cifti(tmp_path, areas=["V1", "V8"]), "no area 'L_V8'", "R_V1")
    models = cifti2_axes.BrainModelAxis.from_surface(np.arange(5), format.VERTICES, name=format.LEFT)
    for path in tmp_path.rglob("*.dtseries.nii"):
        format.save_series(path, np.zeros((20, 5), np.float32), models)
    refused_saying(cifti(tmp_path), "no grayordinates of V2, V3, V4")


def test_versions_of_one_run(tmp_path: Path) -> None:
    format.write_dtseries(tmp_path)
    format.write_dlabel(tmp_path / "areas.dlabel.nii")
    path = next(tmp_path.rglob("*.dtseries.nii"))
    (path.parent / "rfMRI_REST1_LR_Atlas.dtseries.nii").write_bytes(path.read_bytes())
    refused_saying(cifti(tmp_path), "two versions of run rfMRI_REST1_LR", "--data.init_args.dtseries")


def test_another_repetition_time(tmp_path: Path) -> None:
    format.write_dtseries(tmp_path, people=1)
    format.write_dtseries(tmp_path / "other", people=2, step=1.0)
    (tmp_path / "other" / "101").rename(tmp_path / "101")
    format.write_dlabel(tmp_path / "areas.dlabel.nii")
    refused_saying(cifti(tmp_path), "one volume in 1 s", "0.72 s")


def test_people_with_other_numbers_of_voxels(tmp_path: Path) -> None:
    format.write_npz(tmp_path, people=2)
    np.savez(tmp_path / "101" / "HCP_visual_voxel.npz", **format.arrays(1, sizes=format.SIZES | {"V2": 8}))
    refused_saying(hcp(tmp_path, pad_to_multiple=16), "101", "'V2': 8", "'V2': 7", "same grayordinates")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"V3": None}, ["missing 'V3'", "'V1'"]),
        ({"V3": np.ones((39, 5))}, ["V3", "(40, any)", "(39, 5)"]),
        ({"V3": np.ones(40)}, ["V3", "(40,)"]),
        ({"V1": np.float64(3)}, ["V1", "()"]),
        ({"V3": np.full((40, 5), "a")}, ["V3 must hold numbers", "<U1"]),
        ({name: np.ones((4, 5)) for name in format.SIZES}, ["average=10", "4"]),
    ],
)
def test_npz_with_other_content(tmp_path: Path, change: dict[str, Any], expected: list[str]) -> None:
    format.write_npz(tmp_path, people=1)
    content = {key: value for key, value in (format.arrays(0) | change).items() if value is not None}
    np.savez(tmp_path / "100" / "HCP_visual_voxel.npz", **content)
    refused_saying(hcp(tmp_path), "HCP_visual_voxel.npz", *expected)


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickles_are_not_executed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    format.write_npz(tmp_path, people=1)
    path = tmp_path / "100" / "HCP_visual_voxel.npz"
    objects = np.array([Canary(canary)], object)
    np.savez(path, allow_pickle=True, **format.arrays(0) | {"V2": objects})
    refused_saying(hcp(tmp_path), "cannot read", "pickled objects")
    path.write_bytes(pickle.dumps(Canary(canary)))
    refused_saying(hcp(tmp_path), "cannot read")
    assert not canary.exists()


def test_a_truncated_npz(tmp_path: Path) -> None:
    format.write_npz(tmp_path, people=1)
    path = tmp_path / "100" / "HCP_visual_voxel.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused_saying(hcp(tmp_path), "cannot read", "HCP_visual_voxel.npz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parcels": True}, "give --data.init_args.dlabel"),
        ({"parcels": True, "areas": ["V1"], "dlabel": "a"}, "and no areas"),
        ({"areas": []}, "areas must be named once each"),
        ({"areas": ["V1", "V1"]}, "areas must be named once each"),
        ({"pad_to_multiple": 0}, "pad_to_multiple be at least 1"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        hcp(tmp_path, **options)
