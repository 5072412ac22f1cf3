"""Measuring implementations of one thing in turns, each in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


def in_turns(module: str, implementations: Sequence[str], *, rounds: int, **options: Any) -> dict[str, list[Any]]:
    """Run ``python -m <module> --implementation=<one>`` for each in turns and return what the last line of each prints.

    Args:
        module: The benchmark; it prints JSON where it is told an implementation.
        implementations: Their names.
        rounds: How often each is run.
        **options: Further options of the benchmark.
    """
    words = [f"--{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in options.items()]
    found: dict[str, list[Any]] = {name: [] for name in implementations}
    for _ in range(rounds):
        for name, results in found.items():
            command = [sys.executable, "-m", module, f"--implementation={name}", *words]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results.append(json.loads(printed.splitlines()[-1]))
    return found


def seconds_and_memory(work: Callable[[], Any], device: str) -> dict[str, float]:
    """Seconds of one run of ``work``, and the peak memory of this process until then in GB."""
    finish: Callable[[], Any] = torch.cuda.synchronize if device == "cuda" else lambda: None
    finish()
    started = time.perf_counter()
    work()
    finish()
    seconds = time.perf_counter() - started
    on_device = device == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_device else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "memory": peak / 1e9}


def ratio(found: Mapping[str, Sequence[Mapping[str, float]]]) -> float:
    """Median over rounds of the seconds of the first implementation over those of the second."""
    first, second = found.values()
    ratios = sorted(a["seconds"] / b["seconds"] for a, b in zip(first, second, strict=True))
    middle = len(ratios) // 2
    return ratios[middle] if len(ratios) % 2 else (ratios[middle - 1] + ratios[middle]) / 2
