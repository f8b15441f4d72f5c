"""A row of a table of scores. Imports nothing heavy: a command chooses the format before it loads a model."""

from __future__ import annotations

from dataclasses import dataclass

from protperf.lm.tables.formats import columns_of


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One record's score: sums in nats; NaN if nothing is scored."""

    n: int
    id: str
    len: int
    scored: int
    ll: float
    ll_per_residue: float
    ppl: float
    method: str
    flags: str


@dataclass(frozen=True, slots=True)
class ResidueRow:
    """The score of one residue: nats; NaN for one that is context only. `pos` counts from 1."""

    n: int
    id: str
    pos: int
    residue: str
    ll: float
    method: str


COLUMNS = columns_of(ScoreRow)
"""Columns of a table of scores and their types."""
