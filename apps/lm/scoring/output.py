"""Tables that survive interruption: whole lines only, in a partial file that replaces the named one at the end.

Beside `NAME.part` stands `NAME.part.json`, sealed by its own SHA-256: how many rows and bytes of it are safe on the
disk, digests of these bytes and of the records they belong to, and a fingerprint of model, input and options. It is
there before the partial file has contents, and is renewed at borders between batches, after the rows: a resumed run
cuts the partial file back to that border, reads the same records again and goes on with the same batches, so that its
bytes are those of an uninterrupted run. The partial file of a Parquet table is TSV, turned into Parquet at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protperf.errors import CheckpointError, ConfigError, DataError
from protperf.lm.scoring.choices import Progress, nobody
from protperf.lm.scoring.formats import Encoder, descriptor_of, is_file
from protperf.lm.storage import durable, plain_file

if TYPE_CHECKING:
    from protperf.io import Record

_MOST_JOURNAL = 1 << 26
"""Bytes of a journal, which names every input file: nearly a million of them."""
_REPLACE = "choose another -o, or leave out --resume to replace it"
SYNC_S = 1.0
"""Seconds of work that a kill may cost."""


class _Sink:
    """Where rows go that leave nothing behind to continue."""

    @property
    def kept(self) -> int:
        """Rows that a resumed run will not compute again."""
        return 0

    def replay(self, records: Iterator[Record]) -> None:
        """Read the records whose rows are there already."""

    def write(self, records: list[Record], rows: Iterable[object]) -> None:
        """Take the rows of one batch."""

    def finish(self, provenance: Mapping[str, Any]) -> str | None:
        """All rows were written; answers what deserves to be told."""
        return None

    def interrupt(self) -> None:
        """No more rows come: keep what can be continued."""

    def discard(self) -> None:
        """The input is at fault: keep nothing."""


class StreamSink(_Sink):
    """Rows to standard output, or to something that cannot be replaced, such as a pipe or a device."""

    def __init__(self, emit: Callable[[str], None], encoder: Encoder) -> None:
        self._emit, self._encoder = emit, encoder
        emit(encoder.header())

    def write(self, records: list[Record], rows: Iterable[object]) -> None:
        self._emit("".join(map(self._encoder.row, rows)))


class FinishedTable(_Sink):
    """A table that is whole already: it is held against the records, and stays as it is."""

    def __init__(self, out: Path, facts: Mapping[str, Any]) -> None:
        self._out, self._facts = out, facts

    def replay(self, records: Iterator[Record]) -> None:
        """Read all records, so that none is left to bring a row.

        Raises:
            ConfigError: they are not those of the table.
        """
        digest, rows = hashlib.sha256(), 0
        for record in records:
            _count(digest, record)
            rows += 1
        if (rows, digest.hexdigest()) != (self._facts["rows"], self._facts["records_sha256"]):
            raise ConfigError(f"{self._out}: is the finished table of other records; {_REPLACE}")

    def finish(self, provenance: Mapping[str, Any]) -> str | None:
        return f"{self._out}: was finished before, nothing was done"


@dataclass(frozen=True, slots=True)
class _Border:
    """A place between two batches: bytes and rows before it, and digests of these bytes and of the rows' records."""

    size: int
    rows: int
    written: Any
    records: Any

    @classmethod
    def start(cls) -> _Border:
        return cls(0, 0, hashlib.sha256(), hashlib.sha256())

    def after(self, data: bytes, records: Sequence[Record] = ()) -> _Border:
        written, digest = self.written.copy(), self.records.copy()
        written.update(data)
        for record in records:
            _count(digest, record)
        return _Border(self.size + len(data), self.rows + len(records), written, digest)

    def state(self) -> dict[str, Any]:
        digests = {"bytes_sha256": self.written.hexdigest(), "records_sha256": self.records.hexdigest()}
        return {"rows": self.rows, "bytes": self.size, **digests}


