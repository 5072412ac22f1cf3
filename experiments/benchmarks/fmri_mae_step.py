"""How long does a training step of LEA's autoencoder take, against a plain implementation of the same network?

``python -m experiments.benchmarks.fmri_mae_step`` measures one step (forward, backward, AdamW) at the published size
and batch, each implementation in a process of its own, in turns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from contracts import Batch
from experiments.benchmarks.in_turns import On, command, flop_counter, seconds_and_memory
from experiments.benchmarks.layouts import GOD_SUBJECT_2, god
from experiments.benchmarks.plain import Implementation, against_plain, attention_of_heads
from lightning_modules import FmriMAE


def fmri_mae_step(
    batch_size: int = 8,
    depth: int = 24,
    width: int = 1024,
    decoder_depth: int = 8,
    decoder_width: int = 512,
    num_heads: int = 16,
    rounds: int = 3,
    implementation: Implementation | None = None,
    **on: Any,
) -> None:
    """Print seconds and peak memory of a step of each implementation, and their ratio.

    Args:
        batch_size: Samples of a step.
        depth: Blocks of the encoder.
        width: Width of the encoder.
        decoder_depth: Blocks of the decoder.
        decoder_width: Width of the decoder.
        num_heads: Attention heads of both.
        rounds: Measurements of each, in turns.
        implementation: Measure only this one, in this process, and print plain numbers.
        **on: Where and how (``On``): ``--device``, and ``--precision`` and ``--compile`` of ours; the plain one is
            always float32.
    """
    options = {name: value for name, value in locals().items() if name not in ("rounds", "implementation", "on")}
    place = On(**on)
    found = against_plain(__spec__.name, _measure, implementation, place, rounds=rounds, work="TFLOP", **options)
    if found:
        ours, plain = found["ours"][0], found["plain"][0]
        difference = abs(ours["loss"] / plain["loss"] - 1)
        print(f"{ours['weights'] / 1e6:.2f} million weights; first losses differ by {difference:.1e}")


def make_model(*, width: int, depth: int, decoder_width: int, decoder_depth: int, num_heads: int) -> FmriMAE:
    """Return the network for one person with the regions of ``GOD_SUBJECT_2``, with the same weights on every call."""
    torch.manual_seed(0)
    return FmriMAE(
        god(),
        width=width,
        depth=depth,
        num_heads=num_heads,
        decoder_width=decoder_width,
        decoder_depth=decoder_depth,
        decoder_num_heads=num_heads,
    )


def plain_loss(weight: dict[str, Tensor], signal: Tensor, *, num_heads: int) -> Tensor:
    """The published network written out: regions and heads one after another, attention as a matrix.

    Args:
        weight: State of ``FmriMAE.autoencoder``.
        signal: ``(B, V)``.
        num_heads: Attention heads of both transformers.

    Returns:
        The mean squared error over all voxels.
    """
    regions = signal[:, None].split(GOD_SUBJECT_2, dim=2)
    tokens = []
    for number, region in enumerate(regions):
        own = f"tokens.inputs.layers.0.{{}}.{number}."
        convolved = F.conv1d(region, *_linear(weight, own.format("convolutions")), padding=1)
        tokens.append(F.linear(convolved, *_linear(weight, own.format("projections"))))
    x = torch.cat(tokens, dim=1) + weight["positions"][1:]
    x = torch.cat([weight["cls_token"].expand(len(x), -1, -1), x], dim=1)
    latent = F.linear(_transformer(weight, "encoder.", x, num_heads)[:, :1], *_linear(weight, "to_latent."))
    seen = F.linear(latent, *_linear(weight, "from_latent."))
    hidden = weight["mask_token"] + weight["decoder_positions"][1:]
    x = torch.cat([seen, hidden.expand(len(x), -1, -1)], dim=1)
    groups = _transformer(weight, "decoder.", x, num_heads)[:, 1:].chunk(len(GOD_SUBJECT_2), dim=1)
    voxels = [
        F.conv1d(
            F.linear(group, *_linear(weight, f"tokens.outputs.layers.0.projections.{number}.")),
            *_linear(weight, "tokens.mix."),
            padding=1,
        )[:, 0]
        for number, group in enumerate(groups)
    ]
    return F.mse_loss(torch.cat(voxels, dim=1), signal)


def _transformer(weight: dict[str, Tensor], name: str, x: Tensor, num_heads: int) -> Tensor:
    depth = 1 + max(int(key.split(".")[2]) for key in weight if key.startswith(f"{name}blocks."))
    for number in range(depth):
        block = f"{name}blocks.{number}."
        normal = F.layer_norm(x, x.shape[2:], *_linear(weight, f"{block}norm1."))
        query, key, value = F.linear(normal, *_linear(weight, f"{block}attn.qkv.")).chunk(3, dim=2)
        attended = attention_of_heads(query, key, value, num_heads=num_heads)
        x = x + F.linear(attended, *_linear(weight, f"{block}attn.proj."))
        normal = F.layer_norm(x, x.shape[2:], *_linear(weight, f"{block}norm2."))
        x = x + F.linear(
            F.gelu(F.linear(normal, *_linear(weight, f"{block}mlp.fc1."))), *_linear(weight, f"{block}mlp.fc2.")
        )
    return F.layer_norm(x, x.shape[2:], *_linear(weight, f"{name}norm."))


def _linear(weight: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return weight[f"{name.rstrip('.')}.weight"], weight[f"{name.rstrip('.')}.bias"]


def _measure(
    implementation: Implementation, on: On, *, batch_size: int, num_heads: int, **sizes: int
) -> dict[str, float]:
    """Seconds, peak memory in GB and tera-operations of one step, after those in which it is counted and warms up."""
    model = make_model(num_heads=num_heads, **sizes).to(on.device)
    row = torch.arange(batch_size)
    signal = torch.randn(batch_size, sum(GOD_SUBJECT_2), generator=torch.Generator().manual_seed(1)).to(on.device)
    batch = Batch(signal=signal, subject=torch.zeros_like(row), row=row.to(on.device))
    network = model.autoencoder
    weight = dict(network.named_parameters()) | dict(network.named_buffers())
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-5, betas=(0.9, 0.95), weight_decay=0.01)
    if implementation == "ours":
        on.prepare(model)

    def loss() -> Tensor:
        if implementation == "plain":
            return plain_loss(weight, signal, num_heads=num_heads)
        with on.autocast():
            return model.reconstruction_loss(batch, "all").mean()

    with flop_counter() as counter:
        first = _step(loss, optimiser)
    for _ in range(1, on.warm):
        _step(loss, optimiser)
    measured = seconds_and_memory(lambda: _step(loss, optimiser), on.device)
    weights = sum(parameter.numel() for parameter in model.parameters())
    return {**measured, "loss": first, "weights": weights, "work": counter.get_total_flops() / 1e12}


def _step(loss: Callable[[], Tensor], optimiser: torch.optim.Optimizer) -> float:
    optimiser.zero_grad(set_to_none=True)
    value = loss()
    value.backward()
    optimiser.step()
    return value.item()


if __name__ == "__main__":
    command(fmri_mae_step)
