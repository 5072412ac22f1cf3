from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.io

from contracts import DataError
from datamodules import BrainDataModule, SplitOptions, VanGerven2010
from tests.datamodules.contract import DataModuleContract, everything, leftovers, real_root
from tests.formats import vangerven2010 as format

FILE = "vangerven2010/digit69_28x28.mat"


class TestVanGerven2010(DataModuleContract):
    kind = VanGerven2010
    split: ClassVar[SplitOptions] = SplitOptions(validation=0.25)

    @classmethod
    def write(cls, root: Path) -> None:
        format.write(root)

    def real(self, stores: Path) -> BrainDataModule:
        return VanGerven2010(str(real_root(FILE)), stores=str(stores))


class TestVanGerven2010Real(TestVanGerven2010):
    @classmethod
    def write(cls, root: Path) -> None:
        (root / "digit69_28x28.mat").symlink_to(real_root(FILE) / "digit69_28x28.mat")


def test_arrays_of_the_file_reach_the_store_unchanged(tmp_path: Path) -> None:
    format.write(tmp_path)
    expected = format.content()
    data = VanGerven2010(str(tmp_path), stores=str(tmp_path / "stores"), split=SplitOptions(validation=0.25))
    signal = np.concatenate([expected["fmriTrn"], expected["fmriTest"]]).astype(np.float32)
    np.testing.assert_array_equal(data.store.signals("01"), signal)
    pictures, code = format.digits(16)
    for number, picture in enumerate(pictures):
        np.testing.assert_array_equal(data.store.image(number), np.repeat(picture[..., None], 3, axis=2))
    assert data.store.stimuli["class"].tolist() == [("six", "nine")[value - 1] for value in code]
    assert data.store.trials["split"].tolist() == ["train"] * 12 + ["test"] * 4


def test_pixels_can_be_read_from_the_voxels(tmp_path: Path) -> None:
    format.write(tmp_path, train=60, test=20, voxels=60, noise=0.1)
    data = VanGerven2010(str(tmp_path), stores=str(tmp_path / "stores"), split=SplitOptions(validation=0.0))
    train, test = everything(data, "train")[0], everything(data, "test")[0]
    x, y = train["signal"].double().numpy(), train["embedding"].double().numpy()
    weights = np.linalg.solve(x.T @ x + 10 * np.eye(60), x.T @ (y - y.mean(axis=0)))
    predicted = test["signal"].double().numpy() @ weights
    truth = test["embedding"].double().numpy() - y.mean(axis=0)
    similarity = np.corrcoef(predicted, truth)[:20, 20:]
    right = np.diag(similarity)[:, None]
    assert np.mean(similarity < right) * 20 / 19 > 0.8, "two-way identification, chance 0.5"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"labelTrn": np.full((12, 1), 3, np.uint8)}, ["labelTrn", "3"]),
        ({"labelTest": np.array([[np.nan]] * 4)}, ["labelTest", "nan"]),
        ({"labelTest": np.ones((3, 1))}, ["labelTest", "(4)", "(3,)"]),
        ({"stimTrn": np.zeros((12, 783), np.uint8)}, ["stimTrn", "(12, 784)", "(12, 783)"]),
        ({"stimTrn": np.zeros((12, 784))}, ["stimTrn", "uint8", "float64"]),
        ({"fmriTest": np.zeros((4, 19))}, ["sub-01", "(19,)", "(20,)"]),
        ({"fmriTrn": None}, ["missing 'fmriTrn'", "fmriTest"]),
    ],
)
def test_a_file_with_other_content_is_refused(tmp_path: Path, change: dict[str, Any], expected: list[str]) -> None:
    content = {key: value for key, value in (format.content() | change).items() if value is not None}
    scipy.io.savemat(tmp_path / "digit69_28x28.mat", content)
    with pytest.raises(DataError) as raised:
        VanGerven2010(str(tmp_path), stores=str(tmp_path / "stores")).store  # noqa: B018
    for part in expected:
        assert part in str(raised.value)
    assert not leftovers(tmp_path / "stores")
