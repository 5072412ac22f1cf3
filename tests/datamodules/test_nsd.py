import functools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from contracts import DataError
from datamodules import NSD, BrainDataModule, LoaderOptions, SampleOptions, SplitOptions
from datamodules.core import nsd_files
from tests.datamodules import opening
from tests.datamodules.contract import SHARED, SMALL_PIXELS, DataModuleContract, everything, real_root
from tests.formats import nsd as format

Array = np.ndarray[Any, Any]
ALL = SplitOptions(validation=0.0, tested="test+test_rest")
PLACES, ROIS = format.voxels(*format.labels())


opened = functools.partial(opening.opened, NSD)
refused = functools.partial(opening.refused, opened)


def percent(volume: Array, places: list[tuple[int, ...]] = PLACES) -> Array:
    """Percent signal change ``(750, V)`` of a session, voxel by voxel."""
    return np.stack([volume[place] / np.float32(300) for place in places], axis=1)


def name(picture: int) -> str:
    return f"nsd{picture:05d}"


# ---- contract --------------------------------------------------------------------------------------


class Contract(DataModuleContract):
    split: ClassVar[SplitOptions] = SplitOptions(validation=0.25)
    options: ClassVar[dict[str, Any]] = {"fewer_sessions": True}

    def make(self, root: Path, **options: Any) -> BrainDataModule:
        return NSD(str(root), **self.options, **options)


class TestOfficial(Contract):
    @classmethod
    def write(cls, root: Path) -> None:
        format.write(root, train=16, test=4, sessions=1)

    def real(self, stores: Path) -> BrainDataModule:
        real_root("nsd/nsddata/experiments/nsd/nsd_expdesign.mat")
        return NSD(str(SHARED / "nsd"), file_format="official", stores=str(stores))


# ---- official files --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["nii.gz", "hdf5"])
def test_published_files_reach_the_store(root: Path, suffix: str) -> None:
    content = format.write(root, suffix=suffix, people=("01", "07"))
    store = opened(root, sessions=2).store
    assert store.subjects == ["01", "07"]
    shown = {person: pictures[:1500].tolist() for person, pictures in content.shown.items()}
    known = sorted(set(shown["01"]) | set(shown["07"]))
    assert store.stimuli["id"].tolist() == [name(picture) for picture in known], "those that were shown, no others"
    places = [f"nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5#imgBrick#{picture}" for picture in known]
    assert store.stimuli["image"].tolist() == places
    for number, picture in enumerate(known):
        np.testing.assert_array_equal(store.image(number), content.images[picture])
    for person in store.subjects:
        signal = np.concatenate([percent(volume) for volume in content.volumes[person]])
        np.testing.assert_array_equal(store.signals(person), signal)
        axes = store.axes(person)
        assert list(axes.rois.items()) == list(ROIS.items())
        np.testing.assert_array_equal(axes.ncsnr, [content.ncsnr[place] for place in PLACES])
        trials = store.trials[store.trials["subject"] == person]
        assert trials["stimulus"].tolist() == [name(picture) for picture in shown[person]]
        shared = set(content.shared.tolist())
        assert trials["split"].tolist() == ["test" if picture in shared else "train" for picture in shown[person]]
        assert trials["session"].tolist() == ["1"] * 750 + ["2"] * 750
        assert trials.groupby(["session", "run"], sort=False).size().tolist() == [63, 62] * 12
        assert trials["run"].iloc[[0, 62, 63, 749, 750]].tolist() == ["1", "1", "2", "12", "1"]


def test_hdf5_and_nifti_may_be_mixed_and_give_the_same(root: Path) -> None:
    content = format.write(root, people=("01",), sessions=2)
    compressed = opened(root, sessions=2).store.signals("01")
    format.save_betas(format.betas(root, "01", "betas_session02.hdf5"), content.volumes["01"][1])
    format.betas(root, "01", "betas_session02.nii.gz").unlink()
    mixed = NSD(str(root), stores=str(root.parent / "others"), sessions=2).store.signals("01")
    np.testing.assert_array_equal(compressed, mixed)


