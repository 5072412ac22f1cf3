"""``BOLD5000``: what is written is what is read, what published code reads, and what is refused."""

import functools
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from safetensors import safe_open

from datamodules import BrainDataModule, SampleOptions, SplitOptions
from datamodules.bold5000 import BOLD5000, read_names
from tests.datamodules import opening
from tests.datamodules.contract import SHARED, DataModuleContract, everything, real_root
from tests.formats import bold5000 as format

Array = np.ndarray[Any, Any]
PICTURES = format.PRESENTED / "img_dict.npy"
BETA = format.BETAS / "CSI1_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_allses_LHEarlyVis.npy"


opened = functools.partial(opening.opened, BOLD5000)
refused = functools.partial(opening.refused, opened)


# ---- contract --------------------------------------------------------------------------------------


class Contract(DataModuleContract):
    kind = BOLD5000
    split: ClassVar[SplitOptions] = SplitOptions(validation=0.25)


class TestRunsAndPickledPictures(Contract):
    @classmethod
    def write(cls, root: Path) -> None:
        format.write(root, train=24)

    def real(self, stores: Path) -> BrainDataModule:
        real_root(f"bold5000/{BETA}")
        return BOLD5000(str(SHARED / "bold5000"), stores=str(stores))


class TestNamesAndPictureFiles(Contract):
    @classmethod
    def write(cls, root: Path) -> None:
        format.write(root / "BOLD5000", lists="names", pictures="files")


# ---- what is written is what is read ---------------------------------------------------------------


@pytest.mark.parametrize("lists", ["runs", "names"])
@pytest.mark.parametrize("pictures", ["dict", "files"])
@pytest.mark.parametrize("folder", [".", "BOLD5000"])
def test_files_reach_the_store(root: Path, folder: str, lists: str, pictures: str) -> None:
    content = format.write(root / folder, lists=lists, pictures=pictures)
    store = opened(root).store
    assert store.subjects == ["CSI1", "CSI2"]
    assert set(store.stimuli["id"]) == {name for runs in content.runs.values() for run in runs for name in run}
    assert len(store.stimuli) == len(content.pictures) - 2, "pictures that nobody saw are left out"
    for number, name in enumerate(store.stimuli["id"]):
        np.testing.assert_array_equal(store.image(number), content.pictures[name])
    for subject, runs in content.runs.items():
        assert store.axes(subject).rois == {"EarlyVis": 9, "LOC": 5, "OPA": 3, "PPA": 3, "RSC": 2}
        parts = [content.betas[subject][side + roi] for roi in format.ROIS for side in ("LH", "RH")]
        np.testing.assert_array_equal(store.signals(subject), np.concatenate(parts, axis=1))
        trials = store.trials[store.trials["subject"] == subject]
        names = [name for run in runs for name in run]
        assert trials["stimulus"].tolist() == names
        assert trials["split"].tolist() == ["test" if name in content.repeated else "train" for name in names]
        if lists == "runs":
            expected = [(f"{1 + i // 2:02d}", f"{1 + i % 2:02d}") for i, run in enumerate(runs) for _ in run]
            assert list(zip(trials["session"], trials["run"], strict=True)) == expected
        else:
            assert set(trials["session"]) == set(trials["run"]) == {"1"}


def test_only_imagenet_pictures_have_a_class(root: Path) -> None:
    format.write(root)
    stimuli = opened(root).store.stimuli
    for name, label in zip(stimuli["id"], stimuli["class"], strict=True):
        assert label == (name[:9] if name[0] == "n" else "")
    assert set(stimuli["class"]) == {"", "n01440764", "n02012849"}


@pytest.mark.parametrize("place", [".", "Presented_Stimuli", "../Presented_Stimuli"])
def test_list_of_repeated_pictures_may_lie_in_three_folders(root: Path, place: str) -> None:
    format.write(root)
    file = "repeated_stimuli_113_list.txt"
    (root / format.SCENES / place).mkdir(exist_ok=True)
    (root / format.SCENES / file).rename(root / format.SCENES / place / file)
    assert (opened(root).store.trials["split"] == "test").sum() == 2 * 3 * 4
    (root / format.SCENES / place / file).unlink()
    shutil.rmtree(root.parent / "stores")
    assert f"no file {root / format.SCENES / file}" in refused(root)


