"""MultiModal: one numbering and one division of data sets that share some of their pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from contracts import NO_LABEL, PADDING, Batch, DataError
from datamodules import (
    EmbeddingOptions,
    LoaderOptions,
    MultiModal,
    Phantom,
    PhantomEEG,
    PhantomOptions,
    SampleOptions,
    Stimuli,
    Trials,
)
from lightning_modules import RidgeAlignment
from tests.formats.side_by_side import PARTS, PIXELS, PLAIN, POOL, name_of, part, sha256, side_by_side

# Lightning advises more worker processes for any data set, and a shorter logging interval for few batches
pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),
    pytest.mark.filterwarnings("ignore:`training_step` returned `None`"),
]

SPLITS = ("train", "validation", "test")
CLASSES = EmbeddingOptions(model="classes")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of converted recordings."""
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def data(stores: Path) -> MultiModal:
    """FMRI and EEG, as samples that do not depend on the division."""
    return side_by_side(stores, {name: part(stores, name, samples=PLAIN) for name in PARTS})


def shown(name: str, kind: str) -> set[str]:
    """SHA-256 of what a part marks for training or testing."""
    return {sha256(label, number) for label in PARTS[name]["classes"] for number in PARTS[name][kind]}


def sides(data: MultiModal, name: str) -> dict[str, set[str]]:
    """SHA-256 of the pictures on each side of a part after the division; empty text for what is left out."""
    table = data.divided[name].trials
    keys = data.parts[name].store.stimuli["sha256"]
    return {side: set(keys.iloc[table["number"][table["side"] == side]]) for side in (*SPLITS, "")}


def whole(data: MultiModal, split: str) -> list[Batch]:
    """All samples, in batches of people of one layout."""
    samples = data.dataset(split)
    return [samples[torch.nonzero(samples.group == group).flatten()] for group in samples.group.unique()]


def table_of(data: MultiModal) -> list[tuple[int, int]]:
    """Class and number in ``POOL`` of each joint stimulus number, found by its hash."""
    known = {sha256(*place): place for place in np.ndindex(*POOL.shape[:2])}
    return [known[key] for key in data.tables.stimuli["sha256"]]


# ---- one numbering ---------------------------------------------------------------------------------


def test_the_same_picture_has_one_number_in_all_parts(data: MultiModal) -> None:
    everything = {name: shown(name, "train") | shown(name, "test") for name in PARTS}
    assert {name: len(keys) for name, keys in everything.items()} == {"fmri": 28, "eeg": 32}
    assert len(everything["fmri"] & everything["eeg"]) == 15
    joint = data.tables.stimuli["sha256"]
    assert set(joint) == everything["fmri"] | everything["eeg"]
    assert joint.is_unique
    for name, numbers in data.tables.numbers.items():
        assert joint.iloc[numbers.numpy()].tolist() == data.parts[name].store.stimuli["sha256"].tolist()


def test_classes_are_joined_by_name(data: MultiModal) -> None:
    assert data.tables.classes == [f"class {i}" for i in range(5)]
    assert data.tables.labels.tolist() == [kind for kind, _ in table_of(data)]


def test_a_class_that_one_part_does_not_name_is_that_of_another(stores: Path) -> None:
    nameless = part(stores, "fmri", labels=dict.fromkeys(range(4), ""))
    data = side_by_side(stores, {"fmri": nameless, "eeg": part(stores, "eeg")})
    for (kind, number), label in zip(table_of(data), data.tables.labels.tolist(), strict=True):
        named = sha256(kind, number) in shown("eeg", "train") | shown("eeg", "test")
        # classes 1 to 4 have numbers 0 to 3
        assert label == (kind - 1 if named else NO_LABEL)
    renamed = part(stores, "eeg", labels={1: "another name"})
    data = side_by_side(stores, {"fmri": part(stores, "fmri"), "eeg": renamed})
    # the first name given holds; what only the EEG shows has its own
    both = data.tables.stimuli["class"].tolist()
    assert both[data.tables.numbers["fmri"][7]] == "class 1"
    assert "another name" in both


def test_pictures_come_from_whichever_part_has_them(data: MultiModal) -> None:
    for number, (kind, place) in enumerate(table_of(data)):
        assert np.array_equal(data.tables.image(number), POOL[kind, place])


def test_people_follow_each_other(data: MultiModal) -> None:
    assert data.layout["subjects"] == ["fmri-01", "fmri-02", "eeg-02", "eeg-03"]
    assert data.first_subject == {"fmri": 0, "eeg": 2}
    reverse = side_by_side(Path(data.stores).parent, dict(reversed(data.parts.items())))
    assert reverse.first_subject == {"eeg": 0, "fmri": 2}
    stores = Path(data.stores).parent
    more = {
        "one": part(stores, "fmri", shape={"01": (12,)}),
        "three": part(stores, "fmri", shape=dict.fromkeys("abc", (5,))),
    }
    assert side_by_side(stores, {**more, "eeg": part(stores, "eeg")}).first_subject == {"one": 0, "three": 1, "eeg": 4}


# ---- samples ---------------------------------------------------------------------------------------


