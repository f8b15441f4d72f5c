"""Exact softmax attention by torch's own kernel."""

from __future__ import annotations

import itertools

import torch

from protperf import _arguments
from protperf.errors import ConfigError
from protperf.torch.autocast import autocast
from protperf.torch.checks import check_attention
from protperf.torch.inputs import poisoned
from protperf.torch.masked import attend, attend_masked, finite_keys
from protperf.torch.memory import translate_out_of_memory
from protperf.torch.visibility import visible
from protperf.torch.window import windowed_attention

__all__ = ["check_window", "softmax_attention"]


@translate_out_of_memory
def softmax_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    key_padding_mask: torch.Tensor | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """Exact softmax attention by torch's own kernel, with the masks and special rows of `favor_attention`.

    Shapes as in `favor_attention`; logits are q.k / sqrt(D). Each packed sequence is one call, so that no score between
    two sequences is ever formed.

    Differentiable in q, k and v in every mode and any number of times. First gradients are those of torch's kernel,
    with its memory. Those that are to be differentiated again (`create_graph=True`), forward mode and the transforms of
    `torch.func` are computed over all pairs of positions that no window cuts off, with memory O(H L S), or
    O(H L (window + 64)). A compiled graph has first gradients alone.

    Args:
        window: a query sees only keys at a distance of at most `window` positions; time and memory are then linear in
            length, O(L (window + 64)). Where S > L the queries are the last L of the S positions. None sets no limit.

    Raises:
        ShapeError, DtypeError, ConfigError: as `favor_attention`.
    """
    q, k, v = autocast(q, k, v)
    causal = _arguments.check_flag("causal", causal)
    check_attention(q, k, v, causal, cu_seqlens, key_padding_mask)
    window = None if window is None else check_window(window)
    group = q.shape[1] // max(k.shape[1], 1)
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    if window is not None and window < max(q.shape[2], k.shape[2]) and not _is_empty(q, k, v):
        return windowed_attention(
            q, k, v, window, causal=causal, cu_seqlens=cu_seqlens, key_padding_mask=key_padding_mask
        )
    if cu_seqlens is None or torch.compiler.is_compiling():
        return _dense(q, k, v, causal, cu_seqlens, key_padding_mask)
    segments = [
        _dense(q[:, :, low:high], k[:, :, low:high], v[:, :, low:high], causal)
        for low, high in itertools.pairwise(cu_seqlens.tolist())
        if high > low
    ]
    return torch.cat(segments, 2) if segments else _dense(q, k, v, causal)


def check_window(window: int) -> int:
    """Refuse a window that is not a number of positions.

    Raises:
        DtypeError: not an integer; ConfigError: below 0.
    """
    window = _arguments.check_integer("window", window)
    if window < 0:
        raise ConfigError(f"window is {window}; it must be at least 0, which sees the position itself")
    return window


def _dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool,
    cu_seqlens: torch.Tensor | None = None,
    key_padding_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    if _is_empty(q, k, v):
        return q.new_zeros(*q.shape[:3], v.shape[3]) + 0 * (q.sum() + k.sum() + v.sum())
    if cu_seqlens is not None or key_padding_mask is not None:
        return attend_masked(q, k, v, visible(q.shape[2], k.shape[2], causal, cu_seqlens, key_padding_mask, q.device))
    k, v, bad_key = finite_keys(k, v)
    bad_query = ~q.isfinite().all(-1, keepdim=True)
    out = attend(q.masked_fill(bad_query, 0.0), k, v, is_causal=causal)
    reached = bad_key.cumsum(2) > 0 if causal else bad_key.any(2, keepdim=True)
    return poisoned(out, bad_query | reached)


def _is_empty(*tensors: torch.Tensor) -> bool:
    return any(x.numel() == 0 for x in tensors)
