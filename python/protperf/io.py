"""Read protein sequences: FASTA and tables, plain or compressed, into token arrays.

The scanner is Rust (`protperf._native`); this module turns its bytes into NumPy arrays and its records into Python
objects. Memory is bounded by the batch size and the longest record. A file is read exactly, or refused with the line
and column of its first fault; every record that the residue policy mends has a flag. NumPy is imported when the first
batch is made.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from protperf import _native
from protperf.errors import ConfigError, DtypeError, OutOfMemory
from protperf.message import Argument, Message

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

__all__ = [
    "BATCH_BYTES",
    "FLAGS",
    "VOCABULARY",
    "Batch",
    "Reader",
    "Record",
    "Rejection",
    "Summary",
    "check_columns",
    "checksums",
    "decode",
    "encode",
    "flag_names",
    "read_bytes",
    "read_tokens",
    "scan",
]

VOCABULARY: tuple[str, ...] = _native.vocabulary()
"""How each token is written, by id. Ids never change: checkpoints store them."""

FLAGS: dict[str, int] = _native.fasta_flags()
"""Bit of each flag that a record may have, by name, in bit order.

- `trailing_stop`: one or more `*` at the end were dropped.
- `internal_stop`: a `*` with residues after it became X.
- `gaps`: `-` or `.` were dropped.
- `lower_case`: lower-case letters were upper-cased.
- `ambiguous`: B, Z, J or X, or a stop that became X.
- `empty`: no residues.
- `no_id`: the header has no first word.
- `nucleotides`: over 50 residues, all of them ACGTUN.
- `latin1_header`: the header is not UTF-8 and was decoded as Latin-1.
"""

BATCH_BYTES = 4 << 20
"""Default size of a batch: it is returned once its records hold this many bytes (residues and headers)."""

_LETTERS = bytes(ord(name) if len(name) == 1 else 0 for name in VOCABULARY).ljust(256, b"\0")


class Rejection(NamedTuple):
    """A record that `residues="skip"` left out: place among all records, id, position of the fault, and the reason."""

    n: int
    id: str
    line: int
    column: int
    reason: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive records of one input.

    Shapes, for R records with T residues in total: `tokens` [T] uint8, indices into `VOCABULARY`; `offsets` [R+1]
    int64, where record r holds `tokens[offsets[r]:offsets[r + 1]]`; `lengths` [R] int64; `ordinals` [R] int64, the
    place of each record among all records of all inputs, rejected ones included; `lines` [R] int64, the line of its
    header; `flags` [R] uint16, bits of `FLAGS`. The arrays are read-only.

    `ids` are the first words of the headers and need not be distinct; `descriptions` are the rest. `rejected` lists
    the records that `residues="skip"` left out between these records.
    """

    path: str
    ids: list[str]
    descriptions: list[str]
    tokens: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    ordinals: NDArray[np.int64]
    lines: NDArray[np.int64]
    flags: NDArray[np.uint16]
    rejected: list[Rejection]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Record]:
        bounds = self.offsets.tolist()
        rows = zip(
            self.ordinals.tolist(), self.ids, self.descriptions, self.flags.tolist(), self.lines.tolist(), strict=True
        )
        for row, (n, name, description, flags, line) in enumerate(rows):
            yield Record(n, name, description, self.tokens[bounds[row] : bounds[row + 1]], flags, self.path, line)


