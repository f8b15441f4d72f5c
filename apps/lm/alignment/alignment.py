"""An alignment of a family over the columns of its first row, the query: A2M, A3M, aligned FASTA or Stockholm.

In A2M and A3M, lower case and `.` are residues and gaps outside of the columns. A file whose rows are equally long and
which mixes the two within one column has `.` for gaps, or soft-masked residues: there every character is a column.
Columns in which the query has a gap are left out, so column j stands for one residue of the query.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.errors import DataError
from protperf.lm.alphabet import FIRST_RESIDUE, NUM_STANDARD

LETTERS = "".join(io.VOCABULARY[FIRST_RESIDUE : FIRST_RESIDUE + NUM_STANDARD])
"""The twenty residues in the order of their codes."""
GAP = NUM_STANDARD
"""Code of a gap, and of a letter that is none of the twenty: nothing is known of the residue there."""

_UNKNOWN = b"BJOUXZ"
_INSERTED = bytes(range(ord("a"), ord("z") + 1)) + b"."
_ALLOWED = LETTERS.encode() + _UNKNOWN + b"-"
_CODES = np.full(256, GAP, np.uint8)
_CODES[list(LETTERS.encode())] = np.arange(NUM_STANDARD)
_ANNOTATION = re.compile(r"(ss|sa)_(dssp|pred|conf)\Z")
"""Records of HH-suite that annotate the alignment."""
_LEFT_OUT = "left out, which annotate the alignment and do not belong to it"


class NotAligned(DataError):
    """A file of sequences of different lengths without a gap in any: a family that was not aligned yet."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """Rows of a family.

    Attributes:
        ids: first word of each row's header [N].
        codes: residues by their place in `LETTERS`, and `GAP` [N, L] uint8.
        notes: what was left out of the file and is not wrong.
    """

    ids: list[str]
    codes: NDArray[np.uint8]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def num_columns(self) -> int:
        return int(self.codes.shape[1])


@dataclass(slots=True)
class _Rows:
    """Rows as they are written, without line ends, and the line of each header."""

    ids: list[str]
    texts: list[bytes]
    lines: list[int]
    notes: list[str]


def codes_of(tokens: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes from tokens [len]; what is none of the twenty residues is unknown."""
    is_standard = (tokens >= FIRST_RESIDUE) & (tokens < FIRST_RESIDUE + NUM_STANDARD)
    return np.where(is_standard, tokens - np.uint8(FIRST_RESIDUE), np.uint8(GAP)).astype(np.uint8)


def read_alignment(path: str | os.PathLike[str]) -> Alignment:
    """Read an alignment, plain or compressed; `-` is standard input.

    A first line that starts with `#`, and records of HH-suite that annotate, are left out and noted.

    Raises:
        DataError: the file is not an alignment: rows of different lengths, a character that no alignment has, no row,
            or a query without columns; the message starts with path and line. `NotAligned`, which is one: rows of
            different lengths none of which has a gap. FileError: it cannot be read.
    """
    name = os.fspath(path)
    data = b"".join(io.read_bytes(path)).replace(b"\r\n", b"\n").replace(b"\r", b"\n").removeprefix(b"\xef\xbb\xbf")
    rows = _read_stockholm(name, data) if data.startswith(b"# STOCKHOLM") else _read_fasta(name, data)
    if not rows.texts:
        raise DataError(f"{name}: has no sequences; give an alignment in A2M, A3M, FASTA or Stockholm format")
    matrix = _columns(name, rows)
    kept = matrix[0] != ord("-")
    if not kept.any():
        text = "has no column: the first row, the query, has no residue in upper case"
        raise DataError(f"{name}:{rows.lines[0]}: {text}")
    return Alignment(rows.ids, np.ascontiguousarray(_CODES[matrix[:, kept]]), tuple(rows.notes))


