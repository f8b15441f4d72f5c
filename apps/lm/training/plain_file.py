"""Reading files that anyone may have made: plain files only, JSON of bounded size, every fault under the file's name.

Nothing here follows a link, waits for a pipe or believes a number before the size of the file bears it out.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import reprlib
import stat
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from protperf.errors import CheckpointError

MOST_JSON = 1 << 18
"""Bytes of a JSON file: parsed values may take thirty times as much memory."""
_SEAL = "sha256"


def broken(path: Path, what: str) -> CheckpointError:
    """The error for a file that is there and wrong."""
    return CheckpointError(None, what, os.fspath(path))


def short(value: object) -> str:
    """A value of a file, for a message: one line, a few dozen printable ASCII characters at most."""
    return reprlib.repr(value).encode("ascii", "backslashreplace").decode()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """A plain file, open for reading.

    Raises:
        CheckpointError: it is missing, may not be read, or is a link, a pipe, a device or a directory.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reason = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror or str(error)
        raise CheckpointError(error.errno, reason, os.fspath(path)) from error
    # Before Python opens it: that fails for a directory, without its name, and leaves the descriptor open.
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise broken(path, "is not a plain file")
    with os.fdopen(descriptor, "rb") as stream:
        try:
            yield stream
        except OSError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(error.errno, error.strerror or str(error), os.fspath(path)) from error


def read_bytes(path: Path, most: int = MOST_JSON) -> bytes:
    """The contents of a plain file of at most `most` bytes.

    Raises:
        CheckpointError: as `opened`, or the file is larger.
    """
    with opened(path) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise broken(path, f"is larger than {most} bytes")
    return data


def read_table(path: Path, most: int = MOST_JSON) -> dict[str, Any]:
    """A JSON file that holds one table.

    Raises:
        CheckpointError: as `read_bytes`, or it is no such JSON.
    """
    return parse_table(path, read_bytes(path, most))


def parse_table(path: Path, data: bytes) -> dict[str, Any]:
    """A table from the JSON text of a file: each key once, only finite numbers, no integer written as -0.

    Raises:
        CheckpointError: naming the file.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a key stands twice")
        return table

    def finite(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError("a number is not finite")
        return value

    def whole(text: str) -> int:
        if text == "-0":
            raise ValueError("an integer is written as -0")
        return int(text)

    hooks: dict[str, Any] = {"object_pairs_hook": unique, "parse_float": finite, "parse_constant": finite}
    try:
        value = json.loads(data.decode("utf-8"), parse_int=whole, **hooks)
    except (ValueError, RecursionError) as error:
        raise broken(path, f"is not valid JSON: {str(error)[:80]}") from error
    if not isinstance(value, dict):
        raise broken(path, "is not a table")
    return value


def to_json(table: Mapping[str, Any]) -> bytes:
    """A table as the text of a file, the same for equal tables."""
    return (json.dumps(table, indent=1, sort_keys=True) + "\n").encode()


def seal(table: Mapping[str, Any]) -> bytes:
    """The text of a table with the SHA-256 of all the rest of it, as `sha256`."""
    digest = hashlib.sha256(to_json(table)).hexdigest()
    return to_json({**table, _SEAL: digest})


def read_sealed(path: Path, most: int = MOST_JSON) -> dict[str, Any]:
    """The table that was sealed into a file, without the seal.

    Raises:
        CheckpointError: as `read_table`, or it does not have the contents that were sealed.
    """
    data = read_bytes(path, most)
    table = parse_table(path, data)
    table.pop(_SEAL, None)
    # Byte for byte: a change that leaves the same values, such as 1e-05 to 1E-05, is a change.
    try:
        changed = seal(table) != data
    except RecursionError as error:
        raise broken(path, "is nested too deeply") from error
    if changed:
        raise broken(path, "does not have the contents that were saved (SHA-256 differs)")
    return table
