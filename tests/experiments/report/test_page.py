"""The page as text: what it holds, that texts stay texts, and that nothing is asked of any network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import unescape
from html.parser import HTMLParser

import pytest

from experiments.report.page import Case, Chart, Folded, Note, Section, StimulusGallery, Table, render
from tests.experiments.report import pages
from tests.experiments.report.pages import HOSTILE


class Elements(HTMLParser):
    """Start tags with their attributes, and the texts of scripts, as a browser's parser splits them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)


def hostile_page() -> str:
    shown = pages.gallery(4, [HOSTILE, "02"], runs=[HOSTILE], classes=[HOSTILE, "dog"])
    chart = pages.chart()
    sections = [
        Section(HOSTILE, [Note(HOSTILE), Folded(HOSTILE, HOSTILE), Table([HOSTILE], [[HOSTILE]], HOSTILE)]),
        Section("chart", [Chart(chart.figure.update_layout(title=HOSTILE), HOSTILE, HOSTILE)]),
        Section("gallery", [StimulusGallery(shown.cases, shown.pictures, HOSTILE)]),
    ]
    return render(HOSTILE, sections, HOSTILE)


def test_hostile_texts_stay_texts() -> None:
    text = hostile_page()
    elements = Elements(text)
    assert HOSTILE not in text
    assert not [
        attributes for tag, attributes in elements.tags if "onerror" in attributes or attributes.get("src") == "x"
    ]
    # title, heading, line below it, section, note, folded twice, table thrice, captions
    assert unescape(text).count(HOSTILE) >= 12
    for attributes, script in elements.scripts:
        if attributes.get("type") == "application/json":
            assert "<" not in script
            json.loads(script)


def test_data_comes_back_as_it_was_given() -> None:
    scripts = {attributes.get("id"): text for attributes, text in Elements(hostile_page()).scripts}
    data = json.loads(scripts["part-4-data"])
    assert HOSTILE in data["people"]
    assert HOSTILE in data["labels"]
    assert len(data["cases"]) == 8
    layout = json.loads(scripts["part-3-data"])["layout"]
    assert layout["title"]["text"] == HOSTILE


def test_only_the_scripts_of_the_page_may_run_and_nothing_is_loaded() -> None:
    elements = Elements(pages.page(pages.gallery(3)))
    (policy,) = [a["content"] for tag, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    assert rules["default-src"] == ["'none'"]
    running = [text for attributes, text in elements.scripts if attributes.get("type") is None]
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in running]
    assert rules["script-src"] == hashes
    assert rules["img-src"] == ["data:", "blob:"]
    for tag, attributes in elements.tags:
        for name in ("src", "href", "action", "poster", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)


def test_the_plotting_library_is_embedded_once_and_only_for_charts() -> None:
    with_charts = pages.page(pages.gallery(2), charts=4)
    without = render("title", [Section("Stimuli", [pages.gallery(2)])])
    assert with_charts.count("plotly.js v") == 1
    assert "plotly.js v" not in without
    assert len(without) < 200_000
    assert len(Elements(with_charts).scripts) == 4 + 1 + 3 + 1


def test_each_picture_is_in_the_page_once() -> None:
    shown = pages.gallery(30, ["01", "02", "03"])
    text = render("title", [Section("Stimuli", [shown])])
    # as seen pictures by three people and as candidates of all of them
    assert len(re.findall("data:image/webp;base64,", text)) == len(shown.pictures) == 30 + 3 * 30 * 2
    (block,) = [t for a, t in Elements(text).scripts if str(a.get("id")).endswith("pictures-0")]
    assert json.loads(block)[0].endswith(base64.b64encode(shown.pictures["seen-0"]).decode())


def test_a_picture_of_another_kind_is_refused() -> None:
    case = Case("run", "01", "a", "", "a", [], [], 1.0, 2)
    with pytest.raises(ValueError, match="neither PNG, JPEG nor WebP"):
        render("title", [Section("Stimuli", [StimulusGallery([case], {"a": b"GIF89a"}, "")])])
    with pytest.raises(KeyError, match="a"):
        render("title", [Section("Stimuli", [StimulusGallery([case], {}, "")])])


def test_every_part_and_section_is_there_in_order() -> None:
    text = pages.page(pages.gallery(2))
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", text)
    assert headings == re.findall(r'<a href="#section-\d+">(.*?)</a>', text)
    assert headings == ["Scores", "Stimuli", "Similarity", "Where in the brain"]
    assert text.count("<figure>") == 3 + 1
    for _, attributes in [each for each in Elements(text).tags if each[0] == "img"]:
        assert attributes["alt"]
    assert 'aria-label="two_way over steps"' in text
    assert "3 runs, written on 21 November 2026" in text
