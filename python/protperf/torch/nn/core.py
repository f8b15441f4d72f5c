"""One choice of the attention that modules are built around, by the name of what it computes."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from protperf import _arguments, feature_maps
from protperf.errors import ConfigError
from protperf.torch.exact import check_window, softmax_attention
from protperf.torch.fitting import FITTED_MAPS
from protperf.torch.nn.favor import FavorAttention
from protperf.torch.nn.fitted import FittedAttention
from protperf.torch.nn.learned import LearnedAttention
from protperf.torch.nn.windowed import WindowedHeads

__all__ = ["ExactAttention", "attention_core"]

_OF_EITHER_SIGN = {"trigonometric": "positive", "fourier": "gaussian"}
"""Maps whose weights may be negative, and those of the same kernel whose weights may not."""


class ExactAttention(torch.nn.Module):
    """Softmax attention, called as `FavorAttention` is.

    Args:
        causal, window: as in `protperf.torch.softmax_attention`.
    """

    def __init__(self, *, causal: bool = False, window: int | None = None) -> None:
        super().__init__()
        self.causal = _arguments.check_flag("causal", causal)
        self.window = None if window is None else check_window(window)

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool | None = None, **masks: Any
    ) -> torch.Tensor:
        """Shapes and masks as in `protperf.torch.softmax_attention`."""
        causal = self.causal if causal is None else causal
        return softmax_attention(q, k, v, causal=causal, window=self.window, **masks)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"causal={self.causal}, window={self.window}"


def attention_core(
    head_dim: int,
    num_heads: int,
    *,
    feature_map: str = "positive",
    num_features: int = 256,
    num_window_heads: int = 0,
    window: int = 128,
    causal: bool = False,
    **options: Any,
) -> torch.nn.Module:
    """The module that computes attention for `num_heads` heads, each with an omega of its own.

    Maps of sines and cosines come with a warning: their weights may be negative.

    Args:
        feature_map: `exact`, `learned`, a name from `protperf.feature_maps()`, or one of
            `protperf.torch.fitting.FITTED_MAPS`, which makes a `FittedAttention` that has to observe queries and keys.
        num_window_heads: the last so many heads attend exactly, to keys at most `window` positions away
            (`WindowedHeads`).
        causal: unless a call says otherwise.
        options: of the module of the other heads, such as `projection` and `kernel_epsilon` of `FavorAttention`;
            `exact` has none and takes no notice of them.

    Raises:
        ConfigError: an unknown name, or more heads with a window than there are.
    """
    if feature_map in _OF_EITHER_SIGN:
        warnings.warn(
            f"weights of {feature_map!r} may be negative, and their sum near 0, where |x|^2 is above 1; "
            f"those of {_OF_EITHER_SIGN[feature_map]!r}, an estimate of the same kernel, may not",
            stacklevel=2,
        )
    num_window_heads = _arguments.check_integer("num_window_heads", num_window_heads)
    if num_window_heads == 0:
        return _core_of_all(head_dim, num_heads, feature_map, num_features, causal, **options)
    if num_window_heads == num_heads:
        return ExactAttention(causal=causal, window=window)
    rest = max(num_heads - num_window_heads, 1)
    core = _core_of_all(head_dim, rest, feature_map, num_features, causal, **options)
    return WindowedHeads(core, num_heads=num_heads, num_window_heads=num_window_heads, window=window, causal=causal)


def _core_of_all(
    head_dim: int, num_heads: int, feature_map: str, num_features: int, causal: bool, **options: Any
) -> torch.nn.Module:
    if feature_map == "exact":
        return ExactAttention(causal=causal)
    options = {"num_heads": num_heads, "causal": causal, **options}
    if feature_map == "learned":
        return LearnedAttention(head_dim, num_features, **options)
    if feature_map in feature_maps():
        return FavorAttention(head_dim, num_features, feature_map=feature_map, **options)
    if feature_map in FITTED_MAPS:
        return FittedAttention(head_dim, num_features, feature_map=feature_map, **options)
    names = ", ".join(dict.fromkeys(("exact", "learned", *feature_maps(), *FITTED_MAPS)))
    raise ConfigError(f"feature_map {feature_map!r} is unknown; choose one of {names}")
