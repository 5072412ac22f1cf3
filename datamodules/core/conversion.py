"""Converted: how the raw files of a data set become its store."""

from __future__ import annotations

import hashlib
import inspect
import json
import traceback
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from contracts import DataError, Modality, UserError
from datamodules.core.atomic import build_once
from datamodules.core.download import PublicFile, fetch
from datamodules.core.loading import DataModule, LoaderOptions
from datamodules.core.raw import Record
from datamodules.core.store import BrainStore, write_store


@dataclass(frozen=True)
class Facts:
    """What is declared about a data set, each with its source in the class docstring; tests recompute it.

    Attributes:
        modality: ``fmri``, ``eeg`` or ``meg``.
        units: Units of the signals.
        licence: Licence of the recordings.
        citation: Paper to cite.
        subjects: Names of the people.
        trials: Number of trials by person; empty where it depends on options.
        stimuli: Number of different pictures; 0 where it depends on options.
        shape: Shape of one trial by person; empty where it depends on options.
    """

    modality: Modality
    units: str
    licence: str
    citation: str
    subjects: tuple[str, ...]
    trials: Mapping[str, int] = field(default_factory=dict)
    stimuli: int = 0
    shape: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class Converted(DataModule):
    """Base of data sets with raw files of their own, which are read once, into a store.

    Attributes:
        facts: What is declared about the data set.
        files: Raw files that have a public address.
        parts: What ``Trials.split`` may be.

    Args:
        root: Folder of the raw files.
        stores: Folder for converted data, prepared samples and embeddings.
        loader: How samples are served.
    """

    name: str
    facts: ClassVar[Facts]
    files: ClassVar[tuple[PublicFile, ...]] = ()
    parts: ClassVar[tuple[str, ...]] = ("train", "test")

    def __init__(self, root: Path, stores: Path, loader: LoaderOptions) -> None:
        super().__init__(loader)
        self.root = root
        self.stores = stores

    @abstractmethod
    def read(self, root: Path) -> Iterator[Record]:
        """Read the raw files and yield ``Stimuli``, ``SignalAxes`` and ``Trials``, people one after another.

        Args:
            root: Folder of the raw files; ``self.file(name)`` gives (and fetches) those listed in ``files``.
        """

    def conversion_options(self) -> dict[str, Any]:
        """Options that change what ``read`` gives; each combination has its own store."""
        return {}

    def file(self, name: str) -> Path:
        """Return the path of one of ``files``, downloading it where it is missing."""
        known = {file.name: file for file in self.files}
        return fetch(self.root, known[name])

    @cached_property
    def store(self) -> BrainStore:
        """The converted data set; converts it on first use, one process at a time."""
        options = self.conversion_options()

        def convert(folder: Path) -> None:
            about = {
                "licence": self.facts.licence,
                "citation": self.facts.citation,
                "units": self.facts.units,
                "conversion_options": options,
                "root": str(self.root.absolute()),
                "reader": self._reader,
            }
            records = self._records()
            write_store(
                folder,
                records,
                root=self.root,
                name=self.name,
                modality=self.facts.modality,
                about=about,
                parts=self.parts,
            )

        folder = build_once(self._store_folder, convert)
        store = BrainStore(folder, self.root)
        if store.description.get("reader") != self._reader:
            raise DataError(
                f"{folder} was made by another version of {type(self).__name__}.read; delete it to convert again, or "
                "choose another folder with --data.init_args.stores"
            )
        made_from = store.description.get("root")
        # where the raw files are gone, the store is all there is
        if self.root.exists() and made_from != str(self.root.absolute()):
            raise DataError(
                f"{folder} was made from {made_from}, root is {self.root.absolute()}; choose another folder with "
                f"--data.init_args.stores, or delete {folder} to convert again"
            )
        return store

    @property
    def _store_folder(self) -> Path:
        options = self.conversion_options()
        digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:8]
        return self.stores / (f"{self.name}-{digest}" if options else self.name)

    def missing_stores(self) -> list[Path]:
        """The folder of the store, where the data set is not converted yet."""
        return [] if self._store_folder.exists() else [self._store_folder]

    def about(self) -> list[dict[str, Any]]:
        """What is declared about the data set, and the options of its conversion."""
        declared = asdict(self.facts)
        facts = {key: declared[key] for key in ("modality", "units", "licence", "citation")}
        return [
            {
                "name": self.name,
                **facts,
                "people": len(self.facts.subjects),
                "stimuli": self.facts.stimuli,
                "conversion": self.conversion_options(),
                "store": str(self._store_folder),
            }
        ]

    def stimulus_name(self, number: int) -> str:
        """Its name in the raw files."""
        return str(self.store.stimuli["id"].iloc[number])

    def picture(self, number: int) -> NDArray[Any] | None:
        """The picture as it was shown, RGB uint8 ``(H, W, 3)``."""
        return self.store.image(number) if self.store.has_pictures else None

    @property
    def _reader(self) -> str:
        """Checksum of the code of ``read``: what it gave before says nothing about what it gives now."""
        return hashlib.sha256(inspect.getsource(type(self).read).encode()).hexdigest()[:16]

    def _records(self) -> Iterator[Record]:
        """What ``read`` yields; a fault in it is told in one line, with its place."""
        try:
            yield from self.read(self.root)
        except (UserError, OSError):
            raise
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            raise DataError(
                f"{type(self).__name__}.read failed at {where.filename}:{where.lineno} ({where.line}): "
                f"{type(error).__name__}: {error}"
            ) from error
