"""BLOSUM62 as probabilities: what a residue is replaced by, and how frequent each is.

The scores s(a, b) of a matrix are log q(a, b) / (p(a) p(b)) in units of lambda nats, where q are the frequencies of
aligned pairs and p those of residues. As sum over b of q(a, b) = p(a), the scores alone determine both: p solves
sum over b of exp(lambda s(a, b)) p(b) = 1 for every a, and lambda is the number for which p sums to 1.

Source: Henikoff and Henikoff 1992, PNAS 89:10915; Yu, Wootton and Altschul 2003, PNAS 100:15688.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from protperf.lm.alignment.alignment import LETTERS

_MATRIX = "BLOSUM62"
_LOWEST, _HIGHEST = 0.2, 0.5
"""Between these lies lambda, which is near log(2) / 2: scores are written in half-bits."""


@dataclass(frozen=True, slots=True)
class Substitution:
    """Frequencies of the residues [20], and of b in the place of a [20 a, 20 b], whose rows sum to 1."""

    background: NDArray[np.float64]
    conditional: NDArray[np.float64]


@functools.cache
def substitution() -> Substitution:
    """The probabilities behind BLOSUM62, in the order of `LETTERS`."""
    # Biopython has no types.
    matrix = import_module("Bio.Align.substitution_matrices").load(_MATRIX)
    scores = np.array([[float(matrix[a][b]) for b in LETTERS] for a in LETTERS])

    def frequencies(unit: float) -> NDArray[np.float64]:
        return np.asarray(np.linalg.solve(np.exp(unit * scores), np.ones(len(scores))), np.float64)

    low, high = _LOWEST, _HIGHEST
    for _ in range(60):
        middle = 0.5 * (low + high)
        # The larger the unit, the rarer residues must be for their pairs to sum to 1.
        low, high = (middle, high) if frequencies(middle).sum() > 1 else (low, middle)
    background = frequencies(low)
    return Substitution(background, np.exp(low * scores) * background)
