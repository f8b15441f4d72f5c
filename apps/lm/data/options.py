"""What can be asked of sets of sequences. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from protperf.errors import ConfigError
from protperf.lm.options import option
from protperf.lm.shared_options import RejectOptions, residues_option, seq_col_option
from protperf.message import Argument, Message

PARTS = ("train", "valid", "test")
"""Names of the parts of a split."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions(RejectOptions):
    """Options of building, describing, dividing and comparing sets."""

    out: Path | None = option(
        None, "File of `build`, directory of `split`.", short="-o", unit="PATH", shown_default="none"
    )
    force: bool = option(False, "Replace the files of an earlier split.")
    residues: str = residues_option()
    seq_col: str | None = seq_col_option()
    dedup: bool = option(False, "Of equal sequences, keep the first alone.")
    as_json: bool = option(False, "Print JSON.", flag="--json")
    by: str = option(
        "cluster", "What stays together: relatives (cluster), rows with the same value in --group-col (column), or "
        "equal sequences alone (random).", choices=("cluster", "column", "random"),
    )  # fmt: skip
    identity: float = option(0.5, "Identity from which sequences are relatives.", least=0.3, most=1.0)
    clusters: Path | None = option(
        None, "Clusters as a table of two columns, representative and member, such as MMseqs2 writes.", unit="FILE"
    )
    group_col: str | None = option(
        None, "For --by column, the column of a table that names the group of each sequence, such as its family.",
        unit="NAME",
    )  # fmt: skip
    fractions: tuple[float, ...] = option(
        (), "Share of the next part: train, valid, test; repeatable.", unit="X", flag="--fraction", least=1e-6,
        most=1e6, shown_default="0.8, 0.1, 0.1",
    )  # fmt: skip
    seed: int = option(42, "Seed of the split.", least=0, most=2**63 - 1)
    fail_above: float | None = option(
        None, "Exit with 1 if more than this share of the second set has a relative in the first.", least=0.0, most=1.0
    )

    def __post_init__(self) -> None:
        RejectOptions.__post_init__(self)
        if len(self.fractions) not in (0, 2, 3):
            text = "{fractions} is given {count} times; name 2 parts (train, valid) or 3 (train, valid, test)"
            raise ConfigError(Message(text, fractions=Argument("fractions"), count=len(self.fractions)))
        names = {name: Argument(name) for name in ("seq_col", "group_col")} | {"by": Argument("by", "column")}
        if self.by == "column" and (self.seq_col is None or self.group_col is None):
            raise ConfigError(Message("{by} divides a table; name its columns with {seq_col} and {group_col}", **names))
        if self.by != "column" and self.group_col is not None:
            raise ConfigError(Message("{group_col} names groups for {by} alone; add that", **names))

    @property
    def shares(self) -> tuple[float, ...]:
        """The fractions, or the usual ones."""
        return self.fractions or (0.8, 0.1, 0.1)
