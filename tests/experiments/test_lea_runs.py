"""LEA through the command line: what it is made from is trained once, that of all people for all of them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from callbacks import Score, read_scores
from lightning_modules import LEA, MaskGIT
from tests.experiments.launching import CONFIGS, Neuroalign, launch, several

# what was trained for an epoch sees little in a recording, and the score of its reliability says so
pytestmark = pytest.mark.filterwarnings("ignore:.*noise gives pictures as confident")
DATA = f"{CONFIGS}/data/phantom.yaml"
PHANTOM = (
    '--data.init_args.phantom={"people": 2, "train_images": 1, "test_images": 1, "train_repetitions": 1, '
    '"test_repetitions": 1, "sessions": 1}',
    "--data.init_args.embedding={model: pixels, image_size: 4, target: pca(8), templates: []}",
    "--data.init_args.views={size: 8}",
    "--data.init_args.loader.batch_size=16",
)
TINY: dict[str, tuple[str, ...]] = {
    "fmri_mae": ("heads=2", "width=16", "depth=1", "decoder_width=16", "decoder_num_heads=2"),
    "tokenizer": ("options={levels: [3, 3]}", "grid=2"),
    "maskgit": ("width=16", "depth=1", "num_heads=2", "mlp_width=16", "steps=2", "samples=2"),
}
FEW = "--trainer.max_epochs=1"


def tiny(stage: str) -> tuple[str, ...]:
    return (*(f"--model.init_args.{size}" for size in TINY[stage]), FEW)


EARLIER = tuple(word.replace("--", f"--{stage}.", 1) for stage in TINY for word in tiny(stage))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all commands are run; data are converted once."""
    return tmp_path_factory.mktemp("lea")


def stage(name: str, *more: str) -> list[str]:
    words = [f"--config={CONFIGS}/trainer/cpu.yaml", f"--config={CONFIGS}/stage/{name}.yaml", f"--data={DATA}"]
    return [*words, *PHANTOM, "--run.table=false", *more]


def grid(*options: str, more: tuple[str, ...] = ()) -> list[str]:
    words = ["grid", f"--stage=[{CONFIGS}/stage/lea.yaml]", f"--data=[{DATA}]", "--name=g", *options]
    return [*words, "--", *PHANTOM, *EARLIER, *more]


def run_of(name: str, people: str, run: str = "g") -> Path:
    return Path("runs") / "phantom" / people / name / run


def trained(printed: str) -> list[tuple[str, str]]:
    """People and stage of each run that a grid has looked at, in order."""
    paths = [Path(line) for line in re.findall(r"^--- (\S+)$", printed, re.MULTILINE)]
    return [(path.parts[-3], path.parts[-2]) for path in paths]


def loaded(name: str, people: str, run: str = "g") -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(run_of(name, people, run) / "final.ckpt", weights_only=True)
    return checkpoint


def weights_below(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def assert_taken(later: dict[str, Any], earlier: dict[str, Any], prefix: str) -> None:
    taken = weights_below(later["state_dict"], prefix)
    assert taken.keys() == earlier["state_dict"].keys()
    assert not [name for name, value in earlier["state_dict"].items() if not torch.equal(taken[name], value)]


def test_a_grid_trains_the_stages_of_all_people_once(neuroalign: Neuroalign) -> None:
    printed = neuroalign(*grid())
    assert trained(printed) == [
        ("sub-01", "fmri_mae"),
        ("all", "tokenizer"),
        ("all", "maskgit"),
        ("sub-01", "lea"),
        ("sub-02", "fmri_mae"),
        ("sub-02", "lea"),
    ]
    decoder = loaded("maskgit", "all")
    assert_taken(decoder, loaded("tokenizer", "all"), "tokenizer.")
    for people in ("sub-01", "sub-02"):
        checkpoint = loaded("lea", people)
        assert_taken(checkpoint, decoder, "maskgit.")
        assert_taken(checkpoint, loaded("fmri_mae", people), "autoencoder.")
        stages = [entry["stage"] for entry in checkpoint["lineage"]]
        assert stages == ["FmriMAE", "Tokenizer", "MaskGIT", "LEA"]
        scores = (run_of("lea", people) / "scores.json").read_text()
        assert people.removeprefix("sub-") in scores
    # those of all people were trained on everyone's pictures, and nobody's in particular
    for name in ("tokenizer", "maskgit"):
        config = yaml.safe_load((run_of(name, "all") / "config_fit.yaml").read_text())
        assert config["data"]["init_args"]["subjects"] is None
        assert config["trainer"]["max_epochs"] == 1
    assert not run_of("lea", "all").joinpath("final.ckpt").exists()

    # again: finished runs are tested, not trained
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("final.ckpt")}
    assert len(before) == 6
    neuroalign(*grid('--subjects=["02"]'))
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("final.ckpt")} == before
    message = neuroalign(*grid(more=("--tokenizer.model.init_args.lr=0.1",)), status=2)
    assert "all/tokenizer/g is finished, but was trained with other arguments" in message


