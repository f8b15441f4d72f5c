"""Layers and whole networks of lucidrains/performer-pytorch (1.1.4): the names of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from protperf.errors import ConfigError, ShapeError
from protperf.torch.nn.favor import FavorAttention
from protperf.torch.nn.multihead import MultiheadAttention
from protperf.torch.nn.performer import Layer, Performer, PerformerLM, layer_of

__all__ = ["from_performer_pytorch", "language_model_from_performer_pytorch", "performer_from_performer_pytorch"]

_ATTENTION = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.weight", "fast_attention.projection_matrix")

_UPDATER = "proj_updater."
"""It counts calls, and has the names of all layers a second time."""


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
    missing = [prefix + name for name in _ATTENTION if prefix + name not in state]
    if missing:
        raise ConfigError(f"state has no {missing[0]}; its attention layers are {_layers(state) or 'none'}")
    if any(name.startswith(f"{prefix}local_attn.") for name in state):
        raise ConfigError(f"{prefix or 'state'} has heads with local attention, which have no form here")
    q, k, v, out, omega = (state[prefix + name] for name in _ATTENTION)
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


def performer_from_performer_pytorch(
    state: Mapping[str, torch.Tensor],
    prefix: str = "",
    *,
    generalized: bool = False,
    cross_attention: bool = False,
    **attention: Any,
) -> Performer:
    """The network whose weights are those of a performer-pytorch `Performer`, directions included.

    Weights do not say everything that a `Performer` of that library was made with: it must not have been
    `no_projection=True`, nor have had another `kernel_fn` than ReLU.

    Args:
        state: a state dictionary that has `net.layers.0.0.fn.to_q.weight` and so on under `prefix`.
        prefix: of these names.
        generalized: as in `from_performer_pytorch`.
        cross_attention: it was made with `cross_attend=True`.
        attention: as in `from_performer_pytorch`, such as `causal`.

    Raises:
        ConfigError: a weight is missing, or is not one of such a network: those of reversible layers, of heads with
            local attention, `use_rezero`, `use_scalenorm` and `shift_tokens` have no form here.
    """
    weights = _Weights(state, prefix)
    made = _performer(weights, "", cross_attention, rotary=False, generalized=generalized, **attention)
    weights.check_all_taken()
    return made


def language_model_from_performer_pytorch(
    state: Mapping[str, torch.Tensor],
    prefix: str = "",
    *,
    generalized: bool = False,
    cross_attention: bool = False,
    **attention: Any,
) -> PerformerLM:
    """The language model whose weights are those of a performer-pytorch `PerformerLM`, directions included.

    Positions are those of the model: learned ones, or, as that library makes them by default, sines and cosines that
    are added to embeddings, and rotations in each layer.

    Args:
        state: a state dictionary that has `token_emb.weight` and so on under `prefix`.
        prefix: of these names: `enc.` and `dec.net.` in a `PerformerEncDec`.
        generalized, cross_attention, attention: as in `performer_from_performer_pytorch`.

    Raises:
        ConfigError: as `performer_from_performer_pytorch`; `axial_position_emb` has no form here either.
    """
    weights = _Weights(state, prefix)
    tokens = weights.take("token_emb.weight")
    rotary = weights.has("layer_pos_emb.emb")
    if rotary:
        weights.take("layer_pos_emb.emb")
    positions = weights.take("pos_emb.emb" if rotary else "pos_emb.emb.weight")
    performer = _performer(weights, "performer.", cross_attention, rotary, generalized=generalized, **attention)
    tied = not weights.has("to_out.weight")
    made = PerformerLM(
        len(tokens), tokens.shape[1], 1, 1, max_length=len(positions), tied=tied, feature_map="exact"
    ).to(tokens.dtype)
    made.performer = performer
    _copy(weights, "norm.", made.norm)
    if made.head is not None:
        _copy(weights, "to_out.", made.head)
    weights.check_all_taken()
    assert made.positions is not None
    with torch.no_grad():
        made.embedding.weight.copy_(tokens)
        made.positions.weight.copy_(positions)
    # A table of sines is not learned.
    made.positions.weight.requires_grad_(not rotary)
    return made


class _Weights:
    """A state dictionary that knows what was asked of it."""

    def __init__(self, state: Mapping[str, torch.Tensor], prefix: str) -> None:
        self._state, self._prefix = state, prefix
        self._left = {name for name in state if name.startswith(prefix)}

    def has(self, name: str) -> bool:
        return self._prefix + name in self._state

    def take(self, name: str) -> torch.Tensor:
        name = self._prefix + name
        if name not in self._state:
            raise ConfigError(f"state has no {name}; its attention layers are {_layers(self._state) or 'none'}")
        self._left.discard(name)
        return self._state[name]

    def check_all_taken(self) -> None:
        """Nothing that the network computed with may be left out."""
        left = sorted(name for name in self._left if _UPDATER not in name)
        if left:
            raise ConfigError(f"state has {left[0]}, which has no form here")


def _performer(
    weights: _Weights, prefix: str, cross_attention: bool, rotary: bool, *, generalized: bool, **attention: Any
) -> Performer:
    start = f"{prefix}net.layers."
    first, omega = weights.take(f"{start}0.0.fn.to_q.weight"), weights.take(f"{start}0.0.fn.{_ATTENTION[-1]}")
    wide, narrow = (weights.take(f"{start}0.1.fn.fn.w{i}.weight") for i in (1, 2))
    count = 0
    while weights.has(f"{start}{count}.0.fn.to_q.weight"):
        count += 1
    if cross_attention and count % 2:
        raise ConfigError(f"state has {count} layers; with cross_attention=True every second one attends to a context")
    made = Performer(
        first.shape[1],
        count // 2 if cross_attention else count,
        len(first) // omega.shape[1],
        head_dim=omega.shape[1],
        dim_feedforward=narrow.shape[1],
        gated=len(wide) == 2 * narrow.shape[1],
        cross_attention=cross_attention,
        rotary=rotary,
        feature_map="relu" if generalized else "positive",
        num_features=len(omega),
        **attention,
    ).to(first.dtype)
    for i in range(len(made.layers)):
        _copy_layer(weights, f"{start}{2 * i if cross_attention else i}.", layer_of(made.layers, i))
    for i in range(len(made.crossing)):
        _copy_layer(weights, f"{start}{2 * i + 1}.", layer_of(made.crossing, i))
    return made


@torch.no_grad()
def _copy_layer(weights: _Weights, start: str, layer: Layer) -> None:
    _copy(weights, f"{start}0.norm.", layer.attention_norm)
    _copy(weights, f"{start}1.norm.", layer.feed_forward_norm)
    _copy(weights, f"{start}1.fn.fn.w1.", layer.feed_forward.wide)
    _copy(weights, f"{start}1.fn.fn.w2.", layer.feed_forward.narrow)
    attention = layer.attention
    for name in ("q", "k", "v", "out"):
        _copy(weights, f"{start}0.fn.to_{name}.", attention.get_submodule(f"{name}_proj"))
    core = attention.core
    assert isinstance(core, FavorAttention)
    omega = weights.take(f"{start}0.fn.{_ATTENTION[-1]}").to(core.omega.dtype)
    if attention.rotary is not None:
        # There the pairs that are rotated are neighbours, here they are half a head apart.
        head_dim = omega.shape[1]
        order = torch.arange(head_dim).view(-1, 2).T.flatten()
        omega = omega[:, order]
        for projection in (attention.q_proj, attention.k_proj):
            for parameter in projection.parameters():
                parameter.copy_(parameter.unflatten(0, (-1, head_dim))[:, order].flatten(0, 1))
    core.omega.copy_(omega.expand_as(core.omega))


@torch.no_grad()
def _copy(weights: _Weights, prefix: str, to: torch.nn.Module) -> None:
    for name, parameter in to.named_parameters():
        if name == "bias" and not weights.has(prefix + name):
            parameter.zero_()
            continue
        found = weights.take(prefix + name)
        if found.shape != parameter.shape:
            raise ShapeError(f"{prefix}{name} is {list(found.shape)}; {list(parameter.shape)} goes with the rest")
        parameter.copy_(found)


def _layers(state: Mapping[str, torch.Tensor]) -> str:
    end = "fast_attention.projection_matrix"
    return ", ".join(sorted(name.removesuffix(end) for name in state if name.endswith(end) and _UPDATER not in name))
