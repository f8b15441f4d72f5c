"""Where the residues of a protein stand in a profile: global alignments with free ends, of many sequences at once.

With s(i, j) the score of residue i in column j, columns are taken in turn, and for all residues at once

    match(i, j)  = best(i - 1, j - 1) + s(i, j)
    delete(i, j) = max(best(i, j - 1) - open, delete(i, j - 1) - extend)
    base(i, j)   = max(match, delete)
    best(i, j)   = max(base(i, j), max over k < i of base(k, j) - open - (i - k - 1) extend),

the last of which is a running maximum of base(k, j) + k extend. An alignment may begin anywhere on the first row or
column and end anywhere on the last ones, so a domain is found in a longer protein and a fragment within a domain.

Source: Gotoh 1982, J. Mol. Biol. 162:705.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OPEN, EXTEND = 11 * 0.3176, 0.3176
"""Cost in nats of a gap's first residue, and of each further one: 11 and 1 in the units of BLOSUM62."""
LEAST_FIT = 0.25
"""Fit in nats per residue from which a protein is taken for a member; unrelated ones have about 0.1."""
_CELLS = 1 << 20
"""Cells of residues times columns that are filled together."""


@dataclass(slots=True)
class _Trace:
    """How each cell [columns, sequences, residues + 1] came about.

    Attributes:
        source: the residue where the insertion that ends here begins; the cell's own without one.
        is_deleted: `base` comes from `delete`; is_extended: `delete` comes from `delete`.
    """

    source: NDArray[np.int32]
    is_deleted: NDArray[np.bool_]
    is_extended: NDArray[np.bool_]


def place(sequences: Sequence[NDArray[np.uint8]], scores: NDArray[np.float32]) -> list[NDArray[np.int64]]:
    """The column of each residue [len] of each sequence; -1 where it stands in none.

    A sequence's answer does not depend on the others.

    Args:
        scores: of each letter in each column [columns, letters]; sequences hold indices of letters.
    """
    found: list[NDArray[np.int64]] = []
    for batch in _batches(sequences, len(scores)):
        found += _place(batch, scores)
    return found


def fit_of(sequence: NDArray[np.uint8], columns: NDArray[np.int64], scores: NDArray[np.float32]) -> float:
    """The scores of a placed sequence, gaps left out, per residue of the shorter of it and the profile."""
    inside = columns >= 0
    return float(scores[columns[inside], sequence[inside]].sum()) / max(1, min(len(sequence), len(scores)))


def score_of(sequence: NDArray[np.uint8], columns: NDArray[np.int64], scores: NDArray[np.float32]) -> float:
    """The score of a placed sequence in nats, gaps paid for; 0 where nothing is placed."""
    at = np.flatnonzero(columns >= 0)
    if not len(at):
        return 0.0
    column = columns[at]
    # At each end either what is left of the sequence or what is left of the profile is free, the longer of the two.
    ends = [min(at[0], column[0]), min(len(sequence) - 1 - at[-1], len(scores) - 1 - column[-1])]
    gaps = np.concatenate([np.diff(at) - 1, np.diff(column) - 1, ends])
    costs = OPEN + (gaps[gaps > 0] - 1) * EXTEND
    return float(scores[column, sequence[at]].sum() - costs.sum())


def _batches(sequences: Sequence[NDArray[np.uint8]], num_columns: int) -> list[list[NDArray[np.uint8]]]:
    batches: list[list[NDArray[np.uint8]]] = []
    longest = 0
    for sequence in sequences:
        longest = max(longest, len(sequence))
        if not batches or (len(batches[-1]) + 1) * (longest + 1) * num_columns > _CELLS:
            batches.append([])
            longest = len(sequence)
        batches[-1].append(sequence)
    return batches


