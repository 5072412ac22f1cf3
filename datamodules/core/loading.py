"""DataModule: how samples are served to a trainer, the same for recordings and for pictures."""

from __future__ import annotations

import signal
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int64
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from contracts import Batch, DataError, Layout, ScoreContext
from datamodules.core.sampler import BatchSampler, SideBySideSampler
from datamodules.core.splits import SPLIT_NAMES

Residence = Literal["mmap", "ram", "device"]
EVALUATED: Mapping[str, str] = {
    "validate": "validation",
    "validation": "validation",
    "test": "test",
    "predict": "test",
}
"""The split that each command, or step of it, is about."""


class Samples(Dataset[Batch]):
    """Samples of one split, served as whole batches: ``samples[numbers]`` is a ``Batch``.

    Attributes:
        group: ``(N,)`` layout of each sample; a batch holds samples of one.
        subject: ``(N,)`` number of the person of each sample.
    """

    group: Int64[Tensor, " n"]
    subject: Int64[Tensor, " n"]

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def __getitem__(self, numbers: Tensor) -> Batch:
        """Return the batch of some sample numbers; ``~i`` gives sample ``i`` marked as padding."""


@dataclass(frozen=True)
class LoaderOptions:
    """How samples are served.

    Attributes:
        batch_size: Samples per process.
        residence: Where signals live: ``mmap`` (on disk, mapped), ``ram``, or ``device`` (GPU memory).
        workers: Processes that prepare batches; 0 is fastest unless pictures are decoded.
        seed: Seed of the order of training samples.
    """

    batch_size: int = 64
    residence: Residence = "mmap"
    workers: int = 0
    seed: int = 0


