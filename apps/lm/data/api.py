"""The Python twins of `protperf data`: `data_stats`, `data_split`, `data_check`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from protperf.errors import DataError
from protperf.lm.data.options import PARTS, DataOptions
from protperf.lm.data.overlap import IDENTITIES, OverlapRow, overlap
from protperf.lm.data.partition import assign, groups_by_name, groups_of, write_split
from protperf.lm.data.records import read_records
from protperf.lm.data.stats import statistics
from protperf.lm.options import from_keywords, instance, pick, takes
from protperf.lm.shared_options import RejectOptions
from protperf.lm.tables.fill import file_digest
from protperf.lm.tables.rejects import RejectList
from protperf.message import Argument, Message

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Warn = Callable[[str], None]
_IDENTITY = Argument("identity")
SPLIT_OPTIONS = pick(
    DataOptions, "residues", "seq_col", "rejects", "dedup", "by", "identity", "clusters", "group_col", "fractions",
    "seed", "force",
)  # fmt: skip


def _silent(text: str) -> None:
    """Remarks that nobody asked for."""


def data_stats(
    fasta: Paths,
    residues: str = "map",
    warn: Warn = _silent,
    seq_col: str | None = None,
    rejects: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Counts, lengths, composition, odd residues and duplicates of sequence files, by name.

    Args:
        rejects: a table to write of the records that the policy left out, .tsv, .csv or .jsonl.
    """
    paths = _listed(fasta)
    left_out = _reject_list(rejects, paths)
    return statistics(read_records(paths, residues, warn, seq_col=seq_col, listing=left_out.reading))


@takes(SPLIT_OPTIONS)
def data_split(fasta: Paths, out: str | os.PathLike[str], *, warn: Warn = _silent, **options: Any) -> dict[str, Any]:
    """Divide sequence files into `train.fasta`, `valid.fasta` and `test.fasta` in a directory; returns the manifest.

    Relatives that were found are never in two parts (`by="cluster"`), nor are equal sequences.

    Raises:
        DataError: a part would be empty; ConfigError, FastaError, FileError: as on the command line.
    """
    asked = instance(DataOptions, from_keywords(options, SPLIT_OPTIONS))
    paths = _listed(fasta)
    left_out = RejectList(asked, paths)
    records = read_records(paths, asked.residues, warn, seq_col=asked.seq_col, listing=left_out.reading)
    groups_named = _group_names(paths, asked) if asked.by == "column" else None
    if asked.dedup:
        firsts = records.first_places()
        records = records.select(firsts)
        groups_named = groups_named and [groups_named[i] for i in firsts.tolist()]
    if groups_named is not None:
        groups = groups_by_name(records, groups_named)
    else:
        groups = groups_of(records, asked.by, asked.identity, asked.clusters)
    names = PARTS[: len(asked.shares)]
    parts = assign(groups, asked.shares, asked.seed)
    sizes = np.unique(groups, return_counts=True)[1]
    if len(np.unique(parts)) < len(names):
        text = f"a part would be empty: the {len(records)} sequences are {len(sizes)} group{'s' * (len(sizes) != 1)}"
        largest = f", the largest of {sizes.max()}" if len(sizes) else ""
        raise DataError(
            Message("{text}; raise {identity} or name fewer parts", text=text + largest, identity=_IDENTITY)
        )
    kept = {name: getattr(asked, name) for name in ("by", "identity", "seed", "residues", "dedup", "group_col")}
    facts = {
        "input": [{"path": path, "sha256": file_digest(path)} for path in paths],
        **kept,
        "clusters": None if asked.clusters is None else str(asked.clusters),
        "fractions": list(asked.shares),
        "groups": len(sizes),
    }
    return write_split(records, parts, names, Path(out), facts, asked.force)


def _group_names(paths: list[str], asked: DataOptions) -> list[str]:
    """The groups of a table's rows: the same records with their groups as names, which are read like any header."""
    named = read_records(paths, asked.residues, seq_col=asked.seq_col, id_col=asked.group_col)
    return [f"{name} {more}" for name, more in zip(named.ids, named.descriptions, strict=True)]


def data_check(
    known: Paths,
    asked: Paths,
    residues: str = "map",
    identities: Sequence[float] = IDENTITIES,
    warn: Warn = _silent,
    seq_col: str | None = None,
    rejects: str | os.PathLike[str] | None = None,
) -> list[OverlapRow]:
    """How much of the set `asked` is known from the set `known`: equal sequences, and relatives at each identity.

    Args:
        rejects: a table to write of the records of both that the policy left out, .tsv, .csv or .jsonl.
    """
    sets = [_listed(known), _listed(asked)]
    left_out = _reject_list(rejects, [path for paths in sets for path in paths])
    records = [read_records(paths, residues, warn, seq_col=seq_col, listing=left_out.reading) for paths in sets]
    return overlap(records[0], records[1], tuple(identities))


def _reject_list(path: str | os.PathLike[str] | None, taken: Sequence[str]) -> RejectList:
    return RejectList(None if path is None else RejectOptions(rejects=Path(path)), taken)


def _listed(paths: Paths) -> list[str]:
    return [os.fspath(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
