"""The `--help` page of a command: options in groups with their defaults, then examples, at the terminal's width.

A command module names the groups (`GROUPS`, title and parameters in the order they are shown) and ends the page with
`EXAMPLES`. Every parameter stands in exactly one group.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from typing import Any

Groups = Mapping[str, tuple[str, ...]]

_COLUMN = 26
"""Where the explanations begin."""
_METAVARS = {"int": "N", "float": "X", "str": "TEXT", "Path": "PATH"}


def page(command: Any, name: str, groups: Groups, examples: str) -> str:
    """The text of the page.

    Args:
        command: what typer made of the function.
        name: the command's name.
    """
    width = max(60, min(shutil.get_terminal_size().columns, 100))
    parameters = {parameter.name: parameter for parameter in command.params}
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join([f"usage: protperf {name} [OPTIONS]", *map(_placeholder, arguments)])
    lines = [usage, "", command.help]
    for title, names in groups.items():
        lines += ["", f"{title}:"]
        for parameter in (parameters[key] for key in names):
            lines += _entry(_spelling(parameter), _explanation(parameter), width)
    lines += ["", *_entry("  -h, --help", "Show this message", width)]
    return "\n".join([*lines, "", "examples:", textwrap.indent(examples.strip("\n"), "  ")])


def _entry(spelling: str, text: str, width: int) -> list[str]:
    first = f"{spelling:<{_COLUMN}}"
    head, first = ([], first) if len(spelling) < _COLUMN - 1 else ([spelling], " " * _COLUMN)
    return head + textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=" " * _COLUMN, break_on_hyphens=False
    )


def _spelling(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"  {_placeholder(parameter)}"
    short = [option for option in parameter.opts if not option.startswith("--")]
    long = [option for option in parameter.opts if option.startswith("--")]
    value = "" if parameter.is_flag else f" {_placeholder(parameter)}"
    return f"  {', '.join(short) or '   '}{', ' if short else ' '}{long[0]}{value}"


def _placeholder(parameter: Any) -> str:
    if parameter.metavar is not None:
        return str(parameter.metavar)
    return _METAVARS.get(parameter.bare_type(), parameter.bare_type().upper())


def _explanation(parameter: Any) -> str:
    text = str(parameter.help).rstrip(".")
    if parameter.param_type_name == "option" and parameter.required:
        return f"{text} (required)"
    if parameter.default is None or getattr(parameter, "is_flag", False):
        return text
    default = f"{parameter.default:g}" if isinstance(parameter.default, float) else parameter.default
    return f"{text} (default: {default})"
