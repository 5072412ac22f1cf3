"""Generic Object Decoding: photographs of objects seen and imagined in the scanner (Horikawa & Kamitani 2017)."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Int, UInt8
from numpy.typing import NDArray

from contracts import DataError
from datamodules.core.base import BrainDataModule, Facts
from datamodules.core.bdata import BData, load_bdata
from datamodules.core.raw import Record, SignalAxes, Space, Stimuli, Trials
from datamodules.core.readers import existing, load_npz, require_shape
from datamodules.core.samples import PublishedNormalisation

FileFormat = Literal["npz", "h5", "mat"]
PEOPLE: dict[FileFormat, str] = {
    "npz": r"sbj_(\d+)\.npz",
    "h5": r"(?:Subject|sub-)(\d+)\.h5",
    "mat": r"Subject(\d+)\.mat",
}
ROIS = ("V1", "V2", "V3", "V4", "FFA", "PPA", "LOC", "LVC", "HVC", "VC")
"""In the order of the keys of the published ``sbj_N.npz``."""
SPLITS = {1: "train", 2: "test", 3: "imagery"}
"""Meaning of ``DataType`` in BData."""
SESSIONS = {"train": "perceptionTraining", "test": "perceptionTest", "imagery": "imageryTest"}
"""Names of the experiments, as in the BIDS copy (OpenNeuro ds001246)."""
SUFFIXES = (".jpeg", ".jpg", ".png")
NPZ_FILES = "https://github.com/WeizmannVision/SelfSuperReconst/releases/tag/v1"
BDATA_FILES = "https://figshare.com/articles/dataset/Generic_Object_Decoding/7387130"
PICTURES = "The pictures are given out on request (https://github.com/KamitaniLab/GenericObjectDecoding)"


class GOD(BrainDataModule):
    """Five people; 1200 training photographs of 150 classes, seen once; 50 test photographs of 50 others, 35 times.

    The files are looked for in ``root``, ``root/npz``, ``root/Kamitani`` and ``root/Kamitani/npz``; the first of these
    folders that holds any counts. Three layouts are read, npz before h5 before mat where several lie there:

    - npz, of MinD-Vis and LEA: ``sbj_N.npz``, ``images_256.npz`` (or ``images_112.npz``),
      ``imagenet_training_label.csv``, ``imagenet_testing_label.csv`` and perhaps ``imagenet_class_index.json``.
      Runs are not marked: no cleaning by run. Imagery is not in it.
    - h5 and mat, the laboratory's own BData: ``SubjectN.h5`` (or ``sub-0N.h5``), ``SubjectN.mat``. Sessions are
      ``perceptionTraining``, ``perceptionTest`` and ``imageryTest``, followed by the column ``Session`` where there is
      one; runs are those of the column ``Run``. Pictures: those of the npz layout beside them, or files named by
      stimulus (``n01518878_10042.JPEG``, also .jpg, .png) in ``images/training`` and ``images/test``. An imagined
      object's stimulus is the test photograph of its class; test on it with ``split.tested=imagery``.

    Voxels stand region by region, without overlap: V1, V2, V3, V4, FFA, PPA, LOC, then what is left of LVC, HVC and VC;
    a voxel belongs to the first region that has it, empty regions are left out, and so are voxels without region. The
    published loaders do the same. The class of a picture is its ImageNet synset, under the name that
    ``imagenet_class_index.json`` gives it, where that file is there.

    ``samples.normalise=mindvis`` with ``split.validation=0`` gives the samples of the published loaders.

    Licence: CC BY 4.0 (figshare 7387130: BData); the npz files come with SelfSuperReconst, for academic use.

    Reference: Horikawa & Kamitani (2017), Generic decoding of seen and imagined objects using hierarchical visual
    features, Nature Communications 8, 15037: numbers of people, pictures and repetitions. Numbers of voxels: masks
    ``VC`` of the npz files.

    Args:
        root: Folder of the raw files, or one that holds them as above.
        file_format: Which layout to read; ``auto`` for the first of npz, h5, mat that is there.
        **kwargs: Options of every data set (``BrainDataModule``).
    """

    name = "god"
    parts: ClassVar[tuple[str, ...]] = ("train", "test", "imagery")
    published_normalisation: ClassVar[PublishedNormalisation] = "training"
    facts = Facts(
        modality="fmri",
        units="fMRI response amplitude, arbitrary",
        licence="CC BY 4.0 (BData), academic use (npz)",
        citation="Horikawa & Kamitani (2017), Nature Communications 8, 15037",
        subjects=("01", "02", "03", "04", "05"),
        trials=dict.fromkeys(("01", "02", "03", "04", "05"), 1200 + 1750),
        stimuli=1250,
        shape={"01": (4466,), "02": (4404,), "03": (4643,), "04": (4133,), "05": (4370,)},
    )

    def __init__(self, root: str, *, file_format: Literal["auto", "npz", "h5", "mat"] = "auto", **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.file_format = file_format

    def conversion_options(self) -> dict[str, Any]:
        """The layout that was asked for."""
        return {"file_format": self.file_format}

    def read(self, root: Path) -> Iterator[Record]:
        """Yield the people in the order of their numbers, each person's axes and trials together."""
        folder, found, people = find_people(root, self.file_format)
        names = _names_of_classes(folder)
        if found == "npz":
            pictures = _read_image_npz(folder, names)
            yield from pictures.values()
            for subject, path in people.items():
                yield from _read_npz(subject, path, pictures)
        else:
            yield from _read_all_bdata(people, _find_pictures(root, folder, names), names)


