"""`protperf data`: build, describe, divide and compare sets of sequences."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from protperf.errors import ConfigError
from protperf.lm.cli import common
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
    "input": [*pick(DataCommand), *pick(DataOptions, "residues")],
    "split": pick(DataOptions, "by", "identity", "clusters", "fractions", "seed"),
    "check": pick(DataOptions, "fail_above"),
    "output": pick(DataOptions, "out", "force", "as_json"),
    "computation": pick(common.ThreadOptions),
    "messages": pick(common.MessageOptions),
}
EXAMPLES = """
protperf data stats proteins.fa.gz
protperf data split family.fa --identity 0.7 --fraction 0.9 --fraction 0.1 -o split
protperf data check train.fa test.fa --identity 0.5 --fail-above 0.01
protperf data build uniref50.fasta.gz -o uniref50.tokens
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
    common.set_threads(instance(common.ThreadOptions, given).threads)

    def warn(text: str) -> None:
        common.say_all(GROUPS, [text], "warning: ")

    code, found = _answer(command, options, warn)
    if options.as_json:
        print(json.dumps(found, indent=1))
    elif command.action == "stats":
        print("".join(f"{name}\t{value}\n" for name, value in found.items()), end="")
    elif command.action == "check":
        rows = [list(found[0]), *(row.values() for row in found)]
        print("".join("\t".join(map(str, row)) + "\n" for row in rows), end="")
    elif not messages.quiet:
        common.say_all(GROUPS, [f"{options.out}: {_extent(found)}"])
    return code


def _extent(found: dict[str, Any]) -> str:
    if "parts" not in found:
        return f"{found['sequences']:,} sequences"
    return ", ".join(f"{name} {part['sequences']:,}" for name, part in found["parts"].items()) + " sequences"


def _answer(command: DataCommand, options: DataOptions, warn: Any) -> tuple[int, Any]:
    from protperf.lm.data import api
    from protperf.lm.data.store import write_tokens

    if command.action == "stats":
        return 0, api.data_stats(command.files, options.residues, warn)
    if command.action == "build":
        return 0, {"sequences": write_tokens(command.files, str(options.out), residues=options.residues, warn=warn)}
    if command.action == "split":
        names = ("residues", "by", "identity", "clusters", "fractions", "seed", "force")
        return 0, api.data_split(
            command.files, str(options.out), warn=warn, **{name: getattr(options, name) for name in names}
        )
    identities = sorted({0.5, 0.7, 0.9, options.identity})
    rows = api.data_check(command.files[0], command.files[1], options.residues, identities, warn)
    share = next(row.share for row in rows if row.relation == f"{options.identity:g}")
    fails = options.fail_above is not None and share > options.fail_above
    if fails:
        common.say_all(GROUPS, [f"failed: {share:.4f} of {command.files[1]} has a relative at {options.identity:g}"])
    return EXIT_DATA if fails else 0, [dataclasses.asdict(row) for row in rows]
