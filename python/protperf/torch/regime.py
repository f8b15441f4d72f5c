"""How well random features can estimate the attention of given queries and keys, before any network is trained on them.

An estimate of exp(x . y) by M positive features has the relative variance (exp(|x + y|^2) - 1) / M for scaled inputs
x = q D^-1/4 and y = k D^-1/4. So E|x + y|^2 of a head, after the means are subtracted, says whether M features are
enough: 2 is easy for 256 of them, 8 is hopeless for any number that pays. Where estimates are far off they no longer
scatter around the truth, and the closed form is an upper bound; `measure` therefore tries the map on some of the rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from protperf._arguments import check_positive
from protperf.errors import ConfigError
from protperf.functional import draw_projection
from protperf.torch.exact import softmax_attention
from protperf.torch.fitting import FITTED_MAPS, apply_rotation, fit, moments
from protperf.torch.functional import favor_attention

__all__ = ["Regime", "closed_form_error", "measure"]

_FINE, _POOR = 0.2, 0.5


class Regime(NamedTuple):
    """What a head's inputs mean for an estimate; every field has one number per query head.

    Attributes:
        size: E|x + y|^2 over independent pairs, the means subtracted where the map is shifted.
        error: the relative error of the output against softmax to expect, for values that are independent of keys.
        uniform_error: the same of attention that weighs all keys alike: an estimate that is not better is of no use.
        num_features: M that the figures are for.
    """

    size: torch.Tensor
    error: torch.Tensor
    uniform_error: torch.Tensor
    num_features: int

    @property
    def is_fine(self) -> torch.Tensor:
        """Whether the error to expect is small enough, bool: heads to which `advice` says so."""
        return self.error <= _FINE

    def advice(self) -> list[str]:
        """One line per head: fine, or what would mend it."""
        return [
            f"head {head}: {_advice(*numbers, self.num_features)}"
            for head, numbers in enumerate(
                zip(self.size.tolist(), self.error.tolist(), self.uniform_error.tolist(), strict=True)
            )
        ]


def closed_form_error(size: torch.Tensor, num_features: int) -> torch.Tensor:
    """The relative error that independent positive features have at E|x + y|^2 = size; right below about 1/2."""
    return ((size.exp() - 1) / num_features).sqrt()


@torch.no_grad()
def measure(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    feature_map: str = "positive",
    num_features: int = 256,
    shift: bool = True,
    max_rows: int = 256,
    num_draws: int = 2,
    seed: int = 0,
    key_padding_mask: torch.Tensor | None = None,
) -> Regime:
    """Try a map on evenly spaced rows of some queries and keys.

    Shapes: q [B,H,L,D], k [B,Hk,S,D] with H a multiple of Hk. The cost is that of exact attention on `max_rows` rows.

    Args:
        feature_map: a name from `protperf.torch.fitting.FITTED_MAPS`, fitted to these inputs.
        shift: whether the means are subtracted; False is what `FavorAttention` does.
        num_draws: draws of omega that are averaged over.
        key_padding_mask: bool [B,S], True where a key, and where L = S also the query of its place, is padding.

    Raises:
        ConfigError: an unknown map, or a number below 1.
    """
    if feature_map not in FITTED_MAPS:
        raise ConfigError(f"feature_map {feature_map!r} cannot be measured; choose one of {', '.join(FITTED_MAPS)}")
    for name, number in (("num_features", num_features), ("max_rows", max_rows), ("num_draws", num_draws)):
        check_positive(name, number)
    of_inputs = moments(q, k, key_padding_mask=key_padding_mask)
    counts = torch.ones(q.shape[0], 1, q.shape[2], device=q.device, dtype=torch.bool)
    if key_padding_mask is not None:
        counts = ~key_padding_mask[:, None] if q.shape[2] == k.shape[2] else counts
        key_padding_mask = _some(key_padding_mask, max_rows, 1)
    q = q.double().masked_fill(~counts[..., None], 0.0)
    q, k, counts = (_some(x, max_rows, 2) for x in (q, k.double(), counts))
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    # Values that are one-hot make the output the weights.
    one_hot = torch.eye(k.shape[2], dtype=k.dtype, device=k.device).expand(*k.shape[:2], -1, -1)
    exact = softmax_attention(q, k, one_hot, key_padding_mask=key_padding_mask)
    uniform = softmax_attention(0 * q, k, one_hot, key_padding_mask=key_padding_mask)
    squares = torch.zeros_like(exact[..., 0])
    for draw in range(num_draws):
        omega = draw_projection(num_features, q.shape[3], seed=seed, stream=(0, 0, draw))
        fitted = fit(feature_map, torch.from_numpy(omega).to(q.device), of_inputs, shift=shift)
        x, y = apply_rotation(q, fitted.rotation), apply_rotation(k, fitted.rotation)
        weights = favor_attention(x, y, one_hot, None, feature_map=fitted.record, key_padding_mask=key_padding_mask)
        squares += (weights - exact).square().sum(-1) / num_draws
    norm, squares = exact.square().sum(-1) * counts, squares * counts
    uniform = (uniform - exact).square().sum(-1) * counts
    size = (of_inputs.centred() if shift else of_inputs).size
    return Regime(size, _relative(squares, norm), _relative(uniform, norm), num_features)


def _relative(squares: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """Per head: the root of sums of squares over batch entries and rows [B,H,L] against those of a norm."""
    return (squares.sum((0, 2)) / norm.sum((0, 2))).sqrt()


def _some(x: torch.Tensor, count: int, axis: int) -> torch.Tensor:
    """At most `count` evenly spaced places of an axis."""
    length = x.shape[axis]
    return x if length <= count else x.index_select(axis, torch.arange(count, device=x.device) * length // count)


def _advice(size: float, error: float, uniform: float, num_features: int) -> str:
    figures = f"error {error:.2f} with {num_features} features (E|x+y|^2 = {size:.1f})"
    if error <= _FINE:
        return f"{figures}: fine"
    if error >= uniform:
        return (
            f"{figures}: an average over all keys, {uniform:.2f}, is no worse; normalise q and k (QKNorm) to lower it"
        )
    if error <= _POOR:
        needed = 2 ** math.ceil(math.log2(num_features * (error / _FINE) ** 2))
        return f"{figures}: {needed} features would bring it below {_FINE}, or saderf with shift=True where axes differ"
    return f"{figures}: poor; lower the temperature (QKNorm) until E|x+y|^2 is about 2, or train from the estimate"
