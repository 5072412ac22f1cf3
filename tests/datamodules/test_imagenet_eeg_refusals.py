"""What ``ImageNetEEG`` refuses: other files than the published ones, and impossible options."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from contracts import DataError
from datamodules import ImageNetEEG, SampleOptions
from tests.datamodules.contract import everything
from tests.datamodules.test_imagenet_eeg import refused, without_images
from tests.formats import imagenet_eeg as format


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


FILES = pytest.mark.parametrize("file", ["eeg_14_70_std.pth", format.ALL])
LEGACY = pytest.mark.parametrize("legacy", [True, False], ids=["before-1.6", "zip"])


@FILES
@LEGACY
def test_code_in_a_file_is_told_and_never_executed(root: Path, file: str, legacy: bool) -> None:
    content = format.write(root, images=None)
    marker = root / "marker"
    whole = content.content if file.startswith("eeg") else {"splits": [content.split]}
    format.save(root / file, {**whole, "more": Bomb(marker)}, legacy=legacy)
    message = refused(root)
    for part in (f"cannot read {root / file}", "holds code", "mkdir", "never executed"):
        assert part in message
    assert "weights_only" not in message, "what torch recommends would run it"
    assert not marker.exists()


@FILES
@LEGACY
@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.99])
def test_truncated_files_are_refused(root: Path, file: str, legacy: bool, share: float) -> None:
    format.write(root, images=None, legacy=legacy)
    content = (root / file).read_bytes()
    (root / file).write_bytes(content[: int(share * len(content))])
    message = refused(root)
    assert f"cannot read {root / file}" in message
    assert "truncated" in message
    assert "holds code" not in message


@FILES
def test_missing_files_are_told_with_their_address(root: Path, file: str) -> None:
    format.write(root, images=None)
    (root / file).unlink()
    message = refused(root)
    for part in (f"no file {root / file}", format.SINGLE, "github.com/perceivelab", "--data.init_args.root"):
        assert part in message
    assert "no such folder" in refused(root / "absent")


def first_entry(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["dataset"][0] |= changes

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (first_entry(image=24), ["entry 0: image is 24", "24 names", "counted from 0"]),
        (first_entry(image=-1), ["entry 0: image is -1"]),
        (first_entry(image=0.5), ["entry 0: image must be an integer", "0.5"]),
        (first_entry(label=3), ["entry 0: label is 3", "3 synsets"]),
        (first_entry(label=1), ["entry 0", "photograph is n02951358_", "class n02950349", "another list"]),
        (first_entry(subject=0), ["entry 0: subject is 0", "6 people, counted from 1"]),
        (first_entry(subject=7), ["entry 0: subject is 7"]),
        (first_entry(subject="one"), ["entry 0: subject must be an integer", "'one'"]),
        (first_entry(eeg=torch.zeros(96, 500)), ["entry 0: eeg", "128 channels", "(96, 500)"]),
        (first_entry(eeg=torch.zeros(500, 128)), ["128 channels", "(500, 128)"]),
        (first_entry(eeg=torch.zeros(1, 128, 500)), ["(1, 128, 500)"]),
        (first_entry(eeg=torch.zeros(128, 500, dtype=torch.complex64)), ["complex64"]),
        (first_entry(eeg=[0.0]), ["128 channels", "found list"]),
        (lambda content: content["dataset"][5].pop("label"), ["entry 5 lacks label"]),
        (lambda content: content["dataset"].insert(2, 3), ["entry 2 lacks eeg, image, label, subject"]),
        (lambda content: content["images"].__setitem__(3, "../secret"), ["images must be names", "'../secret'"]),
        (lambda content: content["images"].__setitem__(3, 7), ["images must be names", "found 7"]),
        (lambda content: content["labels"].__setitem__(0, "cat"), ["labels must be names", "'cat'"]),
        (lambda content: content.pop("labels"), ["lists dataset, images, labels", "['dataset', 'images']"]),
        (lambda content: content.update(dataset={}), ["lists dataset, images, labels"]),
    ],
)
def test_other_recordings_are_refused(root: Path, change: Callable[[dict[str, Any]], Any], expected: list[str]) -> None:
    content = format.write(root, images=None).content
    change(content)
    format.save(root / "eeg_14_70_std.pth", content)
    message = refused(root)
    for part in ("eeg_14_70_std.pth", *expected):
        assert part in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"splits": [{"train": [0, 48], "val": [], "test": [1]}]}, ["train is 48", "48 entries, counted from 0"]),
        ({"splits": [{"train": [0], "val": [-1], "test": [1]}]}, ["val is -1"]),
        ({"splits": [{"train": [0], "val": ["1"], "test": [1]}]}, ["val must be an integer", "'1'"]),
        ({"splits": [{"train": [0, 0], "val": [], "test": [1]}]}, ["entry 0 twice, in train and train"]),
        ({"splits": [{"train": [0], "val": [], "test": [1, 0]}]}, ["entry 0 twice, in train and test"]),
        ({"splits": [{"train": [0], "test": [1]}]}, ["lacks the list 'val'", "found train, test"]),
        ({"splits": [[0]]}, ["the list splits, of dicts"]),
        ({"split": []}, ["the list splits"]),
        ([0], ["the list splits"]),
        ({"splits": []}, ["has 0 splits", "--data.init_args.split_number"]),
        ({"splits": [{"train": [], "val": [], "test": []}]}, ["none of the 48 entries", "names 0 of them"]),
    ],
)
def test_other_splits_are_refused(root: Path, content: Any, expected: list[str]) -> None:
    format.write(root, images=None)
    format.save(root / format.ALL, content)
    message = refused(root)
    for part in expected:
        assert part in message


@pytest.mark.parametrize("band_pass", [None, (14.0, 70.0)])
def test_segments_with_nan_are_refused_unless_their_features_are_zeroed(root: Path, band_pass: Any) -> None:
    content = format.write(root, band="raw", images=None, dtype=torch.float32)
    content.entries[-1]["eeg"][7, 100] = torch.nan
    format.save(root / format.RAW, content.content)
    with pytest.raises(DataError, match=r"sub-2: \d+ of 56320 features hold NaN"):
        without_images(root, band="raw", band_pass=band_pass).layout  # noqa: B018
    samples = SampleOptions(normalise="none", average_test=1, bad_features="zero")
    (batch,) = everything(without_images(root, band="raw", band_pass=band_pass, samples=samples), "train")
    assert torch.isfinite(batch["signal"]).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"band": "1_40"}, "band must be one of 5_95, 14_70, 55_95, raw, found '1_40'"),
        ({"band_pass": (14, 70)}, "14_70 is filtered already"),
        ({"band": "raw", "band_pass": (70, 14)}, "0 < low < high < 500 Hz"),
        ({"band": "raw", "band_pass": (0, 14)}, "0 < low < high"),
        ({"band": "raw", "band_pass": (14, 500)}, "0 < low < high"),
        ({"samples_from": 460}, "samples_from=460"),
        ({"samples_from": -1}, "samples_from=-1"),
        ({"samples_to": 601}, "samples_to=601"),
        ({"split_person": "7"}, "split_person must be one of 1, 2, 3, 4, 5, 6, found '7'"),
    ],
)
def test_impossible_options_are_refused_at_once(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError) as raised:
        ImageNetEEG("nowhere", **options)
    assert expected in str(raised.value)


def test_without_any_segment_of_use_the_reason_is_told(root: Path) -> None:
    format.write(root, images=None, lengths=dict.fromkeys(range(48), 430))
    message = refused(root)
    for part in ("none of the 48 entries", "names 48", "48 segments have not 450 to 600 samples", "samples_to"):
        assert part in message


@pytest.mark.parametrize("number", [-1, 1])
def test_a_split_that_the_file_has_not_is_refused(root: Path, number: int) -> None:
    format.write(root, images=None)
    assert f"has 1 splits, counted from 0, found {number}" in refused(root, split_number=number)


def test_split_of_all_people_does_not_fit_the_entries_of_one(root: Path) -> None:
    format.write(root, images=None)
    assert "there are 24 entries" in refused(root, split_person="1")
