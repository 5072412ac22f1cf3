"""Writes EEG as the UCI data base publishes it (one text file a trial) and as an archive of the same trials."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_CAP = """
FP1 FP2 F7 F8 AF1 AF2 FZ F4 F3 FC6 FC5 FC2 FC1 T8 T7 CZ C3 C4 CP5 CP6 CP1 CP2 P3 P4 PZ P8 P7 PO2 PO1 O2 O1 X AF7 AF8
F5 F6 FT7 FT8 FPZ FC4 FC3 C6 C5 F2 F1 TP8 TP7 AFZ CP3 CP4 P5 P6 C1 C2 PO7 PO8 FCZ POZ OZ P2 P1 CPZ nd Y
"""
CHANNELS = _CAP.split()
NAMES = ("S1 obj", "S2 match", "S2 nomatch")
ARCHIVE = "uci_smni_cmi_train_600trials.npz"


def people(number: int = 4) -> list[str]:
    """Names of alcoholics, then of controls."""
    return [f"co2{'a' if i < number // 2 else 'c'}{364 + i:07d}" for i in range(number)]


def trials(person: int = 0, *, each: int = 3, seed: int = 0) -> tuple[list[int], list[str], Array]:
    """Numbers, conditions and signals ``(n, 64, 256)`` of one person, with three decimals; each condition differs."""
    random = np.random.default_rng([seed, person])
    numbers = np.sort(random.choice(90, 3 * each, replace=False))
    conditions = random.permutation(np.repeat(np.arange(3), each))
    patterns = np.random.default_rng(seed).standard_normal((3, 64, 1)) * np.sin(np.linspace(0, 6, 256))
    signal = 4 * patterns[conditions] + 8 * random.standard_normal((3 * each, 64, 256)).cumsum(axis=2) / 8
    return numbers.tolist(), [NAMES[c] for c in conditions], signal.round(3)


def archive(number: int = 4, **options: Any) -> dict[str, Array]:
    """Content of the archive."""
    found = [(name, trials(i, **options)) for i, name in enumerate(people(number))]
    return {
        "X": np.concatenate([signal for _, (*_, signal) in found]).astype(np.float16),
        "condition": np.array([condition for _, (_, conditions, _) in found for condition in conditions]),
        "subject": np.array([name for name, (numbers, *_) in found for _ in numbers]),
        "trial": np.array([trial for _, (numbers, *_) in found for trial in numbers]),
        "channels": np.array(CHANNELS),
        "sfreq": np.array(256.0),
    }


def write(root: Path, number: int = 4, **options: Any) -> Path:
    """Write the archive below ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(root / ARCHIVE, **archive(number, **options))
    return root


def text(person: str, trial: int, condition: str, signal: Array) -> str:
    """One text file."""
    comma = "," if condition.startswith("S2 nomatch") else " ,"
    lines = [
        f"# {person}.rd",
        "# 120 trials, 64 chans, 416 samples 368 post_stim samples",
        "# 3.906000 msecs uV",
        f"# {condition}{comma} trial {trial}",
    ]
    for place, (name, series) in enumerate(zip(CHANNELS, signal, strict=True)):
        lines.append(f"# {name} chan {place}")
        lines += [f"{trial} {name} {sample} {value:.3f}" for sample, value in enumerate(series)]
    return "\n".join(lines) + "\n"


def write_text(root: Path, number: int = 2, *, compress: bool = True, **options: Any) -> Path:
    """Write a folder for each person with a text file a trial below ``root / "raw"``."""
    for i, person in enumerate(people(number)):
        folder = root / "raw" / person
        folder.mkdir(parents=True, exist_ok=True)
        for trial, condition, signal in zip(*trials(i, **options), strict=True):
            content = text(person, trial, condition, signal).encode()
            path = folder / f"{person}.rd.{trial:03d}{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(content) if compress else content)
    return root
