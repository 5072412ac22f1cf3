"""What does training a stage cost: operations, samples a second, memory, and the share of what the machine can do?

``python -m experiments.benchmarks.stages`` trains each stage for a few steps on noise, as its shipped file says, in a
process of its own. Seconds depend on what else the machine does; the share of the rate of a large matrix product,
measured between the steps, does so much less.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from contracts import UserError, parts_of
from experiments.benchmarks.cases import CASES, FULL, SMALL, Case, build, noise
from experiments.benchmarks.in_turns import (
    On,
    command,
    finish,
    flop_counter,
    in_turns,
    kilobytes,
    matmul_rate,
    peak_memory,
    spread,
)
from experiments.benchmarks.layouts import read
from lightning_modules import Stage


def stages(
    which: str = "small",
    batch_size: int | None = None,
    people: int | None = None,
    steps: int = 3,
    implementation: str | None = None,
    **on: Any,
) -> None:
    """Train stages for a few steps each and print a table.

    Args:
        which: ``small``, ``full`` (those of published size), ``all``, or names separated by commas.
        batch_size: Samples of a step, of each data set; None for those of the data files, few on published sizes.
        people: People in the data; None for those of the data set.
        steps: Steps that are timed, after one in which operations are counted; of stages in closed form one pass.
        implementation: Measure only this one, in this process, and print plain numbers.
        **on: Where and how (``On``): ``--device``, ``--precision``, ``--compile``.
    """
    place = On(**on)
    if implementation is not None:
        print(json.dumps(measure(CASES[implementation], place, batch=batch_size, people=people, steps=steps)))
        return
    names = chosen(which)
    print(f"{place}, {torch.get_num_threads()} threads")
    print(HEAD)
    for name in names:
        options = {"batch_size": batch_size, "people": people, "steps": steps, **on}
        [found] = in_turns("experiments.benchmarks.stages", [name], rounds=1, **options)[name]
        print(row(name, found), flush=True)


HEAD = (
    "| stage | data | weights, millions: trained / all | samples a step | GFLOP a sample | samples a second | "
    "peak memory, GB | share of the matrix product: median (lowest .. highest) |\n|---|---|---|---|---|---|---|---|"
)


def row(name: str, found: Mapping[str, Any]) -> str:
    """A line of the table of what ``measure`` found."""
    return (
        f"| {name} | {CASES[name].on} | {found['trained'] / 1e6:.2f} / {found['weights'] / 1e6:.2f} "
        f"| {found['samples']} | {found['flop'] / 1e9:.3g} | {1 / found['seconds']:.3g} | {found['memory']:.2f} "
        f"| {spread(found['share'])} |"
    )


def chosen(which: str) -> list[str]:
    """Names of the stages that were asked for.

    Raises:
        UserError: A name that there is not.
    """
    groups: dict[str, dict[str, Case]] = {"small": SMALL, "full": FULL, "all": CASES}
    names = list(groups[which]) if which in groups else which.split(",")
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise UserError(f"no stage {', '.join(unknown)}; there are {', '.join((*groups, *CASES))}")
    return names


# ---- measuring -------------------------------------------------------------------------------------


def measure(
    case: Case, on: On, *, batch: int | None = None, people: int | None = None, steps: int = 3
) -> dict[str, Any]:
    """Train for a few steps, or passes where the solution is closed form, with Lightning as every run does.

    Args:
        case: Stage and data.
        on: Where and how.
        batch: Samples of a step, of each data set; None for those of the case.
        people: People in the data; None for those of the case.
        steps: Steps that are timed, after one in which operations are counted; in closed form one pass.

    Returns:
        ``flop`` and ``seconds`` (median) of a sample, ``share`` of the rate of a large matrix product in each step,
        ``memory`` beyond that of the libraries (GB), ``weights``, of them ``trained``, ``samples`` of a step.
    """
    before = 0.0 if on.device == "cuda" else kilobytes("/proc/self/status", "VmRSS") * 1024e-9
    layout = case.layout() if people is None else case.layout(people=people)
    stage = build(case, layout, **({"compile": True} if on.compile else {}))
    size = batch or case.batch
    closed = stage.every_sample_once
    batches: list[Any]
    if closed:
        steps = 1
        batches = [
            noise(stage, layout, min(size, n - start), start=start, subject=person)
            for person, n in enumerate(layout["train_samples"].values())
            for start in range(0, n, size)
        ]
        samples = sum(layout["train_samples"].values())
    else:
        # more than are used: checks at the end of an epoch are no part of a step
        batches = [noise(stage, layout, size)] * (on.warm + steps + 1)
        samples = size * len(parts_of(layout))
    meter = Meter(on, closed=closed)
    trained = sum(parameter.numel() for parameter in stage.parameters() if parameter.requires_grad)
    weights = sum(parameter.numel() for parameter in stage.parameters())
    train(stage, batches, meter, read(case.file)["trainer"], steps=on.warm + steps)
    share = [
        2 * meter.flop / seconds / (before_it + after_it)
        for seconds, before_it, after_it in zip(meter.seconds, meter.rates, meter.rates[1:], strict=False)
    ]
    return {
        "flop": meter.flop / samples,
        "seconds": statistics.median(meter.seconds) / samples,
        "rate": statistics.median(meter.rates),
        "share": share,
        "memory": peak_memory(on.device) - before,
        "weights": weights,
        "trained": trained,
        "samples": size,
    }


class Meter(Callback):
    """Counts the operations of the first step (or pass) and times those after the first ``on.warm``.

    The machine's rate is measured between the steps that are timed.

    Args:
        on: Where and how.
        closed: Whether a whole pass is measured instead of a step.
    """

    def __init__(self, on: On, *, closed: bool) -> None:
        self.on = on
        self.closed = closed
        self.flop = 0
        self.seconds: list[float] = []
        self.rates: list[float] = []
        self._counting = ExitStack()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A pass begins."""
        if self.closed:
            self._begin(trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A pass has ended."""
        if self.closed:
            self._end(trainer.current_epoch)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A step begins."""
        if not self.closed:
            self._begin(batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A step has ended."""
        if not self.closed:
            self._end(batch_idx)

    def _begin(self, number: int) -> None:
        if number == 0:
            self._counter = self._counting.enter_context(flop_counter())
        elif number >= self.on.warm:
            if not self.rates:
                self.rates.append(matmul_rate(self.on))
            finish(self.on.device)
            self._started = time.perf_counter()

    def _end(self, number: int) -> None:
        if number == 0:
            self._counting.close()
            self.flop = self._counter.get_total_flops()
        elif number >= self.on.warm:
            finish(self.on.device)
            self.seconds.append(time.perf_counter() - self._started)
            self.rates.append(matmul_rate(self.on))


def train(stage: Stage, batches: list[Any], meter: Meter, options: Mapping[str, Any], *, steps: int) -> None:
    """Train a stage on batches, as the trainer section of its file says but for its length and what it writes.

    Args:
        stage: The stage.
        batches: Batches of an epoch.
        meter: What measures.
        options: Trainer section of the stage's file.
        steps: Steps, or passes.
    """
    trainer = Trainer(
        accelerator=meter.on.device,
        devices=1,
        precision="bf16-mixed" if meter.on.precision == "bfloat16" else "32-true",
        gradient_clip_val=options.get("gradient_clip_val"),
        max_epochs=steps if meter.closed else -1,
        max_steps=-1 if meter.closed else steps,
        callbacks=[meter],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        # a look at the loss is no part of a step
        log_every_n_steps=1000,
        use_distributed_sampler=False,
    )
    with warnings.catch_warnings():
        # of loaders without workers, and fewer batches than are logged
        warnings.simplefilter("ignore", UserWarning)
        trainer.fit(stage, DataLoader(batches, batch_size=None, collate_fn=_as_it_is))  # type: ignore[arg-type]  # a list


def _as_it_is(batch: Any) -> Any:
    return batch


if __name__ == "__main__":
    command(stages)
