"""Alignments of a family: where proteins stand in its columns, and how much each row counts.

An alignment is a matrix of codes [N,L] uint8: one row per sequence, one column per position, a residue or a gap each.
NumPy is imported when a function is called.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protperf import _native
from protperf.threads import num_threads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Placed", "place", "row_weights"]


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A protein in the columns of a profile.

    Attributes:
        columns: of each residue [len] int32; -1 where it stands in none.
        score: of the alignment in nats, or what the scores are in, gaps paid for; 0 where nothing is placed.
    """

    columns: NDArray[np.int32]
    score: float


def place(
    sequences: Sequence[NDArray[np.uint8]], scores: NDArray[np.float32], *, gap_open: float, gap_extend: float
) -> list[Placed]:
    """Align sequences to a profile: global alignments with free ends, of the best score that there is.

    An alignment may begin and end anywhere on its edges, so a domain is found in a longer protein and a fragment within
    a domain. The place of a sequence does not depend on the others; all are placed natively and on every thread, and
    the number of threads changes nothing.

    Time: about a nanosecond for each residue in each column. Memory: a byte for each of them, for 16 sequences per
    thread together, or for one long sequence.

    Shapes: each sequence [len] uint8, the letters by which scores [L,K] float32 are indexed, K at most 256.

    Args:
        scores: of each letter in each column.
        gap_open, gap_extend: what the first residue of a gap costs, and each further one.

    Raises:
        ConfigError: a letter without a score; ShapeError, DtypeError: arrays of other axes or types; OutOfMemory: a
        sequence and a profile that are too long together for this machine.

    Source: Gotoh 1982, doi:10.1016/0022-2836(82)90398-9.
    """
    import numpy as np

    offsets = np.zeros(len(sequences) + 1, np.int64)
    np.cumsum([len(sequence) for sequence in sequences], out=offsets[1:])
    letters = np.concatenate([np.empty(0, np.uint8), *sequences])
    gaps = (gap_open, gap_extend)
    found = _native.place_in_profile((letters, offsets), np.ascontiguousarray(scores), gaps, num_threads())
    columns, totals = np.frombuffer(found[0], np.int32), np.frombuffer(found[1], np.float32)
    parts = itertools.pairwise(offsets.tolist())
    return [Placed(columns[low:high], score) for (low, high), score in zip(parts, totals.tolist(), strict=True)]


def row_weights(codes: NDArray[np.uint8], identity: float = 0.8) -> NDArray[np.float64]:
    """The weight of each row [N]: one in the number of rows that resemble it, itself included.

    Two rows resemble each other where at least the share `identity` of their columns hold the same code, a gap being a
    code like the others. The sum of the weights is the effective number of sequences. All pairs are compared, natively
    and on every thread; the number of threads changes nothing.

    Shapes: codes [N,L] uint8, contiguous; what a code means is the caller's business.

    Args:
        identity: above 0 and at most 1.

    Raises:
        ConfigError: another identity; ShapeError: codes without columns, of other axes or not contiguous;
        DtypeError: codes of another type.

    Source: Morcos et al. 2011, doi:10.1073/pnas.1111471108, equation 2.
    """
    import numpy as np

    return 1 / np.frombuffer(_native.count_alignment_neighbours(codes, identity, num_threads()), np.uint32)
