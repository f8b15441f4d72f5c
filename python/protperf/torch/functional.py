"""Attention on torch tensors: arguments are checked here, once; the operators below trust them."""

from __future__ import annotations

import itertools

import torch
from torch.nn.functional import scaled_dot_product_attention

from protperf import _arguments, _native
from protperf.errors import ConfigError, DeviceError, DtypeError, ShapeError
from protperf.torch import ops as _ops  # defines torch.ops.protperf
from protperf.torch import reference
from protperf.torch.memory import tells_memory

__all__ = ["favor_attention", "favor_attention_with_state", "merge_states", "softmax_attention"]

_DEFAULT_EPSILON = {"relu": 1e-3}
# Read once: a compiled graph cannot call into the native module.
_FEATURE_MAPS = tuple(row.name for row in _native.feature_maps())


@tells_memory
def favor_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    omega: torch.Tensor | None,
    *,
    feature_map: str = "positive",
    causal: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    key_padding_mask: torch.Tensor | None = None,
    kernel_epsilon: float | None = None,
) -> torch.Tensor:
    """Estimate softmax attention in time linear in sequence length; differentiable in q, k, v and omega.

    Shapes: q [B,H,L,D], k [B,Hk,S,D], v [B,Hk,S,E] with H a multiple of Hk, omega [M,D] or [H,M,D]; returns [B,H,L,E]
    in q's type, whatever the strides. bfloat16 and float16 are computed in float32. Arguments and special values as in
    `protperf.favor_attention`. On a CPU this is the native kernel; on another device the plain form of
    `protperf.torch.reference`, which needs memory O(L S F).

    Raises:
        ShapeError, DtypeError, ConfigError: naming the argument, what it has and what is needed.

    Source: Choromanski et al. 2021, arXiv:2009.14794, Lemma 1.
    """
    _check(q, k, v, causal, cu_seqlens, key_padding_mask)
    _check_map(feature_map)
    if omega is not None:
        _check_layout("omega", omega, q.device)
    dtype = "" if omega is None else _name(omega)
    _arguments.check_omega(None if omega is None else omega.shape, dtype, q.shape, feature_map)
    epsilon = _epsilon(feature_map, kernel_epsilon)
    if q.device.type not in ("cpu", "meta"):
        return reference.favor_attention(
            q,
            k,
            v,
            omega,
            feature_map=feature_map,
            causal=causal,
            cu_seqlens=cu_seqlens,
            key_padding_mask=key_padding_mask,
            kernel_epsilon=epsilon,
        )
    result = q.dtype
    q, k, v = (_computed(x) for x in (q, k, v))
    out, _ = torch.ops.protperf.favor(q, k, v, omega, feature_map, causal, epsilon, cu_seqlens, key_padding_mask)
    return out.to(result)


