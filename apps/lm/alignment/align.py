"""The alignment of a family that comes without one: every sequence is placed in a profile of the family.

The first profile is the query, whose residues are the columns, by BLOSUM62. The sequences that fit it make the next
one, which knows where residues are kept and where anything goes, so that more distant members fit as well. Insertions
have no columns, so a sequence is aligned to the profile and to nothing else, and the work grows as their number.

Source: the rounds are those of PSI-BLAST, Altschul et al. 1997, Nucleic Acids Res. 25:3389.
"""

from __future__ import annotations

import gzip
import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.alignment import Placed, row_weights
from protperf.errors import DataError, FileError
from protperf.lm.alignment import profile
from protperf.lm.alignment.alignment import GAP, Alignment, codes_of
from protperf.lm.alignment.options import ROUNDS, AlignOptions
from protperf.lm.alignment.placement import place
from protperf.lm.alignment.substitution import substitution
from protperf.lm.shared_options import ReadingOptions
from protperf.lm.source import only_record
from protperf.lm.storage.durable import replace_file
from protperf.lm.tables.destination import check_inputs
from protperf.lm.watch import Stage, Watch
from protperf.message import Argument, Message

_THETA = 0.8
"""Identity at which two rows share the weight of one."""
_EXPECTED = 1e-3
"""Sequences that fit by chance, of all that are aligned."""
_DECAY = 0.84
"""By how much, in the exponent, chance scores become rarer with each nat: 0.267 per unit of BLOSUM62 with gaps of 11
and 1, a unit being 0.318 nats. The differences of random proteins of 300 residues decay by 0.82 to 0.95."""
_BEYOND_DOUBT = 2.0
"""Multiple of the least score from which no other order of the residues is tried."""
_NUM_SHUFFLED = 32
_AT_ONCE = 1024
"""Sequences between two signs of progress."""


@dataclass(frozen=True, slots=True)
class Aligned:
    """Members in the columns of a query.

    Attributes:
        columns: of each sequence that fits, in order, the column of each residue, -1 where it stands in none.
        fits: whether each of the sequences fits [N].
    """

    columns: list[NDArray[np.int32]]
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
    for _ in range(rounds):
        log_probs = _profile(query, sequences, _aligned(sequences, log_probs, stage))
    return _aligned(sequences, log_probs, stage)


def _aligned(sequences: Sequence[NDArray[np.uint8]], log_probs: NDArray[np.floating], stage: Stage | None) -> Aligned:
    scores = profile.log_odds(log_probs)
    placed: list[Placed] = []
    for low in range(0, len(sequences), _AT_ONCE):
        part = sequences[low : low + _AT_ONCE]
        placed += place(part, scores)
        if stage is not None:
            stage.update(len(part))
    fits = _fits(sequences, placed, scores)
    return Aligned([found.columns for found in itertools.compress(placed, fits)], fits)


def _fits(
    sequences: Sequence[NDArray[np.uint8]], placed: Sequence[Placed], scores: NDArray[np.float32]
) -> NDArray[np.bool_]:
    rarity = np.log(len(sequences) / _EXPECTED)
    least, found = rarity / _DECAY, np.array([one.score for one in placed], np.float64)
    # No alignment scores below 0, so only those that score well enough by themselves need be read backwards.
    (likely,) = np.nonzero(found >= least)
    differences = found[likely] - _scores([sequences[at][::-1] for at in likely.tolist()], scores)
    fits = np.zeros(len(placed), bool)
    fits[likely[differences >= least]] = True
    doubtful = likely[(differences >= least) & (differences < _BEYOND_DOUBT * least)]
    doubted = [sequences[at] for at in doubtful.tolist()]
    for at, by_chance in zip(doubtful, _shuffled_scores(doubted, scores), strict=True):
        # Mean and deviation of an extreme-value distribution say where it begins and how it decays.
        decay = math.pi / math.sqrt(6) / max(by_chance.std(ddof=1), 1e-6)
        fits[at] = found[at] >= by_chance.mean() + (rarity - np.euler_gamma) / decay
    return fits


