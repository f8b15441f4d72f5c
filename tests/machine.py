"""What a test may say of time without saying how fast the machine is, or how busy.

Processor time stands still while others run. A limit on it is a multiple of what something else costs that is measured
next to it, in turn, so that a slow or disturbed machine slows both. The middle of several such ratios counts: what is
short is now and then not disturbed at all and what is long always is a little, so the least of either make no pair.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

HANG_S = 3600
"""Seconds after which a process is taken to hang. On an idle machine nothing that works needs a thousandth of it; under
nice and next to fifty other processes something took a quarter."""


def cpu_s(command: Sequence[object], **options: object) -> float:
    """Processor seconds of a command and of what it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([str(word) for word in command], capture_output=True, timeout=HANG_S, **options)  # type: ignore[call-overload]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def times_the_cost(of: Callable[[], float], other: Callable[[], float], rounds: int = 9) -> float:
    """How many times as much one thing costs as the other: the median of ratios, each of two measured in turn."""
    of(), other()  # bytecode is compiled and files are in memory
    return statistics.median(of() / other() for _ in range(rounds))


def start_of(code: str = "pass") -> Callable[[], float]:
    """Processor seconds of an interpreter that starts and runs a line."""
    return lambda: cpu_s([sys.executable, "-c", code])


def wait_until(holds: Callable[[], bool], patience_s: float = HANG_S) -> bool:
    """Whether something comes to hold; the patience is for machines that are busy, and is used up by faults alone."""
    end = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def waits_for_input(pid: int) -> bool:
    """Whether the main thread of a process sleeps, as it does in a read that nothing answers yet."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
