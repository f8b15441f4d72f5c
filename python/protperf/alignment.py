"""What the columns of an alignment say: how much each row counts.

An alignment is a matrix of codes [N,L] uint8: one row per sequence, one column per position, a residue or a gap each.
NumPy is imported when a function is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protperf import _native
from protperf.threads import num_threads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["row_weights"]


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
