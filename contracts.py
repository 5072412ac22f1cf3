"""The names that datamodules, stages and callbacks share.

The three packages never import each other; what passes between them is a plain ``dict`` whose keys,
shapes and meanings are written down here, once.

========== ========================= ==================================================================
Contract   From -> to                Object
========== ========================= ==================================================================
Layout     datamodule -> stage       what the signals look like, known before anything is built
Batch      datamodule -> stage       one batch of samples
Output     stage -> scores           what a step returns
Context    datamodule -> scores      what a score needs to know beside the outputs
Score      scores -> logger, report  one number with everything needed to judge it
========== ========================= ==================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypedDict

from torch import Tensor

PADDING = -1
"""Value of ``row`` in samples that only fill up a batch; they are dropped before any sum or score."""

NO_LABEL = -1
"""Value of ``label`` in samples whose stimulus has no class."""

Modality = Literal["fmri", "eeg", "meg", "image", "several"]
GalleryKind = Literal["image", "class_centre", "text", "trial", "extra"]


class UserError(Exception):
    """An error that a user can mend; the command line prints it as one line.

    Not a ``ValueError``: argument parsers swallow those and try another type.
    """


class DataError(UserError):
    """Something is wrong with a recording, a stimulus or a cached file; the message says what to change."""


class ContractError(UserError):
    """Two parts do not fit: a score needs what a stage does not give, or a checkpoint another layout."""


def reason_of(error: BaseException) -> str:
    """Return the first line of what an error says, or its type where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class LayoutOfOne(TypedDict):
    """Shapes and names of one prepared data set; plain data, so that it fits into a checkpoint.

    Attributes:
        modality: ``fmri``, ``eeg``, ``meg``, ``image`` (pictures with captions, without recordings), or ``several``
            (data sets side by side; channels, positions and times are those of their ``parts``).
        subjects: Names; the position of a name is the ``subject`` number of a batch.
        shape: Shape of one sample by subject: ``[V]`` (voxels), ``[V, T]`` (voxels, volumes of a time series) or
            ``[C, T]`` (channels, time points).
        rois: By subject, name -> number of voxels, in the order of the voxels; empty where unknown.
        channels: Sensor names, in the order of C; empty for fMRI.
        positions: Sensor positions in metres, head coordinates, ``C x 3``; empty where unknown.
        sampling_rate: Samples per second of T, or 0.0 without a time axis.
        start: Time of the first sample relative to stimulus onset, in seconds.
        image_shape: ``[3, H, W]`` of the pictures in a batch; empty where there are none.
        embedding_width: D; 0 where nothing is embedded.
        embedding_space: Identity of the image space (model, weights, layer, pooling, transform, target), or
            ``none``.
        train_samples: Number of training samples by subject.
        classes: Class names; the position of a name is the ``label`` number of a batch.
        protocol: Name of the split protocol.
        fold: Which fold is tested, from 0.
        folds: Number of folds; 1 for the data set's own division.
        preparation: Options that shaped the training samples, and a checksum of the recordings.
        training_set: Identity of the set of training stimuli; a checkpoint is only tested on its own division.
        transductive: Whether test recordings took part in cleaning.
    """

    modality: Modality
    subjects: list[str]
    shape: dict[str, list[int]]
    rois: dict[str, dict[str, int]]
    channels: list[str]
    positions: list[list[float]]
    sampling_rate: float
    start: float
    image_shape: list[int]
    embedding_width: int
    embedding_space: str
    train_samples: dict[str, int]
    classes: list[str]
    protocol: str
    fold: int
    folds: int
    preparation: dict[str, str]
    training_set: str
    transductive: bool


class Layout(LayoutOfOne, total=False):
    """Shapes and names of a prepared data set, or of several side by side.

    Attributes:
        parts: Only where several data sets are side by side: the layout of each by name. Their subjects follow each
            other in ``subjects``, as ``<part>-<name>``.
    """

    parts: dict[str, Layout]


def parts_of(layout: Layout) -> dict[str, Layout]:
    """Return the layout of each part of several data sets side by side; of one alone, itself by its modality."""
    return layout.get("parts") or {layout["modality"]: layout}


class Batch(TypedDict, total=False):
    """One batch of people with one layout; nothing is padded along V, C or T.

    Training batches of several data sets side by side are a dict of such batches, by the name of the part, where the
    stage asks for it (``side_by_side``); ``stimulus``, ``label``, ``subject`` and ``row`` are numbered jointly.

    Attributes:
        signal: ``(B, V)`` fMRI responses, ``(B, V, T)`` fMRI time series or ``(B, C, T)`` EEG/MEG, float32: cleaned,
            averaged, normalised.
        embedding: ``(B, D)`` float32, embedding of the image that the person saw.
        image: ``(B, 3, H, W)`` uint8, only where asked for; the same view as ``embedding``.
        tokens: ``(B, L)`` int64, open_clip's byte-pair tokens of the caption, only where asked for.
        stimulus: ``(B,)`` int64, row of the stimulus table (stimuli keyed by SHA-256 of the picture).
        label: ``(B,)`` int64, class number, or ``NO_LABEL``.
        subject: ``(B,)`` int64, position in ``layout["subjects"]``.
        row: ``(B,)`` int64, which sample of the split this is, or ``PADDING``.
    """

    signal: Tensor
    embedding: Tensor
    image: Tensor
    tokens: Tensor
    stimulus: Tensor
    label: Tensor
    subject: Tensor
    row: Tensor


