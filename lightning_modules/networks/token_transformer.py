"""The bidirectional transformer of MaskGIT: codes of a picture, some hidden, given a condition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from timm.layers import Attention, Mlp  # type: ignore[attr-defined]  # listed without __all__
from torch import Tensor, nn


class TokenTransformer(nn.Module):
    """A BERT (layer norm after each sum) over the codes of a picture, with the condition at position 0.

    Code ``codes`` stands for a hidden one. Logits are products with the embeddings of the codes (weights are tied).

    Reference: Chang et al. (2022), MaskGIT, section 3; Qian et al. (2023), LEA, section 3.3; Devlin et al. (2019),
    BERT, for the blocks.

    Args:
        codes: Number of codes.
        tokens: Codes of a picture.
        width: Width of the tokens.
        depth: Blocks.
        num_heads: Attention heads of a block.
        mlp_width: Width inside the MLP of a block.
        dropout: Dropout of embeddings and of both sums of a block.
        embedding_eps: Epsilon of the layer norm of the embeddings: 1e-12 as in MaskGIT, 1e-5 in LEA's code.
    """

    def __init__(
        self,
        *,
        codes: int,
        tokens: int,
        width: int,
        depth: int,
        num_heads: int,
        mlp_width: int,
        dropout: float = 0.0,
        embedding_eps: float = 1e-12,
    ) -> None:
        super().__init__()
        self.codes = codes
        self.embedding = nn.Embedding(codes + 1, width)
        self.positions = nn.Parameter(torch.empty(1 + tokens, width))
        self.norm = nn.LayerNorm(width, eps=embedding_eps)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TokenBlock(width, num_heads=num_heads, mlp_width=mlp_width, dropout=dropout) for _ in range(depth)
        )
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=1e-12))
        self.bias = nn.Parameter(torch.zeros(codes))
        for name, weight in self.named_parameters():
            if name.endswith("positions") or (weight.ndim == 2 and "norm" not in name):
                # as published: a normal distribution cut at two SDs
                nn.init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, codes: Int64[Tensor, "b n"], condition: Float[Tensor, "b w"]) -> Float[Tensor, "b n w"]:
        """Return the hidden states of the codes; ``logits`` makes predictions of them.

        Args:
            codes: Codes, hidden ones as ``self.codes``.
            condition: What stands at position 0.
        """
        x = torch.cat([condition[:, None].to(self.embedding.weight.dtype), self.embedding(codes)], dim=1)
        x = self.dropout(self.norm(x + self.positions))
        for block in self.blocks:
            x = block(x)
        states: Tensor = x[:, 1:]
        return states

    def logits(self, states: Float[Tensor, "*n w"]) -> Float[Tensor, "*n k"]:
        """Logits over the codes from hidden states."""
        return F.linear(self.head(states), self.embedding.weight[: self.codes], self.bias)

    def hide(self, codes: Int64[Tensor, "b n"], hidden: Bool[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
        """Replace hidden codes by the one that says so."""
        return codes.masked_fill(hidden, self.codes)


class TokenBlock(nn.Module):
    """A block of BERT: attention and MLP, each added to its input and then normalised.

    Args:
        width: Width of the tokens.
        num_heads: Attention heads.
        mlp_width: Width inside the MLP.
        dropout: Dropout before both sums.
    """

    def __init__(self, width: int, *, num_heads: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, num_heads, qkv_bias=True, proj_drop=dropout)
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.mlp = Mlp(width, mlp_width)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        """Transform tokens."""
        x = self.norm1(x + self.attention(x))
        y: Tensor = self.norm2(x + self.dropout(self.mlp(x)))
        return y
