import hashlib
import json
import resource
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from contracts import DataError
from datamodules import EmbeddingOptions, SignalAxes, SplitOptions, Stimuli, Trials
from datamodules.core.store import BrainStore, write_store
from tests.formats.recording import Recording, change, experiment, pictures

Array = np.ndarray[Any, Any]
ABOUT = {"licence": "made up", "citation": "none", "units": "V"}


def write(folder: Path, records: Sequence[Any], *, modality: Any = "fmri") -> BrainStore:
    write_store(folder / "store", records, root=folder, name="made-up", modality=modality, about=ABOUT)
    return BrainStore(folder / "store", folder)


def trials_of(records: Sequence[Any]) -> list[Trials]:
    return [record for record in records if isinstance(record, Trials)]


# ---- round trip -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_signals_come_back_in_the_stored_precision(tmp_path: Path, dtype: str) -> None:
    records = experiment({"01": (12,), "02": (9,)}, dtype=dtype, offset=10)
    store = write(tmp_path, records)
    assert store.subjects == ["01", "02"]
    for name in store.subjects:
        expected = np.concatenate([trials.signal for trials in trials_of(records) if trials.subject == name])
        found = store.signals(name)
        assert found.dtype == (np.float16 if dtype == "float16" else np.float32)
        np.testing.assert_array_equal(found, expected.astype(found.dtype))


def test_tables_come_back(tmp_path: Path) -> None:
    records = experiment({"01": (12,), "02": (9,)}, runs=2)
    store = write(tmp_path, records)
    stimuli = next(record for record in records if isinstance(record, Stimuli))
    assert store.stimuli["id"].tolist() == list(stimuli.id)
    assert store.stimuli["class"].tolist() == list(stimuli.label)
    assert store.stimuli["caption"].tolist() == list(stimuli.caption)
    expected = [
        (trials.subject, trials.session, trials.run, stimulus, split)
        for trials in trials_of(records)
        for stimulus, split in zip(trials.stimulus, trials.split, strict=True)
    ]
    found = store.trials[["subject", "session", "run", "stimulus", "split"]].itertuples(index=False, name=None)
    assert list(found) == expected
    for name, signals in ((name, store.signals(name)) for name in store.subjects):
        assert store.trials["index"][store.trials["subject"] == name].tolist() == list(range(len(signals)))
    repetitions = store.trials.groupby(["subject", "stimulus"])["repetition"].apply(list)
    assert all(numbers == list(range(len(numbers))) for numbers in repetitions)
    assert store.modality == "fmri"
    assert {key: store.description[key] for key in ABOUT} == ABOUT
    for name in store.subjects:
        file = store.folder / f"sub-{name}_signals.npy"
        assert hashlib.sha256(np.load(file).tobytes()).hexdigest() == store.description["checksums"][file.name]


@pytest.mark.parametrize("text", ["nan", "NA", "", "007", "1e3", 'a "b"', "tab\there", "line\nbreak", "é 猫", " x "])
def test_text_survives_the_tables(tmp_path: Path, text: str) -> None:
    records = experiment({"01": (3,)}, classes=1, train=2, test=1, sessions=1)
    names = [f"{text}{number}" for number in range(3)]
    old = next(record for record in records if isinstance(record, Stimuli)).id
    new = dict(zip(old, names, strict=True))
    records = change(records, Stimuli, id=names, label=[text] * 3, caption=[text] * 3)
    records = change(records, Trials, stimulus=[new[name] for name in trials_of(records)[0].stimulus])
    store = write(tmp_path, change(records, Trials, session=text, run=text))
    assert store.stimuli["id"].tolist() == names
    assert set(store.stimuli["class"]) == set(store.stimuli["caption"]) == {text}
    assert set(store.trials["session"]) == set(store.trials["run"]) == {text}


def test_axes_come_back(tmp_path: Path) -> None:
    records = experiment({"01": (12,)})
    axes = next(record for record in records if isinstance(record, SignalAxes))
    found = write(tmp_path, records).axes("01")
    assert found.rois == axes.rois
    assert axes.ncsnr is not None
    np.testing.assert_array_equal(found.ncsnr, axes.ncsnr)
    assert found.positions is None


