"""MultiModal: the layout, the image space that all parts share, and what scores need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from contracts import NO_LABEL, DataError
from datamodules import EmbeddingOptions, MultiModal, Phantom, PhantomEEG, PhantomOptions, Stimuli, Trials
from tests.datamodules.side_by_side import SPLITS, embedded, plain, sides, whole
from tests.formats.side_by_side import PARTS, PIXELS, POOL, name_of, part, sha256, side_by_side
from tests.lightning_modules.advice import NO_LOSS

pytestmark = NO_LOSS

CLASSES = EmbeddingOptions(model="classes")


@pytest.fixture(scope="module")
def data(stores: Path) -> MultiModal:
    return plain(stores)


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
