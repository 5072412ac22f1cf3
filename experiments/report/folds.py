"""What was tested under one name: a run, or all folds of a cross-validation together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from callbacks import Part, read_scores
from callbacks.identification import block_of, joint_galleries
from callbacks.metrics import Block
from callbacks.score import subjects_of
from contracts import Score
from experiments.report.runs import Run

QUERY = "brain_embedding"
_FOLD = re.compile(r"_fold-\d+$")


@dataclass(frozen=True)
class Tested:
    """A run, or the runs of all folds that differ in the fold alone.

    Attributes:
        runs: In the order of the folds.
    """

    runs: tuple[Run, ...]

    @property
    def data(self) -> str:
        """Name of the data set."""
        return self.runs[0].data

    @property
    def people(self) -> str:
        """``all`` or ``sub-<a>+<b>``."""
        return self.runs[0].people

    @property
    def stage(self) -> str:
        """Name of the stage."""
        return self.runs[0].stage

    @property
    def name(self) -> str:
        """Name of the run, without its fold where there are several."""
        return _FOLD.sub("", self.runs[0].name) if len(self.runs) > 1 else self.runs[0].name

    @property
    def title(self) -> str:
        """Short name that differs between all of them."""
        return f"{self.data} {self.people} {self.stage} {self.name}"

    @cached_property
    def parts(self) -> list[Part]:
        """Outputs of the test, a fold each; empty where any run has kept none."""
        parts = [run.part for run in self.runs]
        return [] if None in parts else [part for part in parts if part is not None]

    @cached_property
    def subjects(self) -> list[str]:
        """Names of the people of the outputs."""
        return subjects_of(self.parts)

    def outputs(self, subject: str, name: str) -> Tensor | None:
        """An entry of a person in all folds, one below the other; None where any fold has none of the name."""
        mine = [part.outputs[subject] for part in self.parts if subject in part.outputs]
        return torch.cat([output[name] for output in mine]) if mine and all(name in output for output in mine) else None

    @cached_property
    def joined(self) -> list[Score] | None:
        """Scores of all folds together as ``neuroalign grid`` left them; None where it left none of these folds."""
        file = self.runs[0].folder.absolute().parents[2] / "all" / self.stage / self.name / "grid.json"
        if len(self.runs) == 1 or not file.exists() or not self.parts:
            return None
        scores = [score for score in read_scores(file) if score.subject in self.subjects]
        tested = {
            subject: sum(len(part.outputs[subject]["row"]) for part in self.parts if subject in part.outputs)
            for subject in self.subjects
        }
        # a report on some folds alone must not show scores of all
        whole = all(any(s.subject == name and s.n == rows for s in scores) for name, rows in tested.items())
        return scores if whole else None


def gather_folds(runs: Sequence[Run]) -> list[Tested]:
    """Put the folds of each cross-validation together."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.data, run.people, run.stage, _FOLD.sub("", run.name)), []).append(run)
    return [Tested(tuple(sorted(group, key=lambda run: run.name))) for group in groups.values()]


def gallery_of(part: Part, subject: str) -> str:
    """Name of the gallery of a person's test pictures: of several data sets side by side each has its own."""
    names = part.context.layout.get("parts") or {}
    return next((f"{name}.test" for name in names if subject.startswith(f"{name}-")), "test")


def blocks_of(tested: Tested, subject: str) -> list[Block]:
    """Decoded embeddings of a person with the gallery of test pictures, one block a fold, as the scores have them.

    Returns:
        The blocks; none where nothing was decoded.
    """
    parts = [part for part in tested.parts if subject in part.outputs]
    if not parts:
        return []
    name = gallery_of(parts[0], subject)
    if not all(QUERY in part.outputs[subject] and name in part.context.galleries for part in parts):
        return []
    return [
        block_of(part.outputs[subject], gallery, QUERY)
        for part, gallery in zip(parts, joint_galleries(parts, name), strict=True)
    ]
