"""Options that several commands and functions of Python have in common. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from protperf.errors import ConfigError
from protperf.lm.device import DTYPES, ENGINES, READING_DEVICES, check_dtype, check_reading_device, choose_engine
from protperf.lm.named_files import LISTS, MODEL, check_suffix
from protperf.lm.options import REQUIRED, check, option
from protperf.message import Argument, Message

BATCH_TOKENS = 4096
"""Tokens of one pass unless others are asked for: more is no faster on a CPU."""
POLICIES = ("map", "strict", "skip")
"""What happens to residues that are not letters of the alphabet."""


def residues_option() -> Any:
    """The policy for odd residues."""
    text = "Odd residues: map corrects and flags them, strict stops at them, skip leaves the record out."
    return option("map", text, unit="POLICY", choices=POLICIES)


def model_option() -> Any:
    """The model that is asked."""
    return option(REQUIRED, MODEL, positional=True, unit="MODEL")


def seq_col_option() -> Any:
    """The column of a table that holds the sequences."""
    return option(None, "The input is CSV or TSV and has its sequences in this column.", unit="NAME")


def batch_tokens_option() -> Any:
    """How much is read together."""
    text = "Residues read together in one pass; more takes more memory and is not always faster."
    return option(BATCH_TOKENS, text, least=1, most=2**40)


def deterministic_option() -> Any:
    """Whether the last bits may depend on what is read together."""
    return option(False, "The same bits for any batch size, order and number of threads; slower.")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReadingOptions:
    """How sequence files are read."""

    seq_col: str | None = seq_col_option()
    id_col: str | None = option(
        None, "Column of the ids.", unit="NAME", shown_default="id, or the number of the row if there is no such column"
    )
    residues: str = residues_option()

    def __post_init__(self) -> None:
        check(self)

    def to_mapping(self) -> dict[str, Any]:
        """The values by name, as `protperf.io.read_tokens` takes them."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RejectOptions:
    """What becomes of the records that are left out of files."""

    rejects: Path | None = option(
        None, "Table to write of the records that were left out, .tsv, .csv or .jsonl: file, line and column of the "
        "fault, n, id, reason.", unit="FILE",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)
        check_suffix("rejects", self.rejects, LISTS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Where a model computes, by which code, and in which type."""

    device: str = option(
        "auto",
        f"Where to compute: {' or '.join(READING_DEVICES)}.",
        suggestions=READING_DEVICES,
        judge=check_reading_device,
    )
    dtype: str = option("float32", f"Type to compute in: {' or '.join(DTYPES)}.", suggestions=DTYPES, judge=check_dtype)
    engine: str = option(
        "auto",
        "What computes: native (cpu and wgpu, without torch), torch, or auto: native where it can, torch elsewhere.",
        choices=ENGINES,
    )

    def __post_init__(self) -> None:
        check(self)
        choose_engine(self.engine, self.device, self.dtype)


_SHARD = re.compile(r"([1-9]\d{0,8})/([1-9]\d{0,8})")


def read_shard(text: str) -> tuple[int, int]:
    """The place of a shard, counted from 0, and the number of shards: `2/8` is (1, 8).

    Raises:
        ConfigError: anything else.
    """
    match = _SHARD.fullmatch(text)
    if match is None or int(match[1]) > int(match[2]):
        template = "{shard} is {text!r}; write 2/8 for the second of eight, counted from 1"
        raise ConfigError(Message(template, shard=Argument("shard"), text=text))
    return int(match[1]) - 1, int(match[2])


def _check_shard(text: str) -> None:
    read_shard(text)


def shard_option() -> Any:
    """Which of the records are taken."""
    text = "Take every n-th record, from the i-th on: the i-th of n jobs that share the work. Column n says which."
    return option(None, text, unit="I/N", judge=_check_shard)


def is_taken(shard: str | None, n: int) -> bool:
    """Whether record `n` of the input belongs to a shard; all do where there is none."""
    if shard is None:
        return True
    place, count = read_shard(shard)
    return n % count == place


_DAY_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_PART = re.compile(r"(\d+(?:\.\d+)?)([dhms])")
_CLOCK = re.compile(r"(\d+):([0-5]\d):([0-5]\d)")


def parse_duration(text: str) -> float:
    """Seconds of a duration such as `90`, `90s`, `20m`, `1h30m`, `1h30`, `2d` or `1:30:00`.

    A last number without a unit is in the unit below the one before it, so `1h30` is 1 hour 30 minutes; a number
    alone is in seconds. `1:30` is refused: it may be hours and minutes, or minutes and seconds.

    Raises:
        ConfigError: anything else.
    """
    if (clock := _CLOCK.fullmatch(text)) is not None:
        hours, minutes, seconds = map(int, clock.groups())
        return 3600.0 * hours + 60 * minutes + seconds
    units, total, end = "dhms", 0.0, 0
    for part in _PART.finditer(text):
        if part.start() != end or part[2] not in units:
            raise _no_duration(text)
        total, end = total + float(part[1]) * _DAY_UNITS[part[2]], part.end()
        # Larger units come first, each once.
        units = units[units.index(part[2]) + 1 :]
    rest = text[end:]
    if rest:
        unit = "s" if end == 0 else units[:1]
        if not unit or re.fullmatch(r"\d+(?:\.\d+)?", rest) is None:
            raise _no_duration(text)
        total += float(rest) * _DAY_UNITS[unit]
    elif end == 0:
        raise _no_duration(text)
    return total


def _no_duration(text: str) -> ConfigError:
    return ConfigError(f"{text!r} is not a duration; write it like 90s, 20m, 1h30m or 1:30:00")
