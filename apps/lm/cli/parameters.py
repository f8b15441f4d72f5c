"""A command's words, read by the declarations of its options: only what was named comes back, checked.

argparse takes the words apart and `protperf.lm.options` turns text into values, so that a wrong value is reported in
the same way whether it was typed, written in a file or given by a program. (typer, which completes command lines, would
load pydantic to read them, which takes longer than `--help` or `info` may take in all.)
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from protperf.errors import ConfigError
from protperf.lm.options import Option, closest
from protperf.message import Argument, Message

Groups = Mapping[str, Sequence[Option]]
"""The options of a command by the titles of its help page, in the order of that page."""


def declared_in(groups: Groups) -> dict[str, Option]:
    """The options of a command by field."""
    return {each.name: each for group in groups.values() for each in group}


def read_words(groups: Groups, words: Sequence[str]) -> dict[str, Any]:
    """Values by field of the options that a command line names.

    Raises:
        ConfigError: an unknown or missing option, or a value that it does not take.
    """
    declared = declared_in(groups)
    end = words.index("--") if "--" in words else len(words)
    parser = _parser(declared.values())
    texts, rest = parser.parse_known_args(words[:end])
    for word in rest:
        if word.startswith("-") and word != "-":
            raise ConfigError(_unknown(word, declared.values()))
    given = dict(vars(texts)) | _positional(declared.values(), [*rest, *words[end + 1 :]])
    for each in declared.values():
        if each.is_required and each.name not in given:
            raise ConfigError(f"missing {'argument' if each.is_positional else 'option'} {spelling(each)}")
    return {name: _value(declared[name], text) for name, text in given.items()}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        text = message.removeprefix("argument ").replace(": expected one argument", " needs a value")
        raise ConfigError(text.rpartition("/")[2] if text.startswith("-") else text)


def _parser(declared: Any) -> _Parser:
    # Help is written by protperf.lm.cli.help: argparse need not ask how wide the terminal is.
    formatter: Any = functools.partial(argparse.HelpFormatter, width=80)
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS, formatter_class=formatter)
    for each in declared:
        if not each.is_positional:
            action = "store_true" if each.kind is bool else "append" if each.is_many else "store"
            parser.add_argument(*each.flags, dest=each.name, action=action)
    return parser


def _unknown(word: str, declared: Any) -> str:
    word = word.partition("=")[0]
    hint = closest(word, ["--help", *(flag for each in declared for flag in each.flags)])
    return f"unknown option {word}{f'; {hint}' if hint else ''}"


def _positional(declared: Any, words: list[str]) -> dict[str, Any]:
    """Words without a flag, in the order of the positional arguments; the last of these may take many."""
    given: dict[str, Any] = {}
    for each in declared:
        if each.is_positional and words:
            given[each.name], words = (words, []) if each.is_many else (words[0], words[1:])
    if words:
        raise ConfigError(f"{words[0]!r} is one argument too many")
    return given


def _value(declared: Option, text: Any) -> Any:
    if declared.kind is bool:
        return True
    return tuple(map(declared.from_text, text)) if declared.is_many else declared.from_text(text)


def spelling(declared: Option) -> str:
    """What the command line calls an option: its long flag, or what stands for it where it has none."""
    return declared.flags[-1] if declared.flags else declared.placeholder


def in_flags(groups: Groups, text: str) -> str:
    """A text of the library in the words of a command: `--batch-tokens` where it names the argument `batch_tokens`."""
    if not isinstance(text, Message):
        return text
    flags = {each.argument: spelling(each) for each in declared_in(groups).values()}

    def spell(argument: Argument) -> str:
        flag = flags.get(argument.name, argument.name)
        return flag if argument.value is None or argument.value is True else f"{flag} {argument.value}"

    return text.spelled(spell)


def completed(groups: Groups) -> Callable[..., None]:
    """A function whose parameters typer completes as these options. It does nothing."""
    from inspect import Parameter, Signature

    def command(**texts: Any) -> None:
        """Nothing is run where only the rest of a word is asked for."""

    declared = declared_in(groups).values()
    parameters = [
        Parameter(each.name, Parameter.KEYWORD_ONLY, annotation=_annotation(each), default=_unset(each))
        for each in declared
    ]
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _annotation(declared: Option) -> Any:
    from typing import Annotated

    import typer

    kind: Any = bool if declared.kind is bool else list[str] if declared.is_many else str
    known = declared.choices or declared.suggestions
    choices = (lambda: list(known)) if known else None
    if declared.is_positional:
        return Annotated[kind | None, typer.Argument(autocompletion=choices)]
    flags = tuple(reversed(declared.flags))
    named = typer.Option(*flags, help=declared.help, autocompletion=choices)
    return Annotated[kind if kind is bool else kind | None, named]


def _unset(declared: Option) -> Any:
    return False if declared.kind is bool else None
