"""The residue table as it is documented: what one byte in a sequence line becomes, by policy.

Written by hand from the policy, never from the reader: a letter is what the sequence then contains, `drop` leaves
nothing, `fault` is an error under `map` and `strict` and a rejected record under `skip`.
"""

from __future__ import annotations

from dataclasses import dataclass

POLICIES = ("map", "strict", "skip")

# bytes | map | strict and skip | flags under map
TABLE = (
    (b"ACDEFGHIKLMNPQRSTVWYUO", "upper", "upper", ""),
    (b"acdefghiklmnpqrstvwyuo", "upper", "upper", "lower_case"),
    (b"X", "upper", "upper", "ambiguous"),
    (b"x", "upper", "upper", "lower_case,ambiguous"),
    (b"BZJ", "upper", "fault", "ambiguous"),
    (b"bzj", "upper", "fault", "lower_case,ambiguous"),
    (b"*", "X", "fault", "internal_stop,ambiguous"),
    (b"-.", "drop", "fault", "gaps"),
    (b" \t\r\n", "drop", "drop", ""),
    (b"0123456789", "fault", "fault", ""),
    (b"!\"#$%&'()+,/:;<=>?@[\\]^_`{|}~", "fault", "fault", ""),
    (bytes(range(9)) + b"\x0b\x0c" + bytes(range(14, 32)) + b"\x7f", "fault", "fault", ""),
    (bytes(range(128, 256)), "fault", "fault", ""),
)


@dataclass(frozen=True)
class Expected:
    """The sequence and its flags, or None for a fault."""

    sequence: str | None
    flags: str = ""


def expected(byte: int, policy: str, before: str, after: str) -> Expected:
    """What `before`, the byte and `after`, in one line of plain residues, become."""
    (row,) = (row for row in TABLE if byte in row[0])
    what = row[1] if policy == "map" else row[2]
    if what == "fault":
        return Expected(None)
    middle = {"upper": chr(byte).upper(), "X": "X", "drop": ""}[what]
    return Expected(before + middle + after, row[3])


def test_table_names_every_byte_once() -> None:
    assert sorted(b"".join(row[0] for row in TABLE)) == list(range(256))
