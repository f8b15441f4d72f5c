"""The network: pre-norm Transformer blocks over packed sequences, linear or exact attention, one tied output.

The tokens of all sequences of a batch follow one another, `[N]`, with borders `cu_seqlens`; nothing is padded. The
queries and keys of each head are scaled to unit length times the root of a learned temperature, so that random features
stay in the range where they estimate well. All that is computed lies on the device of the tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from protperf.lm.alphabet import VOCAB_SIZE
from protperf.lm.engine import CAUSAL, MASKED
from protperf.lm.model.config import FEATURE_MAP, ModelConfig
from protperf.torch import BlockWeights, softmax_attention, token_loss, transformer_block
from protperf.torch.block import can_run
from protperf.torch.nn import FavorAttention
from protperf.torch.nn.positions import rotate, rotations

__all__ = ["CAUSAL", "MASKED", "Block", "ChunkState", "Network"]

_NORM_EPSILON = torch.finfo(torch.float32).eps
"""Fixed, because torch's default depends on the type: a network in float64 would be another function."""
_MAX_KEPT_POSITIONS = 1 << 16
"""Positions whose angles are kept in a table, at the most."""
_TEMPERATURE = 4.0
"""Where training starts, unless the map needs another."""
# Estimates of exponentials need small logits; sines and cosines the smallest.
_TEMPERATURES = dict.fromkeys(("softmax", "positive", "hyperbolic", "smreg", "gaussian", "exp"), 1.5)
_TEMPERATURES |= dict.fromkeys(("trigonometric", "fourier", "cos"), 1.0)


@dataclass
class ChunkState:
    """What a causal pass over some sequences carries from chunk to chunk.

    Attributes:
        positions: tokens read of each sequence [num_sequences].
        layers: for each layer that has read something its states [num_sequences, H, F, 2+D], or, with exact attention,
            the keys and the values [H, positions[i], D] of each sequence.
    """

    positions: torch.Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))
    layers: dict[int, torch.Tensor] = field(default_factory=dict)
    pairs: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = field(default_factory=dict)

    def select(self, indices: Sequence[int]) -> ChunkState:
        """A copy of the states of some sequences, in this order."""
        places = torch.tensor(indices, dtype=torch.int64)
        # Keys and values are never written to, so that copies share them.
        return ChunkState(
            self.positions[places.to(self.positions.device)],
            {layer: states[places.to(states.device)] for layer, states in self.layers.items()},
            {layer: [pairs[i] for i in indices] for layer, pairs in self.pairs.items()},
        )


