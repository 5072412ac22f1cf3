"""Run folders as a report reads them: scores, outputs, logs, pictures and what was run."""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from callbacks import Part, load_part, load_pictures, read_scores
from callbacks.picture_record import Pictures
from contracts import PASSED_THROUGH, DataError, LayoutOfOne, Score, UserError
from datamodules import DataModule
from experiments.arguments import Parser

LEVELS = ("<data>", "<people>", "<stage>", "<name>")
"""Folders by which a run is named."""
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
            scores = read_scores(file) if file.exists() else []
            for score in scores:
                _check_numbers(score)
        return scores

    @cached_property
    def part(self) -> Part | None:
        """Outputs of the test by person, and their context (galleries, layout); None where none were kept."""
        file = self.folder / "outputs.safetensors"
        with _whole(file):
            part = load_part(file) if file.exists() else None
            if part is not None:
                _check_entries(part)
        return part

    @cached_property
    def pictures(self) -> Pictures | None:
        """Small copies of the pictures that were seen and generated; None where there are none."""
        file = self.folder / "pictures.safetensors"
        with _whole(file):
            return load_pictures(file) if file.exists() else None

    @cached_property
    def configs(self) -> dict[str, str]:
        """The resolved configurations as they are in the run folder, by command (``fit``, ``test``)."""
        found = {}
        for command in ("fit", "test"):
            file = self._config_file(command)
            if file.exists():
                with _whole(file):
                    found[command] = file.read_text()
        return found

    @cached_property
    def resolved(self) -> dict[str, dict[str, Any]]:
        """Entries of the resolved configurations, by command."""
        found = {}
        for command, text in self.configs.items():
            with _whole(self._config_file(command)):
                found[command] = _named_entries(yaml.safe_load(text))
        return found

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration of the test, or else of the fit."""
        for command in ("test", "fit"):
            if command in self.resolved:
                return self.resolved[command]
        raise DataError(f"{self.folder} has no config_test.yaml; test the run again")

    def _config_file(self, command: str) -> Path:
        return self.folder / f"config_{command}.yaml"

    @cached_property
    def about(self) -> dict[str, dict[str, Any]]:
        """What was run by command (``fit``, ``test``): its words, versions, times, devices and facts of the data."""
        files = sorted(self.folder.glob("about_*.json"))
        found = {}
        for file in files:
            with _whole(file):
                found[file.stem.removeprefix("about_")] = _named_entries(json.loads(file.read_text()))
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
            if "data" not in self.config:
                return "its configuration names no data set"
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
    except KeyError as error:
        raise DataError(f"cannot read {file}: it has no {error}; test the run again") from error
    except (ValueError, TypeError, OSError, yaml.YAMLError) as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DataError(f"cannot read {file}: {found}; test the run again") from error


def _named_entries(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise TypeError(f"named entries were expected, found {type(content).__name__}")
    return content


def _check_numbers(score: Score) -> None:
    for name in ("value", "low", "high", "p_value", "chance", "ceiling"):
        value = getattr(score, name)
        if not isinstance(value, int | float) and (value is not None or name == "value"):
            raise TypeError(f"{name} of the score {score.name} is {value!r}, not a number")


def _check_entries(part: Part) -> None:
    """Refuse outputs without what every page shows, such as those of another version."""
    layout = part.context.layout
    for each in (layout, *layout.get("parts", {}).values()):
        lacking = sorted(LayoutOfOne.__required_keys__ - each.keys())
        if lacking:
            raise ValueError(f"its layout has no {', '.join(lacking)}, such as that of another version")
    for subject, output in part.outputs.items():
        lengths = {name: len(output[name]) for name in PASSED_THROUGH if name != "subject"}
        lengths |= {name: len(values) for name, values in output.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"outputs of person {subject} differ in length: {lengths}")


def find_runs(patterns: Sequence[str]) -> list[Run]:
    """Find run folders: each pattern names run folders, or folders with such below them.

    Raises:
        DataError: A pattern without any tested run.
    """
    found: dict[Path, Run] = {}
    for pattern in patterns:
        whole = Path(pattern).expanduser()
        # a name may hold brackets, which are more than a part of a name to glob
        folders = [whole] if whole.exists() else [Path(name) for name in sorted(glob.glob(str(whole)))]
        tested = sorted({file.parent for folder in folders for name in RESULTS for file in folder.rglob(name)})
        if not tested:
            raise DataError(
                f"no tested run in {pattern}: {len(folders)} folders of that name, none with {' or '.join(RESULTS)}; "
                "train and test first (make score-<stage>), or change RUN"
            )
        for folder in tested:
            if len(folder.absolute().parts) <= len(LEVELS):
                raise DataError(
                    f"the run {folder.absolute()} lies too high: names are read from <root>/{'/'.join(LEVELS)}; "
                    "copy it with the folders above it"
                )
            # the same folder, however it is named
            found.setdefault(folder.resolve(), Run(folder))
    return list(found.values())
