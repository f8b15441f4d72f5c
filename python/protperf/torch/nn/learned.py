"""Attention by exponential features whose directions are learned."""

from __future__ import annotations

from typing import Any

import torch

from protperf import _arguments
from protperf._feature_maps import LogLinear
from protperf.functional import draw_projection
from protperf.torch.autocast import autocast
from protperf.torch.functional import favor_attention, favor_attention_with_state
from protperf.torch.nn.grouped import repeat_for_query_heads

__all__ = ["LearnedAttention"]


class LearnedAttention(torch.nn.Module):
    """Features softmax([W x, -W x]) with a matrix W for each head that training fits.

    The kernel is another one than that of softmax, which training may bring close to it; W starts at random directions.
    Each feature is one of 2 M that sum to 1, so no feature can overflow or vanish for all keys.

    Args:
        head_dim: D.
        num_features: M, rows of W; there are twice as many features.
        num_heads: H.
        causal, seed, layer: as in `FavorAttention`; the latter two are of the directions that W starts from.

    Raises:
        DtypeError, ConfigError: an argument of the wrong kind or out of range.

    Source: Zhang et al. 2024, arXiv:2402.04347.
    """

    def __init__(
        self,
        head_dim: int,
        num_features: int = 64,
        *,
        num_heads: int,
        causal: bool = False,
        seed: int = 0,
        layer: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.causal = _arguments.check_flag("causal", causal)
        drawn = [draw_projection(num_features, head_dim, seed=seed, stream=(layer, h, 0)) for h in range(num_heads)]
        start = torch.stack([torch.from_numpy(omega) for omega in drawn])
        self.weight = torch.nn.Parameter(start.to(device, dtype or torch.get_default_dtype()))

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool | None = None, **masks: Any
    ) -> torch.Tensor:
        """Shapes q [B,H,L,D], k [B,Hk,S,D], v [B,Hk,S,E]; masks as in `FavorAttention.forward`.

        Where query heads share keys, each has its own features of them, so keys and values are repeated.
        """
        causal = self.causal if causal is None else causal
        q, k, v, record = self._with_offsets(q, k, v)
        return favor_attention(q, k, v, None, feature_map=record, causal=causal, **masks)

    def with_state(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: torch.Tensor | None = None, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and state after these keys, as `FavorAttention.with_state`."""
        q, k, v, record = self._with_offsets(q, k, v)
        return favor_attention_with_state(q, k, v, None, state, feature_map=record, **options)

    def _with_offsets(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, LogLinear]:
        """Queries and keys with one more axis, values, and their map.

        The logarithm of the sum of a key's features is subtracted from the logarithm of each. It is not a quadratic of
        the key, so it is carried as one more axis that the directions of keys read; that of a query cancels.
        """
        q, k, v = autocast(q, k, v)
        num_heads, _, head_dim = self.weight.shape
        k, v = repeat_for_query_heads(q, k, v, num_heads=num_heads, head_dim=head_dim)
        directions = torch.cat([self.weight, -self.weight], -2)
        offsets = torch.logsumexp((k * head_dim**-0.25) @ directions.to(k.dtype).mT, -1, keepdim=True)
        # With one axis more, inputs are scaled by another power.
        scale, unit = ((head_dim + 1) / head_dim) ** 0.25, (head_dim + 1) ** 0.25
        q = torch.nn.functional.pad(q * scale, (0, 1))
        k = torch.cat([k * scale, -offsets * unit], -1)
        of_queries = torch.nn.functional.pad(directions, (0, 1))
        of_keys = torch.nn.functional.pad(directions, (0, 1), value=1.0)
        quadratic = directions.new_zeros(directions.shape[0], head_dim + 1)
        return q, k, v, LogLinear(of_queries, of_keys, quadratic)
