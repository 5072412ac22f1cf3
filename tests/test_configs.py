"""Every shipped configuration file, found by looking: parsed, instantiated and run on tiny data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import torchvision
import yaml
from lightning import Trainer

from callbacks import read_reference, read_scores
from contracts import Layout
from datamodules import DataModule, MultiModal
from experiments import arguments, cli
from experiments.cli import main
from experiments.run import CLI, RunOptions
from experiments.sweep_file import read_sweep
from experiments.trial_table import read_trials
from lightning_modules import Stage
from tests.formats import (
    bold5000,
    god,
    haxby2001,
    hcp,
    imagenet_eeg,
    images,
    miyawaki2008,
    nsd,
    pieman,
    sensor_recordings,
    things_eeg2,
    things_meg,
    uci_eeg,
    vangerven2010,
)
from tests.shipped import ALL, CONFIGS, ROOT, files, make
from tests.tiny import (
    FEW_CLASSES,
    PARTS,
    PATCHES,
    PICTURES_ALONE,
    SHIPPED_SIZE,
    SPECIAL,
    TINY,
    TINY_PHANTOM,
    WITHOUT_PICTURES,
)

KINDS = ("stage", "data", "trainer", "logger", "recipe", "reference", "sweep")
NEEDS_A_GPU = {"gpu"}


def stages() -> list[Path]:
    """Stage files, and the recipes that are one."""
    return [*files("stage"), *(path for path in files("recipe") if "model" in content(path))]


def marked(paths: list[Path]) -> list[Any]:
    """Parameters of a test that trains; what is of published size takes longer."""
    return [pytest.param(p, marks=[pytest.mark.full] * p.stem.endswith("_full"), id=named(p)) for p in paths]


def earlier_of(path: Path) -> dict[str, Path]:
    """Arguments of a stage's model that name the run of another stage, and that stage's file."""
    given = content(path)["model"]["init_args"]
    named_by = {
        name: value.removeprefix("run:").removeprefix("all/")
        for name, value in given.items()
        if isinstance(value, str) and value.startswith("run:")
    }
    return {name: next(file for file in stages() if file.stem == stage) for name, stage in named_by.items()}


def all_earlier(path: Path) -> list[Path]:
    """Files of the stages that a stage is made from, in the order in which they are trained."""
    return [each for file in earlier_of(path).values() for each in (*all_earlier(file), file)]


def arguments_of(path: Path, layout: Layout) -> dict[str, Any]:
    """Arguments of a stage's model, with those of earlier stages in place of their checkpoints."""
    earlier = {name: arguments_of(file, layout) for name, file in earlier_of(path).items()}
    return {"layout": layout, **content(path)["model"]["init_args"], **earlier}


