"""OpenClipFolder: a trained CLIP in the format that open_clip loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from safetensors.torch import save_file


class OpenClipFolder(Callback):
    """Writes ``<run>/open_clip/`` after a finished fit: ``open_clip_config.json``, ``open_clip_model.safetensors``.

    ``open_clip.create_model_and_transforms("local-dir:<run>/open_clip")`` loads it, and so does a data file with
    ``embedding.model: open_clip:local-dir:<run>/open_clip``. The weights are those of ``final.ckpt``.
    """

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the folder; by now ``final.ckpt`` has its name."""
        final = Path(trainer.default_root_dir) / "final.ckpt"
        if stage != "fit" or not trainer.is_global_zero or trainer.fast_dev_run or not final.exists():  # type: ignore[attr-defined]
            return
        module: Any = pl_module
        state = torch.load(final, map_location="cpu", weights_only=True)["state_dict"]
        config, weights = module.open_clip_folder(state)
        folder = final.with_name("open_clip")
        partial = final.with_name(".open_clip.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        (partial / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(
            {name: value.contiguous() for name, value in weights.items()}, partial / "open_clip_model.safetensors"
        )
        (partial / "open_clip_model.safetensors").chmod(0o644)  # the library writes files only their owner can read
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
