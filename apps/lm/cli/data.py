"""`protperf data`: build, describe, divide and compare sets of sequences."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from protperf.errors import ConfigError
from protperf.lm.cli import common, working
from protperf.lm.cli.commands import EXIT_DATA
from protperf.lm.data.options import DataOptions
from protperf.lm.options import REQUIRED, check, instance, option, pick
from protperf.message import Argument, Message

ACTIONS = ("build", "stats", "split", "check")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DataCommand:
    """What is done, and with which files."""

    action: str = option(
        REQUIRED,
        "build: a file that train maps in place of FASTA; stats: what a set is; split: parts without relatives in "
        "common; check: what of the second file is known from the first.",
        positional=True, unit="ACTION", choices=ACTIONS,
    )  # fmt: skip
    files: tuple[str, ...] = option(
        REQUIRED, "FASTA, plain or gz, xz, zst, bz2; - is standard input.", positional=True, unit="FASTA..."
    )

    def __post_init__(self) -> None:
        check(self)


GROUPS = {
    "input": [*pick(DataCommand), *pick(DataOptions, "seq_col", "residues", "rejects", "dedup")],
    "split": pick(DataOptions, "by", "identity", "clusters", "group_col", "fractions", "seed"),
    "check": pick(DataOptions, "fail_above"),
    "output": pick(DataOptions, "out", "force", "as_json"),
    "computation": pick(working.ThreadOptions),
    "messages": pick(common.MessageOptions),
}
EXAMPLES = """
protperf data stats proteins.fa.gz
protperf data split family.fa --identity 0.7 --fraction 0.9 --fraction 0.1 -o split
protperf data split set.csv --seq-col seq --by column --group-col family -o split
protperf data check train.fa test.fa --identity 0.5 --fail-above 0.01
protperf data build uniref50.fasta.gz -o uniref50.tokens --dedup
"""


def run(given: dict[str, Any]) -> int:
    """Do what the first word asks for; returns the exit code."""
    command, options = instance(DataCommand, given), instance(DataOptions, given)
    messages = instance(common.MessageOptions, given)
    needs_out = command.action in ("build", "split")
    if needs_out and options.out is None:
        raise ConfigError(Message("{action} needs {out}", action=command.action, out=Argument("out")))
    if command.action == "check" and len(command.files) != 2:
        raise ConfigError(f"check compares two files; {len(command.files)} given")
    working.set_threads(instance(working.ThreadOptions, given).threads)

    def warn(text: str) -> None:
        common.say_all(GROUPS, [text], "warning: ")

    from protperf.lm.data.actions import act

    # The mistakes that can be seen without reading a file have been reported by now.
    outcome = act(command.action, command.files, options, warn)
    if options.as_json:
        print(json.dumps(outcome.found, indent=1))
    else:
        print(outcome.table, end="")
        common.say_all(GROUPS, [] if messages.quiet else outcome.remarks)
    if outcome.failure is not None:
        common.say_all(GROUPS, [outcome.failure])
    return EXIT_DATA if outcome.failure is not None else 0
