"""Rendered pictures of 40 classes, with captions: an endless set of stimuli that needs no download.

A class is a shape with a surface pattern (8 x 5). Everything else varies freely within a class: colour,
position, size, rotation, background and a little clutter. A picture is a pure function of
``(seed, label, index)``, so sets drawn from disjoint ranges of ``index`` are disjoint sets of pictures:
what a model of images is trained on never meets what a simulated person sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw

SIDE: Final = 64
"""Height and width of a picture in pixels."""

SHAPES: Final = ("circle", "square", "triangle", "star", "cross", "ring", "crescent", "arrow")
PATTERNS: Final = ("plain", "striped", "dotted", "checkered", "shaded")

CLASS_NAMES: Final = tuple(f"{pattern} {shape}" for shape in SHAPES for pattern in PATTERNS)
"""Names of the 40 classes; the position of a name is its label: ``5 * shape + pattern``."""

COLOURS: Final = {
    "red": (214, 39, 40),
    "orange": (245, 130, 32),
    "yellow": (250, 218, 50),
    "green": (44, 160, 66),
    "turquoise": (40, 196, 190),
    "blue": (45, 95, 215),
    "purple": (130, 60, 175),
    "pink": (245, 130, 185),
}
BACKGROUND_HUES: Final = {
    "grey": (128, 128, 128),
    "brown": (150, 115, 85),
    "blue": (95, 120, 165),
    "green": (100, 145, 105),
    "violet": (135, 110, 155),
}
BACKGROUND_TONES: Final = {"dark": 0.35, "medium": 0.95, "light": 1.75}
SIZES: Final = {"small": (14.0, 17.0), "medium-sized": (18.0, 21.0), "large": (23.0, 27.0)}
"""Name -> range of the radius of the circle around the object, in pixels."""

_TEMPLATES: Final = (
    "a {size} {colour} {pattern} {shape} on a {background}, {place}",
    "{place}, there is a {size} {pattern} {shape} in {colour}, on a {background}",
    "a picture of a {colour} {pattern} {shape}, {size}, {place} of a {background}",
    "a {pattern} {shape}: {colour}, {size}, {place}, in front of a {background}",
    "a {background} with a {size} {colour} {pattern} {shape} {place}",
)
_SCALE: Final = 3  # drawn three times as large and averaged down: smooth edges at any rotation
_CANVAS: Final = SIDE * _SCALE
_DARK: Final = np.array((25.0, 22.0, 30.0), dtype=np.float32)
_WHITE: Final = np.array((250.0, 248.0, 242.0), dtype=np.float32)

Polygon = Float[np.ndarray, "corners 2"]
Canvas = Float[np.ndarray, "y x"]
Corners = list[tuple[float, float]]


@dataclass(frozen=True)
class Picture:
    """One rendered picture and the facts it was drawn from.

    Attributes:
        image: ``(64, 64, 3)`` uint8, RGB.
        label: Position in ``CLASS_NAMES``.
        caption: One sentence with shape, pattern, colour, size, place and background.
        colour: Key of ``COLOURS``.
        size: Key of ``SIZES``.
        place: Where the object is, such as ``in the top left``.
        background: What is behind it, such as ``speckled dark brown background``.
        centre: Centre of the object (x, y) in pixels from the top left corner.
    """

    image: UInt8[np.ndarray, "64 64 3"]
    label: int
    caption: str
    colour: str
    size: str
    place: str
    background: str
    centre: tuple[float, float]

    def describe(self, template: str) -> str:
        """Return a sentence, with any of shape, pattern, colour, size, place and background for its ``{names}``."""
        shape, pattern = divmod(self.label, len(PATTERNS))
        sentence = template.format(
            shape=SHAPES[shape],
            pattern=PATTERNS[pattern],
            colour=self.colour,
            size=self.size,
            place=self.place,
            background=self.background,
        )
        return sentence.replace("a orange", "an orange")


def render(label: int, index: int, seed: int) -> Picture:
    """Draw picture number ``index`` of a class.

    Args:
        label: Class, 0..39.
        index: Which picture of the class, from 0 without an upper end.
        seed: Seed of the whole set of pictures, not negative.

    Returns:
        The same picture for the same three numbers, whatever else was drawn before.

    Raises:
        ValueError: A number is out of its range.
    """
    if not 0 <= label < len(CLASS_NAMES):
        raise ValueError(f"label must lie in 0..{len(CLASS_NAMES) - 1}, got {label}")
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed must not be negative, got index={index}, seed={seed}")
    rng = np.random.default_rng([seed, label, index])
    shape, pattern = divmod(label, len(PATTERNS))

    colour = _pick(COLOURS, rng)
    size = _pick(SIZES, rng)
    radius = rng.uniform(*SIZES[size])
    # Objects may touch the border but keep most of themselves inside.
    reach = SIDE / 2 + 2.0 - radius
    centre = SIDE / 2 + rng.uniform(-reach, reach, size=2)
    angle = rng.uniform(-1.0, 1.0) * _TURN[SHAPES[shape]]

    canvas, background = _draw_background(rng)
    surface = _draw_surface(PATTERNS[pattern], COLOURS[colour], centre, radius=radius, angle=angle, rng=rng)
    outlines = _place_outlines(_OUTLINES[SHAPES[shape]], centre, radius=radius, angle=angle)
    canvas.paste(_with_rim(surface, outlines, COLOURS[colour]), mask=_draw_mask(outlines))
    template = _TEMPLATES[rng.integers(len(_TEMPLATES))]
    picture = Picture(
        image=np.asarray(canvas.reduce(_SCALE)),
        label=label,
        caption="",
        colour=colour,
        size=size,
        place=_describe_place(centre),
        background=background,
        centre=(float(centre[0]), float(centre[1])),
    )
    return replace(picture, caption=picture.describe(template))


def render_many(
    labels: Sequence[int] | Int[np.ndarray, " n"], indices: Sequence[int] | Int[np.ndarray, " n"], seed: int
) -> list[Picture]:
    """Draw one picture for each pair of a label and an index.

    Args:
        labels: Classes, n of them.
        indices: Which picture of its class each one is, n of them.
        seed: Seed of the whole set of pictures.

    Returns:
        n pictures, in the order given; ``np.stack([p.image for p in ...])`` is ``(n, 64, 64, 3)``.

    Raises:
        ValueError: The two lists differ in length, or a number is out of its range.
    """
    return [render(int(label), int(index), seed) for label, index in zip(labels, indices, strict=True)]


def _pick(names: Iterable[str], rng: np.random.Generator) -> str:
    options = list(names)
    return options[rng.integers(len(options))]


def _describe_place(centre: Float[np.ndarray, " 2"]) -> str:
    """Name the third of the picture, in each direction, that the object's centre is shifted to."""
    x, y = centre - SIDE / 2
    horizontal = "left" if x < -4 else "right" if x > 4 else ""
    vertical = "top" if y < -4 else "bottom" if y > 4 else ""
    if horizontal and vertical:
        return f"in the {vertical} {horizontal}"
    if horizontal:
        return f"on the {horizontal}"
    return f"at the {vertical}" if vertical else "in the centre"


