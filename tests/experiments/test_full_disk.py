"""A disk that is full while a run writes: one error, nothing half-written, and the run goes on once there is space."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file

from callbacks import read_scores, write_scores
from contracts import DataError
from experiments.cli import main
from experiments.run_logger import RunLogger
from tests.experiments.launching import CONFIGS, Neuroalign, call, launch, several, write_callback
from tests.experiments.test_resume import assert_equal, state

SOURCE = """
import os
import resource
from lightning import Callback


class FillsUp(Callback):
    '''From the second epoch on no file of the first process may be large, or a ballast fills the disk.'''

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch != 1 or not trainer.is_global_zero:
            return
        if "LARGEST" in os.environ:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["LARGEST"]), hard))
        elif "BALLAST" in os.environ:
            with open(os.environ["BALLAST"], "wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    # too little for a checkpoint
                    os.ftruncate(file.fileno(), file.tell() - 24576)
"""
TINY = (
    '--data.init_args.phantom={"people": 2, "train_images": 1, "test_images": 1, "train_repetitions": 1, '
    '"test_repetitions": 1, "sessions": 1}',
    "--data.init_args.embedding={model: pixels, image_size: 8, target: pca(8)}",
    "--data.init_args.loader.batch_size=8",
    "--model.init_args.encoder=ResidualMLP",
    "--model.init_args.encoder.init_args.hidden=16",
    "--trainer.max_epochs=3",
    "--trainer.enable_progress_bar=false",
    "--config=fillsup.yaml",
)
WORDS = (f"--config={CONFIGS}/stage/contrastive.yaml", f"--data={CONFIGS}/data/phantom.yaml", *TINY)
CPU = f"--config={CONFIGS}/trainer/cpu.yaml"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full_disk")
    write_callback(folder, SOURCE, "FillsUp")
    return folder


@pytest.fixture
def neuroalign(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Neuroalign:
    monkeypatch.chdir(place)

    def run(command: str, *words: str, status: int = 0) -> str:
        return call([command, CPU, *WORDS, *words], capfd, status=status)[1]

    return run


@pytest.fixture(scope="module")
def unbroken(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        main(["fit", CPU, *WORDS, "--run.name=unbroken"])
    return run_folder(place, "unbroken")


def run_folder(place: Path, name: str) -> Path:
    return place / "runs" / "phantom" / "all" / "contrastive" / name


@contextmanager
def room_again() -> Iterator[None]:
    """Give this process back what a callback has taken from it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    with room_again():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        yield


def half_written(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if "partial" in path.name]


def assert_told(told: str, folder: Path) -> None:
    assert "could not write" in told
    assert f"the last whole checkpoint is {folder / 'last.ckpt'}" in told
    assert "MB are free" in told
    assert "RESUME=auto" in told
    assert "Traceback" not in told


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(
    place: Path, unbroken: Path, neuroalign: Neuroalign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LARGEST", "30000")
    with room_again():
        told = neuroalign("fit", "--run.name=limited", status=2)
    folder = run_folder(place, "limited")
    assert_told(told, folder.relative_to(place))
    assert os.strerror(errno.EFBIG) in told
    assert state(folder / "last.ckpt")["epoch"] == 0
    assert not (folder / "final.ckpt").exists()
    assert not half_written(folder)
    assert "could not write" in (folder / "error_rank-0.txt").read_text()
    monkeypatch.delenv("LARGEST")
    neuroalign("fit", "--run.name=limited", "--run.resume=auto")
    assert_equal(state(folder / "final.ckpt"), state(unbroken / "final.ckpt"))
    assert not (folder / "error_rank-0.txt").exists()


@pytest.mark.full
def test_two_processes_end_together(place: Path, unbroken: Path) -> None:
    words = ["-m", "experiments", "fit", *several(2), *WORDS, "--run.name=two"]
    told = launch(place, words, status=None, variables={"LARGEST": "30000"}, timeout=90)
    folder = run_folder(place, "two")
    assert "the last whole checkpoint is" in told
    assert state(folder / "last.ckpt")["epoch"] == 0
    assert not half_written(folder)
    for rank in range(2):
        assert "the last whole checkpoint is" in (folder / f"error_rank-{rank}.txt").read_text()
    launch(place, [*words, "--run.resume=auto"])
    launch(place, [*words, "--run.name=two_unbroken"])
    assert_equal(state(folder / "final.ckpt"), state(run_folder(place, "two_unbroken") / "final.ckpt"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB; skipped where this process may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None:
        pytest.skip("no command mount")
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_real_disk_that_fills_up(
    place: Path, unbroken: Path, neuroalign: Neuroalign, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALLAST", str(small_disk / "ballast"))
    root = f"--run.root={small_disk}"
    told = neuroalign("fit", root, status=2)
    folder = small_disk / "phantom" / "all" / "contrastive" / "default"
    assert_told(told, folder)
    assert os.strerror(errno.ENOSPC) in told
    assert "0.0 MB are free" in told
    assert state(folder / "last.ckpt")["epoch"] == 0
    assert not half_written(small_disk)
    (small_disk / "ballast").unlink()
    monkeypatch.delenv("BALLAST")
    neuroalign("fit", root, "--run.resume=auto")
    assert_equal(state(folder / "final.ckpt"), state(unbroken / "final.ckpt"))


def test_results_that_find_no_room_leave_those_before(place: Path, unbroken: Path, neuroalign: Neuroalign) -> None:
    name = "--run.name=unbroken"
    neuroalign("test", name)
    results = [unbroken / name for name in ("scores.json", "outputs.safetensors", "config_test.yaml")]
    before = {path: path.read_bytes() for path in results}
    sizes = {path.name: len(content) for path, content in before.items()}
    for file, size in sizes.items():
        with largest_file(size - 100):
            told = neuroalign("test", name, status=2)
        assert "Traceback" not in told
        assert "MB are free" in told, f"{file} of {size} bytes"
        assert {path: path.read_bytes() for path in results} == before
        assert not half_written(unbroken)
    scores = read_scores(results[0])
    with largest_file(1000), pytest.raises(DataError, match=r"could not write .*scores\.json: .*MB are free.*again"):
        write_scores(results[0], scores)
    assert read_scores(results[0]) == scores
    assert load_file(results[1])


def test_curves_never_hold_half_a_line(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, name="csv", version="fit")
    logger.log_metrics({"loss": 0.123456789}, step=1)
    logger.save()
    file = tmp_path / "csv" / "fit" / "metrics.csv"
    before = file.read_text()
    # a value of another name has the file written anew
    logger.log_metrics({"loss": 0.5, "accuracy": 1 / 3}, step=2)
    with largest_file(len(before) + 5), pytest.raises(Exception, match=r"could not write .*metrics\.csv.*MB are free"):
        logger.save()
    assert file.read_text() == before
    assert not half_written(tmp_path)
    logger.save()
    assert file.read_text().splitlines()[1:] == [",0.123456789,1", f"{1 / 3},0.5,2"]
    logger.log_metrics({"loss": 0.25}, step=3)
    logger.finalize("success")
    assert file.read_text().splitlines()[-1] == ",0.25,3"


@pytest.mark.full
def test_an_error_that_cannot_be_written_down_is_still_told(place: Path) -> None:
    words = ["-m", "experiments", "fit", CPU, *WORDS, "--run.name=nothing"]
    told = launch(place, words, status=2, variables={"LARGEST": "100"})
    assert "could not write" in told
    assert "go on with --run.resume=auto" in told
    assert "error_rank-0.txt" in told
    assert not (run_folder(place, "nothing") / "error_rank-0.txt").exists()
