"""Section: training curves from the runs' own logs, and from those of the earlier stages they are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from experiments.report.drawing import PALETTE, colour, rounded, style
from experiments.report.page import Chart, Note, Part, Section
from experiments.report.runs import Run

POINTS = 2000
"""Most points of a curve; of longer ones the least and the greatest value of each stretch are drawn."""

_COLOURED = len(PALETTE)  # runs up to which each has a colour of its own; of more each stage has
_PANELS = 12
_COLUMNS = 2
_RANGE_FOR_LOG = 30.0
_KINDS = {
    "train": {"dash": "solid", "width": 2.0},
    "train, each step": {"dash": "solid", "width": 1.0},
    "validation": {"dash": "dash", "width": 2.0},
}

Values = list[tuple[int, float]]


@dataclass(frozen=True)
class Curve:
    """One logged quantity of one run.

    Attributes:
        run: The run.
        title: What it is called in the legend.
        quantity: What is logged, without whether in training or validation.
        kind: A key of ``_KINDS``.
        values: (step, value), in the order of the steps.
        kept: Step and value of the checkpoint that was kept by this quantity, where one was.
    """

    run: Run
    title: str
    quantity: str
    kind: str
    values: Values
    kept: tuple[int, float] | None = None


def section(runs: Sequence[Run]) -> Section | None:
    """Curves of every quantity that was logged more than once; None where no run has logs."""
    everyone = with_earlier(runs)
    if not any(run.logs for run in everyone):
        return None
    curves = [curve for run in everyone for curve in _curves(run)]
    trained = {curve.run.folder for curve in curves}
    without = list(dict.fromkeys(run.stage for run in everyone if run.folder not in trained))
    parts: list[Part] = [_chart(curves)] if curves else []
    if without:
        parts.append(
            Note(
                f"Without curves: {', '.join(without)}. Stages in closed form (ridge regression) are solved in one "
                "pass and log no steps."
            )
        )
    return Section("Training", parts)


def with_earlier(runs: Sequence[Run]) -> list[Run]:
    """The runs, each after the runs of earlier stages that it is made from and that are still there."""
    found: dict[Path, Run] = {}
    for run in runs:
        root = run.folder.absolute().parents[3]
        model = (run.config.get("model") or {}) if run.configs else {}
        arguments = (model.get("init_args") or {}).values()
        named = [Path(value) for value in arguments if isinstance(value, str) and value.endswith(".ckpt")]
        # a run folder may have been copied from elsewhere, with all runs beside it
        for folder in (root.joinpath(*file.parent.parts[-4:]) for file in named):
            if folder != run.folder.absolute() and (folder / "csv").is_dir():
                found.setdefault(folder, Run(folder))
        found.setdefault(run.folder.absolute(), run)
    return list(found.values())


def _curves(run: Run) -> list[Curve]:
    monitor, mode = _monitored(run)
    curves = []
    for name, values in run.logs.items():
        if len(values) < 2:
            continue
        kept = None
        if name == monitor:
            pick = min if mode == "min" else max
            kept = pick(values, key=lambda pair: pair[1])
        side, _, rest = name.partition("/")
        quantity = rest if side in ("train", "validation") else name
        each_step = quantity.endswith("_step")
        kind = "validation" if side == "validation" else "train, each step" if each_step else "train"
        quantity = quantity.removesuffix("_step").removesuffix("_epoch")
        curves.append(Curve(run, run.title, quantity, kind, values, kept))
    return curves


def _monitored(run: Run) -> tuple[str | None, str]:
    """The value by which the kept checkpoint was chosen, and whether its least or greatest is best."""
    options = run.resolved.get("fit", {}).get("run") or {}
    return options.get("monitor"), options.get("mode", "min")


def thinned(values: Values) -> Values:
    """At most ``POINTS`` points: the least and the greatest of each of as many stretches as fit."""
    if len(values) <= POINTS:
        return values
    kept: set[int] = {0, len(values) - 1}
    numbers = np.array([value for _, value in values])
    for stretch in np.array_split(np.arange(len(values)), POINTS // 2 - 1):
        # a loss that is not a number is no least or greatest
        if not np.isnan(numbers[stretch]).all():
            kept |= {int(stretch[np.nanargmin(numbers[stretch])]), int(stretch[np.nanargmax(numbers[stretch])])}
    return [values[place] for place in sorted(kept)]


def _order(quantity: str) -> tuple[int, str]:
    """Loss first, then its parts, learning rates, scores, and the rest."""
    if quantity == "loss":
        return 0, quantity
    if quantity.startswith("loss"):
        return 1, quantity
    if quantity.startswith("lr"):
        return 2, quantity
    return 3, quantity


def _chart(curves: Sequence[Curve]) -> Chart:
    quantities = sorted(dict.fromkeys(curve.quantity for curve in curves), key=_order)
    shown = quantities[:_PANELS]
    rows = -(-len(shown) // _COLUMNS)
    titles = list(dict.fromkeys(curve.title for curve in curves))
    own_colours = len(titles) <= _COLOURED
    if not own_colours:
        titles = list(dict.fromkeys(curve.run.stage for curve in curves))
    figure = make_subplots(
        rows,
        min(_COLUMNS, len(shown)),
        subplot_titles=[_title([curve for curve in curves if curve.quantity == quantity]) for quantity in shown],
        vertical_spacing=0.28 / rows,
        horizontal_spacing=0.09,
    )
    for title in titles:
        line = {"color": colour(titles.index(title)), "width": 3}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="lines", name=title, line=line, legendgroup=title))
    for place, quantity in enumerate(shown):
        row, column = place // _COLUMNS + 1, place % _COLUMNS + 1
        own = [curve for curve in curves if curve.quantity == quantity]
        for curve in own:
            title = curve.title if own_colours else curve.run.stage
            for trace in _traces(curve, title, titles.index(title)):
                figure.add_trace(trace, row=row, col=column)
        values = [value for curve in own for _, value in curve.values if np.isfinite(value)]
        if values and min(values) > 0 and max(values) / min(values) > _RANGE_FOR_LOG:
            ticks = _log_ticks(min(values), max(values))
            figure.update_yaxes(
                type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks], row=row, col=column
            )
        if place + _COLUMNS >= len(shown):
            figure.update_xaxes(title_text="step", row=row, col=column)
    # a legend of many names takes several lines above the panels
    style(figure, 90 + 30 * len(titles) + 270 * rows, top=50 + 30 * len(titles))
    figure.update_layout(legend={"orientation": "v"})
    left_out = quantities[_PANELS:]
    caption = (
        "By step of the optimiser: solid lines are training (the mean of an epoch, and thin the single steps), dashed "
        "lines validation. "
        + ("" if own_colours else "Runs of a stage have its colour; the box at a curve names the run. ")
        + (
            "Stars mark the checkpoint that was kept by a monitored value; otherwise the last state is kept."
            if any(curve.kept for curve in curves)
            else "The last state was kept."
        )
        + (f" Not drawn: {', '.join(left_out)}." if left_out else "")
    )
    return Chart(figure, caption, f"Training curves of {', '.join(titles)}: {', '.join(shown)}")


def _title(curves: Sequence[Curve]) -> str:
    """Name of a panel; what is of validation alone is named as it was logged."""
    alone = all(curve.kind == "validation" for curve in curves)
    return f"validation/{curves[0].quantity}" if alone else curves[0].quantity


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two values."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    return [digit * 10.0**power for power in powers for digit in (1, 2, 5) if low <= digit * 10.0**power <= high]


def _traces(curve: Curve, group: str, series: int) -> list[go.Scatter]:
    values = thinned(curve.values)
    common = {"legendgroup": group, "showlegend": False}
    few = len(values) <= 3
    traces = [
        go.Scatter(
            x=[step for step, _ in values],
            y=rounded([value if np.isfinite(value) else None for _, value in values]),
            mode="lines+markers" if few else "lines",
            line={**_KINDS[curve.kind], "color": colour(series)},
            opacity=0.45 if curve.kind == "train, each step" else 1.0,
            hovertemplate=f"{curve.title}<br>{curve.kind}, step %{{x}}: %{{y}}<extra></extra>",
            **common,
        )
    ]
    if curve.kept is not None:
        step, value = curve.kept
        traces.append(
            go.Scatter(
                x=[step],
                y=rounded([value]),
                mode="markers",
                marker={"symbol": "star", "size": 14, "color": colour(series), "line": {"color": "white", "width": 1}},
                hovertemplate=f"{curve.title}<br>kept: step %{{x}}, %{{y}}<extra></extra>",
                **common,
            )
        )
    return traces
