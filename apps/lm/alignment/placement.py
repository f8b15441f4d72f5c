"""Which proteins stand in the columns of a profile, in the units of BLOSUM62: costs of gaps, and how well one fits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protperf import alignment
from protperf.alignment import Placed

OPEN, EXTEND = 11 * 0.3176, 0.3176
"""Cost in nats of a gap's first residue, and of each further one: 11 and 1 in the units of BLOSUM62."""
LEAST_FIT = 0.25
"""Fit in nats per residue from which a protein is taken for a member; unrelated ones have about 0.1."""


def place(sequences: Sequence[NDArray[np.uint8]], scores: NDArray[np.float32]) -> list[Placed]:
    """`protperf.alignment.place` by these costs."""
    return alignment.place(sequences, scores, gap_open=OPEN, gap_extend=EXTEND)


def fit_of(sequence: NDArray[np.uint8], columns: NDArray[np.int32], scores: NDArray[np.float32]) -> float:
    """The scores of a placed sequence, gaps left out, per residue of the shorter of it and the profile."""
    inside = columns >= 0
    return float(scores[columns[inside], sequence[inside]].sum()) / max(1, min(len(sequence), len(scores)))
