"""One choice of the attention that modules are built around, by the name of what it computes."""

from __future__ import annotations

from typing import Any

import torch

from protperf import feature_maps
from protperf.errors import ConfigError
from protperf.torch.exact import softmax_attention
from protperf.torch.fitting import FITTED_MAPS
from protperf.torch.nn.favor import FavorAttention
from protperf.torch.nn.fitted import FittedAttention
from protperf.torch.nn.learned import LearnedAttention

__all__ = ["ExactAttention", "attention_core"]


class ExactAttention(torch.nn.Module):
    """Softmax attention, called as `FavorAttention` is."""

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool | None = None, **masks: Any
    ) -> torch.Tensor:
        """Shapes and masks as in `protperf.torch.softmax_attention`."""
        return softmax_attention(q, k, v, causal=bool(causal), **masks)


def attention_core(
    head_dim: int, num_heads: int, *, feature_map: str = "positive", num_features: int = 256, **options: Any
) -> torch.nn.Module:
    """The module that computes attention for `num_heads` heads, each with an omega of its own.

    Args:
        feature_map: `exact`, `learned`, a name from `protperf.feature_maps()`, or one of
            `protperf.torch.fitting.FITTED_MAPS`, which makes a `FittedAttention` that has to observe queries and keys.
        options: of that module; `exact` has none and takes no notice of them.

    Raises:
        ConfigError: an unknown name.
    """
    if feature_map == "exact":
        return ExactAttention()
    if feature_map == "learned":
        return LearnedAttention(head_dim, num_features, num_heads=num_heads, **options)
    if feature_map in feature_maps():
        return FavorAttention(head_dim, num_features, num_heads=num_heads, feature_map=feature_map, **options)
    if feature_map in FITTED_MAPS:
        return FittedAttention(head_dim, num_features, num_heads=num_heads, feature_map=feature_map, **options)
    names = ", ".join(dict.fromkeys(("exact", "learned", *feature_maps(), *FITTED_MAPS)))
    raise ConfigError(f"feature_map {feature_map!r} is unknown; choose one of {names}")
