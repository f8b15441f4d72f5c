"""Packed batches in an order that is a function of the seed: what step n sees never depends on how it got there.

The order of an epoch is a permutation from a counter-based generator keyed by (seed, epoch). Sequences of similar
length form a batch, up to a budget of tokens. A long sequence is cropped to a window that changes with the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from protperf.lm.alphabet import BOS, EOS, FIRST_RESIDUE, LAST_SCORED, MASK, NUM_STANDARD
from protperf.lm.data.reading import PLAIN, Reading, read
from protperf.lm.data.store import TokenStore
from protperf.lm.data.stream import Stream, generator

_POOL_BATCHES = 32
"""About how many batches are filled from sequences that are sorted by length together."""
MASKED_FRACTION = 0.15


@dataclass(frozen=True, slots=True)
class Batch:
    """Shapes: tokens [N] uint8 with BOS and EOS, cu_seqlens [num_sequences+1] int64."""

    tokens: NDArray[np.uint8]
    cu_seqlens: NDArray[np.int64]


class EpochPlan(Sequence[NDArray[np.int64]]):
    """The batches of an epoch: item i holds the indices of the sequences of batch i."""

    def __init__(self, order: NDArray[np.int64], borders: NDArray[np.int64], batches: NDArray[np.int64]) -> None:
        """Batch i is `order[borders[batches[i]]:borders[batches[i] + 1]]`."""
        self._order, self._borders, self._batches = order, borders, batches

    def __len__(self) -> int:
        return len(self._batches)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.int64]: ...
    @overload
    def __getitem__(self, index: slice) -> list[NDArray[np.int64]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.int64] | list[NDArray[np.int64]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        batch = self._batches[index]
        return self._order[self._borders[batch] : self._borders[batch + 1]]


def epoch_plan(
    lengths: NDArray[np.int64], budget: int, crop: int, seed: int, epoch: int,
    weights: NDArray[np.float64] | None = None,
) -> EpochPlan:  # fmt: skip
    """Choose the sequences of each batch of an epoch.

    Args:
        lengths: residues of each sequence [R].
        budget: most tokens of a batch, BOS and EOS counted; a longer sequence is a batch by itself. Residues that
            varied starts put in front of a sequence (`reading.read`, up to 40) come on top of it.
        crop: most tokens of a sequence that are used.
        weights: the probability of each sequence to be in an epoch [R]; None reads all of them.
    """
    rng = generator(seed, Stream.ORDER, epoch)
    order = rng.permutation(len(lengths) if weights is None else _drawn(weights, rng))
    sizes = np.minimum(lengths + 2, crop)
    pool = max(1, int(_POOL_BATCHES * budget / max(1.0, sizes.mean())))
    borders = [0]
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part[:] = part[np.argsort(sizes[part], kind="stable")]
        filled = np.cumsum(sizes[part])
        first = 0
        while first < len(part):
            # As many sequences as fit; the first always does.
            limit = budget + (int(filled[first - 1]) if first else 0)
            first = max(first + 1, int(np.searchsorted(filled, limit, side="right")))
            borders.append(start + first)
    return EpochPlan(order, np.array(borders), rng.permutation(len(borders) - 1))


def _drawn(weights: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Sequences of an epoch, each with its weight as probability, as many as the sum of the weights says.

    Points one apart, from a random start, fall on a line on which a sequence has the length of its weight.
    """
    passed = np.floor(np.concatenate([[0.0], np.cumsum(weights)]) - rng.random())
    drawn = np.flatnonzero(np.diff(passed))
    return drawn if len(drawn) else np.array([np.argmax(weights)])


def build(
    store: TokenStore, indices: NDArray[np.int64], crop: int, seed: int, epoch: int, reading: Reading = PLAIN
) -> Batch:
    """Pack the tokens of some sequences, read and cropped for this epoch."""
    parts = []
    for index in indices.tolist():
        framed = frame(store.sequence(index))
        if reading != PLAIN:
            framed = read(framed, reading, generator(seed, Stream.READING, epoch, index))
        if len(framed) > crop:
            start = int(generator(seed, Stream.CROP, epoch, index).integers(0, len(framed) - crop + 1))
            framed = framed[start : start + crop]
        parts.append(framed)
    borders = np.cumsum([0, *(len(part) for part in parts)]).astype(np.int64)
    return Batch(np.concatenate(parts), borders)


def frame(residues: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A sequence between BOS and EOS."""
    framed = np.empty(len(residues) + 2, np.uint8)
    framed[0], framed[1:-1], framed[-1] = BOS, residues, EOS
    return framed


def causal_targets(batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions whose next token is predicted, and those tokens; B, Z, J and X are not predicted.

    BOS is one where it ends a backward reading.
    """
    follows = np.ones(len(batch.tokens), bool)
    follows[batch.cu_seqlens[1:] - 1] = False
    positions = np.flatnonzero(follows)
    targets = batch.tokens[positions + 1].astype(np.int64)
    scored = (targets == EOS) | (targets == BOS) | ((targets >= FIRST_RESIDUE) & (targets <= LAST_SCORED))
    return positions[scored], targets[scored]


def mask(batch: Batch, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Hide 15 % of the residues (80 % become mask, 10 % another residue, 10 % stay): tokens, sites, and their residues.

    A batch with a residue that can be scored has at least one site.
    """
    residue = (batch.tokens >= FIRST_RESIDUE) & (batch.tokens <= LAST_SCORED)
    candidates = np.flatnonzero(residue)
    count = min(len(candidates), max(1, round(MASKED_FRACTION * len(candidates))))
    sites = np.sort(rng.choice(candidates, count, replace=False)) if count else candidates
    targets = batch.tokens[sites].astype(np.int64)
    tokens = batch.tokens.copy()
    kind = rng.random(count)
    others = rng.integers(FIRST_RESIDUE, FIRST_RESIDUE + NUM_STANDARD, count)
    tokens[sites] = np.where(kind < 0.8, MASK, np.where(kind < 0.9, others, targets))
    return tokens, sites, targets
