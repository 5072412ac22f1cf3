import gzip
from pathlib import Path
from typing import Any, ClassVar

import mne
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from contracts import DataError
from datamodules import UCIEEG, BrainDataModule, EmbeddingOptions, SampleOptions, SplitOptions
from tests.datamodules.contract import DataModuleContract, everything, real_root
from tests.datamodules.opening import refused_saying
from tests.datamodules.test_timeseries import ContractWithoutPictures
from tests.formats import uci_eeg as format

Array = np.ndarray[Any, Any]
FILE = f"uci_eeg/{format.ARCHIVE}"
CLASSES = EmbeddingOptions(model="classes")
NAMES = ["first", "matching", "non-matching"]


class TestUCIEEG(DataModuleContract):
    split: ClassVar[SplitOptions] = SplitOptions(folds=3, validation=0.25)

    @classmethod
    def write(cls, root: Path) -> None:
        format.write(root, 2)

    def make(self, root: Path, **options: Any) -> BrainDataModule:
        return UCIEEG(str(root), **options | {"embedding": CLASSES})

    def real(self, stores: Path) -> BrainDataModule:
        return UCIEEG(str(real_root(FILE)), stores=str(stores))

    # a trial stands for a picture
    test_no_picture_on_two_sides = ContractWithoutPictures.test_no_picture_on_two_sides
    test_pictures_come_with_the_batch_where_a_stage_wants_them = (
        ContractWithoutPictures.test_pictures_come_with_the_batch_where_a_stage_wants_them
    )

    def test_embedding_belongs_to_the_picture_that_was_seen(self, root: Path) -> None:
        data = self.open(root)
        assert data.classes == NAMES
        for split in ("train", "validation", "test"):
            for batch in everything(data, split):
                names = data.store.stimuli["class"].iloc[batch["stimulus"].numpy()]
                np.testing.assert_array_equal(batch["embedding"], [[float(n == c) for c in NAMES] for n in names])


def uci(folder: Path, **options: Any) -> UCIEEG:
    usual: dict[str, Any] = {"stores": str(folder / "stores"), "embedding": CLASSES}
    return UCIEEG(str(folder), **usual | options)


def test_archive_and_text_files_give_the_same_trials(tmp_path: Path) -> None:
    format.write(tmp_path, 3)
    format.write_text(tmp_path, 3)
    one, two = uci(tmp_path).store, uci(tmp_path, source="raw").store
    assert one.folder != two.folder
    assert one.subjects == two.subjects == format.people(3)
    assert one.trials.equals(two.trials)
    assert one.stimuli.equals(two.stimuli)
    cap = [i for i, name in enumerate(format.CHANNELS) if name not in ("X", "Y", "nd")]
    for person, name in enumerate(one.subjects):
        numbers, conditions, signal = format.trials(person)
        # text as it stands, the archive in half precision
        assert (one.signals(name).dtype, two.signals(name).dtype) == (np.float16, np.float32)
        np.testing.assert_array_equal(one.signals(name), signal[:, cap].astype(np.float16))
        np.testing.assert_array_equal(two.signals(name), signal[:, cap].astype(np.float32))
        mine = one.trials[one.trials["subject"] == name]
        assert mine["stimulus"].tolist() == [f"{name}_trial-{number:03d}" for number in numbers]
        classes = one.stimuli["class"].iloc[mine["number"]].tolist()
        assert classes == [NAMES[format.NAMES.index(condition)] for condition in conditions]


