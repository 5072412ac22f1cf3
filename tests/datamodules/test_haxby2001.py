import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from contracts import DataError
from datamodules import BrainDataModule, EmbeddingOptions, SplitOptions
from datamodules.core.timeseries import TimeSeriesOptions
from datamodules.haxby2001 import CATEGORIES, Haxby2001
from tests.datamodules.contract import SPLITS, DataModuleContract, everything, real_root
from tests.datamodules.opening import refused_saying
from tests.datamodules.test_timeseries import ContractWithoutPictures
from tests.formats import haxby2001 as format

Array = np.ndarray[Any, Any]
FILES = tuple(f"haxby2001/{name}" for name in ("bold.nii.gz", "mask.nii.gz", "attributes.txt"))
CLASSES = EmbeddingOptions(model="classes")
RAW = TimeSeriesOptions()
BY_RUN = SplitOptions(protocol="by_run", folds=6, validation=0.0)


class TestHaxby2001(DataModuleContract):
    """Single volumes: those of a block are repetitions of one stimulus."""

    split: ClassVar[SplitOptions] = SplitOptions(folds=3, validation=0.25)

    @classmethod
    def write(cls, root: Path) -> None:
        format.write(root)

    def make(self, root: Path, **options: Any) -> BrainDataModule:
        return Haxby2001(str(root), form="volumes", **options | {"embedding": CLASSES})

    def real(self, stores: Path) -> BrainDataModule:
        return Haxby2001(str(real_root(*FILES)), stores=str(stores))

    # a block stands for a picture
    test_no_picture_on_two_sides = ContractWithoutPictures.test_no_picture_on_two_sides
    test_pictures_come_with_the_batch_where_a_stage_wants_them = (
        ContractWithoutPictures.test_pictures_come_with_the_batch_where_a_stage_wants_them
    )

    def test_embedding_belongs_to_the_picture_that_was_seen(self, root: Path) -> None:
        data = self.open(root)
        assert data.classes == sorted(CATEGORIES[1:])
        for split in SPLITS:
            for batch in everything(data, split):
                names = data.store.stimuli["class"].iloc[batch["stimulus"].numpy()]
                expected = [[float(name == column) for column in sorted(CATEGORIES[1:])] for name in names]
                np.testing.assert_array_equal(batch["embedding"], expected)


class TestHaxby2001Segments(ContractWithoutPictures):
    split: ClassVar[SplitOptions] = SplitOptions(folds=3, validation=0.25)

    @classmethod
    def write(cls, root: Path) -> None:
        format.write(root)

    def make(self, root: Path, **options: Any) -> BrainDataModule:
        segments = TimeSeriesOptions(clean="detrend", segment=6, stride=3)
        return self.without_embeddings(Haxby2001(str(root), form="segments", time_series=segments, **options))


def haxby(folder: Path, **options: Any) -> Haxby2001:
    usual: dict[str, Any] = {"time_series": RAW, "embedding": CLASSES, "split": BY_RUN}
    return Haxby2001(str(folder), stores=str(folder / "stores"), **usual | options)


def recorded(runs: int = 6) -> tuple[Array, Array, Array]:
    """Voxels of the mask in each volume, its category and its run, read off the format by hand."""
    volumes, inside = format.volumes(runs), format.mask()
    columns = [
        volumes[x, y, z] for x in range(4) for y in range(6) for z in range(1) if inside[x, y, z]
    ]  # in the order of the array
    codes = [code for run in format.labels(runs) for code in run]
    length = len(codes) // runs
    return np.stack(columns, axis=1).astype(float), np.array(codes), np.arange(len(codes)) // length


def test_blocks_are_means_of_their_volumes(tmp_path: Path) -> None:
    format.write(tmp_path)
    data = haxby(tmp_path)
    signal, code, run = recorded()
    assert len(data.store.trials) == 48
    stimuli = data.store.stimuli.set_index("id")["class"]
    for row, (name, number) in enumerate(data.store.trials[["stimulus", "run"]].itertuples(index=False)):
        category = name.removeprefix(f"run-{number}_")
        assert stimuli[name] == category
        rows = (run == int(number) - 1) & (code == CATEGORIES.index(category))
        assert rows.sum() == 3
        np.testing.assert_allclose(data.store.signals("001")[row], signal[rows].mean(axis=0), rtol=1e-6)
    assert data.store.axes("001").rois == {"mask": 20}
    assert data.store.axes("001").sampling_rate == 0


def test_volumes_leave_rest_out(tmp_path: Path) -> None:
    format.write(tmp_path)
    data = haxby(tmp_path, form="volumes")
    signal, code, _ = recorded()
    np.testing.assert_allclose(data.store.signals("001"), signal[code > 0], rtol=1e-6)
    assert data.store.trials["repetition"].max() == 2


def test_shift_takes_later_volumes(tmp_path: Path) -> None:
    format.write(tmp_path)
    data = haxby(tmp_path, form="volumes", shift=2)
    signal, code, run = recorded()
    shifted = np.zeros_like(code)
    for number in range(6):
        shifted[run == number] = [0, 0, *code[run == number][:-2]]
    np.testing.assert_allclose(data.store.signals("001"), signal[shifted > 0], rtol=1e-6)


