"""Vectors of sequence files, streamed into a file: what the command runs, and Python's `Model.embed_files`.

A job is checked when it is made, before a model is loaded; `prepare` finds out what decides the file, and `write`
writes it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protperf import io
from protperf.lm.embedding.formats import VectorEncoder, require
from protperf.lm.embedding.options import EmbedOptions, EmbedOutput, choose_mode
from protperf.lm.embedding.partial_file import Layout
from protperf.lm.embedding.vectors import embed_batches
from protperf.lm.shared_options import ReadingOptions, RejectOptions
from protperf.lm.tables.destination import check_inputs
from protperf.lm.tables.fill import JobSummary, counts, fill, fingerprint, input_digests, summarize
from protperf.lm.tables.rejects import RejectList
from protperf.lm.tables.sink import open_sink
from protperf.lm.watch import Stage, Watch

if TYPE_CHECKING:
    from protperf.lm.loading import LoadedModel


@dataclass(frozen=True, slots=True)
class PreparedEmbedding:
    """What decides a file of vectors: the model, the mode of reading, and by name all that its bytes depend on.

    Attributes:
        total: tokens that the model will read, if they could be counted.
    """

    loaded: LoadedModel
    mode: str
    total: int | None
    fingerprint: dict[str, Any]


class EmbedJob:
    """Embed files into the one that the options describe.

    Raises:
        ConfigError: options that exclude each other, or a file that would overwrite an input; FileError: an input is
        missing, or the directory of the file does not exist; MissingPackageError: the format needs a package.
    """

    def __init__(
        self, fasta: Sequence[str], embedding: EmbedOptions, reading: ReadingOptions, output: EmbedOutput,
        rejects: RejectOptions | None = None,
    ) -> None:  # fmt: skip
        self._fasta, self._embedding, self._reading, self._output = list(fasta), embedding, reading, output
        self._format = output.chosen_format()
        require(self._format)
        check_inputs(output.out, self._fasta)
        left_out = RejectList(rejects, [*self._fasta, output.out])
        self._reader = left_out.reading(io.read_tokens(self._fasta, **reading.to_mapping()))

    def prepare(self, loaded: LoadedModel, watch: Watch | None = None) -> PreparedEmbedding:
        """Choose the mode, count the work if someone wants to know, and take the checksums of the input.

        Raises:
            ConfigError: a mode, layer or pool that the model does not have.
        """
        from protperf.lm.scoring.estimate import count_work

        watch = watch or Watch()
        mode = choose_mode(loaded.engine.config, self._embedding)
        work = None
        if watch.shows_progress and self._output.shard is None:
            with watch.waiting("reading", " residues") as stage:
                work = count_work(self._fasta, "ll", stage.update, **self._reading.to_mapping())
        watch.note(f"{loaded.step.name}, read {'left to right' if mode == 'causal' else 'as a whole'}")
        digests = input_digests(self._fasta, self._output.out, watch)
        asked = {**self._reading.to_mapping(), **self._embedding.to_mapping(), "shard": self._output.shard}
        # A pool that was left to the default is the default.
        asked |= {"mode": mode, "pool": ",".join(self._embedding.arrays), "computed": loaded.engine.dtype}
        facts = fingerprint(loaded, digests, asked, self._embedding.deterministic)
        return PreparedEmbedding(loaded, mode, None if work is None else work.tokens, facts)

    def write(self, job: PreparedEmbedding, watch: Watch | None = None) -> JobSummary:
        """Write the file.

        Raises:
            ConfigError: rows of an interrupted file that are neither continued nor given up, or a file of something
            else to continue; DataError, FastaError: the input is at fault; OSError: the file cannot be written.
        """
        watch, output, engine = watch or Watch(), self._output, job.loaded.engine
        layout = Layout(self._embedding.arrays, engine.config.model_dim, self._embedding.stored_type)
        names = {"model": job.loaded.step.name, "input": self._fasta}
        encoder = VectorEncoder(self._format, layout, {**job.fingerprint, **names})
        with watch.working("embedding", "tokens", job.total, "proteins") as stage:
            records = (record for batch in self._reader for record in batch if output.takes(record.n))
            embedded = embed_batches(engine, records, self._embedding, job.mode, progress=stage.update)
            sink = open_sink(output.out, encoder, job.fingerprint, resume=output.resume, force=output.force)
            note = fill(
                sink,
                _skipped(records, stage),
                embedded,
                stage,
                watch,
                lambda: {"command": sys.argv, **names, **counts(self._reader)},
            )
        if note is not None:
            watch.note(f"note: {note}")
        return summarize(self._reader)


def _skipped(records: Iterator[io.Record], stage: Stage) -> Iterator[io.Record]:
    """Records that an earlier run embedded: reading them does not count as work of this one."""
    for record in records:
        stage.skip(len(record) + 2)
        yield record
