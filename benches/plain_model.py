"""The model that ours is compared with: what a careful torch user writes for short proteins.

Pre-norm blocks with torch's own softmax attention, learned positions, a gated feed-forward layer and tied output, of
the same widths as ours; sequences of one length in `[batch, L]`, so that nothing is packed.
"""

import torch
from torch import nn
from torch.nn import functional

_STD = 0.02
"""Of the embeddings. With torch's default of 1 the tied logits are so large that gradients become denormal numbers."""


class PlainModel(nn.Module):
    """Logits [B, L, vocabulary] of tokens [B, L], left to right."""

    def __init__(self, vocabulary: int, length: int, layers: int, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        nn.init.normal_(self.embedding.weight, std=_STD)
        nn.init.normal_(self.places.weight, std=_STD)
        self.blocks = nn.ModuleList(_Block(width, heads, inner) for _ in range(layers))
        self.norm = nn.RMSNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens) + self.places.weight
        for block in self.blocks:
            hidden = block(hidden)
        return functional.linear(self.norm(hidden), self.embedding.weight)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.ffn_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate_up, self.down = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.attention_norm(hidden)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        hidden = hidden + self.out(attended.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.ffn_norm(hidden)).chunk(2, -1)
        return hidden + self.down(functional.silu(gate) * up)