def test_cleaning_is_within_the_run_before_averaging(tmp_path: Path) -> None:
    format.write(tmp_path)
    data = haxby(tmp_path, time_series=TimeSeriesOptions(clean="zscore"))
    signal, code, run = recorded()
    for number in range(6):
        mine = signal[run == number]
        signal[run == number] = (mine - mine.mean(axis=0)) / mine.std(axis=0)
    first = next(c for c in code if c)
    np.testing.assert_allclose(
        data.store.signals("001")[0], signal[(run == 0) & (code == first)].mean(axis=0), atol=1e-4
    )


def test_segments_are_time_series_of_the_whole_run(tmp_path: Path) -> None:
    format.write(tmp_path)
    data = haxby(tmp_path, form="segments", time_series=TimeSeriesOptions(segment=10, stride=10), split=BY_RUN)
    signal, _, run = recorded()
    length = int((run == 0).sum())
    starts = range(0, length - 9, 10)
    expected = [signal[number * length + start :][:10].T for number in range(6) for start in starts]
    np.testing.assert_allclose(data.store.signals("001"), expected, rtol=1e-6)
    assert data.store.stimuli["id"].tolist()[:2] == ["run-01_volume-000", "run-01_volume-010"]
    assert set(data.store.stimuli["class"]) == {""}
    assert data.store.axes("001").sampling_rate == pytest.approx(1 / 2.5)


def test_leave_one_run_out(tmp_path: Path) -> None:
    format.write(tmp_path)
    tested = []
    for fold in range(6):
        data = haxby(tmp_path, split=SplitOptions(protocol="by_run", folds=6, fold=fold, validation=0.0))
        [run] = data.trials["run"][data.trials["side"] == "test"].unique()
        assert run not in set(data.trials["run"][data.trials["side"] == "train"])
        tested.append(run)
        centres = data.score_context("test").galleries["class_centres"]
        np.testing.assert_array_equal(centres.embedding, np.eye(8)[centres.label])
    assert sorted(tested) == [f"{number:02d}" for number in range(1, 7)]


def test_both_layouts_give_the_same_samples(tmp_path: Path) -> None:
    format.write(tmp_path)
    format.write_openfmri(tmp_path / "openfmri", people=2)
    for form in ("blocks", "volumes"):
        one = haxby(tmp_path, form=form).store
        two = haxby(tmp_path, form=form, openfmri="openfmri", mask="masks/slice.nii.gz").store
        np.testing.assert_array_equal(one.signals("001"), two.signals("001"))
        mine = two.trials[two.trials["subject"] == "001"]
        assert one.trials["stimulus"].tolist() == mine["stimulus"].tolist()
        assert one.trials["run"].tolist() == mine["run"].tolist()
        assert two.subjects == ["001", "002"]
        assert one.folder != two.folder


def test_names_of_categories_may_stand_in_the_table(tmp_path: Path) -> None:
    format.write(tmp_path)
    expected = haxby(tmp_path).store.stimuli
    table = tmp_path / "attributes.txt"
    lines = [line.split() for line in table.read_text().splitlines()]
    table.write_text("".join(f"{CATEGORIES[int(code)]} {run}\n" for code, run in lines))
    shutil.rmtree(tmp_path / "stores")
    assert haxby(tmp_path).store.stimuli.equals(expected)


# ---- the real recording --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "trials", "published"), [("blocks", 96, 0.708), ("volumes", 864, 0.566), ("segments", 1452, None)]
)
def test_eight_categories_can_be_told_apart(tmp_path: Path, form: Any, trials: int, published: float | None) -> None:
    zscore = TimeSeriesOptions(clean="zscore")
    data = Haxby2001(str(real_root(*FILES)), form=form, time_series=zscore, stores=str(tmp_path))
    store = data.store
    assert store.signals("001").shape == (trials, 530)
    if published is None:
        return
    signal, run = np.array(store.signals("001")), store.trials["run"].to_numpy()
    category = store.stimuli["class"].to_numpy()[store.trials["number"]]
    assert len(set(run)) == 12
    right = np.zeros(trials)
    for left_out in set(run):
        model = make_pipeline(StandardScaler(), SVC(kernel="linear"))
        model.fit(signal[run != left_out], category[run != left_out])
        right[run == left_out] = model.predict(signal[run == left_out]) == category[run == left_out]
    # 96 independent blocks, however many volumes; chance is .125
    error = np.sqrt(published * (1 - published) / 96)
    assert abs(right.mean() - published) < 2 * error


