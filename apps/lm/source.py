"""What a Python program may call sequences, as records: text, pairs, Biopython records, files, or many of these."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from protperf import io
from protperf.errors import ConfigError, DataError, DtypeError, FastaError
from protperf.lm.shared_options import ReadingOptions
from protperf.message import Argument, Message

_SUFFIXES = (".fasta", ".fa", ".faa", ".fas", ".fsa", ".pep", ".seq", ".txt", ".a2m", ".a3m", ".csv", ".tsv")
_PACKED = (".gz", ".xz", ".zst", ".bz2")
_TAKEN = "give text, a SeqRecord, a path, or an iterable of these or of pairs (id, sequence)"


class Source:
    """Iterates once over the records, lazily and in their order.

    `rejected` and `warnings` fill up meanwhile. Every record's `n` is its place among all, rejected ones counted.
    """

    def __init__(self, records: Any, reading: ReadingOptions | None = None) -> None:
        self._reading = reading or ReadingOptions()
        io.check_columns(self._reading.seq_col, self._reading.id_col)
        if isinstance(records, Mapping):
            raise DtypeError("records is a mapping; give its items() for pairs (id, sequence)")
        if hasattr(records, "columns"):
            raise DtypeError("records is a table; give its columns as pairs, such as zip(table.id, table.sequence)")
        if isinstance(records, bytes):
            raise DtypeError("records is bytes; decode it, or give a path")
        if _is_pair(records):
            first, second = (_shortened(part) for part in records)
            raise DtypeError(
                f"records is a pair of texts, which may be an id and a sequence or two sequences; give "
                f"[({first}, {second})] for one record, or [{first}, {second}] for two"
            )
        single = isinstance(records, (str, os.PathLike, io.Record)) or hasattr(records, "seq")
        if not single and not isinstance(records, Iterable):
            raise DtypeError(f"records is a {type(records).__name__}; {_TAKEN}")
        self._items: Iterable[Any] = [records] if single else records
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
        reader = io.read_tokens(path, **self._reading.to_mapping(), first_n=self._n)
        for batch in reader:
            self.rejected += batch.rejected
            yield from batch
        self._n += reader.summary.records + reader.summary.rejected
        self.warnings += reader.summary.warnings

    def _encoded(self, item: Any) -> io.Record | None:
        if self._reading.seq_col is not None:
            kind = type(item).__name__
            text = "{option} is for files, but record {n} is a {kind}; give paths, or leave it out"
            raise ConfigError(Message(text, option=Argument("seq_col"), n=self._n, kind=kind))
        name, sequence = self._named(item)
        try:
            tokens, flags = io.encode(sequence, residues=self._reading.residues, name=f"<record {self._n}>")
        except FastaError as error:
            if self._reading.residues != "skip":
                raise
            self.rejected.append(io.Rejection(self._n, name, error.line, error.column, error.args[0]))
            return None
        self._nucleotides += bool(flags & io.FLAGS["nucleotides"])
        return io.Record(self._n, name, "", tokens, flags, "", 0)

    def _named(self, item: Any) -> tuple[str, str]:
        if isinstance(item, str):
            remedy = "give a list of sequences, the lines joined, or the path of a FASTA file"
            return str(self._n), one_line(item, f"record {self._n}", remedy)
        if _is_pair(item):
            return item[0], item[1]
        if hasattr(item, "seq") and hasattr(item, "id"):
            try:
                return str(item.id), str(item.seq)
            except ValueError as error:  # Biopython's sequences of known length and unknown residues
                raise DataError(f"record {self._n} has no residues: {error}") from error
        raise DtypeError(f"record {self._n} is a {type(item).__name__}; {_TAKEN}")


_NAME = re.compile(r"[^.]*[^.\s]\.[a-z][a-z0-9]{1,7}\Z")
"""One dot, and after it the name of a format, such as `proteins.dat`: no sequence of an alignment has a single gap
followed by inserts up to its end."""


def only_record(records: Any, reading: ReadingOptions, name: str) -> io.Record:
    """The one record of a source.

    Args:
        name: the argument that the source came in, for the message.

    Raises:
        DataError: no record or several; FastaError, FileError: it is at fault, or cannot be read.
    """
    found = list(itertools.islice(Source(records, reading), 2))
    if len(found) != 1:
        text = "{name} holds {found}; give one sequence, or a file with one record"
        raise DataError(Message(text, name=Argument(name), found="several records" if found else "no record"))
    return found[0]


def one_line(text: str, name: str | Argument, remedy: str) -> str:
    """Text that is one sequence, without the end of the line that it was read from.

    Args:
        name: what to call the text in the message, and `remedy` what to give instead.

    Raises:
        DtypeError: it has line breaks, and is one sequence or several.
    """
    # The end of the line says nothing.
    line = text.rstrip("\r\n")
    if "\n" in line or "\r" in line:
        what = "{name} has line breaks, which may separate sequences or parts of one; {remedy}"
        raise DtypeError(Message(what, name=name, remedy=remedy))
    return line


def is_path(text: str) -> bool:
    """Whether text names a file: never by looking for one, so that its meaning does not depend on the directory."""
    if _NAME.match(text):
        return True
    lowered = text.lower()
    for suffix in _PACKED:
        lowered = lowered.removesuffix(suffix)
    return text == "-" or "/" in text or os.path.sep in text or lowered != text.lower() or lowered.endswith(_SUFFIXES)


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 20 else f"{text[:20]}...")