class Network(nn.Module):
    """Logits over the vocabulary for every token.

    Args:
        engine: `native` computes each block, and the loss, in one native call wherever it can (`can_run`); `torch`
            composes them of torch's operations, which every device and every mode of differentiation has.
        precision: what the native engine multiplies matrices in while it trains: `f32`, or `bf16`. In evaluation mode,
            and composed of torch's operations, nothing is rounded.
        attention_backend: what computes linear attention with the engine `torch`, a name from `protperf.backends()`.
    """

    def __init__(
        self, config: ModelConfig, engine: str = "native", precision: str = "f32", attention_backend: str = "auto"
    ) -> None:
        super().__init__()
        self.config, self.engine, self.precision = config, engine, precision
        self._tables: tuple[torch.Tensor, torch.Tensor] | None = None
        # torch first fills every layer from its own generator; the caller's random numbers must not change by that.
        with torch.random.fork_rng(devices=[]):
            self.embedding = nn.Embedding(VOCAB_SIZE, config.model_dim)
            self.mode = nn.Embedding(2, config.model_dim)
            self.blocks = nn.ModuleList(Block(config, layer, attention_backend) for layer in range(config.num_layers))
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

    def hidden(self, tokens: torch.Tensor, cu_seqlens: torch.Tensor, mode: int, layer: int = -1) -> torch.Tensor:
        """Hidden states [N, C] of every token. Arguments as `forward`, and:

        Args:
            layer: 0 is the embedding, i the residual stream after block i, -1 the last of them, normalized: what the
                logits are computed from.

        Source: pre-norm blocks as in Xiong et al. 2020, arXiv:2002.04745.
        """
        rotary = self._kept_rotations(places(cu_seqlens, len(tokens)))
        hidden = self._embed(tokens, mode)
        hidden = self._through(self.blocks if layer < 0 else self.blocks[:layer], hidden, rotary, cu_seqlens, mode)
        return self.norm(hidden) if layer < 0 else hidden

    def loss(
        self,
        tokens: torch.Tensor,
        cu_seqlens: torch.Tensor,
        mode: int,
        positions: torch.Tensor,
        targets: torch.Tensor,
        weight: float = 1.0,
    ) -> torch.Tensor:
        """`weight` times the sum over the targets of their negative log-probabilities, nats.

        Shapes: as in `forward`, and positions, increasing, and targets [num_targets].
        """
        rotary = self._kept_rotations(places(cu_seqlens, len(tokens)))
        hidden = self._through(self.blocks, self._embed(tokens, mode), rotary, cu_seqlens, mode)
        weights = (self.norm.weight, self.embedding.weight)
        if self.engine == "native" and can_run(hidden, weights):
            return token_loss(hidden, *weights, positions, targets, weight, self._chosen_precision())
        logits = self.logits(self.norm(hidden))[positions]
        return functional.cross_entropy(logits, targets, reduction="sum") * weight

    def _through(
        self,
        blocks: Iterable[nn.Module],
        hidden: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        cu_seqlens: torch.Tensor,
        mode: int,
    ) -> torch.Tensor:
        for block in blocks:
            hidden = block(hidden, rotary, cu_seqlens, mode, self.engine, self._chosen_precision())
        return hidden

    def _chosen_precision(self) -> str:
        return self.precision if self.training else "f32"

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [N, vocabulary] of hidden states [N, C]; the output weights are those of the embedding."""
        return functional.linear(hidden, self.embedding.weight)

    def continued(
        self, tokens: torch.Tensor, cu_seqlens: torch.Tensor, state: ChunkState, layer: int = -1
    ) -> torch.Tensor:
        """Hidden states [N, C] of the next tokens of each sequence of `state`, which is updated in place.

        The sequences are read left to right. Shapes as in `forward`; a sequence may have no new tokens. `layer` is that
        of `hidden`; all layers are read in any case, for the state is one of all of them.
        """
        lengths = cu_seqlens.diff()
        positions = state.positions.to(tokens.device)
        before = torch.repeat_interleave(positions, lengths, output_size=len(tokens))
        rotary = self._rotations(before + places(cu_seqlens, len(tokens)))
        hidden = self._embed(tokens, CAUSAL)
        found = hidden
        for number, block in enumerate(self._layers(), 1):
            hidden = block.continued(hidden, rotary, cu_seqlens, state, number - 1)
            found = hidden if number == layer else found
        state.positions = positions + lengths
        return self.norm(hidden) if layer < 0 else found

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

    def _kept_rotations(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same from tables of the first positions, which are kept from pass to pass."""
        weight = self.embedding.weight
        if weight.device.type != "cpu" or torch.compiler.is_compiling():
            return self._rotations(positions)
        longest = int(positions.max()) + 1 if len(positions) else 0
        if longest > _MAX_KEPT_POSITIONS:
            return self._rotations(positions)
        tables = self._tables
        if tables is None or len(tables[0]) < longest or tables[0].dtype != weight.dtype:
            tables = self._tables = self._rotations(torch.arange(max(longest, 2 * len(tables[0]) if tables else 0)))
        return tables[0][positions], tables[1][positions]