class DataModule(LightningDataModule):
    """Base of everything that a stage can be trained on.

    The order of training samples is a pure function of (seed, epoch); where a checkpoint was written inside an
    epoch, a resumed fit goes on after the batches already done. While a fit runs, the test split is refused.

    Args:
        loader: How samples are served.
    """

    name: str

    def __init__(self, loader: LoaderOptions = LoaderOptions()) -> None:
        super().__init__()
        self.loader = loader
        self._position = {"epoch": 0, "batches_done": 0}
        self._contexts: dict[str, ScoreContext] = {}

    # ---- what a subclass provides ------------------------------------------------------------------

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """Shapes and names, known before anything is built; makes what is missing."""

    @abstractmethod
    def dataset(self, split: str) -> Samples:
        """Return the samples of ``train``, ``validation`` or ``test``; begins with ``check_split``."""

    @property
    def folds(self) -> int:
        """Number of folds of the protocol (1: the data set's own division)."""
        return 1

    @abstractmethod
    def has_validation(self) -> bool:
        """Whether samples are set aside for validation."""

    @abstractmethod
    def stimuli(self, split: str) -> frozenset[str]:
        """SHA-256 of the pictures of a split."""

    @abstractmethod
    def make_context(self, split: str) -> ScoreContext:
        """Make what scores need to know about a split (``score_context``)."""

    # ---- what scores need --------------------------------------------------------------------------

    def score_context(self, stage: Literal["validate", "validation", "test", "predict"]) -> ScoreContext:
        """Return galleries, ceilings, protocol and layout for scoring a split (contract 3); made once a split."""
        split = EVALUATED[stage]
        self.check_split(split)
        if split not in self._contexts:
            self._contexts[split] = self.make_context(split)
        return self._contexts[split]

    # ---- what reports show -------------------------------------------------------------------------

    def about(self) -> list[dict[str, Any]]:
        """What the data are, one entry for each data set: plain data with its ``name``."""
        return [{"name": self.name}]

    def stimulus_name(self, number: int) -> str:
        """Name of a stimulus, by its number in a batch."""
        return str(number)

    def picture(self, number: int) -> NDArray[Any] | None:
        """The picture of a stimulus, by its number in a batch: RGB uint8 ``(H, W, 3)``; None without pictures."""
        return None

    def missing_stores(self) -> list[Path]:
        """Folders of converted data that are not there yet and would have to be made first."""
        return []

    # ---- what it asks of the trainer ---------------------------------------------------------------

    def check_split(self, split: str) -> None:
        """Refuse a split that does not exist, and the test split while a fit runs.

        Raises:
            DataError: Either of them.
        """
        if split not in SPLIT_NAMES:
            raise DataError(f"split must be one of {', '.join(SPLIT_NAMES)}, found {split!r}")
        if split == "test" and self.trainer:
            state = self.trainer.state
            if state.fn == TrainerFn.FITTING and state.status == TrainerStatus.RUNNING:
                raise DataError(
                    "the test split was asked for while fitting; what selects or stops must look at validation "
                    "samples (names that begin with 'validation/')"
                )

    @property
    def root_device(self) -> torch.device:
        """Where the trainer computes; the CPU without one."""
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def splits_of(self, split: str) -> tuple[str, ...]:
        """Splits served as ``split``: test recordings are training samples, too, where a stage says ``relax``."""
        relaxed = split == "train" and self._stage_wants("relax", False)
        return ("train", "test") if relaxed else (split,)

    def batch_keys(self) -> frozenset[str]:
        """Entries of a batch that the attached stage reads."""
        keys: frozenset[str] = self._stage_wants("batch_keys", frozenset({"signal", "embedding"}))
        return keys

    def keys_of(self, split: str) -> frozenset[str]:
        """Entries of a batch of this split: what only scores need (``evaluation_keys``) is read for nothing else."""
        if split == "train" or (self.trainer and self.trainer.state.fn == TrainerFn.PREDICTING):
            return self.batch_keys()
        further: frozenset[str] = self._stage_wants("evaluation_keys", frozenset())
        return self.batch_keys() | further

    def _stage_wants(self, attribute: str, otherwise: Any) -> Any:
        """What the attached stage declares (see ``lightning_modules.stage.Stage``), or the usual."""
        module = self.trainer.lightning_module if self.trainer else None
        return getattr(module, attribute, otherwise)

    # ---- Lightning ---------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Convert, embed and prepare everything that is missing."""
        self.layout  # noqa: B018  (the property does the work, once)

    def setup(self, stage: str) -> None:
        """Refuse a trainer that would replace our samplers."""
        if self.trainer and self.trainer._accelerator_connector.use_distributed_sampler:
            raise DataError(
                "the trainer would replace our samplers: set trainer.use_distributed_sampler=false "
                "(every shipped trainer file does)"
            )

    def state_dict(self) -> dict[str, int]:
        """Where in the order of training samples the next batch stands."""
        if not self.trainer:
            return dict(self._position)
        loop = self.trainer.fit_loop
        epoch: Any = loop.epoch_progress.current
        batch: Any = loop.epoch_loop.batch_progress.current
        within = epoch.started > epoch.processed and batch.processed < self.trainer.num_training_batches
        return {
            "epoch": epoch.processed if within else epoch.started,
            "batches_done": batch.processed if within else 0,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the batches already done; called before the loader of training samples is made."""
        self._position = {key: int(state_dict[key]) for key in self._position}

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of training samples; in a new order each epoch, unless the stage wants each sample once."""
        once = self._stage_wants("every_sample_once", False)
        return self._loader("train", shuffle=not once, drop_last=not once)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Batches of validation samples in a fixed order; none if nothing was set aside."""
        return self._loader("validation") if self.has_validation() else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches of test samples in a fixed order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The same as for testing."""
        return self._loader("test")

    def sampler(self, dataset: Samples, options: LoaderOptions, *, shuffle: bool, drop_last: bool) -> BatchSampler:
        """Return what chooses the samples of each batch of this process."""
        return BatchSampler(
            dataset.group,
            options.batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            seed=options.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )

    def _loader(self, split: str, *, shuffle: bool = False, drop_last: bool = False) -> DataLoader[Batch]:
        dataset = self.dataset(split)
        return self._serve(dataset, self.sampler(dataset, self.loader, shuffle=shuffle, drop_last=drop_last), split)

    def _serve(self, dataset: Dataset[Any], sampler: BatchSampler | SideBySideSampler, split: str) -> DataLoader[Any]:
        if split == "train":
            sampler.load_state_dict(self._position)
        # batch_size=None: the sampler's tensor goes to the data set as it is, which returns a whole batch
        return _Loader(
            dataset,
            sampler=sampler,
            batch_size=None,
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # typed for lists of samples
            num_workers=self.loader.workers,
            persistent_workers=self.loader.workers > 0,
            worker_init_fn=_leave_orders_to_the_trainer,
        )


def refuse_seeing(keys: frozenset[str], splits: Sequence[str]) -> None:
    """Refuse a stage that would be trained on what was seen in the test.

    Args:
        keys: Entries of a batch that the stage reads.
        splits: Splits whose samples it gets as one.

    Raises:
        DataError: Embeddings or pictures of test samples among those of training.
    """
    if len(splits) > 1 and keys & {"embedding", "image"}:
        raise DataError("a stage with relax=true must be self-supervised: it may read neither embeddings nor images")


class _Loader(DataLoader[Any]):
    """Tells Lightning that training can be resumed inside an epoch.

    The position is kept by the datamodule: Lightning restores it before the loader is made, but the states of
    loaders only where no one has asked for the number of training steps before.
    """

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def _leave_orders_to_the_trainer(worker: int) -> None:
    """Let orders to end pass: a scheduler sends them to every process, and the trainer still needs its batches."""
    for order in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(order, signal.SIG_IGN)


def _as_it_is(batch: Batch) -> Batch:
    """Keep a batch: it is whole, and PyTorch's own conversion would walk through it again."""
    return batch
