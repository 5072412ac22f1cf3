"""Pictures that stay in an HDF5 file: found by row, read by every process for itself."""

import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from contracts import DataError
from datamodules import EmbeddingOptions, HDF5Pictures, LoaderOptions, Stimuli
from datamodules.core.store import BrainStore, write_store
from tests.formats.recording import Recording, change, experiment, pictures

Array = np.ndarray[Any, Any]
ROWS = np.random.default_rng(3).permutation(40)[:28].tolist()
"""Row of each of 28 stimuli in a table of 40."""


def write_table(path: Path, table: Array, name: str = "imgBrick") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["other"] = np.zeros(3)
        file[name] = table
    return path


def with_others(images: Array) -> Array:
    """A table that holds the stimuli in ``ROWS`` and other pictures between them."""
    table = pictures(40, side=12, seed=5)[:, :, :, 0] if images.ndim == 3 else pictures(40, side=12, seed=5)
    table[ROWS] = images
    return table


def records_of(path: Path, *, dataset: str = "imgBrick", rows: list[int] = ROWS) -> list[Any]:
    return change(experiment({"01": (3,)}), Stimuli, image=HDF5Pictures(path, dataset, rows))


def write(folder: Path, records: list[Any], name: str = "store") -> BrainStore:
    write_store(folder / name, records, root=folder, name="made-up", modality="fmri", about={})
    return BrainStore(folder / name, folder)


COLOUR = pictures(28)
GREY = COLOUR.mean(axis=3).astype(np.uint8)


@pytest.mark.parametrize("shape", ["colour", "grey"])
def test_pictures_and_their_hashes_are_those_of_arrays(tmp_path: Path, shape: str) -> None:
    images = COLOUR if shape == "colour" else GREY
    path = write_table(tmp_path / "images" / "nsd_stimuli.hdf5", with_others(images))
    store = write(tmp_path, records_of(path))
    arrays = write(tmp_path, change(experiment({"01": (3,)}), Stimuli, image=images), "arrays")
    assert store.stimuli["sha256"].tolist() == arrays.stimuli["sha256"].tolist()
    assert store.stimuli["image"].tolist() == [f"images/nsd_stimuli.hdf5#imgBrick#{row}" for row in ROWS]
    for number in range(28):
        np.testing.assert_array_equal(store.image(number), arrays.image(number))
        assert store.image(number).dtype == np.uint8
    assert store.image_size(3) == (12, 12)
    assert not list(store.folder.glob("stimuli-*.npy")), "nothing is copied"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_pictures_in_0_to_1_with_channels_first_are_rounded_to_uint8(tmp_path: Path, dtype: str) -> None:
    table = np.moveaxis(with_others(COLOUR), -1, 1)[:, :, :, :9]
    path = write_table(tmp_path / "coco.h5", (table / 255).astype(dtype), "images")
    store = write(tmp_path, records_of(path, dataset="images"))
    for number in range(28):
        np.testing.assert_array_equal(store.image(number), COLOUR[number][:, :9])
    assert store.image_size(0) == (12, 9)


def test_the_raw_folder_may_move_and_a_file_may_lie_elsewhere(tmp_path: Path) -> None:
    path = write_table(tmp_path / "here" / "images.hdf5", with_others(COLOUR))
    write(tmp_path / "here", records_of(path))
    (tmp_path / "here").rename(tmp_path / "there")
    store = BrainStore(tmp_path / "there" / "store", tmp_path / "there")
    np.testing.assert_array_equal(store.image(5), COLOUR[5])
    elsewhere = write_table(tmp_path / "elsewhere.hdf5", with_others(COLOUR))
    store = write(tmp_path / "there", records_of(elsewhere), "other")
    np.testing.assert_array_equal(store.image(5), COLOUR[5])


def test_a_file_name_with_a_hash_sign_is_a_file_name(tmp_path: Path) -> None:
    records = experiment({"01": (3,)}, images=tmp_path / "pictures")
    stimuli = next(record for record in records if isinstance(record, Stimuli))
    renamed = stimuli.image[0].rename(tmp_path / "pictures" / "a#7.png")
    store = write(tmp_path, change(records, Stimuli, image=[renamed, *stimuli.image[1:]]))
    np.testing.assert_array_equal(store.image(0), COLOUR[0])


def test_the_size_is_known_without_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write(tmp_path, records_of(write_table(tmp_path / "images.hdf5", with_others(COLOUR))))

    def read(*_: Any) -> None:
        raise AssertionError("pixels were read")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", read)
    assert store.image_size(3) == (12, 12)
    with pytest.raises(AssertionError):
        store.image(3)


# ---- processes ---------------------------------------------------------------------------------------


def test_a_store_whose_files_are_open_goes_to_another_process_as_paths(tmp_path: Path) -> None:
    large = np.tile(COLOUR, (1, 20, 20, 1))
    images = (HDF5Pictures(write_table(tmp_path / "images.hdf5", large), "imgBrick", range(28)), large)
    for number, image in enumerate(images):
        store = write(tmp_path, change(experiment({"01": (3,)}), Stimuli, image=image), f"store-{number}")
        store.image(0)
        sent = pickle.dumps(store)
        assert len(sent) < 0.1 * large.nbytes, "pixels are sent along"
        np.testing.assert_array_equal(pickle.loads(sent).image(9), large[9])


