"""Signals that end a training: the step is finished and saved first."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

# Ctrl-C; kill, as users and schedulers send it; a lost terminal; the limit on processor time; and the signal that many
# schedulers send as a warning some time before they kill a job.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU", "SIGUSR1")


@contextmanager
def noted(note: Callable[[int], None]) -> Iterator[None]:
    """Call `note` with the number of a signal that asks this process to end, instead of ending it.

    A signal that is ignored when this begins stays ignored: so it was set by whoever started the process, such as
    `nohup`. Outside of the main thread signals cannot be handled, and none is.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        note(number)

    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    before = {}
    try:
        for number in numbers:
            # None: a handler that was not installed from Python, and could not be put back.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handle)
    except ValueError:  # not the main thread
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_for(number: int) -> NoReturn:
    """End a Python program as the signal would have, now that the work is saved.

    Raises:
        KeyboardInterrupt: for SIGINT; SystemExit: for any other, with the code 128 + number.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
