"""Messages that name arguments: in Python's spelling for a program, in another one for whoever types them.

A library error says `batch_tokens is 0`; the same error on a command line has to say `--batch-tokens is 0`. A `Message`
keeps the arguments apart from the text around them, so that the command can put its own spelling in their place.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Argument", "Message"]


class Argument:
    """An argument that a message names, and where it advises one, the value to give: `steps`, or `steps=100`."""

    def __init__(self, name: str, value: object = None) -> None:
        self.name, self.value = name, value

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}={self.value!r}"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


class Message(str):
    """Text with arguments in it; as a string, in Python's spelling.

    Args:
        template: what `str.format` takes, such as `"{option} is {value!r}; it must be positive"`.
        parts: what fills the template, messages among it. Nothing in a part is read as a template.
    """

    _template: str
    _parts: dict[str, object]

    def __new__(cls, template: str, **parts: object) -> Message:
        message = super().__new__(cls, template.format(**parts))
        message._template, message._parts = template, parts
        return message

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        # Another process needs the text alone, and parts may hold what cannot be pickled.
        return str, (str(self),)

    def spelled(self, spell: Callable[[Argument], str]) -> str:
        """The text with every argument spelled by `spell`."""
        return self._template.format(**{name: _spelled(part, spell) for name, part in self._parts.items()})


def _spelled(part: object, spell: Callable[[Argument], str]) -> object:
    if isinstance(part, Argument):
        return spell(part)
    return part.spelled(spell) if isinstance(part, Message) else part
