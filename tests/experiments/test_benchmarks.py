"""The benchmarks run; what they measure is not tested, because other work on the machine would decide."""

from __future__ import annotations

import re
from pathlib import Path

from experiments.benchmarks.data_path import data_path, measure, open_generated


def test_data_path_measures_first_batch_and_throughput(tmp_path: Path, capfd) -> None:
    data_path(folder=tmp_path, samples=200, rounds=1)
    printed = capfd.readouterr().out
    for start in ("| mmap | no |", "| mmap | yes |", "| ram | yes |", "| ram | ", "peak memory: "):
        assert any(line.startswith(start) for line in printed.splitlines()), printed
    assert len(re.findall(r"\(\d+\.\d+ \.\. \d+\.\d+\)", printed)) == 2
    assert [path.name for path in tmp_path.glob("generated-*")], "kept where it was asked for"


def test_the_bare_loop_gives_what_the_loader_gives(tmp_path: Path) -> None:
    module = open_generated(tmp_path, 100, 16, "mmap")
    dataset = module.dataset("train")
    batch = next(iter(module.train_dataloader()))
    stored, mean, scale = dataset.signals[0][0], dataset.mean[0], dataset.scale[0]
    bare = stored.index_select(0, dataset.source[batch["row"]]).sub(mean).mul(scale)
    assert (batch["signal"] == bare).all()
    assert callable(measure)
