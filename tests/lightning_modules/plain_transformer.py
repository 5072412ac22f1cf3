"""What the networks compute, from their weights, with the primitives of PyTorch and numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]


def linear(state: State, name: str, value: Tensor) -> Tensor:
    return F.linear(value, state[f"{name}.weight"], state[f"{name}.bias"])


def norm(state: State, name: str, value: Tensor) -> Tensor:
    return F.layer_norm(value, value.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)


def transformer(state: State, tokens: Tensor, *, blocks: str, last: str, heads: int) -> Tensor:
    """Blocks of the Vision Transformer, attention written out, then the last normalisation."""
    depth = 1 + max(int(name.split(".")[blocks.count(".") + 1]) for name in state if name.startswith(f"{blocks}."))
    for number in range(depth):
        block = f"{blocks}.{number}"
        qkv = linear(state, f"{block}.attn.qkv", norm(state, f"{block}.norm1", tokens))
        query, key, value = (
            part.unflatten(2, (heads, -1)).transpose(1, 2) for part in qkv.split(tokens.shape[2], dim=2)
        )
        weights = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(query.shape[3]), dim=3)
        attended = (weights @ value).transpose(1, 2).flatten(2)
        tokens = tokens + linear(state, f"{block}.attn.proj", attended)
        hidden = F.gelu(linear(state, f"{block}.mlp.fc1", norm(state, f"{block}.norm2", tokens)))
        tokens = tokens + linear(state, f"{block}.mlp.fc2", hidden)
    return norm(state, last, tokens)


def sines(rows: int, width: int) -> Tensor:
    """Positions of He et al. (2022), with a row of zeros for the class token."""
    omega = 1.0 / 10000 ** (np.arange(width // 2) / (width / 2.0))
    angle = np.einsum("p,w->pw", np.arange(rows, dtype=np.float64), omega)
    table = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    return torch.from_numpy(np.concatenate([np.zeros((1, width)), table]).astype(np.float32))
