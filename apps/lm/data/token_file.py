"""A file of residue tokens, read through a memory map: a corpus may be larger than memory.

Layout, little-endian:

    0     16 bytes   magic, `protperf tokens` and a newline
    16    u32        version of the layout, 1
    20    u32        where the tokens start, 128
    24    u64        number of sequences R
    32    u64        number of tokens T
    40    u64        records that the residue policy left out when the file was written
    48    32 bytes   fingerprint: SHA-256 of the offsets, then the tokens
    80    32 bytes   SHA-256 of the 80 bytes before
    112   zeros
    128   T bytes    tokens of residues, ids of `protperf.io.VOCABULARY` (3 to 28), one sequence after another
          zeros      up to a multiple of 8
          u64 [R+1]  offsets: sequence r holds tokens[offsets[r]:offsets[r + 1]], at least one

The tokens come first because their number is unknown until the last sequence is read. A file is written next to its
final name, synced and renamed, so that a name never stands for a part.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import stat
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.errors import DataError
from protperf.lm.alphabet import FIRST_RESIDUE, VOCAB_SIZE
from protperf.lm.data.distinct import Distinct
from protperf.lm.storage import durable

MAGIC = b"protperf tokens\n"
BLOCK_BYTES = 1 << 22
"""Bytes of a file that are looked at together."""
_VERSION, _TOKENS_AT = 1, 128
_FACTS = struct.Struct("<16sIIQQQ32s")
_RESIDENT_BYTES = 1 << 26
"""About how much of a map stays in memory before its pages are given back to the system."""
_TOUCHED_BYTES = 1 << 21
"""Bytes that the system may map around an address that is read for the first time: a huge page."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself. `fingerprint` is the SHA-256 in hexadecimal digits."""

    num_sequences: int
    num_tokens: int
    rejected: int
    fingerprint: str

    @property
    def offsets_at(self) -> int:
        """Where the offsets start."""
        return -(-(_TOKENS_AT + self.num_tokens) // 8) * 8

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.offsets_at + 8 * (self.num_sequences + 1)

    def to_bytes(self) -> bytes:
        counts = (self.num_sequences, self.num_tokens, self.rejected)
        facts = _FACTS.pack(MAGIC, _VERSION, _TOKENS_AT, *counts, bytes.fromhex(self.fingerprint))
        return (facts + hashlib.sha256(facts).digest()).ljust(_TOKENS_AT, b"\0")

    @classmethod
    def from_bytes(cls, data: bytes) -> Header:
        """Read a header.

        Raises:
            ValueError: not one, or damaged.
        """
        if len(data) < _TOKENS_AT or not data.startswith(MAGIC):
            raise ValueError("is not a token file")
        _, version, start, sequences, tokens, rejected, fingerprint = _FACTS.unpack_from(data)
        if version != _VERSION:
            raise ValueError(f"has version {version} of the layout, and this protperf reads version {_VERSION}")
        header = cls(sequences, tokens, rejected, fingerprint.hex())
        if start != _TOKENS_AT or data[:_TOKENS_AT] != header.to_bytes():
            raise ValueError("has a damaged header")
        return header


class TokenMap:
    """The tokens and offsets of a file, mapped into memory; shapes [T] uint8 and [R+1] int64.

    Whoever shortens the file while it is mapped ends this process with SIGBUS.
    """

    def __init__(self, descriptor: int, header: Header) -> None:
        self.header = header
        self._map = mmap.mmap(descriptor, header.size, access=mmap.ACCESS_READ)
        self.tokens: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8, header.num_tokens, _TOKENS_AT)
        self.offsets: NDArray[np.int64] = np.frombuffer(self._map, "<i8", header.num_sequences + 1, header.offsets_at)
        self._touched = 0

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Tokens of a stretch, as a view. Pages that earlier calls have read are given back now and then."""
        self._touched += max(_TOUCHED_BYTES, stop - start)
        if self._touched > _RESIDENT_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0
        return self.tokens[start:stop]

    def blocks(self) -> Iterator[NDArray[np.uint8]]:
        """All tokens, in order, as views."""
        for start in range(0, len(self.tokens), BLOCK_BYTES):
            yield self.read(start, min(start + BLOCK_BYTES, len(self.tokens)))

    def fingerprint(self) -> str:
        """SHA-256 of the offsets, then the tokens.

        Raises:
            ValueError: offsets that are not in order, or a token that is not a residue.
        """
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.tokens):
            raise ValueError("has offsets that do not fit its tokens")
        digest = hashlib.sha256()
        for start in range(0, len(self.offsets), BLOCK_BYTES // 8):
            block = self.offsets[start : start + BLOCK_BYTES // 8 + 1]
            # Of numbers that are not negative no difference overflows.
            if block.min() < 0 or (np.diff(block) <= 0).any():
                raise ValueError("has offsets that are not in order")
            digest.update(block[: BLOCK_BYTES // 8].data)
        for tokens in self.blocks():
            if tokens.min() < FIRST_RESIDUE or tokens.max() >= VOCAB_SIZE:
                raise ValueError("has tokens that are not residues")
            digest.update(tokens.data)
        return digest.hexdigest()


def is_token_file(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a regular file that starts like a token file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):
        return False


def open_tokens(path: str | os.PathLike[str]) -> TokenMap:
    """Map a token file after reading all of it once, so that damage is found before anything is trained on it.

    Raises:
        DataError: damaged, or of another version; FileError: it cannot be read.
    """
    with durable.named(path), open(path, "rb") as stream:
        try:
            header = Header.from_bytes(stream.read(_TOKENS_AT))
            if (size := os.fstat(stream.fileno()).st_size) != header.size:
                raise ValueError(
                    f"has {size} bytes where its header says {header.size}; it is cut short or was changed"
                )
            if not header.num_sequences:
                raise ValueError("holds no sequences")
            mapped = TokenMap(stream.fileno(), header)
            if mapped.fingerprint() != header.fingerprint:
                raise ValueError("is damaged: its contents do not have the fingerprint of its header")
        except ValueError as error:
            raise DataError(f"{os.fspath(path)}: {error}; write it again") from error
    return mapped


class TokenWriter:
    """Writes the contents of a token file to a stream, in bounded memory. A context manager."""

    def __init__(self, stream: BinaryIO, folder: Path) -> None:
        self._stream, self._num_sequences, self._num_tokens = stream, 0, 0
        # The offsets follow the tokens in the file, but are known as the tokens are written.
        self._offsets: BinaryIO = tempfile.TemporaryFile(dir=folder, prefix=".tmp-")  # noqa: SIM115
        self._offsets.write(bytes(8))
        stream.write(bytes(_TOKENS_AT))

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._offsets.close()

    def append(self, tokens: NDArray[np.uint8], lengths: NDArray[np.int64]) -> None:
        """Add sequences: their tokens, one after another, and their lengths. Empty ones are left out."""
        lengths = lengths[lengths > 0]
        self._offsets.write((self._num_tokens + np.cumsum(lengths)).astype("<i8").data)
        self._stream.write(tokens.data)
        self._num_sequences += len(lengths)
        self._num_tokens += len(tokens)

    def finish(self, rejected: int) -> Header:
        """Add the offsets; returns a header without fingerprint, which the caller stores once it is known."""
        header = Header(self._num_sequences, self._num_tokens, rejected, "00" * 32)
        self._stream.write(bytes(header.offsets_at - _TOKENS_AT - self._num_tokens))
        self._offsets.seek(0)
        shutil.copyfileobj(self._offsets, self._stream, BLOCK_BYTES)
        self._stream.flush()
        return header


def write_token_file(reader: io.Reader, out: Path, distinct: Distinct | None = None) -> Header:
    """Write what a reader reads to a token file; with `distinct`, the first of equal sequences alone.

    Raises:
        DataError: no residues; FastaError, FileError: from the reader; FileError: a full disk.
    """
    found: list[Header] = []

    def write(stream: BinaryIO) -> None:
        with TokenWriter(stream, out.parent) as writer:
            for batch in reader:
                if distinct is None:
                    writer.append(batch.tokens, batch.lengths)
                else:
                    is_new = distinct.is_new(batch.tokens, batch.lengths)
                    writer.append(batch.tokens[np.repeat(is_new, batch.lengths)], batch.lengths[is_new])
            header = writer.finish(reader.summary.rejected)
        if not header.num_sequences:
            raise DataError(f"{out}: not written, for there are no residues in the input")
        # The stream cannot read; what the fingerprint is taken of is what the file has come to hold.
        with open(durable.staging_name(out), "rb") as written:
            fingerprint = TokenMap(written.fileno(), header).fingerprint()
        found.append(Header(header.num_sequences, header.num_tokens, header.rejected, fingerprint))
        stream.seek(0)
        stream.write(found[0].to_bytes())

    durable.replace_file(out, write)
    return found[0]
