"""One and two processes, with people of uneven numbers of rows and padding, give the same scores and panels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from callbacks import FrechetInception, PictureNetwork, PicturePanels, PictureScores, Reliability, RunRecord, load_part
from contracts import Output, ScoreContext
from tests.callbacks.pictures import Net, Recorded, Replay, context, decoded, grey_mean, output, photographs
from tests.lightning_modules.fitting import short_trainer
from tests.lightning_modules.processes import both_ways


def everything() -> tuple[list[Output], ScoreContext]:
    """Two people: 11 rows of 11 pictures and 9 rows of 3, whose rows come after those of the first."""
    people = []
    for person, (number, trials) in enumerate(((11, 1), (3, 3))):
        seen = photographs(number, side=14)
        made = decoded(seen.repeat_interleave(trials, dim=0), 2, noise=0.85, seed=person)
        random = torch.Generator().manual_seed(person)
        more = {
            "confidence": torch.randn(len(made), 2, generator=random),
            "noise.generated": decoded(seen.repeat_interleave(trials, dim=0), 2, noise=1.0, seed=5),
            "noise.confidence": torch.randn(len(made), 2, generator=random) - 3,
            "brain_embedding": grey_mean(made[:, 0]),
            "image_embedding": grey_mean(seen.repeat_interleave(trials, dim=0)),
        }
        one = output(seen, made, trials=trials, person=person, **more)
        one["row"] += 11 * person
        people.append(one)
    return people, context(people=("01", "02"), embed=grey_mean)


def scored(folder: Path, devices: int) -> None:
    torch.set_num_threads(1)
    people, about = everything()
    net = PictureNetwork(Net(), scores=["two_way", "distance"], n_way=[(3, 1)])
    callbacks = [
        PictureScores(networks=[net], permutations=99, bootstraps=99),
        FrechetInception(network=PictureNetwork(Net())),
        Reliability(permutations=99, bootstraps=99),
        PicturePanels(rows=4, side=20),
        RunRecord(table=False),
    ]
    names = frozenset(people[0])
    options: dict[str, Any] = {"strategy": "ddp", "devices": devices} if devices > 1 else {}
    run = short_trainer(folder, *callbacks, **options)
    for command in (run.validate, run.test):
        command(Replay(about.layout, names), datamodule=Recorded(people, about, batch_size=2), verbose=False)


@pytest.mark.filterwarnings("ignore:FID of sub")
def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    one, two = both_ways(scored, tmp_path)
    for name in ("scores.json", "scores_validation.json"):
        ours, theirs = (json.loads((folder / name).read_text()) for folder in (two, one))
        assert len(ours) == len(theirs) > 20
        for mine, reference in zip(ours, theirs, strict=True):
            for entry, value in reference.items():
                wanted = pytest.approx(value, abs=1e-5) if isinstance(value, float) else value
                assert mine[entry] == wanted, f"{name}: {reference['name']} of {reference['subject']}: {entry}"
    parts = [load_part(folder / "outputs.safetensors") for folder in (one, two)]
    for person, outputs in parts[0].outputs.items():
        assert outputs.keys() == parts[1].outputs[person].keys()
        for name, value in outputs.items():
            torch.testing.assert_close(parts[1].outputs[person][name], value, msg=lambda text, name=name: name + text)
    for name in ("test_sub-01.png", "test_sub-02.png"):
        panels = []
        for folder in (one, two):
            with Image.open(folder / "pictures" / name) as panel:
                panels.append(panel.tobytes())
        assert panels[0] == panels[1], name
