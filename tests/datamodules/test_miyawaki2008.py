from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.io

from contracts import DataError
from datamodules import BrainDataModule, LoaderOptions, Miyawaki2008, SplitOptions
from tests.datamodules.contract import DataModuleContract, everything, leftovers, real_root
from tests.formats import miyawaki2008 as format

FILE = "miyawaki2008/V1_mean_figure.mat"


class TestMiyawaki2008(DataModuleContract):
    kind = Miyawaki2008
    split: ClassVar[SplitOptions] = SplitOptions(folds=5, fold=1, validation=0.25)

    @classmethod
    def write(cls, root: Path) -> None:
        format.write(root)

    def real(self, stores: Path) -> BrainDataModule:
        return Miyawaki2008(str(real_root(FILE)), stores=str(stores))


class TestMiyawaki2008Real(TestMiyawaki2008):
    @classmethod
    def write(cls, root: Path) -> None:
        (root / "V1_mean_figure.mat").symlink_to(real_root(FILE) / "V1_mean_figure.mat")


def test_arrays_of_the_file_reach_the_store_unchanged(tmp_path: Path) -> None:
    format.write(tmp_path, number=6, repetitions=3)
    expected = format.content(number=6, repetitions=3)
    data = Miyawaki2008(str(tmp_path), stores=str(tmp_path / "stores"))
    np.testing.assert_array_equal(data.store.signals("01"), expected["R2"].T.astype(np.float32))
    assert len(data.store.stimuli) == 6
    for trial, number in enumerate(data.store.trials["number"]):
        picture = expected["I2"][:, trial].reshape(10, 10).T
        np.testing.assert_array_equal(data.store.image(number), np.repeat(picture[..., None], 3, axis=2) * 255)
    assert data.store.trials["repetition"].value_counts().tolist() == [6, 6, 6]


def test_leave_one_repetition_out_tests_on_one_round(tmp_path: Path) -> None:
    format.write(tmp_path, number=6, repetitions=3)
    split = SplitOptions(protocol="leave_one_repetition_out", fold=2, validation=0.0)
    data = Miyawaki2008(str(tmp_path), stores=str(tmp_path / "stores"), split=split, loader=LoaderOptions(batch_size=2))
    assert data.folds == 3
    assert data.layout["protocol"].startswith("leave_one_repetition_out")
    assert [len(everything(data, name)[0]["row"]) for name in ("train", "test")] == [12, 6]
    assert data.val_dataloader() == []


def test_without_a_division_the_message_names_the_way_out(tmp_path: Path) -> None:
    format.write(tmp_path)
    with pytest.raises(DataError, match=r"no test trials under by_stimulus.*split"):
        Miyawaki2008(str(tmp_path), stores=str(tmp_path / "stores")).trials  # noqa: B018


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"I2": np.zeros((100, 39), np.uint8)}, ["I2", "(100, 40)", "(100, 39)"]),
        ({"I2": np.zeros((99, 40), np.uint8)}, ["I2", "(100, 40)", "(99, 40)"]),
        ({"R2": None}, ["missing 'R2'", "'I2'"]),
        ({"R2": np.array([["a"]], object)}, ["R2", "numbers"]),
    ],
)
def test_a_file_with_other_content_is_refused(tmp_path: Path, change: dict[str, Any], expected: list[str]) -> None:
    content = {key: value for key, value in (format.content() | change).items() if value is not None}
    scipy.io.savemat(tmp_path / "V1_mean_figure.mat", content)
    with pytest.raises(DataError) as raised:
        Miyawaki2008(str(tmp_path), stores=str(tmp_path / "stores")).store  # noqa: B018
    for part in ("V1_mean_figure.mat", *expected):
        assert part in str(raised.value)
    assert not leftovers(tmp_path / "stores")
