"""What ``THINGSMEG`` refuses: files that are missing, damaged, or do not fit together."""

from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest

from contracts import DataError
from datamodules import SampleOptions
from tests.datamodules.contract import everything
from tests.datamodules.things_meg import epochs_of, opened, refused, rewritten
from tests.formats import things_meg as format

# ---- bad input -------------------------------------------------------------------------------------


def test_without_epochs_the_message_says_where_they_belong(root: Path) -> None:
    root.mkdir()
    (root / "preprocessed_P1-epo.txt").touch()
    message = refused(root)
    for part in (str(root), "preprocessed_P1-epo.fif", "found preprocessed_P1-epo.txt", "ds004212", "init_args.root"):
        assert part in message
    assert "no epochs" in refused(root / "absent")


@pytest.mark.parametrize("lost", [-1, 1, 0])
def test_a_missing_part_is_named(root: Path, lost: int) -> None:
    content = format.write(root)
    parts = format.save_epochs(epochs_of(root, 2), content.people[1], parts=5)
    assert len(parts) >= 4
    parts[lost].unlink()
    message = refused(root)
    assert parts[lost].name in message
    assert "which is missing" in message
    assert "ds004212" in message


@pytest.mark.parametrize("number", [0, 1, -1])
@pytest.mark.parametrize("share", [0, 0.02, 0.3, 0.5, 0.7, 0.9, 0.9999])
def test_a_truncated_part_is_named(root: Path, number: int, share: float) -> None:
    content = format.write(root, people=1)
    path = format.save_epochs(epochs_of(root), content.people[0])[number]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    message = refused(root)
    assert f"cannot read {path} ({int(share * len(whole))} bytes)" in message
    assert "truncated" in message


def test_a_part_cut_behind_its_samples_is_not_taken_for_the_last(root: Path) -> None:
    content = format.write(root, people=1)
    first, *_ = format.save_epochs(epochs_of(root), content.people[0])
    whole = first.read_bytes()
    # the tag of the list of dropped epochs (FIFF_MNE_EPOCHS_DROP_LOG) stands right behind the samples
    cut = whole.rindex((3801).to_bytes(4, "big"))
    first.write_bytes(whole[:cut])
    silent = len(mne.read_epochs(first, preload=False, verbose="ERROR"))
    assert silent < len(content.people[0].signal), "MNE itself does not say a word"
    assert f"cannot read {first}" in refused(root)


def test_a_damaged_file_with_a_right_end_is_refused(root: Path) -> None:
    content = format.write(root, people=1)
    path = format.save_epochs(epochs_of(root), content.people[0])[1]
    whole = bytearray(path.read_bytes())
    whole[: len(whole) // 2] = bytes(len(whole) // 2)
    path.write_bytes(whole)
    message = refused(root)
    assert f"cannot read {epochs_of(root)}, or one of its further parts" in message


def test_a_table_of_another_length_is_refused(root: Path) -> None:
    content = format.write(root, people=1, tables=True)
    table = content.people[0].attributes
    file = root / "sample_attributes_P1.csv"
    table.iloc[:-1].to_csv(file, index=False)
    for metadata in (True, False):
        rewritten(root, content, metadata=metadata)
        message = refused(root)
        for part in (f"hold {len(table)} epochs", f"{file} describes {len(table) - 1} trials"):
            assert part in message
    file.write_text("")
    assert f"cannot read {file}" in refused(root)


def test_a_table_in_the_epochs_of_another_length_is_refused(root: Path) -> None:
    content = format.write(root, people=1)
    rewritten(root, content, parts=1)
    path = epochs_of(root)
    whole = path.read_bytes()
    # one entry of the table less, and the length of its text in the file with it
    start = whole.index(b'[{"index"')
    end = whole.index(b"}]", start) + 2
    text = whole[start:end]
    shorter = text[: text.rindex(b",{")] + b"]"
    path.write_bytes(whole[:start] + shorter.ljust(len(text)) + whole[end:])
    message = refused(root)
    assert f"cannot read {path}" in message
    assert "metadata" in message


def test_epochs_without_a_table_are_refused(root: Path) -> None:
    format.write(root, metadata=False)
    message = refused(root)
    for part in (str(epochs_of(root)), "no metadata", "sample_attributes_P1.csv", str(root / "sourcedata")):
        assert part in message


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("trial_type", "practice", ["1 of 47 trials", "exp, test, catch", "trial 20 is 'practice'"]),
        ("trial_type", None, ["1 of 47 trials", "trial 20 is"]),
        ("session_nr", np.nan, ["session_nr of trial 20 is nan", "whole number"]),
        ("run_nr", 1.5, ["run_nr of trial 20 is 1.5", "whole number"]),
        ("image_path", "images_meg/aardvark/aardvark.jpg", ["image_path of trial 20", "aardvark.jpg'", "expected"]),
        ("image_path", None, ["image_path of trial 20"]),
    ],
)
def test_other_entries_of_the_table_are_refused(root: Path, column: str, value: Any, expected: list[str]) -> None:
    content = format.write(root, people=1)
    table = content.people[0].attributes
    table["trial_type"] = table["trial_type"].astype(object)
    table.loc[20, "trial_type"] = "exp"
    table[column] = table[column].astype(object)
    table.loc[20, column] = value
    rewritten(root, content)
    message = refused(root)
    for part in (str(epochs_of(root)), *expected):
        assert part in message


