"""Sequences as Biopython records, for scripts that already use Biopython."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from protperf import io

if TYPE_CHECKING:
    from Bio.SeqRecord import SeqRecord


def read_fasta(
    path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], residues: str = "map"
) -> Iterator[SeqRecord]:
    """Iterate over the records of a FASTA file after the residue policy, as `Bio.SeqRecord`s.

    The file may be compressed (recognised by content), `-` is standard input, several paths are read in their order.
    `id` is the first word of the header and `description` the whole header, as in Biopython. `annotations` hold `n`,
    the record's place among all records (0-based, rejected ones counted), and `flags`, the names of the record's flags,
    joined by commas. A `UserWarning` at the end says how many records `skip` left out, how many look like nucleotides,
    or that a file is empty.

    Args:
        path: one path or several.
        residues: `map`, `strict` or `skip`; see `protperf.io.read_tokens`.

    Raises:
        FastaError: not FASTA, or a fault under the policy; raised when iteration reaches it.
        FileError: missing or unreadable; raised at once.
    """
    return _as_records(io.read_tokens(path, residues=residues))


def _as_records(reader: io.Reader) -> Iterator[SeqRecord]:
    from Bio.Seq import Seq
    from Bio.SeqRecord import SeqRecord

    for record in (record for batch in reader for record in batch):
        description = f"{record.id} {record.description}".strip(" ")
        flags = ",".join(io.flag_names(record.flags))
        annotations: dict[str, str | int] = {"n": record.n, "flags": flags, "molecule_type": "protein"}
        yield SeqRecord(
            Seq(record.sequence), id=record.id, name=record.id, description=description, annotations=annotations
        )
    for text in reader.warnings:
        warnings.warn(text, stacklevel=2)
