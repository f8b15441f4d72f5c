"""The wall clock of a run, which counts on over resumes. Whoever starts the work makes it: reading the data counts."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Seconds that a run has taken."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._start, self._earlier_s = now, now(), 0.0

    def elapsed_s(self) -> float:
        """Seconds since the clock was made, and those that the run had taken before it was resumed."""
        return self._earlier_s + self._now() - self._start

    def resume(self, earlier_s: float) -> None:
        """Count on from the seconds that the run had taken before."""
        self._earlier_s = earlier_s
