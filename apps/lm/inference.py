"""Run a model over sequences in bounded memory: packed, or one long sequence in chunks with carried state.

Sequences are packed, never padded. Memory does not grow with the number of sequences, nor with the length of one that
is read left to right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from protperf.lm.engine import Borders, Engine, Tokens

CHUNK = 4096
"""Tokens of one sequence that are read at once."""
EXACT_CHUNK = 512
"""The same with exact attention, whose memory is chunk times length."""

T = TypeVar("T")


def in_batches(items: Iterable[T], size: Callable[[T], int], budget: int) -> Iterator[list[T]]:
    """Consecutive items whose sizes sum to at most `budget`, or one item that is larger."""
    batch: list[T] = []
    total = 0
    for item in items:
        if batch and total + size(item) > budget:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size(item)
    if batch:
        yield batch


def pack(sequences: Sequence[Tokens]) -> tuple[Tokens, Borders]:
    """The tokens of several sequences one after another, and the borders between them."""
    return np.concatenate(sequences), np.cumsum([0, *(len(tokens) for tokens in sequences)]).astype(np.int64)


def chunked_log_probs(
    engine: Engine, tokens: Tokens, chunk: int | None = None, targets: Tokens | None = None
) -> Iterator[NDArray[np.floating]]:
    """Log-probabilities [n, vocabulary] after the tokens of one sequence, left to right, `chunk` tokens at a time.

    Args:
        targets: the tokens whose log-probabilities alone are wanted, one after each token, [n].
    """
    length = chunk or chunk_length(engine)
    state = engine.empty_state()
    for start in range(0, len(tokens), length):
        part = tokens[start : start + length]
        follow = None if targets is None else targets[start : start + length]
        yield state.advance(part, np.array([0, len(part)]), targets=follow)


def chunk_length(engine: Engine) -> int:
    """Tokens of one sequence that this model reads at once."""
    return EXACT_CHUNK if engine.config.attention == "exact" else CHUNK