def _shuffled_scores(sequences: Sequence[NDArray[np.uint8]], scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of the residues of each sequence in `_NUM_SHUFFLED` other orders, which do not depend on the other sequences."""
    orders = [
        rng.permutation(sequence)
        for sequence in sequences
        for rng in [np.random.default_rng(0)]
        for _ in range(_NUM_SHUFFLED)
    ]
    return _scores(orders, scores).reshape(len(sequences), _NUM_SHUFFLED)


def _scores(sequences: Sequence[NDArray[np.uint8]], scores: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.array([one.score for one in place(sequences, scores)], np.float64)


def _profile(query: NDArray[np.uint8], sequences: Sequence[NDArray[np.uint8]], aligned: Aligned) -> NDArray[np.float64]:
    codes = _rows(query, sequences, aligned)
    return profile.fit(codes, row_weights(codes, _THETA))


def _rows(query: NDArray[np.uint8], sequences: Sequence[NDArray[np.uint8]], aligned: Aligned) -> NDArray[np.uint8]:
    """The query and the sequences that fit, in its columns [N, L]."""
    codes = np.full((1 + len(aligned.columns), len(query)), GAP, np.uint8)
    codes[0] = query
    chosen = itertools.compress(sequences, aligned.fits)
    for row, sequence, columns in zip(codes[1:], chosen, aligned.columns, strict=True):
        inside = columns >= 0
        row[columns[inside]] = sequence[inside]
    return codes


def aligned_to(query_id: str, query: NDArray[np.uint8], path: str, watch: Watch) -> Alignment:
    """The sequences of a file in the columns of a query, whose codes are [L]: what `align_files` writes, in memory.

    Raises:
        DataError: no sequence, or none that fits; FastaError, FileError: the file is at fault or cannot be read.
    """
    records = _read([path], "map", watch)
    sequences = [codes_of(record.tokens) for record in records]
    found = _watched(query_id, query, sequences, ROUNDS, watch)
    ids = [query_id, *(record.id for record in itertools.compress(records, found.fits))]
    note = f"{path}: {len(found.columns):,} of {len(records):,} sequences aligned to {query_id}"
    return Alignment(ids, _rows(query, sequences, found), (note,))


def align_files(data: Sequence[str], options: AlignOptions, watch: Watch | None = None) -> Aligned:
    """Align the sequences of files and write the rows of those that fit, the query first.

    Raises:
        ConfigError: the alignment would overwrite an input; DataError: no sequence, no query, or none that fits it;
        FastaError: a file is at fault; FileError: one cannot be read, or the alignment not be written.
    """
    watch = watch or Watch()
    query_file = [] if options.query is None else [os.fspath(options.query)]
    check_inputs(options.out, [*data, *query_file])
    _check_free(options.out, options.force)
    records = _read(data, options.residues, watch)
    # A gap in it would shift the columns, so it is read as the protein that variants change is.
    strict = ReadingOptions(residues="strict")
    query = only_record(query_file, strict, "query") if query_file else records.pop(0)
    sequences = [codes_of(record.tokens) for record in records]
    found = _watched(query.id, codes_of(query.tokens), sequences, options.rounds, watch)
    chosen = itertools.compress(records, found.fits)
    rows = [a3m(query, np.arange(len(query.tokens)), len(query.tokens))]
    rows += [a3m(record, columns, len(query.tokens)) for record, columns in zip(chosen, found.columns, strict=True)]
    written = "".join(rows).encode()
    replace_file(options.out, gzip.compress(written, mtime=0) if options.out.suffix == ".gz" else written)
    return found


def _read(data: Sequence[str], residues: str, watch: Watch) -> list[io.Record]:
    reader = io.read_tokens(list(data), residues=residues)
    records: list[io.Record] = []
    with watch.waiting("reading", " sequences") as stage:
        for batch in reader:
            read = list(batch)
            records += read
            stage.update(len(read))
    for text in reader.warnings:
        watch.warn(text)
    if not records:
        raise DataError(f"{', '.join(data) or 'the input'}: has no sequences to align")
    return records


def _watched(
    query_id: str, query: NDArray[np.uint8], sequences: Sequence[NDArray[np.uint8]], rounds: int, watch: Watch
) -> Aligned:
    """`align`, with its progress.

    Raises:
        DataError: no sequence fits.
    """
    with watch.working("aligning", " alignments", (rounds + 1) * len(sequences), "") as stage:
        found = align(query, sequences, rounds, stage)
    if sequences and not found.columns:
        raise DataError(f"none of {len(sequences):,} sequences fits the query {query_id!r}; is it one of this family?")
    return found


def _check_free(out: Path, force: bool) -> None:
    if out.is_dir():
        raise FileError(None, "is a directory; name a file", str(out))
    if os.path.lexists(out) and not force:
        raise FileError(None, Message("exists; replace it with {force}", force=Argument("force", True)), str(out))


def a3m(record: io.Record, columns: NDArray[np.integer], num_columns: int) -> str:
    """A row of A3M: residues in columns in upper case, `-` where a column has none, insertions in lower case."""
    row, column = [f">{record.id}\n"], 0
    for letter, at in zip(io.decode(record.tokens), columns.tolist(), strict=True):
        if at < 0:
            row.append(letter.lower())
        else:
            row.append("-" * (at - column) + letter)
            column = at + 1
    return "".join([*row, "-" * (num_columns - column), "\n"])
