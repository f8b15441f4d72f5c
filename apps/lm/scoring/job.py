"""Scores of sequence files, streamed into a table: what the command runs, and Python's `Model.score_files`.

A job is checked when it is made, before a model is loaded; `prepare` finds out what decides the table, and `write`
writes it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protperf import build_info, io
from protperf.errors import ConfigError, DataError
from protperf.lm.scoring.options import ScoreOptions, choose_method
from protperf.lm.scoring.row import Row
from protperf.lm.shared_options import ReadingOptions
from protperf.lm.tables.destination import check_inputs, is_file
from protperf.lm.tables.formats import Encoder, choose_format
from protperf.lm.tables.options import TableOptions
from protperf.lm.tables.sink import Sink, open_sink
from protperf.lm.watch import Progress, Stage, Watch, no_progress
from protperf.message import Argument, Message

if TYPE_CHECKING:
    from protperf.lm.loading import LoadedModel


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """What came of a job.

    Attributes:
        reading: what was read: records, residues, rejected records, flags.
        warnings: what deserves attention in the input; notes: what was found in it that is not wrong.
    """

    reading: io.Summary
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


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
        self, fasta: Sequence[str], scoring: ScoreOptions, reading: ReadingOptions, table: TableOptions
    ) -> None:
        self._fasta, self._scoring, self._reading, self._table = list(fasta), scoring, reading, table
        self._encoder = Encoder(Row, choose_format(table.format, table.out))
        check_inputs(table.out, self._fasta)
        self._reader = io.read_tokens(self._fasta, **reading.to_mapping())

    def prepare(self, loaded: LoadedModel, dtype: str = "float32", watch: Watch | None = None) -> PreparedJob:
        """Choose the method, count the work if someone wants to know, and take the checksums of the input.

        Raises:
            ConfigError: a method that the model was not trained for.
        """
        from protperf.lm.scoring.estimate import count_work, estimate_pll

        watch = watch or Watch()
        method = choose_method(loaded.engine.config.objective, self._scoring.method)
        announces = method == "pll" and watch.takes_notes
        work = None
        if announces or watch.shows_progress:
            with watch.waiting("reading", " residues") as stage:
                work = count_work(self._fasta, method, stage.update, **self._reading.to_mapping())
        watch.note(f"{loaded.step.path}, method {method}")
        if announces:
            watch.note(f"pll reads each sequence once for each residue: {estimate_pll(loaded.engine, work)}")
        digests: list[str | None] = []
        if is_file(self._table.out):
            with watch.waiting("checksum", "B") as stage:
                digests = [file_digest(path, stage.update) for path in self._fasta]
        options = {**self._reading.to_mapping(), **self._scoring.to_mapping(), "method": method, "dtype": dtype}
        total = None if work is None else work.tokens
        return PreparedJob(loaded, method, total, fingerprint(loaded, digests, options))

    def write(self, job: PreparedJob, watch: Watch | None = None) -> ScoreSummary:
        """Write the table.

        Raises:
            ConfigError: rows of an interrupted table that are neither continued nor given up, or a table of something
            else to continue; DataError, FastaError: the input is at fault; OSError: the table cannot be written.
        """
        from protperf.lm.scoring.likelihood import score_batches

        watch, scoring = watch or Watch(), self._scoring
        with watch.working("scoring", "tokens", job.total, "proteins") as stage:
            records = (record for batch in self._reader for record in batch)
            scored = score_batches(
                job.loaded.engine,
                records,
                job.method,
                batch_tokens=scoring.batch_tokens,
                deterministic=scoring.deterministic,
                progress=stage.update,
            )
            table = self._table
            sink = open_sink(table.out, self._encoder, job.fingerprint, resume=table.resume, force=table.force)
            note = self._fill(sink, job, records, scored, stage, watch)
        if note is not None:
            watch.note(f"note: {note}")
        summary = self._reader.summary
        nothing = () if summary.records else ("no records",)
        return ScoreSummary(summary, self._reader.warnings or nothing, summary.notes)

    def _fill(
        self,
        sink: Sink,
        job: PreparedJob,
        records: Iterator[io.Record],
        scored: Iterable[tuple[list[io.Record], list[Row]]],
        stage: Stage,
        watch: Watch,
    ) -> str | None:
        try:
            sink.replay(_skipped(records, job.method, stage))
            for batch, rows in scored:
                sink.write(batch, rows)
                stage.complete(len(rows))
            provenance = {"command": sys.argv, "model": str(job.loaded.step.path), "input": self._fasta}
            return sink.finish({**provenance, "rejected": self._reader.summary.rejected})
        except (DataError, ConfigError) as error:
            # What a refused resume would not continue is kept.
            if isinstance(error, DataError):
                sink.discard()
            raise
        except BaseException:
            sink.interrupt()
            stage.close()
            if sink.kept:
                text = "{kept} rows are kept; continue with {resume}"
                watch.warn(Message(text, kept=sink.kept, resume=Argument("resume", True)))
            raise


def _skipped(records: Iterator[io.Record], method: str, stage: Stage) -> Iterator[io.Record]:
    """Records that an earlier run scored: reading them is no work of this one."""
    from protperf.lm.scoring.estimate import tokens_read

    for record in records:
        stage.skip(tokens_read(len(record), method))
        yield record


def fingerprint(loaded: LoadedModel, digests: list[str | None], options: dict[str, Any]) -> dict[str, Any]:
    """All that decides a table, by name: the version, the model, the inputs, the options and what computes."""
    info, manifest = build_info(), loaded.step.manifest
    return {
        "version": info["version"],
        "model_sha256": manifest["files"]["model.safetensors"]["sha256"],
        "input_sha256": digests,
        **options,
        "device": loaded.engine.device,
        "isa": info["isa"],
        **loaded.engine.arithmetic(options["deterministic"]),
        "seed": manifest.get("options", {}).get("seed"),
    }


def file_digest(path: str, progress: Progress = no_progress) -> str | None:
    """SHA-256 of a regular file; None for standard input and pipes, which can be read only once.

    Args:
        progress: called with the bytes read.
    """
    if path == "-" or not os.path.isfile(path):
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
            progress(len(part))
    return digest.hexdigest()
