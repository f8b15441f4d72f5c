"""Exponential feature maps whose constants are fitted to the queries and keys of each head.

All maps here estimate softmax without bias for any constants: the constants decide the variance alone. They are
chosen from `Moments`, and become a `protperf.LogLinear`, so no kernel knows these maps. With scaled inputs
x = q D^-1/4 and y = k D^-1/4, z = x + y, omega_m normal, and B = sqrt(1 - 4A), a map is

    oprf     w^q = w^k = B omega,                        h(y) = |y|^2 / 2,        c = A |omega|^2
    saderf   w^q = B psi * omega, w^k = B omega / psi,   h(y) = |y / psi|^2 / 2,  c = A |omega|^2
    sderf    w^q = w^k = Q (I - 4A)^1/2 omega,           h(y) = |y|^2 / 2,        c = omega . A omega,  A diagonal
    aderf    as saderf, on the axes on which the second moments of x and y become equal

with c on both sides, and A the minimiser of the variance for a given E|z|^2 (for sderf: along each axis Q of E zz^T).
Moments taken from the sequence that is attended to would show its future to causal attention: take them beforehand.

Sources: Likhosherstov et al. 2022, arXiv:2205.15317 (oprf); Likhosherstov et al. 2023, arXiv:2302.00787 (the others).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from protperf._feature_maps import LogLinear
from protperf.errors import ConfigError, ShapeError
from protperf.torch.features import directions

__all__ = ["FITTED_MAPS", "Fitted", "Moments", "apply_rotation", "fit", "moments", "shifted"]

FITTED_MAPS = ("positive", "hyperbolic", "smreg", "oprf", "saderf", "sderf", "aderf")
"""Maps that `fit` makes; the first three have no constants but the shift."""


class Moments(NamedTuple):
    """Means and second moments (not centred) of the scaled inputs x = q D^-1/4 and y = k D^-1/4.

    Shapes: means [H,D] and second moments [H,D,D], or [D] and [D,D] for all heads together.
    """

    query_mean: torch.Tensor
    key_mean: torch.Tensor
    query_second: torch.Tensor
    key_second: torch.Tensor

    def centred(self) -> Moments:
        """The moments of x - E x and y - E y."""
        none = torch.zeros_like
        query, key = self.query_mean, self.key_mean
        return Moments(
            none(query),
            none(key),
            self.query_second - query.unsqueeze(-1) * query.unsqueeze(-2),
            self.key_second - key.unsqueeze(-1) * key.unsqueeze(-2),
        )

    @property
    def size(self) -> torch.Tensor:
        """E|x + y|^2 for x and y that are independent, [H] or []: what decides how well an estimate can do."""
        return _trace(self.query_second) + _trace(self.key_second) + 2 * (self.query_mean * self.key_mean).sum(-1)


class Fitted(NamedTuple):
    """A map with its constants, and the rotation [..,D,D] that queries and keys are multiplied with before it.

    The rotation is None for all maps but `aderf`. It is orthogonal, so no product of a query and a key changes.
    """

    record: LogLinear
    rotation: torch.Tensor | None


@torch.no_grad()
def moments(q: torch.Tensor, k: torch.Tensor, *, key_padding_mask: torch.Tensor | None = None) -> Moments:
    """The moments of each query head, in float64, over batch entries and positions.

    Shapes: q [B,H,L,D], k [B,Hk,S,D] with H a multiple of Hk, key_padding_mask bool [B,S], True where a key is padding.
    Where L = S the mask leaves out the queries of those positions too.

    Raises:
        ShapeError: shapes that do not fit, or no position to take moments of.
    """
    if q.dim() != 4 or k.dim() != 4 or q.shape[3] != k.shape[3] or q.shape[1] % max(k.shape[1], 1):
        raise ShapeError(f"q has shape {list(q.shape)} and k {list(k.shape)}; needed are [B,H,L,D] and [B,Hk,S,D]")
    keep = None if key_padding_mask is None else ~key_padding_mask
    if keep is not None and tuple(keep.shape) != (k.shape[0], k.shape[2]):
        raise ShapeError(f"key_padding_mask has shape {list(keep.shape)} but [B,S] is {[k.shape[0], k.shape[2]]}")
    query = _of_rows("q", q, keep if q.shape[2] == k.shape[2] else None)
    key = [x.repeat_interleave(q.shape[1] // k.shape[1], 0) for x in _of_rows("k", k, keep)]
    return Moments(query[0], key[0], query[1], key[1])


def fit(feature_map: str, omega: torch.Tensor, of_inputs: Moments, *, shift: bool = True) -> Fitted:
    """The map of these directions with the constants that suit these moments.

    Shapes: omega [M,D] or [H,M,D]. The record has parameters per head where omega or the moments have, in the type of
    omega.

    Args:
        feature_map: a name from `FITTED_MAPS`.
        of_inputs: from `moments`. Where they are 0 the map is the one without constants.
        shift: subtract the means from queries and keys. It is exact, for exp(x . y) is
            exp((x - mean) . (y - mean)) exp(mean . y) times a factor that the quotient cancels.

    Raises:
        ConfigError: an unknown map.
    """
    if feature_map not in FITTED_MAPS:
        raise ConfigError(f"feature_map {feature_map!r} cannot be fitted; choose one of {', '.join(FITTED_MAPS)}")
    of_inputs = Moments(*(x.double() for x in of_inputs))
    seen = of_inputs.centred() if shift else of_inputs
    name = feature_map if feature_map in ("hyperbolic", "smreg") else "positive"
    w = directions(name, omega.detach().double())
    rotation = None
    if feature_map == "aderf":
        rotation, scales = _joint_axes(seen)
        of_inputs, seen = _rotated(of_inputs, rotation), _rotated(seen, rotation)
        record = _optimal(w, seen, scales)
    elif feature_map == "saderf":
        record = _optimal(w, seen, _ratio(_diagonal(seen.key_second), _diagonal(seen.query_second)) ** 0.25)
    elif feature_map == "sderf":
        record = _along_axes(w, seen)
    elif feature_map == "oprf":
        record = _optimal(w, seen, None)
    else:
        record = LogLinear(w)
    if shift:
        record = shifted(record, of_inputs.query_mean, of_inputs.key_mean)
    if rotation is not None:
        rotation = rotation.to(omega.dtype)
    return Fitted(_in_type(record, omega.dtype), rotation)


def shifted(record: LogLinear, query_mean: torch.Tensor, key_mean: torch.Tensor) -> LogLinear:
    """The map applied to x - query_mean and y - key_mean, as a map of x and y. Any constant vectors keep it exact.

    Shapes: means [D] or [H,D], of scaled inputs.
    """
    wq = record.query_directions
    wk = wq if record.key_directions is None else record.key_directions
    of_keys = key_mean if record.key_quadratic is None else record.key_quadratic * key_mean
    cq = -(wq @ query_mean.unsqueeze(-1)).squeeze(-1)
    ck = -(wk @ key_mean.unsqueeze(-1)).squeeze(-1)
    return LogLinear(
        wq,
        wk + (of_keys + query_mean).unsqueeze(-2),
        record.key_quadratic,
        cq if record.query_constants is None else cq + record.query_constants,
        ck if record.key_constants is None else ck + record.key_constants,
    )


def apply_rotation(x: torch.Tensor, rotation: torch.Tensor | None) -> torch.Tensor:
    """Rows [B,H,L,D] on the axes of a `Fitted` map."""
    return x if rotation is None else x @ rotation.to(x.dtype)


def _of_rows(name: str, rows: torch.Tensor, keep: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [H,D] and second moment [H,D,D] of scaled rows [B,H,L,D]."""
    x = rows.detach().double() * rows.shape[3] ** -0.25
    if keep is None:
        count = rows.shape[0] * rows.shape[2]
    else:
        x = torch.where(keep[:, None, :, None], x, 0.0)
        count = int(keep.sum())
    if count == 0:
        raise ShapeError(f"{name} has no position to take moments of")
    return x.sum((0, 2)) / count, (x.mT @ x).sum(0) / count


