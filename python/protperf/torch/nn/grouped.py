"""Keys that several query heads share, where parameters of query heads are applied to keys before attention."""

from __future__ import annotations

import torch

from protperf.errors import ShapeError
from protperf.torch.checks import check_attention

__all__ = ["repeat_for_query_heads"]


def repeat_for_query_heads(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, num_heads: int | None, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values for a module with parameters of these sizes: repeated for the query heads that share them.

    Shapes: q [B,H,L,D], k [B,Hk,S,D], v [B,Hk,S,E]; returns [B,H,S,D] and [B,H,S,E]. With `num_heads` None all heads
    have the same parameters, and k and v stay as they are.

    Raises:
        ShapeError, DtypeError: tensors that no attention takes, or not of these sizes.
    """
    check_attention(q, k, v, False, None, None)
    if q.shape[3] != head_dim:
        raise ShapeError(f"q has head_dim {q.shape[3]} but the module {head_dim}")
    if num_heads is None:
        return k, v
    if q.shape[1] != num_heads:
        raise ShapeError(f"q has {q.shape[1]} heads but the module {num_heads}")
    if k.shape[1] == num_heads:
        return k, v
    group = num_heads // k.shape[1]
    return k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
