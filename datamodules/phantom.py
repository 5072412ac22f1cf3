"""Phantom: simulated fMRI, EEG and MEG experiments with known truth, built in seconds without any download."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contracts import DataError, Modality
from datamodules.core.base import BrainDataModule, Facts
from datamodules.core.fmri_simulation import Features, FMRISimulation, visual_features
from datamodules.core.raw import Record, SignalAxes, Stimuli, Trials
from datamodules.core.rendering import CLASS_NAMES, Picture, render_many
from datamodules.core.sensor_simulation import SAMPLING_RATE, TIMES, SensorSimulation
from datamodules.core.simulation import Simulation
from datamodules.phantom_pictures import FIRST_INDEX


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
        snr: Factor on the signal-to-noise ratio of every voxel or sensor.
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


TEST_INDEX = 1000
"""Pictures of a class from this ``index`` on (see ``datamodules.core.rendering``) are for testing, under every
modality: what is tested by one is never trained on by another."""


def _simulated(
    modality: Modality, units: str, *, subjects: tuple[str, ...], trials: int, shape: tuple[int, int] | None = None
) -> Facts:
    """Facts of the experiment by default.

    Args:
        modality: What records.
        units: Of the signals.
        subjects: The people.
        trials: Of each of them.
        shape: Of a sample, where all people have the same.
    """
    return Facts(
        modality=modality,
        units=units,
        licence="MIT, part of this program",
        citation="none: simulated",
        subjects=subjects,
        trials=dict.fromkeys(subjects, trials),
        stimuli=560,
        shape={} if shape is None else dict.fromkeys(subjects, shape),
    )


class _Phantom(BrainDataModule):
    """What the three modalities share: pictures, schedule, controls, oracle.

    Attributes:
        first_person: Number of the first person, from 0.
        quarters: By how many quarters of their number the training pictures differ from those of fMRI.
    """

    first_person: ClassVar[int] = 0
    quarters: ClassVar[int] = 0

    def __init__(self, root: str, phantom: PhantomOptions, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.phantom = phantom
        if self._indices[-1] >= FIRST_INDEX or len(set(self._indices)) < phantom.train_images + phantom.test_images:
            raise DataError(
                f"too many pictures of a class for the ranges set aside for training and testing: {phantom}; lower "
                "--data.init_args.phantom.train_images"
            )

    @abstractmethod
    def axes(self, subject: str, person: Any) -> SignalAxes:
        """What the columns of a person's signals are."""

    @abstractmethod
    def person(self, number: int) -> Simulation:
        """A person by number, from 0."""

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
            person = self.person(number)
            subject = f"{self.first_person + number + 1:02d}"
            yield self.axes(subject, person)
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

        None where only some regions or times are used, or where pictures were shuffled: the truth is another one then.
        """
        if self.samples.rois or self.samples.window or self.phantom.control == "shuffled":
            return None
        number = self.store.subjects.index(subject)
        _, session = self._schedule(number)
        shown = np.unique(np.concatenate([person.stimulus[split] for person in self.prepared.values()]))
        likelihood = self.person(number).oracle(
            np.asarray(self.store.signals(subject)),
            session,
            groups=self.prepared[subject].groups[split],
            candidates=shown,
        )
        return torch.from_numpy(likelihood)

    @cached_property
    def _pictures(self) -> tuple[list[Picture], list[str], list[str]]:
        """All pictures in the order of the stimulus table, their names and their split."""
        labels = np.repeat(np.arange(len(CLASS_NAMES)), len(self._indices))
        indices = np.tile(self._indices, len(CLASS_NAMES))
        pictures = render_many(labels, indices, self.phantom.seed)
        names = [f"{CLASS_NAMES[a]} {b}".replace(" ", "-") for a, b in zip(labels, indices, strict=True)]
        return pictures, names, ["test" if index >= TEST_INDEX else "train" for index in indices]

    @property
    def _indices(self) -> list[int]:
        """Which pictures of each class are shown: training, then testing; partly the same under each modality."""
        options = self.phantom
        first = self.quarters * options.train_images // 4
        first_test = TEST_INDEX + min(self.quarters, 1) * options.test_images // 2
        return [*range(first, first + options.train_images), *range(first_test, first_test + options.test_images)]

    @cached_property
    def _features(self) -> Features:
        pictures = self._pictures[0]
        images = np.stack([picture.image for picture in pictures])
        return visual_features(images, np.array([picture.label for picture in pictures]))

    def _seed_and_snr(self, number: int) -> dict[str, Any]:
        """What makes a person; the same number is the same person under every modality."""
        seed = self.phantom.seed * 1000 + self.first_person + number
        return {"seed": seed, "snr": 0.0 if self.phantom.control == "noise" else self.phantom.snr}

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


class Phantom(_Phantom):
    """Rendered pictures of 40 classes (8 shapes x 5 surfaces), and simulated fMRI of people who see them.

    By default 480 training pictures shown twice and 80 test pictures shown 4 times to people 01 to 03, in 4 sessions
    of their own gain and baseline; about 600 voxels in V1, V2, V3, V4 and LOC. The noise ceiling of every voxel
    and an oracle that decodes with the generating model are known (``datamodules.core.fmri_simulation``).

    Args:
        root: Not read; there are no raw files.
        phantom: The experiment.
        **kwargs: As for every data set.
    """

    name = "phantom"
    facts = _simulated("fmri", "simulated response amplitude, arbitrary", subjects=("01", "02", "03"), trials=1280)

    def __init__(self, root: str = "", phantom: PhantomOptions = PhantomOptions(), **kwargs: Any) -> None:
        super().__init__(root, phantom, **kwargs)

    def person(self, number: int) -> FMRISimulation:
        """A person by number, from 0."""
        return FMRISimulation(self._features, **self._seed_and_snr(number))

    def axes(self, subject: str, person: FMRISimulation) -> SignalAxes:
        """Regions, and the true noise ceiling of every voxel."""
        return SignalAxes(subject=subject, rois=person.rois, ncsnr=person.ncsnr)


class _PhantomSensors(_Phantom):
    """EEG and MEG: sensors on a head, time points around the onset of a picture."""

    def __init__(
        self, root: str = "", phantom: PhantomOptions = PhantomOptions(test_repetitions=8), **kwargs: Any
    ) -> None:
        super().__init__(root, phantom, **kwargs)

    def person(self, number: int) -> SensorSimulation:
        """A person by number, from 0."""
        modality: Any = self.facts.modality
        return SensorSimulation(self._features, modality=modality, **self._seed_and_snr(number))

    def axes(self, subject: str, person: SensorSimulation) -> SignalAxes:
        """Names and places of the sensors, and the time axis."""
        return SignalAxes(
            subject=subject,
            channels=person.sensors.names,
            positions=person.sensors.positions,
            sampling_rate=SAMPLING_RATE,
            start=float(TIMES[0]),
        )


class PhantomEEG(_PhantomSensors):
    """Simulated EEG of people 02 to 04, who see pictures of which half were also shown in Phantom's fMRI.

    64 electrodes of the 10-05 system, 60 samples from -0.1 s at 100 Hz, average reference, in volts. By default 480
    training pictures shown twice and 80 test pictures shown 8 times, in 4 sessions. Lead fields are those of a
    spherical head; nothing before 40 ms depends on the picture; an oracle knows the generating model
    (``datamodules.core.sensor_simulation``).

    Args:
        root: Not read; there are no raw files.
        phantom: The experiment.
        **kwargs: As for every data set.
    """

    name = "phantom_eeg"
    first_person = 1
    quarters = 2
    facts = _simulated("eeg", "V", subjects=("02", "03", "04"), trials=1600, shape=(64, 60))


class PhantomMEG(_PhantomSensors):
    """Simulated MEG of people 03 to 05, who see pictures of which three quarters were also shown in Phantom's fMRI.

    102 radial point magnetometers on a helmet, 60 samples from -0.1 s at 100 Hz, in tesla; else as ``PhantomEEG``.

    Args:
        root: Not read; there are no raw files.
        phantom: The experiment.
        **kwargs: As for every data set.
    """

    name = "phantom_meg"
    first_person = 2
    quarters = 1
    facts = _simulated("meg", "T", subjects=("03", "04", "05"), trials=1600, shape=(102, 60))