def _optimal(w: torch.Tensor, seen: Moments, scales: torch.Tensor | None) -> LogLinear:
    """OPRF for psi * x and y / psi; `scales` psi [..,D], None for 1."""
    along_queries, along_keys = _diagonal(seen.query_second), _diagonal(seen.key_second)
    if scales is not None:
        along_queries, along_keys = along_queries * scales**2, along_keys / scales**2
    mean_size = (along_queries + along_keys + 2 * seen.query_mean * seen.key_mean).mean(-1)
    a = _best_constant(mean_size)
    constants = a.unsqueeze(-1) * (w * w).sum(-1)
    w = w * (1 - 4 * a)[..., None, None].sqrt()
    if scales is None:
        return LogLinear(w, None, None, constants, constants)
    psi = scales.unsqueeze(-2)
    return LogLinear(w * psi, w / psi, scales**-2, constants, constants)


def _along_axes(w: torch.Tensor, seen: Moments) -> LogLinear:
    """SDERF: a constant for each axis of E zz^T."""
    cross = seen.query_mean.unsqueeze(-1) * seen.key_mean.unsqueeze(-2)
    sizes, axes = torch.linalg.eigh(seen.query_second + seen.key_second + cross + cross.mT)
    a = _best_constant(sizes.clamp_min(0.0)).unsqueeze(-2)
    constants = (a * w * w).sum(-1)
    return LogLinear((w * (1 - 4 * a).sqrt()) @ axes.mT, None, None, constants, constants)