def find_people(
    root: Path, file_format: Literal["auto", "npz", "h5", "mat"]
) -> tuple[Path, FileFormat, dict[str, Path]]:
    """Return the folder of the recordings, their layout and each person's file, by number.

    Raises:
        DataError: No recordings, or two files of one person.
    """
    wanted: list[FileFormat] = ["npz", "h5", "mat"] if file_format == "auto" else [file_format]
    folders = [root, root / "npz", root / "Kamitani", root / "Kamitani" / "npz"]
    for folder in filter(Path.is_dir, folders):
        for kind in wanted:
            people: dict[str, Path] = {}
            for path in sorted(folder.iterdir()):
                match = re.fullmatch(PEOPLE[kind], path.name)
                if match is not None:
                    subject = f"{int(match[1]):02d}"
                    if subject in people:
                        raise DataError(f"two files of person {subject}: {people[subject]} and {path}; remove one")
                    people[subject] = path
            if people:
                return folder, kind, dict(sorted(people.items()))
    files = {"npz": "sbj_1.npz", "h5": "Subject1.h5", "mat": "Subject1.mat"}
    there = [folder for folder in folders if folder.is_dir()]
    found = sorted(entry.name for folder in there for entry in folder.iterdir())
    raise DataError(
        f"no recordings of GOD ({', '.join(files[kind] for kind in wanted)}, ...) in {root} or its folders npz, "
        f"Kamitani, Kamitani/npz; found {', '.join(found[:8]) or 'nothing'}. Put the files there (npz: {NPZ_FILES}, "
        f"BData: {BDATA_FILES}), or change --data.init_args.root"
        + ("" if file_format == "auto" else " or --data.init_args.file_format")
    )


def exclusive_rois(masks: Mapping[str, Bool[np.ndarray, " v"]]) -> tuple[dict[str, int], Int[np.ndarray, " kept"]]:
    """Give each voxel to the first region that has it; return the sizes of the regions and their voxels in order."""
    taken = np.zeros(len(next(iter(masks.values()))), bool)
    sizes, order = {}, []
    for name, mask in masks.items():
        new = np.flatnonzero(mask & ~taken)
        taken |= mask
        if len(new):
            sizes[name] = len(new)
            order.append(new)
    return sizes, np.concatenate(order) if order else np.zeros(0, np.int64)


# ---- npz -------------------------------------------------------------------------------------------


def _read_npz(subject: str, path: Path, pictures: Mapping[str, Stimuli]) -> Iterator[Record]:
    trials, index = {"train": "arr_0", "test": "arr_1"}, {"train": "arr_3", "test": "arr_4"}
    content = load_npz(path, [*ROIS, *trials.values(), "arr_2", *index.values()])
    voxels = len(content["VC"])
    for name in ROIS:
        require_shape(f"{path}: mask {name}", content[name], (voxels,))
        if content[name].dtype != bool:
            raise DataError(f"{path}: mask {name} must be bool, found {content[name].dtype}")
    # responses to the test pictures averaged over repetitions: averaged here from arr_1, see samples.average_test
    require_shape(f"{path}: arr_2", content["arr_2"], (len(pictures["test"].id), voxels))
    rois, order = exclusive_rois({name: content[name] for name in ROIS})
    if not rois:
        raise DataError(f"{path}: no voxel is in any region; the masks {', '.join(ROIS)} are all False")
    yield SignalAxes(subject=subject, rois=rois)
    for split, key in trials.items():
        signal, names = content[key], pictures[split].id
        require_shape(f"{path}: {key}", signal, (None, voxels))
        if signal.dtype.kind != "f":
            raise DataError(f"{path}: {key} must be floating point numbers, found {signal.dtype}")
        number = _indices(f"{path}: {index[split]}", content[index[split]], len(signal), len(names), split)
        yield Trials(subject=subject, signal=signal[:, order], stimulus=[names[i] for i in number], split=split)


