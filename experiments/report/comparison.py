"""Runs compared on the same person and stimuli: paired differences, person by person and averaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from callbacks.metrics.resampling import few_stimuli
from experiments.report.drawing import GREY, INK, PALETTE, interval, number, person, rounded, shortened, style
from experiments.report.folds import Tested, blocks_of, gallery_of
from experiments.report.page import Chart, Note, Part, Table
from experiments.report.paired import (
    Difference,
    Values,
    average_values,
    difference,
    holm,
    identified_values,
    mean_values,
    signal_values,
)

ALL_PAIRS = 6
"""Up to this many runs on the same stimuli each is compared with each; of more, each with the first alone."""

SIGNIFICANT = 0.05
MEAN = "mean"
_LETTERS = 28  # of the name of a run beside the chart
_PICTURES = {"pixcorr": "pixcorr@", "ssim": "ssim@", "lpips": "lpips|"}
"""Scores of generated pictures that are kept sample by sample, and how the names of these entries begin."""


@dataclass(frozen=True)
class Row:
    """One paired difference.

    Attributes:
        measure: The score.
        data: Name of the data set.
        subject: The person, or ``mean``, of some people where others saw other stimuli.
        left: Title of the minuend.
        right: Title of the subtrahend.
        values: Both scores.
        found: The difference.
        corrected: p-value corrected for the number of pairs.
    """

    measure: str
    data: str
    subject: str
    left: str
    right: str
    values: tuple[float, float]
    found: Difference
    corrected: float


Measured = dict[str, dict[Tested, Values]]
"""Scores of one measure: by person, by run."""


def comparison(tested: Sequence[Tested]) -> list[Part]:
    """Compare what was tested on the same person and stimuli; says what cannot be compared."""
    if len(tested) < 2:
        return []
    rows: list[Row] = []
    told: list[str] = []
    for data in dict.fromkeys(each.data for each in tested):
        own = [each for each in tested if each.data == data]
        kept = [each for each in own if each.parts]
        if len(kept) < len(own):
            told.append(f"{len(own) - len(kept)} runs on {data} have kept no outputs.")
        for measure, measured in _measure(kept, told).items():
            rows += _compare(data, measure, measured, told)
    data_sets = list(dict.fromkeys(each.data for each in tested))
    if len(data_sets) > 1:
        told.append(f"Runs on different data sets ({', '.join(data_sets)}) saw other stimuli and are not compared.")
    if not rows:
        told.insert(0, "No two of these runs tested the same person on the same stimuli, so there are no differences.")
        return [Note(" ".join(dict.fromkeys(told)))]
    return [_chart(rows), _table(rows), *([Note(" ".join(dict.fromkeys(told)))] if told else [])]


# ---- scores stimulus by stimulus ---------------------------------------------------------------------


def _measure(tested: Sequence[Tested], told: list[str]) -> dict[str, Measured]:
    """Scores of every person for every run, by measure; tells of outputs that cannot be scored."""
    found: dict[str, Measured] = {}
    often = Counter(subject for each in tested for subject in each.subjects)
    for each in tested:
        # a person whom a single run tested is compared with nobody
        for subject in [subject for subject in each.subjects if often[subject] > 1]:
            try:
                of_person = _values(each, subject)
            except ValueError as error:
                told.append(f"{each.title}, {person(subject)}: {error}.")
                continue
            for measure, values in of_person.items():
                found.setdefault(measure, {}).setdefault(subject, {})[each] = values
    return found


def _values(tested: Tested, subject: str) -> dict[str, Values]:
    values: dict[str, Values] = {}
    blocks = blocks_of(tested, subject)
    if blocks and len(blocks[0].gallery_stimulus) > 1:
        name = gallery_of(tested.parts[0], subject)
        similar = {score.similarity for run in tested.runs for score in run.scores if score.gallery_name == name}
        values |= identified_values(blocks, "pearson" if similar == {"pearson"} else "cosine")
    stimulus = tested.outputs(subject, "stimulus")
    predicted, measured = (tested.outputs(subject, name) for name in ("predicted_signal", "signal"))
    if stimulus is not None and predicted is not None and measured is not None:
        values["pattern correlation"] = signal_values(predicted, measured, stimulus)
    for measure, beginning in _PICTURES.items():
        keys = [key for key in tested.parts[0].outputs.get(subject, {}) if key.startswith(beginning)]
        # scored at several sizes there is no telling which one is meant
        kept = tested.outputs(subject, keys[0]) if len(keys) == 1 else None
        if stimulus is not None and kept is not None:
            values[measure] = mean_values(kept.double().mean(1), stimulus)
    return values


# ---- differences -------------------------------------------------------------------------------------


def _compare(data: str, measure: str, measured: Measured, told: list[str]) -> list[Row]:
    """Differences of one measure: of each person, and of all people who saw the same stimuli."""
    rows: list[Row] = []
    names = _short_names([each for runs in measured.values() for each in runs])
    groups: dict[tuple[object, ...], dict[str, dict[str, Values]]] = {}
    for subject, runs in measured.items():
        own = {names[each]: values for each, values in runs.items()}
        pairs = _pairs(own, told)
        rows += _rows(data, measure, subject, own, pairs)
        if pairs:
            same = (tuple(pairs), tuple(tuple(values.stimuli.tolist()) for values in own.values()))
            groups.setdefault(same, {})[subject] = own
    for people in groups.values():
        if len(people) > 1:
            first = next(iter(people.values()))
            means = {name: average_values([own[name] for own in people.values()]) for name in first}
            title = MEAN if len(groups) == 1 else f"{MEAN} of {', '.join(people)}"
            rows += _rows(data, measure, title, means, _pairs(first, told))
    return rows


def _short_names(tested: Sequence[Tested]) -> dict[Tested, str]:
    """What tells runs of one person apart: the stage, and the name or people where stages do not."""
    unique = list(dict.fromkeys(tested))
    for name_of in _NAMINGS:
        names = {each: name_of(each) for each in unique}
        clashes = any(names[a] == names[b] and set(a.subjects) & set(b.subjects) for a, b in combinations(unique, 2))
        if not clashes:
            break
    return names


_NAMINGS: tuple[Callable[[Tested], str], ...] = (
    lambda each: each.stage,
    lambda each: f"{each.stage} {each.name}",
    lambda each: f"{each.people} {each.stage} {each.name}",
)


def _pairs(own: dict[str, Values], told: list[str]) -> list[tuple[str, str]]:
    """Pairs that are about the same stimuli; the later one is compared with the earlier one."""
    names = list(own)
    pairs = [(later, earlier) for earlier, later in combinations(names, 2)]
    if len(names) > ALL_PAIRS:
        pairs = [(later, names[0]) for later in names[1:]]
        told.append(f"Of more than {ALL_PAIRS} runs each is compared with the first alone ({names[0]}).")
    same = [pair for pair in pairs if own[pair[0]].same_test(own[pair[1]])]
    if len(same) < len(pairs):
        told.append("Runs that tested a person on other stimuli, or among as many others, are not compared.")
    return same


def _rows(data: str, measure: str, subject: str, own: dict[str, Values], pairs: Sequence[tuple[str, str]]) -> list[Row]:
    found = [difference(own[left], own[right]) for left, right in pairs]
    corrected = holm([each.p_value for each in found])
    return [
        Row(
            measure=measure,
            data=data,
            subject=subject,
            left=left,
            right=right,
            values=(float(own[left].values.mean()), float(own[right].values.mean())),
            found=each,
            corrected=p,
        )
        for (left, right), each, p in zip(pairs, found, corrected, strict=True)
    ]


# ---- chart and table ---------------------------------------------------------------------------------


def _chart(rows: Sequence[Row]) -> Chart:
    measures = list(dict.fromkeys(row.measure for row in rows))
    several = len({row.data for row in rows}) > 1
    names = {_label(row, several=several): _label(row, several=several, most=_LETTERS) for row in rows}
    labels = list(names)
    figure = make_subplots(1, len(measures), subplot_titles=measures, shared_yaxes=True, horizontal_spacing=0.03)
    for column, measure in enumerate(measures, start=1):
        own = [row for row in rows if row.measure == measure]
        significant = [row.corrected < SIGNIFICANT for row in own]
        figure.add_trace(
            go.Scatter(
                x=rounded([row.found.value for row in own]),
                y=[_label(row, several=several) for row in own],
                error_x={
                    "array": rounded([row.found.high - row.found.value for row in own]),
                    "arrayminus": rounded([row.found.value - row.found.low for row in own]),
                    "symmetric": False,
                    "width": 0,
                    "color": GREY,
                },
                mode="markers",
                showlegend=False,
                marker={"size": 9, "color": [PALETTE[0] if one else GREY for one in significant]},
                marker_symbol=[
                    "diamond" if row.subject.startswith(MEAN) else "circle" if one else "circle-open"
                    for row, one in zip(own, significant, strict=True)
                ],
                text=[_hover(row) for row in own],
                hovertemplate="%{text}<extra></extra>",
            ),
            row=1,
            col=column,
        )
        figure.add_vline(x=0, line={"color": INK, "dash": "dot", "width": 1.5}, row=1, col=column)
    style(figure, 120 + 24 * len(labels), top=50)
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=labels[::-1],
        tickvals=labels,
        ticktext=list(names.values()),
        tickfont={"size": 11},
    )
    figure.update_yaxes(range=[-0.7, len(labels) - 0.3])
    caption = (
        "Paired differences over stimuli: the first run less the second, right of the dotted line where the first is "
        "better (for lpips left of it). Two-way and top-1 come from the exact rank of what was seen among the test "
        "gallery; pattern correlation is that of predicted and measured signals of a stimulus, over voxels or over "
        "channels and times. 95 % bootstrap intervals over stimuli, each resampled as query and as distractor "
        f"together. Blue: p < {SIGNIFICANT:g} by flipped signs, corrected by Holm's method for the pairs of this "
        "person and measure. Diamonds are means over people."
    )
    return Chart(figure, caption, f"Differences between runs in {', '.join(measures)}")


def _label(row: Row, *, several: bool, most: int | None = None) -> str:
    """Which runs and person a row is about, the names of runs in at most so many letters."""
    left, right = (name if most is None else shortened(name, most) for name in (row.left, row.right))
    return f"{left} − {right}  {f'{row.data} ' if several else ''}{person(row.subject)}"  # noqa: RUF001  (minus sign)


def _hover(row: Row) -> str:
    found = row.found
    lines = (
        f"<b>{row.left} − {row.right}</b>",  # noqa: RUF001  (minus sign)
        f"{row.data} {row.subject}, {row.measure}",
        f"{row.values[0]:.3f} − {row.values[1]:.3f} = {found.value:+.3f}",  # noqa: RUF001
        f"{interval(found.low, found.high)}, p {found.p_value:.4f}, corrected {row.corrected:.4f}",
    )
    return "<br>".join(lines)


def _table(rows: Sequence[Row]) -> Table:
    headings = ("data", "subject", "score", "first", "second", "first's", "second's", "difference", "95 % interval")
    entries = [
        (
            row.data,
            row.subject,
            row.measure,
            row.left,
            row.right,
            *(number(value) for value in row.values),
            f"{row.found.value:+.3f}",
            interval(row.found.low, row.found.high),
            f"{row.found.p_value:.4f}",
            f"{row.corrected:.4f}",
            str(row.found.stimuli),
        )
        for row in rows
    ]
    notes = {few_stimuli(row.found.stimuli) for row in rows} - {""}
    few = f" Careful: {notes.pop()} in some rows." if notes else ""
    caption = (
        "Paired differences, stimulus by stimulus; every stimulus counts alike, however often it was shown. p is "
        "two-sided, from 9,999 random flips of signs; p (Holm) is corrected for the pairs of that row's person and "
        f"score.{few}"
    )
    return Table((*headings, "p", "p (Holm)", "stimuli"), entries, caption)
