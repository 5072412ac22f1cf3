import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import mne
import numpy as np
import pandas as pd
import pytest
import torch

from contracts import DataError
from datamodules import THINGSMEG, BrainDataModule, EmbeddingOptions, SampleOptions, SplitOptions
from tests.datamodules.contract import REPOSITORY, DataModuleContract, batches, everything, real_root
from tests.datamodules.things_meg import epochs_of, opened, rewritten
from tests.formats import things_meg as format

PUBLISHED = SplitOptions(trained="train+test_concepts", validation=0.0)
NO_PICTURES = {"images": "", "embedding": EmbeddingOptions(model="classes")}


# ---- contract --------------------------------------------------------------------------------------


class Contract(DataModuleContract):
    kind = THINGSMEG

    @classmethod
    def write(cls, root: Path) -> None:
        format.write(root)


class TestZeroShot(Contract):
    split: ClassVar[SplitOptions] = SplitOptions(protocol="by_class", validation=0.25)

    def real(self, stores: Path) -> BrainDataModule:
        root = real_root("things_meg/preprocessed_P1-epo.fif")
        return THINGSMEG(str(root), stores=str(stores), images="Images" if (root / "Images").is_dir() else "")


class TestPublished(Contract):
    split: ClassVar[SplitOptions] = SplitOptions(trained="train+test_concepts", validation=0.25)


# ---- what is written is what is read ---------------------------------------------------------------


@pytest.mark.parametrize("folder", [".", "preprocessed", "derivatives/preprocessed"])
@pytest.mark.parametrize("parts", [1, 4])
def test_epochs_and_their_table_reach_the_store(root: Path, folder: str, parts: int) -> None:
    content = format.write(root / folder, parts=parts)
    (root / folder / "Images").rename(root / "elsewhere")
    found = len(list((root / folder).glob("preprocessed_P1-epo*.fif")))
    assert found == 1 if parts == 1 else found >= 3
    store = opened(root, images="elsewhere").store
    assert store.subjects == ["01", "02"]
    for subject, person in zip(store.subjects, content.people, strict=True):
        axes = store.axes(subject)
        assert (list(axes.channels), axes.sampling_rate, axes.start) == (list(format.CHANNELS), 200.0, -0.01)
        # the transformation by hand, see the generator
        x, y, z = person.positions.T
        np.testing.assert_allclose(axes.positions, np.stack([0.01 - y, 0.02 + x, 0.03 + z], axis=1), atol=1e-7)
        table = person.attributes
        kept = np.flatnonzero(table["trial_type"] != "catch")
        assert 0 < len(kept) < len(table)
        np.testing.assert_array_equal(store.signals(subject), person.signal[kept])
        assert store.signals(subject).dtype == np.float32
        trials = store.trials[store.trials["subject"] == subject]
        table = table.iloc[kept]
        assert trials["stimulus"].tolist() == [Path(place).stem for place in table["image_path"]]
        assert trials["session"].tolist() == table["session_nr"].astype(str).tolist()
        assert trials["run"].tolist() == table["run_nr"].astype(str).tolist()
    assert sorted(store.stimuli["id"]) == sorted(content.images)
    for number, (name, concept) in enumerate(zip(store.stimuli["id"], store.stimuli["class"], strict=True)):
        # a concept may hold the letter that separates it from the number of the picture
        assert re.fullmatch(rf"{concept}_\d+[bs]", name)
        assert store.image(number).shape == (8, 8, 3)
        assert store.stimuli["image"][number] == f"elsewhere/{concept}/{name}.jpg"


def test_samples_are_those_that_mne_reads_at_once(root: Path) -> None:
    content = format.write(root, concepts=40, images=5, people=1)
    assert len(content.people[0].signal) > 128, "several pieces"
    epochs = mne.read_epochs(epochs_of(root), verbose="ERROR")["trial_type != 'catch'"]
    np.testing.assert_array_equal(opened(root).store.signals("01"), epochs.get_data("mag").astype(np.float32))


