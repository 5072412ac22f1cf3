"""Writes recordings of sensors in formats that MNE reads: FIF (continuous and epochs), EEGLAB and BrainVision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mne
import numpy as np
import scipy.io
from PIL import Image

Array = np.ndarray[Any, Any]
RATE = 100.0
EEG = ("Fz", "Cz", "Pz", "Oz")
EVENTS = ("face", "house", "cat")


def marks(seconds: float = 40.0, *, events: tuple[str, ...] = EVENTS, seed: int = 0) -> list[tuple[int, str]]:
    """Sample and name of events, 1.5 s apart, each name equally often."""
    number = int((seconds - 2) / 1.5)
    names = np.random.default_rng(seed).permutation([events[i % len(events)] for i in range(number)])
    return [(100 + 150 * i, str(name)) for i, name in enumerate(names)]


def signal(channels: int, size: int, *, seed: int = 0) -> Array:
    """Drifting noise ``(C, n)`` of some microvolts; float32 numbers, so that a file holds them exactly."""
    random = np.random.default_rng([seed, 5])
    noise = random.standard_normal((channels, size)) + 0.2 * random.standard_normal((channels, size)).cumsum(axis=1)
    return np.float32(1e-6 * noise).astype(np.float64)


def raw(
    *,
    seconds: float = 40.0,
    rate: float = RATE,
    names: tuple[str, ...] = EEG,
    kind: str = "eeg",
    events: tuple[str, ...] = EVENTS,
    first: int = 0,
    seed: int = 0,
    stim: bool = False,
) -> mne.io.RawArray:
    """A recording with annotated events; the beginning is the ``first`` sample of the acquisition."""
    size = int(seconds * rate)
    info = mne.create_info([*names, *(["STI 014"] if stim else [])], rate, [kind] * len(names) + ["stim"] * stim)
    content = signal(len(names), size, seed=seed)
    found = [(round(sample * rate / RATE), name) for sample, name in marks(seconds, events=events, seed=seed)]
    if stim:
        codes = np.zeros((1, size))
        for sample, name in found:
            codes[0, sample : sample + 5] = 1 + events.index(name)
        content = np.concatenate([content, codes])
    made = mne.io.RawArray(content, info, first_samp=first, verbose="error")
    if kind == "eeg":
        made.set_montage(
            mne.channels.make_dig_montage({n: [0.01 * i, 0.05, 0.1] for i, n in enumerate(names)}, coord_frame="head")
        )
    else:
        for i, channel in enumerate(made.info["chs"][: len(names)]):
            channel["loc"][:3] = [0.01 * i, 0.0, 0.1]
        turned = np.eye(4)
        turned[:3, 3] = [0, 0, 0.05]
        with made.info._unlock():
            made.info["dev_head_t"] = mne.transforms.Transform("meg", "head", turned)
    if not stim:
        onset = [(sample + first * (made.info["meas_date"] is not None)) / rate for sample, _ in found]
        made.set_annotations(mne.Annotations(onset, 0.0, [name for _, name in found]))
    return made


def write(root: Path, *, people: int = 2, runs: int = 2, **options: Any) -> Path:
    """Write ``sub-01/sub-01_run-1_raw.fif`` and so on below ``root``."""
    for person in range(people):
        folder = root / f"sub-{person + 1:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        for run in range(runs):
            path = folder / f"{folder.name}_run-{run + 1}_raw.fif"
            raw(seed=10 * person + run, **options).save(path, verbose="error", overwrite=True)
    return root


def write_epochs(path: Path, *, start: float = -0.3, end: float = 0.9, **options: Any) -> mne.BaseEpochs:
    """Write a file of epochs, ``...-epo.fif``, and return them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    continuous = raw(**options)
    found, names = mne.events_from_annotations(continuous, verbose="error")
    epochs = mne.Epochs(continuous, found, names, start, end, baseline=None, preload=True, verbose="error")
    epochs.save(path, verbose="error", overwrite=True)
    return epochs


def write_eeglab(path: Path, **options: Any) -> mne.io.RawArray:
    """Write ``.set`` with its ``.fdt`` as EEGLAB does, and return what they hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = raw(**options)
    data = path.with_suffix(".fdt")
    (1e6 * made.get_data()).astype("<f4").T.tofile(data)
    events = [
        {"type": name, "latency": float(round(onset * made.info["sfreq"]) + 1)}
        for onset, name in zip(made.annotations.onset, made.annotations.description, strict=True)
    ]
    content = {
        "setname": "made up",
        "nbchan": len(made.ch_names),
        "trials": 1,
        "pnts": made.n_times,
        "srate": made.info["sfreq"],
        "xmin": 0.0,
        "xmax": (made.n_times - 1) / made.info["sfreq"],
        "data": data.name,
        "icawinv": [],
        "icasphere": [],
        "icaweights": [],
        "ref": "common",
        "chanlocs": np.array([(name,) for name in made.ch_names], dtype=[("labels", object)]),
        "event": np.array([tuple(e.values()) for e in events], dtype=[("type", object), ("latency", object)]),
    }
    scipy.io.savemat(path, {"EEG": content}, appendmat=False)
    return made


def write_brainvision(path: Path, **options: Any) -> mne.io.RawArray:
    """Write ``.vhdr`` with ``.eeg`` and ``.vmrk``, and return what they hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = raw(**options)
    (1e6 * made.get_data()).astype("<f4").T.tofile(path.with_suffix(".eeg"))
    channels = "".join(f"Ch{i + 1}={name},,1,uV\n" for i, name in enumerate(made.ch_names))
    path.write_text(
        "Brain Vision Data Exchange Header File Version 1.0\n\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={path.stem}.eeg\nMarkerFile={path.stem}.vmrk\nDataFormat=BINARY\nDataOrientation=MULTIPLEXED\n"
        f"NumberOfChannels={len(made.ch_names)}\nSamplingInterval={1e6 / made.info['sfreq']}\n\n"
        f"[Binary Infos]\nBinaryFormat=IEEE_FLOAT_32\n\n[Channel Infos]\n{channels}"
    )
    lines = "".join(
        f"Mk{i + 1}=Stimulus,{name},{round(onset * made.info['sfreq']) + 1},1,0\n"
        for i, (onset, name) in enumerate(zip(made.annotations.onset, made.annotations.description, strict=True))
    )
    path.with_suffix(".vmrk").write_text(
        "Brain Vision Data Exchange Marker File, Version 1.0\n\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={path.stem}.eeg\n\n[Marker Infos]\n{lines}"
    )
    return made


def write_pictures(folder: Path, names: tuple[str, ...] = EVENTS) -> Path:
    """Write one small picture for each name."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder
