"""Rows as text in each format. A row is a dataclass, or a mapping, of whole numbers, numbers and text."""

from __future__ import annotations

import csv
import io
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from protperf.errors import ConfigError, DataError
from protperf.lm.storage import durable
from protperf.lm.tables import parquet
from protperf.lm.tables.destination import is_file
from protperf.lm.tables.options import FORMATS
from protperf.message import Argument, Message

MISSING = "NaN"
"""A number that is missing, in TSV and CSV. It is the one spelling with which pandas, polars and R read any column of
numbers as numbers: polars reads `nan` and `NA` as text, and a column of empty fields alone as text too.

It is missing to pandas (`isna`) and R (`is.na`). polars distinguishes NaN from null: `fill_nan(None)` makes it missing
there, and Parquet and JSON lines hold null.
"""
_OTHER_SUFFIXES = ("gz", "xz", "zst", "bz2", "zip", "json", "pq", "xlsx")
"""Suffixes of formats that are not written here, and that TSV must not be mistaken for."""


_BREAKS = frozenset("\t\n\r")


class WrittenNumber(float):
    """A number that stays as it was written: `0.50` in text, 0.5 in formats that know numbers."""

    text: str

    def __new__(cls, value: float, text: str) -> WrittenNumber:
        number = super().__new__(cls, value)
        number.text = text
        return number


def columns_of(row: type | Mapping[str, type]) -> Mapping[str, type]:
    """Names and types (int, float or str) of the columns that a dataclass describes, or that are named."""
    if isinstance(row, Mapping):
        return types.MappingProxyType(dict(row))
    hints = typing.get_type_hints(row)
    # A number that may be missing, `float | None`, is a column of numbers.
    kinds = {field.name: (typing.get_args(hints[field.name]) or (hints[field.name],))[0] for field in fields(row)}
    return types.MappingProxyType(kinds)


def cell(row: Any, column: str) -> Any:
    """The value of a row, which is a dataclass or a mapping, in a column."""
    return row[column] if isinstance(row, Mapping) else getattr(row, column)


def choose_format(name: str | None, out: Path | None) -> str:
    """The format asked for, else the one of the suffix, else TSV.

    Raises:
        ConfigError: a suffix that promises another format, or Parquet for a stream or device; MissingPackageError:
        Parquet without pyarrow.
    """
    if name is None:
        suffix = "" if out is None else out.suffix.lower().removeprefix(".")
        if suffix in _OTHER_SUFFIXES:
            known = ", ".join(f".{known}" for known in FORMATS)
            text = "{out} would not be {suffix}; name a file that ends in one of {known}"
            raise ConfigError(Message(text, out=Argument("out", str(out)), suffix=suffix, known=known))
        name = suffix if suffix in FORMATS else "tsv"
    if name == "parquet":
        if not is_file(out):
            text = "{format} is written as a whole file; name one with {out}"
            raise ConfigError(Message(text, format=Argument("format", name), out=Argument("out")))
        parquet.require()
    return name


class RowEncoder(Protocol):
    """How rows become the bytes of a partial file, and that becomes the file that was asked for."""

    name: str
    """The format."""

    def header(self) -> str:
        """What stands before the first row."""
        ...

    def data(self, rows: Iterable[Any]) -> bytes:
        """The rows of one batch; text wherever they may go to a stream."""
        ...

    def finished(self, part: Path, out: Path) -> Path:
        """The file that becomes `out`, in its directory: the partial file, or one that is made of it."""
        ...


class Encoder:
    """Rows as lines of text: numbers in full precision; JSON has null for what is not a finite number."""

    def __init__(self, row: type | Mapping[str, type], name: str) -> None:
        self._columns, self.name = columns_of(row), name

    def header(self) -> str:
        return "" if self.name == "jsonl" else self._line(_text(name, str) for name in self._columns)

    def data(self, rows: Iterable[object]) -> bytes:
        return "".join(map(self.row, rows)).encode()

    def row(self, row: object) -> str:
        values = {column: cell(row, column) for column in self._columns}
        if self.name == "jsonl":
            return json.dumps({column: _json(value) for column, value in values.items()}) + "\n"
        return self._line(_text(value, self._columns[column]) for column, value in values.items())

    def _line(self, values: Iterable[str]) -> str:
        if self.name != "csv":
            return "\t".join(values) + "\n"
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerow(values)
        return stream.getvalue()

    def finished(self, part: Path, out: Path) -> Path:
        """The file that becomes `out`: the lines themselves, or the Parquet table of them, staged next to it."""
        if self.name != "parquet":
            return part
        with open(part, encoding="utf-8", newline="\n") as lines:
            next(lines)
            return durable.stage_file(out, lambda stream: parquet.write(lines, self._columns, MISSING, stream))


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: Any, kind: type) -> str:
    if kind is str or isinstance(value, WrittenNumber):
        text = "" if value is None else value.text if isinstance(value, WrittenNumber) else str(value)
        if not _BREAKS.isdisjoint(text):
            raise DataError(f"{text!r} holds a tab or the end of a line, which no cell of a table may hold")
        return text
    if value is None or value != value:
        return MISSING
    return repr(value) if isinstance(value, float) else str(value)
