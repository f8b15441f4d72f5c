"""Rows of an alignment and their relatives: rows that agree in most columns, gaps counting as agreement."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protperf.lm.alignment.alignment import GAP

MAX_MEMBERS = 64
"""Rows that are left out of a fit at the most: some thousands of residues, enough to compare models by."""
_SHARE = 0.02
"""Share of the effective number of sequences that is left out at the most."""
_LEAST_KNOWN = 0.7
"""Share of the columns in which a row must have a residue to be left out."""


def held_out(
    codes: NDArray[np.uint8], weights: NDArray[np.float64], identity: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows to compare models by, and which rows are left for a fit [N].

    The rows are spread over the alignment. They and their relatives are left out of the fit; no row is chosen that is
    a relative of the query, the first row, or of another one that was chosen.

    Args:
        weights: one in the number of relatives of each row [N].
    """
    number = min(MAX_MEMBERS, int(_SHARE * weights.sum()))
    kept = np.ones(len(codes), bool)
    chosen: list[int] = []
    candidates = np.flatnonzero((codes != GAP).mean(1) >= _LEAST_KNOWN)
    if not number or not len(candidates):
        return np.array(chosen, np.int64), kept
    taken = relatives(codes, 0, identity)
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
