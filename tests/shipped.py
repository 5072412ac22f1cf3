"""The shipped configuration files, and what ``make`` runs with them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
ALL = sorted(path for pattern in ("*.yaml", "*.yml") for path in CONFIGS.rglob(pattern))
CLIP = "runs/phantom_pictures/all/clip/default/open_clip"
VARIABLES = ("DATA", "SUBJECT", "TRAINER", "CLUSTER", "ARGS", "RESUME", "OVERWRITE", "STAGE", "COUNT")


def files(kind: str) -> list[Path]:
    return [path for path in ALL if path.parent == CONFIGS / kind]


def make(*words: str) -> str:
    """What ``make -n`` would run; ``.venv`` counts as there, and variables of this process do not reach it."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", *VARIABLES)
    }
    result = subprocess.run(
        ["make", "--no-print-directory", "-n", "-o", ".venv/.done", "-o", CLIP, *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
