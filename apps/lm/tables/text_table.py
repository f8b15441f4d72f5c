"""Rows of a text table with all their columns: CSV or TSV, plain or compressed, or a list of one entry per line.

The rules are those of the scanner of sequence tables: the first row names the columns; the separator is a tab where
that row has one, else a comma, else a semicolon; a row with more or fewer fields, or a quote that is not closed, is an
error with its line. Lines that start with `#` before the first row, and Excel's `sep=;`, are noted and left out.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from protperf.errors import DataError
from protperf.io import read_bytes
from protperf.lm.options import closest

_SHOWN = 12
"""Columns that an error lists."""


@dataclass(frozen=True, slots=True)
class TextRow:
    """One row: its place in words, and its fields."""

    place: str
    cells: tuple[str, ...]


class TextTable:
    """A file that is read once from its start: its columns, then its rows.

    Attributes:
        columns: names in the order of the file; `(list_column,)` for a list; empty if the file is empty.
        is_list: whether there is no row of names.
        notes: what was left out.
    """

    def __init__(self, path: str, is_entry: Any, list_column: str) -> None:
        """Read the start of a file.

        Args:
            is_entry: says of the first line whether it is an entry of a list, and so does not name columns.
            list_column: the column of a list.

        Raises:
            DataError: a fault of the file; FileError: it cannot be read.
        """
        self.path = "<stdin>" if path == "-" else path
        self.notes: list[str] = []
        self._lines = iter(enumerate(_decoded(path, self.path), 1))
        self._pending: list[tuple[int, str]] = []
        number, first, delimiter = self._first_line()
        self.is_list = bool(first) and is_entry(first.strip())
        self._delimiter = delimiter or next((mark for mark in "\t," if mark in first), ";")
        self.columns: tuple[str, ...] = ()
        if self.is_list:
            self.columns, self._pending = (list_column,), [(number, first)]
        elif first:
            self._pending = [(number, first)]
            self._rows = self._split()
            self.columns = tuple(next(self._rows)[1])
            self._check_names(number)

    def __iter__(self) -> Iterator[TextRow]:
        if self.is_list:
            yield from self._entries()
        elif self.columns:
            for number, cells in self._rows:
                if len(cells) != len(self.columns):
                    text = f"{len(cells)} fields in a table of {len(self.columns)} columns"
                    raise DataError(f"{self.path}:{number}: {text}")
                yield TextRow(f"{self.path}:{number}", tuple(cells))

    def index(self, name: str) -> int:
        """The place of a column.

        Raises:
            DataError: there is none of that name; the message lists those that there are.
        """
        if name in self.columns:
            return self.columns.index(name)
        if self.is_list:
            raise DataError(f"{self.path}: no column {name!r}; it is a list without columns")
        hint = closest(name, self.columns)
        more = f" and {len(self.columns) - _SHOWN} more" if len(self.columns) > _SHOWN else ""
        shown = ", ".join(repr(column) for column in self.columns[:_SHOWN])
        raise DataError(f"{self.path}: no column {name!r}; {hint or f'the first row names {shown}{more}'}")

    def _first_line(self) -> tuple[int, str, str | None]:
        delimiter, comments = None, 0
        for number, line in self._lines:
            if match := re.fullmatch(r'"?sep=(.)"?', line.strip("\r\n")):
                delimiter = match[1]
                self.notes.append(f"{self.path}: first line {line.strip()!r} read as the separator")
            elif line.startswith("#"):
                comments += 1
            elif line.strip():
                if comments:
                    self.notes.append(f"{self.path}: {comments} lines that start with '#' left out as comments")
                return number, line, delimiter
        return 0, "", None

    def _entries(self) -> Iterator[TextRow]:
        for number, line in itertools.chain(self._pending, self._lines):
            if line.strip() and not line.startswith("#"):
                yield TextRow(f"{self.path}:{number}", (line.strip(),))

    def _split(self) -> Iterator[tuple[int, list[str]]]:
        """Rows with the number of their first line; blank lines are left out."""
        last = before = self._pending[0][0] - 1
        lines = (line for _, line in itertools.chain(self._pending, self._lines))
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                what = "a quote is not closed, or is followed by text" if "limit" not in str(error) else str(error)
                raise DataError(f"{self.path}:{last + 1}: {what}") from error
            if cells is None:
                return
            number, last = last + 1, before + reader.line_num
            if cells:
                yield number, cells

    def _check_names(self, number: int) -> None:
        seen: set[str] = set()
        for name in self.columns:
            if name in seen:
                raise DataError(f"{self.path}:{number}: two columns are called {name!r}; rename one")
            seen.add(name)


def _decoded(path: str, label: str) -> Iterator[str]:
    """Lines with their ends: LF, CR LF or CR."""
    text = io.TextIOWrapper(io.BufferedReader(_Pieces(path)), encoding="utf-8-sig", newline="")
    count = 0
    try:
        for line in text:
            count += 1
            yield line
    except UnicodeDecodeError as error:
        is_utf16 = error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        what = "is UTF-16" if is_utf16 else "is not UTF-8"
        raise DataError(f"{label}: {what} after line {count}; save it as UTF-8") from error


class _Pieces(io.RawIOBase):
    """The decompressed bytes of a file as a stream."""

    def __init__(self, path: str) -> None:
        self._pieces, self._rest = read_bytes(path), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count