def _indices(place: str, index: NDArray[Any], trials: int, images: int, split: str) -> list[int]:
    require_shape(place, index, (trials,))
    if index.dtype.kind not in "iu":
        raise DataError(f"{place}: numbers of images must be integers, found {index.dtype}")
    if trials and not 0 <= index.min() <= index.max() < images:
        raise DataError(
            f"{place}: numbers of images are {index.min()}..{index.max()}, but there are {images} {split} images, "
            "counted from 0; correct the numbers or give the images that belong to them"
        )
    return [int(number) for number in index]


def _read_image_npz(folder: Path, names: Mapping[str, str]) -> dict[str, Stimuli]:
    """Pictures of the training and the test set, which the label files name row by row."""
    path = folder / "images_256.npz"
    if not path.is_file() and (folder / "images_112.npz").is_file():
        path = folder / "images_112.npz"
    images = load_npz(path, ["train_images", "test_images"])
    stimuli = {}
    for split, key, labels in (
        ("train", "train_images", "imagenet_training_label.csv"),
        ("test", "test_images", "imagenet_testing_label.csv"),
    ):
        ids = _read_label_csv(folder / labels)
        require_shape(f"{path}: {key} (one for each row of {labels})", images[key], (len(ids), None, None, 3))
        pixels = _as_uint8(f"{path}: {key}", images.pop(key))
        stimuli[split] = Stimuli(id=ids, image=pixels, label=[_class_of(name, names) for name in ids])
    return stimuli


def _as_uint8(place: str, images: NDArray[Any]) -> UInt8[np.ndarray, "n h w 3"]:
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind == "f" and images.size and 0 <= images.min() <= images.max() <= 1:
        pixels: NDArray[Any] = np.rint(np.multiply(images, 255, out=images), out=images).astype(np.uint8)
        return pixels
    span = f"{images.min()}..{images.max()}" if images.size and images.dtype.kind in "iuf" else "nothing"
    raise DataError(f"{place} must be uint8, or floating point in 0..1, found {images.dtype} of {span}")


def _read_label_csv(path: Path) -> list[str]:
    """Names of stimuli from the file names in column 1; column 0 is a number, which spreadsheets cut short."""
    try:
        with existing(path).open(newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.reader(stream) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}; it must be text, number,file in each line") from error
    ids = []
    for line, row in enumerate(rows, start=1):
        name = Path(row[1].strip()).stem if len(row) > 1 else ""
        if not re.fullmatch(r"n\d{8}_\d+", name):
            raise DataError(
                f"{path}, line {line}: expected a number and a file such as n01518878_10042.JPEG, found {row}"
            )
        ids.append(name)
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: {len(repeated)} names stand twice, the first is {repeated[0]}; names must be unique")
    return ids


# ---- class names -----------------------------------------------------------------------------------


def _names_of_classes(folder: Path) -> dict[str, str]:
    """Class name by synset; one class may have several synsets. Where two classes share a name, it gets the synset."""
    path = folder / "imagenet_class_index.json"
    if not path.is_file():
        return {}
    try:
        entries = list(json.loads(path.read_text(encoding="utf-8")).values())
        if not all(len(entry) > 1 and all(isinstance(text, str) for text in entry) for entry in entries):
            raise ValueError("an entry is not a list of synsets followed by a name")
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f'cannot read {path}: {error}; expected {{"0": ["n01440764", "tench"], ...}}. Mend it, or remove it to '
            "name classes by synset"
        ) from error
    shared = Counter(entry[-1] for entry in entries)
    return {
        synset: entry[-1] if shared[entry[-1]] == 1 else f"{entry[-1]} ({entry[0]})"
        for entry in entries
        for synset in entry[:-1]
    }


def _class_of(stimulus: str, names: Mapping[str, str]) -> str:
    synset = stimulus.partition("_")[0]
    return names.get(synset, synset)


# ---- BData -----------------------------------------------------------------------------------------


