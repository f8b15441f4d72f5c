"""Evaluate files, a set each, into a table: what the command runs, and Python's `Model.eval`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.lm import picture
from protperf.lm.alphabet import FIRST_RESIDUE, NUM_STANDARD
from protperf.lm.baselines.manifest import TENSORS
from protperf.lm.data.store import read_store
from protperf.lm.engine import Engine
from protperf.lm.evaluation import plot
from protperf.lm.evaluation.baselines import Baselines
from protperf.lm.evaluation.clusters import Clusters
from protperf.lm.evaluation.options import EvalOptions
from protperf.lm.evaluation.predict import modes_of, predictions
from protperf.lm.evaluation.tally import EvalRow, Tallies
from protperf.lm.shared_options import ReadingOptions, RejectOptions
from protperf.lm.tables.destination import check_inputs, check_target
from protperf.lm.tables.fill import fill, fingerprint, input_digests
from protperf.lm.tables.formats import Encoder, choose_format
from protperf.lm.tables.options import TableOptions
from protperf.lm.tables.rejects import RejectList
from protperf.lm.tables.sink import open_sink
from protperf.lm.watch import Stage, Watch

if TYPE_CHECKING:
    from protperf.lm.loading import LoadedModel


@dataclass(frozen=True, slots=True)
class EvalSummary:
    """The rows, the number of records left out, what deserves attention in the input, and the sets above the limit."""

    rows: list[EvalRow]
    rejected: int
    warnings: tuple[str, ...]
    failed: tuple[str, ...]


class EvalJob:
    """Evaluate files into the table that the options describe.

    Raises:
        ConfigError: a table that would overwrite an input; FileError: an input is missing, or the directory of the
        table does not exist; MissingPackageError: the format needs a package.
    """

    def __init__(
        self, sets: Sequence[str], options: EvalOptions, reading: ReadingOptions, table: TableOptions,
        rejects: RejectOptions | None = None,
    ) -> None:  # fmt: skip
        self._sets, self._options, self._reading, self._table = list(sets), options, reading, table
        self._inputs = [*self._sets, *([] if options.train is None else [str(options.train)])]
        self._inputs += [str(path / TENSORS) for path in options.baseline]
        self._baselines = Baselines.read(options.baseline, options.train, reading.residues)
        self._encoder = Encoder(EvalRow, choose_format(table.format, table.out))
        check_inputs(table.out, self._inputs)
        if options.plot is not None:
            picture.require("a plot")
            check_target(options.plot, [*self._inputs, *([] if table.out is None else [table.out])])
        # All rows, those for the plot alone among them.
        self._found: list[EvalRow] = []
        left_out = RejectList(rejects, [*self._inputs, table.out, options.plot])
        self._readers = [left_out.reading(io.read_tokens([path], **reading.to_mapping())) for path in self._sets]

    def write(self, loaded: LoadedModel, dtype: str = "float32", watch: Watch | None = None) -> EvalSummary:
        """Write the table.

        Raises:
            DataError, FastaError: the input is at fault; OSError: the table cannot be written.
        """
        watch, table = watch or Watch(), self._table
        watch.note(loaded.step.name)
        options = {**self._reading.to_mapping(), **self._options.to_mapping(), "dtype": dtype}
        digests = input_digests(self._inputs, table.out, watch)
        facts = fingerprint(loaded, digests, options, self._options.deterministic)
        rows: list[EvalRow] = []
        with watch.working("evaluating", "residues", None, "sets") as stage:
            sink = open_sink(table.out, self._encoder, facts, identify=_identify, force=table.force)
            written = self._batches(loaded.engine, stage, rows)
            provenance = {"command": sys.argv, "model": loaded.step.name, "input": self._inputs}
            note = fill(sink, iter(()), written, stage, watch, lambda: provenance)
        if note is not None:
            watch.note(f"note: {note}")
        return self._conclude(rows)

    def rows(self, engine: Engine) -> EvalSummary:
        """The same without a file."""
        rows: list[EvalRow] = []
        for _ in self._batches(engine, Stage(), rows):
            pass
        return self._conclude(rows)

    def _batches(
        self, engine: Engine, stage: Stage, rows: list[EvalRow]
    ) -> Iterator[tuple[list[EvalRow], list[EvalRow]]]:
        frequencies = self._train_frequencies()
        for path, reader in zip(self._sets, self._readers, strict=True):
            name = "-" if path == "-" else Path(path).name
            found = evaluate(engine, reader, name, self._options, stage, frequencies, self._baselines)
            shown = [row for row in found if row.by in ("all", *self._options.by)]
            self._found += found
            rows += shown
            yield shown, shown

    def _train_frequencies(self) -> NDArray[np.float64] | None:
        if self._options.train is None:
            return None
        return read_store(os.fspath(self._options.train), self._reading.residues).unigram()

    def _conclude(self, rows: list[EvalRow]) -> EvalSummary:
        if self._options.plot is not None:
            picture.save(plot.draw(self._found), self._options.plot)
        limit = self._options.fail_above
        failed = [] if limit is None else [row for row in rows if row.by == "all" and not row.ppl <= limit]
        texts = tuple(f"{row.set}: {row.mode} perplexity {row.ppl:.3f} is above {limit:g}" for row in failed)
        warnings = tuple(text for reader in self._readers for text in reader.warnings)
        return EvalSummary(rows, sum(reader.summary.rejected for reader in self._readers), warnings, texts)


def evaluate(
    engine: Engine,
    reader: io.Reader,
    name: str,
    options: EvalOptions,
    stage: Stage,
    frequencies: NDArray[np.float64] | None = None,
    baselines: Baselines | None = None,
) -> list[EvalRow]:
    """The rows of one set, read once; in bounded memory, unless clusters of it are asked for.

    Args:
        frequencies: of the residues in the training set [20]; None takes those of the set itself.
        baselines: further ones.
    """
    by, modes = options.groupings, modes_of(engine.config.objective, options)
    counts = np.zeros(NUM_STANDARD, np.int64)

    def records() -> Iterator[io.Record]:
        for batch in reader:
            counts[:] += np.bincount(batch.tokens, minlength=64)[FIRST_RESIDUE : FIRST_RESIDUE + NUM_STANDARD]
            yield from batch

    asked, clusters = records(), None
    if "cluster" in by:
        held = list(asked)
        asked, clusters = iter(held), Clusters.find(held, options.identity)
    tallies = {mode: Tallies(by, clusters) for mode in modes}
    for batch in predictions(engine, asked, modes, options, baselines or Baselines()):
        for mode, facts in batch:
            tallies[mode].add(facts)
            stage.update(len(facts.residues))
    known = (counts + 1.0) / (counts + 1.0).sum() if frequencies is None else frequencies
    return [row for mode, tally in tallies.items() for row in tally.rows(name, mode, known)]


def _identify(row: Any) -> Iterator[bytes]:
    yield f"{row.set}\t{row.mode}\t{row.by}\t{row.group}\n".encode()
