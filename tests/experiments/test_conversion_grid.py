"""Several modalities in a grid: a stage made from an alignment, its scores, and published ones beside them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from callbacks import CrossModal, load_part, read_scores
from tests.experiments.launching import CONFIGS, Neuroalign

TINY = {
    "people": 2,
    "train_images": 2,
    "test_images": 1,
    "train_repetitions": 1,
    "test_repetitions": 1,
    "sessions": 1,
}
FILES: dict[str, Any] = {
    # the parts are the files beside it
    "data/both": {
        "class_path": "datamodules.MultiModal",
        "init_args": {
            "parts": {"eeg": "eeg.yaml", "fmri": "fmri.yaml"},
            "embedding": {"model": "pixels", "image_size": 4, "target": "pca(8)"},
            "validation": 0.3,
            "loader": {"batch_size": 32},
        },
    },
    **{
        f"data/{name}": {
            "class_path": f"datamodules.{kind}",
            "init_args": {"phantom": TINY, "loader": {"batch_size": 16}},
        }
        for name, kind in (("eeg", "PhantomEEG"), ("fmri", "Phantom"))
    },
    "recipe/align": {
        "model": {
            "class_path": "lightning_modules.ContrastiveAlignment",
            "init_args": {"encoder": "lightning_modules.LinearEncoder"},
        },
        "trainer": {"max_epochs": 1},
    },
    "stage/conversion": {
        "model": {
            "class_path": "lightning_modules.CrossModalConversion",
            "init_args": {"alignment": "run:align", "alpha": 1.0},
        },
        "trainer": {
            "max_epochs": 1,
            "callbacks+": [
                {"class_path": "callbacks.CrossModal", "init_args": {"permutations": 9, "bootstraps": 9}},
            ],
        },
    },
    "paper": {
        "name": "paper",
        # what stands in brackets is no markup
        "source": "Nobody 2020 [eeg], [/b]",
        "scores": {"eeg to fmri": {"two_way": 0.123, "normalised_two_way": 0.987}, "eeg to image": {"top_1": 0.4567}},
    },
}
RUN = Path("runs/both/all/conversion/default")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all commands are run; data are converted once."""
    folder = tmp_path_factory.mktemp("grid")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture(autouse=True)
def without_runs(folder: Path) -> None:
    """A test begins without runs."""
    shutil.rmtree(folder / "runs", ignore_errors=True)


def grid(*options: str, stage: str = "stage/conversion.yaml", data: str = "data/both.yaml") -> list[str]:
    return ["grid", f"--stage=[{stage}]", f"--data=[{data}]", *options]


def fits(printed: str) -> list[str]:
    """Stages that a grid has looked at, in order."""
    return [Path(line).parts[-2] for line in re.findall(r"^--- (\S+)$", printed, re.MULTILINE)]


def rows(printed: str, title: str) -> list[list[str]]:
    """Cells of a printed table, without ends of lines."""
    lines = printed[printed.index(title) :].splitlines()[1:]
    table = [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines]
    last = next(i for i, line in enumerate(lines) if line.startswith("└"))
    return [cells for cells, line in zip(table[:last], lines, strict=False) if line[0] in "│┃"]


