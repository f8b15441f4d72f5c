"""torch's own softmax attention under a mask, with the special rows of all attention of this package.

torch's fused kernels have first derivatives in reverse mode and no others. Where others are asked for, the same
attention is written out over all pairs: in forward mode and inside a transform of `torch.func` by torch's own products,
and in the backward pass of a gradient that is to be differentiated again by those below.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from protperf.torch.inputs import computed_type, poisoned

__all__ = ["attend", "attend_masked", "finite_keys"]

_softmax = torch.ops.aten.scaled_dot_product_attention.default
"""torch's attention function by a name under which it is never answered by something else (`nn.sdpa_answered_by`)."""


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


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    attn_mask: torch.Tensor | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """Attention by a kernel of torch that has the derivatives that are asked for; every query must see a key."""
    if _needs_products():
        with sdpa_kernel(SDPBackend.MATH):
            return _softmax(q, k, v, attn_mask, 0.0, is_causal)
    out = _softmax(q, k, v, attn_mask, 0.0, is_causal)
    # A compiled graph is not differentiated twice.
    if torch.compiler.is_compiling() or not out.requires_grad:
        return out
    chosen: torch.Tensor = _SecondOrder.apply(out, q, k, v, attn_mask, is_causal)
    return chosen


def _needs_products() -> bool:
    """Whether forward mode or a transform of `torch.func` is on; `vmap` would call a fused kernel for each entry."""
    transformed: bool = forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    return transformed


class _SecondOrder(torch.autograd.Function):
    """The identity of `out`, attention of q, k and v, whose gradient takes one of two ways.

    A gradient that is to be differentiated again goes to q, k and v by operations that can be; any other one goes on to
    `out`, and so to the kernel that made it. What is kept, the kernel keeps too.
    """

    @staticmethod
    def forward(
        out: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        attn_mask: torch.Tensor | None,
        is_causal: bool,
    ) -> torch.Tensor:
        return out.view_as(out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _, *tensors, ctx.is_causal = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return grad, *(None,) * 5
        q, k, v, attn_mask = ctx.saved_tensors
        return None, *_gradients(grad, q, k, v, attn_mask, ctx.is_causal), None, None


def _gradients(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_mask: torch.Tensor | None,
    is_causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v, written out over all pairs: O(L S) memory, differentiable any number of times.

    With the weights W and dW = grad v^T, a row of the logits has the gradient W * (dW - sum(W * dW)).
    """
    stored, dtype = q.dtype, computed_type(q.dtype)
    q, k, v, grad = (x.to(dtype) for x in (q, k, v, grad))
    scale = q.shape[-1] ** -0.5
    logits = (q @ k.mT) * scale
    if is_causal:
        hidden = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(hidden, -torch.inf)
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -torch.inf)
    weights = logits.softmax(-1)
    dweights = grad @ v.mT
    dlogits = weights * (dweights - (weights * dweights).sum(-1, keepdim=True)) * scale
    return (dlogits @ k).to(stored), (dlogits.mT @ q).to(stored), (weights.mT @ grad).to(stored)