def test_sensors_may_be_shared_by_all_people(tmp_path: Path) -> None:
    records = experiment({"01": (4, 5), "02": (4, 5)})
    axes = [record for record in records if isinstance(record, SignalAxes)]
    rest = [record for record in records if not isinstance(record, SignalAxes)]
    store = write(tmp_path, [*rest, replace(axes[0], subject=None)], modality="eeg")
    for name in store.subjects:
        found = store.axes(name)
        assert list(found.channels) == list(axes[0].channels)
        assert axes[0].positions is not None
        np.testing.assert_array_equal(found.positions, axes[0].positions)
        assert (found.sampling_rate, found.start) == (100.0, -0.1)


def test_pictures_come_back_from_arrays_and_from_files(tmp_path: Path) -> None:
    expected = pictures(28)
    grey = expected.mean(axis=3).astype(np.uint8)
    for kind, images in (("colour", "colour"), ("grey", "grey"), ("files", tmp_path / "files" / "pictures")):
        store = write(tmp_path / kind, experiment({"01": (3,)}, images=images))  # type: ignore[arg-type]
        assert len(store.stimuli) == 28
        for number in (0, 13, 27):
            image = store.image(number)
            assert image.shape == (12, 12, 3)
            assert image.dtype == np.uint8
            same = np.repeat(grey[number][..., None], 3, axis=2) if kind == "grey" else expected[number]
            np.testing.assert_array_equal(image, same)
    stimuli = BrainStore(tmp_path / "files" / "store", tmp_path / "files").stimuli
    assert stimuli["image"].iloc[0] == "pictures/picture-000.png", "recorded relative to the raw folder"
    file = tmp_path / "files" / "pictures" / "picture-003.png"
    assert stimuli["sha256"].iloc[3] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_store_with_picture_files_moves_with_its_raw_folder(tmp_path: Path) -> None:
    write(tmp_path / "here", experiment({"01": (3,)}, images=tmp_path / "here" / "pictures"))
    (tmp_path / "here").rename(tmp_path / "there")
    store = BrainStore(tmp_path / "there" / "store", tmp_path / "there")
    np.testing.assert_array_equal(store.image(5), pictures(28)[5])


def test_several_tables_of_pictures_are_one(tmp_path: Path) -> None:
    records = experiment({"01": (3,)})
    stimuli = next(record for record in records if isinstance(record, Stimuli))
    parts = [
        Stimuli(stimuli.id[part], stimuli.image[part], stimuli.label[part], stimuli.caption[part])
        for part in (slice(0, 10), slice(10, None))
    ]
    store = write(tmp_path, [parts[0], *records[1:], parts[1]])
    for number in (0, 9, 10, 27):
        np.testing.assert_array_equal(store.image(number), pictures(28)[number])


def test_many_small_blocks_give_the_bytes_of_one(tmp_path: Path) -> None:
    records = experiment({"01": (12,), "02": (9,)}, sessions=1)
    whole = write(tmp_path / "whole", records)
    blocks: list[Any] = [record for record in records if not isinstance(record, Trials)]
    queues = [
        [replace(t, signal=t.signal[i : i + 7], stimulus=t.stimulus[i : i + 7], split=t.split[i : i + 7])
         for i in range(0, len(t.signal), 7)]
        for t in trials_of(records)
    ]  # fmt: skip
    # blocks of the two people in turn
    for pair in zip(*queues, strict=True):
        blocks += pair
    parts = write(tmp_path / "parts", blocks)
    assert parts.description == whole.description
    for name in whole.description["sizes"]:
        assert (parts.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name


# ---- opening ----------------------------------------------------------------------------------------


def test_opening_maps_the_signals_and_reads_none(tmp_path: Path) -> None:
    store = write(tmp_path, experiment({"01": (12,)}))
    # a gigabyte of holes in the place of the signals
    shape = (2**16, 2**12)
    file = store.folder / "sub-01_signals.npy"
    with file.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"shape": shape, "fortran_order": False, "descr": "<f4"})
        stream.truncate(stream.tell() + 4 * shape[0] * shape[1])
    description = store.description | {"sizes": store.description["sizes"] | {file.name: file.stat().st_size}}
    (store.folder / "dataset_description.json").write_text(json.dumps(description))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signals = BrainStore(store.folder, tmp_path).signals("01")
    assert isinstance(signals, np.memmap)
    assert signals.shape == shape
    assert (signals[-1] == 0).all()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 100, f"opening took {grown:.0f} MB"
    with pytest.raises(ValueError, match="read-only"):
        signals[0, 0] = 1


