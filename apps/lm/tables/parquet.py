"""Tables as Parquet: the rows of a TSV table with the types of its columns. pyarrow is imported when asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from itertools import islice
from typing import BinaryIO

from protperf.errors import MissingPackageError

_ROWS = 1 << 16
"""Rows of a group, and the most that are held in memory."""


def require() -> None:
    """Check for pyarrow before any work is done.

    Raises:
        MissingPackageError: it is not installed, or cannot be imported.
    """
    try:
        import_module("pyarrow.parquet")
    except ImportError as error:
        text = f"format parquet needs pyarrow ({error}); install it with pip install pyarrow"
        raise MissingPackageError(text) from error


def write(lines: Iterable[str], columns: Mapping[str, type], missing: str, stream: BinaryIO) -> None:
    """Write rows, each a line of fields with tabs between them, as Parquet.

    Args:
        columns: names and types (int, float, str) in the order of the fields.
        missing: how a number that is missing is written; it becomes null, as does a number that is not one.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    types = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    rows = (line.removesuffix("\n").split("\t") for line in lines)
    with ParquetWriter(stream, schema) as writer:
        while group := list(islice(rows, _ROWS)):
            cells = zip(columns.values(), zip(*group, strict=True), strict=True)
            arrays = [
                pa.array([_value(kind, field, missing) for field in fields], types[kind]) for kind, fields in cells
            ]
            writer.write_table(pa.table(arrays, schema=schema), _ROWS)


def _value(kind: type, field: str, missing: str) -> int | float | str | None:
    if kind is str:
        return field
    if field == missing:
        return None
    try:
        return kind(field)
    except ValueError:
        # A number that was carried over, which its table left empty or marked as missing.
        return None
