"""Decoding over time of the runs of a report: computed once, kept beside each run."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.progress import track

from contracts import DataError, Layout, parts_of
from datamodules import BrainDataModule, DataModule, MultiModal
from experiments.report import time_resolved
from experiments.report.folds import Tested
from experiments.report.runs import Run
from experiments.report.time_resolved import Curve

CACHE = "time_resolved.json"
"""What was computed for a run is kept beside it: it depends on its data alone."""
SENSORS = ("eeg", "meg")
LEAST = 3
"""Fewer times make no curve."""

Curves = dict[str, Curve]


def sensor_parts(run: Run) -> dict[str, Layout]:
    """Layouts of the EEG and MEG of a run, by the name of the part."""
    if run.part is None:
        return {}
    parts = parts_of(run.part.context.layout)
    return {name: layout for name, layout in parts.items() if layout["modality"] in SENSORS}


def people_of(layout: Layout, name: str) -> list[str]:
    """People of a part, as a run names them."""
    joint = "parts" in layout
    return [f"{name}-{person}" if joint else person for person in parts_of(layout)[name]["subjects"]]


def key_of(run: Run) -> str:
    """What the analysis of a run depends on: its data with all options, and how it is done."""
    assert run.part is not None
    facts = {
        "data": run.config.get("data"),
        "layout": run.part.context.layout,
        "method": inspect.getsource(time_resolved),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def curves_of(tested: Tested) -> Curves:
    """Return the curves of each person, folds averaged.

    Raises:
        UserError: There are none; the message says why.
    """
    folds: list[Curves] = []
    for run in tested.runs:
        curves = _read(run)
        if curves is None:
            curves = _compute(run)
            _keep(run, curves)
        folds.append(curves)
    people = dict.fromkeys(person for curves in folds for person in curves)
    return {person: _average([curves[person] for curves in folds if person in curves]) for person in people}


def _compute(run: Run) -> Curves:
    assert run.part is not None
    module, layout = run.data_set, run.part.context.layout
    if isinstance(module, str):
        raise DataError(module)
    if not layout["embedding_width"]:
        raise DataError("nothing is embedded that could be decoded")
    parts = {person: part for name, part in sensor_parts(run).items() for person in people_of(layout, name)}
    for person, part in parts.items():
        if not _is_long_enough(layout["shape"][person], part["sampling_rate"]):
            raise DataError(f"the signals of sub-{person} have too few times, {layout['shape'][person]}")
    found = module.layout
    for name in ("preparation", "training_set", "embedding_space"):
        if {**found}[name] != {**layout}[name]:
            raise DataError(f"the data set on this machine is not what the run was tested on, its {name} differs")
    return _decode_people(module, layout, parts)


def _is_long_enough(shape: Sequence[int], rate: float) -> bool:
    return len(shape) == 2 and rate > 0 and len(time_resolved.windows(shape[1], rate)) >= LEAST


def _decode_people(module: DataModule, layout: Layout, parts: Mapping[str, Layout]) -> Curves:
    assert isinstance(module, BrainDataModule | MultiModal)
    train, test = module.dataset("train"), module.dataset("test")
    curves = {}
    for person in track(parts, description="decoding over time", transient=True):
        subject = layout["subjects"].index(person)
        if (test.subject == subject).any():
            curves[person] = time_resolved.decode(
                train,
                test,
                subject,
                rate=parts[person]["sampling_rate"],
                start=parts[person]["start"],
                classes=module.embedding.model == "classes",
                seed=subject,
            )
    # the same numbers as those that a later report reads
    return {person: _from_plain(_as_plain(curve)) for person, curve in curves.items()}


def _average(folds: Sequence[Curve]) -> Curve:
    """One curve for all folds of a person, weighted by their test samples."""
    weights = np.array([fold.tested for fold in folds], float)
    weights /= weights.sum()
    score, permuted, pattern = (
        np.tensordot(weights, np.stack([getattr(fold, name) for fold in folds]), 1)
        for name in ("score", "permuted", "pattern")
    )
    return Curve(
        times=folds[0].times,
        score=score,
        permuted=permuted,
        pattern=pattern,
        samples=min(fold.samples for fold in folds),
        tested=sum(fold.tested for fold in folds),
        candidates=min(fold.candidates for fold in folds),
    )


def _as_plain(curve: Curve) -> dict[str, Any]:
    plain = asdict(curve)
    for name, value in plain.items():
        if isinstance(value, np.ndarray):
            plain[name] = np.round(value, 5).tolist()
    return plain


def _from_plain(plain: Mapping[str, Any]) -> Curve:
    values: dict[str, Any] = {
        name: np.array(value) if isinstance(value, list) else value for name, value in plain.items()
    }
    return Curve(**values)


def _read(run: Run) -> Curves | None:
    """What an earlier report left; None where there is nothing that fits."""
    file = run.folder / CACHE
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text())
        if content["key"] != key_of(run):
            return None
        return {person: _from_plain(plain) for person, plain in content["people"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not whole: computed anew and replaced


def _keep(run: Run, curves: Curves) -> None:
    content = {"key": key_of(run), "people": {person: _as_plain(curve) for person, curve in curves.items()}}
    partial = run.folder / f".{CACHE}.partial"
    try:
        partial.write_text(json.dumps(content))
        os.replace(partial, run.folder / CACHE)
    except OSError:
        # a folder that cannot be written to is no reason to show nothing: the next report computes anew
        partial.unlink(missing_ok=True)