@dataclass(frozen=True, slots=True)
class Record:
    """One record: ordinal `n` (0-based over all inputs), id, description, tokens [L] uint8, flags, and its place."""

    n: int
    id: str
    description: str
    tokens: NDArray[np.uint8]
    flags: int
    path: str
    line: int

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def sequence(self) -> str:
        """The residues as upper-case letters."""
        return decode(self.tokens)


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts over the inputs that were read to their end.

    `flagged` counts records by flag name. `notes` say what was dropped as being no part of a sequence (a byte order
    mark, comment lines, the first line and the annotation of an A3M file), `warnings` what may be a mistake
    (nucleotides, an empty file). Each names its path.
    """

    records: int
    rejected: int
    residues: int
    bytes: int
    flagged: dict[str, int]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def facts(self) -> list[str]:
        """What was read and how much of it was flagged, in words."""
        flagged = ", ".join(f"{count:,} {name}" for name, count in self.flagged.items() if count)
        read = f"read {self.records:,} records with {self.residues:,} residues"
        return [read, f"flagged {flagged}"] if flagged else [read]


class Reader(Iterator[Batch]):
    """Iterates over the batches of its inputs, in their order; `read_tokens` returns one."""

    def __init__(self, native: _native.FastaReader) -> None:
        self._reader = native
        self._first_rejected: Message | None = None

    def __next__(self) -> Batch:
        import numpy as np

        native = next(self._reader)
        rejected = [Rejection(*fields) for fields in native.rejected]
        if rejected and self._first_rejected is None:
            first = rejected[0]
            place = f"{native.path}:{first.line}:{first.column}"
            text = "{place}: {reason} (record {id!r})"
            self._first_rejected = Message(text, place=place, reason=first.reason, id=first.id)
        offsets = np.frombuffer(native.offsets, dtype=np.int64)
        lengths = np.diff(offsets)
        lengths.flags.writeable = False
        return Batch(
            path=native.path,
            ids=native.ids,
            descriptions=native.descriptions,
            tokens=np.frombuffer(native.tokens, dtype=np.uint8),
            offsets=offsets,
            lengths=lengths,
            ordinals=np.frombuffer(native.ordinals, dtype=np.int64),
            lines=np.frombuffer(native.lines, dtype=np.int64),
            flags=np.frombuffer(native.flags, dtype=np.uint16),
            rejected=rejected,
        )

    @property
    def summary(self) -> Summary:
        """Counts so far, of the inputs that were read to their end."""
        return Summary(**self._reader.summary())

    @property
    def warnings(self) -> tuple[str, ...]:
        """The summary's warnings, and a line that counts the records left out so far and names the first."""
        summary = self.summary
        if self._first_rejected is None:
            return summary.warnings
        total = summary.records + summary.rejected
        text = "rejected {rejected} of {total} records; the first is {first}"
        return (*summary.warnings, Message(text, rejected=summary.rejected, total=total, first=self._first_rejected))


def read_tokens(
    paths: Paths,
    *,
    residues: str = "map",
    seq_col: str | None = None,
    id_col: str | None = None,
    first_n: int = 0,
    batch_bytes: int = BATCH_BYTES,
    memory_map: bool = False,
) -> Reader:
    """Read sequence files into packed token arrays, batch by batch.

    Args:
        paths: one path or several; `-` is standard input. FASTA, plain or compressed by gzip, zstd, xz or bzip2, which
            is recognised by content; all members of a compressed file are read. A2M and A3M are read as FASTA with
            gaps: a first line that starts with `#`, and HH-suite's records that annotate the alignment (`ss_dssp`,
            `ss_pred`, `ss_conf`, `sa_dssp`, `sa_pred`, `sa_conf`; every `ss_` and `sa_` above the first sequence, where
            such a line or record is above it), are left out and noted.
        residues: `map` mends and flags what can be mended without guessing, and raises an error for the rest; `strict`
            accepts the twenty, U, O and X only, and headers in UTF-8; `skip` leaves out records whose residues it would
            have to mend, and counts them. Spaces and tabs in sequence lines are dropped under each.
        seq_col: the files are tables (CSV or TSV, whose first row names the columns) with their sequences in this
            column. The separator is a tab where the first row has one, else a comma, else a semicolon.
        id_col: the column of ids, read like the header of a FASTA record; default: the column `id`, or the record's
            `n` where there is no such column.
        first_n: `n` of the first record, for inputs that continue others.
        batch_bytes: a batch is returned once its records hold this many bytes; a record is never divided.
        memory_map: map plain files instead of reading them. If another process shortens such a file in the meantime,
            the system kills this process (SIGBUS).

    Raises:
        FastaError: neither FASTA nor such a table, a fault under the policy, or compressed data that is cut short or
            corrupt; the message starts with path, line and column. Records before the fault are returned first.
        FileError: missing (also a `FileNotFoundError`), unreadable, a directory, or changed while it was read.
        ConfigError: an unknown policy, impossible names of columns, or standard input named twice.
        DtypeError: a column's name that is not text.
    """
    check_columns(seq_col, id_col)
    single = isinstance(paths, (str, os.PathLike))
    listed = [paths] if single else list(paths)  # type: ignore[arg-type]
    native = _native.FastaReader(
        [os.fspath(path) for path in listed],  # type: ignore[arg-type]
        columns=None if seq_col is None else (seq_col, id_col),
        residues=residues,
        first_n=first_n,
        batch_bytes=batch_bytes,
        memory_map=memory_map,
    )
    return Reader(native)


