"""Where a table goes: to standard output, to a device or a pipe as it is, or to a file that is replaced as a whole."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeGuard

from protperf.errors import ConfigError, FileError
from protperf.lm.storage import durable
from protperf.message import Argument, Message


def is_file(out: Path | None) -> TypeGuard[Path]:
    """Whether the output is a file that can be replaced, and neither a stream nor a device."""
    return out is not None and descriptor_of(out) is None and (not out.exists() or out.is_file())


def descriptor_of(out: Path) -> int | None:
    """The open file that a name such as /dev/stdout or /dev/fd/3 stands for; writing goes on where that file stands."""
    name = str(out)
    if name in ("/dev/stdout", "/dev/stderr"):
        return 1 if name == "/dev/stdout" else 2
    match = re.fullmatch(r"(?:/dev|/proc/self)/fd/(\d+)", name)
    return int(match[1]) if match else None


def companions(out: Path) -> tuple[Path, Path, Path]:
    """The partial file of an output file, the journal of that, and the sidecar that says where the table came from."""
    return tuple(out.with_name(out.name + suffix) for suffix in (".part", ".part.json", ".meta.json"))  # type: ignore[return-value]


def check_inputs(out: Path | None, inputs: Iterable[str]) -> None:
    """Refuse an output file that cannot be made, or whose writing would overwrite an input file.

    Raises:
        FileError: its directory does not exist; ConfigError: it is one of the inputs, which is named.
    """
    if not is_file(out):
        return
    if not out.resolve().parent.is_dir():
        raise FileError(None, "there is no such directory; make it first", str(out.parent))
    real = Path(os.path.realpath(out))
    names = [real, *companions(real)]
    for taken in [*names, *map(durable.staging_name, names)]:
        for path in inputs:
            if taken.is_file() and os.path.exists(path) and os.path.samefile(taken, path):
                text = "{out} would overwrite the input file {path}; choose another name"
                raise ConfigError(Message(text, out=Argument("out", str(out)), path=path))


def check_target(path: Path | None, taken: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse a file that cannot be made, or that would overwrite another file of the same command.

    Raises:
        FileError: its directory does not exist; ConfigError: it is one of those that are taken.
    """
    if path is None:
        return
    if not path.resolve().parent.is_dir():
        raise FileError(None, "there is no such directory; make it first", str(path.parent))
    if any(Path(other).resolve() == path.resolve() for other in taken):
        raise ConfigError(f"{path} would overwrite another file of this command; choose another name")


def open_stream(out: Path | None) -> Callable[[str], None]:
    """A function that writes text to standard output, or to the device or pipe of that name.

    Raises:
        FileError: it cannot be opened.
    """
    if out is None:
        return _write_to_stdout
    number = descriptor_of(out)
    with durable.named(out):
        descriptor = os.open(out, os.O_WRONLY | os.O_CLOEXEC) if number is None else os.dup(number)

    def emit(text: str) -> None:
        with durable.named(out):
            durable.write_all(descriptor, text.encode())

    return emit


def _write_to_stdout(text: str) -> None:
    # UTF-8 in any locale.
    binary = getattr(sys.stdout, "buffer", None)
    if binary is None:
        sys.stdout.write(text)
    else:
        sys.stdout.flush()
        binary.write(text.encode())
    sys.stdout.flush()
