"""Section: what was run, with what, on what; and where the runs of a report differ."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contracts import parts_of
from experiments.report.folds import gather_folds
from experiments.report.page import Folded, Note, Part, Section, Table
from experiments.report.runs import Run

BESIDE = 5
"""Up to this many configurations each has a column of its own where they differ; of more, values are listed."""

_IN_THE_NAME = (
    "trainer.default_root_dir",
    "ckpt_path",
    "run.name",
    "run.root",
    "run.table",
    "data.init_args.subjects",
    "data.init_args.split.fold",
)
"""Entries of a configuration that the name of a run folder tells already."""


def section(runs: Sequence[Run]) -> Section | None:
    """What was run: differences first, then the runs, data, commands, versions and whole configurations."""
    parts: list[Part] = []
    if len(runs) > 1:
        parts.append(_differences(runs))
    parts.append(_runs(runs))
    parts += _lineage(runs)
    parts += _data(runs)
    without = [run.title for run in runs if not run.about]
    if without:
        some = "; ".join(without[:3]) + (f" and {len(without) - 3} more" if len(without) > 3 else "")
        parts.append(Note(f"No commands, versions and citations were kept by runs of an older version: {some}."))
    if len(without) < len(runs):
        parts += [_commands(runs), _versions(runs)]
    return Section("What was run", [*parts, *_configurations(runs)])


# ---- differences between configurations --------------------------------------------------------------


def flatten(config: Any, prefix: str = "") -> dict[str, str]:
    """Entries of a configuration by dotted key, as text; lists of plain values are one entry."""
    if isinstance(config, Mapping) and config:
        entries: dict[str, str] = {}
        for key, value in config.items():
            entries |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
        return entries
    if isinstance(config, list) and any(isinstance(value, Mapping) for value in config):
        return flatten({str(place): value for place, value in enumerate(config)}, prefix)
    return {prefix: json.dumps(config)}


@dataclass(frozen=True)
class _Alike:
    """Runs of one configuration, but for what the names of their folders tell.

    Attributes:
        title: What they are called.
        runs: The runs.
        entries: Their configuration.
    """

    title: str
    runs: tuple[Run, ...]
    entries: Mapping[str, str]


def _alike(runs: Sequence[Run]) -> list[_Alike]:
    """Put runs of one configuration together: the people and folds of a grid."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        text = json.dumps([item for item in _entries(run).items() if not item[0].startswith(_IN_THE_NAME)])
        groups.setdefault((run.data, run.stage, _without_fold(run), text), []).append(run)
    named = [" ".join(key[:3]) for key in groups]
    return [
        _Alike(
            title if named.count(title) == 1 else f"{title}, {group[0].people}",
            tuple(group),
            {key: value for key, value in _entries(group[0]).items() if not key.startswith(_IN_THE_NAME)},
        )
        for title, group in zip(named, groups.values(), strict=True)
    ]


def _without_fold(run: Run) -> str:
    return run.name.rpartition("_fold-")[0] or run.name


def _differences(runs: Sequence[Run]) -> Table | Note:
    groups = _alike(runs)
    keys = list(dict.fromkeys(key for group in groups for key in group.entries))
    different = [key for key in keys if _differs(key, groups)]
    if not different:
        return Note(
            "The configurations of these runs are the same, but for what the names of their folders tell: data, "
            "people, fold and name."
        )
    about = (
        "Where the resolved configurations differ, but for people, folds and names of runs. What one class alone knows "
        "is not listed where classes differ; a dash stands where a run has no such entry."
    )
    if len(groups) <= BESIDE:
        rows = [[key, *(_value(group.entries.get(key)) for group in groups)] for key in different]
        return Table(["entry", *(group.title for group in groups)], rows, about)
    rows = []
    for key in different:
        values: dict[str, list[_Alike]] = {}
        for group in groups:
            values.setdefault(_value(group.entries.get(key)), []).append(group)
        for value, own in values.items():
            rows.append([key, value, str(sum(len(g.runs) for g in own)), _some([g.title for g in own])])
    return Table(["entry", "value", "runs", "which"], rows, about)


def _differs(key: str, groups: Sequence[_Alike]) -> bool:
    """Whether an entry differs; not where only its class is another one."""
    values = {group.entries[key] for group in groups if key in group.entries}
    if len(values) > 1 or all(key in group.entries for group in groups):
        return len(values) > 1
    steps = key.split(".init_args.")
    above = [".init_args.".join(steps[: place + 1]) + ".class_path" for place in range(len(steps) - 1)]
    return all(len({group.entries.get(name) for group in groups}) == 1 for name in above)


def _entries(run: Run) -> dict[str, str]:
    """How it was trained counts, where that was kept."""
    entries = run.resolved.get("fit") or run.resolved.get("test")
    return flatten(entries) if entries else {}


def _value(value: str | None) -> str:
    return "-" if value is None else value.strip('"')


def _some(titles: Sequence[str], most: int = 3) -> str:
    return "; ".join(titles[:most]) + (f" and {len(titles) - most} more" if len(titles) > most else "")


# ---- runs and data -----------------------------------------------------------------------------------


