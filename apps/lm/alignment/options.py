"""What can be asked of an alignment. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from protperf.lm.options import REQUIRED, check, option
from protperf.lm.shared_options import residues_option

ROUNDS = 2
"""How often a profile is made anew, unless it is said."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AlignOptions:
    """What the columns are, how often the family is aligned, and where the rows go."""

    query: Path | None = option(
        None,
        "The protein whose residues are the columns: a file with one record.",
        unit="FILE",
        shown_default="the first sequence",
    )
    rounds: int = option(
        ROUNDS,
        "How often a profile is made of the sequences that fit, and each aligned to it; before that they are aligned "
        "to the query alone.",
        least=0,
        most=20,
    )
    residues: str = residues_option()
    out: Path = option(REQUIRED, "Alignment to write, in A3M format; .gz is compressed.", short="-o", unit="FILE")
    force: bool = option(False, "Replace a file that is there.")

    def __post_init__(self) -> None:
        check(self)