def test_text_files_may_be_plain_and_in_one_folder(tmp_path: Path) -> None:
    format.write_text(tmp_path, 2)
    expected = uci(tmp_path, source="raw").store
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in (tmp_path / "raw").rglob("*.gz"):
        (flat / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    (flat / "co2a0000364.rd.notes").write_text("not a trial")
    found = uci(tmp_path, source="flat").store
    assert found.trials.equals(expected.trials)
    for name in expected.subjects:
        np.testing.assert_array_equal(found.signals(name), expected.signals(name))


def test_axes(tmp_path: Path) -> None:
    format.write(tmp_path, 1)
    axes = uci(tmp_path).store.axes(format.people(1)[0])
    assert (len(axes.channels), axes.sampling_rate, axes.start) == (61, 256, 0)
    assert axes.channels[:7] == ["Fp1", "Fp2", "F7", "F8", "AF1", "AF2", "Fz"]
    place = dict(zip(axes.channels, np.asarray(axes.positions), strict=True))
    info = mne.create_info(["Cz", "AF3", "PO4"], 256.0, "eeg")
    template = next(n for n in ("colin27_1005", "standard_1005") if n in mne.channels.get_builtin_montages())
    info.set_montage(template)
    for name, channel in zip(("Cz", "AF1", "PO2"), info["chs"], strict=True):
        np.testing.assert_allclose(place[name], channel["loc"][:3], atol=1e-7)
    # head coordinates: x to the right, y to the front, z up
    assert place["T8"][0] > 0.07 > -0.07 > place["T7"][0]
    assert place["Fpz"][1] > 0.07 > -0.07 > place["Oz"][1]
    assert place["Cz"].argmax() == 2
    everything = uci(tmp_path, sites="all").store.axes(format.people(1)[0])
    assert [name.upper() for name in everything.channels] == [name.upper() for name in format.CHANNELS]
    assert everything.positions is None


def test_conditions_may_be_chosen(tmp_path: Path) -> None:
    format.write(tmp_path, 2)
    data = uci(tmp_path, conditions=["matching", "non-matching"])
    assert data.classes == ["matching", "non-matching"]
    assert len(data.store.trials) == 12
    whole = uci(tmp_path).store
    kept = whole.trials[whole.stimuli["class"].iloc[whole.trials["number"]].to_numpy() != "first"]
    assert data.store.trials["stimulus"].tolist() == kept["stimulus"].tolist()
    name = data.store.subjects[1]
    rows = kept[kept["subject"] == name]["index"]
    np.testing.assert_array_equal(data.store.signals(name), whole.signals(name)[rows])


def test_trials_of_a_condition_may_be_averaged(tmp_path: Path) -> None:
    format.write(tmp_path, 4)
    by_subject = SplitOptions(protocol="by_subject", folds=4, fold=1, validation=0.0)
    plain = SampleOptions(normalise="none", average_test=2)
    data = uci(tmp_path, stimulus="condition", split=by_subject, samples=plain)
    assert data.store.stimuli["id"].tolist() == list(dict.fromkeys(data.store.stimuli["class"]))
    assert data.store.trials["repetition"].max() == 2
    [batch] = everything(data, "test")
    [name] = {data.subjects[number] for number in batch["subject"].tolist()}
    assert len(batch["row"]) == 6  # 3 conditions, 2 trials and 1 trial
    trials = data.store.trials[data.store.trials["subject"] == name]
    for label, condition in enumerate(NAMES):
        rows = trials[trials["stimulus"] == condition]["index"].to_numpy()
        signal = np.asarray(data.store.signals(name), np.float32)[rows]
        mine = batch["signal"][batch["label"] == label]
        np.testing.assert_allclose(mine[0], signal[:2].mean(axis=0), atol=1e-4)
        np.testing.assert_allclose(mine[1], signal[2], atol=1e-4)


def test_resampling(tmp_path: Path) -> None:
    format.write(tmp_path, 1)
    [name] = format.people(1)
    # a wave of 5 Hz stays, one of 100 Hz goes
    time = np.arange(256) / 256
    content = format.archive(1)
    content["X"][:] = np.sin(2 * np.pi * 5 * time) + np.sin(2 * np.pi * 100 * time)
    np.savez(tmp_path / format.ARCHIVE, **content)
    store = uci(tmp_path, sampling_rate=64).store
    assert store.axes(name).sampling_rate == 64
    assert store.signals(name).shape[1:] == (61, 64)
    assert store.signals(name).dtype == np.float32
    np.testing.assert_allclose(
        np.asarray(store.signals(name))[:, :, 10:-10],
        np.broadcast_to(np.sin(2 * np.pi * 5 * time)[::4][10:-10], (9, 61, 44)),
        atol=0.02,
    )
    assert uci(tmp_path, sampling_rate=256).store.folder == uci(tmp_path).store.folder
    with pytest.raises(DataError, match=r"256 Hz cannot be resampled to 0\.001 Hz"):
        uci(tmp_path, sampling_rate=0.001)


def test_people_are_left_out(tmp_path: Path) -> None:
    format.write(tmp_path, 4)
    tested = []
    cleaned = SampleOptions(cleaning="zscore_run", cleaning_fit="all", normalise="none")
    for fold in range(4):
        split = SplitOptions(protocol="by_subject", folds=4, fold=fold, validation=0.34)
        data = uci(tmp_path, split=split, samples=cleaned)
        people = {side: set(data.trials["subject"][data.trials["side"] == side]) for side in ("train", "test")}
        assert not people["train"] & people["test"]
        tested += people["test"]
        assert data.layout["transductive"]
        [batch] = everything(data, "test")
        np.testing.assert_allclose(batch["signal"].mean(dim=0), 0, atol=1e-4)
        np.testing.assert_allclose(batch["signal"].std(dim=0, correction=0), 1, atol=1e-3)
        assert data.score_context("test").galleries["class_centres"].embedding.tolist() == np.eye(3).tolist()
    assert sorted(tested) == format.people(4)


def test_wrong_answers_and_empty_files(tmp_path: Path) -> None:
    format.write_text(tmp_path, 1)
    [person] = format.people(1)
    numbers, conditions, signal = format.trials(0)
    files = sorted((tmp_path / "raw" / person).iterdir())
    # two trials of the last kind that a file may hold
    wrong = conditions.index("S2 match")
    content = format.text(person, numbers[wrong], "S2 match err", signal[wrong])
    files[wrong].write_bytes(gzip.compress(content.encode()))
    empty = conditions.index("S1 obj")
    files[empty].write_bytes(gzip.compress(b""))
    right = uci(tmp_path, source="raw").store
    expected = [n for i, n in enumerate(numbers) if i not in (wrong, empty)]
    assert right.trials["stimulus"].tolist() == [f"{person}_trial-{number:03d}" for number in expected]
    both = uci(tmp_path, source="raw", wrong_answers=True).store
    expected = [n for i, n in enumerate(numbers) if i != empty]
    assert both.trials["stimulus"].tolist() == [f"{person}_trial-{number:03d}" for number in expected]


# ---- the real recordings -------------------------------------------------------------------------


def test_real_text_files_are_those_of_the_archive(tmp_path: Path) -> None:
    root = real_root(FILE)
    one, two = (UCIEEG(str(root), source=s, stores=str(tmp_path)).store for s in (format.ARCHIVE, "raw"))
    [name] = two.subjects
    assert len(two.trials) == 12
    where = dict(zip(one.trials["stimulus"], one.trials["index"], strict=True))
    rows = [where[stimulus] for stimulus in two.trials["stimulus"]]
    np.testing.assert_array_equal(one.signals(name)[rows], two.signals(name).astype(np.float16))
    classes = [store.stimuli.set_index("id")["class"] for store in (one, two)]
    assert all(classes[0][stimulus] == classes[1][stimulus] for stimulus in two.trials["stimulus"])


@pytest.mark.parametrize(("pair", "published"), [(("first", "matching"), 0.845), (("matching", "non-matching"), 0.736)])
def test_conditions_are_told_apart_in_other_people(tmp_path: Path, pair: tuple[str, str], published: float) -> None:
    data = UCIEEG(str(real_root(FILE)), stores=str(tmp_path), conditions=list(pair))  # type: ignore[arg-type]
    store, signals, positive, person = data.store, [], [], []
    for name in store.subjects:
        # means of 16 samples (62 ms); each feature to mean 0 and SD 1 within a person
        mine = np.asarray(store.signals(name), np.float32).reshape(-1, 61, 16, 16).mean(axis=3).reshape(20, -1)
        signals.append((mine - mine.mean(axis=0)) / mine.std(axis=0))
        numbers = store.trials["number"][store.trials["subject"] == name]
        positive += (store.stimuli["class"].iloc[numbers] == pair[0]).tolist()
        person += [name] * 20
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3))
    evidence = cross_val_predict(
        model, np.concatenate(signals), positive, groups=person, cv=GroupKFold(10), method="decision_function"
    )
    assert roc_auc_score(positive, evidence) > published


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"X": np.zeros((12, 64, 255), np.float16)}, ["X: expected shape (any, 64, 256)", "(12, 64, 255)"]),
        ({"X": np.zeros((12, 64, 256), np.int16)}, ["floating-point", "int16"]),
        ({"condition": np.array(["S1 obj"] * 11)}, ["condition: expected shape (18)", "(11,)"]),
        ({"condition": np.array(["S3 obj"] * 18)}, ["conditions are S1 obj", "'S3 obj'"]),
        ({"subject": np.array([["a"]])}, ["subject: expected shape (18)"]),
        ({"trial": np.linspace(0, 1, 18)}, ["trial whole numbers", "float64"]),
        ({"trial": np.zeros(18, int)}, ["two trials of one number"]),
        ({"channels": np.array(["CZ"])}, ["channels: expected shape (64)"]),
        ({"channels": np.array([f"E{i}" for i in range(64)])}, ["no site E0, E1"]),
        ({"sfreq": np.array(512.0)}, ["sfreq must be 256 Hz", "512"]),
        ({"X": np.array([None] * 18)}, ["cannot read", "pickled objects"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_wrong_archives(tmp_path: Path, change: dict[str, Array], expected: list[str]) -> None:
    np.savez(tmp_path / format.ARCHIVE, **{**format.archive(2), **change})
    refused_saying(uci(tmp_path), *expected)


def test_archives_that_lack_something(tmp_path: Path) -> None:
    refused_saying(uci(tmp_path), "no such file", "archive.ics.uci.edu", "init_args.source")
    content = format.archive(2)
    del content["trial"]
    np.savez(tmp_path / format.ARCHIVE, **content)
    refused_saying(uci(tmp_path), "missing 'trial'")
    whole = (format.write(tmp_path) / format.ARCHIVE).read_bytes()
    (tmp_path / format.ARCHIVE).write_bytes(whole[: len(whole) // 2])
    refused_saying(uci(tmp_path), "cannot read", "truncated")


def test_a_person_without_trials_of_the_conditions(tmp_path: Path) -> None:
    content = format.archive(2)
    content["condition"][content["subject"] == format.people(2)[1]] = "S1 obj"
    np.savez(tmp_path / format.ARCHIVE, **content)
    refused_saying(uci(tmp_path, conditions=["matching"]), f"sub-{format.people(2)[1]} has no trial of matching")


@pytest.mark.parametrize("conditions", [[], ["second"]])
def test_conditions_that_do_not_exist(tmp_path: Path, conditions: Any) -> None:
    with pytest.raises(DataError, match=r"conditions are some of first, matching, non-matching, found \["):
        uci(tmp_path, conditions=conditions)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("# S", "# T", ["found", "'# T"]),
        ("trial", "number", ["expected a head of"]),
        ("# co2c0000364.rd", "# co2c0000365.rd", ["expected a head of '# co2c0000364.rd'"]),
        (" FP1 7 ", " FP1 8 ", ["expected samples 0 to 255 of each of 64 channels"]),
        (" CZ ", " PZ ", ["16384 lines of 63 channels"]),
        (" FP1 255 ", " FP1 255 one ", ["cannot read"]),
        (" CPZ 3 ", " CPZ three ", ["cannot read"]),
        ("\n# Y chan 63\n", "\n#", ["16383 lines"]),
    ],
)
def test_wrong_text_files(tmp_path: Path, old: str, new: str, expected: list[str]) -> None:
    format.write_text(tmp_path, 1, compress=False)
    [path, *_] = sorted((tmp_path / "raw").rglob("*.rd.*"))
    path.write_text(path.read_text().replace(old, new))
    refused_saying(uci(tmp_path, source="raw"), path.name, *expected)


@pytest.mark.parametrize("share", [0.3, 0.99])
def test_truncated_text_files(tmp_path: Path, share: float) -> None:
    for compress, folder in ((True, tmp_path / "a"), (False, tmp_path / "b")):
        format.write_text(folder, 1, compress=compress)
        [path, *_] = sorted((folder / "raw").rglob("*.rd.*"))
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        refused_saying(uci(folder, source="raw"), path.name)
        path.write_bytes(b"\x80\x81")
        refused_saying(uci(folder, source="raw"), "cannot read", path.name)


def test_text_files_of_other_channels_and_none_at_all(tmp_path: Path) -> None:
    refused_saying(uci(tmp_path, source="raw"), "no file like co2a0000364.rd.000", "archive.ics.uci.edu")
    format.write_text(tmp_path, 2, compress=False)
    *_, path = sorted((tmp_path / "raw").rglob("*.rd.*"))
    whole = path.read_text()
    path.write_text(whole.replace(" CZ ", " A1 "))
    refused_saying(uci(tmp_path, source="raw"), path.name, "other channels, or in another order")
    for file in path.parent.iterdir():
        file.write_text(file.read_text().replace(" CZ ", " A1 "))
    refused_saying(uci(tmp_path, source="raw"), f"sub-{format.people(2)[1]}", "with other channels")
