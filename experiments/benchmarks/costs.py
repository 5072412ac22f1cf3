"""What does it cost to pretrain on 1,000 people of HCP, and to train on all of NSD?

``python -m experiments.benchmarks.costs`` measures the operations of a sample of each stage (``stages``) and the rate
of the data path here, and works out the rest:

    hours = samples seen x operations a sample / (peak of the accelerator x utilisation) / 3600

Peak and utilisation are assumptions; the utilisation of this machine is printed beside them.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import open_clip
import torch

from datamodules import NSD
from datamodules.core.nsd_files import SESSIONS, TRIALS
from datamodules.core.nsd_files import SHARED as SHARED_PICTURES
from experiments.benchmarks import layouts
from experiments.benchmarks.data_path import GeneratedPatterns, open_generated, throughput
from experiments.benchmarks.in_turns import command, flop_counter, in_turns
from experiments.benchmarks.layouts import batch_size, read
from lightning_modules import FmriMAE

A100 = 312e12
"""bf16 operations a second, dense: NVIDIA A100 80 GB SXM, data sheet of June 2021. fp64 tensor cores: 19.5e12."""
LEA_BATCH = 8
"""Samples of a step of LEA's published training (Qian et al. 2023, code); the shipped data files have more."""
MINDVIS_EPOCHS = 500
"""MinD-Vis' pretraining on HCP (Chen et al. 2023, code), from which LEA starts."""
HCP_RUNS, HCP_VOLUMES = 4, 1200
"""Runs of rest of each person, and volumes of a run (Smith et al. 2013, NeuroImage 80, 144-168)."""
SHARED = 0.1
"""Assumed share of NSD's trials that show one of the 1,000 shared pictures: 3,000 of 30,000 in people who finished."""
PICTURE = 425 * 425 * 3
"""Bytes of a picture of NSD."""
STAGES = ("fmri_mae_full_hcp", "fmri_mae_full_nsd", "neural_alignment_nsd", "maskgit_full", "tokenizer_full")


@dataclass(frozen=True)
class Training:
    """A training on one data set.

    Attributes:
        text: What it is.
        samples: Training samples of an epoch.
        seen: Samples that pass in all.
        flop: Operations of a sample, forward and backward.
        sample_bytes: Bytes of a sample in the store, float32 (pictures: uint8).
    """

    text: str
    samples: float
    seen: float
    flop: float
    sample_bytes: float

    @property
    def epochs(self) -> float:
        """Passes over the samples."""
        return self.seen / self.samples

    def hours(self, rate: float) -> float:
        """Hours at so many operations a second."""
        return self.seen * self.flop / rate / 3600

    def bytes_a_second(self, rate: float) -> float:
        """What must be read each second for so many operations a second."""
        return self.sample_bytes * rate / self.flop


def costs(people: int = 1000, peak: float = A100, utilisation: float = 0.3, samples: int = 4000) -> None:
    """Measure what can be measured here and print what follows.

    Args:
        people: Of HCP.
        peak: Assumed operations a second of the accelerator.
        utilisation: Assumed share of the peak that training reaches.
        samples: Of the set on which the data path is measured.
    """
    found = {name: in_turns("experiments.benchmarks.stages", [name], rounds=1, steps=1)[name][0] for name in STAGES}
    rate = peak * utilisation
    print(f"assumed: {peak / 1e12:.0f} TFLOP/s x {utilisation:.2f} = {rate / 1e12:.1f} TFLOP/s")
    print("measured here, share of a large matrix product, and TFLOP/s:")
    for name, result in found.items():
        here = result["flop"] / result["seconds"]
        print(f"  {name}: {statistics.median(result['share']):.2f}, {here / 1e12:.3f}")
    loader = loader_rate(samples)
    print(f"measured here, data path: {loader / 1e9:.2f} GB/s")
    flop = {name: result["flop"] for name, result in found.items()} | {"embedding": embedding_flop("nsd")}
    plans = [*hcp(flop, people), *nsd(flop)]
    print(HEAD)
    for plan in plans:
        print(row(plan, rate, loader))
    print(stores(people))


HEAD = (
    "| training | samples | epochs | GFLOP a sample | EFLOP | GPU hours (assumed rate) | GB an epoch | MB/s that it "
    "needs | share of the data path |\n|---|---|---|---|---|---|---|---|---|"
)


def row(plan: Training, rate: float, loader: float) -> str:
    """A line of the table."""
    needed = plan.bytes_a_second(rate)
    total, epoch = plan.seen * plan.flop / 1e18, plan.samples * plan.sample_bytes / 1e9
    return (
        f"| {plan.text} | {plan.samples:,.0f} | {plan.epochs:,.2f} | {plan.flop / 1e9:.3g} | {total:,.2f} "
        f"| {plan.hours(rate):,.2f} | {epoch:.1f} | {needed / 1e6:.3g} | {needed / loader:.2g} |"
    )


