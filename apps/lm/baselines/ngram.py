"""Interpolated n-grams of residues: unigrams are those of order 1.

The probability of symbol x after the context c, the last n - 1 symbols, is that of the shorter context c' corrected by
what was counted,

    p_n(x given c) = (count(c x) + m_n p_{n-1}(x given c')) / (count(c) + m_n),

down to p_0, which is uniform. m_n is the number of observations from which on counts outweigh the shorter context. It
is chosen for each order by the deleted estimate: the likelihood of every symbol when it is left out of the counts.

Source: MacKay and Peto 1995, Natural Language Engineering 1:289 (the form); Jelinek and Mercer 1980 (interpolation by
held-out data).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.lm.alphabet import EOS, FIRST_RESIDUE, NUM_STANDARD, VOCAB_SIZE

NUM_SYMBOLS = NUM_STANDARD + 2
"""The twenty residues; any other letter; and the border, which is predicted as the end of a sequence."""
MAX_ORDER = 5
"""The table of order 5 takes 20 MB, that of order 6 would take 450."""
OTHER, BORDER = NUM_STANDARD, NUM_STANDARD + 1
_STRENGTHS = 10.0 ** np.arange(-1, 6.01, 0.25)
_OTHER_LETTERS = np.arange(FIRST_RESIDUE + NUM_STANDARD, VOCAB_SIZE)
_NEVER = -60.0
"""Log-probability of the start and of masks, which do not belong to a sequence."""


def symbols_of(tokens: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Symbols of tokens: special tokens are the border, ambiguous and rare letters one symbol."""
    return _SYMBOLS[tokens]


_SYMBOLS = np.full(VOCAB_SIZE, OTHER, np.int64)
_SYMBOLS[:FIRST_RESIDUE] = BORDER
_SYMBOLS[FIRST_RESIDUE : FIRST_RESIDUE + NUM_STANDARD] = np.arange(NUM_STANDARD)


def count(batches: Iterable[io.Batch], order: int) -> NDArray[np.int64]:
    """How often each symbol follows each context in some batches, as `count_packed`."""
    found = np.zeros((NUM_SYMBOLS ** (order - 1), NUM_SYMBOLS), np.int64)
    for batch in batches:
        found += count_packed(batch.tokens, batch.offsets, order)
    return found


def count_packed(tokens: NDArray[np.uint8], offsets: NDArray[np.int64], order: int) -> NDArray[np.int64]:
    """How often each symbol follows each context [NUM_SYMBOLS ** (order - 1), NUM_SYMBOLS].

    Before a sequence stand borders, so its first residues have contexts of their own; its end is counted too. Shapes:
    tokens [T], offsets [R+1].
    """
    gap = order  # the end of one sequence, and the borders before the next
    lengths = np.diff(offsets)
    text = np.full(len(tokens) + gap * (len(lengths) + 1), BORDER, np.int64)
    starts = offsets[:-1] + gap * (np.arange(len(lengths)) + 1)
    places = np.repeat(starts - offsets[:-1], lengths) + np.arange(len(tokens))
    text[places] = symbols_of(tokens)
    predicted = np.concatenate([places, starts + lengths])
    counts = np.bincount(rolling(text, order)[predicted], minlength=NUM_SYMBOLS**order)
    return counts.astype(np.int64, copy=False).reshape(-1, NUM_SYMBOLS)


def rolling(symbols: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """For each place, the number that the last `length` symbols write in base NUM_SYMBOLS, its own the last digit."""
    code = np.zeros(len(symbols), np.int64)
    for back in range(length):
        code[back:] += symbols[: len(symbols) - back] * NUM_SYMBOLS**back
    return code


def fit(counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], list[float]]:
    """Log-probabilities of the symbols after each context, as `counts`, and the strength m of each order."""
    levels = [counts]
    while len(levels[0]) > 1:
        # Dropping the first symbol of the contexts.
        levels.insert(0, levels[0].reshape(NUM_SYMBOLS, -1).sum(0).reshape(-1, NUM_SYMBOLS))
    probabilities = np.full((1, NUM_SYMBOLS), 1 / NUM_SYMBOLS)
    strengths = []
    for level in levels:
        shorter = np.tile(probabilities, (len(level) // len(probabilities), 1))
        strength = _strength(level, shorter)
        probabilities = (level + strength * shorter) / (level.sum(1, keepdims=True) + strength)
        strengths.append(strength)
    return np.log(probabilities), strengths


def _strength(counts: NDArray[np.int64], shorter: NDArray[np.float64]) -> float:
    """The strength with the largest likelihood of the deleted estimate."""
    context, symbol = np.nonzero(counts)
    seen, total, expected = counts[context, symbol], counts.sum(1)[context], shorter[context, symbol]
    found = [float(seen @ np.log((seen - 1 + strength * expected) / (total - 1 + strength))) for strength in _STRENGTHS]
    return float(_STRENGTHS[int(np.argmax(found))])


def over_vocabulary(log_probs: NDArray[np.floating]) -> NDArray[np.float32]:
    """Log-probabilities over the vocabulary [.., VOCAB_SIZE] from those of symbols; other letters share theirs."""
    found = np.full((*log_probs.shape[:-1], VOCAB_SIZE), _NEVER, np.float32)
    found[..., FIRST_RESIDUE : FIRST_RESIDUE + NUM_STANDARD] = log_probs[..., :NUM_STANDARD]
    found[..., _OTHER_LETTERS] = log_probs[..., OTHER, None] - np.log(len(_OTHER_LETTERS))
    found[..., EOS] = log_probs[..., BORDER]
    return found
