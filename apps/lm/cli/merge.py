"""`protperf merge`: the tables of all shards of one input as one table, proved to be complete."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from protperf.lm.cli import common
from protperf.lm.options import REQUIRED, check, instance, option, pick


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """What is merged into which file."""

    tables: tuple[Path, ...] = option(
        REQUIRED, "Tables that score or embed (parquet) wrote with --shard, each with its FILE.meta.json.",
        positional=True, unit="FILE...",
    )  # fmt: skip
    out: Path = option(REQUIRED, "File to write, in the format of the shards.", short="-o", unit="FILE")

    def __post_init__(self) -> None:
        check(self)


GROUPS = {
    "input": pick(MergeOptions, "tables"),
    "output": pick(MergeOptions, "out"),
    "messages": pick(common.MessageOptions, "quiet"),
}
EXAMPLES = """
protperf score runs/mine proteins.fa.gz --shard 1/2 -o part1.tsv
protperf score runs/mine proteins.fa.gz --shard 2/2 -o part2.tsv
protperf merge part1.tsv part2.tsv -o scores.tsv
"""


def run(given: dict[str, Any]) -> int:
    """Merge, and say what the table holds; returns the exit code."""
    options, messages = instance(MergeOptions, given), instance(common.MessageOptions, given)
    from protperf.lm.tables.merge import merge

    common.raise_on_signal()
    merged = merge(options.tables, options.out)
    common.say_all(GROUPS, [] if messages.quiet else [f"{options.out}: {text}" for text in merged.notes()])
    return 0
