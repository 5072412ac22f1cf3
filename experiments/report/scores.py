"""Section: scores with intervals, chance and noise ceiling, and runs compared stimulus by stimulus."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from callbacks import average
from contracts import Score
from experiments.report.comparison import comparison
from experiments.report.drawing import GREY, INK, colour, interval, number, rounded, style, symbol
from experiments.report.folds import Tested, gather_folds
from experiments.report.page import Chart, Note, Part, Section, Table
from experiments.report.runs import Run

SIGNIFICANT = 0.05
"""p-values below this fill a point."""

MEAN = "mean"
_PANELS = 12
_POINTS_A_ROW = 48
_BESIDE = 24  # points of a panel up to which data sets share it
_PANEL_HEIGHT = 150  # pixels
_WIDTH = 800  # of a chart, in pixels, about
_FLAT = 40  # pixels below an axis whose labels are not turned
_LEVELS = {
    "chance": {"color": INK, "dash": "dot", "width": 1.5},
    "ceiling": {"color": GREY, "dash": "solid", "width": 1.5},
}
_CROSS_MODAL = ("decoding and encoding", "conversion")
"""Tables whose scores are of tasks rather than of people."""


@dataclass(frozen=True)
class Point:
    """A score and whose it is.

    Attributes:
        score: The score.
        data: Name of the data set.
        stage: Name of the stage.
        name: Name of the run.
        run: What the run is called where it must differ from others of its stage and people, or empty.
    """

    score: Score
    data: str
    stage: str
    name: str
    run: str = ""

    @property
    def table(self) -> str:
        """The table it belongs to."""
        return self.score.table or "recordings"

    @property
    def quantity(self) -> str:
        """What is scored, with the gallery but for its size."""
        gallery = "" if self.table in _CROSS_MODAL else self.score.gallery_name
        return " · ".join(filter(None, (self.score.name, gallery)))

    @property
    def slot(self) -> tuple[str, str]:
        """Data set, and the place on the axis within it: person, task or run."""
        place = self.score.gallery_name if self.table in _CROSS_MODAL else self.score.subject
        return self.data, " ".join(filter(None, (place, self.run)))


def section(runs: Sequence[Run]) -> Section | None:
    """Scores as charts and as a table, and paired differences where runs were tested on the same stimuli."""
    tested = gather_folds(runs)
    points, notes = _points(tested)
    if not points:
        return None
    parts: list[Part] = [Note(note) for note in notes]
    stages = list(dict.fromkeys(point.stage for point in points))
    for table in dict.fromkeys(point.table for point in points):
        # conversions are a matrix, drawn as one in their own section
        if table != "conversion":
            parts += _charts([point for point in points if point.table == table], table, stages)
    parts.append(_table(points))
    return Section("Scores", [*parts, *comparison(tested)])


# ---- which scores ------------------------------------------------------------------------------------


def _points(tested: Sequence[Tested]) -> tuple[list[Point], list[str]]:
    """Scores of all people and their means, and what a reader must know about where they come from."""
    points: list[Point] = []
    joined, apart = [], []
    for each in tested:
        together = each.joined
        if together is not None:
            joined.append(each.title)
            points += [Point(score, each.data, each.stage, each.name) for score in together]
            continue
        if len(each.runs) > 1:
            apart.append(each.title)
        points += [
            Point(score, run.data, run.stage, run.name) for run in each.runs for score in run.scores if run.scores
        ]
    points = [point for point in points if point.score.subject != MEAN]
    notes = []
    if joined:
        notes.append(f"Folds joined by neuroalign grid: {'; '.join(joined)}.")
    if apart:
        notes.append(
            f"Folds listed one by one, for want of the scores that neuroalign grid joins: {'; '.join(apart)}. "
            "A fold in which a single item was tested has none."
        )
    return _named([*points, *_means(points)]), notes


def _means(points: Sequence[Point]) -> list[Point]:
    groups: dict[tuple[str, str, str], list[Point]] = {}
    for point in points:
        if point.table not in _CROSS_MODAL:
            groups.setdefault((point.data, point.stage, point.name), []).append(point)
    return [replace(group[0], score=score) for group in groups.values() for score in average([p.score for p in group])]


def _named(points: Sequence[Point]) -> list[Point]:
    """Tell runs of a data set apart by name where a stage has several."""
    names: dict[str, dict[str, set[str]]] = {}
    for point in points:
        names.setdefault(point.data, {}).setdefault(point.stage, set()).add(point.name)
    several = {data for data, stages in names.items() if any(len(found) > 1 for found in stages.values())}
    return [replace(point, run=point.name) if point.data in several else point for point in points]


# ---- chart -------------------------------------------------------------------------------------------


def _charts(points: Sequence[Point], table: str, stages: Sequence[str]) -> list[Chart]:
    """One chart for all data sets where they fit beside each other, else one for each."""
    if max(len(panel) for panel in _panels(points).values()) <= _BESIDE:
        return [_chart(points, table, stages)]
    data_sets = dict.fromkeys(point.data for point in points)
    return [_chart([p for p in points if p.data == data], f"{table}, {data}", stages) for data in data_sets]


def _panels(points: Sequence[Point]) -> dict[str, list[Point]]:
    panels: dict[str, list[Point]] = {}
    for point in points:
        panels.setdefault(point.quantity, []).append(point)
    return panels


def _chart(points: Sequence[Point], title: str, stages: Sequence[str]) -> Chart:
    """A chart; the place of a stage among ``stages`` is its colour in all charts."""
    panels = _panels(points)
    shown = dict(list(panels.items())[:_PANELS])
    own_stages = [stage for stage in stages if any(point.stage == stage for point in points)]
    columns = max(1, min(4, len(shown), _POINTS_A_ROW // max(len(panel) for panel in shown.values())))
    rows = -(-len(shown) // columns)
    slots = [list(_places(panel)) for panel in shown.values()]
    room = max(_label_room(own, columns) for own in slots)
    inner = rows * _PANEL_HEIGHT + (rows - 1) * (room + 40)
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=list(shown),
        vertical_spacing=(room + 40) / inner if rows > 1 else 0.0,
        horizontal_spacing=0.24 / columns,
    )
    for kind, line in _LEVELS.items():
        if any(getattr(point.score, kind) is not None for point in points):
            figure.add_trace(go.Scatter(x=[None], y=[None], mode="lines", name=kind, line=line))
    for stage in own_stages:
        series = stages.index(stage)
        marker = {"color": colour(series), "symbol": symbol(series), "size": 8}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", name=stage, marker=marker))
    for place, panel in enumerate(shown.values()):
        _draw_panel(figure, panel, stages, place // columns + 1, place % columns + 1, turned=room > _FLAT)
    style(figure, inner + room + 80, top=80)
    figure.update_layout(margin_b=room)
    left_out = f" {len(panels) - len(shown)} further scores are in the table alone." if len(panels) > _PANELS else ""
    caption = (
        f"Scores of {title}, each with its 95 % interval over stimuli. Dotted lines are chance, solid lines the noise "
        f"ceiling where it is known. Filled points have p < {SIGNIFICANT:g} against permuted stimuli, one-sided and "
        "of each score alone; open ones have not, or no p; diamonds are means over people, without interval." + left_out
    )
    return Chart(figure, caption, f"{', '.join(shown)} of {', '.join(own_stages)} with intervals and chance")


def _draw_panel(
    figure: go.Figure, panel: Sequence[Point], stages: Sequence[str], row: int, column: int, *, turned: bool
) -> None:
    places = _places(panel)
    own = [stage for stage in stages if any(point.stage == stage for point in panel)]
    step = 0.7 / len(own)
    x = [places[point.slot] + (own.index(point.stage) + 0.5) * step - 0.35 for point in panel]
    for kind, line in _LEVELS.items():
        ends = _level_ends(panel, x, step, kind, places)
        if ends:
            levels = go.Scatter(
                x=[value for left, right, _ in ends for value in (left, right, None)],
                y=rounded([value for *_, level in ends for value in (level, level, None)]),
                mode="lines",
                line=line,
                showlegend=False,
                hoverinfo="skip",
            )
            figure.add_trace(levels, row=row, col=column)
    for stage in own:
        mine = [(point, place) for point, place in zip(panel, x, strict=True) if point.stage == stage]
        trace = _points_of([point for point, _ in mine], [place for _, place in mine], stages.index(stage))
        figure.add_trace(trace, row=row, col=column)
    figure.update_yaxes(range=_range(panel), row=row, col=column)
    _label_axis(figure, places, row, column, turned=turned)


def _level_ends(
    panel: Sequence[Point], x: Sequence[float], step: float, kind: str, places: dict[tuple[str, str], float]
) -> list[tuple[float, float, float]]:
    """Left end, right end and height of the lines of a level: one for all points of a place where it is the same."""
    found: dict[tuple[str, str], dict[float, float]] = {}
    for point, place in zip(panel, x, strict=True):
        level = getattr(point.score, kind)
        if level is not None:
            found.setdefault(point.slot, {})[place] = level
    ends = []
    for slot, levels in found.items():
        if len(set(levels.values())) == 1:
            ends.append((places[slot] - 0.45, places[slot] + 0.45, next(iter(levels.values()))))
        else:
            ends += [(place - step / 2, place + step / 2, level) for place, level in levels.items()]
    return ends


def _range(panel: Sequence[Point]) -> list[float]:
    """Ends of an axis that shows all of the values, intervals and levels, with room for the name of a data set."""
    scores = [point.score for point in panel]
    shown = [v for s in scores for v in (s.value, s.low, s.high, s.chance, s.ceiling) if v is not None]
    known = [value for value in shown if math.isfinite(value)] or [0.0, 1.0]
    room = max(max(known) - min(known), 0.1)
    several = len({point.data for point in panel}) > 1
    return [min(known) - 0.05 * room, max(known) + (0.16 if several else 0.05) * room]


def _significant(score: Score) -> bool:
    return score.p_value is not None and score.p_value < SIGNIFICANT


def _points_of(points: Sequence[Point], x: Sequence[float], series: int) -> go.Scatter:
    scores = [point.score for point in points]
    above = [0.0 if score.high is None else score.high - score.value for score in scores]
    below = [0.0 if score.low is None else score.value - score.low for score in scores]
    bars = {"array": rounded(above), "arrayminus": rounded(below), "symmetric": False, "width": 0, "thickness": 1.5}
    return go.Scatter(
        x=rounded(x),
        y=rounded([score.value for score in scores]),
        error_y=bars,
        mode="markers",
        showlegend=False,
        marker={"color": colour(series), "size": 8},
        marker_symbol=[
            "diamond" if score.subject == MEAN else symbol(series) + ("" if _significant(score) else "-open")
            for score in scores
        ],
        text=[_hover(point) for point in points],
        hovertemplate="%{text}<extra></extra>",
    )


def _hover(point: Point) -> str:
    score = point.score
    found = f"{number(score.value)} ({interval(score.low, score.high)})".replace(" (-)", "")
    levels = f"chance {number(score.chance)}, p {number(score.p_value)}, ceiling {number(score.ceiling)}"
    return "<br>".join((f"<b>{point.stage}</b> {point.data} {point.slot[1]}", f"{point.quantity}: {found}", levels))


def _places(panel: Sequence[Point]) -> dict[tuple[str, str], float]:
    """Places on the axis, data set by data set with a gap between; means come last in each."""
    slots = sorted({point.slot: None for point in panel}, key=lambda slot: slot[1].startswith(MEAN))
    places: dict[tuple[str, str], float] = {}
    at = 0.0
    for data in dict.fromkeys(point.data for point in panel):
        for slot in slots:
            if slot[0] == data:
                places[slot] = at
                at += 1.0
        at += 0.6
    return places


def _label_room(slots: Sequence[tuple[str, str]], columns: int) -> int:
    """Height in pixels that the labels of an axis need: they are turned where they do not fit beside each other."""
    longest = max(len(label) for _, label in slots)
    fits = len(slots) * (longest + 1) * 7.5 < _WIDTH / columns
    return _FLAT if fits else max(_FLAT, 25 + int(6.2 * longest))


def _label_axis(
    figure: go.Figure, places: dict[tuple[str, str], float], row: int, column: int, *, turned: bool
) -> None:
    figure.update_xaxes(
        tickvals=rounded(list(places.values())),
        ticktext=[slot[1] for slot in places],
        tickangle=-90 if turned else 0,
        tickfont={"size": 10 if turned else 12},
        range=[min(places.values()) - 0.6, max(places.values()) + 0.6],
        showgrid=False,
        row=row,
        col=column,
    )
    data_sets = list(dict.fromkeys(data for data, _ in places))
    for data in data_sets if len(data_sets) > 1 else []:
        own = [place for (name, _), place in places.items() if name == data]
        figure.add_annotation(
            text=data,
            x=(min(own) + max(own)) / 2,
            y=1,
            yref="y domain",
            yanchor="top",
            showarrow=False,
            font={"size": 11, "color": GREY},
            row=row,
            col=column,
        )


# ---- table -------------------------------------------------------------------------------------------


def _table(points: Sequence[Point]) -> Table:
    """All scores; what is the same in all of them is told once."""
    notes: dict[str, int] = {}
    rows = []
    order = {point.table: place for place, point in enumerate(reversed(points))}
    for point in sorted(points, key=lambda p: (p.data, -order[p.table])):
        score = point.score
        marks = " ".join(f"[{notes.setdefault(n, len(notes) + 1)}]" for n in filter(None, score.note.split("; ")))
        rows.append(
            {
                "data": point.data,
                "stage": point.stage,
                "run": point.name,
                "subject": score.subject,
                "score": score.name,
                "gallery": f"{score.gallery} {score.similarity}".strip(),
                "protocol": score.protocol + (" (transductive)" if score.transductive else ""),
                "value": number(score.value),
                "95 % interval": interval(score.low, score.high),
                "chance": number(score.chance),
                "p": number(score.p_value),
                "ceiling": number(score.ceiling),
                "n": str(score.n),
                "stimuli": str(score.stimuli),
                "notes": marks,
            }
        )
    constant = {
        key: rows[0][key]
        for key in ("data", "stage", "run", "subject", "protocol")
        if len({row[key] for row in rows}) == 1 and len(rows) > 1 and rows[0][key]
    }
    shown = [key for key in rows[0] if key not in constant and any(row[key] for row in rows)]
    told = [f"{', '.join(f'{key}: {value}' for key, value in constant.items())}."] if constant else []
    told.append("Intervals are over stimuli, p-values one-sided against permuted stimuli.")
    if any(point.score.transductive for point in points):
        told.append("Transductive: test recordings took part in fitting something, such as their normalisation.")
    told += [f"[{mark}] {note}." for note, mark in notes.items()]
    return Table(shown, [[row[key] for key in shown] for row in rows], " ".join(told))
