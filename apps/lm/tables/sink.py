"""Where rows go: a stream, or a partial file that takes the place of the named one at the end.

A command reads items (records, variants) in batches and writes one row per item. A file holds whole lines only, and an
interrupted one is continued (`resume.py`). The partial file of a Parquet table is TSV, converted at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from protperf.errors import ConfigError
from protperf.lm.storage import durable
from protperf.lm.tables.destination import companions, is_file, open_stream
from protperf.lm.tables.formats import RowEncoder
from protperf.lm.tables.resume import Boundary, Identify, Journal, add_item, identify_record
from protperf.message import Argument, Message

SYNC_S = 1.0
"""Seconds of work that a kill may cost."""


class Sink:
    """Takes rows and keeps nothing that could be continued."""

    @property
    def kept(self) -> int:
        """Rows that a resumed run will not compute again."""
        return 0

    def replay(self, items: Iterator[Any]) -> None:
        """Read the items whose rows exist already."""

    def write(self, items: Sequence[Any], rows: Iterable[object]) -> None:
        """Take the rows of one batch of items."""

    def finish(self, provenance: Mapping[str, Any]) -> str | None:
        """All rows are written; returns a note, if there is something to say."""
        return None

    def interrupt(self) -> None:
        """No more rows will come: keep what can be continued."""

    def discard(self) -> None:
        """The input is at fault: keep nothing."""


def open_sink(
    out: Path | None,
    encoder: RowEncoder,
    fingerprint: Mapping[str, Any],
    *,
    identify: Identify = identify_record,
    resume: bool = False,
    force: bool = False,
) -> Sink:
    """A sink for standard output if `out` is None, for a device or pipe as it is, for a file by way of a partial one.

    Args:
        fingerprint: all that decides the bytes of the table, by name.
        identify: the bytes by which an item of the input differs from any other.

    Raises:
        ConfigError: `resume` without a file, or a table of something else; neither `resume` nor `force` where there are
            rows of an interrupted table; OSError: it cannot be written.
    """
    if is_file(out):
        facts = _finished(out, {**fingerprint, "format": encoder.name}) if resume else None
        if facts is not None:
            return FinishedTable(out, facts, identify)
        return FileSink(out, encoder, fingerprint, identify=identify, resume=resume, force=force)
    if resume:
        names = {"resume": Argument("resume", True), "out": Argument("out")}
        raise ConfigError(Message("{resume} continues a file; name it with {out}", **names))
    return StreamSink(open_stream(out), encoder)


class StreamSink(Sink):
    """Rows to standard output, or to something that cannot be replaced, such as a pipe or a device."""

    def __init__(self, emit: Callable[[str], None], encoder: RowEncoder) -> None:
        self._emit, self._encoder = emit, encoder
        emit(encoder.header())

    def write(self, items: Sequence[Any], rows: Iterable[object]) -> None:
        self._emit(self._encoder.data(rows).decode())


class FinishedTable(Sink):
    """A table that is complete: it is compared with the items, and stays as it is."""

    def __init__(self, out: Path, facts: Mapping[str, Any], identify: Identify) -> None:
        self._out, self._facts, self._identify = out, facts, identify

    def replay(self, items: Iterator[Any]) -> None:
        """Read all items, so that none is left to add a row.

        Raises:
            ConfigError: they are not those of the table.
        """
        digest, rows = hashlib.sha256(), 0
        for item in items:
            add_item(digest, item, self._identify)
            rows += 1
        if (rows, digest.hexdigest()) != (self._facts["rows"], self._facts["records_sha256"]):
            raise _not_to_resume(self._out, "is the finished table of other records")

    def finish(self, provenance: Mapping[str, Any]) -> str | None:
        return f"{self._out}: was finished before, nothing was done"


class FileSink(Sink):
    """Rows to a partial file with a journal; `finish` puts it in the place of `out`."""

    def __init__(
        self,
        out: Path,
        encoder: RowEncoder,
        fingerprint: Mapping[str, Any],
        *,
        identify: Identify = identify_record,
        resume: bool = False,
        force: bool = False,
    ) -> None:
        # A link stays a link: what it points to is replaced.
        self.out = Path(os.path.realpath(out))
        self._part, journal, self._meta = companions(self.out)
        self._encoder, self._identify = encoder, identify
        self._fingerprint = {**fingerprint, "format": encoder.name}
        self._journal = Journal(journal, self._part, self._fingerprint)
        self._boundary = self._safe = Boundary.start()
        self._synced, self._lost = time.monotonic(), False
        self._descriptor = self._opened()
        try:
            if not (resume or force):
                self._journal.check_no_rows()
            self._resumed = self._journal.resumable(self._descriptor) if resume else None
            if self._resumed is None:
                self._start()
        except BaseException:
            self._close()
            raise

    @property
    def kept(self) -> int:
        return self._safe.rows

    def replay(self, items: Iterator[Any]) -> None:
        """Read the items whose rows exist already, and cut off what follows these rows.

        Raises:
            ConfigError: they are not the items that the rows belong to.
        """
        if self._resumed is None:
            return
        state, written = self._resumed
        digest = hashlib.sha256()
        for _ in range(state["rows"]):
            item = next(items, None)
            if item is None:
                break
            add_item(digest, item, self._identify)
        if digest.hexdigest() != state["records_sha256"]:
            text = "{part}: was started with other records; start over with {force}"
            raise ConfigError(Message(text, part=self._part, force=Argument("force", True)))
        with durable.named(self._part):
            os.ftruncate(self._descriptor, state["bytes"])
        self._boundary = self._safe = Boundary(state["bytes"], state["rows"], written, digest)

    def write(self, items: Sequence[Any], rows: Iterable[object]) -> None:
        """Append the rows of one batch."""
        data = self._encoder.data(rows)
        with durable.named(self._part):
            durable.write_at(self._descriptor, data, self._boundary.size)
        # In one assignment: an interruption comes before the batch or after it.
        self._boundary = self._boundary.after(data, items, self._identify)
        if time.monotonic() - self._synced >= SYNC_S:
            self.sync()

    def sync(self) -> None:
        """Make what was written safe, and say so in the journal."""
        boundary = self._boundary
        try:
            with durable.named(self._part):
                os.fsync(self._descriptor)
        except OSError:
            # The system drops what it could not write: a later sync would succeed and prove nothing.
            self._lost = True
            raise
        self._record(boundary)

    def finish(self, provenance: Mapping[str, Any]) -> str | None:
        """Replace the named file, and write where it came from into `NAME.meta.json`."""
        self.sync()
        facts = {**self._fingerprint, **provenance, "rows": self._boundary.rows}
        facts["records_sha256"] = self._boundary.items.hexdigest()
        finished = self._encoder.finished(self._part, self.out)
        facts["bytes"] = finished.stat().st_size
        staged = durable.stage_file(self._meta, (json.dumps(facts, indent=1) + "\n").encode())
        with durable.named(self.out):
            with contextlib.suppress(FileNotFoundError):
                # As if it had been opened and written over.
                finished.chmod(self.out.stat().st_mode & 0o777)
            os.replace(finished, self.out)
        self._boundary = self._safe = Boundary.start()
        with durable.named(self._meta):
            os.replace(staged, self._meta)
        durable.sync_directory(self.out.parent)
        with contextlib.suppress(OSError):
            # Where the partial file took the name itself, another process may have started one by now.
            if finished != self._part:
                self._part.unlink(missing_ok=True)
            # Last: without it, what is left of a table would look like a file of someone else.
            self._journal.path.unlink(missing_ok=True)
        self._close()
        return None

    def interrupt(self) -> None:
        """Leave a state that can be resumed; never raises."""
        if not self._lost and self._boundary.size > self._safe.size:
            with contextlib.suppress(OSError):
                self.sync()
        self._close()

    def discard(self) -> None:
        """Leave nothing: the input is at fault, and once corrected it will be another input."""
        for path in (self._part, self._journal.path):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptor)

    def _opened(self) -> int:
        """A descriptor of the partial file, held for this process alone."""
        mode = self.out.stat().st_mode & 0o777 | 0o600 if self.out.exists() else 0o666
        while True:
            with durable.named(self._part):
                descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            try:
                self._lock(descriptor)
                if _is_same(descriptor, self._part):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            # Its last writer finished in between: this is the finished file now, and not ours to cut.
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            text = "{part}: another process is writing it; choose another {out}"
            raise ConfigError(Message(text, part=self._part, out=Argument("out"))) from error
        except OSError as error:
            if error.errno not in durable.NO_LOCKS:
                raise

    def _start(self) -> None:
        if os.fstat(self._descriptor).st_size and not self._journal.path.exists():
            text = "{part}: exists and is not the partial file of a table; move it away or choose another {out}"
            raise ConfigError(Message(text, part=self._part, out=Argument("out")))
        self._record(self._boundary)
        header = self._encoder.header().encode()
        with durable.named(self._part):
            os.ftruncate(self._descriptor, 0)
            durable.write_at(self._descriptor, header, 0)
        self._boundary = self._boundary.after(header)
        self.sync()

    def _record(self, boundary: Boundary) -> None:
        self._journal.record(boundary)
        self._safe, self._synced = boundary, time.monotonic()


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _finished(out: Path, fingerprint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The sidecar of a finished table; None if there is none, or if a newer table was started.

    Raises:
        ConfigError: the table is of another model, input or option, which is named.
    """
    real = Path(os.path.realpath(out))
    part, journal, meta = companions(real)
    if not real.is_file() or os.path.lexists(journal) or os.path.lexists(part):
        return None
    try:
        facts = json.loads(meta.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(facts, dict) or not {"rows", "bytes", "records_sha256"} <= set(facts):
        return None
    for name in fingerprint:
        if facts.get(name) != fingerprint[name]:
            raise _not_to_resume(out, f"is a finished table of another {name.replace('_', ' ')}")
    if real.stat().st_size != facts["bytes"]:
        raise _not_to_resume(out, "was changed after it was finished")
    return facts


def _not_to_resume(out: Path, what: str) -> ConfigError:
    text = "{path}: {what}; choose another {out}, or leave out {resume} to replace it"
    names = {"out": Argument("out"), "resume": Argument("resume")}
    return ConfigError(Message(text, path=out, what=what, **names))