def recordings(data: MultiModal) -> dict[tuple[str, str], np.ndarray]:
    """Mean of the trials of each person (``eeg-02``) and picture, from the raw records."""
    trials: dict[tuple[str, str], list[np.ndarray]] = {}
    for name, one in data.parts.items():
        for record in one.records:  # type: ignore[attr-defined]  # Recording
            if isinstance(record, Trials):
                for picture, signal in zip(record.stimulus, record.signal, strict=True):
                    trials.setdefault((f"{name}-{record.subject}", picture), []).append(signal.astype(np.float64))
    return {key: np.mean(values, axis=0) for key, values in trials.items()}


def embedded(data: MultiModal) -> dict[str, Tensor]:
    """Embedding of each picture by its hash, as each part alone has it."""
    found: dict[str, Tensor] = {}
    for name in data.parts:
        alone = part(Path(data.stores).parent, name)
        for key, target in zip(alone.store.stimuli["sha256"], alone.targets, strict=True):
            assert torch.equal(found.setdefault(key, target), target)
    return found


@pytest.mark.parametrize("split", SPLITS)
def test_every_sample_is_that_of_its_part(data: MultiModal, split: str) -> None:
    known, targets, places = recordings(data), embedded(data), table_of(data)
    people = data.layout["subjects"]
    seen, rows = set(), []
    for batch in whole(data, split):
        assert set(batch) == {"signal", "embedding", "stimulus", "label", "subject", "row"}
        for i, row in enumerate(batch["row"].tolist()):
            person, place = people[int(batch["subject"][i])], places[int(batch["stimulus"][i])]
            expected = known[person, name_of(*place)]
            np.testing.assert_allclose(batch["signal"][i].numpy(), expected, rtol=1e-5, atol=1e-5)
            assert torch.equal(batch["embedding"][i], targets[sha256(*place)])
            assert data.tables.classes[int(batch["label"][i])] == f"class {place[0]}"
            seen.add((person, sha256(*place)))
            rows.append(row)
    assert sorted(rows) == list(range(len(data.dataset(split))))
    expected_people = {
        (f"{name}-{person}", key)
        for name in PARTS
        for person in PARTS[name]["shape"]
        for key in sides(data, name)[split]
    }
    assert seen == expected_people
    assert len(seen) == len(rows)


def test_any_selection_of_samples_and_padding_is_the_same(data: MultiModal) -> None:
    samples = data.dataset("test")
    for group in samples.group.unique():
        members = torch.nonzero(samples.group == group).flatten()
        mixed = members[torch.randperm(len(members), generator=torch.Generator().manual_seed(1))]
        marked = torch.where(torch.arange(len(mixed)) % 3 == 0, ~mixed, mixed)
        batch, expected = samples[marked], samples[mixed]
        assert torch.equal(batch["row"], torch.where(marked < 0, PADDING, mixed))
        assert torch.equal(expected["row"], mixed)
        assert torch.equal(samples.subject[mixed], expected["subject"])
        for name in set(batch) - {"row"}:
            assert torch.equal(batch[name], expected[name]), name  # type: ignore[literal-required]


def test_samples_of_different_layouts_are_different_groups(data: MultiModal) -> None:
    samples = data.dataset("train")
    pairs = set(zip(samples.group.tolist(), samples.subject.tolist(), strict=True))
    # fMRI of 12 and 9 voxels, EEG of one shape
    assert pairs == {(0, 0), (1, 1), (2, 2), (2, 3)}


def test_pictures_are_served_where_asked_for(data: MultiModal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "batch_keys", lambda: frozenset({"signal", "image"}))
    places = table_of(data)
    for batch in whole(data, "test"):
        assert "embedding" not in batch
        for number, image in zip(batch["stimulus"].tolist(), batch["image"].numpy(), strict=True):
            assert np.array_equal(image.transpose(1, 2, 0), POOL[places[number]])


