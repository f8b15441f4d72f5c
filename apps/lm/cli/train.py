"""`protperf train`: from FASTA files to a run directory."""

from __future__ import annotations

import time
from typing import Any

from protperf.lm.cli import common, working
from protperf.lm.model.config import MODEL_CHOICES, ModelConfig
from protperf.lm.options import instance, pick
from protperf.lm.shared_options import RejectOptions
from protperf.lm.training.clock import Clock
from protperf.lm.training.options import OPTIMIZATION_OPTIONS, ComputeOptions, PathOptions, RunOptions, TrainOptions

GROUPS = {
    "data": [
        *pick(PathOptions, "files", "fasta"),
        *pick(working.ExitOptions),
        *pick(RejectOptions),
        *pick(RunOptions, "seq_col"),
        *pick(TrainOptions, "validate", "hold_out", "residues"),
    ],
    "run": [*pick(PathOptions, "out"), *pick(RunOptions, "dry_run", "resume", "force"), *pick(TrainOptions, "seed")],
    "length of the training, one of": pick(TrainOptions, "time_s", "epochs", "steps"),
    "model": [
        *pick(RunOptions, "recipe", "size"),
        *pick(ModelConfig, *MODEL_CHOICES),
        *pick(TrainOptions, "init", "lora"),
    ],
    "optimization": pick(TrainOptions, *OPTIMIZATION_OPTIONS),
    "bookkeeping": pick(TrainOptions, "checkpoint_every", "patience", "log_every", "logger"),
    "computation": [
        *pick(working.ThreadOptions),
        *pick(ComputeOptions),
        *pick(TrainOptions, "engine", "precision", "attention_backend"),
    ],
    "messages": pick(common.MessageOptions),
}
EXAMPLES = """
protperf train --fasta proteins.fa.gz -o runs/mine
protperf train --fasta proteins.fa.gz -o runs/mine --time 20m
protperf train --fasta hits.fa -o runs/hits --dry-run
protperf train --fasta family.fa -o runs/family --resume
protperf train --fasta dms.csv --seq-col seq -o runs/dms --epochs 5
"""


def run(given: dict[str, Any]) -> int:
    """Train into a run directory; returns the exit code."""
    # Loading libraries and sequences counts as part of --time.
    started, clock = time.monotonic(), Clock()
    paths, messages = instance(PathOptions, given), instance(common.MessageOptions, given)
    compute, threads = instance(ComputeOptions, given), instance(working.ThreadOptions, given).threads
    # The mistakes that can be seen without torch have been reported by now.
    from protperf.lm.cli.progress import TrainProgress
    from protperf.lm.training.request import read_request

    num_threads, request = working.set_threads(threads), read_request(paths.out, given)
    common.say_all(GROUPS, [common.environment(num_threads, compute.dtype, compute.device)] if messages.verbose else [])
    with TrainProgress(GROUPS, messages.quiet, request.options.time_s) as bar:
        if request.run.dry_run:
            forecast = request.forecast(paths.inputs, paths.out, compute.device, clock=clock, warn=bar.warn)
            common.say_all(GROUPS, forecast.facts())
            return 0
        outcome = request.train(
            paths.inputs, paths.out, compute.device, clock=clock, command=common.typed(), watch=bar,
            report=bar.report, warn=bar.warn, detail=bar.warn if messages.verbose else lambda text: None,
        )  # fmt: skip
    common.say_all(GROUPS, [] if messages.quiet else outcome.facts())
    common.say_all(GROUPS, [f"took {common.spent(started)}"] if messages.verbose else [])
    common.say_all(GROUPS, outcome.interruption())
    if outcome.signal is not None:
        return 128 + outcome.signal
    return instance(working.ExitOptions, given).code(outcome.rejected)
