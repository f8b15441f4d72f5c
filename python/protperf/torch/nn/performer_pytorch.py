"""Layers and whole encoders of lucidrains/performer-pytorch (1.1.4): the names of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from protperf.errors import ConfigError, ShapeError
from protperf.torch.nn.favor import FavorAttention
from protperf.torch.nn.multihead import MultiheadAttention

__all__ = ["encoder_from_performer_pytorch", "from_performer_pytorch"]

_PARTS = tuple(f"{part}.{x}" for part in ("0.norm", "1.norm", "1.fn.fn.w1", "1.fn.fn.w2") for x in ("weight", "bias"))
"""Of a layer, next to those of its attention."""


def from_performer_pytorch(
    state: Mapping[str, torch.Tensor], prefix: str = "", *, generalized: bool = False, **attention: Any
) -> MultiheadAttention:
    """The layer whose weights are those of a performer-pytorch `SelfAttention` or `CrossAttention`, omega included.

    What it computes is the estimate itself. That library adds 1e-4 to features that it has divided by one maximum, so
    its own outputs are closer to the mean of the values wherever inputs are of unit variance or larger.

    Args:
        state: a state dictionary that has `to_q.weight`, `to_k.weight`, `to_v.weight`, `to_out.weight` and
            `fast_attention.projection_matrix` under `prefix`.
        prefix: of these names, such as `performer.net.layers.0.0.fn.`.
        generalized: the layer was made with `generalized_attention=True` (relu) instead of softmax features.
        attention: more arguments of `protperf.torch.nn.attention_core`, such as `causal`.

    Raises:
        ConfigError: a weight is missing, or the layer has heads with local attention.
        ShapeError: heads that do not fill the width of the layer.
    """
    names = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.weight", "fast_attention.projection_matrix")
    missing = [prefix + name for name in names if prefix + name not in state]
    if missing:
        raise ConfigError(f"state has no {missing[0]}; its attention layers are {_layers(state) or 'none'}")
    if any(name.startswith(f"{prefix}local_attn.") for name in state):
        raise ConfigError(f"{prefix or 'state'} has heads with local attention, which have no form here")
    q, k, v, out, omega = (state[prefix + name] for name in names)
    dim, (num_features, head_dim) = out.shape[0], omega.shape
    if q.shape[0] != dim or dim % head_dim:
        raise ShapeError(f"to_q has {q.shape[0]} rows for heads of {head_dim}; needed is the width of the layer, {dim}")
    has_bias = f"{prefix}to_q.bias" in state or f"{prefix}to_out.bias" in state
    made = MultiheadAttention(
        dim,
        dim // head_dim,
        bias=has_bias,
        batch_first=True,
        dtype=q.dtype,
        feature_map="relu" if generalized else "positive",
        num_features=num_features,
        **attention,
    )
    assert isinstance(made.core, FavorAttention)
    with torch.no_grad():
        made.in_proj_weight.copy_(torch.cat([q, k, v]))
        made.out_proj.weight.copy_(out)
        made.core.omega.copy_(omega.expand_as(made.core.omega))
        if has_bias:
            biases = [state.get(f"{prefix}to_{x}.bias", q.new_zeros(dim)) for x in "qkv"]
            made.in_proj_bias.copy_(torch.cat(biases))
            made.out_proj.bias.copy_(state.get(f"{prefix}to_out.bias", q.new_zeros(dim)))
    return made


def encoder_from_performer_pytorch(
    state: Mapping[str, torch.Tensor], prefix: str = "performer.", *, generalized: bool = False, **attention: Any
) -> torch.nn.TransformerEncoder:
    """The layers of a performer-pytorch `Performer`, or of the one inside of a `PerformerLM`, as an encoder of torch.

    It takes x [B,L,C] of embeddings, and `src_key_padding_mask` where that library takes `mask`, with True and False
    exchanged. The last norm is that of the `PerformerLM`, if there is one.

    Args:
        state: a state dictionary that has `net.layers.0.0.fn.to_q.weight` and so on under `prefix`.
        prefix: `performer.` in a `PerformerLM`; empty for a `Performer`.
        generalized, attention: as in `from_performer_pytorch`.

    Raises:
        ConfigError: no such layers, or layers of another kind: reversible ones, `use_rezero`, `use_scalenorm`, `ff_glu`
            and `shift_tokens` have no form here.
    """
    layers: list[torch.nn.Module] = []
    while any(name.startswith(f"{prefix}net.layers.{len(layers)}.") for name in state):
        start = f"{prefix}net.layers.{len(layers)}."
        layers.append(_encoder_layer(state, start, {"generalized": generalized, "layer": len(layers), **attention}))
    if not layers:
        raise ConfigError(f"state has no {prefix}net.layers.0; its attention layers are {_layers(state) or 'none'}")
    width = state[f"{prefix}net.layers.0.0.norm.weight"]
    last = prefix.removesuffix("performer.") + "norm."
    norm = None
    if prefix.endswith("performer.") and last + "weight" in state:
        norm = torch.nn.LayerNorm(len(width), dtype=width.dtype)
        _copy(state, last, norm)
    template = torch.nn.TransformerEncoderLayer(1, 1, 1, device="meta")
    made = torch.nn.TransformerEncoder(template, 0, norm, enable_nested_tensor=False)
    made.layers = torch.nn.ModuleList(layers)
    made.num_layers = len(layers)
    return made


def _encoder_layer(
    state: Mapping[str, torch.Tensor], start: str, attention: Mapping[str, Any]
) -> torch.nn.TransformerEncoderLayer:
    missing = [name for name in _PARTS if start + name not in state]
    if missing:
        raise ConfigError(f"state has no {start}{missing[0]}; only layers that begin with a layer norm are known")
    wide, narrow = state[start + "1.fn.fn.w1.weight"], state[start + "1.fn.fn.w2.weight"]
    if wide.shape[0] != narrow.shape[1]:
        raise ConfigError(f"{start}1 has a gated feed-forward layer (ff_glu), which has no form here")
    attend = from_performer_pytorch(state, start + "0.fn.", **attention)
    made = torch.nn.TransformerEncoderLayer(
        attend.embed_dim,
        attend.num_heads,
        len(wide),
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
        dtype=wide.dtype,
    )
    made.self_attn = attend
    parts = (
        (made.norm1, "0.norm."),
        (made.norm2, "1.norm."),
        (made.linear1, "1.fn.fn.w1."),
        (made.linear2, "1.fn.fn.w2."),
    )
    for module, name in parts:
        _copy(state, start + name, module)
    return made


@torch.no_grad()
def _copy(state: Mapping[str, torch.Tensor], prefix: str, to: torch.nn.Module) -> None:
    for name, parameter in to.named_parameters():
        parameter.copy_(state[prefix + name])


def _layers(state: Mapping[str, torch.Tensor]) -> str:
    end = "fast_attention.projection_matrix"
    return ", ".join(sorted(name.removesuffix(end) for name in state if name.endswith(end)))
