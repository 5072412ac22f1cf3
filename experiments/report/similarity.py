"""Section: similarity of brain and image embeddings, and their dissimilarity matrices, in class order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from callbacks.metrics.resampling import few_stimuli
from contracts import NO_LABEL
from experiments.report.dissimilarity import Agreement, Geometry, agreement, dissimilarity, geometry
from experiments.report.drawing import interval, number, shortened, style
from experiments.report.folds import Tested, blocks_of, gather_folds
from experiments.report.page import Chart, Note, Part, Section, Table
from experiments.report.runs import Run

DRAWN = 200
"""Most stimuli that are drawn; correlations use all."""

CHOICES = 5
"""Most people and runs to choose from: each adds about 0.16 MB to the page."""

_TICKS = 24
_PANELS = ("brain · image, cosine", "brain, 1 − Pearson", "image, 1 − Pearson")  # noqa: RUF001  (minus sign)


@dataclass(frozen=True)
class Shown:
    """Embeddings of one person in one run.

    Attributes:
        tested: The run.
        subject: The person.
        geometry: The embeddings.
        found: How far the dissimilarities agree, or why that cannot be told.
    """

    tested: Tested
    subject: str
    geometry: Geometry
    found: Agreement | str

    @property
    def title(self) -> str:
        """Run and person."""
        return f"{self.tested.data} {self.tested.stage} {self.tested.name}, sub-{self.subject}"


def section(runs: Sequence[Run]) -> Section | None:
    """Matrices with a choice of person and run, and the correlations of all; None where nothing was decoded."""
    shown = []
    told = []
    for tested in gather_folds(runs):
        for subject in tested.subjects:
            blocks = blocks_of(tested, subject)
            if not blocks:
                continue
            try:
                found = geometry(blocks)
                cosines = found.cosines
            except ValueError as error:
                told.append(f"{tested.title}, sub-{subject}: {error}.")
                continue
            if len(cosines) < 2:
                told.append(f"{tested.title}, sub-{subject}: a single item was tested.")
                continue
            shown.append(Shown(tested, subject, found, _agree(found)))
    if not shown:
        return Section("Similarity of brain and image embeddings", [Note(" ".join(told))]) if told else None
    parts: list[Part] = [_chart(_chosen(shown), left_out=len(shown) - min(len(shown), CHOICES)), _table(shown)]
    return Section("Similarity of brain and image embeddings", [*parts, *([Note(" ".join(told))] if told else [])])


def _agree(found: Geometry) -> Agreement | str:
    try:
        return agreement(dissimilarity(found.brain, "brain"), dissimilarity(found.image, "image"))
    except ValueError as error:
        return str(error)


def _chosen(shown: Sequence[Shown]) -> list[Shown]:
    """The first people of every stage in turn, up to ``CHOICES``."""
    turns: dict[tuple[str, ...], int] = {}
    ranked = []
    for each in shown:
        series = (each.tested.data, each.tested.stage, each.tested.name)
        turns[series] = turns.get(series, -1) + 1
        ranked.append((turns[series], each))
    return [each for _, each in sorted(ranked, key=lambda pair: pair[0])[:CHOICES]]


# ---- chart -------------------------------------------------------------------------------------------


def _chart(shown: Sequence[Shown], *, left_out: int) -> Chart:
    figure = make_subplots(1, 3, subplot_titles=_PANELS, horizontal_spacing=0.04)
    for place, each in enumerate(shown):
        for column, matrix in enumerate(_matrices(each), start=1):
            figure.add_trace(_heat_map(each, matrix, column, visible=place == 0), row=1, col=column)
    style(figure, 520, top=110 if len(shown) > 1 else 60)
    axis = {"showgrid": False, "constrain": "domain", "type": "category", "tickfont": {"size": 10}}
    figure.update_xaxes(**axis, tickangle=-90)
    figure.update_yaxes(**axis, autorange="reversed")
    for column, anchor in enumerate(("x", "x2", "x3"), start=1):
        figure.update_yaxes(scaleanchor=anchor, showticklabels=column == 1, row=1, col=column)
    figure.update_layout(_layout_of(shown[0]))
    if len(shown) > 1:
        menu = {"buttons": [_button(shown, place) for place in range(len(shown))], "showactive": True}
        figure.update_layout(updatemenus=[{**menu, "x": 0, "xanchor": "left", "y": 1.2, "yanchor": "bottom"}])
    most = max(len(each.geometry.stimuli) for each in shown)
    some = f" Of more than {DRAWN} stimuli {DRAWN} are drawn, evenly spaced in this order." if most > DRAWN else ""
    rest = f" {left_out} further people and runs are in the table alone." if left_out else ""
    caption = (
        f"{'Choose a run and person above. ' if len(shown) > 1 else f'{shown[0].title}. '}Stimuli in class order, "
        "trials of a stimulus averaged. Left: cosine of each brain embedding (row) with each image embedding (column); "
        "a bright diagonal means that brain embeddings resemble those of what was seen, bright blocks those of its "
        "class; without any information rows look alike. Middle and right: dissimilarity of each pair of brain and "
        "of image embeddings, 1 less their Pearson correlation; the two look alike where similar pictures are decoded "
        f"alike. Colours span all but the outermost values.{some}{rest}"
    )
    return Chart(figure, caption, "Similarity matrix of brain and image embeddings and two dissimilarity matrices")


def _matrices(each: Shown) -> list[Tensor]:
    drawn = _drawn(each)
    brain, image = (dissimilarity(side, "embeddings") for side in (each.geometry.brain, each.geometry.image))
    return [matrix[drawn][:, drawn] for matrix in (each.geometry.cosines, brain, image)]


def _drawn(each: Shown) -> list[int]:
    """Which stimuli are drawn."""
    count = len(each.geometry.stimuli)
    return sorted({int(place) for place in np.linspace(0, count - 1, min(count, DRAWN)).round()})


def _heat_map(each: Shown, matrix: Tensor, column: int, *, visible: bool) -> go.Heatmap:
    # hundredths fit into a byte each, a sixth of what numbers as text take
    hundredths = np.rint(100 * matrix.numpy())
    off = hundredths[~np.eye(len(hundredths), dtype=bool)]
    low, high = np.quantile(off, 0.01), max(np.quantile(off, 0.99), np.quantile(off, 0.01) + 2)
    ticks = [float(np.ceil(low)), float(np.floor(high))]
    names = _names(each)
    return go.Heatmap(
        z=hundredths.astype(np.int8 if column == 1 else np.uint8),
        x=names,
        y=names,
        zmin=low,
        zmax=high,
        colorscale="viridis" if column == 1 else "cividis",
        colorbar={
            "orientation": "h",
            "y": 1.0,
            "yanchor": "bottom",
            "x": (0.155, 0.5, 0.845)[column - 1],
            "len": 0.2,
            "thickness": 8,
            "tickvals": ticks,
            "ticktext": [f"{tick / 100:.2f}" for tick in ticks],
            "tickfont": {"size": 10},
            "ypad": 22,
        },
        visible=visible,
        hovertemplate="%{z}/100<br>row: %{y}<br>column: %{x}<extra></extra>",
    )


def _class_of(each: Shown, label: int) -> str:
    classes = each.tested.parts[0].context.layout["classes"]
    return "" if label == NO_LABEL or label >= len(classes) else classes[label]


def _names(each: Shown) -> list[str]:
    """Class, and name or number, of each stimulus that is drawn; unique."""
    found = each.geometry
    pictures = each.tested.runs[0].pictures
    names = {} if pictures is None else pictures.names
    drawn = _drawn(each)
    pairs = zip(found.stimuli[drawn].tolist(), found.labels[drawn].tolist(), strict=True)
    return [f"{_class_of(each, label)} · {names.get(stimulus, stimulus)} ({stimulus})" for stimulus, label in pairs]


def _layout_of(each: Shown) -> dict[str, Any]:
    """Ticks with the names of classes, and lines between classes, of one person."""
    drawn, names = _drawn(each), _names(each)
    labels = each.geometry.labels[drawn].tolist()
    starts = [place for place in range(len(labels)) if place == 0 or labels[place] != labels[place - 1]]
    middles = [(start + stop - 1) // 2 for start, stop in zip(starts, [*starts[1:], len(labels)], strict=True)]
    step = -(-len(middles) // _TICKS)
    marked = middles[::step] if labels[0] != NO_LABEL or len(starts) > 1 else []
    texts = [shortened(_class_of(each, labels[place])) for place in marked]
    ticks = {"tickvals": [names[place] for place in marked], "ticktext": texts}
    # lines between many small classes would hide what they divide
    edges = starts[1:] if len(starts) <= _TICKS and 4 * len(starts) <= len(labels) else []
    line = {"color": "white", "width": 0.7}
    ends = {"type": "line", "line": line}
    shapes = []
    for column in ("", "2", "3"):
        axes = {"xref": f"x{column}", "yref": f"y{column}", **ends}
        for edge in edges:
            shapes.append({**axes, "x0": edge - 0.5, "x1": edge - 0.5, "y0": -0.5, "y1": len(labels) - 0.5})
            shapes.append({**axes, "y0": edge - 0.5, "y1": edge - 0.5, "x0": -0.5, "x1": len(labels) - 0.5})
    layout: dict[str, Any] = {"shapes": shapes}
    for column in ("", "2", "3"):
        for key, value in ticks.items():
            layout |= {f"xaxis{column}_{key}": value, f"yaxis{column}_{key}": value}
    return layout


def _button(shown: Sequence[Shown], place: int) -> dict[str, Any]:
    """What the choice of a person changes."""
    visible = [other == place for other in range(len(shown)) for _ in _PANELS]
    layout = {key.replace("_", "."): value for key, value in _layout_of(shown[place]).items()}
    return {"label": shown[place].title, "method": "update", "args": [{"visible": visible}, layout]}


# ---- table -------------------------------------------------------------------------------------------


def _table(shown: Sequence[Shown]) -> Table:
    rows = []
    for each in shown:
        cosines = each.geometry.cosines
        count = len(cosines)
        own = float(cosines.diagonal().mean())
        other = float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)))
        found = each.found
        agree = (
            ("-", "-", "-", found)
            if isinstance(found, str)
            else (number(found.value), interval(found.low, found.high), number(found.p_value), "")
        )
        tested = each.tested
        folds = f"{len(tested.runs)} folds" if len(tested.runs) > 1 else ""
        note = "; ".join(filter(None, (agree[3], folds, few_stimuli(count))))
        row = (tested.data, tested.stage, tested.name, each.subject, str(count), number(own), number(other))
        rows.append((*row, *agree[:3], note))
    headings = ("data", "stage", "run", "subject", "stimuli", "cosine, own", "cosine, others")
    caption = (
        "Correlation: Spearman, over all pairs of stimuli, of the dissimilarities of brain and of image embeddings; "
        "chance 0. Intervals resample stimuli; p is one-sided, stimuli of one matrix permuted "
        "(Mantel test). Cosine of a brain embedding with the image embedding of what was seen, and with those of the "
        "other stimuli. Folds are decoded by models of their own."
    )
    return Table((*headings, "correlation", "95 % interval", "p", "notes"), rows, caption)