def test_samples_may_be_stored_in_double_precision(root: Path) -> None:
    content = format.write(root, people=1)
    epochs = mne.read_epochs(epochs_of(root), verbose="ERROR")
    for path in root.glob("*.fif"):
        path.unlink()
    epochs.save(epochs_of(root), fmt="double", verbose="ERROR")
    kept = np.flatnonzero(content.people[0].attributes["trial_type"] != "catch")
    np.testing.assert_array_equal(opened(root).store.signals("01"), content.people[0].signal[kept])


def test_any_of_the_people_may_be_there_in_the_order_of_their_numbers(root: Path) -> None:
    content = format.write(root, people=1)
    rewritten(root, content)
    for number in (10, 3):
        format.save_epochs(epochs_of(root, number), content.people[0])
    assert opened(root).store.subjects == ["01", "03", "10"]


def test_the_table_of_trials_may_stand_in_a_file(root: Path) -> None:
    format.write(root, tables=True, people=1)
    carried = opened(root).store.trials
    format.write(root, tables=True, metadata=False, people=1)
    for folder in (root, root / "sourcedata"):
        folder.mkdir(exist_ok=True)
        (root / "sample_attributes_P1.csv").rename(folder / "moved.csv")
        (folder / "moved.csv").rename(folder / "sample_attributes_P1.csv")
        data = THINGSMEG(str(root), stores=str(root.parent / folder.name))
        pd.testing.assert_frame_equal(data.store.trials, carried)


def test_numbers_of_sessions_may_be_floats(root: Path) -> None:
    content = format.write(root, people=1)
    content.people[0].attributes = content.people[0].attributes.astype({"session_nr": float, "run_nr": float})
    rewritten(root, content)
    assert set(opened(root).store.trials["session"]) == {"1", "2"}


def test_without_sensor_positions_there_are_none(root: Path) -> None:
    content = format.write(root, people=1)
    content.people[0].positions[2] = np.nan
    rewritten(root, content)
    assert opened(root).layout["positions"] == []


# ---- what is trained and tested on -----------------------------------------------------------------


def concepts_of(data: BrainDataModule, split: str) -> set[str]:
    numbers = {number for batch in everything(data, split) for number in batch["stimulus"].tolist()}
    return {data.store.stimuli["class"][number] for number in numbers}


def test_concepts_that_are_tested_are_not_trained_on(root: Path) -> None:
    content = format.write(root)
    data = opened(root)
    assert data.layout["protocol"] == "by_class"
    tested = set(content.tested)
    assert concepts_of(data, "test") == tested
    assert not (concepts_of(data, "train") | concepts_of(data, "validation")) & tested
    assert len(concepts_of(data, "train") | concepts_of(data, "validation")) == 7
    trials = data.store.trials
    assert trials["split"].value_counts().to_dict() == {"train": 2 * 7 * 3, "test_concepts": 2 * 9, "test": 2 * 12}
    marked = trials.merge(data.store.stimuli, left_on="stimulus", right_on="id")
    assert set(marked["class"][marked["split"] != "train"]) == tested


def test_a_concept_that_one_person_is_tested_on_is_tested_for_all(root: Path) -> None:
    content = format.write(root)
    table = content.people[1].attributes
    table.loc[table["trial_type"] == "test", "trial_type"] = "catch"
    rewritten(root, content, 2)
    counts = opened(root).store.trials.groupby("subject")["split"].value_counts()
    assert counts["02"].to_dict() == {"train": 21, "test_concepts": 9}


def test_test_trials_of_a_photograph_are_averaged_unless_told_otherwise(root: Path) -> None:
    content = format.write(root, people=1)
    data = opened(root, samples=SampleOptions(normalise="none"))
    (batch,) = everything(data, "test")
    assert len(batch["row"]) == 3
    person = content.people[0]
    for signal, number in zip(batch["signal"], batch["stimulus"].tolist(), strict=True):
        path = f"images_test_meg/{data.store.stimuli['id'][number]}.jpg"
        shown = (person.attributes["image_path"] == path).to_numpy()
        assert shown.sum() == 4
        np.testing.assert_allclose(signal, person.signal[shown].mean(axis=0), rtol=1e-5, atol=1e-6)
    single = opened(root, samples=SampleOptions(average_test=1))
    assert sum(len(batch["row"]) for batch in batches(single, "test")) == 12


