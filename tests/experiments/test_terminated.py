"""A run that a scheduler ends (SIGTERM) says so by its status, and nothing goes on as if it were finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.experiments.launching import CONFIGS, launch, write_callback

TERMINATED = 128 + 15
SOURCE = """
import os
import signal
from lightning import Callback


class Terminate(Callback):
    def on_train_batch_end(self, *args) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
"""
ARGUMENTS = (
    "--config=terminate.yaml",
    '--data.init_args.phantom={"people": 2, "train_images": 1, "test_images": 1, "train_repetitions": 1, '
    '"test_repetitions": 1, "sessions": 1}',
    "--data.init_args.embedding={model: pixels, image_size: 8, target: pca(8)}",
    "--data.init_args.loader.batch_size=8",
    "--trainer.max_epochs=3",
)
CPU, STAGE = f"{CONFIGS}/trainer/cpu.yaml", f"{CONFIGS}/stage/contrastive.yaml"
DATA = f"{CONFIGS}/data/phantom.yaml"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_callback(tmp_path, SOURCE, "Terminate")
    return tmp_path


def test_a_terminated_fit_fails(place: Path) -> None:
    words = ["fit", f"--config={CPU}", f"--config={STAGE}", f"--data={DATA}", *ARGUMENTS]
    launch(place, ["-m", "experiments", *words], status=TERMINATED)
    assert not list(place.rglob("final.ckpt"))


def test_a_terminated_grid_does_not_go_on(place: Path) -> None:
    words = ["grid", f"--stage=[{STAGE}]", f"--data=[{DATA}]", f"--trainer={CPU}", "--", *ARGUMENTS]
    launch(place, ["-m", "experiments", *words], status=TERMINATED)
    assert not list(place.rglob("sub-02"))
    assert not list(place.rglob("final.ckpt"))
