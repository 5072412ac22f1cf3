import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any, ClassVar

import mne
import numpy as np
import pytest
import torch

from datamodules import BrainDataModule, SplitOptions
from datamodules.things_eeg2 import FOLDERS, OCCIPITAL, THINGSEEG2
from tests.datamodules.contract import SHARED, SMALL_PIXELS, DataModuleContract, everything, real_root
from tests.datamodules.things_eeg2 import LAYOUTS, opened
from tests.formats import things_eeg2 as format

Array = np.ndarray[Any, Any]
TABLE = "things_eeg2/things_eeg2_image_metadata.json"


# ---- contract --------------------------------------------------------------------------------------


class Contract(DataModuleContract):
    split: ClassVar[SplitOptions] = SplitOptions(protocol="by_class", validation=0.25)
    file_layout: ClassVar[format.Layout]

    @classmethod
    def write(cls, root: Path) -> None:
        format.write(root, cls.file_layout, samples=3, concepts=8, repetitions=4, test_repetitions=4)

    def make(self, root: Path, **options: Any) -> BrainDataModule:
        return THINGSEEG2(str(root), channels=["Oz", "Fp1", "P7"], **options)


class TestWhitened(Contract):
    file_layout = "whitened"

    def real(self, stores: Path) -> BrainDataModule:
        real_root("things_eeg2/Preprocessed_data_250Hz_whiten/sub-01/train.pt")
        return THINGSEEG2(str(SHARED / "things_eeg2"), stores=str(stores), images="")


class TestPreprocessed(Contract):
    file_layout = "preprocessed"


# ---- what is written is what is read ---------------------------------------------------------------


