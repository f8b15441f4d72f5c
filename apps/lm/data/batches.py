"""Packed batches in an order that is a function of the seed: what step n sees never depends on how it got there.

An epoch is a permutation from a counter-based generator keyed by (seed, epoch). Sequences of similar length are put
together, up to a budget of tokens; a long sequence is cropped to a window that moves from epoch to epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protperf.lm.alphabet import BOS, EOS, FIRST_RESIDUE, LAST_SCORED, MASK, NUM_STANDARD
from protperf.lm.data.store import TokenStore

_POOL = 32
"""Batches among which lengths are sorted."""
MASKED_FRACTION = 0.15


@dataclass(frozen=True, slots=True)
class Batch:
    """Shapes: tokens [N] uint8 with BOS and EOS, cu_seqlens [num_sequences+1] int64."""

    tokens: NDArray[np.uint8]
    cu_seqlens: NDArray[np.int64]


def generator(*key: int) -> np.random.Generator:
    """Random numbers that are a function of a key."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def epoch_plan(lengths: NDArray[np.int64], budget: int, crop: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Indices of the sequences of each batch of an epoch.

    Args:
        lengths: residues of each sequence [R].
        budget: tokens a batch holds at most, BOS and EOS counted; a longer single sequence is a batch by itself.
        crop: tokens of a sequence that are used at most.
    """
    rng = generator(seed, 1, epoch)
    order = rng.permutation(len(lengths))
    sizes = np.minimum(lengths + 2, crop)
    pool = max(1, int(_POOL * budget / max(1.0, sizes.mean())))
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort(sizes[part], kind="stable")]
        total, first = 0, 0
        for i, size in enumerate(sizes[part].tolist()):
            if i > first and total + size > budget:
                batches.append(part[first:i])
                total, first = 0, i
            total += size
        batches.append(part[first:])
    return [batches[i] for i in rng.permutation(len(batches))]


def build(store: TokenStore, indices: NDArray[np.int64], crop: int, seed: int, epoch: int) -> Batch:
    """The packed tokens of some sequences, cropped for this epoch."""
    parts = []
    for index in indices.tolist():
        framed = frame(store.sequence(index))
        if len(framed) > crop:
            start = int(generator(seed, 2, epoch, index).integers(0, len(framed) - crop + 1))
            framed = framed[start : start + crop]
        parts.append(framed)
    borders = np.cumsum([0, *(len(part) for part in parts)]).astype(np.int64)
    return Batch(np.concatenate(parts), borders)


def frame(residues: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """BOS x EOS."""
    framed = np.empty(len(residues) + 2, np.uint8)
    framed[0], framed[1:-1], framed[-1] = BOS, residues, EOS
    return framed


def causal_targets(batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions whose next token is predicted, and those tokens; B, Z, J and X are no targets."""
    follows = np.ones(len(batch.tokens), bool)
    follows[batch.cu_seqlens[1:] - 1] = False
    positions = np.flatnonzero(follows)
    targets = batch.tokens[positions + 1].astype(np.int64)
    scored = (targets == EOS) | ((targets >= FIRST_RESIDUE) & (targets <= LAST_SCORED))
    return positions[scored], targets[scored]


def mask(batch: Batch, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Tokens with 15 % of the residues hidden (80 % mask, 10 % another residue, 10 % kept), the sites, their residues.

    Every batch has at least one site where it has a residue that can be scored.
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
