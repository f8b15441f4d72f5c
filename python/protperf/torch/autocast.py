"""Attention under `torch.autocast`: inputs are cast as torch's own attention casts them, and sums are not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["autocast", "without_autocast"]


def autocast(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tensors in the type that autocast chooses for products, where it is on; float64 stays, as in torch."""
    if not isinstance(q, torch.Tensor) or not _is_on(q.device):
        return q, k, v
    dtype = torch.get_autocast_dtype(q.device.type)

    def cast(x: torch.Tensor) -> torch.Tensor:
        is_cast = isinstance(x, torch.Tensor) and x.is_floating_point() and x.dtype != torch.float64
        return x.to(dtype) if is_cast else x

    return cast(q), cast(k), cast(v)


@contextlib.contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Turns autocast off, which would compute products of features in 16 bits."""
    if not _is_on(device):
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield


def _is_on(device: torch.device) -> bool:
    return device.type != "meta" and torch.is_autocast_enabled(device.type)
