"""CLIP models that are small enough for a test."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
from open_clip import factory


@contextmanager
def known_to_open_clip(file: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """Write the sizes of a model to a file, whose name without ending is the model's until the end."""
    file.write_text(json.dumps(config))
    open_clip.add_model_config(file)
    yield file.stem
    factory._MODEL_CONFIG_PATHS.remove(file)
    factory._rescan_model_configs()
