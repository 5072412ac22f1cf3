"""What ``THINGSEEG2`` refuses: files that are missing, damaged or hold code, and impossible options."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contracts import DataError
from datamodules.things_eeg2 import FILES
from tests.datamodules.things_eeg2 import LAYOUTS, opened, refused
from tests.formats import things_eeg2 as format

# ---- bad input -------------------------------------------------------------------------------------


def test_several_layouts_are_refused_and_one_of_them_chosen(root: Path) -> None:
    content = format.write(root, "arrays", people=1)
    format.write_recordings(root, content, "osf")
    message = refused(root)
    for part in ("several", "preprocessed_eeg (arrays)", "preprocessed_data (osf)", "--data.init_args.layout"):
        assert part in message
    assert opened(root, layout="osf").layout["start"] == pytest.approx(-0.03)
    format.write_recordings(root, content, "osf", folder="eeg_dataset/preprocessed_data")
    shutil.rmtree(root.parent / "stores")
    assert "remove all but one" in refused(root, layout="osf")


def test_without_recordings_the_message_says_where_they_belong(root: Path) -> None:
    assert "no such folder" in refused(root)
    root.mkdir()
    (root / "notes.txt").touch()
    message = refused(root)
    for part in (str(root), "Preprocessed_data_250Hz_whiten", "preprocessed_eeg", "found notes.txt", "osf.io"):
        assert part in message
    format.write(root, "arrays")
    assert "or layout" in refused(root, layout="whitened")
    # upper and lower case are different names, whatever the file system thinks
    (root / "preprocessed_eeg").rename(root / "Preprocessed_EEG")
    assert "no recordings" in refused(root)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_person_without_a_file_is_refused(root: Path, layout: format.Layout) -> None:
    format.write(root, layout)
    place = root / format.FOLDERS[layout]
    missing = place / "sub-02" / FILES[layout]["test"]
    missing.unlink()
    assert f"no file {missing}" in refused(root)
    shutil.rmtree(place / "sub-02")
    assert opened(root).store.subjects == ["01"]
    shutil.rmtree(root.parent / "stores")
    shutil.rmtree(place / "sub-01")
    assert "nobody in" in refused(root)


def test_people_who_are_not_there_are_refused(root: Path) -> None:
    format.write(root)
    with pytest.raises(DataError, match=r"\['01', '07'\].*has 01, 02.*subjects"):
        opened(root, subjects=["01", "07"]).layout  # noqa: B018


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(["Oz", "Iz", "EOG"], ["no channel Iz, EOG", "it has Fp1, FT9"]), ([], ["named once"]), (["Oz", "Oz"], ["once"])],
)
def test_other_channels_are_refused(root: Path, channels: list[str], expected: list[str]) -> None:
    format.write(root)
    message = refused(root, channels=channels)
    for part in (*expected, "--data.init_args.channels"):
        assert part in message


def test_nan_is_refused_when_samples_are_made(root: Path) -> None:
    content = format.write(root)
    content.people[1].train[3, 1, 2, 4] = np.nan
    shutil.rmtree(root / format.FOLDERS["whitened"])
    format.write_recordings(root, content)
    with pytest.raises(DataError, match=r"sub-02: 1 of 100 features hold NaN .*first is 14"):
        opened(root).layout  # noqa: B018
    assert opened(root, subjects=["01"]).layout["train_samples"]


def change(path: Path, **changes: Any) -> None:
    """Write a file of ``whitened`` or of pickled dicts again with other entries (None: without)."""
    content = torch.load(path, weights_only=False) if path.suffix == ".pt" else np.load(path, allow_pickle=True)
    content = content.item() if isinstance(content, np.ndarray) else content
    content = {key: value for key, value in (content | changes).items() if value is not None}
    if path.suffix == ".pt":
        torch.save(content, path, pickle_protocol=5)
    else:
        path.write_bytes(pickle.dumps(content, protocol=4))


IMAGES = np.array([["train_images/00009_wok/wok_01s.jpg"] * 4] * 12)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"eeg": np.zeros((11, 4, 20, 5), np.float16)}, ["holds 11 pictures, the stimulus table names 12 for train"]),
        ({"eeg": np.zeros((12, 4, 19, 5), np.float16)}, ["must name 19 channels"]),
        ({"eeg": np.zeros((12, 4, 20, 9), np.float16)}, ["at least 9 samples", "(8,)"]),
        ({"eeg": np.zeros((12, 3, 20, 5), np.float16)}, ["session must be (12, 3), found (12, 4)"]),
        ({"eeg": np.zeros((12, 20, 5), np.float16)}, ["(images, repetitions, channels, times)", "(12, 20, 5)"]),
        ({"eeg": np.zeros((12, 4, 20, 5), int)}, ["floating point", "int64"]),
        ({"eeg": [1.0]}, ["floating point", "a list"]),
        ({"eeg": None}, ["missing eeg", "found label, img"]),
        ({"times": None}, ["missing times"]),
        ({"times": np.zeros(8)}, ["equally far apart"]),
        ({"times": np.array([*range(7), 9.0])}, ["equally far apart", "1 to 3 s"]),
        ({"times": np.arange(8)}, ["seconds", "int64"]),
        ({"times": "now"}, ["seconds"]),
        ({"ch_names": [3] * 20}, ["ch_names must name 20 channels"]),
        ({"ch_names": [*format.CHANNELS[:-1], "Iz"]}, ["differ in their channels or times"]),
        ({"times": np.arange(8) / 100}, ["differ in their channels or times"]),
        ({"session": np.zeros(12)}, ["session must be a number for each repetition"]),
        ({"session": np.full((12, 4), np.nan)}, ["session must be a number for each repetition"]),
        ({"img": IMAGES}, ["img names wok_01s, which the stimulus table lacks"]),
        ({"img": IMAGES[:0]}, ["img names others in their order"]),
        ({"img": [1]}, ["img must be the file of each repetition"]),
    ],
)
def test_other_content_of_whitened_files_is_refused(root: Path, changes: dict[str, Any], expected: list[str]) -> None:
    format.write(root)
    path = root / format.FOLDERS["whitened"] / "sub-02" / "train.pt"
    change(path, **changes)
    message = refused(root)
    for part in (str(path), *expected):
        assert part in message


@pytest.mark.parametrize("layout", LAYOUTS)
def test_trials_of_another_table_are_refused(root: Path, layout: format.Layout) -> None:
    format.write(root, layout)
    format.write_table(root / "image_set", format.experiment(test=5))
    message = refused(root)
    assert "4 pictures, the stimulus table names 5 for test" in message
    assert FILES[layout]["test"] in message


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("{", "cannot read"),
        ("[]", "missing train_img_concepts"),
        ("{}", "missing train_img_concepts"),
        ({"train_img_files": [1] * 12}, "train_img_concepts and train_img_files must be lists of text"),
        ({"train_img_files": ["a.jpg"]}, "of one length"),
        ({"test_img_files": [], "test_img_concepts": []}, "must be lists of text"),
        ({"train_img_files": ["../../secret.jpg"] * 12}, "'../../secret.jpg' is no name of a folder or file"),
        ({"test_img_concepts": ["/root"] * 4}, "'/root' is no name"),
        ({"train_img_files": ["wok_01s.jpg"] * 12}, "stand twice|stimulus without image"),
    ],
)
def test_other_tables_are_refused(root: Path, table: Any, expected: str) -> None:
    content = format.write(root, "arrays")
    (root / "image_set" / "image_metadata.npy").unlink()
    format.write_table(root / "image_set", content, suffix="json")
    path = root / "image_set" / "image_metadata.json"
    path.write_text(table if isinstance(table, str) else json.dumps(json.loads(path.read_text()) | table))
    message = refused(root)
    assert any(part in message for part in expected.split("|")), message


def test_without_a_table_or_pictures_the_message_says_where_they_belong(root: Path) -> None:
    format.write(root, "arrays")
    (root / "image_set" / "image_metadata.npy").unlink()
    assert "no stimulus table" in refused(root)
    assert "osf.io/y63gw" in refused(root)
    shutil.rmtree(root / "preprocessed_eeg")
    content = format.write(root)
    shutil.rmtree(root / "image_set" / "training_images")
    for part in ("no pictures", "training_images", "train_images", "osf.io/y63gw", "--data.init_args.images"):
        assert part in refused(root)
    format.write_pictures(root / "image_set", content)
    (root / "image_set" / "test_images" / content.test_names[2][0] / content.test_names[2][1]).unlink()
    assert "stimulus without image" in refused(root)


@pytest.mark.parametrize("info", ["{", "[]", '{"ch_names": []}', '{"times": [], "ch_names": ["Oz"]}', None])
def test_other_info_is_refused(root: Path, info: str | None) -> None:
    format.write(root, "arrays")
    path = root / "preprocessed_eeg" / "info.json"
    path.unlink()
    if info is not None:
        path.write_text(info)
    assert str(path) in refused(root)


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_truncated_files_are_refused(root: Path, layout: format.Layout, share: float) -> None:
    format.write(root, layout)
    path = root / format.FOLDERS[layout] / "sub-02" / FILES[layout]["train"]
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert f"cannot read {path}" in refused(root)


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("key", ["eeg", "ch_names", "times", "session", "label", "else"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_code_in_a_file_is_never_executed(root: Path, layout: format.Layout, key: str) -> None:
    format.write(root, layout)
    marker = root / "marker"
    path = root / format.FOLDERS[layout] / "sub-02" / FILES[layout]["test"]
    if layout == "arrays":
        np.save(path, np.array([Bomb(marker)], object), allow_pickle=True)
    else:
        change(path, **{key: Bomb(marker)})
    assert "never executed" in refused(root)
    assert not marker.exists()
    np.save(root / "image_set" / "image_metadata.npy", {"train_img_files": Bomb(marker)}, allow_pickle=True)  # type: ignore[arg-type]
    assert "never executed" in refused(root)
    assert not marker.exists()