def test_normalisation_is_fitted_on_what_is_left_to_train_on(stores: Path) -> None:
    data = side_by_side(stores, {name: part(stores, name, samples=SampleOptions(cleaning="none")) for name in PARTS})
    for batch in whole(data, "train"):
        for person in batch["subject"].unique():
            signal = batch["signal"][batch["subject"] == person]
            torch.testing.assert_close(signal.mean(dim=0), torch.zeros(signal.shape[1:]), rtol=0, atol=1e-5)
            torch.testing.assert_close(signal.std(dim=0, correction=0), torch.ones(signal.shape[1:]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("residence", ["ram", "device"])
def test_residence_changes_nothing(data: MultiModal, stores: Path, residence: Any) -> None:
    parts = {name: part(stores, name, samples=PLAIN) for name in PARTS}
    for one in parts.values():
        one.loader = LoaderOptions(residence=residence)
    for mine, theirs in zip(whole(side_by_side(stores, parts), "train"), whole(data, "train"), strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)  # type: ignore[literal-required]


# ---- the division ----------------------------------------------------------------------------------


def test_what_one_part_tests_is_trained_on_in_none(data: MultiModal) -> None:
    fmri, eeg = sides(data, "fmri"), sides(data, "eeg")
    tested = shown("fmri", "test") | shown("eeg", "test")
    assert fmri["test"] == shown("fmri", "test")
    assert eeg["test"] == shown("eeg", "test")
    for mine in (fmri, eeg):
        assert not tested & (mine["train"] | mine["validation"])
    # by hand: picture 1 of the classes that the EEG shows, picture 5 of those that the fMRI shows
    assert fmri[""] == {sha256(kind, 1) for kind in (1, 2, 3)}
    assert eeg[""] == {sha256(kind, 5) for kind in (1, 2, 3)}
    # two repetitions, two people
    assert [(one.trials["side"] == "").sum() for one in data.parts.values()] == [12, 12]


def test_validation_stimuli_are_the_same_in_all_parts(data: MultiModal) -> None:
    fmri, eeg = sides(data, "fmri"), sides(data, "eeg")
    validated = fmri["validation"] | eeg["validation"]
    left = (shown("fmri", "train") - fmri[""]) | (shown("eeg", "train") - eeg[""])
    assert len(left) == 32
    assert len(validated) == 8
    for name, mine in (("fmri", fmri), ("eeg", eeg)):
        assert mine["validation"] == validated & shown(name, "train")
        assert mine["train"] == shown(name, "train") - mine[""] - validated
    assert fmri["validation"] & eeg["validation"], "nothing to compare"
    assert data.stimuli("validation") == validated
    assert data.stimuli("train") == left - validated
    assert data.stimuli("test") == shown("fmri", "test") | shown("eeg", "test")


def test_the_choice_of_validation_stimuli_is_that_of_the_seed(stores: Path) -> None:
    chosen = [side_by_side(stores, seed=seed).stimuli("validation") for seed in (0, 0, 1, 2)]
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) == 3
    reverse = {name: part(stores, name) for name in reversed(PARTS)}
    assert side_by_side(stores, reverse).stimuli("validation") == chosen[0], "the order of parts must not matter"


def test_without_validation_everything_left_is_trained_on(stores: Path) -> None:
    data = side_by_side(stores, validation=0.0)
    assert not data.has_validation()
    assert not data.stimuli("validation")
    assert data.val_dataloader() == []
    with pytest.raises(DataError, match=r"no samples in split 'validation'; change --data\.init_args\.validation"):
        data.dataset("validation")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_classes_tested_by_class_are_trained_on_in_none(stores: Path, seed: int) -> None:
    fmri = part(stores, "fmri", split={"protocol": "by_class", "folds": 4, "fold": 2})
    data = side_by_side(stores, {"fmri": fmri, "eeg": part(stores, "eeg")}, validation=0.34, seed=seed)
    kinds = {
        name: {
            side: {kind for kind in range(5) if {sha256(kind, i) for i in range(12)} & keys}
            for side, keys in found.items()
        }
        for name, found in ((name, sides(data, name)) for name in PARTS)
    }
    (tested,) = kinds["fmri"]["test"]
    assert tested in PARTS["eeg"]["classes"], "nothing to compare"
    for mine in kinds.values():
        assert tested not in mine["train"] | mine["validation"]
        assert not mine["train"] & mine["validation"], "validation is by class, too"
    assert tested in kinds["eeg"][""]
    # what the EEG tests is excluded picture by picture: its classes are trained on by others
    assert kinds["eeg"]["test"] & kinds["fmri"]["train"]
    assert not sides(data, "eeg")["test"] & sides(data, "fmri")["train"]
    validated = kinds["fmri"]["validation"] | kinds["eeg"]["validation"]
    # 4 classes are left, and a third of them is one
    assert len(validated) == 1
    assert sides(data, "eeg")["test"] == shown("eeg", "test"), "a test picture of a validated class stays where it is"
    assert data.layout["protocol"] == "by_class (fold 2 of 4) / by_stimulus"


def test_a_tested_class_is_excluded_under_the_name_that_its_part_gives_it(stores: Path) -> None:
    """All that it shows has another name in the first part, which is the one that holds."""
    few = {"train": (3, 4), "test": (6,), "classes": (1, 2, 3)}
    parts = {
        "first": part(stores, "eeg", labels={kind: f"other {kind}" for kind in (1, 2, 3)}),
        "tested": part(stores, "fmri", **few, split={"protocol": "by_class", "folds": 3}),
        "more": part(stores, "fmri", classes=(1, 2, 3), train=(0, 7), test=(11,)),
    }
    data = side_by_side(stores, parts, validation=0.0)
    (tested,) = {kind for kind in (1, 2, 3) if sha256(kind, 6) in sides(data, "tested")["test"]}
    assert sides(data, "more")[""] == {sha256(tested, 0), sha256(tested, 7)}
    assert {sha256(tested, number) for number in (3, 4, 8)} <= sides(data, "first")[""]


def test_what_is_left_out_is_counted(stores: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        side_by_side(stores).layout  # noqa: B018
    assert "fmri: 12 of 80 training trials are left out" in caplog.text
    assert "eeg: 12 of 96 training trials are left out" in caplog.text


def test_own_validation_of_a_part_is_not_regarded(stores: Path) -> None:
    own = {name: part(stores, name, split={"validation": 0.5, "seed": 4}) for name in PARTS}
    assert side_by_side(stores, own).stimuli("validation") == side_by_side(stores).stimuli("validation")


@pytest.mark.parametrize("used", ["trials", "layout"])
def test_a_part_that_was_used_alone_is_refused(stores: Path, used: str) -> None:
    """Its samples, or its own validation stimuli, would be those of its own division."""
    parts = {name: part(stores, name, split={"validation": 0.25}) for name in PARTS}
    getattr(parts["eeg"], used)
    with pytest.raises(DataError, match="part eeg has been used already"):
        side_by_side(stores, parts).layout  # noqa: B018


@pytest.mark.parametrize("validation", [-0.1, 1.0, 1.5])
def test_a_share_outside_0_to_1_is_refused(stores: Path, validation: float) -> None:
    with pytest.raises(DataError, match=rf"validation.*found {validation}"):
        side_by_side(stores, validation=validation).layout  # noqa: B018


def test_a_share_that_leaves_no_side_anything_is_refused(stores: Path) -> None:
    with pytest.raises(DataError, match="of 32 training stimuli is 0"):
        side_by_side(stores, validation=0.001).layout  # noqa: B018
    parts = {"fmri": part(stores, "fmri", train=(2,)), "eeg": part(stores, "eeg")}
    with pytest.raises(DataError, match=r"part 'fmri': all of its training stimuli would be validated on; lower"):
        side_by_side(stores, parts, validation=0.96).layout  # noqa: B018


def test_a_part_with_nothing_left_to_train_on_is_refused(stores: Path) -> None:
    parts = {"fmri": part(stores, "fmri", train=(6, 1), test=(5,), classes=(1, 2)), "eeg": part(stores, "eeg")}
    with pytest.raises(DataError, match=r"part 'fmri' has no training trial left: all 16 show what another part"):
        side_by_side(stores, parts).layout  # noqa: B018


@pytest.mark.parametrize("protocol", ["by_run", "by_subject", "leave_one_repetition_out"])
def test_other_protocols_are_refused(stores: Path, protocol: str) -> None:
    parts = {"fmri": part(stores, "fmri", split={"protocol": protocol, "folds": 2}), "eeg": part(stores, "eeg")}
    with pytest.raises(DataError, match=rf"by_stimulus or by_class, found {{'fmri': '{protocol}'}}"):
        side_by_side(stores, parts).layout  # noqa: B018


@pytest.mark.parametrize("name", ["eeg.1", "e-e-g", "", "1eeg", "a/b"])
def test_names_that_cannot_stand_in_a_score_are_refused(stores: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"parts needs data sets by names such as eeg or fmri"):
        side_by_side(stores, {name: part(stores, "eeg")})
    with pytest.raises(DataError, match="parts needs data sets"):
        side_by_side(stores, {})


# ---- the layout and the image space ----------------------------------------------------------------


def test_the_layout_holds_those_of_the_parts(data: MultiModal) -> None:
    layout = data.layout
    assert layout["modality"] == "several"
    assert layout["shape"] == {"fmri-01": [12], "fmri-02": [9], "eeg-02": [4, 12], "eeg-03": [4, 12]}
    assert layout["rois"]["fmri-02"] == {"V1": 3, "V2": 6}
    assert (layout["image_shape"], layout["embedding_width"]) == ([3, 12, 12], 27)
    assert layout["train_samples"] == {
        name: len(sides(data, name.split("-")[0])["train"]) for name in layout["subjects"]
    }
    fmri, eeg = layout["parts"]["fmri"], layout["parts"]["eeg"]
    assert (fmri["modality"], eeg["modality"]) == ("fmri", "eeg")
    assert (fmri["subjects"], eeg["subjects"]) == (["01", "02"], ["02", "03"])
    assert eeg["channels"] == ["E0", "E1", "E2", "E3"]
    assert eeg["sampling_rate"] == 100.0
    for one in (fmri, eeg):
        for entry in ("embedding_space", "embedding_width", "training_set", "classes"):
            assert one[entry] == layout[entry]  # type: ignore[literal-required]
    assert layout["preparation"]["eeg.average_train"] == "all"
    assert set(layout["preparation"]) == {
        f"{name}.{key}" for name, one in layout["parts"].items() for key in one["preparation"]
    }


def test_a_fold_of_a_part_is_named_in_the_protocol(stores: Path) -> None:
    parts = {"fmri": part(stores, "fmri", split={"folds": 4, "fold": 1}), "eeg": part(stores, "eeg")}
    assert side_by_side(stores, parts).layout["protocol"] == "by_stimulus (fold 1 of 4) / by_stimulus"


def test_pictures_of_different_sizes_have_no_common_shape(stores: Path) -> None:
    eeg = part(stores, "eeg")
    records = [record for record in eeg.records]
    place = next(i for i, record in enumerate(records) if isinstance(record, Stimuli))
    larger = records[place].image.repeat(2, axis=1).repeat(2, axis=2)
    records[place] = Stimuli(records[place].id, larger, records[place].label)
    eeg.records, eeg.stores = records, stores / "larger"
    layout = side_by_side(stores, {"fmri": part(stores, "fmri"), "eeg": eeg}).layout
    assert layout["image_shape"] == []
    assert [one["image_shape"] for one in layout["parts"].values()] == [[3, 12, 12], [3, 24, 24]]


def test_the_target_is_fitted_on_the_training_stimuli_of_all_parts(stores: Path) -> None:
    data = side_by_side(stores, embedding=EmbeddingOptions(image_size=3, target="zscore"))
    raw = embedded(data)
    fitted = StandardScaler().fit(
        np.stack([raw[key].numpy().astype(np.float64) for key in sorted(data.stimuli("train"))])
    )
    found = {key: target for key, target in zip(data.tables.stimuli["sha256"], data.space.targets.numpy(), strict=True)}
    for key, target in found.items():
        np.testing.assert_allclose(target, fitted.transform(raw[key].numpy()[None])[0], rtol=1e-4, atol=1e-5)
    alone = [part(stores, name, embedding=EmbeddingOptions(image_size=3, target="zscore")) for name in PARTS]
    for one in alone:
        key, target = one.store.stimuli["sha256"][0], one.targets.numpy()[0]
        assert np.abs(target - found[key]).max() > 1e-2, "nothing to compare"


@pytest.mark.parametrize("model", ["pixels", "none"])
def test_parts_without_pictures_are_refused_beside_others(stores: Path, model: str) -> None:
    parts = {"fmri": part(stores, "fmri"), "eeg": part(stores, "eeg", has_pictures=False)}
    data = side_by_side(stores, parts, embedding=EmbeddingOptions(model=model, image_size=3))
    if model == "none":
        assert data.layout["embedding_width"] == 0
        return
    with pytest.raises(
        DataError, match=r"parts without pictures \(eeg\) cannot be embedded .*embedding\.model=classes"
    ):
        data.layout  # noqa: B018


@pytest.mark.parametrize("pictured", [(), ("fmri",)], ids=["none has pictures", "one has pictures"])
def test_classes_are_a_space_for_parts_without_pictures(stores: Path, pictured: tuple[str, ...]) -> None:
    parts = {name: part(stores, name, has_pictures=name in pictured) for name in PARTS}
    data = side_by_side(stores, parts, embedding=CLASSES)
    assert data.layout["embedding_width"] == 5
    for batch in whole(data, "train"):
        assert torch.equal(batch["embedding"], torch.eye(5)[batch["label"]])
    # pictures are known by their name where there are none
    keys = data.tables.stimuli["sha256"]
    assert keys.is_unique
    assert len(keys) == (28 + 32 if pictured else 45)
    galleries = data.score_context("test").galleries
    # pictures of a class are one and the same there, as for a data set alone
    assert torch.equal(galleries["test"].embedding, torch.eye(5))
    assert galleries["test"].kind == "class_centre"
    assert galleries["fmri.test"].kind == "image", "a conversion looks for stimuli"


def test_signals_alone_are_served_without_an_image_space(stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = side_by_side(stores, embedding=EmbeddingOptions(model="none"))
    with pytest.raises(
        DataError, match=r"reads \['embedding', 'signal'\]; choose another --data\.init_args\.embedding"
    ):
        data.dataset("train")
    monkeypatch.setattr(data, "batch_keys", lambda: frozenset({"signal"}))
    assert all("embedding" not in batch for batch in whole(data, "train"))
    monkeypatch.setattr(data, "batch_keys", lambda: frozenset({"signal", "tokens"}))
    with pytest.raises(DataError, match=r"reads \['signal', 'tokens'\]; choose another --data$"):
        data.dataset("train")


def test_test_recordings_are_training_samples_only_where_nothing_else_is_read(
    data: MultiModal, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: dict[str, Any] = {"relax": True, "batch_keys": frozenset({"signal"})}
    monkeypatch.setattr(data, "_stage_wants", lambda name, otherwise: wanted.get(name, otherwise))
    samples = data.dataset("train")
    monkeypatch.undo()
    assert len(samples) == len(data.dataset("train")) + len(data.dataset("test"))
    assert all((batch["label"] == NO_LABEL).all() for batch in [samples[torch.arange(3)]])
    wanted["batch_keys"] = frozenset({"signal", "embedding"})
    monkeypatch.setattr(data, "_stage_wants", lambda name, otherwise: wanted.get(name, otherwise))
    with pytest.raises(DataError, match="relax=true must be self-supervised"):
        data.dataset("train")


# ---- what scores need ------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["validation", "test"])
def test_galleries_hold_what_is_shown(stores: Path, split: Any) -> None:
    # the first thing that is asked of it
    data = side_by_side(stores)
    galleries = data.score_context(split).galleries
    keys, targets = data.tables.stimuli["sha256"], embedded(data)
    mine = {name: sides(data, name) for name in PARTS}
    expected = {
        "test": mine["fmri"][split] | mine["eeg"][split],
        "fmri.test": mine["fmri"][split],
        "eeg.test": mine["eeg"][split],
        "all": {key for one in mine.values() for side in (*SPLITS[:2], split) for key in one[side]},
    }
    assert set(galleries) == {*expected, "class_centres"}
    for name, wanted in expected.items():
        gallery = galleries[name]
        found = keys.iloc[gallery.stimulus.numpy()].tolist()
        assert len(found) == len(wanted)
        assert set(found) == wanted, name
        assert gallery.kind == ("extra" if name == "all" else "image")
        assert torch.equal(gallery.embedding, torch.stack([targets[key] for key in found]))
        assert torch.equal(gallery.label, data.tables.labels[gallery.stimulus])
    if split == "validation":
        assert not expected["all"] & data.stimuli("test")
    centres = galleries["class_centres"]
    for label, centre in zip(centres.label.tolist(), centres.embedding, strict=True):
        members = {key for key in data.stimuli("train") if data.tables.labels[keys[keys == key].index[0]] == label}
        torch.testing.assert_close(
            centre, torch.stack([targets[key] for key in members]).mean(dim=0), rtol=1e-5, atol=1e-5
        )


def test_ceilings_are_those_of_the_part(data: MultiModal) -> None:
    context = data.score_context("test")
    assert set(context.encoding_ceiling) == {"fmri-01", "fmri-02"}
    # 3 repetitions; the ncsnr of the records
    for person, voxels in (("01", 12), ("02", 9)):
        power = np.linspace(0.2, 2, voxels) ** 2
        expected = np.sqrt(power / (power + 1 / 3))
        np.testing.assert_allclose(context.encoding_ceiling[f"fmri-{person}"].numpy(), expected, rtol=1e-5)
    assert not context.oracle


def test_a_person_who_saw_no_validation_stimulus_has_no_ceiling(stores: Path) -> None:
    data = side_by_side(stores)
    chosen = data.stimuli("validation")
    names = {name_of(*place) for place in np.ndindex(*POOL.shape[:2]) if sha256(*place) in chosen}
    fmri = part(stores, "fmri")

    def without(record: Any) -> Any:
        if not isinstance(record, Trials) or record.subject != "02":
            return record
        kept = [i for i, name in enumerate(record.stimulus) if name not in names]
        lists = {key: [getattr(record, key)[i] for i in kept] for key in ("stimulus", "split")}
        return Trials(record.subject, record.signal[kept], session=record.session, run=record.run, **lists)

    fmri.records, fmri.stores = [without(record) for record in fmri.records], stores / "fewer"
    fewer = side_by_side(stores, {"fmri": fmri, "eeg": part(stores, "eeg")})
    assert fewer.stimuli("validation") == chosen
    assert set(fewer.score_context("validation").encoding_ceiling) == {"fmri-01"}
    assert set(fewer.score_context("test").encoding_ceiling) == {"fmri-01", "fmri-02"}


def test_a_part_without_validation_stimuli_is_left_out_of_validation(stores: Path) -> None:
    """A quarter of the 24 stimuli of one part, and a single one of the other."""
    small = {"classes": (5,), "train": (0, 1), "test": (2,)}
    found = {}
    for seed in range(6):
        parts = {"small": part(stores, "fmri", **small), "eeg": part(stores, "eeg")}
        data = side_by_side(stores, parts, validation=0.1, seed=seed)
        found[seed] = len(sides(data, "small")["validation"])
        if not found[seed]:
            assert set(data.dataset("validation").parts) == {"eeg"}
            [batch] = whole(data, "validation")
            assert set(batch["subject"].tolist()) == {2, 3}
            assert set(data.score_context("validation").galleries) >= {"test", "eeg.test"}
            assert "small.test" not in data.score_context("validation").galleries
    assert 0 in found.values()


def phantoms(stores: Path) -> dict[str, Phantom | PhantomEEG]:
    options = {"train_images": 2, "test_images": 2, "train_repetitions": 1, "test_repetitions": 1, "sessions": 1}
    kinds = {"fmri": (Phantom, 2), "eeg": (PhantomEEG, 1)}
    return {
        name: kind(stores=str(stores), phantom=PhantomOptions(people=people, **options), embedding=PIXELS)
        for name, (kind, people) in kinds.items()
    }


def test_oracles_and_ceilings_are_those_of_the_part_alone(stores: Path) -> None:
    data, alone = side_by_side(stores, phantoms(stores)), phantoms(stores)
    context = data.score_context("test")
    assert set(context.oracle) == {"fmri-01", "fmri-02", "eeg-02"}
    assert set(context.encoding_ceiling) == {"fmri-01", "fmri-02"}
    keys = data.tables.stimuli["sha256"]
    assert len(data.stimuli("test")) < 160, "nothing is shared"
    batches = whole(data, "test")
    for name, one in alone.items():
        expected = one.score_context("test")
        mine, theirs = context.galleries[f"{name}.test"], expected.galleries["test"]
        columns = keys.iloc[mine.stimulus.numpy()].tolist()
        assert columns == one.store.stimuli["sha256"].iloc[theirs.stimulus.numpy()].tolist()
        assert torch.equal(mine.embedding, theirs.embedding)
        for person in one.subjects:
            oracle = context.oracle[f"{name}-{person}"]
            assert torch.equal(oracle, expected.oracle[person])
            number = data.layout["subjects"].index(f"{name}-{person}")
            [batch] = [batch for batch in batches if number in batch["subject"]]
            rows = batch["stimulus"][batch["subject"] == number]
            right = (mine.stimulus[oracle.argmax(dim=1)] == rows).float().mean()
            # 80 pictures; the order of rows and columns is right
            assert right > (0.5 if name == "fmri" else 0.1)
            if name == "fmri":
                ceiling = expected.encoding_ceiling[person]
                assert torch.equal(context.encoding_ceiling[f"{name}-{person}"], ceiling)


def test_contexts_are_made_once(data: MultiModal) -> None:
    assert data.score_context("test") is data.score_context("predict")
    assert data.score_context("validate") is data.score_context("validation")


# ---- the same data set twice, or one alone ---------------------------------------------------------


@pytest.mark.parametrize("same_object", [True, False])
def test_a_data_set_may_come_twice(stores: Path, same_object: bool) -> None:
    first = part(stores, "eeg")
    data = side_by_side(stores, {"first": first, "second": first if same_object else part(stores, "eeg")})
    assert data.layout["subjects"] == ["first-02", "first-03", "second-02", "second-03"]
    assert len(data.tables.stimuli) == 32
    [one, two] = (sides(data, name) for name in ("first", "second"))
    assert one == two
    assert not one[""]
    mine, theirs = whole(data, "test")
    for name in ("signal", "embedding", "stimulus", "label"):
        assert torch.equal(mine[name], theirs[name])  # type: ignore[literal-required]
    assert torch.equal(mine["subject"] + 2, theirs["subject"])
    assert torch.equal(mine["row"] + len(mine["row"]), theirs["row"])


def test_one_data_set_alone_is_divided_as_by_itself(stores: Path) -> None:
    data = side_by_side(stores, {"eeg": part(stores, "eeg")})
    alone = part(stores, "eeg", split={"validation": 0.25})
    assert [len(data.stimuli(split)) for split in SPLITS] == [len(alone.stimuli(split)) for split in SPLITS]
    assert data.layout["parts"].keys() == {"eeg"}
    assert data.layout["subjects"] == ["eeg-02", "eeg-03"]


# ---- batches ---------------------------------------------------------------------------------------


class Sees(LightningModule):
    """Writes down the batches it gets."""

    batch_keys: ClassVar = frozenset({"signal", "embedding"})

    def __init__(self, *, side_by_side: bool) -> None:
        super().__init__()
        self.side_by_side = side_by_side
        self.automatic_optimization = False
        self.seen: dict[str, list[Any]] = {"train": [], "validation": [], "test": []}

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.seen["train"].append(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen["validation"].append(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.seen["test"].append(batch)

    def configure_optimizers(self) -> list[Any]:
        return []


def trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        **{
            "default_root_dir": folder,
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            **options,
        }
    )


def seen_by(data: MultiModal, folder: Path, *, side_by_side: bool = True, **options: Any) -> Sees:
    stage = Sees(side_by_side=side_by_side)
    trainer(folder, **options).fit(stage, datamodule=data)
    return stage


def real(batches: list[Batch]) -> list[int]:
    return [row for batch in batches for row in batch["row"].tolist() if row != PADDING]


def test_training_batches_are_side_by_side(stores: Path, tmp_path: Path) -> None:
    data = side_by_side(stores)
    stage = seen_by(data, tmp_path, max_epochs=3)
    steps = stage.seen["train"]
    # batches of 5 and 4 a person: fMRI of two layouts 2 x (26 // 5), EEG (30 + 30) // 4
    assert len(steps) == 3 * 15
    firsts = data.dataset("train").first_row
    ends = {"fmri": firsts["eeg"], "eeg": len(data.dataset("train"))}
    for step in steps:
        assert list(step) == ["fmri", "eeg"]
        assert [len(step[name]["row"]) for name in step] == [5, 4]
        for name, batch in step.items():
            assert set(batch) == {"signal", "embedding", "stimulus", "label", "subject", "row"}
            assert ((batch["row"] >= firsts[name]) & (batch["row"] < ends[name])).all()
            assert {int(i) // 2 for i in batch["subject"]} == {["fmri", "eeg"].index(name)}
    by_row = {int(row): batch for batch in whole(data, "train") for row in batch["row"]}
    for step in steps[:3]:
        for batch in step.values():
            for i, row in enumerate(batch["row"].tolist()):
                at = int((by_row[row]["row"] == row).nonzero())
                for name in batch:
                    assert torch.equal(batch[name][i], by_row[row][name][at])  # type: ignore[literal-required]
    # an epoch of the longest part is one pass over it
    rows = [row for step in steps[:15] for row in step["eeg"]["row"].tolist()]
    assert len(set(rows)) == 60


def test_workers_change_nothing(stores: Path, tmp_path: Path) -> None:
    found = []
    for workers in (0, 2):
        data = side_by_side(stores, epoch=4)
        data.loader = replace(data.loader, workers=workers)
        found.append(seen_by(data, tmp_path, limit_val_batches=0).seen["train"])
    for mine, theirs in zip(*found, strict=True):
        for name in theirs:
            assert all(torch.equal(mine[name][key], value) for key, value in theirs[name].items())


def test_evaluation_is_one_part_after_another(stores: Path, tmp_path: Path) -> None:
    data = side_by_side(stores, batch_size=7)
    stage = seen_by(data, tmp_path)
    trainer(tmp_path).test(stage, datamodule=data)
    for split in ("validation", "test"):
        batches = stage.seen[split]
        assert real(batches) == list(range(len(data.dataset(split))))
        assert all(len(batch["row"]) <= 7 for batch in batches)
        kinds = [batch["signal"].ndim for batch in batches]
        assert kinds == sorted(kinds)


def test_a_stage_that_knows_no_parts_gets_one_after_another(stores: Path, tmp_path: Path) -> None:
    data = side_by_side(stores, batch_size=6)
    stage = seen_by(data, tmp_path, side_by_side=False)
    batches = stage.seen["train"]
    assert all(len(batch["row"]) == 6 for batch in batches)
    # 26 // 6 of each person of the fMRI, 60 // 6 of the EEG
    assert len(batches) == 4 + 4 + 10
    assert len(set(real(batches))) == 6 * 18


@pytest.mark.parametrize(("epoch", "steps"), [("longest", 15), ("shortest", 10), (4, 4), (40, 40)])
def test_the_length_of_an_epoch_is_chosen(stores: Path, tmp_path: Path, epoch: Any, steps: int) -> None:
    assert len(seen_by(side_by_side(stores, epoch=epoch), tmp_path).seen["train"]) == steps


def test_parts_of_one_size_are_in_orders_of_their_own(stores: Path, tmp_path: Path) -> None:
    """Else samples that stand at the same place in their data sets would always meet."""
    parts = {"first": part(stores, "eeg"), "second": part(stores, "eeg")}
    data = side_by_side(stores, parts)
    steps = seen_by(data, tmp_path).seen["train"]
    first = data.dataset("train").first_row["second"]
    together = sum(len(set((s["first"]["row"] + first).tolist()) & set(s["second"]["row"].tolist())) for s in steps)
    # by chance 4 of the 72 samples of each meet themselves
    assert len(steps) == 18
    assert together < 15


def test_orders_depend_on_the_joint_seed_alone(stores: Path, tmp_path: Path) -> None:
    def order(seed: int, own: int) -> list[list[int]]:
        parts = {name: part(stores, name, seed=own) for name in PARTS}
        data = side_by_side(stores, parts, seed=seed)
        # the seed also chooses the validation stimuli
        data.validation = 0.0
        return [batch["row"].tolist() for step in seen_by(data, tmp_path).seen["train"] for batch in step.values()]

    assert order(0, 0) == order(0, 5)
    assert order(0, 0) != order(1, 0)


def test_a_batch_that_is_too_large_is_refused(stores: Path, tmp_path: Path) -> None:
    parts = {name: part(stores, name, batch_size=27 if name == "fmri" else 4) for name in PARTS}
    with pytest.raises(DataError, match=r"27 samples x 1 processes, but only 26 training samples of one layout"):
        seen_by(side_by_side(stores, parts), tmp_path)


# ---- a stage for single data sets ------------------------------------------------------------------


def test_ridge_regression_treats_all_people_as_those_of_one_data_set(stores: Path, tmp_path: Path) -> None:
    """Nothing is left out here, so that each part alone is divided in the same way."""

    def parts() -> dict[str, Any]:
        return {
            "fmri": part(stores, "fmri", test=(6,), batch_size=7),
            "eeg": part(stores, "eeg", train=(3, 4, 8, 9), test=(6,), batch_size=7),
        }

    data = side_by_side(stores, parts(), validation=0.0, batch_size=7)
    joint = RidgeAlignment(data.layout, alpha=10.0)
    trainer(tmp_path).fit(joint, datamodule=data)
    [results] = [trainer(tmp_path).predict(joint, datamodule=data)]
    first = 0
    for name, alone in parts().items():
        model = RidgeAlignment(alone.layout, alpha=10.0)
        trainer(tmp_path).fit(model, datamodule=alone)
        for person in range(len(alone.subjects)):
            for kind in ("decoders", "encoders"):
                mine, theirs = getattr(joint, kind)[first + person], getattr(model, kind)[person]
                for entry, value in theirs.state_dict().items():
                    assert value.abs().max() > 1e-3, "nothing to compare"
                    assert torch.equal(mine.state_dict()[entry], value), f"{kind} of {name}-{person}"
        outputs = trainer(tmp_path).predict(model, datamodule=alone)
        theirs = torch.cat([output["brain_embedding"] for output in outputs])
        mine = [output for output in results if int(output["subject"][0]) in range(first, first + 2)]
        assert torch.equal(torch.cat([output["brain_embedding"] for output in mine]), theirs)
        first += len(alone.subjects)