def test_what_is_not_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.txt").touch()
    with pytest.raises(DataError, match=r"no file .*dataset_description\.json; the folder .* holds: other\.txt"):
        BrainStore(tmp_path, tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1, 2", "{}", '{"format_version": 0}', '{"format_version": 99}'])
def test_damaged_or_foreign_descriptions_are_refused(tmp_path: Path, content: str) -> None:
    folder = write(tmp_path, experiment({"01": (3,)})).folder
    (folder / "dataset_description.json").write_text(content)
    with pytest.raises(DataError, match=r"damaged|format version (None|0|99), this program reads 1") as raised:
        BrainStore(folder, tmp_path)
    assert str(folder) in str(raised.value)
    assert "delete the folder" in str(raised.value)
    assert (folder / "sub-01_signals.npy").exists()


@pytest.mark.parametrize("name", ["sub-01_signals.npy", "stimuli.tsv", "trials.tsv", "stimuli-00.npy"])
def test_files_of_another_size_are_refused(tmp_path: Path, name: str) -> None:
    store = write(tmp_path, experiment({"01": (3,)}))
    file, size = store.folder / name, (store.folder / name).stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{name}: expected {size} bytes, found {size - 1}; delete the folder"):
        BrainStore(store.folder, tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=rf"{name}: expected {size} bytes, found None"):
        BrainStore(store.folder, tmp_path)


def test_a_picture_file_that_is_gone_is_named(tmp_path: Path) -> None:
    store = write(tmp_path, experiment({"01": (3,)}, images=tmp_path / "pictures"))
    (tmp_path / "pictures" / "picture-004.png").unlink()
    with pytest.raises(DataError, match=r"no file .*picture-004\.png"):
        store.image(4)


# ---- equal pictures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [False, True])
def test_equal_pictures_under_two_ids_are_one_stimulus(tmp_path: Path, files: bool) -> None:
    records = experiment({"01": (12,)}, images=tmp_path / "raw" / "pictures" if files else "colour")
    if files:
        twin = (tmp_path / "raw" / "pictures" / "picture-000.png").read_bytes()
        (tmp_path / "raw" / "pictures" / "picture-003.png").write_bytes(twin)
    else:
        image = pictures(28)
        image[3] = image[0]
        records = change(records, Stimuli, image=image)
    data = Recording(
        str(tmp_path / "raw"),
        records,
        stores=str(tmp_path / "stores"),
        embedding=EmbeddingOptions(image_size=4),
    )
    numbers = data.store.trials.groupby("stimulus")["number"].unique()
    assert numbers["picture-000"].tolist() == numbers["picture-003"].tolist() == [0]
    assert data.store.trials["number"].nunique() == 27
    # averaged together, shown once in the gallery, on one side of every division
    assert data.prepared["01"].stimulus["train"].tolist().count(0) in (0, 4)
    assert len(data.score_context("test").galleries["all"].stimulus) == 27
    for seed in range(4):
        divided = Recording(
            str(tmp_path / "raw"), records, stores=str(tmp_path / "stores"), split=SplitOptions(folds=4, seed=seed)
        )
        twins = divided.trials[divided.trials["stimulus"].isin(["picture-000", "picture-003"])]
        assert twins["side"].nunique() == 1


def test_the_same_picture_in_training_and_test_is_an_overlap(tmp_path: Path) -> None:
    image = pictures(28)
    image[6] = image[0]  # 5 and 6 of every seven are test pictures
    records = change(experiment({"01": (12,)}), Stimuli, image=image)
    data = Recording(str(tmp_path), records, stores=str(tmp_path / "stores"))
    with pytest.raises(DataError, match=r"train/test overlap: 1 stimulus.*equal pictures count as one"):
        data.trials  # noqa: B018


# ---- records that do not fit together ---------------------------------------------------------------

SMALL = experiment({"01": (12,)}, sessions=1)
TRIALS = trials_of(SMALL)[0]


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([], ["0 subjects", "0 stimulus tables"]),
        (SMALL[:2], ["0 subjects", "1 stimulus tables"]),
        (SMALL[1:], ["1 subjects", "0 stimulus tables"]),
        (change(SMALL, Trials, stimulus=TRIALS.stimulus[1:]), ["sub-01", "64 trials", "63", "'stimulus'"]),
        (change(SMALL, Trials, split=["train"] * 3), ["sub-01", "64 trials", "3 entries", "'split'"]),
        (change(SMALL, Trials, split="validation"), ["train, test", "'validation'"]),
        (change(SMALL, Trials, stimulus=["ghost", *TRIALS.stimulus[1:]]), ["stimulus without image", "'ghost'", "28"]),
        (change(SMALL, Stimuli, id=["twin"] * 28), ["27 ids", "'twin'", "unique"]),
        (change(SMALL, Stimuli, label=["a"] * 27), ["28 ids", "27 entries", "'label'"]),
        (change(SMALL, Stimuli, caption=["a"]), ["28 ids", "1 entries", "'caption'"]),
        (change(SMALL, Stimuli, image=pictures(27)), ["28 ids", "27 entries", "'image'"]),
        (change(SMALL, SignalAxes, rois={"V1": 5}), ["sub-01", "add up to 5", "12"]),
        (change(SMALL, SignalAxes, channels=["a"]), ["sub-01", "1 channel names", "12"]),
        (change(SMALL, SignalAxes, positions=np.zeros((3, 3))), ["sub-01", "(12, 3)", "(3, 3)"]),
        (change(SMALL, SignalAxes, ncsnr=np.ones(3)), ["sub-01", "ncsnr", "(12,)", "(3,)"]),
        ([*SMALL, replace(TRIALS, signal=TRIALS.signal[:, :11])], ["sub-01", "(11,)", "(12,)"]),
        ([*SMALL, replace(TRIALS, signal=TRIALS.signal.reshape(-1, 3, 4))], ["sub-01", "(3, 4)", "(12,)"]),
        (
            [*change(SMALL, Trials, signal=TRIALS.signal.astype(np.float16)), TRIALS],
            ["sub-01", "float32", "float16"],
        ),
    ],
)  # fmt: skip
def test_records_that_do_not_fit_are_refused_and_leave_nothing(
    tmp_path: Path, records: list[Any], expected: list[str]
) -> None:
    data = Recording(str(tmp_path / "raw"), records, stores=str(tmp_path / "stores"))
    with pytest.raises(DataError) as raised:
        data.store  # noqa: B018
    for part in expected:
        assert part in str(raised.value)
    assert [path.suffix for path in (tmp_path / "stores").iterdir()] == [".lock"]


