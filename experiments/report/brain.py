"""fMRI: where in the brain signals are predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from callbacks.metrics import resampled_pearson
from callbacks.metrics.resampling import centred_interval
from contracts import Layout, UserError, parts_of
from experiments.report.drawing import GREY, INK, colour, rounded, style
from experiments.report.folds import Tested, gather_folds
from experiments.report.glass_brain import draw_brain, has_outline, places_of
from experiments.report.page import Chart, Note, Part, Picture, Section
from experiments.report.runs import Run

Array = NDArray[Any]
PEOPLE = 8
"""At most so many people are drawn."""
BOOTSTRAPS = 200
PERMUTATIONS = 20
"""Of all voxels together, so that few are enough for their distribution by chance."""
WHOLE = "all voxels"


@dataclass(frozen=True)
class _Person:
    """Correlations of one person's voxels.

    Attributes:
        name: The person.
        r: ``(V,)``; NaN where a voxel does not vary.
        permuted: ``(P, V)`` with stimuli permuted.
        resampled: ``(B, V)`` with stimuli resampled.
        ceiling: ``(V,)`` largest expected correlation, or None.
        rois: Name -> number of voxels, in the order of the voxels.
        stimuli: Number of test stimuli.
    """

    name: str
    r: Array
    permuted: Array
    resampled: Array
    ceiling: Array | None
    rois: Mapping[str, int]
    stimuli: int

    @property
    def chance(self) -> float:
        """What 95 % of the voxels do not exceed when stimuli are permuted."""
        return float(np.nanquantile(self.permuted, 0.95))

    def regions(self) -> dict[str, slice]:
        """Voxels of each region, and of all together."""
        ends = np.cumsum([0, *self.rois.values()]).tolist()
        regions = {name: slice(*ends[i : i + 2]) for i, name in enumerate(self.rois)}
        # of voxels that do not vary there is nothing to tell
        regions = {name: where for name, where in regions.items() if np.isfinite(self.r[where]).any()}
        return regions | {WHOLE: slice(None)} if len(regions) != 1 else regions


def section(runs: Sequence[Run]) -> Section | None:
    """Show the correlation of predicted and measured signal voxel by voxel; None where no run has fMRI."""
    groups: dict[str, list[Tested]] = {}
    for tested in gather_folds(runs):
        if _people_of(tested):
            people = tested.people if tested.people == "all" else ""
            groups.setdefault(f"{tested.data} {people} {tested.stage} {tested.name}".replace("  ", " "), []).append(
                tested
            )
    parts: list[Part] = []
    without = []
    for title, members in groups.items():
        scored = [
            (tested, person)
            for tested in members
            for person in _people_of(tested)
            if all(tested.outputs(person, name) is not None for name in ("predicted_signal", "signal"))
        ]
        if scored:
            parts += _show(title, scored)
        else:
            without.append(title)
    if without:
        parts.append(
            Note(
                f"No predicted signals were kept by {', '.join(without)}, so there is nothing to show voxel by voxel; "
                "which voxels a decoder uses is not shown here."
            )
        )
    return Section("Where in the brain", parts) if parts else None


def _layouts(tested: Tested) -> dict[str, Layout]:
    """Layout of each part of the data."""
    return parts_of(tested.parts[0].context.layout) if tested.parts else {}


def _people_of(tested: Tested) -> list[str]:
    """People with fMRI."""
    fmri = {name: layout for name, layout in _layouts(tested).items() if layout["modality"] == "fmri"}
    joint = tested.parts and "parts" in tested.parts[0].context.layout
    known = {f"{name}-{person}" if joint else person for name, layout in fmri.items() for person in layout["subjects"]}
    return [person for person in tested.subjects if person in known]


def _show(title: str, people: Sequence[tuple[Tested, str]]) -> list[Part]:
    parts: list[Part] = []
    if len(people) > PEOPLE:
        parts.append(Note(f"{title}: the first {PEOPLE} of {len(people)} people are shown."))
    scored = []
    for tested, name in people[:PEOPLE]:
        try:
            scored.append((tested, _score(tested, name)))
        except ValueError as error:
            parts.append(Note(f"{title}: nothing to show of sub-{name} ({error})."))
    if not scored:
        return parts
    parts += [_regions(title, [person for _, person in scored]), _histogram(title, [person for _, person in scored])]
    reasons: dict[str, list[str]] = {}
    for tested, person in scored:
        drawn = _draw(title, tested, person)
        if isinstance(drawn, str):
            reasons.setdefault(drawn, []).append(f"sub-{person.name}")
        else:
            parts.append(drawn)
    parts += [Note(f"{title}: no picture of the brain for {', '.join(who)} ({why}).") for why, who in reasons.items()]
    return parts


def _score(tested: Tested, person: str) -> _Person:
    predicted, signal, stimulus = (tested.outputs(person, name) for name in ("predicted_signal", "signal", "stimulus"))
    assert predicted is not None
    assert signal is not None
    assert stimulus is not None
    layout = tested.parts[0].context.layout
    if signal.ndim == 3:  # volumes of a time series are samples, too
        stimulus = stimulus.repeat_interleave(signal.shape[2])
        predicted, signal = (rearrange(x, "n v t -> (n t) v") for x in (predicted, signal))
    found = resampled_pearson(predicted, signal, stimulus, n_permutations=PERMUTATIONS, n_bootstraps=BOOTSTRAPS)
    r, permuted, resampled = (values.numpy() for values in found)
    if not np.isfinite(r).any():
        raise ValueError("no voxel varies over the test samples")
    # that of a fold is not that of all folds together
    ceiling = tested.parts[0].context.encoding_ceiling.get(person) if len(tested.parts) == 1 else None
    return _Person(
        name=person,
        r=r,
        permuted=permuted,
        resampled=resampled,
        ceiling=_flat(ceiling) if ceiling is not None and len(ceiling) == len(r) else None,
        rois=layout["rois"].get(person, {}),
        stimuli=len(stimulus.unique()),
    )


def _flat(ceiling: Tensor) -> Array:
    flat: Array = ceiling.double().numpy()
    return flat


# ---- charts ----------------------------------------------------------------------------------------


def _regions(title: str, people: Sequence[_Person]) -> Chart:
    """Quartiles, mean and ceiling of the voxels of each region."""
    names = list(dict.fromkeys(name for person in people for name in person.regions() if name != WHOLE))
    if any(WHOLE in person.regions() for person in people):
        names.append(WHOLE)
    figure = go.Figure()
    width = 0.8 / len(people)
    for i, person in enumerate(people):
        regions = person.regions()
        own = [name for name in names if name in regions]
        place = np.array([names.index(name) for name in own]) + width * (i - (len(people) - 1) / 2)
        voxels = [person.r[regions[name]] for name in own]
        low, q1, median, q3, high = np.array([np.nanquantile(r, [0.05, 0.25, 0.5, 0.75, 0.95]) for r in voxels]).T
        mean = np.array([np.nanmean(r) for r in voxels])
        ends = np.array([_interval(m, person.resampled[:, regions[name]]) for m, name in zip(mean, own, strict=True)])
        figure.add_box(
            x=place,
            lowerfence=rounded(low.tolist()),
            q1=rounded(q1.tolist()),
            median=rounded(median.tolist()),
            q3=rounded(q3.tolist()),
            upperfence=rounded(high.tolist()),
            width=0.8 * width,
            line={"color": colour(i), "width": 1},
            name=f"sub-{person.name}",
            legendgroup=person.name,
            hoverinfo="skip",
        )
        figure.add_scatter(
            x=place,
            y=rounded(mean.tolist()),
            error_y={
                "type": "data",
                "array": rounded((ends[:, 1] - mean).tolist()),
                "arrayminus": rounded((mean - ends[:, 0]).tolist()),
                "color": INK,
                "thickness": 1.5,
                "width": 3,
            },
            mode="markers",
            marker={"color": INK, "symbol": "diamond", "size": 7},
            customdata=[[name, len(r), *end] for name, r, end in zip(own, voxels, ends.tolist(), strict=True)],
            hovertemplate=(
                f"sub-{person.name}, %{{customdata[0]}}, %{{customdata[1]}} voxels<br>mean %{{y:.3f}} "
                "(%{customdata[2]:.3f} .. %{customdata[3]:.3f})<extra></extra>"
            ),
            name="mean over voxels, 95 % interval",
            legendrank=2000,
            legendgroup="mean",
            showlegend=i == 0,
        )
        if person.ceiling is not None:
            figure.add_scatter(
                x=place,
                y=rounded([float(np.nanmean(person.ceiling[regions[name]])) for name in own]),
                mode="markers",
                marker={"color": INK, "symbol": "line-ew-open", "size": min(max(260 * width / len(names), 10), 26)},
                hovertemplate=f"sub-{person.name}: ceiling %{{y:.3f}}<extra></extra>",
                name="mean noise ceiling",
                legendrank=2000,
                legendgroup="ceiling",
                showlegend=i == 0,
            )
    figure.add_hline(y=0, line={"color": GREY, "width": 1, "dash": "dash"})
    style(figure, 420)
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names, range=[-0.6, len(names) - 0.4])
    figure.update_yaxes(title="Pearson r, predicted and measured")
    ceiling = (
        " Dashes: the mean of the noise ceilings of the voxels." if any(p.ceiling is not None for p in people) else ""
    )
    return Chart(
        figure=figure,
        caption=(
            f"{title}: how well signals are predicted, region by region. r is taken over the test samples, voxel by "
            "voxel; boxes hold the middle half of the voxels, whiskers 90 %. Diamonds: mean over voxels with its 95 % "
            f"interval (stimuli resampled).{ceiling} Chance is 0."
        ),
        alt=f"Correlation of predicted and measured signal by region, {title}",
    )


def _interval(mean: float, resampled: Array) -> tuple[float, float]:
    low, high = centred_interval(float(mean), torch.from_numpy(np.nanmean(resampled, axis=1)), 0.95)
    return max(low, -1.0), min(high, 1.0)


def _histogram(title: str, people: Sequence[_Person]) -> Chart:
    """Shares of voxels by correlation, and what permuted stimuli give."""
    by_chance = np.concatenate([person.permuted.reshape(-1) for person in people])
    everything = np.concatenate([by_chance, *(person.r for person in people)])
    everything = everything[np.isfinite(everything)]
    edges = np.linspace(everything.min() - 1e-6, everything.max() + 1e-6, 51)
    centres = rounded(((edges[1:] + edges[:-1]) / 2).tolist())
    figure = go.Figure()
    figure.add_scatter(
        x=centres,
        y=_shares(by_chance, edges),
        line={"shape": "hvh", "color": GREY, "width": 1},
        fill="tozeroy",
        fillcolor="rgba(138,138,138,0.25)",
        name="stimuli permuted",
        hoverinfo="skip",
    )
    beyond = []
    for i, person in enumerate(people):
        figure.add_scatter(
            x=centres,
            y=_shares(person.r, edges),
            line={"shape": "hvh", "color": colour(i), "width": 2},
            name=f"sub-{person.name}",
            hovertemplate=f"sub-{person.name}<br>r %{{x:.2f}}: %{{y:.3f}} of voxels<extra></extra>",
        )
        beyond.append(f"sub-{person.name} {np.mean(person.r[np.isfinite(person.r)] > person.chance):.3f}")
    style(figure, 320)
    figure.update_xaxes(title="Pearson r of a voxel")
    figure.update_yaxes(title="share of voxels", rangemode="tozero")
    return Chart(
        figure=figure,
        caption=(
            f"{title}: voxels by how well they are predicted. Grey: the same with stimuli permuted ({PERMUTATIONS} "
            f"times), which is chance. Share of voxels above 95 % of those, where chance is .050: {', '.join(beyond)}."
        ),
        alt=f"Histogram of correlations over voxels, {title}",
    )


def _shares(r: Array, edges: Array) -> list[float | None]:
    r = r[np.isfinite(r)]
    return rounded((np.histogram(r, edges)[0] / max(len(r), 1)).tolist())


def _draw(title: str, tested: Tested, person: _Person) -> Picture | str:
    """The brain of a person, or why it cannot be drawn."""
    module = tested.runs[0].data_set
    if isinstance(module, str):
        return module
    try:
        places = places_of(module, person.name)
    except UserError as error:
        return str(error)
    if isinstance(places, str):
        return places
    if len(places.coordinates) != len(person.r):
        return f"the data set on this machine has {len(places.coordinates)} voxels, the run {len(person.r)}"
    if places.space == "MNI152":
        where = "in the space of the MNI152 template: each hemisphere from its side, from behind, from above."
    elif has_outline(places):
        where = "in the person's own space: the outline is that of the MNI152 template, so the place is only rough."
    else:
        where = "in the person's own space, whose origin tells no place in the brain: three views without an outline."
    return Picture(
        png=draw_brain(person.r, places, chance=person.chance),
        caption=(
            f"{title}, sub-{person.name}: r of predicted and measured signal of {len(person.r)} voxels, {where} The "
            f"best voxels are in front. Grey: not above 95 % of what permuted stimuli give (r {person.chance:.3f})."
        ),
        alt=f"Correlations of voxels on a brain, {title}, sub-{person.name}",
    )
