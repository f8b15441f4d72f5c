"""Whatever a Python program calls a sequence, as records: text, pairs, Biopython records, files, or many of them."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from protperf import io
from protperf.errors import ConfigError, DataError, DtypeError, FastaError

_SUFFIXES = (".fasta", ".fa", ".faa", ".fas", ".fsa", ".pep", ".seq", ".txt", ".a2m", ".a3m", ".csv", ".tsv")
_PACKED = (".gz", ".xz", ".zst", ".bz2")
_TAKEN = "give text, a pair (id, sequence), a SeqRecord, a path, or an iterable of these"


class Source:
    """Iterates once over the records, lazily and in their order.

    `rejected` and `warnings` fill up meanwhile. Every record's `n` is its place among all, rejected ones counted.
    """

    def __init__(
        self, records: Any, residues: str = "map", *, seq_col: str | None = None, id_col: str | None = None
    ) -> None:
        if residues not in ("map", "strict", "skip"):
            raise ConfigError(f"residues is {residues!r}; choose one of map, strict, skip")
        io.check_columns(seq_col, id_col)
        if isinstance(records, Mapping):
            raise DtypeError("records is a mapping; give its items() for pairs (id, sequence)")
        if hasattr(records, "columns"):
            raise DtypeError("records is a table; give its columns as pairs, such as zip(table.id, table.sequence)")
        if isinstance(records, bytes):
            raise DtypeError("records is bytes; decode it, or give a path")
        single = isinstance(records, (str, os.PathLike, io.Record)) or _is_pair(records) or hasattr(records, "seq")
        if not single and not isinstance(records, Iterable):
            raise DtypeError(f"records is a {type(records).__name__}; {_TAKEN}")
        self._items: Iterable[Any] = [records] if single else records
        self._residues, self._seq_col, self._id_col = residues, seq_col, id_col
        self._n = 0
        self._nucleotides = 0
        self.rejected: list[io.Rejection] = []
        self.warnings: list[str] = []

    def __iter__(self) -> Iterator[io.Record]:
        for item in self._items:
            if isinstance(item, os.PathLike) or (isinstance(item, str) and is_path(item)):
                yield from self._file(item)
                continue
            record = item if isinstance(item, io.Record) else self._encoded(item)
            if record is not None:
                yield dataclasses.replace(record, n=self._n)
            self._n += 1
        if self._nucleotides:
            self.warnings.append(
                f"{self._nucleotides} of {self._n} records look like nucleotides (over 50 letters, all of ACGTUN); "
                "translate them first"
            )

    def _file(self, path: str | os.PathLike[str]) -> Iterator[io.Record]:
        reader = io.read_tokens(
            path, residues=self._residues, seq_col=self._seq_col, id_col=self._id_col, first_n=self._n
        )
        for batch in reader:
            self.rejected += batch.rejected
            yield from batch
        self._n += reader.summary.records + reader.summary.rejected
        self.warnings += reader.summary.warnings

    def _encoded(self, item: Any) -> io.Record | None:
        if self._seq_col is not None:
            kind = type(item).__name__
            raise ConfigError(f"seq_col is for files, but record {self._n} is a {kind}; give paths, or leave it out")
        name, sequence = self._named(item)
        try:
            tokens, flags = io.encode(sequence, residues=self._residues, name=f"<record {self._n}>")
        except FastaError as error:
            if self._residues != "skip":
                raise
            self.rejected.append(io.Rejection(self._n, name, error.line, error.column, str(error)))
            return None
        self._nucleotides += bool(flags & io.FLAGS["nucleotides"])
        return io.Record(self._n, name, "", tokens, flags, "", 0)

    def _named(self, item: Any) -> tuple[str, str]:
        if isinstance(item, str):
            return str(self._n), item
        if _is_pair(item):
            return item[0], item[1]
        if hasattr(item, "seq") and hasattr(item, "id"):
            try:
                return str(item.id), str(item.seq)
            except ValueError as error:  # Biopython's sequences of known length and unknown residues
                raise DataError(f"record {self._n} has no residues: {error}") from error
        raise DtypeError(f"record {self._n} is a {type(item).__name__}; {_TAKEN}")


_NAME = re.compile(r"[^.]*[^.\s]\.[a-z][a-z0-9]{1,7}\Z")
"""One dot, and behind it what names a format, such as `proteins.dat`: no sequence of an alignment has a single gap and
inserts at its end."""


def is_path(text: str) -> bool:
    """Whether text names a file: never by looking for one, so that its meaning does not depend on the folder."""
    if _NAME.match(text):
        return True
    lowered = text.lower()
    for suffix in _PACKED:
        lowered = lowered.removesuffix(suffix)
    return text == "-" or "/" in text or os.path.sep in text or lowered != text.lower() or lowered.endswith(_SUFFIXES)


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item)
