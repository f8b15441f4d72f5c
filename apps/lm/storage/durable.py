"""Writes that survive a kill, a full disk and a power loss. What the files are called and hold is decided elsewhere.

A name is safe once its directory has been synced, contents once the file has been. So new contents are written to a
temporary file in the same directory and synced, the file is renamed, and the directory is synced last. Every failure is
a `FileError` that names the path: the system's own error names none when a write or a sync fails.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from protperf.errors import FileError

_MAX_WRITE_BYTES = 1 << 24
"""Bytes passed to one write call; the system takes at most 2 GiB."""
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""Error numbers of file systems without locks, such as Lustre mounted without them."""
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""Error numbers of file systems that do not sync directories."""


@contextlib.contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors of the system into a `FileError` that names the path."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(error.errno, error.strerror or str(error), os.fspath(path)) from error


def replace_file(path: Path, data: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a file so that a reader finds either the old contents or the new, never a part of them.

    `data` is the contents, or a function that writes them to a stream.

    The caller must be the only writer: the temporary file of an interrupted call is removed.
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
    """Write and sync the future contents of `path` as `.tmp-NAME` in its directory; the caller renames it.

    `data` is the contents, or a function that writes them to a stream.
    """
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


def write_folder(out: Path, files: Mapping[str, bytes]) -> None:
    """Put a folder of files in its place, as a whole or not at all; nothing may be there yet."""
    partial = staging_name(out)
    remove(partial)
    with named(partial):
        partial.mkdir()
    try:
        for name, data in files.items():
            write_file(partial / name, data)
        sync_directory(partial)
        with named(out):
            os.rename(partial, out)
    except BaseException:
        remove(partial)
        raise
    sync_directory(out.absolute().parent)


def staging_name(path: Path) -> Path:
    """The temporary path that `stage_file` writes to."""
    return path.with_name(f".tmp-{path.name}")


def write_file(path: Path, data: bytes | Callable[[BinaryIO], None]) -> None:
    """Write and sync a file that must not exist yet; it gets the permissions of any new file."""
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
    """Write all of `data` at a position in bytes; the system may accept it in parts."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view[:_MAX_WRITE_BYTES], position)
        position, view = position + written, view[written:]


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data` at the current position of the descriptor."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view[:_MAX_WRITE_BYTES]) :]


def append(path: Path, data: bytes) -> None:
    """Append to a file, which is created if it is missing. Not synced."""
    with named(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            write_all(descriptor, data)
        finally:
            os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the contents of a file durable."""
    with named(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable."""
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
    """Create a directory and its missing parents; each is durable before the next is created."""
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
    """Remove a file, a link or a whole directory, if it exists."""
    with named(path):
        if path.is_dir() and not path.is_symlink():
            # Here, for every command loads this file and few remove anything.
            import shutil

            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
