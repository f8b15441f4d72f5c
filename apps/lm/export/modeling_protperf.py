"""A protperf network for the library transformers, in plain torch: this file needs nothing of protperf.

`protperf convert RUN --to hf -o FOLDER` copies it next to the weights. Attention with random features is linear in
length: chunks of positions with a running sum, as in Choromanski et al. 2021, arXiv:2009.14794.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput, MaskedLMOutput

MASKED, CAUSAL = 0, 1
CHUNK = 256
NORM_EPSILON = torch.finfo(torch.float32).eps
KERNEL_EPSILON = {"relu": 1e-3}
# What the features of a map are of the projections; all other maps are exponentials, or sines and cosines.
ACTIVATIONS = {
    "relu": functional.relu,
    "elu1": lambda u: functional.elu(u) + 1,
    "identity": lambda u: u,
    "abs": torch.abs,
    "relu2": lambda u: functional.relu(u).square(),
    "square": torch.square,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": lambda u: functional.gelu(u, approximate="tanh"),
    "cos": torch.cos,
}
# What half the squared norm of a key is multiplied by in the exponent of its features.
NORM_WEIGHT = {"softmax": 1, "positive": 1, "hyperbolic": 1, "smreg": 1, "gaussian": 2, "exp": 0}
NORM_WEIGHT |= {"trigonometric": 1, "fourier": 0}


class ProtperfConfig(PretrainedConfig):
    """Sizes of the network; `attention` is a feature map, `softmax` (the map `positive`) or `exact`."""

    model_type = "protperf"

    def __init__(
        self,
        vocab_size=29,
        num_layers=1,
        model_dim=8,
        num_heads=1,
        head_dim=8,
        ffn_dim=8,
        num_features=8,
        attention="relu",
        objective="both",
        **more,
    ):
        self.vocab_size, self.num_layers, self.model_dim = vocab_size, num_layers, model_dim
        self.num_heads, self.head_dim, self.ffn_dim = num_heads, head_dim, ffn_dim
        self.num_features, self.attention, self.objective = num_features, attention, objective
        self.hidden_size, self.num_hidden_layers = model_dim, num_layers
        super().__init__(**more)


class Attention(nn.Module):
    """Queries and keys of unit length times the root of a learned temperature, rotated by their positions."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        inner = config.num_heads * config.head_dim
        self.qkv = nn.Linear(config.model_dim, 3 * inner, bias=False)
        self.out = nn.Linear(inner, config.model_dim, bias=False)
        self.log_temperature = nn.Parameter(torch.zeros(config.num_heads))
        if config.attention != "exact":
            self.register_buffer("omega", torch.zeros(config.num_heads, config.num_features, config.head_dim))

    def forward(self, hidden, rotary, causal, keep):
        c = self.config
        q, k, v = self.qkv(hidden).unflatten(-1, (3, c.num_heads, c.head_dim)).permute(2, 0, 3, 1, 4)
        length = (0.5 * self.log_temperature).exp()[:, None, None]
        q, k = (rotated(functional.normalize(x, dim=-1) * length, rotary) for x in (q, k))
        if c.attention == "exact":
            attended = exact_attention(q, k, v, causal, keep)
        else:
            attended = self._linear_attention(q, k, v, causal, keep)
        return self.out(attended.transpose(1, 2).flatten(2))

    def _linear_attention(self, q, k, v, causal, keep):
        name = self.config.attention
        queries, keys = features(q, name, self.omega, False), features(k, name, self.omega, True)
        keys, v = keys * keep[:, None, :, None], torch.cat([v, torch.ones_like(v[..., :1])], -1)
        sums = causal_sums(queries, keys, v) if causal else queries @ (keys.mT @ v)
        top, bottom = sums[..., :-1], sums[..., -1:]
        return torch.where(bottom == 0, 0.0, top / bottom)


def exact_attention(q, k, v, causal, keep):
    """Softmax attention; q and k carry the scale already."""
    seen = keep[:, None, None, :].expand(-1, 1, q.shape[2], -1)
    if causal:
        seen = seen & torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=1.0)


