"""MultiModal: one numbering of data sets that share some of their pictures, and their samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contracts import NO_LABEL, PADDING
from datamodules import LoaderOptions, MultiModal, SampleOptions, Trials
from tests.datamodules.side_by_side import SPLITS, embedded, plain, shown, sides, table_of, whole
from tests.formats.side_by_side import PARTS, PLAIN, POOL, name_of, part, sha256, side_by_side
from tests.lightning_modules.advice import NO_LOSS

pytestmark = NO_LOSS


@pytest.fixture(scope="module")
def data(stores: Path) -> MultiModal:
    return plain(stores)


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
