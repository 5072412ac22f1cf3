from pathlib import Path
from typing import Any

import pytest

from datamodules import BrainDataModule, Phantom, PhantomOptions
from tests.datamodules.contract import DataModuleContract

TINY = PhantomOptions(people=2, train_images=2, test_images=1, train_repetitions=2, test_repetitions=2, sessions=2)


class TestPhantom(DataModuleContract):
    @classmethod
    def write(cls, root: Path) -> None:
        pass

    def make(self, root: Path, **options: Any) -> BrainDataModule:
        return Phantom(str(root), phantom=TINY, **options)

    @pytest.mark.full
    def test_declared_facts_are_those_of_the_recordings(self, tmp_path: Path) -> None:
        super().test_declared_facts_are_those_of_the_recordings(tmp_path)

    def real(self, stores: Path) -> BrainDataModule:
        return Phantom(stores=str(stores))


def test_each_simulated_experiment_has_its_own_store(tmp_path: Path) -> None:
    folders = {
        Phantom(stores=str(tmp_path), phantom=options).store.folder
        for options in (
            PhantomOptions(people=1, train_images=1, test_images=1, train_repetitions=1),
            PhantomOptions(people=1, train_images=1, test_images=1, train_repetitions=1, control="noise"),
        )
    }
    assert len(folders) == 2
