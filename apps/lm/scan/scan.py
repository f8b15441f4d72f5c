"""A scan: the scores of all single changes of a region of one protein."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.errors import ConfigError, MissingPackageError
from protperf.lm import picture
from protperf.lm.alphabet import FIRST_RESIDUE, NUM_STANDARD
from protperf.lm.tables.table import Table
from protperf.lm.variants.variant import Edit, Variant, normalized
from protperf.lm.variants.wild_type import WildType

if TYPE_CHECKING:
    from protperf.lm.scan.structure import Coloured

LETTERS = tuple(io.VOCABULARY[FIRST_RESIDUE : FIRST_RESIDUE + NUM_STANDARD])
"""The residues that each position is changed to, in the order of the columns of a matrix."""
DELETION = "del"
"""What a table calls the new residue where one is deleted."""
DELETION_PER_RESIDUE = "del_per_residue"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """One cell of a scan: an index of the wild type, and what stands there instead.

    `variant` is None where the wild type has a residue without a score, such as X.
    """

    index: int
    letter: str
    variant: Variant | None


@dataclass(frozen=True, slots=True)
class Plan:
    """Which changes a scan scores: those of the residues from index `start` to before `end`."""

    wild_type: WildType
    start: int
    end: int
    with_deletions: bool

    @property
    def letters(self) -> tuple[str, ...]:
        """New residues, and the deletion if it is asked for."""
        return (*LETTERS, DELETION) if self.with_deletions else LETTERS

    def changes(self, index: int) -> Iterator[Change]:
        """The changes of one residue; the residue itself is left out."""
        wild, old = self.wild_type, self.wild_type.letter(index)
        for letter in self.letters:
            if letter == old:
                continue
            inserted = b"" if letter == DELETION else bytes([FIRST_RESIDUE + LETTERS.index(letter)])
            edit = Edit(index, 1, inserted)
            yield Change(index, letter, normalized([edit], wild) if wild.has_score(index) else None)


class Scan:
    """Scores in nats of all single changes; above 0 where the model prefers the change.

    Attributes:
        wild_type: the protein; `positions` [L] are the numbers of its scanned residues, `sequence` their letters.
        letters: the twenty residues in the order of the columns of `matrix`.
        matrix: scores [L, 20], 0 where the letter is that of the wild type, NaN where the wild type has no score.
        deletions, deletions_per_residue: scores of deleting each residue, and their form per residue [L], or None.
        strategies: how each model scored, and whether a prior was mixed in and conservation counted.
    """

    letters = LETTERS

    def __init__(self, plan: Plan, strategies: tuple[str, ...]) -> None:
        self.plan, self.wild_type, self.strategies = plan, plan.wild_type, strategies
        self.positions = np.arange(plan.start, plan.end) + plan.wild_type.offset
        self.sequence = plan.wild_type.sequence[plan.start : plan.end]
        count = plan.end - plan.start
        self._cells = np.full((count, len(plan.letters), 2), np.nan)
        for i, letter in enumerate(self.sequence):
            if letter in LETTERS:
                self._cells[i, LETTERS.index(letter)] = 0.0

    def __repr__(self) -> str:
        first, last = (self.positions[0], self.positions[-1]) if len(self.positions) else (0, 0)
        return f"Scan of {self.wild_type.id}, positions {first} to {last}, strategy {', '.join(self.strategies)}"

    def _repr_html_(self) -> str:
        """The heat map, as a notebook shows it; the table where matplotlib is missing or the region too long."""
        try:
            return picture.svg(self.heatmap())
        except (MissingPackageError, ConfigError):
            return self.table._repr_html_()

    @property
    def matrix(self) -> NDArray[np.float64]:
        return self._cells[:, : len(LETTERS), 0]

    @property
    def deletions(self) -> NDArray[np.float64] | None:
        return self._cells[:, -1, 0] if self.plan.with_deletions else None

    @property
    def deletions_per_residue(self) -> NDArray[np.float64] | None:
        return self._cells[:, -1, 1] if self.plan.with_deletions else None

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean score of the substitutions of each position [L]; NaN where there is none."""
        found = np.full(len(self.positions), np.nan)
        for i, letter in enumerate(self.sequence):
            changed = [j for j, other in enumerate(LETTERS) if other != letter]
            found[i] = self.matrix[i, changed].mean()
        return found

    @property
    def table(self) -> Table[Row]:
        """One row per change: `id pos wt mt score`, and where deletions are scored, `score_per_residue`."""
        rows = [self.row(change) for i in range(self.plan.start, self.plan.end) for change in self.plan.changes(i)]
        return Table(self.columns, rows)

    @property
    def columns(self) -> dict[str, type]:
        """Names and types of the columns of the table."""
        per_residue: dict[str, type] = {"score_per_residue": float} if self.plan.with_deletions else {}
        return {"id": str, "pos": int, "wt": str, "mt": str, "score": float, **per_residue}

    @property
    def matrix_columns(self) -> dict[str, type]:
        """Names and types of the columns of the table with one row per position."""
        per_residue: dict[str, type] = {DELETION_PER_RESIDUE: float} if self.plan.with_deletions else {}
        return {"id": str, "pos": int, "wt": str, **dict.fromkeys(self.plan.letters, float), **per_residue}

    def put(self, change: Change, scores: Any) -> None:
        """Set the score of a change and its form per residue."""
        self._cells[change.index - self.plan.start, self.plan.letters.index(change.letter)] = scores

    def row(self, change: Change) -> Row:
        """The row of a change."""
        score, per_residue = self._cells[change.index - self.plan.start, self.plan.letters.index(change.letter)]
        row = {**self._named(change.index), "mt": change.letter, "score": float(score)}
        return row | ({"score_per_residue": float(per_residue)} if self.plan.with_deletions else {})

    def matrix_row(self, index: int) -> Row:
        """The row of a position."""
        values = self._cells[index - self.plan.start]
        row = self._named(index) | dict(zip(self.plan.letters, values[:, 0].tolist(), strict=True))
        return row | ({DELETION_PER_RESIDUE: float(values[-1, 1])} if self.plan.with_deletions else {})

    def heatmap(self, ax: Any = None) -> Any:
        """Draw the matrix: into these axes of matplotlib, or as a new figure whose rows wrap. Returns the figure.

        Raises:
            MissingPackageError: matplotlib is not installed; ConfigError: too many positions for one figure.
        """
        from protperf.lm.scan.heatmap import draw

        return draw(self, ax)

    def report(self, path: str | os.PathLike[str], facts: Mapping[str, Any] | None = None) -> None:
        """Write a page of HTML with the heat map and the best and worst changes; it needs no other file.

        Args:
            facts: where the scores come from, by name, such as the model.

        Raises:
            ConfigError: too many positions for one picture; FileError: the file cannot be written.
        """
        from protperf.lm.reporting.page import save
        from protperf.lm.reporting.scan_page import scan_page

        save(scan_page(self, facts), Path(path))

    def color_structure(
        self, structure: str | os.PathLike[str], out: str | os.PathLike[str], chain: str | None = None
    ) -> Coloured:
        """Write a PDB or mmCIF file again with the mean score of each position as B-factor of its atoms.

        Args:
            chain: the chain to colour; default: every chain that is this protein.

        Raises:
            DataError: no chain is this protein, or the one that was named is not: the first residue that differs is
            named. FileError: a file that cannot be read or written.
        """
        from protperf.lm.scan.structure import match

        return match(self.wild_type, os.fspath(structure), chain).write(self, os.fspath(out))

    def _named(self, index: int) -> Row:
        wild = self.wild_type
        return {"id": wild.id, "pos": index + wild.offset, "wt": wild.letter(index)}
