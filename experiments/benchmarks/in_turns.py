"""What all benchmarks share: measuring in turns, each in a process of its own, on the CPU or a GPU.

Seconds alone would tell how busy the machine was. Each is therefore compared with something measured in the same run:
another implementation of the same thing (``ratio``), or a large matrix product (``matmul_rate``).
"""

from __future__ import annotations

import json
import math
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from contracts import UserError

Device = Literal["cpu", "cuda"]
Precision = Literal["float32", "bfloat16"]
SIDE: dict[Device, int] = {"cpu": 2048, "cuda": 8192}
"""Side of the matrices of ``matmul_rate``: as large as it takes to keep the device busy, for 0.2 s or less."""


@dataclass(frozen=True)
class On:
    """Where and how something is computed; options of every benchmark of a network.

    Attributes:
        device: ``cpu`` or ``cuda``.
        precision: ``bfloat16`` is autocast.
        compile: Whether networks are compiled.
    """

    device: Device = "cpu"
    precision: Precision = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device=cuda: this machine has no GPU that PyTorch can use")

    def __str__(self) -> str:
        return f"{self.device}, {self.precision}, compile={self.compile}"

    @property
    def warm(self) -> int:
        """Steps before those that are timed: one in which operations are counted, one in which kernels are made."""
        return 2 if self.compile or self.device == "cuda" else 1

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers that are multiplied."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which networks run."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16")

    def prepare(self, model: nn.Module) -> None:
        """Compile the networks of a stage (``networks``), where that is asked for."""
        for part in model.networks() if self.compile else ():  # type: ignore[operator]  # of every GradientStage
            part.compile()


def command(benchmark: Callable[..., None]) -> None:
    """Run a benchmark with the arguments of the command line; what a user can mend is printed as one line."""
    try:
        auto_cli(benchmark, as_positional=False)
    except UserError as error:
        raise SystemExit(f"{benchmark.__name__}: {error}") from None


def in_turns(module: str, implementations: Sequence[str], *, rounds: int, **options: Any) -> dict[str, list[Any]]:
    """Run ``python -m <module> --implementation=<one>`` for each in turns and return what the last line of each prints.

    Args:
        module: The benchmark; it prints JSON where it is told an implementation.
        implementations: Their names.
        rounds: How often each is run.
        **options: Further options of the benchmark; those that are None are left out.

    Raises:
        UserError: One of them failed; the message ends with what it printed.
    """
    given = {key: value for key, value in options.items() if value is not None}
    words = [f"--{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in given.items()]
    found: dict[str, list[Any]] = {name: [] for name in implementations}
    for _ in range(rounds):
        for name, results in found.items():
            command = [sys.executable, "-m", module, f"--implementation={name}", *words]
            ran = subprocess.run(command, capture_output=True, text=True)
            if ran.returncode:
                raise UserError(f"{' '.join(command)} ended with status {ran.returncode}:\n{ran.stderr[-2000:]}")
            results.append(json.loads(ran.stdout.splitlines()[-1]))
    return found


def seconds_of(work: Callable[[], Any], device: Device = "cpu") -> float:
    """Seconds that something takes."""
    finish(device)
    started = time.perf_counter()
    work()
    finish(device)
    return time.perf_counter() - started


def finish(device: Device) -> None:
    """Wait until a GPU has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_and_memory(work: Callable[[], Any], device: Device) -> dict[str, float]:
    """Seconds of one run of ``work``, and the peak memory of this process until then in GB."""
    return {"seconds": seconds_of(work, device), "memory": peak_memory(device)}


def peak_memory(device: Device = "cpu") -> float:
    """Most memory that this process ever held, in GB; that of the process it was started from does not count."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9
    return kilobytes("/proc/self/status", "VmHWM") * 1024e-9


def kilobytes(file: str, name: str) -> int:
    """A number of kilobytes that Linux tells.

    Raises:
        UserError: It does not tell this one.
    """
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path(file).read_text(), re.MULTILINE) if Path(file).is_file() else None
    if found is None:
        raise UserError(f"no {name} in {file}: this benchmark needs Linux")
    return int(found[1])


def ratio(found: Mapping[str, Sequence[Mapping[str, float]]]) -> float:
    """Median over rounds of the seconds of the first implementation over those of the second."""
    first, second = found.values()
    return statistics.median(a["seconds"] / b["seconds"] for a, b in zip(first, second, strict=True))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Several measurements as they stand in a table: median (lowest .. highest)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} .. {max(values):.{digits}f})"


# ---- floating point operations ---------------------------------------------------------------------


def matmul_rate(on: On) -> float:
    """Floating point operations a second of a large matrix product, in the precision given."""
    side = SIDE[on.device]
    matrix = torch.ones(side, side, device=on.device, dtype=on.dtype)
    out = torch.empty_like(matrix)
    return 2 * side**3 / seconds_of(lambda: torch.mm(matrix, matrix, out=out), on.device)


@contextmanager
def flop_counter() -> Iterator[FlopCounterMode]:
    """Count floating point operations with PyTorch's counter, taught fused attention on CPUs and ``addmm_``.

    Matrix products, convolutions and attention are counted, a multiplication and an addition as two; the scores that
    fused attention computes again on the way back are counted, as they are on GPUs. Nothing runs compiled meanwhile:
    the counter would not see it.
    """
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def forward(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backward(
        gradient: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
    ) -> int:
        return int(sdpa_backward_flop_count(gradient, query, key, value))

    def added(_: Sequence[int], first: Sequence[int], second: Sequence[int], *__: Any, **___: Any) -> int:
        return 2 * math.prod(first) * second[-1]

    known = {
        attention: forward,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
        torch.ops.aten.addmm_: added,
        torch.ops.aten.baddbmm_: added,
    }
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False, custom_mapping=known) as counter:
        yield counter
