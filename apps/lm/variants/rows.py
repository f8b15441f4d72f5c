"""Rows of a table of variants: the columns of the input as they are, and what is added to them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protperf.errors import ConfigError
from protperf.lm import inference
from protperf.lm.tables.formats import WrittenNumber
from protperf.lm.variants.options import VariantOptions
from protperf.lm.variants.reader import Item, VariantReader
from protperf.lm.variants.score import Ensemble
from protperf.lm.variants.variant import Variant
from protperf.lm.watch import Progress, no_progress
from protperf.message import Argument, Message

Row = dict[str, Any]


class RowMaker:
    """Makes the row of an item and its scores.

    Attributes:
        columns: names and types in order.
        left_out: columns that would have been added, but that the input has already.
    """

    def __init__(self, reader: VariantReader, ensemble: Ensemble, options: VariantOptions) -> None:
        """Choose the columns.

        Raises:
            ConfigError: the input has a column of the score's name.
        """
        self._reader, self._ensemble, self._score = reader, ensemble, options.score_col
        if options.score_col in reader.columns:
            text = "the input has a column {name!r} already; name the new one with {score_col}"
            raise ConfigError(Message(text, name=options.score_col, score_col=Argument("score_col")))
        measured = {reader.columns[i] for i in (reader.label, reader.positive) if i is not None}
        carried = {name: float if name in measured else str for name in reader.columns}
        added: dict[str, type] = {}
        if reader.is_list:
            added["normalized"] = str
        added[self._score] = float
        if ensemble.has_lengths:
            added[f"{self._score}_per_residue"] = float
        # A row without a score has no count of mutations.
        added["num_mutations"] = int if options.invalid == "error" else float
        if options.per_model and len(ensemble.scorers) > 1:
            added |= {self._of_model(i): float for i in range(len(ensemble.scorers))}
        self.left_out = [name for name in added if name in carried]
        self._added = {name: kind for name, kind in added.items() if name not in carried}
        self.columns: Mapping[str, type] = carried | self._added

    def row(self, item: Item, scores: NDArray[np.float64]) -> Row:
        """The row of an item.

        Args:
            scores: scores of each model and their form per residue [num_models, 2].
        """
        row: Row = dict(zip(self._reader.columns, item.cells, strict=True))
        for column, value in ((self._reader.label, item.label), (self._reader.positive, item.positive)):
            if column is not None:
                row[self._reader.columns[column]] = WrittenNumber(value, item.cells[column])
        means = _mean(scores)
        values: Row = {self._score: means[0], f"{self._score}_per_residue": means[1]}
        if item.variant is not None:
            values["normalized"] = item.variant.name(self._ensemble.wild_type)
            values["num_mutations"] = len(item.variant.edits)
        values |= {self._of_model(i): float(score) for i, score in enumerate(scores[:, 0])}
        return row | {name: values.get(name) for name in self._added}

    def _of_model(self, index: int) -> str:
        return f"{self._score}_{index + 1}"


def _mean(scores: NDArray[np.float64]) -> list[float]:
    # A single score keeps its bits.
    return [math.fsum(column) / len(column) for column in scores.T.tolist()]


def scored(
    ensemble: Ensemble, items: Iterable[Item], maker: RowMaker, progress: Progress = no_progress
) -> Iterator[tuple[list[Item], list[Row]]]:
    """Score items lazily, in their order: each batch and its rows."""
    for batch in inference.in_batches(items, lambda item: ensemble.size(item.variant), ensemble.budget):
        yield (
            batch,
            [maker.row(item, found) for item, found in zip(batch, _scores(ensemble, batch, progress), strict=True)],
        )


def _scores(ensemble: Ensemble, batch: Sequence[Item], progress: Progress) -> NDArray[np.float64]:
    known = [item.variant for item in batch if item.variant is not None]
    scores = np.full((len(batch), len(ensemble.scorers), 2), math.nan)
    places = [i for i, item in enumerate(batch) if item.variant is not None]
    distinct: dict[Variant, int] = {}
    for variant in known:
        distinct.setdefault(variant, len(distinct))
    progress((len(batch) - len(distinct)) * len(ensemble.scorers))
    if known:
        found = ensemble.score(list(distinct), progress)
        scores[places] = found[[distinct[variant] for variant in known]]
    return scores
