"""Integer powers of two on tensors: exact factors, made of bits.

A reference of the stabilizer is an integer, so changing it multiplies by a power of two and rounds nothing.
`torch.exp2` promises no exact powers on every device; the bit pattern of a power of two is the same on all.
Exponents are kept as floating-point integers: exact up to 2^24, and monotonic for any finite input beyond.
"""

from __future__ import annotations

import torch

__all__ = ["NIL", "exponent_of", "power_of_two", "split"]

NIL = -1e37
"""Exponent of what does not exist, such as the reference of a state that has seen no key; callers' states hold it."""

# Integer type of the same width, mantissa bits, and exponent bias.
_FORMATS = {torch.float32: (torch.int32, 23, 127), torch.float64: (torch.int64, 52, 1023)}


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """2^exponent of integers: 0 below the normal numbers of their type, its largest power of two above them."""
    integer, mantissa_bits, bias = _FORMATS[exponent.dtype]
    return ((exponent.clamp(-bias, bias) + bias).to(integer) << mantissa_bits).view(exponent.dtype)


def exponent_of(x: torch.Tensor) -> torch.Tensor:
    """The integer e with |x| = m 2^e and m in [1/2, 1), for normal numbers; the smallest e or so for others."""
    integer, mantissa_bits, bias = _FORMATS[x.dtype]
    biased = (x.detach().view(integer) >> mantissa_bits) & (2 * bias + 1)
    return (biased - (bias - 1)).to(x.dtype)


def split(log: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """2^log as mantissa in [0.70, 1.42] and integer exponent; the derivative of the mantissa is that of the whole."""
    whole = log.detach().round()
    return torch.exp2(log - whole), whole
