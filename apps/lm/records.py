"""What Python callers hand in as records, made tokens; and what a reader has to tell them at the end."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

from protperf import io
from protperf.errors import DtypeError, FastaError


def records_of(records: Any, residues: str = "map") -> Iterator[io.Record]:
    """Iterate over records: a string of residues, a SeqRecord, an (id, sequence) pair, a path, or an iterable of these.

    A string counts as a path where it is `-`, holds a path separator or names something that exists; a string inside
    an iterable is always a sequence. Under `skip` the records left out keep their ordinal, and a `UserWarning` at the
    end counts them; so it does what looks like nucleotides.

    Raises:
        FastaError: a fault under the policy, with `<record N>` for a path where the sequence came from no file;
        FileError: as `protperf.io.read_tokens`; DtypeError: an item that is none of these.
    """
    if isinstance(records, os.PathLike) or (isinstance(records, str) and _is_path(records)):
        reader = io.read_tokens(records, residues=residues)
        yield from (record for batch in reader for record in batch)
        warn_of(reader.summary)
        return
    single = isinstance(records, (str, tuple)) or hasattr(records, "seq")
    yield from _in_memory([records] if single else records, residues)


def warn_of(summary: io.Summary, stacklevel: int = 3) -> None:
    """Warn of what deserves an eye: an empty file, nucleotides, records left out."""
    for text in summary.warnings:
        warnings.warn(text, stacklevel=stacklevel)
    _warn_of_rejected(summary.rejected, summary.records + summary.rejected, stacklevel + 1)


def _warn_of_rejected(rejected: int, total: int, stacklevel: int) -> None:
    if rejected:
        warnings.warn(f"{rejected} of {total} records were left out by residues='skip'", stacklevel=stacklevel)


def _in_memory(items: Any, residues: str) -> Iterator[io.Record]:
    total = rejected = nucleotides = 0
    for n, item in enumerate(items):
        total = n + 1
        if isinstance(item, io.Record):
            yield item
            continue
        name, sequence = _named(item, n)
        try:
            tokens, flags = io.encode(sequence, residues=residues, name=f"<record {n}>")
        except FastaError:
            if residues != "skip":
                raise
            rejected += 1
            continue
        nucleotides += bool(flags & io.FLAGS["nucleotides"])
        yield io.Record(n, name, "", tokens, flags, "", 0)
    if nucleotides:
        text = f"{nucleotides} of {total} records look like nucleotides (over 50 letters, all of ACGTUN)"
        warnings.warn(f"{text}; translate them first", stacklevel=4)
    _warn_of_rejected(rejected, total, 5)


def _is_path(text: str) -> bool:
    return text == "-" or os.path.sep in text or os.path.exists(text)


def _named(item: Any, n: int) -> tuple[str, str]:
    if isinstance(item, str):
        return str(n), item
    if isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item):
        return item[0], item[1]
    if hasattr(item, "seq") and hasattr(item, "id"):
        return str(item.id), str(item.seq)
    raise DtypeError(f"record {n} is a {type(item).__name__}; give text, a SeqRecord or a pair (id, sequence)")