class FileSink(_Sink):
    """Rows to a partial file with a journal; `finish` puts it in the place of `out`."""

    def __init__(
        self, out: Path, encoder: Encoder, fingerprint: Mapping[str, Any], resume: bool, force: bool = False
    ) -> None:
        # A link stays a link: what it points to is replaced.
        self.out = Path(os.path.realpath(out))
        self._part, self._journal, self._meta = beside(self.out)
        self._encoder, self._fingerprint = encoder, {**fingerprint, "format": encoder.name}
        self._border = self._safe = _Border.start()
        self._synced, self._lost = time.monotonic(), False
        self._descriptor = self._opened()
        try:
            if not (resume or force):
                self._keep_rows()
            self._state = self._resumable() if resume else None
            if self._state is None:
                self._begin()
        except BaseException:
            self._close()
            raise

    @property
    def kept(self) -> int:
        """Rows that a resumed run will not compute again."""
        return self._safe.rows

    def replay(self, records: Iterator[Record]) -> None:
        """Read the records whose rows are there already, and cut off what follows these rows.

        Raises:
            ConfigError: they are not the records that the rows belong to.
        """
        if self._state is None:
            return
        digest = hashlib.sha256()
        for _ in range(self._state["rows"]):
            record = next(records, None)
            if record is None:
                break
            _count(digest, record)
        if digest.hexdigest() != self._state["records_sha256"]:
            raise ConfigError(f"{self._part}: was begun with other records; start over with --force")
        with durable.named(self._part):
            os.ftruncate(self._descriptor, self._state["bytes"])
        self._border = self._safe = _Border(self._state["bytes"], self._state["rows"], self._written, digest)

    def write(self, records: list[Record], rows: Iterable[object]) -> None:
        """Append the rows of one batch."""
        data = "".join(map(self._encoder.row, rows)).encode()
        with durable.named(self._part):
            durable.write_at(self._descriptor, data, self._border.size)
        # In one assignment: an interruption comes before the batch or after it.
        self._border = self._border.after(data, records)
        if time.monotonic() - self._synced >= SYNC_S:
            self.sync()

    def sync(self) -> None:
        """Make what was written safe, and say so in the journal."""
        border = self._border
        try:
            with durable.named(self._part):
                os.fsync(self._descriptor)
        except OSError:
            # The system drops what it could not write: a later sync would succeed and prove nothing.
            self._lost = True
            raise
        self._record(border)

    def finish(self, provenance: Mapping[str, Any]) -> str | None:
        """Replace the named file, and write where it came from into `NAME.meta.json`."""
        self.sync()
        facts = {**self._fingerprint, **provenance, "rows": self._border.rows}
        facts["records_sha256"] = self._border.records.hexdigest()
        finished = self._encoder.finished(self._part, self.out)
        facts["bytes"] = finished.stat().st_size
        staged = durable.stage_file(self._meta, (json.dumps(facts, indent=1) + "\n").encode())
        with durable.named(self.out):
            with contextlib.suppress(FileNotFoundError):
                # As if it had been opened and written over.
                finished.chmod(self.out.stat().st_mode & 0o777)
            os.replace(finished, self.out)
        self._border = self._safe = _Border.start()
        with durable.named(self._meta):
            os.replace(staged, self._meta)
        durable.sync_directory(self.out.parent)
        with contextlib.suppress(OSError):
            # Where the partial file took the name itself, another process may have begun one by now.
            if finished != self._part:
                self._part.unlink(missing_ok=True)
            # Last: what is left of a table without it would be nobody's.
            self._journal.unlink(missing_ok=True)
        self._close()
        return None

    def interrupt(self) -> None:
        """Leave a state that `--resume` continues; never raises."""
        if not self._lost and self._border.size > self._safe.size:
            with contextlib.suppress(OSError):
                self.sync()
        self._close()

    def discard(self) -> None:
        """Leave nothing: the input is at fault, and mended it will be another input."""
        for path in (self._part, self._journal):
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
            raise ConfigError(f"{self._part}: another process writes it; choose another -o") from error
        except OSError as error:
            if error.errno not in durable.NO_LOCKS:
                raise

    def _begin(self) -> None:
        if os.fstat(self._descriptor).st_size and not self._journal.exists():
            raise ConfigError(f"{self._part}: is there and was not left by score; move it away or choose another -o")
        self._record(self._border)
        header = self._encoder.header().encode()
        with durable.named(self._part):
            os.ftruncate(self._descriptor, 0)
            durable.write_at(self._descriptor, header, 0)
        self._border = self._border.after(header)
        self.sync()

    def _record(self, border: _Border) -> None:
        state = {"fingerprint": self._fingerprint, **border.state()}
        durable.replace_file(self._journal, plain_file.seal(state))
        self._safe, self._synced = border, time.monotonic()

    def _keep_rows(self) -> None:
        """Refuse to begin anew where that would throw work away."""
        try:
            rows = plain_file.read_sealed(self._journal, _MOST_JOURNAL).get("rows")
        except CheckpointError:
            return
        if type(rows) is int and rows > 0:
            text = f"holds {rows} rows of an interrupted table; continue it with --resume, or start over with --force"
            raise ConfigError(f"{self._part}: {text}")

    def _resumable(self) -> dict[str, Any] | None:
        """The journal's state; None where there is nothing to continue.

        Raises:
            ConfigError: begun with another model, input or option, which is named.
            DataError: the journal is damaged, or the rows that it vouches for are.
        """
        if not os.path.lexists(self._journal):
            return None
        try:
            state = plain_file.read_sealed(self._journal, _MOST_JOURNAL)
        except CheckpointError as error:
            raise DataError(f"{error}; start over with --force") from error
        if set(state) != {"fingerprint", *_Border.start().state()} or not isinstance(state["fingerprint"], dict):
            raise DataError(f"{self._journal}: is no journal of a table; start over with --force")
        before, rows, size = state["fingerprint"], state["rows"], state["bytes"]
        if type(rows) is not int or type(size) is not int or min(rows, size) < 0:
            raise DataError(f"{self._journal}: has no counts of rows and bytes; start over with --force")
        # Before the header was written, or after the file was put in its place.
        if size == 0 or os.fstat(self._descriptor).st_size < size:
            return None
        for name in [*self._fingerprint, *before]:
            if before.get(name) != self._fingerprint.get(name):
                raise ConfigError(
                    f"{self._part}: was begun with another {name.replace('_', ' ')}; "
                    "repeat the command as it was, or start over with --force"
                )
        self._written = self._digest_of(size)
        if self._written.hexdigest() != state["bytes_sha256"]:
            raise DataError(f"{self._part}: does not have the rows that were saved; start over with --force")
        return state

    def _digest_of(self, size: int) -> Any:
        """SHA-256 of the first bytes of the partial file."""
        digest, position = hashlib.sha256(), 0
        with durable.named(self._part):
            while part := os.pread(self._descriptor, min(size - position, 1 << 20), position):
                digest.update(part)
                position += len(part)
        return digest


