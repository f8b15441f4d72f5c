"""`protperf embed`: vectors for each record, in one file."""

from __future__ import annotations

import time
from typing import Any

from protperf.lm.cli import asking, common, working
from protperf.lm.embedding.options import EmbedOptions, EmbedOutput
from protperf.lm.options import instance, pick
from protperf.lm.shared_options import LoadOptions, ReadingOptions, RejectOptions

GROUPS = {
    "input": asking.INPUT,
    "vectors": pick(EmbedOptions, "pool", "per_residue", "layer", "stored_type", "mode"),
    "output": pick(EmbedOutput),
    "computation": [
        *pick(EmbedOptions, "batch_tokens", "deterministic"),
        *pick(working.ThreadOptions),
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
    command, messages = instance(asking.SequencesCommand, given), instance(common.MessageOptions, given)
    load, threads = instance(LoadOptions, given), instance(working.ThreadOptions, given).threads
    embedding, output = instance(EmbedOptions, given), instance(EmbedOutput, given)
    from protperf.lm.embedding.job import EmbedJob

    asking.check_models([command.model])
    job = EmbedJob(command.fasta, embedding, instance(ReadingOptions, given), output, instance(RejectOptions, given))
    # The mistakes that can be seen without torch have been reported by now.
    from protperf.lm.cli.progress import CommandWatch

    watch = CommandWatch(GROUPS, messages.quiet)
    (loaded,) = asking.load_models(GROUPS, [command.model], load, threads, messages)
    prepared = job.prepare(loaded, watch)
    common.raise_on_signal()
    summary = job.write(prepared, watch)
    asking.conclude(GROUPS, messages, summary, started)
    return instance(working.ExitOptions, given).code(summary.reading.rejected)