def test_the_real_runs_in_the_layout_of_openfmri_are_the_same(tmp_path: Path) -> None:
    root = real_root(*FILES)
    options: dict[str, Any] = {"form": "volumes", "time_series": RAW, "stores": str(tmp_path)}
    one = Haxby2001(str(root), **options).store
    two = Haxby2001(str(root), openfmri="openfmri", bold="bold_1slice.nii.gz", **options).store
    np.testing.assert_array_equal(one.signals("001"), two.signals("001"))
    assert one.trials["stimulus"].tolist() == two.trials["stimulus"].tolist()
    brain = {"openfmri": "openfmri", "bold": "bold_25mm.nii.gz", "mask": "masks/25mm/brain.nii.gz"}
    coarse = Haxby2001(str(root), **options, **brain).store
    assert coarse.trials["stimulus"].tolist() == one.trials["stimulus"].tolist()
    assert list(coarse.axes("001").rois) == ["brain"]


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bold.nii.gz", "mask.nii.gz"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
def test_a_truncated_image(tmp_path: Path, name: str, share: float) -> None:
    format.write(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    refused_saying(haxby(tmp_path), "cannot read", name, "truncated")


def test_labels_of_other_length_than_the_volumes(tmp_path: Path) -> None:
    format.write(tmp_path)
    table = tmp_path / "attributes.txt"
    table.write_text("\n".join(table.read_text().splitlines()[:-3]))
    refused_saying(haxby(tmp_path), "attributes.txt labels 249 volumes", "bold.nii.gz holds 252")


@pytest.mark.parametrize("line", ["9 0", "dog 0", "1", "1 0 0", "-1 0", "1.0 0"])
def test_wrong_lines_of_the_table(tmp_path: Path, line: str) -> None:
    format.write(tmp_path)
    table = tmp_path / "attributes.txt"
    table.write_text("\n".join([line, *table.read_text().splitlines()[1:]]))
    refused_saying(haxby(tmp_path), "attributes.txt", f"found {line!r}", "0 to 8")


def test_runs_that_are_torn(tmp_path: Path) -> None:
    format.write(tmp_path)
    table = tmp_path / "attributes.txt"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[10:], *lines[:10]]))
    refused_saying(haxby(tmp_path), "volumes of one run must follow each other")


def test_masks_of_another_shape_or_empty(tmp_path: Path) -> None:
    format.write(tmp_path)
    format.save(tmp_path / "mask.nii.gz", np.ones((4, 5, 1), np.int16))
    refused_saying(haxby(tmp_path), "mask.nii.gz", "(4, 6, 1)", "(4, 5, 1)")
    format.save(tmp_path / "mask.nii.gz", np.zeros((4, 6, 1), np.int16))
    refused_saying(haxby(tmp_path), "no voxel in the mask")


def test_images_without_time(tmp_path: Path) -> None:
    format.write(tmp_path)
    format.save(tmp_path / "bold.nii.gz", format.volumes(6), tr=0.0)
    refused_saying(haxby(tmp_path), "bold.nii.gz", "pixdim[4] is 0")
    format.save(tmp_path / "bold.nii.gz", format.mask())
    refused_saying(haxby(tmp_path), "bold.nii.gz", "4 axes", "(4, 6, 1)")


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("sub001/model/model001/onsets/task001_run002/cond003.txt", "abc\t1\t1\n", ["cond003.txt", "onset"]),
        ("sub001/model/model001/onsets/task001_run002/cond003.txt", "5\n", ["cond003.txt", "onset"]),
        ("sub001/model/model001/onsets/task001_run002/cond003.txt", "500\t7.5\t1\n", ["500 s", "42 volumes"]),
        ("sub001/model/model001/onsets/task001_run002/cond003.txt", "5\t0\t1\n", ["5 s for 0 s"]),
        ("sub001/model/model001/onsets/task001_run002/cond003.txt", None, ["no file", "cond003.txt"]),
        ("models/model001/condition_key.txt", "task001 cond001\n", ["condition_key.txt", "category"]),
        ("models/model001/condition_key.txt", None, ["no file", "condition_key.txt"]),
        ("sub001/BOLD/task001_run002/bold.nii.gz", None, ["no file", "task001_run002"]),
    ],
)
def test_damaged_openfmri(tmp_path: Path, file: str, content: str | None, expected: list[str]) -> None:
    format.write_openfmri(tmp_path / "openfmri")
    path = tmp_path / "openfmri" / file
    path.unlink() if content is None else path.write_text(content)
    refused_saying(haxby(tmp_path, openfmri="openfmri", mask="masks/slice.nii.gz"), *expected)


def test_no_openfmri_there(tmp_path: Path) -> None:
    format.write_openfmri(tmp_path / "openfmri")
    refused_saying(haxby(tmp_path, openfmri="openfmri", mask="masks/vt.nii.gz"), "no file", "vt.nii.gz")
    shutil.rmtree(tmp_path / "openfmri" / "sub001")
    refused_saying(haxby(tmp_path, openfmri="openfmri"), "no sub*/BOLD/task001_run*")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_series": TimeSeriesOptions(segment=5)}, "form=blocks takes its volumes from the blocks"),
        ({"form": "volumes", "time_series": TimeSeriesOptions(average=5)}, "form=volumes takes"),
        ({"shift": -1}, "shift is a number of volumes"),
        ({"form": "segments", "shift": 1}, "shift is a number of volumes"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        haxby(tmp_path, **options)