def beside(out: Path) -> tuple[Path, Path, Path]:
    """The partial file, its journal and the sidecar of an output file."""
    return tuple(out.with_name(out.name + suffix) for suffix in (".part", ".part.json", ".meta.json"))  # type: ignore[return-value]


def written(out: Path) -> list[Path]:
    """Every file that a table of this name takes for itself while it is made."""
    names = [out, *beside(out)]
    return [*names, *map(durable.staging_name, names)]


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _count(digest: Any, record: Record) -> None:
    digest.update(f"{record.n}\t{record.id}\t{len(record.tokens)}\n".encode())
    digest.update(record.tokens.tobytes())


def open_sink(
    out: Path | None, encoder: Encoder, fingerprint: Mapping[str, Any], resume: bool, force: bool = False
) -> _Sink:
    """Where rows go: standard output for None, a device or pipe as it is, a file by way of a partial one.

    Raises:
        ConfigError: `resume` without a file, or a table of something else; neither `resume` nor `force` where rows of
            an interrupted table are kept; OSError: it cannot be written.
    """
    if is_file(out):
        facts = _finished(out, {**fingerprint, "format": encoder.name}) if resume else None
        return FileSink(out, encoder, fingerprint, resume, force) if facts is None else FinishedTable(out, facts)
    if resume:
        raise ConfigError("--resume continues a file; name it with -o")
    return StreamSink(_to_stdout if out is None else _to_device(out), encoder)


def _finished(out: Path, fingerprint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The sidecar of a finished table; None where there is none, or where a newer one was begun.

    Raises:
        ConfigError: the table is of another model, input or option, which is named.
    """
    real = Path(os.path.realpath(out))
    part, journal, meta = beside(real)
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
            raise ConfigError(f"{out}: is a finished table of another {name.replace('_', ' ')}; {_REPLACE}")
    if real.stat().st_size != facts["bytes"]:
        raise ConfigError(f"{out}: was changed after it was finished; {_REPLACE}")
    return facts


def _to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _to_device(out: Path) -> Callable[[str], None]:
    number = descriptor_of(out)
    with durable.named(out):
        descriptor = os.open(out, os.O_WRONLY | os.O_CLOEXEC) if number is None else os.dup(number)

    def emit(text: str) -> None:
        with durable.named(out):
            durable.write_all(descriptor, text.encode())

    return emit


def file_digest(path: str, progress: Progress = nobody) -> str | None:
    """SHA-256 of a regular file; None for standard input and pipes, which can be read but once.

    `progress` is told of the bytes read.
    """
    if path == "-" or not os.path.isfile(path):
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
            progress(len(part))
    return digest.hexdigest()
