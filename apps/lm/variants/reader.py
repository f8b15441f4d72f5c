"""Variants as a table, a list or a program gives them, each compared with the wild type, with the columns around it."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from protperf import io
from protperf.errors import ConfigError, DataError, DtypeError, FastaError
from protperf.lm.tables.text_table import TextRow, TextTable
from protperf.lm.variants.options import VariantOptions
from protperf.lm.variants.parse import fitting_offset, is_variant, read_mutations, resolve
from protperf.lm.variants.variant import Variant, difference
from protperf.lm.variants.wild_type import WildType
from protperf.message import Argument, Message

LIST_COLUMN = "variant"
"""The column of variants that come without a table."""
_KNOWN_COLUMNS = ("mutant", "variant", "mutation", "mutations", "hgvs_pro")
_KNOWN_SEQUENCES = "mutated_sequence"
_KNOWN_BINS = "DMS_score_bin"
_MISSING = frozenset({"", "na", "nan", "none", "null"})
_MAX_SETS = 100_000
"""Sets of sites that are counted for an estimate of time."""
_MAX_SHOWN = 40
"""Characters of a cell that an error shows."""
_LOOKED_AT = 500
"""Rows that are read to find out which offset was meant."""


@dataclass(frozen=True, slots=True)
class Item:
    """One row of the input.

    Attributes:
        cells: its fields as they are written.
        variant: None if it has no score and rows without a score were asked for.
        label, positive: measured value, and measured class (0 or 1); NaN where missing or not asked for.
    """

    n: int
    place: str
    cells: tuple[str, ...]
    variant: Variant | None
    label: float = math.nan
    positive: float = math.nan


def identify(item: Item) -> Iterator[bytes]:
    """The bytes by which a row of the input differs from any other."""
    yield "\t".join([str(item.n), *item.cells, ""]).encode()


class TextList:
    """Variants that were typed, or that a program gives."""

    is_list = True
    columns: tuple[str, ...] = (LIST_COLUMN,)

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[TextRow]:
        for n, text in enumerate(self._texts):
            if not isinstance(text, str):
                raise DtypeError(f"variant {n} is a {type(text).__name__}; give text such as A24G")
            yield TextRow(f"variant {n}", (text.strip(),))

    def index(self, name: str) -> int:
        """The place of a column.

        Raises:
            ConfigError: always, because a list of variants has no columns.
        """
        raise ConfigError(f"no column {name!r}: the variants are a list; name columns for a table only")


def open_rows(given: str | Iterable[str]) -> TextTable | TextList:
    """The rows of a file, where a path is given, or of texts."""
    return TextTable(given, is_variant, LIST_COLUMN) if isinstance(given, str) else TextList(given)


class VariantReader:
    """Iterates once over the rows of an input, in their order.

    Attributes:
        columns: names of the fields that rows have.
        label, positive: places of the measured columns; None if there are none.
        invalid: how many rows have no score so far; `first_invalid` says why the first has none.
    """

    def __init__(
        self,
        rows: TextTable | TextList,
        wild_type: WildType,
        options: VariantOptions,
        check: Callable[[Variant], None] = lambda variant: None,
    ) -> None:
        """Find the columns.

        Args:
            check: refuses variants for a reason of its own.

        Raises:
            DataError: a column that is not there; ConfigError: columns of a list.
        """
        self._rows, self._wild, self._options, self._check = rows, wild_type, options, check
        self.columns, self.is_list = rows.columns, rows.is_list
        self._holds_sequences = options.seq_col is not None
        self._text = self._variant_column() if self.columns else 0
        self.label = rows.index(options.label_col) if options.label_col is not None and self.columns else None
        self.positive = self._bin_column()
        self.invalid, self.first_invalid = 0, ""

    @property
    def notes(self) -> list[str]:
        """What was left out of the input, and is not wrong."""
        return self._rows.notes

    def __iter__(self) -> Iterator[Item]:
        rows = iter(self._rows)
        for n, row in enumerate(rows):
            label = math.nan if self.label is None else self._number(row, self.label)
            positive = math.nan if self.positive is None else self._number(row, self.positive)
            if not (math.isnan(positive) or positive in (0.0, 1.0)):
                self._refuse_number(row, self.positive, "0 or 1")
            yield Item(n, row.place, row.cells, self._variant(row, rows), label, positive)

    def _variant_column(self) -> int:
        o = self._options
        if self._rows.is_list and o.col is None and o.seq_col is None:
            return 0
        if (name := o.seq_col or o.col) is not None:
            return self._rows.index(name)
        for name in _KNOWN_COLUMNS:
            if name in self.columns:
                return self.columns.index(name)
        if _KNOWN_SEQUENCES in self.columns:
            self._holds_sequences = True
            return self.columns.index(_KNOWN_SEQUENCES)
        shown = ", ".join(repr(column) for column in self.columns[:12])
        text = "{path}: no column is called {known}; the first row names {shown}; say with {col} which has the variants"
        parts = {"known": ", ".join(_KNOWN_COLUMNS), "shown": shown, "col": Argument("col")}
        raise DataError(Message(text, path=getattr(self._rows, "path", ""), **parts))

    def _bin_column(self) -> int | None:
        name = self._options.bin_col
        if name is None:
            asked = self._options.label_col is not None and _KNOWN_BINS in self.columns
            return self.columns.index(_KNOWN_BINS) if asked else None
        return self._rows.index(name) if self.columns else None

    def _variant(self, row: TextRow, rest: Iterator[TextRow]) -> Variant | None:
        try:
            variant = self._read(row.cells[self._text], rest)
            self._check(variant)
        except DataError as error:
            reason = error.args[0]
            if isinstance(error, FastaError):
                # Without the place that stands for a file: the row is named.
                reason = f"{self.columns[self._text]}: {str(reason).split(': ', 1)[1]}"
            text = Message("{place}: {what}", place=row.place, what=reason)
            if self._options.invalid == "error":
                raise DataError(text) from error
            self.first_invalid = self.first_invalid or text
            self.invalid += 1
            return None
        return variant

    def _read(self, text: str, rest: Iterator[TextRow]) -> Variant:
        if self._holds_sequences:
            # The letters of NA and of None are residues too.
            if text.strip().lower() in _MISSING:
                raise DataError(f"{self.columns[self._text]} is {text!r}, which is not a sequence")
            return difference(io.encode(text, residues="strict")[0], self._wild)
        mutations = read_mutations(text)
        try:
            return resolve(mutations, self._wild)
        except DataError as error:
            if self._options.invalid != "error":
                raise
            for row in itertools.islice(rest, _LOOKED_AT):
                if is_variant(row.cells[self._text]):
                    mutations += read_mutations(row.cells[self._text])
            offset = fitting_offset(mutations, self._wild)
            if offset in (None, self._wild.offset):
                raise
            parts = {"what": error.args[0], "offset": Argument("offset", offset)}
            raise DataError(Message("{what}; this and the next variants fit with {offset}", **parts)) from error

    def _number(self, row: TextRow, column: int) -> float:
        text = row.cells[column].strip()
        if text.lower() in _MISSING:
            return math.nan
        try:
            number = float(text)
        except ValueError:
            number = math.inf
        if not math.isfinite(number):
            self._refuse_number(row, column, "a number")
        return number

    def _refuse_number(self, row: TextRow, column: int | None, what: str) -> None:
        assert column is not None
        text = row.cells[column]
        shown = repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...")
        raise DataError(f"{row.place}: {self.columns[column]} is {shown}; it must be {what}, or empty")


@dataclass(slots=True)
class Work:
    """What an input holds, found out before it is scored.

    Attributes:
        sites, sets: distinct sites that are changed, and distinct sets of them, of which not all are counted.
        indel: the first row that changes the length.
    """

    count: int
    sites: set[int]
    sets: set[tuple[int, ...]]
    indel: Item | None

    @classmethod
    def of(cls, items: Iterable[Item], progress: Callable[[int], None]) -> Work:
        """Read all rows."""
        work = cls(0, set(), set(), None)
        for item in items:
            work.count += 1
            progress(1)
            if item.variant is None:
                continue
            if item.variant.is_substitution:
                work.sites.update(item.variant.sites)
                if len(work.sets) < _MAX_SETS:
                    work.sets.add(item.variant.sites)
            elif work.indel is None:
                work.indel = item
        return work


def is_file_name(word: str) -> bool:
    """Whether a word names a file rather than a variant: by its form, never by looking for one."""
    from protperf.lm.source import is_path

    return not is_variant(word) and is_path(word)


def input_of(words: Sequence[str]) -> str | list[str]:
    """What the words of a command line name: one file, or variants.

    Raises:
        ConfigError: files and variants at once, or several files, whose columns may differ.
    """
    files = [word for word in words if is_file_name(word)]
    if not files:
        for word in words:
            # An error in any case; only its remedy depends on what there is.
            if not is_variant(word) and os.path.exists(word):
                raise ConfigError(f"{word!r} is not a variant; if the file is meant, write .{os.sep}{word}")
        return list(words)
    if len(words) > 1:
        other = next((word for word in words if word != files[0]), files[0])
        raise ConfigError(f"{files[0]} is a file and {other!r} comes with it; give one file, or variants alone")
    return files[0]
