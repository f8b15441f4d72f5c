"""What can be asked of any command that writes a table. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from protperf.lm.options import check, option

FORMATS = ("tsv", "csv", "jsonl", "parquet")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TableOptions:
    """Where a table goes, as what, and what happens to one that was not finished."""

    out: Path | None = option(
        None, "File to write, with FILE.meta.json next to it.", short="-o", unit="FILE", shown_default="standard output"
    )
    format: str | None = option(
        None,
        "tsv, csv, jsonl, or parquet, which needs pyarrow.",
        choices=FORMATS,
        shown_default="suffix of -o, else tsv",
    )
    resume: bool = option(False, "Continue the table in FILE.part, with the same model, input and options.")
    force: bool = option(False, "Start over where FILE.part has rows of a table that was interrupted.")

    def __post_init__(self) -> None:
        check(self)
        if self.out == Path("-"):
            object.__setattr__(self, "out", None)
