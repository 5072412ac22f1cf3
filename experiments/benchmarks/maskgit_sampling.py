"""How long does it take to draw pictures, against a plain implementation of the published loop?

``python -m experiments.benchmarks.maskgit_sampling`` draws S pictures for each of B embeddings at the published size,
each implementation in a process of its own, in turns.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from contracts import Layout
from experiments.benchmarks.in_turns import On, command, seconds_and_memory
from experiments.benchmarks.plain import Implementation, against_plain, attention_of_heads
from lightning_modules import MaskGIT
from lightning_modules.networks.token_sampling import hidden_after, sample_codes

CLASSES = 1000
"""Rows of the published token table that stand for the classes of ImageNet."""


def maskgit_sampling(
    batch_size: int = 1,
    samples: int = 5,
    steps: int = 11,
    size: int = 256,
    depth: int = 24,
    width: int = 768,
    num_heads: int = 16,
    rounds: int = 3,
    implementation: Implementation | None = None,
    **on: Any,
) -> None:
    """Print seconds, codes per second and peak memory of each implementation, and their ratio.

    Args:
        batch_size: Embeddings.
        samples: Pictures for each.
        steps: Steps of sampling.
        size: Side of the pictures in pixels; a code stands for 16.
        depth: Blocks of the transformer.
        width: Width of the transformer.
        num_heads: Attention heads.
        rounds: Measurements of each, in turns.
        implementation: Measure only this one, in this process, and print plain numbers.
        **on: Where and how, as in ``fmri_mae_step``.
    """
    options = {name: value for name, value in locals().items() if name not in ("rounds", "implementation", "on")}
    place = On(**on)
    against_plain(__spec__.name, _measure, implementation, place, rounds=rounds, work="codes", **options)


def make_model(*, size: int, depth: int, width: int, num_heads: int, samples: int, steps: int) -> MaskGIT:
    """Return the published network with the same random weights on every call; the tokenizer is the published one."""
    layout: Layout = {  # type: ignore[typeddict-item]  # only what the stage reads
        "modality": "image",
        "image_shape": [3, size, size],
        "embedding_width": 1024,
        "embedding_space": "random",
    }
    tokenizer: dict[str, Any] = {"layout": layout, "architecture": "maskgit_vqgan"}
    torch.manual_seed(0)
    model = MaskGIT(
        layout,
        tokenizer=tokenizer,
        depth=depth,
        width=width,
        num_heads=num_heads,
        mlp_width=4 * width,
        samples=samples,
        steps=steps,
    )
    return model.eval()


@torch.no_grad()
def plain_codes(model: MaskGIT, embedding: Tensor, *, samples: int, steps: int, temperature: float = 4.5) -> Tensor:
    """The published loop written out: one picture after another, every code predicted in every step.

    Logits are made for the whole table of 2025 rows and cut to the codes, noise is drawn everywhere, attention is a
    matrix, heads one after another, and the picture that was seen is encoded for its number of codes.

    Args:
        model: Gives the weights.
        embedding: ``(B, D)``.
        samples: S.
        steps: T.
        temperature: Of the choice of what is kept.

    Returns:
        ``(S, B, N)``.
    """
    weight: dict[str, Tensor] = dict(model.transformer.named_parameters())
    codes_only = weight["embedding.weight"][:-1]
    table = F.pad(codes_only, (0, 0, 0, CLASSES + 1))
    _, side, _ = model.layout["image_shape"]
    seen = torch.zeros(len(embedding), 3, side, side, dtype=torch.uint8, device=embedding.device)
    n = model.tokenizer.encode(seen).flatten(1).shape[1]
    drawn = []
    for _ in range(samples):
        codes = torch.full((len(embedding), n), model.transformer.codes, device=embedding.device)
        for step in range(steps):
            states = _states(weight, codes, model.condition(embedding), num_heads=int(model.hparams["num_heads"]))
            head = F.layer_norm(
                F.gelu(F.linear(states, weight["head.0.weight"], weight["head.0.bias"])),
                states.shape[-1:],
                weight["head.2.weight"],
                weight["head.2.bias"],
            )
            logits = F.linear(head, table)[..., : model.transformer.codes] + weight["bias"]
            chosen = torch.distributions.Categorical(logits=logits).sample()
            unknown = codes == model.transformer.codes
            chosen = torch.where(unknown, chosen, codes)
            logp = logits.log_softmax(dim=-1).gather(2, chosen[..., None])[..., 0].masked_fill(~unknown, math.inf)
            gumbel = -torch.log(-torch.log(torch.rand_like(logp)))
            worth = logp + temperature * (1 - (step + 1) / steps) * gumbel
            left = hidden_after(step + 1, steps=steps, n=n, hidden=int(unknown[0].sum()))
            cut = worth.sort(dim=1).values[:, left, None]
            codes = torch.where(worth < cut, model.transformer.codes, chosen)
        drawn.append(chosen)
    return torch.stack(drawn)


def _states(weight: dict[str, Tensor], codes: Tensor, condition: Tensor, *, num_heads: int) -> Tensor:
    x = torch.cat([condition[:, None], weight["embedding.weight"][codes]], dim=1) + weight["positions"]
    x = F.layer_norm(x, x.shape[-1:], weight["norm.weight"], weight["norm.bias"], 1e-12)
    for number in range(1 + max(int(name.split(".")[1]) for name in weight if name.startswith("blocks."))):
        block = f"blocks.{number}."

        def linear(x: Tensor, name: str, block: str = block) -> Tensor:
            return F.linear(x, weight[f"{block}{name}.weight"], weight[f"{block}{name}.bias"])

        def norm(x: Tensor, name: str, block: str = block) -> Tensor:
            return F.layer_norm(x, x.shape[-1:], weight[f"{block}{name}.weight"], weight[f"{block}{name}.bias"], 1e-12)

        query, key, value = linear(x, "attention.qkv").chunk(3, dim=2)
        attended = attention_of_heads(query, key, value, num_heads=num_heads)
        x = norm(x + linear(attended, "attention.proj"), "norm1")
        x = norm(x + linear(F.gelu(linear(x, "mlp.fc1")), "mlp.fc2"), "norm2")
    return x[:, 1:]


def _measure(
    implementation: Implementation, on: On, *, batch_size: int, samples: int, steps: int, **sizes: int
) -> dict[str, float]:
    """Seconds and peak memory in GB of drawing the codes, after one short draw, and how many codes those are."""
    model = make_model(samples=samples, steps=steps, **sizes).to(on.device)
    embedding = torch.randn(batch_size, 1024, generator=torch.Generator().manual_seed(1)).to(on.device)
    if implementation == "ours":
        on.prepare(model)

    def draw(how_many: int) -> None:
        if implementation == "plain":
            plain_codes(model, embedding, samples=samples, steps=how_many)
            return
        with torch.no_grad(), on.autocast():
            sample_codes(
                model.transformer,
                model.condition(embedding),
                stimulus=torch.arange(batch_size),
                side=model.side,
                options=replace(model.sampler, steps=how_many),
            )

    # compiled for the shapes that will come; without a compiler two steps warm up as well as eleven
    draw(steps if on.compile else 2)
    codes = batch_size * samples * model.side**2
    return {**seconds_and_memory(lambda: draw(steps), on.device), "work": codes}


if __name__ == "__main__":
    command(maskgit_sampling)