def written(content: format.Experiment, person: format.Person, layout: str) -> tuple[Array, Array]:
    """Signals of training and test as they must stand in the store, trial by trial."""
    parts = []
    for signal in (person.train, person.test):
        if layout == "osf":
            signal = format.pickled(content, signal, baseline=True)["preprocessed_eeg_data"]
        parts.append(signal.reshape(-1, *signal.shape[2:]).astype(np.float16 if layout == "whitened" else np.float32))
    return parts[0], parts[1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("asked", [True, False])
def test_arrays_of_every_layout_reach_the_store(root: Path, layout: format.Layout, asked: bool) -> None:
    content = format.write(root, layout, people=3)
    store = opened(root, layout=layout if asked else "auto").store
    assert store.subjects == ["01", "02", "03"]
    names = [*content.train_names, *content.test_names]
    assert store.stimuli["id"].tolist() == [file.removesuffix(".jpg") for _, file in names]
    assert store.stimuli["class"].tolist() == [folder[6:] for folder, _ in names]
    for subject, person in zip(store.subjects, content.people, strict=True):
        expected = np.concatenate(written(content, person, layout))
        assert store.signals(subject).dtype == expected.dtype
        np.testing.assert_array_equal(store.signals(subject), expected)
        trials = store.trials[store.trials["subject"] == subject]
        assert trials["split"].tolist() == ["train"] * 48 + ["test"] * 32
        shown = [file[:-4] for _, file in content.train_names for _ in range(4)]
        shown += [file[:-4] for _, file in content.test_names for _ in range(8)]
        assert trials["stimulus"].tolist() == shown
        sessions = [str(1 + s) for s in (*person.train_session.ravel(), *person.test_session.ravel())]
        assert trials["session"].tolist() == (sessions if layout == "whitened" else ["1"] * 80)
        axes = store.axes(subject)
        assert tuple(axes.channels) == format.CHANNELS
        assert (axes.sampling_rate, axes.start) == ((100, -0.03) if layout == "osf" else (250, 0))


def test_layouts_of_one_experiment_give_the_same_samples(root: Path) -> None:
    content = format.write(root, "arrays")
    format.write_recordings(root, content, "preprocessed")
    one, other = (everything(opened(root, layout=layout), "test") for layout in ("arrays", "preprocessed"))
    for name in ("signal", "stimulus", "label", "embedding"):
        assert torch.equal(one[0][name], other[0][name])


@pytest.mark.parametrize("folder", [name for names in FOLDERS.values() for name in names])
def test_folders_have_several_names(root: Path, folder: str) -> None:
    [layout] = [layout for layout, names in FOLDERS.items() if folder in names]
    content = format.write(root, layout, people=1)
    if folder != format.FOLDERS[layout]:
        shutil.rmtree(root / format.FOLDERS[layout])
        format.write_recordings(root, content, layout, folder=folder)
    assert opened(root).store.subjects == ["01"]


def test_positions_are_those_of_mnes_template(root: Path) -> None:
    format.write(root, people=1)
    template = next(n for n in ("colin27_1005", "standard_1005") if n in mne.channels.get_builtin_montages())
    info = mne.create_info(list(format.CHANNELS), 250.0, "eeg", verbose="error")
    info.set_montage(mne.channels.make_standard_montage(template), verbose="error")
    expected = [channel["loc"][:3] for channel in info["chs"]]
    np.testing.assert_allclose(opened(root).layout["positions"], expected, atol=1e-9)


def test_channels_without_a_place_on_the_head_are_read_without_positions(root: Path) -> None:
    format.write(root, people=1, channels=("Oz", "EOG"))
    data = opened(root)
    assert data.layout["channels"] == ["Oz", "EOG"]
    assert data.layout["positions"] == []
    assert len(opened(root, channels=["Oz"]).layout["positions"]) == 1


def test_channels_are_kept_in_the_order_asked_for(root: Path) -> None:
    content = format.write(root)
    data = opened(root, channels=list(OCCIPITAL))
    assert data.store.folder != opened(root).store.folder
    order = [format.CHANNELS.index(name) for name in OCCIPITAL]
    train, test = written(content, content.people[1], "whitened")
    np.testing.assert_array_equal(data.store.signals("02"), np.concatenate([train, test])[:, order])
    assert data.layout["channels"] == list(OCCIPITAL)
    assert data.layout["shape"] == {"01": [17, 5], "02": [17, 5]}
    assert set(OCCIPITAL) == set(format.OCCIPITAL)


def test_no_concept_is_on_two_sides_unless_asked_for(root: Path) -> None:
    format.write(root, concepts=10)
    data = THINGSEEG2(str(root), stores=str(root.parent / "stores"), embedding=SMALL_PIXELS)
    assert data.layout["protocol"] == "by_class"
    sides = [{int(n) for batch in everything(data, s) for n in batch["label"]} for s in ("train", "validation", "test")]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert not (sides[0] | sides[1]) & sides[2]


@pytest.mark.parametrize("places", ["root", "pictures"])
@pytest.mark.parametrize("suffix", ["npy", "json"])
def test_the_table_may_lie_in_two_places_in_two_formats(root: Path, places: str, suffix: str) -> None:
    content = format.write(root, "arrays", people=1)
    (root / "image_set" / "image_metadata.npy").unlink()
    format.write_table(root if places == "root" else root / "image_set", content, suffix=suffix)
    assert opened(root).store.stimuli["class"].iloc[0] == "aardvark"


def test_whitened_files_need_no_table_and_pictures_may_be_elsewhere(root: Path) -> None:
    content = format.write(root, people=2)
    expected = opened(root).store.stimuli
    shutil.rmtree(root / "image_set")
    shutil.rmtree(root.parent / "stores")
    format.write_pictures(root / "Image_set_Resize", content, train="train_images")
    found = opened(root, images="Image_set_Resize").store.stimuli
    assert (found[["id", "class", "sha256"]] == expected[["id", "class", "sha256"]]).all(axis=None)


def test_without_pictures_the_signals_are_read(root: Path) -> None:
    content = format.write(root, "osf")
    shutil.move(root / "image_set" / "image_metadata.npy", root / "image_metadata.npy")
    shutil.rmtree(root / "image_set")
    data = opened(root, images="")
    assert not data.store.has_pictures
    assert len(data.store.stimuli) == 16
    np.testing.assert_array_equal(data.store.signals("01")[:48], written(content, content.people[0], "osf")[0])


def test_declared_numbers_are_those_of_the_stimulus_table() -> None:
    table = json.loads((real_root(TABLE) / Path(TABLE).name).read_text())
    train, test = table["train_img_concepts"], table["test_img_concepts"]
    assert (len(train), len(test), len(set(train)), len(set(test))) == (16540, 200, 1654, 200)
    assert len({*table["train_img_files"], *table["test_img_files"]}) == THINGSEEG2.facts.stimuli
    assert set(THINGSEEG2.facts.trials.values()) == {len(train) * 4 + len(test) * 80}


def test_real_table_names_every_class_once(tmp_path: Path) -> None:
    # one channel and two samples of one repetition, so that the table is met at its own length
    real_root(TABLE)
    place = tmp_path / "raw" / "preprocessed_eeg"
    (place / "sub-01").mkdir(parents=True)
    random = np.random.default_rng(0)
    np.save(place / "sub-01" / "train.npy", random.standard_normal((1654, 10, 1, 1, 2)).astype(np.float32))
    np.save(place / "sub-01" / "test.npy", random.standard_normal((200, 1, 1, 1, 2)).astype(np.float32))
    (place / "info.json").write_text(json.dumps({"ch_names": ["Oz"], "times": [0.0, 0.004]}))
    (tmp_path / "raw" / "image_metadata.json").write_bytes((SHARED / TABLE).read_bytes())
    data = opened(tmp_path / "raw", images="")
    assert len(data.classes) == 1854
    assert {"bat1", "bat2", "t-shirt", "aircraft_carrier", "aardvark"} < set(data.classes)
    assert len(data.stimuli("test")) == 200
    assert not data.stimuli("test") & data.stimuli("train")


# ---- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reading_takes_a_piece_of_the_file_at_a_time(root: Path, layout: format.Layout) -> None:
    format.write(root, layout, people=1, concepts=20, exemplars=4, repetitions=16, samples=250)
    size = sum(path.stat().st_size for path in (root / format.FOLDERS[layout]).rglob("*.*"))
    data = opened(root)
    tracemalloc.start()
    for record in data.read(root):
        del record
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # pieces are of 256 trials; the training file has 1280
    assert size > 10e6
    assert peak < 0.45 * size * (2 if layout == "whitened" else 1)
