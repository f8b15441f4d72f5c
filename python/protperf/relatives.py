"""Related protein sequences in large sets: clusters, numbers of relatives, and the nearest of another set.

Two sequences are relatives at an identity when an alignment of them has at least that share of identical residues in
its columns and covers 80 % of the shorter one, so a fragment is a relative of the whole. The search is native, threaded
and takes about 12 bytes of memory per residue: candidates share words of six or seven residues, and a local alignment
(BLOSUM62, gaps 11 + 1, in a band) decides about each. Every pair that it calls related is related, and the number of
threads changes no answer.

It misses pairs that share no two words near one diagonal: few at an identity of 0.7 and above, at least one in six
of the sequences that have a relative at 0.5 in a corpus of 100,000 proteins, and most below 0.4. In a large family,
where words are common, it looks at the rarest words of a sequence alone, and `cluster` aligns a sequence with the 24
best candidates among those before it. NumPy is imported when a function is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protperf import _native
from protperf.threads import num_threads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Packed = tuple[NDArray[np.uint8], NDArray[np.int64]]

__all__ = ["cluster", "count_relatives", "nearest"]


def cluster(sequences: Packed, identity: float) -> NDArray[np.int64]:
    """The cluster of each sequence [R], as the smallest index of a member.

    Whoever is related to one member belongs to the cluster (single linkage), so no relatives that were found are in two
    clusters, and two members may be far apart, with a chain of relatives between them.

    Args:
        sequences: tokens [T] uint8 and offsets [R+1] int64, as `protperf.io.Batch` has them.
        identity: from 0.3 to 1.

    Raises:
        ConfigError: another identity, or 2^32 tokens or more; ShapeError: offsets that are not in order;
        DtypeError: arrays of other types.
    """
    import numpy as np

    return np.frombuffer(_native.cluster_sequences(sequences, identity, num_threads()), np.uint32).astype(np.int64)


def count_relatives(sequences: Packed, identity: float) -> NDArray[np.int64]:
    """How many relatives each sequence has [R], itself and its equals counted; arguments and errors as `cluster`.

    One in that number is the weight that makes a crowd of close relatives count as one sequence.
    """
    import numpy as np

    found = _native.count_sequence_relatives(sequences, identity, num_threads())
    return np.frombuffer(found, np.uint32).astype(np.int64)


def nearest(queries: Packed, targets: Packed, identity: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The nearest relative of each query [Q] among the targets: its index, and its identity; -1 and NaN without one.

    Arguments and errors as `cluster`.
    """
    import numpy as np

    indices, identities = _native.nearest_sequences(queries, targets, identity, num_threads())
    return np.frombuffer(indices, np.int64), np.frombuffer(identities, np.float64)
