"""Sweep files of Weights & Biases: read and checked, expanded into trials, and the command line of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats
from sklearn.model_selection import ParameterGrid, ParameterSampler

from contracts import DataError

_ARGS = "${args}"
_NEEDED = ("program", "method", "metric", "command", "parameters")
_KNOWN = (*_NEEDED, "name", "description", "entity", "project", "run_cap", "early_terminate")
_NUMBERS = ("min", "max", "mu", "sigma", "q")
_OF_PARAMETER = ("value", "values", "probabilities", "distribution", "parameters", *_NUMBERS)


@dataclass(frozen=True)
class Sweep:
    """A sweep file, as Weights & Biases knows it.

    Attributes:
        file: Where it was read.
        content: What it says; this is what the server is given.
    """

    file: Path
    content: Mapping[str, Any]

    @property
    def metric(self) -> str:
        """The value by which trials are compared."""
        return str(self.content["metric"]["name"])

    @property
    def maximise(self) -> bool:
        """Whether the greatest value is best."""
        return bool(self.content["metric"].get("goal", "minimize") == "maximize")

    def with_words(self, words: Sequence[str], *, data: str | None = None) -> Sweep:
        """Return the same sweep with further words on every command line, before the parameters.

        Args:
            words: They take the place of words of the file's command that set the same.
            data: A data file in place of those that are swept.
        """
        command = list(self.content["command"])
        place = command.index(_ARGS)
        parameters = dict(self.content["parameters"])
        if data is not None:
            parameters["data"] = {"value": data}
        changed = {"command": [*command[:place], *words, *command[place:]], "parameters": parameters}
        return Sweep(self.file, {**self.content, **changed})

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """Return the command line of a trial, put together as an agent of Weights & Biases does."""
        from wandb.sdk.launch.sweeps import utils

        args = {name: {"value": value} for name, value in values.items()}
        known = {
            **utils.create_sweep_command_args({"args": args}),
            "program": [self.content["program"]],
            "interpreter": ["python"],
            "env": ["/usr/bin/env"],
        }
        words: list[str] = []
        for chunk in map(str, utils.create_sweep_command(list(self.content["command"]))):
            macro = chunk.startswith("${") and chunk.endswith("}")
            words += known.get(chunk[2:-1], []) if macro else [chunk]
        return words

    def trials(self, *, count: int | None, seed: int) -> list[dict[str, Any]]:
        """Return the parameters of each trial.

        Args:
            count: Number of trials, of a grid at most; None for ``run_cap`` of the file, and of a grid all.
            seed: Seed of random trials; the first trials of a larger count are those of a smaller one.

        Raises:
            DataError: A method or a distribution that only the server knows, or no number of random trials.
        """
        method = self.content["method"]
        count = self.content.get("run_cap") if count is None else count
        choices = {name: self._choice(name, entry) for name, entry in self.content["parameters"].items()}
        if method == "grid":
            endless = [name for name, choice in choices.items() if not isinstance(choice, list)]
            if endless:
                raise DataError(f"{self.file}: method grid needs values: of each parameter; {endless[0]} has none")
            return list(ParameterGrid(choices))[:count]
        if method != "random":
            raise DataError(
                f"{self.file}: method {method!r} is computed by the server of Weights & Biases; here write method: "
                "random or grid, or run make sweep"
            )
        if count is None:
            raise DataError(f"{self.file}: method random never ends; set --count (COUNT=...) or run_cap: in the file")
        if all(isinstance(choice, list) for choice in choices.values()):
            # these are drawn without replacement
            count = min(count, len(ParameterGrid(choices)))
        drawn = ParameterSampler(choices, count, random_state=seed)
        return [{name: _plain(value) for name, value in values.items()} for values in drawn]

    def _choice(self, name: str, entry: Any) -> Any:
        """The values of a parameter, or what draws them.

        Raises:
            DataError: A distribution that is not known here, or numbers that it lacks.
        """
        where = f"{self.file}: parameter {name}"
        if "parameters" in entry:
            raise DataError(f"{where} is nested; write dotted names with value:, values: or min: and max:")
        if "value" in entry:
            return [entry["value"]]
        if "values" in entry and "probabilities" not in entry:
            return list(entry["values"])
        whole = all(isinstance(entry.get(end), int) for end in ("min", "max"))
        kind = entry.get("distribution", "int_uniform" if whole else "uniform")
        given = {key: entry[key] for key in _NUMBERS if key in entry}
        if kind not in _DISTRIBUTIONS or "probabilities" in entry:
            kind = "probabilities" if "probabilities" in entry else kind
            known = ", ".join(["values", *_DISTRIBUTIONS])
            raise DataError(f"{where}: {kind!r} is not known here ({known}); choose one of these, or run make sweep")
        try:
            choice = _DISTRIBUTIONS[kind](given)
        except KeyError as missing:
            raise DataError(f"{where}: {kind} needs {missing.args[0]}:") from missing
        # scipy's way to say that there are no such values
        if np.isnan(choice.support()).any():
            raise DataError(f"{where}: nothing is {kind} with {_shown(given)}")
        return choice


def read_sweep(file: Path) -> Sweep:
    """Read a sweep file.

    Raises:
        DataError: No such file, one that is no sweep, or one whose trials could see the test set or not be compared.
    """
    try:
        content = yaml.safe_load(file.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        beside = ", ".join(sorted(entry.stem for entry in file.parent.glob("*.yaml"))) or "nothing"
        said = " ".join(str(error).split())
        raise DataError(f"cannot read the sweep file {file}: {said}; {file.parent} has {beside}") from error
    content = content if isinstance(content, dict) else {}
    missing = [key for key in _NEEDED if key not in content]
    if missing:
        raise DataError(f"{file} has no {', '.join(missing)}; see the other sweep files")
    unknown = [str(key) for key in content if key not in _KNOWN]
    if unknown:
        raise DataError(f"{file}: {', '.join(unknown)} is nothing that a sweep file says; it says {', '.join(_KNOWN)}")
    metric = content["metric"] if isinstance(content["metric"], dict) else {}
    if not str(metric.get("name")).startswith("validation/"):
        raise DataError(
            f"{file}: only validation may choose: metric.name must begin with 'validation/'; found metric: "
            f"{content['metric']!r}"
        )
    if metric.get("goal", "minimize") not in ("minimize", "maximize"):
        raise DataError(f"{file}: metric.goal must be minimize or maximize; found {metric['goal']!r}")
    cap = content.get("run_cap", 1)
    if not isinstance(cap, int) or cap < 1:
        raise DataError(f"{file}: run_cap must be a number of trials, at least 1; found {cap!r}")
    _refuse_parameters(file, content["parameters"])
    command = content["command"]
    if not isinstance(command, list) or command[:2] not in (["${program}", "grid"], ["neuroalign", "grid"]):
        raise DataError(f'{file}: command must begin with "${{program}}", grid; found {command!r}')
    if "--trial=true" not in command:
        raise DataError(f"{file}: command lacks --trial=true, without which trials are tested, not validated")
    if command.count(_ARGS) != 1:
        raise DataError(f'{file}: command needs "{_ARGS}" once, where parameters come')
    return Sweep(file, content)


def _refuse_parameters(file: Path, parameters: Any) -> None:
    """Refuse what is no set of parameters, for the server and here alike.

    Raises:
        DataError: It is none.
    """
    if not isinstance(parameters, dict) or not parameters:
        raise DataError(f"{file}: parameters must be a mapping of at least one dotted name; found {parameters!r}")
    for name, entry in parameters.items():
        where = f"{file}: parameter {name}"
        if not isinstance(entry, dict):
            raise DataError(f"{where} must be a mapping with value:, values: or min: and max:; found {entry!r}")
        unknown = [str(key) for key in entry if key not in _OF_PARAMETER]
        if unknown:
            raise DataError(f"{where}: {', '.join(unknown)} is none of {', '.join(_OF_PARAMETER)}")
        if "values" in entry and not (isinstance(entry["values"], list) and entry["values"]):
            raise DataError(f"{where}: values must be a list of at least one; found {entry['values']!r}")
        texts = {key: entry[key] for key in _NUMBERS if not isinstance(entry.get(key, 0), (int, float))}
        if texts:
            raise DataError(f"{where}: {_shown(texts)} must be numbers (to YAML 1e-4 is a text and 1.0e-4 a number)")


def _shown(entries: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {value!r}" for key, value in entries.items())


@dataclass(frozen=True)
class _Rounded:
    """A distribution whose values are multiples of ``q``."""

    distribution: Any
    q: float

    def support(self) -> tuple[float, float]:
        """Ends of what is drawn; NaN where there is nothing to draw."""
        low, high = self.distribution.support()
        return (low, high) if self.q > 0 else (np.nan, np.nan)

    def rvs(self, random_state: np.random.RandomState) -> float:
        """Draw a value."""
        drawn = self.distribution.rvs(random_state=random_state)
        return type(self.q)(round(drawn / self.q) * self.q)


def _uniform(entry: Mapping[str, Any]) -> Any:
    return stats.uniform(entry["min"], entry["max"] - entry["min"])


def _log_uniform(entry: Mapping[str, Any]) -> Any:
    return stats.loguniform(entry["min"], entry["max"])


def _normal(entry: Mapping[str, Any]) -> Any:
    return stats.norm(entry.get("mu", 0.0), entry.get("sigma", 1.0))


# as defined by Weights & Biases
_DISTRIBUTIONS: dict[str, Any] = {
    "uniform": _uniform,
    "int_uniform": lambda entry: stats.randint(entry["min"], entry["max"] + 1),
    "q_uniform": lambda entry: _Rounded(_uniform(entry), entry.get("q", 1)),
    "log_uniform_values": _log_uniform,
    "q_log_uniform_values": lambda entry: _Rounded(_log_uniform(entry), entry.get("q", 1)),
    "normal": _normal,
    "q_normal": lambda entry: _Rounded(_normal(entry), entry.get("q", 1)),
    "log_normal": lambda entry: stats.lognorm(s=entry.get("sigma", 1.0), scale=np.exp(entry.get("mu", 0.0))),
}


def _plain(value: Any) -> Any:
    """A number of numpy as one of Python."""
    return value.item() if isinstance(value, np.generic) else value
