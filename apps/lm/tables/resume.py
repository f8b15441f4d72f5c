"""How far a table is safe: the journal `NAME.part.json` of a partial file `NAME.part`.

The journal, sealed by its own SHA-256, says how many rows and bytes of the partial file are safe on the disk; it holds
digests of these bytes and of the items they belong to, and a fingerprint of all that decides the table. It exists
before the partial file has contents, and is renewed at boundaries between batches, after the rows: a resumed run cuts
the partial file back to that boundary, reads the same items again and goes on with the same batches, so that its bytes
are those of an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protperf.errors import CheckpointError, ConfigError, DataError
from protperf.lm.storage import durable, plain_file
from protperf.message import Argument, Message

if TYPE_CHECKING:
    from protperf import io

Identify = Callable[[Any], Iterable[bytes]]
"""The bytes by which an item of the input differs from any other, in parts."""

_MAX_JOURNAL = 1 << 26
"""Bytes of a journal, which names every input file: enough for nearly a million of them."""


def identify_record(record: io.Record) -> Iterator[bytes]:
    """Number, id and residues of a record."""
    yield f"{record.n}\t{record.id}\t{len(record.tokens)}\n".encode()
    yield record.tokens.tobytes()


@dataclass(frozen=True, slots=True)
class Boundary:
    """A place between two batches: bytes and rows before it, and digests of these bytes and of the rows' items."""

    size: int
    rows: int
    written: Any
    items: Any

    @classmethod
    def start(cls) -> Boundary:
        return cls(0, 0, hashlib.sha256(), hashlib.sha256())

    def after(self, data: bytes, items: Sequence[Any] = (), identify: Identify = identify_record) -> Boundary:
        written, digest = self.written.copy(), self.items.copy()
        written.update(data)
        for item in items:
            add_item(digest, item, identify)
        return Boundary(self.size + len(data), self.rows + len(items), written, digest)

    def state(self) -> dict[str, Any]:
        """What a journal says of it."""
        digests = {"bytes_sha256": self.written.hexdigest(), "records_sha256": self.items.hexdigest()}
        return {"rows": self.rows, "bytes": self.size, **digests}


def add_item(digest: Any, item: Any, identify: Identify) -> None:
    """Add an item of the input to a digest of items."""
    for part in identify(item):
        digest.update(part)


class Journal:
    """The journal of a partial file."""

    def __init__(self, path: Path, part: Path, fingerprint: Mapping[str, Any]) -> None:
        self.path, self._part, self._fingerprint = path, part, fingerprint

    def exists(self) -> bool:
        return os.path.lexists(self.path)

    def record(self, boundary: Boundary) -> None:
        """Say that the partial file is safe up to a boundary."""
        durable.replace_file(self.path, plain_file.seal({"fingerprint": self._fingerprint, **boundary.state()}))

    def check_no_rows(self) -> None:
        """Refuse to start over where that would throw work away.

        Raises:
            ConfigError: there are rows of an interrupted table.
        """
        try:
            rows = plain_file.read_sealed(self.path, _MAX_JOURNAL).get("rows")
        except CheckpointError:
            return
        if type(rows) is int and rows > 0:
            text = "{part}: holds {rows} rows of an interrupted table; continue it with {resume}, "
            raise ConfigError(_message(text + "or start over with {force}", part=self._part, rows=rows))

    def resumable(self, descriptor: int) -> tuple[dict[str, Any], Any] | None:
        """What can be continued: the journal's state, and a digest of the bytes that it vouches for. None if nothing.

        Args:
            descriptor: the open partial file.

        Raises:
            ConfigError: started with another model, input or option, which is named.
            DataError: the journal is damaged, or the rows that it vouches for are.
        """
        if not self.exists():
            return None
        state = self._read()
        before, size = state["fingerprint"], state["bytes"]
        # Before the header was written, or after the file was put in its place.
        if size == 0 or os.fstat(descriptor).st_size < size:
            return None
        for name in [*self._fingerprint, *before]:
            if before.get(name) != self._fingerprint.get(name):
                text = (
                    "{part}: was started with another {name}; repeat the command as it was, or start over with {force}"
                )
                raise ConfigError(_message(text, part=self._part, name=name.replace("_", " ")))
        written = self._digest_of(descriptor, size)
        if written.hexdigest() != state["bytes_sha256"]:
            raise self._damaged(f"{self._part}: does not have the rows that were saved")
        return state, written

    def _read(self) -> dict[str, Any]:
        try:
            state = plain_file.read_sealed(self.path, _MAX_JOURNAL)
        except CheckpointError as error:
            raise self._damaged(str(error)) from error
        if set(state) != {"fingerprint", *Boundary.start().state()} or not isinstance(state["fingerprint"], dict):
            raise self._damaged(f"{self.path}: is not the journal of a table")
        rows, size = state["rows"], state["bytes"]
        if type(rows) is not int or type(size) is not int or min(rows, size) < 0:
            raise self._damaged(f"{self.path}: has no counts of rows and bytes")
        return state

    def _damaged(self, what: str) -> DataError:
        return DataError(_message("{what}; start over with {force}", what=what))

    def _digest_of(self, descriptor: int, size: int) -> Any:
        """SHA-256 of the first bytes of the partial file."""
        digest, position = hashlib.sha256(), 0
        with durable.named(self._part):
            while part := os.pread(descriptor, min(size - position, 1 << 20), position):
                digest.update(part)
                position += len(part)
        return digest


def _message(text: str, **parts: object) -> Message:
    """A message that may name the options to continue a table or to start over."""
    return Message(text, resume=Argument("resume", True), force=Argument("force", True), **parts)
