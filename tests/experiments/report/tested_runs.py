"""Run folders as a fit and a test leave them, with invented outputs and scores that the real callbacks compute."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from callbacks import Encoding, Identification, Part, average, save_part, write_scores
from contracts import Gallery, Layout, Output, Score, ScoreContext
from experiments.report.runs import Run

CLASSES = ["cat", "dog", "house"]
STIMULI = 24
WIDTH = 12
VOXELS = 30


def layout(subjects: Sequence[str] = ("01",), **changes: Any) -> Layout:
    shapes = {subject: [VOXELS] for subject in subjects}
    whole = Layout(
        modality="fmri",
        subjects=list(subjects),
        shape=shapes,
        rois={subject: {} for subject in subjects},
        channels=[],
        positions=[],
        sampling_rate=0.0,
        start=0.0,
        image_shape=[3, 8, 8],
        embedding_width=WIDTH,
        embedding_space="pixels",
        train_samples={subject: 100 for subject in subjects},
        classes=CLASSES,
        protocol="by_stimulus",
        fold=0,
        folds=1,
        preparation={"cleaning": "none", "recordings": "abc"},
        training_set="1",
        transductive=False,
    )
    return Layout(**{**whole, **changes})


def invented_part(
    subjects: Sequence[str] = ("01",),
    *,
    noise: float = 1.0,
    seed: int = 0,
    stimuli: Sequence[int] = range(STIMULI),
    repetitions: Sequence[int] = (1,),
    signals: bool = False,
    pictures: Mapping[str, float] | None = None,
    lineage: tuple[Mapping[str, Any], ...] = (),
    **changes: Any,
) -> Part:
    """Decoded embeddings are what was seen plus noise; stimulus i is shown ``repetitions[i % len]`` times.

    Args:
        subjects: The people.
        noise: Standard deviation of the noise, of embeddings and signals alike.
        seed: Seed of the noise; what was seen is the same for every seed.
        stimuli: Numbers of the test stimuli.
        repetitions: How often each is shown, in turn.
        signals: Whether there are measured and predicted signals.
        pictures: Scores of generated pictures by the name of their entry: their mean.
        lineage: Earlier stages.
        changes: Entries of the layout.
    """
    world = np.random.default_rng(100)
    everything = torch.from_numpy(world.normal(size=(40, WIDTH))).float()
    shown = torch.tensor(list(stimuli))
    rows = torch.repeat_interleave(shown, torch.tensor([repetitions[i % len(repetitions)] for i in range(len(shown))]))
    mixing = torch.from_numpy(world.normal(size=(WIDTH, VOXELS))).float()
    outputs: dict[str, Output] = {}
    for number, subject in enumerate(subjects):
        rng = np.random.default_rng(1000 * seed + number)

        def noisy(values: torch.Tensor, rng: np.random.Generator = rng) -> torch.Tensor:
            return values + noise * torch.from_numpy(rng.normal(size=tuple(values.shape))).float()

        outputs[subject] = {
            "brain_embedding": noisy(everything[rows]),
            "stimulus": rows,
            "label": rows % len(CLASSES),
            "row": torch.arange(len(rows)),
        }
        if signals:
            measured = everything[rows] @ mixing
            outputs[subject] |= {"signal": measured, "predicted_signal": noisy(measured)}
        for name, mean in (pictures or {}).items():
            values = mean + 0.1 * torch.from_numpy(rng.normal(size=(len(rows), 2))).float()
            outputs[subject][name] = values
    galleries = {
        "test": Gallery(everything[shown], shown, shown % len(CLASSES), "image"),
        "all": Gallery(everything, torch.arange(40), torch.arange(40) % len(CLASSES), "extra"),
    }
    return Part(outputs, ScoreContext(galleries, layout(subjects, **changes), lineage=lineage))


def scores_of(parts: Sequence[Part], *, signals: bool = False) -> list[Score]:
    callbacks = [Identification(permutations=99, bootstraps=100)]
    callbacks += [Encoding(permutations=99, bootstraps=100)] if signals else []  # type: ignore[list-item]
    return [score for callback in callbacks for score in callback.in_tables(parts)]


def write_run(
    root: Path,
    part: Part | None = None,
    *,
    data: str = "invented",
    people: str = "sub-01",
    stage: str = "ridge",
    name: str = "r",
    scores: Sequence[Score] | None = None,
    config: Mapping[str, Any] | None = None,
    logs: Sequence[Sequence[Mapping[str, float]]] = (),
    about: Mapping[str, Mapping[str, Any]] | None = None,
) -> Run:
    """Write a run folder.

    Args:
        root: Folder of all runs.
        part: Outputs of the test.
        data: Name of the data set.
        people: ``all`` or ``sub-<a>``.
        stage: Name of the stage.
        name: Name of the run.
        scores: Scores of the test; computed from the outputs if not given.
        config: The resolved configuration of both commands.
        logs: Rows of ``metrics.csv``, one file for each time that the fit was started.
        about: What was run, by command.
    """
    folder = root / data / people / stage / name
    folder.mkdir(parents=True)
    if part is not None:
        save_part(folder / "outputs.safetensors", part)
        signals = "signal" in next(iter(part.outputs.values()))
        found = list(scores_of([part], signals=signals) if scores is None else scores)
        write_scores(folder / "scores.json", [*found, *average(found)])
    for command in ("fit", "test"):
        text = yaml.safe_dump(dict(config or {"model": {"init_args": {}}, "run": {"monitor": None, "mode": "min"}}))
        (folder / f"config_{command}.yaml").write_text(text)
    for number, rows in enumerate(logs):
        file = folder / "csv" / (f"fit-{number}" if number else "fit") / "metrics.csv"
        file.parent.mkdir(parents=True)
        names = list(dict.fromkeys(key for row in rows for key in row))
        lines = [",".join(str(row.get(key, "")) for key in names) for row in rows]
        file.write_text("\n".join([",".join(names), *lines]) + "\n")
    for command, facts in (about or {}).items():
        (folder / f"about_{command}.json").write_text(json.dumps(facts))
    return Run(folder)


def write_folds(root: Path, parts: Sequence[Part], *, grid: bool = True, **where: str) -> list[Run]:
    """Write the folds of one person, and the joined scores of ``neuroalign grid``."""
    stage = where.get("stage", "ridge")
    folds = [
        replace(
            part,
            context=replace(part.context, layout=Layout(**{**part.context.layout, "fold": fold, "folds": len(parts)})),
        )
        for fold, part in enumerate(parts)
    ]
    # a fold with a single item has nothing to identify it among
    scores = [None if len(part.context.galleries["test"].stimulus) > 1 else [] for part in folds]
    runs = [
        write_run(root, part, name=f"r_fold-{fold:02d}", stage=stage, scores=found)
        for fold, (part, found) in enumerate(zip(folds, scores, strict=True))
    ]
    if grid:
        joined = scores_of(folds, signals="signal" in next(iter(parts[0].outputs.values())))
        write_scores(root / "invented" / "all" / stage / "r" / "grid.json", joined)
    return runs


def table_rows(table: Any) -> list[dict[str, str]]:
    """Rows of a table by heading."""
    return [dict(zip(table.headings, row, strict=True)) for row in table.rows]
