"""NSD as Brain-Diffuser and MindEye2 prepare it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from datamodules import SplitOptions
from tests.datamodules.test_nsd import Contract, name, opened, refused
from tests.formats import nsd as format

Array = np.ndarray[Any, Any]


class TestBrainDiffuser(Contract):
    @classmethod
    def write(cls, root: Path) -> None:
        format.write_brain_diffuser(root, sessions=1)


class TestMindEye2(Contract):
    @classmethod
    def write(cls, root: Path) -> None:
        format.write_mindeye2(root, train=16, test=4, sessions=1)


# ---- Brain-Diffuser --------------------------------------------------------------------------------


def test_averages_reach_the_store(root: Path) -> None:
    content = format.write_brain_diffuser(root, people=("01", "05"), train=300, test=20)
    data = opened(root, split=SplitOptions(validation=0.0))
    store = data.store
    pictures = set().union(*(set(part[0]) for p in ("01", "05") for part in format.averages(content, p).values()))
    assert len(store.stimuli) == len(pictures), "pictures that both saw are kept once"
    for person in store.subjects:
        averages = format.averages(content, person)
        order = [*averages["train"][0], *averages["test"][0]]
        signal = np.concatenate([averages["train"][1], averages["test"][1]])
        np.testing.assert_array_equal(store.signals(person), signal.astype(np.float32))
        trials = store.trials[store.trials["subject"] == person]
        assert trials["split"].tolist() == ["train"] * 300 + ["test"] * 20
        for picture, number in zip(order, trials["number"], strict=True):
            np.testing.assert_array_equal(store.image(number), content.images[picture])
            caption = f"picture {picture}" if picture % 2 else f"number {picture}"
            assert store.stimuli["caption"].iloc[number] == caption
        assert store.axes(person).rois == {"nsdgeneral": 22}
    assert data.score_context("test").encoding_ceiling == {}


def test_captions_may_be_absent(root: Path) -> None:
    format.write_brain_diffuser(root, people=("01",), captions=False)
    assert set(opened(root).store.stimuli["caption"]) == {""}


def averages_file(root: Path, kind: str, part: str = "train") -> Path:
    return root / "processed_data" / "subj01" / f"nsd_{part}_{kind}_sub1.npy"


def change_npy(path: Path, change: Callable[[Array], Array | None]) -> None:
    array = np.load(path)
    changed = change(array)
    np.save(path, array if changed is None else changed)


@pytest.mark.parametrize(
    ("kind", "change", "expected"),
    [
        ("stim", lambda a: a.__setitem__((37, 2, 3, 1), 0.5), ["whole numbers in 0..255", "picture 37"]),
        ("stim", lambda a: a.__setitem__((5, 0, 0, 0), 256), ["whole numbers in 0..255", "256 in picture 5"]),
        ("stim", lambda a: a.__setitem__((5, 0, 0, 0), -1), ["whole numbers in 0..255", "-1..", "picture 5"]),
        ("stim", lambda a: a.__setitem__((5, 0, 0, 0), np.nan), ["whole numbers in 0..255", "nan"]),
        ("stim", lambda a: a[:-1], ["expected shape (40, any, any, 3), found (39, 8, 8, 3)"]),
        ("stim", lambda a: a[..., 0], ["expected shape (40, any, any, 3)"]),
        ("cap", lambda a: a[:-1], ["expected shape (40, any), found (39, 5)"]),
        ("cap", lambda a: np.arange(200).reshape(40, 5), ["captions must be text", "int64"]),
        ("fmriavg_nsdgeneral", lambda a: a[0], ["expected shape (any, any)"]),
    ],
)
def test_wrong_averages_are_refused(root: Path, kind: str, change: Any, expected: list[str]) -> None:
    format.write_brain_diffuser(root, people=("01",))
    change_npy(averages_file(root, kind), change)
    message = refused(root)
    for part in (averages_file(root, kind).name, *expected):
        assert part in message


def test_parts_of_averages_must_have_the_same_voxels_and_both_be_there(root: Path) -> None:
    format.write_brain_diffuser(root, people=("01",))
    path = averages_file(root, "fmriavg_nsdgeneral", "test")
    change_npy(path, lambda a: a[:, 1:])
    assert "expected shape (any, 22), found (8, 21)" in refused(root)
    path.unlink()
    assert f"no file {path}" in refused(root)
    assert "no files of person 02, 03" in refused(root, subjects=["01", "02", "03"], file_format="brain_diffuser")


def test_captions_as_pickled_objects_are_not_read(root: Path) -> None:
    format.write_brain_diffuser(root, people=("01",))
    np.save(averages_file(root, "cap"), np.full((40, 5), "text", object), allow_pickle=True)
    assert "never executed" in refused(root)


def test_averages_are_mapped_not_loaded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    format.write_brain_diffuser(root, people=("01",), sessions=1, train=70, test=10)
    sizes: list[int] = []
    load = np.load

    def watched(path: Path, **options: Any) -> Any:
        array = load(path, **options)
        if "stim" in Path(path).name or "fmriavg" in Path(path).name:
            assert isinstance(array, np.memmap), path
            sizes.append(len(array))
        return array

    monkeypatch.setattr(np, "load", watched)
    assert len(opened(root).store.stimuli) == 80
    assert sizes[:4] == [70, 70, 10, 10]


# ---- MindEye2 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["tars", "table"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_single_trials_of_mindeye2_reach_the_store(root: Path, order: str, dtype: str) -> None:
    content = format.write_mindeye2(root, order=order, dtype=dtype, people=("01", "02"), sessions=2)
    store = opened(root).store
    shared = set(content.shared.tolist())
    known = sorted(set(content.shown["01"][:1500].tolist()) | set(content.shown["02"][:1500].tolist()))
    assert store.stimuli["id"].tolist() == [name(picture) for picture in known]
    for number, picture in enumerate(known):
        np.testing.assert_array_equal(store.image(number), content.images[picture])
    for person in store.subjects:
        bits = dtype.removeprefix("float")
        with h5py.File(root / f"betas_all_subj{person}_fp{bits}_renorm.hdf5") as file:
            np.testing.assert_array_equal(store.signals(person), file["betas"])
        assert store.signals(person).dtype == dtype
        trials = store.trials[store.trials["subject"] == person]
        shown = content.shown[person][:1500].tolist()
        assert trials["stimulus"].tolist() == [name(picture) for picture in shown]
        assert trials["split"].tolist() == ["test" if picture in shared else "train" for picture in shown]
        assert trials["session"].tolist() == ["1"] * 750 + ["2"] * 750
    first = opened(root, sessions=1).store
    np.testing.assert_array_equal(first.signals("01"), store.signals("01")[:750])


def test_official_and_mindeye2_agree_on_what_was_shown(root: Path) -> None:
    format.write(root, people=("01",), sessions=1)
    format.write_mindeye2(root, people=("01",), sessions=1)
    one, two = (opened(root, sessions=1, file_format=layout).store for layout in ("official", "mindeye2"))
    columns = ["subject", "session", "run", "stimulus", "repetition", "split"]
    assert one.trials[columns].equals(two.trials[columns])
    assert one.stimuli["sha256"].tolist() == two.stimuli["sha256"].tolist()


def write_tables(root: Path) -> format.Experiment:
    return format.write_mindeye2(root, people=("01",), sessions=1, order="table")


def replace_table(path: Path, key: str, array: Array) -> None:
    with h5py.File(path, "a") as file:
        del file[key]
        file[key] = array


INDICES, BETAS = "COCO_73k_subj_indices.hdf5", "betas_all_subj01_fp32_renorm.hdf5"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda r: (r / "shared1000.npy").unlink(), ["no file", "shared1000.npy"]),
        (lambda r: np.save(r / "shared1000.npy", np.zeros(73000, bool)), ["shared1000.npy", "some of them True"]),
        (lambda r: np.save(r / "shared1000.npy", np.ones(1000, bool)), ["(73000), found (1000,)"]),
        (lambda r: replace_table(r / INDICES, "subj01", np.arange(749)), ["each of 750 trials", "(749,)"]),
        (
            lambda r: replace_table(r / INDICES, "subj01", np.full(750, 73000)),
            ["pictures are 0..72999", "73000..73000"],
        ),
        (lambda r: replace_table(r / INDICES, "subj01", np.zeros(750)), ["float64"]),
        (lambda r: (r / INDICES).rename(r / "other"), ["told neither by", INDICES, "wds"]),
        (lambda r: replace_table(r / BETAS, "betas", np.zeros((750, 22), int)), ["table 'betas'", "floating"]),
        (lambda r: replace_table(r / BETAS, "betas", np.zeros(750)), ["table 'betas'", "betas (750,)"]),
        (lambda r: (r / BETAS).write_bytes((r / BETAS).read_bytes()[:9000]), ["cannot read", BETAS]),
        (
            lambda r: format.save_table(r / "coco_images_224_float16.hdf5", "images", (5, 3, 8, 8), "f2", {}),
            ["pictures are missing", "holds 5"],
        ),
    ],
)
def test_wrong_tables_of_mindeye2_are_refused(root: Path, damage: Any, expected: list[str]) -> None:
    write_tables(root)
    damage(root)
    message = refused(root)
    for part in expected:
        assert part in message


def test_a_person_missing_from_the_order_is_named(root: Path) -> None:
    write_tables(root)
    with h5py.File(root / INDICES, "a") as file:
        file.move("subj01", "subj02")
    assert "no table 'subj01'; found 'subj02'" in refused(root)


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        (0, 73000, "picture 73000"),
        (0, 1.5, "fractions"),
        (1, 2, "is of person 2"),
        (2, 2, "into session 2"),
        (5, 750, "trial 750"),
        (5, 3, "says trial 3 showed"),
        (5, np.nan, "must hold (1, 17) numbers"),
    ],
)
def test_wrong_entries_of_archives_are_refused(root: Path, column: int, value: float, expected: str) -> None:
    content = format.write_mindeye2(root, people=("01",), sessions=1)
    rows = {trial: format.behaviour(content, "01", trial) for trial in range(750)}
    rows[100][0, column] = value
    path = format.save_tar(root / "wds" / "subj01" / "train" / "0.tar", rows)
    message = refused(root)
    assert str(path) in message
    assert expected in message


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_archives_that_lack_trials_or_are_damaged_are_refused(root: Path) -> None:
    content = format.write_mindeye2(root, people=("01",), sessions=1)
    rows = {trial: format.behaviour(content, "01", trial) for trial in range(750)}
    path = root / "wds" / "subj01" / "train" / "0.tar"
    format.save_tar(path, {trial: row for trial, row in rows.items() if trial not in (20, 21) and not row[0, -1]})
    message = refused(root)
    absent = [trial for trial in (20, 21) if not rows[trial][0, -1]]
    assert f"{len(absent)} of 750 trials" in message
    assert f"the first is {absent[0]}" in message
    whole = path.read_bytes()
    for cut in (len(whole) // 2, len(whole) // 2 + 100, len(whole) // 3):
        path.write_bytes(whole[:cut])
        message = refused(root)
        # an archive that ends within the head of an entry looks like a shorter one
        assert "cannot read" in message or "trials are in none of 2 files" in message
    path.write_bytes(b"no archive")
    assert "cannot read" in refused(root)
    marker = root / "marker"
    format.save_tar(path, {1: np.array([[Bomb(marker)] * 17], object)})
    assert "cannot read" in refused(root)
    assert not marker.exists(), "an object was unpickled"
    format.save_tar(path, {1: np.zeros((100, 17))})
    assert "is no file of (1, 17) numbers" in refused(root)