def test_region_of_a_voxel_is_that_of_the_first_atlas_that_has_it(root: Path) -> None:
    content = format.write(root, people=("01",), sessions=1)
    streams = np.zeros(format.SHAPE, np.int16)
    streams[:, 1, :] = 5
    streams[:, 2, :] = 1
    format.save_nifti(format.roi(root, "01", "streams"), streams)
    format.save_nifti(format.roi(root, "01", "mine"), np.where(streams > 1, 3.0, 0.0))
    inside = [place for place in np.ndindex(*format.SHAPE) if content.mask[place] > 0]

    def check(atlases: list[str], regions: dict[str, Callable[[tuple[int, ...]], bool]]) -> None:
        store = opened(root, sessions=1, atlases=atlases).store
        groups: dict[str, list[tuple[int, ...]]] = {region: [] for region in regions}
        for place in inside:
            groups[next(region for region, has in regions.items() if has(place))].append(place)
        assert list(store.axes("01").rois.items()) == [(region, len(places)) for region, places in groups.items()]
        order = [place for places in groups.values() for place in places]
        np.testing.assert_array_equal(store.signals("01"), percent(content.volumes["01"][0], order))

    check([], {"nsdgeneral": lambda place: True})
    stream_regions = {"early": lambda place: streams[place] == 1, "ventral": lambda place: streams[place] == 5}
    check(["streams"], {**stream_regions, "rest": lambda place: True})
    visual = {
        "V1v": lambda place: content.atlas[place] == 1,
        "V1d": lambda place: content.atlas[place] == 2,
        "hV4": lambda place: content.atlas[place] == 7,
    }
    check(["prf-visualrois", "streams"], {**visual, **stream_regions, "rest": lambda place: True})
    check(["mine"], {"mine-3": lambda place: streams[place] == 5, "rest": lambda place: True})


def test_another_mask_selects_the_voxels(root: Path) -> None:
    content = format.write(root, people=("01",), sessions=1)
    store = opened(root, sessions=1, mask="prf-visualrois", atlases=["prf-visualrois"]).store
    inside = sorted((label, place) for place, label in np.ndenumerate(content.atlas) if label > 0)
    np.testing.assert_array_equal(store.signals("01"), percent(content.volumes["01"][0], [p for _, p in inside]))
    assert store.axes("01").rois == {"V1v": 4, "V1d": 1, "V2d": 1, "hV4": 8}


def test_session_zscoring_takes_gain_and_baseline_away(root: Path) -> None:
    content = format.write(root, people=("01",), noise=0.0)
    data = opened(root, sessions=2, samples=SampleOptions(cleaning="zscore_session", average_test=1, normalise="none"))
    shared = content.shared.tolist()
    for session, volume in enumerate(content.volumes["01"]):
        signal = percent(volume).astype(np.float64)
        shown = content.shown["01"][session * 750 : (session + 1) * 750]
        training = signal[~np.isin(shown, shared)]
        expected = (signal - training.mean(axis=0)) / training.std(axis=0)
        person = data.prepared["01"]
        rows = [(r, t[0] - 750 * session) for r, t in zip(person.rows["test"], person.groups["test"], strict=True)]
        rows = [(r, t) for r, t in rows if 0 <= t < 750]
        assert len(rows) == np.isin(shown, shared).sum()
        for row, trial in rows:
            np.testing.assert_allclose(person.signal[row], expected[trial], rtol=1e-4, atol=1e-4)


def test_noise_ceiling_is_that_of_the_paper_for_the_repetitions_of_a_sample(root: Path) -> None:
    content = format.write(root, people=("01",), sessions=1, train=330, test=60)
    data = opened(root, sessions=1, samples=SampleOptions(average_test=3))
    shared = set(content.shared.tolist())
    repetitions = Counter(picture for picture in content.shown["01"][:750].tolist() if picture in shared)
    sizes = Counter(min(3, left) for count in repetitions.values() for left in range(count, 0, -3))
    assert len(sizes) > 1
    # data manual, "Conversion of ncsnr to noise ceiling percentages": variance explained, A, B, C with 3, 2, 1 trials
    fraction = (sizes[3] / 3 + sizes[2] / 2 + sizes[1] / 1) / (sizes[3] + sizes[2] + sizes[1])
    ncsnr = np.array([content.ncsnr[place] for place in PLACES], np.float64)
    variance = ncsnr**2 / (ncsnr**2 + fraction)
    np.testing.assert_allclose(data.score_context("test").encoding_ceiling["01"] ** 2, variance, rtol=1e-5)
    region = opened(root, sessions=1, samples=SampleOptions(average_test=3, rois=["hV4"])).score_context("test")
    start = ROIS["V1v"] + ROIS["V1d"]
    part = variance[start : start + ROIS["hV4"]]
    np.testing.assert_allclose(region.encoding_ceiling["01"] ** 2, part, rtol=1e-5)


