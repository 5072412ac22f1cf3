"""Colours, axes and numbers that all charts share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D", "#000000")
"""Colours that the colour-blind tell apart (Okabe & Ito 2008), but for its yellow, which is pale on white paper."""

SYMBOLS = ("circle", "square", "triangle-up", "x", "star")
"""What tells series apart when there are more of them than colours."""

GREY = "#8a8a8a"
INK = "#222222"

_AXIS = {"gridcolor": "#e8e8e8", "linecolor": "#bbbbbb", "zeroline": False, "automargin": True}
_TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "colorway": PALETTE,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "white", "align": "left"},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "annotationdefaults": {"font": {"size": 13}},
    }
)


def style(figure: go.Figure, height: int, *, top: int = 60) -> go.Figure:
    """Give a chart the look of the page: its height in pixels, and room for what stands above it."""
    figure.update_layout(
        template=_TEMPLATE,
        height=height,
        margin={"l": 60, "r": 20, "t": top, "b": 50},
        legend={"orientation": "h", "y": 1, "yref": "container", "yanchor": "top", "x": 0, "itemsizing": "constant"},
    )
    return figure


def colour(number: int) -> str:
    """Colour of a series."""
    return PALETTE[number % len(PALETTE)]


def symbol(number: int) -> str:
    """Symbol of a series."""
    return SYMBOLS[number // len(PALETTE) % len(SYMBOLS)]


def number(value: float | None) -> str:
    """Three decimals, or a dash where there is no number."""
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def interval(low: float | None, high: float | None) -> str:
    """Both ends of an interval, or a dash where one of them is no number."""
    ends = number(low), number(high)
    return "-" if "-" in ends else " .. ".join(ends)


def person(subject: str) -> str:
    """What a person is called; means are of several people, and pictures of none."""
    return subject if subject.startswith(("mean", "pictures")) else f"sub-{subject}"


def shortened(name: str, most: int = 24) -> str:
    """A name of at most so many letters: of a longer one its beginning and end."""
    if len(name) <= most:
        return name
    end = most // 2
    return f"{name[: most - end - 1]}…{name[-end:]}"


def rounded(values: Sequence[float | None]) -> list[float | None]:
    """Four significant digits: more make a page large and are not seen."""
    return [None if value is None else float(f"{value:.4g}") for value in values]
