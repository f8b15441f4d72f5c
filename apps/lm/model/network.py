"""The network: pre-norm Transformer blocks over packed sequences, linear or exact attention, one tied output.

The tokens of all sequences of a batch follow one another, `[N]`, with borders `cu_seqlens`; nothing is padded. The
queries and keys of each head are scaled to unit length times the root of a learned temperature, so that random features
stay in the range where they estimate well. All that is computed lies on the device of the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from protperf.lm.alphabet import VOCAB_SIZE
from protperf.lm.model.config import FEATURE_MAP, ModelConfig
from protperf.torch import softmax_attention
from protperf.torch.nn import FavorAttention

MASKED, CAUSAL = 0, 1
"""Modes of reading: every position sees all others, or only those before it."""

_NORM_EPSILON = torch.finfo(torch.float32).eps
"""Fixed, because torch's default depends on the type: a network in float64 would be another function."""
# Where training starts. Estimates of exponentials need small logits; sines and cosines the smallest.
_TEMPERATURE = {
    "relu": 4.0,
    "elu1": 4.0,
    "exact": 4.0,
    "softmax": 1.5,
    "positive": 1.5,
    "hyperbolic": 1.5,
    "smreg": 1.5,
    "trigonometric": 1.0,
}


@dataclass
class ChunkState:
    """What a causal pass carries from chunk to chunk: a state per layer, or keys and values for exact attention."""

    position: int = 0
    layers: dict[int, tuple[torch.Tensor, ...]] = field(default_factory=dict)