def test_noise_ceiling_is_zero_where_it_could_not_be_estimated_and_absent_without_its_file(root: Path) -> None:
    content = format.write(root, people=("01",), sessions=1)
    content.ncsnr[PLACES[4]] = np.nan
    path = format.save_nifti(format.betas(root, "01", "ncsnr.nii.gz"), content.ncsnr)
    ceiling = opened(root, sessions=1).score_context("test").encoding_ceiling["01"]
    assert torch.nonzero(ceiling == 0).flatten().tolist() == [4]
    path.unlink()
    data = NSD(str(root), stores=str(root.parent / "others"), sessions=1, embedding=SMALL_PIXELS)
    assert data.score_context("test").encoding_ceiling == {}


def test_a_person_without_samples_has_no_noise_ceiling(root: Path) -> None:
    format.write(root, sessions=1, test=4)
    # eight pictures are set aside, each of which one of the two people saw
    data = opened(root, sessions=1, split=SplitOptions(validation=0.1, seed=0))
    seen = {person: len(samples.groups["validation"]) for person, samples in data.prepared.items()}
    assert seen == {"01": 0, "02": 8}, "choose another seed"
    assert list(data.score_context("validate").encoding_ceiling) == ["02"]
    assert sorted(data.score_context("test").encoding_ceiling) == ["01", "02"]


# ---- parts and sessions ----------------------------------------------------------------------------


def test_parts_follow_from_the_sessions_in_which_a_shared_picture_is_first_shown() -> None:
    shown = np.full(30000, 5)
    shown[[3, 28000]] = 7  # shared, also shown later
    shown[27749] = 8  # shared, last of the first 37 sessions
    shown[[27750, 29999]] = 9  # shared, only later
    parts = nsd_files.parts_of(shown, np.array([7, 8, 9]))
    assert {place: part for place, part in enumerate(parts) if part != "train"} == {
        3: "test", 27749: "test", 27750: "test_rest", 28000: "test", 29999: "test_rest",
    }  # fmt: skip


def test_tested_parts_are_the_early_shared_pictures_or_all(root: Path) -> None:
    content = format.write(root, people=("02",), sessions=40, late=3, suffix="hdf5")
    shared = set(content.shared.tolist())
    early = set(content.shown["02"][:27750].tolist()) & shared
    late = set(content.shown["02"].tolist()) & shared - early
    assert len(late) == 3

    def tested(**options: Any) -> set[str]:
        data = opened(root, **options)
        numbers = torch.cat([batch["stimulus"] for batch in everything(data, "test")])
        return set(data.store.stimuli["id"].iloc[numbers.numpy()])

    assert tested() == {name(picture) for picture in early}
    assert tested(split=ALL) == {name(picture) for picture in early | late}
    data = opened(root)
    assert len(data.store.signals("02")) == NSD.facts.trials["02"] == 30000
    assert not set(data.store.trials["number"][data.store.trials["split"] == "test_rest"]) & set(
        data.trials["number"][data.trials["side"] == "train"]
    )
    # as Brain-Diffuser: sessions that came out later are not read at all
    published = opened(root, sessions=37).store
    assert len(published.signals("02")) == 27750
    assert set(published.trials["split"]) == {"train", "test"}
    np.testing.assert_array_equal(published.signals("02"), data.store.signals("02")[:27750])


def test_people_with_fewer_sessions_are_whole(root: Path) -> None:
    format.write(root, people=("04",), sessions=30, suffix="hdf5")
    for sessions in (None, 37):
        assert len(opened(root, sessions=sessions).store.signals("04")) == NSD.facts.trials["04"] == 22500


def test_missing_sessions_are_refused_unless_accepted(root: Path) -> None:
    format.write(root, people=("01",), sessions=3)
    message = refused(root)
    for part in (
        "sub-01: 3 of 40 sessions",
        "betas_session04.nii.gz",
        "--data.init_args.sessions=3",
        "fewer_sessions=true",
        "accept_terms=true",
        "https://",
    ):
        assert part in message
    assert len(opened(root, sessions=2).store.signals("01")) == 1500
    assert len(opened(root, fewer_sessions=True).store.signals("01")) == 2250
    format.betas(root, "01", "betas_session02.nii.gz").unlink()
    for fewer_sessions in (False, True):
        with pytest.raises(DataError, match=r"sub-01: session 2 of 5 missing .*betas_session02\.nii\.gz"):
            opened(root, sessions=5, fewer_sessions=fewer_sessions).store  # noqa: B018
    format.betas(root, "01", "betas_session01.nii.gz").unlink()
    format.betas(root, "01", "betas_session03.nii.gz").unlink()
    with pytest.raises(DataError, match="sub-01: 0 of 4 sessions are there"):
        opened(root, sessions=4, fewer_sessions=True).store  # noqa: B018