@pytest.mark.parametrize("place", ["CSI1", ".", ".."])
@pytest.mark.parametrize("prefix", ["", "sub-"])
def test_list_of_a_person_may_lie_in_three_folders(root: Path, place: str, prefix: str) -> None:
    content = format.write(root, people=1, lists="names")
    (root / format.LISTS / "CSI1").mkdir()
    (root / format.LISTS / "sub-CSI1_imgnames.txt").rename(root / format.LISTS / place / f"{prefix}CSI1_imgnames.txt")
    expected = [name for run in content.runs["CSI1"] for name in run]
    assert opened(root).store.trials["stimulus"].tolist() == expected


def test_regions_may_be_absent_where_that_is_declared(root: Path) -> None:
    content = format.write(root)
    for part in ("LHLOC", "RHLOC"):
        format.beta_file(root, "CSI2", part).unlink()
    store = opened(root).store
    assert store.axes("CSI1").rois == {"EarlyVis": 9, "LOC": 5, "OPA": 3, "PPA": 3, "RSC": 2}
    assert store.axes("CSI2").rois == {"EarlyVis": 9, "OPA": 3, "PPA": 3, "RSC": 2}
    assert store.signals("CSI2").shape[1] == 17
    shutil.rmtree(root.parent / "stores")
    message = refused(root, absent_rois={})
    for part in ("LHLOC.npy", "put it there", '--data.init_args.absent_rois=\'{"CSI2": ["LOC"]}\''):
        assert part in message
    format.beta_file(root, "CSI1", "RHRSC").unlink()
    message = refused(root)
    for part in (str(format.beta_file(root, "CSI1", "RHRSC")), '{"CSI1": ["RSC"]}'):
        assert part in message
    # one hemisphere is there, and is used
    data = opened(root, absent_rois={"CSI1": ["RSC"], "CSI2": ["LOC"]})
    assert data.store.axes("CSI1").rois["RSC"] == content.betas["CSI1"]["LHRSC"].shape[1]
    assert "-" in data.store.folder.name, "each choice of regions has its own store"


# ---- published loaders and lists -------------------------------------------------------------------


def test_published_loader_returns_the_same(tmp_path: Path) -> None:
    golden = real_root("golden/published_loaders.safetensors") / "published_loaders.safetensors"
    data = opened(golden.parent / "layouts", stores=str(tmp_path), samples=SampleOptions(normalise="mindvis"))
    (train,), (test,) = everything(data, "train"), everything(data, "test")
    with safe_open(golden, "numpy") as file:
        for split, batch in (("train", train), ("test", test)):
            signal, images = file.get_tensor(f"bold_{split}"), file.get_tensor(f"bold_{split}_image")
            assert len(batch["row"]) == len(signal)
            # ours stand in the order in which a picture was first seen, the published ones in that of their lists
            place = {image.tobytes(): row for row, image in enumerate(images)}
            rows = [place[data.store.image(number).tobytes()] for number in batch["stimulus"].tolist()]
            assert sorted(rows) == list(range(len(signal)))
            np.testing.assert_allclose(batch["signal"], signal[rows], atol=1e-5)


@pytest.mark.parametrize(
    ("subject", "trials", "pictures"), [(1, 5254, 4916), (2, 5254, 4916), (3, 5254, 4916), (4, 3108, 2952)]
)
def test_published_lists_are_read(subject: int, trials: int, pictures: int) -> None:
    file = f"sub-CSI{subject}_imgnames.txt"
    names = read_names(real_root(f"formats/bold5000/{file}") / file)
    assert len(names) == trials == BOLD5000.facts.trials[f"CSI{subject}"]
    seen = Counter(names)
    assert len(seen) == pictures
    repeated = {name for name, count in seen.items() if count > 1}
    assert len(repeated) == (113 if subject < 4 else 90)
    assert not any(name.startswith("rep_") for name in names)
    kinds = Counter(
        "imagenet" if name[:2] in ("n0", "n1") else "coco" if name[:4] == "COCO" else "scene" for name in seen
    )
    if subject < 4:
        assert kinds == {"coco": 2000, "imagenet": 1916, "scene": 1000}


