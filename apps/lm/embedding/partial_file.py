"""The partial file of vectors: one row after another, so that it can be appended to and continued.

A row is the place of the record, its length and the bytes of its id, then the id in UTF-8, then its arrays, all little
endian. What is made of it at the end is in `formats.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protperf.lm.embedding.options import PER_RESIDUE, STORED_TYPES
from protperf.lm.embedding.vectors import Embedded

_HEAD = struct.Struct("<qqq")
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Layout:
    """What the rows hold: names of the arrays, their width, and the type of their numbers (`f32`, `f16`)."""

    names: tuple[str, ...]
    dim: int
    dtype: str

    @property
    def is_per_residue(self) -> bool:
        return self.names == (PER_RESIDUE,)

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return np.dtype(STORED_TYPES[self.dtype])

    def array_bytes(self, length: int) -> int:
        """Bytes of one array of a record."""
        return self.dim * self.numpy_dtype.itemsize * (length if self.is_per_residue else 1)


def row_bytes(row: Embedded) -> bytes:
    """A row of the partial file."""
    name = row.id.encode()
    return b"".join([_HEAD.pack(row.n, row.length, len(name)), name, *(array.tobytes() for array in row.arrays)])


class PartialFile:
    """Reads a complete partial file, as often as there are columns to be made of it, in bounded memory.

    Attributes:
        rows, residues, id_bytes: how many there are in all.
        id_letters: characters of the longest id.
    """

    def __init__(self, path: Path, layout: Layout, metadata: Mapping[str, Any]) -> None:
        self._path, self.layout, self.metadata = path, layout, metadata
        self.rows = self.residues = self.id_bytes = self.id_letters = 0
        for _, length, name in self.heads():
            self.rows, self.residues = self.rows + 1, self.residues + length
            self.id_bytes += len(name.encode())
            self.id_letters = max(self.id_letters, len(name))

    def heads(self) -> Iterator[tuple[int, int, str]]:
        """Place, length and id of each record."""
        with self._path.open("rb") as stream:
            while head := stream.read(_HEAD.size):
                n, length, size = _HEAD.unpack(head)
                yield n, length, stream.read(size).decode()
                stream.seek(self.layout.array_bytes(length) * len(self.layout.names), 1)

    def pieces(self, name: str) -> Iterator[bytes]:
        """The bytes of one array, of all records after one another, in pieces of whole vectors."""
        place = self.layout.names.index(name)
        vector = self.layout.array_bytes(1)
        most = max(1, _PIECE_BYTES // vector) * vector
        with self._path.open("rb") as stream:
            while head := stream.read(_HEAD.size):
                _, length, size = _HEAD.unpack(head)
                array = self.layout.array_bytes(length)
                stream.seek(size + place * array, 1)
                for start in range(0, array, most):
                    yield stream.read(min(most, array - start))
                stream.seek((len(self.layout.names) - 1 - place) * array, 1)

    def whole_rows(self) -> Iterator[Embedded]:
        """The rows as they were given."""
        shape = (-1, self.layout.dim) if self.layout.is_per_residue else (self.layout.dim,)
        with self._path.open("rb") as stream:
            while head := stream.read(_HEAD.size):
                n, length, size = _HEAD.unpack(head)
                name = stream.read(size).decode()
                data = [stream.read(self.layout.array_bytes(length)) for _ in self.layout.names]
                arrays = tuple(np.frombuffer(each, self.layout.numpy_dtype).reshape(shape) for each in data)
                yield Embedded(n, name, length, arrays)


def gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces that are worth a call of the system."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= _PIECE_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)
