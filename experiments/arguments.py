"""What the command line accepts beyond LightningCLI: files of classes, one source of data, did-you-mean."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import yaml
from jsonargparse import _typehints as typehints
from jsonargparse import set_loader
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser

import callbacks
import datamodules
import lightning_modules
from contracts import DataError, UserError

FILE_CLASS = re.compile(r"(?P<file>[^\s:'\"]+\.py):(?P<name>[A-Za-z_]\w*)")
RUN_COMMANDS = ("fit", "validate", "test", "predict")


def import_file_class(text: str) -> str:
    """Turn ``my.py:MyData`` into an importable class path; other texts are returned as they are.

    The file is imported under a name of its own, so a data set may live outside the repository.

    Raises:
        DataError: No such file, or it defines no such class.
    """
    match = FILE_CLASS.fullmatch(text)
    if match is None:
        return text
    path = Path(match["file"]).expanduser().absolute()
    if not path.is_file():
        raise DataError(f"no file {path} (from {text!r}); the path is relative to {Path.cwd()}")
    module_name = f"neuroalign_file_{re.sub(r'[^0-9a-zA-Z]', '_', path.as_posix())}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            if isinstance(error, UserError):
                raise
            line = (
                error.lineno if isinstance(error, SyntaxError) else traceback.extract_tb(error.__traceback__)[-1].lineno
            )
            raise DataError(f"{path}:{line} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(sys.modules[module_name], match["name"]):
        raise DataError(f"{path} defines no {match['name']!r}")
    return f"{module_name}.{match['name']}"


def _import_file_classes(config: Any) -> Any:
    if isinstance(config, dict):
        return {
            key: import_file_class(value)
            if key == "class_path" and isinstance(value, str)
            else _import_file_classes(value)
            for key, value in config.items()
        }
    return [_import_file_classes(value) for value in config] if isinstance(config, list) else config


_load_yaml = jsonargparse.get_loader("yaml")


def _load(text: str) -> Any:
    return _import_file_classes(_load_yaml(text))


# the mode's own loader reads YAML and leaves interpolations to the parser; ours also imports files of classes
set_loader("omegaconf+", _load, exceptions=(yaml.YAMLError, DataError))


def _forget_arguments(parser_or_action: Any, previous: Any, value: Any) -> None:
    """Forget the arguments of a class when another one is named in its place."""
    if not previous or not previous.get("init_args"):
        return
    # options that are one dataclass have no class path
    before, now = previous.get("class_path"), value.get("class_path")
    if before is not None and now is not None and import_class(before) is not import_class(now):
        for key in list(previous["init_args"].keys()):
            del previous["init_args"][key]


# the parser's own function keeps every argument whose name the new class also knows, defaults of the old class
# included: --model.init_args.encoder=LinearEncoder would get the dropout of the encoder before it
typehints.discard_init_args_on_class_path_change = _forget_arguments


class Parser(LightningArgumentParser):
    """Adds a did-you-mean to what the parser says about misspelt classes and keys."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one clear error, with close names where one is misspelt, and exit with status 2."""
        # a value is echoed whole, and every class is optional to the parser: neither helps a reader
        noise = ("Given value", "- Expected a <class 'NoneType'>", "Did you mean")
        lines = [line for line in message.splitlines() if not line.strip().startswith(noise)]
        text = "\n".join(dict.fromkeys(lines)) + _did_you_mean(message)
        # classes of files carry a mangled module name
        text = re.sub(r"neuroalign_file_\w+?_(\w+)_py\.", r"\1.py:", text)
        if not self.exit_on_error:
            super().error(text, ex)
        sys.stderr.write(f"{self.prog}: {text}\n(all options: {self.prog.split(' [')[0]} --help)\n")
        self.exit(2)


_MISSPELT = re.compile(
    r"NestedArg\(key='([\w.]+)'|Option '([\w.]+)' is not accepted|[Kk]ey '([\w.]+)' is not expected"
    r"|import path string: ([\w.]+)|class_path '([\w.]+)'|[Uu]nrecognized arguments: --([\w.]+)"
)


def _did_you_mean(message: str) -> str:
    known = _known_names()
    words = {word for groups in _MISSPELT.findall(message) for name in groups for word in name.split(".") if word}
    close = [name for word in sorted(words - set(known)) for name in difflib.get_close_matches(word, known, n=3)]
    return f"\nDid you mean: {', '.join(dict.fromkeys(close))}?" if close else ""


def _known_names() -> list[str]:
    """Names of classes and arguments that a user may have meant."""
    classes = {
        name: getattr(package, name)
        for package in (callbacks, datamodules, lightning_modules)
        for name in package.__all__
    }
    names = {*classes, "callbacks", "datamodules", "lightning_modules", "init_args", "data", "model", "trainer", "run"}
    for kind in (*classes.values(), Trainer):
        if isinstance(kind, type):
            names |= set(inspect.signature(kind).parameters)
    return sorted(names)


def find_data_source(args: Sequence[str]) -> str:
    """Return the one source that sets ``data``: a configuration file or a class; empty if there is none.

    Raises:
        DataError: Several; merging two would silently keep arguments of the first.
    """
    sources = find_sources(args, "data")
    if len(sources) > 1:
        raise DataError(
            f"'data' is set by {len(sources)} sources: {', '.join(sources)}. Keep one --data; change single entries "
            "with --data.init_args.<name>=<value>"
        )
    for source in sources:
        path = Path(source)
        if path.suffix in (".yaml", ".yml") and not path.is_file():
            beside = sorted(entry.name for entry in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
            close = difflib.get_close_matches(path.name, beside) or beside
            raise DataError(f"no file {path.absolute()}; {path.parent} has {', '.join(close) or 'no such file'}")
    return "".join(sources)


def find_sources(args: Sequence[str], key: str) -> list[str]:
    """Return what sets a key on a command line: values of ``--<key>`` and configuration files that have it."""
    sources: list[str] = []
    for flag, value in _flags(args):
        if flag == f"--{key}":
            sources.append(value)
        elif flag in ("-c", "--config") and Path(value).is_file():
            content = yaml.safe_load(Path(value).read_text()) or {}
            nested = [content, *(content.get(command) or {} for command in RUN_COMMANDS)]
            sources += [value for part in nested if isinstance(part, dict) and key in part]
    return sources


def name_of(source: str, kind: type) -> str:
    """Name of a data set or stage in run folders: of its configuration file, else its own, else its class's."""
    if source.endswith((".yaml", ".yml")):
        return Path(source).stem
    return str(getattr(kind, "name", kind.__name__.lower()))


def import_class(class_path: str) -> type:
    """Return the class that a class path (``package.Class`` or ``my.py:Class``) names."""
    module, _, name = import_file_class(class_path).rpartition(".")
    kind: type = getattr(importlib.import_module(module), name)
    return kind


def _flags(args: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of flag and value, for both ``--flag value`` and ``--flag=value``."""
    pairs = []
    for position, word in enumerate(args):
        flag, equals, value = word.partition("=")
        if flag.startswith("-"):
            pairs.append((flag, value if equals else args[position + 1] if position + 1 < len(args) else ""))
    return pairs
