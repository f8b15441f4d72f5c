"""Sequences to train on: packed residue tokens, in memory or in a mapped file, and which of the sequences are used."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.errors import ConfigError, DataError
from protperf.lm.alphabet import FIRST_RESIDUE, NUM_STANDARD, VOCAB_SIZE
from protperf.lm.data.distinct import Distinct
from protperf.lm.data.token_file import (
    BLOCK_BYTES,
    TokenMap,
    TokenWriter,
    is_token_file,
    open_tokens,
    write_token_file,
)
from protperf.lm.shared_options import RejectOptions
from protperf.lm.storage import durable
from protperf.lm.tables.rejects import RejectList
from protperf.message import Argument, Message

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

Listing = Callable[[io.Reader], io.Reader]
"""Makes a reader of a reader, which looks at the batches as they pass."""
MAX_MEMORY_BYTES = 1 << 26
"""Tokens of the input up to which they are kept in memory; more go to a file."""
_COUNTED_BYTES = 1 << 18
"""Tokens that are counted at a time: NumPy makes eight bytes of each."""


class TokenStore:
    """Sequences of residue tokens, which may be some of those in a larger array.

    Shapes: lengths [R] int64. `rejected` counts the records that the residue policy left out of the input. All that
    looks at every token does so in blocks, so that a mapped file is never in memory as a whole.
    """

    def __init__(
        self,
        source: NDArray[np.uint8] | TokenMap,
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        rejected: int = 0,
    ) -> None:
        """Sequence r is `source[starts[r]:starts[r] + lengths[r]]`; starts ascend and sequences do not overlap."""
        self._source, self._starts, self.lengths, self.rejected = source, starts, lengths, rejected

    @classmethod
    def packed(cls, source: NDArray[np.uint8] | TokenMap, offsets: NDArray[np.int64], rejected: int = 0) -> TokenStore:
        """All sequences of an array: sequence r is `source[offsets[r]:offsets[r + 1]]`."""
        return cls(source, offsets[:-1], np.diff(offsets), rejected)

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def num_residues(self) -> int:
        return int(self.lengths.sum())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of offsets [R+1] and tokens [T], packed: what a resumed run must find again."""
        digest = hashlib.sha256(bytes(8))
        end = 0
        for start in range(0, len(self), BLOCK_BYTES // 8):
            ends = end + np.cumsum(self.lengths[start : start + BLOCK_BYTES // 8])
            digest.update(ends.astype("<i8").data)
            end = int(ends[-1])
        for _, tokens in self.blocks():
            digest.update(np.ascontiguousarray(tokens).data)
        return digest.hexdigest()

    def sequence(self, index: int) -> NDArray[np.uint8]:
        """Residue tokens of one sequence."""
        start = int(self._starts[index])
        return self._read(start, start + int(self.lengths[index]))

    def select(self, indices: NDArray[np.int64]) -> TokenStore:
        """The sequences of some indices, which ascend; their tokens stay where they are."""
        return TokenStore(self._source, self._starts[indices], self.lengths[indices])

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
        """Runs of sequences, and their tokens without what lies between them; about `BLOCK_BYTES` at a time."""
        first = 0
        while first < len(self):
            start = int(self._starts[first])
            # Sequences start at most BLOCK_BYTES apart, so that a block of a sparse selection is read in one piece too.
            last = max(first + 1, int(np.searchsorted(self._starts, start + BLOCK_BYTES)))
            lengths = self.lengths[first:last]
            offsets = self._starts[first:last] - start
            tokens = self._read(start, start + int(offsets[-1] + lengths[-1]))
            if len(tokens) != int(lengths.sum()):
                # Runs of tokens between the sequences, and in them, in turn.
                gaps = offsets - np.concatenate([[0], (offsets + lengths)[:-1]])
                tokens = tokens[np.repeat(np.tile([False, True], len(lengths)), np.stack([gaps, lengths], 1).ravel())]
            yield slice(first, last), tokens
            first = last

    def counts(self) -> NDArray[np.int64]:
        """How often each token of the vocabulary occurs [VOCAB_SIZE]."""
        counts = np.zeros(VOCAB_SIZE, np.int64)
        for _, block in self.blocks():
            for start in range(0, len(block), _COUNTED_BYTES):
                counts += np.bincount(block[start : start + _COUNTED_BYTES], minlength=VOCAB_SIZE)
        return counts

    def has_standard_residue(self) -> bool:
        """Whether any of the twenty residues occurs."""
        return bool(self.counts()[FIRST_RESIDUE : FIRST_RESIDUE + NUM_STANDARD].any())

    def extent(self) -> str:
        """How much it holds, in words."""
        return f"{len(self):,} sequence{'s' * (len(self) != 1)} ({self.num_residues:,} residues)"

    def unigram(self) -> NDArray[np.float64]:
        """Frequencies of the twenty residues [20], one added to each count."""
        counts = self.counts()[FIRST_RESIDUE : FIRST_RESIDUE + NUM_STANDARD].astype(np.float64) + 1
        return counts / counts.sum()

    def _read(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self._source.read(start, stop) if isinstance(self._source, TokenMap) else self._source[start:stop]


def read_store(
    paths: Paths,
    residues: str = "map",
    warn: Callable[[str], None] = lambda text: None,
    *,
    seq_col: str | None = None,
    folder: Path | None = None,
    listing: Listing = lambda reader: reader,
) -> TokenStore:
    """Read every non-empty record of sequence files, of tables with their sequences in the column `seq_col`, or a file
    that `write_tokens` wrote.

    Args:
        warn: called with each remark of the reader: notes, warnings, and the number of records left out.
        folder: if the tokens are too many for memory, they go to a temporary file in this directory, or in the nearest
            one above it that exists; None keeps all in memory.
        listing: looks at the batches of the reader as they pass, such as `RejectList.reading`.

    Raises:
        DataError: no residue at all, or a damaged token file; ConfigError: a token file and other files together;
        FastaError, FileError: as `protperf.io.read_tokens`.
    """
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    token_files = [path for path in paths if is_token_file(path)]
    if token_files and (len(paths) > 1 or seq_col is not None):
        text = "{path}: is a token file; train on it alone and without {seq_col}"
        raise ConfigError(Message(text, path=os.fspath(token_files[0]), seq_col=Argument("seq_col")))
    if token_files:
        mapped = open_tokens(token_files[0])
        store = TokenStore.packed(mapped, mapped.offsets, mapped.header.rejected)
        store.fingerprint = mapped.header.fingerprint
        return store
    reader = listing(io.read_tokens(paths, residues=residues, seq_col=seq_col))
    source, offsets = _collect(reader, folder and _existing(folder))
    _report(reader, warn)
    if len(offsets) == 1:
        raise DataError(f"{listed(paths)}: holds no residues, there is nothing to train on")
    return TokenStore.packed(source, offsets, reader.summary.rejected)


def write_tokens(
    fasta: Paths,
    out: str | os.PathLike[str],
    *,
    residues: str = "map",
    seq_col: str | None = None,
    dedup: bool = False,
    rejects: str | os.PathLike[str] | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> int:
    """Write the residues of sequence files to one file, which `train` takes in their place; returns the number of
    sequences.

    Such a file is mapped and not read into memory, so a corpus may be larger than memory. It is checked as a whole
    before each training, holds residues alone (no ids), and applies the residue policy once, when it is written.

    Args:
        out: replaced if it exists, once all is written.
        residues: `map`, `strict` or `skip`; see `protperf.io.read_tokens`.
        seq_col: the files are tables (CSV or TSV) with their sequences in this column.
        dedup: of equal sequences, keep the first alone.
        rejects: a table to write of the records that were left out, .tsv, .csv or .jsonl.
        warn: called with each remark of the reader: notes, warnings, and the number of records left out.

    Raises:
        DataError: no residues; ConfigError: `out` is a directory or one of the inputs; FastaError, FileError: as
        `protperf.io.read_tokens`, or a full disk.
    """
    paths = [fasta] if isinstance(fasta, (str, os.PathLike)) else list(fasta)
    if os.path.isdir(out):
        raise ConfigError(f"{os.fspath(out)}: is a directory; name a file")
    if any(os.path.exists(path) and os.path.exists(out) and os.path.samefile(path, out) for path in paths):
        raise ConfigError(f"{os.fspath(out)}: is one of the inputs, which would be replaced; name another file")
    left_out = RejectList(None if rejects is None else RejectOptions(rejects=Path(rejects)), [*paths, out])
    reader = left_out.reading(io.read_tokens(paths, residues=residues, seq_col=seq_col))
    distinct = Distinct() if dedup else None
    header = write_token_file(reader, Path(out), distinct)
    _report(reader, warn)
    if distinct is not None and distinct.repeats:
        warn(f"note: left out {distinct.repeats:,} sequences that were there before")
    return header.num_sequences


def listed(paths: Iterable[str | os.PathLike[str]]) -> str:
    """Files as an error names them."""
    return ", ".join(os.fspath(path) for path in paths)


def split(store: TokenStore, fraction: float, seed: int) -> tuple[TokenStore, TokenStore]:
    """Training and validation part, by a checksum of the residues of each sequence, so that equal ones stay together.

    At least one sequence goes to each part.

    Raises:
        DataError: fewer than two distinct sequences.
    """
    marks = checksums(store, seed)
    smallest, largest = int(marks.min(initial=0xFFFFFFFF)), int(marks.max(initial=0))
    if smallest >= largest:
        text = "has fewer than two distinct sequences, none to hold out; name a file with {validate}"
        raise DataError(Message(text, validate=Argument("validate")))
    held = marks < min(max(round(fraction * 2**32), smallest + 1), largest)
    return store.select(np.flatnonzero(~held)), store.select(np.flatnonzero(held))


def checksums(store: TokenStore, seed: int) -> NDArray[np.uint32]:
    """A checksum of the residues of each sequence [R], another one for another seed."""
    marks = np.empty(len(store), np.uint32)
    for rows, tokens in store.blocks():
        offsets = np.concatenate([[0], np.cumsum(store.lengths[rows])])
        marks[rows] = io.checksums(tokens, offsets, seed & 0xFFFFFFFF)
    return marks


def _collect(reader: io.Reader, folder: Path | None) -> tuple[NDArray[np.uint8] | TokenMap, NDArray[np.int64]]:
    """The tokens and offsets of a reader: in memory, or where they are many in a file without a name, which is gone
    with the process.
    """
    tokens, lengths = [np.empty(0, np.uint8)], [np.empty(0, np.int64)]
    size = 0
    for batch in reader:
        tokens.append(batch.tokens)
        lengths.append(batch.lengths[batch.lengths > 0])
        size += len(batch.tokens)
        if folder is not None and size > MAX_MEMORY_BYTES:
            with durable.named(folder):
                return _collect_in_file(reader, tokens, lengths, folder)
    return np.concatenate(tokens), np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)


def _collect_in_file(
    reader: io.Reader, tokens: list[NDArray[np.uint8]], lengths: list[NDArray[np.int64]], folder: Path
) -> tuple[TokenMap, NDArray[np.int64]]:
    """Go on in a file, which begins with what is in memory; the lists are emptied."""
    with tempfile.TemporaryFile(dir=folder, prefix=".tmp-") as stream, TokenWriter(stream, folder) as writer:
        while tokens:
            writer.append(tokens.pop(0), lengths.pop(0))
        for batch in reader:
            writer.append(batch.tokens, batch.lengths)
        mapped = TokenMap(stream.fileno(), writer.finish(reader.summary.rejected))
    return mapped, mapped.offsets


def _existing(folder: Path) -> Path:
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())


def _report(reader: io.Reader, warn: Callable[[str], None]) -> None:
    for text in reader.summary.notes:
        warn(f"note: {text}")
    for text in reader.warnings:
        warn(Message("warning: {text}", text=text))
