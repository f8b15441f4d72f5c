"""Running sums over keys, which queries read; in the backward pass, over queries, which keys read.

A state as callers see it is [n,H,F,2+E]: for each feature its integer reference n, then the sums of phi(k) 2^-n and of
phi(k) 2^-n v. Any integer reference describes the same sums, so it has no derivative.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from protperf.torch.exponents import NIL, power_of_two
from protperf.torch.features import Features

__all__ = ["State", "add", "empty", "exported", "imported", "merge_states", "read", "references"]


_BLOCK_ROWS = 64
"""Rows of a chunk that one product sums over. Chunks of more rows than that have a power of two of them."""


class State(NamedTuple):
    """Sums relative to 2^reference of each feature.

    Shapes: reference [n,H,F], or [n,H,1] where features share one; sums [n,H,F,E+1], the sum of features last.
    """

    reference: torch.Tensor
    sums: torch.Tensor


def empty(shape: tuple[int, int, int, int], num_references: int, dtype: torch.dtype, device: torch.device) -> State:
    """The state [n,H,F,E+1] that has seen no key."""
    reference = torch.full((*shape[:2], num_references), NIL, dtype=dtype, device=device)
    return State(reference, torch.zeros(shape, dtype=dtype, device=device))


def add(state: State, features: Features, values_and_one: torch.Tensor) -> State:
    """The state with the rows of a chunk added: features [n,H,C,F], values_and_one [n,H,C,E+1].

    In the backward pass the cotangents of queries stand in the place of values and one.
    """
    reference = torch.maximum(state.reference, features.exponent.amax(-2))
    weights = features.mantissa * power_of_two(features.exponent - reference[..., None, :])
    kept = power_of_two(state.reference - reference)
    return State(reference, state.sums * kept[..., None] + _sum_of_products(weights, values_and_one))


def _sum_of_products(weights: torch.Tensor, values_and_one: torch.Tensor) -> torch.Tensor:
    """`weights.mT @ values_and_one`, [n,H,F,E+1], over blocks of rows whose sums are then added.

    A library may add up a product's terms one after another. For features, which are all positive, the rounding error
    then grows with the number of terms.
    """
    rows = weights.shape[-2]
    if rows <= _BLOCK_ROWS or rows % _BLOCK_ROWS:
        return weights.mT @ values_and_one
    weights, values_and_one = (x.unflatten(-2, (rows // _BLOCK_ROWS, _BLOCK_ROWS)) for x in (weights, values_and_one))
    return (weights.mT @ values_and_one).sum(-3)


def read(state: State, features: Features) -> tuple[torch.Tensor, torch.Tensor]:
    """What each row reads: exponents [n,H,C] and sums [n,H,C,E+1] relative to them."""
    exponent = features.exponent + state.reference[..., None, :]
    top = exponent.amax(-1)
    weights = features.mantissa * power_of_two(exponent - top[..., None])
    return top, weights @ state.sums


def references(state: torch.Tensor) -> torch.Tensor:
    """The integer references [n,H,F] of a caller's state."""
    return state[..., 0].detach().clamp(NIL, -NIL).round()


def imported(state: torch.Tensor, num_references: int, value_scale: torch.Tensor) -> State:
    """A state [n,H,F,2+E] of a caller, all finite, with values multiplied by `value_scale`."""
    reference = references(state)
    sums = torch.cat([state[..., 2:] * value_scale, state[..., 1:2]], -1)
    if num_references == 1:
        shared = reference.amax(-1, keepdim=True)
        sums = sums * power_of_two(reference - shared)[..., None]
        reference = shared
    return State(reference, sums)


def exported(state: State, value_scale: torch.Tensor) -> torch.Tensor:
    """The state as callers see it, with values multiplied by `value_scale`."""
    reference = state.reference.expand(state.sums.shape[:3])[..., None]
    return torch.cat([reference, state.sums[..., -1:], state.sums[..., :-1] * value_scale], -1)


def merge_states(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The state of both sets of keys, [..,F,2+E]."""
    reference = torch.maximum(a[..., :1], b[..., :1]).detach()

    def rescaled(state: torch.Tensor) -> torch.Tensor:
        return state[..., 1:] * power_of_two(state[..., :1].detach() - reference)

    return torch.cat([reference, rescaled(a) + rescaled(b)], -1)
