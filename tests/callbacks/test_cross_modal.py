"""CrossModal: every score of made-up recordings of several modalities against plain loops."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations as ordered_pairs
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import Tensor

from callbacks import CrossModal, Part, RunRecord, load_part, read_scores
from callbacks.score import log_names
from contracts import ContractError, Gallery, Score
from tests.callbacks.modalities import (
    FEW,
    PARTLY,
    SAME,
    Loops,
    Modalities,
    evaluated,
    of_four,
    of_its_own,
    of_none,
    of_some,
    world,
)
from tests.callbacks.pictures import Recorded, Replay
from tests.lightning_modules.fitting import short_trainer
from tests.lightning_modules.processes import both_ways


@pytest.mark.parametrize("label", [of_four, of_its_own, of_none, of_some])
def test_retrievals_are_those_of_plain_loops(label: Callable[[Tensor], Tensor]) -> None:
    part = world(label=label)
    found, loops = evaluated(part), Loops(part)
    classes = label in (of_four, of_its_own)
    checked = set()

    def check(gallery: str, name: str, expected: float) -> None:
        assert found[gallery, name].value == pytest.approx(expected, abs=1e-6), (gallery, name)
        checked.add((gallery, name))

    for name in PARTLY:
        for how, key in (("", "brain_embedding"), (" by regression", "decoded_embedding")):
            for score, expected in loops.decoding(name, key).items():
                if classes or not score.startswith("class_"):
                    check(f"{name} to image{how}", score, expected)
        for how, key in (("", "image_embedding"), (" by regression", "encoded_embedding")):
            check(f"image to {name}{how}", "two_way", loops.encoding(name, key))
    for source, target in ordered_pairs(PARTLY, 2):
        bases = {"": "brain_embedding", " by regression": "decoded_embedding"}
        keys = {"": "brain_embedding", " by regression": f"{target}.brain_embedding"}
        for how, key in keys.items():
            raw, base = loops.conversion(source, target, key), loops.decoding(target, bases[how])["two_way"]
            gallery = f"{source} to {target}{how}"
            check(gallery, "two_way", raw)
            check(gallery, "normalised_two_way", raw / base)
            assert found[gallery, "normalised_two_way"].chance == pytest.approx(0.5 / base)
            assert base > 0.5
            check(gallery, "chance_corrected_two_way", (raw - 0.5) / (base - 0.5))
    left = {key for key in found if key not in checked}
    assert {name for _, name in left} <= {"published_two_way", "pearson_mean", "class_pearson_mean"}
    assert len([key for key in left if key[1] == "published_two_way"]) == 2 * (3 + 3 + 6)


def test_what_is_printed_with_a_score() -> None:
    found = evaluated(world())
    shown = {gallery: score for (gallery, name), score in found.items() if name == "two_way"}
    # recordings, not people; pictures once each
    assert {score.gallery for score in shown.values() if "regression" not in score.gallery} == {
        *("eeg to image (14)", "meg to image (9)", "fmri to image (14)"),
        *("image to eeg (41)", "image to meg (11)", "image to fmri (29)"),
        *("eeg to meg (11)", "eeg to fmri (29)", "meg to eeg (41)"),
        *("meg to fmri (29)", "fmri to eeg (41)", "fmri to meg (11)"),
    }
    assert shown["image to eeg"].n == 14, "each picture asks once"
    assert shown["eeg to image"].n == shown["eeg to meg"].n == 41
    assert shown["eeg to meg"].stimuli == 14
    for (gallery, name), score in found.items():
        ends = gallery.removesuffix(" by regression").split(" to ")
        assert score.subject == next(end for end in ends if end != "image")
        assert score.table == ("decoding and encoding" if "image" in ends else "conversion")
        assert score.similarity == ("" if "pearson" in name else "cosine")
    names = log_names(list(found.values()), "test")
    assert len(names) == len(found), "no score takes the place of another one"


@pytest.mark.parametrize("label", [of_four, of_none])
def test_signals_are_those_of_numpy(label: Callable[[Tensor], Tensor]) -> None:
    part = world(label=label)
    found, loops = evaluated(part), Loops(part)
    for shared in (3, 10, 13):
        found = evaluated(part, shared=shared)
        signals = {gallery: (name, score) for (gallery, name), score in found.items() if "pearson" in name}
        expected = {}
        for source, target in (*ordered_pairs(PARTLY, 2), *((name, name) for name in PARTLY)):
            # of encoding, the pictures are those of the target itself
            title = f"image to {target} by regression" if source == target else f"{source} to {target} by regression"
            point = "image_embedding" if source == target else "decoded_embedding"
            pictures = {("eeg", "eeg"): 11, ("meg", "meg"): 9, ("fmri", "fmri"): 14, ("fmri", "eeg"): 10}
            number = pictures.get((source, target), 10 if {source, target} == {"eeg", "fmri"} else 0)
            if number >= shared:
                expected[title] = ("pearson_mean", loops.pearson(source, target, point, "stimulus"), number)
            elif label is of_four and shared <= 4:
                expected[title] = ("class_pearson_mean", loops.pearson(source, target, point, "label"), 4)
        assert signals.keys() == expected.keys(), shared
        for title, (name, value, number) in expected.items():
            assert signals[title][0] == name
            score = signals[title][1]
            assert score.value == pytest.approx(value, abs=1e-5)
            assert (score.n, score.stimuli, score.chance) == (number, number, 0.0)


def test_an_entry_that_is_missing_leaves_its_scores_out() -> None:
    part = world()
    plain = evaluated(world(regressed=False))
    assert plain.keys() == {key for key in evaluated(part) if "regression" not in key[0]}
    for person in part.outputs.values():
        del person["signal"]
    silent = evaluated(part)
    assert not any("pearson" in name for _, name in silent)
    assert any("regression" in gallery for gallery, _ in silent)
    # as when the folds of a grid are joined from files
    kept = world()
    without = evaluated(replace(kept, context=replace(kept.context, encode={})))
    assert without.keys() == silent.keys()
    # of one person it is not known what to expect
    encode = {name: known for name, known in kept.context.encode.items() if name != "eeg-02"}
    partly = evaluated(replace(kept, context=replace(kept.context, encode=encode)))
    assert {gallery for gallery, name in partly if "pearson" in name} == {
        *("image to fmri by regression", "eeg to fmri by regression")
    }


def test_a_modality_without_recordings_is_left_out() -> None:
    part = world()
    outputs = {name: output for name, output in part.outputs.items() if not name.startswith("meg")}
    context = replace(part.context, galleries={k: v for k, v in part.context.galleries.items() if k != "meg.test"})
    found = evaluated(Part(outputs, context))
    everything = evaluated(part)
    assert found.keys() == {key for key in everything if "meg" not in key[0]}
    for key, score in found.items():
        assert score.value == everything[key].value


def test_perfect_embeddings_are_told_apart_everywhere() -> None:
    found = evaluated(world(SAME, noise=0.0), resample=True)
    for (gallery, name), score in found.items():
        if name != "published_two_way":
            assert score.value == pytest.approx(1.0, abs=1e-6), (gallery, name)
            assert score.high == pytest.approx(1.0, abs=1e-6)
        else:
            # trials that meet their own picture count as wrong
            assert score.value >= 1 - 3 / 30 - 1e-9, (gallery, name)
        assert score.chance < 0.8
        if score.p_value is not None:
            assert score.p_value == 1 / 20


def test_noise_is_at_chance_and_intervals_say_so() -> None:
    inside: dict[str, list[bool]] = {}
    for seed in range(6):
        for (gallery, name), score in evaluated(world(SAME, noise=1e6, seed=seed), resample=True).items():
            if gallery.startswith("image") and gallery.endswith("regression"):
                continue  # this query is made of the picture, however the recordings are
            assert score.low is not None
            inside.setdefault(name, []).append(score.low - 1e-9 <= score.chance <= score.high + 1e-9)
    assert {"two_way", "published_two_way", "normalised_two_way", "top_1", "class_top_1", "rank_two_way"} < set(inside)
    for name, values in inside.items():
        assert np.mean(values) >= 0.75, name


@pytest.mark.parametrize("modalities", [PARTLY, SAME, {"eeg": PARTLY["eeg"]}])
def test_every_score_has_an_interval_and_a_chance(modalities: Modalities) -> None:
    for (gallery, name), score in evaluated(world(modalities), resample=True, shared=3).items():
        assert score.chance is not None, (gallery, name)
        assert score.low <= score.value <= score.high, (gallery, name)
        relative = name in ("normalised_two_way", "chance_corrected_two_way")
        assert (score.p_value is None) is relative
    for score in evaluated(world(modalities)).values():
        assert (score.low, score.high, score.p_value) == (None, None, None)


def turned(part: Part, seed: int = 0) -> Part:
    """The same with the rows of every person, and the people of every modality, in another order."""
    random = torch.Generator().manual_seed(seed)
    outputs = {}
    for name, output in reversed(part.outputs.items()):
        order = torch.randperm(len(output["row"]), generator=random)
        outputs[name] = {entry: value[order] for entry, value in output.items()}
    layout: Any = part.context.layout
    parts = {k: {**own, "subjects": own["subjects"][::-1]} for k, own in layout["parts"].items()}
    subjects = [f"{name}-{person}" for name, own in parts.items() for person in own["subjects"]]
    galleries = {}
    for name, gallery in part.context.galleries.items():
        order = torch.randperm(len(gallery.stimulus), generator=random)
        galleries[name] = Gallery(gallery.embedding[order], gallery.stimulus[order], gallery.label[order], gallery.kind)
    changed = {**layout, "parts": parts, "subjects": subjects}
    return Part(outputs, replace(part.context, layout=changed, galleries=galleries))


def test_neither_the_order_of_rows_nor_of_people_nor_of_pictures_matters() -> None:
    part = world()
    found, other = evaluated(part, resample=True), evaluated(turned(part), resample=True)
    assert found.keys() == other.keys()
    for key, score in found.items():
        # this one hangs on a permutation of the rows
        fields = ("chance",) if key[1] == "published_two_way" else ("value", "low", "high", "p_value", "chance")
        for field in fields:
            assert getattr(other[key], field) == pytest.approx(getattr(score, field), abs=1e-5), (key, field)


def test_the_ceiling_of_decoding_is_that_of_the_oracle() -> None:
    part = world(oracle=True)
    loops = Loops(part)
    found = evaluated(part)
    for name in PARTLY:
        people = loops.names[name]
        known = torch.cat([part.context.oracle[person] for person in people])
        shown = part.context.galleries[f"{name}.test"].stimulus.tolist()
        similarity = [
            (dict(zip(shown, row.tolist(), strict=True)), about)
            for row, about in zip(known, loops.seen(name), strict=True)
        ]
        for score, expected in loops.ranked(similarity, loops.label(name)).items():
            for how in ("", " by regression"):
                one = found[f"{name} to image{how}", {"two_way": "rank_two_way"}.get(score, score)]
                assert one.ceiling == pytest.approx(expected, abs=1e-9)
                assert "ceiling" not in one.note
    with_ceiling = {name for (gallery, name), score in found.items() if score.ceiling is not None}
    assert with_ceiling == {"rank_two_way", "class_two_way", "top_1", "top_5", "class_top_1", "class_top_5"}
    # of one person of a modality the model is not known
    oracle = {name: known for name, known in part.context.oracle.items() if name != "eeg-02"}
    partly = evaluated(Part(part.outputs, replace(part.context, oracle=oracle)))
    assert partly["eeg to image", "top_1"].ceiling is None
    assert partly["fmri to image", "top_1"].ceiling == found["fmri to image", "top_1"].ceiling
    assert "no noise ceiling" in evaluated(world())["eeg to image", "top_1"].note


def test_of_a_single_data_set_there_is_nothing_to_convert() -> None:
    part = world({"eeg": PARTLY["eeg"]}, oracle=True)
    found, loops = evaluated(part), Loops(part)
    assert {gallery for gallery, _ in found} == {
        f"{task}{how}" for task in ("eeg to image", "image to eeg") for how in ("", " by regression")
    }
    assert {score.table for score in found.values()} == {"decoding and encoding"}
    for score, expected in loops.decoding("eeg", "brain_embedding").items():
        assert found["eeg to image", score].value == pytest.approx(expected, abs=1e-6)
        if score != "two_way":
            assert found["eeg to image", score].ceiling is not None
    assert found["image to eeg", "two_way"].value == pytest.approx(loops.encoding("eeg", "image_embedding"))


def test_the_embeddings_of_two_people_are_one_gallery() -> None:
    """What is retrieved may be the recording of another person, and of the same picture."""
    part = world(SAME, noise=0.0)
    # the second person's recordings lie where no query goes, but for one that sits on the query of picture 0
    second = part.outputs["fmri-03"]
    second["brain_embedding"] = -second["brain_embedding"]
    second["brain_embedding"][5] = part.outputs["eeg-01"]["brain_embedding"][0] * 3
    part.outputs["fmri-02"]["brain_embedding"][0] = -part.outputs["fmri-02"]["brain_embedding"][0]
    found = evaluated(part)["eeg to fmri", "two_way"].value
    assert found == pytest.approx(Loops(part).conversion("eeg", "fmri", "brain_embedding"))
    assert found < 1.0, "picture 0 is taken for the one that row is of"


def test_options_reach_the_scores() -> None:
    part = world()
    names = {name for gallery, name in evaluated(part, top_k=(2, 3, 99)) if gallery == "eeg to image"}
    assert {"top_2", "top_3", "class_top_2", "class_top_3"} < names
    assert not {"top_1", "top_99"} & names
    one, two = (evaluated(part, resample=True, seed=seed)["eeg to meg", "two_way"] for seed in (0, 1))
    assert (one.value, one.low) != (two.value, two.low)
    assert one.value == two.value
    assert evaluated(part, resample=True, permutations=9)["eeg to fmri", "two_way"].p_value >= 1 / 10


def test_folds_are_refused() -> None:
    part = world()
    with pytest.raises(ContractError, match="CrossModal scores one division of the data"):
        CrossModal().evaluate([part, part])


# ---- in a run --------------------------------------------------------------------------------------


def scored(folder: Path, devices: int = 1, command: str = "test", **options: Any) -> CrossModal:
    """Score in Lightning; rows are dealt out over processes, with padding, not in their order."""
    torch.set_num_threads(1)
    part = world(oracle=True, **options)
    score = CrossModal(**FEW)
    names = frozenset().union(*part.outputs.values()) - {"row", "subject", "stimulus", "label"}
    several: dict[str, Any] = {"strategy": "ddp", "devices": devices} if devices > 1 else {}
    run: Trainer = short_trainer(folder, score, RunRecord(table=False), **several)
    replay = Replay(part.context.layout, names)
    getattr(run, command)(replay, datamodule=Recorded(list(part.outputs.values()), part.context, batch_size=3))
    return score


def plain(scores: list[Score]) -> list[dict[str, Any]]:
    return [score.as_dict() for score in scores]


def test_a_run_leaves_what_evaluation_gives(tmp_path: Path) -> None:
    score = scored(tmp_path)
    expected = list(evaluated(world(oracle=True), resample=True).values())
    assert plain(score.scores) == plain(expected)
    kept = read_scores(tmp_path / "scores.json")
    assert plain(kept) == plain(expected), "tables among them; no means of modalities"
    assert {one.table for one in kept} == {"decoding and encoding", "conversion"}
    # what is kept of the outputs gives the same again, but for signals, which the stage alone predicts
    again = CrossModal(**FEW).in_tables([load_part(tmp_path / "outputs.safetensors")])
    assert plain(again) == [one for one in plain(expected) if "pearson" not in one["name"]]


@pytest.mark.parametrize("regressed", [True, False])
def test_validation_is_not_scored(tmp_path: Path, regressed: bool) -> None:
    score = scored(tmp_path, command="validate", regressed=regressed)
    assert score.scores == []
    assert not (tmp_path / "scores_validation.json").exists() or not read_scores(tmp_path / "scores_validation.json")


def test_a_stage_without_embeddings_is_refused(tmp_path: Path) -> None:
    part = world(regressed=False)
    replay = Replay(part.context.layout, frozenset({"image_embedding", "signal"}))
    data = Recorded(list(part.outputs.values()), part.context)
    with pytest.raises(ContractError, match="CrossModal needs brain_embedding, but Replay gives only"):
        short_trainer(tmp_path, CrossModal()).test(replay, datamodule=data, verbose=False)


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.full)])
def test_several_processes_agree_with_one(tmp_path: Path, processes: int) -> None:
    one, many = both_ways(scored, tmp_path, processes)
    ours, theirs = (json.loads((folder / "scores.json").read_text()) for folder in (many, one))
    assert len(ours) == len(theirs) > 90
    for mine, reference in zip(ours, theirs, strict=True):
        for entry, value in reference.items():
            wanted = pytest.approx(value, abs=1e-6) if isinstance(value, float) else value
            assert mine[entry] == wanted, f"{reference['gallery']} {reference['name']}: {entry}"
