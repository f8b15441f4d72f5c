"""Attention on torch tensors: arguments are checked here, once; the operators below trust them."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

import protperf.torch.log_linear_ops
import protperf.torch.ops
from protperf import _arguments
from protperf._feature_maps import LogLinear
from protperf.errors import ConfigError, DtypeError, ShapeError
from protperf.torch import chunked, states
from protperf.torch.autocast import autocast
from protperf.torch.checks import (
    check_attention,
    check_backend,
    check_omega,
    check_options,
    check_parameters,
    check_state,
    check_tensor,
    dtype_name,
    num_features,
)
from protperf.torch.features import check_epsilon
from protperf.torch.inputs import Options
from protperf.torch.log_linear import Parameters
from protperf.torch.memory import translate_out_of_memory

__all__ = ["favor_attention", "favor_attention_with_state", "merge_states"]


@translate_out_of_memory
def favor_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    omega: torch.Tensor | None,
    *,
    feature_map: str | LogLinear = "positive",
    causal: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    key_padding_mask: torch.Tensor | None = None,
    kernel_epsilon: float | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Estimate softmax attention in time linear in sequence length; differentiable in q, k, v and omega.

    With `feature_map=LogLinear(..)`, whose fields are tensors, also in those: a map whose parameters are learnt.

    Shapes: q [B,H,L,D], k [B,Hk,S,D], v [B,Hk,S,E] with H a multiple of Hk, omega [M,D] or [H,M,D]; returns [B,H,L,E]
    in q's type, for any strides. bfloat16 and float16 are computed in float32, but see `backend`. Under autocast q, k
    and v are cast to its type first. Arguments and special values as in `protperf.favor_attention`.

    Args:
        backend: what computes. `auto` is the native kernel on a CPU: `cpu-bf16`, which rounds the factors of products,
            for bfloat16 on a processor with AMX, else `cpu`. On another device it is the chunked form in plain torch
            (`protperf.torch.chunked`), which needs the same memory, O(L (D+E) + M E), and so it is inside a transform
            of `torch.func` and in forward mode. Another name from `protperf.backends()` computes output and
            gradients of tensors on a CPU, and nothing else does. Gradients of gradients are those of the chunked form
            in any case: right, with memory O(L F).

    Raises:
        ShapeError, DtypeError, ConfigError: naming the argument, what it has and what is needed.
        DeviceError: a backend by name, and tensors that are not on a CPU.

    Source: Choromanski et al. 2021, arXiv:2009.14794, Lemma 1.
    """
    q, k, v = autocast(q, k, v)
    if isinstance(feature_map, LogLinear):
        _check_log_linear(q, k, v, omega, feature_map, causal, cu_seqlens, key_padding_mask, kernel_epsilon)
        backend = check_backend(backend, q.device)
        return _log_linear(q, k, v, None, False, feature_map, causal, cu_seqlens, key_padding_mask, backend)[0]
    causal = check_options(feature_map, causal)
    check_attention(q, k, v, causal, cu_seqlens, key_padding_mask)
    check_omega(omega, q, feature_map)
    epsilon = check_epsilon(feature_map, kernel_epsilon)
    backend = check_backend(backend, q.device)
    options = Options(feature_map, causal, epsilon, cu_seqlens, key_padding_mask, backend)
    if _is_transformed(backend):
        return chunked.favor_attention(q, k, v, omega, options=options)[0]
    out: torch.Tensor = torch.ops.protperf.favor(q, k, v, omega, *options)[0]
    return out


