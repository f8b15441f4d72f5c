"""`protperf score`: one row of a table for each record."""

from __future__ import annotations

import time
from typing import Any

from protperf.lm.cli import common
from protperf.lm.cli.commands import EXIT_REJECTED
from protperf.lm.options import instance, pick
from protperf.lm.scoring.options import ScoreOptions
from protperf.lm.shared_options import LoadOptions, ReadingOptions
from protperf.lm.tables.options import TableOptions

_INPUT = pick(common.SequencesCommand, "model", "fasta", "allow_rejects")
GROUPS = {
    "input": [
        *pick(common.SequencesCommand, "model", "fasta"),
        *pick(ReadingOptions),
        *pick(common.SequencesCommand, "allow_rejects"),
    ],
    "score": pick(ScoreOptions, "method", "direction"),
    "output": [*pick(ScoreOptions, "per_residue"), *pick(TableOptions)],
    "computation": [
        *pick(ScoreOptions, "batch_tokens", "deterministic"),
        *pick(common.ThreadOptions),
        *pick(LoadOptions),
    ],
    "messages": pick(common.MessageOptions),
}
EXAMPLES = """
protperf score runs/mine proteins.fa.gz > scores.tsv
protperf score runs/mine a.fa b.fa -o scores.csv --method pll
protperf score runs/mine titin.fa --method pll-fast --per-residue
zcat proteins.fa.gz | protperf score runs/mine - | cut -f 2,6
protperf score runs/mine dms.csv --seq-col sequence -o dms.parquet
"""


def run(given: dict[str, Any]) -> int:
    """Write the table of scores; returns the exit code."""
    started = time.monotonic()
    command, messages = instance(common.SequencesCommand, given), instance(common.MessageOptions, given)
    load, threads = instance(LoadOptions, given), instance(common.ThreadOptions, given).threads
    from protperf.lm.scoring.job import ScoreJob
    from protperf.lm.storage import checkpoint

    scoring, reading = instance(ScoreOptions, given), instance(ReadingOptions, given)
    if not command.model.is_dir():
        checkpoint.find(command.model)
    job = ScoreJob(command.fasta, scoring, reading, instance(TableOptions, given))
    # The mistakes that can be seen without torch have been reported by now.
    from protperf.lm.cli.progress import CommandWatch
    from protperf.lm.loading import load_run

    num_threads, watch = common.set_threads(threads), CommandWatch(GROUPS, messages.quiet)
    loaded = load_run(command.model, load.dtype, load.device, load.engine)
    common.say_all(GROUPS, [common.environment(num_threads, load.dtype, load.device)] if messages.verbose else [])
    prepared = job.prepare(loaded, load.dtype, watch)
    common.raise_on_signal()
    summary = job.write(prepared, watch)
    common.say_all(GROUPS, [*summary.reading.facts(), f"took {common.spent(started)}"] if messages.verbose else [])
    common.say_all(GROUPS, () if messages.quiet else summary.notes, "note: ")
    common.say_all(GROUPS, summary.warnings, "warning: ")
    return EXIT_REJECTED if summary.reading.rejected and not command.allow_rejects else 0
