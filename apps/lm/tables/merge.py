"""Tables of the shards of one input as one table, once it is proved that nothing is missing.

Each shard's sidecar (`FILE.meta.json`) says what the table was made of. Shards belong together if model, input and
options are the same; together they are the whole if every shard is there, each file has the size that it was finished
with, each holds the records of its shard alone, and their number is that of the records in the input. Rows stay as they
were written.
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from protperf.errors import ConfigError, DataError, FileError
from protperf.lm.shared_options import read_shard
from protperf.lm.storage import durable
from protperf.lm.tables import parquet
from protperf.lm.tables.destination import check_inputs, companions
from protperf.message import Argument, Message

_OF_ONE_SHARD = {"shard", "command", "rows", "records_sha256", "bytes"}
"""What a sidecar says of its shard alone."""
_OF_ONE_MACHINE = {"input", "model", "isa"}
"""What may differ where shards were made on several machines: paths, and the instruction set that computed."""
_TEXT_FORMATS = ("tsv", "csv", "jsonl")


@dataclass(frozen=True, slots=True)
class Shard:
    """The table of a shard: its file, its place among `count` (from 0), and its sidecar."""

    path: Path
    place: int
    count: int
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Merged:
    """What was merged: shards, records and rows, and instruction sets where there are several."""

    shards: int
    records: int
    rows: int
    isas: tuple[str, ...]

    def notes(self) -> list[str]:
        """The same in words."""
        several = [f"computed on {' and '.join(self.isas)}, whose last digits differ"] if len(self.isas) > 1 else []
        return [f"{self.shards} shards, {self.records:,} records, {self.rows:,} rows: complete", *several]


def merge(tables: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Merged:
    """Write the one table, with a sidecar of its own.

    Raises:
        ConfigError: shards that do not belong together, twice the same, or a format that cannot be merged; DataError:
        one is missing, was changed, or lacks records; FileError: a file cannot be read or written.
    """
    paths, target = list(map(Path, tables)), Path(out)
    check_inputs(target, map(str, paths))
    shards = sorted(map(_read_shard, paths), key=lambda shard: shard.place)
    _check_together(shards)
    first, kind = shards[0], shards[0].facts["format"]
    if kind in _TEXT_FORMATS:
        staged, records = _stage_lines(shards, kind, target)
    elif kind == "parquet":
        staged, records = _stage_parquet(shards, target)
    else:
        raise ConfigError(f"{first.path}: is a file of {kind}, which is not merged; write parquet, or read the parts")
    if records != first.facts["records"]:
        staged.unlink()
        text = f"{records} of the {first.facts['records']} records of the input have rows; make the shards again"
        raise DataError(text)
    rows = sum(shard.facts["rows"] for shard in shards)
    own = {name: value for name, value in first.facts.items() if name not in _OF_ONE_SHARD}
    facts = {**own, "shards": [str(shard.path) for shard in shards], "rows": rows, "bytes": staged.stat().st_size}
    with durable.named(target):
        staged.replace(target)
    durable.replace_file(companions(target)[2], (json.dumps(facts, indent=1) + "\n").encode())
    return Merged(len(shards), records, rows, tuple(sorted({shard.facts["isa"] for shard in shards})))


def _read_shard(path: Path) -> Shard:
    meta = companions(path)[2]
    for needed in (path, meta):
        if not needed.is_file():
            raise FileError(None, "no such file; a shard is a finished table with its .meta.json", str(needed))
    with durable.named(meta):
        data = meta.read_bytes()
    try:
        facts = json.loads(data)
        place, count = read_shard(facts["shard"])
        known = {name: facts[name] for name in ("format", "records", "rows", "bytes", "isa")}
    except (ValueError, TypeError, KeyError):
        raise ConfigError(f"{path}: is not a table that was written with --shard, says {meta.name}") from None
    if path.stat().st_size != known["bytes"]:
        raise DataError(f"{path}: was changed after it was finished; make this shard again")
    return Shard(path, place, count, facts)


def _check_together(shards: Sequence[Shard]) -> None:
    """That the shards are of one job, and that none is missing or there twice."""
    first = shards[0]
    for other in shards[1:]:
        names = (set(first.facts) | set(other.facts)) - _OF_ONE_SHARD - _OF_ONE_MACHINE
        for name in sorted(names):
            if first.facts.get(name) != other.facts.get(name):
                what = name.replace("_", " ")
                raise ConfigError(f"{other.path}: is of another {what} than {first.path}; merge shards of one job")
    counts = {shard.count for shard in shards}
    if len(counts) > 1:
        raise ConfigError(f"{shards[-1].path}: is one of {shards[-1].count} shards, {first.path} one of {first.count}")
    for place, group in groupby(shards, key=lambda shard: shard.place):
        same = list(group)
        if len(same) > 1:
            raise ConfigError(f"{same[1].path}: is shard {place + 1}/{first.count}, as {same[0].path} is")
    missing = sorted(set(range(first.count)) - {shard.place for shard in shards})
    if missing:
        listed = ", ".join(f"{place + 1}/{first.count}" for place in missing[:10])
        raise DataError(Message("shard {listed} is missing; name the table of every {shard}", listed=listed,
                                shard=Argument("shard")))  # fmt: skip


def _stage_lines(shards: Sequence[Shard], kind: str, out: Path) -> tuple[Path, int]:
    """The rows in the order of the records, without holding them; returns the file and the number of records."""
    headers = {_header(shard, kind) for shard in shards}
    if len(headers) > 1:
        raise DataError(f"{shards[1].path}: has other columns than {shards[0].path}")
    count = 0

    def write(stream: Any) -> None:
        nonlocal count
        stream.write(headers.pop())
        rows = heapq.merge(*(_rows(shard, kind) for shard in shards), key=lambda row: row[0])
        for _, group in groupby(rows, key=lambda row: row[0]):
            count += 1
            for _, line in group:
                stream.write(line)

    return durable.stage_file(out, write), count


def _header(shard: Shard, kind: str) -> bytes:
    with shard.path.open("rb") as lines:
        return b"" if kind == "jsonl" else next(lines, b"")


def _rows(shard: Shard, kind: str) -> Iterator[tuple[int, bytes]]:
    """The number of the record and the line of each row, which must be of this shard and in order."""
    before, header = -1, kind != "jsonl"
    with shard.path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if number == 1 and header:
                continue
            n = _number(line, kind)
            if n is None or n % shard.count != shard.place or n < before:
                raise DataError(f"{shard.path}:{number}: is not a row of shard {shard.place + 1}/{shard.count}")
            before = n
            yield n, line


def _number(line: bytes, kind: str) -> int | None:
    try:
        if kind == "jsonl":
            return int(json.loads(line)["n"])
        return int(line.partition(b"\t" if kind == "tsv" else b",")[0])
    except (ValueError, KeyError, TypeError):
        return None


def _stage_parquet(shards: Sequence[Shard], out: Path) -> tuple[Path, int]:
    """The same for Parquet, which is held in memory."""
    parquet.require()
    import numpy as np
    import pyarrow
    from pyarrow.parquet import read_table, write_table

    tables = [read_table(shard.path) for shard in shards]
    for shard, found in zip(shards, tables, strict=True):
        n = found.column("n").to_numpy()
        if (n % shard.count != shard.place).any():
            raise DataError(f"{shard.path}: has rows that are not of shard {shard.place + 1}/{shard.count}")
    whole = pyarrow.concat_tables(tables)
    numbers = whole.column("n").to_numpy()
    # Rows of one record stay in their order.
    ordered = whole.take(np.argsort(numbers, kind="stable"))
    return durable.stage_file(out, lambda stream: write_table(ordered, stream)), len(np.unique(numbers))
