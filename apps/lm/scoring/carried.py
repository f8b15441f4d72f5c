"""Columns of the input that a table of scores carries on, next to the scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from protperf import io
from protperf.errors import ConfigError
from protperf.lm.tables.formats import cell
from protperf.lm.tables.text_table import TextTable
from protperf.message import Argument, Message

DESCRIPTION = "description"
"""What FASTA has besides the id: the rest of the header."""


class CarriedColumns:
    """Reads the columns of tables once more, along with their records; of FASTA, the description of each record."""

    def __init__(
        self, names: Sequence[str], fasta: Sequence[str], seq_col: str | None, columns: Mapping[str, type]
    ) -> None:
        """Check the names.

        Args:
            columns: of the table of scores.

        Raises:
            ConfigError: a name that the table has already, or a column of FASTA or of standard input; DataError: a
            table without such a column; FileError: it cannot be read.
        """
        self._names, self._fasta, self._is_table = list(names), fasta, seq_col is not None
        self._own = list(columns)
        carry = Argument("carry")
        for name in names:
            if name in columns:
                raise ConfigError(Message("{carry} {name!r} is a column of the scores as well", carry=carry, name=name))
            if not self._is_table and name != DESCRIPTION:
                text = "{carry} is {name!r}, but FASTA has a {known} alone; a table is read with {seq_col}"
                facts = {"name": name, "known": DESCRIPTION, "seq_col": Argument("seq_col")}
                raise ConfigError(Message(text, carry=carry, **facts))
        if names and self._is_table and "-" in fasta:
            raise ConfigError(Message("{carry} reads a table twice, which standard input cannot be", carry=carry))
        for path in fasta if names and self._is_table else ():
            self._open(path)
        self.columns: dict[str, type] = {**columns, **dict.fromkeys(names, str)}
        self._rows = enumerate(self._cells())
        self._n, self._found = -1, [""]

    def row(self, record: io.Record, row: Any) -> Any:
        """A row of a record with what is carried; records come in their order."""
        if not self._names:
            return row
        if record.n != self._n:
            self._n = record.n
            # A record's number is that of its row, those that were left out counted.
            self._found = self._next(record.n) if self._is_table else [record.description] * len(self._names)
        return {**{name: cell(row, name) for name in self._own}, **dict(zip(self._names, self._found, strict=True))}

    def _next(self, n: int) -> list[str]:
        return next(cells for number, cells in self._rows if number == n)

    def _cells(self) -> Iterator[list[str]]:
        for path in self._fasta:
            table, places = self._open(path)
            yield from ([row.cells[place] for place in places] for row in table)

    def _open(self, path: str) -> tuple[TextTable, list[int]]:
        table = TextTable(path, lambda line: False, "")
        return table, [table.index(name) for name in self._names]
