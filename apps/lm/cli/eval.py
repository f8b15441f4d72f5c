"""`protperf eval`: how well a model predicts sequences, next to baselines."""

from __future__ import annotations

import time
from typing import Any

from protperf.lm.cli import asking, common, working
from protperf.lm.cli.commands import EXIT_DATA
from protperf.lm.evaluation.options import EvalOptions
from protperf.lm.options import instance, pick
from protperf.lm.shared_options import LoadOptions, ReadingOptions, RejectOptions
from protperf.lm.tables.options import TableOptions

GROUPS = {
    "input": asking.INPUT,
    "measures": pick(EvalOptions, "masks", "by", "identity", "train", "baseline", "fail_above", "seed"),
    "output": [*pick(EvalOptions, "plot"), *pick(TableOptions, "out", "format", "force")],
    "computation": [*pick(EvalOptions, "batch_tokens", "deterministic"), *asking.COMPUTATION],
    "messages": pick(common.MessageOptions),
}
EXAMPLES = """
protperf eval runs/mine test.fa.gz
protperf eval runs/mine in.fa out.fa --train train.fa.gz --by length --by calibration -o eval.tsv
protperf eval runs/mine test.fa --by cluster --plot eval.png -o eval.tsv
protperf eval runs/mine test.fa --baseline runs/ngram --baseline runs/site
protperf eval runs/mine test.fa --masks 5 --fail-above 12
"""


def run(given: dict[str, Any]) -> int:
    """Write the table of an evaluation; returns the exit code."""
    started = time.monotonic()
    command, messages = instance(asking.SequencesCommand, given), instance(common.MessageOptions, given)
    load, threads = instance(LoadOptions, given), instance(working.ThreadOptions, given).threads
    options, reading = instance(EvalOptions, given), instance(ReadingOptions, given)
    from protperf.lm.evaluation.job import EvalJob

    asking.check_models([command.model])
    job = EvalJob(command.fasta, options, reading, instance(TableOptions, given), instance(RejectOptions, given))
    # The mistakes that can be seen without a model have been reported by now.
    from protperf.lm.cli.progress import CommandWatch

    watch = CommandWatch(GROUPS, messages.quiet)
    (loaded,) = asking.load_models(GROUPS, [command.model], load, threads, messages)
    common.raise_on_signal()
    summary = job.write(loaded, load.dtype, watch)
    common.say_all(GROUPS, [f"took {common.spent(started)}"] if messages.verbose else [])
    common.say_all(GROUPS, summary.warnings, "warning: ")
    common.say_all(GROUPS, summary.failed, "failed: ")
    if summary.failed:
        return EXIT_DATA
    return instance(working.ExitOptions, given).code(summary.rejected)
