"""What counting three residues in a row gives on the held-out sequences: a floor that a model should be well below."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from protperf.lm.alphabet import NUM_STANDARD
from protperf.lm.baselines import ngram
from protperf.lm.data.cluster import packed
from protperf.lm.data.store import TokenStore

_ORDER = 3
_MAX_RESIDUES = 1 << 22
"""Residues of a part that are counted: enough for 8,000 trigrams, in a second and 200 MB."""


def trigram_perplexity(train: TokenStore, held: TokenStore) -> float:
    """The perplexity of the twenty residues of `held` by interpolated trigrams of `train`; NaN without any."""
    log_probs, _ = ngram.fit(_counts(train))
    found = _counts(held)[:, :NUM_STANDARD]
    return math.exp(-(found * log_probs[:, :NUM_STANDARD]).sum() / found.sum()) if found.any() else math.nan


def _counts(store: TokenStore) -> NDArray[np.int64]:
    """Of the first sequences of a store."""
    first = int(np.searchsorted(np.cumsum(store.lengths), _MAX_RESIDUES)) + 1
    return ngram.count_packed(*packed(store.select(np.arange(min(len(store), first)))), _ORDER)
