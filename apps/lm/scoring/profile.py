"""The picture of a table of residues, whose rows may have been written by an earlier run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from protperf import io
from protperf.errors import ConfigError
from protperf.lm import picture
from protperf.lm.scoring.options import ScoreOptions
from protperf.lm.tables.destination import check_target, is_file
from protperf.lm.tables.formats import cell, choose_format
from protperf.lm.tables.options import TableOptions
from protperf.lm.tables.read_back import read_numbers
from protperf.lm.watch import Watch
from protperf.message import Argument, Message

Batches = Iterable[tuple[Sequence[Any], Sequence[Any]]]
_MAX_SEQUENCES = 8
"""Panels of one figure."""


class ProfilePlot:
    """Remembers the first sequences of a table as they pass, and draws them once it is written."""

    def __init__(self, path: Path, scoring: ScoreOptions, inputs: Sequence[str], table: TableOptions) -> None:
        """Check all that can be checked before the work.

        Raises:
            ConfigError: rows that are not of residues, or a file that is another one of the command; FileError: no
            such directory; MissingPackageError: no matplotlib.
        """
        if not scoring.per_residue:
            names = {"plot": Argument("plot"), "per_residue": Argument("per_residue", True)}
            raise ConfigError(Message("{plot} draws the scores of residues; add {per_residue}", **names))
        picture.require("a plot")
        check_target(path, [*inputs, *([] if table.out is None else [table.out])])
        self._path, self._out = path, table.out
        self._format = choose_format(table.format, table.out)
        self._names: list[str] = []
        self._lengths: list[int] = []
        self._values: list[float] = []
        self._passed = 0

    def noting(self, records: Iterator[io.Record]) -> Iterator[io.Record]:
        """The records of the table, those of an earlier run among them."""
        for record in records:
            self._passed += 1
            if len(self._names) < _MAX_SEQUENCES:
                self._names.append(record.id)
                self._lengths.append(len(record))
            yield record

    def collecting(self, batches: Batches) -> Batches:
        """The rows that this run computes."""
        for items, rows in batches:
            left = self._num_rows - len(self._values)
            self._values += [cell(row, "ll") for row in rows[: max(0, left)]]
            yield items, rows

    @property
    def _num_rows(self) -> int:
        # An empty sequence has one row, without a residue.
        return sum(max(1, length) for length in self._lengths)

    def save(self, method: str, watch: Watch) -> None:
        """Draw the first sequences.

        Raises:
            OSError: the picture cannot be written.
        """
        from protperf.lm.scoring.plot import Profile, draw

        values = self._values
        if is_file(self._out):
            values = read_numbers(self._out, self._format, "ll", self._num_rows)
        profiles, start = [], 0
        for name, length in zip(self._names, self._lengths, strict=True):
            profiles.append(Profile(name, values[start : start + length]))
            start += max(1, length)
        picture.save(draw(profiles, method), self._path)
        if self._passed > len(profiles):
            watch.note(f"note: {self._path} shows the first {len(profiles)} of {self._passed:,} sequences")
