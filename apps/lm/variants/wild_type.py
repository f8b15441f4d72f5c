"""The sequence that variants change, and how its residues are numbered."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.errors import FastaError
from protperf.lm.alphabet import FIRST_RESIDUE, LAST_SCORED
from protperf.lm.shared_options import ReadingOptions
from protperf.lm.source import only_record


@dataclass(frozen=True, slots=True)
class WildType:
    """Residues as tokens [L], and the number of the first of them.

    An index counts residues from 0; a position is what variants call a residue: the index plus `offset`.
    """

    id: str
    tokens: NDArray[np.uint8]
    offset: int = 1

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def sequence(self) -> str:
        """The residues as letters."""
        return io.decode(self.tokens)

    @property
    def last(self) -> int:
        """The position of the last residue."""
        return self.offset + len(self.tokens) - 1

    def letter(self, index: int) -> str:
        """The residue at an index."""
        return io.VOCABULARY[self.tokens[index]]

    def has_score(self, index: int) -> bool:
        """Whether the residue is one that models score: X and other ambiguous letters are context only."""
        return bool(FIRST_RESIDUE <= self.tokens[index] <= LAST_SCORED)


def read_wild_type(given: Any, offset: int = 1) -> WildType:
    """The wild type from residues as text, a `Bio.SeqRecord`, a pair (id, sequence), or a file with one record.

    Args:
        offset: position of the first residue in the numbering of the variants.

    Raises:
        DataError: no record or several, or one without residues; FastaError: an odd letter, or a gap, which would shift
            the numbering; FileError: the file cannot be read.
    """
    if isinstance(given, WildType):
        return dataclasses.replace(given, offset=offset)
    pair = isinstance(given, tuple) and len(given) == 2
    try:
        record = only_record([given] if pair else given, ReadingOptions(residues="strict"), "wt")
    except FastaError as error:
        raise FastaError(f"wild type: {error}", error.path, error.line, error.column) from error
    # A sequence that was typed has its place as id.
    name = "wt" if isinstance(given, str) and not record.path else record.id
    return WildType(name, record.tokens, offset)
