"""How a token is drawn: temperature, the most probable ones, repeats that are refused, and numbers from a counter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protperf.lm.alphabet import FIRST_RESIDUE, NUM_STANDARD, VOCAB_SIZE

MAX_UNIT = 4
"""Residues of the longest unit whose repeats are counted."""

Floats = NDArray[np.float64]
Allowed = NDArray[np.bool_]

STANDARD: Allowed = (np.arange(VOCAB_SIZE) >= FIRST_RESIDUE) & (np.arange(VOCAB_SIZE) < FIRST_RESIDUE + NUM_STANDARD)
"""The twenty residues, the only ones that are drawn."""


class Draws:
    """Uniform numbers in [0, 1) that are a function of seed, prompt, number of the sequence and attempt.

    They come from NumPy's Philox, whose key and counter are these: NumPy promises that its bits never change.
    """

    def __init__(self, seed: int, prompt: int, index: int, attempt: int) -> None:
        key = np.array([seed, index], np.uint64)
        # The first word counts the draws.
        self._bits = np.random.Philox(key=key, counter=np.array([0, attempt, prompt, 0], np.uint64))

    def next(self) -> float:
        """The next number."""
        return (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def permutation(self, count: int) -> list[int]:
        """The numbers below `count` in random order (Fisher and Yates)."""
        order = list(range(count))
        for i in range(count - 1, 0, -1):
            j = int(self.next() * (i + 1))
            order[i], order[j] = order[j], order[i]
        return order


def probabilities(
    log_probs: NDArray[np.floating], allowed: Allowed, temperature: float, top_k: int | None, top_p: float
) -> Floats:
    """What tokens are drawn with: [.., V], each row with sum 1.

    Tokens that are not allowed are out first, then the temperature counts, then `top_k`, then `top_p`: the fewest most
    probable tokens whose probabilities, renormalised at each stage, sum to at least `top_p`. Of equally probable tokens
    the lower id comes first.

    Shapes: log_probs and allowed [.., V]; each row allows a token.

    Source: top-p is nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751.
    """
    scaled = np.where(allowed, log_probs.astype(np.float64), -np.inf)
    scaled -= scaled.max(-1, keepdims=True)
    if temperature == 0:
        return np.asarray(np.arange(scaled.shape[-1]) == scaled.argmax(-1)[..., None], np.float64)
    weights = np.exp(scaled / temperature)
    order = np.argsort(-weights, axis=-1, kind="stable")
    ranked = np.take_along_axis(weights, order, -1)
    if top_k is not None:
        ranked[..., top_k:] = 0
    ranked /= ranked.sum(-1, keepdims=True)
    if top_p < 1:
        before = np.cumsum(ranked, -1) - ranked
        ranked[before >= top_p] = 0
    ranked /= ranked.sum(-1, keepdims=True)
    kept = np.empty_like(ranked)
    np.put_along_axis(kept, order, ranked, -1)
    return kept


def pick(chances: Floats, numbers: Floats) -> NDArray[np.int64]:
    """The token [..] of each row [.., V] that a uniform number [..] falls on, tokens in the order of their ids."""
    ends = np.cumsum(chances, -1)
    found = (ends <= (numbers * ends[..., -1])[..., None]).sum(-1)
    # Rounding may put the number on the end of the last token that can be drawn.
    last = chances.shape[-1] - 1 - (chances > 0)[..., ::-1].argmax(-1)
    return np.asarray(np.minimum(found, last), np.int64)


def forbidden(tokens: Sequence[int], place: int, most: int) -> set[int]:
    """Residues that would, at `place`, make a unit of 1 to 4 residues stand more than `most` times in a row there.

    What does not stand yet (`place` may be one past the end) or is a mask is equal to nothing. At most eight residues
    are forbidden: each is equal to one that stands 1 to 4 positions away.

    Args:
        most: 0 forbids nothing.
    """
    if most == 0:
        return set()
    found = set()
    for unit in range(1, MAX_UNIT + 1):
        for near in (place - unit, place + unit):
            if 0 <= near < len(tokens) and tokens[near] >= FIRST_RESIDUE and tokens[near] not in found:
                residue = tokens[near]
                # The residue at `near` and the one at `place` are a pair; `most` units and more have so many pairs.
                if _pairs(tokens, place, residue, unit, max(near, place)) >= unit * most:
                    found.add(residue)
    return found


def _pairs(tokens: Sequence[int], place: int, residue: int, unit: int, through: int) -> int:
    """Positions in a row, one of them `through`, that are equal to the one a unit before, with `residue` at `place`."""

    def at(position: int) -> int:
        if position == place:
            return residue
        return tokens[position] if 0 <= position < len(tokens) else -1

    def is_pair(position: int) -> bool:
        return at(position) >= FIRST_RESIDUE and at(position) == at(position - unit)

    first = last = through
    while is_pair(first - 1):
        first -= 1
    while is_pair(last + 1):
        last += 1
    return last - first + 1
