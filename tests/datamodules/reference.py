"""Samples as the documentation defines them, computed on their own from what a store holds."""

from typing import Any

import numpy as np

from datamodules import BrainDataModule

Array = np.ndarray[Any, Any]
SPLITS = ("train", "validation", "test")


def reference_samples(data: BrainDataModule, subject: str) -> dict[str, tuple[Array, Array]]:
    """Signals and stimuli of each split, computed from the raw store in float64 by the documented order."""
    options = data.samples
    trials = data.trials[data.trials["subject"] == subject]
    raw = np.asarray(data.store.signals(subject), np.float64)[trials["index"]]
    side, number = trials["side"].to_numpy(), trials["number"].to_numpy()
    if options.cleaning != "none":
        place = trials["session"].to_numpy(object)
        if options.cleaning == "zscore_run":
            place = place + "|" + trials["run"].to_numpy(object)
        for name in set(place):
            used = (place == name) & ((side == "train") | ((options.cleaning_fit == "all") & (side != "")))
            # of a session in which everything is left out nothing is looked at
            if used.any():
                raw[place == name] = (raw[place == name] - raw[used].mean(axis=0)) / raw[used].std(axis=0)
    result = {}
    for split in SPLITS:
        average = options.average_train if split == "train" else options.average_test
        signal, stimulus = [], []
        for picture in dict.fromkeys(number[side == split].tolist()):
            rows = np.flatnonzero((side == split) & (number == picture))
            size = len(rows) if average == "all" else average
            for start in range(0, len(rows), size):
                signal.append(raw[rows[start : start + size]].mean(axis=0))
                stimulus.append(picture)
        result[split] = np.array(signal), np.array(stimulus)
    mean, std = result["train"][0].mean(axis=0), result["train"][0].std(axis=0)
    if options.normalise == "zscore":
        result = {name: ((x - mean) / std if len(x) else x, y) for name, (x, y) in result.items()}
    return result
