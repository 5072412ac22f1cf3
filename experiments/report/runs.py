"""Run folders as a report reads them: scores, outputs, logs, pictures and what was run."""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from callbacks import Part, load_part, load_pictures, read_scores
from callbacks.picture_record import Pictures
from contracts import DataError, Score, UserError
from datamodules import DataModule
from experiments.arguments import Parser

RESULTS = ("scores.json", "outputs.safetensors")
"""What a test leaves; a folder with any of these is a run to report on."""


@dataclass(frozen=True)
class Run:
    """A tested run.

    Attributes:
        folder: ``<root>/<data>/<people>/<stage>/<name>``.
    """

    folder: Path

    @property
    def data(self) -> str:
        """Name of the data set."""
        return self.folder.absolute().parts[-4]

    @property
    def people(self) -> str:
        """``all`` or ``sub-<a>+<b>``."""
        return self.folder.absolute().parts[-3]

    @property
    def stage(self) -> str:
        """Name of the stage."""
        return self.folder.absolute().parts[-2]

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.name

    @property
    def title(self) -> str:
        """Short name that differs between all runs: data, people, stage and name."""
        return f"{self.data} {self.people} {self.stage} {self.name}"

    @cached_property
    def scores(self) -> list[Score]:
        """Scores of the test; empty where nothing scored it."""
        file = self.folder / "scores.json"
        with _whole(file):
            return read_scores(file) if file.exists() else []

    @cached_property
    def part(self) -> Part | None:
        """Outputs of the test by person, and their context (galleries, layout); None where none were kept."""
        file = self.folder / "outputs.safetensors"
        with _whole(file):
            return load_part(file) if file.exists() else None

    @cached_property
    def pictures(self) -> Pictures | None:
        """Small copies of the pictures that were seen and generated; None where there are none."""
        file = self.folder / "pictures.safetensors"
        with _whole(file):
            return load_pictures(file) if file.exists() else None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration of the test, or else of the fit."""
        for command in ("test", "fit"):
            file = self.folder / f"config_{command}.yaml"
            if file.exists():
                with _whole(file):
                    config: dict[str, Any] = yaml.safe_load(file.read_text())
                return config
        raise DataError(f"{self.folder} has no config_test.yaml; test the run again")

    @cached_property
    def configs(self) -> dict[str, str]:
        """The resolved configurations as they are in the run folder, by command (``fit``, ``test``)."""
        files = {command: self.folder / f"config_{command}.yaml" for command in ("fit", "test")}
        return {command: file.read_text() for command, file in files.items() if file.exists()}

    @cached_property
    def about(self) -> dict[str, dict[str, Any]]:
        """What was run by command (``fit``, ``test``): its words, versions, times, devices and facts of the data."""
        files = sorted(self.folder.glob("about_*.json"))
        found = {}
        for file in files:
            with _whole(file):
                found[file.stem.removeprefix("about_")] = json.loads(file.read_text())
        return found

    @cached_property
    def logs(self) -> dict[str, list[tuple[int, float]]]:
        """What training and validation logged: by name, (step, value) in the order of the steps.

        A resumed fit has written several files; where steps meet, the later one counts.
        """
        curves: dict[str, dict[int, float]] = {}
        files = sorted(self.folder.glob("csv/fit*/metrics.csv"), key=lambda file: file.stat().st_mtime)
        for file in files:
            with _whole(file), file.open(newline="") as stream:
                for row in csv.DictReader(stream):
                    for name, text in row.items():
                        if name not in (None, "step", "epoch") and text and row.get("step"):
                            curves.setdefault(name, {})[int(row["step"])] = float(text)
        return {name: sorted(values.items()) for name, values in curves.items()}

    @cached_property
    def data_set(self) -> DataModule | str:
        """The data set of the run, opened where its converted files are on this machine, or why it is not."""
        parser = Parser(prog="neuroalign report", parser_mode="omegaconf+", exit_on_error=False)
        parser.add_subclass_arguments(DataModule, "data", required=True)
        try:
            module: DataModule = parser.instantiate_classes(parser.parse_object({"data": self.config["data"]})).data
            missing = module.missing_stores()
        except UserError as error:
            return str(error)
        if missing:
            return f"not on this machine: {', '.join(str(folder) for folder in missing)}"
        return module


@contextmanager
def _whole(file: Path) -> Iterator[None]:
    """Say in one line which file of a run is damaged."""
    try:
        yield
    except (ValueError, TypeError, KeyError, OSError, yaml.YAMLError) as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DataError(f"cannot read {file}: {found}; test the run again") from error


def find_runs(patterns: Sequence[str]) -> list[Run]:
    """Find run folders: each pattern names run folders, or folders with such below them.

    Raises:
        DataError: A pattern without any tested run.
    """
    found: dict[Path, Run] = {}
    for pattern in patterns:
        folders = [Path(name) for name in sorted(glob.glob(pattern))]
        tested = sorted({file.parent for folder in folders for name in RESULTS for file in folder.rglob(name)})
        if not tested:
            raise DataError(
                f"no tested run in {pattern}: {len(folders)} folders of that name, none with {' or '.join(RESULTS)}; "
                "train and test first (make score-<stage>), or change RUN"
            )
        found |= {folder.absolute(): Run(folder) for folder in tested}
    return list(found.values())


def by_person(runs: Sequence[Run]) -> Mapping[tuple[str, str, str], list[Run]]:
    """Group the runs of one data set, stage and person: the folds of a cross-validation."""
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.data, run.stage, run.people), []).append(run)
    return groups


def similarity(left: Tensor, right: Tensor) -> Tensor:
    """Cosine similarity of all pairs of rows, ``(n, D)`` and ``(m, D)`` -> ``(n, m)``, float64."""
    unit = [torch.nn.functional.normalize(rows.double(), dim=1) for rows in (left, right)]
    return unit[0] @ unit[1].T
