"""How an option is declared: once, as a field of a frozen dataclass.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class ScoreOptions:
        batch_tokens: int = option(4096, "Residues read together in one pass.", unit="TOKENS", least=1)

        def __post_init__(self) -> None:
            check(self)

Everything else follows from the field: the flag and its place on the help page (`protperf.lm.cli`), the keyword
argument of Python (`takes`, `from_keywords`), the key of a TOML or JSON file (`from_mapping`) and the checks
(`check`). An error names the argument by a `Message`, so that the command can spell it as a flag.

This module imports neither NumPy nor torch, and takes NumPy's numbers all the same.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from protperf.errors import ConfigError
from protperf.message import Argument, Message

REQUIRED: Any = dataclasses.MISSING
"""The default of an option that has none."""

_MAX_SHOWN = 200
"""Characters of a value that an error shows."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option: what `option` declares, with what its field adds (`name`, `kind`, `is_optional`, `is_many`).

    Attributes:
        name: the field, and the key in a file.
        argument: the keyword in Python; the name unless the field carries a unit (`time_s` is given as `time`).
        flags: short and long flag on the command line; empty for a positional argument.
        kind: int, float, bool, str or Path; `is_many`: a tuple of these; `is_optional`: None is a value.
        choices: the only values; `suggestions`: those that a shell completes, where others are possible too.
        least, most, below: the range of a number, `below` being left out of it.
        read: turns text into a value, on the command line and in Python.
        or_path: a path may be given in place of a value; it is for the caller to deal with.
        judge: refuses a value for a reason of its own.
        shown_default: what the help says in place of the default.
    """

    help: str
    default: Any
    name: str = ""
    argument: str = ""
    flags: tuple[str, ...] = ()
    is_positional: bool = False
    unit: str | None = None
    choices: tuple[str, ...] = ()
    suggestions: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    below: float | None = None
    read: Callable[[str], Any] | None = None
    or_path: bool = False
    judge: Callable[[Any], None] | None = None
    shown_default: str | None = None
    kind: type = str
    is_optional: bool = False
    is_many: bool = False

    @property
    def is_required(self) -> bool:
        return self.default is REQUIRED and self.shown_default is None

    @property
    def placeholder(self) -> str:
        """What stands for the value on the help page."""
        if self.unit is not None:
            return self.unit
        return {int: "N", float: "X", Path: "PATH"}.get(
            self.kind, "NAME" if self.choices or self.suggestions else "TEXT"
        )

    def from_text(self, text: str) -> Any:
        """The value that some text of a command line stands for.

        Raises:
            ConfigError: it stands for none, or for one that is out of range.
        """
        if self.read is not None:
            return self.given(self._read(text))
        try:
            value = self.kind(text) if self.kind in (int, float) else text
        except ValueError:
            raise self._refused(text) from None
        return self.checked((value,))[0] if self.is_many else self.checked(value)

    def _read(self, text: str) -> Any:
        assert self.read is not None
        try:
            return self.read(text)
        except ConfigError as error:
            raise ConfigError(Message("{name}: {what}", name=Argument(self.argument), what=error.args[0])) from error

    def given(self, value: Any) -> Any:
        """A value that a program gives, which may be text or a path where the option reads them.

        Raises:
            ConfigError: another type, or out of range.
        """
        if self.or_path and isinstance(value, os.PathLike):
            return Path(value)
        reads = self.read is not None and isinstance(value, str)
        return self.from_text(value) if reads else self.checked(value)

    def checked(self, value: Any) -> Any:
        """The value as its plain Python type.

        Raises:
            ConfigError: another type, or out of range.
        """
        if value is None and self.is_optional:
            return None
        if self.is_many:
            if isinstance(value, (str, os.PathLike)) or not isinstance(value, Iterable):
                raise self._refused(value)
            return tuple(self._one(item) for item in value)
        return self._one(value)

    def _one(self, value: Any) -> Any:
        plain = _plain(value, self.kind)
        if plain is None or not self._is_in_range(plain):
            raise self._refused(value)
        if self.judge is not None:
            self.judge(plain)
        return plain

    def _is_in_range(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        # NaN is in no range.
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def _refused(self, value: Any) -> ConfigError:
        remedy = f"choose one of {', '.join(self.choices)}" if self.choices else f"it must be {self._needed()}"
        return ConfigError(
            Message("{name} is {value}; {remedy}", name=Argument(self.argument), value=_shown(value), remedy=remedy)
        )

    def _needed(self) -> str:
        nouns = {int: "a whole number", float: "a number", bool: "True or False", Path: "a path"}
        noun = nouns.get(self.kind, "text")
        noun = f"a list, each {noun}" if self.is_many else noun
        if self.below is not None:
            return f"{noun} from {self.least:g} to less than {self.below:g}"
        if self.least is None:
            return noun
        if self.most is None or self.most >= 2**31:
            return f"{noun} of at least {self.least:g}"
        return f"{noun} from {self.least:g} to {self.most:g}"


def option(
    default: Any,
    text: str,
    *,
    argument: str = "",
    flag: str | None = None,
    short: str | None = None,
    positional: bool = False,
    **facts: Any,
) -> Any:
    """A field of a dataclass that is an option.

    Args:
        default: `REQUIRED` where there is none.
        text: what the help says: the thing and its unit; the default is added to it.
        argument, flag: where they differ from the field's name (`batch_tokens`, `--batch-tokens`).
        facts: further fields of `Option`.
    """
    flags = () if positional else (*((short,) if short else ()), flag or "")
    declared = Option(
        help=text, default=default, argument=argument, flags=flags, is_positional=positional, **facts
    )  # fmt: skip
    return dataclasses.field(default=default, metadata={"option": declared})


def options_of(kind: type) -> Mapping[str, Option]:
    """The options that a dataclass declares, by field, in their order."""
    return _options_of(kind)


@functools.cache
def _options_of(kind: Any) -> Mapping[str, Option]:
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        declared: Option | None = field.metadata.get("option")
        if declared is not None:
            argument = declared.argument or field.name
            flags = tuple(flag or f"--{argument.replace('_', '-')}" for flag in declared.flags)
            found[field.name] = dataclasses.replace(
                declared, name=field.name, argument=argument, flags=flags, **_kind(hints[field.name])
            )
    return types.MappingProxyType(found)


def _kind(hint: Any) -> dict[str, Any]:
    """What a type annotation says: `int`, `int | None`, `tuple[str, ...]`, `tuple[str, ...] | None`."""
    inner = [part for part in typing.get_args(hint) if part is not type(None)] if _is_union(hint) else [hint]
    is_many = typing.get_origin(inner[0]) is tuple
    kind = typing.get_args(inner[0])[0] if is_many else inner[0]
    return {"kind": kind, "is_optional": _is_union(hint), "is_many": is_many}


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (types.UnionType, typing.Union)


def _plain(value: Any, kind: type) -> Any:
    """A value as its plain Python type, NumPy's numbers too; None where it is of another kind."""
    is_bool = type(value).__name__ in ("bool", "bool_")
    if kind is bool:
        return bool(value) if is_bool else None
    if kind is int:
        return int(value) if isinstance(value, numbers.Integral) and not is_bool else None
    if kind is float:
        if not isinstance(value, numbers.Real) or is_bool:
            return None
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if math.isfinite(number) else None
    if kind is Path:
        return Path(value) if isinstance(value, (str, os.PathLike)) else None
    return str(value) if isinstance(value, str) else None


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:
        text = "a number of thousands of digits"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def check(options: Any) -> None:
    """Check every option of a dataclass, in its `__post_init__`; NumPy's numbers become Python's.

    Raises:
        ConfigError: naming the first that is of another type or out of range.
    """
    for declared in options_of(type(options)).values():
        object.__setattr__(options, declared.name, declared.checked(getattr(options, declared.name)))