def features(x, name, omega, is_key):
    """Features of queries or keys [B,H,L,F], but for a factor of a query or of all keys, which the quotient cancels."""
    if name == "hyperbolic":
        omega = torch.cat([omega, -omega], -2)
    elif name == "smreg":
        omega = omega * (math.sqrt(omega.shape[-1]) / torch.linalg.vector_norm(omega, dim=-1, keepdim=True))
    projected = x @ omega.mT
    if name in ACTIVATIONS:
        return ACTIVATIONS[name](projected) + KERNEL_EPSILON.get(name, 0.0)
    half_norm = 0.5 * NORM_WEIGHT[name] * (x * x).sum(-1, keepdim=True)
    if name in ("trigonometric", "fourier"):
        waves = torch.cat([projected.cos(), projected.sin()], -1)
        return waves * half_norm.exp() if is_key else waves
    log = projected - half_norm if is_key else projected
    return (log - log.amax((-2, -1) if is_key else -1, keepdim=True)).exp()


def causal_sums(queries, keys, values):
    """For each position the sum over those up to it of query . key * value, chunk by chunk."""
    state = keys.new_zeros(*keys.shape[:2], keys.shape[-1], values.shape[-1])
    found = []
    for start in range(0, queries.shape[2], CHUNK):
        q, k, v = (x[:, :, start : start + CHUNK] for x in (queries, keys, values))
        found.append((q @ k.mT).tril() @ v + q @ state)
        state = state + k.mT @ v
    return torch.cat(found, 2)


def rotations(count, head_dim, like):
    """Cosines and sines [L, D/2]; angles in float64, for those of far positions have no correct digits in float32."""
    rates = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.arange(count, dtype=torch.float64)[:, None] * rates
    return angles.cos().to(like), angles.sin().to(like)


def rotated(x, rotary):
    """The pairs (x[i], x[i + D/2]) rotated by their position's angles."""
    cosines, sines = rotary
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosines - second * sines, first * sines + second * cosines], -1)


class Block(nn.Module):
    """Attention, then a gated feed-forward layer, each on the normed residual stream."""

    def __init__(self, config):
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.RMSNorm(config.model_dim, NORM_EPSILON)
        self.ffn_norm = nn.RMSNorm(config.model_dim, NORM_EPSILON)
        self.gate_up = nn.Linear(config.model_dim, 2 * config.ffn_dim, bias=False)
        self.down = nn.Linear(config.ffn_dim, config.model_dim, bias=False)

    def forward(self, hidden, rotary, causal, keep):
        hidden = hidden + self.attention(self.attention_norm(hidden), rotary, causal, keep)
        gate, up = self.gate_up(self.ffn_norm(hidden)).chunk(2, -1)
        return hidden + self.down(functional.silu(gate) * up)


class ProtperfModel(PreTrainedModel):
    """What both models share. Sequences are padded on the right; `attention_mask` is 0 at padding."""

    config_class = ProtperfConfig

    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.model_dim)
        # Named as in the checkpoints of protperf.
        self.mode = nn.Embedding(2, config.model_dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.model_dim, NORM_EPSILON)
        self.post_init()

    def get_input_embeddings(self):
        return self.embedding

    def read(self, input_ids, attention_mask, mode):
        """Logits [B, L, vocabulary] and the normed hidden states that they are computed from."""
        keep = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.embedding(input_ids) + self.mode.weight[mode]
        rotary = rotations(input_ids.shape[1], self.config.head_dim, hidden)
        for block in self.blocks:
            hidden = block(hidden, rotary, mode == CAUSAL, keep.bool())
        hidden = self.norm(hidden)
        return functional.linear(hidden, self.embedding.weight), hidden


class ProtperfForMaskedLM(ProtperfModel):
    """Every position sees all others; a label of -100 is not counted."""

    def forward(self, input_ids, attention_mask=None, labels=None, **unused):
        logits, hidden = self.read(input_ids, attention_mask, MASKED)
        loss = None if labels is None else functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=(hidden,))


class ProtperfForCausalLM(ProtperfModel):
    """Every position sees those before it; labels are the input ids, -100 where they are not counted."""

    def forward(self, input_ids, attention_mask=None, labels=None, **unused):
        logits, hidden = self.read(input_ids, attention_mask, CAUSAL)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits, hidden_states=(hidden,))
