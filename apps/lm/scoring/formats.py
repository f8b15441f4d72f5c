"""What a table of scores is written as, and into what: rows as text in each format, files and streams."""

from __future__ import annotations

import csv
import io as text_io
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeGuard

from protperf.errors import ConfigError
from protperf.lm.scoring import parquet
from protperf.lm.scoring.choices import FORMATS
from protperf.lm.storage import durable

_OTHER = ("gz", "xz", "zst", "bz2", "zip", "json", "pq", "xlsx")
"""Suffixes of what is not written here, and what TSV would be mistaken for."""


def choose_format(name: str | None, out: Path | None) -> str:
    """The format asked for, else the one of the suffix, else TSV.

    Raises:
        ConfigError: an unknown format, or Parquet for what is no file; MissingPackageError: Parquet without pyarrow.
    """
    if name is None:
        suffix = "" if out is None else out.suffix.lower().removeprefix(".")
        if suffix in _OTHER:
            known = ", ".join(f".{known}" for known in FORMATS)
            raise ConfigError(f"-o {out} would not be {suffix}; name a file that ends in one of {known}")
        name = suffix if suffix in FORMATS else "tsv"
    if name not in FORMATS:
        raise ConfigError(f"format is {name!r}; choose one of {', '.join(FORMATS)}")
    if name == "parquet":
        if not is_file(out):
            raise ConfigError("format parquet is written as a whole file; name one with -o")
        parquet.require()
    return name


def is_file(out: Path | None) -> TypeGuard[Path]:
    """Whether the output is a file that can be replaced, and neither a stream nor a device."""
    return out is not None and descriptor_of(out) is None and (not out.exists() or out.is_file())


def descriptor_of(out: Path) -> int | None:
    """The open file that a name such as /dev/stdout or /dev/fd/3 stands for: to be written to where it stands."""
    name = str(out)
    if name in ("/dev/stdout", "/dev/stderr"):
        return 1 if name == "/dev/stdout" else 2
    match = re.fullmatch(r"(?:/dev|/proc/self)/fd/(\d+)", name)
    return int(match[1]) if match else None


class Encoder:
    """Rows as lines of text: floats in full precision; JSON has null for NaN."""

    def __init__(self, columns: Mapping[str, type], name: str) -> None:
        self._columns, self.name = columns, name

    def header(self) -> str:
        return "" if self.name == "jsonl" else self._line(self._columns)

    def row(self, row: object) -> str:
        values = [getattr(row, column) for column in self._columns]
        if self.name == "jsonl":
            plain = [None if isinstance(v, float) and not math.isfinite(v) else v for v in values]
            return json.dumps(dict(zip(self._columns, plain, strict=True))) + "\n"
        return self._line([repr(v) if isinstance(v, float) else str(v) for v in values])

    def _line(self, values: Iterable[str]) -> str:
        if self.name != "csv":
            return "\t".join(values) + "\n"
        stream = text_io.StringIO()
        csv.writer(stream, lineterminator="\n").writerow(values)
        return stream.getvalue()

    def finished(self, part: Path, out: Path) -> Path:
        """The file that becomes `out`: the lines themselves, or the Parquet table of them, staged beside it."""
        if self.name != "parquet":
            return part
        with open(part, encoding="utf-8", newline="\n") as lines:
            next(lines)
            return durable.stage_file(out, lambda stream: parquet.write(lines, self._columns, stream))
