"""`protperf embed`: vectors for each record, in one file."""

from __future__ import annotations

import time
from typing import Any

from protperf.lm.cli import common
from protperf.lm.cli.commands import EXIT_REJECTED
from protperf.lm.embedding.options import EmbedOptions, EmbedOutput
from protperf.lm.options import instance, pick
from protperf.lm.shared_options import LoadOptions, ReadingOptions

_INPUT = pick(common.SequencesCommand, "model", "fasta", "allow_rejects")
GROUPS = {
    "input": [
        *pick(common.SequencesCommand, "model", "fasta"),
        *pick(ReadingOptions),
        *pick(common.SequencesCommand, "allow_rejects"),
    ],
    "vectors": pick(EmbedOptions, "pool", "per_residue", "layer", "stored_type", "mode"),
    "output": pick(EmbedOutput),
    "computation": [
        *pick(EmbedOptions, "batch_tokens", "deterministic"),
        *pick(common.ThreadOptions),
        *pick(LoadOptions, "device", "engine"),
    ],
    "messages": pick(common.MessageOptions),
}
EXAMPLES = """
protperf embed runs/mine proteins.fa.gz -o vectors.parquet
protperf embed runs/mine proteins.fa.gz -o vectors.npz --pool mean,max --dtype f16 --resume
protperf embed runs/mine proteins.fa.gz -o residues.h5 --per-residue --layer 2
protperf embed runs/mine proteome.fa.gz -o part3.safetensors --shard 3/8
"""


def run(given: dict[str, Any]) -> int:
    """Write the file of vectors; returns the exit code."""
    started = time.monotonic()
    command, messages = instance(common.SequencesCommand, given), instance(common.MessageOptions, given)
    load, threads = instance(LoadOptions, given), instance(common.ThreadOptions, given).threads
    embedding, output = instance(EmbedOptions, given), instance(EmbedOutput, given)
    from protperf.lm.embedding.job import EmbedJob
    from protperf.lm.storage import checkpoint

    if not command.model.is_dir():
        checkpoint.find(command.model)
    job = EmbedJob(command.fasta, embedding, instance(ReadingOptions, given), output)
    # The mistakes that can be seen without torch have been reported by now.
    from protperf.lm.cli.progress import CommandWatch
    from protperf.lm.loading import load_run

    num_threads, watch = common.set_threads(threads), CommandWatch(GROUPS, messages.quiet)
    loaded = load_run(command.model, load.dtype, load.device, load.engine)
    common.say_all(GROUPS, [common.environment(num_threads, load.dtype, load.device)] if messages.verbose else [])
    prepared = job.prepare(loaded, watch)
    common.raise_on_signal()
    summary = job.write(prepared, watch)
    common.say_all(GROUPS, [*summary.reading.facts(), f"took {common.spent(started)}"] if messages.verbose else [])
    common.say_all(GROUPS, () if messages.quiet else summary.notes, "note: ")
    common.say_all(GROUPS, summary.warnings, "warning: ")
    return EXIT_REJECTED if summary.reading.rejected and not command.allow_rejects else 0
