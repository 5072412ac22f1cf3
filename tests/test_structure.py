"""Imports go one way, and every class that a configuration may name is exported."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("lightning_modules", "datamodules", "callbacks")
ALLOWED = {
    "contracts.py": set(),
    "lightning_modules": {"lightning_modules", "contracts"},
    "datamodules": {"datamodules", "contracts"},
    "callbacks": {"callbacks", "contracts"},
    "experiments": {"experiments", *ROOMS, "contracts"},
}
OURS = {"contracts", "experiments", "tests", *ROOMS}


def imported(file: Path) -> set[str]:
    """First parts of the modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


FILES = sorted(
    file for place in ALLOWED for file in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way(file: Path) -> None:
    place = file.relative_to(ROOT).parts[0]
    assert imported(file) & OURS <= ALLOWED[place], f"{file} reaches into another room"


def test_metrics_know_neither_lightning_nor_files() -> None:
    for file in (ROOT / "callbacks" / "metrics").glob("*.py"):
        assert not imported(file) & {"lightning", "pathlib", "wandb"}, file


def test_everything_public_is_exported() -> None:
    import callbacks
    import datamodules
    import lightning_modules

    for room in (callbacks, datamodules, lightning_modules):
        assert sorted(room.__all__) == room.__all__ or set(room.__all__), room
        for file in Path(room.__file__).parent.glob("*.py"):
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    assert node.name in room.__all__, f"{file.name}: {node.name} is not exported by {room.__name__}"


def test_python_files_stay_readable() -> None:
    long = {str(f.relative_to(ROOT)): n for f in FILES if (n := len(f.read_text().splitlines())) > 450}
    assert not long, f"two ideas may share a room: {long}"