def named(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


def content(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def dataset_of(path: Path) -> str:
    """The data set of a data file: ``<data set>.yaml`` or ``<data set>_<protocol>.yaml``."""
    return max((name for name in TINY if path.stem == name or path.stem.startswith(f"{name}_")), key=len, default="")


def data_of(stage: Path) -> Path:
    """The data file that a stage file's own command trains on."""
    [first, *_] = re.findall(r"^#\s+make (train-\S+.*)$", stage.read_text(), re.MULTILINE)
    # what an earlier stage needs is printed, too
    file = f"configs/{stage.relative_to(CONFIGS)}"
    [command] = [line for line in make(*first.split()).splitlines() if file in line and " fit " in line]
    found = re.search(r"--data configs/data/(\S+)", command)
    assert found is not None
    return CONFIGS / "data" / found[1]


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny raw files of all data sets, in the layout of the shared folder."""
    folder = tmp_path_factory.mktemp("raw")
    vangerven2010.write(folder / "vangerven2010", train=60, test=10)
    miyawaki2008.write(folder / "miyawaki2008", repetitions=3)
    god.write(folder / "god", train=40)
    god.write_bdata(folder / "god", train=40)
    bold5000.write(folder / "bold5000", train=40)
    haxby2001.write(folder / "haxby2001", runs=12)
    images.write(folder / "images" / "open_images", number=60)
    imagenet_eeg.write(folder / "imagenet_eeg", classes=6)
    for write in (nsd.write, nsd.write_brain_diffuser, nsd.write_mindeye2):
        write(folder / "nsd", sessions=1, test=4)
    things_eeg2.write(folder / "things_eeg2", concepts=20, test=10)
    things_meg.write(folder / "things_meg", concepts=12, images=4)
    pieman.write(folder / "htfa_timeseries", people=12)
    uci_eeg.write(folder / "uci_eeg", 10)
    sensor_recordings.write_eeglab(folder / "eeglab_sample" / "eeglab_data.set", seconds=120, events=("square",))
    hcp.write_npz(folder / "HCP" / "npz", people=12, volumes=200)
    hcp.write_dtseries(folder / "HCP", people=12, volumes=200)
    [parcellation] = re.findall(r"HCP/(\S+\.dlabel\.nii)\n", (CONFIGS / "data" / "hcp_parcels.yaml").read_text())
    hcp.write_dlabel(folder / "HCP" / parcellation)
    return folder


@pytest.fixture
def formats(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and tiny raw files where the data files look for them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEUROALIGN_SHARED", str(raw))
    return tmp_path


@pytest.fixture
def meta() -> Iterator[None]:
    with torch.device("meta"):
        yield


def test_every_file_has_a_kind_that_is_tested_here() -> None:
    assert ALL
    unknown = [named(path) for path in ALL if path.parent not in [CONFIGS / kind for kind in KINDS]]
    assert not unknown, f"say in this file how to test {unknown}"
    strange = [path for path in CONFIGS.rglob("*") if path.is_file() and path not in ALL]
    assert not strange, f"no configuration files: {strange}"
    for kind in KINDS:
        assert files(kind), kind


def test_every_data_file_has_tiny_data() -> None:
    assert {dataset_of(path) for path in files("data")} == set(TINY), "say in TINY how to make this data set tiny"


# ---- rules that hold for all files ---------------------------------------------------------------


@pytest.mark.parametrize("path", ALL, ids=named)
def test_callbacks_are_appended_never_replaced(path: Path) -> None:
    assert not re.search(r"^[^#]*\bcallbacks\s*:", path.read_text(), re.MULTILINE), "write callbacks+:"


@pytest.mark.parametrize("path", [path for path in ALL if path.parent.name != "data"], ids=named)
def test_only_data_files_set_data(path: Path) -> None:
    loaded = content(path)
    nested = [loaded, *(value for key, value in loaded.items() if key in arguments.RUN_COMMANDS)]
    assert not any("data" in part or "data+" in part for part in nested)


@pytest.mark.parametrize("path", ALL, ids=named)
def test_a_file_begins_with_a_comment_that_says_what_it_is(path: Path) -> None:
    assert re.match(r"# \w.+[.:?,\w]\n", path.read_text())


# ---- stages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", stages(), ids=named)
def test_a_stage_is_built_at_its_shipped_size_without_memory(path: Path, meta: None) -> None:
    entry = content(path)["model"]
    assert set(entry) == {"class_path", "init_args"}
    kind = arguments.import_class(entry["class_path"])
    assert issubclass(kind, Stage)
    layout = SPECIAL.get(dataset_of(data_of(path)), SHIPPED_SIZE)
    stage = kind(**arguments_of(path, layout))
    parameters = list(stage.parameters())
    assert sum(parameter.numel() for parameter in parameters) > 0
    assert all(parameter.is_meta for parameter in parameters)


@pytest.mark.parametrize("path", marked(stages()))
def test_a_stage_runs_a_batch_of_everything(path: Path, formats: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = data_of(path)
    for file in all_earlier(path):
        words = [f"--config={CONFIGS}/trainer/cpu.yaml", f"--config={file}", f"--data={data}"]
        # what is of published size takes a minute a step
        short = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"] * file.stem.endswith("_full")
        main(["fit", *words, *TINY[dataset_of(data)], "--trainer.max_epochs=1", *short])
    before = list(formats.rglob("*.ckpt"))
    words = [f"--config={CONFIGS}/trainer/smoke.yaml", f"--config={path}", f"--data={data}"]
    main(["fit", *words, *TINY[dataset_of(data)]])
    assert list(formats.rglob("*.ckpt")) == before, "a smoke run writes nothing"


@pytest.mark.parametrize("path", stages(), ids=named)
def test_a_stage_states_a_command_that_make_knows(path: Path) -> None:
    stated = re.findall(r"^#\s+make (train-\S+.*)$", path.read_text(), re.MULTILINE)
    assert stated, "state the command that trains it"
    for command in stated:
        printed = make(*command.split())
        file = path.relative_to(CONFIGS).as_posix()
        assert f"-c configs/{file}" in printed
        # what an earlier stage needs comes first, and scores last
        [printed] = [line for line in printed.splitlines() if f"configs/{file}" in line and " fit " in line]
        assert re.match(r"\.venv/bin/neuroalign fit -c configs/trainer/[cg]pu.yaml", printed)
        named_data = re.search(r"--data (\S+)", printed)
        assert named_data is not None
        assert (ROOT / named_data[1]).is_file()


# ---- data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", files("data"), ids=named)
def test_a_data_file_names_a_data_set_and_nothing_else(path: Path) -> None:
    loaded = content(path)
    assert set(loaded) == {"class_path", "init_args"}
    kind = arguments.import_class(loaded["class_path"])
    assert issubclass(kind, DataModule)
    # data sets side by side have no store of their own
    name = "phantom_multimodal" if kind is MultiModal else kind.name
    assert name == dataset_of(path), "runs of this file would be found under another name than its store"
    interpolations = re.findall(r"\$\{([^}]*)\}?", path.read_text())
    assert all(entry.startswith("oc.env:") for entry in interpolations), interpolations


@pytest.mark.parametrize("path", files("data"), ids=named)
def test_a_data_file_runs_with_tiny_data(path: Path, formats: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[CLI] = []
    run = cli.run
    monkeypatch.setattr(cli, "run", lambda words: commands.append(run(words)))
    stage = {**PICTURES_ALONE, **WITHOUT_PICTURES, **FEW_CLASSES}.get(path.stem, "ridge_direct")
    words = [f"--config={CONFIGS}/trainer/smoke.yaml", f"--config={CONFIGS}/stage/{stage}.yaml", f"--data={path}"]
    main(["fit", *words, *TINY[dataset_of(path)]])
    [command] = commands
    assert type(command.datamodule) is arguments.import_class(content(path)["class_path"])
    if stage != "ridge_direct":
        return
    assert bool(command.model.get_buffer("fitted"))
    layout = command.model.layout
    assert min(layout["train_samples"].values()) >= 20
    assert layout["embedding_width"] >= 8


@pytest.mark.parametrize("name", ["phantom", "phantom_eeg", "phantom_meg"])
def test_phantom_finds_the_small_clip_where_make_leaves_it(name: str, formats: Path, monkeypatch: Any) -> None:
    trainer = f"--config={CONFIGS}/trainer/cpu.yaml"
    clip = [f"--config={CONFIGS}/stage/clip.yaml", f"--data={CONFIGS}/data/phantom_pictures.yaml"]
    words = [
        trainer,
        f"--config={CONFIGS}/stage/ridge_direct.yaml",
        f"--data={CONFIGS}/data/{name}.yaml",
        *TINY_PHANTOM,
    ]
    with pytest.raises(SystemExit):
        main(["fit", *words])
    main(["fit", trainer, *clip, *TINY["phantom_pictures"], "--trainer.max_epochs=1"])
    for command in ("fit", "test"):
        main([command, *words])
    scores = read_scores(next(formats.glob(f"runs/{name}/all/ridge_direct/default/scores.json")))
    texts = {"text (40)"} if name == "phantom" else set()
    assert {score.gallery for score in scores if score.name == "two_way"} == {"test (40)"} | texts


# ---- trainers and loggers ------------------------------------------------------------------------


def trainer_parser() -> arguments.Parser:
    parser = arguments.Parser(parser_mode="omegaconf+")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_class_arguments(RunOptions, "run")
    parser.add_argument("--config", action="config")
    return parser


@pytest.mark.parametrize("path", files("trainer"), ids=named)
def test_a_trainer_file_leaves_the_samplers_alone(path: Path, formats: Path) -> None:
    loaded = content(path)
    assert set(loaded) <= {"trainer", "run"}
    # where there may be a GPU, it is used as it is best used
    assert loaded.get("run", {}).get("bf16", False) == (loaded["trainer"]["accelerator"] != "cpu")
    config = trainer_parser().parse_args([f"--config={path}"]).trainer
    assert config.use_distributed_sampler is False
    assert config.accelerator == loaded["trainer"]["accelerator"]
    if path.stem in NEEDS_A_GPU and not torch.cuda.is_available():
        return
    trainer = Trainer(**config.as_dict() | {"logger": False})
    assert trainer._accelerator_connector.use_distributed_sampler is False


@pytest.mark.parametrize("path", files("logger"), ids=named)
def test_a_logger_file_names_a_logger(path: Path) -> None:
    loaded = content(path)
    assert set(loaded) == {"trainer"}
    assert set(loaded["trainer"]) == {"logger"}
    logger = trainer_parser().parse_args([f"--config={path}"]).trainer.logger
    assert logger.class_path == loaded["trainer"]["logger"]["class_path"]
    assert set(logger.init_args.as_dict()) >= set(loaded["trainer"]["logger"]["init_args"])
    assert "${" not in str(logger)


# ---- recipes -------------------------------------------------------------------------------------


# torchvision asks how a network is initialised that weights will be loaded into
@pytest.mark.filterwarnings("ignore:The default weight initialization of inception_v3")
@pytest.mark.parametrize("path", [path for path in files("recipe") if path not in stages()], ids=named)
def test_a_recipe_adds_callbacks_whose_networks_exist(path: Path, formats: Path, meta: None) -> None:
    assert set(content(path)) == {"trainer"}
    parser = trainer_parser()
    callbacks = parser.instantiate(parser.parse_args([f"--config={path}"])).trainer.callbacks
    assert callbacks
    assert all(type(callback).__module__.startswith("callbacks.") for callback in callbacks)
    for network in [network for callback in callbacks for network in getattr(callback, "networks", ())]:
        family, _, name = network.model.partition(":")
        if family == "open_clip":
            assert network.weights in open_clip.list_pretrained_tags_by_model(name)
            continue
        built = {"torchvision": torchvision.models.get_model, "timm": timm.create_model}[family](name)
        assert network.layer is None or network.layer in dict(built.named_modules())


def test_the_recipes_of_neural_alignment_differ_in_named_arguments_only() -> None:
    ours, published = (content(CONFIGS / "recipe" / f"neural_alignment{which}.yaml") for which in ("", "_published"))
    assert ours.keys() == published.keys() == {"model", "trainer"}
    assert ours["model"]["class_path"] == published["model"]["class_path"]
    assert ours["model"]["init_args"].keys() == published["model"]["init_args"].keys()
    assert ours["trainer"].keys() == published["trainer"].keys() == {"max_epochs"}


# ---- published scores ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", files("reference"), ids=named)
def test_published_scores_are_those_of_tasks_that_are_scored(path: Path) -> None:
    reference = read_reference(path)
    ends = (*PARTS, "image")
    assert {gallery for gallery, _ in reference.values} <= {f"{a} to {b}" for a in ends for b in ends if a != b}
    names = {"published_two_way", "normalised_two_way", "class_top_1", "class_top_5"}
    assert {name for _, name in reference.values} <= names
    assert all(0 < value <= 1 for value in reference.values.values())


# ---- sweeps --------------------------------------------------------------------------------------


SWEEPS = [pytest.param(p, marks=[pytest.mark.full] * (p.stem != "lea_heads"), id=named(p)) for p in files("sweep")]


@pytest.mark.parametrize("path", SWEEPS)
def test_a_sweep_finds_its_metric_at_both_ends_on_tiny_data(path: Path, formats: Path) -> None:
    (formats / "configs").symlink_to(CONFIGS)
    sweep = read_sweep(path)
    trials = sweep.trials(count=None, seed=0)
    # what is of published size takes a minute a step
    short = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"] * path.stem.endswith("_full")
    for chosen in (trials[0], trials[-1]):
        # batches and patches of a swept size may be larger than tiny data
        values = {name: value for name, value in chosen.items() if not name.endswith((".batch_size", ".patch_size"))}
        data = TINY[dataset_of(Path(values["data"]))]
        tiny = [*data, "--trainer.max_epochs=1", *short, *PATCHES.get(path.stem, ())]
        main(sweep.with_words(["--trainer=configs/trainer/cpu.yaml", *tiny]).words(values)[1:])
    assert [sweep.metric in trial.values for trial in read_trials("runs", path.stem)] == [True, True]
    assert not list(formats.rglob("scores.json")), "a trial is never tested"
