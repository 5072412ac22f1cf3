"""The same numbers from 1, 2 and 3 processes, through the real command line on the CPU."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from experiments.cli import main
from tests.experiments.launching import CONFIGS, launch, several

STAGE = f"--config={CONFIGS}/stage/ridge_direct.yaml"
# 36 training samples a person and batches of 7: neither divides by 2 or 3
PHANTOM = (
    f"--data={CONFIGS}/data/phantom.yaml",
    '--data.init_args.phantom={"people": 2, "train_images": 1, "test_images": 1, "train_repetitions": 1, '
    '"test_repetitions": 1, "sessions": 1}',
    '--data.init_args.embedding={"model": "pixels", "image_size": 8, "target": "pca(8)"}',
    # offsets stay in the signals, so that intercepts are not zero
    "--data.init_args.samples.cleaning=none",
    "--data.init_args.samples.normalise=none",
    "--data.init_args.loader.batch_size=7",
)
FEW = ("--data=few.py:Few", "--data.init_args.root=raw", "--data.init_args.loader.batch_size=7")
V4 = '--data.init_args.samples.rois=["V4"]'
PRIMAL = ("--model.init_args.form=primal", V4)
VARIANTS: dict[str, tuple[str, ...]] = {
    "primal": PRIMAL,
    "primal_per_target": (*PRIMAL, "--model.init_args.per_target=true"),
    "kernel": ("--model.init_args.form=kernel",),
    "kernel_per_target": ("--model.init_args.form=kernel", V4, "--model.init_args.per_target=true"),
}

# A data set that writes down each time it is read or a picture is embedded. 22 training samples: the last
# batch of 3 processes x 7 holds a single one. 2 test samples: the third process has nothing but padding.
FEW_SOURCE = """
import time
from functools import cached_property
import numpy as np
from datamodules import BrainDataModule, Facts, Stimuli, Trials

class Few(BrainDataModule):
    name = "few"
    facts = Facts(modality="fmri", units="none", licence="MIT", citation="none", subjects=("a", "b"))

    def write_down(self, what):
        with open("log.txt", "a") as log:
            log.write(what + "\\n")

    def read(self, root):
        self.write_down("read")
        time.sleep(0.5)
        rng = np.random.default_rng(0)
        images = np.tile(rng.integers(0, 255, (26, 1, 1, 3), dtype=np.uint8), (1, 8, 8, 1))
        names = [f"image-{i}" for i in range(26)]
        yield Stimuli(id=names, image=images)
        for subject, voxels in (("a", 30), ("b", 20)):
            signal = images[:, 0, 0] @ rng.normal(size=(3, voxels)) + rng.normal(size=(26, voxels))
            yield Trials(subject=subject, signal=signal, stimulus=names, split=["train"] * 24 + ["test"] * 2)

    @cached_property
    def store(self):
        store = BrainDataModule.store.func(self)
        image = store.image
        def written_down(number):
            self.write_down(f"image {number}")
            return image(number)
        store.image = written_down
        return store
"""

RAISES_SOURCE = """
import time
from lightning import Callback

class Raises(Callback):
    def on_train_batch_start(self, trainer, *args):
        if trainer.global_rank == 1:
            raise RuntimeError("the second process has had enough")
