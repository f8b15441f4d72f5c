"""Writes that survive a kill, a full disk and a power loss: what a file is called and holds is decided elsewhere.

A name is safe once the directory that holds it was synced, and contents once the file was; so contents are written
beside, synced, renamed, and the directory synced last. Every failure is a `FileError` that names the path: the system's
own names none for a write or a sync that fails.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from protperf.errors import FileError

_AT_ONCE = 1 << 24
"""Bytes handed to one write; the system takes no more than 2 GiB."""
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""What file systems without locks answer, such as Lustre mounted without them."""
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""What file systems answer that have nothing to sync in a directory."""


@contextlib.contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the system's errors into a `FileError` that names a path."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(error.errno, error.strerror or str(error), os.fspath(path)) from error


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that a reader finds the old contents or the new, never a part.

    The caller is the only writer: what an interrupted call left beside is removed.
    """
    partial = stage_file(path, data)
    with named(path):
        try:
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
    sync_directory(path.parent)


def stage_file(path: Path, data: bytes | Callable[[BinaryIO], None]) -> Path:
    """Write and sync what `path` will hold, or what writes it, as `.tmp-NAME` beside it; the caller renames it."""
    partial = staging_name(path)
    try:
        with named(partial):
            partial.unlink(missing_ok=True)
        write_file(partial, data)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    return partial


def staging_name(path: Path) -> Path:
    """Where `stage_file` writes."""
    return path.with_name(f".tmp-{path.name}")


def write_file(path: Path, data: bytes | Callable[[BinaryIO], None]) -> None:
    """Write and sync a file that must not exist; it gets the permissions that any new file gets."""
    with named(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            if isinstance(data, bytes):
                write_at(descriptor, data, 0)
            else:
                with open(descriptor, "wb", closefd=False) as stream:
                    data(stream)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_at(descriptor: int, data: bytes, position: int) -> None:
    """Write all of `data` at a position in bytes; the system may take it in parts."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view[:_AT_ONCE], position)
        position, view = position + written, view[written:]


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data` where the descriptor stands."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view[:_AT_ONCE]) :]


def append(path: Path, data: bytes) -> None:
    """Add to the end of a file, which is made where it is not there; not synced."""
    with named(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            write_all(descriptor, data)
        finally:
            os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the contents of a file safe."""
    with named(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make safe which names a directory holds."""
    with named(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _CANNOT_SYNC:
                raise
        finally:
            os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory and those above it that are missing, each safe in the one that holds it."""
    missing = []
    place = Path(os.path.abspath(path))
    while not place.exists():
        missing.append(place)
        place = place.parent
    for place in reversed(missing):
        with named(place):
            place.mkdir(exist_ok=True)
        sync_directory(place.parent)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole directory, if it is there."""
    with named(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
