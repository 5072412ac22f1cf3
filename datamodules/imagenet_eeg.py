"""ImageNetEEG: photographs of 40 classes of ImageNet, seen class by class (Spampinato et al. 2017)."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from contracts import DataError
from datamodules.core.base import BrainDataModule, Facts
from datamodules.core.raw import Record, SignalAxes, Stimuli, Trials
from datamodules.core.readers import load_torch

Band = Literal["5_95", "14_70", "55_95", "raw"]
FILES: dict[Band, str] = {
    "5_95": "eeg_5_95_std.pth",
    "14_70": "eeg_14_70_std.pth",
    "55_95": "eeg_55_95_std.pth",
    "raw": "eeg_signals_raw_with_mean_std.pth",
}
ADDRESS = "https://github.com/perceivelab/eeg_visual_classification"
PEOPLE = tuple("123456")
# fmt: off
CHANNELS = (
    "Fp1", "Fp2", "F7", "F3", "Fz", "F4", "F8", "FC5", "FC1", "FC2", "FC6", "T7", "C3", "Cz", "C4", "T8",
    "TP9", "CP5", "CP1", "CP2", "CP6", "TP10", "P7", "P3", "Pz", "P4", "P8", "PO9", "O1", "Oz", "O2", "PO10",
    "AF7", "AF3", "AF4", "AF8", "F5", "F1", "F2", "F6", "FT9", "FT7", "FC3", "FC4", "FT8", "FT10", "C5", "C1",
    "C2", "C6", "TP7", "CP3", "CPz", "CP4", "TP8", "P5", "P1", "P2", "P6", "PO7", "PO3", "POz", "PO4", "PO8",
    "Fpz", "F9", "AFF5h", "AFF1h", "AFF2h", "AFF6h", "F10", "FTT9h", "FTT7h", "FCC5h", "FCC3h", "FCC1h",
    "FCC2h", "FCC4h", "FCC6h", "FTT8h", "FTT10h", "TPP9h", "TPP7h", "CPP5h", "CPP3h", "CPP1h", "CPP2h",
    "CPP4h", "CPP6h", "TPP8h", "TPP10h", "POO9h", "POO1", "POO2", "POO10h", "Iz", "AFp1", "AFp2", "FFT9h",
    "FFT7h", "FFC5h", "FFC3h", "FFC1h", "FFC2h", "FFC4h", "FFC6h", "FFT8h", "FFT10h", "TTP7h", "CCP5h", "CCP3h",
    "CCP1h", "CCP2h", "CCP4h", "CCP6h", "TTP8h", "P9", "PPO9h", "PPO5h", "PPO1h", "PPO2h", "PPO6h", "PPO10h",
    "P10", "I1", "OI1h", "OI2h", "I2",
)
"""In the order of the rows of a segment, as an author of the data set lists them (issue 4 of the repository)."""
# fmt: on
SAMPLING_RATE = 1000.0
SHORTEST, LONGEST = 450, 600
"""Lengths of a segment, in samples, that the published loader keeps."""
PARTS = {"train": "train", "val": "validation", "test": "test"}
"""Lists of a published split, and the part of the trials that each becomes."""
PIECE = 256
"""Segments that are cut at a time; bounds the memory of a conversion."""


class ImageNetEEG(BrainDataModule):
    """Six people, 40 classes of ImageNet, about 50 photographs of each, every photograph seen once by each person.

    Files in ``root``, fetched one by one from the address that the repository names (downloads packed into one archive
    are reported damaged): ``eeg_5_95_std.pth``, ``eeg_14_70_std.pth``, ``eeg_55_95_std.pth`` (filtered by the authors,
    Hz) or ``eeg_signals_raw_with_mean_std.pth``, whichever ``band`` names, and the published split. Files of torch
    before 1.6 can only be read whole and take as much memory as their size; later ones are memory mapped. The means
    and deviations in the raw file are not used (``samples.normalise``).

    A recording is 128 channels at 1 kHz, about 500 samples from the onset of a photograph shown for 0.5 s, of which
    ``samples_from`` to ``samples_to`` are cut out. As in the published loader, segments of fewer than 450 or more than
    600 samples are left out; so are those that end before ``samples_to``, and a message tells how many. The published
    encoder of this EEG takes magnitudes of a short-time spectrum (21 frequencies x 23 times for 440 samples); here a
    sample stays ``(128, T)`` and that transform is part of the encoder. Electrodes have their names in the 10-05
    system; their positions were not published.

    Split: by photograph, one for all people, so that no photograph is on two sides. ``val`` becomes the part
    ``validation``, which is neither trained nor tested on unless asked for (``split.trained=train+validation``), as the
    neural alignment code ignores it; validation is carved out of the training stimuli, as in every data set. Entries
    that the split does not name are left out.

    **What may be decoded here.** All photographs of a class were shown in one block, so under the published split the
    test trials of a class lie among its training trials of the same person. Li et al. (2020, The perils and pitfalls of
    block design for EEG classification experiments, IEEE TPAMI, IEEE 9264220) show that the published accuracies are
    driven by correlations in time that mark a block, whatever was seen in it; the authors contest this
    (arXiv:2012.03849). A run is therefore such a block (the class; session ``1``), and ``split.protocol=by_run`` with
    ``split.folds`` leaves whole blocks of a person out: a class can then only be decoded from other people's blocks of
    it. Choose several people for that. A drift that people share, because they saw the classes in one order, would
    remain. Without ``folds`` that protocol refuses the published split, which divides every block.

    Licence: none stated for the recordings; photographs under the terms of ImageNet, which is why they are not
    distributed. Without them, set ``images`` to null and ``embedding.model=classes``.

    Reference: Spampinato et al. (2017), Deep learning human mind for automated visual classification, CVPR; Palazzo et
    al. (2021), Decoding brain representations by multimodal learning of neural activity and visual features, IEEE
    TPAMI, doi 10.1109/TPAMI.2020.2995909. Public address: https://github.com/perceivelab/eeg_visual_classification.
    Numbers: 11 965 entries and 1996 names of photographs in the files (11 964 in the repository's text); split 0 of the
    file for all people has 7970, 1998 and 1997 entries for training, validation and testing.

    Args:
        root: Folder of the raw files.
        band: Which recording to read, by the limits of its filter in Hz; in YAML, put it in quotation marks.
        band_pass: For ``raw``: limits in Hz of a Butterworth filter of order 2, run forwards and backwards over the
            whole segment (zero phase) before it is cut; None for none.
        samples_from: First sample of a segment that is kept. 20 and 460 are those of the published loader, which
            leaves out what the photograph before may still cause; the neural alignment code of Ferrante et al.
            (arXiv:2411.09723) takes 40 to 480.
        samples_to: The sample after the last one that is kept.
        split_file: File of the published split in ``root``.
        split_number: Which of its splits; the published code uses the first, 0.
        split_person: Where the split counts the entries of one person alone, as ``block_splits_by_image_single.pth``
            does: that person, who is then the only one read (published models: 4). None: it counts all entries.
        images: Folder of the photographs, ``<images>/<synset>/<name>.JPEG`` as in ImageNet, below ``root`` or
            absolute; None or empty for no photographs.
        **kwargs: As for every data set.
    """

    name = "imagenet_eeg"
    parts: ClassVar[tuple[str, ...]] = tuple(PARTS.values())
    facts = Facts(
        modality="eeg",
        units="EEG amplitude, arbitrary",
        licence="none stated (recordings); terms of ImageNet (photographs)",
        citation="Spampinato et al. (2017), CVPR; Palazzo et al. (2021), IEEE TPAMI, doi 10.1109/TPAMI.2020.2995909",
        subjects=PEOPLE,
        stimuli=1996,
    )

    def __init__(
        self,
        root: str,
        *,
        band: Band = "14_70",
        band_pass: tuple[float, float] | None = None,
        samples_from: int = 20,
        samples_to: int = 460,
        split_file: str = "block_splits_by_image_all.pth",
        split_number: int = 0,
        split_person: str | None = None,
        images: str | None = "train",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.band = band
        self.band_pass = None if band_pass is None else (float(band_pass[0]), float(band_pass[1]))
        self.samples_from = samples_from
        self.samples_to = samples_to
        self.split_file = split_file
        self.split_number = split_number
        self.split_person = split_person
        self.images = images
        self._check_options()

    def _check_options(self) -> None:
        if self.band not in FILES:
            raise DataError(
                f"band must be one of {', '.join(FILES)}, found {self.band!r}; change --data.init_args.band"
            )
        if self.band_pass is not None and self.band != "raw":
            raise DataError(
                f"band_pass is for the raw recording, {self.band} is filtered already; set --data.init_args.band=raw, "
                "or band_pass to null"
            )
        if self.band_pass is not None and not 0 < self.band_pass[0] < self.band_pass[1] < SAMPLING_RATE / 2:
            raise DataError(
                f"band_pass must be 0 < low < high < {SAMPLING_RATE / 2:g} Hz, found {self.band_pass}; change "
                "--data.init_args.band_pass"
            )
        if not 0 <= self.samples_from < self.samples_to <= LONGEST:
            raise DataError(
                f"samples are numbered from 0, up to {LONGEST}: found samples_from={self.samples_from}, samples_to="
                f"{self.samples_to}; change --data.init_args.samples_from or samples_to"
            )
        if self.split_person is not None and self.split_person not in PEOPLE:
            raise DataError(
                f"split_person must be one of {', '.join(PEOPLE)}, found {self.split_person!r}; change "
                "--data.init_args.split_person"
            )
        if "single" in self.split_file and self.split_person is None:
            raise DataError(
                f"{self.split_file} counts the entries of one person: name the person, "
                "--data.init_args.split_person=4 as the published models"
            )

    def conversion_options(self) -> dict[str, Any]:
        """Everything that decides which segments a store holds, and which part of them."""
        options = ("band", "band_pass", "samples_from", "samples_to", "split_file", "split_number", "split_person")
        return {name: getattr(self, name) for name in options} | {"images": self.images or None}

    def read(self, root: Path) -> Iterator[Record]:
        """Yield the photographs that are used, then the people in turn, each in the order of the file."""
        entries = load_entries(_file(root, FILES[self.band]), self.split_person)
        parts = load_split(_file(root, self.split_file), self.split_number, len(entries))
        used = self._used(entries, parts)
        label = {entry.image: entry.label for entry in used}
        folder = root / self.images if self.images else None
        files = None if folder is None else [folder / label[name] / f"{name}.JPEG" for name in label]
        yield Stimuli(id=list(label), image=files, label=list(label.values()))
        yield SignalAxes(channels=CHANNELS, sampling_rate=SAMPLING_RATE, start=self.samples_from / SAMPLING_RATE)
        for subject in PEOPLE:
            mine = [entry for entry in used if entry.subject == subject]
            for start in range(0, len(mine), PIECE):
                piece = mine[start : start + PIECE]
                yield Trials(
                    subject=subject,
                    signal=np.stack([self._cut(entry.eeg) for entry in piece]),
                    stimulus=[entry.image for entry in piece],
                    split=[parts[entry.number] for entry in piece],
                    run=[entry.label for entry in piece],
                )

    def _used(self, entries: Sequence[_Entry], parts: dict[int, str]) -> list[_Entry]:
        """Entries that the split names and that are long enough, but not too long."""
        named = [entry for entry in entries if entry.number in parts]
        regular = [entry for entry in named if SHORTEST <= entry.eeg.shape[1] <= LONGEST]
        used = [entry for entry in regular if entry.eeg.shape[1] >= self.samples_to]
        left_out = (
            f"{len(named) - len(regular)} segments have not {SHORTEST} to {LONGEST} samples, "
            f"{len(regular) - len(used)} end before sample {self.samples_to}"
        )
        if not used:
            raise DataError(
                f"none of the {len(entries)} entries can be used: the split names {len(named)} of them, {left_out}; "
                "change --data.init_args.split_file or samples_to"
            )
        if len(used) < len(named):
            rank_zero_info(f"{self.name}: {len(named) - len(used)} of {len(named)} entries left out ({left_out})")
        return used

    def _cut(self, eeg: Tensor) -> Float[np.ndarray, "c t"]:
        if self.band_pass is not None:
            import mne

            # a linear-phase filter of these bands would be longer than a segment
            eeg = torch.from_numpy(
                mne.filter.filter_data(
                    eeg.double().numpy(),
                    SAMPLING_RATE,
                    *self.band_pass,
                    method="iir",
                    iir_params={"order": 2, "ftype": "butter", "output": "sos"},
                    verbose="error",
                )
            ).float()
        part = eeg[:, self.samples_from : self.samples_to]
        signal: Float[np.ndarray, "c t"] = (part if part.dtype == torch.float16 else part.float()).numpy()
        return signal


@dataclass(frozen=True)
class _Entry:
    """One segment.

    Attributes:
        number: Its place among the entries that the split counts.
        subject: The person, ``1`` to ``6``.
        image: Name of the photograph, such as ``n02951358_31190``.
        label: Synset of its class, such as ``n02951358``.
        eeg: ``(128, L)``, L about 500.
    """

    number: int
    subject: str
    image: str
    label: str
    eeg: Tensor


def load_entries(path: Path, person: str | None = None) -> list[_Entry]:
    """Read the segments of a recording, which stay in the file as long as they are not used (see ``ImageNetEEG``).

    Args:
        path: One of ``FILES``.
        person: The only person to return; entries are counted among those of this person.

    Raises:
        DataError: Missing or truncated file, a file that holds code, anything in it but what is published.
    """
    content = load_torch(path, mmap=True)
    lists = ("dataset", "images", "labels")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in lists):
        found = list(content) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path}: expected a dict with the lists {', '.join(lists)}, found {found}; fetch it again")
    images = _names(path, "images", content["images"], r"n\d{8}_\d+")
    labels = _names(path, "labels", content["labels"], r"n\d{8}")
    entries: list[_Entry] = []
    for number, raw in enumerate(content["dataset"]):
        place = f"{path}: entry {number}"
        wanted = ("eeg", "image", "label", "subject")
        missing = [key for key in wanted if not isinstance(raw, dict) or key not in raw]
        if missing:
            raise DataError(f"{place} lacks {', '.join(missing)}; fetch the file again")
        image = images[_index(f"{place}: image", raw["image"], len(images), "names in 'images'")]
        label = labels[_index(f"{place}: label", raw["label"], len(labels), "synsets in 'labels'")]
        if not image.startswith(f"{label}_"):
            raise DataError(
                f"{place}: its photograph is {image}, its class {label}: a photograph bears the name of its class. Its "
                "numbers count another list than those in the file; correct them, or fetch the file again"
            )
        subject = str(_index(f"{place}: subject", raw["subject"], len(PEOPLE), "people", first=1))
        if person in (None, subject):
            entries.append(_Entry(len(entries), subject, image, label, _segment(place, raw["eeg"])))
    return entries


def load_split(path: Path, number: int, entries: int) -> dict[int, str]:
    """Return the part of each entry that a published split names.

    Args:
        path: ``{"splits": [{"train": [...], "val": [...], "test": [...]}, ...]}``.
        number: Which of the splits.
        entries: How many entries it counts.

    Raises:
        DataError: Missing or damaged file, no such split, numbers that are no entries, an entry named twice.
    """
    content = load_torch(path)
    splits = content.get("splits") if isinstance(content, dict) else None
    if not isinstance(splits, list) or not all(isinstance(split, dict) for split in splits):
        raise DataError(f"{path}: expected a dict with the list splits, of dicts with {', '.join(PARTS)}")
    if not 0 <= number < len(splits):
        raise DataError(
            f"{path} has {len(splits)} splits, counted from 0, found {number}; change --data.init_args.split_number"
        )
    parts: dict[int, str] = {}
    for key, part in PARTS.items():
        if not isinstance(splits[number].get(key), list | Tensor):
            raise DataError(
                f"{path}: split {number} lacks the list {key!r}; found {', '.join(map(str, splits[number]))}"
            )
        for entry in splits[number][key]:
            entry = _index(f"{path}: split {number}, {key}", entry, entries, "entries")
            if entry in parts:
                raise DataError(f"{path}: split {number} names entry {entry} twice, in {parts[entry]} and {part}")
            parts[entry] = part
    return parts


def _file(root: Path, name: str) -> Path:
    path = root / name
    if not path.is_file():
        found = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) if root.is_dir() else "no such folder"
        raise DataError(
            f"no file {path}, found: {found or 'nothing'}. Fetch it from the address given at {ADDRESS}, by itself and "
            "not in an archive, or change --data.init_args.root"
        )
    return path


def _names(path: Path, key: str, names: Sequence[Any], pattern: str) -> list[str]:
    wrong = [name for name in names if not isinstance(name, str) or not re.fullmatch(pattern, name)]
    if wrong:
        example = "n02951358_31190" if key == "images" else "n02951358"
        raise DataError(f"{path}: {key} must be names such as {example}, found {wrong[0]!r}")
    return [str(name) for name in names]


def _index(place: str, value: Any, size: int, what: str, *, first: int = 0) -> int:
    """Return a number from a file, if it is that of one of ``size`` things."""
    try:
        number = operator.index(value)
    except TypeError:
        raise DataError(f"{place} must be an integer, found {value!r}") from None
    if not first <= number < first + size:
        raise DataError(
            f"{place} is {number}, but there are {size} {what}, counted from {first}; the two do not belong together"
        )
    return number


def _segment(place: str, eeg: Any) -> Tensor:
    shape = f"{eeg.dtype} {tuple(eeg.shape)}" if isinstance(eeg, Tensor) else type(eeg).__name__
    if not isinstance(eeg, Tensor) or eeg.ndim != 2 or len(eeg) != len(CHANNELS) or eeg.is_complex():
        raise DataError(f"{place}: eeg must be numbers of {len(CHANNELS)} channels x samples, found {shape}")
    return eeg
