"""What several commands share."""

from __future__ import annotations

import contextlib
import os
import sys

from protperf.errors import ConfigError


def tell(text: str) -> None:
    """One line on standard error; where that is full or gone, the work goes on without it."""
    with contextlib.suppress(OSError, ValueError):
        print(f"protperf: {plain(text)}", file=sys.stderr, flush=True)


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
