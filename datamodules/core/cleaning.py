"""Cleaning of trials within a session or run: z-scores, and multivariate noise normalisation.

Reference: Guggenmos, Sterzer & Cichy (2018), Multivariate pattern analysis for MEG: a comparison of dissimilarity
measures, NeuroImage 173, 434-447 (noise normalisation). Ledoit & Wolf (2004), A well-conditioned estimator for
large-dimensional covariance matrices, Journal of Multivariate Analysis 88, 365-411.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from contracts import DataError

Array = NDArray[Any]
Cleaning = Literal["none", "zscore_session", "zscore_run", "whiten_session", "whiten_run"]
Whitening = Literal["epochs", "time"]
CHUNK = 256
"""Trials that are read, cleaned and averaged at a time; bounds the memory of a conversion."""
ENTRIES = 1 << 20
"""Entries of covariance matrices that are made at a time; bounds the memory where there are many channels."""
RANK = 1e-12
"""Variance, relative to the largest, below which a direction of the channels holds rounding errors (float32) only."""


@dataclass(frozen=True)
class CleaningOptions:
    """What is removed from each session or run.

    Attributes:
        cleaning: ``zscore_session`` or ``zscore_run``: each feature to mean 0 and SD 1 within a session (or
            run of a session), which removes differences in gain between them. ``whiten_session`` or ``whiten_run``,
            for EEG and MEG: multivariate noise normalisation, channels are mixed by the inverse square root of the
            covariance of their noise, which makes it uncorrelated and of variance 1; no mean is removed. A channel
            with a feature that ``bad_features=zero`` makes 0 is 0 throughout. ``none``.
        cleaning_fit: ``train``: statistics from the session's training trials only; a session without any
            is refused. ``all``: from all of its trials, which marks the scores as transductive.
        whitening: What the covariance of the noise is. ``epochs``: over the times of one trial, averaged over trials
            of a stimulus; what the THINGS-EEG2 files of most decoding papers were made with. ``time``: over
            repetitions of a stimulus at one time, averaged over times, so that the response itself is left out; the
            authors' own files. A stimulus that the session shows once has no repetitions: its trial counts as under
            ``epochs``. Both are averaged over stimuli, within the kept window; as published they divide by the number
            of samples, so with ``time`` the noise of a stimulus shown r times has variance r / (r - 1).
    """

    cleaning: Cleaning = "none"
    cleaning_fit: Literal["train", "all"] = "train"
    whitening: Whitening = "epochs"


@dataclass(frozen=True)
class ZScores:
    """Mean and SD of each session, and the session of each trial."""

    session: Array
    mean: Array
    std: Array

    def __call__(self, signal: Array, trials: Array) -> Array:
        """Standardise the features of some trials.

        Args:
            signal: The trials, ``(n, ...)``.
            trials: Number of each of them.
        """
        session = self.session[trials]
        return (signal - self.mean[session]) / self.std[session]


@dataclass(frozen=True)
class Whiteners:
    """Inverse square root of the noise covariance ``(C, C)`` of each session, and the session of each trial."""

    session: Array
    matrix: Float[np.ndarray, "sessions c c"]

    def __call__(self, signal: Array, trials: Array) -> Float[np.ndarray, "n c t"]:
        """Mix the channels of some trials, in float64.

        Args:
            signal: The trials, ``(n, C, T)``.
            trials: Number of each of them.
        """
        mixed: Array = np.matmul(self.matrix[self.session[trials]], signal.astype(np.float64))
        return mixed


def fit_cleaning(
    raw: Array,
    trials: pd.DataFrame,
    split: pd.Series[str],
    options: CleaningOptions,
    subject: str,
    *,
    bad: Array,
    kept: Array | None,
    modality: str,
) -> ZScores | Whiteners | None:
    """Fit what is removed from each session (or run) of a person; None where nothing is.

    Args:
        raw: The person's trials, ``(trials, V)``, ``(trials, V, T)`` or ``(trials, C, T)``.
        trials: The person's rows of the trial table.
        split: ``train``, ``validation`` or ``test`` of each of them, or empty for those to leave out.
        options: What to remove.
        subject: The person, for errors.
        bad: Features that are set to 0, counted over a flattened trial.
        kept: Features that are used, counted in the same way; None for all.
        modality: ``fmri``, ``eeg`` or ``meg``.

    Raises:
        DataError: A session with too few trials to fit, or whitening of what has no sensors.
    """
    if options.cleaning == "none":
        return None
    how, _, unit = options.cleaning.partition("_")
    if how == "whiten" and modality not in ("eeg", "meg"):
        raise DataError(
            f"sub-{subject}: samples.cleaning={options.cleaning} is for the sensors of EEG and MEG, found {modality} "
            f"signals {raw.shape[1:]}; set --data.init_args.samples.cleaning=zscore_{unit} or none"
        )
    names = trials["session"] if unit == "session" else trials["session"] + "/" + trials["run"]
    session = np.empty(len(raw), np.int64)
    index, number = trials["index"].to_numpy(np.int64), trials["number"].to_numpy(np.int64)
    sides = split.to_numpy()
    fitted: list[Any] = []
    for name, rows in group_rows(names).items():
        mine = rows[sides[rows] != ""]
        if not len(mine):
            continue  # a session of which nothing is used
        session[index[rows]] = len(fitted)
        used = mine if options.cleaning_fit == "all" else mine[sides[mine] == "train"]
        if len(used) < 2:
            raise DataError(
                f"sub-{subject}: {unit} {name} has {len(used)} training trials, too few to fit the cleaning; set "
                "--data.init_args.samples.cleaning_fit=all (scores are then marked as transductive) or cleaning=none"
            )
        if how == "zscore":
            fitted.append(mean_and_sd(raw, index[used]))
        else:
            channels, times = _sensors(raw.shape[1:], bad, kept)
            covariance = noise_covariance(raw, index[used], number[used], channels, times, options.whitening)
            fitted.append(_inverse_root(covariance, channels, raw.shape[1], f"sub-{subject}: {unit} {name}"))
    if how == "whiten":
        return Whiteners(session, np.stack(fitted))
    mean, std = (np.stack(values) for values in zip(*fitted, strict=True))
    mean.reshape(len(mean), -1)[:, bad] = 0
    std.reshape(len(std), -1)[:, bad] = 0
    # a feature that is constant within a session carries nothing there; it becomes 0 instead of NaN
    return ZScores(session, mean, np.where(std > resolution(mean), std, np.float32(np.inf)))


# ---- multivariate noise normalisation ----------------------------------------------------------------


def noise_covariance(
    raw: Array, rows: Array, condition: Array, channels: Array, times: Array, whitening: Whitening
) -> Float[np.ndarray, "c c"]:
    """Covariance of the noise over channels: the average over conditions (stimuli) of a shrunk covariance each.

    That of a condition is the average over its epochs of the covariance over times within an epoch (``epochs``), or
    over times of the covariance over repetitions at one time (``time``), which one trial alone does not have: such a
    condition gives what it gives under ``epochs``. Each covariance is shrunk towards its own diagonal by the
    optimal amount of Ledoit & Wolf (2004) for standardised channels, as in the published code.

    Args:
        raw: ``(trials, C, T)``.
        rows: Trials to use.
        condition: Number of the stimulus of each of them.
        channels: Channels to use.
        times: Times to use, as numbers of samples.
        whitening: ``epochs`` or ``time``.

    Returns:
        ``(channels, channels)`` float64.
    """
    total = np.zeros((len(channels), len(channels)))
    groups = group_rows(condition)
    for mine in groups.values():
        trials = rows[mine]
        across = whitening == "time" and len(trials) > 1
        size = max(1, min(CHUNK, ENTRIES // len(channels) ** 2))
        parts = (
            [(trials, part) for part in _parts(times, size)] if across else [(p, times) for p in _parts(trials, size)]
        )
        sums = np.zeros_like(total)
        for some, when in parts:
            # samples by channels, once for each time or each epoch
            pattern = "n c t -> t n c" if across else "n c t -> n t c"
            epochs = raw[np.ix_(some, channels, when)].astype(np.float64)
            sums += shrunk_covariances(rearrange(epochs, pattern))
        total += sums / (len(times) if across else len(trials))
    return total / len(groups)


def shrunk_covariances(samples: Float[np.ndarray, "batch n c"]) -> Float[np.ndarray, "c c"]:
    """Sum over a batch of covariances, each shrunk towards its diagonal (Ledoit & Wolf 2004).

    Channels are standardised before the shrinkage and scaled back after it, so that their units do not matter. A
    channel that is constant has variance 0 and keeps it.
    """
    n, width = samples.shape[1:]
    centred = samples - samples.mean(axis=1, keepdims=True)
    scale = np.sqrt((centred**2).mean(axis=1, keepdims=True))
    standard = np.divide(centred, scale, out=np.zeros_like(centred), where=scale > 0)
    # of the covariance S of a standardised batch only the norm is needed, which Z Z' has as well as Z' Z
    side = standard if n <= width else standard.swapaxes(1, 2)
    power = (np.matmul(side, side.swapaxes(1, 2)) ** 2).sum(axis=(1, 2)) / n**2
    target = (standard**2).mean(axis=(1, 2))
    # squared distances to the target, of S and of its expected error, per channel
    distance = power / width - target**2
    error = (((standard**2).sum(axis=2) ** 2).sum(axis=1) / n - power) / (n * width)
    error = np.clip(error, 0, distance)
    shrinkage = np.divide(error, distance, out=np.zeros_like(error), where=distance > 0)
    # the sum of all covariances in one product
    weighted = rearrange(centred * np.sqrt((1 - shrinkage) / n)[:, None, None], "b n c -> (b n) c")
    total: Array = weighted.T @ weighted + np.diag((shrinkage * target) @ scale[:, 0] ** 2)
    return total


def _inverse_root(
    covariance: Float[np.ndarray, "used used"], channels: Array, number: int, place: str
) -> Float[np.ndarray, "c c"]:
    """Symmetric inverse square root, 0 in directions without variance and for channels that are not used."""
    variance, direction = np.linalg.eigh(covariance)
    varying = variance > RANK * variance.max(initial=0)
    if not varying.any():
        raise DataError(
            f"{place}: nothing varies within its training trials (one time, or constant channels), so there is no "
            "noise to whiten; widen samples.window, or set --data.init_args.samples.cleaning=none"
        )
    root = direction[:, varying] / np.sqrt(variance[varying])
    matrix = np.zeros((number, number))
    matrix[np.ix_(channels, channels)] = root @ direction[:, varying].T
    return matrix


def _sensors(shape: tuple[int, ...], bad: Array, kept: Array | None) -> tuple[Array, Array]:
    """Channels without a bad feature, and the times that are kept."""
    number, times = shape
    used = np.arange(times) if kept is None else np.unique(kept % times)
    # whitening spreads a channel over all others: one with a hole in it stays out altogether
    return np.setdiff1d(np.arange(number), bad // times), used


def _parts(values: Array, size: int) -> list[Array]:
    return [values[start : start + size] for start in range(0, len(values), size)]


# ---- statistics ------------------------------------------------------------------------------------


def mean_and_sd(signal: Array, rows: Array) -> tuple[Float[np.ndarray, ...], Float[np.ndarray, ...]]:
    """Mean and SD of each feature over some rows, float32; one pass, merged as in Chan et al. (1979)."""
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for part in _chunks(signal, rows):
        n = len(part)
        variance, average = torch.var_mean(part, dim=0, correction=0)
        delta = average.double() - mean
        squares = squares + variance.double() * n + delta**2 * (count * n / (count + n))
        mean = mean + delta * (n / (count + n))
        count += n
    return mean.float().numpy(), (squares / max(count, 1)).sqrt().float().numpy()


def _chunks(signal: Array, rows: Array) -> Iterator[Tensor]:
    for part in _parts(rows, CHUNK):
        yield torch.from_numpy(np.asarray(signal[part], np.float32))


def resolution(mean: Array) -> Array:
    """SD below which a float32 feature around ``mean`` is constant but for rounding."""
    return np.float32(1e-6) * np.abs(mean) + np.finfo(np.float32).tiny


def group_rows(keys: Iterable[Any]) -> dict[Any, Array]:
    """Row numbers by key, in order of first appearance."""
    rows: dict[Any, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        rows[key].append(row)
    return {key: np.asarray(numbers, np.int64) for key, numbers in rows.items()}
