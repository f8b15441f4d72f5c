"""Exact softmax attention by torch's own kernel."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from protperf import _arguments
from protperf.torch.autocast import autocast
from protperf.torch.checks import check_attention
from protperf.torch.inputs import poisoned
from protperf.torch.memory import translate_out_of_memory
from protperf.torch.visibility import visible

__all__ = ["softmax_attention"]


@translate_out_of_memory
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
    two sequences is ever formed. Derivatives are torch's: its fused kernels have none of the second order and say so.

    Raises:
        ShapeError, DtypeError, ConfigError: as `favor_attention`.
    """
    q, k, v = autocast(q, k, v)
    causal = _arguments.check_flag("causal", causal)
    check_attention(q, k, v, causal, cu_seqlens, key_padding_mask)
    group = q.shape[1] // max(k.shape[1], 1)
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    if cu_seqlens is None or torch.compiler.is_compiling():
        return _dense(q, k, v, causal, cu_seqlens, key_padding_mask)
    segments = [
        _dense(q[:, :, low:high], k[:, :, low:high], v[:, :, low:high], causal)
        for low, high in itertools.pairwise(cu_seqlens.tolist())
        if high > low
    ]
    return torch.cat(segments, 2) if segments else _dense(q, k, v, causal)


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
        out = _attend(q, k, v, is_causal=causal)
        reached = bad_key.cumsum(2) > 0 if causal else bad_key.any(2, keepdim=True)
        return poisoned(out, bad_query | reached)
    seen = visible(q.shape[2], k.shape[2], causal, cu_seqlens, key_padding_mask, q.device)
    blind = ~seen.any(-1, keepdim=True)
    out = _attend(q, k, v, attn_mask=seen | blind).masked_fill(blind, 0.0)
    reached = (seen & bad_key.mT).any(-1, keepdim=True)
    return poisoned(out, (bad_query & ~blind) | reached)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    if forward_ad._current_level < 0:
        return scaled_dot_product_attention(q, k, v, **options)
    # torch's fused kernels have no derivative in forward mode; the plain products have one.
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(q, k, v, **options)


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