def from_mapping(kind: type[T], values: Any, *, complete: bool = False) -> T:
    """A dataclass of options from a table of a file.

    Args:
        complete: every key must be there, also those with a default.

    Raises:
        ConfigError: a key that is unknown or missing, or a value out of range.
    """
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    known = [field.name for field in fields]
    if not isinstance(values, Mapping):
        raise ConfigError(f"it is a {type(values).__name__} and not a table of {', '.join(known)}")
    unknown = [key for key in values if key not in known]
    if unknown:
        raise ConfigError(f"unknown key {unknown[0]!r}; known are {', '.join(known)}")
    needed = [field.name for field in fields if complete or field.default is REQUIRED]
    missing = [name for name in needed if name not in values]
    if missing:
        raise ConfigError(f"key {missing[0]!r} is missing")
    return kind(**values)


def from_keywords(given: Mapping[str, Any], declared: Iterable[Option]) -> dict[str, Any]:
    """Values by field from keyword arguments of Python, which may be text where an option reads text.

    Raises:
        ConfigError: an unknown keyword, or a value out of range.
    """
    by_argument = {each.argument: each for each in declared}
    values = {}
    for name, value in given.items():
        if name not in by_argument:
            hint = closest(name, by_argument) or f"known are {', '.join(by_argument)}"
            raise ConfigError(f"unknown option {name!r}; {hint}")
        found = by_argument[name]
        values[found.name] = found.given(value)
    return values


