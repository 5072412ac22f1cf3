"""Views of pictures: what they are, that they are always the same, and what is refused."""

import hashlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from contracts import DataError
from datamodules import ViewOptions
from datamodules.core.views import ORIGINAL, crop_place, fit_size, view, view_key

Array = np.ndarray[Any, Any]
ALL = ViewOptions(size=8, flip=True, crops=3, crop=0.5)


def picture(height: int = 20, width: int = 30, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def sha(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


# ---- which views there are --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (ViewOptions(), 1),
        (ViewOptions(size=8), 1),
        (ViewOptions(flip=True), 2),
        (ViewOptions(size=8, crops=2), 3),
        (ALL, 8),
    ],
)
def test_number_of_views(options: ViewOptions, count: int) -> None:
    image = picture()
    assert options.count == count
    views = [view(image, sha(0), number, options) for number in range(count)]
    np.testing.assert_array_equal(views[0], image)
    assert len({found.tobytes() for found in views}) == count
    assert len({view_key(sha(0), number, options) for number in range(count)}) == count
    for wrong in (-1, count):
        for function in (lambda n: view(image, sha(0), n, options), lambda n: view_key(sha(0), n, options)):
            with pytest.raises(DataError, match=f"no view {wrong}: .* gives {count} "):
                function(wrong)


def test_every_second_view_is_the_one_before_mirrored() -> None:
    for seed in range(3):
        views = [view(picture(seed=seed), sha(seed), number, ALL) for number in range(ALL.count)]
        for plain, mirrored in zip(views[::2], views[1::2], strict=True):
            np.testing.assert_array_equal(mirrored, plain[:, ::-1])
            assert not np.array_equal(mirrored, plain)


@pytest.mark.parametrize("size", [(20, 30), (30, 20), (16, 16), (1, 5)])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.875, 1.0])
def test_crops_are_squares_of_the_picture(size: tuple[int, int], share: float) -> None:
    height, width = size
    # each pixel tells where it stands
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    image = np.stack([rows, columns, rows], axis=-1)
    options = ViewOptions(size=8, crops=2, crop=share)
    for number in range(20):
        crop = view(image, sha(number), 1 + number % 2, options)
        side = max(1, round(share * min(size)))
        assert crop.shape == (side, side, 3)
        top, left = crop[0, 0, :2].tolist()
        assert (top, left, side) == crop_place(height, width, sha256=sha(number), number=1 + number % 2, share=share)
        np.testing.assert_array_equal(crop, image[top : top + side, left : left + side])


def test_crops_are_everywhere_in_the_picture() -> None:
    places = [crop_place(8, 9, sha256=sha(number), number=1, share=0.75) for number in range(600)]
    counts = np.zeros((3, 4), int)
    for top, left, side in places:
        assert side == 6
        counts[top, left] += 1
    # 600 draws over 12 places: 50 each, SD 6.8
    assert counts.min() > 25
    assert counts.max() < 80


def test_places_depend_on_the_picture_and_the_number_alone() -> None:
    def places(count: int) -> list[tuple[int, int, int]]:
        return [crop_place(640, 480, sha256=sha(n // 4), number=n % 4, share=0.875) for n in range(count)]

    assert places(40) == places(40)
    assert len(set(places(40))) == 40
    # what was written once is looked up for years, on any machine
    assert crop_place(256, 256, sha256="0" * 64, number=1, share=0.875) == (19, 17, 224)
    found = view(picture(), "0" * 64, 3, ALL)
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == "e51ae2649bf9920a"
    assert view_key("0" * 64, 3, ALL)[:16] == "80902b5ade96049b"


def test_a_view_does_not_change_with_the_others() -> None:
    image = picture()
    few, many = ViewOptions(size=8, crops=1, crop=0.5), ViewOptions(size=64, flip=True, crops=5, crop=0.5)
    np.testing.assert_array_equal(view(image, sha(1), 1, few), view(image, sha(1), 2, many))
    assert view_key(sha(1), 1, few) == view_key(sha(1), 2, many)


def test_the_key_of_a_view_is_that_of_its_pixels_and_of_no_other() -> None:
    assert view_key(sha(1), 0, ALL) == sha(1), "the embedding of the picture itself is not made again"
    keys = [
        view_key(sha(seed), number, ViewOptions(size=8, flip=True, crops=2, crop=crop))
        for seed in range(3)
        for crop in (0.5, 0.75)
        for number in range(6)
    ]
    # whole pictures, mirrored or not, do not depend on the size of crops
    assert len(set(keys)) == 3 * (2 + 2 * 4)
    assert all(len(bytes.fromhex(key)) == 32 for key in keys)


# ---- size -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(20, 30), (30, 20), (5, 4), (8, 8), (8, 9), (1, 1)])
def test_pictures_in_a_batch_are_squares(size: tuple[int, int]) -> None:
    image = picture(*size)
    assert fit_size(image, None) is image
    found = fit_size(image, 8)
    assert found.shape == (8, 8, 3)
    assert found.dtype == np.uint8
    if size == (8, 8):
        np.testing.assert_array_equal(found, image)


def test_the_middle_is_kept() -> None:
    image = np.zeros((8, 20, 3), np.uint8)
    image[:, 6:14] = 200
    np.testing.assert_array_equal(fit_size(image, 8), np.full((8, 8, 3), 200, np.uint8))
    found = fit_size(image.transpose(1, 0, 2).copy(), 16)
    np.testing.assert_array_equal(found[3:-3], np.full((10, 16, 3), 200, np.uint8))
    np.testing.assert_array_equal(found, found[::-1])
    # an odd difference is shared between both sides
    image = np.zeros((8, 9, 3), np.uint8)
    image[:, 4] = 200
    found = fit_size(image, 8)
    np.testing.assert_array_equal(found, found[:, ::-1])


def test_shrinking_is_antialiased() -> None:
    # a chequered board of single pixels is grey from afar; taking every fourth pixel would give black or white
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    found = fit_size(np.repeat(board[..., None], 3, axis=-1).astype(np.uint8), 16)[2:-2, 2:-2]
    assert abs(found.astype(int) - 127).max() <= 3


@pytest.mark.parametrize("size", [16, 80])
def test_the_whole_picture_is_resized_then_cut(size: int) -> None:
    image = picture(40, 60)
    resized = np.asarray(Image.fromarray(image).resize((size * 3 // 2, size), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(fit_size(image, size), resized[:, size // 4 : size // 4 + size])


# ---- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, r"at least 1 pixel; --data\.init_args\.views\.size is 0"),
        ({"size": -3}, r"views\.size is -3"),
        ({"crops": -1}, r"views\.crops is a number of crops, 0 or more; found -1"),
        ({"size": 8, "crop": 0.0}, r"0 < crop <= 1; --data\.init_args\.views\.crop is 0\.0"),
        ({"size": 8, "crop": 1.01}, r"views\.crop is 1\.01"),
        ({"size": 8, "crop": -0.5}, r"views\.crop is -0\.5"),
        ({"size": 8, "crop": float("nan")}, r"views\.crop is nan"),
        ({"crops": 2}, r"2 crops are smaller .* set --data\.init_args\.views\.size"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ViewOptions(**options)


def test_the_usual_is_the_picture_itself() -> None:
    assert ViewOptions() == ORIGINAL
    assert (ORIGINAL.count, ORIGINAL.size) == (1, None)
