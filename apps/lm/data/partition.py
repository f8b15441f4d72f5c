"""Divide a set into parts so that no relatives are in two of them: groups are kept whole, large ones placed first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protperf import __version__, io
from protperf.errors import ConfigError, DataError
from protperf.lm.data.cluster import cluster
from protperf.lm.data.records import Records
from protperf.lm.data.stream import Stream, generator
from protperf.lm.storage import durable
from protperf.message import Argument, Message

MANIFEST = "split.json"
_WIDTH = 60


def groups_of(records: Records, by: str, identity: float, clusters: Path | None) -> NDArray[np.int64]:
    """What has to stay together [R]: equal sequences, or clusters, found here or read from a table.

    Raises:
        DataError: a table that lacks a sequence, or is not one of two columns.
    """
    if clusters is not None:
        return _read_clusters(records, clusters)
    return cluster(records.store, identity) if by == "cluster" else records.first_equal()


def _read_clusters(records: Records, path: Path) -> NDArray[np.int64]:
    """Clusters of a table of two columns without a header, representative and member, as MMseqs2 writes it."""
    number: dict[str, int] = {}
    cluster_of: dict[str, int] = {}
    text = b"".join(io.read_bytes(path)).decode("utf-8", "surrogateescape")
    for line, row in enumerate(text.splitlines(), 1):
        cells = row.split("\t")
        if len(cells) != 2:
            raise DataError(f"{path}:{line}: has {len(cells)} columns; a table of clusters has two, separated by a tab")
        cluster_of[cells[1]] = number.setdefault(cells[0], len(number))
    missing = [name for name in records.ids if name not in cluster_of]
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise DataError(f"{path}: has no cluster of {missing[0]!r}{others}; make the table of all sequences")
    return _joined(records, np.array([cluster_of[name] for name in records.ids], np.int64))


def groups_by_name(records: Records, names: Sequence[str]) -> NDArray[np.int64]:
    """What has to stay together [R]: records whose groups have the same name, and equal sequences."""
    number: dict[str, int] = {}
    return _joined(records, np.array([number.setdefault(name, len(number)) for name in names], np.int64))


def _joined(records: Records, groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Groups [R], of which those that have a sequence in common are one."""
    first, count = records.first_equal(), int(groups.max(initial=-1)) + 1
    while True:
        lowest = np.full(len(records), count, np.int64)
        np.minimum.at(lowest, first, groups)
        merged = np.arange(count)
        np.minimum.at(merged, groups, lowest[first])
        if (merged[groups] == groups).all():
            return groups
        groups = merged[groups]


def assign(groups: NDArray[np.int64], fractions: Sequence[float], seed: int) -> NDArray[np.int64]:
    """The part of each record [R]: groups go, the largest first and equal sizes in random order, to the part that lacks
    most of its share.
    """
    names, counts = np.unique(groups, return_counts=True)
    order = generator(seed, Stream.SPLIT).permutation(len(names))
    order = order[np.argsort(-counts[order], kind="stable")]
    lacking = np.array(fractions) / sum(fractions) * len(groups)
    part_of = np.empty(len(names), np.int64)
    for one in order.tolist():
        part = int(np.argmax(lacking))
        part_of[one] = part
        lacking[part] -= counts[one]
    return part_of[np.searchsorted(names, groups)]


def write_split(
    records: Records, parts: NDArray[np.int64], names: Sequence[str], out: Path, facts: dict[str, Any], force: bool
) -> dict[str, Any]:
    """Write a FASTA file per part and a manifest, which comes last; returns the manifest.

    Raises:
        ConfigError: there are such files already and `force` was not given; OSError: they cannot be written.
    """
    with durable.named(out):
        out.mkdir(parents=True, exist_ok=True)
    taken = [path for path in (*(out / f"{name}.fasta" for name in names), out / MANIFEST) if path.exists()]
    if taken and not force:
        text = "{path}: exists already; replace it with {force}, or name another directory with {out}"
        raise ConfigError(Message(text, path=taken[0], force=Argument("force", True), out=Argument("out")))
    written = {}
    for part, name in enumerate(names):
        members = np.flatnonzero(parts == part).tolist()
        data = "".join(_record(records, index) for index in members).encode("utf-8", "surrogateescape")
        durable.replace_file(out / f"{name}.fasta", data)
        residues = int(np.diff(records.offsets)[members].sum())
        written[name] = {"file": f"{name}.fasta", "sequences": len(members), "residues": residues}
    manifest = {"version": __version__, **facts, "parts": written}
    durable.replace_file(out / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def _record(records: Records, index: int) -> str:
    letters = io.decode(records.sequence(index))
    lines = [letters[start : start + _WIDTH] for start in range(0, len(letters), _WIDTH)]
    header = f"{records.ids[index]} {records.descriptions[index]}".rstrip()
    return "\n".join([f">{header}", *lines]) + "\n"
