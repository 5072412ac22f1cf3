"""ScoreCallback: what is kept of an output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from callbacks import Part, ScoreCallback
from callbacks.metrics.gather import Outputs
from contracts import ContractError, Output, Score
from tests.callbacks.pictures import Recorded, Replay, context
from tests.lightning_modules.fitting import short_trainer


class Keeps(ScoreCallback):
    needs = frozenset({"latent"})
    optional = frozenset({"confidence"})

    def evaluate(self, parts: Sequence[Part], *, resample: bool = True) -> list[Score]:
        return []


class Reduces(Keeps):
    def reduce(self, outputs: Output) -> Output:
        return {"doubled": 2 * outputs["latent"][:, :1]}


def rows(number: int, **more: Tensor) -> Output:
    numbers = torch.arange(number)
    passed = {name: torch.zeros(number, dtype=torch.int64) for name in ("label", "subject")}
    return {**passed, "stimulus": numbers, "row": numbers, "latent": torch.rand(number, 3), **more}


def kept(callback: ScoreCallback, outputs: Output, folder: Path) -> Output:
    about = context()
    names = frozenset({"latent"})
    short_trainer(folder, callback).test(
        Replay(about.layout, names), datamodule=Recorded([outputs], about, batch_size=2), verbose=False
    )
    assert callback.part is not None
    return callback.part.outputs["01"]


def test_needs_and_what_there_is_of_the_optional(tmp_path: Path) -> None:
    passed = {"label", "stimulus", "subject", "row"}
    plain = rows(5, signal=torch.rand(5, 9))
    assert kept(Keeps(), plain, tmp_path).keys() == {*passed, "latent"}
    more = rows(5, confidence=torch.rand(5, 2))
    found = kept(Keeps(), more, tmp_path)
    assert found.keys() == {*passed, "latent", "confidence"}
    assert torch.equal(found["confidence"], more["confidence"])


def test_what_is_reduced_is_in_the_order_of_rows(tmp_path: Path) -> None:
    outputs = rows(5)
    found = kept(Reduces(), outputs, tmp_path)
    assert found.keys() == {"label", "stimulus", "subject", "row", "doubled"}
    assert torch.equal(found["doubled"], 2 * outputs["latent"][:, :1])


def test_an_entry_of_some_batches_only_is_refused() -> None:
    collected = Outputs()
    for batch in (rows(3), {**rows(2, confidence=torch.rand(2, 1)), "row": torch.tensor([3, 4])}):
        collected.update(batch)
    with pytest.raises(ContractError, match="some batches have confidence and others do not"):
        collected.compute()
