"""MultiModal: batches side by side and one after another, and stages that know no parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning import LightningModule

from contracts import PADDING, Batch, DataError
from datamodules import MultiModal
from lightning_modules import RidgeAlignment
from tests.datamodules.side_by_side import whole
from tests.formats.side_by_side import PARTS, part, side_by_side
from tests.lightning_modules.advice import NO_LOSS
from tests.lightning_modules.fitting import short_trainer

pytestmark = NO_LOSS


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


def seen_by(data: MultiModal, folder: Path, *, side_by_side: bool = True, **options: Any) -> Sees:
    stage = Sees(side_by_side=side_by_side)
    short_trainer(folder, **options).fit(stage, datamodule=data)
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
    short_trainer(tmp_path).test(stage, datamodule=data)
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
    short_trainer(tmp_path).fit(joint, datamodule=data)
    [results] = [short_trainer(tmp_path).predict(joint, datamodule=data)]
    first = 0
    for name, alone in parts().items():
        model = RidgeAlignment(alone.layout, alpha=10.0)
        short_trainer(tmp_path).fit(model, datamodule=alone)
        for person in range(len(alone.subjects)):
            for kind in ("decoders", "encoders"):
                mine, theirs = getattr(joint, kind)[first + person], getattr(model, kind)[person]
                for entry, value in theirs.state_dict().items():
                    assert value.abs().max() > 1e-3, "nothing to compare"
                    assert torch.equal(mine.state_dict()[entry], value), f"{kind} of {name}-{person}"
        outputs = short_trainer(tmp_path).predict(model, datamodule=alone)
        theirs = torch.cat([output["brain_embedding"] for output in outputs])
        mine = [output for output in results if int(output["subject"][0]) in range(first, first + 2)]
        assert torch.equal(torch.cat([output["brain_embedding"] for output in mine]), theirs)
        first += len(alone.subjects)
