"""torch's own softmax attention under a mask, with the special rows of all attention of this package."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from protperf.torch.inputs import poisoned

__all__ = ["attend", "attend_masked", "finite_keys"]


def attend_masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Attention of each query to the keys it sees: 0 where it sees none, NaN where it sees what is not finite.

    Shapes: q [B,H,L,D], k [B,H,S,D], v [B,H,S,E], seen bool [B or 1,1,L,S]; returns [B,H,L,E].
    """
    k, v, bad_key = finite_keys(k, v)
    bad_query = ~q.isfinite().all(-1, keepdim=True)
    q = q.masked_fill(bad_query, 0.0)
    blind = ~seen.any(-1, keepdim=True)
    out = attend(q, k, v, attn_mask=seen | blind).masked_fill(blind, 0.0)
    reached = (seen & bad_key.mT).any(-1, keepdim=True)
    return poisoned(out, (bad_query & ~blind) | reached)


def finite_keys(k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys and values with 0 in rows that are not finite, and which ones those are, bool [B,H,S,1].

    Left as they are, 0 * NaN would reach rows that do not see them.
    """
    bad = ~(k.isfinite().all(-1, keepdim=True) & v.isfinite().all(-1, keepdim=True))
    return k.masked_fill(bad, 0.0), v.masked_fill(bad, 0.0), bad


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    """Attention by a kernel of torch that has the derivatives that are asked for."""
    if forward_ad._current_level < 0:
        return scaled_dot_product_attention(q, k, v, **options)
    # torch's fused kernels have no derivative in forward mode; the plain products have one.
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(q, k, v, **options)
