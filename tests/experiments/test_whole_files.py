"""What is not whole is refused by whoever reads it, in one line; what ``resume`` goes on from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from callbacks import load_part, read_scores
from callbacks.checkpoint import BEGUN_ANEW, refuse_damaged
from contracts import ContractError, DataError
from experiments.cli import main
from lightning_modules.networks.checkpoints import load_stage
from tests.experiments.launching import CONFIGS, call
from tests.formats.processes import recording
from tests.formats.recording import experiment
from tests.shipped import make

TINY = (
    '--data.init_args.phantom={"people": 2, "train_images": 1, "test_images": 1, "train_repetitions": 1, '
    '"test_repetitions": 1, "sessions": 1}',
    "--data.init_args.embedding={model: pixels, image_size: 8, target: pca(8)}",
)
WORDS = (
    f"--config={CONFIGS}/trainer/cpu.yaml",
    f"--config={CONFIGS}/stage/ridge_direct.yaml",
    f"--data={CONFIGS}/data/phantom.yaml",
    *TINY,
)
Neuroalign = Callable[..., str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a run that is trained and tested."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", *WORDS])
        main(["test", *WORDS])
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a finished run of one's own."""
    monkeypatch.chdir(finished)
    [run] = finished.glob("runs/phantom/all/ridge_direct/default")
    return Path(shutil.copytree(run, run.with_name(tmp_path.name)))


@pytest.fixture
def neuroalign(place: Path, capfd: pytest.CaptureFixture[str]) -> Neuroalign:
    def run(command: str, *words: str, status: int = 0) -> str:
        return call([command, *WORDS, f"--run.name={place.name}", *words], capfd, status=status)[1]

    return run


def cut(path: Path, length: int) -> None:
    """Cut a file off; a negative length counts from its end."""
    content = path.read_bytes()
    assert abs(length) < len(content)
    path.write_bytes(content[:length])


