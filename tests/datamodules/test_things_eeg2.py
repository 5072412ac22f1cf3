import json
import pickle
import shutil
import tracemalloc
from pathlib import Path
from typing import Any, ClassVar

import mne
import numpy as np
import pytest
import torch

from contracts import DataError
from datamodules import BrainDataModule, SplitOptions
from datamodules.things_eeg2 import FILES, FOLDERS, OCCIPITAL, THINGSEEG2
from tests.datamodules.contract import SHARED, SMALL_PIXELS, DataModuleContract, everything, leftovers, real_root
from tests.formats import things_eeg2 as format

Array = np.ndarray[Any, Any]
LAYOUTS = tuple(format.FOLDERS)
TABLE = "things_eeg2/things_eeg2_image_metadata.json"


def opened(root: Path, **options: Any) -> THINGSEEG2:
    usual: dict[str, Any] = {"embedding": SMALL_PIXELS, "split": SplitOptions(protocol="by_class", validation=0.0)}
    return THINGSEEG2(str(root), stores=str(root.parent / "stores"), **(usual | options))


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(DataError) as raised:
        opened(root, **options).store  # noqa: B018
    assert not leftovers(root.parent / "stores")
    return str(raised.value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "raw"


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
