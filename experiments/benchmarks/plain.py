"""Against a plain implementation: both are measured in turns and reported in one form.

Plain is what a paper's text or its published code says, written out in a few lines of PyTorch.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor

from experiments.benchmarks.in_turns import On, in_turns, ratio, spread

Implementation = Literal["ours", "plain"]


def against_plain(
    module: str,
    measure: Callable[..., Mapping[str, float]],
    implementation: Implementation | None,
    on: On,
    *,
    rounds: int,
    work: str,
    **options: Any,
) -> dict[str, list[Any]]:
    """Print seconds, peak memory, work and work a second of both, and the ratio of seconds.

    Args:
        module: The benchmark, which is started anew for each measurement.
        measure: Measures an implementation, on ``on`` and with ``options``: ``seconds``, ``memory`` (GB) and ``work``.
        implementation: Measure only this one, in this process, and print plain numbers.
        on: Where and how.
        rounds: Measurements of each, in turns.
        work: What ``work`` counts.
        **options: Of the benchmark.

    Returns:
        What was measured in each round, by implementation; nothing where only one was measured here.
    """
    if implementation is not None:
        print(json.dumps(measure(implementation, on, **options)))
        return {}
    found = in_turns(module, ["ours", "plain"], rounds=rounds, **options, **asdict(on))
    print(f"ours on {on}")
    print(f"| implementation | seconds: median (lowest .. highest) | peak memory, GB | {work} | {work} a second |")
    print("|---|---|---|---|---|")
    for name, results in found.items():
        seconds = [result["seconds"] for result in results]
        memory = max(result["memory"] for result in results)
        rate = statistics.median(result["work"] / result["seconds"] for result in results)
        print(f"| {name} | {spread(seconds, 3)} | {memory:.2f} | {results[0]['work']:,.6g} | {rate:,.3f} |")
    print(f"ours / plain: {ratio(found):.2f}")
    return found


def attention_of_heads(query: Tensor, key: Tensor, value: Tensor, *, num_heads: int) -> Tensor:
    """Attention as a matrix, one head after another.

    Args:
        query: ``(B, N, D)``.
        key: ``(B, N, D)``.
        value: ``(B, N, D)``.
        num_heads: Into how many parts D is divided.

    Returns:
        ``(B, N, D)``.
    """
    width = query.shape[2] // num_heads
    heads = []
    for head in range(num_heads):
        part = slice(head * width, (head + 1) * width)
        score = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(width)
        heads.append(score.softmax(dim=2) @ value[..., part])
    return torch.cat(heads, dim=2)
