"""What a corpus case is: a name, its bytes, and its outcome under each policy."""

from __future__ import annotations

from dataclasses import dataclass

POLICIES = ("map", "strict", "skip")

Row = tuple[str, ...]


def escape(text: str) -> str:
    return "".join(f"\\x{ord(c):02x}" if c == "\\" or ord(c) < 32 or ord(c) == 127 else c for c in text)


def rec(name: str, sequence: str, *flags: str, about: str = "") -> Row:
    return ("record", escape(name), escape(about), sequence, ",".join(flags))


def reject(name: str, line: int, column: int, kind: str) -> Row:
    return ("reject", escape(name), f"{line}:{column}", kind)


def err(line: int, column: int, kind: str) -> Row:
    return ("error", "-", f"{line}:{column}", kind)


def broken(kind: str) -> Row:
    """A fault of the compressed data, which has no line."""
    return ("error", "-", "-", kind)


@dataclass(frozen=True)
class Case:
    """Outcomes are rows in the order of the file; without an error, `end` is added."""

    name: str
    content: bytes
    map: tuple[Row, ...]
    strict: tuple[Row, ...]
    skip: tuple[Row, ...]

    def outcome(self, policy: str) -> list[Row]:
        rows: tuple[Row, ...] = getattr(self, policy)
        ends = not rows or rows[-1][0] != "error"
        return [*rows, ("end",)] if ends else list(rows)


def same(name: str, content: bytes, *rows: Row) -> Case:
    """The policies agree."""
    return Case(name, content, rows, rows, rows)


def mended(name: str, content: bytes, *rows: Row, strict: tuple[Row, ...], skip: tuple[Row, ...]) -> Case:
    """`map` mends what `strict` refuses and `skip` leaves out."""
    return Case(name, content, rows, strict, skip)


def refused(name: str, content: bytes, error: Row, before: tuple[Row, ...] = (), after: tuple[Row, ...] = ()) -> Case:
    """A fault of the first record after `before`: an error, or a rejection with `after` behind it under `skip`.

    The record's id is `bad`.
    """
    _, _, place, kind = error
    left_out = ("reject", "bad", place, kind)
    return Case(name, content, (*before, error), (*before, error), (*before, left_out, *after))
