"""The benchmarks run; what they measure is not tested, because other work on the machine would decide."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from contracts import DataError, UserError
from experiments.benchmarks import conversion
from experiments.benchmarks import nsd_conversion as nsd
from experiments.benchmarks import things_meg_conversion as things_meg
from experiments.benchmarks.data_path import data_path, measure, open_generated
from experiments.benchmarks.fmri_mae_step import GOD_SUBJECT_2, fmri_mae_step, make_model, plain_loss
from experiments.benchmarks.masked_segments import masked_segments
from experiments.cli import main
from tests.experiments.launching import CONFIGS
from tests.formats import pieman

SMALL = {"width": 32, "depth": 2, "decoder_width": 16, "decoder_depth": 1, "num_heads": 2}


@pytest.mark.full
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


def test_the_plain_network_is_ours() -> None:
    model = make_model(**SMALL)
    signal = torch.randn(3, sum(GOD_SUBJECT_2))
    batch = {"signal": signal, "subject": torch.zeros(3, dtype=torch.int64), "row": torch.arange(3)}
    network = model.autoencoder
    weight = dict(network.named_parameters()) | dict(network.named_buffers())
    ours = model.reconstruction_loss(batch, "all").mean()
    torch.testing.assert_close(plain_loss(weight, signal, num_heads=2), ours)


@pytest.mark.full
def test_a_step_is_measured_for_both(capfd: pytest.CaptureFixture[str]) -> None:
    fmri_mae_step(**SMALL, batch_size=2, rounds=1)
    printed = capfd.readouterr().out
    assert re.search(r"^\| ours \| \d", printed, re.MULTILINE)
    assert re.search(r"^\| plain \| \d", printed, re.MULTILINE)
    assert re.search(r"^ours / plain: \d+\.\d\d$", printed, re.MULTILINE)
    assert re.search(r"first losses differ by [0-9.]+e-\d+$|by 0\.0e\+00$", printed, re.MULTILINE)


def test_hidden_segments_are_compared_under_the_same_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEUROALIGN_SHARED", str(tmp_path / "raw"))
    pieman.write(tmp_path / "raw" / "htfa_timeseries", people=12)
    words = [f"--config={CONFIGS}/trainer/cpu.yaml", f"--config={CONFIGS}/stage/fmri_mae_timeseries.yaml"]
    main(["fit", *words, f"--data={CONFIGS}/data/pieman.yaml", "--trainer.max_epochs=1"])
    capfd.readouterr()
    masked_segments("runs/pieman/all/fmri_mae_timeseries/default")
    errors = {
        name: float(error)
        for name, error in re.findall(r"^\| (.+) \| ([\d.]+) \|$", capfd.readouterr().out, re.MULTILINE)
    }
    assert errors["autoregression of the region"] < errors["zero (mean of the run)"]
    assert 0 < errors["FmriMAE"] < 3
    with pytest.raises(DataError, match="holds no finished run"):
        masked_segments("runs/other")


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Runs a benchmark of reading in this process and returns the rows of its table."""

    def rows_of(benchmark: Callable[..., None], **options: Any) -> list[str]:
        def in_this_process(_: str, ways: list[str], rounds: int, **options: Any) -> dict[str, list[Any]]:
            found = {}
            for way in ways:
                benchmark(**options, implementation=way)
                found[way] = [json.loads(capfd.readouterr().out.splitlines()[-1])] * rounds
            return found

        monkeypatch.setattr(conversion, "in_turns", in_this_process)
        monkeypatch.setattr(conversion, "SECONDS", 0.0)
        benchmark(**options)
        return capfd.readouterr().out.splitlines()[-10:]

    return rows_of


COMPARED = re.compile(r"^\| .+ \| \d+\.\d\d \| \d+\.\d\d \| \d+\.\d{3} \(\d+\.\d{3} \.\. \d+\.\d{3}\) \|$")


def test_reading_things_meg_is_measured_for_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: Callable[..., list[str]]
) -> None:
    monkeypatch.setattr(things_meg, "CHANNELS", 4)
    monkeypatch.setattr(things_meg, "TIMES", 30)
    table = rows(things_meg.things_meg_conversion, folder=tmp_path, epochs=600, batch_size=16)
    assert all(COMPARED.match(row) for row in table), table
    whole, _ = things_meg.read_whole(tmp_path / "raw")
    for residence in ("mmap", "ram"):
        dataset = things_meg.open_store(tmp_path / "raw", tmp_path / "stores", residence, batch_size=16).dataset(
            "train"
        )
        # ours stand in the order of the photographs' first appearance, which is that of the trials
        assert torch.equal(dataset[torch.arange(len(dataset))]["signal"], whole)
    with pytest.raises(UserError, match=r"holds files written with .*600.*, asked for .*300"):
        things_meg.things_meg_conversion(folder=tmp_path, epochs=300)


@pytest.mark.parametrize("suffix", ["hdf5", "nii.gz"])
def test_reading_nsd_is_measured_for_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: Callable[..., list[str]], suffix: str
) -> None:
    monkeypatch.setattr(nsd, "SHAPE", (9, 8, 7))
    monkeypatch.setattr(nsd, "VOXELS", 30)
    monkeypatch.setattr(nsd, "PICTURE_SIDE", 2)
    table = rows(nsd.nsd_conversion, folder=tmp_path, sessions=2, suffix=suffix, batch_size=16)
    assert all(COMPARED.match(row) for row in table), table
    whole, shown = nsd.read_whole(tmp_path / "raw", sessions=2, suffix=suffix)
    dataset = nsd.open_store(tmp_path / "raw", tmp_path / "stores", "ram", sessions=2, batch_size=16).dataset("train")
    assert whole.shape == (len(dataset), 30)
    # ours stand photograph by photograph, in the order of their first appearance
    order = np.argsort(pd.factorize(shown.numpy())[0], kind="stable")
    torch.testing.assert_close(dataset[torch.arange(len(dataset))]["signal"], whole[order], atol=1e-5, rtol=1e-5)


def test_a_ratio_is_that_of_a_round_and_whole_files_may_be_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    def results(*seconds: float) -> list[dict[str, float]]:
        return [dict.fromkeys(("memory", "seconds", "first_ever", "first_batch", "passes"), value) for value in seconds]

    ours = {way: results(1, 6, 2) for way in ("convert", "mmap", "ram")}
    conversion.print_table({**ours, "whole": results(4, 3, 2)})
    printed = capfd.readouterr().out.splitlines()
    assert len(printed) == 12
    assert all(line.endswith("| 2.00 | 3.00 | 1.000 (0.250 .. 2.000) |") for line in printed[2:])
    conversion.print_table(ours)
    assert all(line.endswith("| 2.00 | - | - |") for line in capfd.readouterr().out.splitlines()[2:])
    with pytest.raises(UserError, match=r"--implementation=whole needs .* --folder"):
        nsd.nsd_conversion(implementation="whole")