def overwritten(path: Path) -> None:
    """Put zeros into the middle, as a file system may after a power cut; the length stays."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    assert any(content[middle : middle + 512])
    content[middle : middle + 512] = bytes(512)
    path.write_bytes(content)


LENGTHS = (0, 1, 100, 5000, -1000, -22, -1)


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [*LENGTHS, None])
def test_a_checkpoint_that_is_not_whole_is_refused(finished: Path, tmp_path: Path, length: int | None) -> None:
    path = shutil.copy(next(finished.rglob("default/final.ckpt")), tmp_path / "final.ckpt")
    refuse_damaged(path, "")
    overwritten(path) if length is None else cut(path, length)
    with pytest.raises(DataError, match=r"final\.ckpt is damaged.*; do this") as told:
        refuse_damaged(path, "do this")
    assert "\n" not in str(told.value)
    if length is not None:
        with pytest.raises(ContractError, match=r"final\.ckpt is damaged .*change --model\.init_args\.earlier") as told:
            load_stage(path, argument="earlier", stage="RidgeAlignment")
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("length", [0, -1000])
def test_a_damaged_last_checkpoint_is_said_and_not_started_over(
    place: Path, neuroalign: Neuroalign, length: int
) -> None:
    (place / "final.ckpt").rename(place / "last.ckpt")
    cut(place / "last.ckpt", length)
    before = (place / "last.ckpt").read_bytes()
    for resume in ("auto", "true"):
        told = neuroalign("fit", f"--run.resume={resume}", status=2)
        assert "last.ckpt is damaged or no checkpoint" in told
        assert "delete it to train from the beginning" in told
        assert "Traceback" not in told
    assert (place / "last.ckpt").read_bytes() == before
    assert not (place / "final.ckpt").exists()
    assert "last.ckpt is damaged" in (place / "error_rank-0.txt").read_text()


def test_a_damaged_final_checkpoint_is_neither_tested_nor_taken_for_finished(
    place: Path, neuroalign: Neuroalign
) -> None:
    overwritten(place / "final.ckpt")
    for words in (("test",), ("fit", "--run.resume=auto")):
        told = neuroalign(*words, status=2)
        assert "final.ckpt is damaged (in " in told
        assert "--run.overwrite=true" in told


# ---- results, stores, feature banks --------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
def test_results_that_are_not_whole_are_refused(place: Path, length: int) -> None:
    scores, outputs = place / "scores.json", place / "outputs.safetensors"
    cut(outputs, length)
    with pytest.raises(DataError, match=r"cannot read .*outputs\.safetensors.*; test the run again"):
        load_part(outputs)
    # the last byte of scores is a newline
    cut(scores, length if length != -1 else -2)
    with pytest.raises(DataError, match=r"cannot read .*scores\.json.*; test the run again"):
        read_scores(scores)


@pytest.mark.parametrize("length", [0, 1, 50, -1])
def test_converted_data_that_are_not_whole_are_refused(tmp_path: Path, length: int) -> None:
    recording(tmp_path, experiment()).store  # noqa: B018
    store = tmp_path / "stores" / "recording"
    for path in sorted(store.iterdir()):
        whole = path.read_bytes()
        # the last byte of the description is a newline
        cut(path, -2 if length == -1 and path.suffix == ".json" else length)
        with pytest.raises(DataError, match=rf"{path.name}.*delete the folder") as told:
            recording(tmp_path, experiment()).store  # noqa: B018
        assert "\n" not in str(told.value)
        path.write_bytes(whole)
    assert recording(tmp_path, experiment()).store.subjects


@pytest.mark.parametrize("length", [0, 1, 50, -1])
def test_embeddings_that_are_not_whole_are_refused(tmp_path: Path, length: int) -> None:
    recording(tmp_path, experiment()).targets  # noqa: B018
    banks = [path for path in (tmp_path / "stores" / "features").rglob("*") if path.suffix in (".json", ".safetensors")]
    assert {path.suffix for path in banks} == {".json", ".safetensors"}
    for path in banks:
        whole = path.read_bytes()
        cut(path, -2 if length == -1 and path.suffix == ".json" else length)
        with pytest.raises(DataError, match=rf"{path.name} is damaged .*delete"):
            recording(tmp_path, experiment()).targets  # noqa: B018
        path.write_bytes(whole)
    assert recording(tmp_path, experiment()).targets.isfinite().all()


# ---- from where a fit goes on --------------------------------------------------------------------


@pytest.mark.parametrize("resume", ["auto", "true"])
def test_a_finished_run_is_left_as_it_is(place: Path, neuroalign: Neuroalign, resume: str) -> None:
    before = {name: (place / name).read_bytes() for name in ("final.ckpt", "scores.json", "outputs.safetensors")}
    neuroalign("fit", f"--run.resume={resume}")
    assert {name: (place / name).read_bytes() for name in before} == before
    assert not (place / "last.ckpt").exists()


def test_what_was_never_begun_begins(place: Path, neuroalign: Neuroalign) -> None:
    theirs = torch.load(place / "final.ckpt", weights_only=True)["state_dict"]
    shutil.rmtree(place)
    neuroalign("fit", "--run.resume=auto")
    mine = torch.load(place / "final.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())


def alpha(place: Path) -> float:
    return float(torch.load(place / "final.ckpt", weights_only=True)["hyper_parameters"]["alpha"])


def test_a_fit_begun_anew_and_killed_is_not_taken_for_the_old_one(place: Path, neuroalign: Neuroalign) -> None:
    # as an overwriting fit leaves it that was killed before its first checkpoint
    (place / BEGUN_ANEW).touch()
    neuroalign("fit", "--run.resume=auto", "--model.init_args.alpha=7")
    assert alpha(place) == 7
    assert not (place / BEGUN_ANEW).exists()
    # a scheduler that is to train it anew, whenever it starts
    neuroalign("fit", "--run.resume=auto", "--run.overwrite=true", "--model.init_args.alpha=8")
    assert alpha(place) == 8


def test_an_overwriting_fit_says_that_it_has_begun(place: Path, neuroalign: Neuroalign) -> None:
    neuroalign("fit", "--run.overwrite=true", "--trainer.limit_train_batches=0.5", status=2)
    assert (place / BEGUN_ANEW).exists(), "the fit failed in its first epoch: not everyone was met"
    assert (place / "final.ckpt").exists()


def test_logs_of_a_fit_begun_anew_are_its_own(place: Path, neuroalign: Neuroalign) -> None:
    (place / "csv" / "fit-1").mkdir()
    neuroalign("fit", "--run.overwrite=true")
    assert not (place / "csv" / "fit-1").exists()


@pytest.mark.parametrize(("value", "flag"), [("auto", "auto"), ("1", "true")])
def test_make_resumes(value: str, flag: str) -> None:
    assert f"--run.resume={flag}" in make("train-ridge-direct", f"RESUME={value}")
