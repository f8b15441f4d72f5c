"""Which sequences of a training are held out for validation: any, or whole clusters of relatives.

A held-out sequence whose relative is trained on flatters the model. So relatives that were found stay in one part,
where there are clusters small enough to be held out and the set is small enough to be searched in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protperf.lm.data.cluster import cluster
from protperf.lm.data.store import TokenStore, checksums, split

IDENTITIES = (0.5, 0.7, 0.9)
"""Identities of relatives, tried in this order: a family may be one cluster at the first ones."""
MAX_RESIDUES = 1 << 22
"""Residues up to which clusters are looked for: about ten seconds of the processor."""


@dataclass(frozen=True, slots=True)
class HoldOut:
    """A training part and a held-out part, which has nothing if all is to be trained on.

    Attributes:
        identity: from which relatives were kept in one part; None where any sequences were held out.
        clusters: held out as a whole.
    """

    train: TokenStore
    held: TokenStore
    identity: float | None = None
    clusters: int = 0

    def extent(self) -> str:
        """How much is in each part, in words."""
        return f"{self.train.extent()} to train on, {self.held.extent()} to validate on"


def hold_out(store: TokenStore, fraction: float, seed: int, how: str) -> HoldOut:
    """Divide a set: equal sequences always stay together, relatives too if `how` is `clusters` and there is a way.

    Args:
        fraction: of the sequences to hold out; 0 holds out none.
        how: `random`, or `clusters`: those that fit into the held-out part, in a family its most distant members.

    Raises:
        DataError: fewer than two distinct sequences, none to hold out.
    """
    if fraction == 0:
        return HoldOut(store, store.select(np.empty(0, np.int64)))
    if how == "clusters" and store.num_residues <= MAX_RESIDUES:
        marks = checksums(store, seed)
        for identity in IDENTITIES:
            groups = cluster(store, identity)
            held = _some_clusters(groups, marks, fraction)
            if held is not None:
                train, rest = store.select(np.flatnonzero(~held)), store.select(np.flatnonzero(held))
                return HoldOut(train, rest, identity, len(np.unique(groups[held])))
    return HoldOut(*split(store, fraction, seed))


def _some_clusters(groups: NDArray[np.int64], marks: NDArray[np.uint32], fraction: float) -> NDArray[np.bool_] | None:
    """Which sequences to hold out [R]: clusters in random order, those that are too large for the rest left out.

    None if less than half of what is wanted would be held out, or everything.

    Args:
        groups: the cluster of each sequence, as the index of its first member [R].
        marks: random numbers, the same for equal sequences [R].
    """
    room = wanted = max(1, round(fraction * len(groups)))
    firsts, member_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    chosen = np.zeros(len(firsts), bool)
    for one in np.argsort(marks[firsts], kind="stable").tolist():
        if sizes[one] <= room:
            chosen[one] = True
            room -= int(sizes[one])
        if not room:
            break
    held = chosen[member_of]
    # Sequences too short to have relatives may still have equals.
    held |= np.isin(marks, marks[held])
    return None if 2 * held.sum() < wanted or held.all() else held