def check_columns(seq_col: str | None, id_col: str | None) -> None:
    """Check the names of a table's columns.

    Raises:
        ConfigError: a column of ids without one of sequences, the same column for both, or a name that is not UTF-8.
        DtypeError: a name that is not text.
    """
    for argument, name in (("seq_col", seq_col), ("id_col", id_col)):
        if name is None:
            continue
        if not isinstance(name, str):
            raise DtypeError(f"{argument} is a {type(name).__name__}; give the name of a column as text")
        if not name.isascii() and name.encode(errors="replace").decode() != name:
            text = "{option} is {name!r}, which is not UTF-8; no column has such a name"
            raise ConfigError(Message(text, option=Argument(argument), name=name))
    options = {"ids": Argument("id_col"), "sequences": Argument("seq_col")}
    if id_col is not None and seq_col is None:
        text = "{ids} is {name!r} but {sequences} is missing; it names the table's column of sequences"
        raise ConfigError(Message(text, **options, name=id_col))
    if id_col is not None and id_col == seq_col:
        text = "{ids} and {sequences} are both {name!r}; name the column of ids, or leave out {ids}"
        raise ConfigError(Message(text, **options, name=id_col))


def scan(
    paths: Paths, *, residues: str = "map", seq_col: str | None = None, id_col: str | None = None
) -> Iterator[Record]:
    """Iterate over single records; arguments and errors are those of `read_tokens`."""
    reader = read_tokens(paths, residues=residues, seq_col=seq_col, id_col=id_col)
    return (record for batch in reader for record in batch)


def read_bytes(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Iterate over the bytes of a file after decompression, in pieces of at most 128 KiB.

    Args:
        path: a file, plain or compressed as those of `read_tokens` may be; `-` is standard input.

    Raises:
        FileError: missing, unreadable, a directory, or changed while it was read.
        FastaError: compressed data that is cut short or corrupt, or an archive that is not supported.
    """
    return _native.FileBytes(os.fspath(path))


def encode(sequence: str, *, residues: str = "map", name: str = "<sequence>") -> tuple[NDArray[np.uint8], int]:
    """Tokens [L] uint8 and flags of one sequence without header, under the policy that files are read with.

    Args:
        name: the name of the sequence in an error, in the place of a path.

    Raises:
        FastaError: a fault under the policy, also under `skip`: there is no other record to continue with. The column
            counts bytes from 1; the message does not show the sequence.
        OutOfMemory: not enough memory for a copy of the sequence.
    """
    import numpy as np

    try:
        # UTF-8 has no lone surrogates; passed on as bytes, they are faults like any other byte.
        data = str.encode(sequence, "utf-8", "surrogatepass")
    except MemoryError as error:
        raise OutOfMemory(f"not enough memory for the {len(sequence)} letters of a sequence") from error
    tokens, flags = _native.scan_sequence(data, residues=residues, name=name)
    return np.frombuffer(tokens, dtype=np.uint8), flags


def checksums(tokens: NDArray[np.uint8], offsets: NDArray[np.int64], seed: int = 0) -> NDArray[np.uint32]:
    """CRC-32 of each sequence [R], as `zlib.crc32(tokens[offsets[r]:offsets[r + 1]], seed)`.

    Raises:
        ShapeError: offsets that are not in order or outside of the tokens, or arrays that are not contiguous.
        DtypeError: arrays of other types.
    """
    import numpy as np

    return np.frombuffer(_native.sequence_checksums(tokens, offsets, seed), np.uint32)


def decode(tokens: NDArray[np.uint8] | bytes) -> str:
    """The letters of residue tokens.

    Raises:
        ValueError: a token that is not a residue, such as mask.
    """
    letters = bytes(tokens).translate(_LETTERS)
    if b"\0" in letters:
        index = letters.index(b"\0")
        raise ValueError(f"token {bytes(tokens)[index]} at index {index} is not a residue; decode takes 3 to 28")
    return letters.decode("ascii")


def flag_names(flags: int) -> tuple[str, ...]:
    """Names of the bits that are set, in the order of `FLAGS`."""
    return tuple(name for name, bit in FLAGS.items() if flags & bit)
