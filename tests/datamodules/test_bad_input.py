"""Wrong options and recordings, seen from the datamodule: a message that helps, and nothing half-written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts import DataError
from datamodules import (
    BrainDataModule,
    EmbeddingOptions,
    LoaderOptions,
    Miyawaki2008,
    SampleOptions,
    SplitOptions,
    Stimuli,
    Trials,
    VanGerven2010,
)
from tests.datamodules.contract import leftovers
from tests.formats import miyawaki2008, vangerven2010
from tests.formats.recording import Recording, change, experiment, pictures

RECORDS = experiment({"01": (6,), "02": (6,)})


def recording(folder: Path, records: list[Any] = RECORDS, **options: Any) -> Recording:
    return Recording(str(folder / "raw"), records, stores=str(folder / "stores"), **options)


def use(data: BrainDataModule) -> None:
    """Everything that a run asks for."""
    data.prepare_data()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        list(loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subjects": ["01", "03"]}, r"\['01', '03'\]; recording has 01, 02; change --data\.init_args\.subjects"),
        ({"subjects": ["01", "01"]}, r"repeated"),
        ({"subjects": []}, r"no subjects in \[\]"),
        ({"samples": SampleOptions(rois=["V7"])}, r"sub-01: no region V7; it has V1, V2"),
        ({"split": SplitOptions(folds=3, fold=3)}, r"split\.fold must be 0\.\.2 .*found 3"),
        ({"split": SplitOptions(folds=500)}, r"split\.folds=500, but there are only 28"),
        ({"split": SplitOptions(protocol="by_class")}, r"train/test overlap: 4 class entries"),
        ({"embedding": EmbeddingOptions(target="pca")}, r"target transform 'pca' is not one of"),
        ({"embedding": EmbeddingOptions(image_size=4, target="pca(40)")}, r"18 training stimuli .*asked for 40"),
        ({"embedding": EmbeddingOptions(model="clip")}, r"found 'clip'"),
        ({"loader": LoaderOptions(batch_size=1000)}, r"batch larger than the data set: 1000 .*only 72"),
        ({"loader": LoaderOptions(batch_size=0)}, r"batch_size must be at least 1, found 0"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    use(recording(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=message):
        use(recording(tmp_path, **options))
    assert all(path.read_bytes() == content for path, content in before.items()), "what was there is untouched"
    assert not [name for name in leftovers(tmp_path) if name.endswith(".partial")]


def test_unknown_split_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split must be one of train, validation, test, found 'val'"):
        recording(tmp_path).dataset("val")


def test_a_split_without_samples(tmp_path: Path) -> None:
    data = recording(tmp_path, split=SplitOptions(validation=0.0))
    assert data.val_dataloader() == []
    with pytest.raises(DataError, match=r"no samples in split 'validation'.*init_args\.split"):
        data.dataset("validation")


def test_one_class_only(tmp_path: Path) -> None:
    records = change(RECORDS, Stimuli, label=["face"] * 28)
    data = recording(tmp_path, records)
    use(data)
    assert data.layout["classes"] == ["face"]
    assert len(data.score_context("test").galleries["class_centres"].label) == 1
    with pytest.raises(DataError, match=r"split\.folds=2, but there are only 1"):
        recording(tmp_path, records, split=SplitOptions(protocol="by_class", folds=2)).trials  # noqa: B018


def test_no_class_at_all(tmp_path: Path) -> None:
    data = recording(tmp_path, change(RECORDS, Stimuli, label=()))
    use(data)
    assert data.layout["classes"] == []
    assert set(data.dataset("test").labels.tolist()) == {-1}
    assert "class_centres" not in data.score_context("test").galleries


def test_pictures_of_different_sizes_cannot_share_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [
        Stimuli([f"small {i}" for i in range(3)], pictures(3, side=8)),
        Stimuli([f"large {i}" for i in range(3)], pictures(3, side=9)),
        Trials(
            "01",
            np.random.default_rng(0).standard_normal((6, 3)),
            stimulus=[f"{size} {i}" for i in range(3) for size in ("small", "large")],
            split=["train"] * 4 + ["test"] * 2,
        ),
    ]
    data = recording(tmp_path, records, split=SplitOptions(validation=0.0), loader=LoaderOptions(batch_size=2))
    use(data)
    monkeypatch.setattr(data, "batch_keys", lambda: frozenset({"signal", "image"}))
    with pytest.raises(DataError, match="pictures of different sizes cannot share a batch"):
        list(data.test_dataloader())


@pytest.mark.parametrize(
    ("kind", "write", "file"),
    [
        (VanGerven2010, vangerven2010.write, "digit69_28x28.mat"),
        (Miyawaki2008, miyawaki2008.write, "V1_mean_figure.mat"),
    ],
)
def test_truncated_raw_file(tmp_path: Path, kind: type[BrainDataModule], write: Any, file: str) -> None:
    path = write(tmp_path / "raw")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    data = kind(str(tmp_path / "raw"), stores=str(tmp_path / "stores"))
    with pytest.raises(DataError, match=rf"cannot read .*{file} \({len(whole) // 2} bytes\)"):
        data.store  # noqa: B018
    assert path.read_bytes() == whole[: len(whole) // 2]
    assert not leftovers(tmp_path / "stores")
    path.write_bytes(whole)
    assert data.store.subjects == ["01"]


def test_a_trainer_that_replaces_samplers_is_refused(tmp_path: Path) -> None:
    from lightning import Trainer

    data = recording(tmp_path)
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    data.trainer = Trainer(use_distributed_sampler=True, **options)
    with pytest.raises(DataError, match=r"use_distributed_sampler=false"):
        data.setup("fit")
    data.trainer = Trainer(use_distributed_sampler=False, **options)
    data.setup("fit")
