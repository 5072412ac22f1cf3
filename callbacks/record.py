"""RunRecord: what a test leaves in the run folder, and reading it back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from callbacks.metrics.gather import Outputs
from callbacks.score import Part, ScoreCallback, average
from callbacks.tables import print_scores
from callbacks.whole_file import whole_file
from contracts import DataError, Gallery, Output, Score, ScoreContext

SPACE = "free some space and run the command again"


class RunRecord(Callback):
    """Writes what a command found into the run folder and prints a table of its scores.

    ``test`` leaves ``scores.json`` and ``outputs.safetensors``, ``validate`` leaves ``scores_validation.json``,
    ``predict`` leaves ``predictions.safetensors`` (entries ``<subject>/<name>``, in the order of ``row``).

    Args:
        keep_outputs: Whether a test keeps the gathered outputs, which joining the folds of a cross-validation
            and reports need.
        table: Whether to print the table.
    """

    def __init__(self, keep_outputs: bool = True, table: bool = True) -> None:
        self.keep_outputs = keep_outputs
        self.table = table
        self._predictions: Outputs | None = None

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print; scores were computed at the end of the epoch."""
        scored = self._write_scores(trainer, "scores.json")
        parts = [callback.part for callback in scored if callback.part is not None]
        if self.keep_outputs and parts:
            people = parts[0].outputs
            outputs = {s: {k: v for part in parts for k, v in part.outputs[s].items()} for s in people}
            save_part(Path(trainer.default_root_dir) / "outputs.safetensors", Part(outputs, parts[0].context))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print the scores of the ``validate`` command; while fitting they are only logged."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._write_scores(trainer, "scores_validation.json")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep the output of a batch."""
        if self._predictions is None:
            self._predictions = Outputs(sorted(outputs))
        self._predictions.update(outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather and write the predictions."""
        assert self._predictions is not None
        people = self._predictions.compute()
        self._predictions = None
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            layout: Any = pl_module.layout
            names = layout["subjects"]
            tensors = {f"{names[number]}/{k}": v for number, output in people.items() for k, v in output.items()}
            save_tensors(Path(trainer.default_root_dir) / "predictions.safetensors", tensors)

    def _write_scores(self, trainer: Trainer, name: str) -> list[ScoreCallback]:
        """Write and print; return the callbacks that scored, or none where nothing is to be kept."""
        scored = [callback for callback in trainer.callbacks if isinstance(callback, ScoreCallback)]  # type: ignore[attr-defined]
        if not trainer.is_global_zero or trainer.fast_dev_run or not scored:  # type: ignore[attr-defined]
            return []
        scores = [score for callback in scored for score in callback.scores]
        scores += average(scores)
        write_scores(Path(trainer.default_root_dir) / name, scores)
        if self.table:
            print_scores(scores, title=trainer.default_root_dir)
        return scored


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """Write ``scores.json``, a list of scores as plain data, in one rename."""
    with whole_file(path, SPACE) as partial:
        partial.write_text(json.dumps([score.as_dict() for score in scores], indent=2) + "\n")


def read_scores(path: Path) -> list[Score]:
    """Read ``scores.json`` back.

    Raises:
        DataError: Missing or damaged file.
    """
    try:
        return [Score(**entry) for entry in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"cannot read {path}: {error}; test the run again") from error


def save_part(path: Path, part: Part) -> None:
    """Write outputs, galleries and ceilings of a run into one ``.safetensors`` file, in one rename."""
    context = part.context
    tensors = {f"output/{s}/{name}": value for s, entries in part.outputs.items() for name, value in entries.items()}
    for name, gallery in context.galleries.items():
        for entry in ("embedding", "stimulus", "label"):
            tensors[f"gallery/{name}/{entry}"] = getattr(gallery, entry)
    for kind, values in (("ceiling", context.encoding_ceiling), ("oracle", context.oracle)):
        tensors |= {f"{kind}/{subject}": value for subject, value in values.items()}
    facts = {
        "layout": context.layout,
        "kinds": {name: gallery.kind for name, gallery in context.galleries.items()},
        "ceiling_reason": context.ceiling_reason,
        "lineage": list(context.lineage),
    }
    save_tensors(path, tensors, {"facts": json.dumps(facts)})


def load_part(path: Path) -> Part:
    """Read what ``save_part`` wrote.

    Raises:
        DataError: Missing or damaged file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as error:
        raise DataError(f"cannot read {path}: {error}; test the run again") from error
    outputs: dict[str, Output] = {}
    for key in sorted(key for key in tensors if key.startswith("output/")):
        _, subject, name = key.split("/")
        outputs.setdefault(subject, {})[name] = tensors[key]
    galleries = {
        name: Gallery(
            embedding=tensors[f"gallery/{name}/embedding"],
            stimulus=tensors[f"gallery/{name}/stimulus"],
            label=tensors[f"gallery/{name}/label"],
            kind=kind,
        )
        for name, kind in facts["kinds"].items()
    }
    by_subject = {
        kind: {name.split("/", 1)[1]: value for name, value in tensors.items() if name.startswith(f"{kind}/")}
        for kind in ("ceiling", "oracle")
    }
    context = ScoreContext(
        galleries=galleries,
        layout=facts["layout"],
        encoding_ceiling=by_subject["ceiling"],
        oracle=by_subject["oracle"],
        ceiling_reason=facts["ceiling_reason"],
        lineage=tuple(facts["lineage"]),
    )
    return Part(outputs, context)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors and texts into one ``.safetensors`` file, in one rename."""
    with whole_file(path, SPACE) as partial:
        # a copy each: slices of one tensor share memory, which the format refuses
        save_file({name: value.clone().contiguous() for name, value in tensors.items()}, partial, metadata)
        partial.chmod(0o644)  # the library writes files that only their owner can read
