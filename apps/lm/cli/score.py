"""`protperf score`: one row of a table for each record."""

from __future__ import annotations

import time
from typing import Any

from protperf.lm.cli import asking, common, working
from protperf.lm.options import instance, pick
from protperf.lm.scoring.options import ScoreOptions, ScoreOutput
from protperf.lm.shared_options import LoadOptions, ReadingOptions, RejectOptions
from protperf.lm.tables.options import TableOptions

GROUPS = {
    "input": asking.INPUT,
    "score": pick(ScoreOptions, "method", "direction"),
    "output": [*pick(ScoreOptions, "shard", "per_residue"), *pick(ScoreOutput, "plot", "carry"), *pick(TableOptions)],
    "computation": [*pick(ScoreOptions, "batch_tokens", "deterministic"), *asking.COMPUTATION],
    "messages": pick(common.MessageOptions),
}
EXAMPLES = """
protperf score runs/mine proteins.fa.gz > scores.tsv
protperf score runs/mine a.fa b.fa -o scores.csv --method pll
protperf score runs/mine x.fa --per-residue --plot x.png -o x.tsv
zcat proteins.fa.gz | protperf score runs/mine - | cut -f 2,6
protperf score runs/mine dms.csv --seq-col seq --carry DMS_score
"""


def run(given: dict[str, Any]) -> int:
    """Write the table of scores; returns the exit code."""
    started = time.monotonic()
    command, messages = instance(asking.SequencesCommand, given), instance(common.MessageOptions, given)
    load, threads = instance(LoadOptions, given), instance(working.ThreadOptions, given).threads
    from protperf.lm.scoring.job import ScoreJob

    scoring, reading = instance(ScoreOptions, given), instance(ReadingOptions, given)
    table = instance(TableOptions, given)
    asking.check_models([command.model])
    job = ScoreJob(command.fasta, scoring, reading, table, instance(RejectOptions, given), instance(ScoreOutput, given))
    # The mistakes that can be seen without torch have been reported by now.
    from protperf.lm.cli.progress import CommandWatch

    watch = CommandWatch(GROUPS, messages.quiet)
    (loaded,) = asking.load_models(GROUPS, [command.model], load, threads, messages)
    prepared = job.prepare(loaded, load.dtype, watch)
    common.raise_on_signal()
    summary = job.write(prepared, watch)
    asking.conclude(GROUPS, messages, summary, started)
    return instance(working.ExitOptions, given).code(summary.reading.rejected)
