"""Attention as modules."""

from __future__ import annotations

from protperf.torch.nn.favor import FavorAttention
from protperf.torch.nn.fitted import FittedAttention

__all__ = ["FavorAttention", "FittedAttention"]
