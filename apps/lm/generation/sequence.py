"""A generated sequence, and how it is written: as FASTA with its scores in the description, or for Biopython."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from protperf import io

if TYPE_CHECKING:
    from Bio.SeqRecord import SeqRecord

_WIDTH = 60


@dataclass(frozen=True, slots=True)
class Generated:
    """A sequence and what is known of it.

    Attributes:
        prompt, index: which prompt, and the number of the sequence among those of the prompt; they identify it.
        score: `ll`, the log-likelihood as `score` gives it, or `pll` of the positions that were drawn; nats, without
            temperature and the other choices of sampling.
        scored: residues in that sum.
        facts: what else the description says, in its order.
    """

    prompt: int
    index: int
    id: str
    tokens: NDArray[np.uint8]
    method: str
    score: float
    scored: int
    facts: dict[str, str | int | float]

    @property
    def ppl(self) -> float:
        """Perplexity of the scored residues."""
        return math.exp(-self.score / self.scored) if self.scored else math.nan

    @property
    def values(self) -> dict[str, str | int | float]:
        """All that the description says, by name."""
        return {"len": len(self.tokens), self.method: self.score, "ppl": self.ppl, **self.facts}

    @property
    def description(self) -> str:
        """Fields `name=value` with spaces between."""
        return " ".join(f"{name}={_shown(value)}" for name, value in self.values.items())

    def to_record(self) -> SeqRecord:
        """As Biopython has it; `annotations` hold the values."""
        from Bio.Seq import Seq
        from Bio.SeqRecord import SeqRecord

        annotations: dict[str, Any] = {"molecule_type": "protein", **self.values}
        sequence = Seq(io.decode(self.tokens))
        text = f"{self.id} {self.description}"
        return SeqRecord(sequence, id=self.id, name=self.id, description=text, annotations=annotations)


def _shown(value: str | int | float) -> str:
    return f"{value:.6f}" if isinstance(value, float) else str(value)


class FastaEncoder:
    """Sequences as FASTA; a `RowEncoder`."""

    name = "fasta"

    def header(self) -> str:
        return ""

    def data(self, rows: Iterable[Generated]) -> bytes:
        return "".join(map(fasta, rows)).encode()

    def finished(self, part: Path, out: Path) -> Path:
        return part


def fasta(row: Generated) -> str:
    """The record as text."""
    text = io.decode(row.tokens)
    lines = [text[start : start + _WIDTH] for start in range(0, len(text), _WIDTH)]
    return "\n".join([f">{row.id} {row.description}", *lines, ""])