@translate_out_of_memory
def favor_attention_with_state(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    omega: torch.Tensor | None,
    state: torch.Tensor | None = None,
    *,
    feature_map: str | LogLinear = "positive",
    causal: bool = True,
    cu_seqlens: torch.Tensor | None = None,
    key_padding_mask: torch.Tensor | None = None,
    kernel_epsilon: float | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to the keys of a state and to more keys: decoding, prefix reuse, sequences in parts of any length.

    Shapes: as in `favor_attention`; state [B,H,F,2+E], or one per segment [num_segments,H,F,2+E] where `cu_seqlens` is
    given. For each feature it holds the reference (an integer power of two), k_state and kv_state; None is the state
    before the first key. Returns out [B,H,L,E] and the state after these keys.

    Args:
        causal: position i attends to the state and to positions <= i; otherwise every query attends to the state and
            to all keys. Queries alone may read a state: S = 0, with either value of `causal`.
        cu_seqlens, key_padding_mask, kernel_epsilon, backend: as in `favor_attention`.

    Differentiable in q, k, v, omega and the state, in every mode that `favor_attention` is; a reference is an integer
    and has no derivative.

    Raises:
        ShapeError, DtypeError, ConfigError, DeviceError: as `favor_attention`.
    """
    q, k, v = autocast(q, k, v)
    if isinstance(k, torch.Tensor) and k.dim() == 4 and k.shape[2] == 0:
        causal = _arguments.check_flag("causal", causal) and False
    if isinstance(feature_map, LogLinear):
        _check_log_linear(q, k, v, omega, feature_map, causal, cu_seqlens, key_padding_mask, kernel_epsilon)
        if state is not None:
            check_state(state, q, v, Parameters.of(feature_map).num_features, cu_seqlens)
        backend = check_backend(backend, q.device)
        return _log_linear(q, k, v, state, True, feature_map, causal, cu_seqlens, key_padding_mask, backend)
    causal = check_options(feature_map, causal)
    check_attention(q, k, v, causal, cu_seqlens, key_padding_mask)
    check_omega(omega, q, feature_map)
    if state is not None:
        check_state(state, q, v, num_features(feature_map, q, omega), cu_seqlens)
    epsilon = check_epsilon(feature_map, kernel_epsilon)
    backend = check_backend(backend, q.device)
    options = Options(feature_map, causal, epsilon, cu_seqlens, key_padding_mask, backend)
    if _is_transformed(backend):
        return chunked.favor_attention(q, k, v, omega, state, options=options)
    out, _, after = torch.ops.protperf.favor_state(q, k, v, omega, state, *options)
    return out, after


def _check_log_linear(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    omega: torch.Tensor | None,
    record: LogLinear,
    causal: bool,
    cu_seqlens: torch.Tensor | None,
    key_padding_mask: torch.Tensor | None,
    kernel_epsilon: float | None,
) -> None:
    check_attention(q, k, v, _arguments.check_flag("causal", causal), cu_seqlens, key_padding_mask)
    check_parameters(record, q, omega, kernel_epsilon)


def _log_linear(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    state: torch.Tensor | None,
    with_state: bool,
    record: LogLinear,
    *options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A checked call with a map that is given by its parameters; the final state is empty unless it is asked for."""
    parameters = Parameters.of(record)
    if _is_transformed(options[-1]):
        return chunked.favor_attention(
            q, k, v, parameters, state, options=protperf.torch.log_linear_ops.options_of(*options)
        )
    out, _, after = torch.ops.protperf.log_linear(q, k, v, *parameters, state, with_state, *options)
    return out, after


@translate_out_of_memory
def merge_states(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The state of both sets of keys; differentiable.

    Shapes: a, b and the result [B,H,F,2+E].

    Raises:
        ShapeError, DtypeError: a and b differ in shape, type or device.
    """
    check_tensor("a", a)
    check_tensor("b", b)
    if a.device != b.device:
        raise DtypeError(f"a is on {a.device} and b on {b.device}; both must be on one device")
    if a.shape != b.shape or a.dim() != 4 or a.shape[3] < 2:
        raise ShapeError(f"a has shape {list(a.shape)} and b {list(b.shape)}; both must be the same [B,H,F,2+E]")
    if a.dtype != b.dtype or a.dtype not in (torch.float32, torch.float64):
        raise DtypeError(f"a has type {dtype_name(a)} and b {dtype_name(b)}; both must be float32 or both float64")
    return states.merge_states(a, b)


def _is_transformed(backend: str) -> bool:
    """Whether forward-mode differentiation or a transform of `torch.func` is active: operators have no rule for it.

    Raises:
        ConfigError: it is, and the caller wants the backend of an operator.
    """
    transformed: bool = forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    if transformed and backend != "auto":
        raise ConfigError(f"backend {backend!r} has no rule for torch.func and forward-mode derivatives; say 'auto'")
    return transformed
