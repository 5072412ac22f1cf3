"""Small recordings, and fits of ContrastiveAlignment, Tokenizer and MaskGIT through Python."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader

from contracts import NO_LABEL, Batch, Layout
from datamodules import BrainDataModule, EmbeddingOptions, LoaderOptions, SplitOptions, Stimuli
from datamodules.core.loading import Residence
from datamodules.core.views import ORIGINAL, ViewOptions
from lightning_modules import ContrastiveAlignment, MaskGIT, ResidualMLP, Stage, TemporalSpatialConv, Tokenizer
from tests.formats.recording import Recording, SensorRecording, change, experiment, pictures

PIXELS = EmbeddingOptions(image_size=3)
PEOPLE = {"01": (12,), "02": (9,)}
small = functools.partial(ResidualMLP, hidden=16)
tiny = functools.partial(TemporalSpatialConv, sensors=8, filters=8, kernel=3, pool=4, stride=2)

SMALL_TOKENIZER: dict[str, Any] = {"options": {"widths": [16], "levels": [4, 3]}, "lr": 1e-2}
SMALL_MASKGIT: dict[str, Any] = {"width": 16, "depth": 1, "num_heads": 2, "mlp_width": 16, "lr": 3e-3, "steps": 4}


def recording(
    stores: Path,
    shape: dict[str, tuple[int, ...]] = PEOPLE,
    *,
    batch_size: int = 5,
    embedding: EmbeddingOptions = PIXELS,
    **split: Any,
) -> Recording:
    """People who saw the same 28 pictures of 4 classes: 16 to train on, 4 for validation and 8 for testing."""
    kind = SensorRecording if len(next(iter(shape.values()))) == 2 else Recording
    name = "-".join(f"{person}x{'x'.join(map(str, form))}" for person, form in shape.items())
    return kind(
        str(stores / name / "raw"),
        experiment(shape),
        stores=str(stores / name),
        embedding=embedding,
        split=SplitOptions(**{"validation": 0.2, **split}),
        loader=LoaderOptions(batch_size=batch_size),
    )


def only(modules: Any) -> Any:
    """The module of the only data set."""
    (module,) = modules.values()
    return module


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        **{
            "default_root_dir": folder,
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "callbacks": list(callbacks),
            **options,
        }
    )


def short_trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    """One epoch, and no validation before it."""
    return trainer(folder, *callbacks, **{"max_epochs": 1, "num_sanity_val_steps": 0, **options})


def fit(data: Recording, path: Path, *callbacks: Callback, seed: int = 0, **options: Any) -> ContrastiveAlignment:
    """Train a small model and write its checkpoint."""
    seed_everything(seed, verbose=False)
    model = ContrastiveAlignment(data.layout, **{"encoder": small, **options})
    run = trainer(path.parent, *callbacks)
    run.fit(model, datamodule=data)
    run.save_checkpoint(path)
    return model


def whole(data: Recording, person: int = 0, split: str = "test") -> Batch:
    """All samples of one person as one batch."""
    samples = data.dataset(split)
    return samples[torch.nonzero(samples.subject == person).flatten()]


def copied(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


class Started(Callback):
    """Keeps the weights with which training begins."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.weights = copied(pl_module)


class Losses(Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.values.append(float(outputs["loss"]))


def assert_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert not [name for name, value in expected.items() if not torch.equal(found[name], value)]


def made_up(shape: dict[str, list[int]], *, width: int = 8, classes: int = 0) -> Layout:
    first = next(iter(shape.values()))
    return Layout(
        modality="fmri" if len(first) == 1 else "eeg",
        subjects=list(shape),
        shape=shape,
        rois={name: {} for name in shape},
        channels=[],
        positions=[],
        sampling_rate=0.0 if len(first) == 1 else 100.0,
        start=0.0,
        image_shape=[],
        embedding_width=width,
        embedding_space="made-up",
        train_samples=dict.fromkeys(shape, 100),
        classes=[f"class {i}" for i in range(classes)],
        protocol="by_stimulus",
        fold=0,
        folds=1,
        preparation={},
        training_set="made-up",
        transductive=False,
    )


def linear_problem(shape: list[int], *, width: int = 8, train: int = 384, held_out: int = 40) -> list[Batch]:
    """Signals that are a fixed linear map of the embedding, with a little noise; the last batch is held out."""
    random = torch.Generator().manual_seed(0)
    number = train + held_out
    embedding = torch.randn(number, width, generator=random)
    weights = torch.randn(width, math.prod(shape), generator=random) / math.sqrt(width)
    signal = embedding @ weights + 0.1 * torch.randn(number, math.prod(shape), generator=random)
    everything = Batch(
        signal=signal.unflatten(1, shape),
        embedding=embedding,
        stimulus=torch.arange(number),
        label=torch.full((number,), NO_LABEL),
        subject=torch.zeros(number, dtype=torch.int64),
        row=torch.arange(number),
    )
    rows = [*torch.arange(train).split(64), torch.arange(train, number)]
    return [Batch(**{name: value[part] for name, value in everything.items()}) for part in rows]


def loader(batches: list[Batch]) -> Any:
    return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)


def pictured(
    stores: Path,
    side: int = 8,
    people: dict[str, tuple[int, ...]] = PEOPLE,
    *,
    batch_size: int = 8,
    embedding: EmbeddingOptions = PIXELS,
    views: ViewOptions = ORIGINAL,
    residence: Residence = "mmap",
    validation: float = 0.2,
    **sizes: Any,
) -> Recording:
    """People who saw pictures of a size: 16 to train on, 4 for validation and 8 for testing, if not said otherwise."""
    options = {"classes": 4, "train": 5, "test": 2, **sizes}
    number = options["classes"] * (options["train"] + options["test"])
    folder = stores / f"pictured-{side}-{'-'.join(f'{key}{value}' for key, value in {**people, **options}.items())}"
    return Recording(
        str(folder / "raw"),
        change(experiment(people, **options), Stimuli, image=pictures(number, side=side)),
        stores=str(folder),
        embedding=embedding,
        split=SplitOptions(validation=validation),
        views=views,
        loader=LoaderOptions(batch_size=batch_size, residence=residence),
    )


def shown(data: BrainDataModule, stage: type[Stage], split: str = "test") -> Batch:
    """All pictures of a split as one batch, as a stage that learns from pictures gets it."""
    data.batch_keys = lambda: stage.batch_keys  # type: ignore[method-assign]
    samples = data.dataset(split)
    return samples[torch.arange(len(samples))]


def _trained(
    kind: type[Stage],
    usual: dict[str, Any],
    data: BrainDataModule,
    path: Path,
    *,
    epochs: int,
    seed: int,
    **options: Any,
) -> Path:
    seed_everything(seed, verbose=False)
    model = kind(data.layout, **{**usual, **options})
    run = trainer(path.parent, max_epochs=epochs)
    run.fit(model, datamodule=data)
    run.save_checkpoint(path)
    return path


def tokenizer(data: BrainDataModule, path: Path, *, epochs: int = 1, seed: int = 0, **options: Any) -> Path:
    """Train a small Tokenizer; returns its checkpoint."""
    return _trained(Tokenizer, SMALL_TOKENIZER, data, path, epochs=epochs, seed=seed, **options)


def maskgit(data: BrainDataModule, path: Path, *, epochs: int = 1, seed: int = 0, **options: Any) -> Path:
    """Train a small MaskGIT; returns its checkpoint."""
    return _trained(MaskGIT, SMALL_MASKGIT, data, path, epochs=epochs, seed=seed, **options)