def test_picture_files_that_are_missing_are_counted(tmp_path: Path) -> None:
    records = experiment({"01": (3,)}, images=tmp_path / "pictures")
    for number in (4, 9, 27):
        (tmp_path / "pictures" / f"picture-{number:03d}.png").unlink()
    expected = r"stimulus without image: 3 of 28 picture files are missing, .*picture-004\.png.*holds: picture-000"
    with pytest.raises(DataError, match=expected):
        write(tmp_path, records)


def test_a_failed_conversion_leaves_the_store_of_other_options(tmp_path: Path) -> None:
    good = Recording(str(tmp_path), SMALL, stores=str(tmp_path / "stores"))
    before = {path.name: path.read_bytes() for path in good.store.folder.iterdir()}
    bad = Recording(str(tmp_path), SMALL[:1], variant="other", stores=str(tmp_path / "stores"))
    with pytest.raises(DataError):
        bad.store  # noqa: B018
    assert {path.name: path.read_bytes() for path in good.store.folder.iterdir()} == before


def test_pictures_on_disk_are_read_as_colour(tmp_path: Path) -> None:
    Image.fromarray(np.full((5, 7), 99, np.uint8)).save(tmp_path / "grey.png")
    Image.new("P", (7, 5)).save(tmp_path / "palette.png")
    stimuli = Stimuli(["grey", "palette"], [tmp_path / "grey.png", tmp_path / "palette.png"])
    trials = Trials("01", np.zeros((2, 3), np.float32), stimulus=["grey", "palette"])
    store = write(tmp_path, [stimuli, trials])
    assert store.image(0).shape == store.image(1).shape == (5, 7, 3)
    assert (store.image(0) == 99).all()
