"""Muon: momentum whose singular values are made nearly equal, so that every direction of a matrix learns as fast.

Written here in a few lines because `torch.optim.Muon` imports torch's compiler, which takes as long as all the rest of
torch, and because some weights hold several matrices, each of which is orthogonalized by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

MOMENTUM = 0.95
RATE = 20.0
"""Learning rate of Muon in learning rates of AdamW: its updates are as large per matrix, not per number."""
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPSILON = 1e-7
_NUMBERS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Matrix:
    """A weight with its gradient and momentum, all [parts · rows, columns]; each part is a matrix of its own."""

    weight: torch.Tensor
    gradient: torch.Tensor
    momentum: torch.Tensor
    parts: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of one part."""
        rows, columns = self.weight.shape
        return rows // self.parts, columns


def update(matrices: Iterable[Matrix], rate: float, weight_decay: float, dtype: torch.dtype | None = None) -> None:
    """Change weights and their momenta in place; `dtype` is that of `orthogonalized`.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/ (Nesterov momentum, five iterations).
    """
    for batch in _batches(matrices):
        directions = []
        for matrix in batch:
            matrix.momentum.lerp_(matrix.gradient, 1 - MOMENTUM)
            direction = matrix.gradient.lerp(matrix.momentum, MOMENTUM)
            directions.append(direction.unflatten(0, (matrix.parts, -1)))
        steps = orthogonalized(torch.cat(directions), dtype).split([matrix.parts for matrix in batch])
        rows, columns = batch[0].shape
        for matrix, step in zip(batch, steps, strict=True):
            matrix.weight.mul_(1 - rate * weight_decay)
            matrix.weight.add_(step.flatten(0, 1), alpha=-rate * math.sqrt(max(1.0, rows / columns)))


def _batches(matrices: Iterable[Matrix]) -> Iterator[list[Matrix]]:
    """Matrices of one shape together, as many as memory of no great size holds: products of many small matrices in one
    call take a third of the time of a call for each.
    """
    of_shape: dict[tuple[int, int], list[Matrix]] = {}
    for matrix in matrices:
        of_shape.setdefault(matrix.shape, []).append(matrix)
    for alike in of_shape.values():
        count = max(1, _NUMBERS_AT_ONCE // max(matrix.weight.numel() for matrix in alike))
        yield from (alike[at : at + count] for at in range(0, len(alike), count))


def orthogonalized(matrices: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The nearest matrices with singular values of about 1 (0.7 to 1.2); a matrix of zeros stays one.

    Shapes: matrices [parts, rows, columns]. They are computed in `dtype`, or in their own: since the iterations only
    have to reach that range, bfloat16 serves as well where the processor multiplies it faster.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = (x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=_EPSILON)).to(dtype or x.dtype)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        # a x + (b gram + c gram gram) x
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype)
