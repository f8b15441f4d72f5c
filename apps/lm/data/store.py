"""Sequences in memory: one flat array of residue tokens and the offsets of its sequences."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.errors import DataError
from protperf.lm.alphabet import FIRST_RESIDUE, NUM_STANDARD


@dataclass(frozen=True, slots=True)
class TokenStore:
    """Shapes: tokens [T] uint8, offsets [R+1] int64; sequence r is `tokens[offsets[r]:offsets[r+1]]`.

    `rejected` counts the records that the residue policy left out of the files. `fingerprint` is the SHA-256 of tokens
    and offsets: what a resumed run must find again.
    """

    tokens: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    rejected: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.offsets.astype("<i8").tobytes())
        digest.update(self.tokens.tobytes())
        return digest.hexdigest()

    def sequence(self, index: int) -> NDArray[np.uint8]:
        """Residue tokens of one sequence."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def select(self, indices: NDArray[np.int64]) -> TokenStore:
        """The sequences of some indices, copied."""
        lengths = self.lengths[indices]
        parts = [self.sequence(int(i)) for i in indices]
        tokens = np.concatenate(parts) if parts else np.empty(0, np.uint8)
        return TokenStore(tokens, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def unigram(self) -> NDArray[np.float64]:
        """Frequencies of the twenty residues [20], one added to each count."""
        counts = np.bincount(self.tokens, minlength=FIRST_RESIDUE + NUM_STANDARD).astype(np.float64)
        counts = counts[FIRST_RESIDUE : FIRST_RESIDUE + NUM_STANDARD] + 1
        return counts / counts.sum()


def read_store(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    residues: str = "map",
    tell: Callable[[str], None] = lambda text: None,
    *,
    seq_col: str | None = None,
) -> TokenStore:
    """Read every non-empty record of sequence files, or of tables with their sequences in the column `seq_col`.

    Args:
        tell: called with each remark of the reader: notes, warnings, and the number of records left out.

    Raises:
        DataError: no residue at all; FastaError, FileError: as `protperf.io.read_tokens`.
    """
    tokens, lengths = [], []
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    reader = io.read_tokens(paths, residues=residues, seq_col=seq_col)
    for batch in reader:
        tokens.append(batch.tokens)
        lengths.append(batch.lengths[batch.lengths > 0])
    _tell_of(reader, tell)
    if not tokens or not sum(len(part) for part in tokens):
        raise DataError(f"{listed(paths)}: holds no residues, there is nothing to train on")
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    return TokenStore(np.concatenate(tokens), offsets, reader.summary.rejected)


def listed(paths: Iterable[str | os.PathLike[str]]) -> str:
    """Files as an error names them."""
    return ", ".join(os.fspath(path) for path in paths)


def _tell_of(reader: io.Reader, tell: Callable[[str], None]) -> None:
    for text in reader.summary.notes:
        tell(f"note: {text}")
    for text in reader.warnings:
        tell(f"warning: {text}")


def split(store: TokenStore, fraction: float, seed: int) -> tuple[TokenStore, TokenStore]:
    """Training and validation part: each sequence goes by a checksum of its residues, so equal ones stay together.

    At least one sequence goes to each side.

    Raises:
        DataError: fewer than two distinct sequences.
    """
    marks = np.array([zlib.crc32(store.sequence(i).tobytes(), seed & 0xFFFFFFFF) for i in range(len(store))])
    distinct = np.unique(marks)
    if len(distinct) < 2:
        raise DataError("has fewer than two distinct sequences, none to hold out; name a file with --validate")
    line = min(max(round(fraction * 2**32), int(distinct[0]) + 1), int(distinct[-1]))
    held = marks < line
    return store.select(np.flatnonzero(~held)), store.select(np.flatnonzero(held))
