"""Scores as tables on the terminal: one below the other, or stages side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from contracts import DataError, Score


def print_scores(scores: Iterable[Score], *, title: str, first: Sequence[tuple[str, Sequence[str]]] = ()) -> None:
    """Print scores as one table, each with chance, interval, p-value and ceiling.

    Args:
        scores: What to print, in order.
        title: Above the table.
        first: Further columns before the others: heading and one entry per score.
    """
    scores = list(scores)
    table = Table(title=title, title_justify="left")
    for heading, _ in first:
        table.add_column(heading)
    for heading in ("subject", "score", "gallery", "protocol"):
        table.add_column(heading)
    for heading in ("value", "95 % interval", "chance", "p", "ceiling", "n"):
        table.add_column(heading, justify="right")
    notes: dict[str, int] = {}
    for row, score in enumerate(scores):
        marks = "".join(f" [{notes.setdefault(note, len(notes) + 1)}]" for note in filter(None, score.note.split("; ")))
        table.add_row(
            *(entries[row] for _, entries in first),
            score.subject,
            score.name,
            f"{score.gallery} {score.similarity}".strip(),
            score.protocol + (" (transductive)" if score.transductive else ""),
            f"{score.value:.3f}",
            "-" if score.low is None or score.high is None else f"{score.low:.3f} .. {score.high:.3f}",
            _number(score.chance),
            "-" if score.p_value is None else f"{score.p_value:.3f}",
            _number(score.ceiling),
            f"{score.n}{marks}".replace("[", r"\["),
        )
    console = _console()
    console.print(table)
    for note, number in notes.items():
        console.print(rf"\[{number}] {note}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


@dataclass(frozen=True)
class Reference:
    """Published scores to print beside those of the same name and gallery.

    Attributes:
        name: Heading of their column.
        source: Where they are published, and of what data.
        values: Scores by (gallery without its size, name).
    """

    name: str
    source: str
    values: Mapping[tuple[str, str], float]


def read_reference(path: Path) -> Reference:
    """Read published scores: ``name``, ``source`` and ``scores`` (gallery -> name -> value).

    Raises:
        DataError: No such file, or one of another form.
    """
    try:
        content = yaml.safe_load(path.read_text())
        values = {
            (gallery, name): float(value) for gallery, own in content["scores"].items() for name, value in own.items()
        }
        return Reference(str(content["name"]), str(content["source"]), values)
    except OSError as error:
        raise DataError(f"cannot read published scores: {error}") from error
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        # a parser shows the line in lines of its own
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DataError(f"{path}: expected name, source, and scores by gallery and name, found {found}") from error


def print_comparison(rows: Sequence[tuple[str, str, Score]], *, title: str, reference: Reference | None = None) -> None:
    """Print the scores of several stages side by side: the mean over people, or the only person's with its interval.

    Args:
        rows: Stage, data set and score.
        title: Above the table.
        reference: Published scores for a column of their own.
    """
    stages = list(dict.fromkeys(stage for stage, _, _ in rows))
    people = {(data, score.subject) for _, data, score in rows}
    several = {data for data, subject in people if subject == "mean"}
    shown: dict[tuple[str, str, str, str], dict[str, Score]] = {}
    for stage, data, score in rows:
        if score.subject == "mean" or data not in several:
            key = (data, score.subject, score.name, f"{score.gallery} {score.similarity}".strip())
            shown.setdefault(key, {})[stage] = score
    table = Table(title=title, title_justify="left")
    for heading in ("data", "subject", "score", "gallery"):
        table.add_column(heading)
    for heading in (*stages, "chance", "ceiling", *([escape(reference.name)] if reference else [])):
        table.add_column(heading, justify="right")
    if len(stages) > 1:
        table.add_column("ahead")
    for key, scores in shown.items():
        first = next(iter(scores.values()))
        values = {stage: score.value for stage, score in scores.items()}
        best = [stage for stage, value in values.items() if value == max(values.values())]
        chances = dict.fromkeys(_number(score.chance) for score in scores.values())
        published = [_number(reference.values.get((first.gallery_name, first.name)))] if reference else []
        # a score that only one stage has is no comparison
        ahead = "-" if len(values) == 1 else "tie" if len(best) > 1 else best[0]
        table.add_row(
            *key,
            *(_with_interval(scores.get(stage)) for stage in stages),
            " / ".join(chances),
            _number(first.ceiling),
            *published,
            *([ahead] if len(stages) > 1 else []),
        )
    _console().print(table)
    if reference:
        _console().print(escape(f"{reference.name}: {reference.source}"))


def _with_interval(score: Score | None) -> str:
    if score is None or score.low is None or score.high is None:
        return _number(None if score is None else score.value)
    return f"{score.value:.3f} ({score.low:.3f} .. {score.high:.3f})"


def _console() -> Console:
    return Console() if Console().is_terminal else Console(width=200)