def listed(names: Iterable[str], word: str = "and") -> tuple[str, dict[str, Argument]]:
    """A template that lists arguments (`{a}, {b} and {c}`), and what fills it: for a `Message`."""
    parts = {name: Argument(name) for name in names}
    first, last = list(parts)[:-1], list(parts)[-1:]
    text = f" {word} ".join(filter(None, [", ".join(f"{{{name}}}" for name in first), *(f"{{{n}}}" for n in last)]))
    return text, parts


def closest(word: str, known: Iterable[str]) -> str | None:
    """`did you mean ...?` for a word that is nearly a known one."""
    import difflib

    close = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean {close[0]}?" if close else None


def pick(kind: type, *names: str) -> list[Option]:
    """Some of the options that a dataclass declares; all of them where none is named."""
    found = options_of(kind)
    return [found[name] for name in names or found]


def instance(kind: type[T], given: Mapping[str, Any]) -> T:
    """The options of a dataclass from values by field, among which there may be options of others."""
    return kind(**{name: given[name] for name in options_of(kind) if name in given})


def takes(*declared: Sequence[Option]) -> Callable[[T], T]:
    """Decorate a function whose `**options` are these: its signature and its documentation list them."""
    listed = [each for group in declared for each in group]

    def decorate(function: Any) -> Any:
        signature = inspect.signature(function)
        kept = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        added = [
            inspect.Parameter(
                each.argument, inspect.Parameter.KEYWORD_ONLY, default=_default(each), annotation=_annotation(each)
            )
            for each in listed
        ]
        function.__signature__ = signature.replace(parameters=[*kept, *added])
        if function.__doc__ is not None:
            function.__doc__ = (
                inspect.cleandoc(function.__doc__) + "\n\nOptions:\n" + "\n".join(map(_described, listed))
            )
        return function

    return decorate


def _default(declared: Option) -> Any:
    """The default of an argument; None, which every argument takes, where something else decides it."""
    if declared.default is not REQUIRED:
        return declared.default
    return inspect.Parameter.empty if declared.is_required else None


def _annotation(declared: Option) -> Any:
    kind: Any = tuple[declared.kind, ...] if declared.is_many else declared.kind  # type: ignore[name-defined]
    if declared.read is not None:
        kind = kind | str
    return kind | None if declared.is_optional or _default(declared) is None else kind


def _described(declared: Option) -> str:
    import textwrap

    return textwrap.fill(f"{declared.argument}: {declared.help}", 110, initial_indent="    ", subsequent_indent=" " * 8)
