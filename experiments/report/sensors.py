"""EEG and MEG: when a recording tells what was seen, and which sensors carry it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from contracts import Layout, UserError
from experiments.report.curves import Curves, curves_of, key_of, people_of, sensor_parts
from experiments.report.drawing import GREY, INK, PALETTE, colour, number, style
from experiments.report.folds import gather_folds
from experiments.report.page import Chart, Note, Part, Picture, Section, Table
from experiments.report.runs import Run
from experiments.report.time_resolved import PERMUTATIONS, WIDTH, Curve, corrected_p
from experiments.report.topographies import draw_topographies

SIGNIFICANT = 0.05


def section(runs: Sequence[Run]) -> Section | None:
    """Show decoding over time and the sensors behind it; None where no run has EEG or MEG."""
    parts: list[Part] = []
    charts: dict[str, list[Curves]] = {}
    layouts: dict[str, Layout] = {}
    known: set[tuple[str, ...]] = set()
    for tested in gather_folds([run for run in runs if sensor_parts(run)]):
        try:
            keys = tuple(key_of(run) for run in tested.runs)
            if keys in known:  # stages of the same data share the analysis
                continue
            known.add(keys)
            curves = curves_of(tested)
        except UserError as error:
            parts.append(Note(f"{tested.title}: no decoding over time ({error})."))
            continue
        layout = tested.parts[0].context.layout
        for name, part in sensor_parts(tested.runs[0]).items():
            title = f"{tested.data}, {name}" if "parts" in layout else tested.data
            own = {person: curves[person] for person in people_of(layout, name) if person in curves}
            layouts.setdefault(title, part)
            _put(charts.setdefault(title, []), own)
    for title, several in charts.items():
        for curves in several:
            parts += _show(title, curves, layouts[title])
    return Section("When, and from which sensors", parts) if parts else None


def _put(charts: list[Curves], curves: Curves) -> None:
    """Add people to the first chart that has none of them."""
    chart = next((chart for chart in charts if not chart.keys() & curves.keys()), None)
    if chart is None:
        charts.append(dict(curves))
    else:
        chart.update(curves)


def _show(title: str, curves: Curves, layout: Layout) -> list[Part]:
    people = list(curves)
    first = curves[people[0]]
    same = all(np.array_equal(curve.times, first.times) for curve in curves.values())
    shared = all(curve.pattern.shape == first.pattern.shape for curve in curves.values())
    mean = _mean(list(curves.values())) if len(people) > 1 and same else None
    parts: list[Part] = [_chart(title, curves, mean), _table(title, curves, mean)]
    if not layout["positions"]:
        parts.append(Note(f"{title}: no topographies, because the data set gives no positions of its sensors."))
        return parts
    whole = mean if mean is not None and shared else first
    whose = f"mean of {len(people)} people" if whole is mean else f"sub-{people[0]}"
    kind = layout["modality"].upper()
    parts.append(
        Picture(
            png=draw_topographies(np.array(layout["positions"]), whole.pattern, whole.times, whole.score),
            caption=(
                f"{title}, {whose}: activation patterns of the decoders above (covariance of signals and decoded "
                "embedding, root mean square over its dimensions; Haufe et al. 2014), seen from above, nose up. A "
                f"large value says that the {kind} sensor varies with what is decoded, as weights alone would not. One "
                "scale for all times, in units of the prepared signal; near 0 where nothing can be decoded."
            ),
            alt=f"Head maps of {kind} activation patterns at several times, {title}",
        )
    )
    return parts


def _mean(curves: Sequence[Curve]) -> Curve:
    """Mean over people; patterns only where all have the same sensors."""
    shapes = {curve.pattern.shape for curve in curves}
    return Curve(
        times=curves[0].times,
        score=np.mean([curve.score for curve in curves], axis=0),
        permuted=np.mean([curve.permuted for curve in curves], axis=0),
        pattern=np.mean([c.pattern for c in curves], axis=0) if len(shapes) == 1 else curves[0].pattern,
        samples=sum(curve.samples for curve in curves),
        tested=sum(curve.tested for curve in curves),
        candidates=min(curve.candidates for curve in curves),
    )


def _chart(title: str, curves: Curves, mean: Curve | None) -> Chart:
    figure = go.Figure()
    whole = mean or next(iter(curves.values()))
    milliseconds = 1000 * whole.times
    low, high = np.quantile(whole.permuted, [0.025, 0.975], axis=0)
    of_mean = " of the mean" if mean else ""
    figure.add_scatter(
        x=np.concatenate([milliseconds, milliseconds[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        fill="toself",
        fillcolor="rgba(138,138,138,0.25)",
        line={"width": 0},
        hoverinfo="skip",
        name=f"95 % of permutations{of_mean}",
    )
    figure.add_scatter(
        x=milliseconds,
        y=whole.permuted.mean(axis=0),
        mode="lines",
        line={"color": GREY, "width": 1, "dash": "dot"},
        name="chance",
        hoverinfo="skip",
    )
    many = len(curves) > len(PALETTE)
    lines = [(f"sub-{person}", curve, GREY if many else colour(i)) for i, (person, curve) in enumerate(curves.items())]
    lines += [("mean", mean, INK)] if mean else []
    for i, (name, curve, ink) in enumerate(lines):
        figure.add_scatter(
            x=1000 * curve.times,
            y=curve.score,
            mode="lines",
            line={"color": ink, "width": 3 if name == "mean" or not mean else 1.3},
            name="people" if many and name != "mean" else name,
            legendgroup="people" if many and name != "mean" else name,
            showlegend=not many or name == "mean" or i == 0,
            hovertemplate=f"{name}<br>%{{x:.0f}} ms: %{{y:.3f}}<extra></extra>",
        )
    marked = [line for line in lines if not many or line[0] == "mean"]
    values = np.concatenate([line[1].score for line in lines] + [low, high])
    floor, span = values.min(), values.max() - values.min()
    for i, (name, curve, ink) in enumerate(reversed(marked)):
        p = corrected_p(curve.score, curve.permuted)
        above = p < SIGNIFICANT
        figure.add_scatter(
            x=1000 * curve.times[above],
            y=np.full(above.sum(), floor - (0.05 + 0.035 * i) * span),
            mode="markers",
            marker={"color": ink, "symbol": "square", "size": 5},
            customdata=p[above],
            hovertemplate=f"{name}<br>%{{x:.0f}} ms: p = %{{customdata:.3f}}<extra></extra>",
            legendgroup=name,
            showlegend=False,
        )
    figure.add_vline(x=0, line={"color": GREY, "width": 1, "dash": "dash"})
    style(figure, 420)
    figure.update_xaxes(title="time from onset (ms)")
    figure.update_yaxes(title="two-way identification")
    among = sorted({curve.candidates for curve in curves.values()})
    several = f"{among[0]}" if len(among) == 1 else f"{among[0]} to {among[-1]}"
    return Chart(
        figure=figure,
        caption=(
            f"{title}: how well the signals at one time tell what was seen. At each time, ridge regression from all "
            f"sensors (mean over {1000 * WIDTH:.0f} ms) to the embedding is fitted on the training samples and tested "
            f"on the run's test samples, each identified among {several}; chance is .5. This is about the data, not "
            "about the stage that was trained (King & Dehaene 2014). The grey band holds 95 % of the scores of "
            f"permuted stimuli ({PERMUTATIONS} permutations). Squares: above chance, p < .05, corrected for all times "
            "by the largest score of each permutation. Dashed: onset."
        ),
        alt=f"Two-way identification over time from onset, {title}",
    )


def _table(title: str, curves: Curves, mean: Curve | None) -> Table:
    rows = []
    for name, curve in [*((f"sub-{person}", c) for person, c in curves.items()), *([("mean", mean)] if mean else [])]:
        p = corrected_p(curve.score, curve.permuted)
        best = int(curve.score.argmax())
        above = curve.times[p < SIGNIFICANT]
        rows.append(
            (
                name,
                number(float(curve.score[best])),
                f"{1000 * curve.times[best]:.0f}",
                number(float(p[best])),
                f"{1000 * above[0]:.0f}" if len(above) else "-",
                str(curve.samples),
                str(curve.tested),
            )
        )
    return Table(
        headings=("subject", "best two-way", "at (ms)", "p, corrected", "first above chance (ms)", "training", "test"),
        rows=rows,
        caption=f"{title}: the best time, and the first at which what was seen can be told (p < .05, corrected).",
    )
