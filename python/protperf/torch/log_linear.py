"""The exponential map that is given by its parameters, as tensors: its features and their gradients in plain torch.

With x = q D^-1/4 and y = k D^-1/4, the scaled inputs, and F features of each head,

    log phi_m(q) = wq_m . x + cq_m
    log phi_m(k) = wk_m . y + ck_m - h(y),     h(y) = sum_l g_l y_l^2 / 2

Gradients, with a = dphi_m phi_m, that of a feature's logarithm, and sums over rows:

    dx = sum_m a_m wq_m,             dwq_m = sum a_m x,    dcq_m = sum a_m
    dy = sum_m a_m (wk_m - g * y),   dwk_m = sum a_m y,    dck_m = sum a_m,    dg_l = -sum sum_m a_m y_l^2 / 2

`FeatureMap` of `features.py` has the same methods for the maps with a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from protperf._feature_maps import LogLinear
from protperf.torch.exponents import split
from protperf.torch.features import LOG2_E, Features, limited, without

__all__ = ["LogLinearMap", "Parameters"]


class Parameters(NamedTuple):
    """What a `protperf.LogLinear` holds, as tensors; or the gradients of that.

    Shapes: directions [F,D] or [H,F,D]; quadratic [D] or [H,D]; constants [F] or [H,F].
    """

    query_directions: torch.Tensor
    key_directions: torch.Tensor | None = None
    key_quadratic: torch.Tensor | None = None
    query_constants: torch.Tensor | None = None
    key_constants: torch.Tensor | None = None

    @classmethod
    def of(cls, record: LogLinear) -> Parameters:
        """The parameters of a record whose fields are tensors."""
        return cls(*record.as_tuple())

    @property
    def num_features(self) -> int:
        """F."""
        return self.query_directions.shape[-2]

    def bad_heads(self, heads: int) -> torch.Tensor:
        """Heads that use a number that is not finite, bool [H]."""
        bad = torch.zeros(heads, dtype=torch.bool, device=self.query_directions.device)
        for field, axes in zip(self, _AXES, strict=True):
            if field is not None:
                bad = bad | ~field.isfinite().flatten(-axes).all(-1)
        return bad

    def usable(self, dtype: torch.dtype) -> Parameters:
        """In the type of the computation, what is not finite set to zero."""
        return Parameters(*(None if x is None else _finite(x.to(dtype)) for x in self))  # type: ignore[arg-type]


# Axes of each field besides that of the heads.
_AXES = (2, 2, 1, 1, 1)


def _finite(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.isfinite(), x, 0.0)


class LogLinearMap:
    """The map with these parameters, which are finite and in the type of the computation."""

    def __init__(self, parameters: Parameters, head_dim: int) -> None:
        self._given, self._input_scale = parameters, head_dim**-0.25
        self.width = self.num_references = parameters.num_features
        self._of_queries = parameters.query_directions * self._input_scale
        key_directions = parameters.key_directions
        self._of_keys = self._of_queries if key_directions is None else key_directions * self._input_scale

    def queries(self, x: torch.Tensor) -> Features:
        """Features of query rows [n,H,C,D]."""
        log = limited(x, self._input_scale) @ self._of_queries.mT
        return Features(*split(_plus_rows(log, self._given.query_constants) * LOG2_E))

    def keys(self, y: torch.Tensor, keep: torch.Tensor | None) -> Features:
        """Features of key rows [n,H,C,D]; those that `keep` [n,H,C] leaves out are zero and raise no reference."""
        y = limited(y, self._input_scale)
        half = (self._weighted(y) * y).sum(-1, keepdim=True) * (0.5 * self._input_scale**2)
        log = _plus_rows(y @ self._of_keys.mT, self._given.key_constants) - half
        return without(Features(*split(log * LOG2_E)), keep)

    def queries_gradient(
        self, x: torch.Tensor, features: Features, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Gradients of query rows and, summed over rows and by name, of the parameters, from that of mantissas."""
        dlog = gradient * features.mantissa
        found = {"query_directions": _outer(dlog, limited(x, self._input_scale)), "query_constants": dlog.sum((0, 2))}
        return dlog @ self._of_queries, found

    def keys_gradient(
        self, y: torch.Tensor, features: Features, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """As `queries_gradient`, for key rows."""
        y, dlog = limited(y, self._input_scale), gradient * features.mantissa
        total = dlog.sum(-1, keepdim=True) * self._input_scale**2
        directions = "query_directions" if self._given.key_directions is None else "key_directions"
        found = {directions: _outer(dlog, y), "key_constants": dlog.sum((0, 2))}
        found["key_quadratic"] = -0.5 * (total * y * y).sum((0, 2))
        return dlog @ self._of_keys - total * self._weighted(y), found

    def parameter_gradients(self, sums: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
        """The gradients of the parameters, each of its own shape, from the sums of what the gradients above gave."""
        found = []
        for name, given, axes in zip(Parameters._fields, self._given, _AXES, strict=True):
            if given is None or name not in sums:
                found.append(None if given is None else torch.zeros_like(given))
                continue
            gradient = sums[name] * self._input_scale if name.endswith("directions") else sums[name]
            found.append(gradient if given.dim() > axes else gradient.sum(0))
        return tuple(found)

    def _weighted(self, y: torch.Tensor) -> torch.Tensor:
        """G * y by axis."""
        g = self._given.key_quadratic
        return y if g is None else y * g[..., None, :]


def _plus_rows(x: torch.Tensor, constants: torch.Tensor | None) -> torch.Tensor:
    return x if constants is None else x + constants[..., None, :]


def _outer(dlog: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return (dlog.mT @ rows).sum(0)
