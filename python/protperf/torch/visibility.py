"""Which keys each query sees, as a mask."""

from __future__ import annotations

import torch

__all__ = ["visible"]


def visible(
    q_len: int,
    kv_len: int,
    causal: bool,
    cu_seqlens: torch.Tensor | None,
    key_padding_mask: torch.Tensor | None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Which keys each query sees: bool [B or 1, 1, L, S]."""
    rows, cols = torch.arange(q_len, device=device), torch.arange(kv_len, device=device)
    seen = torch.ones(q_len, kv_len, dtype=torch.bool, device=device)
    if causal:
        seen = seen & (cols[None, :] <= rows[:, None])
    if cu_seqlens is not None:
        borders = cu_seqlens.to(device=device, dtype=torch.int64)
        segment = torch.bucketize(rows, borders, right=True)
        seen = seen & (segment[:, None] == segment[None, :])
    seen = seen[None, None]
    if key_padding_mask is not None:
        seen = seen & ~key_padding_mask[:, None, None, :]
    return seen
