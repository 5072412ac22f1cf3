"""What every data set promises, whatever it reads: inherit ``DataModuleContract`` and give ``kind`` or ``make``."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from contracts import NO_LABEL, PADDING, Batch, Layout
from datamodules import BrainDataModule, EmbeddingOptions, LoaderOptions, SampleOptions, SplitOptions
from datamodules.core.features import FeatureBank
from datamodules.core.sampler import BatchSampler
from datamodules.core.targets import fit_target
from tests.datamodules.reference import SPLITS, reference_samples

Array = np.ndarray[Any, Any]
REPOSITORY = Path(__file__).parents[2]
SHARED = Path(os.environ.get("NEUROALIGN_SHARED", REPOSITORY.parent / "shared" / "data"))
SMALL_PIXELS = EmbeddingOptions(image_size=8)


def real_root(*files: str) -> Path:
    """Folder of recordings that are not part of the repository, or skip."""
    for file in files:
        if not (SHARED / file).is_file():
            pytest.skip(f"no {SHARED / file}: set NEUROALIGN_SHARED to the folder that holds {file}")
    return (SHARED / files[0]).parent


def batches(data: BrainDataModule, split: str) -> list[Batch]:
    loader = {"train": data.train_dataloader, "validation": data.val_dataloader, "test": data.test_dataloader}[split]()
    return list(loader)


def everything(data: BrainDataModule, split: str) -> list[Batch]:
    """All samples in order, one batch for each layout of the people."""
    dataset = data.dataset(split)
    return [dataset[torch.nonzero(dataset.group == group).flatten()] for group in dataset.group.unique()]


def sha256_of_pictures(data: BrainDataModule, stimulus: torch.Tensor) -> set[str]:
    return {hashlib.sha256(data.store.image(number).tobytes()).hexdigest() for number in stimulus.unique().tolist()}


def files_of(folder: Path) -> dict[str, tuple[int, str]]:
    """Time and content of every file below a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def leftovers(folder: Path) -> list[str]:
    """Everything below a folder but the lock files, which stay for the next process."""
    return [path.name for path in sorted(folder.rglob("*")) if path.suffix != ".lock"]


def assert_recorded(batch: Batch, layout: Layout) -> None:
    """Signals of people of one layout, and a number of each kind for every sample."""
    size = len(batch["row"])
    people = {layout["subjects"][number] for number in batch["subject"].tolist()}
    shapes = {tuple(layout["shape"][name]) for name in people}
    assert len(shapes) == 1, "people of different layouts share a batch"
    assert batch["signal"].shape == (size, *shapes.pop())
    assert batch["signal"].dtype == torch.float32
    assert torch.isfinite(batch["signal"]).all()
    for name in ("stimulus", "label", "subject", "row"):
        assert batch[name].dtype == torch.int64
        assert batch[name].shape == (size,)


