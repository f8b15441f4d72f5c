"""Attention layers of lucidrains/performer-pytorch (1.1.4) as `MultiheadAttention`: the names of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from protperf.errors import ConfigError, ShapeError
from protperf.torch.nn.favor import FavorAttention
from protperf.torch.nn.multihead import MultiheadAttention

__all__ = ["from_performer_pytorch"]


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


def _layers(state: Mapping[str, torch.Tensor]) -> str:
    end = "fast_attention.projection_matrix"
    return ", ".join(sorted(name.removesuffix(end) for name in state if name.endswith(end)))