def _read_fasta(name: str, data: bytes) -> _Rows:
    rows, line, notes = _Rows([], [], [], []), 1, []
    if data.startswith(b"#"):
        first, _, data = data.partition(b"\n")
        notes.append(f"{name}: first line {first[:40].decode('ascii', 'replace')!r} left out")
        line = 2
    start = data.find(b">")
    before = data[: max(start, 0)]
    if start < 0 or before.strip():
        text = "starts with text that is not a header; give an alignment in A2M, A3M, FASTA or Stockholm format"
        raise DataError(f"{name}:{line}: {text}")
    line += before.count(b"\n")
    annotations: list[str] = []
    for record in data[start + 1 :].split(b"\n>"):
        header, _, body = record.partition(b"\n")
        identifier = (header.split(maxsplit=1) or [b""])[0].decode("utf-8", "replace")
        if _ANNOTATION.match(identifier):
            annotations.append(identifier)
        else:
            rows.ids.append(identifier)
            rows.texts.append(body.translate(None, b"\n \t"))
            rows.lines.append(line)
        line += record.count(b"\n") + 1
    if annotations:
        notes.append(f"{name}: records {', '.join(annotations)} {_LEFT_OUT}")
    rows.notes = notes
    return rows


def _read_stockholm(name: str, data: bytes) -> _Rows:
    """Rows in the order in which they come first; the blocks of a row are joined."""
    parts: dict[bytes, list[bytes]] = {}
    lines: dict[bytes, int] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.startswith(b"//"):
            break
        if not line.strip() or line.startswith(b"#"):
            continue
        fields = line.split()
        if len(fields) != 2:
            raise DataError(f"{name}:{number}: has {len(fields)} words; a row of Stockholm is a name and its residues")
        parts.setdefault(fields[0], []).append(fields[1])
        lines.setdefault(fields[0], number)
    ids = [identifier.decode("utf-8", "replace") for identifier in parts]
    return _Rows(ids, [b"".join(blocks) for blocks in parts.values()], list(lines.values()), [])


def _columns(name: str, rows: _Rows) -> NDArray[np.uint8]:
    """Characters of the columns [N, W], in upper case, with `-` as the only gap.

    Raises:
        DataError: rows that do not line up, or an odd character; NotAligned: rows without gaps that do not line up.
    """
    aligned = [text.translate(None, _INSERTED) for text in rows.texts]
    if _disagreeing(rows.texts) is None and not _has_pure_columns(rows.texts):
        # Not A2M, which has insertions in columns of their own. In A3M no row has a '.', and aligned parts agree.
        has_dots = any(b"." in text for text in rows.texts)
        if has_dots or _disagreeing(aligned) is not None:
            aligned = [text.upper().replace(b".", b"-") for text in rows.texts]
    if (row := _disagreeing(aligned)) is not None:
        what = f"row {rows.ids[row]!r} has {len(aligned[row])} columns, the first row {len(aligned[0])}"
        has_gaps = any(b"-" in text or b"." in text for text in rows.texts)
        raise (DataError if has_gaps else NotAligned)(
            f"{name}:{rows.lines[row]}: {what}, but for lower case and '.'; align them first, as protperf align does"
        )
    for row, letters in enumerate(aligned):
        if odd := letters.translate(None, _ALLOWED):
            what = f"row {rows.ids[row]!r} has the character {chr(odd[0])!r}, which no aligned protein has"
            raise DataError(f"{name}:{rows.lines[row]}: {what}")
    return np.frombuffer(b"".join(aligned), np.uint8).reshape(len(aligned), -1)


def _disagreeing(texts: list[bytes]) -> int | None:
    """The first row that is not as long as row 0."""
    return next((row for row, text in enumerate(texts) if len(text) != len(texts[0])), None)


def _has_pure_columns(texts: list[bytes]) -> bool:
    """Whether each column of equally long rows holds insertions only, or none."""
    is_inserted = np.zeros(256, bool)
    is_inserted[list(_INSERTED)] = True
    first = is_inserted[np.frombuffer(texts[0], np.uint8)]
    return all((is_inserted[np.frombuffer(text, np.uint8)] == first).all() for text in texts)