def _place(sequences: list[NDArray[np.uint8]], scores: NDArray[np.float32]) -> list[NDArray[np.int64]]:
    lengths = np.array([len(sequence) for sequence in sequences])
    letters = np.zeros((len(sequences), lengths.max()), np.int64)
    for row, sequence in zip(letters, sequences, strict=True):
        row[: len(sequence)] = sequence
    trace, end_residue, end_column = _fill(letters, lengths, scores)
    columns = _traced(trace, end_residue, end_column, letters.shape)
    return [row[:length] for row, length in zip(columns, lengths, strict=True)]


def _fill(
    letters: NDArray[np.int64], lengths: NDArray[np.int64], scores: NDArray[np.float32]
) -> tuple[_Trace, NDArray[np.int64], NDArray[np.int64]]:
    """Fill all cells: the trace, and the residue and the column after which the best alignments end [sequences]."""
    count, width = letters.shape
    shape = (len(scores), count, width + 1)
    trace = _Trace(np.empty(shape, np.int32), np.empty(shape, bool), np.empty(shape, bool))
    places = np.arange(width + 1, dtype=np.int32)
    ramp = (EXTEND * places).astype(np.float32)
    sequence = np.arange(count)
    best, deleted = np.zeros((count, width + 1), np.float32), np.full((count, width + 1), -np.inf, np.float32)
    # The alignment that ends before the first column is empty.
    end_score, end_column = np.zeros(count, np.float32), np.zeros(count, np.int64)
    for column, by_letter in enumerate(scores):
        opened, extended = best - np.float32(OPEN), deleted - np.float32(EXTEND)
        deleted = np.maximum(opened, extended)
        base = np.zeros_like(best)
        base[:, 1:] = best[:, :-1] + by_letter[letters]
        trace.is_extended[column] = extended > opened
        trace.is_deleted[column] = deleted > base
        base[:, 1:] = np.maximum(base[:, 1:], deleted[:, 1:])
        best, trace.source[column] = _with_insertions(base, ramp, places)
        at_end = best[sequence, lengths]
        better = at_end > end_score
        end_score, end_column = np.where(better, at_end, end_score), np.where(better, column + 1, end_column)
    # After the last column, an alignment may end at any residue of its sequence.
    best[np.arange(width + 1) > lengths[:, None]] = -np.inf
    last = best.argmax(1)
    better = best[sequence, last] > end_score
    return trace, np.where(better, last, lengths), np.where(better, len(scores), end_column)


def _with_insertions(
    base: NDArray[np.float32], ramp: NDArray[np.float32], places: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """`best`, and the residue at which the insertion that ends in each cell begins."""
    raised = base + ramp
    highest = np.maximum.accumulate(raised, axis=1)
    begin = np.maximum.accumulate(np.where(raised == highest, places, 0), axis=1)
    best, source = base.copy(), np.empty(base.shape, np.int32)
    inserted = highest[:, :-1] - ramp[:-1] - np.float32(OPEN)
    source[:, 0] = 0
    source[:, 1:] = np.where(inserted > base[:, 1:], begin[:, :-1], places[1:])
    np.maximum(base[:, 1:], inserted, out=best[:, 1:])
    return best, source


def _traced(
    trace: _Trace, residue: NDArray[np.int64], end_column: NDArray[np.int64], shape: tuple[int, ...]
) -> NDArray[np.int64]:
    """The column of each residue, from the ends of the alignments back to their beginnings."""
    found = np.full(shape, -1, np.int64)
    sequence, in_deletion = np.arange(shape[0]), np.zeros(shape[0], bool)
    residue = residue.copy()
    for column in reversed(range(len(trace.source))):
        inside = (column < end_column) & (residue > 0)
        source = np.where(in_deletion, residue, trace.source[column][sequence, residue])
        is_deleted = in_deletion | trace.is_deleted[column][sequence, source]
        matched = inside & ~is_deleted & (source > 0)
        found[sequence[matched], source[matched] - 1] = column
        in_deletion = np.where(inside, is_deleted & trace.is_extended[column][sequence, source], False)
        residue = np.where(inside, np.where(is_deleted, source, source - 1), residue)
    return found
