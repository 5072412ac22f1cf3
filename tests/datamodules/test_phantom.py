from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV

from contracts import DataError
from datamodules import (
    BrainDataModule,
    EmbeddingOptions,
    Phantom,
    PhantomEEG,
    PhantomMEG,
    PhantomOptions,
    PhantomPictures,
    PictureOptions,
    SampleOptions,
)
from tests.datamodules.contract import DataModuleContract, everything

TINY = PhantomOptions(people=2, train_images=2, test_images=1, train_repetitions=2, test_repetitions=2, sessions=2)
KINDS = (Phantom, PhantomEEG, PhantomMEG)


class PhantomContract(DataModuleContract):
    kind: ClassVar[type[Phantom] | type[PhantomEEG] | type[PhantomMEG]]

    @classmethod
    def write(cls, root: Path) -> None:
        pass

    def make(self, root: Path, **options: Any) -> BrainDataModule:
        return self.kind(str(root), phantom=TINY, **options)

    @pytest.mark.full
    def test_declared_facts_are_those_of_the_recordings(self, tmp_path: Path) -> None:
        super().test_declared_facts_are_those_of_the_recordings(tmp_path)

    def real(self, stores: Path) -> BrainDataModule:
        return self.kind(stores=str(stores), embedding=EmbeddingOptions(image_size=8))


class TestPhantom(PhantomContract):
    kind = Phantom


class TestPhantomEEG(PhantomContract):
    kind = PhantomEEG


class TestPhantomMEG(PhantomContract):
    kind = PhantomMEG


def test_each_simulated_experiment_has_its_own_store(tmp_path: Path) -> None:
    folders = {
        Phantom(stores=str(tmp_path), phantom=options).store.folder
        for options in (
            PhantomOptions(people=1, train_images=1, test_images=1, train_repetitions=1),
            PhantomOptions(people=1, train_images=1, test_images=1, train_repetitions=1, control="noise"),
        )
    }
    assert len(folders) == 2


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BrainDataModule]:
    """All three modalities with the pictures of the shipped experiment, shown once."""
    once = PhantomOptions(people=1, train_repetitions=1, test_repetitions=1, sessions=1)
    stores = str(tmp_path_factory.mktemp("stores"))
    return {kind.name: kind(stores=stores, phantom=once, embedding=EmbeddingOptions(image_size=4)) for kind in KINDS}


def test_modalities_share_some_pictures_and_never_train_on_what_another_tests(
    three: dict[str, BrainDataModule],
) -> None:
    shown = {
        name: {"test": data.stimuli("test"), "train": data.stimuli("train") | data.stimuli("validation")}
        for name, data in three.items()
    }
    for name, mine in shown.items():
        assert (len(mine["train"]), len(mine["test"])) == (480, 80)
        for other, theirs in shown.items():
            assert not mine["test"] & theirs["train"]
            if other != name:
                assert 0 < len(mine["test"] & theirs["test"]) <= 80
                assert 0 < len(mine["train"] & theirs["train"]) < 480
    assert shown["phantom"]["test"] != shown["phantom_eeg"]["test"]


def test_the_pictures_of_the_small_clip_are_shown_to_nobody(three: dict[str, BrainDataModule], tmp_path: Path) -> None:
    pictures = PhantomPictures(stores=str(tmp_path), pictures=PictureOptions(train=12, validation=2, test=2))
    theirs = {split: pictures.stimuli(split) for split in ("train", "validation", "test")}
    assert sum(map(len, theirs.values())) == 640
    for data in three.values():
        shown = frozenset(data.store.stimuli["sha256"])
        assert not any(split & shown for split in theirs.values())


def test_people_are_partly_the_same(three: dict[str, BrainDataModule]) -> None:
    people = [set(kind.facts.subjects) for kind in KINDS]
    assert all(a & b and a != b for a in people for b in people if a is not b)
    assert three["phantom_eeg"].subjects == ["02"]


