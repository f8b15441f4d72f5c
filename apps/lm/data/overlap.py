"""How much of one set of sequences is known from another: equal sequences, and relatives by identity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from protperf.lm.data.cluster import nearest
from protperf.lm.data.records import Records

IDENTITIES = (0.5, 0.7, 0.9)
"""Identities of a report."""


@dataclass(frozen=True, slots=True)
class OverlapRow:
    """How many sequences of a set have a relative of at least this identity in another (`equal`: the same residues)."""

    relation: str
    sequences: int
    total: int
    share: float


def overlap(known: Records, asked: Records, identities: tuple[float, ...] = IDENTITIES) -> list[OverlapRow]:
    """How much of `asked` has a relative in `known`: equal sequences first, then by rising identity.

    What counts as a relative, and what the search misses, is said in `protperf.relatives`.
    """
    residues = {known.sequence(i).tobytes() for i in range(len(known))}
    equal = np.array([asked.sequence(i).tobytes() in residues for i in range(len(asked))], bool)
    _, found = nearest(asked.store, known.store, min(identities))
    best = np.where(equal, 1.0, np.nan_to_num(found))
    counts = {"equal": int(equal.sum()), **{f"{x:g}": int((best >= x).sum()) for x in sorted(identities)}}
    total = len(asked)
    return [OverlapRow(name, count, total, count / max(total, 1)) for name, count in counts.items()]