@pytest.mark.parametrize("sessions", [0, 41])
def test_numbers_of_sessions_that_do_not_exist_are_refused(root: Path, sessions: int) -> None:
    assert f"sessions must be 1..40, found {sessions}" in refused(root, sessions=sessions)


# ---- people and layouts ----------------------------------------------------------------------------


def test_only_chosen_people_are_read(root: Path) -> None:
    format.write(root, people=("01", "02", "05"), sessions=1)
    format.roi(root, "02").unlink()
    data = opened(root, sessions=1, subjects=["05", "01"])
    assert data.layout["subjects"] == ["05", "01"]
    assert data.store.subjects == ["05", "01"]
    with pytest.raises(DataError, match=r"1 of 8 files .*person 01, 02, 05 are missing.*subj02/.*nsdgeneral\.nii\.gz"):
        opened(root, sessions=1).store  # noqa: B018
    with pytest.raises(DataError, match="unknown subjects 09; NSD has 01, 02"):
        opened(root, sessions=1, subjects=["09"]).store  # noqa: B018


def test_layouts_are_found_and_told_apart(root: Path) -> None:
    format.write_mindeye2(root, people=("01",), sessions=1)
    assert list(opened(root).store.axes("01").rois) == ["nsdgeneral"]
    assert opened(root).store.description["axes"]["01"]["rois"] == {"nsdgeneral": 22}
    format.write_brain_diffuser(root, people=("01",), sessions=1)
    averaged = NSD(str(root), stores=str(root.parent / "a")).store
    assert set(averaged.trials["repetition"]) == {0}
    format.write(root, people=("01",), sessions=1)
    single = NSD(str(root), stores=str(root.parent / "b"), sessions=1).store
    assert list(single.axes("01").rois.items()) == list(ROIS.items())
    for layout, folder in (("mindeye2", "stores"), ("brain_diffuser", "a"), ("official", "b")):
        other = NSD(str(root), stores=str(root.parent / "c"), file_format=layout, sessions=1).store  # type: ignore[arg-type]
        first = NSD(str(root), stores=str(root.parent / folder), sessions=1 if folder == "b" else None).store
        np.testing.assert_array_equal(other.signals("01"), first.signals("01"))


def test_an_empty_folder_names_the_terms_and_the_addresses(root: Path) -> None:
    root.mkdir()
    for layout in ("auto", "official"):
        message = refused(root, file_format=layout)
        for part in ("no recordings in", "Terms-and-Conditions", "natural-scenes-dataset.s3", "accept_terms=true"):
            assert part in message
    assert not list(root.iterdir()), "nothing is accepted in the user's place"


def test_pictures_come_from_the_published_file_in_worker_processes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = format.write(root, people=("01",), sessions=1, train=8, test=2)
    data = opened(root, sessions=1, loader=LoaderOptions(batch_size=64, workers=1))
    data.store.image(0)
    monkeypatch.setattr(data, "batch_keys", lambda: frozenset({"signal", "image"}))
    names = data.store.stimuli["id"].tolist()
    for batch in data.test_dataloader():
        for image, number in zip(batch["image"], batch["stimulus"].tolist(), strict=True):
            np.testing.assert_array_equal(image.permute(1, 2, 0), content.images[int(names[number][3:])])


def test_options_that_change_what_is_read_have_stores_of_their_own() -> None:
    options: list[dict[str, Any]] = [
        {},
        {"file_format": "official"},
        {"sessions": 37},
        {"fewer_sessions": True},
        {"mask": "other"},
        {"atlases": []},
        {"subjects": ["01"]},
        {"subjects": ["02"]},
    ]
    found = [json.dumps(NSD("nowhere", **option).conversion_options(), sort_keys=True) for option in options]
    assert len(set(found)) == len(options)
    assert NSD("nowhere", accept_terms=True).conversion_options() == NSD("nowhere").conversion_options()


def test_all_parts_may_be_named_where_the_chosen_people_lack_some(root: Path) -> None:
    content = format.write(root, people=("04",), sessions=1)
    numbers = everything(opened(root, sessions=1, split=ALL), "test")[0]["stimulus"]
    assert len(numbers) == len(set(content.shown["04"][:750].tolist()) & set(content.shared.tolist()))
    with pytest.raises(DataError, match="tested: test_rest"):
        opened(root, sessions=1, split=SplitOptions(tested="test_rest")).trials  # noqa: B018
    with pytest.raises(DataError, match=r"change --data\.init_args\.split\.tested"):
        opened(root, sessions=1, split=SplitOptions(tested="test+rest")).trials  # noqa: B018
