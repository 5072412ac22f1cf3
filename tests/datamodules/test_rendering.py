from collections import Counter

import numpy as np
import pytest

from datamodules.core.rendering import CLASS_NAMES, PATTERNS, SHAPES, SIDE, render, render_many


def test_forty_distinct_classes_name_shape_and_pattern() -> None:
    assert len(set(CLASS_NAMES)) == len(CLASS_NAMES) == 40
    assert CLASS_NAMES[5 * SHAPES.index("circle") + PATTERNS.index("striped")] == "striped circle"


def test_same_numbers_give_same_picture_whatever_was_drawn_before() -> None:
    labels, indices = np.arange(120) % 40, np.arange(120) // 40
    together = render_many(labels, indices, seed=5)
    alone = render(label=17, index=2, seed=5)
    assert alone.caption == together[2 * 40 + 17].caption
    np.testing.assert_array_equal(alone.image, together[2 * 40 + 17].image)


@pytest.mark.parametrize("other", [(18, 2, 5), (17, 3, 5), (17, 2, 6)])
def test_each_number_changes_the_picture(other: tuple[int, int, int]) -> None:
    label, index, seed = other
    assert np.any(render(17, 2, 5).image != render(label, index, seed).image)


def test_two_thousand_pictures_differ_and_are_balanced() -> None:
    pictures = render_many(np.arange(2000) % 40, np.arange(2000) // 40, seed=0)
    assert len({picture.image.tobytes() for picture in pictures}) == 2000
    assert set(Counter(picture.label for picture in pictures).values()) == {50}
    for picture in pictures:
        assert picture.image.shape == (SIDE, SIDE, 3)
        assert picture.image.dtype == np.uint8
        pattern, shape = CLASS_NAMES[picture.label].split()
        for word in (pattern, shape, picture.colour, picture.size, "background"):
            assert word in picture.caption
        assert all(0 < value < SIDE for value in picture.centre)
    # What varies within a class is not tied to it.
    assert len({picture.colour for picture in pictures if picture.label == 0}) == 8
    assert len({picture.caption for picture in pictures}) > 1900


def test_caption_tells_where_the_object_is() -> None:
    for picture in render_many([0] * 60, range(60), seed=1):
        x, y = picture.centre
        assert ("left" in picture.caption) == (x < SIDE / 2 - 4)
        assert ("bottom" in picture.caption) == (y > SIDE / 2 + 4)


def test_object_is_drawn_at_its_centre_in_its_colour() -> None:
    red = next(p for p in render_many([0] * 60, range(60), seed=2) if p.colour == "red")
    column, row = (int(value) for value in red.centre)
    np.testing.assert_allclose(red.image[row, column], (214, 39, 40), atol=2)


def test_classes_can_be_told_apart_by_a_simple_classifier() -> None:
    # Size of Fourier components around the middle grey: coarse, but it sees pattern and shape.
    def describe(indices: range) -> tuple[np.ndarray, np.ndarray]:
        pictures = [picture for i in indices for picture in render_many(range(40), [i] * 40, seed=3)]
        grey = np.stack([picture.image.mean(axis=2) for picture in pictures])
        spectrum = np.log1p(np.abs(np.fft.rfft2(grey - grey.mean(axis=(1, 2), keepdims=True))))
        return spectrum.reshape(len(pictures), -1), np.array([picture.label for picture in pictures])

    train, label = describe(range(25))
    test, expected = describe(range(25, 30))
    mean = train.mean(axis=0)
    gram = (train - mean).T @ (train - mean)
    target = np.eye(40)[label] - 1 / 40
    weights = np.linalg.solve(gram + 0.1 * np.trace(gram) / len(gram) * np.eye(len(gram)), (train - mean).T @ target)
    accuracy = np.mean(((test - mean) @ weights).argmax(axis=1) == expected)
    assert accuracy > 4 / 40, f"accuracy {accuracy:.3f}, chance 0.025"


@pytest.mark.parametrize(("label", "index", "seed"), [(40, 0, 0), (-1, 0, 0), (0, -1, 0), (0, 0, -1)])
def test_numbers_out_of_range_are_refused(label: int, index: int, seed: int) -> None:
    with pytest.raises(ValueError, match="must"):
        render(label, index, seed)


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        render_many([0, 1], [0], seed=0)
