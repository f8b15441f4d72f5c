"""`protperf baseline`: models made of counts, which the commands take that score, rank, compare and describe."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from protperf.lm.baselines.options import BaselineOptions
from protperf.lm.cli import common, working
from protperf.lm.options import check, instance, option, pick


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BaselineCommand:
    """What is counted."""

    data: tuple[str, ...] = option(
        (),
        "FASTA for unigram and ngram; an alignment (A2M, A3M, FASTA, Stockholm) for site and pairwise; plain or gz, "
        "xz, zst, bz2; - is standard input.",
        positional=True,
        unit="FILE...",
    )

    def __post_init__(self) -> None:
        check(self)


GROUPS = {
    "input": [*pick(BaselineCommand), *pick(BaselineOptions, "residues")],
    "model": pick(BaselineOptions, "kind", "order", "theta"),
    "output": pick(BaselineOptions, "out", "force"),
    "computation": pick(working.ThreadOptions),
    "messages": pick(common.MessageOptions),
}
EXAMPLES = """
protperf baseline proteins.fa.gz --kind ngram -o runs/ngram
protperf baseline family.a2m --kind site -o runs/site
protperf baseline family.a2m --kind pairwise -o runs/pairs
protperf variants runs/site dms.csv --wt tem1.fa --label-col DMS_score -o scored.csv
protperf variants runs/mine dms.csv --wt tem1.fa --prior runs/site -o mixed.csv
"""


def run(given: dict[str, Any]) -> int:
    """Fit and write a baseline; returns the exit code."""
    started = time.monotonic()
    command, options = instance(BaselineCommand, given), instance(BaselineOptions, given)
    messages = instance(common.MessageOptions, given)
    working.set_threads(instance(working.ThreadOptions, given).threads)
    from protperf.lm.baselines.fit import fit_baseline
    from protperf.lm.cli.progress import CommandWatch

    fit_baseline(command.data, options, CommandWatch(GROUPS, messages.quiet))
    common.say_all(GROUPS, [] if messages.quiet else [f"{options.out}: fitted in {common.spent(started)}"])
    return 0
