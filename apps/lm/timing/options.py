"""What can be timed. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from protperf.errors import ConfigError
from protperf.lm.model.config import SIZES
from protperf.lm.options import check, option

TASKS = ("score", "train")


@dataclasses.dataclass(frozen=True, slots=True)
class BenchRow:
    """One measurement, in a process of its own.

    `tokens` were read in one repetition, packed from sequences of `length` residues; `min_s` and `median_s` are seconds
    of a repetition, `tokens_per_s` is by the median; `memory_mb` is the most that the process has held, all libraries
    included, NaN with the others where memory ran out.
    """

    task: str
    attention: str
    length: int
    tokens: int
    min_s: float
    median_s: float
    tokens_per_s: float
    memory_mb: float


def read_lengths(text: str) -> tuple[int, ...]:
    """Numbers of residues, separated by commas.

    Raises:
        ConfigError: anything else.
    """
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(1 <= length <= 10**6 for length in found):
        raise ConfigError(f"{text!r} is not a list of lengths from 1 to 1000000; write it like 256,1024")
    return found


def _known_lengths(text: str) -> None:
    read_lengths(text)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """Which model is timed, at what, and how often."""

    model: Path | None = option(
        None, "Run directory, or one step of it, in place of --size.", positional=True, unit="MODEL"
    )
    size: str = option(
        "nano", f"Network that is timed: {', '.join(SIZES)}, or a .toml file.", unit="NAME|FILE", suggestions=SIZES
    )
    lengths: str = option(
        "256,1024,4096", "Residues of the sequences, separated by commas.", unit="LIST", judge=_known_lengths
    )
    tasks: tuple[str, ...] = option((), f"What is timed, of {', '.join(TASKS)}; repeatable.", flag="--task",
        argument="tasks", unit="NAME", suggestions=TASKS, shown_default="both")  # fmt: skip
    repeats: int = option(5, "Timed repetitions, after one that is not timed.", least=1, most=1000)
    own: bool = option(False, "Leave out the same network with exact attention, which stands next to it.")

    def __post_init__(self) -> None:
        check(self)
        for name in self.tasks:
            if name not in TASKS:
                raise ConfigError(f"task is {name!r}; choose one of {', '.join(TASKS)}")