class Block(nn.Module):
    """Attention, then a gated feed-forward layer, each on the normed residual stream."""

    def __init__(self, config: ModelConfig, layer: int, attention_backend: str = "auto") -> None:
        super().__init__()
        self.attention = Attention(config, layer, attention_backend)
        self.attention_norm = nn.RMSNorm(config.model_dim, _NORM_EPSILON)
        self.ffn_norm = nn.RMSNorm(config.model_dim, _NORM_EPSILON)
        self.gate_up = nn.Linear(config.model_dim, 2 * config.ffn_dim, bias=False)
        self.down = nn.Linear(config.ffn_dim, config.model_dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        cu_seqlens: torch.Tensor,
        mode: int,
        engine: str = "torch",
        precision: str = "f32",
    ) -> torch.Tensor:
        if engine == "native" and can_run(hidden, weights := self.weights()):
            config = self.attention.config
            return transformer_block(
                hidden,
                weights,
                rotary,
                cu_seqlens,
                num_heads=config.num_heads,
                attention=FEATURE_MAP.get(config.attention, config.attention),
                causal=mode == CAUSAL,
                dropout=self.dropout.p if self.training else 0.0,
                precision=precision,
            )
        attended = self.attention(self.attention_norm(hidden), rotary, cu_seqlens, mode)
        return self._feed_forward(hidden + self.dropout(attended))

    def weights(self) -> BlockWeights:
        """The tensors of this block for the native operator."""
        attention = self.attention
        if attention.favor is not None:
            attention.favor.check_omega()
        return BlockWeights(
            self.attention_norm.weight,
            attention.qkv.weight,
            attention.log_temperature,
            None if attention.favor is None else attention.favor.omega,
            attention.out.weight,
            self.ffn_norm.weight,
            self.gate_up.weight,
            self.down.weight,
        )

    def continued(
        self,
        hidden: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        cu_seqlens: torch.Tensor,
        state: ChunkState,
        layer: int,
    ) -> torch.Tensor:
        attended = self.attention.continued(self.attention_norm(hidden), rotary, cu_seqlens, state, layer)
        return self._feed_forward(hidden + attended)

    def _feed_forward(self, hidden: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(self.ffn_norm(hidden)).chunk(2, -1)
        return hidden + self.dropout(self.down(functional.silu(gate) * up))


class Attention(nn.Module):
    """Multi-head attention with rotary positions, unit queries and keys, and a temperature for each head."""

    def __init__(self, config: ModelConfig, layer: int, backend: str = "auto") -> None:
        super().__init__()
        self.config = config
        inner = config.num_heads * config.head_dim
        self.qkv = nn.Linear(config.model_dim, 3 * inner, bias=False)
        self.out = nn.Linear(inner, config.model_dim, bias=False)
        start = math.log(_TEMPERATURES.get(config.attention, _TEMPERATURE))
        self.log_temperature = nn.Parameter(torch.full((config.num_heads,), start))
        self.favor = None if config.attention == "exact" else _random_features(config, layer, backend)
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

    def continued(
        self,
        hidden: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        cu_seqlens: torch.Tensor,
        state: ChunkState,
        layer: int,
    ) -> torch.Tensor:
        q, k, v = self._heads(hidden, rotary)
        if self.favor is None:
            attended, state.pairs[layer] = _continued_exact(q, k, v, cu_seqlens, state.pairs.get(layer))
        else:
            before = state.layers.get(layer)
            attended, state.layers[layer] = self.favor.with_state(q, k, v, before, cu_seqlens=cu_seqlens)
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


def places(cu_seqlens: torch.Tensor, count: int) -> torch.Tensor:
    """The place of each token in its sequence [N]."""
    starts = torch.repeat_interleave(cu_seqlens[:-1], cu_seqlens.diff(), output_size=count)
    return torch.arange(count, device=cu_seqlens.device) - starts


def _continued_exact(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    before: list[tuple[torch.Tensor, torch.Tensor]] | None,
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Softmax attention of new queries over the keys before them: the output, and each sequence's keys and values."""
    outputs, after = [], []
    borders = cu_seqlens.tolist()
    for i, (start, end) in enumerate(itertools.pairwise(borders)):
        queries, keys, values = (x[:, :, start:end] for x in (q, k, v))
        if before is not None:
            keys, values = torch.cat([before[i][0], keys], 2), torch.cat([before[i][1], values], 2)
        rows, cols = (torch.arange(x.shape[2], device=x.device) for x in (queries, keys))
        seen = cols[None, :] <= rows[:, None] + (keys.shape[2] - queries.shape[2])
        outputs.append(functional.scaled_dot_product_attention(queries, keys, values, attn_mask=seen))
        after.append((keys, values))
    return torch.cat(outputs, 2), after


def _random_features(config: ModelConfig, layer: int, backend: str) -> FavorAttention:
    return FavorAttention(
        config.head_dim,
        config.num_features,
        num_heads=config.num_heads,
        feature_map=FEATURE_MAP.get(config.attention, config.attention),
        seed=config.seed,
        layer=layer,
        sampler=config.sampler,
        norm=config.norm,
        backend=backend,
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