def test_modalities_are_aligned_converted_and_scored(neuroalign: Neuroalign) -> None:
    printed = neuroalign(*grid("--reference=paper.yaml"))
    assert fits(printed) == ["align", "conversion"]
    # pictures and recordings of each other's modality
    scores = read_scores(RUN / "scores.json")
    assert {score.table for score in scores} == {"decoding and encoding", "conversion"}
    assert {score.subject for score in scores} == {"eeg", "fmri"}
    assert read_scores(RUN / "grid.json") == scores
    # what is read back is what evaluating the outputs gives; signals are predicted by the stage alone
    part = load_part(RUN / "outputs.safetensors")
    again = CrossModal(permutations=9, bootstraps=9).in_tables([part])
    assert again == [score for score in scores if "pearson" not in score.name]
    assert len(again) < len(scores)
    # tables of their own, each beside what is published
    everything: dict[str, list[list[str]]] = {}
    for title in ("decoding and encoding", "conversion"):
        heading, *body = rows(printed, f"{title}, side by side")
        everything[title] = body
        assert heading == ["data", "subject", "score", "gallery", "conversion", "chance", "ceiling", "paper"]
        assert len(body) == len([score for score in scores if score.table == title])
        assert all(re.fullmatch(r"-?\d\.\d{3} \(-?\d\.\d{3} \.\. -?\d\.\d{3}\)", cells[4]) for cells in body)
    published = {
        (cells[3].partition(" (")[0], cells[2]): cells[7]
        for body in everything.values()
        for cells in body
        if cells[7] != "-"
    }
    assert published == {
        ("eeg to fmri", "two_way"): "0.123",
        ("eeg to fmri", "normalised_two_way"): "0.987",
        ("eeg to image", "top_1"): "0.457",
    }
    assert printed.count("paper: Nobody 2020 [eeg], [/b]") == 2
    # a finished grid is tested again, not trained
    finals = [RUN / "final.ckpt", Path("runs/both/all/align/default/final.ckpt")]
    before = [file.stat().st_mtime_ns for file in finals]
    again_printed = neuroalign(*grid("--reference=paper.yaml"))
    assert [file.stat().st_mtime_ns for file in finals] == before
    assert rows(again_printed, "conversion, side by side") == rows(printed, "conversion, side by side")


def test_without_published_scores_one_stage_is_compared_with_nothing(neuroalign: Neuroalign) -> None:
    printed = neuroalign(*grid())
    assert "side by side" not in printed
    assert "eeg to fmri by regression" in printed


def test_means_of_people_stand_once(neuroalign: Neuroalign) -> None:
    """A stage for single data sets takes the people of all parts for those of one."""
    neuroalign(*grid(stage=f"{CONFIGS}/stage/ridge_direct.yaml"), "--", "--model.init_args.alpha=10")
    run = Path("runs/both/all/ridge_direct/default")
    found = [(score.subject, score.name, score.gallery) for score in read_scores(run / "grid.json")]
    assert len(set(found)) == len(found)
    assert len({subject for subject, *_ in found} - {"mean"}) == 4
    # a ceiling is known of the fMRI alone, and so is what is relative to it
    assert {tuple(rest) for subject, *rest in found if subject == "mean"} == {tuple(rest) for _, *rest in found}
    one, other = (sorted(json.loads((run / name).read_text()), key=str) for name in ("grid.json", "scores.json"))
    assert one == other


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ('--subjects=["01"]', "--subjects chooses people of one data set of recordings, not of multi_modal"),
        ("--folds=[1]", "no folds [1] in both: it has 1, counted from 0; change --folds"),
        ("--reference=nothing.yaml", "cannot read published scores: [Errno 2] No such file or directory"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    neuroalign: Neuroalign, option: str, message: str
) -> None:
    printed = neuroalign(*grid(option), status=2)
    assert message in printed
    assert len(printed.strip().splitlines()) == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "- a list",
        "{name: paper, source: nobody}",
        "{name: paper, scores: {}}",
        "{name: paper, source: nobody, scores: [1]}",
        "{name: paper, source: nobody, scores: {eeg to image: 0.5}}",
        "{name: paper, source: nobody, scores: {eeg to image: {two_way: high}}}",
        "{name: paper, source: nobody, scores: {eeg to image: {two_way: }}}",
        "{name: [unclosed",
    ],
)
def test_published_scores_of_another_form_are_refused(neuroalign: Neuroalign, tmp_path: Path, content: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    printed = neuroalign(*grid(f"--reference={file}"), status=2)
    assert f"{file}: expected name, source, and scores by gallery and name, found " in printed
    assert len(printed.strip().splitlines()) == 1
    assert not Path("runs").exists()


def test_the_shipped_reference_names_scores_that_there_are(neuroalign: Neuroalign) -> None:
    for file in (CONFIGS / "reference").glob("*.yaml"):
        values = yaml.safe_load(file.read_text())["scores"]
        for gallery, scores in values.items():
            assert re.fullmatch(r"(eeg|meg|fmri) to (image|eeg|meg|fmri)|image to (eeg|meg|fmri)", gallery)
            known = {"two_way", "published_two_way", "normalised_two_way", "class_top_1", "class_top_5"}
            assert scores.keys() <= known
            assert all(0 < value < 1 for value in scores.values())
