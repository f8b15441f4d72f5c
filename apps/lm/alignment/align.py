"""The alignment of a family that comes without one: every sequence is placed in a profile of the family.

The first profile is the query, whose residues are the columns, by BLOSUM62. The sequences that fit it make the next
one, which knows where residues are kept and where anything goes, so that more distant members fit as well. Insertions
have no columns, so a sequence is aligned to the profile and to nothing else, and the work grows as their number.

Source: the rounds are those of PSI-BLAST, Altschul et al. 1997, Nucleic Acids Res. 25:3389.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.alignment import row_weights
from protperf.errors import DataError, FileError
from protperf.lm.alignment import profile
from protperf.lm.alignment.alignment import GAP, codes_of
from protperf.lm.alignment.options import AlignOptions
from protperf.lm.alignment.placement import place, score_of
from protperf.lm.alignment.substitution import substitution
from protperf.lm.shared_options import ReadingOptions
from protperf.lm.source import Source
from protperf.lm.storage.durable import replace_file
from protperf.lm.watch import Stage, Watch
from protperf.message import Argument, Message

_THETA = 0.8
"""Identity at which two rows share the weight of one."""
_LEAST_SCORE = 20.0
"""Score in nats from which a sequence fits: random ones of any length reach 6 in one case of twenty, 16 in one of ten
thousand, so that of ten thousand unrelated ones hardly one is taken for a member."""
_AT_ONCE = 64
"""Sequences between two signs of progress."""


@dataclass(frozen=True, slots=True)
class Aligned:
    """Members in the columns of a query.

    Attributes:
        columns: of each sequence that fits, in order, the column of each residue, -1 where it stands in none.
        fits: whether each of the sequences fits [N].
    """

    columns: list[NDArray[np.int64]]
    fits: NDArray[np.bool_]


def align(
    query: NDArray[np.uint8], sequences: Sequence[NDArray[np.uint8]], rounds: int, stage: Stage | None = None
) -> Aligned:
    """Place sequences in the columns of a query; the place of one does not depend on those placed with it.

    Shapes: query [L] and each sequence hold residues by their place in `LETTERS`, and `GAP` for others.

    Args:
        rounds: profiles that are made of the sequences that fit the one before.
    """
    known = substitution()
    log_probs = np.log(np.vstack([known.conditional, known.background]))[query]
    for last in range(rounds + 1):
        scores = profile.log_odds(log_probs)
        columns = _placed(sequences, scores, stage)
        pairs = zip(sequences, columns, strict=True)
        fits = np.array([score_of(*pair, scores) >= _LEAST_SCORE for pair in pairs], bool)
        if last < rounds:
            codes = np.full((1 + int(fits.sum()), len(query)), GAP, np.uint8)
            codes[0] = query
            for row, at in zip(codes[1:], np.flatnonzero(fits).tolist(), strict=True):
                inside = columns[at] >= 0
                row[columns[at][inside]] = sequences[at][inside]
            log_probs = profile.fit(codes, row_weights(codes, _THETA))
    return Aligned([columns[at] for at in np.flatnonzero(fits).tolist()], fits)


def _placed(
    sequences: Sequence[NDArray[np.uint8]], scores: NDArray[np.float32], stage: Stage | None
) -> list[NDArray[np.int64]]:
    """`place`, those of about one length together, which are padded least."""
    order = np.argsort([len(sequence) for sequence in sequences], kind="stable").tolist()
    found: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(sequences)
    for low in range(0, len(order), _AT_ONCE):
        part = order[low : low + _AT_ONCE]
        for at, columns in zip(part, place([sequences[at] for at in part], scores), strict=True):
            found[at] = columns
        if stage is not None:
            stage.update(len(part))
    return found


def align_files(data: Sequence[str], options: AlignOptions, watch: Watch | None = None) -> Aligned:
    """Align the sequences of files and write the rows of those that fit, the query first.

    Raises:
        ConfigError: no file, or a file in the way; DataError: no sequence, no query, or none that fits it; FastaError,
        FileError: a file is at fault, or the alignment cannot be written.
    """
    watch = watch or Watch()
    _check_free(options.out, options.force)
    source = Source(list(data), ReadingOptions(residues=options.residues))
    with watch.waiting("reading", " sequences") as stage:
        records = []
        for record in source:
            records.append(record)
            stage.update(1)
    for text in source.warnings:
        watch.warn(text)
    if not records:
        raise DataError(f"{', '.join(data)}: has no sequences to align")
    query = records.pop(0) if options.query is None else _read_query(os.fspath(options.query))
    total = (options.rounds + 1) * len(records)
    with watch.working("aligning", " sequences", total, "") as stage:
        found = align(codes_of(query.tokens), [codes_of(x.tokens) for x in records], options.rounds, stage)
    if records and not found.columns:
        raise DataError(f"none of {len(records):,} sequences fits the query {query.id!r}; is it one of this family?")
    chosen = [record for record, fits in zip(records, found.fits, strict=True) if fits]
    rows = [a3m(query, np.arange(len(query.tokens)), len(query.tokens))]
    rows += [a3m(record, columns, len(query.tokens)) for record, columns in zip(chosen, found.columns, strict=True)]
    data_out = "".join(rows).encode()
    if options.out.suffix == ".gz":
        import gzip

        data_out = gzip.compress(data_out, mtime=0)
    replace_file(options.out, data_out)
    return found


def _check_free(out: Path, force: bool) -> None:
    if not out.absolute().parent.is_dir():
        raise FileError(None, "there is no such directory; make it first", str(out.parent))
    if out.is_dir():
        raise FileError(None, "is a directory; name a file", str(out))
    if os.path.lexists(out) and not force:
        raise FileError(None, Message("exists; replace it with {force}", force=Argument("force", True)), str(out))


def _read_query(path: str) -> io.Record:
    records: list[io.Record] = []
    iterator: Iterator[io.Record] = iter(Source([path], ReadingOptions()))
    for record in iterator:
        records.append(record)
        if len(records) > 1:
            break
    if len(records) != 1:
        found = "several records" if records else "no record"
        raise DataError(Message("{query} holds {found}; give a file with one", query=Argument("query"), found=found))
    return records[0]


def a3m(record: io.Record, columns: NDArray[np.int64], num_columns: int) -> str:
    """A row of A3M: residues in columns in upper case, `-` where a column has none, insertions in lower case."""
    row, column = [f">{record.id}\n"], 0
    for letter, at in zip(io.decode(record.tokens), columns.tolist(), strict=True):
        if at < 0:
            row.append(letter.lower())
        else:
            row.append("-" * (at - column) + letter)
            column = at + 1
    return "".join([*row, "-" * (num_columns - column), "\n"])
