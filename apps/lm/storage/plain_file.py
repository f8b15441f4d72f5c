"""Reading files from untrusted sources: plain files only, JSON of bounded size, and errors that name the file.

Nothing here follows a link, waits for a pipe, or trusts a number that the size of the file does not confirm.
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

MAX_JSON_BYTES = 1 << 18
"""Largest JSON file: its parsed values can take thirty times as much memory."""
_SEAL = "sha256"


def broken(path: Path, what: str) -> CheckpointError:
    """The error for a file that exists and is wrong."""
    return CheckpointError(None, what, os.fspath(path))


def short(value: object) -> str:
    """A value from a file as it appears in a message: one short line of printable ASCII."""
    return reprlib.repr(value).encode("ascii", "backslashreplace").decode()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open a plain file for reading.

    Raises:
        CheckpointError: it is missing, is not readable, or is a link, a pipe, a device or a directory.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would wait until something writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reason = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror or str(error)
        raise CheckpointError(error.errno, reason, os.fspath(path)) from error
    # Checked before Python opens it: for a directory that fails with a nameless error and leaks the descriptor.
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


def read_bytes(path: Path, most: int = MAX_JSON_BYTES) -> bytes:
    """The contents of a plain file of at most `most` bytes.

    Raises:
        CheckpointError: as for `opened`, or the file is larger.
    """
    with opened(path) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise broken(path, f"is larger than {most} bytes")
    return data


def read_table(path: Path, most: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The table in a JSON file.

    Raises:
        CheckpointError: as for `read_bytes`, or the file is not the JSON of one table.
    """
    return parse_table(path, read_bytes(path, most))


def parse_table(path: Path, data: bytes) -> dict[str, Any]:
    """The table in the JSON text of a file: unique keys, finite numbers, no integer written as -0.

    Raises:
        CheckpointError: naming the file.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a key appears twice")
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
    """A table as the text of a file. Equal tables give equal bytes."""
    return (json.dumps(table, indent=1, sort_keys=True) + "\n").encode()


def seal(table: Mapping[str, Any]) -> bytes:
    """The text of a table with one more key, `sha256`: the SHA-256 of the text without it."""
    digest = hashlib.sha256(to_json(table)).hexdigest()
    return to_json({**table, _SEAL: digest})


def read_sealed(path: Path, most: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The table of a sealed file, without the seal.

    Raises:
        CheckpointError: as for `read_table`, or the contents are not those that were sealed.
    """
    data = read_bytes(path, most)
    table = parse_table(path, data)
    table.pop(_SEAL, None)
    # Compared as bytes: a change that keeps the values, such as 1e-05 to 1E-05, counts as a change.
    try:
        changed = seal(table) != data
    except RecursionError as error:
        raise broken(path, "is nested too deeply") from error
    if changed:
        raise broken(path, "does not have the contents that were saved (SHA-256 differs)")
    return table