def _runs(runs: Sequence[Run]) -> Table:
    headings = ["data", "people", "stage", "run", "protocol", "fold", "transductive", "training samples", "seed"]
    kept = any(run.about for run in runs)
    headings += ["trained", "minutes", "devices", "precision", "commit"] if kept else []
    rows = []
    for run in runs:
        row = [run.data, run.people, run.stage, run.name]
        if run.part is None:
            row += ["-"] * 4
        else:
            layout = run.part.context.layout
            samples = sum(layout["train_samples"].values())
            folds = "-" if layout["folds"] == 1 else f"{layout['fold']} of {layout['folds']}"
            row += [layout["protocol"], folds, "yes" if layout["transductive"] else "no", str(samples)]
        row.append(str(_seed(run)))
        if kept:
            fit = run.about.get("fit", {})
            minutes = f"{fit['seconds'] / 60:.1f}" if "seconds" in fit else "-"
            processes = f"{fit['processes']} x {fit['devices']}" if "devices" in fit else "-"
            row += [fit.get("started", "-"), minutes, processes, fit.get("precision", "-"), fit.get("commit") or "-"]
        rows.append(row)
    caption = (
        "Protocol: how test stimuli were divided from training stimuli. Transductive: whether test recordings took "
        "part in cleaning. Training samples are after averaging, of all people together."
    )
    return Table(headings, rows, caption)


def _seed(run: Run) -> object:
    entries = run.about.get("fit", {}).get("seed")
    return _entries(run).get("seed_everything", "-") if entries is None else entries


def _lineage(runs: Sequence[Run]) -> list[Part]:
    rows = []
    for tested in gather_folds(runs):
        lineage = tested.parts[0].context.lineage if tested.parts else ()
        for place, earlier in enumerate(lineage, start=1):
            transductive = "yes" if earlier.get("transductive") else "no"
            rows.append(
                [tested.title, str(place), str(earlier.get("stage")), str(earlier.get("protocol")), transductive]
            )
    caption = "Earlier stages that a run is made from; transductive: whether one saw test recordings."
    return [Table(["run", "place", "earlier stage", "protocol", "transductive"], rows, caption)] if rows else []


def _data(runs: Sequence[Run]) -> list[Part]:
    """Shapes and preparation from the layouts, licence and citation from what the runs have kept; once each."""
    people: dict[tuple[str, ...], dict[str, str]] = {}
    preparations: dict[str, dict[str, None]] = {}
    for run in runs:
        if run.part is None:
            continue
        whole = run.part.context.layout
        for name, layout in parts_of(whole).items():
            title = f"{run.data}, {name}" if "parts" in whole else run.data
            shapes = {subject: " x ".join(str(size) for size in shape) for subject, shape in layout["shape"].items()}
            rate = layout["sampling_rate"]
            times = f"{rate:g} per second from {layout['start']:g} s" if rate else "-"
            fixed = (title, layout["modality"], times, str(len(layout["classes"])), layout["embedding_space"])
            people.setdefault(fixed, {}).update(shapes)
            # checksums differ between people
            options = [f"{key}: {value}" for key, value in sorted(layout["preparation"].items()) if key != "recordings"]
            preparations.setdefault("\n".join(options), {}).setdefault(title)
    found: list[Part] = []
    if people:
        rows = [[*fixed[:2], str(len(own)), _range(list(own.values())), *fixed[2:]] for fixed, own in people.items()]
        headings = ["data", "modality", "people", "shape of a sample", "times", "classes", "image space"]
        found.append(Table(headings, rows, "Data as the models saw them: voxels, or channels x times."))
    facts: dict[str, dict[str, Any]] = {}
    for run in runs:
        for command in run.about.values():
            for each in command.get("data", []):
                facts.setdefault(str(each.get("name")), each)
    if facts:
        keys = ("name", "modality", "units", "stimuli", "licence", "citation")
        rows = [[str(each.get(key, "-")) for key in keys] for each in facts.values()]
        found.append(Table(["data set", *keys[1:]], rows, "Cite the data that you use, and keep to their licence."))
    text = "\n\n".join(f"# {', '.join(titles)}\n{options}" for options, titles in preparations.items())
    return [*found, *([Folded("Preparation of the recordings", text)] if text else [])]


def _range(shapes: Sequence[str]) -> str:
    different = sorted(set(shapes), key=lambda shape: [int(size) for size in shape.split(" x ")])
    return different[0] if len(different) == 1 else f"{different[0]} .. {different[-1]}"


# ---- commands, versions, configurations --------------------------------------------------------------


def _commands(runs: Sequence[Run]) -> Folded:
    lines = []
    for run in runs:
        for command, about in run.about.items():
            lines.append(f"# {run.title}, {command}, {about.get('started', 'time unknown')}")
            lines.append(f"{shlex.join(about.get('command', []))}\n")
    return Folded("Commands, to be copied", "\n".join(lines))


def _versions(runs: Sequence[Run]) -> Table:
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for about in run.about.values():
            for package, version in about.get("versions", {}).items():
                found.setdefault(package, {}).setdefault(str(version))
    rows = [[package, ", ".join(versions)] for package, versions in found.items()]
    return Table(["package", "version"], rows, "Versions; several where runs were made with different ones.")


def _configurations(runs: Sequence[Run]) -> list[Part]:
    """Whole resolved configurations; the first one stands for people and folds that share it."""
    found: list[Part] = []
    for group in _alike(runs):
        for command, text in group.runs[0].configs.items():
            which = f" ({group.runs[0].people}, first of {len(group.runs)} runs)" if len(group.runs) > 1 else ""
            found.append(Folded(f"Configuration: {group.title}, {command}{which}", text))
    return found
