"""What several commands share."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from protperf.errors import ConfigError


def tell(text: str) -> None:
    """Print one line to standard error; if that is full or gone, the work continues without messages."""
    try:
        print(f"protperf: {plain(text)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        # The line stays in the buffer, and Python would exit with code 120 for failing to write it at the end.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def plain(text: str) -> str:
    """Text that moves no cursor and breaks no line: names come from files, and files from strangers."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def open_closed_streams() -> None:
    """Give each standard stream that was closed a descriptor: the next file opened would become it otherwise.

    Reading from, and writing to, a stream that was closed fails; what is told to a closed standard error is lost.
    """
    for number, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number free is given, and all below are open.
            os.open(os.devnull, flags)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115


def end_at_once() -> None:
    """From now on SIGINT and SIGTERM end the process where it stands.

    While libraries load, an exception thrown into an import comes out as any other, or is swallowed; and nothing that
    is written by then needs more care than after a kill.
    """

    def leave(number: int, frame: object) -> NoReturn:
        # Below a bar, where one stands.
        with contextlib.suppress(OSError):
            os.write(2, b"\n" * os.isatty(2) + b"protperf: interrupted\n")
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)


def unwind() -> None:
    """From now on SIGINT and SIGTERM are exceptions, so that what is written stays whole."""

    def terminate(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, terminate)


def one_of(names: Sequence[str]) -> Callable[[], list[str]]:
    """What a shell completes an option's value to."""
    return lambda: list(names)


def check_voice(quiet: bool, verbose: bool) -> None:
    """Check `-q` and `-v`.

    Raises:
        ConfigError: both.
    """
    if quiet and verbose:
        raise ConfigError("--quiet and --verbose exclude each other; give one")


def surroundings(num_threads: int, dtype: str) -> str:
    """What a result's last bits depend on, in one line."""
    import torch

    from protperf.functional import build_info

    info = build_info()
    threads = f"{num_threads} thread{'s' if num_threads > 1 else ''}"
    return f"protperf {info['version']}, torch {torch.__version__}, device cpu, {info['isa']}, {threads}, {dtype}"


def spent(since: float) -> str:
    """Time since `time.monotonic()` said `since`, and the most memory that this process has held."""
    import resource

    # In bytes on macOS, in KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f"{time.monotonic() - since:.1f} s, peak memory {peak / 1e6:.0f} MB"


def check_threads(threads: int | None) -> None:
    """Check `-j`.

    Raises:
        ConfigError: out of range.
    """
    if threads is not None and not 1 <= threads <= 4096:
        raise ConfigError(f"--threads is {threads}; it must be from 1 to 4096")


def set_threads(threads: int | None) -> int:
    """Threads of torch and of the kernels: `-j`, else PROTPERF_NUM_THREADS, else the cores this process may use."""
    import torch

    from protperf.functional import build_info

    check_threads(threads)
    if threads is not None:
        os.environ["PROTPERF_NUM_THREADS"] = str(threads)
    chosen = int(build_info()["num_threads"])
    torch.set_num_threads(chosen)
    return chosen
