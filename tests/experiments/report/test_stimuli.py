"""Cases of real run folders: ranks against values worked by hand and against the scores of the same run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks import Identification, Part, Pictures, average, save_part, write_scores
from callbacks.picture_record import save_pictures
from contracts import NO_LABEL, Gallery, GalleryKind, ScoreContext
from experiments.report import stimuli
from experiments.report.page import Case, Note, Section, StimulusGallery
from experiments.report.runs import Run
from tests.experiments.report import pages
from tests.tiny import SEVERAL, SHIPPED_SIZE


def part(
    queries: dict[str, torch.Tensor],
    gallery: torch.Tensor,
    *,
    stimulus: list[int] | None = None,
    labels: list[int] | None = None,
    kind: GalleryKind = "image",
    classes: tuple[str, ...] = ("cat", "dog"),
    layout: dict[str, Any] | None = None,
    name: str = "test",
) -> Part:
    """Outputs of people who saw stimuli 0, 1 ... in turn, or those given, and one gallery."""
    numbers = torch.arange(len(gallery))
    given = torch.tensor([i % len(classes) for i in range(len(gallery))] if labels is None else labels)
    galleries = {
        name: Gallery(gallery, numbers, given, kind),
        "all": Gallery(gallery, numbers, given, "extra"),
    }
    outputs = {}
    for person, values in queries.items():
        seen = torch.tensor(stimulus) if stimulus is not None else torch.arange(len(values))
        outputs[person] = {
            "brain_embedding": values,
            "stimulus": seen,
            "label": given[seen],
            "row": torch.arange(len(values)) + 100,
            "subject": torch.zeros(len(values), dtype=torch.int64),
        }
    context = ScoreContext(
        galleries, SHIPPED_SIZE | {"classes": list(classes), "subjects": list(queries)} | (layout or {})
    )  # type: ignore[arg-type]
    return Part(outputs, context)


def run_folder(
    root: Path, made: Part, pictures: Pictures | None = None, where: str = "phantom/all/ridge_direct/demo"
) -> Run:
    folder = root / where
    save_part(folder / "outputs.safetensors", made)
    if pictures is not None:
        save_pictures(folder / "pictures.safetensors", pictures)
    return Run(folder)


def random_part(people: int = 2, n: int = 12, d: int = 6, **options: Any) -> Part:
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(n, d, generator=generator)
    queries = {f"{i + 1:02d}": gallery + 1.5 * torch.randn(n, d, generator=generator) for i in range(people)}
    return part(queries, gallery, **options)


def gallery_in(section: Section | None) -> StimulusGallery:
    assert section is not None
    (found,) = [each for each in section.parts if isinstance(each, StimulusGallery)]
    return found


def notes_in(section: Section | None) -> str:
    assert section is not None
    return "\n".join(each.text for each in section.parts if isinstance(each, Note))


def two_way(case: Case) -> float:
    return 1 - (case.rank - 1) / (case.among - 1)


def test_ranks_of_a_case_worked_by_hand(tmp_path: Path) -> None:
    # cosines with (1, 0): 1, .8, .6, 0, -1; items 1 and 4 tie
    gallery = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0], [0.8, -0.6], [-1.0, 0.0]])
    queries = torch.tensor([[1.0, 0.0]] * 4)
    made = part({"01": queries}, gallery, stimulus=[0, 1, 3, 5])
    cases = gallery_in(stimuli.section([run_folder(tmp_path, made)])).cases
    # the best; one of two at places 2 and 3; behind four; behind five
    assert [case.rank for case in cases] == [1, 2.5, 5, 6]
    assert {case.among for case in cases} == {6}
    assert [[each.right for each in case.retrieved] for case in cases] == [
        [True, False, False, False, False],
        [False, True, False, False, False],
        [False, False, False, False, True],
        [False] * 5,
    ]
    assert [each.name for each in cases[0].retrieved] == [f"stimulus {i}" for i in (0, 1, 4, 2, 3)]
    assert [case.label for case in cases] == ["cat", "dog", "dog", "dog"]


@pytest.mark.parametrize("similarity", ["cosine", "pearson"])
def test_ranks_are_those_of_the_scores(tmp_path: Path, similarity: Any) -> None:
    made = random_part()
    run = run_folder(tmp_path, made)
    scores = Identification(similarity=similarity, permutations=0, bootstraps=0).in_tables([made], resample=False)
    write_scores(run.folder / "scores.json", [*scores, *average(scores)])
    shown = gallery_in(stimuli.section([run]))
    assert "by chance with probability 0.417" in shown.caption  # 5 of 12
    for person in ("01", "02"):
        mine = [case for case in shown.cases if case.subject == person]
        known = {score.name: score.value for score in run.scores if score.subject == person}
        assert np.mean([two_way(case) for case in mine]) == pytest.approx(known["two_way"], abs=1e-12)
        assert np.mean([case.retrieved[0].right for case in mine]) == pytest.approx(known["top_1"])
        assert np.mean([any(each.right for each in case.retrieved) for case in mine]) == pytest.approx(known["top_5"])


def test_pictures_are_shared_and_found_by_stimulus_and_row(tmp_path: Path) -> None:
    seen = {i: pages.photograph(i) for i in range(12)}
    generated = {"01": {100 + i: [pages.photograph(20 + i), pages.photograph(40 + i)] for i in range(12)}}
    pictures = Pictures({i: f"picture-{i}" for i in range(12)}, seen, generated)
    runs = [run_folder(tmp_path, random_part(), pictures, f"phantom/all/{stage}/demo") for stage in ("a", "b")]
    shown = gallery_in(stimuli.section(runs))
    assert len(shown.cases) == 2 * 2 * 12
    assert len(shown.pictures) == 12 + 24
    for case in shown.cases:
        number = int(case.stimulus.removeprefix("picture-"))
        assert shown.pictures[case.seen] == seen[number]
        right = [each for each in case.retrieved if each.right]
        assert all((each.picture, each.name, each.label) == (case.seen, case.stimulus, case.label) for each in right)
        expected = generated["01"][100 + number] if case.subject == "01" else []
        assert [shown.pictures[key] for key in case.generated] == expected
    assert {case.run for case in shown.cases} == {"phantom a demo", "phantom b demo"}
    assert "test again" not in notes_in(stimuli.section(runs))


def test_classes_are_retrieved_by_name(tmp_path: Path) -> None:
    classes = ("face", "house", "cat", "shoe")
    made = part(
        {"01": torch.eye(4)[[0, 2]] + 0.1},
        torch.eye(4),
        stimulus=[0, 2],
        labels=[0, 1, 2, 3],
        classes=classes,
        kind="class_centre",
    )
    run = run_folder(tmp_path, made, Pictures({i: f"block {i}" for i in range(4)}))
    section = stimuli.section([run])
    cases = gallery_in(section).cases
    assert [case.stimulus for case in cases] == ["block 0", "block 2"]
    assert [case.retrieved[0].name for case in cases] == ["face", "cat"]
    assert all(case.retrieved[0].right and not case.retrieved[0].picture for case in cases)
    assert "Names in place of pictures" in notes_in(section)


def test_folds_are_ranked_among_the_pictures_of_all(tmp_path: Path) -> None:
    whole = random_part(1, 6)
    outputs = whole.outputs["01"]
    parts = []
    for fold in range(6):
        shown = whole.context.galleries["all"]
        test = Gallery(shown.embedding[[fold]], shown.stimulus[[fold]], shown.label[[fold]], "image")
        layout = whole.context.layout | {"fold": fold, "folds": 6}
        context = ScoreContext({"test": test, "all": shown}, layout)  # type: ignore[arg-type]
        parts.append(Part({"01": {name: value[[fold]] for name, value in outputs.items()}}, context))
    where = "miyawaki2008/sub-01/ridge_direct/demo_fold-{:02d}"
    runs = [run_folder(tmp_path, made, None, where.format(fold)) for fold, made in enumerate(parts)]
    cases = gallery_in(stimuli.section(runs)).cases
    alone = gallery_in(stimuli.section([run_folder(tmp_path, whole)])).cases
    assert [(case.rank, case.among) for case in cases] == [(case.rank, case.among) for case in alone]
    assert {case.run for case in cases} == {"miyawaki2008 ridge_direct demo"}
    # one fold of a single picture: nothing to retrieve it among
    assert "at least 2 items" in notes_in(stimuli.section(runs[:1]))


def test_people_of_several_data_sets_have_the_gallery_of_their_own(tmp_path: Path) -> None:
    layout = SEVERAL | {"subjects": ["eeg-01"], "classes": ["cat", "dog"]}
    made = random_part(1, 8, layout=layout, name="eeg.test")
    made = Part({"eeg-01": made.outputs["01"]}, made.context)
    cases = gallery_in(stimuli.section([run_folder(tmp_path, made)])).cases
    assert {case.among for case in cases} == {8}
    assert {case.subject for case in cases} == {"eeg-01"}


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    run = run_folder(tmp_path, random_part())
    assert "no pictures.safetensors" in notes_in(stimuli.section([run]))
    (run.folder / "outputs.safetensors").unlink()
    assert "No outputs were kept" in notes_in(stimuli.section([Run(run.folder)]))
    made = random_part()
    for output in made.outputs.values():
        del output["brain_embedding"]  # type: ignore[attr-defined]
    assert stimuli.section([run_folder(tmp_path / "mae", made)]) is None


def test_generated_pictures_are_shown_where_nothing_is_retrieved(tmp_path: Path) -> None:
    made = random_part(1)
    del made.outputs["01"]["brain_embedding"]
    pictures = Pictures({}, {}, {"01": {103: [pages.photograph(0)]}})
    cases = gallery_in(stimuli.section([run_folder(tmp_path, made, pictures)])).cases
    assert [len(case.generated) for case in cases] == [0, 0, 0, 1, *[0] * 8]
    assert all(case.among == 0 and not case.retrieved for case in cases)


def test_stimuli_without_class_have_none(tmp_path: Path) -> None:
    cases = gallery_in(stimuli.section([run_folder(tmp_path, random_part(labels=[NO_LABEL] * 12))])).cases
    assert {case.label for case in cases} == {""}


def test_runs_that_differ_in_people_alone_keep_different_names(tmp_path: Path) -> None:
    places = ("phantom/all/ridge_direct/demo", "phantom/sub-01/ridge_direct/demo")
    runs = [run_folder(tmp_path, random_part(1), None, where) for where in places]
    cases = gallery_in(stimuli.section(runs)).cases
    assert {case.run for case in cases} == {"phantom all ridge_direct demo", "phantom sub-01 ridge_direct demo"}


def test_too_many_pictures_are_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {i: pages.photograph(i) for i in range(11)} | {11: pages.photograph(11, 10)}
    pictures = Pictures({i: f"picture-{i}" for i in range(12)}, seen)
    run = run_folder(tmp_path, random_part(), pictures)
    monkeypatch.setattr(stimuli, "_PICTURE_BYTES", sum(map(len, seen.values())) - 1)
    section = stimuli.section([run])
    shown = gallery_in(section)
    sizes = {case.stimulus: Image.open(io.BytesIO(shown.pictures[case.seen])).size for case in shown.cases}
    assert sizes["picture-0"] == (64, 64)
    # what is small already stays as it is
    assert shown.pictures[next(case.seen for case in shown.cases if case.stimulus == "picture-11")] == seen[11]
    assert "reduced to 64 pixels" in notes_in(section)
    monkeypatch.setattr(stimuli, "_PICTURE_BYTES", 1)
    assert "reduced to 32 pixels" in notes_in(stimuli.section([run]))
