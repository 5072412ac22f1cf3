"""Pages made of invented results, of any size and with hostile texts."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from plotly.graph_objects import Figure, Heatmap, Scatter
from scipy.ndimage import zoom

from experiments.report.page import (
    Candidate,
    Case,
    Chart,
    Folded,
    Note,
    Picture,
    Section,
    StimulusGallery,
    Table,
    render,
)

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"> & 'quoted' <!-- <script>"
CLASSES = ("cat", "caterpillar", "dog", "house")


@cache
def photograph(seed: int, side: int = 96) -> bytes:
    """An encoded picture: smooth patches of colour with some grain, as many bytes as a photograph of its size."""
    rng = np.random.default_rng(seed)
    layers = [zoom(rng.normal(size=(n, n, 3)), (side / n, side / n, 1), order=1) / n**0.5 for n in (3, 8, 24)]
    picture = sum(layers) + 0.1 * rng.normal(size=(side, side, 3))
    low, high = picture.min(), picture.max()
    return encoded((255 * (picture - low) / (high - low)).astype(np.uint8))


def encoded(picture: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    small = max(picture.shape) <= 32
    Image.fromarray(picture).save(stream, **({"format": "png"} if small else {"format": "webp", "quality": 85}))
    return stream.getvalue()


def gallery(
    stimuli: int,
    people: Sequence[str] = ("01", "02"),
    *,
    runs: Sequence[str] = ("phantom ridge_direct demo",),
    classes: Sequence[str] = CLASSES,
    generated: int = 2,
    side: int = 96,
) -> StimulusGallery:
    """Cases of every person and run; the last of several people is at chance.

    Every picture has a key of its own, but few are different: what the page holds is as large, and sooner made.
    """
    rng = np.random.default_rng(0)
    label = [classes[i % len(classes)] for i in range(stimuli)]
    name = [f"{label[i]}-{i:04d}" for i in range(stimuli)]
    pictures = {f"seen-{i}": photograph(i % 50, side) for i in range(stimuli)}
    cases = []
    for run, person, i in itertools.product(runs, people, range(stimuli)):
        at_chance = len(people) > 1 and person == people[-1]
        rank = int(rng.integers(1, stimuli + 1)) if at_chance else 1 + min(stimuli - 1, int(rng.exponential(8)))
        order = [int(j) for j in rng.integers(0, stimuli, size=5) if j != i]
        if rank <= 5:
            order = [*order[: rank - 1], i, *order[rank - 1 :]][:5]
        made = {f"made-{run}-{person}-{i}-{s}": photograph(50 + (i + s) % 50, side) for s in range(generated)}
        pictures |= made
        cases.append(
            Case(
                run=run,
                subject=person,
                stimulus=name[i],
                label=label[i],
                seen=f"seen-{i}",
                retrieved=[Candidate(f"seen-{j}", j == i, name[j], label[j]) for j in order],
                generated=list(made),
                rank=float(rank),
                among=stimuli,
            )
        )
    return StimulusGallery(cases, pictures, "Each case is one recording of a test stimulus.")


def names_alone(classes: Sequence[str]) -> StimulusGallery:
    """Cases of a data set that has classes, but no pictures."""
    cases = [
        Case(
            run="haxby2001 ridge_direct table",
            subject="01",
            stimulus=name,
            label=name,
            seen="",
            retrieved=[
                Candidate("", j == i, classes[j]) for j in sorted(range(min(5, len(classes))), key=lambda j: j != i)
            ],
            generated=[],
            rank=1.0 + i,
            among=len(classes),
        )
        for i, name in enumerate(classes)
    ]
    return StimulusGallery(cases, {}, "Each case is one recording of a test stimulus.")


def chart(title: str = "value") -> Chart:
    figure = Figure(
        Scatter(x=[1, 2, 3], y=[0.2, 0.7, 0.9], name=title), layout={"height": 300, "yaxis": {"title": title}}
    )
    return Chart(figure, caption=f"How {title} grows; chance is 0.5.", alt=f"{title} over steps")


def heat_map() -> Chart:
    values = np.random.default_rng(0).random((12, 12))
    return Chart(Figure(Heatmap(z=values), layout={"height": 420}), caption="A matrix.", alt="A matrix of 12 x 12")


def table() -> Table:
    rows = [
        ("01", "two_way", "0.912 (0.871 .. 0.943)", "0.500", "< 0.001"),
        ("02", "two_way", "0.089 (0.060 .. 0.120)", "0.500", "0.400"),
        ("10", "two_way", "-", "0.500", "-"),
        ("mean", "two_way", "0.500", "0.500", "0.010"),
    ]
    return Table(("subject", "score", "value", "chance", "p"), rows, "Scores of the test.")


def page(shown: StimulusGallery, *, title: str = "Report", charts: int = 3) -> str:
    return render(
        title,
        [
            Section(
                "Scores", [chart("two_way"), table(), Note("Fewer than 20 stimuli."), Folded("Configuration", "a: 1\n")]
            ),
            Section("Stimuli", [shown]),
            Section("Similarity", [heat_map() for _ in range(charts - 1)]),
            Section("Where in the brain", [Picture(photograph(1, 200), "Scores by voxel.", "A brain")]),
        ],
        about="3 runs, written on 21 November 2026",
    )
