"""`protperf score`: one row of a table for each record."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protperf.lm.cli.commands import EXIT_REJECTED
from protperf.lm.cli.common import (
    MessageOptions,
    ThreadOptions,
    environment,
    raise_on_signal,
    say,
    set_threads,
    spent,
)
from protperf.lm.options import REQUIRED, check, instance, option, pick
from protperf.lm.scoring.options import ScoreOptions
from protperf.lm.shared_options import LoadOptions, ReadingOptions
from protperf.lm.tables.options import TableOptions

if TYPE_CHECKING:
    from protperf.lm.scoring.job import ScoreSummary


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoreCommand:
    """What `score` takes besides the options of reading, scoring, loading and writing."""

    model: Path = option(REQUIRED, "Run directory, or one step of it.", positional=True, unit="MODEL")
    fasta: tuple[str, ...] = option(
        REQUIRED,
        "FASTA, or tables with --seq-col; plain or gz, xz, zst, bz2; - is standard input.",
        positional=True,
        unit="FASTA...",
    )
    allow_rejects: bool = option(False, "Exit with 0 instead of 5 if records were left out.")

    def __post_init__(self) -> None:
        check(self)


GROUPS = {
    "input": [*pick(ScoreCommand, "model", "fasta"), *pick(ReadingOptions), *pick(ScoreCommand, "allow_rejects")],
    "score": pick(ScoreOptions, "method", "direction"),
    "output": pick(TableOptions),
    "computation": [*pick(ScoreOptions, "batch_tokens", "deterministic"), *pick(ThreadOptions), *pick(LoadOptions)],
    "messages": pick(MessageOptions),
}
EXAMPLES = """
protperf score runs/mine proteins.fa.gz > scores.tsv
protperf score runs/mine a.fa b.fa -o scores.csv --method pll
zcat proteins.fa.gz | protperf score runs/mine - | cut -f 2,6
protperf score runs/mine dms.csv --seq-col sequence -o dms.parquet
"""


def run(given: dict[str, Any]) -> int:
    """Write the table of scores; returns the exit code."""
    started = time.monotonic()
    command, messages = instance(ScoreCommand, given), instance(MessageOptions, given)
    load, threads = instance(LoadOptions, given), instance(ThreadOptions, given).threads
    scoring, reading = instance(ScoreOptions, given), instance(ReadingOptions, given)
    table = instance(TableOptions, given)
    from protperf.lm.scoring.job import ScoreJob
    from protperf.lm.storage import checkpoint

    if not command.model.is_dir():
        checkpoint.find(command.model)
    job = ScoreJob(command.fasta, scoring, reading, table)
    # The mistakes that can be seen without torch have been reported by now.
    from protperf.lm.cli.progress import CommandWatch
    from protperf.lm.loading import load_run

    num_threads, watch = set_threads(threads), CommandWatch(GROUPS, messages.quiet)
    loaded = load_run(command.model, load.dtype, load.device, load.engine)
    if messages.verbose:
        say(environment(num_threads, load.dtype, load.device))
    prepared = job.prepare(loaded, load.dtype, watch)
    raise_on_signal()
    summary = job.write(prepared, watch)
    if messages.verbose:
        _say_work(summary, started)
    for text in () if messages.quiet else summary.notes:
        say(f"note: {text}")
    for text in summary.warnings:
        say(f"warning: {text}")
    return EXIT_REJECTED if summary.reading.rejected and not command.allow_rejects else 0


def _say_work(summary: ScoreSummary, started: float) -> None:
    read = summary.reading
    say(f"read {read.records:,} records with {read.residues:,} residues in {spent(started)}")
    flagged = ", ".join(f"{count:,} {name}" for name, count in read.flagged.items() if count)
    if flagged:
        say(f"flagged {flagged}")
