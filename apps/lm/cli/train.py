"""`protperf train`: from FASTA files to a run directory."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from protperf.errors import ConfigError
from protperf.lm.cli.commands import EXIT_REJECTED
from protperf.lm.cli.common import MessageOptions, ThreadOptions, environment, say_all, set_threads, spent
from protperf.lm.model.config import MODEL_CHOICES, ModelConfig
from protperf.lm.options import REQUIRED, check, instance, option, pick
from protperf.lm.shared_options import RejectOptions
from protperf.lm.training.clock import Clock
from protperf.lm.training.options import OPTIMIZATION_OPTIONS, ComputeOptions, RunOptions, TrainOptions
from protperf.message import Argument, Message


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainCommand:
    """What `train` takes besides the options of the training, the model and the run directory."""

    files: tuple[str, ...] = option((), "More files, after those of --fasta.", positional=True, unit="FILE...")
    fasta: tuple[str, ...] = option(
        (), "FASTA, or a table with --seq-col; plain or gz, xz, zst, bz2; - is standard input; repeatable.", unit="FILE"
    )
    out: Path = option(REQUIRED, "Run directory to make.", short="-o", unit="DIR")
    allow_rejects: bool = option(False, "Exit with 0 instead of 5 if records were left out.")

    def __post_init__(self) -> None:
        check(self)
        if not (self.fasta or self.files):
            raise ConfigError(Message("no sequences to train on; name a file with {fasta}", fasta=Argument("fasta")))


_FILES = [*pick(TrainCommand, "files", "fasta", "allow_rejects"), *pick(RejectOptions), *pick(RunOptions, "seq_col")]
GROUPS = {
    "data": [*_FILES, *pick(TrainOptions, "validate", "hold_out", "residues")],
    "run": [*pick(TrainCommand, "out"), *pick(RunOptions, "dry_run", "resume", "force"), *pick(TrainOptions, "seed")],
    "length of the training, one of": pick(TrainOptions, "time_s", "epochs", "steps"),
    "model": [
        *pick(RunOptions, "recipe", "size"),
        *pick(ModelConfig, *MODEL_CHOICES),
        *pick(TrainOptions, "init", "lora"),
    ],
    "optimization": pick(TrainOptions, *OPTIMIZATION_OPTIONS),
    "bookkeeping": pick(TrainOptions, "checkpoint_every", "patience", "log_every", "logger"),
    "computation": [
        *pick(ThreadOptions),
        *pick(ComputeOptions),
        *pick(TrainOptions, "engine", "precision", "attention_backend"),
    ],
    "messages": pick(MessageOptions),
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
    command, messages = instance(TrainCommand, given), instance(MessageOptions, given)
    compute, threads = instance(ComputeOptions, given), instance(ThreadOptions, given).threads
    # The mistakes that can be seen without torch have been reported by now.
    from protperf.lm.cli.progress import TrainProgress
    from protperf.lm.training.request import read_request

    num_threads, request = set_threads(threads), read_request(command.out, given)
    say_all(GROUPS, [environment(num_threads, compute.dtype, compute.device)] if messages.verbose else [])
    files = [*command.fasta, *command.files]
    with TrainProgress(GROUPS, messages.quiet, request.options.time_s) as bar:
        if request.run.dry_run:
            say_all(GROUPS, request.forecast(files, command.out, compute.device, clock=clock, warn=bar.warn).facts())
            return 0
        outcome = request.train(
            files, command.out, compute.device, clock=clock, command=shlex.join(["protperf", *sys.argv[1:]]), watch=bar,
            report=bar.report, warn=bar.warn, detail=bar.warn if messages.verbose else lambda text: None,
        )  # fmt: skip
    say_all(GROUPS, [] if messages.quiet else outcome.facts())
    say_all(GROUPS, [f"took {spent(started)}"] if messages.verbose else [])
    if outcome.signal is not None:
        say_all(GROUPS, [Message("stopped and saved; continue with {resume}", resume=Argument("resume", True))])
        return 128 + outcome.signal
    return EXIT_REJECTED if outcome.rejected and not command.allow_rejects else 0
