"""Relatives among the sequences of a store: clusters, weights, and the nearest of another store.

What counts as a relative, and what the search misses, is said in `protperf.relatives`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protperf import relatives
from protperf.lm.data.store import TokenStore

WEIGHT_IDENTITY = 0.8
"""Identity of the neighbours that share a weight of one."""


def cluster(store: TokenStore, identity: float) -> NDArray[np.int64]:
    """The cluster of each sequence [R]: the index of its first member.

    Raises:
        ConfigError: an identity outside of 0.3 to 1, or a store of 2^32 residues or more.
    """
    return relatives.cluster(packed(store), identity)


def weights(store: TokenStore, identity: float = WEIGHT_IDENTITY) -> NDArray[np.float64]:
    """The weight of each sequence [R]: one in the number of its relatives, itself counted.

    Their sum is the effective number of sequences. Errors as `cluster`.
    """
    return 1.0 / relatives.count_relatives(packed(store), identity)


def nearest(queries: TokenStore, targets: TokenStore, identity: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The nearest relative of each query among the targets [Q]: its index and identity; -1 and NaN without one."""
    return relatives.nearest(packed(queries), packed(targets), identity)


def packed(store: TokenStore) -> relatives.Packed:
    """Tokens [T] and offsets [R+1] of a store, in memory."""
    parts = [tokens for _, tokens in store.blocks()]
    offsets = np.concatenate([[0], np.cumsum(store.lengths)]).astype(np.int64)
    return (np.concatenate(parts) if len(parts) > 1 else parts[0] if parts else np.empty(0, np.uint8)), offsets
