"""`protperf train`: from FASTA files to a run directory."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from protperf.errors import ConfigError
from protperf.lm.cli.commands import EXIT_REJECTED
from protperf.lm.cli.common import MessageOptions, ThreadOptions, environment, say, set_threads, spent
from protperf.lm.cli.parameters import in_flags
from protperf.lm.device import DEVICES, check_device, check_dtype, torch_device
from protperf.lm.model.config import MODEL_CHOICES, ModelConfig
from protperf.lm.options import REQUIRED, check, instance, option, pick
from protperf.lm.training.clock import Clock
from protperf.lm.training.options import RunOptions, TrainOptions
from protperf.message import Argument, Message

_DTYPES = ("float32",)


def _check_dtype(dtype: str) -> None:
    check_dtype(dtype, _DTYPES)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainCommand:
    """What `train` takes besides the options of the training, the model and the run directory."""

    files: tuple[str, ...] = option((), "More files, after those of --fasta.", positional=True, unit="FILE...")
    fasta: tuple[str, ...] = option(
        (), "FASTA, or a table with --seq-col; plain or gz, xz, zst, bz2; - is standard input; repeatable.", unit="FILE"
    )
    out: Path = option(REQUIRED, "Run directory to make.", short="-o", unit="DIR")
    allow_rejects: bool = option(False, "Exit with 0 instead of 5 if records were left out.")
    device: str = option("auto", f"Where to compute: {' or '.join(DEVICES)}.", suggestions=DEVICES, judge=check_device)
    dtype: str = option("float32", "Type to compute in: float32.", suggestions=_DTYPES, judge=_check_dtype)

    def __post_init__(self) -> None:
        check(self)
        if not (self.fasta or self.files):
            text = "there are no sequences to train on; name a file with {fasta}"
            raise ConfigError(Message(text, fasta=Argument("fasta")))


_OPTIMIZATION = ("batch_tokens", "accumulate", "crop", "lr", "warmup", "clip", "weight_decay", "redraw_interval")

GROUPS = {
    "data": [
        *pick(TrainCommand, "files", "fasta"),
        *pick(RunOptions, "seq_col"),
        *pick(TrainOptions, "validate", "residues"),
        *pick(TrainCommand, "allow_rejects"),
    ],
    "run": [*pick(TrainCommand, "out"), *pick(RunOptions, "resume", "force"), *pick(TrainOptions, "seed")],
    "length of the training, one of": pick(TrainOptions, "time_s", "epochs", "steps"),
    "model": [*pick(RunOptions, "size"), *pick(ModelConfig, *MODEL_CHOICES)],
    "optimization": pick(TrainOptions, *_OPTIMIZATION),
    "bookkeeping": pick(TrainOptions, "checkpoint_every", "log_every"),
    "computation": [*pick(ThreadOptions), *pick(TrainCommand, "device", "dtype")],
    "messages": pick(MessageOptions),
}
EXAMPLES = """
protperf train --fasta proteins.fa.gz -o runs/mine --time 20m
protperf train --fasta family.fa -o runs/family --size tiny --epochs 10
protperf train --fasta family.fa -o runs/family --resume
protperf train --fasta family.fa -o runs/family --resume --epochs 20
protperf train --fasta dms.csv --seq-col seq -o runs/dms --epochs 5
"""


def run(given: dict[str, Any]) -> int:
    """Train into a run directory; returns the exit code."""
    # Loading libraries and sequences counts as part of --time.
    started, clock = time.monotonic(), Clock()
    command, messages = instance(TrainCommand, given), instance(MessageOptions, given)
    # The mistakes that can be seen without torch have been reported by now.
    from protperf.lm.cli.progress import TrainProgress
    from protperf.lm.training.request import read_request
    from protperf.lm.training.run import train_run

    num_threads = set_threads(instance(ThreadOptions, given).threads)
    request = read_request(command.out, given)
    if messages.verbose:
        say(environment(num_threads, command.dtype, command.device))
    with TrainProgress(GROUPS, messages.quiet, request.options.time_s) as bar:
        outcome = train_run(
            [*command.fasta, *command.files],
            command.out,
            request.config,
            request.options,
            **request.arguments,
            device=torch_device(command.device),
            clock=clock,
            report=bar.report,
            warn=bar.warn,
            detail=bar.warn if messages.verbose else lambda text: None,
        )
    if not messages.quiet:
        if outcome.remark is not None:
            say(f"warning: {in_flags(GROUPS, outcome.remark)}")
        figures = ", ".join(f"{name} {value:.3f}" for name, value in outcome.figures.items())
        say(f"{outcome.run}: {outcome.steps} steps{figures and f'; {figures}'}")
    if messages.verbose:
        say(f"took {spent(started)}")
    if outcome.signal is not None:
        say("stopped and saved; continue with --resume")
        return 128 + outcome.signal
    return EXIT_REJECTED if outcome.rejected and not command.allow_rejects else 0
