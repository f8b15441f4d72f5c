"""A table in memory: rows of one dataclass, with columns for NumPy, pandas and polars."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from protperf.errors import ConfigError, MissingPackageError
from protperf.lm.tables.formats import cell, columns_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protperf import io

Row = TypeVar("Row")

_SHOWN_ROWS = 20
"""Rows that a notebook shows."""


class Table(Generic[Row]):
    """Rows in the order of the records: iterate over them, or take a column.

    Attributes:
        rows: a row for each record that was not rejected.
        rejected: what `residues="skip"` left out, as `protperf.io.Rejection`s.
        warnings: what deserves attention in the input, such as a file that looks like nucleotides.
    """

    def __init__(
        self,
        kind: type[Row] | Mapping[str, type],
        rows: list[Row],
        rejected: Iterable[io.Rejection] = (),
        warnings: Iterable[str] = (),
    ) -> None:
        self._columns = columns_of(kind)
        self.rows, self.rejected, self.warnings = rows, tuple(rejected), tuple(warnings)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def __repr__(self) -> str:
        left_out = f", {len(self.rejected)} rejected" if self.rejected else ""
        return f"Table of {len(self.rows)} rows{left_out}: {', '.join(self._columns)}"

    def _repr_html_(self) -> str:
        """The first rows, as a notebook shows them; ids come from files, so every cell is escaped."""
        rows = [[_shown(cell(row, name)) for name in self._columns] for row in self.rows[:_SHOWN_ROWS]]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self._columns)
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>" for row in rows)
        left_out = len(self.rows) - len(rows)
        note = f"<p>{html.escape(repr(self).partition(':')[0])}{f', {left_out} not shown' if left_out else ''}</p>"
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"

    def numpy(self, column: str) -> NDArray[Any]:
        """One column as an array [number of rows].

        Raises:
            ConfigError: no such column.
        """
        if column not in self._columns:
            raise ConfigError(f"column {column!r} is unknown; choose one of {', '.join(self._columns)}")
        return np.array([cell(row, column) for row in self.rows])

    def to_pandas(self) -> Any:
        """A pandas DataFrame.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        return _package("pandas").DataFrame(self._by_column())

    def to_polars(self) -> Any:
        """A polars DataFrame.

        Raises:
            MissingPackageError: polars is not installed.
        """
        return _package("polars").DataFrame(self._by_column())

    def _by_column(self) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for name, kind in self._columns.items():
            values = [cell(row, name) for row in self.rows]
            # Numbers keep their types even if there are no rows.
            columns[name] = values if kind is str else np.array(values, kind)
        return columns


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingPackageError(f"to_{name} needs {name}; install it with pip install {name}") from error
