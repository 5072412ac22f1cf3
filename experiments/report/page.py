"""What a page is made of, and writing it as one HTML file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

_PICTURES_AT_ONCE = 200
"""Pictures in one block of the page; a block is read when the first of its pictures comes into sight."""


@dataclass(frozen=True)
class Chart:
    """An interactive chart, drawn by plotly.js when it comes into sight and before printing.

    Attributes:
        figure: The chart; its size follows the page, its height is ``figure.layout.height`` pixels.
        caption: What a reader must know to read it.
        alt: What it shows, for who cannot see it.
    """

    figure: Figure
    caption: str
    alt: str


@dataclass(frozen=True)
class Picture:
    """A picture that does not change, such as one drawn by matplotlib.

    Attributes:
        png: The encoded picture.
        caption: What a reader must know to read it.
        alt: What it shows, for who cannot see it.
    """

    png: bytes
    caption: str
    alt: str


@dataclass(frozen=True)
class Table:
    """A table; a column whose heading is clicked orders its rows.

    Attributes:
        headings: One for each column.
        rows: Texts as they are shown.
        caption: What a reader must know to read it.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Note:
    """A paragraph, such as why something is not shown.

    Attributes:
        text: Plain text.
    """

    text: str


@dataclass(frozen=True)
class Folded:
    """Long plain text that is folded away until it is asked for, such as a configuration.

    Attributes:
        summary: What stands in its place.
        text: The text, shown as it is.
    """

    summary: str
    text: str


@dataclass(frozen=True)
class Candidate:
    """A retrieved picture or class.

    Attributes:
        picture: Key of the picture in the gallery's ``pictures``, or empty.
        right: Whether it is what was seen (or its class, where classes are retrieved).
        name: What it is called; shown in place of a picture where there is none.
        label: Its class, or empty.
    """

    picture: str
    right: bool
    name: str = ""
    label: str = ""


@dataclass(frozen=True)
class Case:
    """One recording of a stimulus and what was made of it.

    Attributes:
        run: Name of the run.
        subject: The person.
        stimulus: Name of the stimulus.
        label: Its class, or empty.
        seen: Key of the seen picture, or empty.
        retrieved: The best candidates, best first.
        generated: Keys of the generated pictures.
        rank: Rank of the right candidate, from 1; an average over tied places.
        among: Number of candidates; 0 where nothing was retrieved, only generated.
    """

    run: str
    subject: str
    stimulus: str
    label: str
    seen: str
    retrieved: Sequence[Candidate]
    generated: Sequence[str]
    rank: float
    among: int


@dataclass(frozen=True)
class StimulusGallery:
    """Cases to look through: filtered by run, person and class, ordered by rank, each enlarged by a click.

    Attributes:
        cases: In any order.
        pictures: Encoded pictures (PNG, JPEG or WebP) by key; each is in the page once.
        caption: What a reader must know to read it.
    """

    cases: Sequence[Case]
    pictures: dict[str, bytes]
    caption: str


Part = Chart | Picture | Table | Note | Folded | StimulusGallery


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading of its own.

    Attributes:
        title: The heading.
        parts: What it shows, in order.
    """

    title: str
    parts: Sequence[Part]


def render(title: str, sections: Sequence[Section], about: str = "") -> str:
    """Return the page as HTML that asks nothing of any network.

    Args:
        title: Its heading.
        sections: What it shows, in order.
        about: A line below the heading, such as when it was written.
    """
    environment = Environment(
        loader=PackageLoader(__package__, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts = [part for section in sections for part in section.parts]
    scripts = [_source("page.js")]
    if any(isinstance(part, Chart) for part in parts):
        # the library is made to stand in a page; charts are drawn once it is there
        scripts += [Markup(get_plotlyjs()), Markup('document.dispatchEvent(new Event("plotly"));')]
    number = iter(range(len(parts)))
    return environment.get_template("page.html.j2").render(
        title=title,
        about=about,
        sections=[
            {"title": section.title, "parts": [_shown(part, f"part-{next(number)}") for part in section.parts]}
            for section in sections
        ],
        style=_source("page.css"),
        scripts=scripts,
        # no other script runs, whatever a text on the page says
        script_hashes=" ".join(f"'sha256-{_sha256(script)}'" for script in scripts),
    )


def _source(name: str) -> Markup:
    return Markup((resources.files(__package__) / name).read_text(encoding="utf-8"))


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _shown(part: Part, identity: str) -> dict[str, Any]:
    """What the template needs of a part."""
    shown: dict[str, Any] = {"kind": type(part).__name__, "part": part, "id": identity}
    if isinstance(part, Chart):
        height = part.figure.layout.height
        return shown | {"data": _in_script(part.figure.to_json()), "height": 450 if height is None else height}
    if isinstance(part, Picture):
        return shown | {"source": _data_url(part.png)}
    if isinstance(part, StimulusGallery):
        return shown | _of_gallery(part)
    return shown


def _of_gallery(gallery: StimulusGallery) -> dict[str, Any]:
    """Names and cases as numbers, and the pictures in blocks."""
    keys = {key: number for number, key in enumerate(gallery.pictures)}
    names: dict[str, dict[Any, int]] = {"runs": {}, "people": {}, "labels": {}, "stimuli": {}, "candidates": {}}

    def number(table: str, value: Any) -> int:
        return names[table].setdefault(value, len(names[table]))

    def picture(key: str) -> int:
        return keys[key] if key else -1

    def candidate(each: Candidate) -> list[int]:
        known = (each.name, number("labels", each.label), picture(each.picture))
        return [number("candidates", known), int(each.right)]

    cases = [
        [
            number("runs", case.run),
            number("people", case.subject),
            number("stimuli", case.stimulus),
            number("labels", case.label),
            picture(case.seen),
            [candidate(each) for each in case.retrieved],
            [picture(key) for key in case.generated],
            case.rank,
            case.among,
        ]
        for case in gallery.cases
    ]
    urls = [_data_url(content) for content in gallery.pictures.values()]
    blocks = [urls[start : start + _PICTURES_AT_ONCE] for start in range(0, len(urls), _PICTURES_AT_ONCE)]
    data = {"cases": cases, "block": _PICTURES_AT_ONCE, **{table: list(values) for table, values in names.items()}}
    return {"data": _in_script(_json(data)), "pictures": [_in_script(_json(block)) for block in blocks]}


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def _in_script(text: str) -> Markup:
    """JSON that cannot end the script element it stands in: ``<`` only occurs within its texts."""
    return Markup(text.replace("<", "\\u003c"))


def _data_url(picture: bytes) -> str:
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}
    kind = next((kind for start, kind in kinds.items() if picture.startswith(start)), None)
    if kind is None:
        raise ValueError(f"a picture of the page is neither PNG, JPEG nor WebP: it starts with {picture[:4]!r}")
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