"""


@dataclass(frozen=True)
class Runs:
    """What one number of processes left behind."""

    folder: Path
    processes: int
    printed: str

    def run(self, name: str) -> Path:
        data = "few" if name in ("few", "half") else "phantom"
        return self.folder / "runs" / data / "all" / "ridge_direct" / name

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return read_weights(self.run(name) / "final.ckpt")


def read_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if name != "fitted"}


def assert_same_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], within: float) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=within, atol=within * float(value.abs().max()))


def assert_same_scores(found: Path, expected: Path) -> None:
    """Compare two ``scores.json``: all numbers to 1e-6, all words exactly."""
    ours, theirs = (json.loads(path.read_text()) for path in (found, expected))
    assert len(ours) == len(theirs) > 4
    for mine, reference in zip(ours, theirs, strict=True):
        for entry, value in reference.items():
            wanted = pytest.approx(value, abs=1e-6) if isinstance(value, float) else value
            assert mine[entry] == wanted, f"{reference['name']} of {reference['subject']}: {entry}"


def write_sources(folder: Path) -> None:
    (folder / "few.py").write_text(FEW_SOURCE)
    (folder / "raises.py").write_text(RAISES_SOURCE)
    (folder / "raises.yaml").write_text("trainer:\n  callbacks+:\n    - class_path: raises.py:Raises\n")


def commands(trainer: Sequence[str]) -> list[list[str]]:
    """Fit and test every variant on Phantom, and the two people with few samples."""
    runs = [(name, (*PHANTOM, *variant)) for name, variant in VARIANTS.items()] + [("few", FEW)]
    return [
        [command, *trainer, STAGE, *arguments, f"--run.name={name}", "--run.table=false"]
        for name, arguments in runs
        for command in ("fit", "test")
    ]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One process: this one."""
    folder = tmp_path_factory.mktemp("one")
    write_sources(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in commands([f"--config={CONFIGS}/trainer/cpu.yaml"]):
            main(words)
    return Runs(folder, 1, "")


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.full)], ids=["2 processes", "3 processes"])
def many(one: Runs, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Runs:
    """Several processes, on stores of their own that are empty when all of them start.

    They run all commands one after another, because most of the time goes into starting them.
    """
    folder = tmp_path_factory.mktemp("many")
    write_sources(folder)
    trainer = several(request.param)
    trained_by_one = ["test", *trainer, STAGE, *PHANTOM, *VARIANTS["primal"], "--run.name=trained_by_one"]
    trained_by_one.append(f"--ckpt_path={one.run('primal') / 'final.ckpt'}")
    (folder / "commands.json").write_text(json.dumps([*commands(trainer), trained_by_one]))
    (folder / "driver.py").write_text(
        "import json\n"
        "from pathlib import Path\n"
        "from experiments.cli import main\n"
        'for words in json.loads(Path("commands.json").read_text()):\n'
        "    main(words)\n"
    )
    printed = launch(folder, ["driver.py"])
    assert f"Starting with {request.param} processes" in printed
    assert "sync_dist" not in printed
    return Runs(folder, request.param, printed)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_do_not_depend_on_the_number_of_processes(one: Runs, many: Runs, variant: str) -> None:
    assert_same_weights(many.weights(variant), one.weights(variant), within=1e-5)


def test_the_model_held_two_people_of_different_size(one: Runs) -> None:
    weights = one.weights("primal")
    assert weights["decoders.0.weight"].shape != weights["decoders.1.weight"].shape
    assert one.weights("kernel").keys() == weights.keys()
    # means of standardised samples are 0
    maps = [value for name, value in weights.items() if name.startswith(("decoders.", "encoders."))]
    assert all(value.abs().max() > 1e-3 for value in maps), "nothing to compare"


@pytest.mark.parametrize("variant", [*VARIANTS, "few"])
def test_scores_do_not_depend_on_the_number_of_processes(one: Runs, many: Runs, variant: str) -> None:
    assert_same_scores(many.run(variant) / "scores.json", one.run(variant) / "scores.json")
    names = {score["name"] for score in json.loads((one.run(variant) / "scores.json").read_text())}
    assert {"two_way", "pearson_mean"} <= names


@pytest.mark.parametrize(("variant", "samples"), [("primal", 40), ("few", 2)])
def test_outputs_hold_each_row_once(one: Runs, many: Runs, variant: str, samples: int) -> None:
    found, expected = (load_file(runs.run(variant) / "outputs.safetensors") for runs in (many, one))
    rows = torch.cat([found[name] for name in sorted(found) if name.startswith("output/") and name.endswith("/row")])
    assert rows.tolist() == list(range(2 * samples))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


def test_a_process_with_nothing_but_padding_changes_nothing(one: Runs, many: Runs) -> None:
    assert_same_weights(many.weights("few"), one.weights("few"), within=1e-5)


def test_processes_that_start_together_convert_and_embed_once(many: Runs) -> None:
    lines = (many.folder / "log.txt").read_text().splitlines()
    # the pictures that a test keeps small copies of are read once more
    tested = ["image 24", "image 25"]
    assert sorted(lines) == sorted(["read", *(f"image {i}" for i in range(26)), *tested])
    stores = many.folder / "data" / "stores"
    assert len(list(stores.glob("few*"))) == 1
    assert not list(stores.rglob("*.partial"))


def test_weights_do_not_depend_on_the_size_and_number_of_batches(one: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(one.folder)
    for size in (5, 64):
        for variant in ("primal", "kernel"):
            words = [f"--config={CONFIGS}/trainer/cpu.yaml", STAGE, *PHANTOM, *VARIANTS[variant]]
            main(["fit", *words, f"--data.init_args.loader.batch_size={size}", f"--run.name={variant}-{size}"])
            assert_same_weights(one.weights(f"{variant}-{size}"), one.weights(variant), within=1e-6)
    steps = [
        torch.load(one.run(name) / "final.ckpt", weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for name in ("primal-5", "primal-64")
    ]
    assert steps[0]["total"]["completed"] > steps[1]["total"]["completed"]


def test_a_fit_that_never_met_one_of_its_people_is_refused(
    one: Runs, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(one.folder)
    words = [f"--config={CONFIGS}/trainer/cpu.yaml", STAGE, *FEW, "--run.name=half"]
    with pytest.raises(SystemExit):
        main(["fit", *words, "--trainer.limit_train_batches=0.125"])
    assert "sub-b: the pass over the training data held no sample of this person" in capfd.readouterr().err
    assert one.run("half").is_dir()
    assert not (one.run("half") / "final.ckpt").exists()


def test_several_processes_test_what_one_has_trained(one: Runs, many: Runs) -> None:
    assert not (many.run("trained_by_one") / "final.ckpt").exists()
    assert_same_scores(many.run("trained_by_one") / "scores.json", one.run("primal") / "scores.json")


def test_the_table_is_printed_by_one_process(many: Runs) -> None:
    # only one of the commands prints its table: two people and their mean
    assert many.printed.count("two_way") == 3


@pytest.mark.full
def test_torchrun_starts_the_processes(one: Runs) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = ["fit", *several(2), STAGE, *PHANTOM, *VARIANTS["primal"], "--run.name=torchrun"]
    printed = launch(one.folder, [*torchrun, "-m", "experiments", *words])
    assert "Starting with 2 processes" in printed
    assert_same_weights(one.weights("torchrun"), one.weights("primal"), within=1e-5)


@pytest.mark.parametrize(
    "launcher", ["lightning", pytest.param("torchrun", marks=pytest.mark.full)], ids=["lightning", "torchrun"]
)
def test_a_process_that_fails_ends_all_and_is_heard(one: Runs, launcher: str) -> None:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if launcher == "torchrun" else []
    words = ["fit", *several(2), STAGE, *FEW, "--config=raises.yaml", f"--run.name=failed-{launcher}"]
    began = time.monotonic()
    printed = launch(one.folder, [*start, "-m", "experiments", *words], status=None)
    assert time.monotonic() - began < 60
    assert "RuntimeError: the second process has had enough" in printed
    assert not (one.folder / "runs" / "few" / "all" / "ridge_direct" / f"failed-{launcher}" / "final.ckpt").exists()