class DataModuleContract(ABC):
    """Inherited by the test class of every data set, its ``kind``; ``split`` is a division that the data set allows."""

    kind: ClassVar[type[BrainDataModule]]
    split: ClassVar[SplitOptions] = SplitOptions()

    @classmethod
    @abstractmethod
    def write(cls, root: Path) -> None:
        """Write the raw files below ``root``, or skip where the recordings are absent."""

    def make(self, root: Path, **options: Any) -> BrainDataModule:
        """Return the datamodule of the raw files below ``root``, with the base class's options."""
        return self.kind(str(root), **options)

    def real(self, stores: Path) -> BrainDataModule:
        """Return the datamodule whose declared facts are to be checked, or skip."""
        pytest.skip("this data set declares no facts")

    @pytest.fixture(scope="class")
    @classmethod
    def root(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        root = tmp_path_factory.mktemp("data") / "raw"
        root.mkdir()
        cls.write(root)
        return root

    def open(self, root: Path, **options: Any) -> BrainDataModule:
        """Return a new datamodule; all tests of the class share one folder of stores."""
        usual = {
            "stores": str(root.parent / "stores"),
            "embedding": SMALL_PIXELS,
            "split": self.split,
            "loader": LoaderOptions(batch_size=3),
        }
        return self.make(root, **(usual | options))

    # ---- batches -----------------------------------------------------------------------------------

    @pytest.mark.parametrize("split", SPLITS)
    def test_batches_have_the_names_shapes_and_types_of_the_contract(self, root: Path, split: str) -> None:
        data = self.open(root)
        layout = data.layout
        for batch in batches(data, split):
            assert_recorded(batch, layout)
            assert set(batch) == {"signal", "embedding", "stimulus", "label", "subject", "row"}
            assert batch["embedding"].dtype == torch.float32
            assert batch["embedding"].shape == (len(batch["row"]), layout["embedding_width"])
            assert torch.isfinite(batch["embedding"]).all()
            assert 0 <= batch["stimulus"].min() <= batch["stimulus"].max() < len(data.store.stimuli)
            assert NO_LABEL <= batch["label"].min() <= batch["label"].max() < len(layout["classes"])

    def test_label_is_the_class_of_the_stimulus(self, root: Path) -> None:
        data = self.open(root)
        for batch in everything(data, "test"):
            expected = data.store.stimuli["class"].iloc[batch["stimulus"].numpy()].tolist()
            assert [([*data.layout["classes"], ""])[label] for label in batch["label"].tolist()] == expected

    @pytest.mark.parametrize("split", SPLITS)
    def test_rows_number_the_samples_of_a_split(self, root: Path, split: str) -> None:
        data = self.open(root)
        rows = torch.cat([batch["row"] for batch in everything(data, split)])
        assert sorted(rows.tolist()) == list(range(len(data.dataset(split))))

    def test_every_chosen_person_and_no_other_has_samples(self, root: Path) -> None:
        name = self.open(root).store.subjects[-1]
        data = self.open(root, subjects=[name])
        assert data.layout["subjects"] == [name]
        assert set(data.layout["shape"]) == set(data.layout["train_samples"]) == {name}
        for split in SPLITS:
            assert {n for batch in everything(data, split) for n in batch["subject"].tolist()} == {0}

    # ---- layout ------------------------------------------------------------------------------------

    def test_layout_is_plain_and_cached(self, root: Path) -> None:
        data = self.open(root)
        layout = data.layout
        assert json.loads(json.dumps(layout)) == layout
        assert data.layout is layout
        assert set(layout) == Layout.__required_keys__
        for name in layout["subjects"]:
            assert layout["train_samples"][name] == len(data.prepared[name].rows["train"])
            if layout["rois"][name]:
                assert sum(layout["rois"][name].values()) == layout["shape"][name][0]
        assert layout["protocol"].startswith(self.split.protocol)
        assert len(layout["channels"]) == len(layout["positions"]) or not layout["positions"]

    # ---- splits ------------------------------------------------------------------------------------

    def test_no_picture_on_two_sides(self, root: Path) -> None:
        data = self.open(root)
        seen = {
            split: set[str]().union(*(sha256_of_pictures(data, batch["stimulus"]) for batch in everything(data, split)))
            for split in SPLITS
        }
        assert all(seen.values())
        assert not seen["train"] & seen["validation"]
        assert not seen["train"] & seen["test"]
        assert not seen["validation"] & seen["test"]

    # ---- samples -----------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "options",
        [
            SampleOptions(),
            SampleOptions(average_train=2, average_test=2),
            SampleOptions(cleaning="zscore_session", average_train="all"),
            SampleOptions(cleaning="zscore_run", average_train=2, average_test=1),
            SampleOptions(cleaning="zscore_session", cleaning_fit="all", average_train=3, normalise="none"),
            SampleOptions(average_train="all", normalise="none"),
        ],
        ids=lambda options: f"{options.cleaning}-{options.average_train}-{options.average_test}-{options.normalise}",
    )
    def test_samples_are_cleaned_then_averaged_then_normalised(self, root: Path, options: SampleOptions) -> None:
        data = self.open(root, samples=options)
        expected = {name: reference_samples(data, name) for name in data.subjects}
        for split in SPLITS:
            found = everything(data, split)
            for number, name in enumerate(data.subjects):
                signal = torch.cat([batch["signal"][batch["subject"] == number].flatten() for batch in found])
                stimulus = torch.cat([batch["stimulus"][batch["subject"] == number] for batch in found])
                np.testing.assert_array_equal(stimulus, expected[name][split][1])
                reference = expected[name][split][0]
                # a mean in float32 is off by up to its resolution, which counts in units of the SD
                raw = np.asarray(data.store.signals(name), np.float64)
                resolution = np.abs(raw).max() * 2.0**-23 / raw.std(axis=0).min()
                np.testing.assert_allclose(signal, reference.flatten(), rtol=1e-4, atol=1e-4 + 4 * resolution)

    def test_training_samples_are_standardised(self, root: Path) -> None:
        for batch in everything(self.open(root), "train"):
            for person in batch["subject"].unique():
                signal = batch["signal"][batch["subject"] == person].double()
                np.testing.assert_allclose(signal.mean(dim=0), 0, atol=1e-4)
                np.testing.assert_allclose(signal.std(dim=0, correction=0), 1, atol=1e-4)

    # ---- order -------------------------------------------------------------------------------------

    def test_two_instances_give_the_same_bytes(self, root: Path, tmp_path: Path) -> None:
        one, two = self.open(root), self.open(root, stores=str(tmp_path / "stores"))
        assert one.layout == two.layout
        for split in SPLITS:
            for a, b in zip(batches(one, split), batches(two, split), strict=True):
                for name in a:
                    assert torch.equal(a[name], b[name]), name  # type: ignore[literal-required]

    def test_order_of_training_is_a_function_of_seed_and_epoch(self, root: Path) -> None:
        def order(seed: int, epoch: int) -> list[int]:
            loader = self.open(root, loader=LoaderOptions(batch_size=3, seed=seed)).train_dataloader()
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            return torch.cat([batch["row"] for batch in loader]).tolist()

        assert order(0, 0) == order(0, 0)
        assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
        loader = self.open(root, loader=LoaderOptions(batch_size=3)).train_dataloader()
        loader.sampler.set_epoch(3)  # type: ignore[attr-defined]
        list(loader)
        loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
        assert torch.cat([batch["row"] for batch in loader]).tolist() == order(0, 1), "epochs before leave a trace"

    def test_resuming_in_an_epoch_gives_exactly_the_rest(self, root: Path) -> None:
        def rows(loader: Any) -> list[list[int]]:
            return [batch["row"].tolist() for batch in loader]

        whole = self.open(root).train_dataloader()
        whole.sampler.set_epoch(2)  # type: ignore[attr-defined]
        expected = rows(whole)
        done = len(expected) // 2
        assert done > 0
        resumed = self.open(root).train_dataloader()
        resumed.sampler.load_state_dict({"epoch": 2, "batches_done": done})  # type: ignore[attr-defined]
        resumed.sampler.set_epoch(2)  # type: ignore[attr-defined]
        assert rows(resumed) == expected[done:]
        assert rows(resumed) == expected, "only the first pass is shortened"

    @pytest.mark.parametrize("world_size", [1, 2, 3])
    @pytest.mark.parametrize("split", ["validation", "test"])
    def test_ranks_together_serve_every_sample_once(self, root: Path, split: str, world_size: int) -> None:
        dataset = self.open(root).dataset(split)
        counts, sizes, padding = Counter[int](), [], 0
        for rank in range(world_size):
            sampler = BatchSampler(dataset.group, 2, shuffle=False, drop_last=False, rank=rank, world_size=world_size)
            mine = [dataset[numbers] for numbers in sampler]
            assert len(mine) == len(sampler)
            sizes.append([len(batch["row"]) for batch in mine])
            for batch in mine:
                counts.update(row for row in batch["row"].tolist() if row != PADDING)
                padding += int((batch["row"] == PADDING).sum())
                assert torch.isfinite(batch["signal"]).all()
        assert counts == dict.fromkeys(range(len(dataset)), 1)
        assert all(size == sizes[0] for size in sizes), "ranks differ in the number or sizes of their batches"
        assert padding < world_size * len(sizes[0])
        assert world_size > 1 or padding == 0

    # ---- targets and scores ------------------------------------------------------------------------

    @pytest.mark.parametrize("target", ["none", "unit", "zscore|pca(2, whiten)"])
    def test_embedding_belongs_to_the_picture_that_was_seen(self, root: Path, target: str) -> None:
        options = EmbeddingOptions(image_size=8, target=target)
        data = self.open(root, embedding=options)
        stimuli = data.store.stimuli
        bank = FeatureBank(root.parent / "other-bank", options)
        # another bank, filled in another order, and looked up by the hash of the picture
        hashes = stimuli["sha256"].tolist()[::-1]
        bank.build(hashes, lambda position: data.store.image(len(hashes) - 1 - position))
        training = data.trials["number"][data.trials["side"] == "train"].unique()
        transform = fit_target(target, bank.lookup(stimuli["sha256"].iloc[np.sort(training)].tolist()))
        for split in SPLITS:
            for batch in everything(data, split):
                raw = bank.lookup(stimuli["sha256"].iloc[batch["stimulus"].numpy()].tolist())
                np.testing.assert_allclose(batch["embedding"], transform(raw), rtol=1e-5, atol=1e-5)

    def test_pictures_come_with_the_batch_where_a_stage_wants_them(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = self.open(root)
        wanted = frozenset({"signal", "image"})
        monkeypatch.setattr(data, "batch_keys", lambda: wanted)
        for batch in everything(data, "test"):
            assert "embedding" not in batch
            assert batch["image"].dtype == torch.uint8
            for image, number in zip(batch["image"], batch["stimulus"].tolist(), strict=True):
                np.testing.assert_array_equal(image.permute(1, 2, 0), data.store.image(number))

    @pytest.mark.parametrize("stage", ["validate", "test"])
    def test_score_context_fits_the_samples(self, root: Path, stage: str) -> None:
        data = self.open(root)
        context = data.score_context(stage)  # type: ignore[arg-type]
        found = everything(data, {"validate": "validation"}.get(stage, stage))
        assert context.layout == data.layout
        stimulus = torch.cat([batch["stimulus"] for batch in found])
        embedding = torch.cat([batch["embedding"] for batch in found])
        label = torch.cat([batch["label"] for batch in found])
        of_classes = context.galleries["test"].kind == "class_centre"
        for name in ("all",) if of_classes else ("test", "all"):
            gallery = context.galleries[name]
            assert len(gallery.stimulus.unique()) == len(gallery.stimulus) == len(gallery.embedding)
            place = {number: row for row, number in enumerate(gallery.stimulus.tolist())}
            rows = [place[number] for number in stimulus.tolist()]
            assert torch.equal(gallery.embedding[rows], embedding)
            assert torch.equal(gallery.label[rows], label)
        shown = label if of_classes else stimulus
        assert set(context.galleries["test"].stimulus.tolist()) == set(shown.tolist())
        if "class_centres" in context.galleries:
            centres = context.galleries["class_centres"]
            assert set(centres.label.tolist()) == set(label.tolist())
            training = torch.cat([batch["stimulus"] for batch in everything(data, "train")]).unique()
            for centre, number in zip(centres.embedding, centres.label, strict=True):
                expected = data.targets[training[data.labels[training] == number]].mean(dim=0)
                torch.testing.assert_close(centre, expected)
        for name, ceiling in context.encoding_ceiling.items():
            assert list(ceiling.shape) == data.layout["shape"][name]
            assert 0 <= ceiling.min() <= ceiling.max() <= 1
        for name, likelihood in context.oracle.items():
            people = torch.cat([batch["subject"] for batch in found])
            samples = int((people == data.subjects.index(name)).sum())
            assert likelihood.shape == (samples, len(context.galleries["test"].stimulus))

    # ---- facts, residence, store ---------------------------------------------------------------------

    def test_declared_facts_are_those_of_the_recordings(self, tmp_path: Path) -> None:
        data = self.real(tmp_path / "stores")
        trials = data.store.trials
        found = {
            "subjects": tuple(data.store.subjects),
            "trials": {name: int((trials["subject"] == name).sum()) for name in data.store.subjects},
            "stimuli": int(data.store.stimuli["sha256"].nunique()),
            "shape": {name: tuple(data.store.signals(name).shape[1:]) for name in data.store.subjects},
            "modality": data.store.modality,
        }
        declared = {name: value for name, value in asdict(data.facts).items() if name in found and value}
        wrong = {name: found[name] for name, value in declared.items() if found[name] != value}
        assert not wrong, "\n".join(
            f"{type(data).__name__}.facts.{name}: declared {declared[name]}, the files have {value}; "
            f"fix: {name}={value!r}"
            for name, value in wrong.items()
        )

    @pytest.mark.parametrize("samples", [SampleOptions(average_test=1), SampleOptions(average_train=2)])
    def test_residence_changes_no_number(self, root: Path, samples: SampleOptions) -> None:
        found = []
        for residence in ("mmap", "ram", "device"):
            options = LoaderOptions(batch_size=3, residence=residence)  # type: ignore[arg-type]
            data = self.open(root, samples=samples, loader=options)
            found.append([batch for split in SPLITS for batch in batches(data, split)])
        for first, second, third in zip(*found, strict=True):
            for name in first:
                assert torch.equal(first[name], second[name])
                assert torch.equal(first[name], third[name])

    def test_options_and_batches_never_change_the_store(self, root: Path) -> None:
        data = self.open(root)
        assert data.layout
        folder = data.store.folder
        before = files_of(folder)
        assert before
        others: list[dict[str, Any]] = [
            {"samples": SampleOptions(cleaning="zscore_session", cleaning_fit="all", average_train=2)},
            {"samples": SampleOptions(normalise="none", average_test=1)},
            {"embedding": EmbeddingOptions(image_size=4, grey=True, target="center")},
            {"loader": LoaderOptions(batch_size=2, residence="ram", seed=3)},
        ]
        for options in others:
            other = self.open(root, **options)
            assert other.layout
            assert other.store.folder == folder
            for batch in [*batches(other, "train"), *batches(other, "test")]:
                batch["signal"].fill_(7)
        assert files_of(folder) == before
