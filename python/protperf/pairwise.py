"""Pairwise models of a family (Potts models, direct couplings): columns of an alignment and pairs of columns.

The probability of a row x grows with exp(sum_i h_i(x_i) + sum_{i<j} J_ij(x_i, x_j)), with a field h for each residue
of a column and a coupling J for each pair of residues of two columns. The model is fitted by pseudo-likelihood: each
column is predicted from all others, natively and on every thread. NumPy is imported when a function is called.

Source: Ekeberg et al. 2014, doi:10.1016/j.jcp.2014.07.024; Hopf et al. 2017, doi:10.1038/nbt.3769.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from protperf import _native
from protperf.errors import OutOfMemory, ShapeError
from protperf.threads import num_threads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["NUM_STATES", "Given", "Pairwise", "fit"]

Given: TypeAlias = Literal["others", "before", "after"]

NUM_STATES = 20
"""Residues of a column, codes 0 to 19; every higher code is a gap."""

_COLUMNS_PER_THREAD = 12
"""Columns that are fitted between two reports of progress: a multiple of the three that one thread fits together."""


@dataclass(frozen=True, slots=True, eq=False)
class Pairwise:
    """A pairwise model in the zero-sum gauge: fields and couplings have mean 0 over the residues of each column.

    A gap, or any other code from `NUM_STATES` on, has neither field nor couplings.

    Attributes:
        fields: [L, 20] float32.
        couplings: [L, L, 20, 20] float32; `couplings[i, j, a, b]` equals `couplings[j, i, b, a]`, and is 0 for i = j.
    """

    fields: NDArray[np.float32]
    couplings: NDArray[np.float32]

    def conditionals(self, codes: NDArray[np.uint8], given: Given = "others") -> NDArray[np.float64]:
        """Log-probabilities of the residues of each column [L, 20] given the codes [L] in others.

        Args:
            given: `others` are all of them; `before` and `after` those on one side of a column, with gaps on the other.
        """
        import numpy as np

        logits = self.fields.astype(np.float64)
        for column in np.flatnonzero(codes < NUM_STATES):
            seen_by = {"others": slice(None), "before": slice(column + 1, None), "after": slice(column)}[given]
            logits[seen_by] += self.couplings[column, seen_by, codes[column]]
        logits -= logits.max(1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(1, keepdims=True))
        return logits

    def energy_difference(self, codes: NDArray[np.uint8], columns: NDArray[np.int64], new: NDArray[np.int64]) -> float:
        """Log-odds in nats of new residues in different columns [K], against the codes [L] as they are."""
        changed = codes.copy()
        changed[columns] = new
        return self._energy(changed, columns) - self._energy(codes, columns)

    def _energy(self, codes: NDArray[np.uint8], columns: NDArray[np.int64]) -> float:
        """The terms in which these columns are."""
        import numpy as np

        columns, others = columns[codes[columns] < NUM_STATES], np.flatnonzero(codes < NUM_STATES)
        pairs = self.couplings[columns[:, None], others, codes[columns, None], codes[others]]
        # A pair of two of these columns is there twice.
        pairs = pairs * np.where(np.isin(others, columns), 0.5, 1.0)
        return float(self.fields[columns, codes[columns]].sum(dtype=np.float64) + pairs.sum())

    def contacts(self) -> NDArray[np.float64]:
        """How strongly each two columns are coupled [L, L]: norms of their couplings, less what either has on average.

        Source: Dunn et al. 2008, doi:10.1093/bioinformatics/btm604 (average product correction).
        """
        import numpy as np

        norms = np.stack([np.linalg.norm(block, axis=(1, 2)) for block in self.couplings]).astype(np.float64)
        total = norms.sum()
        return norms - np.outer(norms.sum(0), norms.sum(0)) / total if total else norms


def fit(
    codes: NDArray[np.uint8],
    weights: NDArray[np.floating],
    *,
    field_penalty: float = 0.01,
    coupling_penalty: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> Pairwise:
    """Fit a pairwise model to the rows of an alignment.

    Memory: 1.6 kB for each of the L x L pairs. Time: some 30 steps of 40 N L^2 additions, about 100 seconds of one core
    for 8,000 rows of 263 columns. The numbers are the same for any number of threads.

    Shapes: codes [N, L] uint8, residues 0 to 19, every higher code a gap, which is missing data; weights [N], as
    `protperf.alignment.row_weights` has them.

    Args:
        field_penalty, coupling_penalty: what the square of a field and of a coupling costs, in nats; None is
            0.01 * 19 * (L - 1), which grows with the number of couplings that a residue has.
        progress: called with the number of columns that were just fitted.

    Raises:
        ShapeError: arguments that disagree; ConfigError: a penalty or a weight that is negative or not finite;
        DtypeError: codes of another type; OutOfMemory: more columns than this machine has memory for.
    """
    import numpy as np

    if codes.ndim != 2:
        raise ShapeError(f"codes must be [N,L], not {codes.ndim} axes")
    num_columns = codes.shape[1]
    if coupling_penalty is None:
        coupling_penalty = 0.01 * (NUM_STATES - 1) * (num_columns - 1)
    _check_memory(num_columns)
    weights = np.ascontiguousarray(weights, np.float32)
    fields = np.empty((num_columns, NUM_STATES), np.float32)
    couplings = np.empty((num_columns, num_columns, NUM_STATES, NUM_STATES), np.float32)
    step = _COLUMNS_PER_THREAD * num_threads()
    for first in range(0, max(num_columns, 1), step):
        part = slice(first, first + step)
        penalties = (field_penalty, coupling_penalty)
        _native.fit_pairwise_columns(codes, weights, first, fields[part], couplings[part], penalties, num_threads())
        if progress:
            progress(len(fields[part]))
    # The two couplings of a pair differ a little. Where neither has an effect on the average row, nor has their mean;
    # the zero-sum gauge follows, in which a second mean takes off no more than rounding.
    for shares in (_shares(codes, weights), np.full(fields.shape, 1 / NUM_STATES)):
        _center(fields, couplings, shares)
        _symmetrize(couplings)
    return Pairwise(fields, couplings)


def _check_memory(num_columns: int) -> None:
    """Refuse what cannot fit: the memory itself would be granted, and missed when it is used.

    Raises:
        OutOfMemory: naming what is needed and what there is.
    """
    needed = (num_columns * NUM_STATES) ** 2 * 4
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return
    if needed > there:
        text = f"couplings of {num_columns} columns need {needed / 2**30:.1f} GiB of memory"
        raise OutOfMemory(f"{text} and this machine has {there / 2**30:.1f}; fit fewer columns")


def _shares(codes: NDArray[np.uint8], weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """The share of each residue among the residues of its column [L, 20]; equal ones in a column of gaps."""
    import numpy as np

    counts = np.stack([np.bincount(column, weights, 256)[:NUM_STATES] for column in codes.T])
    totals = counts.sum(1, keepdims=True)
    return np.divide(counts, totals, out=np.full(counts.shape, 1 / NUM_STATES), where=totals > 0)


def _center(fields: NDArray[np.float32], couplings: NDArray[np.float32], shares: NDArray[np.float64]) -> None:
    """Give couplings the mean 0 over the residues of either column, each counted by its share [L, 20].

    What they say of one column alone goes to its fields: no probability of a row without gaps changes.
    """
    import numpy as np

    for field, share, blocks in zip(fields, shares, couplings, strict=True):
        exact = blocks.astype(np.float64)
        own = np.einsum("jab,jb->ja", exact, shares)
        exact -= own[:, :, None]
        exact -= np.einsum("jab,a->jb", exact, share)[:, None]
        blocks[...] = exact
        field += own.sum(0)
        field -= field.mean()


def _symmetrize(couplings: NDArray[np.float32]) -> None:
    """Give each pair of columns the mean of what was found from either side."""
    for i in range(len(couplings)):
        mean = 0.5 * (couplings[i, i:] + couplings[i:, i].swapaxes(1, 2))
        couplings[i, i:] = mean
        couplings[i:, i] = mean.swapaxes(1, 2)
