"""The command line as it was agreed on: each command, its flags, their values and defaults, one per line.

`python tests/pin/command_line.py --write` writes `command_line.tsv`; a test compares it with what the commands declare,
so that a flag that scripts use does not change or go unnoticed.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from protperf.lm.cli.commands import COMMANDS
from protperf.lm.cli.parameters import declared_in
from protperf.lm.options import Option

PINNED = Path(__file__).with_suffix(".tsv")
HEADER = "command\toption\tvalue\tdefault"


def lines() -> list[str]:
    """What the commands declare, in the order of their help pages."""
    found = [HEADER]
    for name in COMMANDS:
        for each in declared_in(import_module(f"protperf.lm.cli.{name}").GROUPS).values():
            found.append("\t".join([name, _spelling(each), _value(each), _default(each)]))
    return found


def _spelling(each: Option) -> str:
    return each.placeholder if each.is_positional else ", ".join(each.flags)


def _value(each: Option) -> str:
    if each.kind is bool:
        return ""
    value = "|".join(each.choices) or each.placeholder
    return f"{value}, repeatable" if each.is_many and not each.is_positional else value


def _default(each: Option) -> str:
    if each.is_required:
        return "required"
    if each.shown_default is not None:
        return each.shown_default
    return "" if each.default is None or each.kind is bool or each.is_many else str(each.default)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/pin/command_line.py --write")
    PINNED.write_text("\n".join(lines()) + "\n", encoding="utf-8")
