"""Where memory runs out, a batch is computed in parts: no record is left out, and no step is."""

from __future__ import annotations

import torch

from protperf.lm.training.feed import MicroBatch


def is_exhausted(error: Exception) -> bool:
    """Whether an error says that memory ran out; torch has no class of its own for that of the processor."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


def halved(parts: list[MicroBatch]) -> list[MicroBatch]:
    """Each batch in two of about as many tokens; one sequence stays whole."""
    return [half for part in parts for half in _halves(part)]


def _halves(part: MicroBatch) -> list[MicroBatch]:
    borders = part.cu_seqlens
    if len(borders) < 3:
        return [part]
    middle = min(max(1, int(torch.searchsorted(borders, len(part.tokens) // 2))), len(borders) - 2)
    border = borders[middle]
    before = int(torch.searchsorted(part.positions, border))
    return [
        MicroBatch(part.tokens[:border], borders[: middle + 1], part.positions[:before], part.targets[:before]),
        MicroBatch(
            part.tokens[border:], borders[middle:] - border, part.positions[before:] - border, part.targets[before:]
        ),
    ]
