"""Conversions that are killed, run twice at once, or run out of disk."""

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from contracts import DataError
from datamodules import EmbeddingOptions, SampleOptions
from datamodules.core.atomic import build_once
from tests.datamodules.contract import REPOSITORY, leftovers
from tests.formats.processes import recording
from tests.formats.recording import Recording, experiment


def start(action: str, folder: Path, name: str = "a") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.formats.processes", action, str(folder), name]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def store_files(folder: Path) -> dict[str, bytes]:
    """Content of each file, without the raw folder's path."""
    files = (folder / "stores" / "recording").iterdir()
    return {path.name: path.read_bytes().replace(bytes(folder), b"") for path in files}


def test_a_killed_conversion_is_begun_anew_and_gives_the_same_bytes(tmp_path: Path) -> None:
    process = start("killed", tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors
    assert not (tmp_path / "stores" / "recording").exists(), "half a store must not look like one"
    partial = [path for path in (tmp_path / "stores").iterdir() if path.is_dir()]
    assert partial, "the process was killed in the middle"
    recording(tmp_path, experiment()).store  # noqa: B018
    assert not any(path.exists() for path in partial)
    recording(tmp_path / "unbroken", experiment()).store  # noqa: B018
    assert store_files(tmp_path) == store_files(tmp_path / "unbroken")


def test_another_raw_folder_does_not_get_the_old_store(tmp_path: Path) -> None:
    recording(tmp_path, experiment()).store  # noqa: B018
    for folder in ("raw", "other"):
        (tmp_path / folder).mkdir(exist_ok=True)
    moved = recording(tmp_path, experiment())
    moved.root = tmp_path / "other"
    with pytest.raises(DataError, match=r"was made from .*raw, root is .*other"):
        moved.store  # noqa: B018
    (tmp_path / "other").rmdir()
    assert moved.store.subjects, "where the raw files are gone, the store is all there is"


def test_two_processes_build_one_store_and_one_bank(tmp_path: Path) -> None:
    processes = [start("together", tmp_path, name) for name in "ab"]
    results = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    printed = [output.split() for output, _ in results]
    assert printed[0] == printed[1] != []
    assert (tmp_path / "raw" / "reads.txt").read_text() == "read\n"
    asked = (tmp_path / "images.txt").read_text().split()
    assert sorted(asked) == sorted(set(asked)), "a picture was embedded twice"
    assert len(asked) == 28
    assert not [name for name in leftovers(tmp_path) if name.endswith(".partial")]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond a size, so that writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def big(folder: Path, **options: Any) -> Recording:
    records = experiment({"01": (2000,)}, sessions=1)  # 512 kB of signals
    return Recording(str(folder / "raw"), records, stores=str(folder / "stores"), **options)


def test_disk_full_while_converting(tmp_path: Path) -> None:
    data = big(tmp_path)
    with largest_file(50_000), pytest.raises(DataError, match=r"could not make .*recording: .*free some space"):
        data.store  # noqa: B018
    assert not leftovers(tmp_path / "stores")
    assert data.store.signals("01").shape == (64, 2000), "works once there is space"


def test_disk_full_while_preparing_samples(tmp_path: Path) -> None:
    data = big(tmp_path, samples=SampleOptions(average_train=2))
    before = {path: path.read_bytes() for path in data.store.folder.iterdir()}
    with largest_file(50_000), pytest.raises(DataError, match=r"could not make .*prepared.*free some space"):
        data.prepared  # noqa: B018
    assert not leftovers(tmp_path / "stores" / "prepared")
    assert {path: path.read_bytes() for path in data.store.folder.iterdir()} == before
    assert len(data.dataset("train")) == 18


def test_disk_full_while_embedding(tmp_path: Path) -> None:
    data = big(tmp_path, embedding=EmbeddingOptions(image_size=64))  # 1.4 MB
    assert data.store
    with largest_file(50_000), pytest.raises(DataError, match=r"could not make .*safetensors: .*free some space"):
        data.targets  # noqa: B018
    names = leftovers(tmp_path / "stores" / "features")
    assert not [name for name in names if "safetensors" in name or "partial" in name]
    assert data.targets.isfinite().all()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    data = Recording(str(tmp_path / "raw"), experiment(), stores=str(tmp_path / "file" / "stores"))
    with pytest.raises(DataError, match=r"could not make .*file/stores/recording.*--data\.init_args\.stores"):
        data.store  # noqa: B018
    assert (tmp_path / "file").is_file()


# ---- build_once -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, DataError])
@pytest.mark.parametrize("folder", [True, False])
def test_what_fails_leaves_nothing(tmp_path: Path, error: type[BaseException], folder: bool) -> None:
    def build(path: Path) -> None:
        if folder:
            path.mkdir()
            path = path / "part"
        path.write_text("half")
        raise error("no")

    with pytest.raises(error, match="no"):
        build_once(tmp_path / "target", build)
    assert not leftovers(tmp_path)


def test_leftovers_of_a_killed_process_are_removed_and_a_finished_thing_stays(tmp_path: Path) -> None:
    def partial(path: Path) -> None:
        path.mkdir()
        (path / "old").touch()
        raise SystemExit

    seen: list[Path] = []
    with pytest.raises(SystemExit):
        build_once(tmp_path / "target", lambda path: (seen.append(path), partial(path))[0])
    seen[0].mkdir()
    (seen[0] / "from a killed process").touch()
    build_once(tmp_path / "target", lambda path: path.mkdir())
    assert not list((tmp_path / "target").iterdir())
    build_once(tmp_path / "target", lambda path: pytest.fail("must not be built twice"))
