"""Section: the conversion matrix, every modality and the pictures from and to each other."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from contracts import Score
from experiments.report.drawing import interval, number, style
from experiments.report.folds import gather_folds
from experiments.report.page import Chart, Part, Section
from experiments.report.runs import Run

BETWEEN = " to "
REGRESSION = " by regression"
SIGNIFICANT = 0.05

_MEASURES = {
    ("two_way", ""): "two-way, retrieval",
    ("two_way", REGRESSION): "two-way, regression",
    ("pearson_mean", REGRESSION): "Pearson of signals",
    ("class_pearson_mean", REGRESSION): "Pearson of signals, over classes",
    ("chance_corrected_two_way", ""): "chance-corrected two-way, retrieval",
    ("chance_corrected_two_way", REGRESSION): "chance-corrected two-way, regression",
}
"""Measures that are drawn, in order, by name of the score and how it is done."""

Cells = dict[tuple[str, str], Score]


def section(runs: Sequence[Run]) -> Section | None:
    """The matrices of each run that scored conversions; None where none did."""
    parts: list[Part] = []
    for tested in gather_folds(runs):
        scores = tested.joined or [score for run in tested.runs for score in run.scores]
        matrices = {title: cells for key, title in _MEASURES.items() if (cells := _cells(scores, *key))}
        if matrices:
            parts.append(_chart(tested.title, matrices))
    return Section("Decoding, encoding and conversion", parts) if parts else None


def _cells(scores: Sequence[Score], name: str, how: str) -> Cells:
    """Scores of one measure by source and target."""
    cells = {}
    for score in scores:
        task = score.gallery_name.removesuffix(REGRESSION)
        if score.name == name and BETWEEN in task and score.gallery_name == f"{task}{how}":
            source, _, target = task.partition(BETWEEN)
            cells[source, target] = score
    return cells


def above_chance(score: Score) -> bool:
    """Whether a score is above chance: by its p-value, or where it has none by the lower end of its interval."""
    if score.p_value is not None:
        return score.p_value < SIGNIFICANT
    return score.low is not None and score.chance is not None and score.low > score.chance


def _chart(title: str, matrices: dict[str, Cells]) -> Chart:
    columns = min(3, len(matrices))
    rows = -(-len(matrices) // columns)
    height = 270 * rows + 100 * (rows - 1)
    figure = make_subplots(
        rows,
        columns,
        # long names stand in two lines
        subplot_titles=[name.replace(", ", "<br>") for name in matrices],
        horizontal_spacing=0.1,
        vertical_spacing=100 / height if rows > 1 else 0.0,
    )
    for place, (measure, cells) in enumerate(matrices.items()):
        row, column = place // columns + 1, place % columns + 1
        figure.add_trace(_matrix(measure, cells), row=row, col=column)
        figure.update_yaxes(autorange="reversed", showgrid=False, row=row, col=column)
        figure.update_xaxes(showgrid=False, side="bottom", row=row, col=column)
        if column == 1:
            figure.update_yaxes(title_text="from", row=row, col=column)
        if place + columns >= len(matrices):
            figure.update_xaxes(title_text="to", row=row, col=column)
    style(figure, height + 120)
    chance = {score.chance for cells in matrices.values() for score in cells.values() if score.name == "two_way"}
    levels = " and ".join(number(level) for level in sorted(level for level in chance if level is not None))
    caption = (
        f"{title}: from each row to each column. image to a modality is encoding, a modality to image decoding. "
        f"Two-way has chance {levels or '-'}; Pearson and chance-corrected two-way have chance 0, and the latter is 1 "
        "where nothing is lost against decoding the target itself, and left out where that is not above chance. In "
        f"brackets: not above chance (p at least {SIGNIFICANT:g}, or an interval that reaches chance where there is "
        "no p). Darkest is chance or below; each matrix has a scale of its own. Intervals and p-values are in the "
        "boxes that open at a cell."
    )
    return Chart(figure, caption, f"Conversion matrices of {title}: {', '.join(matrices)}")


def _matrix(measure: str, cells: Cells) -> go.Heatmap:
    # pictures first, then modalities in the order of the scores
    names = sorted(dict.fromkeys(name for pair in cells for name in pair), key=lambda name: name != "image")
    sources = [name for name in names if any(source == name for source, _ in cells)]
    targets = [name for name in names if any(target == name for _, target in cells)]
    table = [[cells.get((source, target)) for target in targets] for source in sources]
    values = [score.value for score in cells.values()]
    least = max((score.chance or 0.0) for score in cells.values())
    return go.Heatmap(
        x=targets,
        y=sources,
        z=[[None if score is None else round(score.value, 4) for score in row] for row in table],
        text=[[_text(score) for score in row] for row in table],
        customdata=[[_hover(score) for score in row] for row in table],
        texttemplate="%{text}",
        hovertemplate=f"<b>%{{y}} to %{{x}}</b><br>{measure}: %{{customdata}}<extra></extra>",
        hoverongaps=False,
        colorscale="cividis",
        zmin=least,
        # one value at chance still has a scale
        zmax=max(*values, least + 1e-3) if len(values) > 1 else max(values[0], least + 1e-3),
        showscale=False,
        xgap=2,
        ygap=2,
    )


def _text(score: Score | None) -> str:
    if score is None:
        return ""
    return number(score.value) if above_chance(score) else f"({number(score.value)})"


def _hover(score: Score | None) -> str:
    if score is None:
        return ""
    found = f"{number(score.value)}, 95 % interval {interval(score.low, score.high)}"
    return f"{found}<br>chance {number(score.chance)}, p {number(score.p_value)}, n {score.n}, stimuli {score.stimuli}"