def _joint_axes(seen: Moments) -> tuple[torch.Tensor, torch.Tensor]:
    """Axes [..,D,D] and scales psi [..,D] on which psi * x and y / psi have the same second moment."""
    query, key = _invertible(seen.query_second), _invertible(seen.key_second)
    root = _root(query)
    inverse = torch.linalg.inv(root)
    squares, axes = torch.linalg.eigh(inverse @ _root(root @ key @ root) @ inverse)
    return axes, squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()


def _rotated(of_inputs: Moments, axes: torch.Tensor) -> Moments:
    query, key = ((mean.unsqueeze(-2) @ axes).squeeze(-2) for mean in of_inputs[:2])
    return Moments(query, key, axes.mT @ of_inputs.query_second @ axes, axes.mT @ of_inputs.key_second @ axes)


def _best_constant(size: torch.Tensor) -> torch.Tensor:
    """A, the minimiser of the variance where E|z|^2 is `size` per axis; from 0 down."""
    twice = 2 * size
    return (1 - twice - ((twice + 1) ** 2 + 8 * size).sqrt()) / 16


def _invertible(second: torch.Tensor) -> torch.Tensor:
    """A second moment that has an inverse: axes without spread get a little; the unit matrix where none has any."""
    eye = torch.eye(second.shape[-1], dtype=second.dtype, device=second.device)
    mean = (_trace(second) / second.shape[-1])[..., None, None]
    return torch.where(mean > 0, second + 1e-6 * mean * eye, eye)


def _root(matrix: torch.Tensor) -> torch.Tensor:
    """The symmetric square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return (vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)) @ vectors.mT


def _ratio(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The quotient, and 1 where either is not positive."""
    usable = (a > 0) & (b > 0)
    return torch.where(usable, a / b.where(usable, 1.0), 1.0)


def _diagonal(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1)


def _trace(matrix: torch.Tensor) -> torch.Tensor:
    return _diagonal(matrix).sum(-1)


def _in_type(record: LogLinear, dtype: torch.dtype) -> LogLinear:
    """The record in one type, every field with the heads that any has."""
    fields = record.as_tuple()
    axes = (2, 2, 1, 1, 1)
    heads = {x.shape[0] for x, n in zip(fields, axes, strict=True) if x is not None and x.dim() > n}
    first = (heads.pop(),) if heads else ()
    return LogLinear(
        *(
            None if x is None else x.to(dtype).expand(*first, *x.shape[x.dim() - n :]).contiguous()
            for x, n in zip(fields, axes, strict=True)
        )
    )
