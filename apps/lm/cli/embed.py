"""`protperf embed`: vectors for each record, in one file."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from protperf.lm.cli.commands import EXIT_REJECTED
from protperf.lm.cli.common import MessageOptions, ThreadOptions, environment, raise_on_signal, say, set_threads, spent
from protperf.lm.embedding.options import EmbedOptions, EmbedOutput
from protperf.lm.options import REQUIRED, check, instance, option, pick
from protperf.lm.shared_options import LoadOptions, ReadingOptions


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EmbedCommand:
    """What `embed` takes besides the options of reading, embedding, loading and writing."""

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
    "input": [*pick(EmbedCommand, "model", "fasta"), *pick(ReadingOptions), *pick(EmbedCommand, "allow_rejects")],
    "vectors": pick(EmbedOptions, "pool", "per_residue", "layer", "stored_type", "mode"),
    "output": pick(EmbedOutput),
    "computation": [
        *pick(EmbedOptions, "batch_tokens", "deterministic"), *pick(ThreadOptions), *pick(LoadOptions, "device"),
    ],
    "messages": pick(MessageOptions),
}  # fmt: skip
EXAMPLES = """
protperf embed runs/mine proteins.fa.gz -o vectors.parquet
protperf embed runs/mine proteins.fa.gz -o vectors.npz --pool mean,max --dtype f16 --resume
protperf embed runs/mine proteins.fa.gz -o residues.h5 --per-residue --layer 2
protperf embed runs/mine proteome.fa.gz -o part3.safetensors --shard 3/8
"""


def run(given: dict[str, Any]) -> int:
    """Write the file of vectors; returns the exit code."""
    started = time.monotonic()
    command, messages = instance(EmbedCommand, given), instance(MessageOptions, given)
    load, threads = instance(LoadOptions, given), instance(ThreadOptions, given).threads
    embedding, output = instance(EmbedOptions, given), instance(EmbedOutput, given)
    from protperf.lm.embedding.job import EmbedJob
    from protperf.lm.storage import checkpoint

    if not command.model.is_dir():
        checkpoint.find(command.model)
    job = EmbedJob(command.fasta, embedding, instance(ReadingOptions, given), output)
    # The mistakes that can be seen without torch have been reported by now.
    from protperf.lm.cli.progress import CommandWatch
    from protperf.lm.loading import load_run

    num_threads, watch = set_threads(threads), CommandWatch(GROUPS, messages.quiet)
    loaded = load_run(command.model, load.dtype, load.device, load.engine)
    if messages.verbose:
        say(environment(num_threads, load.dtype, load.device))
    prepared = job.prepare(loaded, watch)
    raise_on_signal()
    summary = job.write(prepared, watch)
    if messages.verbose:
        read = summary.reading
        say(f"read {read.records:,} records with {read.residues:,} residues in {spent(started)}")
    for text in () if messages.quiet else summary.notes:
        say(f"note: {text}")
    for text in summary.warnings:
        say(f"warning: {text}")
    return EXIT_REJECTED if summary.reading.rejected and not command.allow_rejects else 0
