"""Recordings in formats that MNE reads: their formats, files and people, and what cannot be read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts import DataError
from datamodules import EpochOptions, MEGRecordings
from tests.datamodules.contract import leftovers
from tests.datamodules.sensor_recordings import one_file, recordings, refused
from tests.formats import sensor_recordings as format

# ---- formats -------------------------------------------------------------------------------------


def test_formats_give_the_same_trials(tmp_path: Path) -> None:
    format.write(tmp_path, people=1, runs=1)
    format.write_eeglab(tmp_path / "a" / "one.set")
    format.write_brainvision(tmp_path / "a" / "two.vhdr")
    expected = recordings(tmp_path).store
    for name, prefix in (("one.set", ""), ("two.vhdr", "Stimulus/")):
        events = {f"{prefix}{event}": event for event in format.EVENTS}
        found = one_file(tmp_path / "a", name, events=events).store
        assert [events[event] for event in found.trials["stimulus"]] == expected.trials["stimulus"].tolist()
        np.testing.assert_allclose(found.signals("01"), expected.signals("01"), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ["x-epo.fif", "x_epo.fif.gz"])
def test_files_that_are_already_cut(tmp_path: Path, name: str) -> None:
    made = format.write_epochs(tmp_path / name)
    data = one_file(tmp_path, name, start=-0.2, end=0.5, baseline=(-0.1, 0.0))
    expected = made.copy().crop(-0.2, 0.49).apply_baseline((-0.1, 0.0), verbose="error").get_data()
    np.testing.assert_allclose(data.store.signals("01"), expected, rtol=1e-5, atol=1e-12)
    there = {code: event for event, code in made.event_id.items()}
    assert data.store.trials["stimulus"].tolist() == [there[code] for code in made.events[:, 2]]
    faces = one_file(tmp_path, name, start=-0.2, end=0.5, events={"face": "face"}).store
    assert len(faces.trials) == len(made["face"])
    refused(one_file(tmp_path, name, start=-0.5, end=0.5), "its epochs span -0.3 to 0.9 s, asked for -0.5 to 0.5 s")
    refused(one_file(tmp_path, name, start=-0.2, end=1.0), "its epochs span -0.3 to 0.9 s, asked for -0.2 to 1 s")
    refused(one_file(tmp_path, name, band_pass=(1.0, 20.0)), "already cut", "band_pass")
    refused(one_file(tmp_path, name, every=1.0), "already cut", "every")


def test_magnetometers_and_gradiometers_are_told_apart(tmp_path: Path) -> None:
    mags, grads = (format.raw(kind=kind, names=names) for kind, names in (("mag", ("M1", "M2")), ("grad", ("G1",))))
    both = mags.add_channels([grads], force_update_info=True)
    both.save(tmp_path / "x_raw.fif", verbose="error")
    content = np.float32(both.get_data())
    for sensors, names in (("mag", ["M1", "M2"]), ("grad", ["G1"])):
        data = MEGRecordings(
            str(tmp_path), sensors=sensors, files={"01": ["x_raw.fif"]}, stores=str(tmp_path / "stores")
        )
        axes = data.store.axes("01")
        assert axes.channels == names
        rows = [both.ch_names.index(name) for name in names]
        np.testing.assert_array_equal(data.store.signals("01")[0], content[rows, 80:180])
        # from the device to the head: 5 cm up
        np.testing.assert_allclose(axes.positions, [[0.01 * i, 0, 0.15] for i in range(len(names))], atol=1e-7)
    refused(one_file(tmp_path, "x_raw.fif"), "no eeg channel", "2 mag", "1 grad", "init_args.sensors")


def test_channels_may_be_chosen_and_bad_ones_are_left_out(tmp_path: Path) -> None:
    made = format.raw()
    made.info["bads"] = ["Cz"]
    made.save(tmp_path / "x_raw.fif", verbose="error")
    assert one_file(tmp_path, "x_raw.fif").store.axes("01").channels == ["Fz", "Pz", "Oz"]
    store = one_file(tmp_path, "x_raw.fif", channels=["Oz", "Cz"]).store
    assert store.axes("01").channels == ["Oz", "Cz"]
    np.testing.assert_array_equal(store.signals("01")[0], np.float32(made.get_data())[[3, 1], 80:180])
    refused(one_file(tmp_path, "x_raw.fif", channels=["Oz", "A1"]), "no eeg channel A1", "4 eeg")


def test_unknown_positions(tmp_path: Path) -> None:
    made = format.raw().set_montage(None)
    made.save(tmp_path / "x_raw.fif", verbose="error")
    assert one_file(tmp_path, "x_raw.fif").store.axes("01").positions is None


# ---- files and people ------------------------------------------------------------------------------


def test_sessions_and_runs_by_name(tmp_path: Path) -> None:
    for session in ("a", "b"):
        folder = tmp_path / "sub-anna" / f"ses-{session}" / "eeg"
        folder.mkdir(parents=True)
        for run in ("02", "10"):
            format.raw(seconds=10).save(folder / f"sub-anna_ses-{session}_run-{run}_eeg.fif", verbose="error")
    trials = recordings(tmp_path, files="sub-*/ses-*/eeg/*.fif").store.trials
    assert trials["subject"].unique().tolist() == ["anna"]
    assert list(trials.groupby(["session", "run"], sort=False).groups) == [
        ("a", "02"),
        ("a", "10"),
        ("b", "02"),
        ("b", "10"),
    ]


def test_people_of_other_channels_or_rates(tmp_path: Path) -> None:
    format.write(tmp_path, runs=1)
    format.raw(names=("Fz", "Cz", "Pz", "O2")).save(
        tmp_path / "sub-02" / "sub-02_run-1_raw.fif", overwrite=True, verbose="error"
    )
    refused(recordings(tmp_path), "sub-02_run-1_raw.fif", "O2 more, Oz less", "init_args.channels")
    assert recordings(tmp_path, channels=["Fz", "Pz"]).store.subjects == ["01", "02"]
    format.raw(names=("Fz", "Cz", "Oz", "Pz")).save(
        tmp_path / "sub-02" / "sub-02_run-1_raw.fif", overwrite=True, verbose="error"
    )
    refused(recordings(tmp_path), "none more, none less, but in another order")
    format.raw(rate=200.0).save(tmp_path / "sub-02" / "sub-02_run-1_raw.fif", overwrite=True, verbose="error")
    refused(recordings(tmp_path), "200 Hz, the first file has 100 Hz", "epochs.sampling_rate")
    data = recordings(tmp_path, sampling_rate=100.0)
    assert data.store.signals("02").shape[1:] == data.store.signals("01").shape[1:]


def test_pictures_that_are_missing_or_make_no_sense(tmp_path: Path) -> None:
    format.write(tmp_path, people=1, runs=1)
    format.write_pictures(tmp_path / "pictures", ("face", "house"))
    refused(recordings(tmp_path, pictures="pictures"), "has no picture of cat", "found face, house")
    for options in ({"stimulus": "trial"}, {"every": 1.0}):
        with pytest.raises(DataError, match="pictures belong to events"):
            recordings(tmp_path, pictures="pictures", **options)


# ---- bad input -----------------------------------------------------------------------------------


def test_events_that_are_not_there(tmp_path: Path) -> None:
    format.write(tmp_path, people=1, runs=1)
    there = ", ".join(dict.fromkeys(name for _, name in format.marks()))
    refused(recordings(tmp_path, events={"dog": "dog"}), "no event dog", f"its events are {there}", "init_args.events")
    refused(recordings(tmp_path, events={"dog": "dog", "cat": "cat"}), "no file has an event dog; found cat")
    refused(recordings(tmp_path, stim_channel="STI 001"), "no channel 'STI 001'", "its stim channels are none")
    made = format.raw()
    made.set_annotations(None)
    made.save(tmp_path / "x_raw.fif", verbose="error")
    refused(one_file(tmp_path, "x_raw.fif"), "no event at all; its events are none", "epochs.every")


def test_no_files(tmp_path: Path) -> None:
    refused(recordings(tmp_path), "no sub-*/**/*.fif in", "init_args.files")
    refused(recordings(tmp_path, files={}), "no files are named")
    refused(recordings(tmp_path, files={"01": []}), "no files are named")
    refused(one_file(tmp_path, "x_raw.fif"), "no file", "x_raw.fif")
    format.write(tmp_path, people=1, runs=1)
    (tmp_path / "sub-01").rename(tmp_path / "person")
    path = next((tmp_path / "person").iterdir())
    path.rename(path.with_name("run-1_raw.fif"))
    refused(recordings(tmp_path, files="*/*.fif"), "no sub-... in its name")


def test_files_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "x.fif").write_bytes(b"not a recording at all")
    (tmp_path / "x.set").write_bytes(b"not a recording at all")
    (tmp_path / "x.csv").write_text("1,2,3\n")
    for name in ("x.fif", "x.set", "x.csv"):
        refused(one_file(tmp_path, name), "cannot read", name)


def test_missing_and_truncated_fdt(tmp_path: Path) -> None:
    format.write_eeglab(tmp_path / "x.set")
    data = tmp_path / "x.fdt"
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    refused(one_file(tmp_path, "x.set"), "x.set", "truncated")
    data.unlink()
    refused(one_file(tmp_path, "x.set"), "x.set", ".fdt")


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_truncated_fif(tmp_path: Path, share: float) -> None:
    format.write(tmp_path, people=1, runs=1)
    [path] = (tmp_path / "sub-01").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError):
        recordings(tmp_path).store  # noqa: B018
    assert not leftovers(tmp_path / "stores")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"band_pass": (0.01, 20.0)}, ["a filter of epochs.band_pass=[0.01, 20.0] is", "the recording 40 s"]),
        ({"band_pass": (1.0, 60.0)}, ["epochs.band_pass=[1.0, 60.0] at 100 Hz"]),
        ({"start": 0.1, "end": 0.104}, ["hold no sample at 100 Hz"]),
    ],
)
def test_options_that_do_not_fit_the_recording(tmp_path: Path, options: dict[str, Any], expected: list[str]) -> None:
    format.write(tmp_path, people=1, runs=1)
    refused(recordings(tmp_path, **options), *expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0.5, "end": 0.5}, "epochs.start must lie before epochs.end"),
        ({"baseline": (-0.3, 0.0)}, "epochs.baseline must lie within the epoch, -0.2 to 0.8 s"),
        ({"baseline": (0.1, 0.0)}, "epochs.baseline must lie within"),
        ({"every": 0.0}, "epochs.every must be positive, found 0.0"),
        ({"sampling_rate": -1.0}, "epochs.sampling_rate must be positive"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        EpochOptions(**options)
