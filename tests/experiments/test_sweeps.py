"""Shipped sweep files: every stage has one, and every command line they stand for is one that trains."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb import wandb_agent

from datamodules import BrainDataModule
from experiments import grid
from experiments.cells import Cell
from experiments.cli import main
from experiments.run import CLI
from experiments.sweep_file import Sweep, read_sweep
from experiments.trial import Made
from tests.shipped import CONFIGS, files, make

SWEEPS = files("sweep")
TRAINED = [
    *files("stage"),
    *(path for path in files("recipe") if "model" in yaml.safe_load(path.read_text())),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder from which the shipped files are found, and one person without recordings."""
    monkeypatch.chdir(tmp_path)
    # as the command line does
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    (tmp_path / "configs").symlink_to(CONFIGS)
    monkeypatch.setattr(BrainDataModule, "subjects", ["01"])
    monkeypatch.setattr(BrainDataModule, "folds", 1)
    return tmp_path


# building the parser takes longer than all else, so the first one is used again
PARSERS: list[Any] = []


@pytest.fixture
def parse(place: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Parse a command line as a fit does, and stop there."""
    monkeypatch.setattr(CLI, "instantiate_classes", lambda self: PARSERS.append(self.parser))
    monkeypatch.setattr(CLI, "_run_subcommand", lambda self, name: None)

    def parsed(words: list[str]) -> Any:
        if not PARSERS:
            main(words)
        return PARSERS[0].parse_args(words)[words[0]]

    return parsed


def sampled(sweep: Sweep) -> list[dict[str, Any]]:
    """Parameters of all trials of a grid; of a random sweep some, and both ends of everything."""
    parameters = sweep.content["parameters"]
    ends = [
        {name: entry.get("value", entry.get("values", [entry.get(end)])[place]) for name, entry in parameters.items()}
        for place, end in ((0, "min"), (-1, "max"))
    ]
    return [*ends, *sweep.trials(count=5 if sweep.content["method"] == "random" else None, seed=1)]


def by_agent(sweep: Sweep, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    """The command that an agent of W&B would start."""
    started: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str], **kwargs: Any) -> None:
            started.append(command)

    monkeypatch.setattr(wandb_agent, "AgentProcess", Process)
    monkeypatch.setenv("WANDB_DIR", str(folder))
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "r")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", "p")
    agent = wandb_agent.Agent(None, None)
    agent._sweep_command = list(sweep.content["command"])
    args = {name: {"value": value} for name, value in values.items()}
    agent._command_run({"run_id": "r", "program": sweep.content["program"], "args": args})
    return started[0]


def with_earlier(cell: Cell) -> Iterator[Cell]:
    for each in cell.earlier:
        yield from with_earlier(each)
    yield cell


def check(sweep: Sweep, trials: list[dict[str, Any]], parse: Any) -> None:
    parsed = {}
    for values in trials:
        made = Made.by(*grid.parse(sweep.words(values)[2:]))
        assert made.options.trial
        [setting] = made.settings()
        [[trained, *_]] = setting.models
        for cell in with_earlier(trained):
            if cell.folder not in parsed:
                config = parsed[cell.folder] = parse(["fit", *cell.words])
                assert config.run.name == cell.folder.name
                used = {str(value) for value in config.model.init_args.as_dict().values()}
                # a later stage is told where the earlier ones lie
                assert {str(earlier.folder / "final.ckpt") for earlier in cell.earlier} <= used
        model = parsed[trained.folder].model
        for name, value in values.items():
            if name.startswith("model.init_args."):
                found = model[name.removeprefix("model.")]
                found = found.get("class_path", found) if hasattr(found, "get") else found
                assert found == (pytest.approx(value) if isinstance(value, (int, float)) else value)


def test_every_stage_and_recipe_has_a_sweep() -> None:
    assert {path.stem for path in TRAINED} <= {path.stem for path in SWEEPS}


def test_data_sets_are_swept_by_naming_their_files() -> None:
    swept = [read_sweep(path).content["parameters"]["data"] for path in SWEEPS]
    assert sum(len(entry.get("values", ())) > 1 for entry in swept) >= 5
    named = [name for entry in swept for name in entry.get("values", [entry.get("value")])]
    assert {CONFIGS.parent / name for name in named} <= set(files("data"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_says_what_it_looks_for_and_how_it_is_started(path: Path) -> None:
    sweep = read_sweep(path)
    comment = "".join(re.findall(r"^#(.*)$", path.read_text(), re.MULTILINE))
    assert "Hardware:" in comment
    for target, flags in (("sweep", ""), ("sweep-local", " --local=true")):
        command = f"make {target} STAGE={path.stem.replace('_', '-')}"
        assert f"{command} " in f"{comment} ".replace("   ", "  ")
        assert f"neuroalign sweep{flags} --file=configs/sweep/{path.name}" in make(*command.split()[1:])
    assert sweep.content["name"] == path.stem
    assert f"--name={path.stem}" in sweep.content["command"]
    # the file of a stage is about that stage
    own = [file for file in TRAINED if file.stem == path.stem]
    assert all(f"--stage={file.relative_to(CONFIGS.parent)}" in sweep.content["command"] for file in own)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_ends_of_a_sweep_are_parsed_and_what_an_agent_would_run(
    path: Path, place: Path, parse: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = read_sweep(path)
    first, last, *_ = sampled(sweep)
    for values in (first, last):
        assert by_agent(sweep, values, monkeypatch, place) == sweep.words(values)
    check(sweep, [first, last], parse)


@pytest.mark.full
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_argument_list_of_a_sweep_is_parsed(
    path: Path, place: Path, parse: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = read_sweep(path)
    trials = sampled(sweep)
    for values in trials:
        assert by_agent(sweep, values, monkeypatch, place) == sweep.words(values)
    check(sweep, trials, parse)


def test_which_stage_a_trial_is_made_from_may_be_swept(place: Path) -> None:
    words = ["--trial=true", "--stage=configs/stage/ridge_lea.yaml", "--data=configs/data/phantom.yaml"]
    found = {}
    for source in ("run:fmri_mae", "run:mindvis", "other.ckpt"):
        made = Made.by(*grid.parse([*words, f"--model.init_args.fmri_mae={source}"]))
        [setting] = made.settings()
        [[cell]] = setting.models
        found[source] = [earlier.folder.parent.name for earlier in cell.earlier]
    assert found == {"run:fmri_mae": ["fmri_mae"], "run:mindvis": ["mindvis"], "other.ckpt": []}


# ---- expansion -----------------------------------------------------------------------------------------

SWEEP = """
program: neuroalign
method: {method}
metric: {{name: validation/loss, goal: minimize}}
command: ["${{program}}", grid, --trial=true, --name=s, --stage=stage.yaml, "${{args}}"]
parameters:
{parameters}
"""


def written(folder: Path, parameters: str, method: str = "random", **change: str) -> Path:
    text = SWEEP.format(method=method, parameters=parameters)
    for before, after in change.items():
        assert before in text
        text = text.replace(before, after)
    file = folder / "sweep.yaml"
    file.write_text(text)
    return file


def drawn(folder: Path, parameter: str, count: int = 400) -> list[Any]:
    sweep = read_sweep(written(folder, f"  x: {parameter}"))
    return [values["x"] for values in sweep.trials(count=count, seed=0)]


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    sweep = read_sweep(written(tmp_path, "  a: {values: [1, 2]}\n  b: {values: [x, y]}\n  c: {value: 3}", "grid"))
    trials = sweep.trials(count=None, seed=0)
    assert sorted((t["a"], t["b"], t["c"]) for t in trials) == [(1, "x", 3), (1, "y", 3), (2, "x", 3), (2, "y", 3)]
    assert sweep.trials(count=3, seed=0) == trials[:3]
    words = sweep.words(trials[0])
    assert " ".join(words) == "neuroalign grid --trial=true --name=s --stage=stage.yaml --a=1 --b=x --c=3"
    named = sweep.with_words(["--more=1"], data="d.yaml").trials(count=None, seed=0)
    assert {values["data"] for values in named} == {"d.yaml"}
    assert sweep.with_words(["--more=1"]).words(trials[0])[5:7] == ["--more=1", "--a=1"]


@pytest.mark.parametrize(
    ("parameter", "low", "high", "middle"),
    [
        ("{min: 0.5, max: 2.5}", 0.5, 2.5, 1.5),
        ("{distribution: uniform, min: 1, max: 3}", 1, 3, 2),
        ("{distribution: log_uniform_values, min: 1.0e-4, max: 1.0}", 1e-4, 1, 1e-2),
        ("{distribution: normal, mu: 5, sigma: 0.1}", 4, 6, 5),
        ("{distribution: log_normal, mu: 1, sigma: 0.5}", 0.2, 30, 2.718),
    ],
)
def test_random_values_are_those_of_the_distribution(
    tmp_path: Path, parameter: str, low: float, high: float, middle: float
) -> None:
    values = drawn(tmp_path, parameter)
    assert all(type(value) is float and low <= value <= high for value in values)
    # binomial: within 4 standard deviations
    assert abs(sum(value < middle for value in values) - 200) < 40


def test_a_file_may_say_how_many_trials_and_that_the_least_is_best(tmp_path: Path) -> None:
    grid = "  x: {values: [1, 2, 3]}"
    sweep = read_sweep(written(tmp_path, grid, "grid", **{"method:": "run_cap: 2\nmethod:", ", goal: minimize": ""}))
    assert [values["x"] for values in sweep.trials(count=None, seed=0)] == [1, 2]
    assert [values["x"] for values in sweep.trials(count=1, seed=0)] == [1]
    assert not sweep.maximise
    assert read_sweep(written(tmp_path, grid, "grid", minimize="maximize")).maximise


def test_whole_and_rounded_values(tmp_path: Path) -> None:
    assert set(drawn(tmp_path, "{min: 1, max: 3}")) == {1, 2, 3}
    assert all(type(value) is int for value in drawn(tmp_path, "{min: 1, max: 3}"))
    steps = drawn(tmp_path, "{distribution: q_uniform, min: 0, max: 1, q: 0.25}")
    assert set(steps) == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert set(drawn(tmp_path, "{values: [1, 5]}")) == {1, 5}
    assert drawn(tmp_path, "{distribution: constant, value: 7}") == [7]
    assert len(drawn(tmp_path, "{values: [1, 5]}")) == 2, "no trial twice"
    assert drawn(tmp_path, "{min: 0.0, max: 1.0}", 5) == drawn(tmp_path, "{min: 0.0, max: 1.0}", 9)[:5]


@pytest.mark.parametrize(
    ("parameter", "method", "said"),
    [
        ("{distribution: inv_log_uniform, min: 1, max: 2}", "random", "'inv_log_uniform' is not known here"),
        ("{values: [1, 2], probabilities: [0.1, 0.9]}", "random", "'probabilities' is not known here"),
        ("{distribution: uniform, min: 1}", "random", "uniform needs max:"),
        ("{parameters: {y: {value: 1}}}", "random", "write dotted names"),
        ("{min: 2, max: 1}", "random", "nothing is int_uniform with min: 2, max: 1"),
        ("{min: 2.0, max: 2.0}", "random", "nothing is uniform with min: 2.0, max: 2.0"),
        ("{distribution: log_uniform_values, min: 0, max: 1}", "random", "nothing is log_uniform_values with min: 0"),
        ("{distribution: normal, sigma: -1}", "random", "nothing is normal with sigma: -1"),
        ("{distribution: q_uniform, min: 0, max: 1, q: 0}", "random", "nothing is q_uniform with min: 0, max: 1, q: 0"),
        ("{min: 0.0, max: 1.0}", "grid", "method grid needs values: of each parameter; x has none"),
        ("{values: [1]}", "bayes", "method 'bayes' is computed by the server"),
    ],
)
def test_what_only_the_server_knows_is_refused_by_name(
    tmp_path: Path, parameter: str, method: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, f"  x: {parameter}", method)
    with pytest.raises(SystemExit):
        main(["sweep", f"--file={file}", "--local=true", "--count=2"])
    assert said in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"validation/loss": "test/loss"}, "only validation may choose: metric.name must begin with 'validation/'"),
        ({", --trial=true": ""}, "command lacks --trial=true"),
        ({'"${args}"': "--x=1"}, 'command needs "${args}" once'),
        ({"grid,": "fit,"}, 'command must begin with "${program}", grid'),
        ({"method:": "methods:"}, "has no method"),
        ({"parameters:": "parameters: ["}, "cannot read the sweep file"),
        ({"program:": "\x00:"}, "cannot read the sweep file"),
        ({"{name: validation/loss, goal: minimize}": "validation/loss"}, "found metric: 'validation/loss'"),
        ({"goal: minimize": "goal: max"}, "metric.goal must be minimize or maximize; found 'max'"),
        ({"method:": "runcap: 3\nmethod:"}, "runcap is nothing that a sweep file says; it says program, method"),
        ({"method:": "run_cap: all\nmethod:"}, "run_cap must be a number of trials, at least 1; found 'all'"),
        ({"method:": "run_cap: 0\nmethod:"}, "run_cap must be a number of trials, at least 1; found 0"),
        ({"  x: {values: [1]}": ""}, "parameters must be a mapping of at least one dotted name; found None"),
        ({"  x: {": "  - x: {"}, "parameters must be a mapping of at least one dotted name; found ["),
        ({"{values: [1]}": "1"}, "parameter x must be a mapping with value:, values: or min: and max:; found 1"),
        ({"values: [1]": "value: 1, valeus: [1]"}, "parameter x: valeus is none of value, values"),
        ({"[1]": "[]"}, "parameter x: values must be a list of at least one; found []"),
        ({"[1]": "cv"}, "parameter x: values must be a list of at least one; found 'cv'"),
        ({"values: [1]": "min: 1e-4, max: 1.0"}, "parameter x: min: '1e-4' must be numbers (to YAML 1e-4 is a text"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(
    tmp_path: Path, change: dict[str, str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, "  x: {values: [1]}", **change)
    with pytest.raises(SystemExit):
        main(["sweep", f"--file={file}", "--dry_run=true"])
    printed = capfd.readouterr().err
    assert said in printed
    assert str(file) in printed
    assert len(printed.strip().splitlines()) == 1


def test_a_missing_file_and_a_missing_number_say_what_there_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, "  x: {min: 0.0, max: 1.0}")
    (tmp_path / "latin-1.yaml").write_bytes("name: Größe".encode("latin-1"))
    for words, said in (
        ([f"--file={tmp_path}/none.yaml"], f"{tmp_path} has latin-1, sweep"),
        ([f"--file={tmp_path}/latin-1.yaml"], "cannot read the sweep file"),
        ([f"--file={file}"], "method random never ends; set --count"),
        ([f"--file={file}", "--count=0"], "--count (COUNT=...) must be a number of trials, at least 1; found 0"),
    ):
        with pytest.raises(SystemExit):
            main(["sweep", *words, "--dry_run=true"])
        assert said in capfd.readouterr().err
