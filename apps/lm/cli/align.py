"""`protperf align`: an alignment of a family, for the baselines and priors that are made of one."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from protperf.lm.alignment.options import AlignOptions
from protperf.lm.cli import common, working
from protperf.lm.options import REQUIRED, check, instance, option, pick


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AlignCommand:
    """What is aligned."""

    data: tuple[str, ...] = option(
        REQUIRED,
        "FASTA of related proteins; plain or gz, xz, zst, bz2; - is standard input.",
        positional=True,
        unit="FILE...",
    )

    def __post_init__(self) -> None:
        check(self)


GROUPS = {
    "input": [*pick(AlignCommand), *pick(AlignOptions, "query", "residues")],
    "alignment": pick(AlignOptions, "rounds"),
    "output": pick(AlignOptions, "out", "force"),
    "computation": pick(working.ThreadOptions),
    "messages": pick(common.MessageOptions, "quiet"),
}
EXAMPLES = """
protperf align family.fa.gz --query tem1.fa -o family.a3m
protperf baseline family.a3m --kind pairwise -o runs/pairs
protperf variants runs/mine dms.csv --wt tem1.fa --prior runs/pairs -o mixed.csv
"""


def run(given: dict[str, Any]) -> int:
    """Write the alignment; returns the exit code."""
    started = time.monotonic()
    command, options = instance(AlignCommand, given), instance(AlignOptions, given)
    quiet = given.get("quiet", False)
    working.set_threads(instance(working.ThreadOptions, given).threads)
    from protperf.lm.alignment.align import align_files
    from protperf.lm.cli.progress import CommandWatch

    found = align_files(command.data, options, CommandWatch(GROUPS, quiet))
    left_out = int((~found.fits).sum())
    facts = [f"{options.out}: {len(found.columns):,} sequences aligned to the query in {common.spent(started)}"]
    facts += [f"{left_out:,} sequences do not fit and were left out"] if left_out else []
    common.say_all(GROUPS, [] if quiet else facts)
    return 0
