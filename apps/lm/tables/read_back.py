"""Numbers out of a table that was written here: what an earlier run computed need not be computed again."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

from protperf.lm.tables.text_table import TextTable


def read_numbers(path: Path, name: str, column: str, count: int) -> list[float]:
    """The first numbers of a column of a table.

    Args:
        name: its format, one of `tables.options.FORMATS`.
    """
    if name == "parquet":
        from pyarrow.parquet import ParquetFile

        found: list[float | None] = []
        for batch in ParquetFile(path).iter_batches(columns=[column]):
            found += batch.column(0).to_pylist()
            if len(found) >= count:
                break
        return [_number(value) for value in found[:count]]
    if name == "jsonl":
        with open(path, encoding="utf-8") as lines:
            return [_number(json.loads(line)[column]) for line in itertools.islice(lines, count)]
    table = TextTable(str(path), lambda line: False, column)
    place = table.index(column)
    return [float(row.cells[place]) for row in itertools.islice(table, count)]


def _number(value: float | None) -> float:
    return math.nan if value is None else value
