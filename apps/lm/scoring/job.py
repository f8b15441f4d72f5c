"""Scores of sequence files, streamed into a table: what the command runs, and Python's `Model.score_files`.

A job is checked when it is made, before a model is loaded; `prepare` finds out what decides the table, and `write`
writes it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protperf import io
from protperf.lm.scoring.carried import CarriedColumns
from protperf.lm.scoring.options import ScoreOptions, ScoreOutput, choose_reading
from protperf.lm.scoring.profile import ProfilePlot
from protperf.lm.scoring.row import ResidueRow, ScoreRow
from protperf.lm.shared_options import ReadingOptions, RejectOptions, is_taken
from protperf.lm.tables.destination import check_inputs
from protperf.lm.tables.fill import JobSummary, counts, fill, fingerprint, input_digests, summarize
from protperf.lm.tables.formats import Encoder, choose_format, columns_of
from protperf.lm.tables.options import TableOptions
from protperf.lm.tables.rejects import RejectList
from protperf.lm.tables.resume import identify_record
from protperf.lm.tables.sink import open_sink
from protperf.lm.watch import Stage, Watch

if TYPE_CHECKING:
    from protperf.lm.loading import LoadedModel
    from protperf.lm.scoring.estimate import Work


ScoreSummary = JobSummary


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """What decides a table: the model, the method, and by name all that its bytes depend on.

    Attributes:
        total: tokens that the model will read, if they could be counted.
    """

    loaded: LoadedModel
    method: str
    total: int | None
    fingerprint: dict[str, Any]


class ScoreJob:
    """Score files into the table that the options describe.

    Raises:
        ConfigError: options that exclude each other, or a table that would overwrite an input; FileError: an input is
        missing, or the directory of the table does not exist; MissingPackageError: the format needs a package.
    """

    def __init__(
        self, fasta: Sequence[str], scoring: ScoreOptions, reading: ReadingOptions, table: TableOptions,
        rejects: RejectOptions | None = None, output: ScoreOutput | None = None,
    ) -> None:  # fmt: skip
        self._fasta, self._scoring, self._reading, self._table = list(fasta), scoring, reading, table
        output = output or ScoreOutput()
        columns = columns_of(ResidueRow if scoring.per_residue else ScoreRow)
        self._carried = CarriedColumns(output.carry, self._fasta, reading.seq_col, columns)
        self._carry = output.carry
        self._encoder = Encoder(self._carried.columns, choose_format(table.format, table.out))
        check_inputs(table.out, self._fasta)
        self._plot = None if output.plot is None else ProfilePlot(output.plot, scoring, self._fasta, table)
        left_out = RejectList(rejects, [*self._fasta, table.out])
        self._reader = left_out.reading(io.read_tokens(self._fasta, **reading.to_mapping()))

    def prepare(self, loaded: LoadedModel, dtype: str = "float32", watch: Watch | None = None) -> PreparedJob:
        """Choose the method, count the work if someone wants to know, and take the checksums of the input.

        Raises:
            ConfigError: a method that the model was not trained for.
        """
        from protperf.lm.scoring.estimate import count_work

        watch = watch or Watch()
        method = choose_reading(loaded.engine.config, self._scoring)
        announces = method.startswith("pll") and watch.takes_notes
        work = None
        if announces or (watch.shows_progress and self._scoring.shard is None):
            with watch.waiting("reading", " residues") as stage:
                work = count_work(self._fasta, method, stage.update, **self._reading.to_mapping())
        watch.note(f"{loaded.step.name}, method {method}")
        if announces:
            self._announce(loaded, method, work, watch)
        digests = input_digests(self._fasta, self._table.out, watch)
        options = {**self._reading.to_mapping(), **self._scoring.to_mapping(), "method": method, "dtype": dtype}
        if self._carry:
            options["carry"] = list(self._carry)
        total = None if work is None or self._scoring.shard is not None else work.tokens
        facts = fingerprint(loaded, digests, options, self._scoring.deterministic)
        return PreparedJob(loaded, method, total, facts)

    def write(self, job: PreparedJob, watch: Watch | None = None) -> ScoreSummary:
        """Write the table.

        Raises:
            ConfigError: rows of an interrupted table that are neither continued nor given up, or a table of something
            else to continue; DataError, FastaError: the input is at fault; OSError: the table cannot be written.
        """
        from protperf.lm.scoring.likelihood import residue_rows, score_batches, sequence_row

        watch, scoring = watch or Watch(), self._scoring
        with watch.working("scoring", "tokens", job.total, "proteins") as stage:
            taken = (record for batch in self._reader for record in batch if is_taken(scoring.shard, record.n))
            records = taken if self._plot is None else self._plot.noting(taken)
            scored = score_batches(
                job.loaded.engine,
                records,
                job.method,
                batch_tokens=scoring.batch_tokens,
                deterministic=scoring.deterministic,
                progress=stage.update,
            )
            rows = residue_rows if scoring.per_residue else lambda *given: [sequence_row(*given)]
            batches = (
                (
                    [item for record, _ in batch for item in self._items(record)],
                    [
                        self._carried.row(record, row)
                        for record, values in batch
                        for row in rows(record, values, job.method)
                    ],
                )
                for batch in scored
            )
            shown = batches if self._plot is None else self._plot.collecting(batches)
            table = self._table
            identify = _identify_residue if scoring.per_residue else identify_record
            sink = open_sink(
                table.out, self._encoder, job.fingerprint, identify=identify, resume=table.resume, force=table.force
            )
            skipped = self._skipped(records, job.method, stage)
            note = fill(sink, skipped, shown, stage, watch, lambda: self._provenance(job))
        if note is not None:
            watch.note(f"note: {note}")
        if self._plot is not None:
            self._plot.save(job.method, watch)
        return summarize(self._reader)

    def _announce(self, loaded: LoadedModel, method: str, work: Work | None, watch: Watch) -> None:
        """Say beforehand what pseudo-likelihoods cost, and how far the fast ones lie from the others."""
        from protperf.lm.scoring.estimate import estimate_pll, measure_bias

        if method == "pll":
            watch.note(f"pll reads each sequence once for each residue: {estimate_pll(loaded.engine, work)}")
            return
        if work is None:
            return
        record = next(
            (record for batch in io.read_tokens(self._fasta, **self._reading.to_mapping()) for record in batch), None
        )
        bias = None if record is None else measure_bias(loaded.engine, record.tokens)
        if bias is not None:
            watch.note(f"pll-fast minus pll, first sequence: {bias}")

    def _items(self, record: io.Record) -> list[Any]:
        """What the rows of a record stand for: the record, or its residues."""
        return [(record, i) for i in range(max(1, len(record)))] if self._scoring.per_residue else [record]

    def _skipped(self, records: Iterator[io.Record], method: str, stage: Stage) -> Iterator[Any]:
        """What an earlier run scored: reading it does not count as work of this one."""
        from protperf.lm.scoring.estimate import tokens_read

        for record in records:
            stage.skip(tokens_read(len(record), method))
            yield from self._items(record)

    def _provenance(self, job: PreparedJob) -> dict[str, Any]:
        model = job.loaded.step.name
        return {"command": sys.argv, "model": model, "input": self._fasta, **counts(self._reader)}


def _identify_residue(item: tuple[io.Record, int]) -> Iterator[bytes]:
    """The bytes by which a residue differs from any other: those of its record come with the first one."""
    record, index = item
    if index == 0:
        yield from identify_record(record)
    yield f"{index}\n".encode()