INHERITED: dict[str, Any] = {}
"""What a forked process finds as it was, without pickling."""


def read_in_a_fork() -> tuple[int, bool, Array]:
    image = INHERITED["store"].image(9)
    return os.getpid(), INHERITED["store"]._pictures._open["images.hdf5#imgBrick"] is INHERITED["table"], image


def test_a_fork_opens_the_file_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write(tmp_path, records_of(write_table(tmp_path / "images.hdf5", with_others(COLOUR))))
    store.image(0)
    monkeypatch.setitem(INHERITED, "store", store)
    monkeypatch.setitem(INHERITED, "table", store._pictures._open["images.hdf5#imgBrick"])
    assert read_in_a_fork()[:2] == (os.getpid(), True)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        process, same, image = pool.apply(read_in_a_fork)
        pool.close()
        pool.join()
    assert process != os.getpid()
    assert not same
    np.testing.assert_array_equal(image, COLOUR[9])


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_serve_the_pictures(tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    records = records_of(write_table(tmp_path / "raw" / "images.hdf5", with_others(COLOUR)))
    data = Recording(
        str(tmp_path / "raw"),
        records,
        stores=str(tmp_path / "stores"),
        embedding=EmbeddingOptions(image_size=4),
        loader=LoaderOptions(batch_size=4, workers=workers),
    )
    assert data.layout["image_shape"] == [3, 12, 12]
    data.store.image(0)  # open before the workers start
    monkeypatch.setattr(data, "batch_keys", lambda: frozenset({"signal", "embedding", "image"}))
    for batch in data.train_dataloader():
        for image, number in zip(batch["image"], batch["stimulus"].tolist(), strict=True):
            np.testing.assert_array_equal(image.permute(1, 2, 0), COLOUR[number])


# ---- what is wrong -----------------------------------------------------------------------------------


def nothing(path: Path) -> None:
    path.unlink()


def text(path: Path) -> None:
    path.write_text("no HDF5 at all")


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def incomplete(path: Path) -> None:
    write_table(path, with_others(COLOUR)[:20])


def no_number(path: Path) -> None:
    table = np.moveaxis(with_others(COLOUR)[:, :9], -1, 1) / 255
    table[ROWS[6], 1, 2, 3] = np.nan
    write_table(path, table)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (nothing, [r"no file .*images\.hdf5"]),
        (text, [r"cannot read .*images\.hdf5 \(14 bytes\)"]),
        (half, [r"cannot read .*images\.hdf5"]),
        (lambda path: write_table(path, COLOUR, "images"), ["no table 'imgBrick'; found 'images', 'other'"]),
        (lambda path: write_table(path, COLOUR.astype(np.int32)), [r"found int32 \(28, 12, 12, 3\)"]),
        (lambda path: write_table(path, COLOUR[:, :, :, :2]), [r"must hold pictures.*\(28, 12, 12, 2\)"]),
        (lambda path: write_table(path, COLOUR[0, 0]), [r"must hold pictures.*uint8 \(12, 3\)"]),
        (
            incomplete,
            [
                rf"{sum(row >= 20 for row in ROWS)} of 28 pictures are missing",
                rf"number {next(row for row in ROWS if row >= 20)} \(from 0\), but 'imgBrick' holds 20",
            ],
        ),
        (
            lambda path: write_table(path, with_others(COLOUR).astype(np.float32)),
            [r"must be in 0\.\.1, found 0\.0\.\."],
        ),
        (no_number, [rf"picture {ROWS[6]} must be in 0\.\.1, found nan"]),
    ],
)
def test_wrong_files_are_refused_and_leave_nothing(
    tmp_path: Path, damage: Callable[[Path], Any], expected: list[str]
) -> None:
    path = write_table(tmp_path / "raw" / "images.hdf5", with_others(COLOUR))
    damage(path)
    data = Recording(str(tmp_path / "raw"), records_of(path), stores=str(tmp_path / "stores"))
    for part in expected:
        with pytest.raises(DataError, match=part):
            data.store  # noqa: B018
    assert [file.suffix for file in (tmp_path / "stores").iterdir()] == [".lock"]


def test_a_name_that_could_not_be_found_again_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "images.mat", with_others(COLOUR))
    with pytest.raises(DataError, match=r"images\.mat: a file of pictures is named \.hdf5 or \.h5"):
        write(tmp_path, records_of(path))


def test_rows_must_be_as_many_as_stimuli(tmp_path: Path) -> None:
    path = write_table(tmp_path / "images.hdf5", with_others(COLOUR))
    with pytest.raises(DataError, match="28 ids, but 27 entries in 'image'"):
        write(tmp_path, records_of(path, rows=ROWS[1:]))


def test_a_file_that_is_gone_or_cut_after_conversion_is_named(tmp_path: Path) -> None:
    path = write_table(tmp_path / "images.hdf5", with_others(COLOUR))
    folder = write(tmp_path, records_of(path)).folder
    incomplete(path)
    number = next(i for i, row in enumerate(ROWS) if row >= 20)
    with pytest.raises(DataError, match=rf"number {ROWS[number]} \(from 0\), but 'imgBrick' holds 20"):
        BrainStore(folder, tmp_path).image(number)
    path.unlink()
    for read in (BrainStore(folder, tmp_path).image, BrainStore(folder, tmp_path).image_size):
        with pytest.raises(DataError, match=r"no file .*images\.hdf5"):
            read(0)