def hcp(flop: Mapping[str, float], people: int) -> list[Training]:
    """Pretraining of LEA's autoencoder on the rest of so many people of HCP, by three choices of its length.

    Args:
        flop: Operations of a sample by stage.
        people: All of them trained on.
    """
    window = read("data/hcp.yaml")["init_args"]["time_series"]["average"]
    samples = people * HCP_RUNS * (HCP_VOLUMES // window)
    steps = read("stage/fmri_mae_full.yaml")["trainer"]["max_steps"]
    lengths = {
        f"LEA's {steps:,} steps of {LEA_BATCH}": steps * LEA_BATCH,
        f"as shipped, {steps:,} steps of {batch_size('hcp')}": steps * batch_size("hcp"),
        f"MinD-Vis' {MINDVIS_EPOCHS} epochs": samples * MINDVIS_EPOCHS,
    }
    numbers = sum(layouts.HCP_AREAS.values())
    return [
        Training(f"FmriMAE on {people:,} people of HCP: {text}", samples, seen, flop["fmri_mae_full_hcp"], 4 * numbers)
        for text, seen in lengths.items()
    ]


def nsd(flop: Mapping[str, float]) -> list[Training]:
    """Neural alignment on all of NSD, and LEA: autoencoders of all people, ridge regression, embeddings, pictures.

    Args:
        flop: Operations of a sample by stage, and of an ``embedding``.
    """
    trials = nsd_trials()
    trained = sum(trials.values()) * (1 - SHARED)
    voxels = sum(NSD.facts.shape[person][0] * number for person, number in trials.items()) / sum(trials.values())
    ours = read("recipe/neural_alignment.yaml")["trainer"]["max_epochs"]
    published = read("recipe/neural_alignment_published.yaml")["trainer"]["max_epochs"]
    steps = read("stage/fmri_mae_full.yaml")["trainer"]["max_steps"]
    drawn = read("stage/maskgit_full.yaml")["trainer"]["max_steps"]
    drawn_bytes = 3 * read("data/images_god_bold5000.yaml")["init_args"]["views"]["size"] ** 2
    width = signature(FmriMAE).parameters["width"].default
    pictures = NSD.facts.stimuli - SHARED_PICTURES
    people = len(trials)
    return [
        *(
            Training(f"neural alignment, {text}", trained, trained * epochs, flop["neural_alignment_nsd"], 4 * voxels)
            for text, epochs in ((f"{ours} epochs", ours), (f"the published {published} epochs", published))
        ),
        Training(
            f"LEA: autoencoders of {people} people, each {steps:,} steps of {LEA_BATCH}",
            trained,
            people * steps * LEA_BATCH,
            flop["fmri_mae_full_nsd"],
            4 * voxels,
        ),
        Training(
            "LEA: ridge regression, latents (a third of a step) and sums",
            trained,
            trained,
            flop["fmri_mae_full_nsd"] / 3 + ridge_flop(width, layouts.embedding_width("nsd")),
            4 * voxels,
        ),
        Training(
            "LEA: embeddings of the pictures, forward", NSD.facts.stimuli, NSD.facts.stimuli, flop["embedding"], PICTURE
        ),
        *(
            Training(
                f"LEA: {text}, {drawn:,} steps of {LEA_BATCH}", pictures, drawn * LEA_BATCH, flop[name], drawn_bytes
            )
            for text, name in (("MaskGIT", "maskgit_full"), ("a tokenizer of one's own", "tokenizer_full"))
        ),
    ]


def nsd_trials() -> dict[str, int]:
    """Trials of each person of NSD."""
    return {person: TRIALS * sessions for person, sessions in SESSIONS.items()}


def ridge_flop(p: int, q: int) -> float:
    """Operations of a sample of the sums of ridge regression in both directions: X'X, X'Y, Y'Y and Y'X."""
    return 2 * (p * p + p * q) + 2 * (q * q + q * p)


def embedding_flop(data: str) -> float:
    """Operations of embedding a picture with the model of a data file; counted without memory or time."""
    name = read(f"data/{data}.yaml")["init_args"]["embedding"]["model"].removeprefix("open_clip:")
    model: Any = open_clip.create_model(name, device="meta").eval()
    side = model.visual.image_size[0]
    with torch.no_grad(), flop_counter() as counter:
        model.encode_image(torch.zeros(1, 3, side, side, device="meta"))
    return float(counter.get_total_flops())


def loader_rate(samples: int) -> float:
    """Bytes a second of the data path on patterns of the size of HCP's, mapped from disk."""
    shape = (sum(layouts.HCP_AREAS.values()),)
    batch = batch_size("hcp")
    with tempfile.TemporaryDirectory(prefix="neuroalign-costs-") as folder:
        module = open_generated(folder, samples, batch, "mmap", kind=GeneratedPatterns, shape=shape)
        ours, _ = throughput(module, 3)
    return samples // batch * batch * shape[0] * 4 / statistics.median(ours)


def stores(people: int) -> str:
    """What the stores take on disk."""
    window = read("data/hcp.yaml")["init_args"]["time_series"]["average"]
    voxels = sum(layouts.HCP_AREAS.values())
    rest = people * HCP_RUNS * (HCP_VOLUMES // window) * voxels * 4
    trials = sum(NSD.facts.shape[person][0] * number * 4 for person, number in nsd_trials().items())
    pictures = NSD.facts.stimuli * PICTURE
    return (
        f"on disk: HCP {rest / 1e9:.1f} GB (areas at full rate before conversion: {rest * window / 1e9:.0f} GB); NSD "
        f"{trials / 1e9:.1f} GB as recorded and at most as much again cleaned, pictures {pictures / 1e9:.1f} GB"
    )


if __name__ == "__main__":
    command(costs)
