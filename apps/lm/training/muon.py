"""Muon: momentum whose singular values are made nearly equal, so that every direction of a matrix learns as fast.

Written here in a few lines because `torch.optim.Muon` imports torch's compiler, which takes as long as all the rest of
torch, and because some weights hold several matrices, each of which is orthogonalized by itself.
"""

from __future__ import annotations

import math

import torch

MOMENTUM = 0.95
RATE = 20.0
"""Learning rate of Muon in learning rates of AdamW: its updates are as large per matrix, not per number."""
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPSILON = 1e-7


def update(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    momentum: torch.Tensor,
    parts: int,
    rate: float,
    weight_decay: float,
    dtype: torch.dtype | None = None,
) -> None:
    """Change a weight and its momentum in place; `dtype` is that of `orthogonalized`.

    Shapes: all [parts · rows, columns]; each part is a matrix.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/ (Nesterov momentum, five iterations).
    """
    momentum.lerp_(gradient, 1 - MOMENTUM)
    direction = gradient.lerp(momentum, MOMENTUM).unflatten(0, (parts, -1))
    rows, columns = direction.shape[-2:]
    weight.mul_(1 - rate * weight_decay)
    weight.add_(orthogonalized(direction, dtype).flatten(0, 1), alpha=-rate * math.sqrt(max(1.0, rows / columns)))


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