@tells_memory
def favor_attention_with_state(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    omega: torch.Tensor | None,
    state: torch.Tensor | None = None,
    *,
    feature_map: str = "positive",
    kernel_epsilon: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Continue a causal sequence from the state of its prefix: decoding, prefix reuse, chunks of any length.

    Shapes: q [B,H,L,D], k [B,Hk,L,D], v [B,Hk,L,E]; state [B,H,F,2+E] (reference, k_state, kv_state of each feature) or
    None at the beginning; returns out [B,H,L,E] and the state after these positions. No gradients.

    Raises:
        ShapeError, DtypeError, ConfigError: as `favor_attention`.
    """
    _check(q, k, v, True, None, None)
    _check_map(feature_map)
    if q.device.type not in ("cpu", "meta"):
        raise DeviceError(f"q is on {q.device}, where states are not supported; move q, k and v with .cpu()")
    if omega is not None:
        _check_layout("omega", omega, q.device)
    dtype = "" if omega is None else _name(omega)
    _arguments.check_omega(None if omega is None else omega.shape, dtype, q.shape, feature_map)
    if state is not None:
        _check_layout("state", state, q.device)
        features = reference.feature_dim(feature_map, q.shape[3] if omega is None else omega.shape[-2])
        needed = [q.shape[0], q.shape[1], features, v.shape[3] + 2]
        if list(state.shape) != needed:
            raise ShapeError(f"state has shape {list(state.shape)}, needed is [B,H,F,2+E] {needed}")
    result = q.dtype
    q, k, v = (_computed(x.detach()) for x in (q, k, v))
    if state is not None and state.dtype != q.dtype:
        raise DtypeError(f"state has type {_name(state)} but the computation is in {_name(q)}")
    epsilon = _epsilon(feature_map, kernel_epsilon)
    out, after = torch.ops.protperf.favor_state(q, k, v, omega, state, feature_map, epsilon)
    return out.to(result), after


@tells_memory
def merge_states(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The state of both sets of keys.

    Shapes: a, b and the result [B,H,F,2+E].

    Raises:
        ShapeError, DtypeError: where a and b differ in shape or type.
    """
    for name, tensor in (("a", a), ("b", b)):
        _check_layout(name, tensor, torch.device("cpu"))
    if a.shape != b.shape or a.dim() != 4 or a.shape[3] < 2:
        raise ShapeError(f"a has shape {list(a.shape)} and b {list(b.shape)}; both must be the same [B,H,F,2+E]")
    if a.dtype != b.dtype or a.dtype not in (torch.float32, torch.float64):
        raise DtypeError(f"a has type {_name(a)} and b {_name(b)}; both must be float32 or both float64")
    out = torch.empty(a.shape, dtype=a.dtype)
    first, second = (_ops.contiguous_array(x, x.dtype) for x in (a, b))
    _native.merge_states(first, second, out.numpy(), a.shape[3] - 2)
    return out


@tells_memory
def softmax_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    key_padding_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Exact softmax attention by torch's own kernel, with the masks and special rows of `favor_attention`.

    Shapes as in `favor_attention`; logits are q.k / sqrt(D). Each packed sequence is one call, so that no score between
    two sequences is ever formed.

    Raises:
        ShapeError, DtypeError, ConfigError: as `favor_attention`.
    """
    _check(q, k, v, causal, cu_seqlens, key_padding_mask)
    group = q.shape[1] // max(k.shape[1], 1)
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    if cu_seqlens is None or torch.compiler.is_compiling():
        return _dense(q, k, v, causal, cu_seqlens, key_padding_mask)
    parts = [
        _dense(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], causal)
        for a, b in itertools.pairwise(cu_seqlens.tolist())
        if b > a
    ]
    return torch.cat(parts, 2) if parts else _dense(q, k, v, causal)


def _dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool,
    cu_seqlens: torch.Tensor | None = None,
    key_padding_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    if q.numel() == 0 or k.numel() == 0 or v.numel() == 0:
        return q.new_zeros(*q.shape[:3], v.shape[3]) + 0 * (q.sum() + k.sum() + v.sum())
    k, v, bad_key = _finite_keys(k, v, key_padding_mask)
    bad_query = ~q.isfinite().all(-1, keepdim=True)
    q = q.masked_fill(bad_query, 0.0)
    if cu_seqlens is None and key_padding_mask is None:
        out = scaled_dot_product_attention(q, k, v, is_causal=causal)
        reached = bad_key.cumsum(2) > 0 if causal else bad_key.any(2, keepdim=True)
        return out.masked_fill(bad_query | reached, torch.nan)
    seen = reference.visible(q.shape[2], k.shape[2], causal, cu_seqlens, key_padding_mask, q.device)
    blind = ~seen.any(-1, keepdim=True)
    out = scaled_dot_product_attention(q, k, v, attn_mask=seen | blind).masked_fill(blind, 0.0)
    reached = (seen & bad_key.mT).any(-1, keepdim=True)
    return out.masked_fill((bad_query & ~blind) | reached, torch.nan)


def _finite_keys(
    k: torch.Tensor, v: torch.Tensor, key_padding_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys and values with 0 in rows that are padding or not finite, and which visible rows were not finite [B,H,S,1].

    Left as they are, 0 * NaN would reach rows that do not see them.
    """
    unusable = ~(k.isfinite().all(-1, keepdim=True) & v.isfinite().all(-1, keepdim=True))
    bad_key = unusable
    if key_padding_mask is not None:
        padding = key_padding_mask[:, None, :, None]
        unusable, bad_key = unusable | padding, bad_key & ~padding
    return k.masked_fill(unusable, 0.0), v.masked_fill(unusable, 0.0), bad_key


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _computed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _epsilon(feature_map: str, kernel_epsilon: float | None) -> float:
    checked = _arguments.check_epsilon(kernel_epsilon)
    return _DEFAULT_EPSILON.get(feature_map, 0.0) if checked is None else checked


def _check_map(feature_map: str) -> None:
    if feature_map not in _FEATURE_MAPS:
        raise ConfigError(f"feature_map {feature_map!r} is unknown; choose one of {', '.join(_FEATURE_MAPS)}")


def _check_layout(name: str, tensor: torch.Tensor, device: torch.device) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise DtypeError(f"{name} must be a torch tensor, not {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        raise DtypeError(f"{name} has layout {tensor.layout}; only dense tensors are taken, convert it with to_dense()")
    if tensor.device != device:
        raise DtypeError(f"{name} is on {tensor.device} but q is on {device}")


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool,
    cu_seqlens: torch.Tensor | None,
    key_padding_mask: torch.Tensor | None,
) -> None:
    tensors = {"q": q, "k": k, "v": v}
    for name, tensor in tensors.items():
        _check_layout(name, tensor, q.device if isinstance(q, torch.Tensor) else torch.device("cpu"))
    shapes = {name: x.shape for name, x in tensors.items()}
    _arguments.check_tensors(shapes, {name: _name(x) for name, x in tensors.items()}, causal)
    if not torch.compiler.is_compiling():
        _arguments.check_sizes(shapes)
    mask = None
    if key_padding_mask is not None:
        _check_layout("key_padding_mask", key_padding_mask, q.device)
        mask = (key_padding_mask.shape, _name(key_padding_mask))
    _arguments.check_visibility(q.shape, k.shape, cu_seqlens is not None, mask)
    if cu_seqlens is not None:
        _check_layout("cu_seqlens", cu_seqlens, cu_seqlens.device)
        known = None if torch.compiler.is_compiling() or cu_seqlens.device.type == "meta" else cu_seqlens.tolist()
        _arguments.check_segments(cu_seqlens.shape, _name(cu_seqlens), known, q.shape[2])