Output = dict[str, Tensor]
"""What ``validation_step``, ``test_step`` and ``predict_step`` return: a flat dict with any of
``brain_embedding``, ``image_embedding`` and ``text_embedding`` (B, D), ``signal`` and ``predicted_signal`` (B, V) or
(B, C, T), ``image`` (B, 3, H, W) uint8, ``generated`` (B, S, 3, H, W) uint8 (S pictures of one sample) and
``confidence`` (B, S) of each (mean log-probability of its tokens), ``latent``, and always ``label``, ``stimulus``,
``subject`` and ``row``, each (B,), passed through from the batch. ``generated`` and ``confidence`` from something else
than the recordings carry its name: ``encoded.generated``, ``shuffled.generated``, ``noise.generated``."""

PASSED_THROUGH = ("label", "stimulus", "subject", "row")
"""Entries of a batch that every output carries on."""


@dataclass(frozen=True)
class Gallery:
    """Candidates among which a decoded embedding is looked for.

    Attributes:
        embedding: ``(G, D)`` float32.
        stimulus: ``(G,)`` int64 rows of the stimulus table; for class centres, the label instead.
        label: ``(G,)`` int64 class numbers, or ``NO_LABEL``.
        kind: What an item is.
    """

    embedding: Tensor
    stimulus: Tensor
    label: Tensor
    kind: GalleryKind


@dataclass(frozen=True)
class ScoreContext:
    """What a score needs to know beside the outputs; asked once, at the start, of the datamodule.

    Attributes:
        galleries: Candidates by name; ``test`` holds each stimulus of the split once.
        layout: The layout of the data, with the protocol that is printed with every score.
        encoding_ceiling: By subject, the largest expected correlation per voxel ``(V,)`` in 0..1.
        oracle: By subject, log-likelihoods ``(rows, G)`` of the items of gallery ``test`` (of several data sets
            ``<part>.test``) under the generating model, rows in the order of ``row`` within the subject; empty where
            the model is unknown.
        ceiling_reason: Why a ceiling is missing; printed in place of one.
        lineage: The earlier stages, each with its protocol and whether it saw test recordings.
        encode: By subject, gives the signal ``(n, ...)`` expected for points ``(n, D)`` of the embedding space; empty
            where the stage predicts none. Not kept with the outputs of a run.
        embed: Embeds pictures ``(n, 3, H, W)`` uint8 as the data set embeds what was seen, ``(n, D)`` float32 like
            ``embedding`` of a batch; None where it embeds no pictures.
    """

    galleries: Mapping[str, Gallery]
    layout: Layout
    encoding_ceiling: Mapping[str, Tensor] = field(default_factory=dict)
    oracle: Mapping[str, Tensor] = field(default_factory=dict)
    ceiling_reason: str = "no noise ceiling: the data set does not give one"
    lineage: tuple[Mapping[str, Any], ...] = ()
    encode: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    embed: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Score:
    """One number with everything needed to judge it; ``scores.json`` is a list of these.

    Attributes:
        name: ``two_way``, ``top_1``, ``pearson_mean`` ...
        value: The score of this subject.
        low: Lower end of the interval (None: not defined).
        high: Upper end of the interval.
        p_value: Permutation p-value against permuted stimuli, one-sided.
        chance: Expected value without any information, from the real gallery.
        ceiling: The best value that the noise of the data allows.
        subject: Subject name, or ``mean`` for the average over subjects.
        gallery: Name of the gallery and its size, or empty.
        n: Number of scored samples.
        stimuli: Number of different stimuli among them.
        similarity: ``cosine``, ``pearson`` or empty.
        protocol: Name of the split protocol.
        transductive: Whether test recordings took part in fitting anything.
        note: What a reader must know (few stimuli, why there is no ceiling).
        table: Title of the table in which it is compared with those of other stages.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    chance: float | None = None
    ceiling: float | None = None
    subject: str = ""
    gallery: str = ""
    n: int = 0
    stimuli: int = 0
    similarity: str = ""
    protocol: str = ""
    transductive: bool = False
    note: str = ""
    table: str = ""

    @property
    def gallery_name(self) -> str:
        """Name of the gallery without the number of its items."""
        return self.gallery.partition(" (")[0]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for ``scores.json``."""
        return asdict(self)
