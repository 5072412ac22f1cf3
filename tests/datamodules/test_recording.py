"""The contract on data sets in memory: several people, other modalities, pictures as files."""

from pathlib import Path
from typing import Any

from datamodules import BrainDataModule, SplitOptions
from tests.datamodules.contract import DataModuleContract
from tests.formats.recording import Recording, SensorRecording, experiment


class TestPeopleWithDifferentVoxels(DataModuleContract):
    @classmethod
    def write(cls, root: Path) -> None:
        pass

    def make(self, root: Path, **options: Any) -> BrainDataModule:
        return Recording(str(root), experiment({"01": (12,), "02": (9,), "03": (12,)}, runs=2), **options)


class TestSensorsInHalfPrecisionWithPictureFiles(DataModuleContract):
    split = SplitOptions(protocol="by_class", folds=3, fold=1, validation=0.34)

    @classmethod
    def write(cls, root: Path) -> None:
        experiment(images=root / "pictures")

    def make(self, root: Path, **options: Any) -> BrainDataModule:
        shape = {"a": (4, 5), "b": (4, 5)}
        records = experiment(shape, classes=6, dtype="float16", images=root / "pictures", offset=20)
        return SensorRecording(str(root), records, **options)
