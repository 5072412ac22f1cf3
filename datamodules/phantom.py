"""Phantom: a simulated experiment with known truth, built in seconds without any download."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.core.base import BrainDataModule, Facts
from datamodules.core.fmri_simulation import Features, FMRISimulation, visual_features
from datamodules.core.raw import Record, SignalAxes, Stimuli, Trials
from datamodules.core.rendering import CLASS_NAMES, Picture, render_many


@dataclass(frozen=True)
class PhantomOptions:
    """The simulated experiment.

    Attributes:
        people: Number of people.
        train_images: Training pictures of each of the 40 classes.
        test_images: Test pictures of each class.
        train_repetitions: How often each training picture is shown.
        test_repetitions: How often each test picture is shown.
        sessions: Sessions among which all trials are dealt at random.
        snr: Factor on the signal-to-noise ratio of every voxel.
        control: ``none``; ``shuffled`` pairs recordings with wrong pictures, consistently; ``noise`` records
            no signal at all. Under both, every score must be at chance.
        seed: Seed of the pictures, people and noise.
    """

    people: int = 3
    train_images: int = 12
    test_images: int = 2
    train_repetitions: int = 2
    test_repetitions: int = 4
    sessions: int = 4
    snr: float = 1.0
    control: Literal["none", "shuffled", "noise"] = "none"
    seed: int = 0


class Phantom(BrainDataModule):
    """Rendered pictures of 40 classes (8 shapes x 5 surfaces), and simulated fMRI of people who see them.

    By default 480 training pictures shown twice and 80 test pictures shown 4 times to 3 people, in 4 sessions
    of their own gain and baseline; about 600 voxels in V1, V2, V3, V4 and LOC. The noise ceiling of every voxel
    and an oracle that decodes with the generating model are known (``datamodules.core.fmri_simulation``).

    Args:
        root: Not read; there are no raw files.
        phantom: The experiment.
        **kwargs: As for every data set.
    """

    name = "phantom"
    facts = Facts(
        modality="fmri",
        units="simulated response amplitude, arbitrary",
        licence="MIT, part of this program",
        citation="none: simulated",
        subjects=("01", "02", "03"),
        trials={"01": 1280, "02": 1280, "03": 1280},
        stimuli=560,
    )

    def __init__(self, root: str = "", phantom: PhantomOptions = PhantomOptions(), **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.phantom = phantom

    def conversion_options(self) -> dict[str, Any]:
        """The whole experiment decides what is recorded."""
        return asdict(self.phantom)

    def read(self, root: Path) -> Iterator[Record]:
        """Simulate: the pictures, then each person's session by session."""
        pictures, names, split = self._pictures
        yield Stimuli(
            id=names,
            image=np.stack([picture.image for picture in pictures]),
            label=[CLASS_NAMES[picture.label] for picture in pictures],
            caption=[picture.caption for picture in pictures],
        )
        options = self.phantom
        for number in range(options.people):
            person = self._person(number)
            subject = f"{number + 1:02d}"
            yield SignalAxes(subject=subject, rois=person.rois, ncsnr=person.ncsnr)
            order, session = self._schedule(number)
            seen = self._seen[order]
            for k in range(options.sessions):
                mine = session == k
                yield Trials(
                    subject=subject,
                    signal=person.record(seen[mine], session[mine], seed=options.seed * 1000 + k),
                    stimulus=[names[i] for i in order[mine]],
                    split=[split[i] for i in order[mine]],
                    session=str(k + 1),
                )

    def oracle(self, subject: str, split: str) -> Tensor | None:
        """Log-likelihood of each shown picture under the generating model, for each sample.

        None where only some regions are used, or where pictures were shuffled: the truth is another one then.
        """
        if self.samples.rois is not None or self.phantom.control == "shuffled":
            return None
        number = self.store.subjects.index(subject)
        _, session = self._schedule(number)
        shown = np.unique(np.concatenate([person.stimulus[split] for person in self.prepared.values()]))
        likelihood = self._person(number).oracle(
            np.asarray(self.store.signals(subject)),
            session,
            groups=self.prepared[subject].groups[split],
            candidates=shown,
        )
        return torch.from_numpy(likelihood)

    @cached_property
    def _pictures(self) -> tuple[list[Picture], list[str], list[str]]:
        """All pictures in the order of the stimulus table, their names and their split."""
        options = self.phantom
        each = options.train_images + options.test_images
        labels = np.repeat(np.arange(len(CLASS_NAMES)), each)
        indices = np.tile(np.arange(each), len(CLASS_NAMES))
        pictures = render_many(labels, indices, options.seed)
        names = [f"{CLASS_NAMES[a]} {b}".replace(" ", "-") for a, b in zip(labels, indices, strict=True)]
        return pictures, names, ["train" if index < options.train_images else "test" for index in indices]

    @cached_property
    def _features(self) -> Features:
        pictures = self._pictures[0]
        images = np.stack([picture.image for picture in pictures])
        return visual_features(images, np.array([picture.label for picture in pictures]))

    def _person(self, number: int) -> FMRISimulation:
        snr = 0.0 if self.phantom.control == "noise" else self.phantom.snr
        return FMRISimulation(self._features, seed=self.phantom.seed * 1000 + number, snr=snr)

    @cached_property
    def _seen(self) -> NDArray[Any]:
        """The picture that is really shown for each entry of the stimulus table."""
        split = np.array(self._pictures[2])
        seen = np.arange(len(split))
        if self.phantom.control == "shuffled":
            generator = np.random.default_rng([self.phantom.seed, 2])
            for side in ("train", "test"):
                seen[split == side] = generator.permutation(seen[split == side])
        return seen

    def _schedule(self, number: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Stimulus and session of each trial of a person, in order of acquisition."""
        options = self.phantom
        repetitions = [
            options.train_repetitions if side == "train" else options.test_repetitions for side in self._pictures[2]
        ]
        order = np.repeat(np.arange(len(repetitions)), repetitions)
        order = np.random.default_rng([options.seed, 1, number]).permutation(order)
        return order, np.arange(len(order)) * options.sessions // len(order)