def test_the_published_split_trains_on_every_photograph_seen_once(root: Path) -> None:
    content = format.write(root, people=1)
    samples = SampleOptions(average_test=1, normalise="none")
    data = opened(root, split=PUBLISHED, samples=samples)
    (train,), (test,) = everything(data, "train"), everything(data, "test")
    person = content.people[0]
    for batch, kind, number in ((train, "exp", 30), (test, "test", 12)):
        assert len(batch["row"]) == number
        rows = (person.attributes["trial_type"] == kind).to_numpy()
        found = {signal.numpy().tobytes() for signal in batch["signal"]}
        assert found == {signal.tobytes() for signal in person.signal[rows]}
    assert data.layout["protocol"] == "by_stimulus, trained on train+test_concepts"
    with pytest.raises(DataError, match=r"train/test overlap: 3 class entries"):
        opened(root, split=SplitOptions(protocol="by_class", trained="train+test_concepts")).layout  # noqa: B018


def test_a_window_keeps_the_times_that_it_names(root: Path) -> None:
    content = format.write(root, people=1)
    samples = SampleOptions(window=(0.0, 0.02), normalise="none", average_test=1)
    data = opened(root, samples=samples, split=PUBLISHED)
    assert data.layout["shape"] == {"01": [5, 4]}
    assert data.layout["start"] == 0
    (train,) = everything(data, "train")
    rows = (content.people[0].attributes["trial_type"] == "exp").to_numpy()
    # two of the eight samples stand before the onset
    expected = {signal.tobytes() for signal in content.people[0].signal[rows][:, :, 2:6]}
    assert {signal.numpy().tobytes() for signal in train["signal"]} == expected


def test_without_pictures_a_photograph_is_its_concept(root: Path) -> None:
    content = format.write(root)
    data = opened(root, **NO_PICTURES)
    assert not data.store.has_pictures
    assert data.layout["image_shape"] == []
    assert data.layout["classes"] == sorted({name.rpartition("_")[0] for name in content.images})
    with_pictures = opened(root)
    assert with_pictures.store.folder != data.store.folder
    (test,), (other,) = everything(data, "test"), everything(with_pictures, "test")
    assert torch.equal(test["signal"], other["signal"])


# ---- memory ----------------------------------------------------------------------------------------

CHILD = """
import re, sys
from pathlib import Path
from datamodules import THINGSMEG

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

import mne, pandas
THINGSMEG(sys.argv[1], images="", stores=sys.argv[1] + "-warm-up").store
before = peak()
THINGSMEG(sys.argv[2], images="", stores=sys.argv[2] + "-stores").store
print(peak() - before)
"""


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_memory_does_not_grow_with_the_number_of_epochs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format, "TIMES", 2500)
    small = format.experiment(people=1, concepts=10, images=16, catch=0)
    large = format.Experiment(small.images, small.tested, [])
    person = small.people[0]
    # 172 epochs of 5 x 2500, and the same eight times over: 9 and 69 MB in the files, twice that while read
    large.people.append(
        format.Person(np.tile(person.signal, (8, 1, 1)), pd.concat([person.attributes] * 8), person.positions)
    )
    for name, content in (("small", small), ("large", large)):
        (root / name).mkdir(parents=True)
        format.save_epochs(epochs_of(root / name), content.people[0], reference=0)
    command = [sys.executable, "-c", CHILD, str(root / "small"), str(root / "large")]
    printed = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    kilobytes = int(printed.split()[-1])
    assert kilobytes < 50_000, "a piece is 13 MB, the whole recording 138 MB"
