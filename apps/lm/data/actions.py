"""What `protperf data` does: one function per action, each of which returns what there is to print."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from protperf.lm.data import api
from protperf.lm.data.options import DataOptions
from protperf.lm.data.overlap import IDENTITIES
from protperf.lm.data.store import write_tokens

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an action found: as JSON, as the lines of a table, and in sentences.

    Attributes:
        failure: why the command fails, if it does.
    """

    found: Any
    table: str = ""
    remarks: tuple[str, ...] = ()
    failure: str | None = None


def act(action: str, files: Sequence[str], options: DataOptions, warn: Warn) -> Outcome:
    """Do what an action of `protperf data` is asked for.

    Raises:
        ConfigError, DataError, FastaError, FileError: as on the command line.
    """
    return {"build": _build, "stats": _stats, "split": _split, "check": _check}[action](files, options, warn)


def _build(files: Sequence[str], options: DataOptions, warn: Warn) -> Outcome:
    how = {name: getattr(options, name) for name in ("residues", "seq_col", "dedup", "rejects")}
    count = write_tokens(files, str(options.out), warn=warn, **how)
    return Outcome({"sequences": count}, remarks=(f"{options.out}: {count:,} sequences",))


def _stats(files: Sequence[str], options: DataOptions, warn: Warn) -> Outcome:
    found = api.data_stats(files, options.residues, warn, options.seq_col, options.rejects)
    return Outcome(found, _table(found.items()))


def _split(files: Sequence[str], options: DataOptions, warn: Warn) -> Outcome:
    chosen = {each.argument: getattr(options, each.name) for each in api.SPLIT_OPTIONS}
    found = api.data_split(files, str(options.out), warn=warn, **chosen)
    parts = ", ".join(f"{name} {part['sequences']:,}" for name, part in found["parts"].items())
    return Outcome(found, remarks=(f"{options.out}: {parts} sequences",))


def _check(files: Sequence[str], options: DataOptions, warn: Warn) -> Outcome:
    first, second = files
    identities = sorted({*IDENTITIES, options.identity})
    rows = api.data_check(first, second, options.residues, identities, warn, options.seq_col, options.rejects)
    found = [dataclasses.asdict(row) for row in rows]
    share = next(row.share for row in rows if row.relation == f"{options.identity:g}")
    fails = options.fail_above is not None and share > options.fail_above
    failure = f"failed: {share:.4f} of {second} has a relative at {options.identity:g}" if fails else None
    return Outcome(found, _table([list(found[0]), *(row.values() for row in found)]), failure=failure)


def _table(rows: Any) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)