class Network(nn.Module):
    """Logits over the vocabulary for every token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # torch first fills every layer from its own generator; the caller's random numbers must not change by that.
        with torch.random.fork_rng(devices=[]):
            self.embedding = nn.Embedding(VOCAB_SIZE, config.model_dim)
            self.mode = nn.Embedding(2, config.model_dim)
            self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
            self.norm = nn.RMSNorm(config.model_dim, _NORM_EPSILON)
        self._initialize()

    def _initialize(self) -> None:
        generator = torch.Generator().manual_seed(self.config.seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                std = 0.02 if "embedding" in name or "mode" in name else parameter.shape[1] ** -0.5
                if name.endswith(("out.weight", "down.weight")):
                    std /= math.sqrt(2 * self.config.num_layers)
                nn.init.normal_(parameter, std=std, generator=generator)

    def forward(self, tokens: torch.Tensor, cu_seqlens: torch.Tensor, mode: int) -> torch.Tensor:
        """Logits [N, vocabulary].

        Shapes: tokens [N] integers, cu_seqlens [num_sequences + 1]. `mode` is MASKED or CAUSAL.
        """
        return self.logits(self.hidden(tokens, cu_seqlens, mode))

    def hidden(self, tokens: torch.Tensor, cu_seqlens: torch.Tensor, mode: int) -> torch.Tensor:
        """Hidden states [N, C] of every token, normalized: what the logits are computed from. Arguments as `forward`.

        Source: pre-norm blocks as in Xiong et al. 2020, arXiv:2002.04745.
        """
        starts = torch.repeat_interleave(cu_seqlens[:-1], cu_seqlens.diff(), output_size=len(tokens))
        rotary = self._rotations(torch.arange(len(tokens), device=tokens.device) - starts)
        hidden = self._embed(tokens, mode)
        for block in self.blocks:
            hidden = block(hidden, rotary, cu_seqlens, mode)
        return self.norm(hidden)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [N, vocabulary] of hidden states [N, C]; the output weights are those of the embedding."""
        return functional.linear(hidden, self.embedding.weight)

    def causal_chunk(self, tokens: torch.Tensor, state: ChunkState) -> torch.Tensor:
        """Logits [N, vocabulary] of the next N tokens of one sequence; `state` is updated in place."""
        positions = torch.arange(state.position, state.position + len(tokens), device=tokens.device)
        rotary = self._rotations(positions)
        hidden = self._embed(tokens, CAUSAL)
        for layer, block in enumerate(self._layers()):
            hidden = block.causal_chunk(hidden, rotary, state, layer)
        state.position += len(tokens)
        return self.logits(self.norm(hidden))

    def redraw(self, draw: int) -> None:
        """Replace the random directions of every layer and head by draw number `draw`."""
        for block in self._layers():
            block.attention.redraw(draw)

    def _layers(self) -> Iterator[Block]:
        return (block for block in self.blocks if isinstance(block, Block))

    def _embed(self, tokens: torch.Tensor, mode: int) -> torch.Tensor:
        return self.embedding(tokens.long()) + self.mode.weight[mode]

    def _rotations(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rotations(positions, self.config.head_dim, self.embedding.weight.dtype)


class Block(nn.Module):
    """Attention, then a gated feed-forward layer, each on the normed residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.attention_norm = nn.RMSNorm(config.model_dim, _NORM_EPSILON)
        self.ffn_norm = nn.RMSNorm(config.model_dim, _NORM_EPSILON)
        self.gate_up = nn.Linear(config.model_dim, 2 * config.ffn_dim, bias=False)
        self.down = nn.Linear(config.ffn_dim, config.model_dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], cu_seqlens: torch.Tensor, mode: int
    ) -> torch.Tensor:
        attended = self.attention(self.attention_norm(hidden), rotary, cu_seqlens, mode)
        return self._feed_forward(hidden + self.dropout(attended))

    def causal_chunk(
        self, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], state: ChunkState, layer: int
    ) -> torch.Tensor:
        return self._feed_forward(
            hidden + self.attention.causal_chunk(self.attention_norm(hidden), rotary, state, layer)
        )

    def _feed_forward(self, hidden: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(self.ffn_norm(hidden)).chunk(2, -1)
        return hidden + self.dropout(self.down(functional.silu(gate) * up))


class Attention(nn.Module):
    """Multi-head attention with rotary positions, unit queries and keys, and a temperature for each head."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        inner = config.num_heads * config.head_dim
        self.qkv = nn.Linear(config.model_dim, 3 * inner, bias=False)
        self.out = nn.Linear(inner, config.model_dim, bias=False)
        start = math.log(_TEMPERATURE[config.attention])
        self.log_temperature = nn.Parameter(torch.full((config.num_heads,), start))
        self.favor = None if config.attention == "exact" else _random_features(config, layer)
        # Checkpoints name omega as a tensor of this module.
        self.register_state_dict_post_hook(_lift_omega)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_lower_omega)  # type: ignore[no-untyped-call]

    def redraw(self, draw: int) -> None:
        """Draw number `draw` of this layer's directions."""
        if self.favor is not None:
            self.favor.redraw(draw)

    def forward(
        self, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], cu_seqlens: torch.Tensor, mode: int
    ) -> torch.Tensor:
        q, k, v = self._heads(hidden, rotary)
        attend = softmax_attention if self.favor is None else self.favor
        attended = attend(q, k, v, causal=mode == CAUSAL, cu_seqlens=cu_seqlens)
        return self.out(attended[0].transpose(0, 1).flatten(1))

    def causal_chunk(
        self, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], state: ChunkState, layer: int
    ) -> torch.Tensor:
        q, k, v = self._heads(hidden, rotary)
        before = state.layers.get(layer)
        if self.favor is None:
            if before is not None:
                k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
            state.layers[layer] = (k, v)
            rows, cols = (torch.arange(x.shape[2], device=x.device) for x in (q, k))
            seen = cols[None, :] <= rows[:, None] + (k.shape[2] - q.shape[2])
            attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        else:
            attended, after = self.favor.with_state(q, k, v, before[0] if before is not None else None)
            state.layers[layer] = (after,)
        return self.out(attended[0].transpose(0, 1).flatten(1))

    def _heads(
        self, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        c = self.config
        q, k, v = self.qkv(hidden).view(len(hidden), 3, c.num_heads, c.head_dim).permute(1, 2, 0, 3)[:, None]
        # |q|^2 = |k|^2 = temperature once attention has scaled both by D^-1/4: logits are temperature * cosine.
        length = (0.5 * self.log_temperature).exp()[:, None, None] * c.head_dim**0.25
        return (
            rotate(functional.normalize(q, dim=-1) * length, rotary),
            rotate(functional.normalize(k, dim=-1) * length, rotary),
            v,
        )


def _random_features(config: ModelConfig, layer: int) -> FavorAttention:
    return FavorAttention(
        config.head_dim,
        config.num_features,
        num_heads=config.num_heads,
        feature_map=FEATURE_MAP.get(config.attention, config.attention),
        seed=config.seed,
        layer=layer,
        sampler=config.sampler,
        norm=config.norm,
        # The configuration and the step say which draw it is.
        saves_key=False,
        dtype=torch.float32,
    )


def _lift_omega(module: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    if prefix + "favor.omega" in state_dict:
        state_dict[prefix + "omega"] = state_dict.pop(prefix + "favor.omega")


def _lower_omega(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    if prefix + "omega" in state_dict:
        state_dict[prefix + "favor.omega"] = state_dict.pop(prefix + "omega")


def rotations(positions: torch.Tensor, head_dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [N, D/2] of rotary positions. Source: Su et al. 2021, arXiv:2104.09864."""
    # In float64, because an angle at position 34,000 has no correct digits in float32. MPS lacks that type.
    device = torch.device("cpu") if positions.device.type == "mps" else positions.device
    rates = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim)
    angles = positions.to(device, torch.float64)[:, None] * rates
    return angles.cos().to(positions.device, dtype), angles.sin().to(positions.device, dtype)


def rotate(x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate the pairs (x[i], x[i + D/2]) of x [..,N,D] by their position's angles."""
    cosines, sines = rotary
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosines - second * sines, first * sines + second * cosines], -1)
