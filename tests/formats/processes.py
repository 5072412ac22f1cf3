"""What a test starts in a process of its own: ``python -m tests.formats.processes {killed,together} folder name``."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules import EmbeddingOptions, Record, SampleOptions, Trials
from tests.formats.recording import Recording, experiment


def recording(folder: Path, records: Any) -> Recording:
    return Recording(
        str(folder / "raw"),
        records,
        stores=str(folder / "stores"),
        embedding=EmbeddingOptions(image_size=6),
        samples=SampleOptions(average_train=2),
    )


def killed() -> Iterator[Record]:
    """Kill this process, as a scheduler would, after some trials of the second person."""
    for number, record in enumerate(experiment()):
        yield record
        if isinstance(record, Trials) and number > 4:
            os.kill(os.getpid(), signal.SIGKILL)


def slow() -> Iterator[Record]:
    for record in experiment():
        time.sleep(0.1)
        yield record


def main(action: str, folder: Path, name: str) -> None:
    if action == "killed":
        recording(folder, killed()).store  # noqa: B018
        return
    (folder / f"ready-{name}").touch()
    while len(list(folder.glob("ready-*"))) < 2:
        time.sleep(0.01)
    data = recording(folder, slow())
    image = data.store.image

    def counted(number: int) -> Any:
        with (folder / "images.txt").open("a") as log:
            log.write(f"{number}\n")
        time.sleep(0.01)
        return image(number)

    data.store.image = counted  # type: ignore[method-assign]
    print(data.layout["train_samples"], float(data.targets.sum()))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