def _regular(corners: int, radius: float = 1.0, inner: float | None = None) -> Polygon:
    """Corners on a circle, the first one up; with ``inner`` every second one lies on a smaller circle."""
    angle = 2 * np.pi * np.arange(corners) / corners
    length = np.full(corners, radius)
    if inner is not None:
        length[1::2] = inner
    return np.stack([length * np.sin(angle), -length * np.cos(angle)], axis=1)


_ROUND: Final = 72  # corners of a circle: steps below half a pixel
_T: Final = 1 / 0.3  # length of the arms of a cross in units of half their width
_HALF_CROSS: Final = [(-1, -_T), (1, -_T), (1, -1), (_T, -1), (_T, 1), (1, 1)]
_CROSS: Final = [*_HALF_CROSS, *((-x, -y) for x, y in _HALF_CROSS)]
_OUTLINES: Final[dict[str, tuple[Polygon, ...]]] = {
    # Filled outline first; the second, where there is one, is cut out of it. Unit: the radius.
    "circle": (_regular(_ROUND, 0.9),),
    "square": (0.8 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=np.float64),),
    "triangle": (_regular(3, 1.1),),
    "star": (_regular(10, 1.1, inner=0.5),),
    "cross": (0.3 * np.array(_CROSS, dtype=np.float64),),
    "ring": (_regular(_ROUND, 1.0), _regular(_ROUND, 0.48)),
    "crescent": (_regular(_ROUND, 1.0), _regular(_ROUND, 0.78) + np.array([0.46, 0.0])),
    "arrow": (np.array([(0, -1.1), (0.85, -0.1), (0.32, -0.1), (0.32, 1), (-0.32, 1), (-0.32, -0.1), (-0.85, -0.1)]),),
}
_TURN: Final = {
    # Largest rotation to either side, in radians; shapes that look alike after less turn less.
    "circle": np.pi,
    "square": np.pi / 6,
    "triangle": np.pi / 6,
    "star": np.pi / 5,
    "cross": np.pi / 7,
    "ring": np.pi,
    "crescent": np.pi,
    "arrow": np.pi,
}
_AXIS: Final = (np.arange(_CANVAS, dtype=np.float32) + 0.5) / _SCALE
_Y, _X = np.meshgrid(_AXIS, _AXIS, indexing="ij")  # pixel coordinates of every point of the canvas


def _place_outlines(
    outlines: tuple[Polygon, ...], centre: Float[np.ndarray, " 2"], *, radius: float, angle: float
) -> list[Corners]:
    """Corners of the object on the canvas, from those of the unit shape."""
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    placed = ((outline @ turn * radius + centre) * _SCALE for outline in outlines)
    return [[(float(x), float(y)) for x, y in points] for points in placed]


