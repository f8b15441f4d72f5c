"""All records of sequence files in memory, with their names: for questions about a set as a whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.lm.data.store import Listing, TokenStore


@dataclass(frozen=True, slots=True)
class Records:
    """Shapes: tokens [T] uint8, offsets [R+1] int64; ids and descriptions [R]; flagged counts flags by name."""

    ids: list[str]
    descriptions: list[str]
    tokens: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    flagged: dict[str, int]
    rejected: int

    def __len__(self) -> int:
        return len(self.ids)

    def sequence(self, index: int) -> NDArray[np.uint8]:
        """Tokens of one record."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def first_places(self) -> NDArray[np.int64]:
        """Places of the records that are the first with their residues."""
        return np.flatnonzero(self.first_equal() == np.arange(len(self)))

    def select(self, places: NDArray[np.int64]) -> Records:
        """The records of some places, which ascend."""
        lengths = np.diff(self.offsets)
        kept = np.isin(np.arange(len(self)), places)
        return dataclasses.replace(
            self,
            ids=[self.ids[i] for i in places],
            descriptions=[self.descriptions[i] for i in places],
            tokens=self.tokens[np.repeat(kept, lengths)],
            offsets=np.concatenate([[0], np.cumsum(lengths[kept])]).astype(np.int64),
        )

    @property
    def store(self) -> TokenStore:
        """The sequences, empty ones among them."""
        return TokenStore.packed(self.tokens, self.offsets, self.rejected)

    def first_equal(self) -> NDArray[np.int64]:
        """The first record with the same residues as each [R]."""
        first: dict[bytes, int] = {}
        return np.array([first.setdefault(self.sequence(i).tobytes(), i) for i in range(len(self))], np.int64)


def read_records(
    paths: Sequence[str],
    residues: str = "map",
    warn: Callable[[str], None] = lambda text: None,
    *,
    seq_col: str | None = None,
    id_col: str | None = None,
    listing: Listing = lambda reader: reader,
) -> Records:
    """Read files; errors are those of `protperf.io.read_tokens`.

    Args:
        warn: called with each remark of the reader.
        seq_col: the files are tables with their sequences in this column, and their ids in `id_col`.
        listing: looks at the batches of the reader as they pass, such as `RejectList.reading`.
    """
    reader = listing(io.read_tokens(list(paths), residues=residues, seq_col=seq_col, id_col=id_col))
    ids: list[str] = []
    descriptions: list[str] = []
    tokens, lengths = [np.empty(0, np.uint8)], [np.empty(0, np.int64)]
    for batch in reader:
        ids += batch.ids
        descriptions += batch.descriptions
        tokens.append(batch.tokens)
        lengths.append(batch.lengths)
    for text in reader.warnings:
        warn(text)
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    summary = reader.summary
    return Records(ids, descriptions, np.concatenate(tokens), offsets, dict(summary.flagged), summary.rejected)