def test_a_checkpoint_of_the_command_line_is_loaded_alone(neuroalign: Neuroalign, tmp_path: Path) -> None:
    if not run_of("lea", "sub-01").joinpath("final.ckpt").exists():
        neuroalign(*grid('--subjects=["01"]'))
    state = loaded("lea", "sub-01")["state_dict"]
    path = shutil.copy(run_of("lea", "sub-01") / "final.ckpt", tmp_path / "lea.ckpt")
    model = LEA.load_from_checkpoint(path, weights_only=True).eval()
    alone = MaskGIT.load_from_checkpoint(run_of("maskgit", "all") / "final.ckpt", weights_only=True).eval()
    assert model.conditions == ("encoded", "shuffled", "noise")
    assert not [name for name, value in state.items() if not torch.equal(model.state_dict()[name], value)]
    embedding, stimulus = torch.randn(3, 8), torch.arange(3)
    with torch.no_grad():
        ours, theirs = (decoder.generate(embedding, stimulus)[0] for decoder in (model.maskgit, alone))
    assert torch.equal(ours, theirs)
    assert ours.shape == (3, 2, 3, 8, 8)


def test_a_missing_maskgit_is_one_clear_line(neuroalign: Neuroalign) -> None:
    person = ('--data.init_args.subjects=["02"]', "--model.init_args.fmri_mae=null", "--run.name=none")
    message = neuroalign("fit", *stage("lea", *person), status=2)
    assert len(message.strip().splitlines()) == 1
    place = r"\S*runs/phantom/all/maskgit/none/final\.ckpt"
    assert re.search(rf"no checkpoint {place}; train that stage first .*--model\.init_args\.maskgit", message)
    message = neuroalign("fit", *stage("maskgit", *tiny("maskgit"), "--run.name=none"), status=2)
    assert len(message.strip().splitlines()) == 1
    assert re.search(r"no checkpoint \S*phantom/all/tokenizer/none/final\.ckpt; train that stage first", message)


@pytest.mark.full
def test_the_earlier_stage_of_all_people_is_that_of_the_same_name(neuroalign: Neuroalign) -> None:
    """Two names, one after another by hand; a run of one person takes the MaskGIT of all people, not its own."""
    for name, rate in (("a", "0.001"), ("b", "0.1")):
        neuroalign("fit", *stage("tokenizer", *tiny("tokenizer"), f"--model.init_args.lr={rate}", f"--run.name={name}"))
        neuroalign("fit", *stage("maskgit", *tiny("maskgit"), f"--run.name={name}"))
    own = ('--data.init_args.subjects=["02"]', "--run.name=b")
    neuroalign("fit", *stage("tokenizer", *tiny("tokenizer"), *own))
    neuroalign("fit", *stage("maskgit", *tiny("maskgit"), "--model.init_args.lr=0.1", *own))
    neuroalign("fit", *stage("lea", "--model.init_args.fmri_mae=null", *own))
    decoders = [loaded("maskgit", "all", name) for name in ("a", "b")]
    first, second = (weights_below(decoder["state_dict"], "tokenizer.") for decoder in decoders)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert_taken(loaded("lea", "sub-02", "b"), decoders[1], "maskgit.")


@pytest.mark.full
def test_pictures_and_scores_are_those_of_one_process_and_any_batch_size(neuroalign: Neuroalign, folder: Path) -> None:
    if not run_of("lea", "sub-01").joinpath("final.ckpt").exists():
        neuroalign(*grid('--subjects=["01"]'))
    run = run_of("lea", "sub-01")
    words = [f"--config={CONFIGS}/stage/lea.yaml", f"--data={DATA}", *PHANTOM, "--run.table=false", "--run.name=g"]
    words += ['--data.init_args.subjects=["01"]']
    found: list[tuple[dict[str, torch.Tensor], list[Score]]] = []
    for trainer, batch_size in ((several(1), 16), (several(1), 1), (several(2), 3)):
        for command in ("predict", "test"):
            options = [*trainer, *words, f"--data.init_args.loader.batch_size={batch_size}"]
            launch(folder, ["-W", "ignore", "-m", "experiments", command, *options])
        found.append((load_file(run / "predictions.safetensors"), read_scores(run / "scores.json")))
    (expected, scores), *others = found
    assert {"01/generated", "01/noise.generated"} <= set(expected)
    for pictures, theirs in others:
        for name in (name for name in expected if name.endswith("generated")):
            # a code whose probability lies at the edge may fall to either side of it
            same = (pictures[name] == expected[name]).flatten(2).all(dim=2).float().mean()
            assert same >= 0.99, name
        assert [score.name for score in theirs] == [score.name for score in scores]
        for score, other in zip(scores, theirs, strict=True):
            assert other.value == pytest.approx(score.value, abs=1e-4), score.name
