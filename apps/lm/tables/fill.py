"""From records to a table, in batches: what is skipped when one is continued, and what is kept when one is stopped."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protperf import build_info, io
from protperf.errors import ConfigError, DataError
from protperf.lm.tables.destination import is_file
from protperf.lm.tables.sink import Sink
from protperf.lm.watch import Progress, Stage, Watch, no_progress
from protperf.message import Argument, Message

if TYPE_CHECKING:
    from protperf.lm.loading import LoadedModel


@dataclass(frozen=True, slots=True)
class JobSummary:
    """What came of a job that read sequence files.

    Attributes:
        reading: what was read: records, residues, rejected records, flags.
        warnings: what deserves attention in the input; notes: what was found in it that is not wrong.
    """

    reading: io.Summary
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def facts(self) -> list[str]:
        """What was read, in words."""
        return self.reading.facts()

    def figures(self) -> list[str]:
        """Figures that sum up the results, in words: none."""
        return []


def summarize(reader: io.Reader) -> JobSummary:
    """What came of reading to the end."""
    summary = reader.summary
    nothing = () if summary.records else ("no records",)
    return JobSummary(summary, reader.warnings or nothing, summary.notes)


def counts(reader: io.Reader) -> dict[str, int]:
    """How many records were read to the end, and how many left out, in all shards."""
    return {"records": reader.summary.records, "rejected": reader.summary.rejected}


def fill(
    sink: Sink,
    items: Iterator[Any],
    batches: Iterable[tuple[Sequence[Any], Sequence[object]]],
    stage: Stage,
    watch: Watch,
    provenance: Callable[[], Mapping[str, Any]],
) -> str | None:
    """Write a table to its end; returns a note, if there is something to say.

    Args:
        items: the items of the input. Those whose rows exist are taken from it before the first batch is.
        batches: items and their rows, one row per item, computed from what is left of `items` as they are asked for.
        provenance: where the table comes from, asked for at the end.

    Raises:
        ConfigError: rows of something else to continue, which are kept; DataError, FastaError: the input is at fault;
        OSError: the table cannot be written.
    """
    try:
        sink.replay(items)
        for batch, rows in batches:
            sink.write(batch, rows)
            stage.complete(len(rows))
        return sink.finish(provenance())
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


def input_digests(paths: Iterable[str], out: Path | None, watch: Watch) -> list[str | None]:
    """SHA-256 of each input of a table that can be continued; nothing for one that goes to a stream."""
    if not is_file(out):
        return []
    with watch.waiting("checksum", "B") as stage:
        return [file_digest(path, stage.update) for path in paths]


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


def fingerprint(
    loaded: LoadedModel, digests: Sequence[str | None], options: Mapping[str, Any], deterministic: bool
) -> dict[str, Any]:
    """All that the bytes of a table depend on, by name.

    Args:
        options: what the command was asked for.
    """
    info, manifest = build_info(), loaded.step.manifest
    return {
        "version": info["version"],
        "model_sha256": manifest["files"]["model.safetensors"]["sha256"],
        "input_sha256": list(digests),
        **options,
        "device": loaded.engine.device,
        "isa": info["isa"],
        **loaded.engine.arithmetic(deterministic),
        "seed": manifest.get("options", {}).get("seed"),
    }