def _draw_mask(outlines: list[Corners]) -> Image.Image:
    """Where the object is: an 8-bit mask of the canvas."""
    mask = Image.new("L", (_CANVAS, _CANVAS), 0)
    draw = ImageDraw.Draw(mask)
    for corners, value in zip(outlines, (255, 0), strict=False):
        draw.polygon(corners, fill=value)
    return mask


def _with_rim(surface: Image.Image, outlines: list[Corners], colour: tuple[int, int, int]) -> Image.Image:
    """Draw the object's edge in its own colour: the second tone may be that of the background."""
    draw = ImageDraw.Draw(surface)
    for corners in outlines:
        draw.line([*corners, *corners[:2]], fill=colour, width=3 * _SCALE)  # the mask cuts off half of it
    return surface


def _draw_surface(
    pattern: str,
    colour: tuple[int, int, int],
    centre: Float[np.ndarray, " 2"],
    *,
    radius: float,
    angle: float,
    rng: np.random.Generator,
) -> Image.Image:
    """The object's colour and a second tone, white or dark, mixed by a pattern that turns with the object."""
    x, y = (
        (_X - np.float32(centre[0])) / np.float32(radius),
        (_Y - np.float32(centre[1])) / np.float32(radius),
    )
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    amount = _mix(pattern, cos * x + sin * y, cos * y - sin * x, phase=rng.uniform(0, 1, size=2))
    first = np.array(colour, dtype=np.float32)
    # A bright colour gets a dark partner and the reverse: every pattern shows in every colour.
    second = _DARK if first @ np.array((0.3, 0.59, 0.11), dtype=np.float32) > 115 else _WHITE
    return Image.fromarray((first + amount[..., None] * (second - first)).astype(np.uint8))


def _mix(pattern: str, u: Canvas, v: Canvas, *, phase: Float[np.ndarray, " 2"]) -> Canvas:
    """How much of the second tone each point has, 0..1; (u, v) are coordinates in units of the radius."""
    p, q = (np.float32(value) for value in phase)
    on: Bool[np.ndarray, "y x"]
    if pattern == "plain":
        on = np.zeros(u.shape, dtype=bool)
    elif pattern == "striped":
        on = (v / 0.5 + p) % 1.0 < 0.5
    elif pattern == "dotted":
        on = ((u / 0.46 + p) % 1.0 - 0.5) ** 2 + ((v / 0.46 + q) % 1.0 - 0.5) ** 2 < 0.3**2
    elif pattern == "checkered":
        on = ((np.floor(u / 0.3 + p) + np.floor(v / 0.3 + q)) % 2) == 1
    elif pattern == "shaded":
        return np.clip(0.5 - 0.62 * v, 0.0, 1.0).astype(np.float32)
    else:
        raise ValueError(f"no pattern {pattern!r}; there are {', '.join(PATTERNS)}")
    return on.astype(np.float32)


def _draw_background(rng: np.random.Generator) -> tuple[Image.Image, str]:
    """A flat, graded or speckled background with faint strokes on it, and its description."""
    tone, hue = _pick(BACKGROUND_TONES, rng), _pick(BACKGROUND_HUES, rng)
    base = np.clip(np.array(BACKGROUND_HUES[hue]) * BACKGROUND_TONES[tone] + rng.normal(0, 6, size=3), 0, 240)
    style = _pick(("flat", "graded", "speckled"), rng)
    if style == "graded":
        angle = rng.uniform(0, 2 * np.pi)
        shade = 0.6 * ((np.cos(angle) * _X + np.sin(angle) * _Y - (np.cos(angle) + np.sin(angle)) * 32) / SIDE)
    elif style == "speckled":
        coarse = rng.normal(0, 0.16, size=(SIDE // 2, SIDE // 2)).astype(np.float32)
        shade = np.asarray(Image.fromarray(coarse).resize((_CANVAS, _CANVAS), Image.Resampling.BILINEAR))
    else:
        shade = np.zeros((_CANVAS, _CANVAS), dtype=np.float32)
    pixels = np.clip(base.astype(np.float32) * (1 + shade[..., None].astype(np.float32)), 0, 255)
    canvas = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(2, 6)):
        start, step = rng.uniform(0, _CANVAS, size=2), rng.normal(0, 0.12 * _CANVAS, size=2)
        red, green, blue = (int(value) for value in np.clip(base * rng.uniform(0.7, 1.35), 0, 255))
        line = [(float(start[0]), float(start[1])), (float(start[0] + step[0]), float(start[1] + step[1]))]
        draw.line(line, fill=(red, green, blue), width=int(rng.integers(3, 8)))
    words = {"flat": "plain", "graded": "softly lit", "speckled": "speckled"}[style]
    return canvas, f"{words} {tone} {hue} background"
