"""The list of records that the residue policy left out, written while they are read: where each stands, and why."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from protperf import io
from protperf.lm.shared_options import RejectOptions
from protperf.lm.storage import durable
from protperf.lm.tables.destination import check_target
from protperf.lm.tables.formats import Encoder


@dataclass(frozen=True, slots=True)
class RejectRow:
    """A record that was left out. `line` and `column` are those of the fault; `n` is its place among all records."""

    file: str
    line: int
    column: int
    n: int
    id: str
    reason: str


class RejectList:
    """A file with a row for each record that the readers of a command left out."""

    def __init__(self, options: RejectOptions | None, taken: Iterable[str | os.PathLike[str] | None]) -> None:
        """The list that the options ask for, if they do.

        Args:
            taken: other files of the command.

        Raises:
            ConfigError: the file is one of those; FileError: its directory does not exist.
        """
        path = None if options is None else options.rejects
        check_target(path, (one for one in taken if one is not None))
        self._path, self._rows = path, list[RejectRow]()

    def reading(self, reader: io.Reader) -> io.Reader:
        """The reader, whose batches are looked through as they pass. The list is written at the end of its input."""
        return reader if self._path is None else _Listing(reader, self)

    def add(self, batch: io.Batch) -> None:
        """Take the records that were left out of a batch."""
        for one in batch.rejected:
            self._rows.append(RejectRow(batch.path, one.line, one.column, one.n, one.id, str(one.reason)))

    def write(self) -> None:
        """Write what was taken so far.

        Raises:
            OSError: it cannot be written.
        """
        assert self._path is not None
        encoder = Encoder(RejectRow, self._path.suffix.lower().removeprefix("."))
        durable.replace_file(self._path, encoder.header().encode() + encoder.data(self._rows))


class _Listing(io.Reader):
    """A reader whose rejections go to a list."""

    def __init__(self, reader: io.Reader, rejects: RejectList) -> None:
        self._inner, self._rejects = reader, rejects

    def __next__(self) -> io.Batch:
        try:
            batch = next(self._inner)
        except StopIteration:
            self._rejects.write()
            raise
        self._rejects.add(batch)
        return batch

    @property
    def summary(self) -> io.Summary:
        return self._inner.summary

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._inner.warnings