@pytest.mark.parametrize("column", ["trial_type", "image_path", "session_nr", "run_nr"])
def test_a_table_without_a_column_is_refused(root: Path, column: str) -> None:
    content = format.write(root, people=1)
    content.people[0].attributes = content.people[0].attributes.drop(columns=column)
    rewritten(root, content)
    assert f"the table of trials lacks {column}; it has" in refused(root)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"channels": (*format.CHANNELS[:4], "MZP09-1609")}, ["channels", "MZP01-1609", "MZP09-1609"]),
        ({"channels": format.CHANNELS[::-1]}, ["channels"]),
        ({"sampling_rate": 250.0}, ["samples per second", "200.0", "250.0"]),
        ({"first_sample": -1}, ["first sample", "-0.01", "-0.005"]),
    ],
)
def test_people_with_other_sensors_or_times_are_refused(
    root: Path, options: dict[str, Any], expected: list[str]
) -> None:
    content = format.write(root)
    rewritten(root, content, 2, **options)
    message = refused(root)
    for part in (str(epochs_of(root, 1)), str(epochs_of(root, 2)), *expected):
        assert part in message


def test_people_with_fewer_sensors_are_refused(root: Path) -> None:
    content = format.write(root)
    person = content.people[1]
    person.signal, person.positions = person.signal[:, 1:], person.positions[1:]
    rewritten(root, content, 2, channels=format.CHANNELS[1:])
    message = refused(root)
    assert "has 5 (alone in having MLC11-1609)" in message
    assert "has 4;" in message


def test_epochs_without_magnetometers_are_refused(root: Path) -> None:
    content = format.write(root, people=1)
    rewritten(root, content, kind="eeg")
    assert "no magnetometers among 6 channels" in refused(root)


def test_nan_is_refused_where_it_is_used(root: Path) -> None:
    content = format.write(root, people=1)
    person = content.people[0]
    row = int(np.flatnonzero(person.attributes["trial_type"] == "exp")[0])
    person.signal[row, 1, 3] = np.nan
    rewritten(root, content)
    with pytest.raises(DataError, match=r"sub-01: 1 of 40 features hold NaN .* first is 11"):
        opened(root).layout  # noqa: B018
    data = opened(root, samples=SampleOptions(bad_features="zero"))
    assert all((batch["signal"][:, 1, 3] == 0).all() for batch in everything(data, "train"))


def test_missing_photographs_are_told_before_anything_is_read(root: Path) -> None:
    content = format.write(root)
    for name in sorted(content.images)[:2]:
        (root / "Images" / name.rpartition("_")[0] / f"{name}.jpg").unlink()
    message = refused(root)
    assert any(f"{name}.jpg" in message for name in sorted(content.images)[:2])
    message = refused(root, images="photographs")
    for part in (str(root / "photographs"), "<concept>/<file>", "--data.init_args.images"):
        assert part in message
