"""`protperf generate`: new sequences as FASTA, with their scores in the description."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from protperf.lm.cli import asking, common, working
from protperf.lm.generation.options import GenerateOptions, GenerateOutput
from protperf.lm.options import check, instance, pick
from protperf.lm.shared_options import LoadOptions, ReadingOptions, model_option


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GenerateCommand:
    """What `generate` takes besides the options of sampling, loading and writing."""

    model: Path = model_option()

    def __post_init__(self) -> None:
        check(self)


GROUPS = {
    "input": [*pick(GenerateCommand), *pick(ReadingOptions, "residues")],
    "sequences": pick(GenerateOptions, "number", "start", "seed", "prompt", "prompts", "min_len", "max_len"),
    "sampling": pick(GenerateOptions, "temperature", "top_k", "top_p", "max_repeat", "exclude"),
    "templates": pick(GenerateOptions, "template", "infill", "fix_positions", "order", "steps"),
    "output": pick(GenerateOutput),
    "computation": [*pick(working.ThreadOptions), *pick(LoadOptions)],
    "messages": pick(common.MessageOptions),
}
EXAMPLES = """
protperf generate runs/mine -n 100 --top-p .95 > new.fasta
protperf generate runs/mine -n 100 --prompt MSIQHF --exclude train.fa.gz -o new.fasta
protperf generate runs/mine -n 10 --infill --template MSI__FRVALIPFFAAFCLPVFA
protperf generate runs/mine -n 10 --template tem1.fa --fix-positions 1-25,70,166
"""


def run(given: dict[str, Any]) -> int:
    """Write the sequences; returns the exit code."""
    started = time.monotonic()
    command, messages = instance(GenerateCommand, given), instance(common.MessageOptions, given)
    load, threads = instance(LoadOptions, given), instance(working.ThreadOptions, given).threads
    options, output = instance(GenerateOptions, given), instance(GenerateOutput, given)
    from protperf.lm.generation.job import GenerateJob

    asking.check_models([command.model])
    job = GenerateJob(options, output, instance(ReadingOptions, given).residues)
    # The mistakes that can be seen without torch have been reported by now.
    from protperf.lm.cli.progress import CommandWatch

    watch = CommandWatch(GROUPS, messages.quiet)
    (loaded,) = asking.load_models(GROUPS, [command.model], load, threads, messages)
    common.raise_on_signal()
    job.write(loaded, watch)
    common.say_all(GROUPS, [f"took {common.spent(started)}"] if messages.verbose else [])
    return 0
