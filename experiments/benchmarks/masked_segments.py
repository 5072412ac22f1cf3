"""Is a hidden segment of a time series predicted better than from its own region alone?

``python -m experiments.benchmarks.masked_segments --run RUN`` compares a trained FmriMAE with the mean of each
region and with linear autoregression, on people that none of them was fitted on.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from contracts import DataError
from datamodules import BrainDataModule
from experiments.arguments import Parser
from experiments.benchmarks.in_turns import command
from lightning_modules import FmriMAE
from lightning_modules.networks.masked_autoencoder import hidden_tokens

SHRINKAGE = 1e-3
"""Ridge penalty of the autoregressions relative to the number of training segments; keeps them solvable."""


def masked_segments(run: str, batch_size: int = 256) -> None:
    """Print the mean squared error over hidden numbers of the test people, each method under the same masks.

    Args:
        run: Run folder of a finished fit; its resolved configuration names the data.
        batch_size: Segments at a time.
    """
    folder = Path(run)
    config = folder / "config_fit.yaml"
    if not config.is_file() or not (folder / "final.ckpt").is_file():
        raise DataError(f"{folder} holds no finished run (config_fit.yaml and final.ckpt); train it first")
    module = _datamodule(config)
    model = FmriMAE.load_from_checkpoint(folder / "final.ckpt", map_location="cpu").eval()
    if module.layout["training_set"] != model.layout["training_set"] or model.masking == "none":
        raise DataError(f"{folder} was trained on another division of the data, or hides nothing")
    test, train = module.dataset("test"), module.dataset("train")
    regressions = _Autoregressions(train[torch.arange(len(train))]["signal"].numpy())
    totals: dict[str, float] = defaultdict(float)
    hidden_numbers = 0
    for rows in torch.arange(len(test)).split(batch_size):
        batch = test[rows]
        signal = batch["signal"].numpy()
        hidden = _hidden(model, rows, signal.shape)
        seen = np.where(hidden, np.nan, signal)
        predictions = {
            "zero (mean of the run)": np.zeros_like(signal),
            "region mean": np.nan_to_num(np.nanmean(seen, axis=2, keepdims=True)),
            "autoregression of the region": regressions(signal, hidden),
        }
        for name, predicted in predictions.items():
            totals[name] += float(((predicted - signal)[hidden] ** 2).sum())
        with torch.inference_mode():
            error = model.reconstruction_loss(batch, "hidden").numpy()
        totals["FmriMAE"] += float((error * hidden.sum(axis=(1, 2))).sum())
        hidden_numbers += int(hidden.sum())
    print(f"{len(test)} segments of {len(test.subject.unique())} people, {model.mask_ratio:.0%} hidden")
    for name, total in totals.items():
        print(f"| {name} | {total / hidden_numbers:.3f} |")


class _Autoregressions:
    """For each region and pattern of hidden volumes, the least squares map from its visible to its hidden volumes."""

    def __init__(self, train: NDArray[np.float32]) -> None:
        self.train = train.astype(np.float64)
        self.maps: dict[bytes, NDArray[np.float64]] = {}

    def __call__(self, signal: NDArray[np.float32], hidden: NDArray[np.bool_]) -> NDArray[np.float64]:
        predicted = np.zeros(signal.shape)
        patterns = np.unique(hidden.reshape(-1, hidden.shape[2]), axis=0)
        for pattern in patterns:
            sample, region = np.nonzero((hidden == pattern).all(axis=2))
            weights = self._map(pattern)
            values = np.einsum("nv,nvh->nh", signal[sample, region][:, ~pattern], weights[region])
            predicted[sample[:, None], region[:, None], np.flatnonzero(pattern)] = values
        return predicted

    def _map(self, pattern: NDArray[np.bool_]) -> NDArray[np.float64]:
        key = pattern.tobytes()
        if key not in self.maps:
            seen, target = (self.train[:, :, which].transpose(1, 0, 2) for which in (~pattern, pattern))
            gram = seen.transpose(0, 2, 1) @ seen
            gram += SHRINKAGE * len(self.train) * np.eye(gram.shape[1])
            self.maps[key] = np.asarray(np.linalg.solve(gram, seen.transpose(0, 2, 1) @ target), np.float64)
        return self.maps[key]


def _hidden(model: FmriMAE, rows: Tensor, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which numbers of each sample are hidden, ``(B, V, T)``."""
    tokens = model.autoencoder.tokens
    keep = model.tokens_kept(rows, 0, seed=0, epoch=0)
    assert keep is not None
    hidden = hidden_tokens(keep, len(tokens.rows[0]))[:, tokens.token_of(0)]
    return hidden.reshape(shape).bool().numpy()


def _datamodule(config: Path) -> BrainDataModule:
    parser = Parser(parser_mode="omegaconf+")
    parser.add_subclass_arguments(BrainDataModule, "data", required=True)
    data = yaml.safe_load(config.read_text())["data"]
    module: BrainDataModule = parser.instantiate(parser.parse_object({"data": data})).data
    return module


if __name__ == "__main__":
    command(masked_segments)
