"""Attention by an exponential map whose constants are fitted to the queries and keys that were observed.

The constants are functions of omega and of moments that the module keeps as running averages, in buffers. `observe`
alone changes them, so a call of `forward` never depends on its own sequence but through attention: causal stays causal,
bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch

from protperf import _arguments
from protperf._feature_maps import LogLinear
from protperf.errors import ConfigError
from protperf.torch.autocast import autocast
from protperf.torch.fitting import FITTED_MAPS, Fitted, Moments, apply_rotation, fit, moments
from protperf.torch.functional import favor_attention, favor_attention_with_state
from protperf.torch.nn.favor import FavorAttention, versions_of
from protperf.torch.nn.grouped import repeat_for_query_heads

__all__ = ["FittedAttention"]


class FittedAttention(torch.nn.Module):
    """FAVOR attention without input or output projections, by a map of `protperf.torch.fitting`.

    Call `observe(q, k)` on some batches, in training or beforehand; until then the map is the one without constants.
    omega is that of the module `favor`, which also says how it is drawn again. The state dictionary holds both. A
    state of `with_state` is that of the constants it was made with: observe nothing while it is used.

    Args:
        head_dim: D.
        num_features: M, rows of omega.
        num_heads: an omega and constants for each head; None shares both.
        feature_map: a name from `protperf.torch.fitting.FITTED_MAPS`.
        shift: whether the means of queries and keys are subtracted, which is exact.
        momentum: of the running averages; the first batches are averaged evenly.
        causal, seed, layer, sampler, norm, device, dtype: as in `FavorAttention`.

    Raises:
        DtypeError, ConfigError: an argument of the wrong kind or out of range.
    """

    query_mean: torch.Tensor
    key_mean: torch.Tensor
    query_second: torch.Tensor
    key_second: torch.Tensor
    num_observed: torch.Tensor

    def __init__(
        self,
        head_dim: int,
        num_features: int = 256,
        *,
        num_heads: int | None = None,
        feature_map: str = "oprf",
        shift: bool = True,
        momentum: float = 0.99,
        **options: Any,
    ) -> None:
        super().__init__()
        self.feature_map = _arguments.check_name("feature_map", feature_map)
        if self.feature_map not in FITTED_MAPS:
            raise ConfigError(f"feature_map {feature_map!r} cannot be fitted; choose one of {', '.join(FITTED_MAPS)}")
        if not 0 <= momentum < 1:
            raise ConfigError(f"momentum is {momentum}; it must be at least 0 and below 1")
        self.shift, self.momentum = _arguments.check_flag("shift", shift), momentum
        self.favor = FavorAttention(head_dim, num_features, num_heads=num_heads, **options)
        heads = () if num_heads is None else (self.favor.num_heads,)
        device, dtype = self.favor.omega.device, self.favor.omega.dtype
        for name in Moments._fields:
            axes = (self.favor.head_dim,) * (1 if name.endswith("mean") else 2)
            self.register_buffer(name, torch.zeros(*heads, *axes, device=device, dtype=dtype))
        self.register_buffer("num_observed", torch.zeros((), device=device, dtype=torch.int64))
        self._fitted: tuple[tuple[int, ...], Fitted] | None = None

    @torch.no_grad()
    def observe(self, q: torch.Tensor, k: torch.Tensor, *, key_padding_mask: torch.Tensor | None = None) -> None:
        """Take the moments of a batch into the running averages; shapes as in `protperf.torch.fitting.moments`."""
        found = moments(q, k, key_padding_mask=key_padding_mask)
        self.num_observed += 1
        share = max(1 - self.momentum, 1 / int(self.num_observed))
        for buffer, new in zip(self.moments(), found, strict=True):
            new = new.mean(0) if self.favor.num_heads is None else new
            buffer.lerp_(new.to(buffer.dtype), share)

    def moments(self) -> Moments:
        """The running averages."""
        return Moments(self.query_mean, self.key_mean, self.query_second, self.key_second)

    def fitted(self) -> Fitted:
        """The map as it stands; fitted again where omega or the moments have changed."""
        self.favor.check_omega()
        buffers = (self.favor.omega, *self.moments())
        if torch.compiler.is_compiling():
            return fit(self.feature_map, buffers[0], self.moments(), shift=self.shift)
        versions = versions_of(*buffers)
        if versions is None:
            return fit(self.feature_map, buffers[0], self.moments(), shift=self.shift)
        key = (*map(id, buffers), *versions)
        if self._fitted is None or self._fitted[0] != key:
            self._fitted = (key, fit(self.feature_map, buffers[0], self.moments(), shift=self.shift))
        return self._fitted[1]

    def redraw(self, draw: int) -> None:
        """Replace omega by another draw, as `FavorAttention.redraw`."""
        self.favor.redraw(draw)

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool | None = None, **options: Any
    ) -> torch.Tensor:
        """Shapes and options as in `FavorAttention.forward`."""
        q, k, v, record = self._rotated(q, k, v)
        causal = self.favor.causal if causal is None else causal
        return favor_attention(q, k, v, None, feature_map=record, causal=causal, **options)

    def with_state(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: torch.Tensor | None = None, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and state after these keys, as `FavorAttention.with_state`."""
        q, k, v, record = self._rotated(q, k, v)
        return favor_attention_with_state(q, k, v, None, state, feature_map=record, **options)

    def extra_repr(self) -> str:
        """The arguments that `favor` does not show."""
        return f"feature_map={self.feature_map!r}, shift={self.shift}, momentum={self.momentum}"

    def _rotated(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, LogLinear]:
        """Queries and keys on the axes of the map, values, and the map; keys are repeated where heads have own axes."""
        record, rotation = self.fitted()
        q, k, v = autocast(q, k, v)
        if rotation is None:
            return q, k, v, record
        k, v = repeat_for_query_heads(q, k, v, num_heads=self.favor.num_heads, head_dim=self.favor.head_dim)
        return apply_rotation(q, rotation), apply_rotation(k, rotation), v, record

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Memory that is used again may have the address and the count of changes of what was fitted.
        self._fitted = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