# ---- bad input -------------------------------------------------------------------------------------


def test_without_recordings_the_message_says_where_they_belong(root: Path) -> None:
    message = refused(root)
    for part in (str(root / format.BETAS), "CSI1_GLMbetas", "no such folder", "--data.init_args.root"):
        assert part in message
    (root / format.BETAS).mkdir(parents=True)
    (root / format.BETAS / "readme.txt").touch()
    assert "found readme.txt" in refused(root)


@pytest.mark.parametrize(
    ("betas", "expected"),
    [
        (np.zeros((24, 5), np.int16), ["expected betas (trials, voxels)", "int16"]),
        (np.zeros(24), ["expected betas (trials, voxels)", "(24,)"]),
        (np.zeros((23, 5)), ["24 trials", "have 23"]),
    ],
)
def test_other_betas_are_refused(root: Path, betas: Array, expected: list[str]) -> None:
    format.write(root)
    np.save(root / BETA, betas)
    message = refused(root)
    for part in ("CSI1_GLMbetas", *expected):
        assert part in message


def test_lists_of_another_length_are_refused(root: Path) -> None:
    format.write(root)
    (run,) = (root / format.LISTS / "CSI2" / "CSI2_sess02").glob("*run01.txt")
    run.write_text("".join(run.read_text().splitlines(keepends=True)[1:]))
    message = refused(root)
    for part in ("CSI2", "name 23 pictures", "have 24 trials", str(root / format.BETAS)):
        assert part in message
    shutil.rmtree(root / format.LISTS / "CSI2")
    message = refused(root)
    for part in ("no lists of what CSI2 saw", "CSI2_sess01/*.txt", "CSI2_imgnames.txt"):
        assert part in message


def test_other_lists_are_refused(root: Path) -> None:
    format.write(root)
    repeated = root / format.SCENES / "repeated_stimuli_113_list.txt"
    repeated.write_text("cat.jpg\n")
    message = refused(root)
    for part in ("none of the 1 names", "repeated_stimuli_113_list.txt", "cat.jpg"):
        assert part in message
    repeated.write_bytes(b"\xff\xfe\x00")
    assert f"cannot read {repeated}" in refused(root)
    assert "no region V1" in refused(root, absent_rois={"CSI1": ["V1"]})


def test_files_of_other_regions_are_not_recordings(root: Path) -> None:
    format.write(root)
    for path in (root / format.BETAS).iterdir():
        path.rename(path.with_name(path.name.replace("LOC", "V1")))
    message = refused(root)
    assert "CSI1_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_allses_LHLOC.npy; put it there" in message
    for path in (root / format.BETAS).iterdir():
        path.rename(path.with_name(f"old-{path.name}"))
    assert "no recordings of BOLD5000" in refused(root)


@pytest.mark.parametrize("pictures", ["dict", "files"])
def test_a_picture_that_is_missing_is_named(root: Path, pictures: str) -> None:
    content = format.write(root, pictures=pictures)
    name = content.repeated[0]
    if pictures == "dict":
        del content.pictures[name]
        np.save(root / PICTURES, content.pictures, allow_pickle=True)  # type: ignore[arg-type]
    else:
        next((root / format.PRESENTED).rglob(name)).unlink()
    message = refused(root)
    for part in (
        "stimulus without image",
        "1 of 15",
        "among the 16",
        name,
        str(root / format.PRESENTED),
        "img_dict.npy",
    ):
        assert part in message
    shutil.rmtree(root / format.PRESENTED)
    assert f"no pictures in {root / format.PRESENTED}" in refused(root)


@pytest.mark.parametrize("share", [0, 0.01, 0.05, 0.1, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_dict_is_refused(root: Path, share: float) -> None:
    format.write(root)
    content = (root / PICTURES).read_bytes()
    (root / PICTURES).write_bytes(content[: int(share * len(content))])
    assert f"cannot read {root / PICTURES}" in refused(root)
