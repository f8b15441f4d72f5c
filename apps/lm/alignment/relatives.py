"""Rows of an alignment and their relatives: rows that agree in most columns, gaps counting as agreement."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protperf.lm.alignment.alignment import GAP

MAX_MEMBERS = 64
"""Rows that are left out of a fit at the most: some thousands of residues, enough to compare models by."""
LEAST_MEMBERS = 8
"""Rows that are left out at the least, where there are four times as many to choose from."""
_SHARE = 0.02
"""Share of the effective number of sequences that is left out beyond these at the most."""
_LONELY = 0.2
"""Weight from which a row is chosen first: its relatives go with it, and a fit without whole crowds is worse."""
_LEAST_KNOWN = 0.7
"""Share of the columns in which a row must have a residue to be left out."""


def held_out(
    codes: NDArray[np.uint8], weights: NDArray[np.float64], identity: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows to compare models by, and which rows are left for a fit [N].

    The rows are spread over the alignment, or over its rows of few relatives where there are enough of them. They and
    their relatives are left out of the fit; no row is chosen that is a relative of the query, the first row, or of
    another one that was chosen.

    Args:
        weights: one in the number of relatives of each row [N].
    """
    kept = np.ones(len(codes), bool)
    chosen: list[int] = []
    taken = relatives(codes, 0, identity)
    candidates = np.flatnonzero(((codes != GAP).mean(1) >= _LEAST_KNOWN) & ~taken)
    lonely = candidates[weights[candidates] >= _LONELY]
    if len(lonely) >= 4 * LEAST_MEMBERS:
        candidates = lonely
    number = min(MAX_MEMBERS, len(candidates) // 4, max(LEAST_MEMBERS, int(_SHARE * weights.sum())))
    if not number:
        return np.array(chosen, np.int64), kept
    for row in candidates[np.linspace(0, len(candidates) - 1, number).astype(np.int64)].tolist():
        if taken[row]:
            continue
        near = relatives(codes, row, identity)
        chosen.append(row)
        taken |= near
        kept &= ~near
    return np.array(chosen, np.int64), kept


def relatives(codes: NDArray[np.uint8], row: int, identity: float) -> NDArray[np.bool_]:
    """The rows that agree with one row in at least that share of the columns [N]."""
    return np.asarray((codes == codes[row]).sum(1) >= identity * codes.shape[1])