def test_sensors_have_names_places_and_times(three: dict[str, BrainDataModule]) -> None:
    eeg, meg = three["phantom_eeg"].layout, three["phantom_meg"].layout
    assert {"Oz", "Cz", "Fp1"} <= set(eeg["channels"])
    assert meg["channels"][0] == "MEG001"
    for layout, (channels, times) in ((eeg, (64, 60)), (meg, (102, 60))):
        assert list(layout["shape"].values()) == [[channels, times]]
        assert np.shape(layout["positions"]) == (channels, 3)
        assert layout["sampling_rate"] == 100.0
        assert layout["start"] == pytest.approx(-0.1)
    raw = {name: np.asarray(three[name].store.signals(three[name].subjects[0])) for name in three}
    assert 1e-6 < raw["phantom_eeg"].std(axis=0).mean() < 1e-4, "volts"
    assert 1e-14 < raw["phantom_meg"].std(axis=0).mean() < 1e-11, "tesla"


@pytest.mark.parametrize("kind", KINDS)
def test_ranges_of_pictures_never_meet(kind: Any) -> None:
    with pytest.raises(DataError, match=r"train_images=1001.*lower --data\.init_args\.phantom\.train_images"):
        kind(phantom=PhantomOptions(train_images=1001))


def two_way(kind: Any, stores: Path, options: PhantomOptions, window: tuple[float, float] | None = None) -> list[float]:
    """Two-way identification by scikit-learn's ridge regression to principal components of the pixels."""
    data = kind(
        stores=str(stores),
        phantom=options,
        embedding=EmbeddingOptions(image_size=16, target="pca(32)"),
        samples=SampleOptions(cleaning="zscore_session", average_train="all", window=window),
    )
    results = []
    for subject in range(options.people):
        parts = {}
        for split in ("train", "test"):
            [batch] = everything(data, split)
            mine = batch["subject"] == subject
            parts[split] = batch["signal"][mine].flatten(1).numpy(), batch["embedding"][mine].numpy()
        predicted = RidgeCV(alphas=np.logspace(1, 7, 7)).fit(*parts["train"]).predict(parts["test"][0])
        truth = parts["test"][1]
        similarity = torch.cosine_similarity(torch.tensor(predicted)[:, None], torch.tensor(truth)[None], dim=-1)
        own = similarity.diagonal()[:, None]
        results.append(float((similarity < own).sum() / (len(truth) * (len(truth) - 1))))
    return results


SMALL = PhantomOptions(people=3, train_images=8, test_images=2, train_repetitions=2, test_repetitions=8)


@pytest.mark.parametrize("kind", [PhantomEEG, PhantomMEG])
def test_pictures_can_be_told_apart_after_their_onset_only(kind: Any, tmp_path: Path) -> None:
    before = two_way(kind, tmp_path, SMALL, window=(-0.1, 0.04))
    after = two_way(kind, tmp_path, SMALL, window=(0.05, 0.3))
    assert 0.43 < np.mean(before) < 0.57
    assert np.mean(after) > 0.62
    assert min(after) > max(before) - 0.05


@pytest.mark.parametrize("control", ["shuffled", "noise"])
def test_controls_score_at_chance(control: Any, tmp_path: Path) -> None:
    options = PhantomOptions(**{**SMALL.__dict__, "control": control})
    assert 0.43 < np.mean(two_way(PhantomEEG, tmp_path, options)) < 0.57


def test_the_oracle_of_sensors_knows_the_pictures(tmp_path: Path) -> None:
    data = PhantomEEG(
        stores=str(tmp_path),
        phantom=PhantomOptions(people=1, train_images=1, test_images=1, test_repetitions=8),
        embedding=EmbeddingOptions(image_size=8),
    )
    context = data.score_context("test")
    likelihood = context.oracle["02"]
    assert likelihood.shape == (40, 40)
    right = torch.tensor(
        [int((context.galleries["test"].stimulus == s).nonzero()) for s in data.prepared["02"].stimulus["test"]]
    )
    assert (likelihood.argmax(dim=1) == right).float().mean() > 0.8
    cut = PhantomEEG(stores=str(tmp_path), phantom=data.phantom, samples=SampleOptions(window=(0.0, 0.2)))
    assert not cut.score_context("test").oracle
