"""Runs a function in a process of its own, so that neither memory nor threads of one case are left to the next.

The process is a fork of one that has imported torch and computed nothing yet: it starts at once, and no pool of threads
is lost in it.
"""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Options of glibc's `mallopt`."""


class FailedError(Exception):
    """The process ended without an answer: it ran out of memory, or raised."""


def alone(work: Callable[[], T]) -> T:
    """What `work` returns in a process of its own; it must not have raised.

    Raises:
        FailedError: it raised, or was killed.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_answer, args=(work, sender))
    process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        raise FailedError("out of memory" if code == -signal.SIGKILL else f"exit code {code}") from None
    process.join()
    if isinstance(answer, Exception):
        raise FailedError(str(answer) or type(answer).__name__) from answer
    return answer


def _answer(work: Callable[[], object], sender: Connection) -> None:
    try:
        sender.send(work())
    except Exception as error:
        sender.send(RuntimeError(f"{type(error).__name__}: {error}"))


def keep_memory() -> None:
    """Let the allocator keep what is freed: fresh pages for temporaries would be half of a peer's time and more."""
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def peak_bytes(call: Callable[[], object]) -> int:
    """The most memory that a call needs at once beyond what was there before; Linux alone."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    call()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    lines = Path(f"/proc/{os.getpid()}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))
