"""Site-independent models of a family: the frequencies of the residues in each column of an alignment.

A column's frequencies are those of its weighted rows, mixed with pseudocounts that BLOSUM62 expects of the residues
seen there; a column with more kinds of residues gets more of them. So a rare column is not certain of anything, and a
residue that was never seen is likelier where its relatives stand.

Source: Henikoff and Henikoff 1996, CABIOS 12:135.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protperf.lm.alignment.alignment import GAP
from protperf.lm.alignment.substitution import substitution
from protperf.lm.alphabet import NUM_STANDARD

_PER_KIND = 5.0
"""Pseudocounts of a column for each kind of residue that was seen in it."""


def fit(codes: NDArray[np.uint8], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-probabilities of the twenty residues in each column [L, 20].

    Args:
        codes: [N, L], 0 to 19 and `GAP`, which counts for nothing.
        weights: of the rows [N].
    """
    counts = np.stack([np.bincount(column, weights, GAP + 1)[:NUM_STANDARD] for column in codes.T])
    total = counts.sum(1, keepdims=True)
    known = substitution()
    # A column of gaps alone has what is expected of any protein.
    seen = np.divide(counts, total, out=np.tile(known.background, (len(counts), 1)), where=total > 0)
    expected = seen @ known.conditional
    pseudocounts = _PER_KIND * np.maximum((counts > 0).sum(1, keepdims=True), 1)
    return np.log((counts + pseudocounts * expected) / (total + pseudocounts))


def conservation(log_probs: NDArray[np.floating]) -> NDArray[np.float64]:
    """How far the residues of each column are from those of any protein, in nats: relative entropies [L]."""
    entropies = (np.exp(log_probs) * (log_probs - np.log(substitution().background))).sum(1)
    # By rounding, a column of which nothing is known would be a little less than not conserved.
    return np.maximum(np.asarray(entropies, np.float64), 0.0)


def log_odds(log_probs: NDArray[np.floating]) -> NDArray[np.float32]:
    """Scores for placing sequences [L, 21]: residues in columns against those of any protein; others fit everywhere."""
    odds = log_probs - np.log(substitution().background)
    return np.pad(odds, ((0, 0), (0, 1))).astype(np.float32)
