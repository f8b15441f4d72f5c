"""Tables that survive interruption: whole lines only, in a partial file that replaces the named one at the end.

Beside `NAME.part` stands `NAME.part.json`: how many rows and bytes of it are safe on the disk, a digest of the records
they belong to, and a fingerprint of model, input and options. It is written at borders between batches, after the rows:
a resumed run cuts the partial file back to that border, reads the same records again and goes on with the same batches,
so that its bytes are those of an uninterrupted run.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import io as text_io
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from protperf.errors import ConfigError, DataError
from protperf.lm.training.durable import replace_file

if TYPE_CHECKING:
    from protperf.io import Record

FORMATS = ("tsv", "csv", "jsonl")
SYNC_S = 1.0
"""Seconds of work that a kill may cost."""


def choose_format(name: str | None, out: Path | None) -> str:
    """The format asked for, else the one of the suffix, else TSV.

    Raises:
        ConfigError: an unknown format.
    """
    if name is None:
        suffix = "" if out is None else out.suffix.lower().removeprefix(".")
        return suffix if suffix in FORMATS else "tsv"
    if name not in FORMATS:
        raise ConfigError(f"format is {name!r}; choose one of {', '.join(FORMATS)}")
    return name


class Encoder:
    """Rows as lines of text: floats in full precision; JSON has null for NaN."""

    def __init__(self, columns: tuple[str, ...], name: str) -> None:
        self._columns, self._name = columns, name

    def header(self) -> str:
        return "" if self._name == "jsonl" else self._line(self._columns)

    def row(self, row: object) -> str:
        values = [getattr(row, column) for column in self._columns]
        if self._name == "jsonl":
            plain = [None if isinstance(v, float) and not math.isfinite(v) else v for v in values]
            return json.dumps(dict(zip(self._columns, plain, strict=True))) + "\n"
        return self._line([repr(v) if isinstance(v, float) else str(v) for v in values])

    def _line(self, values: Iterable[str]) -> str:
        if self._name == "tsv":
            return "\t".join(values) + "\n"
        stream = text_io.StringIO()
        csv.writer(stream, lineterminator="\n").writerow(values)
        return stream.getvalue()


class StreamSink:
    """Rows to standard output, or to something that cannot be replaced, such as a pipe or a device."""

    def __init__(self, stream: IO[str], encoder: Encoder) -> None:
        self._stream, self._encoder = stream, encoder
        stream.write(encoder.header())

    def write(self, records: list[Record], rows: Iterable[object]) -> None:
        self._stream.write("".join(map(self._encoder.row, rows)))
        self._stream.flush()

    def finish(self, provenance: Mapping[str, Any]) -> None:
        self._stream.flush()


class FileSink:
    """Rows to a partial file with a journal; `finish` puts it in the place of `out`."""

    def __init__(self, out: Path, encoder: Encoder, fingerprint: Mapping[str, Any], resume: bool) -> None:
        # A link stays a link: what it points to is replaced.
        self.out = Path(os.path.realpath(out))
        self._part = self.out.with_name(f"{self.out.name}.part")
        self._journal = self.out.with_name(f"{self.out.name}.part.json")
        self._encoder, self._fingerprint = encoder, dict(fingerprint)
        self._digest = hashlib.sha256()
        self.rows = 0
        self._stream = self._opened()
        try:
            self._state = self._resumable() if resume else None
            self._begin()
        except BaseException:
            self._stream.close()
            raise

    def replay(self, records: Iterator[Record]) -> None:
        """Read the records whose rows are there already.

        Raises:
            ConfigError: they are not the records that the rows belong to.
        """
        if self._state is None:
            return
        for _ in range(self._state["rows"]):
            record = next(records, None)
            if record is None:
                break
            self._count(record)
        if self._digest.hexdigest() != self._state["records_sha256"]:
            raise ConfigError(f"{self._part}: was begun with other records; start again without --resume")

    def write(self, records: list[Record], rows: Iterable[object]) -> None:
        """Append the rows of one batch."""
        self._stream.write("".join(map(self._encoder.row, rows)).encode())
        for record in records:
            self._count(record)
        if time.monotonic() - self._synced >= SYNC_S:
            self.sync()

    def sync(self) -> None:
        """Make what was written safe, and say so in the journal."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        state = {
            "fingerprint": self._fingerprint,
            "rows": self.rows,
            "bytes": self._stream.tell(),
            "records_sha256": self._digest.hexdigest(),
        }
        replace_file(self._journal, (json.dumps(state, indent=1) + "\n").encode())
        self._synced = time.monotonic()

    def finish(self, provenance: Mapping[str, Any]) -> None:
        """Replace the named file, and write where it came from into `NAME.meta.json`."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        os.replace(self._part, self.out)
        self._stream.close()
        facts = {**self._fingerprint, **provenance, "rows": self.rows}
        replace_file(self.out.with_name(f"{self.out.name}.meta.json"), (json.dumps(facts, indent=1) + "\n").encode())
        self._journal.unlink(missing_ok=True)

    def interrupt(self) -> None:
        """Leave a state that `--resume` continues; never raises."""
        with contextlib.suppress(OSError, ValueError):
            self.sync()
        with contextlib.suppress(OSError, ValueError):
            self._stream.close()

    def discard(self) -> None:
        """Leave nothing: the input is at fault, and mended it will be another input."""
        with contextlib.suppress(OSError):
            self._stream.close()
        for path in (self._part, self._journal):
            path.unlink(missing_ok=True)

    def _opened(self) -> IO[bytes]:
        stream = open(os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")  # noqa: SIM115
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.close()
            raise ConfigError(f"{self._part}: another process writes it; choose another -o") from error
        return stream

    def _begin(self) -> None:
        state = self._state
        self._synced = time.monotonic()
        if state is not None:
            self._stream.seek(state["bytes"])
            self._stream.truncate()
            return
        self._stream.truncate(0)
        self._stream.write(self._encoder.header().encode())
        self.sync()

    def _count(self, record: Record) -> None:
        self.rows += 1
        self._digest.update(f"{record.n}\t{record.id}\t{len(record.tokens)}\n".encode())
        self._digest.update(record.tokens.tobytes())

    def _resumable(self) -> dict[str, Any] | None:
        """The journal's state; None where there is nothing to continue.

        Raises:
            ConfigError: begun with another model, input or option, which is named.
        """
        try:
            state = json.loads(self._journal.read_bytes())
            before, rows, size = dict(state["fingerprint"]), int(state["rows"]), int(state["bytes"])
            str(state["records_sha256"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self._journal}: is damaged; start again without --resume") from error
        if os.fstat(self._stream.fileno()).st_size < size or rows < 0 or size < 0:
            return None
        for name in [*self._fingerprint, *before]:
            if before.get(name) != self._fingerprint.get(name):
                raise ConfigError(
                    f"{self._part}: was begun with another {name.replace('_', ' ')}; "
                    "repeat the command as it was, or start again without --resume"
                )
        return state


def open_sink(
    out: Path | None, encoder: Encoder, fingerprint: Mapping[str, Any], resume: bool
) -> StreamSink | FileSink:
    """Where rows go: standard output for None, a device or pipe as it is, a file by way of a partial one.

    Raises:
        ConfigError: `resume` without a file, or a partial file of something else; OSError: it cannot be written.
    """
    if out is not None and (not out.exists() or out.is_file()):
        return FileSink(out, encoder, fingerprint, resume)
    if resume:
        raise ConfigError("--resume continues a file; name it with -o")
    if out is None:
        return StreamSink(sys.stdout, encoder)
    return StreamSink(open(out, "w", encoding="utf-8", newline=""), encoder)


def file_digest(path: str) -> str | None:
    """SHA-256 of a regular file; None for standard input and pipes, which can be read but once."""
    if path == "-" or not os.path.isfile(path):
        return None
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