def _read_all_bdata(
    people: Mapping[str, Path], pictures: Mapping[str, Path] | Sequence[Stimuli], names: Mapping[str, str]
) -> Iterator[Record]:
    if not isinstance(pictures, Mapping):
        yield from pictures
    known = set(pictures) if isinstance(pictures, Mapping) else {name for pack in pictures for name in pack.id}
    shown: dict[str, None] = {}
    for subject, path in people.items():
        axes, trials = _read_bdata(subject, load_bdata(path))
        missing = list(dict.fromkeys(name for name in trials.stimulus if name not in known))
        if missing:
            raise DataError(
                f"{path}: stimulus without image: {len(missing)} of the pictures that were shown are not among "
                f"{len(known)}, the first is {missing[0]}. Put {missing[0]}.JPEG and the others into images/training "
                f"and images/test below --data.init_args.root, or images_256.npz with its label files there. {PICTURES}"
            )
        shown |= dict.fromkeys(trials.stimulus)
        yield axes
        yield trials
    if isinstance(pictures, Mapping):
        ids = list(shown)
        yield Stimuli(id=ids, image=[pictures[name] for name in ids], label=[_class_of(name, names) for name in ids])


def _read_bdata(subject: str, data: BData) -> tuple[SignalAxes, Trials]:
    voxels = data.columns("VoxelData")
    rois, order = exclusive_rois({name: data.columns(f"ROI_{name}") & voxels for name in ROIS})
    if not rois:
        raise DataError(f"{data.path}: no column of VoxelData is in any region ({', '.join(ROIS)})")
    kind = data.values("DataType")
    unknown = sorted(set(kind.tolist()) - set(SPLITS))
    if unknown:
        raise DataError(f"{data.path}: DataType must be 1 (training), 2 (test) or 3 (imagery), found {unknown}")
    split = [SPLITS[int(code)] for code in kind]
    stimulus_id = data.values("stimulus_id" if "stimulus_id" in data.metadata else "Label")
    session = [SESSIONS[name] for name in split]
    if "Session" in data.metadata:
        session = [f"{name}{int(number):02d}" for name, number in zip(session, data.values("Session"), strict=True)]
    trials = Trials(
        subject=subject,
        signal=data.dataset[:, order],
        stimulus=_stimuli_of(data.path, stimulus_id, split),
        split=split,
        session=session,
        run=[f"{number:g}" for number in data.values("Run")],
    )
    coordinates = data.coordinates(order)
    space: Space | None = None if coordinates is None else "native"
    return SignalAxes(subject=subject, rois=rois, coordinates=coordinates, space=space), trials


def _stimuli_of(path: Path, stimulus_id: NDArray[Any], split: Sequence[str]) -> list[str]:
    """Names such as ``n01518878_10042`` from numbers such as 1518878.010042; imagined ones by their synset."""
    names = [_name_of(path, float(number)) for number in stimulus_id]
    tested: dict[str, str] = {}
    for name, part in zip(names, split, strict=True):
        if part == "test" and tested.setdefault(name.partition("_")[0], name) != name:
            raise DataError(f"{path}: {tested[name.partition('_')[0]]} and {name} are test pictures of one class")
    imagined = {name.partition("_")[0] for name, part in zip(names, split, strict=True) if part == "imagery"}
    if imagined - set(tested):
        raise DataError(f"{path}: no test picture of the imagined class {min(imagined - set(tested))}")
    return [
        tested[name.partition("_")[0]] if part == "imagery" else name for name, part in zip(names, split, strict=True)
    ]


def _name_of(path: Path, number: float) -> str:
    synset = int(number)
    image = (number - synset) * 1e6
    if not 0 < synset < 1e8 or abs(image - round(image)) > 0.1:
        raise DataError(
            f"{path}: a stimulus is numbered synset.image with six digits, as 1518878.010042, found {number!r}"
        )
    return f"n{synset:08d}_{round(image)}"


def _find_pictures(root: Path, folder: Path, names: Mapping[str, str]) -> dict[str, Path] | list[Stimuli]:
    """Picture files by stimulus, or the pictures of the npz layout."""
    places = [place / "images" / part for place in dict.fromkeys((folder, root)) for part in ("training", "test")]
    files = {
        path.stem: path
        for place in filter(Path.is_dir, places)
        for path in sorted(place.iterdir())
        if path.suffix.lower() in SUFFIXES
    }
    if files:
        return files
    for place in dict.fromkeys((folder, root, root / "npz", root / "Kamitani" / "npz")):
        if (place / "images_256.npz").is_file() or (place / "images_112.npz").is_file():
            return list(_read_image_npz(place, names).values())
    raise DataError(
        f"no pictures of GOD: neither files in {root / 'images' / 'training'} and {root / 'images' / 'test'} nor "
        f"{root / 'images_256.npz'}; put them there. {PICTURES}"
    )
