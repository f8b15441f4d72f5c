"""The `--help` page of a command: options in groups with their defaults, then examples, at the terminal's width.

The page follows from the declarations that a command module names in `GROUPS` (title and options in the order they are
shown); it ends with `EXAMPLES`.
"""

from __future__ import annotations

import shutil
import textwrap

from protperf.lm.cli.parameters import Groups, declared_in
from protperf.lm.options import Option

_COLUMN = 26
"""Where the explanations begin."""


def page(name: str, summary: str, groups: Groups, examples: str) -> str:
    """The text of the page."""
    width = max(60, min(shutil.get_terminal_size().columns, 100))
    arguments = [_usage(each) for each in declared_in(groups).values() if each.is_positional]
    lines = [" ".join([f"usage: protperf {name} [OPTIONS]", *arguments]), "", summary]
    for title, options in groups.items():
        lines += ["", f"{title}:"]
        for each in options:
            lines += _entry(_spelling(each), _explanation(each), width)
    lines += ["", *_entry("  -h, --help", "Show this message.", width)]
    return "\n".join([*lines, "", "examples:", textwrap.indent(examples.strip("\n"), "  ")])


def _usage(argument: Option) -> str:
    return argument.placeholder if argument.is_required else f"[{argument.placeholder}]"


def _entry(spelling: str, text: str, width: int) -> list[str]:
    first = f"{spelling:<{_COLUMN}}"
    head, first = ([], first) if len(spelling) < _COLUMN - 1 else ([spelling], " " * _COLUMN)
    return head + textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=" " * _COLUMN, break_on_hyphens=False
    )


def _spelling(declared: Option) -> str:
    if declared.is_positional:
        return f"  {declared.placeholder}"
    *short, long = declared.flags
    value = "" if declared.kind is bool else f" {declared.placeholder}"
    return f"  {', '.join(short) or '   '}{', ' if short else ' '}{long}{value}"


def _explanation(declared: Option) -> str:
    if declared.is_required:
        return declared.help if declared.is_positional else f"{declared.help.rstrip('.')} (required)."
    default = declared.shown_default
    if default is None:
        if declared.default is None or declared.kind is bool or declared.is_many:
            return declared.help
        default = f"{declared.default:g}" if isinstance(declared.default, float) else str(declared.default)
    return f"{declared.help.rstrip('.')} (default: {default})."
